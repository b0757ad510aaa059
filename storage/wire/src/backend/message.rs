//! Reading what a server sends.

use bytes::Bytes;

use super::{Report, oid};
use crate::{WireError, cursor::Cursor, frame::Frame, startup::CancelKey};

/// The most columns a result of Postgres has (`MaxTupleAttributeNumber`): bounds what a row may make us allocate.
const COLUMNS_MAX: u16 = 1664;

/// One message from a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Authentication(Authentication),
    ParameterStatus {
        name: String,
        value: String,
    },
    BackendKeyData(CancelKey),
    ReadyForQuery(TransactionStatus),
    RowDescription(Vec<Column>),
    /// `None` is SQL null.
    DataRow(Vec<Option<Bytes>>),
    /// The command tag.
    CommandComplete(String),
    EmptyQueryResponse,
    ErrorResponse(Report),
    NoticeResponse(Report),
    CopyInResponse,
    CopyOutResponse,
    CopyBothResponse,
    CopyData(Bytes),
    CopyDone,
    /// The newest minor version the server speaks.
    NegotiateProtocolVersion {
        minor: u16,
    },
    /// One of the extended query protocol, or an asynchronous notification; its tag.
    Other(u8),
}

/// What an authentication message asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authentication {
    Ok,
    CleartextPassword,
    Md5Password {
        salt: [u8; 4],
    },
    /// The mechanisms on offer, best first.
    Sasl(Vec<String>),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    /// Kerberos, GSS, SSPI: its number.
    Other(u32),
}

/// The state that ReadyForQuery announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    Failed,
}

impl TransactionStatus {
    pub(super) const fn byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// A column of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// As `pg_type.typlen`: -1 for variable length.
    pub type_size: i16,
}

impl Column {
    /// A column with the size that belongs to one of the types in [`oid`].
    pub fn new(name: impl Into<String>, type_oid: u32) -> Column {
        let type_size = match type_oid {
            oid::INT4 | oid::OID => 4,
            oid::INT8 => 8,
            _ => -1,
        };
        Column { name: name.into(), type_oid, type_size }
    }

    pub fn text(name: impl Into<String>) -> Column {
        Column::new(name, oid::TEXT)
    }
}

/// Reads one message.
///
/// # Errors
/// A body that does not fit its tag, or a tag that no server sends.
pub fn parse(frame: Frame) -> Result<Message, WireError> {
    let Frame { tag, body } = frame;
    Ok(match tag {
        b'd' => Message::CopyData(body),
        b'D' => Message::DataRow(data_row(body)?),
        b'R' => Message::Authentication(authentication(body)?),
        b'S' => parameter_status(body)?,
        b'K' => backend_key(body)?,
        b'Z' => Message::ReadyForQuery(transaction_status(body)?),
        b'T' => Message::RowDescription(row_description(body)?),
        b'C' => Message::CommandComplete(Cursor::new(body, "CommandComplete").text()?),
        b'I' => Message::EmptyQueryResponse,
        b'E' => Message::ErrorResponse(Report::parse(body)?),
        b'N' => Message::NoticeResponse(Report::parse(body)?),
        b'G' => Message::CopyInResponse,
        b'H' => Message::CopyOutResponse,
        b'W' => Message::CopyBothResponse,
        b'c' => Message::CopyDone,
        b'v' => negotiate(body)?,
        b'1' | b'2' | b'3' | b'n' | b's' | b't' | b'A' | b'V' => Message::Other(tag),
        _ => return Err(WireError::UnknownTag { what: "server message", tag }),
    })
}

fn authentication(body: Bytes) -> Result<Authentication, WireError> {
    let mut cursor = Cursor::new(body, "authentication request");
    Ok(match cursor.u32()? {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => Authentication::Md5Password {
            salt: [cursor.u8()?, cursor.u8()?, cursor.u8()?, cursor.u8()?],
        },
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let name = cursor.text()?;
                if name.is_empty() {
                    break;
                }
                mechanisms.push(name);
            }
            Authentication::Sasl(mechanisms)
        }
        11 => Authentication::SaslContinue(cursor.rest()),
        12 => Authentication::SaslFinal(cursor.rest()),
        other => Authentication::Other(other),
    })
}

fn parameter_status(body: Bytes) -> Result<Message, WireError> {
    let mut cursor = Cursor::new(body, "ParameterStatus");
    let message = Message::ParameterStatus { name: cursor.text()?, value: cursor.text()? };
    cursor.end().map(|()| message)
}

fn backend_key(body: Bytes) -> Result<Message, WireError> {
    let mut cursor = Cursor::new(body, "BackendKeyData");
    Ok(Message::BackendKeyData(CancelKey { pid: cursor.i32()?, secret: cursor.rest() }))
}

fn transaction_status(body: Bytes) -> Result<TransactionStatus, WireError> {
    let mut cursor = Cursor::new(body, "ReadyForQuery");
    let status = match cursor.u8()? {
        b'I' => TransactionStatus::Idle,
        b'T' => TransactionStatus::InTransaction,
        b'E' => TransactionStatus::Failed,
        other => {
            return Err(WireError::BadValue { what: "ReadyForQuery", value: other.into() });
        }
    };
    cursor.end().map(|()| status)
}

