//! `demo`: the main job on a throw-away data directory, each step checked.
//!
//! Everything goes the way a user goes: `treering up` as a process, branches through the REST API, SQL through the
//! client port. A mismatch ends the demo with exit code 1. It leaves nothing running and no file.

mod stage;
mod story;

use std::path::PathBuf;

use clap::Args;

use stage::Stage;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// pgbench scale: 100,000 accounts (about 15 MB) each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Directory to put the throw-away data directory in [default: the system's temporary one].
    #[arg(long)]
    below: Option<PathBuf>,
    /// Directory of the Postgres programs.
    #[arg(long, env = "TREERING_PG_BIN_DIR")]
    pg_bin_dir: Option<PathBuf>,
}

pub fn run(arguments: DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let below = arguments.below.unwrap_or_else(std::env::temp_dir);
    let mut stage = Stage::set(&below, arguments.pg_bin_dir.as_deref())?;
    let played = runtime.block_on(async {
        tokio::select! {
            played = story::play(&mut stage, arguments.scale) => played,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    });
    let struck = stage.strike();
    played?;
    struck
}
