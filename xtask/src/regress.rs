//! WAL of Postgres 15's own test suites on a cluster of stock Postgres 15.

use anyhow::Result;
use treering_stock::{
    Cluster, Postgres,
    suite::{Outcome, Suites},
};

use crate::workload::Corpus;

/// What runs if nothing is named: the core suite, contrib modules that bring operator classes for index access
/// methods, an access method of their own or changes to pages by hand, and the isolation suite (multixacts, lock
/// chains).
const WORTH_IT: [&str; 15] = [
    "core",
    "amcheck",
    "bloom",
    "btree_gin",
    "btree_gist",
    "cube",
    "hstore",
    "intarray",
    "ltree",
    "pageinspect",
    "pg_surgery",
    "pg_trgm",
    "pg_visibility",
    "seg",
    "isolation",
];

const SETTINGS: &str = "
wal_consistency_checking = 'all'
wal_level = replica
wal_compression = lz4
max_wal_size = 20GB
checkpoint_timeout = 1h
wal_keep_size = 20GB
max_prepared_transactions = 10
track_commit_timestamp = on
shared_buffers = 256MB
synchronous_commit = off
";

/// Runs the named suites on a new cluster, one after the other, and stops it.
///
/// # Errors
/// There is no such suite, or it did not run to its end.
pub fn run_suites(names: &[String]) -> Result<(Corpus, Vec<Outcome>)> {
    let postgres = Postgres::find(15)?;
    let suites = Suites::unpack(&postgres)?;
    let mut corpus = Corpus::begin(Cluster::create(&postgres, SETTINGS)?)?;
    let connection = corpus.cluster.connection()?;
    let connection = connection.each_ref().map(|(name, value)| (*name, value.as_str()));
    let names: Vec<&str> = match names {
        [] => WORTH_IT.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let outcomes = names.into_iter().map(|name| match name {
        "core" => suites.core(&connection),
        "isolation" => suites.isolation(&connection),
        module => suites.contrib(module, &connection),
    });
    let outcomes = outcomes.collect::<Result<Vec<Outcome>>>()?;
    corpus.cluster.stop("fast")?;
    Ok((corpus, outcomes))
}
