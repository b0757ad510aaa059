//! Header and footer of a layer file: fixed sizes at fixed places, so that a file says what it is before anything in
//! it is believed. Layout and field order: `docs/formats/layer.md`.

use treering_types::{KEY_SIZE, Key, Lsn, LsnRange, TenantId, TimelineId};

use super::{LAYER_FORMAT_VERSION, LayerDesc, LayerOwner, block::split_crc};
use crate::binary::{Malformed, Put, Reader};

const HEADER_MAGIC: [u8; 8] = *b"TRLAYER\n";
const FOOTER_MAGIC: [u8; 8] = *b"\nREYALRT";
/// Bytes of the header: magic, format version, zeros.
pub(crate) const HEADER_SIZE: usize = 16;
pub(crate) const DIGEST_SIZE: usize = 32;
/// Bytes of the footer's fields, before their crc32.
const FIELDS_SIZE: usize = 4 + 4 + 16 + 16 + 8 + 8 + 2 * KEY_SIZE + 2 * 8 + 4 * 8;
/// Bytes of the footer: fields, crc32, digest, magic.
pub(crate) const FOOTER_SIZE: usize = FIELDS_SIZE + 4 + DIGEST_SIZE + 8;
/// Bytes at the end that the digest does not cover: itself and the magic.
pub(crate) const UNDIGESTED: usize = DIGEST_SIZE + 8;

const FLAG_COMPLETE: u32 = 1;

/// The first bytes of every layer file.
pub(crate) fn header() -> [u8; HEADER_SIZE] {
    let mut out = [0; HEADER_SIZE];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..12].copy_from_slice(&LAYER_FORMAT_VERSION.to_le_bytes());
    out
}

/// What the bytes at the front or the back of a file turn out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Newer(u32),
    Malformed(&'static str),
}

impl From<Malformed> for Refused {
    fn from(Malformed(what): Malformed) -> Refused {
        Refused::Malformed(what)
    }
}

/// Checks the header.
pub(crate) fn check_header(bytes: &[u8; HEADER_SIZE]) -> Result<(), Refused> {
    let mut reader = Reader::new(bytes);
    if reader.array::<8>()? != HEADER_MAGIC {
        return Err(Refused::Malformed("not a layer file"));
    }
    let version = reader.u32()?;
    if version > LAYER_FORMAT_VERSION {
        return Err(Refused::Newer(version));
    }
    if bytes != &header() {
        return Err(Refused::Malformed("header is damaged"));
    }
    Ok(())
}

/// A section of the file, crc32 included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub offset: u64,
    pub len: u64,
}

impl Section {
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// The footer of a layer file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub owner: LayerOwner,
    /// Its `size` is not stored but the file's length.
    pub desc: LayerDesc,
    pub bloom: Section,
    pub index: Section,
}

impl Footer {
    /// Everything that the digest covers: the fields and their crc32.
    pub fn encode_fields(&self) -> Vec<u8> {
        let desc = &self.desc;
        let mut out = Vec::with_capacity(FOOTER_SIZE);
        out.put_u32(LAYER_FORMAT_VERSION);
        out.put_u32(if desc.complete { FLAG_COMPLETE } else { 0 });
        out.extend_from_slice(&self.owner.tenant.0);
        out.extend_from_slice(&self.owner.timeline.0);
        out.put_u64(desc.number);
        out.put_u64(desc.entries);
        out.extend_from_slice(&desc.key_first.0);
        out.extend_from_slice(&desc.key_last.0);
        out.put_u64(desc.lsns.start.0);
        out.put_u64(desc.lsns.end.0);
        for section in [self.bloom, self.index] {
            out.put_u64(section.offset);
            out.put_u64(section.len);
        }
        assert_eq!(out.len(), FIELDS_SIZE, "footer layout");
        out.put_u32(crc32fast::hash(&out));
        out
    }

    /// The bytes behind the fields.
    pub fn encode_tail(digest: &[u8; DIGEST_SIZE]) -> Vec<u8> {
        let mut out = digest.to_vec();
        out.extend_from_slice(&FOOTER_MAGIC);
        out
    }

    /// Reads the footer of a file of `size` bytes. Sections are known to lie in order, right before the footer.
    pub fn decode(bytes: &[u8; FOOTER_SIZE], size: u64) -> Result<Footer, Refused> {
        let (covered, tail) = bytes.split_at(FOOTER_SIZE - UNDIGESTED);
        if !tail.ends_with(&FOOTER_MAGIC) {
            return Err(Refused::Malformed("footer magic is missing"));
        }
        let (fields, crc) = split_crc(covered).ok_or(Malformed("footer is too short"))?;
        if crc32fast::hash(fields) != crc {
            return Err(Refused::Malformed("footer checksum mismatch"));
        }
        let footer = Footer::decode_unchecked(bytes, size)?;
        let body_end = size.checked_sub(FOOTER_SIZE as u64);
        let in_order = footer.bloom.offset >= HEADER_SIZE as u64
            && footer.bloom.end() == Some(footer.index.offset)
            && footer.index.end().is_some_and(|end| Some(end) == body_end);
        if !in_order {
            return Err(Refused::Malformed("sections do not fill the file"));
        }
        Ok(footer)
    }

    /// What the bytes say, whether they can be believed or not: for people who look at a damaged file.
    pub fn decode_unchecked(bytes: &[u8; FOOTER_SIZE], size: u64) -> Result<Footer, Refused> {
        let (covered, tail) = bytes.split_at(FOOTER_SIZE - UNDIGESTED);
        let digest = tail.first_chunk::<DIGEST_SIZE>().ok_or(Malformed("footer is too short"))?;
        let (fields, _) = split_crc(covered).ok_or(Malformed("footer is too short"))?;
        decode_fields(fields, *digest, size)
    }
}

fn decode_fields(fields: &[u8], digest: [u8; DIGEST_SIZE], size: u64) -> Result<Footer, Refused> {
    let mut reader = Reader::new(fields);
    let version = reader.u32()?;
    if version > LAYER_FORMAT_VERSION {
        return Err(Refused::Newer(version));
    }
    let flags = reader.u32()?;
    if flags & !FLAG_COMPLETE != 0 {
        return Err(Refused::Malformed("unknown layer flags"));
    }
    let owner =
        LayerOwner { tenant: TenantId(reader.array()?), timeline: TimelineId(reader.array()?) };
    let (number, entries) = (reader.u64()?, reader.u64()?);
    let (key_first, key_last) = (Key(reader.array()?), Key(reader.array()?));
    let lsns = LsnRange { start: Lsn(reader.u64()?), end: Lsn(reader.u64()?) };
    let complete = flags & FLAG_COMPLETE != 0;
    let desc = LayerDesc { number, size, digest, key_first, key_last, lsns, entries, complete };
    let mut section = || Ok::<_, Malformed>(Section { offset: reader.u64()?, len: reader.u64()? });
    let (bloom, index) = (section()?, section()?);
    reader.finish()?;
    Ok(Footer { owner, desc, bloom, index })
}
