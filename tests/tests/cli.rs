//! The command line as a person meets it: names, moments, states, exit codes, a clean stop.

use std::{fs, process::Output, time::Duration};

use treering_tests::{Treering, binary, processes};

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// One sentence on stderr, nothing on stdout, the documented exit code.
fn refused(treering: &Treering, arguments: &[&str], code: i32, says: &str) {
    let output = treering.cli(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(exit(&output), code, "{arguments:?}: {stderr}");
    assert!(stderr.contains(says), "{arguments:?} says: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed something");
}

/// S17 S18 S21 S37 S38 S43 S64 S91 S98 S99 S105 S117 S200: one server, since each costs a start.
#[test]
fn branches_from_the_command_line() {
    let treering = Treering::start();
    treering.sql("main", "CREATE TABLE t AS SELECT 1 AS n");

    refused(&treering, &["branch", "create", "Bad_Name"], 2, "Bad_Name");
    refused(&treering, &["branch", "create", "x", "--from", "nobody"], 3, "nobody");
    refused(&treering, &["branch", "create", "x", "--at", "yesterday"], 2, "yesterday");
    refused(&treering, &["branch", "create", "x", "--at", "2999-01-01T00:00:00Z"], 2, "future");
    refused(&treering, &["branch", "create", "x", "--at", "1999-01-01T00:00:00Z"], 2, "begins");
    refused(&treering, &["branch", "create", "x", "--at", "FFFF/0"], 2, "ahead");
    refused(&treering, &["branch", "create", "x", "--at", "0/1000028"], 2, "begins");
    refused(&treering, &["branch", "get", "nobody"], 3, "nobody");
    refused(&treering, &["branch", "delete", "nobody", "--yes"], 3, "nobody");
    refused(&treering, &["branch", "delete", "main", "--yes"], 5, "default");
    refused(&treering, &["start", "nobody"], 3, "nobody");

    let created = treering.json(&["branch", "create", "dev"]);
    assert_eq!(created["name"], "dev");
    assert_eq!(created["parent"], "main");
    refused(&treering, &["branch", "create", "dev"], 4, "dev");
    treering.ok(&["branch", "create", "dev", "--if-not-exists"]);
    // Nothing runs for a branch until somebody connects.
    assert_eq!(treering.json(&["branch", "get", "dev"])["state"], "suspended");
    assert_eq!(treering.sql("dev", "SELECT n FROM t"), "1");
    assert_eq!(treering.json(&["branch", "get", "dev"])["state"], "running");

    treering.ok(&["branch", "create", "dev2", "--from", "dev"]);
    refused(&treering, &["branch", "delete", "dev", "--yes"], 5, "dev2");
    refused(&treering, &["branch", "delete", "dev2"], 5, "--yes");

    // Stopped: no process, and connecting does not wake it.
    let pid = treering.json(&["branch", "get", "dev"])["pid"].as_i64().expect("pid");
    treering.ok(&["stop", "dev"]);
    assert!(!fs::exists(format!("/proc/{pid}")).expect("/proc"));
    let psql = treering.program("psql", "dev").args(["-c", "SELECT 1"]).output().expect("psql");
    assert!(!psql.status.success());
    assert!(String::from_utf8_lossy(&psql.stderr).contains("stopped"));
    // A branch of a stopped branch does not wake its source.
    treering.ok(&["branch", "create", "dev3", "--from", "dev"]);
    assert_eq!(treering.json(&["branch", "get", "dev"])["state"], "stopped");
    assert_eq!(treering.sql("dev3", "SELECT n FROM t"), "1");
    treering.ok(&["start", "dev"]);
    assert_eq!(treering.sql("dev", "SELECT n FROM t"), "1");

    treering.ok(&["branch", "delete", "dev3", "--yes"]);
    refused(&treering, &["branch", "get", "dev3"], 3, "dev3");
    treering.ok(&["branch", "create", "dev3"]);
    let names: Vec<_> = treering.json(&["branch", "list"]).as_array().expect("a list").clone();
    assert_eq!(names[0]["name"], "main");
    assert_eq!(names.len(), 4);
    assert_eq!(treering.json(&["status"])["branches"].as_array().map(Vec::len), Some(4));
    treering.ok(&["doctor"]);
    assert!(treering.ok(&["logs", "dev"]).contains("database system is ready"));

    // A branch reads indexes of every access method, and the doctor has nothing to say.
    treering.sql("main", "CREATE TABLE hashed (k int)");
    treering.sql("main", "CREATE INDEX ON hashed USING hash (k)");
    treering.sql("main", "INSERT INTO hashed SELECT generate_series(1, 2000)");
    treering.ok(&["branch", "create", "with-hash"]);
    let by_index = "SET enable_seqscan = off; SELECT k FROM hashed WHERE k = 7";
    assert_eq!(treering.sql("with-hash", by_index).lines().last(), Some("7"));
    treering.ok(&["doctor"]);
}

/// S16 S25 S216: what a user pastes works; a wrong password and an unknown branch do not.
#[test]
fn the_way_in() {
    let treering = Treering::start();
    let uri = treering.ok(&["connection-string"]);
    let psql = |uri: &str| {
        std::process::Command::new("psql")
            .args([uri, "-Atc", "SELECT current_user"])
            .output()
            .expect("psql")
    };
    let output = psql(uri.trim());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "postgres");
    let password =
        treering.config("main").get_password().map(|p| String::from_utf8_lossy(p).into_owned());
    let wrong = psql(&uri.trim().replace(&password.expect("password"), "wrong"));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("password authentication failed"));
    let unknown = psql(&uri.trim().replace("branch%3Dmain", "branch%3Dnobody"));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody"));
    // The agent's own role authenticates by peer, and the relay is such a peer: it must not lend that.
    let agent = psql(&uri.trim().replace("postgres:", "treering_agent:"));
    assert!(!agent.status.success(), "the agent's role was let in");
    // No server without a listener: the only TCP port is the relay's.
    assert_eq!(treering.sql("main", "SHOW listen_addresses"), "");
    assert_eq!(treering.sql("main", "SHOW fsync"), "on");
}

