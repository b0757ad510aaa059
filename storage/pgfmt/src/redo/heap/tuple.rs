//! The 23-byte heap tuple header (`access/htup_details.h`), shared by heap redo and the heap mask.
//!
//! ```text
//!  0      4      8         12        18         20        22    23
//!  +------+------+---------+---------+----------+---------+-----+------------------------
//!  | xmin | xmax |cid|xvac |ctid     |infomask2 |infomask |hoff | null bitmap, pad, data
//!  +------+------+---------+---------+----------+---------+-----+------------------------
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use crate::{fields::Fields, page::Page, redo::RedoReason};

/// Bytes of the fixed part (`SizeofHeapTupleHeader`).
pub(crate) const HEADER: usize = 23;

/// `t_infomask` bits.
pub(crate) mod infomask {
    pub const XMAX_KEYSHR_LOCK: u16 = 0x0010;
    pub const COMBOCID: u16 = 0x0020;
    pub const XMAX_EXCL_LOCK: u16 = 0x0040;
    pub const XMAX_LOCK_ONLY: u16 = 0x0080;
    pub const XMIN_FROZEN: u16 = 0x0300;
    pub const XMAX_COMMITTED: u16 = 0x0400;
    pub const XMAX_INVALID: u16 = 0x0800;
    pub const XMAX_IS_MULTI: u16 = 0x1000;
    pub const MOVED: u16 = 0xC000;
    /// Everything that says something about `xmax`.
    pub const XMAX_BITS: u16 = XMAX_COMMITTED
        | XMAX_INVALID
        | XMAX_IS_MULTI
        | XMAX_EXCL_LOCK
        | XMAX_KEYSHR_LOCK
        | XMAX_LOCK_ONLY;
    /// Every visibility bit.
    pub const XACT_MASK: u16 = 0xFFF0;
}

/// `t_infomask2` bits.
mod infomask2 {
    pub const KEYS_UPDATED: u16 = 0x2000;
    pub const HOT_UPDATED: u16 = 0x4000;
}

/// Bits of a record's `infobits_set` field (`XLHL_*`, `access/heapam_xlog.h`).
mod infobits {
    pub const XMAX_IS_MULTI: u8 = 0x01;
    pub const XMAX_LOCK_ONLY: u8 = 0x02;
    pub const XMAX_EXCL_LOCK: u8 = 0x04;
    pub const XMAX_KEYSHR_LOCK: u8 = 0x08;
    pub const KEYS_UPDATED: u8 = 0x10;
}

/// A tuple's place: block and offset number, in six bytes with the block's high half first (`ItemPointerData`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tid {
    pub block: u32,
    pub offset: u16,
}

impl Tid {
    /// A row that moved to another partition (`ItemPointerSetMovedPartitions`).
    pub const MOVED_PARTITIONS: Tid = Tid { block: u32::MAX, offset: 0xfffd };

    fn bytes(self) -> [u8; 6] {
        let [hi, lo] = [(self.block >> 16) as u16, self.block as u16].map(u16::to_le_bytes);
        let offset = self.offset.to_le_bytes();
        [hi[0], hi[1], lo[0], lo[1], offset[0], offset[1]]
    }
}

/// What a record stores of a tuple header (`xl_heap_header`): the rest follows from the record itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredHeader {
    pub infomask2: u16,
    pub infomask: u16,
    pub hoff: u8,
}

impl StoredHeader {
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, RedoReason> {
        Ok(StoredHeader { infomask2: fields.u16()?, infomask: fields.u16()?, hoff: fields.u8()? })
    }

    /// The header of a freshly inserted tuple: command id 0.
    pub fn complete(self, xmin: u32, xmax: u32, ctid: Tid) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let header = Header(&mut bytes);
        header.0[0..4].copy_from_slice(&xmin.to_le_bytes());
        header.0[4..8].copy_from_slice(&xmax.to_le_bytes());
        header.0[12..18].copy_from_slice(&ctid.bytes());
        header.0[18..20].copy_from_slice(&self.infomask2.to_le_bytes());
        header.0[20..22].copy_from_slice(&(self.infomask & !infomask::COMBOCID).to_le_bytes());
        header.0[22] = self.hoff;
        bytes
    }
}

/// The header of a tuple on a page.
pub(crate) struct Header<'a>(pub &'a mut [u8; HEADER]);

