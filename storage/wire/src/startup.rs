//! The first packet of a connection, server side (`ProcessStartupPacket`, `postmaster.c`; `libpq/pqcomm.h`).
//!
//! It has no tag: a 32-bit length that counts itself, a 32-bit code, then for a real start-up pairs of C strings ended by
//! an empty name. Parameters are kept as bytes: their encoding is not known yet.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{WireError, cursor::Cursor, startup_options::Options};

/// The longest packet a stock server reads (`MAX_STARTUP_PACKET_LENGTH`).
pub const PACKET_BYTES_MAX: u32 = 10_000;
/// The longest cancel secret of protocol 3.2; 3.0 has exactly 4 bytes.
pub const CANCEL_SECRET_BYTES_MAX: usize = 256;

const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;
const SSL_REQUEST: u32 = 1234 << 16 | 5679;
const GSSENC_REQUEST: u32 = 1234 << 16 | 5680;
const WHAT: &str = "startup packet";

/// What a client may open with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartupPacket {
    /// Answer one byte, `N` to refuse; the client then sends another packet.
    SslRequest,
    /// As [`StartupPacket::SslRequest`].
    GssEncRequest,
    /// Act and close without an answer.
    Cancel(CancelKey),
    Startup(StartupMessage),
}

/// Names a backend to cancel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CancelKey {
    pub pid: i32,
    pub secret: Bytes,
}

impl CancelKey {
    /// Appends the CancelRequest packet that names this backend.
    pub fn encode(&self, out: &mut BytesMut) {
        let length = self.secret.len().saturating_add(12);
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        out.put_u32(CANCEL_REQUEST);
        out.put_i32(self.pid);
        out.put_slice(&self.secret);
    }
}

/// A connection asked for, in protocol 3.x.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartupMessage {
    /// The minor protocol version; 0 nearly everywhere.
    pub minor: u16,
    /// In the order sent. Names may repeat: the last one counts.
    pub parameters: Vec<(Bytes, Bytes)>,
}

/// What the `replication` parameter asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicationMode {
    None,
    Physical,
    /// `replication=database`: logical.
    Database,
}

/// Cuts the first packet off `buffer`; `None` (buffer untouched) while it is incomplete.
///
/// # Errors
/// Lengths outside 8..=[`PACKET_BYTES_MAX`], major versions other than 3, malformed parameters.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<StartupPacket>, WireError> {
    let [a, b, c, d, ..] = **buffer else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    if !(8..=PACKET_BYTES_MAX).contains(&length) {
        return Err(WireError::StartupLength { length, length_max: PACKET_BYTES_MAX });
    }
    if buffer.len() < length as usize {
        return Ok(None);
    }
    let mut packet = buffer.split_to(length as usize).freeze();
    packet.advance(4);
    let mut cursor = Cursor::new(packet, WHAT);
    let code = cursor.u32()?;
    match code {
        SSL_REQUEST => cursor.end().map(|()| Some(StartupPacket::SslRequest)),
        GSSENC_REQUEST => cursor.end().map(|()| Some(StartupPacket::GssEncRequest)),
        CANCEL_REQUEST => parse_cancel(cursor).map(Some),
        version => parse_parameters(version, cursor).map(Some),
    }
}

fn parse_cancel(mut cursor: Cursor) -> Result<StartupPacket, WireError> {
    let pid = cursor.i32()?;
    let secret = cursor.rest();
    match secret.len() {
        0 => Err(WireError::Truncated { what: WHAT }),
        1..=CANCEL_SECRET_BYTES_MAX => Ok(StartupPacket::Cancel(CancelKey { pid, secret })),
        length => Err(WireError::Trailing {
            what: WHAT,
            bytes: length.saturating_sub(CANCEL_SECRET_BYTES_MAX),
        }),
    }
}

