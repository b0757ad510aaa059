//! Which operating-system user a compute runs as: one of its own where we may choose, else ours.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
};

/// First uid given to branches. Far above the ranges distributions allocate to people and services.
const FIRST_UID: u32 = 200_000;

/// A uid/gid pair that Postgres is started under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// The owner for the branch whose compute directory is `branch_dir` (a child of `computes_dir`): the one it had
    /// before, or the lowest free number. `None` when we are not root: Postgres then runs as we do.
    pub fn for_branch(computes_dir: &Path, branch_dir: &Path) -> io::Result<Option<Owner>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let recorded = branch_dir.join("uid");
        if let Some(uid) = read_number(&recorded) {
            return Ok(Some(Owner { uid, gid: uid }));
        }
        let mut used = Vec::new();
        for entry in fs::read_dir(computes_dir)? {
            used.extend(read_number(&entry?.path().join("uid")));
        }
        let uid = (FIRST_UID..).find(|uid| !used.contains(uid)).unwrap_or(FIRST_UID);
        fs::write(&recorded, uid.to_string())?;
        Ok(Some(Owner { uid, gid: uid }))
    }

    /// Gives `path` and everything below it to this owner.
    pub fn take(&self, path: &Path) -> io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                self.take(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Gives only `path` itself to this owner.
    pub fn take_one(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }
}

fn read_number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The first directory on the way to `path` that a stranger may not search, if any: Postgres under its own uid
/// could not reach its data directory through it.
pub fn unsearchable_parent(path: &Path, owner: Option<Owner>) -> Option<std::path::PathBuf> {
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

/// Our own user name as `peer` authentication will see it.
pub fn own_user_name() -> io::Result<String> {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd")?;
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
            (number.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .next()
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("uid {uid} has no name in /etc/passwd; peer authentication needs one"),
            )
        })
}
