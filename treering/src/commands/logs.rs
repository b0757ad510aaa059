//! `logs`: the Postgres log of a branch.

use std::{
    fs::File,
    io::{self, Read, Write},
    time::Duration,
};

use anyhow::Context;
use treering_control::model::BranchView;

use crate::{cli::Place, commands::branch::segment};

/// How often a followed log is looked at.
const FOLLOW_POLL: Duration = Duration::from_millis(200);

pub fn run(place: &Place, branch: Option<String>, follow: bool) -> anyhow::Result<()> {
    let name = branch.unwrap_or_else(|| "main".to_owned());
    let branch: BranchView = place.client()?.get(&format!("/branches/{}", segment(&name)?))?;
    let agent_dir = place.data_dir().service_dir("agent");
    let path = treering_compute_proxy::log_path(&agent_dir, branch.timeline_id);
    let mut log = match File::open(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("branch {name} has no log: it was never started");
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut buffer = [0; 16384];
    loop {
        let read = log.read(&mut buffer)?;
        match io::stdout().write_all(&buffer[..read]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        if read == 0 {
            if !follow {
                return Ok(());
            }
            io::stdout().flush()?;
            std::thread::sleep(FOLLOW_POLL);
        }
    }
}
