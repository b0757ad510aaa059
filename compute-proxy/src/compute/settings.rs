//! The settings of a compute: what is forced on the command line, and the files we write.
//!
//! Forced settings go on the command line because `ALTER SYSTEM` beats `postgresql.conf`. What they protect:
//! durability lives in the quorum ([`FLUSHES`], [`STANDBY`]), torn pages cannot happen in the store (`full_page_writes=off`),
//! and where the agent is a standby nobody else may release a commit (the reject line of `pg_hba.conf`).

use std::path::Path;

use treering_pgfmt::version::PgMajor;

/// The role the agent uses inside a compute; it exists in every cluster Treering creates.
pub const AGENT_ROLE: &str = "treering_agent";
/// The agent's `application_name` as standby: the only synchronous one, where there is one.
pub const AGENT_STANDBY: &str = "treering_agent";
/// The physical slot that keeps WAL the agent has not read yet.
pub const AGENT_SLOT: &str = "treering_agent";
/// Prepared transactions that fit even when none are in flight at the start.
const MAX_PREPARED_TRANSACTIONS_MIN: u32 = 64;

/// Where a compute's files outside its data directory are.
pub struct SettingsPaths<'a> {
    pub socket_dir: &'a Path,
    pub hba_file: &'a Path,
    pub ident_file: &'a Path,
}

/// `-c name=value` pairs that the user cannot override. `lazy`: the Postgres, where the page library is under it.
pub fn forced(
    paths: &SettingsPaths<'_>,
    prepared_in_flight: u32,
    lazy: Option<PgMajor>,
) -> Vec<(&'static str, String)> {
    let prepared = prepared_in_flight.max(MAX_PREPARED_TRANSACTIONS_MIN);
    let path = |p: &Path| p.display().to_string();
    let mut settings = vec![
        ("full_page_writes", "off".into()),
        ("wal_level", "replica".into()),
        ("restart_after_crash", "off".into()),
        ("max_prepared_transactions", prepared.to_string()),
        ("max_logical_replication_workers", "0".into()),
        ("max_wal_senders", "10".into()),
        ("max_replication_slots", "10".into()),
        ("archive_mode", "off".into()),
        // The page library keeps a table of so many descriptors, and a margin.
        ("max_files_per_process", "1000".into()),
        ("listen_addresses", String::new()),
        ("port", SOCKET_PORT.to_string()),
        ("unix_socket_directories", path(paths.socket_dir)),
        ("unix_socket_permissions", "0700".into()),
        ("hba_file", path(paths.hba_file)),
        ("ident_file", path(paths.ident_file)),
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
        // The agent looks for a full disk here, and where it is a standby for SQLSTATE 01000 of cancelled waits: timestamp, [pid], SQLSTATE.
        ("log_line_prefix", LOG_LINE_PREFIX.into()),
        ("log_min_messages", "warning".into()),
    ];
    let durability = if lazy.is_some() { &FLUSHES[..] } else { &STANDBY[..] };
    let since = VISIBLE.iter().filter(|(first, _, _)| lazy.is_some_and(|major| major >= *first));
    let more = durability.iter().copied().chain(since.map(|(_, name, value)| (*name, *value)));
    settings.extend(more.map(|(name, value)| (name, value.to_owned())));
    settings
}

/// With the page library a flush of the log waits for the quorum.
const FLUSHES: [(&str, &str); 6] = [
    ("fsync", "on"),
    // Called for the log, and for nothing else.
    ("wal_sync_method", "fdatasync"),
    ("synchronous_standby_names", ""),
    // A walk through all files would come to nothing.
    ("recovery_init_sync_method", "syncfs"),
    // A file that cannot be opened to be synced is no reason to end: it is a cache.
    ("data_sync_retry", "on"),
    // Behind the end of the log is nothing: a segment is a new file.
    ("wal_recycle", "off"),
];
/// What of it Postgres says once it runs: without it nothing would be durable.
pub const FLUSHES_SHOWN: &str = "SELECT 1 WHERE current_setting('fsync') = 'on' AND current_setting('wal_sync_method') = 'fdatasync' \
     AND current_setting('synchronous_standby_names') = ''";

