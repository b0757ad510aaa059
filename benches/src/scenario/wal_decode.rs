//! `wal-decode`: raw WAL of pgbench (loading, then TPC-B, full-page writes on) to decoded records on one core: page headers,
//! checksums, links and record layouts checked; images stay packed.

use std::time::Instant;

use anyhow::ensure;
use treering_bench::{
    cpu::Pinned,
    log::{Log, bytes_between, control_file},
};
use treering_pgfmt::{
    version::PgMajor,
    wal::{reader::WalDecoder, record::Record},
};
use treering_stock::{Cluster, Postgres};
use treering_types::Lsn;

use super::Size;
use crate::report::{Report, Spread};

const MAJOR: PgMajor = PgMajor::V15;
const SETTINGS: &str = "
checkpoint_timeout=1d
max_wal_size=100GB
wal_keep_size=100GB
synchronous_commit=off
full_page_writes=on
";

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, transactions, passes) =
        if size == Size::Full { (10, 20_000, 15) } else { (1, 200, 3) };
    let (start, wal) = wal_of_pgbench(scale, transactions)?;
    let _pinned = Pinned::to_last_core()?;
    let (mut megabytes, mut records) = (Spread::default(), Spread::default());
    for _ in 0..passes {
        let began = Instant::now();
        let count = decode(start, &wal)?;
        let seconds = began.elapsed().as_secs_f64();
        megabytes.push(wal.len() as f64 / 1e6 / seconds);
        records.push(count as f64 / 1e3 / seconds);
    }
    let label = format!("{} MB", wal.len() / 1_000_000);
    Ok(vec![
        Report::figure("wal-decode", label.clone(), "MB/s", &megabytes),
        Report::figure("wal-decode", label, "k records/s", &records),
    ])
}

/// Bytes fed at once: as much as a walsender sends in one message.
const CHUNK_BYTES: usize = 128 * 1024;

/// Decodes everything; answers how many records there were.
fn decode(start: Lsn, wal: &[u8]) -> anyhow::Result<u64> {
    let mut decoder = WalDecoder::new(MAJOR, start);
    let (mut records, mut blocks) = (0, 0);
    for chunk in wal.chunks(CHUNK_BYTES) {
        decoder.feed(chunk);
        while let Some(raw) = decoder.next_record()? {
            blocks += Record::decode(MAJOR, &raw)?.blocks.len();
            records += 1;
        }
    }
    ensure!(records > 0 && blocks > 0, "nothing decoded");
    Ok(records)
}

/// From the first checkpoint of a new cluster to its end: contiguous raw WAL in memory.
fn wal_of_pgbench(scale: u32, transactions: u32) -> anyhow::Result<(Lsn, Vec<u8>)> {
    let mut cluster = Cluster::create(&Postgres::find(15)?, SETTINGS)?;
    let start = control_file(&cluster.data())?.checkpoint().redo;
    cluster.start()?;
    eprintln!("  pgbench at scale {scale}: loading, then 2 x 4 x {transactions} transactions");
    cluster.pgbench(&["-i", "-q", "-s", &scale.to_string(), "postgres"])?;
    for _ in 0..2 {
        cluster.sql("CHECKPOINT")?;
        let transactions = transactions.to_string();
        cluster.pgbench(&["-n", "-c", "4", "-j", "2", "-t", &transactions, "postgres"])?;
    }
    cluster.stop("fast")?;
    let mut log = Log::open(MAJOR, &cluster.wal_dir(), start);
    log.for_each_record(|_| Ok(()))?;
    let wal = bytes_between(&cluster.wal_dir(), start, log.position())?;
    Ok((start, wal))
}
