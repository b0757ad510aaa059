//! `bulk-load`: `pgbench -i` as a whole, into a database of its own: tables, rows, vacuum, primary keys.

use std::time::Instant;

use super::halves;
use crate::{
    report::Report,
    scenario::Size,
    versus::{Better, Half, Judged, Stage, compare},
};

const DATABASE: &str = "bulk";

pub fn run(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    // So that one takes 10 to 15 s on a machine with two cores and nothing else to do.
    let scale = if stage.size == Size::Full { 120 } else { 1 };
    let (pairs, _) = halves(stage.size);
    let branch = stage.branch("bulk-load");
    let contest = stage.warm(&branch)?;
    for server in contest.servers() {
        server.sql(&format!("DROP DATABASE IF EXISTS {DATABASE}"))?;
        server.sql(&format!("CREATE DATABASE {DATABASE}"))?;
    }
    let judged = Judged {
        scenario: "bulk-load",
        size: format!("pgbench -i, scale {scale}"),
        unit: "s",
        better: Better::Less,
        bar: 0.75,
    };
    let reports = compare(&contest, judged, pairs, |server| {
        // Dropping what is there is part of `-i`, and its checkpoint work is not: an empty database for everybody.
        server.pgbench(DATABASE, &["-i", "-q", "-I", "d"])?;
        let began = Instant::now();
        server.pgbench(DATABASE, &["-i", "-q", "-s", &scale.to_string()])?;
        Ok(Half { figure: began.elapsed().as_secs_f64(), work: 1.0 })
    })?;
    for server in contest.servers() {
        server.sql(&format!("DROP DATABASE {DATABASE}"))?;
    }
    Ok(reports)
}
