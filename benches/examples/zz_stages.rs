use std::path::Path;
use treering_bench::{
    cpu,
    log::{Log, LogBytes, control_file},
    replay,
};
use treering_pgfmt::{
    version::PgMajor,
    wal::{effects::effects, record::Record, state::ClusterState},
};
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let dir = Path::new(&dir);
    let _p = cpu::Pinned::to_last_core().unwrap();
    let m = PgMajor::V15;
    let control = control_file(&dir.join("base")).unwrap();
    let from = control.checkpoint().redo;
    let wal = dir.join("wal");
    for _ in 0..3 {
        let mut t = Vec::new();
        let b = cpu::thread_time();
        let mut lb = LogBytes::open(&wal, from);
        let mut chunk = vec![0; 128 * 1024];
        while lb.read(&mut chunk).unwrap() > 0 {}
        t.push(cpu::thread_time() - b);
        let b = cpu::thread_time();
        let mut log = Log::open(m, &wal, from);
        while log.next_record().unwrap().is_some() {}
        t.push(cpu::thread_time() - b);
        let b = cpu::thread_time();
        let mut log = Log::open(m, &wal, from);
        while let Some(r) = log.next_record().unwrap() {
            std::hint::black_box(Record::decode(m, &r).unwrap());
        }
        t.push(cpu::thread_time() - b);
        let b = cpu::thread_time();
        let mut log = Log::open(m, &wal, from);
        let mut s = ClusterState::from_control(&control);
        while let Some(r) = log.next_record().unwrap() {
            std::hint::black_box(effects(&mut s, &Record::decode(m, &r).unwrap(), m).unwrap());
        }
        t.push(cpu::thread_time() - b);
        let b = cpu::thread_time();
        let r = replay::replay(&dir.join("base"), &wal).unwrap();
        t.push(cpu::thread_time() - b);
        drop(r);
        println!(
            "read {:?} records {:?} decode {:?} effects {:?} replay {:?}",
            t[0], t[1], t[2], t[3], t[4]
        );
    }
}
