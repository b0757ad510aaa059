//! A file system in memory that can lose power.
//!
//! Two images are kept: *live*, what calls see, and *durable*, what a crash is sure to leave. Between them lie
//! the calls not yet covered by a sync. [`CrashFs::crash`] builds one state that a real disk could be in:
//!
//! - bytes synced with [`File::sync_data`] and names synced with [`FileSystem::sync_dir`] are there;
//! - of every unsynced write each 512-byte sector is there or not, of every unsynced change of length or
//!   name the whole is there or not, chosen by the seed, whatever their order was;
//! - a file whose directory did not survive is gone.
//!
//! The call that [`CrashFs::crash_at`] names counts as unsynced: it may have happened.

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{File, FileSystem, OpenMode, parent_of, sparse::SparseBytes};

const SECTOR: usize = 512;

/// The simulated file system. Clones share it; [`CrashFs::crash`] makes an independent one.
#[derive(Clone, Default)]
pub struct CrashFs(Arc<Mutex<State>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Directory,
    File(usize),
}

/// An unsynced change of names. `None` removes.
#[derive(Clone, Debug)]
struct NameChange(Vec<(PathBuf, Option<Entry>)>);

#[derive(Clone, Debug)]
enum DataChange {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

#[derive(Clone, Default, Debug)]
struct Inode {
    live: SparseBytes,
    durable: SparseBytes,
    unsynced: Vec<DataChange>,
}

type Names = BTreeMap<PathBuf, Entry>;

#[derive(Default)]
struct State {
    live: Names,
    durable: Names,
    unsynced: Vec<NameChange>,
    inodes: Vec<Inode>,
    calls: u64,
    crash_at: Option<u64>,
}

impl CrashFs {
    pub fn new() -> CrashFs {
        CrashFs::default()
    }

    /// Mutating calls so far, refused ones included.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Mutating call number `n` (the first ever is 1) and every call after it fail.
    pub fn crash_at(&self, n: u64) {
        self.0.lock().crash_at = Some(n);
    }

    /// True once the call named by [`CrashFs::crash_at`] was made.
    pub fn has_crashed(&self) -> bool {
        self.0.lock().is_down()
    }

