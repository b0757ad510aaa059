//! Record names as `pg_waldump` prints them, for the resource managers that have pages.

/// Name of a record type; empty where the table has none.
pub fn record_name(rmid: u8, info: u8) -> &'static str {
    const HEAP: [&str; 8] =
        ["INSERT", "DELETE", "UPDATE", "TRUNCATE", "HOT_UPDATE", "CONFIRM", "LOCK", "INPLACE"];
    const HEAP_INIT: [&str; 5] = ["INSERT+INIT", "", "UPDATE+INIT", "", "HOT_UPDATE+INIT"];
    const HEAP2: [&str; 14] = [
        "REWRITE",
        "PRUNE",
        "VACUUM",
        "FREEZE_PAGE",
        "VISIBLE",
        "MULTI_INSERT",
        "LOCK_UPDATED",
        "NEW_CID",
        "",
        "",
        "",
        "",
        "",
        "MULTI_INSERT+INIT",
    ];
    const BTREE: [&str; 15] = [
        "INSERT_LEAF",
        "INSERT_UPPER",
        "INSERT_META",
        "SPLIT_L",
        "SPLIT_R",
        "INSERT_POST",
        "DEDUP",
        "DELETE",
        "UNLINK_PAGE",
        "UNLINK_PAGE_META",
        "NEWROOT",
        "MARK_PAGE_HALFDEAD",
        "VACUUM",
        "REUSE_PAGE",
        "META_CLEANUP",
    ];
    const GIN: [&str; 10] = [
        "",
        "CREATE_PTREE",
        "INSERT",
        "SPLIT",
        "VACUUM_PAGE",
        "DELETE_PAGE",
        "UPDATE_META_PAGE",
        "INSERT_LISTPAGE",
        "DELETE_LISTPAGE",
        "VACUUM_DATA_LEAF_PAGE",
    ];
    const XLOG: [&str; 14] = [
        "CHECKPOINT_SHUTDOWN",
        "CHECKPOINT_ONLINE",
        "NOOP",
        "NEXTOID",
        "SWITCH",
        "BACKUP_END",
        "PARAMETER_CHANGE",
        "RESTORE_POINT",
        "FPW_CHANGE",
        "END_OF_RECOVERY",
        "FPI_FOR_HINT",
        "FPI",
        "",
        "OVERWRITE_CONTRECORD",
    ];
    const XACT: [&str; 7] = [
        "COMMIT",
        "PREPARE",
        "ABORT",
        "COMMIT_PREPARED",
        "ABORT_PREPARED",
        "ASSIGNMENT",
        "INVALIDATION",
    ];
    let (table, index): (&[&'static str], u8) = match (rmid, info >> 4) {
        (0, index) => (&XLOG, index),
        (1, index) => (&XACT, index),
        (9, index) => (&HEAP2, index),
        (10, index @ 8..) => (&HEAP_INIT, index - 8),
        (10, index) => (&HEAP, index),
        (11, index) => (&BTREE, index),
        (13, index) => (&GIN, index),
        (15, index) => (&["LOG"], index),
        (20, index) => (&["APPLY"], index),
        _ => (&[], 0),
    };
    table.get(usize::from(index)).copied().unwrap_or("")
}
