//! The shared file, mapped on the agent's side: made before the start, opened again by an agent that takes over.

#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicU32,
};

use memmap2::MmapRaw;
use rustix::fs::FallocateFlags;
use treering_presence::{Agent, Directory};

/// Where shared memory lies on Linux.
const MEMORY_DIR: &str = "/dev/shm";
/// Room left there for others.
const ROOM_LEFT_BYTES: u64 = 16 << 20;

/// The words of a shared file. They stay where they are for as long as this lives, and nobody can cut the file short:
/// its name is ours alone, and the library closes its descriptor as soon as it has mapped it.
pub struct Memory {
    map: MmapRaw,
}

impl Memory {
    /// Maps a whole file, whose length is a multiple of four.
    pub fn map(file: &File) -> io::Result<Memory> {
        let map = MmapRaw::map_raw(file)?;
        match map.len().is_multiple_of(4) {
            true => Ok(Memory { map }),
            false => Err(io::Error::other("a shared file of broken length")),
        }
    }

    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, readable and writable, `len` bytes long, and lives as long as `self`;
        // every access in any process is an atomic of 32 bits; the file does not shrink (see the type).
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.map.len() / 4) }
    }
}

/// A shared file in use: its directory and the agent's side of each map, by file number.
pub struct Shared {
    // Before the memory that they point into.
    agents: Vec<Agent<'static, AtomicU32>>,
    directory: Directory<'static, AtomicU32>,
    _memory: Memory,
}

impl Shared {
    /// Becomes the agent of all maps. `count` is the number of files that were laid out.
    ///
    /// # Errors
    /// A file that is not a directory of maps, or not one of so many.
    pub fn take_over(memory: Memory, count: usize) -> anyhow::Result<Shared> {
        // SAFETY: the words outlive every use: they are borrowed from `memory`, which is dropped after the two fields
        // that hold them, and no method gives them out for longer than `&self`.
        let words: &'static [AtomicU32] = unsafe { std::mem::transmute(memory.words()) };
        let directory = Directory::open(words)?;
        let mut found: Vec<Option<Agent<'static, AtomicU32>>> = (0..count).map(|_| None).collect();
        for place in directory.places() {
            let map = directory.map(place)?;
            let slot = usize::try_from(map.file_number()).ok().and_then(|n| found.get_mut(n));
            if let Some(slot) = slot {
                *slot = Some(Agent::take_over(map).0);
            }
        }
        let agents: Option<Vec<_>> = found.into_iter().collect();
        let agents =
            agents.ok_or_else(|| anyhow::anyhow!("maps are missing in the shared file"))?;
        Ok(Shared { agents, directory, _memory: memory })
    }

    pub fn directory(&self) -> Directory<'_, AtomicU32> {
        self.directory
    }

    /// What was written before this request is durable: wakes who waits for it.
    pub fn set_flushed(&self, request: u32) {
        self.directory.set_flushed(request);
        if let Some(word) = self.directory.flush_word() {
            let (wake, all) = (libc::FUTEX_WAKE, i32::MAX);
            // SAFETY: the word stays mapped (see the type), and is neither read nor written.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), wake, all) };
        }
    }

    pub fn agent<'a>(&'a self, file: usize) -> Option<&'a Agent<'a, AtomicU32>> {
        self.agents.get(file)
    }
}

/// Makes an empty shared file of `bytes`, all of it allocated: in shared memory where there is room, else in
/// `fallback`.
pub fn create(bytes: u64, start: u64, fallback: &Path) -> io::Result<(File, PathBuf)> {
    let name = format!("treering-pages-{start:016x}");
    let has_room = rustix::fs::statvfs(MEMORY_DIR).is_ok_and(|stat| {
        stat.f_bavail.saturating_mul(stat.f_frsize) > bytes.saturating_add(ROOM_LEFT_BYTES)
    });
    if has_room && let Ok(made) = create_in(Path::new(MEMORY_DIR), &name, bytes) {
        return Ok(made);
    }
    create_in(fallback, &name, bytes)
}

fn create_in(dir: &Path, name: &str, bytes: u64) -> io::Result<(File, PathBuf)> {
    let path = dir.join(name);
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok((file, path)),
        Err(error) => {
            let _ = fs::remove_file(&path);
            Err(error.into())
        }
    }
}