fn parse_parameters(version: u32, mut cursor: Cursor) -> Result<StartupPacket, WireError> {
    let (major, minor) = ((version >> 16) as u16, version as u16);
    if major != 3 {
        return Err(WireError::Version { major, minor });
    }
    let mut parameters = Vec::new();
    loop {
        let name = cursor.cstr()?;
        if name.is_empty() {
            break;
        }
        let value = cursor.cstr()?;
        parameters.push((name, value));
    }
    cursor.end()?;
    Ok(StartupPacket::Startup(StartupMessage { minor, parameters }))
}

impl StartupMessage {
    /// A 3.0 message from name and value pairs.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> StartupMessage {
        let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let parameters = parameters.into_iter().map(|(n, v)| (owned(n), owned(v))).collect();
        StartupMessage { minor: 0, parameters }
    }

    /// The raw value of a parameter.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        let named = |pair: &&(Bytes, Bytes)| pair.0 == name.as_bytes();
        self.parameters.iter().rev().find(named).map(|(_, value)| value)
    }

    /// A parameter as text; `None` when absent or not UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// Sets a parameter: replaced in place (repetitions removed), else appended.
    pub fn set(&mut self, name: &str, value: Bytes) {
        match self.parameters.iter().position(|pair| pair.0 == name.as_bytes()) {
            None => self.parameters.push((Bytes::copy_from_slice(name.as_bytes()), value)),
            Some(at) => {
                let mut value = Some(value);
                let mut index = 0usize;
                self.parameters.retain_mut(|pair| {
                    let here = index;
                    index = index.saturating_add(1);
                    if pair.0 != name.as_bytes() {
                        return true;
                    }
                    if here == at
                        && let Some(value) = value.take()
                    {
                        pair.1 = value;
                    }
                    here == at
                });
            }
        }
    }

    /// Removes every occurrence of a parameter.
    pub fn remove(&mut self, name: &str) {
        self.parameters.retain(|pair| pair.0 != name.as_bytes());
    }

    /// The settings in the `options` parameter; empty when there is none.
    pub fn options(&self) -> Options {
        self.get("options").map(|text| Options::parse(text)).unwrap_or_default()
    }

    /// What `replication` asks for: `database`, or a boolean in Postgres's spellings.
    ///
    /// # Errors
    /// [`WireError::NotText`] for any other value, which a stock server refuses as well.
    pub fn replication(&self) -> Result<ReplicationMode, WireError> {
        let Some(value) = self.get("replication") else { return Ok(ReplicationMode::None) };
        let lower = value.to_ascii_lowercase();
        if lower == b"database" {
            return Ok(ReplicationMode::Database);
        }
        match parse_bool(&lower) {
            Some(true) => Ok(ReplicationMode::Physical),
            Some(false) => Ok(ReplicationMode::None),
            None => Err(WireError::NotText { what: "replication parameter (not a boolean)" }),
        }
    }

    /// Appends the packet as it goes over the wire.
    ///
    /// # Errors
    /// [`WireError::StartupLength`] above [`PACKET_BYTES_MAX`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        let pairs = self.parameters.iter().map(|(n, v)| n.len().saturating_add(v.len()));
        let bytes = pairs.fold(9usize, |sum, pair| sum.saturating_add(pair).saturating_add(2));
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        if length > PACKET_BYTES_MAX {
            return Err(WireError::StartupLength { length, length_max: PACKET_BYTES_MAX });
        }
        out.put_u32(length);
        out.put_u16(3);
        out.put_u16(self.minor);
        for text in self.parameters.iter().flat_map(|(name, value)| [name, value]) {
            out.put_slice(text);
            out.put_u8(0);
        }
        out.put_u8(0);
        Ok(())
    }
}

