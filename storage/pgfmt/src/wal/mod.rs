//! The write-ahead log: bytes to records, records to effects, and the one record we write ourselves.

pub mod effects;
pub mod encode;
pub mod ends;
pub mod error;
pub mod image;
pub mod page_header;
pub mod pieces;
pub mod reader;
pub mod record;
pub mod state;
