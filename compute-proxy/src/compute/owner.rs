//! Which operating-system user a compute runs as: one of its own where we may choose, else ours.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown},
    path::{Path, PathBuf},
};

/// Numbers given to branches lie here, chosen at random and kept: above what distributions and containers allocate,
/// and unlikely to be another installation's.
const OWN_UIDS: std::ops::Range<u32> = 1_000_000_000..2_000_000_000;
/// Users to fall back to where the kernel maps no such number (user namespaces).
const FALLBACK_USERS: [&str; 2] = ["postgres", "nobody"];
const UID_FILE: &str = "uid";

/// A uid/gid pair that Postgres is started under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// The owner for the branch whose directory is `branch_dir`: the one it had before, or a new one. `None` when we
    /// are not root: Postgres then runs as we do.
    pub fn for_branch(branch_dir: &Path) -> io::Result<Option<Owner>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        if let Some(uid) = recorded_uid(branch_dir) {
            return Ok(Some(Owner { uid, gid: uid }));
        }
        let uid = rand::random_range(OWN_UIDS);
        let file = branch_dir.join(UID_FILE);
        fs::write(&file, "")?;
        match chown(&file, Some(uid), Some(uid)) {
            Ok(()) => {
                chown(&file, Some(0), Some(0))?;
                fs::write(&file, uid.to_string())?;
                Ok(Some(Owner { uid, gid: uid }))
            }
            Err(_) => fallback().map(Some),
        }
    }

    /// Gives `path` and everything below it to this owner.
    pub fn take(&self, path: &Path) -> io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        lchown(path, Some(self.uid), Some(self.gid))?;
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                self.take(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Lets this owner read a file that stays ours.
    pub fn let_read(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(0), Some(self.gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o640))
    }
}

fn fallback() -> io::Result<Owner> {
    let none = || {
        io::Error::other(
            "no unprivileged user to run Postgres as: neither postgres nor nobody exists",
        )
    };
    FALLBACK_USERS
        .into_iter()
        .find_map(|name| passwd(|fields| fields.first() == Some(&name)))
        .ok_or_else(none)
}

/// The uid that belongs to a branch alone, if it has one.
pub fn recorded_uid(branch_dir: &Path) -> Option<u32> {
    let uid = fs::read_to_string(branch_dir.join(UID_FILE)).ok()?.trim().parse().ok()?;
    OWN_UIDS.contains(&uid).then_some(uid)
}

/// The first directory on the way to `path` that a stranger may not search, if any: Postgres under its own uid could
/// not reach its data directory through it.
pub fn unsearchable_parent(path: &Path, owner: Option<Owner>) -> Option<PathBuf> {
    let owner = owner?;
    path.ancestors().skip(1).find_map(|dir| {
        let meta = fs::metadata(dir).ok()?;
        let mode = meta.permissions().mode();
        let searchable = mode & 0o001 != 0
            || (meta.uid() == owner.uid && mode & 0o100 != 0)
            || (meta.gid() == owner.gid && mode & 0o010 != 0);
        (!searchable).then(|| dir.to_owned())
    })
}

fn passwd(wanted: impl Fn(&[&str]) -> bool) -> Option<Owner> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let line = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| wanted(fields))?;
    Some(Owner { uid: line.get(2)?.parse().ok()?, gid: line.get(3)?.parse().ok()? })
}

/// Our own user name as `peer` authentication will see it.
///
/// # Errors
/// We have none: no `id -un`, which asks every name service that Postgres would ask.
pub fn own_user_name() -> io::Result<String> {
    let asked = std::process::Command::new("id").arg("-un").output()?;
    let name = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    if !asked.status.success() || name.is_empty() {
        let uid = rustix::process::geteuid().as_raw();
        return Err(io::Error::other(format!(
            "uid {uid} has no name, and peer authentication needs one"
        )));
    }
    Ok(name)
}
