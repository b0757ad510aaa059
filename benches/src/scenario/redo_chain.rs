//! `redo-short`, `redo-medium`: one page out of its stored changes, one caller and two.
//!
//! The inputs are those of Neon's `bench_walredo`, made anew by stock Postgres: *short* is an insert into `pg_class` that
//! carries the page's image, then an update in place; *medium* is 226 inserts of one integer that fill a page, then the
//! image of the first hint set in it (Neon's patched server writes 8 bytes more in each insert). All changes are applied,
//! although a page server would begin at the last image. Each redo goes the page server's way: a new page, then every
//! stored change decoded and applied.

use std::{
    fs::read,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use treering_bench::log::{Log, control_file};
use treering_pgfmt::{
    change::PageChange,
    judge::difference,
    redo::{self, rmgr},
    relpath::path_of,
    version::PgMajor,
    wal::{
        effects::{Effect, effects},
        record::Record,
        state::ClusterState,
    },
};
use treering_stock::{Cluster, Postgres};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, PageImage, RelTag};

use super::{Size, histogram};
use crate::report::{Report, Spread};

const MAJOR: PgMajor = PgMajor::V15;
const SETTINGS: &str = "autovacuum=off\ncheckpoint_timeout=1d\nfull_page_writes=on\n";

pub fn short(size: Size) -> anyhow::Result<Vec<Report>> {
    let (mut cluster, from) = started()?;
    // Three rows on the last page: the image is about as small as the reference's.
    cluster.sql(
        "DO $$ DECLARE last int; BEGIN FOR n IN 1..1000 LOOP
           EXECUTE 'CREATE TABLE t' || n || '()';
           last := pg_relation_size('pg_class') / 8192 - 1;
           EXIT WHEN (SELECT ctid::text = format('(%s,3)', last) FROM pg_class
                      WHERE relname = 't' || n);
         END LOOP; END $$",
    )?;
    cluster.sql("CHECKPOINT")?;
    cluster.sql("CREATE TABLE another_table (a int)")?;
    cluster.sql("INSERT INTO another_table SELECT generate_series(1, 5)")?;
    cluster.sql("VACUUM another_table")?;
    let page = "SELECT ctid FROM pg_class WHERE relname = 'another_table'";
    let chain = Chain::read(&mut cluster, from, "pg_class", page)?.since_last_image()?.cut(2);
    chain.check(2)?;
    measure("redo-short", &chain, size)
}

pub fn medium(size: Size) -> anyhow::Result<Vec<Report>> {
    let (mut cluster, from) = started()?;
    cluster.sql("CREATE TABLE t (a int)")?;
    cluster.sql("INSERT INTO t SELECT generate_series(1, 226)")?;
    cluster.sql("CHECKPOINT")?;
    cluster.sql("SELECT count(*) FROM t")?;
    let chain = Chain::read(&mut cluster, from, "t", "SELECT max(ctid) FROM t")?;
    chain.check(227)?;
    measure("redo-medium", &chain, size)
}

fn started() -> anyhow::Result<(Cluster, Lsn)> {
    let mut cluster = Cluster::create(&Postgres::find(15)?, SETTINGS)?;
    let from = control_file(&cluster.data())?.checkpoint().redo;
    cluster.start()?;
    Ok((cluster, from))
}

/// The stored changes of one page, oldest first.
struct Chain {
    key: Key,
    changes: Vec<(Lsn, Bytes)>,
    /// Of the records they were cut from.
    wal_bytes: Vec<usize>,
    /// The page in the stopped cluster's file.
    on_disk: PageImage,
}

impl Chain {
    /// Stops the cluster and takes the page's changes out of its WAL. `page` selects a `ctid`.
    fn read(cluster: &mut Cluster, from: Lsn, table: &str, page: &str) -> anyhow::Result<Chain> {
        let number = |sql: &str| -> anyhow::Result<u32> { Ok(cluster.sql(sql)?.parse()?) };
        let rel = RelTag {
            tablespace: 1663,
            database: number("SELECT oid FROM pg_database WHERE datname = current_database()")?,
            relation: number(&format!("SELECT pg_relation_filenode('{table}')"))?,
            fork: Fork::Main,
        };
        let block = number(&format!("SELECT (({page})::text::point)[0]::int"))?;
        cluster.stop("fast")?;
        let file = read(cluster.data().join(path_of(MAJOR, rel, 0)))?;
        let on_disk =
            file.as_chunks::<PAGE_SIZE>().0.get(block as usize).context("no such page")?;
        let mut chain = Chain {
            key: Key::rel_block(rel, block),
            changes: Vec::new(),
            wal_bytes: Vec::new(),
            on_disk: Box::new(*on_disk),
        };
        chain.collect(cluster, from)?;
        Ok(chain)
    }

