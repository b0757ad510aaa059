//! The settings of a compute: what is forced on the command line, and the files we write.
//!
//! Forced settings go on the command line because `ALTER SYSTEM` beats `postgresql.conf`. What they protect:
//! durability lives in the quorum (`fsync=off`), torn pages cannot happen in the store (`full_page_writes=off`),
//! and only the agent may release a commit (`synchronous_standby_names`, the reject line of `pg_hba.conf`).

use std::path::Path;

use treering_pgfmt::version::PgMajor;

/// The role the agent uses inside a compute; it exists in every cluster Treering creates.
pub const AGENT_ROLE: &str = "treering_agent";
/// The agent's `application_name` as standby: the only synchronous one.
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

/// `-c name=value` pairs that the user cannot override.
pub fn forced(paths: &SettingsPaths<'_>, prepared_in_flight: u32) -> Vec<(&'static str, String)> {
    let prepared = prepared_in_flight.max(MAX_PREPARED_TRANSACTIONS_MIN);
    let path = |p: &Path| p.display().to_string();
    vec![
        ("fsync", "off".into()),
        ("full_page_writes", "off".into()),
        ("wal_level", "replica".into()),
        ("synchronous_standby_names", format!("FIRST 1 (\"{AGENT_STANDBY}\")")),
        ("restart_after_crash", "off".into()),
        ("max_prepared_transactions", prepared.to_string()),
        ("max_logical_replication_workers", "0".into()),
        ("max_wal_senders", "10".into()),
        ("max_replication_slots", "10".into()),
        // The agent's slot must keep WAL for as long as a safekeeper is away.
        ("max_slot_wal_keep_size", "-1".into()),
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
        // The agent looks for SQLSTATE 01000 of cancelled waits here: timestamp, [pid], SQLSTATE.
        ("log_line_prefix", LOG_LINE_PREFIX.into()),
        ("log_min_messages", "warning".into()),
    ]
}

/// What is forced as well when pages are fetched on first touch: reads that would go past the page library.
pub fn forced_when_lazy(major: PgMajor) -> Vec<(&'static str, String)> {
    let since = [
        (PgMajor::V16, "debug_io_direct", ""),
        // Its read-ahead is then visible as `posix_fadvise`; `io_uring` would not be visible at all.
        (PgMajor::V18, "io_method", "sync"),
    ];
    let known = since.into_iter().filter(|(first, _, _)| major >= *first);
    known.map(|(_, name, value)| (name, value.to_owned())).collect()
}

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

/// `pg_hba.conf`. Replication is for the agent alone: any other receiver under its `application_name` would
/// release commits. There is no TCP line because nothing listens there; the relay passes SCRAM through.
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
