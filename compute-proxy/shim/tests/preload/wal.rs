//! WAL waits for the quorum.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::reads::open;
use crate::stage::{Setting, USUAL, set};

#[test]
fn a_write_too_far_ahead_waits() {
    const SETTING: Setting =
        Setting { wal_ahead_mib: 4, committed: (3 << 32) + (16 << 20), ..USUAL };
    let Some(stage) = set(&SETTING, |folder| {
        fs::create_dir(folder.join("pg_wal")).unwrap();
        // The segment from 3/01000000 on.
        let name = "pg_wal/000000010000000300000001";
        fs::write(folder.join(name), "").unwrap();
        let mut file = open(folder, name);
        file.set_len(16 << 20).unwrap();
        drop(file);
        file = open(folder, name);
        let start = Instant::now();
        file.write_all_at(b"x", (5 << 20) - 2).unwrap();
        assert!(start.elapsed() < Duration::from_millis(400));
        fs::write(folder.join("go"), "").unwrap();
        // Until the parent moves the quorum by 8 MiB.
        file.write_all_at(b"x", 5 << 20).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(500));
        file.seek(SeekFrom::Start(13 << 20)).unwrap();
        // Until it lifts the limit.
        file.write_all(b"x").unwrap();
        assert!(start.elapsed() >= Duration::from_millis(1000));
        // Another file is not WAL.
        fs::write(folder.join("pg_wal/xlogtemp.1"), vec![0; 1 << 20]).unwrap();
    }) else {
        return;
    };
    static MOVED: AtomicU64 = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stage.folder.path().join("go").exists() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(500));
            stage.directory().set_committed(SETTING.committed + (8 << 20));
            MOVED.store(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(500));
            stage.directory().set_wal_ahead_mib(0);
        });
        let output = stage.run();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
    assert_eq!(MOVED.load(Ordering::SeqCst), 1);
}
