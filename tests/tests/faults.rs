//! Minutes of faults, at random: three safekeepers, a pageserver, control and an agent as processes of their own, killed,
//! frozen and cut from each other while clients write. At most one safekeeper is away at a time, but for a moment in which
//! all are killed.
//!
//! At the end, and in every branch that was made on the way: acknowledged ⊆ present ⊆ sent, amcheck clean, the four
//! pgbench sums equal, and the three logs one. `FAULT_SECONDS` (60) is how long it goes on, `FAULT_SEED` which faults come.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use treering_stock::Postgres;
use treering_tests::{
    PG_BIN, cut::Way, deployment::Deployment, ledger::Ledger, processes, quorum::lsn, verify,
};
use treering_types::Lsn;

/// Acknowledged commits that must come while no more than one safekeeper is away.
const PROGRESS: usize = 20;
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait until all that is committed is everywhere.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
const PIECE_BYTES: u64 = 8 << 20;

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillSafekeeper(usize),
    FreezeSafekeeper(usize),
    CutOff(usize, Way),
    /// Agents do not reach it; the pageserver does, and must not wait for what it will not get.
    CutFromAgents(usize, Way),
    /// The pageserver does not reach it.
    CutFromPageserver(usize, Way),
    /// Its disk is lost, and another one takes its place.
    LoseSafekeeper(usize),
    KillSafekeepers,
    KillPageserver,
    FreezePageserver,
    KillCompute,
    KillAgent,
    /// Another agent takes over while the old one, and its Postgres, do not know.
    ReplaceAgent,
    Branch,
}

impl Fault {
    fn any(dice: &mut StdRng) -> Fault {
        let one = dice.random_range(0..3);
        let way = if dice.random() { Way::Silent } else { Way::Closed };
        match dice.random_range(0..15) {
            0 | 1 => Fault::KillSafekeeper(one),
            2 | 3 => Fault::FreezeSafekeeper(one),
            4 => Fault::CutOff(one, way),
            5 => Fault::CutFromAgents(one, way),
            6 => Fault::CutFromPageserver(one, way),
            7 => Fault::KillSafekeepers,
            8 => Fault::KillPageserver,
            9 => Fault::FreezePageserver,
            10 => Fault::KillCompute,
            11 => Fault::KillAgent,
            12 => Fault::ReplaceAgent,
            13 => Fault::LoseSafekeeper(one),
            _ => Fault::Branch,
        }
    }
}

/// A branch, and what had been acknowledged when it was asked for.
struct Made {
    name: String,
    acknowledged: usize,
}

struct Run {
    deployment: Deployment,
    dice: StdRng,
    ledger: Ledger,
    /// Writers at agents that have been replaced since.
    strays: Vec<Ledger>,
    branches: Vec<Made>,
}

async fn pause(dice: &mut StdRng, limit_ms: u64) {
    tokio::time::sleep(Duration::from_millis(dice.random_range(100..limit_ms))).await;
}

