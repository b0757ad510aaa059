//! Physical replication: the commands on a walsender connection ([`Command`]) and what travels as CopyData once a stream has
//! started ([`WalMessage`] from the server, [`StandbyMessage`] from the receiver).
//!
//! Sources: Postgres documentation, "Streaming Replication Protocol"; `repl_gram.y`, `repl_scanner.l`.

mod command;
mod stream;

pub use command::{Command, CommandError, SlotKind};
pub use stream::{StandbyMessage, WAL_DATA_BYTES_MAX, WAL_HEADER_SIZE, WalMessage, put_wal_header};
