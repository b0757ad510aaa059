use proptest::prelude::*;
use treering_pgfmt::wal::encode::{self, Origin};

use super::*;

const ORIGIN: Origin = Origin { major: PgMajor::V17, tli: 3, system_id: 77 };
/// A record's end in the middle of a page.
const START: Lsn = Lsn(2 * WAL_SEGMENT_SIZE + 5 * WAL_PAGE_SIZE + 800);
const SWITCH: u8 = 0x40;

/// A log as Postgres inserts it, and the part of it that is in files.
struct Server {
    dir: tempfile::TempDir,
    log: Vec<u8>,
    /// Where records are whole, and where they end: behind padding or filler.
    ends: Vec<(Lsn, Lsn)>,
    /// Start of the last one.
    last: Lsn,
}

impl Server {
    fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        Server { dir, log: Vec::new(), ends: vec![(START, START)], last: Lsn(8) }
    }

    fn end(&self) -> Lsn {
        self.ends.last().unwrap().1
    }

    /// `None`: an XLOG SWITCH.
    fn insert(&mut self, length: Option<usize>) {
        let at = self.end();
        let record = match length {
            Some(length) => encode::record(1, self.last, 0, 10, &vec![1; length]),
            None => encode::record(0, self.last, SWITCH, 0, &[]),
        };
        let laid_out = encode::lay_out(&ORIGIN, at, &record);
        let padding = record.len().next_multiple_of(8) - record.len();
        let whole = Lsn(laid_out.end.0 - padding as u64);
        self.log.extend(laid_out.bytes);
        self.last = laid_out.record_start;
        let mut end = laid_out.end;
        if length.is_none() {
            end = Lsn(end.0.next_multiple_of(WAL_SEGMENT_SIZE));
            self.log.resize(end.bytes_since(START).unwrap() as usize, 0);
        }
        self.ends.push((whole, end));
    }

    /// Writes the pages that hold something of what is before `inserted`, with nothing behind it.
    fn write(&self, inserted: Lsn) {
        let mut page = START.page_start();
        while page < inserted {
            let from = page.max(START);
            let to = (page + WAL_PAGE_SIZE).min(inserted);
            let mut bytes = self.bytes(from, to).to_vec();
            bytes.resize((page + WAL_PAGE_SIZE).bytes_since(from).unwrap() as usize, 0);
            self.put(from, &bytes);
            page = page + WAL_PAGE_SIZE;
        }
    }

    fn put(&self, at: Lsn, bytes: &[u8]) {
        let path = self.dir.path().join(at.segment_file_name(ORIGIN.tli));
        let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
        file.set_len(WAL_SEGMENT_SIZE).unwrap();
        file.write_all_at(bytes, at.segment_offset()).unwrap();
    }

    fn tail(&self) -> Tail {
        Tail::new(self.dir.path().to_owned(), ORIGIN.major, ORIGIN.tli, START)
    }

    fn bytes(&self, from: Lsn, to: Lsn) -> &[u8] {
        let at = |lsn: Lsn| lsn.bytes_since(START).unwrap() as usize;
        &self.log[at(from)..at(to)]
    }
}

/// Everything that is there now.
fn read_all(tail: &mut Tail) -> Result<Vec<u8>, TailError> {
    let (begin, mut all) = (tail.next(), Vec::new());
    loop {
        let written = tail.read()?;
        assert_eq!(written.from, begin + all.len() as u64);
        all.extend_from_slice(&written.bytes);
        assert_eq!(tail.next(), begin + all.len() as u64);
        if written.is_all {
            return Ok(all);
        }
        assert!(!written.bytes.is_empty(), "it would be asked for ever");
    }
}