impl<'a> Header<'a> {
    /// The header of the tuple at `offset`, which must be in use and long enough to have one.
    pub fn of(page: &'a mut Page<'_>, offset: u16) -> Result<Self, RedoReason> {
        let pointer = page.normal_pointer(offset)?;
        let tuple = page.slice_mut(pointer.offset(), pointer.length())?;
        let header = tuple.first_chunk_mut::<HEADER>();
        header.map(Header).ok_or(RedoReason::Malformed("tuple shorter than its header"))
    }

    pub fn infomask(&self) -> u16 {
        u16::from_le_bytes([self.0[20], self.0[21]])
    }

    pub fn set_infomask(&mut self, bits: u16) {
        self.0[20..22].copy_from_slice(&bits.to_le_bytes());
    }

    pub fn infomask2(&self) -> u16 {
        u16::from_le_bytes([self.0[18], self.0[19]])
    }

    pub fn set_infomask2(&mut self, bits: u16) {
        self.0[18..20].copy_from_slice(&bits.to_le_bytes());
    }

    pub fn set_xmin(&mut self, xid: u32) {
        self.0[0..4].copy_from_slice(&xid.to_le_bytes());
    }

    pub fn set_xmax(&mut self, xid: u32) {
        self.0[4..8].copy_from_slice(&xid.to_le_bytes());
    }

    /// The field that holds a command id, or `xvac` of old `VACUUM FULL`s.
    pub fn set_cid_or_xvac(&mut self, value: u32) {
        self.0[8..12].copy_from_slice(&value.to_le_bytes());
    }

    /// Command id 0, not a combo (`HeapTupleHeaderSetCmax(htup, FirstCommandId, false)`).
    pub fn clear_command_id(&mut self) {
        self.set_cid_or_xvac(0);
        self.set_infomask(self.infomask() & !infomask::COMBOCID);
    }

    pub fn ctid_offset(&self) -> u16 {
        u16::from_le_bytes([self.0[16], self.0[17]])
    }

    pub fn set_ctid(&mut self, tid: Tid) {
        self.0[12..18].copy_from_slice(&tid.bytes());
    }

    pub fn hoff(&self) -> usize {
        usize::from(self.0[22])
    }

    pub fn set_hot_updated(&mut self, hot: bool) {
        let bits = self.infomask2() & !infomask2::HOT_UPDATED;
        self.set_infomask2(if hot { bits | infomask2::HOT_UPDATED } else { bits });
    }

    /// Forgets what was known about `xmax` and sets what a record's `infobits` say
    /// (`fix_infomask_from_infobits`).
    pub fn replace_xmax_bits(&mut self, bits: u8) {
        let mut mask = self.infomask() & !(infomask::XMAX_BITS | infomask::MOVED);
        for (bit, meaning) in [
            (infobits::XMAX_IS_MULTI, infomask::XMAX_IS_MULTI),
            (infobits::XMAX_LOCK_ONLY, infomask::XMAX_LOCK_ONLY),
            (infobits::XMAX_EXCL_LOCK, infomask::XMAX_EXCL_LOCK),
            (infobits::XMAX_KEYSHR_LOCK, infomask::XMAX_KEYSHR_LOCK),
        ] {
            if bits & bit != 0 {
                mask |= meaning;
            }
        }
        self.set_infomask(mask);
        let keys = if bits & infobits::KEYS_UPDATED != 0 { infomask2::KEYS_UPDATED } else { 0 };
        self.set_infomask2(self.infomask2() & !infomask2::KEYS_UPDATED | keys);
    }

    /// `xmax` only locks the tuple (`HEAP_XMAX_IS_LOCKED_ONLY`).
    pub fn is_only_locked(&self) -> bool {
        use infomask::{XMAX_EXCL_LOCK, XMAX_IS_MULTI, XMAX_KEYSHR_LOCK, XMAX_LOCK_ONLY};
        let bits = self.infomask();
        let lock = bits & (XMAX_IS_MULTI | XMAX_EXCL_LOCK | XMAX_KEYSHR_LOCK);
        bits & XMAX_LOCK_ONLY != 0 || lock == XMAX_EXCL_LOCK
    }

    /// `HeapTupleHeaderXminFrozen`.
    pub fn is_xmin_frozen(&self) -> bool {
        self.infomask() & infomask::XMIN_FROZEN == infomask::XMIN_FROZEN
    }
}
