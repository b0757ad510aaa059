//! Every record type that Postgres 15 to 18 knows, and what its redo changes: the left column of the coverage table.
//!
//! Names are those of `pg_waldump`. Sources: `access/*_xlog.h`, `access/*xlog.h`, `catalog/pg_control.h`,
//! `catalog/storage_xlog.h`, `commands/*_xlog.h` of each major.

use treering_pgfmt::{redo::rmgr::*, version::PgMajor};

/// What redo of a record type changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Pages, computed from the record: the record's image under `wal_consistency_checking` judges them.
    Pages,
    /// Pages, which the record always brings as images: restored, then judged by the standby's files.
    Images,
    /// Files beside pages, or pages without a block reference: judged by the standby's files.
    Files,
    /// Counters that a control file or checkpoint holds.
    Counters,
    /// Nothing that outlives the server.
    Nothing,
}

/// A type of record. For transactions three bits of the info byte name it, else four.
#[derive(Clone, Copy, Debug)]
pub struct RecordType {
    pub rmid: u8,
    pub info: u8,
    pub name: &'static str,
    pub changes: Changes,
}

impl RecordType {
    /// True where this major writes the type at all.
    pub fn is_in(&self, major: PgMajor) -> bool {
        (self.rmid, self.info) != CHECKPOINT_REDO || major >= PgMajor::V17
    }
}

const CHECKPOINT_REDO: (u8, u8) = (XLOG, 0xe0);

/// The name `pg_waldump` prints for a type; 17 renamed three.
pub fn name_of(rmid: u8, info: u8, major: PgMajor) -> &'static str {
    let unified = major >= PgMajor::V17 && rmid == HEAP2;
    match info {
        0x10 if unified => "PRUNE_ON_ACCESS",
        0x20 if unified => "PRUNE_VACUUM_SCAN",
        0x30 if unified => "PRUNE_VACUUM_CLEANUP",
        _ => {
            let known = RECORD_TYPES.iter().find(|kind| (kind.rmid, kind.info) == (rmid, info));
            known.map_or("unknown", |kind| kind.name)
        }
    }
}

const fn of(rmid: u8, info: u8, name: &'static str, changes: Changes) -> RecordType {
    RecordType { rmid, info, name, changes }
}

use Changes::{Counters, Files, Images, Nothing, Pages};

