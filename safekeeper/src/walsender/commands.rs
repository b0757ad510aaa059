//! Replication commands that are answered with a table (Postgres documentation, "Streaming Replication Protocol").

use treering_types::{Lsn, WAL_SEGMENT_SIZE};
use treering_wire::{
    backend::{Column, Report, Writer, oid, sqlstate},
    replication::{Command, SlotKind},
};

use crate::timeline::Timeline;

/// At most one row, and the command's tag.
pub(super) struct Answer {
    columns: Vec<Column>,
    row: Option<Vec<Option<String>>>,
    tag: &'static str,
}

impl Answer {
    fn row(columns: &[(&str, u32)], row: Vec<Option<String>>, tag: &'static str) -> Answer {
        let columns = columns.iter().map(|(name, oid)| Column::new(*name, *oid)).collect();
        Answer { columns, row: Some(row), tag }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        if let Some(row) = &self.row {
            out.row_description(&self.columns);
            out.data_row(row);
        }
        out.command_complete(self.tag);
    }
}

/// Answers everything but START_REPLICATION.
pub(super) fn answer(timeline: &Timeline, command: Command) -> Result<Answer, Report> {
    match command {
        Command::IdentifySystem => Ok(identify_system(timeline)),
        Command::Show(name) => show(timeline, &name),
        Command::TimelineHistory(pg_tli) => timeline_history(timeline, pg_tli),
        Command::CreateSlot { slot, kind: SlotKind::Physical, .. } => Ok(create_slot(slot)),
        Command::DropSlot { .. } => {
            Ok(Answer { columns: Vec::new(), row: None, tag: "DROP_REPLICATION_SLOT" })
        }
        Command::ReadSlot { .. } => Ok(read_slot()),
        Command::CreateSlot { kind: SlotKind::Logical { .. }, .. }
        | Command::StartLogical { .. } => Err(refused("logical replication")),
        Command::BaseBackup { .. } => Err(refused("BASE_BACKUP")),
        Command::StartReplication { .. } => Err(refused("START_REPLICATION here")),
    }
}

fn refused(what: &str) -> Report {
    let text = format!("a safekeeper does not serve {what}");
    Report::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
}

fn identify_system(timeline: &Timeline) -> Answer {
    let identity = timeline.identity();
    // A 32-bit column up to version 15 (`walsender.c`).
    let number = if identity.pg_major <= 15 { oid::INT4 } else { oid::INT8 };
    let columns = [
        ("systemid", oid::TEXT),
        ("timeline", number),
        ("xlogpos", oid::TEXT),
        ("dbname", oid::TEXT),
    ];
    let row = vec![
        Some(identity.system_id.to_string()),
        Some(identity.pg_tli.to_string()),
        Some(timeline.status().commit_lsn.to_string()),
        None,
    ];
    Answer::row(&columns, row, "IDENTIFY_SYSTEM")
}

fn show(timeline: &Timeline, name: &str) -> Result<Answer, Report> {
    let value = match name {
        "wal_segment_size" => format!("{}MB", WAL_SEGMENT_SIZE >> 20),
        "data_directory_mode" => "0700".to_owned(),
        "wal_level" => "replica".to_owned(),
        "server_version" => format!("{}.0", timeline.identity().pg_major),
        "server_version_num" => (timeline.identity().pg_major * 10_000).to_string(),
        "treering.tenant_id" => timeline.identity().tenant.to_string(),
        "treering.timeline_id" => timeline.identity().timeline.to_string(),
        _ => {
            let text = format!("unrecognized configuration parameter \"{name}\"");
            return Err(Report::error(sqlstate::UNDEFINED_OBJECT, text));
        }
    };
    Ok(Answer::row(&[(name, oid::TEXT)], vec![Some(value)], "SHOW"))
}

/// A history file: one line for each timeline left behind (`timeline.c`).
fn timeline_history(timeline: &Timeline, pg_tli: u32) -> Result<Answer, Report> {
    let file_name = format!("{pg_tli:08X}.history");
    let ancestors = timeline.pg_ancestors();
    // The file of an ancestor is the part of ours that comes before its own line.
    let lines = match ancestors.iter().position(|ancestor| ancestor.pg_tli == pg_tli) {
        Some(position) => &ancestors[..position],
        None if pg_tli == timeline.identity().pg_tli => ancestors,
        None => &[],
    };
    if lines.is_empty() {
        let text = format!("could not open file \"pg_wal/{file_name}\": No such file or directory");
        return Err(Report::error(sqlstate::UNDEFINED_FILE, text));
    }
    let line = |ancestor: &treering_consensus::PgAncestor| {
        format!("{}\t{}\tbranch\n", ancestor.pg_tli, ancestor.switch_lsn)
    };
    let content = lines.iter().map(line).collect();
    let columns = [("filename", oid::TEXT), ("content", oid::TEXT)];
    Ok(Answer::row(&columns, vec![Some(file_name), Some(content)], "TIMELINE_HISTORY"))
}

fn create_slot(slot: String) -> Answer {
    let columns = [
        ("slot_name", oid::TEXT),
        ("consistent_point", oid::TEXT),
        ("snapshot_name", oid::TEXT),
        ("output_plugin", oid::TEXT),
    ];
    let row = vec![Some(slot), Some(Lsn::INVALID.to_string()), None, None];
    Answer::row(&columns, row, "CREATE_REPLICATION_SLOT")
}

/// Any slot exists, and holds nothing back: clients then begin where they are, or at our end.
fn read_slot() -> Answer {
    let columns =
        [("slot_type", oid::TEXT), ("restart_lsn", oid::TEXT), ("restart_tli", oid::INT8)];
    let row = vec![Some("physical".to_owned()), None, None];
    Answer::row(&columns, row, "READ_REPLICATION_SLOT")
}
