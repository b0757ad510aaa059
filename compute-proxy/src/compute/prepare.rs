//! From a base backup to a directory that stock Postgres starts on without recovery.
//!
//! The pageserver's backup at F holds everything but WAL; its `pg_control` already points at the synthetic
//! shutdown checkpoint behind F. Here the same record is put into otherwise real WAL, and handed back so that the
//! very same bytes become the first WAL of the new term.

use std::{
    borrow::Cow,
    fs, io,
    io::Read,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use treering_pgfmt::{
    control::ControlFile,
    version::PgMajor,
    wal::encode::{self, SyntheticCheckpoint, SyntheticWal},
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use crate::pages::layout::LazyFiles;

/// The last file of a base backup: what the agent must know beside the files.
pub const START_FILE: &str = "treering.start";

/// Contents of [`START_FILE`].
#[derive(Debug, Clone, Deserialize)]
pub struct StartFacts {
    /// F: the record end that the directory is at.
    pub lsn: Lsn,
    /// Start of the record that ends at F.
    pub prev_record_lsn: Lsn,
    pub pg_tli: u32,
    pub system_id: u64,
    pub pg_version: u32,
    /// Ancestors, oldest first: Postgres timeline number and the LSN at which it was left.
    pub history: Vec<(u32, Lsn)>,
    pub max_prepared_transactions_needed: u32,
    /// Files that the backup lists instead of holding them.
    pub lazy: Option<LazyFiles>,
}

/// Unpacks a base backup into the new directory `data_dir`. Blocking.
pub fn unpack(backup: impl Read, data_dir: &Path) -> anyhow::Result<StartFacts> {
    fs::DirBuilder::new().mode(0o700).create(data_dir)?;
    let mut archive = tar::Archive::new(backup);
    archive.set_preserve_mtime(false);
    let mut facts = None;
    for entry in archive.entries()? {
        let mut entry = entry.context("the base backup broke off")?;
        let path = entry.path()?.into_owned();
        ensure!(facts.is_none(), "the base backup goes on after {START_FILE}");
        if path == Path::new(START_FILE) {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            facts = Some(serde_json::from_str(&text).context(START_FILE)?);
        } else if !entry.unpack_in(data_dir).with_context(|| path.display().to_string())? {
            bail!("the base backup names a path outside the data directory: {}", path.display());
        }
    }
    facts.with_context(|| format!("the base backup has no {START_FILE}: it broke off"))
}

/// Writes `pg_wal` (and the history file of a timeline that has ancestors). `before_f` is the real WAL from the
/// start of F's segment up to F where it is still to be had; zeros do for Postgres, not for a standby that reads
/// through F. Returns the WAL of the synthetic checkpoint, from F on.
pub fn install_wal(
    data_dir: &Path,
    facts: &StartFacts,
    before_f: Option<&[u8]>,
) -> anyhow::Result<SyntheticWal> {
    let major = PgMajor::from_number(facts.pg_version)
        .with_context(|| format!("Postgres {} is not known", facts.pg_version))?;
    let control = ControlFile::parse(&fs::read(data_dir.join("global/pg_control"))?)?;
    let synthetic = encode::synthetic_checkpoint(
        major,
        &SyntheticCheckpoint {
            at: facts.lsn,
            prev: facts.prev_record_lsn,
            tli: facts.pg_tli,
            system_id: facts.system_id,
            checkpoint: control.checkpoint().encode(),
        },
    );
    ensure!(
        synthetic.record_start == control.checkpoint_start(),
        "pg_control points at {} but the record is at {}",
        control.checkpoint_start(),
        synthetic.record_start
    );
    let wal_dir = data_dir.join("pg_wal");
    for dir in [wal_dir.clone(), wal_dir.join("archive_status")] {
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    let head = segment_head(major, facts, before_f)?;
    write_wal(&wal_dir, facts.pg_tli, facts.lsn.segment_start(), &head)?;
    write_wal(&wal_dir, facts.pg_tli, facts.lsn, &synthetic.bytes)?;
    if !facts.history.is_empty() {
        let name = format!("{:08X}.history", facts.pg_tli);
        write_private(&wal_dir.join(name), history_text(&facts.history).as_bytes())?;
    }
    Ok(synthetic)
}

/// The bytes of F's segment up to F: the real ones, or valid page headers around zeros.
fn segment_head<'a>(
    major: PgMajor,
    facts: &StartFacts,
    before_f: Option<&'a [u8]>,
) -> anyhow::Result<Cow<'a, [u8]>> {
    let length = facts.lsn.segment_offset() as usize;
    if let Some(bytes) = before_f {
        ensure!(
            bytes.len() == length,
            "{} bytes of WAL before {}, not {length}",
            bytes.len(),
            facts.lsn
        );
        return Ok(bytes.into());
    }
    let mut head = vec![0; length];
    for page in [facts.lsn.segment_start(), facts.lsn.page_start()] {
        let header = encode::page_header(major, facts.pg_tli, page, facts.system_id, 0, 0);
        let at = page.segment_offset() as usize;
        if let Some(place) = head.get_mut(at..at + header.len()) {
            place.copy_from_slice(&header);
        }
    }
    Ok(head.into())
}

fn write_wal(wal_dir: &Path, pg_tli: u32, mut at: Lsn, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let path = wal_dir.join(at.segment_file_name(pg_tli));
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(WAL_SEGMENT_SIZE)?;
        let room = (WAL_SEGMENT_SIZE - at.segment_offset()) as usize;
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        file.write_all_at(now, at.segment_offset())?;
        if later.is_empty() {
            return Ok(());
        }
        at = at + now.len() as u64;
        bytes = later;
    }
}

/// A timeline history file (`access/transam/timeline.c`): number, switch point, reason.
fn history_text(history: &[(u32, Lsn)]) -> String {
    history.iter().map(|(tli, lsn)| format!("{tli}\t{lsn}\tbranched here\n")).collect()
}

/// Writes a file that only its owner reads.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}
