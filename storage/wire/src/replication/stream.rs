//! Payloads of CopyData between a WAL sender and its receiver. All numbers big endian; times in µs since 2000-01-01.

use bytes::{BufMut, Bytes, BytesMut};
use treering_types::Lsn;

use crate::{PgTime, WireError, cursor::Cursor};

/// Bytes before the WAL in a data message: type, start, end, time.
pub const WAL_HEADER_SIZE: usize = 25;

/// The most WAL a stock sender puts in one message (`MAX_SEND_SIZE`, `walsender.c`).
pub const WAL_DATA_BYTES_MAX: usize = 16 * 8192;

/// From the sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalMessage {
    /// `w`: raw WAL, page headers included, without gaps.
    Data {
        start: Lsn,
        /// The sender's end of WAL when it sent this.
        wal_end: Lsn,
        sent_at: PgTime,
        wal: Bytes,
    },
    /// `k`
    Keepalive { wal_end: Lsn, sent_at: PgTime, reply_requested: bool },
}

/// From the receiver. Positions are one past the last byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StandbyMessage {
    /// `r`
    StatusUpdate {
        written: Lsn,
        /// Durable at the receiver.
        flushed: Lsn,
        applied: Lsn,
        sent_at: PgTime,
        reply_requested: bool,
    },
    /// `h`
    HotStandbyFeedback {
        sent_at: PgTime,
        xmin: u32,
        xmin_epoch: u32,
        catalog_xmin: u32,
        catalog_xmin_epoch: u32,
    },
}

/// Appends what stands before the WAL in a data message ([`WAL_HEADER_SIZE`] bytes).
pub fn put_wal_header(out: &mut BytesMut, start: Lsn, wal_end: Lsn, sent_at: PgTime) {
    out.put_u8(b'w');
    out.put_u64(start.0);
    out.put_u64(wal_end.0);
    out.put_i64(sent_at);
}

impl WalMessage {
    /// Reads the payload of a CopyData; the WAL shares its memory.
    ///
    /// # Errors
    /// Another type byte, or a payload of the wrong size.
    pub fn parse(payload: Bytes) -> Result<WalMessage, WireError> {
        let mut cursor = Cursor::new(payload, "WAL message");
        match cursor.u8()? {
            b'w' => Ok(WalMessage::Data {
                start: Lsn(cursor.u64()?),
                wal_end: Lsn(cursor.u64()?),
                sent_at: cursor.i64()?,
                wal: cursor.rest(),
            }),
            b'k' => {
                let message = WalMessage::Keepalive {
                    wal_end: Lsn(cursor.u64()?),
                    sent_at: cursor.i64()?,
                    reply_requested: cursor.u8()? != 0,
                };
                cursor.end().map(|()| message)
            }
            tag => Err(WireError::UnknownTag { what: "WAL message", tag }),
        }
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            WalMessage::Data { start, wal_end, sent_at, wal } => {
                put_wal_header(out, *start, *wal_end, *sent_at);
                out.put_slice(wal);
            }
            WalMessage::Keepalive { wal_end, sent_at, reply_requested } => {
                out.put_u8(b'k');
                out.put_u64(wal_end.0);
                out.put_i64(*sent_at);
                out.put_u8((*reply_requested).into());
            }
        }
    }
}

impl StandbyMessage {
    /// A status update in which written, flushed and applied are one position.
    pub fn status_at(lsn: Lsn, sent_at: PgTime) -> StandbyMessage {
        let (written, flushed, applied) = (lsn, lsn, lsn);
        StandbyMessage::StatusUpdate { written, flushed, applied, sent_at, reply_requested: false }
    }

