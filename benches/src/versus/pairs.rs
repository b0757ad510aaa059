//! Ours against vanilla as alternating pairs, and vanilla against vanilla beside it.
//!
//! A *half* is one measurement of one server; two halves next to each other are a pair, whose order changes
//! from pair to pair. What a machine does to both halves of a pair cancels out in its ratio; what it does to one of them
//! shows in the pairs of two equal servers. The ratio is the median of our pairs over the median of theirs.

use super::{server::Server, stage::Contest};
use crate::report::{Bar, Report, Spread};

/// Which of two figures is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A rate.
    More,
    /// A time.
    Less,
}

/// What a scenario is called and how it is judged.
pub struct Judged {
    pub scenario: &'static str,
    /// What was varied.
    pub size: String,
    pub unit: &'static str,
    pub better: Better,
    /// The ratio that it must reach.
    pub bar: f64,
}

/// One measurement of one server.
pub struct Half {
    pub figure: f64,
    /// Transactions or statements in it.
    pub work: f64,
}

/// Runs `pairs` pairs of each kind after a half of everybody as warm-up. The first report is judged; the second is of
/// the time on a core for each transaction or statement.
pub fn compare(
    contest: &Contest<'_>,
    judged: Judged,
    pairs: usize,
    half: impl Fn(&Server) -> anyhow::Result<Half>,
) -> anyhow::Result<Vec<Report>> {
    let turns = Turns { contest, half: &half };
    for server in contest.servers() {
        turns.measure(server)?;
    }
    let (mut figures, mut cpu) = (Pairs::default(), Pairs::default());
    for round in 0..pairs {
        let swapped = round % 2 == 1;
        let ours = turns.pair(contest.ours(), contest.vanilla, swapped)?;
        let noise = turns.pair(contest.noise, contest.vanilla, swapped)?;
        figures.note(judged.better, [ours, noise].map(|pair| pair.map(|m| m.figure)));
        cpu.note(Better::Less, [ours, noise].map(|pair| pair.map(|m| m.cpu_ms)));
    }
    let size = format!("{}, cpu time", judged.size);
    Ok(vec![
        Report {
            bar: Some(Bar::Ratio(judged.bar)),
            ..figures.report(judged.scenario, judged.size, judged.unit)
        },
        cpu.report(judged.scenario, size, "ms"),
    ])
}

#[derive(Clone, Copy)]
struct Measured {
    figure: f64,
    /// Of all processes, for one transaction or statement.
    cpu_ms: f64,
}

struct Turns<'a, F> {
    contest: &'a Contest<'a>,
    half: &'a F,
}

impl<F: Fn(&Server) -> anyhow::Result<Half>> Turns<'_, F> {
    /// What both came to, in the order they are named in.
    fn pair(&self, one: &Server, other: &Server, swapped: bool) -> anyhow::Result<[Measured; 2]> {
        if swapped {
            let other = self.measure(other)?;
            return Ok([self.measure(one)?, other]);
        }
        Ok([self.measure(one)?, self.measure(other)?])
    }

    fn measure(&self, server: &Server) -> anyhow::Result<Measured> {
        self.contest.settle()?;
        let before = server.cpu_seconds();
        let Half { figure, work } = (self.half)(server)?;
        let lag = self.contest.wait_for_ingest()?;
        let cpu_ms = (server.cpu_seconds() - before) * 1e3 / work;
        eprintln!(
            "    {:<10} {figure:>10.2}; cpu {cpu_ms:.4} ms; ingest {lag:.1?} behind",
            server.name
        );
        Ok(Measured { figure, cpu_ms })
    }
}

/// Figures of one kind.
#[derive(Default)]
struct Pairs {
    ours: Spread,
    vanilla: Spread,
    ratios: Spread,
    noise: Spread,
}

impl Pairs {
    /// Takes our pair and the pair of equals.
    fn note(&mut self, better: Better, [[ours, vanilla], noise]: [[f64; 2]; 2]) {
        // More than 1 is better.
        let ratio = |[one, other]: [f64; 2]| match better {
            Better::More => one / other,
            Better::Less => other / one,
        };
        self.ours.push(ours);
        self.vanilla.push(vanilla);
        self.ratios.push(ratio([ours, vanilla]));
        self.noise.push(ratio(noise));
    }

    fn report(self, scenario: &'static str, size: String, unit: &'static str) -> Report {
        Report {
            ratio: Some(self.ratios.median() / self.noise.median()),
            vanilla: Some(self.vanilla.median()),
            pairs: Some((self.ratios, self.noise)),
            ..Report::figure(scenario, size, unit, &self.ours)
        }
    }
}
