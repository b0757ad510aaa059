//! `global/pg_control` and the `CheckPoint` in it (`catalog/pg_control.h`).
//!
//! The struct is kept as bytes and read and changed field by field, so that whatever a file holds beyond the fields
//! named here survives. Offsets are those of 64-bit little-endian builds; only the end differs between majors:
//!
//! ```text
//!   0 system_identifier u64      128 unloggedLSN u64            172 wal_level i32
//!   8 pg_control_version u32     136 minRecoveryPoint u64       176 wal_log_hints bool
//!  12 catalog_version_no u32     144 minRecoveryPointTLI u32    180 MaxConnections i32, 184 max_worker_processes,
//!  16 state i32                  152 backupStartPoint u64       188 max_wal_senders, 192 max_prepared_xacts,
//!  24 time i64 (Unix seconds)    160 backupEndPoint u64         196 max_locks_per_xact
//!  32 checkPoint u64             168 backupEndRequired bool     200 track_commit_timestamp bool
//!  40 checkPointCopy, 88 bytes   204 maxAlign .. 244 sizes      252 data_checksum_version u32
//! 256 mock_authentication_nonce, 32 bytes, then CRC-32C at 288 (15, 16, 17)
//! 256 default_char_signedness bool, 257 nonce, then CRC-32C at 292 (18)
//! ```
//!
//! The CRC covers everything before it. The file is 8192 bytes, zeros behind the CRC.

use treering_types::{ErrorKind, Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use crate::{
    crc::crc32c,
    le::{array_at, i64_at, u8_at, u32_at, u64_at},
    version::PgMajor,
    wal::encode::CHECKPOINT_SIZE,
};

/// Bytes of the file (`PG_CONTROL_FILE_SIZE`).
pub const CONTROL_FILE_SIZE: usize = 8192;
/// The file's path below the data directory.
pub const CONTROL_FILE_PATH: &str = "global/pg_control";

const STATE: usize = 16;
const TIME: usize = 24;
const CHECKPOINT: usize = 32;
const CHECKPOINT_COPY: usize = 40;
const UNLOGGED_LSN: usize = 128;
const MIN_RECOVERY_POINT: usize = 136;
const MIN_RECOVERY_POINT_TLI: usize = 144;
const BACKUP_START: usize = 152;
const BACKUP_END: usize = 160;
const BACKUP_END_REQUIRED: usize = 168;
const WAL_LEVEL: usize = 172;
const WAL_LOG_HINTS: usize = 176;
const MAX_CONNECTIONS: usize = 180;
const MAX_WORKER_PROCESSES: usize = 184;
const MAX_WAL_SENDERS: usize = 188;
const MAX_PREPARED_XACTS: usize = 192;
const MAX_LOCKS_PER_XACT: usize = 196;
const TRACK_COMMIT_TIMESTAMP: usize = 200;
const BLOCK_SIZE: usize = 216;
const RELATION_SEGMENT_BLOCKS: usize = 220;
const WAL_BLOCK_SIZE: usize = 224;
const SEGMENT_SIZE: usize = 228;
const CHECKSUM_VERSION: usize = 252;
const NONCE_SIZE: usize = 32;

/// Bytes that are no `pg_control` we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("pg_control of {0} bytes")]
    Size(usize),
    #[error(
        "pg_control has format {control} and catalog version {catalog}, which is none of 15 to 18"
    )]
    Version { control: u32, catalog: u32 },
    #[error("pg_control fails its checksum")]
    Checksum,
    #[error("the cluster's {what} is {found}; only {expected} is supported")]
    BuildSize { what: &'static str, found: u32, expected: u32 },
    #[error("cluster state {0} is unknown")]
    State(u32),
}

impl ControlError {
    /// Damage, or a cluster that is not for us.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ControlError::Size(_) | ControlError::Checksum | ControlError::State(_) => {
                ErrorKind::Corrupt
            }
            ControlError::Version { .. } | ControlError::BuildSize { .. } => ErrorKind::Invalid,
        }
    }
}

/// `DBState`: what the server last said about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ClusterStatus {
    Starting = 0,
    /// Shut down cleanly: a start at the checkpoint needs no recovery.
    ShutDown = 1,
    ShutDownInRecovery = 2,
    ShuttingDown = 3,
    InCrashRecovery = 4,
    InArchiveRecovery = 5,
    InProduction = 6,
}

impl ClusterStatus {
    const ALL: [ClusterStatus; 7] = [
        ClusterStatus::Starting,
        ClusterStatus::ShutDown,
        ClusterStatus::ShutDownInRecovery,
        ClusterStatus::ShuttingDown,
        ClusterStatus::InCrashRecovery,
        ClusterStatus::InArchiveRecovery,
        ClusterStatus::InProduction,
    ];
}

