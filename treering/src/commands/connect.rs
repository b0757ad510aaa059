//! `connection-string` and `psql`.

use std::{ffi::OsStr, os::unix::process::CommandExt, process::Command};

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

/// Becomes psql.
pub fn psql(place: &Place, branch: Option<String>, arguments: Vec<String>) -> anyhow::Result<()> {
    let to = connection(place, branch)?;
    let error = client_program("psql", &to).args(arguments).exec();
    Err(error).context("run psql (Debian: apt-get install postgresql-client-15)")
}

/// What a user's environment may say of another server, and libpq would believe of ours.
const OTHER_SERVER: [&str; 14] = [
    "PGHOSTADDR",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGREQUIREPEER",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGTARGETSESSIONATTRS",
];

/// A libpq program led to a branch. The password travels in the environment, never on the command line.
pub fn client_program(program: impl AsRef<OsStr>, to: &Connection) -> Command {
    let mut command = Command::new(program);
    for name in OTHER_SERVER {
        command.env_remove(name);
    }
    command
        .env("PGHOST", &to.host)
        .env("PGPORT", to.port.to_string())
        .env("PGUSER", &to.role)
        .env("PGPASSWORD", &to.password)
        .env("PGDATABASE", &to.database)
        .env("PGOPTIONS", &to.options);
    command
}