fn column_count(cursor: &mut Cursor, what: &'static str) -> Result<u16, WireError> {
    match cursor.u16()? {
        count @ 0..=COLUMNS_MAX => Ok(count),
        count => Err(WireError::BadValue { what, value: count.into() }),
    }
}

fn row_description(body: Bytes) -> Result<Vec<Column>, WireError> {
    let mut cursor = Cursor::new(body, "RowDescription");
    let count = column_count(&mut cursor, "RowDescription")?;
    let mut columns = Vec::with_capacity(count.into());
    for _ in 0..count {
        let name = cursor.text()?;
        cursor.take(6)?;
        let (type_oid, type_size) = (cursor.u32()?, cursor.u16()? as i16);
        cursor.take(6)?;
        columns.push(Column { name, type_oid, type_size });
    }
    cursor.end().map(|()| columns)
}

fn data_row(body: Bytes) -> Result<Vec<Option<Bytes>>, WireError> {
    let mut cursor = Cursor::new(body, "DataRow");
    let count = column_count(&mut cursor, "DataRow")?;
    let mut values = Vec::with_capacity(count.into());
    for _ in 0..count {
        values.push(match cursor.i32()? {
            -1 => None,
            bytes => {
                let bad = |_| WireError::BadValue { what: "DataRow", value: bytes.into() };
                Some(cursor.take(usize::try_from(bytes).map_err(bad)?)?)
            }
        });
    }
    cursor.end().map(|()| values)
}

fn negotiate(body: Bytes) -> Result<Message, WireError> {
    let version = Cursor::new(body, "NegotiateProtocolVersion").u32()?;
    Ok(Message::NegotiateProtocolVersion { minor: version as u16 })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        backend::{Severity, Writer, field, sqlstate},
        frame::next_frame,
    };

    fn parsed(build: impl FnOnce(&mut Writer)) -> Message {
        let mut out = Writer::new();
        build(&mut out);
        let mut bytes = BytesMut::from(&out.take()[..]);
        let message = parse(next_frame(&mut bytes, 1 << 20).unwrap().unwrap()).unwrap();
        assert!(bytes.is_empty());
        message
    }

    #[test]
    fn what_is_written_is_read() {
        let columns = vec![Column::text("a"), Column::new("b", oid::INT8)];
        assert_eq!(parsed(|out| out.row_description(&columns)), Message::RowDescription(columns));
        let row = vec![Some(Bytes::from_static(b"x")), None, Some(Bytes::new())];
        assert_eq!(parsed(|out| out.data_row(&row)), Message::DataRow(row));
        let key = CancelKey { pid: -3, secret: Bytes::from_static(b"0123") };
        assert_eq!(parsed(|out| out.backend_key_data(&key)), Message::BackendKeyData(key));
        assert_eq!(
            parsed(|out| out.ready_for_query_in(TransactionStatus::Failed)),
            Message::ReadyForQuery(TransactionStatus::Failed)
        );
        assert_eq!(
            parsed(|out| out.command_complete("SELECT 1")),
            Message::CommandComplete("SELECT 1".into())
        );
        assert_eq!(parsed(Writer::copy_both_response), Message::CopyBothResponse);
        assert_eq!(
            parsed(|out| out.negotiate_protocol_version(&["_pq_.x"])),
            Message::NegotiateProtocolVersion { minor: 0 }
        );
    }

    #[test]
    fn reports_keep_their_fields() {
        let report = Report::new(Severity::Warning, sqlstate::WARNING, "a\0b")
            .detail("d")
            .with(field::ROUTINE, "SyncRepWaitForLSN");
        let Message::NoticeResponse(back) = parsed(|out| out.notice(&report)) else { panic!() };
        assert_eq!(back, report);
        assert_eq!((back.message(), back.sqlstate()), ("a\u{fffd}b", "01000"));
        assert_eq!(back.routine(), Some("SyncRepWaitForLSN"));
        assert_eq!(back.to_string(), "WARNING 01000: a\u{fffd}b (d)");
    }

    #[test]
    fn postgres_protocol_agrees() {
        use postgres_protocol::message::backend;
        let mut out = Writer::new();
        out.session_start("15.18", &CancelKey { pid: 1, secret: Bytes::from_static(b"abcd") });
        out.error(&Report::error(sqlstate::SYNTAX_ERROR, "no"));
        let mut bytes = BytesMut::from(&out.take()[..]);
        let mut count = 0;
        while let Some(message) = backend::Message::parse(&mut bytes).unwrap() {
            count += 1;
            if let backend::Message::BackendKeyData(key) = message {
                assert_eq!(key.process_id(), 1);
            }
        }
        assert_eq!((count, bytes.len()), (10, 0));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            tag in prop::sample::select(b"dDRSKZTCIENGHWcv12A?".to_vec()),
            body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = parse(Frame { tag, body: body.into() });
        }
    }
}