/// The payload of a checkpoint record: 88 bytes in every major.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckPoint {
    pub redo: Lsn,
    pub this_tli: u32,
    pub prev_tli: u32,
    pub full_page_writes: bool,
    /// From 17 on; 0 before, where the bytes are padding.
    pub wal_level: u32,
    /// Epoch in the high half.
    pub next_xid: u64,
    pub next_oid: u32,
    pub next_multi: u32,
    pub next_multi_offset: u32,
    pub oldest_xid: u32,
    pub oldest_xid_db: u32,
    pub oldest_multi: u32,
    pub oldest_multi_db: u32,
    /// Seconds since 1970.
    pub time: i64,
    pub oldest_commit_ts_xid: u32,
    pub newest_commit_ts_xid: u32,
    /// 0 in a shutdown checkpoint.
    pub oldest_active_xid: u32,
}

impl CheckPoint {
    /// Reads the first 88 bytes; `None` if there are fewer.
    pub fn decode(major: PgMajor, bytes: &[u8]) -> Option<CheckPoint> {
        let bytes: [u8; CHECKPOINT_SIZE] = array_at(bytes, 0)?;
        let has_wal_level = major.layout().checkpoint_has_wal_level;
        Some(CheckPoint {
            redo: Lsn(u64_at(&bytes, 0)?),
            this_tli: u32_at(&bytes, 8)?,
            prev_tli: u32_at(&bytes, 12)?,
            full_page_writes: u8_at(&bytes, 16)? != 0,
            wal_level: if has_wal_level { u32_at(&bytes, 20)? } else { 0 },
            next_xid: u64_at(&bytes, 24)?,
            next_oid: u32_at(&bytes, 32)?,
            next_multi: u32_at(&bytes, 36)?,
            next_multi_offset: u32_at(&bytes, 40)?,
            oldest_xid: u32_at(&bytes, 44)?,
            oldest_xid_db: u32_at(&bytes, 48)?,
            oldest_multi: u32_at(&bytes, 52)?,
            oldest_multi_db: u32_at(&bytes, 56)?,
            time: i64_at(&bytes, 64)?,
            oldest_commit_ts_xid: u32_at(&bytes, 72)?,
            newest_commit_ts_xid: u32_at(&bytes, 76)?,
            oldest_active_xid: u32_at(&bytes, 80)?,
        })
    }

    /// The 88 bytes. `wal_level` must be 0 before 17, so that padding is zero as the server writes it.
    pub fn encode(&self) -> [u8; CHECKPOINT_SIZE] {
        let mut out = [0; CHECKPOINT_SIZE];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.redo.0.to_le_bytes());
        put(16, &[u8::from(self.full_page_writes)]);
        put(24, &self.next_xid.to_le_bytes());
        put(64, &self.time.to_le_bytes());
        for (at, value) in [
            (8, self.this_tli),
            (12, self.prev_tli),
            (20, self.wal_level),
            (32, self.next_oid),
            (36, self.next_multi),
            (40, self.next_multi_offset),
            (44, self.oldest_xid),
            (48, self.oldest_xid_db),
            (52, self.oldest_multi),
            (56, self.oldest_multi_db),
            (72, self.oldest_commit_ts_xid),
            (76, self.newest_commit_ts_xid),
            (80, self.oldest_active_xid),
        ] {
            put(at, &value.to_le_bytes());
        }
        out
    }
}

/// A `pg_control` file that passed its checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    major: PgMajor,
    bytes: Box<[u8; CONTROL_FILE_SIZE]>,
}

