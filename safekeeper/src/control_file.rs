//! The control file: what a timeline's member must find again after a crash, beside the WAL itself.
//!
//! Written whole and atomically. The bytes are `docs/formats/safekeeper-control.md`.

use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use treering_consensus::{
    Configuration, Generation, PgAncestor, Promises, ProposerId, TermHistory, TermStart,
    codec::{configuration, put_configuration},
};
use treering_fs::{FileSystem, read_file, write_atomically};
use treering_types::{Lsn, TenantId, Term, TimelineId};

use crate::error::StoreError;

/// Its name in the timeline's directory.
pub const CONTROL_FILE: &str = "control";
const MAGIC: [u8; 8] = *b"TRsafekp";
/// The version written.
pub const CONTROL_VERSION: u32 = 3;
/// Up to version 2 `trim_lsn` was the start of a segment or of the log. It is read, and written as the current one when it
/// next is, as is version 1, which had no configuration.
const WITHOUT_CONFIGURATION: u32 = 1;
const HEAD: usize = 120;
const HAS_VOTE: u32 = 1;

/// What a timeline is; fixed at its creation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Postgres's system identifier.
    pub system_id: u64,
    pub pg_major: u32,
    /// Postgres's own timeline number: names the segment files.
    pub pg_tli: u32,
    /// The Postgres timelines that this one descends from, oldest first.
    pub pg_ancestors: Vec<PgAncestor>,
}

/// The content of a control file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    pub identity: Identity,
    pub promises: Promises,
    /// The oldest position still held: a segment start, the timeline's start, or `commit_lsn`.
    pub trim_lsn: Lsn,
}

impl Control {
    pub fn encode(&self) -> Vec<u8> {
        let Control { identity, promises, trim_lsn } = self;
        let entries = promises.history.entries();
        let mut out = Vec::with_capacity(HEAD + entries.len() * 16 + 4);
        out.put_slice(&MAGIC);
        out.put_u32_le(CONTROL_VERSION);
        out.put_u32_le(identity.pg_major);
        out.put_slice(&identity.tenant.0);
        out.put_slice(&identity.timeline.0);
        out.put_u64_le(identity.system_id);
        out.put_u32_le(identity.pg_tli);
        out.put_u32_le(if promises.vote.is_some() { HAS_VOTE } else { 0 });
        out.put_u64_le(promises.start_lsn.0);
        out.put_u64_le(promises.commit_lsn.0);
        out.put_u64_le(trim_lsn.0);
        out.put_u64_le(promises.term.0);
        out.put_slice(&promises.vote.unwrap_or(ProposerId([0; 16])).0);
        out.put_u32_le(entries.len() as u32);
        out.put_u32_le(identity.pg_ancestors.len() as u32);
        for entry in entries {
            out.put_u64_le(entry.term.0);
            out.put_u64_le(entry.lsn.0);
        }
        for ancestor in &identity.pg_ancestors {
            out.put_u32_le(ancestor.pg_tli);
            out.put_u64_le(ancestor.switch_lsn.0);
        }
        out.put_u64_le(promises.promised.0);
        put_configuration(&mut out, &promises.configuration);
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out
    }

    /// `path` is for the error's words only.
    pub fn decode(bytes: Vec<u8>, path: &Path) -> Result<Control, StoreError> {
        let bad = |what| StoreError::ControlFile { path: path.display().to_string(), what };
        if bytes.get(..8) != Some(&MAGIC[..]) {
            return Err(bad("is none (wrong magic)"));
        }
        let mut bytes = Bytes::from(bytes);
        // The version stands before the crc is looked at: a newer format may have it elsewhere.
        let found = bytes.slice(8..).try_get_u32_le().map_err(|_| bad("is cut short"))?;
        if !(WITHOUT_CONFIGURATION..=CONTROL_VERSION).contains(&found) {
            let path = path.display().to_string();
            return Err(StoreError::NewerFormat { path, found, known: CONTROL_VERSION });
        }
        if bytes.len() < HEAD + 4 {
            return Err(bad("is cut short"));
        }
        let mut tail = bytes.split_off(bytes.len() - 4);
        if crc32fast::hash(&bytes) != tail.get_u32_le() {
            return Err(bad("fails its checksum"));
        }
        bytes.advance(12);
        decode_fields(bytes, found).ok_or(bad("holds impossible values"))
    }

    pub fn read(fs: &dyn FileSystem, directory: &Path) -> Result<Control, StoreError> {
        let path = directory.join(CONTROL_FILE);
        let bytes = read_file(fs, &path).map_err(StoreError::io("read", &path))?;
        Control::decode(bytes, &path)
    }

    /// Durable on return.
    pub fn write(&self, fs: &dyn FileSystem, directory: &Path) -> Result<(), StoreError> {
        let path = directory.join(CONTROL_FILE);
        write_atomically(fs, &path, &self.encode()).map_err(StoreError::io("write", &path))
    }
}