impl Run {
    async fn progress(&self, what: &str) {
        let (before, began) = (self.ledger.acknowledged(), Instant::now());
        while self.ledger.acknowledged() < before + PROGRESS {
            assert!(began.elapsed() < PROGRESS_LIMIT, "{what}: no commits for {PROGRESS_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn inflict(&mut self, fault: Fault) {
        let what = format!("{fault:?}");
        match fault {
            Fault::KillSafekeeper(one) => {
                self.deployment.safekeepers[one].process.kill();
                self.progress(&what).await;
                pause(&mut self.dice, 3000).await;
                self.deployment.safekeepers[one].process.start();
            }
            Fault::FreezeSafekeeper(one) => {
                self.deployment.safekeepers[one].process.freeze();
                self.progress(&what).await;
                // Beyond what is waited for an answer, now and then.
                pause(&mut self.dice, 8000).await;
                self.deployment.safekeepers[one].process.thaw();
            }
            Fault::CutOff(one, way) => {
                self.deployment.safekeepers[one].set(way);
                self.progress(&what).await;
                pause(&mut self.dice, 8000).await;
                self.deployment.safekeepers[one].set(Way::Open);
            }
            Fault::CutFromAgents(one, way) => {
                self.deployment.safekeepers[one].wal.set(way);
                self.progress(&what).await;
                pause(&mut self.dice, 4000).await;
                self.make_branch().await;
                self.deployment.safekeepers[one].wal.set(Way::Open);
            }
            Fault::CutFromPageserver(one, way) => {
                self.deployment.safekeepers[one].pg.set(way);
                self.progress(&what).await;
                self.make_branch().await;
                self.deployment.safekeepers[one].pg.set(Way::Open);
            }
            Fault::LoseSafekeeper(one) => {
                self.deployment.safekeepers[one].process.kill();
                self.progress(&what).await;
                self.deployment.replace_safekeeper(one).await;
            }
            Fault::KillSafekeepers => {
                self.deployment.safekeepers.iter_mut().for_each(|one| one.process.kill());
                pause(&mut self.dice, 2000).await;
                self.deployment.safekeepers.iter_mut().for_each(|one| one.process.start());
            }
            Fault::KillPageserver => {
                self.deployment.pageserver.kill();
                pause(&mut self.dice, 2000).await;
                self.deployment.pageserver.start();
            }
            Fault::FreezePageserver => {
                self.deployment.pageserver.freeze();
                pause(&mut self.dice, 2000).await;
                self.deployment.pageserver.thaw();
            }
            Fault::KillCompute => {
                self.deployment.agent.computes().into_iter().for_each(processes::kill);
            }
            Fault::KillAgent => {
                self.deployment.agent.process.kill();
                pause(&mut self.dice, 1000).await;
                self.deployment.agent.process.start();
            }
            Fault::ReplaceAgent => self.replace_agent(&what).await,
            Fault::Branch => self.make_branch().await,
        }
        self.progress(&format!("after {what}")).await;
    }

    async fn make_branch(&mut self) {
        let name = format!("b{}", self.branches.len());
        let acknowledged = self.ledger.acknowledged();
        self.deployment.branch(&name).await;
        self.branches.push(Made { name, acknowledged });
    }

    /// The old agent wakes up beside the new one, with clients that go on: none of their commits may be acknowledged
    /// and lost, and its compute must end.
    async fn replace_agent(&mut self, what: &str) {
        let config = self.deployment.config_at("main").await;
        let first = 100 + 10 * self.strays.len() as i32;
        let mut stray = Ledger::join(&config, first..first + 2);
        pause(&mut self.dice, 1000).await;
        self.deployment.agent.process.freeze();
        let computes = self.deployment.agent.computes();
        if self.dice.random() {
            computes.iter().copied().for_each(processes::freeze);
        }
        let mut old = self.deployment.replace_agent();
        self.progress(what).await;
        // What they sent last is still to be answered; connecting again would make the old agent take over in its turn.
        stray.send_no_more();
        computes.iter().copied().for_each(processes::thaw);
        old.process.thaw();
        self.progress(what).await;
        stray.end().await;
        old.process.kill();
        old.computes().into_iter().for_each(processes::kill);
        self.strays.push(stray);
    }
}

/// TPC-B beside the ledger; it ends when its connection breaks, and is begun again.
struct Load {
    pgbench: Command,
    running: Child,
}

impl Load {
    fn begin(mut pgbench: Command) -> Load {
        let running = pgbench.spawn().expect("pgbench");
        Load { pgbench, running }
    }

    fn keep_up(&mut self) {
        if !matches!(self.running.try_wait(), Ok(None)) {
            self.running = self.pgbench.spawn().expect("pgbench");
        }
    }

    fn end(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

fn pgbench(config: &tokio_postgres::Config, arguments: &[&str]) -> Command {
    let port = config.get_ports().first().expect("a port").to_string();
    let password = String::from_utf8_lossy(config.get_password().expect("a password")).into_owned();
    let mut command = Command::new(Path::new(PG_BIN).join("pgbench"));
    command.args(arguments).envs([
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGUSER", config.get_user().expect("a user")),
        ("PGPASSWORD", &password),
        ("PGDATABASE", "postgres"),
        ("PGOPTIONS", "branch=main"),
        ("PGCONNECT_TIMEOUT", "5"),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn programs_of(major: u32) -> PathBuf {
    let postgres = Postgres::find(major).expect("Postgres");
    let program = postgres.program("postgres").expect("postgres");
    program.parent().expect("a directory").to_owned()
}

/// Each wants the machine for itself.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn run(major: u32) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let seed = setting("FAULT_SEED", rand::random());
    let lasts = Duration::from_secs(setting("FAULT_SECONDS", 60));
    eprintln!("PostgreSQL {major}, FAULT_SEED={seed}");
    let deployment = Deployment::start(&programs_of(major), major).await;
    let config = deployment.config("main").await;
    let initialised = pgbench(&config, &["-i", "-q", "-s", "2"]).status().expect("pgbench");
    assert!(initialised.success());
    let ledger = Ledger::begin(&config, 4).await;
    let dice = StdRng::seed_from_u64(seed);
    let mut run = Run { deployment, dice, ledger, strays: Vec::new(), branches: Vec::new() };
    let mut load = Load::begin(pgbench(&config, &["-n", "-c", "2", "-T", "3600"]));
    let began = Instant::now();
    let mut faults = 0;
    while began.elapsed() < lasts {
        let fault = Fault::any(&mut run.dice);
        eprintln!(
            "{:>6.1} s, {} commits: {fault:?}",
            began.elapsed().as_secs_f64(),
            run.ledger.acknowledged()
        );
        run.inflict(fault).await;
        load.keep_up();
        faults += 1;
    }
    load.end();
    run.ledger.end().await;
    eprintln!(
        "{faults} faults, {} commits, {} branches",
        run.ledger.acknowledged(),
        run.branches.len()
    );
    check(&run).await;
}

async fn check(run: &Run) {
    let client = run.deployment.connect("main").await;
    run.ledger.check(&client).await;
    for stray in &run.strays {
        stray.check(&client).await;
    }
    verify::pgbench_sums(&client).await;
    verify::amcheck(&client).await;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.expect("lsn");
    let end: Lsn = row.get::<_, String>(0).parse().expect("an LSN");
    logs_agree(run, end).await;
    drop(client);
    for made in &run.branches {
        let client = run.deployment.connect(&made.name).await;
        let row = client.query_one("SELECT count(*) FROM ledger WHERE writer < 100", &[]).await;
        let rows: i64 = row.expect("count").get(0);
        let (name, acknowledged) = (&made.name, made.acknowledged);
        assert!(rows as usize >= acknowledged, "{name} has {rows} rows of {acknowledged}");
        verify::pgbench_sums(&client).await;
        verify::amcheck(&client).await;
        drop(client);
        let stop = format!("/branches/{name}/stop");
        run.deployment.call(reqwest::Method::POST, &stop, None).await.expect("stop");
    }
}

/// Waits until all three have `main`'s log up to `end`, and compares them byte for byte.
async fn logs_agree(run: &Run, end: Lsn) {
    let main = run.deployment.call(reqwest::Method::GET, "/branches/main", None).await;
    let main = main.expect("main");
    let (tenant, timeline) = (&main["tenant_id"], &main["timeline_id"]);
    let path = format!(
        "/v1/tenant/{}/timeline/{}",
        tenant.as_str().expect("id"),
        timeline.as_str().expect("id")
    );
    let copies = async || -> Vec<Value> {
        let views = run.deployment.safekeeper_views().await;
        let logs = views.iter().flat_map(|view| view["logs"].as_array().expect("logs"));
        logs.filter(|log| log["timeline_id"] == *timeline).cloned().collect()
    };
    let start = |copies: &[Value]| copies.iter().map(|copy| lsn(&copy["trim_lsn"])).max();
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut at = loop {
        let copies = copies().await;
        if copies.len() == 3 && copies.iter().all(|copy| lsn(&copy["commit_lsn"]) >= end) {
            break start(&copies).expect("three");
        }
        assert!(Instant::now() < deadline, "not everywhere: {end}, {copies:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    'pieces: while at < end {
        let to = end.min(Lsn(at.0 + PIECE_BYTES));
        let mut pieces = Vec::new();
        for nth in 0..3 {
            let base = run.deployment.safekeeper_http(nth);
            let url = format!("{base}{path}/wal?from={at}&to={to}&committed=true");
            let answer = reqwest::get(&url).await.expect("an answer");
            if answer.status() == reqwest::StatusCode::GONE {
                // The pageserver needs it no more, since just now.
                assert!(Instant::now() < deadline, "{url}: gone");
                tokio::time::sleep(Duration::from_millis(200)).await;
                at = start(&copies().await).map_or(at, |start| start.max(at));
                continue 'pieces;
            }
            assert!(answer.status().is_success(), "{url}: {}", answer.status());
            pieces.push(answer.bytes().await.expect("bytes"));
        }
        assert_eq!(pieces[0].len() as u64, to.0 - at.0);
        assert!(pieces.iter().all(|piece| *piece == pieces[0]), "the logs part in {at}..{to}");
        at = to;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_under_postgres_15() {
    run(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_under_postgres_17() {
    run(17).await;
}
