//! Building what a server sends.

use bytes::{BufMut, Bytes, BytesMut};
use treering_types::Lsn;

use super::{Report, TransactionStatus};
use crate::{PgTime, replication, startup::CancelKey};

/// Collects messages; the caller takes the bytes and sends them.
///
/// Bounded by its user: send when [`Writer::len`] has grown past a limit of your own. A message may not reach 2 GiB.
///
/// ```
/// use treering_wire::backend::{Column, Report, Writer, oid, sqlstate};
///
/// let mut out = Writer::new();
/// out.row_description(&[Column::text("systemid"), Column::new("timeline", oid::INT4)]);
/// out.data_row(&[Some(b"7".as_slice()), None]);
/// out.command_complete("IDENTIFY_SYSTEM");
/// out.ready_for_query();
/// out.error(&Report::error(sqlstate::SYNTAX_ERROR, "syntax error").hint("read the manual"));
/// assert!(out.take().starts_with(b"T"));
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    buffer: BytesMut,
}

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Bytes waiting to be sent.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Everything written so far; the writer is empty afterwards.
    pub fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    /// The buffer itself, for `AsyncWriteExt::write_all_buf`.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Any message: `body` appends its bytes.
    pub fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.buffer.put_u8(tag);
        let at = self.buffer.len();
        self.buffer.put_u32(0);
        body(&mut self.buffer);
        let length = self.buffer.len().saturating_sub(at);
        let length = i32::try_from(length).expect("a message of ours stays below 2 GiB");
        if let Some(place) = self.buffer.get_mut(at..at.saturating_add(4)) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    pub fn authentication_ok(&mut self) {
        self.message(b'R', |body| body.put_u32(0));
    }

    /// A request for a password in clear text.
    pub fn authentication_cleartext_password(&mut self) {
        self.message(b'R', |body| body.put_u32(3));
    }

    pub fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |body| {
            put_cstr(body, name);
            put_cstr(body, value);
        });
    }

    pub fn backend_key_data(&mut self, key: &CancelKey) {
        self.message(b'K', |body| {
            body.put_i32(key.pid);
            body.put_slice(&key.secret);
        });
    }

    /// Answers a minor version or `_pq_.` options above what we speak: 3.0, none.
    pub fn negotiate_protocol_version(&mut self, unknown_options: &[&str]) {
        self.message(b'v', |body| {
            body.put_u32(3 << 16);
            body.put_u32(u32::try_from(unknown_options.len()).unwrap_or(0));
            unknown_options.iter().for_each(|name| put_cstr(body, name));
        });
    }

    /// Idle, outside a transaction: the only status our services have.
    pub fn ready_for_query(&mut self) {
        self.ready_for_query_in(TransactionStatus::Idle);
    }

    pub fn ready_for_query_in(&mut self, status: TransactionStatus) {
        self.message(b'Z', |body| body.put_u8(status.byte()));
    }

    /// Everything from AuthenticationOk to ReadyForQuery that a client needs from a service of ours.
    pub fn session_start(&mut self, server_version: &str, key: &CancelKey) {
        self.authentication_ok();
        for (name, value) in [
            ("server_version", server_version),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ] {
            self.parameter_status(name, value);
        }
        self.backend_key_data(key);
        self.ready_for_query();
    }

    /// Columns of a result, all in text format.
    pub fn row_description(&mut self, columns: &[super::Column]) {
        self.message(b'T', |body| {
            body.put_u16(columns.len() as u16);
            for column in columns {
                put_cstr(body, &column.name);
                body.put_u32(0);
                body.put_u16(0);
                body.put_u32(column.type_oid);
                body.put_i16(column.type_size);
                body.put_i32(-1);
                body.put_u16(0);
            }
        });
    }

    /// One row; `None` is SQL null.
    pub fn data_row<V: AsRef<[u8]>>(&mut self, values: &[Option<V>]) {
        self.message(b'D', |body| {
            body.put_u16(values.len() as u16);
            for value in values {
                match value.as_ref().map(AsRef::as_ref) {
                    None => body.put_i32(-1),
                    Some(bytes) => {
                        body.put_u32(bytes.len() as u32);
                        body.put_slice(bytes);
                    }
                }
            }
        });
    }

    pub fn command_complete(&mut self, tag: &str) {
        self.message(b'C', |body| put_cstr(body, tag));
    }

    pub fn empty_query_response(&mut self) {
        self.message(b'I', |_| {});
    }

    pub fn error(&mut self, report: &Report) {
        self.report(b'E', report);
    }

    pub fn notice(&mut self, report: &Report) {
        self.report(b'N', report);
    }

    fn report(&mut self, tag: u8, report: &Report) {
        self.message(tag, |body| {
            for (kind, text) in report.fields() {
                body.put_u8(kind);
                put_cstr(body, text);
            }
            body.put_u8(0);
        });
    }

    pub fn copy_in_response(&mut self) {
        self.copy_response(b'G');
    }

    pub fn copy_out_response(&mut self) {
        self.copy_response(b'H');
    }

    pub fn copy_both_response(&mut self) {
        self.copy_response(b'W');
    }

    /// Text format, no columns: what walsender and base backup send.
    fn copy_response(&mut self, tag: u8) {
        self.message(tag, |body| {
            body.put_u8(0);
            body.put_u16(0);
        });
    }

    pub fn copy_data(&mut self, data: &[u8]) {
        self.message(b'd', |body| body.put_slice(data));
    }

    /// A CopyData whose payload `body` appends.
    pub fn copy_data_with(&mut self, body: impl FnOnce(&mut BytesMut)) {
        self.message(b'd', body);
    }

    pub fn copy_done(&mut self) {
        self.message(b'c', |_| {});
    }

    /// CopyData with raw WAL that starts at `start` (see [`replication::WalMessage::Data`]).
    pub fn wal_data(&mut self, start: Lsn, wal_end: Lsn, sent_at: PgTime, wal: &[u8]) {
        self.buffer.reserve(wal.len().saturating_add(64));
        self.copy_data_with(|body| {
            replication::put_wal_header(body, start, wal_end, sent_at);
            body.put_slice(wal);
        });
    }

    /// CopyData with a keepalive (see [`replication::WalMessage::Keepalive`]).
    pub fn wal_keepalive(&mut self, wal_end: Lsn, sent_at: PgTime, reply_requested: bool) {
        let message = replication::WalMessage::Keepalive { wal_end, sent_at, reply_requested };
        self.copy_data_with(|body| message.encode(body));
    }
}

/// Text with its NUL. Text of ours holds none; text of others is cut at the first.
fn put_cstr(body: &mut BytesMut, text: &str) {
    let until_nul = text.split('\0').next().unwrap_or_default();
    body.put_slice(until_nul.as_bytes());
    body.put_u8(0);
}
