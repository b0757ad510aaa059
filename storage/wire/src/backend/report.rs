//! The fields that ErrorResponse and NoticeResponse carry (Postgres documentation, "Error and Notice Message Fields").

use std::fmt;

use bytes::Bytes;

use crate::{WireError, cursor::Cursor};

/// SQLSTATEs we send (`utils/errcodes.txt`).
pub mod sqlstate {
    pub const WARNING: &str = "01000";
    pub const CONNECTION_FAILURE: &str = "08006";
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub const INVALID_AUTHORIZATION: &str = "28000";
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    pub const SYNTAX_ERROR: &str = "42601";
    pub const UNDEFINED_OBJECT: &str = "42704";
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    pub const IO_ERROR: &str = "58030";
    pub const UNDEFINED_FILE: &str = "58P01";
    pub const INTERNAL_ERROR: &str = "XX000";
    pub const DATA_CORRUPTED: &str = "XX001";
}

/// Field types, one byte each on the wire.
pub mod field {
    pub const SEVERITY: u8 = b'S';
    /// Severity, never translated.
    pub const SEVERITY_CODE: u8 = b'V';
    pub const SQLSTATE: u8 = b'C';
    pub const MESSAGE: u8 = b'M';
    pub const DETAIL: u8 = b'D';
    pub const HINT: u8 = b'H';
    /// The C function that reported it: never translated.
    pub const ROUTINE: u8 = b'R';
}

/// How bad it is. After `Fatal` the server closes the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    Error,
    Fatal,
    Warning,
    Notice,
}

impl Severity {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// An error or notice: its fields in order, each a type byte and text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    fields: Vec<(u8, String)>,
}

impl Report {
    /// A report of ours, with the three fields every report must have.
    pub fn new(severity: Severity, sqlstate: &str, message: impl Into<String>) -> Report {
        Report::default()
            .with(field::SEVERITY, severity.as_str())
            .with(field::SEVERITY_CODE, severity.as_str())
            .with(field::SQLSTATE, sqlstate)
            .with(field::MESSAGE, message)
    }

    /// [`Report::new`] with [`Severity::Error`].
    pub fn error(sqlstate: &str, message: impl Into<String>) -> Report {
        Report::new(Severity::Error, sqlstate, message)
    }

    /// [`Report::new`] with [`Severity::Fatal`].
    pub fn fatal(sqlstate: &str, message: impl Into<String>) -> Report {
        Report::new(Severity::Fatal, sqlstate, message)
    }

    /// Adds a field. A NUL in the text is replaced: it would end the field early.
    pub fn with(mut self, kind: u8, text: impl Into<String>) -> Report {
        let text: String = text.into();
        let text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
        self.fields.push((kind, text));
        self
    }

    pub fn detail(self, text: impl Into<String>) -> Report {
        self.with(field::DETAIL, text)
    }

    pub fn hint(self, text: impl Into<String>) -> Report {
        self.with(field::HINT, text)
    }

    /// The text of a field, by its type byte (see [`field`]).
    pub fn get(&self, kind: u8) -> Option<&str> {
        self.fields.iter().find(|(found, _)| *found == kind).map(|(_, text)| text.as_str())
    }

    /// Five characters; empty when the sender left it out.
    pub fn sqlstate(&self) -> &str {
        self.get(field::SQLSTATE).unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.get(field::MESSAGE).unwrap_or_default()
    }

    /// The C function that reported it.
    pub fn routine(&self) -> Option<&str> {
        self.get(field::ROUTINE)
    }

    /// Every field in order.
    pub fn fields(&self) -> impl Iterator<Item = (u8, &str)> {
        self.fields.iter().map(|(kind, text)| (*kind, text.as_str()))
    }

    /// Reads the body of an ErrorResponse or NoticeResponse. Text in another encoding is replaced where it is
    /// not UTF-8: it is for people.
    ///
    /// # Errors
    /// A field or the list without its end.
    pub fn parse(body: Bytes) -> Result<Report, WireError> {
        let mut cursor = Cursor::new(body, "error or notice");
        let mut report = Report::default();
        loop {
            match cursor.u8()? {
                0 => return cursor.end().map(|()| report),
                kind => {
                    let text = cursor.cstr()?;
                    report.fields.push((kind, String::from_utf8_lossy(&text).into_owned()));
                }
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.get(field::SEVERITY_CODE).or_else(|| self.get(field::SEVERITY));
        write!(f, "{} {}: {}", severity.unwrap_or("?"), self.sqlstate(), self.message())?;
        match self.get(field::DETAIL) {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}
