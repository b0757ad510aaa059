//! Where pages are: in files of a data directory, and in which frames of memory.

use std::{
    collections::HashMap,
    fs::File,
    hash::{BuildHasherDefault, Hash, Hasher},
    num::NonZeroU32,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use treering_pgfmt::{
    redo::slru::PAGES_PER_SEGMENT,
    relpath::{SEGMENT_BLOCKS, path_of},
    version::PgMajor,
};
use treering_types::{Key, PAGE_SIZE, RelTag, SlruKind};

/// A sequence of pages in files: a relation fork or an SLRU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    Relation(RelTag),
    Slru(SlruKind),
}

impl Area {
    pub(super) fn key(self, page: u32) -> Key {
        match self {
            Area::Relation(rel) => Key::rel_block(rel, page),
            Area::Slru(kind) => Key::slru(kind, page),
        }
    }

    fn pages_per_file(self) -> u32 {
        match self {
            Area::Relation(_) => SEGMENT_BLOCKS,
            Area::Slru(_) => PAGES_PER_SEGMENT,
        }
    }

    /// The file that holds `page`, below the data directory.
    fn path(self, major: PgMajor, page: u32) -> PathBuf {
        let number = page / self.pages_per_file();
        match self {
            Area::Relation(rel) => PathBuf::from(path_of(major, rel, number)),
            Area::Slru(kind) => Path::new(kind.directory()).join(format!("{number:04X}")),
        }
    }
}

impl Hash for Area {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        match self {
            Area::Relation(rel) => {
                state.write_u64(pair(rel.database, rel.relation));
                state.write_u64(pair(rel.tablespace, rel.fork as u32));
            }
            Area::Slru(kind) => kind.hash(state),
        }
    }
}

/// A hash for keys that nobody chooses to harm us.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The files of one area, each opened once.
pub(super) struct Files {
    area: Area,
    open: HashMap<u32, Option<File>>,
}

impl Files {
    pub(super) fn of(area: Area) -> Files {
        Files { area, open: HashMap::new() }
    }

    /// Reads a page; false where the files have none.
    pub(super) fn read(
        &mut self,
        data: &Path,
        major: PgMajor,
        page: u32,
        into: &mut [u8; PAGE_SIZE],
    ) -> bool {
        let per_file = self.area.pages_per_file();
        let file = self
            .open
            .entry(page / per_file)
            .or_insert_with(|| File::open(data.join(self.area.path(major, page))).ok());
        let offset = u64::from(page % per_file) * PAGE_SIZE as u64;
        file.as_ref().is_some_and(|file| file.read_exact_at(into, offset).is_ok())
    }
}

/// The pages of one area that changes touched, and where to find the others.
pub(super) struct Sheaf {
    pub(super) files: Files,
    /// Pages from here on are not taken from the files: they were cut off.
    pub(super) cut_at: u32,
    /// The frame of each page, as far as pages are held.
    frames: Vec<Option<NonZeroU32>>,
}

impl Sheaf {
    fn of(area: Area) -> Sheaf {
        Sheaf { files: Files::of(area), cut_at: u32::MAX, frames: Vec::new() }
    }

    pub(super) fn cut(&mut self, pages: u32) {
        self.frames.truncate(pages as usize);
        self.cut_at = self.cut_at.min(pages);
    }

    pub(super) fn frame(&self, page: u32) -> Option<u32> {
        self.frames.get(page as usize).copied().flatten().map(|number| number.get() - 1)
    }

    pub(super) fn hold(&mut self, page: u32, frame: u32) {
        let page = page as usize;
        if self.frames.len() <= page {
            self.frames.resize(page + 1, None);
        }
        self.frames[page] = NonZeroU32::new(frame + 1);
    }

    /// The pages held, with their frames.
    pub(super) fn held(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..).zip(&self.frames).filter_map(|(page, frame)| Some((page, (*frame)?.get() - 1)))
    }
}

/// The sheaves of all areas that were asked for.
#[derive(Default)]
pub(super) struct Sheaves {
    all: Vec<(Area, Sheaf)>,
    places: HashMap<Area, usize, BuildHasherDefault<Mixer>>,
}

impl Sheaves {
    pub(super) fn get(&self, area: Area) -> Option<&Sheaf> {
        self.places.get(&area).map(|place| &self.all[*place].1)
    }

    /// The sheaf of `area`, a new one if there is none.
    pub(super) fn of(&mut self, area: Area) -> &mut Sheaf {
        let known = self.places.get(&area).copied();
        let place = known.unwrap_or_else(|| {
            self.places.insert(area, self.all.len());
            self.all.push((area, Sheaf::of(area)));
            self.all.len() - 1
        });
        &mut self.all[place].1
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Area, Sheaf)> {
        self.all.iter()
    }
}
