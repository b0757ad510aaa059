//! The simulated log's records, as little like WAL as will do: length, term, serial number, check sum, filling.
//!
//! ```text
//! 0      1      2        4         8
//! +------+------+--------+---------+-----------
//! | len  | term | serial | check   | filling     len is 8, 16 or 24: few sizes, so that records of two logs
//! +------+------+--------+---------+-----------  often end at the same places
//! ```

/// Where every log begins.
pub const START: u64 = 1000;

pub fn record(term: u64, serial: u16, eights: usize) -> Vec<u8> {
    let len = 8 * (eights as u8 % 3 + 1);
    let mut record = vec![len, term as u8];
    record.extend(serial.to_le_bytes());
    record.extend([0; 4]);
    record.resize(len.into(), 1 + serial as u8 % 200);
    let check = check_of(&record).to_le_bytes();
    record[4..8].copy_from_slice(&check);
    record
}

/// FNV-1a over all but the check sum itself.
fn check_of(record: &[u8]) -> u32 {
    let bytes = record[..4].iter().chain(&record[8..]);
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// How long a prefix of `log` is made of whole records.
pub fn whole_records(log: &[u8]) -> usize {
    let mut end = 0;
    while let Some(len) = log.get(end).map(|len| usize::from(*len)) {
        let Some(record) = log.get(end..end + len) else { break };
        if ![8, 16, 24].contains(&len) || record[4..8] != check_of(record).to_le_bytes() {
            break;
        }
        end += len;
    }
    end
}
