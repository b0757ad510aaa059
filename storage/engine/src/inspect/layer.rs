//! A layer file, section by section.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};
use treering_types::{Key, KeyClass, Lsn, TenantId, TimelineId};

use super::{
    Damage,
    walk::{self, Place},
};
use crate::layer::{
    LAYER_FORMAT_VERSION,
    block::{Block, split_crc},
    bloom::{self, Bloom},
    footer::{self, FOOTER_SIZE, Footer, HEADER_SIZE, Refused, Section, UNDIGESTED},
    index::{BlockIndex, BlockRef},
};

/// A value of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub key: Key,
    /// End of the record that made it.
    pub lsn: Lsn,
    /// No older value is needed.
    pub base: bool,
    /// Changes from the newest base up to and with this one.
    pub chain: u16,
    /// Nothing: the key is gone.
    pub bytes: &'a [u8],
}

/// What a layer file says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerReport {
    /// Bytes of the file.
    pub size: u64,
    pub footer: Option<FooterReport>,
    /// SHA-256 of everything before the digest, as it is in hexadecimal.
    pub digest: String,
    /// Bits of the bloom filter, and how many are set.
    pub bloom_bits: u64,
    pub bloom_bits_set: u64,
    /// Where the blocks below come from: the index, or a search for frames when it cannot be read.
    pub blocks_from: &'static str,
    pub blocks: Vec<BlockReport>,
    /// Values that could be read, by key class.
    pub values_by_class: BTreeMap<String, u64>,
    pub values: u64,
    /// Values that need no older one, and those that say that their key is gone.
    pub bases: u64,
    pub tombstones: u64,
    /// Bytes of all values.
    pub value_bytes: u64,
    pub damage: Vec<Damage>,
}

/// What the footer says; of a damaged one, whatever its bytes say.
#[derive(Clone, Debug, Serialize)]
pub struct FooterReport {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub number: u64,
    pub complete: bool,
    pub entries: u64,
    pub key_first: String,
    pub key_last: String,
    pub lsn_first: Lsn,
    pub lsn_last: Lsn,
    pub bloom_offset: u64,
    pub bloom_len: u64,
    pub index_offset: u64,
    pub index_len: u64,
    /// SHA-256 that the file should have.
    pub digest: String,
}

/// One block.
#[derive(Clone, Debug, Serialize)]
pub struct BlockReport {
    pub offset: u64,
    /// Bytes in the file, crc32 included, and unpacked.
    pub stored_len: u64,
    pub raw_len: u64,
    /// `None` when it cannot be read; the first key is the index's then.
    pub entries: Option<u64>,
    pub first_key: String,
    pub first_lsn: Option<Lsn>,
    pub last_key: Option<String>,
}

