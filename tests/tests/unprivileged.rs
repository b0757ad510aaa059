//! Everything as an ordinary user: no root, no user ids of its own for branches, the same safety.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    process::{Command, Stdio},
    time::Duration,
};

use treering_tests::{PG_BIN, binary, free_port, processes, wait_for};

/// uid and gid of a user who is nobody in particular.
fn ordinary_user() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let user = passwd
        .lines()
        .map(fields)
        .find(|f| f[0] == "postgres" || f[0] == "nobody")
        .expect("a user");
    (user[2].parse().expect("uid"), user[3].parse().expect("gid"))
}

#[test]
fn an_ordinary_user_runs_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut treering = dir.path().join("treering");
    let user = rustix::process::geteuid().is_root().then(ordinary_user);
    match user {
        // Where the binary was built, another user may not be able to go.
        Some((uid, gid)) => {
            fs::copy(binary(), &treering).expect("copy");
            chown(dir.path(), Some(uid), Some(gid)).expect("chown");
        }
        None => treering = binary(),
    }
    let as_user = |command: &mut Command| {
        command.stdin(Stdio::null());
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
    };
    let data = dir.path().join("data");
    let listen = format!("127.0.0.1:{}", free_port());
    let mut up = Command::new(&treering);
    up.arg("--data-dir").arg(&data).args([
        "up",
        "--listen-http",
        "127.0.0.1:0",
        "--listen",
        &listen,
    ]);
    up.args(["--pg-bin-dir", PG_BIN]).current_dir(dir.path());
    as_user(&mut up);
    let mut up = up.spawn().expect("treering up");
    wait_for("treering up", Duration::from_secs(120), || {
        assert!(up.try_wait().expect("wait").is_none(), "treering up ended");
        let text = fs::read(data.join("running.json")).ok()?;
        let running: serde_json::Value = serde_json::from_slice(&text).ok()?;
        running["ready"].as_bool().filter(|ready| *ready)
    });
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&treering);
        command.arg("--data-dir").arg(&data).args(arguments).current_dir(dir.path());
        as_user(&mut command);
        let output = command.output().expect("treering");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    run(&["psql", "main", "--", "-c", "CREATE TABLE t AS SELECT 7 AS n"]);
    run(&["branch", "create", "dev"]);
    assert_eq!(run(&["psql", "dev", "--", "-Atc", "SELECT n FROM t"]).trim(), "7");
    // No compute runs as root, whoever we are.
    for pid in processes::in_directory(&data) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(!status.contains("Uid:\t0"), "{status}");
    }
    processes::interrupt(up.id() as i32);
    assert!(up.wait().expect("wait").success());
    assert!(processes::in_directory(&data).is_empty(), "a compute is left");
}
