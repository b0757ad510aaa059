//! Replay in memory does what stock Postgres's recovery does, page for page.

use treering_bench::{recovery::Course, replay::replay};

#[test]
fn replay_leaves_the_pages_that_recovery_leaves() {
    let course = Course::run(1, 24_000_000).expect("a course");
    let (theirs, recovered) = course.recover().expect("recovery");
    let ours = replay(&course.base(), &course.wal_dir()).expect("replay");
    assert_eq!(ours.last_record, theirs.last_record);
    assert_eq!(ours.pages.differences(&recovered.data()).expect("files"), []);
    assert!(ours.pages.held() > 1500 && ours.records > 10_000, "{} records", ours.records);
    // The proof can fail: the pages before are others.
    let before = ours.pages.differences(&course.base());
    assert!(before.is_err() || before.is_ok_and(|differences| differences.len() > 1000));
}
