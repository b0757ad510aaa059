//! Messages from a server: writing them ([`Writer`]), reading them ([`Message`]), and the report that errors and notices
//! share ([`Report`]).

mod message;
mod report;
mod writer;

pub use message::{Authentication, Column, Message, TransactionStatus, parse};
pub use report::{Report, Severity, field, sqlstate};
pub use writer::Writer;

/// Type oids of the columns our services answer with (`catalog/pg_type.dat`).
pub mod oid {
    pub const BYTEA: u32 = 17;
    pub const INT8: u32 = 20;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
}
