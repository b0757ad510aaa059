//! What a scenario found.

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// One figure, with its spread.
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
        Report { scenario, size, ours: p50, unit, p50, p99, samples, ratio: None, vanilla: None }
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
        Report { scenario, size, ours: p50, unit, p50, p99, samples, ratio: None, vanilla: None }
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
        object
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
        let ratio = r.ratio.map(|ratio| format!("  ratio {ratio:.2}")).unwrap_or_default();
        text += &format!(
            "{:<20} {:<44} {:>10.2} {:>10.2} {:>8}  {}{ratio}\n",
            r.scenario, r.size, r.p50, r.p99, r.samples, r.unit
        );
    }
    text
}
