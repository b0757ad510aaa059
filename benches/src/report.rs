//! What a scenario found.

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// One figure, with its spread.
#[derive(Default)]
pub struct Report {
    pub scenario: &'static str,
    /// What was varied: a scale, a client count.
    pub size: String,
    /// The figure that is compared with the bar.
    pub ours: f64,
    pub unit: &'static str,
    pub p50: f64,
    pub p99: f64,
    pub samples: u64,
    /// Against the first size, or against vanilla, as the scenario says.
    pub ratio: Option<f64>,
    pub vanilla: Option<f64>,
    pub bar: Option<Bar>,
    /// Ratios of ours to vanilla, and of vanilla to vanilla, pair by pair.
    pub pairs: Option<(Spread, Spread)>,
}

/// What a figure must reach.
#[derive(Clone, Copy)]
pub enum Bar {
    /// The ratio, at least.
    Ratio(f64),
    /// The ratio, at most.
    RatioAtMost(f64),
    /// `ours`, at least.
    AtLeast(f64),
    /// `ours`, at most.
    AtMost(f64),
    /// `ours`, at most; and the ratio to the first size, at most.
    AtMostAndRatio(f64, f64),
}

/// Measurements of one thing.
#[derive(Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; of an even number the higher of the two.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        self.0.iter().map(|value| (value * 1e4).round() / 1e4).collect()
    }

    pub fn highest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|value| write!(f, "{value:.2} "))
    }
}

impl Report {
    /// The median of few measurements; `p99` is the highest.
    pub fn figure(
        scenario: &'static str,
        size: String,
        unit: &'static str,
        spread: &Spread,
    ) -> Report {
        let (p50, p99, samples) = (spread.median(), spread.highest(), spread.0.len() as u64);
        Report { scenario, size, ours: p50, unit, p50, p99, samples, ..Report::default() }
    }

    /// From a histogram of nanoseconds; `per_unit` nanoseconds make one `unit`.
    pub fn latency(
        scenario: &'static str,
        size: String,
        unit: &'static str,
        per_unit: f64,
        histogram: &Histogram<u64>,
    ) -> Report {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / per_unit;
        let (p50, p99, samples) = (at(0.5), at(0.99), histogram.len());
        Report { scenario, size, ours: p50, unit, p50, p99, samples, ..Report::default() }
    }

    pub fn json(&self) -> Value {
        let mut object = json!({
            "scenario": self.scenario, "size": self.size, "ours": self.ours, "unit": self.unit,
            "p50": self.p50, "p99": self.p99, "samples": self.samples, "commit": commit(), "machine": machine(),
        });
        if let Some(ratio) = self.ratio {
            object["ratio"] = ratio.into();
        }
        if let Some(vanilla) = self.vanilla {
            object["vanilla"] = vanilla.into();
        }
        if let Some((pairs, noise)) = &self.pairs {
            object["pairs"] = pairs.json();
            object["noise"] = noise.median().into();
            object["noise_pairs"] = noise.json();
        }
        if let Some(bar) = self.bar {
            bar.describe(&mut object);
            object["meets_bar"] = self.meets(bar).into();
        }
        object
    }

    fn meets(&self, bar: Bar) -> bool {
        let ratio = |holds: &dyn Fn(f64) -> bool| self.ratio.is_some_and(holds);
        match bar {
            Bar::Ratio(least) => ratio(&|ratio| ratio >= least),
            Bar::RatioAtMost(most) => ratio(&|ratio| ratio <= most),
            Bar::AtLeast(least) => self.ours >= least,
            Bar::AtMost(most) => self.ours <= most,
            Bar::AtMostAndRatio(most, most_ratio) => {
                self.ours <= most && ratio(&|ratio| ratio <= most_ratio)
            }
        }
    }
}

impl Bar {
    /// `bar` is what `bar_on` is compared with.
    fn describe(self, object: &mut Value) {
        let (on, bar) = match self {
            Bar::Ratio(bar) | Bar::RatioAtMost(bar) => ("ratio", bar),
            Bar::AtLeast(bar) | Bar::AtMost(bar) | Bar::AtMostAndRatio(bar, _) => ("ours", bar),
        };
        object["bar_on"] = on.into();
        object["bar"] = bar.into();
        if let Bar::AtMostAndRatio(_, ratio) = self {
            object["bar_ratio"] = ratio.into();
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::Ratio(bar) => write!(f, "ratio >= {bar}"),
            Bar::RatioAtMost(bar) => write!(f, "ratio <= {bar}"),
            Bar::AtLeast(bar) => write!(f, ">= {bar}"),
            Bar::AtMost(bar) => write!(f, "<= {bar}"),
            Bar::AtMostAndRatio(bar, ratio) => write!(f, "<= {bar}, ratio <= {ratio}"),
        }
    }
}

/// The revision that was built, as git names it.
fn commit() -> String {
    let asked =
        std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    asked.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} cores, {}", cores, model.map_or("unknown", |(_, name)| name))
}

/// For people.
pub fn table(reports: &[Report]) -> String {
    let mut text = format!(
        "{:<20} {:<44} {:>10} {:>10} {:>8}  {}\n",
        "scenario", "size", "p50", "p99", "samples", "unit"
    );
    for r in reports {
        let mut judged = String::new();
        if let Some(ratio) = r.ratio {
            judged += &format!("  ratio {ratio:.3}");
        }
        if let Some((_, noise)) = &r.pairs {
            judged += &format!(" (noise {:.3})", noise.median());
        }
        if let Some(bar) = r.bar {
            judged += &format!("  bar {bar}: {}", if r.meets(bar) { "met" } else { "missed" });
        }
        text += &format!(
            "{:<20} {:<44} {:>10.2} {:>10.2} {:>8}  {}{judged}\n",
            r.scenario, r.size, r.p50, r.p99, r.samples, r.unit
        );
    }
    text
}
