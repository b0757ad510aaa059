//! A file system that can be tried without leaving a trace.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{File, FileSystem, OpenMode};

/// Reads another file system; what would change it succeeds and changes nothing. Files that are opened for writing take everything
/// and keep only their length.
#[derive(Clone)]
pub struct DryFs(Arc<dyn FileSystem>);

impl DryFs {
    pub fn over(inner: Arc<dyn FileSystem>) -> DryFs {
        DryFs(inner)
    }
}

impl FileSystem for DryFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        match mode {
            OpenMode::Read => self.0.open(path, mode),
            OpenMode::ReadWrite | OpenMode::CreateNew | OpenMode::CreateOrOpen => {
                Ok(Arc::new(Sink::default()))
            }
        }
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove_file(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.free_bytes(path)
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.total_bytes(path)
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        self.0.file_len(path)
    }
}

/// A file of which nothing but the length is left.
#[derive(Default)]
struct Sink {
    len: AtomicU64,
}

impl File for Sink {
    fn read_exact_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<()> {
        match buf.is_empty() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.len.fetch_max(offset + buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Relaxed))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CrashFs, read_file, write_atomically};

    #[test]
    fn reads_and_leaves_no_trace() {
        let inner = CrashFs::new();
        inner.create_dir_all(Path::new("/a")).unwrap();
        write_atomically(&inner, Path::new("/a/x"), b"there").unwrap();
        let calls = inner.calls();
        let dry = DryFs::over(Arc::new(inner.clone()));
        assert_eq!(read_file(&dry, Path::new("/a/x")).unwrap(), b"there");
        write_atomically(&dry, Path::new("/a/x"), b"gone").unwrap();
        dry.remove_file(Path::new("/a/x")).unwrap();
        dry.remove_dir_all(Path::new("/a")).unwrap();
        let file = dry.open(Path::new("/a/y"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"1234", 6).unwrap();
        assert_eq!(file.len().unwrap(), 10);
        assert_eq!(inner.list(Path::new("/a")).unwrap(), ["x"]);
        assert_eq!(read_file(&inner, Path::new("/a/x")).unwrap(), b"there");
        assert_eq!(inner.calls(), calls, "a changing call came through");
    }
}