/// Without it the agent is a synchronous standby.
const STANDBY: [(&str, &str); 3] = [
    ("fsync", "off"),
    ("synchronous_standby_names", "FIRST 1 (\"treering_agent\")"),
    // The agent's slot must keep WAL for as long as a safekeeper is away.
    ("max_slot_wal_keep_size", "-1"),
];

/// With the page library nothing may be read that goes past it.
const VISIBLE: [(PgMajor, &str, &str); 2] = [
    (PgMajor::V16, "debug_io_direct", ""),
    // Its read-ahead is then visible as `posix_fadvise`; `io_uring` would not be visible at all.
    (PgMajor::V18, "io_method", "sync"),
];

/// The port number in the socket's file name; nothing listens on TCP.
pub const SOCKET_PORT: u16 = 5432;
/// The prefix [`forced`] sets and the log reader parses.
pub const LOG_LINE_PREFIX: &str = "%m [%p] %e ";

/// `postgresql.conf`: defaults that a user may change with `ALTER DATABASE` or `ALTER ROLE`, and until the next start
/// with `ALTER SYSTEM`. `has_lz4`: this Postgres was built with it.
pub fn postgresql_conf(has_lz4: bool) -> String {
    let compression = if has_lz4 { PACKED_IMAGES } else { "" };
    format!("{POSTGRESQL_CONF}{compression}")
}

const POSTGRESQL_CONF: &str = "\
# Written by Treering at every start. Settings that storage rests on are on the command line.
shared_buffers = 128MB
# A flush of the log takes a round trip to the safekeepers: room for what comes meanwhile.
wal_buffers = 16MB
max_connections = 100
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
# The local disk is a cache: no need to prepare WAL files for crashes of it.
wal_init_zero = off
wal_recycle = off
min_wal_size = 32MB
max_wal_size = 1GB
";

/// Full-page writes are off: images are in the log where pages are made in bulk, by index builds, VACUUM FULL, database copies.
const PACKED_IMAGES: &str = "\
# Each byte of WAL is written, sent, checked and kept many times over: packing page images costs less.
wal_compression = lz4
";

/// `pg_hba.conf`. Replication is for the agent alone: where it is a standby, any other receiver under its `application_name`
/// would release commits. There is no TCP line because nothing listens there; the relay passes SCRAM through.
pub fn pg_hba_conf() -> String {
    format!(
        "# Written by Treering at every start.\n\
         local  replication  {AGENT_ROLE}  peer map=treering\n\
         local  replication  all  reject\n\
         local  all  {AGENT_ROLE}  peer map=treering\n\
         local  all  all  scram-sha-256\n"
    )
}

/// `pg_ident.conf`: the operating-system user of the agent is the agent's role.
pub fn pg_ident_conf(os_user: &str) -> String {
    format!("# Written by Treering at every start.\ntreering  \"{os_user}\"  {AGENT_ROLE}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_setting_is_forced_once() {
        let path = Path::new("/x");
        let paths = SettingsPaths { socket_dir: path, hba_file: path, ident_file: path };
        for lazy in [None, Some(PgMajor::V15), Some(PgMajor::V18)] {
            let settings = forced(&paths, 0, lazy);
            let names: BTreeSet<_> = settings.iter().map(|(name, _)| *name).collect();
            assert_eq!(names.len(), settings.len());
            let value =
                |name| settings.iter().find(|(found, _)| *found == name).unwrap().1.as_str();
            let standby = format!("FIRST 1 (\"{AGENT_STANDBY}\")");
            let durable = match lazy {
                Some(_) => ["on", ""],
                None => ["off", &standby],
            };
            assert_eq!([value("fsync"), value("synchronous_standby_names")], durable);
        }
    }
}
