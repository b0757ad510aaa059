//! `treering`: every service as a subcommand, `up` for all of them, and the user's command line.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are listed in [`exit`].

#![forbid(unsafe_code)]

mod cli;
mod client;
mod commands;
mod data_dir;
mod exit;
mod history;
mod leases;
mod members;
mod output;
mod pages;
mod service;
mod store;
mod up;
mod wal;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let arguments = cli::Cli::parse();
    exit::code_of(cli::run(arguments))
}