    /// Reads the payload of a CopyData.
    ///
    /// # Errors
    /// Another type byte, or a payload of the wrong size.
    pub fn parse(payload: Bytes) -> Result<StandbyMessage, WireError> {
        let mut cursor = Cursor::new(payload, "standby message");
        let message = match cursor.u8()? {
            b'r' => StandbyMessage::StatusUpdate {
                written: Lsn(cursor.u64()?),
                flushed: Lsn(cursor.u64()?),
                applied: Lsn(cursor.u64()?),
                sent_at: cursor.i64()?,
                reply_requested: cursor.u8()? != 0,
            },
            b'h' => StandbyMessage::HotStandbyFeedback {
                sent_at: cursor.i64()?,
                xmin: cursor.u32()?,
                xmin_epoch: cursor.u32()?,
                catalog_xmin: cursor.u32()?,
                catalog_xmin_epoch: cursor.u32()?,
            },
            tag => return Err(WireError::UnknownTag { what: "standby message", tag }),
        };
        cursor.end().map(|()| message)
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match *self {
            StandbyMessage::StatusUpdate {
                written,
                flushed,
                applied,
                sent_at,
                reply_requested,
            } => {
                out.put_u8(b'r');
                out.put_u64(written.0);
                out.put_u64(flushed.0);
                out.put_u64(applied.0);
                out.put_i64(sent_at);
                out.put_u8(reply_requested.into());
            }
            StandbyMessage::HotStandbyFeedback {
                sent_at,
                xmin,
                xmin_epoch,
                catalog_xmin,
                catalog_xmin_epoch,
            } => {
                out.put_u8(b'h');
                out.put_i64(sent_at);
                for number in [xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch] {
                    out.put_u32(number);
                }
            }
        }
    }

    /// Appends the whole CopyData message, header included: what a receiver of ours sends.
    pub fn encode_copy_data(&self, out: &mut BytesMut) {
        let mut payload = BytesMut::with_capacity(40);
        self.encode(&mut payload);
        out.put_u8(b'd');
        out.put_u32((payload.len() as u32).saturating_add(4));
        out.put_slice(&payload);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{backend::Writer, frame::next_frame};

    #[test]
    fn round_trips() {
        let wal = [
            WalMessage::Data {
                start: Lsn(1),
                wal_end: Lsn(2),
                sent_at: -3,
                wal: Bytes::from_static(b"wal"),
            },
            WalMessage::Keepalive { wal_end: Lsn(9), sent_at: 8, reply_requested: true },
        ];
        for message in wal {
            let mut out = BytesMut::new();
            message.encode(&mut out);
            assert_eq!(WalMessage::parse(out.freeze()), Ok(message));
        }
        let standby = [
            StandbyMessage::status_at(Lsn(7), 5),
            StandbyMessage::HotStandbyFeedback {
                sent_at: 1,
                xmin: 2,
                xmin_epoch: 3,
                catalog_xmin: 4,
                catalog_xmin_epoch: 5,
            },
        ];
        for message in standby {
            let mut out = BytesMut::new();
            message.encode_copy_data(&mut out);
            let frame = next_frame(&mut out, 100).unwrap().unwrap();
            assert_eq!((frame.tag, StandbyMessage::parse(frame.body)), (b'd', Ok(message)));
        }
    }

    #[test]
    fn the_writer_sends_what_the_receiver_reads() {
        let mut out = Writer::new();
        out.wal_data(Lsn(16), Lsn(19), 4, b"abc");
        let mut bytes = BytesMut::from(&out.take()[..]);
        let frame = next_frame(&mut bytes, 100).unwrap().unwrap();
        assert_eq!(frame.body.len(), WAL_HEADER_SIZE + 3);
        let wal = Bytes::from_static(b"abc");
        let data = WalMessage::Data { start: Lsn(16), wal_end: Lsn(19), sent_at: 4, wal };
        assert_eq!(WalMessage::parse(frame.body), Ok(data));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let bytes = Bytes::from(bytes);
            let _ = WalMessage::parse(bytes.clone());
            let _ = StandbyMessage::parse(bytes);
        }
    }
}
