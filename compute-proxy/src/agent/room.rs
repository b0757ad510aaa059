//! Where a start happens: directories that no earlier one wrote to.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::Agent;
use crate::{
    compute::{
        owner::{self, Owner},
        reap::{self, RUN_PREFIX},
        record::RunRecord,
    },
    endpoint::{Endpoint, FREE_BYTES_LOW, disk_full, has_less_than},
    error::AgentError,
    pages,
};

/// Longest socket path the kernel takes (`sun_path`), less the file name Postgres adds.
const SOCKET_DIR_BYTES_MAX: usize = 107 - "/.s.PGSQL.5432.lock".len();

impl Agent {
    /// Kills what still runs of the branch and makes a fresh directory for this start: whatever an older start may
    /// still be writing, it does not write here.
    pub(super) async fn make_room(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(PathBuf, Option<Owner>), AgentError> {
        let dir = endpoint.dir.clone();
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
            reap::kill_all_of(&dir)?;
            if let Ok(old) = RunRecord::load(&dir) {
                // Left behind by an agent that was killed; the records are ours, so the paths are ones we made.
                let _ = fs::remove_dir_all(old.socket_dir());
            }
            pages::forget_starts(&dir);
            if has_less_than(&dir, FREE_BYTES_LOW) {
                anyhow::bail!(disk_full(&dir));
            }
            let run_dir = fresh_run_dir(&dir)?;
            let owner = Owner::for_branch(&dir)?;
            if let Some(parent) = owner::unsearchable_parent(&run_dir, owner) {
                anyhow::bail!(
                    "Postgres runs as a user of its own and cannot pass through {}; choose a data directory \
                     elsewhere, or allow it: chmod o+x {}",
                    parent.display(),
                    parent.display()
                );
            }
            Ok((run_dir, owner))
        });
        Ok(made.await.map_err(anyhow::Error::from)??)
    }
}

/// A directory for one start, with a name that no earlier one had; the earlier ones are removed.
fn fresh_run_dir(branch_dir: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(branch_dir)? {
        let path = entry?.path();
        let is_old =
            path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(RUN_PREFIX));
        if is_old && let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old run directory cannot be removed");
        }
    }
    lie_apart(branch_dir);
    let run_dir = branch_dir.join(format!("{RUN_PREFIX}{:08x}", rand::random::<u32>()));
    fs::create_dir(&run_dir)?;
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o711))?;
    Ok(run_dir)
}

/// Asks the file system not to lay directories in this one side by side (`FS_TOPDIR_FL`, as of `chattr +T`).
///
/// ext4 does not give an inode away for a minute after its file was removed, and looks at each of them again for every file made
/// near by: a start soon after a stop, which removed a thousand files, took 0.15 s longer for it. Where it is not
/// understood it is not needed.
fn lie_apart(dir: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let set = fs::File::open(dir).and_then(|dir| {
        let flags = ioctl_getflags(&dir)?;
        Ok(ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
    });
    if let Err(error) = set {
        tracing::debug!(dir = %dir.display(), %error, "directories of starts may lie side by side");
    }
}

/// A directory for the compute's socket, short enough for the kernel.
pub(super) fn socket_dir(run_dir: &Path) -> io::Result<PathBuf> {
    let own = run_dir.join("s");
    let fits =
        own.as_os_str().len() <= SOCKET_DIR_BYTES_MAX && !own.to_string_lossy().contains(',');
    let dir = match fits {
        true => own,
        false => std::env::temp_dir().join(format!("treering-{:016x}", rand::random::<u64>())),
    };
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}
