//! What scenarios and micro benches share: inputs made without files, real WAL of stock Postgres, replay in memory.

pub mod cpu;
pub mod glance;
pub mod log;
pub mod memory;
pub mod recovery;
pub mod replay;
pub mod source;
pub mod store;

use treering_pgfmt::{
    change::{PageChange, PartBlock, RecordPart},
    redo::rmgr,
    version::PgMajor,
    wal::encode::{self, Origin},
};
use treering_types::{Fork, Lsn, RelTag};

/// The table that everything happens to.
pub const TABLE: RelTag =
    RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
/// Bytes of one inserted tuple, header excluded.
const TUPLE_BYTES: usize = 8;

/// A heap insert at `offset` (1-based) of block 0; the first one makes the page.
pub fn heap_insert(offset: u16) -> PageChange<'static> {
    let first = offset == 1;
    // xl_heap_header: infomask2 (one attribute), infomask, t_hoff; then a byte of padding and the tuple's data.
    let mut data = vec![1, 0, 0, 8, 24, 0];
    data.extend_from_slice(&[offset as u8; TUPLE_BYTES]);
    let main = [offset.to_le_bytes().as_slice(), &[0]].concat();
    PageChange::Record(RecordPart {
        rmid: rmgr::HEAP,
        info: if first { 0x80 } else { 0 },
        xid: 1000 + u32::from(offset),
        block_id: 0,
        will_init: first,
        hints_logged: false,
        blocks: [PartBlock { id: 0, block: 0, has_data: true }].into_iter().collect(),
        data: data.into(),
        main: main.into(),
    })
}

/// Contiguous WAL of `records` logical messages with `body` bytes each, from the start of a segment.
pub fn wal(records: usize, body: usize) -> (Lsn, Vec<u8>) {
    let origin = Origin { major: PgMajor::V15, tli: 1, system_id: 7 };
    let start = Lsn(0x100_0000);
    let (mut at, mut prev, mut bytes) = (start, Lsn::INVALID, Vec::new());
    for _ in 0..records {
        let mut payload = vec![254];
        payload.extend_from_slice(&(body as u32).to_le_bytes());
        payload.resize(payload.len() + body, 0x5a);
        let record = encode::record(1000, prev, 0, rmgr::LOGICAL_MESSAGE, &payload);
        let laid_out = encode::lay_out(&origin, at, &record);
        bytes.extend_from_slice(&laid_out.bytes);
        (at, prev) = (laid_out.end, laid_out.record_start);
    }
    (start, bytes)
}
