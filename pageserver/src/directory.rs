//! What is stored at a `RelMap` key: a database directory's relation map, or that a directory exists without one.
//!
//! | key (tablespace, database) | value |
//! |---|---|
//! | (1664, 0) | the global `pg_filenode.map` |
//! | (spc, db) | the database's `pg_filenode.map`, or a bare directory until its map is logged |
//! | (spc, 0), spc above 1664 | a bare directory: the tablespace exists; its path follows |
//!
//! A bare directory is a zero byte and a path in UTF-8. No map begins with a zero byte: its magic is `17 27 59 00`.

use bytes::Bytes;
use treering_types::Key;

const BARE: u8 = 0;

/// One stored directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directory {
    /// The file `pg_filenode.map`, as it is on disk.
    Mapped(Bytes),
    /// No map. `path` is where a tablespace was made; empty for databases and in-place tablespaces.
    Bare { path: String },
}

impl Directory {
    pub fn encode(&self) -> Bytes {
        match self {
            Directory::Mapped(file) => file.clone(),
            Directory::Bare { path } => {
                let mut out = vec![BARE];
                out.extend_from_slice(path.as_bytes());
                out.into()
            }
        }
    }

    /// Total: whatever is no bare directory is a map, and maps are checked where they are read.
    pub fn decode(bytes: &Bytes) -> Directory {
        match bytes.split_first() {
            Some((&BARE, path)) => {
                Directory::Bare { path: String::from_utf8_lossy(path).into_owned() }
            }
            _ => Directory::Mapped(bytes.clone()),
        }
    }
}

/// The key that says that a tablespace exists.
pub fn tablespace_key(tablespace: u32) -> Key {
    Key::rel_map(tablespace, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let map = Directory::Mapped(Bytes::from_static(&[0x17, 0x27, 0x59, 0, 1]));
        for directory in
            [map, Directory::Bare { path: String::new() }, Directory::Bare { path: "/x".into() }]
        {
            assert_eq!(Directory::decode(&directory.encode()), directory);
        }
    }
}
