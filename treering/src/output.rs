//! How results are shown: tables for people, the REST objects unchanged for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Format {
    #[default]
    Table,
    Json,
}

impl Format {
    /// Writes `value` as JSON, or what `table` makes of it. A reader that has gone away is no error.
    pub fn show<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Table => table(value),
        };
        print_line(&text)
    }
}

/// Writes a line to stdout; a closed pipe is the reader's choice.
pub fn print_line(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A plain table: a head line, then a line per row.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
