//! LSN leases as an operator sees them: the pageserver knows where each lazy compute reads, for as long as it lives.

use std::time::{Duration, Instant};

use serde_json::Value;
use treering_tests::{
    Treering,
    lazy::{is_lazy, postmaster, run_dir},
    wait_for,
};
use treering_types::Lsn;

/// Renewed every six seconds.
const LENGTH: Duration = Duration::from_secs(18);
/// For what happens at the next renewal.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq)]
struct Lease {
    holder: String,
    lsn: Lsn,
    seconds_left: u64,
}

/// The leases on a timeline (its path below the API); none when the pageserver does not answer.
fn leases(treering: &Treering, timeline: &str) -> Option<Vec<Lease>> {
    let url = format!("{}{timeline}", treering.address("pageserver_http"));
    let detail: Value = reqwest::blocking::get(url).ok()?.json().ok()?;
    let lease = |lease: &Value| Lease {
        holder: lease["holder"].as_str().expect("a holder").to_owned(),
        lsn: lease["lsn"].as_str().expect("an LSN").parse().expect("an LSN"),
        seconds_left: lease["seconds_left"].as_u64().expect("seconds"),
    };
    Some(detail["leases"].as_array().expect("leases").iter().map(lease).collect())
}

/// The one lease there is, once it stands at `lsn` or later.
fn lease_at(treering: &Treering, timeline: &str, what: &str, lsn: Lsn) -> Lease {
    wait_for(what, LIMIT, || {
        let mut found = leases(treering, timeline)?;
        assert!(found.len() <= 1, "{what}: {found:?}");
        found.pop().filter(|lease| lease.lsn >= lsn)
    })
}

/// Writes, and answers with a position that the write lies before.
fn write(treering: &Treering) -> Lsn {
    treering.sql("work", "INSERT INTO t SELECT generate_series(1, 1000)");
    treering.sql("work", "SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN")
}

#[test]
fn a_lease_follows_its_compute_and_ends_with_it() {
    let length = format!("{}s", LENGTH.as_secs());
    let treering = Treering::start_with(&["--lsn-lease-length", &length]);
    treering.sql("main", "CREATE TABLE t (n int)");
    treering.ok(&["branch", "create", "work"]);
    treering.ok(&["start", "work"]);
    assert!(is_lazy(&treering, "work"), "the compute is not lazy");
    let branch = treering.json(&["branch", "get", "work"]);
    let id = |name: &str| branch[name].as_str().expect("an id").to_owned();
    let timeline = format!("/v1/tenant/{}/timeline/{}", id("tenant_id"), id("timeline_id"));

    // There before the first page, and so before the start was answered; it names the start.
    let first = leases(&treering, &timeline).expect("an answer").pop().expect("a lease");
    let run = run_dir(&treering, "work");
    assert_eq!(run.file_name().and_then(|name| name.to_str()), Some(first.holder.as_str()));
    assert!(first.seconds_left <= LENGTH.as_secs(), "{first:?}");
    let start: Lsn = id("branch_lsn").parse().expect("an LSN");
    assert!(first.lsn >= start, "{first:?} is below {start}");

    let mut written = first.lsn;
    for round in 1..=2 {
        let before = std::mem::replace(&mut written, write(&treering));
        assert!(before < written);
        let moved = lease_at(&treering, &timeline, "the lease to move", written);
        eprintln!("round {round}: {moved:?}");
        assert_eq!(moved.holder, first.holder);
    }

    // The table is lost with the pageserver, and told again.
    treering.kill_service("pageserver");
    let again = lease_at(&treering, &timeline, "the lease after the pageserver's death", written);
    assert_eq!(again.holder, first.holder);

    // The next agent speaks for the same compute.
    let pid = postmaster(&treering, "work");
    treering.kill_service("agent");
    let kept = leases(&treering, &timeline).expect("an answer");
    assert_eq!(kept.len(), 1, "a lease outlives its agent: {kept:?}");
    written = wait_for("the agent", LIMIT, || {
        let ready = treering.program("psql", "work").args(["-X", "-c", "SELECT 1"]).output();
        ready.is_ok_and(|output| output.status.success()).then(|| write(&treering))
    });
    assert_eq!(postmaster(&treering, "work"), pid, "the compute did not survive its agent");
    let adopted = lease_at(&treering, &timeline, "the lease of an adopted compute", written);
    assert_eq!(adopted.holder, first.holder);

    // Released, not run out.
    let metrics = |treering: &Treering| {
        let url = format!("{}/metrics", treering.address("pageserver_http"));
        reqwest::blocking::get(url).and_then(|answer| answer.text()).expect("metrics")
    };
    assert!(metrics(&treering).contains("treering_pageserver_lsn_leases 2"), "main's and work's");
    let renewed = leases(&treering, &timeline).expect("an answer").pop().expect("a lease");
    let asked = Instant::now();
    treering.ok(&["stop", "work"]);
    let left = leases(&treering, &timeline).expect("an answer");
    assert_eq!(left, [], "{:?} after the stop began", asked.elapsed());
    assert!(asked.elapsed().as_secs() < renewed.seconds_left, "too slow to tell: {renewed:?}");
    assert!(metrics(&treering).contains("treering_pageserver_lsn_leases 1"));
}
