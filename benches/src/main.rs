//! `treering-bench`: benchmark scenarios against the real binary.
//!
//! With `--json`, one object a line on stdout; progress and the table go to stderr. Exit code 1 when a scenario cannot
//! run. Times are what this machine gives: compare medians of runs on one machine, not figures of two.

#![forbid(unsafe_code)]

mod report;
mod scenario;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;
use scenario::{SCENARIOS, Size};

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
        scenarios: Vec<String>,
        /// One JSON object a line on stdout.
        #[arg(long)]
        json: bool,
        /// Sizes that only show that the scenarios still run.
        #[arg(long)]
        smoke: bool,
    },
    /// Name the scenarios there are.
    List,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::List => {
            SCENARIOS.iter().for_each(|(name, about, _)| println!("{name:<20} {about}"));
            ExitCode::SUCCESS
        }
        Command::Run { scenarios, json, smoke } => {
            run(&scenarios, json, if smoke { Size::Smoke } else { Size::Full })
        }
    }
}

fn run(named: &[String], json: bool, size: Size) -> ExitCode {
    if let Some(unknown) =
        named.iter().find(|name| SCENARIOS.iter().all(|(known, ..)| known != name))
    {
        eprintln!("there is no scenario \"{unknown}\"; `treering-bench list` names them");
        return ExitCode::from(1);
    }
    let mut reports: Vec<Report> = Vec::new();
    let mut failed = false;
    for (name, _, scenario) in SCENARIOS {
        if !named.is_empty() && named.iter().all(|wanted| wanted != name) {
            continue;
        }
        eprintln!("{name}");
        match std::panic::catch_unwind(|| scenario(size)) {
            Ok(Ok(done)) => {
                if json {
                    done.iter().for_each(|report| println!("{}", report.json()));
                }
                reports.extend(done);
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
    eprintln!("{}", report::table(&reports));
    ExitCode::from(u8::from(failed))
}
