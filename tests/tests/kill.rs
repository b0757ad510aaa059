//! SIGKILL, to each process and to all at once, while pgbench runs and a client counts.
//!
//! After each: acknowledged ⊆ present ⊆ sent, amcheck clean on everything, the four pgbench sums equal.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use treering_tests::{Treering, ledger::Ledger, processes, verify, wait_for};

/// Acknowledged commits that must have happened before and after a kill.
const PROGRESS: usize = 50;

fn load(treering: &Treering) -> Child {
    let mut pgbench = treering.program("pgbench", "main");
    pgbench
        .args(["-n", "-c", "4", "-j", "2", "-T", "300"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    pgbench.spawn().expect("pgbench")
}

fn pid_of_main(treering: &Treering) -> Option<i64> {
    tokio::task::block_in_place(|| treering.json(&["branch", "get", "main"]))["pid"].as_i64()
}

fn progress(ledger: &Ledger) {
    let before = ledger.acknowledged();
    wait_for("commits", Duration::from_secs(90), || {
        (ledger.acknowledged() > before + PROGRESS).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_whatever_is_killed() {
    let mut treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    for victim in ["compute", "agent", "pageserver", "safekeeper", "everything"] {
        eprintln!("killing {victim}");
        let mut ledger = Ledger::begin(&treering.config("main"), 4).await;
        let mut pgbench = load(&treering);
        tokio::task::block_in_place(|| progress(&ledger));
        let postmaster = pid_of_main(&treering);
        match victim {
            "compute" => {
                processes::in_directory(&treering.data_dir()).into_iter().for_each(processes::kill)
            }
            "everything" => {
                treering.kill_everything();
                ledger.end().await;
                tokio::task::block_in_place(|| treering.start_again());
            }
            service => tokio::task::block_in_place(|| treering.kill_service(service)),
        }
        if victim != "everything" {
            tokio::task::block_in_place(|| progress(&ledger));
        }
        if victim == "agent" {
            // Its data directory wrote the log's last term: the next agent goes on with it.
            assert_eq!(pid_of_main(&treering), postmaster, "the compute did not survive its agent");
        }
        let _ = pgbench.kill();
        let _ = pgbench.wait();
        ledger.end().await;
        let client = treering.connect_in_time("main").await;
        ledger.check(&client).await;
        verify::pgbench_sums(&client).await;
        verify::amcheck(&client).await;
        client.batch_execute("DROP TABLE ledger").await.expect("drop");
    }
}
