//! Whose directory it is: the file `node` with the number that this member votes under.
//!
//! Votes and acknowledgements belong to a number. A directory that is started under another one would let one member
//! speak for two. What this cannot notice is a directory that was lost: a member without its disk has to come back
//! under a new number (`docs/formats/quorum.md`).

use std::{io, path::Path};

use anyhow::{Context, ensure};
use treering_fs::{FileSystem, read_file, write_atomically};
use treering_types::NodeId;

const FILE: &str = "node";

/// Makes sure that `data_dir` is that of `node`. A directory that says nothing becomes it, durably.
///
/// # Errors
/// It is another node's.
pub(crate) fn claim(fs: &dyn FileSystem, data_dir: &Path, node: NodeId) -> anyhow::Result<()> {
    let path = data_dir.join(FILE);
    match read_file(fs, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{node}\n");
            write_atomically(fs, &path, text.as_bytes()).with_context(|| path.display().to_string())
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let (found, dir) = (text.trim(), data_dir.display());
            ensure!(
                found == node.to_string(),
                "{dir} is the directory of safekeeper {found}, not of {node}: start it with --id {found}, or {node} \
                 with another directory"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use treering_fs::{CrashFs, create_dir_durably};

    use super::*;

    #[test]
    fn a_directory_stays_one_members() {
        let fs = CrashFs::new();
        let dir = Path::new("/d");
        create_dir_durably(&fs, dir).unwrap();
        claim(&fs, dir, NodeId(2)).unwrap();
        let after = fs.crash(0);
        claim(&after, dir, NodeId(2)).unwrap();
        let refused = claim(&after, dir, NodeId(12)).unwrap_err().to_string();
        assert!(refused.contains("of safekeeper 2, not of 12"), "{refused}");
    }
}
