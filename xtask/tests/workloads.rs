//! Stock Postgres judges redo of everything that the workloads make it write, on 15 and 17 (`make test-all`: on 16
//! and 18 too). Some of the real records are then applied with broken bytes: an error or a page, never a panic.
//! Postgres missing is a failure.

use treering_pgfmt::version::PgMajor;
use treering_stock::Postgres;
use xtask::{
    coverage,
    mutants::Mutants,
    report::Summary,
    workload::{self, Variant},
};

/// Share of the types that change a page or a file which must be judged, in percent.
const COVERED_MIN: f64 = 95.0;

fn judge(major: u32) {
    let postgres = Postgres::find(major).unwrap();
    let names = workload::names().unwrap();
    let mut total = Summary::default();
    for variant in [Variant::Checksums, Variant::Plain] {
        let corpus = workload::run_workloads(&postgres, variant, &names).unwrap();
        let mut mutants = Mutants::new(PgMajor::from_number(major).unwrap());
        let watched = corpus.verify(|replica, record| mutants.try_some(&replica.judge, record));
        let report = watched.unwrap();
        println!("{variant:?}\n{report}");
        println!("{} broken records applied, {} refused", mutants.tried, mutants.refused);
        assert_eq!(mutants.kept_differs, 0);
        assert!(report.is_clean(), "{} mismatches", report.mismatches());
        total.add(&Summary::of(&report));
    }
    let (percent, missing) = coverage::judged(&total, major).unwrap();
    assert!(percent >= COVERED_MIN, "only {percent:.1} % of the types judged; not: {missing:?}");
}

#[test]
fn redo_agrees_with_postgres_15() {
    judge(15);
}

#[test]
fn redo_agrees_with_postgres_17() {
    judge(17);
}
