//! `connection-string` and `psql`.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Context;
use treering_control::model::Connection;

use crate::{cli::Place, commands::branch::segment, output::print_line};

fn connection(place: &Place, branch: Option<String>) -> anyhow::Result<Connection> {
    let branch = branch.as_deref().unwrap_or("main");
    place.client()?.get(&format!("/branches/{}/connection", segment(branch)?))
}

pub fn connection_string(place: &Place, branch: Option<String>) -> anyhow::Result<()> {
    print_line(&connection(place, branch)?.uri)
}

/// Becomes psql. The password travels in the environment, never on the command line.
pub fn psql(place: &Place, branch: Option<String>, arguments: Vec<String>) -> anyhow::Result<()> {
    let to = connection(place, branch)?;
    let error = Command::new("psql")
        .args(arguments)
        .env("PGHOST", &to.host)
        .env("PGPORT", to.port.to_string())
        .env("PGUSER", &to.role)
        .env("PGPASSWORD", &to.password)
        .env("PGDATABASE", &to.database)
        .env("PGOPTIONS", &to.options)
        .exec();
    Err(error).context("run psql (Debian: apt-get install postgresql-client-15)")
}
