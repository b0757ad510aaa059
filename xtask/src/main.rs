//! `cargo xtask`: judging redo, and the coverage table.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use treering_stock::Postgres;
use xtask::{
    coverage, regress,
    report::{Report, Summary},
    verify::{Input, verify},
    workload::{self, Corpus, Variant},
};

/// Work on the repository that needs the product's own code.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Redo WAL on a base and compare every page with what stock Postgres makes of it.
    ///
    /// The base is a base backup (plain format) or the copy of a stopped server's data directory; the WAL is a
    /// directory of 16 MB segments that goes on from there, such as `pg_wal` or an archive. Where it was written
    /// with `wal_consistency_checking = all`, each page is compared after each record; at the end every file is
    /// compared with a stock standby that replayed the same WAL. Exit code 1: something differs.
    VerifyRedo {
        /// The base.
        #[arg(long, value_name = "DIR")]
        base: PathBuf,
        /// The WAL.
        #[arg(long, value_name = "DIR")]
        wal: PathBuf,
        /// Judge by the images in the WAL only.
        #[arg(long)]
        no_standby: bool,
        /// Count this run in the coverage table under the name.
        #[arg(long, value_name = "NAME")]
        save: Option<String>,
    },
    /// Run workloads of `tests/workloads` on stock Postgres, then verify their redo.
    Workload {
        /// Which: all, if none is named.
        names: Vec<String>,
        /// PostgreSQL 15, 16, 17 or 18 (`scripts/postgres-binaries` fetches the later ones).
        #[arg(long, default_value_t = 15)]
        major: u32,
        /// A cluster without checksums, with compressed images, logical WAL and full-page writes off.
        #[arg(long)]
        plain: bool,
        /// Leave the cluster and its base behind and print where.
        #[arg(long)]
        keep: bool,
        /// Count this run in the coverage table under the name.
        #[arg(long, value_name = "NAME")]
        save: Option<String>,
    },
    /// Run the test suites of PostgreSQL 15 on a stock server, then verify their redo.
    ///
    /// `scripts/regression-source` fetches them. A test whose output is not the expected one is reported and does not
    /// fail this: what counts is the WAL.
    Regress {
        /// `core`, `isolation` or a contrib module: all that are worth their time, if none is named.
        suites: Vec<String>,
        /// Leave the cluster and its base behind and print where.
        #[arg(long)]
        keep: bool,
        /// Count this run in the coverage table under the name.
        #[arg(long, value_name = "NAME")]
        save: Option<String>,
    },
    /// Write docs/redo.md from the runs that were saved with `--save`.
    Coverage,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False: something differs.
fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Task::VerifyRedo { base, wal, no_standby, save } => {
            let input = Input { base: &base, wal: &wal, standby: !no_standby, until: None };
            finish(verify(&input, |_, _| ())?, save)
        }
        Task::Workload { names, major, plain, keep, save } => {
            let postgres = Postgres::find(major)?;
            let names = if names.is_empty() { workload::names()? } else { names };
            let variant = if plain { Variant::Plain } else { Variant::Checksums };
            judge(workload::run_workloads(&postgres, variant, &names)?, keep, save)
        }
        Task::Regress { suites, keep, save } => {
            let (corpus, outcomes) = regress::run_suites(&suites)?;
            outcomes.iter().for_each(|outcome| println!("{outcome}"));
            judge(corpus, keep, save)
        }
        Task::Coverage => {
            let path = coverage::write()?;
            println!("wrote {}", path.display());
            Ok(true)
        }
    }
}

fn judge(corpus: Corpus, keep: bool, save: Option<String>) -> Result<bool> {
    let report = corpus.verify(|_, _| ());
    if keep {
        let (base, cluster) = corpus.keep();
        println!("base {}, cluster {}", base.display(), cluster.display());
    }
    finish(report?, save)
}

fn finish(report: Report, save: Option<String>) -> Result<bool> {
    println!("{report}");
    if let Some(name) = save {
        Summary::of(&report).save(&coverage::saved(&name))?;
    }
    Ok(report.is_clean())
}