    /// A new file system in a state that a crash now could leave. The same seed gives the same state; seed 0
    /// keeps nothing unsynced, seed `u64::MAX` everything.
    pub fn crash(&self, seed: u64) -> CrashFs {
        let state = self.0.lock();
        let mut dice = Dice { seed, state: seed };
        let mut names = state.durable.clone();
        for change in &state.unsynced {
            if dice.keeps() {
                apply_names(&mut names, change);
            }
        }
        let inodes = state.inodes.iter().map(|inode| inode.after_crash(&mut dice)).collect();
        let complete = names.clone();
        names.retain(|path, _| has_parents(&complete, path));
        CrashFs(Arc::new(Mutex::new(State {
            live: names.clone(),
            durable: names,
            inodes,
            ..State::default()
        })))
    }
}

/// Which unsynced changes survive (splitmix64; constants from Steele, Lea, Flood 2014).
struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    fn keeps(&mut self) -> bool {
        if self.seed == 0 || self.seed == u64::MAX {
            return self.seed != 0;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

impl Inode {
    fn change(&mut self, change: DataChange) {
        apply_data(&mut self.live, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            apply_data(&mut self.durable, &change);
        }
    }

    fn after_crash(&self, dice: &mut Dice) -> Inode {
        let mut bytes = self.durable.clone();
        for change in &self.unsynced {
            match change {
                DataChange::SetLen(_) if dice.keeps() => apply_data(&mut bytes, change),
                DataChange::SetLen(_) => {}
                DataChange::Write { offset, bytes: written } => {
                    for (at, sector) in sectors(*offset, written) {
                        if dice.keeps() {
                            bytes.write(sector, at);
                        }
                    }
                }
            }
        }
        Inode { live: bytes.clone(), durable: bytes, unsynced: Vec::new() }
    }
}

/// Cuts a write at the sector boundaries of the file.
fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let head = (SECTOR - (offset % SECTOR as u64) as usize).min(bytes.len());
    let (first, rest) = bytes.split_at(head);
    let tail = rest
        .chunks(SECTOR)
        .enumerate()
        .map(move |(index, sector)| (offset + (head + index * SECTOR) as u64, sector));
    std::iter::once((offset, first)).chain(tail)
}

fn apply_data(bytes: &mut SparseBytes, change: &DataChange) {
    match change {
        DataChange::Write { offset, bytes: written } => bytes.write(written, *offset),
        DataChange::SetLen(len) => bytes.set_len(*len),
    }
}

fn apply_names(names: &mut Names, change: &NameChange) {
    for (path, entry) in &change.0 {
        match entry {
            Some(entry) => names.insert(path.clone(), *entry),
            None => names.remove(path),
        };
    }
}

fn is_top(path: &Path) -> bool {
    !path.components().any(|part| matches!(part, Component::Normal(_)))
}

fn has_parents(names: &Names, path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .all(|parent| is_top(parent) || names.get(parent) == Some(&Entry::Directory))
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn power_lost() -> io::Error {
    io::Error::other("simulated crash")
}

impl State {
    fn is_down(&self) -> bool {
        self.crash_at.is_some_and(|n| self.calls >= n)
    }

    fn check_up(&self) -> io::Result<()> {
        if self.is_down() { Err(power_lost()) } else { Ok(()) }
    }

    /// Counts a mutating call: `Ok(true)` when it is the one that crashes.
    fn count(&mut self) -> io::Result<bool> {
        self.check_up()?;
        self.calls += 1;
        Ok(self.is_down())
    }

    fn directory_exists(&self, path: &Path) -> bool {
        is_top(path) || self.live.get(path) == Some(&Entry::Directory)
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.live.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(missing()),
        }
    }

    fn change_names(&mut self, changes: Vec<(PathBuf, Option<Entry>)>) -> io::Result<()> {
        let crashes = self.count()?;
        let change = NameChange(changes);
        apply_names(&mut self.live, &change);
        self.unsynced.push(change);
        if crashes { Err(power_lost()) } else { Ok(()) }
    }

    fn change_data(&mut self, inode: usize, change: DataChange) -> io::Result<()> {
        let crashes = self.count()?;
        self.inodes[inode].change(change);
        if crashes { Err(power_lost()) } else { Ok(()) }
    }

    fn create(&mut self, path: &Path) -> io::Result<usize> {
        if !self.directory_exists(parent_of(path)) {
            return Err(missing());
        }
        self.inodes.push(Inode::default());
        let inode = self.inodes.len() - 1;
        self.change_names(vec![(path.to_path_buf(), Some(Entry::File(inode)))])?;
        Ok(inode)
    }

    fn below(&self, path: &Path) -> Vec<PathBuf> {
        self.live.keys().filter(|name| name.starts_with(path)).cloned().collect()
    }
}

impl FileSystem for CrashFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock();
        state.check_up()?;
        let inode = match (state.file(path), mode) {
            (Ok(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(inode), _) => inode,
            (Err(error), OpenMode::Read | OpenMode::ReadWrite) => return Err(error),
            (Err(error), _) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            (Err(_), _) => state.create(path)?,
        };
        Ok(Arc::new(CrashFile { fs: self.clone(), inode, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        let entry = *state.live.get(from).ok_or_else(missing)?;
        if !state.directory_exists(parent_of(to)) {
            return Err(missing());
        }
        if state.live.get(to) == Some(&Entry::Directory) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_path_buf(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_path_buf(),
        };
        let mut changes = vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(entry))];
        if entry == Entry::Directory {
            for path in state.below(from).into_iter().filter(|path| path != from) {
                changes.push((moved(&path), state.live.get(&path).copied()));
                changes.push((path, None));
            }
        }
        state.change_names(changes)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        let inode = state.file(from)?;
        if state.live.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !state.directory_exists(parent_of(to)) {
            return Err(missing());
        }
        state.change_names(vec![(to.to_path_buf(), Some(Entry::File(inode)))])
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        state.file(path)?;
        state.change_names(vec![(path.to_path_buf(), None)])
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        let mut parts: Vec<&Path> = path.ancestors().filter(|part| !is_top(part)).collect();
        parts.reverse();
        for part in parts {
            match state.live.get(part) {
                Some(Entry::Directory) => {}
                Some(Entry::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => {
                    state.change_names(vec![(part.to_path_buf(), Some(Entry::Directory))])?;
                }
            }
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        if !state.live.contains_key(path) {
            return Err(missing());
        }
        // Deepest first, one change each: a crash may leave any part of the tree.
        for name in state.below(path).into_iter().rev() {
            state.change_names(vec![(name, None)])?;
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_up()?;
        if !state.directory_exists(path) {
            return Err(missing());
        }
        if state.count()? {
            return Err(power_lost());
        }
        let (covered, rest) = std::mem::take(&mut state.unsynced)
            .into_iter()
            .partition(|NameChange(names)| names.iter().any(|(name, _)| parent_of(name) == path));
        state.unsynced = rest;
        let covered: Vec<NameChange> = covered;
        covered.iter().for_each(|change| apply_names(&mut state.durable, change));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.check_up()?;
        if !state.directory_exists(path) {
            return Err(missing());
        }
        let inside = state.live.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_string_lossy().into())).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.0.lock();
        state.check_up()?;
        Ok(is_top(path) || state.live.contains_key(path))
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        let state = self.0.lock();
        state.check_up()?;
        Ok(state.inodes[state.file(path)?].live.len())
    }
}

struct CrashFile {
    fs: CrashFs,
    inode: usize,
    writable: bool,
}

impl CrashFile {
    fn change(&self, change: DataChange) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.fs.0.lock().change_data(self.inode, change)
    }
}

impl File for CrashFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.fs.0.lock();
        state.check_up()?;
        state.inodes[self.inode].live.read_exact(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(DataChange::Write { offset, bytes: buf.to_vec() })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(DataChange::SetLen(len))
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.fs.0.lock();
        state.check_up()?;
        Ok(state.inodes[self.inode].live.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.fs.0.lock();
        if state.count()? {
            return Err(power_lost());
        }
        state.inodes[self.inode].sync();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
