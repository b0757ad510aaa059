//! What cannot be redone and must say so.

use treering_pgfmt::{
    judge::Judge,
    page::Page,
    redo::{self, rmgr},
    version::PgMajor,
    wal::{
        effects::{Effect, effects},
        encode::{self, Origin},
        reader::WalDecoder,
        record::Record,
        state::ClusterState,
    },
};
use treering_stock::Postgres;
use treering_types::{Key, Lsn, PAGE_SIZE};
use xtask::standby;

use super::{
    handmade::{Ref, body, rel},
    scene::{Hints, cluster, kept, read_control, records, script, template},
};

const CUSTOM: u8 = 200;

/// A record as a server would have written it.
fn record(major: PgMajor, rmid: u8, body: &[u8]) -> Record<'static> {
    let at = Lsn(0x200_2028);
    let raw = encode::record(900, Lsn(0x200_2000), 0x10, rmid, body);
    let laid_out = encode::lay_out(&Origin { major, tli: 1, system_id: 1 }, at, &raw);
    let mut decoder = WalDecoder::new(major, at);
    decoder.feed(&laid_out.bytes);
    let raw = decoder.next_record().unwrap().unwrap();
    kept(major, &Record::decode(major, &raw).unwrap())
}

/// A page that an extension's resource manager has changed cannot be read, and the error names the manager; an image
/// heals it.
#[test]
fn e17_custom_resource_managers_make_a_page_unreadable() {
    for major in PgMajor::ALL {
        let mut judge = Judge::new(major, ClusterState::default(), ());
        let key = Key::rel_block(rel(90001), 3);
        let fpi = |judge: &mut Judge<()>| {
            let mut image = [7; PAGE_SIZE];
            Page::new(&mut image).init(0);
            let mut fpi =
                record(major, rmgr::XLOG, &body(&[Ref::new(90001, 3).image(&image)], &[]));
            fpi.info = 0xb0;
            judge.judge(&fpi);
        };
        fpi(&mut judge);
        assert!(judge.page(&key).unwrap().readable);

        let custom =
            record(major, CUSTOM, &body(&[Ref::new(90001, 3).data(b"what it did")], b"main"));
        let found = judge.judge(&custom);
        let [Effect::Page { rel: of, block: 3, change }, ..] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(*of, rel(90001));
        assert!(!judge.page(&key).unwrap().readable);
        let mut page = [7; PAGE_SIZE];
        let error = redo::apply(major, &key, custom.end, change, &mut page).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("custom (rmid 200)") && text.contains("not handled"), "{text}");

        // What it does without a page is kept as well: nobody knows what it is.
        let pageless = record(major, CUSTOM, &body(&[], b"main"));
        let found = judge.judge(&pageless);
        assert!(matches!(found[..], [Effect::Unhandled { rel: None, rmid: CUSTOM, .. }]));

        // A later record of our own does not make it readable.
        let heap = record(major, rmgr::HEAP, &body(&[Ref::new(90001, 3)], &[0; 8]));
        judge.judge(&heap);
        assert!(!judge.page(&key).unwrap().readable);
        fpi(&mut judge);
        assert!(judge.page(&key).unwrap().readable);
        assert!(judge.findings.is_empty(), "{:?}", judge.findings);
    }
}

/// From where the server stops logging new files whole, nothing may be applied: stock recovery refuses too.
#[test]
fn e18_wal_of_level_minimal_is_refused() {
    for major in [15, 17] {
        let base = template(major, Hints::Logged);
        let mut server = cluster(major, &base, "wal_level = minimal\nmax_wal_senders = 0");
        server.start().unwrap();
        script(
            &server,
            "begin; create table unlogged_so_far as select generate_series(1, 5000) i; commit; checkpoint;",
        );
        server.stop("fast").unwrap();
        let records = records(&base, &server.wal_dir());
        let mut state = ClusterState::from_control(&read_control(&base));
        let mut refused = None;
        for record in &records {
            let before = state.clone();
            if let Err(error) = effects(&mut state, record, PgMajor::from_number(major).unwrap()) {
                assert_eq!((record.rmid, record.info & 0xf0, &before), (rmgr::XLOG, 0x60, &state));
                refused = Some(error);
                break;
            }
        }
        let error = refused.unwrap().to_string();
        assert!(error.contains("wal_level") && error.contains("minimal"), "{error}");
        let last = records.last().unwrap().start;
        let postgres = Postgres::find(major).unwrap();
        let stock = standby::recover(&postgres, &base, &server.wal_dir(), last).map(|_| ());
        let stock = stock.unwrap_err().to_string();
        assert!(stock.contains("wal_level=minimal"), "{stock}");
    }
}