impl ControlFile {
    /// Reads a file (8192 bytes; only the struct counts) and finds out its major.
    ///
    /// # Errors
    /// [`ControlError`]: unknown version, wrong CRC, a build with other block or segment sizes than Postgres's
    /// defaults, an unknown state.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        let bytes =
            array_at::<CONTROL_FILE_SIZE>(bytes, 0).ok_or(ControlError::Size(bytes.len()))?;
        let control = u32_at(&bytes, 8).unwrap_or(0);
        let catalog = u32_at(&bytes, 12).unwrap_or(0);
        let major = PgMajor::ALL
            .into_iter()
            .find(|major| {
                let layout = major.layout();
                (layout.control_version, layout.catalog_version) == (control, catalog)
            })
            .ok_or(ControlError::Version { control, catalog })?;
        let file = ControlFile { major, bytes: Box::new(bytes) };
        let crc_offset = major.layout().control_crc_offset;
        if file.u32(crc_offset) != file.crc() {
            return Err(ControlError::Checksum);
        }
        file.check_sizes()?;
        file.state_of()?;
        Ok(file)
    }

    fn check_sizes(&self) -> Result<(), ControlError> {
        for (what, at, expected) in [
            ("block size", BLOCK_SIZE, 8192),
            ("relation segment size", RELATION_SEGMENT_BLOCKS, crate::relpath::SEGMENT_BLOCKS),
            ("WAL block size", WAL_BLOCK_SIZE, WAL_PAGE_SIZE as u32),
            ("WAL segment size", SEGMENT_SIZE, WAL_SEGMENT_SIZE as u32),
        ] {
            let found = self.u32(at);
            if found != expected {
                return Err(ControlError::BuildSize { what, found, expected });
            }
        }
        Ok(())
    }

    fn state_of(&self) -> Result<ClusterStatus, ControlError> {
        let number = self.u32(STATE);
        let found = ClusterStatus::ALL.into_iter().find(|status| *status as u32 == number);
        found.ok_or(ControlError::State(number))
    }

    fn crc(&self) -> u32 {
        crc32c(&self.bytes[..self.major.layout().control_crc_offset])
    }

    fn u32(&self, at: usize) -> u32 {
        u32_at(&self.bytes[..], at).unwrap_or(0)
    }

    fn u64(&self, at: usize) -> u64 {
        u64_at(&self.bytes[..], at).unwrap_or(0)
    }

    fn flag(&self, at: usize) -> bool {
        self.bytes[at] != 0
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// The file's bytes, CRC recomputed, zeros behind it.
    pub fn encode(&self) -> Box<[u8; CONTROL_FILE_SIZE]> {
        let crc_offset = self.major.layout().control_crc_offset;
        let mut out = self.bytes.clone();
        out[crc_offset..].fill(0);
        out[crc_offset..crc_offset + 4].copy_from_slice(&self.crc().to_le_bytes());
        out
    }

    pub fn major(&self) -> PgMajor {
        self.major
    }

    pub fn system_id(&self) -> u64 {
        self.u64(0)
    }

    pub fn set_system_id(&mut self, system_id: u64) {
        self.put(0, &system_id.to_le_bytes());
    }

    pub fn state(&self) -> ClusterStatus {
        // Checked when parsed, and only set from the enum.
        self.state_of().unwrap_or(ClusterStatus::Starting)
    }

    pub fn set_state(&mut self, state: ClusterStatus) {
        self.put(STATE, &(state as u32).to_le_bytes());
    }

    /// When the file was last written, seconds since 1970.
    pub fn time(&self) -> i64 {
        i64_at(&self.bytes[..], TIME).unwrap_or(0)
    }

    pub fn set_time(&mut self, unix_seconds: i64) {
        self.put(TIME, &unix_seconds.to_le_bytes());
    }

    /// Start of the last checkpoint record.
    pub fn checkpoint_start(&self) -> Lsn {
        Lsn(self.u64(CHECKPOINT))
    }

    /// The last checkpoint record's payload.
    pub fn checkpoint(&self) -> CheckPoint {
        CheckPoint::decode(self.major, &self.bytes[CHECKPOINT_COPY..]).unwrap_or_default()
    }

    /// The last checkpoint record: where it starts and its payload.
    pub fn set_checkpoint(&mut self, start: Lsn, payload: &[u8; CHECKPOINT_SIZE]) {
        self.put(CHECKPOINT, &start.0.to_le_bytes());
        self.put(CHECKPOINT_COPY, payload);
    }

    /// Counter for the LSNs of unlogged relations; a server starts at 1000.
    pub fn unlogged_lsn(&self) -> Lsn {
        Lsn(self.u64(UNLOGGED_LSN))
    }

    pub fn set_unlogged_lsn(&mut self, lsn: Lsn) {
        self.put(UNLOGGED_LSN, &lsn.0.to_le_bytes());
    }

    /// Up to where recovery must go before the cluster is consistent, and on which timeline; 0 outside recovery.
    pub fn min_recovery_point(&self) -> (Lsn, u32) {
        (Lsn(self.u64(MIN_RECOVERY_POINT)), self.u32(MIN_RECOVERY_POINT_TLI))
    }

    pub fn set_min_recovery_point(&mut self, lsn: Lsn, tli: u32) {
        self.put(MIN_RECOVERY_POINT, &lsn.0.to_le_bytes());
        self.put(MIN_RECOVERY_POINT_TLI, &tli.to_le_bytes());
    }

    /// Forgets that the files came from a backup.
    pub fn clear_backup(&mut self) {
        self.put(BACKUP_START, &[0; 8]);
        self.put(BACKUP_END, &[0; 8]);
        self.put(BACKUP_END_REQUIRED, &[0]);
    }

    /// Makes the file say that the cluster was shut down cleanly with the given checkpoint record: state, time,
    /// checkpoint, no recovery point, no backup.
    pub fn shut_down_at(&mut self, start: Lsn, payload: &[u8; CHECKPOINT_SIZE], unix_seconds: i64) {
        self.set_state(ClusterStatus::ShutDown);
        self.set_time(unix_seconds);
        self.set_checkpoint(start, payload);
        self.set_min_recovery_point(Lsn::INVALID, 0);
        self.clear_backup();
    }

    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub fn wal_level(&self) -> u32 {
        self.u32(WAL_LEVEL)
    }

    pub fn wal_log_hints(&self) -> bool {
        self.flag(WAL_LOG_HINTS)
    }

    pub fn track_commit_timestamp(&self) -> bool {
        self.flag(TRACK_COMMIT_TIMESTAMP)
    }

    pub fn parameters(&self) -> ControlParameters {
        ControlParameters {
            wal_level: self.wal_level(),
            wal_log_hints: self.wal_log_hints(),
            max_connections: self.u32(MAX_CONNECTIONS),
            max_worker_processes: self.u32(MAX_WORKER_PROCESSES),
            max_wal_senders: self.u32(MAX_WAL_SENDERS),
            max_prepared_xacts: self.u32(MAX_PREPARED_XACTS),
            max_locks_per_xact: self.u32(MAX_LOCKS_PER_XACT),
            track_commit_timestamp: self.track_commit_timestamp(),
        }
    }

    pub fn set_parameters(&mut self, new: &ControlParameters) {
        for (at, value) in [
            (WAL_LEVEL, new.wal_level),
            (MAX_CONNECTIONS, new.max_connections),
            (MAX_WORKER_PROCESSES, new.max_worker_processes),
            (MAX_WAL_SENDERS, new.max_wal_senders),
            (MAX_PREPARED_XACTS, new.max_prepared_xacts),
            (MAX_LOCKS_PER_XACT, new.max_locks_per_xact),
        ] {
            self.put(at, &value.to_le_bytes());
        }
        self.put(WAL_LOG_HINTS, &[u8::from(new.wal_log_hints)]);
        self.put(TRACK_COMMIT_TIMESTAMP, &[u8::from(new.track_commit_timestamp)]);
    }

    /// 0: pages carry no checksums.
    pub fn data_checksum_version(&self) -> u32 {
        self.u32(CHECKSUM_VERSION)
    }

    /// The cluster's random secret for failed authentications.
    pub fn nonce(&self) -> [u8; NONCE_SIZE] {
        array_at(&self.bytes[..], self.major.layout().control_nonce_offset)
            .unwrap_or([0; NONCE_SIZE])
    }

    pub fn set_nonce(&mut self, nonce: &[u8; NONCE_SIZE]) {
        self.put(self.major.layout().control_nonce_offset, nonce);
    }
}

