//! Three safekeepers: whichever one dies or hangs, everything goes on, and nothing acknowledged is lost.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::task::block_in_place;
use treering_tests::{
    Treering, binary,
    ledger::Ledger,
    processes,
    quorum::{self, THREE, caught_up, hold_down, logs_agree, shown, trim_lsns},
    storage, verify, wait_for,
};

/// Acknowledged commits that must have happened while a safekeeper is away.
const PROGRESS: usize = 50;
/// How long `treering status` may take with a safekeeper that hangs.
const STATUS_LIMIT: Duration = Duration::from_secs(8);

/// How a safekeeper is away.
#[derive(Clone, Copy, Debug)]
enum Away {
    Dead,
    Hanging,
}

/// Everything that people do, while one of three is away.
async fn everything_goes_on(treering: &Treering, ledger: &Ledger, nth: usize) {
    let before = ledger.acknowledged();
    block_in_place(|| {
        wait_for("commits", Duration::from_secs(60), || {
            (ledger.acknowledged() > before + PROGRESS).then_some(())
        });
    });
    // A branch of a branch that is written to, from now: all that was acknowledged before is in it.
    let [child, grandchild] = [format!("child{nth}"), format!("grandchild{nth}")];
    let acknowledged = ledger.acknowledged();
    block_in_place(|| treering.ok(&["branch", "create", &child]));
    let rows = block_in_place(|| treering.sql(&child, "SELECT count(*) FROM ledger"));
    assert!(rows.parse::<usize>().expect("a number") >= acknowledged, "{rows} of {acknowledged}");
    block_in_place(|| {
        treering.sql(&child, "CREATE TABLE t AS SELECT 1 AS n");
        treering.ok(&["stop", &child]);
        treering.ok(&["branch", "create", &grandchild, "--from", &child]);
        assert_eq!(treering.sql(&grandchild, "SELECT n FROM t"), "1");
        treering.ok(&["start", &child]);
        assert_eq!(treering.sql(&child, "SELECT n FROM t"), "1");
        treering.ok(&["branch", "delete", &grandchild, "--yes"]);
        treering.ok(&["branch", "delete", &child, "--yes"]);
    });
}

fn is_shown_as(treering: &Treering, id: u64, state: &str) {
    let began = Instant::now();
    assert_eq!(shown(treering, id)["state"], state, "safekeeper {id}");
    assert!(began.elapsed() < STATUS_LIMIT, "status took {:?}", began.elapsed());
}

fn up_with(treering: &Treering, count: &str) -> std::process::Output {
    Command::new(binary())
        .arg("--data-dir")
        .arg(treering.data_dir())
        .args(["up", "--listen", "127.0.0.1:0", "--listen-http", "127.0.0.1:0"])
        .args(["--safekeepers", count])
        .stdin(Stdio::null())
        .output()
        .expect("treering")
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_three_may_die_or_hang() {
    let mut treering = Treering::start_with(&THREE);
    let mut ledger = Ledger::begin(&treering.config("main"), 4).await;
    let faults =
        [Away::Dead, Away::Hanging].into_iter().flat_map(|away| [1, 2, 3].map(|id| (id, away)));
    for (nth, (id, away)) in faults.enumerate() {
        eprintln!("safekeeper {id}: {away:?}");
        match away {
            Away::Dead => {
                let held = block_in_place(|| hold_down(&treering, id));
                everything_goes_on(&treering, &ledger, nth).await;
                block_in_place(|| is_shown_as(&treering, id, "down"));
                drop(held);
            }
            Away::Hanging => {
                let pid = quorum::safekeeper(&treering, id).expect("it runs");
                processes::freeze(pid);
                everything_goes_on(&treering, &ledger, nth).await;
                block_in_place(|| is_shown_as(&treering, id, "down"));
                processes::thaw(pid);
            }
        }
        block_in_place(|| {
            caught_up(&treering, "main");
            is_shown_as(&treering, id, "ready");
        });
    }
    ledger.end().await;
    let client = treering.connect("main").await;
    ledger.check(&client).await;
    verify::amcheck(&client).await;
    drop(client);
    block_in_place(|| {
        caught_up(&treering, "main");
        logs_agree(&treering, "main");
        // What was deleted while one was away is deleted there too.
        wait_for("logs of deleted branches to go", Duration::from_secs(60), || {
            (1..=3)
                .all(|id| shown(&treering, id)["logs"].as_array().map(Vec::len) == Some(1))
                .then_some(())
        });
        treering.interrupt();
        let refused = up_with(&treering, "1");
        let says = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            says.contains("made with 3 safekeepers") && says.contains("--safekeepers 3"),
            "{says}"
        );
        // The directory knows.
        treering.start_again_with(&[""; 0]);
    });
    ledger.check(&treering.connect_in_time("main").await).await;
}

