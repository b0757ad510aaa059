//! A data directory that nobody writes to: the pages before the WAL begins, and the second judge at its end.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use treering_pgfmt::{
    control::ControlFile,
    judge::{Bases, Held, Judge, difference},
    page::{Page, flag},
    redo::rmgr,
    relpath::{SEGMENT_BLOCKS, path_of},
    version::PgMajor,
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, PageImage, RelTag, SlruKind};

const SLRU_SEGMENT_PAGES: u32 = 32;
/// First field of an SP-GiST metapage, which caches last-used pages without logging (`SPGIST_MAGIC_NUMBER`).
const SPGIST_META: u32 = 0xBA0B_ABEE;
/// The database that the workload runs in. Databases made from it by `STRATEGY WAL_LOG` lose their maps in the WAL.
const MAIN_DATABASE: u32 = 5;

pub struct Files {
    major: PgMajor,
    root: PathBuf,
    open: RefCell<HashMap<PathBuf, Option<File>>>,
}

impl Files {
    pub fn new(major: PgMajor, root: &Path) -> Files {
        Files { major, root: root.to_owned(), open: RefCell::new(HashMap::new()) }
    }

    fn read(&self, path: PathBuf, page: u32) -> Option<PageImage> {
        let mut open = self.open.borrow_mut();
        let file = open.entry(path).or_insert_with_key(|path| File::open(path).ok());
        let mut bytes = Box::new([0; PAGE_SIZE]);
        let offset = u64::from(page) * PAGE_SIZE as u64;
        file.as_ref()?.read_exact_at(&mut bytes[..], offset).ok()?;
        Some(bytes)
    }
}

impl Bases for Files {
    fn page(&self, key: &Key) -> Option<PageImage> {
        if let Some((kind, page)) = key.slru_page() {
            let name = format!("{:04X}", page / SLRU_SEGMENT_PAGES);
            let path = self.root.join(kind.directory()).join(name);
            return self.read(path, page % SLRU_SEGMENT_PAGES);
        }
        let path = path_of(self.major, key.rel()?, key.block() / SEGMENT_BLOCKS);
        self.read(self.root.join(path), key.block() % SEGMENT_BLOCKS)
    }
}

/// What the files have that redo does not, one line each; prints how much was compared.
pub fn compare(judge: &Judge<Files>, after: &Files, before: &ControlFile) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut compared, mut maps, mut slru, mut stale) = (0, 0, 0, 0);
    for (key, held) in judge.pages().filter(|(_, held)| held.readable) {
        let fault = if key.slru_page().is_some() {
            slru += 1;
            slru_fault(key, held, after)
        } else {
            match key.rel() {
                Some(RelTag { fork: Fork::Fsm, .. }) | None => continue,
                Some(_) if held.rmid == rmgr::SEQUENCE => continue,
                Some(rel) if rel.fork == Fork::VisibilityMap => {
                    maps += 1;
                    map_fault(key, rel, held, after)
                }
                Some(_) => {
                    compared += 1;
                    stale += u32::from(lsn_differs(key, held, after));
                    page_fault(key, held, after)
                }
            }
        };
        wrong.extend(fault.map(|fault| format!("{key:?}: {fault}")));
    }
    println!(
        "files at the end (system {}): {compared} pages, {maps} map pages, {slru} SLRU pages; {} differ; \
         {stale} pages have another LSN (hints)",
        before.system_id(),
        wrong.len()
    );
    wrong
}

fn lsn_of(bytes: &PageImage) -> Lsn {
    Page(&mut bytes.clone()).lsn()
}

fn lsn_differs(key: &Key, held: &Held, after: &Files) -> bool {
    after.page(key).is_some_and(|theirs| lsn_of(&held.bytes) != lsn_of(&theirs))
}

fn page_fault(key: &Key, held: &Held, after: &Files) -> Option<String> {
    let Some(mut theirs) = after.page(key) else {
        let empty = held.bytes.iter().all(|byte| *byte == 0);
        return (!empty).then(|| "not in the files".to_owned());
    };
    if held.rmid == rmgr::XLOG && Page(&mut theirs).u32_at(24) == Ok(SPGIST_META) {
        return None;
    }
    // Pages known from images only: one access method's mask must fit.
    let masks: &[u8] = match held.rmid {
        rmgr::XLOG => &[
            rmgr::HEAP,
            rmgr::BTREE,
            rmgr::GIN,
            rmgr::GENERIC,
            rmgr::HASH,
            rmgr::GIST,
            rmgr::SPGIST,
            rmgr::BRIN,
        ],
        ref rmid => std::slice::from_ref(rmid),
    };
    let found: Option<Vec<_>> =
        masks.iter().map(|rmid| difference(*rmid, key.block(), &held.bytes, &theirs)).collect();
    if let Some(found) = found {
        let (range, count) = &found[0];
        let cut = range.start..range.end.min(range.start + 32);
        return Some(format!(
            "last changed by {}, bytes {range:?} ({count} differ): ours {:02x?}, file {:02x?}",
            treering_pgfmt::redo::rmgr_name(held.rmid),
            &held.bytes[cut.clone()],
            &theirs[cut]
        ));
    }
    if matches!(held.rmid, rmgr::HEAP | rmgr::HEAP2) {
        let theirs = Page(&mut theirs).flags() & flag::ALL_VISIBLE;
        let ours = Page(&mut held.bytes.clone()).flags() & flag::ALL_VISIBLE;
        return (ours != theirs).then(|| format!("all-visible flag is {ours}, file has {theirs}"));
    }
    None
}

/// Map bits must be the same; a database copied through the WAL may have fewer than the files.
fn map_fault(key: &Key, rel: RelTag, held: &Held, after: &Files) -> Option<String> {
    let Some(theirs) = after.page(key) else {
        return Some("map page not in the files".to_owned());
    };
    let lossy = rel.database != MAIN_DATABASE && rel.database != 0;
    let wrong = (24..PAGE_SIZE).find(|at| {
        let (ours, theirs) = (held.bytes[*at], theirs[*at]);
        if lossy { ours & !theirs != 0 } else { ours != theirs }
    })?;
    let (ours, theirs) = (held.bytes[wrong], theirs[wrong]);
    Some(format!("map byte {wrong} is {ours:08b}, file has {theirs:08b}"))
}

fn slru_fault(key: &Key, held: &Held, after: &Files) -> Option<String> {
    let (kind, _) = key.slru_page()?;
    let Some(theirs) = after.page(key) else {
        return Some("page not in the files".to_owned());
    };
    let at = (0..PAGE_SIZE).find(|at| held.bytes[*at] != theirs[*at])?;
    let what = match kind {
        SlruKind::Xact => format!("of xids from {}", key.block() * 32768 + at as u32 * 4),
        SlruKind::MultiOffsets | SlruKind::MultiMembers | SlruKind::CommitTs => String::new(),
    };
    Some(format!("byte {at} {what} is {:#04x}, file has {:#04x}", held.bytes[at], theirs[at]))
}
