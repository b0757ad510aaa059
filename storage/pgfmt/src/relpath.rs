//! Where relation files are below a data directory (`common/relpath.c`).
//!
//! | tablespace | directory of a database |
//! |---|---|
//! | 1663 `pg_default` | `base/5` |
//! | 1664 `pg_global`, database 0 | `global` |
//! | any other | `pg_tblspc/16400/PG_15_202209061/5` |
//!
//! A file is `<relfilenumber>[_fsm|_vm|_init][.<segment>]`; segments hold 131072 blocks (1 GiB), the first has no
//! suffix.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::{Fork, PAGE_SIZE, RelTag};

use crate::version::PgMajor;

/// Oid of `pg_default`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// Oid of `pg_global`, whose relations belong to database 0.
pub const GLOBAL_TABLESPACE: u32 = 1664;
/// Blocks in one segment file (`RELSEG_SIZE`).
pub const SEGMENT_BLOCKS: u32 = 131_072;
/// Bytes in one full segment file.
pub const SEGMENT_BYTES: u64 = SEGMENT_BLOCKS as u64 * PAGE_SIZE as u64;

/// The directory that each server version makes for itself in a tablespace (`TABLESPACE_VERSION_DIRECTORY`).
pub fn tablespace_version_dir(major: PgMajor) -> String {
    format!("PG_{major}_{}", major.layout().catalog_version)
}

/// The directory of a database in a tablespace, relative to the data directory.
pub fn db_dir(major: PgMajor, tablespace: u32, database: u32) -> String {
    match tablespace {
        DEFAULT_TABLESPACE => format!("base/{database}"),
        GLOBAL_TABLESPACE => "global".to_owned(),
        other => format!("pg_tblspc/{other}/{}/{database}", tablespace_version_dir(major)),
    }
}

/// The path of one segment file of a relation fork, relative to the data directory.
pub fn path_of(major: PgMajor, rel: RelTag, segment_no: u32) -> String {
    let dir = db_dir(major, rel.tablespace, rel.database);
    format!("{dir}/{}", file_name(rel.relation, rel.fork, segment_no))
}

/// The name of one segment file of a relation fork within its database directory.
pub fn file_name(relation: u32, fork: Fork, segment_no: u32) -> String {
    let suffix = fork.file_suffix();
    if segment_no == 0 {
        format!("{relation}{suffix}")
    } else {
        format!("{relation}{suffix}.{segment_no}")
    }
}

/// The relation fork and segment that a path below the data directory names; `None` for every other file, also for
/// temporary relations (`t3_16400`) and for other versions' directories in a tablespace.
pub fn parse_path(major: PgMajor, path: &str) -> Option<(RelTag, u32)> {
    let (dir, name) = path.rsplit_once('/')?;
    let (tablespace, database) = parse_db_dir(major, dir)?;
    let (relation, fork, segment_no) = parse_file_name(name)?;
    Some((RelTag { tablespace, database, relation, fork }, segment_no))
}

/// Tablespace and database of a database directory.
pub fn parse_db_dir(major: PgMajor, dir: &str) -> Option<(u32, u32)> {
    if dir == "global" {
        return Some((GLOBAL_TABLESPACE, 0));
    }
    if let Some(database) = dir.strip_prefix("base/") {
        return Some((DEFAULT_TABLESPACE, parse_number(database)?));
    }
    let (tablespace, rest) = dir.strip_prefix("pg_tblspc/")?.split_once('/')?;
    let (version, database) = rest.split_once('/')?;
    let ours = version == tablespace_version_dir(major);
    ours.then_some((parse_number(tablespace)?, parse_number(database)?))
}

/// Relfilenumber, fork and segment of a file name in a database directory.
pub fn parse_file_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (stem, segment_no) = match name.split_once('.') {
        Some((stem, number)) => (stem, parse_number(number)?),
        None => (name, 0),
    };
    let (relation, suffix) = match stem.find('_') {
        Some(at) => stem.split_at(at),
        None => (stem, ""),
    };
    let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    // ".0" is never written.
    let is_written = segment_no > 0 || stem.len() == name.len();
    is_written.then_some((parse_number(relation)?, fork, segment_no))
}

/// A positive decimal number as Postgres prints oids: digits only, no leading zero.
fn parse_number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip() {
        let rel =
            |tablespace, database, relation, fork| RelTag { tablespace, database, relation, fork };
        for (tag, segment_no, path) in [
            (rel(1663, 5, 16384, Fork::VisibilityMap), 1, "base/5/16384_vm.1"),
            (rel(1663, 5, 16384, Fork::Main), 0, "base/5/16384"),
            (rel(1664, 0, 1262, Fork::Main), 0, "global/1262"),
            (rel(16400, 5, 9, Fork::Init), 0, "pg_tblspc/16400/PG_15_202209061/5/9_init"),
        ] {
            assert_eq!(path_of(PgMajor::V15, tag, segment_no), path);
            assert_eq!(parse_path(PgMajor::V15, path), Some((tag, segment_no)));
        }
    }

    #[test]
    fn other_files_are_no_relations() {
        for path in [
            "PG_VERSION",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16400",
            "base/5/16400.0",
            "base/5/16400_xx",
            "base/5/016400",
            "base/5/16400.",
            "base/5/",
            "base/x/16400",
            "base/5/99999999999",
            "global/pg_control",
            "pg_tblspc/16400/PG_16_202307071/5/9",
            "pg_tblspc/16400",
            "pg_xact/0000",
        ] {
            assert_eq!(parse_path(PgMajor::V15, path), None, "{path}");
        }
    }
}
