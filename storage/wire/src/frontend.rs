//! Messages from a client, as a server of ours reads them. Building them is `postgres-protocol`'s.

use bytes::Bytes;

use crate::{
    WireError,
    cursor::{Cursor, text_of},
    frame::Frame,
};

/// One message from a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Query(String),
    CopyData(Bytes),
    CopyDone,
    CopyFail(String),
    /// Any answer to an authentication request: a password or a step of SASL.
    Password(Bytes),
    Sync,
    Flush,
    Terminate,
    /// A message of the extended query protocol or a function call, which our services do not speak; its tag.
    Other(u8),
}

impl Message {
    /// # Errors
    /// A body that does not fit its tag.
    pub fn parse(frame: Frame) -> Result<Message, WireError> {
        let Frame { tag, body } = frame;
        Ok(match tag {
            b'Q' => Message::Query(only_text(body, "Query")?),
            b'd' => Message::CopyData(body),
            b'c' => Message::CopyDone,
            b'f' => Message::CopyFail(lossy(&body)),
            b'p' => Message::Password(body),
            b'S' => Message::Sync,
            b'H' => Message::Flush,
            b'X' => Message::Terminate,
            b'P' | b'B' | b'E' | b'D' | b'C' | b'F' => Message::Other(tag),
            _ => return Err(WireError::UnknownTag { what: "client message", tag }),
        })
    }
}

fn only_text(body: Bytes, what: &'static str) -> Result<String, WireError> {
    let mut cursor = Cursor::new(body, what);
    let bytes = cursor.cstr()?;
    cursor.end()?;
    text_of(&bytes, what)
}

/// A reason to log, never to act on: any bytes will do.
fn lossy(body: &[u8]) -> String {
    String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)).into_owned()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::message::frontend;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::next_frame;

    fn parsed(mut bytes: BytesMut) -> Result<Message, WireError> {
        Message::parse(next_frame(&mut bytes, 1000).unwrap().unwrap())
    }

    #[test]
    fn what_postgres_protocol_builds() {
        let mut out = BytesMut::new();
        frontend::query("SELECT 1", &mut out).unwrap();
        assert_eq!(parsed(out), Ok(Message::Query("SELECT 1".into())));
        let mut out = BytesMut::new();
        frontend::copy_fail("why", &mut out).unwrap();
        assert_eq!(parsed(out), Ok(Message::CopyFail("why".into())));
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        assert_eq!(parsed(out), Ok(Message::Terminate));
    }

    #[test]
    fn a_query_needs_its_end() {
        let frame = Frame { tag: b'Q', body: Bytes::from_static(b"SELECT 1") };
        assert!(Message::parse(frame).is_err());
        let frame = Frame { tag: b'Q', body: Bytes::from_static(b"SELECT\0 1\0") };
        assert!(matches!(Message::parse(frame), Err(WireError::Trailing { bytes: 3, .. })));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(tag: u8, body in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = Message::parse(Frame { tag, body: body.into() });
        }
    }
}