pub(super) fn layer(bytes: &[u8], each: &mut dyn FnMut(Entry<'_>)) -> LayerReport {
    let mut report = LayerReport { size: bytes.len() as u64, ..LayerReport::default() };
    header(bytes, &mut report);
    let footer = footer(bytes, &mut report);
    digest(bytes, footer.as_ref(), &mut report);
    let filter = footer.as_ref().and_then(|footer| bloom(bytes, footer, &mut report));
    let index = footer.as_ref().and_then(|footer| index(bytes, footer, &mut report));
    let mut reading = Reading { bytes, footer: footer.as_ref(), filter, report, each };
    match index {
        Some(index) => {
            reading.report.blocks_from = "the index";
            index.blocks.iter().for_each(|block| reading.block(block));
        }
        None => reading.search(footer.as_ref()),
    }
    let mut report = reading.report;
    check_count(footer.as_ref(), &mut report);
    report.damage.sort_by_key(|damage| damage.offset);
    report
}

fn header(bytes: &[u8], report: &mut LayerReport) {
    let Some(header) = bytes.first_chunk::<HEADER_SIZE>() else {
        report.damage.push(Damage::at(0, "the file is shorter than a header"));
        return;
    };
    if let Err(why) = footer::check_header(header) {
        report.damage.push(Damage::at(0, sentence(&why)));
    }
}

fn sentence(why: &Refused) -> String {
    match why {
        Refused::Newer(found) => {
            format!("format version {found}; this version knows up to {LAYER_FORMAT_VERSION}")
        }
        Refused::Malformed(what) => (*what).to_owned(),
    }
}

/// The footer when it can be believed; what its bytes say goes into the report in any case.
fn footer(bytes: &[u8], report: &mut LayerReport) -> Option<Footer> {
    let size = bytes.len() as u64;
    let Some(tail) = bytes.last_chunk::<FOOTER_SIZE>() else {
        report.damage.push(Damage::at(size, "the file is shorter than a footer"));
        return None;
    };
    let checked = Footer::decode(tail, size);
    report.footer = Footer::decode_unchecked(tail, size).ok().map(|footer| describe(&footer));
    match checked {
        Ok(footer) => Some(footer),
        Err(why) => {
            let at = size.saturating_sub(FOOTER_SIZE as u64);
            report.damage.push(Damage::at(at, sentence(&why)));
            None
        }
    }
}

fn describe(Footer { owner, desc, bloom, index }: &Footer) -> FooterReport {
    FooterReport {
        tenant: owner.tenant,
        timeline: owner.timeline,
        number: desc.number,
        complete: desc.complete,
        entries: desc.entries,
        key_first: format!("{:?}", desc.key_first),
        key_last: format!("{:?}", desc.key_last),
        lsn_first: desc.lsns.start,
        lsn_last: Lsn(desc.lsns.end.0.saturating_sub(1)),
        bloom_offset: bloom.offset,
        bloom_len: bloom.len,
        index_offset: index.offset,
        index_len: index.len,
        digest: hexadecimal(&desc.digest),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8], footer: Option<&Footer>, report: &mut LayerReport) {
    let covered = bytes.get(..bytes.len().saturating_sub(UNDIGESTED)).unwrap_or_default();
    let found: [u8; 32] = Sha256::digest(covered).into();
    report.digest = hexadecimal(&found);
    if footer.is_some_and(|footer| footer.desc.digest != found) {
        report.damage.push(Damage::at(0, "digest of the whole file does not match"));
    }
}

/// A section that its crc32 vouches for.
fn section<'a>(
    bytes: &'a [u8],
    at: Section,
    name: &str,
    report: &mut LayerReport,
) -> Option<&'a [u8]> {
    let range = usize::try_from(at.offset).ok()?..usize::try_from(at.offset + at.len).ok()?;
    let (content, crc) = bytes.get(range).and_then(split_crc)?;
    if crc32fast::hash(content) != crc {
        report.damage.push(Damage::at(at.offset, format!("{name} checksum mismatch")));
        return None;
    }
    Some(content)
}

fn bloom(bytes: &[u8], footer: &Footer, report: &mut LayerReport) -> Option<Bloom> {
    let bits = section(bytes, footer.bloom, "bloom filter", report)?;
    report.bloom_bits = bits.len() as u64 * 8;
    report.bloom_bits_set = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let filter = Bloom::from_bytes(bytes::Bytes::copy_from_slice(bits));
    if filter.is_none() {
        report.damage.push(Damage::at(footer.bloom.offset, "bloom filter is empty"));
    }
    filter
}

fn index(bytes: &[u8], footer: &Footer, report: &mut LayerReport) -> Option<BlockIndex> {
    let content = section(bytes, footer.index, "block index", report)?;
    match BlockIndex::decode(content, HEADER_SIZE as u64, footer.bloom.offset) {
        Ok(index) => Some(index),
        Err(malformed) => {
            report.damage.push(Damage::at(footer.index.offset, malformed.0));
            None
        }
    }
}

/// Reads blocks into the report.
struct Reading<'a, 'e> {
    bytes: &'a [u8],
    footer: Option<&'a Footer>,
    filter: Option<Bloom>,
    report: LayerReport,
    each: &'e mut dyn FnMut(Entry<'_>),
}

