//! The log of a busy cluster, record by record, against `pg_waldump`; its images against the relation files.

use std::{collections::HashMap, fs};

use treering_pgfmt::{
    relpath,
    version::PgMajor,
    wal::{
        error::WalError,
        reader::{WalDecoder, find_first_record},
        record::{RawRecord, Record},
    },
};
use treering_stock::{Cluster, Postgres};
use treering_types::{Lsn, PAGE_SIZE, RelTag, WAL_SEGMENT_SIZE};

const MAJOR: PgMajor = PgMajor::V15;

/// All records in `pg_wal` from the record boundary `from` (else from the first segment there), and where the log
/// ends.
pub fn read_log(cluster: &Cluster, from: Option<Lsn>) -> (Vec<RawRecord<'static>>, Lsn) {
    let first_name = from.map(|from| from.segment_file_name(0)).unwrap_or_default();
    let is_segment =
        |name: &String| name.len() == 24 && name[8..] >= *first_name.get(8..).unwrap_or("");
    let names = fs::read_dir(cluster.wal_dir()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(is_segment).collect();
    names.sort();
    let number = |part: &str| u64::from_str_radix(part, 16).unwrap();
    let first = (number(&names[0][8..16]) << 32) + number(&names[0][16..]) * WAL_SEGMENT_SIZE;
    let segments = names.iter().map(|name| fs::read(cluster.wal_dir().join(name)).unwrap());
    let segments: Vec<Vec<u8>> = segments.collect();
    let start = from.unwrap_or_else(|| {
        find_first_record(MAJOR, Lsn(first), &segments[0]).unwrap().expect("a record begins")
    });
    let mut decoder = WalDecoder::new(MAJOR, start);
    let mut records = Vec::new();
    let mut skip = (start.0 - first) as usize;
    for segment in segments {
        decoder.feed(&segment[skip..]);
        skip = 0;
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => records.push(record.into_owned()),
                Ok(None) => break,
                Err(WalError::EndOfWal { at }) => {
                    assert_eq!(at, decoder.position());
                    return (records, at);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    panic!("the log has no end");
}

/// What `pg_waldump` says of one record.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    total_len: u32,
    xid: u32,
    start: Lsn,
    prev: Lsn,
    blocks: usize,
    images: usize,
}

fn parse_line(line: &str) -> Line {
    let after = |word: &str| line.split_once(word).unwrap().1.trim_start();
    let lsn = |word| after(word).split([',', ' ']).next().unwrap().parse().unwrap();
    Line {
        total_len: after("len (rec/tot):")
            .split_once('/')
            .and_then(|(_, rest)| rest.trim_start().split(',').next())
            .unwrap()
            .parse()
            .unwrap(),
        xid: after("tx:").split(',').next().unwrap().parse().unwrap(),
        start: lsn("lsn:"),
        prev: lsn("prev "),
        blocks: line.matches("blkref #").count(),
        images: line.matches(" FPW").count(),
    }
}

fn line_of(record: &Record, total_len: usize) -> Line {
    Line {
        total_len: total_len as u32,
        xid: record.xid,
        start: record.start,
        prev: record.prev,
        blocks: record.blocks.len(),
        images: record.blocks.iter().filter(|block| block.image.is_some()).count(),
    }
}

/// What `pg_waldump` prints and complains of from `start` to the log's end.
fn dump(cluster: &Cluster, args: &[&str], start: Lsn) -> (String, String) {
    let mut command = cluster.command("pg_waldump").unwrap();
    command.args(args).arg("-p").arg(cluster.wal_dir()).args(["-s", &start.to_string()]);
    // Without an end it reports the end of the log as an error: that is one of the facts we compare.
    let output = command.output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn busy_cluster() -> Cluster {
    let settings = "max_prepared_transactions=5\nwal_keep_size=1GB\nmax_wal_size=4GB\n\
                    track_commit_timestamp=on\nautovacuum=off";
    let mut cluster = Cluster::create(&Postgres::find(15).unwrap(), settings).unwrap();
    cluster.start().unwrap();
    cluster.pgbench(&["-i", "-q", "-s", "1"]).unwrap();
    cluster.sql("select pg_switch_wal()").unwrap();
    cluster.pgbench(&["-n", "-c", "2", "-t", "200"]).unwrap();
    for (method, number) in [("pglz", 1), ("lz4", 2), ("zstd", 3), ("off", 4)] {
        cluster
            .sql(&format!(
            "checkpoint; set wal_compression={method}; create table t{number} as select i, i/7 j
             from generate_series(1, 3000) i; create index on t{number}(j, i);
             update t{number} set j = 0 where i % 100 = 0"
        ))
            .unwrap();
    }
    // A record of many pages: one large message.
    cluster.sql("select pg_logical_emit_message(false, 'x', repeat('y', 300000))").unwrap();
    cluster.sql("begin; insert into t1 values (-1); prepare transaction 'held'").unwrap();
    cluster.sql("select pg_switch_wal(); checkpoint").unwrap();
    cluster.stop("fast").unwrap();
    cluster
}

/// Pages whose newest change is a restored image must stand in the relation file as the image says.
fn compare_images(cluster: &Cluster, records: &[Record]) -> HashMap<String, usize> {
    let mut newest: HashMap<(RelTag, u32), &Record> = HashMap::new();
    for record in records {
        for block in &record.blocks {
            newest.insert((block.rel, block.block), record);
        }
    }
    let mut equal = HashMap::new();
    for ((rel, number), record) in newest {
        let block = record.blocks.iter().find(|b| (b.rel, b.block) == (rel, number)).unwrap();
        let Some(image) = block.image.as_ref().filter(|image| image.apply) else { continue };
        let path = cluster.data().join(relpath::path_of(MAJOR, rel, 0));
        let Ok(file) = fs::read(&path) else { continue };
        let offset = number as usize * PAGE_SIZE;
        let Some(disk) = file.get(offset..offset + PAGE_SIZE) else { continue };
        let page = image.restore_at(record.end).unwrap().to_page();
        // The LSN first; then all but the checksum, which only the file has.
        if disk[..8] == page[..8] && disk[10..] == page[10..] {
            let hole = if image.hole_length > 0 { " with hole" } else { "" };
            *equal.entry(format!("{:?}{hole}", image.compression)).or_default() += 1;
        }
    }
    equal
}

#[test]
fn records_are_what_pg_waldump_says() {
    let cluster = busy_cluster();
    let (raws, end) = read_log(&cluster, None);
    let records: Vec<Record> = raws.iter().map(|raw| Record::decode(MAJOR, raw).unwrap()).collect();
    let start = records[0].start;

    let (lines, complaint) = dump(&cluster, &[], start);
    let lines: Vec<Line> = lines.lines().map(parse_line).collect();
    assert_eq!(lines.len(), records.len());
    for (line, (record, raw)) in lines.iter().zip(records.iter().zip(&raws)) {
        assert_eq!(*line, line_of(record, raw.bytes.len()));
    }
    assert!(complaint.contains(&format!("invalid record length at {end}: ")), "{complaint}");

    let (stats, _) = dump(&cluster, &["--stats=record"], start);
    let total = stats.lines().find(|line| line.starts_with("Total")).unwrap();
    let total: usize = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(total, records.len());
    assert!(total > 1500 && raws.iter().any(|raw| raw.bytes.len() > 300_000), "{total}");
    let switches = records.iter().filter(|r| r.rmid == 0 && r.rmgr_info() == 0x40);
    assert!(switches.filter(|record| record.end.segment_offset() == 0).count() >= 2);

    for image in records.iter().flat_map(|r| &r.blocks).filter_map(|block| block.image.as_ref()) {
        image.restore().unwrap();
    }
    let equal = compare_images(&cluster, &records);
    for method in ["None", "None with hole", "Pglz with hole", "Lz4 with hole", "Zstd with hole"] {
        assert!(equal.contains_key(method), "{method}: {equal:?}");
    }
    crate::files::check(&cluster, &records);
}
