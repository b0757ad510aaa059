use proptest::prelude::*;

use super::*;

fn ok(text: &str) -> Command {
    Command::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn what_stock_clients_send() {
    assert_eq!(ok("IDENTIFY_SYSTEM"), Command::IdentifySystem);
    assert_eq!(ok("SHOW data_directory_mode"), Command::Show("data_directory_mode".into()));
    assert_eq!(ok("SHOW wal_segment_size;"), Command::Show("wal_segment_size".into()));
    assert_eq!(ok("TIMELINE_HISTORY 7"), Command::TimelineHistory(7));
    assert_eq!(
        ok("READ_REPLICATION_SLOT \"My\"\"Slot\""),
        Command::ReadSlot { slot: "My\"Slot".into() }
    );
    let start = |slot: Option<&str>, timeline| Command::StartReplication {
        slot: slot.map(str::to_owned),
        start: Lsn(0x3000000),
        timeline,
    };
    assert_eq!(
        ok("START_REPLICATION SLOT \"pg_basebackup_1\" 0/3000000 TIMELINE 1"),
        start(Some("pg_basebackup_1"), Some(1))
    );
    assert_eq!(ok("START_REPLICATION 0/3000000"), start(None, None));
    assert_eq!(ok("start_replication PHYSICAL 0/3000000 timeline 2"), start(None, Some(2)));
}

#[test]
fn slots() {
    let slot = |temporary, reserve_wal| Command::CreateSlot {
        slot: "s".into(),
        temporary,
        kind: SlotKind::Physical,
        reserve_wal,
    };
    assert_eq!(
        ok("CREATE_REPLICATION_SLOT \"s\" TEMPORARY PHYSICAL ( RESERVE_WAL)"),
        slot(true, true)
    );
    assert_eq!(ok("CREATE_REPLICATION_SLOT \"s\" PHYSICAL RESERVE_WAL"), slot(false, true));
    assert_eq!(ok("CREATE_REPLICATION_SLOT S PHYSICAL (RESERVE_WAL false)"), slot(false, false));
    assert_eq!(ok("CREATE_REPLICATION_SLOT s PHYSICAL"), slot(false, false));
    assert!(matches!(
        ok("CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'nothing')"),
        Command::CreateSlot { kind: SlotKind::Logical { .. }, .. }
    ));
    assert_eq!(
        ok("START_REPLICATION SLOT s LOGICAL 0/1 (proto_version '1')"),
        Command::StartLogical { slot: "s".into() }
    );
    assert_eq!(
        ok("DROP_REPLICATION_SLOT s WAIT"),
        Command::DropSlot { slot: "s".into(), wait: true }
    );
}

#[test]
fn base_backup_in_both_forms() {
    let options = |text| match ok(text) {
        Command::BaseBackup { options } => options,
        other => panic!("{other:?}"),
    };
    let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    assert_eq!(
        options(
            "BASE_BACKUP ( LABEL 'it''s',  PROGRESS,  CHECKPOINT 'fast',  WAIT 0,  MANIFEST 'yes')"
        ),
        [
            pair("label", Some("it's")),
            pair("progress", None),
            pair("checkpoint", Some("fast")),
            pair("wait", Some("0")),
            pair("manifest", Some("yes")),
        ]
    );
    assert_eq!(
        options("BASE_BACKUP LABEL 'x' PROGRESS FAST MAX_RATE 32 NOWAIT"),
        [
            pair("label", Some("x")),
            pair("progress", None),
            pair("fast", None),
            pair("max_rate", Some("32")),
            pair("nowait", None),
        ]
    );
    assert_eq!(options("BASE_BACKUP"), []);
}

#[test]
fn refusals_name_the_place() {
    let sql = Command::parse("SELECT 1");
    assert_eq!(sql, Err(CommandError::Unknown { first_word: "SELECT".into() }));
    for bad in [
        "IDENTIFY_SYSTEM now",
        "TIMELINE_HISTORY 0",
        "TIMELINE_HISTORY x",
        "START_REPLICATION",
        "START_REPLICATION nowhere",
        "START_REPLICATION LOGICAL 0/1",
        "BASE_BACKUP (",
        "BASE_BACKUP ()",
        "BASE_BACKUP (LABEL 'x'",
        "BASE_BACKUP (LABEL 'x',)",
        "CREATE_REPLICATION_SLOT s",
        "DROP_REPLICATION_SLOT 'x'",
    ] {
        let error = Command::parse(bad).expect_err(bad);
        assert!(matches!(error, CommandError::Syntax { .. }), "{bad}: {error:?}");
    }
    assert_eq!(Command::parse("SHOW \"x"), Err(CommandError::Unterminated));
    let long = format!("SHOW {}", "x".repeat(9000));
    assert!(matches!(Command::parse(&long), Err(CommandError::TooLong { .. })));
}

proptest! {
    #[test]
    fn hostile_text_never_panics(
        head in prop::sample::select(vec![
            "BASE_BACKUP", "START_REPLICATION", "CREATE_REPLICATION_SLOT", "SHOW", ""
        ]),
        rest in "[ ()'\",;A-Za-z0-9/é-]{0,40}",
    ) {
        let _ = Command::parse(&format!("{head} {rest}"));
    }
}
