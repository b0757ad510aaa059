//! What a base backup holds: directories, small files, and ranges of pages.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use treering_engine::{Boundary, Direction, RelMeta};
use treering_pgfmt::{
    control::{CONTROL_FILE_PATH, ControlFile},
    crc::crc32c,
    relmap,
    relpath::{self, DEFAULT_TABLESPACE, GLOBAL_TABLESPACE},
    twophase,
    version::PgMajor,
};
use treering_types::{Fork, Key, KeyClass, Lsn, RelTag, SlruKind};

use super::{
    Contents, archive,
    start::{self, LazyFiles, LazyRelation, LazySegment, Start},
};
use crate::{
    clock,
    cluster_state::{self, ClusterState},
    directory::Directory,
    error::ServiceError,
    live::LiveTimeline,
    page_service::answers,
    service::boundary_at,
};

/// Directories of every cluster, parents first.
const DIRECTORIES: [&str; 22] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
];
/// Only from 17 on.
const SUMMARIES: &str = "pg_wal/summaries";

const PLACEHOLDER_CONF: &[u8] = b"# Settings come from the agent that started this server.\n";
/// `REPLICATION_STATE_MAGIC` (`replication/logical/origin.c`).
const ORIGIN_MAGIC: u32 = 0x1257_DADE;

/// Entries of an SLRU page (`clog.c`, `multixact.c`, `commit_ts.c`).
const XIDS_PER_PAGE: u32 = 32_768;
const OFFSETS_PER_PAGE: u32 = 2_048;
const MEMBERS_PER_PAGE: u32 = 1_636;
const STAMPS_PER_PAGE: u32 = 819;

/// A relation fork to write: possibly the pages of another fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelationFile {
    /// Names the file.
    pub(super) name: RelTag,
    /// Whose pages it gets: an unlogged relation's main fork is a copy of its init fork.
    pub(super) pages_of: RelTag,
    pub(super) blocks: u32,
}

/// Pages of an SLRU, `first` to `last` inclusive; may wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlruRange {
    pub(super) kind: SlruKind,
    pub(super) first: u32,
    pub(super) last: u32,
    /// Number of pages that the counter can address.
    pub(super) pages: u32,
    /// Any page may be missing, and is zeros then (a page can come into being without WAL, E11).
    pub(super) is_sparse: bool,
}

/// What the archive holds, in the order in which it is written.
pub(super) struct Plan {
    pub(super) lsn: Lsn,
    pub(super) major: PgMajor,
    pub(super) checksums: bool,
    pub(super) directories: BTreeSet<String>,
    pub(super) files: Vec<(String, Bytes)>,
    pub(super) slru_segments: Vec<archive::Segment>,
    pub(super) relations: Vec<RelationFile>,
    /// `pg_control`.
    pub(super) control: Bytes,
    /// Written last, when the unreadable pages are known.
    pub(super) start: Start,
}

/// Plans a backup of `live` at `lsn`, which is ingested.
///
/// # Errors
/// Invalid when `lsn` is no record end; those of reads.
pub(super) fn plan(
    live: &LiveTimeline,
    lsn: Lsn,
    contents: Contents,
) -> Result<Plan, ServiceError> {
    let timeline = &live.timeline;
    let boundary = record_end(live, lsn)?;
    let state = cluster_state::load(timeline, lsn)?;
    let control = cluster_state::imported_control(timeline, lsn)?;
    let (start, control) =
        start::describe(timeline, boundary, &state, control, clock::unix_seconds());
    let parsed = ControlFile::parse(&control).map_err(cluster_state::LoadError::from)?;
    let major = parsed.major();
    let mut plan = Plan {
        lsn,
        major,
        checksums: parsed.data_checksum_version() != 0,
        directories: fixed_directories(major),
        files: vec![
            ("PG_VERSION".to_owned(), version_file(major)),
            ("postgresql.conf".to_owned(), Bytes::from_static(PLACEHOLDER_CONF)),
        ],
        slru_segments: Vec::new(),
        relations: Vec::new(),
        control: control.into(),
        start,
    };
    plan.add_directories(live)?;
    plan.add_two_phase(live)?;
    plan.add_origins(live)?;
    let ranges = slru_ranges(live, lsn, &state)?;
    plan.slru_segments = ranges.into_iter().flat_map(archive::segments).collect();
    plan.add_relations(timeline.relations(Key::class_range(KeyClass::RelMeta), lsn)?);
    if contents == Contents::Lazy {
        plan.leave_to_be_fetched();
    }
    Ok(plan)
}

