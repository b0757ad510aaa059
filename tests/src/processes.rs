//! Processes, as `/proc` shows them.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Children, their children and so on.
pub fn descendants(of: i32) -> Vec<i32> {
    let mut found = vec![of];
    let all = all();
    let mut seen = 0;
    while seen < found.len() {
        let next = found[seen];
        found.extend(all.iter().filter(|pid| parent(**pid) == Some(next)));
        seen += 1;
    }
    found.split_off(1)
}

/// Time on a core of a process, of all below it, and of those of them that have ended and been waited for.
pub fn cpu_time(of: i32) -> Duration {
    let mut ticks = ticks(of);
    ticks += descendants(of).into_iter().map(self::ticks).sum::<u64>();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// `utime`, `stime`, `cutime`, `cstime`: fields 14 to 17 of `proc(5)`'s `stat`.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    behind_name.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Processes whose working directory lies in `dir`: the Postgres processes of its computes.
pub fn in_directory(dir: &Path) -> Vec<i32> {
    let inside =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    all().into_iter().filter(inside).collect()
}

/// The process that runs `treering service <name>` below `up`.
pub fn service(up: i32, name: &str) -> Option<i32> {
    descendants(up).into_iter().find(|pid| is_service(&words(*pid), name))
}

/// The process of safekeeper `id` below `up`.
pub fn safekeeper(up: i32, id: u64) -> Option<i32> {
    let option = [b"--id".to_vec(), id.to_string().into_bytes()];
    descendants(up).into_iter().find(|pid| {
        let words = words(*pid);
        is_service(&words, "safekeeper") && words.windows(2).any(|pair| *pair == option)
    })
}

/// A process's command line.
fn words(pid: i32) -> Vec<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

fn is_service(words: &[Vec<u8>], name: &str) -> bool {
    words.get(1).is_some_and(|word| word == b"service")
        && words.get(2).is_some_and(|word| word == name.as_bytes())
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

pub fn kill(pid: i32) {
    send(pid, Signal::KILL);
}

/// The states of a process's threads: the letters of `proc(5)`'s `stat`.
fn thread_states(pid: i32) -> impl Iterator<Item = char> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.flat_map(|thread| fs::read_to_string(thread.path().join("stat")));
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next())
}

/// False once all its threads are gone, or only wait for its parent: what it had open, ports too, is closed by then.
pub fn is_alive(pid: i32) -> bool {
    thread_states(pid).any(|state| !matches!(state, 'Z' | 'X'))
}

/// Freezes a process: it is there, and does not answer. Its threads stop one after the other, on a busy machine some milliseconds after the
/// signal: returns when the last one has.
pub fn freeze(pid: i32) {
    send(pid, Signal::STOP);
    let has_stopped = || thread_states(pid).all(|state| matches!(state, 'T' | 'Z' | 'X'));
    wait_for("a process to stop", Duration::from_secs(30), || has_stopped().then_some(()));
}

pub fn thaw(pid: i32) {
    send(pid, Signal::CONT);
}

/// What Ctrl-C sends.
pub fn interrupt(pid: i32) {
    send(pid, Signal::INT);
}
