//! The second judge: stock Postgres recovers a copy of the base with the same WAL, and leaves its files.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use treering_stock::{Cluster, Postgres};
use treering_types::Lsn;

/// A stopped server that has replayed everything up to the record that starts at `last`.
///
/// It never lets anyone in, so that it sets no hint bits, and it stops at the target: nothing but redo wrote to its
/// files. The caller has made sure that a checkpoint record lies between base and target: only then does the stop
/// write the pages that are still in memory.
///
/// # Errors
/// The base is no data directory that recovery takes, or recovery failed: with `wal_consistency_checking` WAL also
/// when stock redo differs from the primary.
pub fn recover(postgres: &Postgres, base: &Path, wal: &Path, last: Lsn) -> Result<Cluster> {
    ensure!(
        fs::symlink_metadata(base.join("pg_wal")).is_ok_and(|metadata| metadata.is_dir()),
        "{} has no pg_wal directory of its own",
        base.display()
    );
    refuse_tablespace_links(base)?;
    let settings = format!(
        "hot_standby = off\nautovacuum = off\narchive_mode = off\nshared_preload_libraries = ''\n\
         primary_conninfo = ''\nssl = off\nmax_wal_size = 100GB\nwal_recycle = off\nshared_buffers = 512MB\n\
         allow_in_place_tablespaces = on\nlogging_collector = off\nlog_min_messages = info\n\
         restore_command = '/bin/false'\nrecovery_target_lsn = '{last}'\n\
         recovery_target_inclusive = on\nrecovery_target_action = shutdown\n\
         recovery_target_timeline = latest"
    );
    let mut standby = Cluster::copy_of(postgres, base, &settings)?;
    standby.write("recovery.signal", b"")?;
    let segments = standby.wal_dir();
    for entry in fs::read_dir(&segments)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    take_wal(&standby, wal)?;
    let ended = standby.run_to_end();
    let log = standby.log();
    if !log.contains("recovery stopping after WAL location") {
        let kept = standby.keep();
        bail!("the standby did not reach {last} (kept in {}):\n{log}", kept.display());
    }
    ended?;
    Ok(standby)
}

/// The segments where recovery looks for them when its restore command has none: linked where they belong to the
/// server's user already, else copied. The standby only reads and removes segments (`wal_recycle` is off).
fn take_wal(standby: &Cluster, wal: &Path) -> Result<()> {
    let user = fs::metadata(standby.data())?.uid();
    for entry in fs::read_dir(wal)? {
        let path = entry?.path();
        let metadata = fs::metadata(&path)?;
        if !metadata.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = standby.wal_dir().join(name.strip_suffix(".partial").unwrap_or(&name));
        if metadata.uid() == user && fs::hard_link(&path, &own).is_ok() {
            continue;
        }
        fs::copy(&path, &own).with_context(|| path.display().to_string())?;
        standby.give(&own)?;
    }
    Ok(())
}

/// A link would lead the standby into the tablespaces of the server that the base is from.
fn refuse_tablespace_links(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base.join("pg_tblspc"))? {
        let entry = entry?;
        ensure!(
            !entry.file_type()?.is_symlink(),
            "{} is a link to a tablespace elsewhere: only in-place tablespaces can be verified",
            entry.path().display()
        );
    }
    Ok(())
}
