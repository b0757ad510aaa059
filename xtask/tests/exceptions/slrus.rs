//! Transaction status and multixacts: pages that turn, segments that are truncated, numbers that wrap around.

use std::collections::BTreeMap;

use treering_pgfmt::{
    redo::{
        rmgr,
        slru::{MEMBERS_PER_PAGE, MULTIS_PER_PAGE, PAGES_PER_SEGMENT, XACTS_PER_PAGE},
    },
    wal::state::ClusterState,
};
use treering_stock::run;
use treering_types::{Key, PAGE_SIZE, PageImage, SlruKind};
use xtask::replica::Replica;

use super::{
    handmade::{Writer, words},
    ordinary::{assert_all_clean, lives},
    scene::{Hints, Primary, Scene, base_copy, cluster, move_counters, script, template},
};

const ZERO_OFFSETS: u8 = 0x00;
const ZERO_MEMBERS: u8 = 0x10;
const CREATE_ID: u8 = 0x20;
const TRUNCATE_ID: u8 = 0x30;

/// Multixacts of two members each: a key share and an update of a subtransaction.
fn multixacts(count: u32) -> String {
    format!(
        "do $$ begin
           for i in 1..{count} loop
             perform 1 from t where id = i for key share;
             begin
               update t set n = n + 1 where id = i;
             exception when division_by_zero then null;
             end;
           end loop;
         end $$;"
    )
}

/// Transaction ids that some table was told of.
fn subtransactions(count: u32) -> String {
    format!(
        "do $$ begin
           for i in 1..{count} loop
             begin
               insert into s values (i);
               if i % 10 = 0 then raise exception 'tenth'; end if;
             exception when raise_exception then null;
             end;
           end loop;
         end $$;"
    )
}

const TABLES: &str = "
create table t (id int primary key, n int) with (fillfactor = 50);
insert into t select g, 0 from generate_series(1, 3000) g;
create table s (id int);
";

type Pages = BTreeMap<(u8, u32), PageImage>;

/// SLRU pages with every entry blanked that belongs to no id that is in use: those before the oldest and from the
/// next on, which a server may have zeroed, removed or left.
fn in_use(state: &ClusterState, page: impl Fn(&Key) -> Option<PageImage>) -> Pages {
    let offset_of = |multi: u32| {
        let page = page(&Key::slru(SlruKind::MultiOffsets, multi / MULTIS_PER_PAGE));
        let at = (multi % MULTIS_PER_PAGE * 4) as usize;
        page.map_or(0, |page| u32::from_le_bytes(page[at..at + 4].try_into().unwrap()))
    };
    let members = if state.oldest_multi == state.next_multi {
        state.next_multi_offset..state.next_multi_offset
    } else {
        offset_of(state.oldest_multi)..state.next_multi_offset
    };
    let ranges = [
        (SlruKind::Xact, XACTS_PER_PAGE, state.oldest_xid..state.next_xid as u32),
        (SlruKind::MultiOffsets, MULTIS_PER_PAGE, state.oldest_multi..state.next_multi),
        (SlruKind::MultiMembers, MEMBERS_PER_PAGE, members),
    ];
    let mut found = Pages::new();
    for (kind, per_page, range) in ranges {
        let mut id = range.start;
        while id != range.end {
            let number = id / per_page;
            let before =
                page(&Key::slru(kind, number)).unwrap_or_else(|| panic!("{kind:?} {number}"));
            let kept =
                found.entry((kind as u8, number)).or_insert_with(|| Box::new([0; PAGE_SIZE]));
            let entry = id % per_page;
            let bytes = match kind {
                SlruKind::Xact => entry / 4..entry / 4 + 1,
                SlruKind::MultiOffsets => entry * 4..entry * 4 + 4,
                _ => entry / 4 * 20 + 4 + entry % 4 * 4..entry / 4 * 20 + 8 + entry % 4 * 4,
            };
            let bytes = bytes.start as usize..bytes.end as usize;
            let mask = if kind == SlruKind::Xact { 3 << (2 * (entry % 4)) } else { 0xff };
            for at in bytes {
                kept[at] |= before[at] & mask;
            }
            if kind == SlruKind::MultiMembers {
                let at = (entry / 4 * 20 + entry % 4) as usize;
                kept[at] = before[at];
            }
            id = id.wrapping_add(1);
        }
    }
    found
}

