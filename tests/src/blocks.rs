//! Blocks of relations, compared byte for byte under Postgres's own masks.

use std::{collections::BTreeMap, fs, path::Path};

use treering_pgfmt::{mask, redo::rmgr, relpath, version::PgMajor};
use treering_types::{Fork, PAGE_SIZE, RelTag};

use crate::Treering;

/// Pages by what became of them.
#[derive(Default, Debug)]
pub struct Tally(pub BTreeMap<&'static str, usize>);

impl Tally {
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// One relation as the catalog has it.
pub struct Relation {
    pub name: String,
    pub tag: RelTag,
    pub rmid: u8,
}

/// The permanent relations of one database.
pub fn relations(
    treering: &Treering,
    branch: &str,
    major: PgMajor,
    database: &str,
) -> Vec<Relation> {
    let query =
        "SELECT c.oid::regclass, pg_relation_filepath(c.oid), c.relkind, coalesce(a.amname, '')
                 FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam
                 WHERE c.relpersistence = 'p' AND pg_relation_filepath(c.oid) IS NOT NULL";
    let text = treering.run("psql", branch, &["-X", "-A", "-t", "-d", database, "-c", query]);
    let parse = |line: &str| {
        let fields: Vec<_> = line.split('|').collect();
        let [name, path, kind, method] = fields[..] else { panic!("{line}") };
        let rmid = match (kind, method) {
            ("S", _) => rmgr::SEQUENCE,
            (_, "btree") => rmgr::BTREE,
            (_, "gin") => rmgr::GIN,
            (_, "hash") => rmgr::HASH,
            (_, "gist") => rmgr::GIST,
            (_, "spgist") => rmgr::SPGIST,
            (_, "brin") => rmgr::BRIN,
            (_, "bloom") => rmgr::GENERIC,
            _ => rmgr::HEAP,
        };
        let (tag, _) = relpath::parse_path(major, path).unwrap_or_else(|| panic!("{path}"));
        Relation { name: format!("{database}:{name}"), tag, rmid }
    };
    text.lines().map(parse).collect()
}

/// All blocks of a fork in the compute's files; `None` when there is no such fork.
pub fn local_blocks(pgdata: &Path, major: PgMajor, tag: RelTag) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for segment in 0.. {
        match fs::read(pgdata.join(relpath::path_of(major, tag, segment))) {
            Ok(bytes) => all.extend(bytes),
            Err(_) if segment == 0 => return None,
            Err(_) => break,
        }
    }
    Some(all)
}

/// The tuple of a sequence without its position: `last_value` and `log_cnt` are logged up to 32 ahead.
fn mask_sequence(page: &mut [u8; PAGE_SIZE]) {
    let tuple = usize::from(u16::from_le_bytes([page[14], page[15]]));
    // Tuple header of 24 bytes, then last_value int8, log_cnt int8.
    if let Some(position) = page.get_mut(tuple + 24..tuple + 40) {
        position.fill(0);
    }
}

/// What is the same of two versions of a block, or what is not.
pub fn compare(
    rmid: u8,
    fork: Fork,
    block: u32,
    local: &[u8],
    stored: &[u8],
) -> Result<&'static str, String> {
    let mut a: Box<[u8; PAGE_SIZE]> = Box::new(local.try_into().expect("a page"));
    let mut b: Box<[u8; PAGE_SIZE]> = Box::new(stored.try_into().expect("a page"));
    if fork == Fork::VisibilityMap {
        // The map itself: masks blank it. LSN and checksum are not part of it.
        return match a[24..] == b[24..] {
            true => Ok("visibility map, equal"),
            false => Err("visibility maps differ".to_owned()),
        };
    }
    for page in [&mut a, &mut b] {
        mask::mask_page(rmid, page, block);
        if rmid == rmgr::SEQUENCE {
            mask_sequence(page);
        }
        if (rmid, block) == (rmgr::SPGIST, 0) {
            // `SpGistMetaPageData`: the magic number, then eight last-used pages of 8 bytes.
            page[28..92].fill(0);
        }
    }
    match a.iter().zip(b.iter()).position(|(a, b)| a != b) {
        None => Ok("equal under masks"),
        Some(at) => {
            let end = (at + 16).min(PAGE_SIZE);
            Err(format!(
                "first differs at {at}: compute {:02x?}, store {:02x?}",
                &a[at..end],
                &b[at..end]
            ))
        }
    }
}