/// Settings that `pg_control` keeps and PARAMETER_CHANGE records change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlParameters {
    pub wal_level: u32,
    pub wal_log_hints: bool,
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_xacts: u32,
    pub max_locks_per_xact: u32,
    pub track_commit_timestamp: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank(major: PgMajor) -> ControlFile {
        let mut file = ControlFile { major, bytes: Box::new([0; CONTROL_FILE_SIZE]) };
        let layout = major.layout();
        for (at, value) in [
            (8, layout.control_version),
            (12, layout.catalog_version),
            (BLOCK_SIZE, 8192),
            (RELATION_SEGMENT_BLOCKS, 131_072),
            (WAL_BLOCK_SIZE, 8192),
            (SEGMENT_SIZE, 16 << 20),
        ] {
            file.put(at, &value.to_le_bytes());
        }
        file
    }

    #[test]
    fn files_round_trip_in_every_major() {
        for major in PgMajor::ALL {
            let wal_level = if major >= PgMajor::V17 { 2 } else { 0 };
            let checkpoint = CheckPoint {
                redo: Lsn(9),
                this_tli: 2,
                next_xid: 1 << 33,
                wal_level,
                ..CheckPoint::default()
            };
            let mut file = blank(major);
            file.set_system_id(77);
            file.set_nonce(&[5; 32]);
            file.shut_down_at(Lsn(9), &checkpoint.encode(), 1000);
            let again = ControlFile::parse(&file.encode()[..]).unwrap();
            assert_eq!((again.major(), again.checkpoint()), (major, checkpoint));
            assert_eq!((again.system_id(), again.nonce()), (77, [5; 32]));
            assert_eq!(again.state(), ClusterStatus::ShutDown);
            assert_eq!(again.encode(), file.encode());
        }
    }

    #[test]
    fn damage_is_found() {
        let bytes = blank(PgMajor::V18).encode();
        for bit in 0..(292 + 4) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlFile::parse(&bad[..]).is_err(), "bit {bit}");
        }
        assert_eq!(ControlFile::parse(&bytes[..100]), Err(ControlError::Size(100)));
    }
}
