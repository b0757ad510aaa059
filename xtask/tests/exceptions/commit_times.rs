//! Commit timestamps, switched on and off between runs of the server (WAL.md E11).

use std::collections::BTreeSet;

use treering_pgfmt::{
    redo::{rmgr, slru::COMMIT_TIMES_PER_PAGE},
    wal::effects::{Effect, effects},
};
use treering_stock::Cluster;
use treering_types::{Key, SlruKind};
use xtask::replica::Replica;

use super::scene::{Hints, Scene, cluster, script, template};

/// Uses up transaction ids until the next one is `left` before the end of a page of commit times.
fn up_to_page_end(server: &Cluster, left: u32) {
    let per_page = COMMIT_TIMES_PER_PAGE;
    script(
        server,
        &format!(
            "create or replace procedure use_up() language plpgsql as $$ begin
               loop
                 exit when (txid_current() + 1 + {left}) % {per_page} = 0;
                 commit;
               end loop;
             end $$;
             call use_up();"
        ),
    );
}

fn restart(server: &mut Cluster, tracking: &str) {
    server.stop("fast").unwrap();
    let path = server.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(path).unwrap();
    let text = format!("{text}\ntrack_commit_timestamp = {tracking}\n");
    server.write("postgresql.auto.conf", text.as_bytes()).unwrap();
    server.start().unwrap();
}

/// The commit time of a transaction, 0 where none is kept.
fn time_of(replica: &Replica, xid: u32) -> i64 {
    let page = replica.page(&Key::slru(SlruKind::CommitTs, xid / COMMIT_TIMES_PER_PAGE));
    let at = (xid % COMMIT_TIMES_PER_PAGE) as usize * 10;
    page.map_or(0, |page| i64::from_le_bytes(page[at..at + 8].try_into().unwrap()))
}

#[test]
fn e11_commit_times_are_kept_while_tracking_is_on() {
    for major in [15, 17] {
        let base = template(major, Hints::Unlogged);
        let mut server = cluster(major, &base, "track_commit_timestamp = off");
        server.start().unwrap();
        script(&server, "create table c (id int); insert into c values (1);");
        // On and off within a page.
        restart(&mut server, "on");
        script(&server, "insert into c values (2); insert into c values (3);");
        restart(&mut server, "off");
        script(&server, "insert into c values (4);");
        // On again on the same page, whose times are gone; then over its end.
        restart(&mut server, "on");
        script(&server, "insert into c values (5);");
        up_to_page_end(&server, 5);
        script(
            &server,
            &(0..20).map(|i| format!("insert into c values ({i});")).collect::<String>(),
        );
        // Off over the end of a page, and on again with nothing of the page used; by then two pages on.
        restart(&mut server, "off");
        up_to_page_end(&server, 2);
        script(
            &server,
            "insert into c values (6); insert into c values (7); insert into c values (8);",
        );
        up_to_page_end(&server, 0);
        restart(&mut server, "on");
        script(&server, "insert into c values (9); insert into c values (10);");
        server.stop("fast").unwrap();

        let scene = Scene::of(&base, &server);
        let mut switches = Vec::new();
        let mut first_used = BTreeSet::new();
        let mut replica = scene.replica();
        for record in &scene.records {
            let mut state = replica.judge.state.clone();
            let before = state.parameters.track_commit_timestamp;
            let found = effects(&mut state, record, scene.major).unwrap();
            let page_changes = found
                .iter()
                .filter(|effect| matches!(effect, Effect::Slru { kind: SlruKind::CommitTs, .. }));
            let tracking = state.parameters.track_commit_timestamp;
            assert!(tracking || page_changes.count() == 0, "{record:?}");
            let next = replica.judge.state.next_xid as u32;
            replica.apply(record);
            if before != tracking {
                switches.push((tracking, next));
                let range = (state.oldest_commit_ts_xid, state.newest_commit_ts_xid);
                assert_eq!(range, if tracking { (next, next) } else { (0, 0) });
                let key = Key::slru(SlruKind::CommitTs, next / COMMIT_TIMES_PER_PAGE);
                if tracking {
                    // Nothing of an earlier time is left on the page that is made.
                    assert!(replica.page(&key).unwrap().iter().all(|byte| *byte == 0));
                    first_used.insert(next.is_multiple_of(COMMIT_TIMES_PER_PAGE));
                }
            }
        }
        assert_eq!(
            switches.iter().map(|it| it.0).collect::<Vec<_>>(),
            [true, false, true, false, true]
        );
        assert_eq!(first_used, BTreeSet::from([false, true]), "{switches:?}");
        let page = |at: usize| switches[at].1 / COMMIT_TIMES_PER_PAGE;
        assert!(page(0) == page(2) && page(2) < page(3) && page(3) + 1 < page(4), "{switches:?}");
        assert!(scene.count(rmgr::COMMIT_TS, 0x00) >= 2);
        let last = switches[4].1;
        assert!(time_of(&replica, last) > 0 && time_of(&replica, last + 1) > 0);
        scene.assert_clean();
    }
}
