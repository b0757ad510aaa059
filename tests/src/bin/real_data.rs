//! Months of use in half an hour: pgbench on one branch, while branches of it and of each other come, are written to, and go.
//!
//! ```text
//! real_data [minutes] [scale] [branches]      30 100 200
//! ```
//!
//! With a window of two minutes, so that gc has work all the while. At the end: every branch that is left is whole (pgbench's sums,
//! amcheck); the scrub finds nothing, running and stopped; the files take at most 1.5 times what a fresh merge of everything leaves;
//! and what `storage size` says of that merge is so. `TREERING_SEED` repeats the choices of a run.

use std::{
    fs::File,
    path::Path,
    process::{Child, ExitCode},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use treering_tests::{
    Treering,
    storage::{self, du, tenants},
    verify,
};

/// Branches beside main at one time.
const LIVING_MAX: usize = 8;
/// Checked at the end, each by a compute that reads everything.
const SURVIVORS_MAX: usize = 4;
const WINDOW: &str = "2m";
/// Gc begins this long after the start.
const LEASES: &str = "30s";
/// The command line's exit code for it.
const TIMEOUT: i32 = 6;
/// How far back a branch may begin: well within the window.
const PAST_SECONDS_MAX: u64 = 60;
/// Bytes on disk for a byte that a fresh merge leaves.
const SPACE_MAX: f64 = 1.5;

struct Course {
    minutes: f64,
    scale: u32,
    branches: u32,
}

impl Course {
    fn from_arguments() -> Course {
        let mut arguments = std::env::args().skip(1);
        let mut next = |default: f64| match arguments.next() {
            Some(text) => text.parse().expect("real_data [minutes] [scale] [branches]"),
            None => default,
        };
        let (minutes, scale, branches) = (next(30.0), next(100.0), next(200.0));
        Course { minutes, scale: scale as u32, branches: branches as u32 }
    }
}

fn main() -> ExitCode {
    let course = Course::from_arguments();
    let seed = std::env::var("TREERING_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!(
        "{} minutes at scale {}, {} branches, TREERING_SEED={seed}",
        course.minutes, course.scale, course.branches
    );
    let mut treering =
        Treering::start_with(&["--pitr-window", WINDOW, "--lsn-lease-length", LEASES]);
    treering.run("pgbench", "main", &["-i", "-q", "-s", &course.scale.to_string()]);
    let log = treering.data_dir().with_file_name("pgbench.log");
    let mut load = load(&treering, &course, &log);
    let mut life = Life {
        treering: &treering,
        dice: StdRng::seed_from_u64(seed),
        living: Vec::new(),
        made: 0,
    };
    life.run(&course, &mut load);
    let status = load.wait().expect("wait");
    assert!(status.success(), "pgbench: {status}; see {}", log.display());
    while life.living.len() > SURVIVORS_MAX {
        life.drop_one();
    }
    let (made, survivors) = (life.made, life.living);
    println!("{made} branches were made; left: {}", survivors.join(", "));

    check_survivors(&treering, &survivors);
    let space = space(&treering, &survivors);
    scrub(&treering);
    treering.interrupt();
    scrub(&treering);
    println!("{space:.2} bytes on disk for a byte that a fresh merge leaves; at most {SPACE_MAX}");
    if space > SPACE_MAX {
        println!("too many");
        return ExitCode::FAILURE;
    }
    println!("clean");
    ExitCode::SUCCESS
}

fn load(treering: &Treering, course: &Course, log: &Path) -> Child {
    let seconds = (course.minutes * 60.0) as u64;
    let file = File::create(log).expect("a log");
    treering
        .program("pgbench", "main")
        .args(["-n", "-c", "4", "-j", "2", "-P", "60", "-T", &seconds.to_string()])
        .stdout(file.try_clone().expect("a log"))
        .stderr(file)
        .spawn()
        .expect("pgbench")
}

/// Branches that come and go.
struct Life<'t> {
    treering: &'t Treering,
    dice: StdRng,
    living: Vec<String>,
    made: u32,
}