#[test]
fn a_second_up_a_port_in_use_a_newer_format_and_ctrl_c() {
    let mut treering = Treering::start();
    let data = treering.data_dir();
    let up = |extra: &[&str], data: &std::path::Path| {
        let mut command = std::process::Command::new(binary());
        command
            .arg("--data-dir")
            .arg(data)
            .args(["up", "--listen-http", "127.0.0.1:0"])
            .args(extra);
        command.output().expect("treering")
    };
    let second = up(&["--listen", "127.0.0.1:0"], &data);
    assert_eq!(exit(&second), 1);
    assert!(String::from_utf8_lossy(&second.stderr).contains("another"));

    let other = tempfile::tempdir().expect("temporary directory");
    let taken = format!("127.0.0.1:{}", treering.port);
    let busy = up(&["--listen", &taken], other.path());
    assert_eq!(exit(&busy), 1);
    assert!(String::from_utf8_lossy(&busy.stderr).contains(&taken));

    let newer = tempfile::tempdir().expect("temporary directory");
    fs::write(newer.path().join("format"), "treering 999\n").expect("write");
    let refused = up(&["--listen", "127.0.0.1:0"], newer.path());
    assert_eq!(exit(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("999"));
    assert_eq!(fs::read_dir(newer.path()).expect("list").count(), 1, "something was changed");

    let missing = up(&["--pg-bin-dir", "/nonexistent"], other.path());
    assert_eq!(exit(&missing), 1);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent"));

    treering.sql("main", "CREATE TABLE kept AS SELECT 42 AS n");
    let took = treering.interrupt();
    assert!(took < Duration::from_secs(10), "Ctrl-C took {took:?}");
    assert!(processes::in_directory(&data).is_empty(), "a compute is left");
    let after = treering.cli(&["status"]);
    assert_eq!(exit(&after), 1);
    assert!(String::from_utf8_lossy(&after.stderr).contains("not running"));
    treering.start_again();
    assert_eq!(treering.sql("main", "SELECT n FROM kept"), "42");
}