/// A member that was away for longer than the log is kept in memory, and longer than Postgres keeps it: it gets it from
/// the others. And all three give up what the pageserver has.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_catches_up() {
    let treering = Treering::start_with(&THREE);
    block_in_place(|| {
        for setting in ["max_wal_size = '48MB'", "min_wal_size = '32MB'", "wal_keep_size = 0"] {
            treering.sql("main", &format!("ALTER SYSTEM SET {setting}"));
        }
        treering.sql("main", "SELECT pg_reload_conf()");
        treering.sql("main", "CREATE TABLE big (n int, filler text)");
        let left_at = caught_up(&treering, "main");
        let held = hold_down(&treering, 2);
        for _ in 0..8 {
            treering.sql(
                "main",
                "INSERT INTO big SELECT g, repeat('x', 900) FROM generate_series(1, 20000) g",
            );
            treering.sql("main", "CHECKPOINT");
        }
        let kept = treering
            .sql("main", "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'");
        let needed = left_at.segment_file_name(1);
        assert!(kept[8..] > needed[8..], "Postgres still has {kept}, of no use to this test");
        drop(held);
        caught_up(&treering, "main");
        logs_agree(&treering, "main");

        storage::settle(&treering, "main");
        // The last of three looks into the archive for what the others have put there a minute after it could have put it.
        wait_for("all three to trim their logs", Duration::from_secs(150), || {
            let begins = trim_lsns(&treering, "main");
            (begins.len() == 3 && begins.iter().all(|lsn| *lsn > left_at)).then_some(())
        });
    });
}

/// A log that its writer left without telling everyone of its last commit, and a member that has still to hear of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_killed_branch_has_what_was_acknowledged() {
    let treering = Treering::start_with(&THREE);
    let mut ledger = Ledger::begin(&treering.config("main"), 4).await;
    for nth in 0..6 {
        let name = format!("after{nth}");
        let id = nth % 3 + 1;
        block_in_place(|| {
            let before = ledger.acknowledged();
            wait_for("commits", Duration::from_secs(60), || {
                (ledger.acknowledged() > before + PROGRESS).then_some(())
            });
        });
        let held = block_in_place(|| (nth % 2 == 0).then(|| hold_down(&treering, id)));
        let acknowledged = ledger.acknowledged();
        block_in_place(|| treering.kill_service("agent"));
        for pid in processes::in_directory(&treering.data_dir()) {
            processes::kill(pid);
        }
        block_in_place(|| treering.ok(&["branch", "create", &name]));
        let rows = block_in_place(|| treering.sql(&name, "SELECT count(*) FROM ledger"));
        assert!(
            rows.parse::<usize>().expect("a number") >= acknowledged,
            "{rows} of {acknowledged}"
        );
        block_in_place(|| treering.ok(&["stop", &name]));
        drop(held);
    }
    ledger.end().await;
    let client = treering.connect_in_time("main").await;
    ledger.check(&client).await;
    drop(client);
    block_in_place(|| {
        caught_up(&treering, "main");
        logs_agree(&treering, "main");
    });
}