impl Reading<'_, '_> {
    /// A block that the index names.
    fn block(&mut self, place: &BlockRef) {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(place.stored_len as usize);
        let stored = self.bytes.get(start..end).unwrap_or_default();
        match Block::decode(stored, place.raw_len) {
            Ok(block) => {
                let first = block.heads().first().map(|head| (head.key, head.lsn));
                if first != Some(place.first) {
                    let what =
                        format!("block begins with {first:?}, the index says {:?}", place.first);
                    self.report.damage.push(Damage::at(place.offset, what));
                }
                self.values(place.offset, stored.len() as u64, place.raw_len, &block);
            }
            Err(what) => {
                self.report.damage.push(Damage::at(place.offset, what));
                self.report.blocks.push(BlockReport {
                    offset: place.offset,
                    stored_len: place.stored_len.into(),
                    raw_len: place.raw_len.into(),
                    entries: None,
                    first_key: format!("{:?}", place.first.0),
                    first_lsn: Some(place.first.1),
                    last_key: None,
                });
            }
        }
    }

    /// Blocks without an index, up to the bloom filter where the footer says where that is.
    fn search(&mut self, footer: Option<&Footer>) {
        self.report.blocks_from = "a search, without the index";
        let end = footer.map_or(self.bytes.len() as u64, |footer| footer.bloom.offset);
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        let mut covered = HEADER_SIZE;
        for Place { offset, stored_len, raw_len } in walk::blocks(self.bytes, HEADER_SIZE, end) {
            if offset > covered {
                let what = format!("{} bytes that are no block", offset - covered);
                self.report.damage.push(Damage::at(covered as u64, what));
            }
            covered = offset + stored_len;
            let stored = self.bytes.get(offset..covered).unwrap_or_default();
            match Block::decode(stored, raw_len) {
                Ok(block) => self.values(offset as u64, stored_len as u64, raw_len, &block),
                Err(what) => self.report.damage.push(Damage::at(offset as u64, what)),
            }
        }
    }

    fn values(&mut self, offset: u64, stored_len: u64, raw_len: u32, block: &Block) {
        let (first, last) = (block.heads().first(), block.heads().last());
        self.report.blocks.push(BlockReport {
            offset,
            stored_len,
            raw_len: raw_len.into(),
            entries: Some(block.heads().len() as u64),
            first_key: first.map(|head| format!("{:?}", head.key)).unwrap_or_default(),
            first_lsn: first.map(|head| head.lsn),
            last_key: last.map(|head| format!("{:?}", head.key)),
        });
        for head in block.heads() {
            let bytes = block.value(head);
            let entry = Entry {
                key: head.key,
                lsn: head.lsn,
                base: head.base,
                chain: head.chain,
                bytes: &bytes,
            };
            self.value(offset, &entry);
            (self.each)(entry);
        }
    }

    fn value(&mut self, offset: u64, entry: &Entry<'_>) {
        let report = &mut self.report;
        report.values += 1;
        report.bases += u64::from(entry.base);
        report.tombstones += u64::from(entry.bytes.is_empty());
        report.value_bytes += entry.bytes.len() as u64;
        let class = entry.key.class().map(|class: KeyClass| format!("{class:?}"));
        *report.values_by_class.entry(class.unwrap_or_else(|e| e.to_string())).or_default() += 1;
        let mut note = |what: String| report.damage.push(Damage::at(offset, what));
        if let Some(Footer { desc, .. }) = self.footer {
            let in_keys = desc.key_first <= entry.key && entry.key <= desc.key_last;
            if !in_keys || !desc.lsns.contains(entry.lsn) {
                note(format!("{:?} at {} lies outside the footer's ranges", entry.key, entry.lsn));
            }
        }
        let missed = |filter: &Bloom| !filter.may_contain(bloom::hash(&entry.key));
        if self.filter.as_ref().is_some_and(missed) {
            note(format!("{:?} is missing from the bloom filter", entry.key));
        }
    }
}

fn check_count(footer: Option<&Footer>, report: &mut LayerReport) {
    let all_read = report.blocks.iter().all(|block| block.entries.is_some());
    let Some(footer) = footer.filter(|footer| all_read && footer.desc.entries != report.values)
    else {
        return;
    };
    let what = format!("{} values, the footer says {}", report.values, footer.desc.entries);
    report.damage.push(Damage::at(0, what));
}