impl Life<'_> {
    /// Makes the course's branches, evenly over its time.
    fn run(&mut self, course: &Course, load: &mut Child) {
        let began = Instant::now();
        let step = Duration::from_secs_f64(course.minutes * 60.0 / f64::from(course.branches));
        while self.made < course.branches && load.try_wait().expect("wait").is_none() {
            self.make_one(began.elapsed());
            while self.living.len() > LIVING_MAX || self.dice.random_ratio(1, 4) {
                self.drop_one();
            }
            let next = step * self.made;
            std::thread::sleep(next.saturating_sub(began.elapsed()));
            if self.made.is_multiple_of(20) {
                let disk = du(&tenants(self.treering)) >> 20;
                println!(
                    "{:>5} s  {} made, {disk} MiB of pages",
                    began.elapsed().as_secs(),
                    self.made
                );
            }
        }
        assert!(self.made > 0, "pgbench ended before a branch was made");
    }

    fn make_one(&mut self, since: Duration) {
        let name = format!("b{}", self.made);
        let from = match self.living.is_empty() || self.dice.random_ratio(2, 3) {
            true => "main".to_owned(),
            false => self.living[self.dice.random_range(0..self.living.len())].clone(),
        };
        let past = since.as_secs().saturating_sub(5).min(PAST_SECONDS_MAX);
        let ago = format!("{}s ago", self.dice.random_range(0..=past));
        // A branch of main may begin in the past; others have hardly any.
        let mut arguments = vec!["branch", "create", &name, "--from", &from];
        if from == "main" && self.dice.random() {
            arguments.extend(["--at", &ago]);
        }
        while !self.create(&arguments) {}
        self.made += 1;
        if self.dice.random_ratio(1, 4) {
            // Its own history, and computes that come and go.
            self.treering.run("pgbench", &name, &["-n", "-c", "2", "-t", "100"]);
            self.treering.ok(&["stop", &name]);
        }
        self.living.push(name);
    }

    /// False when the pageserver is not there yet: to be asked again.
    fn create(&self, arguments: &[&str]) -> bool {
        let output = self.treering.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_late = output.status.code() == Some(TIMEOUT);
        assert!(output.status.success() || is_late, "treering {arguments:?}: {stderr}");
        !is_late
    }

    /// Drops a branch that has none of its own.
    fn drop_one(&mut self) {
        if self.living.is_empty() {
            return;
        }
        let views = self.treering.json(&["branch", "list"]);
        let parents: Vec<&str> =
            views.as_array().expect("a list").iter().filter_map(|b| b["parent"].as_str()).collect();
        let leaves: Vec<usize> = (0..self.living.len())
            .filter(|index| !parents.contains(&self.living[*index].as_str()))
            .collect();
        let gone = self.living.swap_remove(leaves[self.dice.random_range(0..leaves.len())]);
        self.treering.ok(&["branch", "delete", &gone, "--yes"]);
    }
}

/// Each by itself, main last: a compute that checks everything holds everything.
fn check_survivors(treering: &Treering, survivors: &[String]) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    for name in survivors.iter().map(String::as_str).chain(["main"]) {
        let began = Instant::now();
        treering.ok(&["start", name]);
        runtime.block_on(async {
            let client = treering.connect_in_time(name).await;
            verify::pgbench_sums(&client).await;
            verify::amcheck(&client).await;
        });
        treering.ok(&["stop", name]);
        println!("{name} is whole ({} s)", began.elapsed().as_secs());
    }
}

/// Bytes on disk for each byte that a merge of everything leaves, once what is due has been done.
fn space(treering: &Treering, survivors: &[String]) -> f64 {
    let branches = || survivors.iter().map(String::as_str).chain(["main"]);
    branches().for_each(|name| storage::settle(treering, name));
    let before = du(&tenants(treering));
    let foretold = foretold(treering);
    branches().for_each(|name| storage::merge_all(treering, name));
    let after = du(&tenants(treering));
    println!("pages: {before} bytes, {after} after a merge of everything, {foretold} foretold");
    // The cut-off moves on meanwhile, so that the merge may leave a little less.
    let off = after.abs_diff(foretold) as f64 / after as f64;
    assert!(off <= 0.01, "storage size is off by {:.1} %", off * 100.0);
    before as f64 / after as f64
}

/// What a merge of everything would leave, by `storage size`.
fn foretold(treering: &Treering) -> u64 {
    let size = treering.json(&["storage", "size"]);
    let branches = size["branches"].as_array().expect("branches");
    let bytes = |value: &Value| value.as_u64().expect("bytes");
    let kept = |branch: &Value| bytes(&branch["pages_bytes"]) - bytes(&branch["garbage_bytes"]);
    branches.iter().map(kept).sum()
}

fn scrub(treering: &Treering) {
    let scrubbed = treering.json(&["storage", "scrub"]);
    assert_eq!(scrubbed["clean"], true, "{scrubbed}");
    println!(
        "scrub: {} layers, {} bytes, {} values, leftovers {}",
        scrubbed["layers"], scrubbed["layer_bytes"], scrubbed["values"], scrubbed["leftovers"]
    );
}