    fn collect(&mut self, cluster: &Cluster, from: Lsn) -> anyhow::Result<()> {
        let mut state = ClusterState::from_control(&control_file(&cluster.data())?);
        let mut log = Log::open(MAJOR, &cluster.wal_dir(), from);
        log.for_each_record(|raw| {
            for effect in effects(&mut state, &Record::decode(MAJOR, raw)?, MAJOR)? {
                match effect {
                    Effect::Page { rel, block, change }
                        if Key::rel_block(rel, block) == self.key =>
                    {
                        self.changes.push((raw.end, change.encode()));
                        self.wal_bytes.push(raw.bytes.len());
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    fn since_last_image(mut self) -> anyhow::Result<Chain> {
        let is_image = |bytes: &Bytes| {
            PageChange::decode(bytes).is_ok_and(|change| matches!(change, PageChange::Image(_)))
        };
        let last = self.changes.iter().rposition(|(_, bytes)| is_image(bytes));
        let last = last.context("no image of the page")?;
        self.changes.drain(..last);
        self.wal_bytes.drain(..last);
        Ok(self)
    }

    fn cut(mut self, changes: usize) -> Chain {
        self.changes.truncate(changes);
        self.wal_bytes.truncate(changes);
        self
    }

    /// The same in memory of its own.
    fn copied(&self) -> Chain {
        let copy = |(lsn, bytes): &(Lsn, Bytes)| (*lsn, Bytes::copy_from_slice(bytes));
        Chain {
            key: self.key,
            changes: self.changes.iter().map(copy).collect(),
            wal_bytes: self.wal_bytes.clone(),
            on_disk: self.on_disk.clone(),
        }
    }

    /// What the page server does for a page that nobody has cached.
    fn redo(&self) -> anyhow::Result<PageImage> {
        let mut page = Box::new([0; PAGE_SIZE]);
        for (lsn, bytes) in &self.changes {
            let change = PageChange::decode(bytes)?;
            redo::apply(MAJOR, &self.key, *lsn, &change, &mut page)?;
        }
        Ok(page)
    }

    /// As many changes as there should be, and the page that Postgres has.
    fn check(&self, changes: usize) -> anyhow::Result<()> {
        let found = self.changes.len();
        ensure!(found == changes, "{found} changes of the page instead of {changes}");
        let difference = difference(rmgr::HEAP, self.key.block(), &*self.redo()?, &self.on_disk);
        ensure!(difference.is_none(), "redo differs from the file: {difference:?}");
        Ok(())
    }
}

fn measure(name: &'static str, chain: &Chain, size: Size) -> anyhow::Result<Vec<Report>> {
    let (samples, window, rounds) = match size {
        Size::Full => (20_000, Duration::from_millis(200), 5),
        Size::Smoke => (200, Duration::from_millis(5), 1),
    };
    let label = format!(
        "{} records, {:.1} KB",
        chain.changes.len(),
        chain.wal_bytes.iter().sum::<usize>() as f64 / 1e3
    );
    // Enough redos for a sample that the clock does not matter.
    let batch = (512 / chain.changes.len()).max(2) as u32;
    let mut latencies = histogram();
    for _ in 0..samples {
        let began = Instant::now();
        for _ in 0..batch {
            black_box(black_box(chain).redo()?);
        }
        latencies.record((began.elapsed() / batch).as_nanos() as u64)?;
    }
    let latency = Report::latency(name, label.clone(), "us", 1e3, &latencies);
    Ok([latency].into_iter().chain(two_callers(name, chain, &label, window, rounds)).collect())
}

/// Redos a second of two callers with a page each, with the ratio to one; then of two callers that want the same page at
/// the same time, who share its stored bytes and so the counts of who holds them.
///
/// The ratio is the median of several rounds, each the median of five pairs of measurements: anything else that runs
/// takes from the two what one would not miss.
fn two_callers(
    name: &'static str,
    chain: &Chain,
    label: &str,
    window: Duration,
    rounds: usize,
) -> [Report; 2] {
    [true, false].map(|own_pages| {
        let (mut rates, mut ratios) = (Spread::default(), Spread::default());
        for _ in 0..rounds {
            let mut round = Spread::default();
            for _ in 0..5 {
                let one = throughput(chain, 1, own_pages, window);
                let two = throughput(chain, 2, own_pages, window);
                rates.push(two / 1e3);
                round.push(two / one);
            }
            ratios.push(round.median());
        }
        let what = if own_pages { "a page each" } else { "the same page" };
        eprintln!("  two callers, {what}, against one, by round: {ratios}");
        let size = format!("{label}, 2 callers, {what}");
        Report { ratio: Some(ratios.median()), ..Report::figure(name, size, "k redos/s", &rates) }
    })
}

/// Redos a second of `callers` threads, together.
fn throughput(chain: &Chain, callers: usize, own_pages: bool, window: Duration) -> f64 {
    let barrier = Barrier::new(callers);
    thread::scope(|scope| {
        let caller = || {
            let own = own_pages.then(|| chain.copied());
            let chain = own.as_ref().unwrap_or(chain);
            barrier.wait();
            let (began, mut redos) = (Instant::now(), 0_u32);
            while began.elapsed() < window {
                (0..16).for_each(|_| drop(black_box(black_box(chain).redo())));
                redos += 16;
            }
            f64::from(redos) / began.elapsed().as_secs_f64()
        };
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).sum()
    })
}
