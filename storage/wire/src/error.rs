//! What can be wrong with bytes from a peer.

use treering_types::ErrorKind;

/// Bytes that break the protocol. The connection they came on cannot be used further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("message {} declares {length} bytes, which no message can have", tag_name(*.tag))]
    BadLength { tag: u8, length: u32 },
    #[error("message {} of {bytes} bytes exceeds the limit of {bytes_max}", tag_name(*.tag))]
    TooLong { tag: u8, bytes: usize, bytes_max: usize },
    #[error("{what} ends too early")]
    Truncated { what: &'static str },
    #[error("{what} has {bytes} bytes too many")]
    Trailing { what: &'static str, bytes: usize },
    #[error("{what} is not UTF-8 text")]
    NotText { what: &'static str },
    #[error("{what} has the unknown type {}", tag_name(*.tag))]
    UnknownTag { what: &'static str, tag: u8 },
    #[error("{what} holds the invalid value {value}")]
    BadValue { what: &'static str, value: i64 },
    #[error("protocol version {major}.{minor} is not supported, only 3.x is")]
    Version { major: u16, minor: u16 },
    #[error("startup packet of {length} bytes, expected 8 to {length_max}")]
    StartupLength { length: u32, length_max: u32 },
}

impl WireError {
    /// Always [`ErrorKind::Invalid`]: the peer speaks something else.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

fn tag_name(tag: u8) -> String {
    match tag.is_ascii_graphic() {
        true => format!("'{}'", tag as char),
        false => format!("0x{tag:02x}"),
    }
}
