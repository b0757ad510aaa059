//! How computes get their pages: the same options for `up` and for an agent that runs alone.

use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use treering_compute_proxy::pages::{PageMode, PageOptions};

#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// When a compute fetches its pages: `lazy`, each when it is first touched; `eager`, all before it starts. Where the
    /// lazy way is not possible the agent says why and fetches all before the start.
    #[arg(long, default_value = "lazy", env = "TREERING_PAGES_MODE")]
    pages: Mode,
    /// Most of the fetched pages that a compute may keep on this machine's disk, such as 512MiB; pages that are not
    /// needed are dropped and fetched again. [default: no limit]
    #[arg(long, value_name = "SIZE", env = "TREERING_PAGE_CACHE_LIMIT")]
    page_cache_limit: Option<ByteSize>,
    /// How long a read of Postgres waits for a page before it fails.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = wait_limit)]
    page_wait_limit: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Lazy,
    Eager,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Lazy => "lazy",
            Mode::Eager => "eager",
        }
    }
}

impl PageArgs {
    pub fn options(&self) -> PageOptions {
        PageOptions {
            mode: match self.pages {
                Mode::Lazy => PageMode::Lazy,
                Mode::Eager => PageMode::Eager,
            },
            cache_limit_bytes: self.page_cache_limit.map(|limit| limit.as_u64()),
            wait_limit: self.page_wait_limit,
        }
    }

    /// As a command line that is parsed to the same.
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let mut arguments = vec![
            ("--pages", self.pages.name().to_owned()),
            ("--page-wait-limit", humantime::format_duration(self.page_wait_limit).to_string()),
        ];
        let limit = self.page_cache_limit;
        arguments.extend(limit.map(|limit| ("--page-cache-limit", limit.as_u64().to_string())));
        arguments
    }
}

/// Below this a page that is only slow would pass for one that cannot be had.
const WAIT_LIMIT_MIN: Duration = Duration::from_secs(2);

fn wait_limit(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time >= WAIT_LIMIT_MIN {
        true => Ok(time),
        false => Err("at least 2s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        pages: PageArgs,
    }

    #[test]
    fn what_up_passes_on_means_the_same() {
        let line = Line::parse_from([
            "x",
            "--pages=eager",
            "--page-cache-limit=64MiB",
            "--page-wait-limit=1m 500ms",
        ]);
        let passed = line.pages.arguments().into_iter().flat_map(|(o, v)| [o.to_owned(), v]);
        let again = Line::parse_from(["x".to_owned()].into_iter().chain(passed));
        let (first, second) = (line.pages.options(), again.pages.options());
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(first.cache_limit_bytes, Some(64 << 20));
    }
}