/// `parse_bool` of `utils/adt/bool.c`: unique prefixes of the words, in lower case here.
fn parse_bool(lower: &[u8]) -> Option<bool> {
    let prefix_of = |word: &[u8], least: usize| lower.len() >= least && word.starts_with(lower);
    if prefix_of(b"true", 1) || prefix_of(b"yes", 1) || lower == b"on" || lower == b"1" {
        return Some(true);
    }
    let no = prefix_of(b"false", 1) || prefix_of(b"no", 1) || prefix_of(b"off", 2) || lower == b"0";
    no.then_some(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Option<StartupPacket>, WireError> {
        parse(&mut BytesMut::from(bytes))
    }

    #[test]
    fn requests() {
        assert_eq!(parsed(b"\0\0\0\x08\x04\xd2\x16\x2f"), Ok(Some(StartupPacket::SslRequest)));
        assert_eq!(parsed(b"\0\0\0\x08\x04\xd2\x16\x30"), Ok(Some(StartupPacket::GssEncRequest)));
        let key = CancelKey { pid: 77, secret: Bytes::from_static(b"abcd") };
        let mut out = BytesMut::new();
        key.encode(&mut out);
        assert_eq!(parsed(&out), Ok(Some(StartupPacket::Cancel(key))));
    }

    #[test]
    fn message_round_trip_and_every_cut() {
        let message =
            StartupMessage::new([("user", "u"), ("database", "d"), ("options", "-c a=b")]);
        let mut out = BytesMut::new();
        message.encode(&mut out).unwrap();
        for cut in 0..out.len() {
            assert_eq!(parsed(&out[..cut]), Ok(None));
        }
        assert_eq!(parsed(&out), Ok(Some(StartupPacket::Startup(message.clone()))));
        assert_eq!(message.text("user"), Some("u"));
        assert_eq!(message.options().get("a"), Some("b"));
    }

    #[test]
    fn refusals() {
        assert!(matches!(parsed(b"\0\0\0\x07"), Err(WireError::StartupLength { .. })));
        assert!(matches!(parsed(b"GET / HTTP/1.1"), Err(WireError::StartupLength { .. })));
        assert!(matches!(
            parsed(b"\0\0\0\x08\0\x02\0\0"),
            Err(WireError::Version { major: 2, .. })
        ));
        assert!(parsed(b"\0\0\0\x0b\0\x03\0\0use").is_err());
        let long = "x".repeat(10_000);
        assert!(StartupMessage::new([("user", &long[..])]).encode(&mut BytesMut::new()).is_err());
    }

    #[test]
    fn replication_spellings() {
        let mode = |value| StartupMessage::new([("replication", value)]).replication();
        for yes in ["true", "1", "on", "yes", "TRUE", "t", "y"] {
            assert_eq!(mode(yes), Ok(ReplicationMode::Physical), "{yes}");
        }
        for no in ["false", "0", "off", "no"] {
            assert_eq!(mode(no), Ok(ReplicationMode::None), "{no}");
        }
        assert_eq!(mode("database"), Ok(ReplicationMode::Database));
        assert!(mode("maybe").is_err() && mode("o").is_err() && mode("").is_err());
    }

    #[test]
    fn set_replaces_every_occurrence() {
        let mut message = StartupMessage::new([("user", "a"), ("x", "1"), ("user", "b")]);
        assert_eq!(message.text("user"), Some("b"));
        message.set("user", Bytes::from_static(b"c"));
        assert_eq!(message, StartupMessage::new([("user", "c"), ("x", "1")]));
        message.remove("x");
        assert_eq!(message.get("x"), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 8..200), fit: bool) {
            if fit {
                let length = (bytes.len() as u32).to_be_bytes();
                bytes[..4].copy_from_slice(&length);
                bytes[4..8].copy_from_slice(&[0, 3, 0, 0]);
            }
            if let Ok(Some(StartupPacket::Startup(message))) = parsed(&bytes) {
                let _ = (message.options(), message.replication());
                let mut out = BytesMut::new();
                message.encode(&mut out).unwrap();
                prop_assert_eq!(parsed(&out), Ok(Some(StartupPacket::Startup(message))));
            }
        }
    }
}