fn decode_fields(mut f: Bytes, version: u32) -> Option<Control> {
    let pg_major = f.try_get_u32_le().ok()?;
    let tenant = TenantId(id(&mut f)?);
    let timeline = TimelineId(id(&mut f)?);
    let system_id = f.try_get_u64_le().ok()?;
    let pg_tli = f.try_get_u32_le().ok()?;
    let flags = f.try_get_u32_le().ok()?;
    let start_lsn = lsn(&mut f)?;
    let commit_lsn = lsn(&mut f)?;
    let trim_lsn = lsn(&mut f)?;
    let term = Term(f.try_get_u64_le().ok()?);
    let vote = ProposerId(id(&mut f)?);
    let count = f.try_get_u32_le().ok()? as usize;
    let ancestors = f.try_get_u32_le().ok()? as usize;
    let len = count.checked_mul(16)?.checked_add(ancestors.checked_mul(12)?)?;
    if f.len() < len || flags & !HAS_VOTE != 0 {
        return None;
    }
    let entry = |_| Some(TermStart { term: Term(f.try_get_u64_le().ok()?), lsn: lsn(&mut f)? });
    let entries = (0..count).map(entry).collect::<Option<Vec<_>>>()?;
    let history = TermHistory::from_entries(entries).ok()?;
    let ancestor =
        |_| Some(PgAncestor { pg_tli: f.try_get_u32_le().ok()?, switch_lsn: lsn(&mut f)? });
    let pg_ancestors = (0..ancestors).map(ancestor).collect::<Option<Vec<_>>>()?;
    let (promised, configuration) = match version {
        WITHOUT_CONFIGURATION => (Generation(0), Configuration::none()),
        _ => (Generation(f.try_get_u64_le().ok()?), configuration(&mut f)?),
    };
    let vote = (flags & HAS_VOTE != 0).then_some(vote);
    let is_possible = f.is_empty() && start_lsn <= commit_lsn && trim_lsn <= commit_lsn;
    is_possible.then_some(Control {
        identity: Identity { tenant, timeline, system_id, pg_major, pg_tli, pg_ancestors },
        promises: Promises { term, vote, history, commit_lsn, start_lsn, configuration, promised },
        trim_lsn,
    })
}

fn id(fields: &mut Bytes) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    fields.try_copy_to_slice(&mut id).ok()?;
    Some(id)
}

fn lsn(fields: &mut Bytes) -> Option<Lsn> {
    fields.try_get_u64_le().ok().map(Lsn)
}

#[cfg(test)]
mod tests {
    use treering_types::NodeId;

    use super::*;

    fn control(vote: Option<ProposerId>) -> Control {
        let entry = |term, lsn| TermStart { term: Term(term), lsn: Lsn(lsn) };
        let history = TermHistory::from_entries(vec![entry(1, 0x100_0028), entry(3, 0x100_0100)]);
        Control {
            identity: Identity {
                tenant: TenantId([1; 16]),
                timeline: TimelineId([2; 16]),
                system_id: 0x1122_3344_5566_7788,
                pg_major: 15,
                pg_tli: 4,
                pg_ancestors: vec![PgAncestor { pg_tli: 2, switch_lsn: Lsn(0x100_0028) }],
            },
            promises: Promises {
                term: Term(5),
                vote,
                history: history.unwrap(),
                commit_lsn: Lsn(0x100_0200),
                start_lsn: Lsn(0x100_0028),
                configuration: Configuration::new(
                    Generation(2),
                    vec![NodeId(1)],
                    Some(vec![NodeId(1), NodeId(3)]),
                )
                .unwrap(),
                promised: Generation(4),
            },
            trim_lsn: Lsn(0x100_0028),
        }
    }

    #[test]
    fn round_trip() {
        for vote in [None, Some(ProposerId([9; 16]))] {
            let bytes = control(vote).encode();
            assert_eq!(Control::decode(bytes, Path::new("c")).unwrap(), control(vote));
        }
    }

    /// What all versions have in common, behind the version.
    const BODY: &str = concat!(
        "0f000000",
        "01010101010101010101010101010101",
        "02020202020202020202020202020202",
        "8877665544332211",
        "04000000",
        "01000000",
        "2800000100000000",
        "0002000100000000",
        "2800000100000000",
        "0500000000000000",
        "09090909090909090909090909090909",
        "02000000",
        "01000000",
        "0100000000000000",
        "2800000100000000",
        "0300000000000000",
        "0001000100000000",
        "02000000",
        "2800000100000000",
    );

    /// What follows it since version 2.
    const CONFIGURATION: &str = concat!(
        "0400000000000000",
        "0200000000000000",
        "01000000",
        "02000000",
        "0100000000000000",
        "0100000000000000",
        "0300000000000000",
    );

    /// Bytes as the format document shows them; a file like this must open forever.
    #[test]
    fn golden_file() {
        let bytes = control(Some(ProposerId([9; 16]))).encode();
        let expected = ["5452736166656b70", "03000000", BODY, CONFIGURATION, "30ea1418"].concat();
        assert_eq!(hex(&bytes), expected);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn decode_hex(golden: &str) -> Control {
        let byte = |at| u8::from_str_radix(&golden[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..golden.len()).step_by(2).map(byte).collect();
        Control::decode(bytes, Path::new("c")).unwrap()
    }

    #[test]
    fn earlier_versions_are_read() {
        let expected = control(Some(ProposerId([9; 16])));
        let second = ["5452736166656b70", "02000000", BODY, CONFIGURATION, "f4a2294a"].concat();
        assert_eq!(decode_hex(&second), expected);
        // The first ended with the ancestors.
        let first = ["5452736166656b70", "01000000", BODY, "79eb2792"].concat();
        let mut expected = expected;
        expected.promises.configuration = Configuration::none();
        expected.promises.promised = Generation(0);
        assert_eq!(decode_hex(&first), expected);
    }

    #[test]
    fn damage_and_newer_versions_are_named() {
        let good = control(None).encode();
        let decode = |bytes: &[u8]| Control::decode(bytes.to_vec(), Path::new("c"));
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            assert_eq!(decode(&bytes).unwrap_err().kind(), treering_types::ErrorKind::Corrupt);
            assert!(decode(&good[..at]).is_err());
        }
        let mut newer = good;
        newer[8] = 4;
        assert!(matches!(decode(&newer), Err(StoreError::NewerFormat { found: 4, known: 3, .. })));
    }
}