fn lengths() -> impl Strategy<Value = Vec<Option<usize>>> {
    let length = prop_oneof![
        16 => (1..400_usize).prop_map(Some),
        5 => (7000..20_000_usize).prop_map(Some),
        2 => (100_000..3_000_000_usize).prop_map(Some),
        1 => Just(None),
    ];
    prop::collection::vec(length, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_inserted_is_read_once_and_nothing_that_may_change(
        lengths in lengths(),
        stops in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut server = Server::new();
        lengths.iter().for_each(|length| server.insert(*length));
        // How far it was inserted when it was written: a record's end, or in the middle of one that is being copied.
        let inserted = server.log.len() + 1;
        // A page's header is whole before anything is written of it (`AdvanceXLInsertBuffer`).
        let outside_headers = |stop: Lsn| match stop.page_start() {
            page if stop < encode::record_start_after(page) => page,
            _ => stop,
        };
        let mut stops: Vec<_> =
            stops.iter().map(|stop| outside_headers(START + stop.index(inserted) as u64)).collect();
        stops.push(server.end());
        stops.sort();
        let mut tail = server.tail();
        for stop in stops {
            server.write(stop);
            let from = tail.next();
            let read = read_all(&mut tail).unwrap();
            let whole = server.ends.iter().rfind(|(whole, _)| *whole <= stop).unwrap().1;
            let last_page = if stop.page_offset() == 0 { stop.0 - WAL_PAGE_SIZE } else { stop.page_start().0 };
            prop_assert_eq!(tail.whole(), whole);
            prop_assert_eq!(tail.next(), whole.max(Lsn(last_page)).max(from));
            prop_assert!(read == server.bytes(from, tail.next()));
        }
        prop_assert_eq!(tail.next(), server.end());
    }
}

#[test]
fn a_log_that_goes_on_behind_what_is_no_record_is_damaged() {
    let mut server = Server::new();
    (0..2000).for_each(|_| server.insert(Some(100)));
    server.write(server.end());
    let damaged = Lsn(server.end().page_start().0 - WAL_PAGE_SIZE + 3000);
    server.put(damaged, b"?");
    let mut tail = server.tail();
    for _ in 0..2 {
        let error = read_all(&mut tail).unwrap_err();
        assert!(
            matches!(error, TailError::Damaged { at, .. } if at <= damaged && at + 200 > damaged),
            "{error}"
        );
    }
    // When it is as it should be, it goes on.
    server.write(server.end());
    assert_eq!(read_all(&mut tail).unwrap(), server.log);
}

#[test]
fn what_was_read_must_stay_as_it_was() {
    for length in [100, 8000] {
        let mut server = Server::new();
        (0..100).for_each(|_| server.insert(Some(length)));
        server.write(server.end());
        let mut tail = server.tail();
        read_all(&mut tail).unwrap();
        let (whole, _) = *server.ends.last().unwrap();
        server.put(Lsn(whole.0 - 1), b"?");
        server.insert(Some(100));
        let error = read_all(&mut tail).unwrap_err();
        assert!(error.to_string().contains("has changed"), "{error}");
    }
}

#[test]
fn a_record_too_long_for_any_reader_holds_nothing_up() {
    let mut server = Server::new();
    server.insert(Some(100));
    let begin = server.end();
    let mut record = encode::record(1, server.last, 0, 10, &vec![1; 60_000]);
    record[..4].copy_from_slice(&0xf000_0000_u32.to_le_bytes());
    server.log.extend(encode::lay_out(&ORIGIN, begin, &record).bytes);
    let end = START + server.log.len() as u64;
    server.write(end);
    let mut tail = server.tail();
    read_all(&mut tail).unwrap();
    assert_eq!(tail.next(), end.page_start());
}

#[test]
fn a_page_is_that_of_its_place_or_nothing() {
    let mut server = Server::new();
    (0..300).for_each(|_| server.insert(Some(1000)));
    server.write(server.end());
    let behind = server.end().page_start() + WAL_PAGE_SIZE;
    let page = Lsn(behind.0 - WAL_SEGMENT_SIZE);
    server.put(behind, &encode::page_header(ORIGIN.major, ORIGIN.tli, page, 77, 0, 0));
    let error = read_all(&mut server.tail()).unwrap_err();
    assert!(matches!(error, TailError::Damaged { at, .. } if at == behind), "{error}");
}

#[test]
fn a_segment_is_missing_only_where_one_begins() {
    let mut server = Server::new();
    assert!(server.tail().read().is_err_and(|error| error.to_string().contains("missing")));
    server.insert(None);
    server.write(server.ends[1].0);
    let mut tail = server.tail();
    assert_eq!(read_all(&mut tail).unwrap(), server.log);
    assert_eq!(tail.next().segment_offset(), 0);
    assert!(read_all(&mut tail).unwrap().is_empty());
    server.insert(Some(10));
    server.write(server.end());
    assert_eq!(read_all(&mut tail).unwrap().len(), 80);
}

#[test]
fn a_log_that_goes_on_in_a_later_segment_alone_is_damaged() {
    let mut server = Server::new();
    server.insert(None);
    server.write(server.ends[1].0);
    let mut tail = server.tail();
    read_all(&mut tail).unwrap();
    let missing = server.end();
    for name in ["archive_status", "00000004.history", "xlogtemp.17"] {
        std::fs::write(server.dir.path().join(name), "").unwrap();
    }
    assert!(read_all(&mut tail).unwrap().is_empty());
    server.insert(None);
    server.insert(Some(10));
    server.write(server.end());
    let missing_file = server.dir.path().join(missing.segment_file_name(ORIGIN.tli));
    std::fs::remove_file(missing_file).unwrap();
    let error = read_all(&mut tail).unwrap_err();
    assert!(matches!(error, TailError::Damaged { at, .. } if at == missing), "{error}");
}

#[test]
fn a_segment_that_is_cut_off_is_damaged() {
    let mut server = Server::new();
    (0..3000).for_each(|_| server.insert(Some(1000)));
    server.write(server.end());
    let file = server.dir.path().join(START.segment_file_name(ORIGIN.tli));
    File::options().write(true).open(file).unwrap().set_len(WAL_SEGMENT_SIZE / 8).unwrap();
    let error = read_all(&mut server.tail()).unwrap_err();
    let cut = Lsn(START.segment_start().0 + WAL_SEGMENT_SIZE / 8);
    assert!(matches!(error, TailError::Damaged { at, .. } if at <= cut), "{error}");
}
