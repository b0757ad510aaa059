//! `treering-bench`: benchmark scenarios against the real binary.
//!
//! With `--json`, one object a line on stdout; progress and the table go to stderr. Exit code 1 when a scenario cannot
//! run. Times are what this machine gives: compare medians of runs on one machine, not figures of two.

#![forbid(unsafe_code)]

mod report;
mod scenario;
mod versus;

use std::{panic::AssertUnwindSafe, process::ExitCode};

use clap::{Parser, Subcommand};

use report::Report;
use scenario::{GROUPS, SCENARIOS, Scenario, Size};
use versus::Stage;

/// Benchmarks of Treering.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios (all of them when none is named).
    Run {
        /// Scenarios or groups of them.
        scenarios: Vec<String>,
        /// One JSON object a line on stdout.
        #[arg(long)]
        json: bool,
        /// Sizes that only show that the scenarios still run.
        #[arg(long)]
        smoke: bool,
    },
    /// Name the scenarios and groups there are.
    List,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::List => {
            SCENARIOS.iter().for_each(|(name, about, _)| println!("{name:<20} {about}"));
            GROUPS
                .iter()
                .for_each(|(name, members)| println!("{name:<20} = {}", members.join(" ")));
            ExitCode::SUCCESS
        }
        Command::Run { scenarios, json, smoke } => {
            let size = if smoke { Size::Smoke } else { Size::Full };
            match wanted(&scenarios) {
                Ok(wanted) => Run { size, json, stage: None, reports: Vec::new() }.all(&wanted),
                Err(unknown) => {
                    eprintln!(
                        "there is no scenario \"{unknown}\"; `treering-bench list` names them"
                    );
                    ExitCode::from(1)
                }
            }
        }
    }
}

/// The scenarios meant by `named`; all of them when none is named; the first name that means nothing.
fn wanted(named: &[String]) -> Result<Vec<&'static str>, String> {
    let all = || SCENARIOS.iter().map(|(name, ..)| *name);
    if named.is_empty() {
        return Ok(all().collect());
    }
    let mut found = Vec::new();
    for name in named {
        match GROUPS.iter().find(|(group, _)| group == name) {
            Some((_, members)) => found.extend_from_slice(members),
            None => found.push(all().find(|known| known == name).ok_or_else(|| name.clone())?),
        }
    }
    Ok(found)
}

/// Scenarios one after the other, and what they share.
struct Run {
    size: Size,
    json: bool,
    stage: Option<Stage>,
    reports: Vec<Report>,
}

impl Run {
    fn all(mut self, wanted: &[&str]) -> ExitCode {
        let mut failed = false;
        for (name, _, scenario) in SCENARIOS {
            if !wanted.contains(name) {
                continue;
            }
            eprintln!("{name}");
            match std::panic::catch_unwind(AssertUnwindSafe(|| self.one(scenario))) {
                Ok(Ok(done)) => {
                    if self.json {
                        done.iter().for_each(|report| println!("{}", report.json()));
                    }
                    self.reports.extend(done);
                }
                Ok(Err(error)) => {
                    eprintln!("{name} cannot run: {error:#}");
                    failed = true;
                }
                Err(_) => {
                    eprintln!("{name} cannot run");
                    failed = true;
                }
            }
        }
        eprintln!("{}", report::table(&self.reports));
        ExitCode::from(u8::from(failed))
    }

    fn one(&mut self, scenario: &Scenario) -> anyhow::Result<Vec<Report>> {
        match scenario {
            Scenario::Alone(run) => run(self.size),
            Scenario::OnStage(run) => {
                if self.stage.is_none() {
                    self.stage = Some(Stage::load(self.size)?);
                }
                self.stage.as_ref().map_or(Ok(Vec::new()), run)
            }
        }
    }
}
