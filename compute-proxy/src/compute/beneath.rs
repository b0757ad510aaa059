//! Opening what lies in a directory that a compute's user owns. A superuser of a branch can put links and pipes there;
//! we, who may be root, neither leave the directory nor wait for anybody.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// A directory below which things are opened.
pub struct Beneath(OwnedFd);

impl Beneath {
    /// `dir` itself must not be a link; the way to it is ours.
    pub fn open(dir: &Path) -> io::Result<Beneath> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Beneath(rustix::fs::openat(CWD, dir, flags, Mode::empty())?))
    }

    /// A directory below, for its entries.
    pub fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// A regular file below, to be read.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        regular(self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK)?)
    }

    /// A regular file below, to be read and written.
    pub fn file_to_write(&self, path: &Path) -> io::Result<File> {
        regular(self.resolve(path, OFlags::RDWR | OFlags::NONBLOCK)?)
    }

    /// The text of a small file: its first `bytes_max` bytes.
    pub fn read(&self, path: &Path, bytes_max: u64) -> io::Result<String> {
        let mut text = String::new();
        self.file(path)?.take(bytes_max).read_to_string(&mut text)?;
        Ok(text)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn regular(opened: OwnedFd) -> io::Result<File> {
    let stat = rustix::fs::fstat(&opened)?;
    match FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        true => Ok(File::from(opened)),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_and_pipes_are_refused_and_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("base")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(inside.join("base/1"), "one").unwrap();
        symlink("../secret", inside.join("out")).unwrap();
        symlink("base", inside.join("alias")).unwrap();
        let pipe = inside.join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let beneath = Beneath::open(&inside).unwrap();
        assert_eq!(beneath.read(Path::new("base/1"), 2).unwrap(), "on");
        for refused in ["out", "alias/1", "../secret", "pipe", "base"] {
            assert!(beneath.file(Path::new(refused)).is_err(), "{refused}");
        }
        assert!(beneath.dir(Path::new("alias")).is_err());
        assert!(Beneath::open(&inside.join("alias")).is_err());
    }
}
