//! The library that is put under Postgres: it lies in the agent, so that both are always of one release, and is
//! written out where Postgres can load it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The library, as `build.rs` built it.
static LIBRARY: &[u8] = include_bytes!(env!("TREERING_PAGES_LIBRARY"));

/// Writes the library into `dir`, if it is not there, and gives its path.
///
/// The name depends on the content: a running Postgres keeps the one it has mapped, and agents of two releases do
/// not take each other's. It appears whole or not at all; one that a crash of the machine spoilt is written again.
pub fn install(dir: &Path) -> io::Result<PathBuf> {
    let hash = fnv(LIBRARY);
    let path = dir.join(format!("libtreering_pages-{hash:016x}.so"));
    if fs::read(&path).is_ok_and(|found| found == LIBRARY) {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!(".libtreering_pages-{hash:016x}.{}", std::process::id()));
    fs::write(&draft, LIBRARY)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(&draft, &path)?;
    Ok(path)
}

/// FNV-1a: to tell releases apart, not to prove anything.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let path = install(&dir).unwrap();
        assert_eq!(fs::read(&path).unwrap(), LIBRARY);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(install(&dir).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        fs::write(&path, "half").unwrap();
        install(&dir).unwrap();
        assert_eq!(fs::read(&path).unwrap(), LIBRARY);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_program_runs_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let library = install(dir.path()).unwrap();
        let mut program = std::process::Command::new("/bin/true");
        program.env("LD_PRELOAD", library).env("TREERING_PAGES", "none");
        let output = program.output().unwrap();
        // It is the one with the doors: it looked for its agent.
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("treering pages: TREERING_PAGES is not"), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}