fn assert_like_the_primary(replica: &Replica, primary: &Primary) {
    let state = &replica.judge.state;
    let ours = in_use(state, |key| replica.page(key));
    let theirs = in_use(state, |key| primary.page(key).cloned());
    assert!(ours == theirs);
}

fn first_page_is_gone(primary: &Primary, kind: SlruKind) -> bool {
    !primary.inventory.slru.contains(&(kind, 0))
}

/// Every entry below the next id is what the server has, though it saw its own hint of it first.
#[test]
fn slrus_are_those_of_the_server() {
    for life in lives() {
        let replica = life.scene.replayed();
        assert_like_the_primary(&replica, life.scene.primary.as_ref().unwrap());
        assert!(life.scene.count(rmgr::MULTIXACT, CREATE_ID) >= 2200);
        assert!(life.scene.count(rmgr::MULTIXACT, ZERO_OFFSETS) >= 1);
        assert!(life.scene.count(rmgr::MULTIXACT, ZERO_MEMBERS) >= 2);
    }
    assert_all_clean();
}

/// From the middle of the second segment on: pages of each kind turn, and the first segment is truncated.
#[test]
fn slru_pages_turn_and_segments_are_truncated() {
    const PER_SEGMENT: u32 = PAGES_PER_SEGMENT;
    for major in [15, 17] {
        let base = base_copy(&format!("turns-{major}"), &template(major, Hints::Unlogged));
        move_counters(&base, |counters| {
            counters.next_xid = u64::from(XACTS_PER_PAGE * (PER_SEGMENT + 2) - 500);
            counters.next_multi = MULTIS_PER_PAGE * (PER_SEGMENT + 2) - 50;
            counters.next_multi_offset = MEMBERS_PER_PAGE * (PER_SEGMENT * 2 + 2) - 20;
        });
        let mut server = cluster(major, &base, "track_commit_timestamp = on");
        server.start().unwrap();
        script(&server, TABLES);
        script(&server, &multixacts(100));
        script(&server, &subtransactions(27_000));
        script(&server, "alter database template0 allow_connections true");
        run(server.client("vacuumdb").unwrap().args(["--all", "--freeze", "--quiet"])).unwrap();
        script(&server, &multixacts(2100));
        server.stop("fast").unwrap();

        let scene = Scene::of(&base, &server);
        scene.assert_clean();
        let zero_and_truncate = [
            (rmgr::CLOG, 0x00),
            (rmgr::CLOG, 0x10),
            (rmgr::COMMIT_TS, 0x00),
            (rmgr::COMMIT_TS, 0x10),
        ];
        let multi = [ZERO_OFFSETS, ZERO_MEMBERS, TRUNCATE_ID].map(|info| (rmgr::MULTIXACT, info));
        for (rmid, info) in zero_and_truncate.into_iter().chain(multi) {
            assert!(scene.count(rmid, info) > 0, "{rmid} {info:#x}");
        }
        let replica = scene.replayed();
        let primary = scene.primary.as_ref().unwrap();
        let had = scene.replica().inventory.slru;
        for kind in [SlruKind::Xact, SlruKind::MultiOffsets, SlruKind::MultiMembers] {
            assert!(had.contains(&(kind, 0)) && first_page_is_gone(primary, kind), "{kind:?}");
        }
        assert!(first_page_is_gone(primary, SlruKind::CommitTs));
        assert_like_the_primary(&replica, primary);
        let state = &replica.judge.state;
        assert!(state.oldest_xid > XACTS_PER_PAGE * PER_SEGMENT);
        assert!(state.oldest_multi > MULTIS_PER_PAGE * PER_SEGMENT);
        assert!(state.oldest_commit_ts_xid == state.oldest_xid);
        assert_truncations_move_the_oldest(&scene);
    }
}

