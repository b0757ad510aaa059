//! What only a compute's files hold, kept over a clean stop: cumulative statistics and free-space maps, so that a branch
//! that sleeps neither forgets when it must be vacuumed nor grows where there was room.
//!
//! The compute's user owned the directory and may have put links there: none is followed.
//!
//! Hints, all of them: they are moved out of a directory that is about to be removed, and moved into the next one if
//! nothing was written to the log in between. After any other end of a compute they are gone, as after a crash of
//! stock Postgres (statistics) or rebuilt by the next VACUUM (free space).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Dir, FileType};
use treering_types::Lsn;

use crate::compute::beneath::Beneath;

/// Below the branch's directory.
const KEPT_DIR: &str = "kept";
const LSN_FILE: &str = "lsn";
const STATISTICS: &str = "pg_stat/pgstat.stat";
const FREE_SPACE_SUFFIX: &str = "_fsm";

/// Moves them out of `data_dir`, whose compute stopped cleanly with its log ending at `end`. Blocking.
pub fn save(branch_dir: &Path, data_dir: &Path, end: Lsn) -> io::Result<usize> {
    let kept = branch_dir.join(KEPT_DIR);
    forget(branch_dir)?;
    fs::create_dir_all(&kept)?;
    let from = Beneath::open(data_dir)?;
    let mut found = vec![PathBuf::from(STATISTICS)];
    for top in ["base", "global", "pg_tblspc"] {
        free_space_maps(&from, Path::new(top), &mut found)?;
    }
    let mut count = 0;
    for path in found {
        count += usize::from(move_file(&from, &path, &kept)?);
    }
    // Last: without it nothing here counts.
    fs::write(kept.join(LSN_FILE), end.to_string())?;
    Ok(count)
}

/// Moves what was kept into `data_dir`, which starts at `lsn`, if it is of that place in the log; else removes it.
/// Blocking.
pub fn restore(branch_dir: &Path, data_dir: &Path, lsn: Lsn) -> io::Result<usize> {
    let kept = branch_dir.join(KEPT_DIR);
    let at = fs::read_to_string(kept.join(LSN_FILE)).ok().and_then(|text| text.parse().ok());
    let mut count = 0;
    if at == Some(lsn) {
        fs::remove_file(kept.join(LSN_FILE))?;
        let from = Beneath::open(&kept)?;
        let mut found = vec![PathBuf::from(STATISTICS)];
        for top in ["base", "global", "pg_tblspc"] {
            free_space_maps(&from, Path::new(top), &mut found)?;
        }
        for path in found {
            // A map whose relation is not there is not wanted either.
            if data_dir.join(&path).parent().is_some_and(Path::is_dir) {
                count += usize::from(move_file(&from, &path, data_dir)?);
            }
        }
    }
    forget(branch_dir)?;
    Ok(count)
}

fn forget(branch_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(branch_dir.join(KEPT_DIR)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Paths of free-space maps in or below `dir`.
fn free_space_maps(root: &Beneath, dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let opened = match root.dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        match entry.file_type() {
            FileType::Directory if name != "." && name != ".." => {
                free_space_maps(root, &dir.join(name), found)?;
            }
            FileType::RegularFile if is_free_space_map(name) => found.push(dir.join(name)),
            _ => {}
        }
    }
    Ok(())
}

/// `16384_fsm` and `16384_fsm.1`, not the maps of temporary relations (`t3_16384_fsm`).
fn is_free_space_map(name: &str) -> bool {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let relation = stem.strip_suffix(FREE_SPACE_SUFFIX);
    relation.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Moves a file to the same path below `to`, which is ours. False when there is none, or it is no file of one name.
fn move_file(from: &Beneath, path: &Path, to: &Path) -> io::Result<bool> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let dir = match from.dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        dir => dir?,
    };
    let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        stat => stat?,
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || stat.st_nlink != 1 {
        return Ok(false);
    }
    let target = to.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    rustix::fs::renameat(&dir, name, CWD, &target)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(dir: &Path) {
        for path in ["base/5/16384_fsm", "base/5/16384", "base/5/t3_1_fsm", STATISTICS] {
            fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            fs::write(dir.join(path), path).unwrap();
        }
    }

    #[test]
    fn kept_files_come_back_at_the_same_place_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        cluster(&old);
        assert_eq!(save(dir.path(), &old, Lsn(77)).unwrap(), 2);
        assert!(old.join("base/5/16384").exists() && old.join("base/5/t3_1_fsm").exists());
        for path in ["base/5", "pg_stat"] {
            fs::create_dir_all(new.join(path)).unwrap();
        }
        assert_eq!(restore(dir.path(), &new, Lsn(77)).unwrap(), 2);
        assert_eq!(fs::read_to_string(new.join(STATISTICS)).unwrap(), STATISTICS);
        assert!(new.join("base/5/16384_fsm").exists());
        assert!(!dir.path().join(KEPT_DIR).exists());
    }

    #[test]
    fn of_another_place_in_the_log_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old");
        cluster(&old);
        save(dir.path(), &old, Lsn(77)).unwrap();
        assert_eq!(restore(dir.path(), &old, Lsn(78)).unwrap(), 0);
        assert_eq!(restore(dir.path(), &old, Lsn(77)).unwrap(), 0);
        assert!(!dir.path().join(KEPT_DIR).exists());
    }
}
