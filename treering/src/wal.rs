//! The log on disk and in the object store: the same options for `up` and for a safekeeper that runs alone.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use treering_remote::Location;
use treering_safekeeper::archive::ArchiveOptions;

#[derive(Debug, Clone, Args)]
pub struct WalArgs {
    /// Most log that a safekeeper keeps on its disk; commits wait for room [default: 80 % of the file system].
    #[arg(long, value_name = "SIZE", env = "TREERING_WAL_DISK_LIMIT")]
    wal_disk_limit: Option<ByteSize>,
    /// How far the pageserver may be behind a branch before writes are slowed down; 0 for no limit.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", env = "TREERING_WAL_LAG_LIMIT")]
    wal_lag_limit: ByteSize,
    /// How long committed log may wait until the object store has it.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration,
          env = "TREERING_WAL_ARCHIVE_DELAY")]
    wal_archive_delay: Duration,
    /// How much log of a branch the object store keeps once its pages are made.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", env = "TREERING_WAL_ARCHIVE_KEEP")]
    wal_archive_keep: ByteSize,
}

impl WalArgs {
    pub fn disk_limit(&self) -> Option<u64> {
        self.wal_disk_limit.map(|size| size.as_u64())
    }

    pub fn lag_limit(&self) -> u64 {
        self.wal_lag_limit.as_u64()
    }

    /// How the log goes to this store.
    pub fn archive(&self, store: Location) -> ArchiveOptions {
        let keep = self.wal_archive_keep.as_u64();
        ArchiveOptions { store, delay: self.wal_archive_delay, keep }
    }

    /// As a command line that is parsed to the same.
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let delay = humantime::format_duration(self.wal_archive_delay).to_string();
        let mut arguments = vec![
            ("--wal-lag-limit", format!("{}B", self.lag_limit())),
            ("--wal-archive-delay", delay),
            ("--wal-archive-keep", format!("{}B", self.wal_archive_keep.as_u64())),
        ];
        let limit = self.disk_limit();
        arguments.extend(limit.map(|bytes| ("--wal-disk-limit", format!("{bytes}B"))));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        wal: WalArgs,
    }

    #[test]
    fn what_up_passes_on_means_the_same() {
        let plain = vec!["x"];
        let all = vec![
            "x",
            "--wal-disk-limit=3GiB",
            "--wal-lag-limit=5MiB",
            "--wal-archive-delay=1m 500ms",
            "--wal-archive-keep=0B",
        ];
        for (given, limit, lag, delay, keep) in [
            (plain, None, 4 << 30, Duration::from_secs(30), 1 << 30),
            (all, Some(3 << 30), 5 << 20, Duration::from_millis(60_500), 0),
        ] {
            let line = Line::parse_from(given);
            let words = line.wal.arguments().into_iter().flat_map(|(o, v)| [o.to_owned(), v]);
            let again = Line::parse_from(["x".to_owned()].into_iter().chain(words));
            for wal in [line.wal, again.wal] {
                let archive = wal.archive("/a".parse().unwrap());
                assert_eq!((wal.disk_limit(), wal.lag_limit()), (limit, lag));
                assert_eq!((archive.delay, archive.keep), (delay, keep));
            }
        }
    }
}