fn record_end(live: &LiveTimeline, lsn: Lsn) -> Result<Boundary, ServiceError> {
    let boundary = boundary_at(live, lsn)?;
    match boundary.end == lsn {
        true => Ok(boundary),
        false => {
            let before = Some(boundary.end);
            Err(ServiceError::NoRecordEnd { timeline: live.id(), lsn, before })
        }
    }
}

fn fixed_directories(major: PgMajor) -> BTreeSet<String> {
    let since_17 = (major >= PgMajor::V17).then_some(SUMMARIES);
    DIRECTORIES.into_iter().chain(since_17).map(str::to_owned).collect()
}

fn version_file(major: PgMajor) -> Bytes {
    format!("{major}\n").into()
}

impl Plan {
    /// Database and tablespace directories, with the maps and version files in them.
    fn add_directories(&mut self, live: &LiveTimeline) -> Result<(), ServiceError> {
        let range = Key::class_range(KeyClass::RelMap);
        let found = live.timeline.scan(range, self.lsn, Direction::Forward, usize::MAX)?;
        for (key, _, bytes) in found {
            let Some((tablespace, database)) = key.rel_map_of() else { continue };
            let is_tablespace = database == 0 && tablespace != GLOBAL_TABLESPACE;
            if is_tablespace {
                self.add_tablespace(tablespace);
                continue;
            }
            let dir = self.add_database_dir(tablespace, database);
            if tablespace != GLOBAL_TABLESPACE {
                self.files.push((format!("{dir}/PG_VERSION"), version_file(self.major)));
            }
            if let Directory::Mapped(file) = Directory::decode(&bytes) {
                self.files.push((format!("{dir}/{}", relmap::FILE_NAME), file));
            }
        }
        Ok(())
    }

    /// In place: a directory of the data directory, not a link out of it.
    fn add_tablespace(&mut self, tablespace: u32) {
        let dir = format!("pg_tblspc/{tablespace}");
        let version = relpath::tablespace_version_dir(self.major);
        self.directories.insert(format!("{dir}/{version}"));
        self.directories.insert(dir);
    }

    fn add_database_dir(&mut self, tablespace: u32, database: u32) -> String {
        if tablespace != DEFAULT_TABLESPACE && tablespace != GLOBAL_TABLESPACE {
            self.add_tablespace(tablespace);
        }
        let dir = relpath::db_dir(self.major, tablespace, database);
        self.directories.insert(dir.clone());
        dir
    }

    fn add_two_phase(&mut self, live: &LiveTimeline) -> Result<(), ServiceError> {
        let range = Key::class_range(KeyClass::TwoPhase);
        for (key, _, file) in live.timeline.scan(range, self.lsn, Direction::Forward, usize::MAX)? {
            let Some(full_xid) = key.full_xid() else { continue };
            let name = twophase::file_name(self.major, full_xid);
            self.files.push((format!("{}/{name}", twophase::DIRECTORY), file));
            self.start.max_prepared_transactions_needed += 1;
        }
        Ok(())
    }

    /// `pg_logical/replorigin_checkpoint`: magic, 16 bytes for each origin, CRC-32C. No file when there are none.
    fn add_origins(&mut self, live: &LiveTimeline) -> Result<(), ServiceError> {
        let range = Key::class_range(KeyClass::Origin);
        let found = live.timeline.scan(range, self.lsn, Direction::Forward, usize::MAX)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut file = ORIGIN_MAGIC.to_le_bytes().to_vec();
        for (key, _, remote_lsn) in found {
            let id = u16::from_be_bytes([key.0[3], key.0[4]]);
            file.extend_from_slice(&id.to_le_bytes());
            file.extend_from_slice(&[0; 6]);
            file.extend_from_slice(&remote_lsn);
        }
        let crc = crc32c(&file).to_le_bytes();
        file.extend_from_slice(&crc);
        self.files.push(("pg_logical/replorigin_checkpoint".to_owned(), file.into()));
        Ok(())
    }

