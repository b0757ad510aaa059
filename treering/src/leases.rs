//! How long LSN leases last: the same option for `up` and for a pageserver that runs alone.

use std::time::Duration;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct LeaseArgs {
    /// How long history stays where a compute reads it after the compute was last heard of, at least 1s.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = lease_length)]
    pub lsn_lease_length: Duration,
}

impl LeaseArgs {
    /// As a command line that is parsed to the same.
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let length = humantime::format_duration(self.lsn_lease_length);
        vec![("--lsn-lease-length", length.to_string())]
    }
}

/// Below this a lease runs out whenever a machine is slow for a moment.
const LENGTH_MIN: Duration = Duration::from_secs(1);

fn lease_length(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time >= LENGTH_MIN {
        true => Ok(time),
        false => Err("at least 1s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        leases: LeaseArgs,
    }

    #[test]
    fn what_up_passes_on_means_the_same() {
        let line = Line::parse_from(["x", "--lsn-lease-length=1m 500ms"]);
        let passed = line.leases.arguments().into_iter().flat_map(|(o, v)| [o.to_owned(), v]);
        let again = Line::parse_from(["x".to_owned()].into_iter().chain(passed));
        assert_eq!(again.leases.lsn_lease_length, Duration::from_millis(60_500));
        assert_eq!(Line::parse_from(["x"]).leases.lsn_lease_length, Duration::from_secs(600));
        assert!(Line::try_parse_from(["x", "--lsn-lease-length=999ms"]).is_err());
    }
}
