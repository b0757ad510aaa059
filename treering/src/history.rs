//! How long history is kept: the same options for `up` and for a pageserver that runs alone.

use std::time::Duration;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// How far back branches and restores can reach: what was replaced before that is given up.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration,
          env = "TREERING_PITR_WINDOW")]
    pub pitr_window: Duration,
}

impl HistoryArgs {
    /// As a command line that is parsed to the same.
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        vec![("--pitr-window", humantime::format_duration(self.pitr_window).to_string())]
    }
}