/// What a truncation says is known from there on, not from the next checkpoint on.
fn assert_truncations_move_the_oldest(scene: &Scene) {
    let page_number = scene.major.layout().slru_page_number_size;
    let mut replica = scene.replica();
    for record in &scene.records {
        replica.apply(record);
        let state = &replica.judge.state;
        let word = |at: usize| u32::from_le_bytes(record.main[at..at + 4].try_into().unwrap());
        match (record.rmid, record.info & 0xf0) {
            (rmgr::CLOG, 0x10) => {
                let said = (word(page_number), word(page_number + 4));
                assert_eq!((state.oldest_xid, state.oldest_xid_db), said);
            }
            (rmgr::COMMIT_TS, 0x10) => assert_eq!(state.oldest_commit_ts_xid, word(page_number)),
            (rmgr::MULTIXACT, TRUNCATE_ID) => {
                assert_eq!((state.oldest_multi, state.oldest_multi_db), (word(8), word(0)));
            }
            _ => {}
        }
    }
}

/// Transaction ids go into another epoch, multixacts start again at 1, members at 1.
#[test]
fn e07_numbers_wrap_around() {
    for major in [15, 17] {
        let base = base_copy(&format!("wraps-{major}"), &template(major, Hints::Logged));
        move_counters(&base, |counters| {
            counters.next_xid = 0xffff_ffc0;
            counters.oldest_xid = 0xffff_ff00;
            (counters.next_multi, counters.oldest_multi) = (0xffff_fff0, 0xffff_fff0);
            counters.next_multi_offset = 0xffff_ffee;
        });
        let mut server = cluster(major, &base, "track_commit_timestamp = on");
        server.start().unwrap();
        script(&server, TABLES);
        script(&server, "begin; insert into s values (3); prepare transaction 'done';");
        script(&server, &multixacts(10));
        // Its own id is of the old epoch, and when it is prepared the next one is of the new.
        let over_the_end = subtransactions(60);
        script(
            &server,
            &format!("begin; insert into s values (1); {over_the_end} prepare transaction 'kept';"),
        );
        script(
            &server,
            "checkpoint; commit prepared 'done'; begin; insert into s values (4); prepare transaction 'new';",
        );
        script(&server, &multixacts(100));
        server.stop("fast").unwrap();

        let scene = Scene::of(&base, &server);
        scene.assert_clean();
        let replica = scene.replayed();
        let state = &replica.judge.state;
        assert_eq!(state.next_xid >> 32, 1);
        assert!(state.next_multi < 1000 && state.next_multi_offset < 1000);
        assert_like_the_primary(&replica, scene.primary.as_ref().unwrap());
        // Of either epoch, as the names say from 17 on.
        let names: Vec<_> = replica.inventory.two_phase.keys().collect();
        let [first, second] = names[..] else { panic!("{names:?}") };
        let (new, old) = if major < 17 { (first, second) } else { (second, first) };
        let low = |name: &str| u32::from_str_radix(&name[name.len() - 8..], 16).unwrap();
        assert!(low(old) > 0xffff_ff00 && low(new) < 1000);
        assert!(major < 17 || (&old[..8], &new[..8]) == ("00000000", "00000001"));
        // Member 0 does not exist: the multixact whose members would begin there begins at 1.
        let begins = scene.of_type(rmgr::MULTIXACT, CREATE_ID);
        let begins = begins.map(|record| u32::from_le_bytes(record.main[4..8].try_into().unwrap()));
        let begins: Vec<u32> = begins.collect();
        assert!(begins.contains(&1) && !begins.contains(&0), "{begins:?}");
    }
}

/// A multixact as CREATE_ID has it: members begin at `first`.
fn create_id(multi: u32, first: u32, members: &[(u32, u32)]) -> Vec<u8> {
    let members = members.iter().flat_map(|(xid, status)| [*xid, *status]);
    let head = [multi, first, members.clone().count() as u32 / 2];
    words(&head.into_iter().chain(members).collect::<Vec<_>>())
}