/// All of them, in the order of their numbers.
pub const RECORD_TYPES: &[RecordType] = &[
    of(XLOG, 0x00, "CHECKPOINT_SHUTDOWN", Counters),
    of(XLOG, 0x10, "CHECKPOINT_ONLINE", Counters),
    of(XLOG, 0x20, "NOOP", Nothing),
    of(XLOG, 0x30, "NEXTOID", Counters),
    of(XLOG, 0x40, "SWITCH", Nothing),
    of(XLOG, 0x50, "BACKUP_END", Nothing),
    of(XLOG, 0x60, "PARAMETER_CHANGE", Counters),
    of(XLOG, 0x70, "RESTORE_POINT", Nothing),
    of(XLOG, 0x80, "FPW_CHANGE", Counters),
    of(XLOG, 0x90, "END_OF_RECOVERY", Nothing),
    of(XLOG, 0xa0, "FPI_FOR_HINT", Images),
    of(XLOG, 0xb0, "FPI", Images),
    of(XLOG, 0xd0, "OVERWRITE_CONTRECORD", Nothing),
    of(XLOG, 0xe0, "CHECKPOINT_REDO", Nothing),
    of(XACT, 0x00, "COMMIT", Files),
    of(XACT, 0x10, "PREPARE", Files),
    of(XACT, 0x20, "ABORT", Files),
    of(XACT, 0x30, "COMMIT_PREPARED", Files),
    of(XACT, 0x40, "ABORT_PREPARED", Files),
    of(XACT, 0x50, "ASSIGNMENT", Nothing),
    of(XACT, 0x60, "INVALIDATION", Nothing),
    of(SMGR, 0x10, "CREATE", Files),
    of(SMGR, 0x20, "TRUNCATE", Files),
    of(CLOG, 0x00, "ZEROPAGE", Files),
    of(CLOG, 0x10, "TRUNCATE", Files),
    of(DATABASE, 0x00, "CREATE_FILE_COPY", Files),
    of(DATABASE, 0x10, "CREATE_WAL_LOG", Files),
    of(DATABASE, 0x20, "DROP", Files),
    of(TABLESPACE, 0x00, "CREATE", Files),
    of(TABLESPACE, 0x10, "DROP", Files),
    of(MULTIXACT, 0x00, "ZERO_OFF_PAGE", Files),
    of(MULTIXACT, 0x10, "ZERO_MEM_PAGE", Files),
    of(MULTIXACT, 0x20, "CREATE_ID", Files),
    of(MULTIXACT, 0x30, "TRUNCATE_ID", Files),
    of(RELMAP, 0x00, "UPDATE", Files),
    of(STANDBY, 0x00, "LOCK", Nothing),
    of(STANDBY, 0x10, "RUNNING_XACTS", Counters),
    of(STANDBY, 0x20, "INVALIDATIONS", Nothing),
    of(HEAP2, 0x00, "REWRITE", Nothing),
    of(HEAP2, 0x10, "PRUNE", Pages),
    of(HEAP2, 0x20, "VACUUM", Pages),
    of(HEAP2, 0x30, "FREEZE_PAGE", Pages),
    of(HEAP2, 0x40, "VISIBLE", Pages),
    of(HEAP2, 0x50, "MULTI_INSERT", Pages),
    of(HEAP2, 0x60, "LOCK_UPDATED", Pages),
    of(HEAP2, 0x70, "NEW_CID", Nothing),
    of(HEAP2, 0xd0, "MULTI_INSERT+INIT", Pages),
    of(HEAP, 0x00, "INSERT", Pages),
    of(HEAP, 0x10, "DELETE", Pages),
    of(HEAP, 0x20, "UPDATE", Pages),
    of(HEAP, 0x30, "TRUNCATE", Nothing),
    of(HEAP, 0x40, "HOT_UPDATE", Pages),
    of(HEAP, 0x50, "CONFIRM", Pages),
    of(HEAP, 0x60, "LOCK", Pages),
    of(HEAP, 0x70, "INPLACE", Pages),
    of(HEAP, 0x80, "INSERT+INIT", Pages),
    of(HEAP, 0xa0, "UPDATE+INIT", Pages),
    of(BTREE, 0x00, "INSERT_LEAF", Pages),
    of(BTREE, 0x10, "INSERT_UPPER", Pages),
    of(BTREE, 0x20, "INSERT_META", Pages),
    of(BTREE, 0x30, "SPLIT_L", Pages),
    of(BTREE, 0x40, "SPLIT_R", Pages),
    of(BTREE, 0x50, "INSERT_POST", Pages),
    of(BTREE, 0x60, "DEDUP", Pages),
    of(BTREE, 0x70, "DELETE", Pages),
    of(BTREE, 0x80, "UNLINK_PAGE", Pages),
    of(BTREE, 0x90, "UNLINK_PAGE_META", Pages),
    of(BTREE, 0xa0, "NEWROOT", Pages),
    of(BTREE, 0xb0, "MARK_PAGE_HALFDEAD", Pages),
    of(BTREE, 0xc0, "VACUUM", Pages),
    of(BTREE, 0xd0, "REUSE_PAGE", Nothing),
    of(BTREE, 0xe0, "META_CLEANUP", Pages),
    of(HASH, 0x00, "INIT_META_PAGE", Pages),
    of(HASH, 0x10, "INIT_BITMAP_PAGE", Pages),
    of(HASH, 0x20, "INSERT", Pages),
    of(HASH, 0x30, "ADD_OVFL_PAGE", Pages),
    of(HASH, 0x40, "SPLIT_ALLOCATE_PAGE", Pages),
    of(HASH, 0x50, "SPLIT_PAGE", Images),
    of(HASH, 0x60, "SPLIT_COMPLETE", Pages),
    of(HASH, 0x70, "MOVE_PAGE_CONTENTS", Pages),
    of(HASH, 0x80, "SQUEEZE_PAGE", Pages),
    of(HASH, 0x90, "DELETE", Pages),
    of(HASH, 0xa0, "SPLIT_CLEANUP", Pages),
    of(HASH, 0xb0, "UPDATE_META_PAGE", Pages),
    of(HASH, 0xc0, "VACUUM_ONE_PAGE", Pages),
    of(GIN, 0x10, "CREATE_PTREE", Pages),
    of(GIN, 0x20, "INSERT", Pages),
    of(GIN, 0x30, "SPLIT", Images),
    of(GIN, 0x40, "VACUUM_PAGE", Images),
    of(GIN, 0x50, "DELETE_PAGE", Pages),
    of(GIN, 0x60, "UPDATE_META_PAGE", Pages),
    of(GIN, 0x70, "INSERT_LISTPAGE", Pages),
    of(GIN, 0x80, "DELETE_LISTPAGE", Pages),
    of(GIN, 0x90, "VACUUM_DATA_LEAF_PAGE", Pages),
    of(GIST, 0x00, "PAGE_UPDATE", Pages),
    of(GIST, 0x10, "DELETE", Pages),
    of(GIST, 0x20, "PAGE_REUSE", Nothing),
    of(GIST, 0x30, "PAGE_SPLIT", Pages),
    of(GIST, 0x60, "PAGE_DELETE", Pages),
    of(GIST, 0x70, "ASSIGN_LSN", Nothing),
    of(SEQUENCE, 0x00, "LOG", Pages),
    of(SPGIST, 0x10, "ADD_LEAF", Pages),
    of(SPGIST, 0x20, "MOVE_LEAFS", Pages),
    of(SPGIST, 0x30, "ADD_NODE", Pages),
    of(SPGIST, 0x40, "SPLIT_TUPLE", Pages),
    of(SPGIST, 0x50, "PICKSPLIT", Pages),
    of(SPGIST, 0x60, "VACUUM_LEAF", Pages),
    of(SPGIST, 0x70, "VACUUM_ROOT", Pages),
    of(SPGIST, 0x80, "VACUUM_REDIRECT", Pages),
    of(BRIN, 0x00, "CREATE_INDEX", Pages),
    of(BRIN, 0x10, "INSERT", Pages),
    of(BRIN, 0x20, "UPDATE", Pages),
    of(BRIN, 0x30, "SAMEPAGE_UPDATE", Pages),
    of(BRIN, 0x40, "REVMAP_EXTEND", Pages),
    of(BRIN, 0x50, "DESUMMARIZE", Pages),
    of(BRIN, 0x90, "INSERT+INIT", Pages),
    of(BRIN, 0xa0, "UPDATE+INIT", Pages),
    of(COMMIT_TS, 0x00, "ZEROPAGE", Files),
    of(COMMIT_TS, 0x10, "TRUNCATE", Files),
    of(ORIGIN, 0x00, "SET", Files),
    of(ORIGIN, 0x10, "DROP", Files),
    of(GENERIC, 0x00, "APPLY", Pages),
    of(LOGICAL_MESSAGE, 0x00, "MESSAGE", Nothing),
];
