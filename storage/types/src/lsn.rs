//! Positions in the write-ahead log.

use std::{fmt, ops::Add, str::FromStr};

use serde::{Deserialize, Serialize, de};

/// Bytes in one WAL page (`XLOG_BLCKSZ`, `pg_config.h`).
pub const WAL_PAGE_SIZE: u64 = 8192;
/// Bytes in one WAL segment file: Postgres's default of 16 MiB, the only size Treering creates.
pub const WAL_SEGMENT_SIZE: u64 = 16 * 1024 * 1024;

/// A byte position in the WAL (`XLogRecPtr`, `access/xlogdefs.h`).
///
/// A record is stamped with its **end**: the position after its last byte, rounded up to 8. Text form is
/// Postgres's own, `X/X` in upper-case hexadecimal without leading zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position (`InvalidXLogRecPtr`).
    pub const INVALID: Lsn = Lsn(0);
    /// Above every real position.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// True for every position but zero.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Rounded up to the 8-byte boundary at which WAL records start (`MAXALIGN`).
    pub const fn align_up(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// First byte of the WAL page that holds this position.
    pub const fn page_start(self) -> Lsn {
        Lsn(self.0 - self.0 % WAL_PAGE_SIZE)
    }

    /// Offset within the WAL page, `0..8192`.
    pub const fn page_offset(self) -> usize {
        (self.0 % WAL_PAGE_SIZE) as usize
    }

    /// First byte of the WAL segment that holds this position.
    pub const fn segment_start(self) -> Lsn {
        Lsn(self.0 - self.0 % WAL_SEGMENT_SIZE)
    }

    /// Number of the WAL segment that holds this position.
    pub const fn segment_number(self) -> u64 {
        self.0 / WAL_SEGMENT_SIZE
    }

    /// Offset within the WAL segment.
    pub const fn segment_offset(self) -> u64 {
        self.0 % WAL_SEGMENT_SIZE
    }

    /// Bytes from `earlier` to here; `None` when `earlier` is later.
    pub const fn bytes_since(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// The file name of the segment that holds this position: `TTTTTTTTXXXXXXXXYYYYYYYY`
    /// (`XLogFileName`, `access/xlog_internal.h`).
    pub fn segment_file_name(self, pg_tli: u32) -> String {
        let per_id = 0x1_0000_0000 / WAL_SEGMENT_SIZE;
        let number = self.segment_number();
        format!("{pg_tli:08X}{:08X}{:08X}", number / per_id, number % per_id)
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN: expected two hexadecimal numbers as in 0/16B3748")]
pub struct LsnError(pub String);

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(text: &str) -> Result<Lsn, LsnError> {
        let bad = || LsnError(text.to_owned());
        let half = |part: &str| {
            let digits =
                (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let high = half(high).ok_or_else(bad)?;
        let low = half(low).ok_or_else(bad)?;
        Ok(Lsn(high << 32 | low))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A half-open range of log positions: `start <= lsn < end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LsnRange {
    pub start: Lsn,
    pub end: Lsn,
}

impl LsnRange {
    /// True when `lsn` lies in the range.
    pub fn contains(&self, lsn: Lsn) -> bool {
        self.start <= lsn && lsn < self.end
    }

    /// True when no position lies in the range.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for (value, text) in [(0, "0/0"), (0x16B3748, "0/16B3748"), (0x7_018A_3FC0, "7/18A3FC0")] {
            assert_eq!(Lsn(value).to_string(), text);
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn(value)));
        }
        for bad in ["", "0", "/", "0/", "x/1", "0/123456789", "-1/0", "+1/0", "0/1/2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn segment_names() {
        assert_eq!(Lsn(0x0200_0028).segment_file_name(1), "000000010000000000000002");
        assert_eq!(Lsn(0x7_018A_3FC0).segment_file_name(2), "000000020000000700000001");
    }

    #[test]
    fn alignment() {
        assert_eq!(Lsn(1).align_up(), Lsn(8));
        assert_eq!(Lsn(8).align_up(), Lsn(8));
        assert_eq!(Lsn(8193).page_start(), Lsn(8192));
        assert_eq!(Lsn(8193).page_offset(), 1);
    }
}