    /// All forks but free space maps. Of an unlogged relation only the init fork counts: a start without recovery does
    /// not reset the others, so main becomes a copy of it and the visibility map is left out.
    fn add_relations(&mut self, found: Vec<(RelTag, RelMeta)>) {
        let is_init = |(rel, _): &&(RelTag, RelMeta)| rel.fork == Fork::Init;
        let unlogged: HashSet<RelTag> =
            found.iter().filter(is_init).map(|(rel, _)| rel.with_fork(Fork::Main)).collect();
        for (rel, meta) in found {
            self.add_database_dir(rel.tablespace, rel.database);
            let blocks = meta.blocks;
            let is_unlogged = unlogged.contains(&rel.with_fork(Fork::Main));
            match (rel.fork, is_unlogged) {
                (Fork::Fsm, _) | (Fork::Main | Fork::VisibilityMap, true) => {}
                (Fork::Init, _) => {
                    let main = rel.with_fork(Fork::Main);
                    self.relations.push(RelationFile { name: main, pages_of: rel, blocks });
                    self.relations.push(RelationFile { name: rel, pages_of: rel, blocks });
                }
                (Fork::Main | Fork::VisibilityMap, false) => {
                    self.relations.push(RelationFile { name: rel, pages_of: rel, blocks });
                }
            }
        }
    }

    /// Moves what a compute can fetch later from the archive to its description.
    fn leave_to_be_fetched(&mut self) {
        let relations = std::mem::take(&mut self.relations);
        let relation = |file: RelationFile| LazyRelation {
            name: file.name,
            pages_of: file.pages_of.fork,
            blocks: file.blocks,
        };
        let segments = std::mem::take(&mut self.slru_segments);
        let (later, now) = segments.into_iter().partition(archive::Segment::is_inside);
        self.slru_segments = now;
        let segment = |segment: archive::Segment| LazySegment {
            path: segment.path(),
            kind: answers::slru_number(segment.kind()),
            segment: segment.number,
            pages: segment.pages,
        };
        self.start.lazy = Some(LazyFiles {
            relations: relations.into_iter().map(relation).collect(),
            slru_segments: Vec::into_iter(later).map(segment).collect(),
        });
    }

    /// Path and content of the last small file before the description.
    pub(super) fn control_file(&self) -> (&'static str, &[u8]) {
        (CONTROL_FILE_PATH, &self.control)
    }
}

/// From the oldest entry that may be asked for to the page of the next one.
fn slru_ranges(
    live: &LiveTimeline,
    lsn: Lsn,
    state: &ClusterState,
) -> Result<Vec<SlruRange>, ServiceError> {
    let range = |kind, first: u32, next: u32, per_page: u32, is_sparse| SlruRange {
        kind,
        first: first / per_page,
        last: next / per_page,
        pages: u32::MAX / per_page + 1,
        is_sparse,
    };
    let next_xid = state.next_xid as u32;
    let oldest_member = oldest_member(live, lsn, state)?;
    let mut ranges = vec![
        range(SlruKind::Xact, state.oldest_xid, next_xid, XIDS_PER_PAGE, false),
        range(
            SlruKind::MultiOffsets,
            state.oldest_multi,
            state.next_multi,
            OFFSETS_PER_PAGE,
            false,
        ),
        range(
            SlruKind::MultiMembers,
            oldest_member,
            state.next_multi_offset,
            MEMBERS_PER_PAGE,
            false,
        ),
    ];
    if state.parameters.track_commit_timestamp && state.oldest_commit_ts_xid != 0 {
        let oldest = state.oldest_commit_ts_xid;
        ranges.push(range(SlruKind::CommitTs, oldest, next_xid, STAMPS_PER_PAGE, true));
    }
    Ok(ranges)
}

/// The member offset of the oldest multixact (`find_multixact_start`).
fn oldest_member(live: &LiveTimeline, lsn: Lsn, state: &ClusterState) -> Result<u32, ServiceError> {
    if state.oldest_multi == state.next_multi {
        return Ok(state.next_multi_offset);
    }
    let key = Key::slru(SlruKind::MultiOffsets, state.oldest_multi / OFFSETS_PER_PAGE);
    let page = live.timeline.get_page(key, lsn)?;
    let (entries, _) = page.as_chunks::<4>();
    let entry = entries.get((state.oldest_multi % OFFSETS_PER_PAGE) as usize);
    Ok(entry.map_or(state.next_multi_offset, |entry| u32::from_le_bytes(*entry)))
}