/// Servers since 15.16 turn the page before they create a multixact whose end is on the next one; earlier ones create
/// it first. In their WAL the page's ZERO_OFF_PAGE must leave what the creation has put there.
#[test]
fn e13_a_page_of_offsets_is_turned_before_or_after_its_first_entry() {
    for major in [15, 17] {
        for late in [true, false] {
            let base = base_copy(&format!("e13-{major}-{late}"), &template(major, Hints::Logged));
            let mut writer = Writer::new(&base);
            let xid = writer.counters.next_xid as u32;
            let create = create_id(MULTIS_PER_PAGE - 1, 101, &[(xid, 0), (xid, 4)]);
            let zero = writer.page_number(1);
            let mut records = [(CREATE_ID, create), (ZERO_OFFSETS, zero)];
            if !late {
                records.reverse();
            }
            for (info, main) in &records {
                writer.record(xid, rmgr::MULTIXACT, *info, &[], main);
            }
            writer.counters.next_xid += 1;
            (writer.counters.next_multi, writer.counters.next_multi_offset) =
                (MULTIS_PER_PAGE, 103);
            let scene = writer.judge();
            scene.assert_clean();
            let page = scene.replayed().page(&Key::slru(SlruKind::MultiOffsets, 1)).unwrap();
            assert_eq!(page[..4], 103u32.to_le_bytes(), "{major} {late}");
            assert!(page[4..].iter().all(|byte| *byte == 0));
        }
    }
}

/// Both orders where numbers wrap around: the spill goes to entry 1 of page 0, and offset 0 does not exist.
#[test]
fn e13_the_spill_after_the_last_multixact() {
    for late in [true, false] {
        let base = base_copy(&format!("e13-wrap-{late}"), &template(15, Hints::Logged));
        move_counters(&base, |counters| {
            (counters.next_multi, counters.oldest_multi) = (u32::MAX, u32::MAX);
            counters.next_multi_offset = u32::MAX - 1;
        });
        // As after truncation: the first page of the lap before is gone.
        std::fs::remove_file(base.join("pg_multixact/offsets/0000")).unwrap();
        let mut writer = Writer::new(&base);
        let xid = writer.counters.next_xid as u32;
        let create = create_id(u32::MAX, u32::MAX - 1, &[(xid, 0), (xid, 4)]);
        let zero = writer.page_number(0);
        let mut records = [(CREATE_ID, create), (ZERO_OFFSETS, zero)];
        if !late {
            records.reverse();
        }
        for (info, main) in &records {
            writer.record(xid, rmgr::MULTIXACT, *info, &[], main);
        }
        writer.counters.next_xid += 1;
        (writer.counters.next_multi, writer.counters.next_multi_offset) = (0, 0);
        let scene = writer.judge();
        scene.assert_clean();
        let page = scene.replayed().page(&Key::slru(SlruKind::MultiOffsets, 0)).unwrap();
        assert_eq!(page[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
    }
}

/// A start zeroes what lies behind the next id, without a record: redo leaves it, and whoever gets the id next
/// replaces it.
#[test]
fn e14_a_start_zeroes_status_behind_the_next_id() {
    let base = base_copy("e14", &template(15, Hints::Logged));
    let counters = super::scene::read_control(&base).checkpoint();
    let path = base.join("pg_xact/0000");
    let mut page = std::fs::read(&path).unwrap();
    let next = counters.next_xid as usize;
    page[next / 4 + 1..next / 4 + 400].fill(0b1001_1001);
    std::fs::write(&path, page).unwrap();
    let mut server = cluster(15, &base, "");
    server.start().unwrap();
    script(&server, "create table s (id int);");
    script(&server, &subtransactions(100));
    server.stop("fast").unwrap();
    let scene = Scene::of(&base, &server);
    scene.assert_clean();
    let replica = scene.replayed();
    let primary = scene.primary.as_ref().unwrap();
    let key = Key::slru(SlruKind::Xact, 0);
    let (ours, theirs) = (replica.page(&key).unwrap(), primary.page(&key).unwrap());
    let behind = replica.judge.state.next_xid as usize / 4 + 1..next / 4 + 400;
    assert!(behind.len() > 200);
    assert!(ours[behind.clone()].iter().all(|byte| *byte == 0b1001_1001));
    assert!(theirs[behind].iter().all(|byte| *byte == 0));
    assert_like_the_primary(&replica, primary);
}
