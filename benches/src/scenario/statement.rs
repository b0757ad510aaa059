//! `create-index`, `vacuum-full`, `seq-scan-warm`: how long one statement takes, again and again until a half is over.

use std::time::{Duration, Instant};

use super::halves;
use crate::{
    report::Report,
    versus::{Better, Half, Judged, Server, Stage, compare},
};

/// A statement, and what surrounds it without being measured.
struct Statement {
    scenario: &'static str,
    bar: f64,
    /// Once on each connection.
    setting: &'static str,
    measured: &'static str,
    after: Option<&'static str>,
}

/// Two workers, as the defaults have it.
const CREATE_INDEX: Statement = Statement {
    scenario: "create-index",
    bar: 0.85,
    setting: "",
    measured: "CREATE INDEX accounts_abalance ON pgbench_accounts (abalance)",
    after: Some("DROP INDEX accounts_abalance"),
};

const VACUUM_FULL: Statement = Statement {
    scenario: "vacuum-full",
    bar: 0.8,
    setting: "",
    measured: "VACUUM FULL pgbench_accounts",
    after: None,
};

/// One process that reads pages, and no compiler in it.
pub(super) const PLAIN_SCAN: &str = "SET max_parallel_workers_per_gather = 0; SET jit = off";
pub(super) const SCAN: &str = "SELECT sum(abalance) FROM pgbench_accounts";

const SEQ_SCAN: Statement = Statement {
    scenario: "seq-scan-warm",
    bar: 0.95,
    setting: PLAIN_SCAN,
    measured: SCAN,
    after: None,
};

pub fn create_index(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    run(stage, &CREATE_INDEX)
}

pub fn vacuum_full(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    run(stage, &VACUUM_FULL)
}

pub fn seq_scan_warm(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    run(stage, &SEQ_SCAN)
}

fn run(stage: &Stage, statement: &Statement) -> anyhow::Result<Vec<Report>> {
    let (pairs, limit) = halves(stage.size);
    let branch = stage.branch(statement.scenario);
    let contest = stage.warm(&branch)?;
    let judged = Judged {
        scenario: statement.scenario,
        size: format!("scale {}", stage.scale),
        unit: "ms",
        better: Better::Less,
        bar: statement.bar,
    };
    compare(&contest, judged, pairs, |server| statement.repeat(server, limit))
}

impl Statement {
    /// Milliseconds of one, over as many as fill `limit`.
    fn repeat(&self, server: &Server, limit: Duration) -> anyhow::Result<Half> {
        let session = server.session()?;
        session.sql(self.setting)?;
        let (mut spent, mut runs) = (Duration::ZERO, 0);
        while spent < limit {
            let began = Instant::now();
            session.sql(self.measured)?;
            spent += began.elapsed();
            runs += 1;
            self.after.map_or(Ok(String::new()), |after| session.sql(after))?;
        }
        let work = f64::from(runs);
        Ok(Half { figure: spent.as_secs_f64() * 1e3 / work, work })
    }
}
