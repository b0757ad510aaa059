use std::path::Path;
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let dir = Path::new(&dir);
    let _p = treering_bench::cpu::Pinned::to_last_core().unwrap();
    for _ in 0..std::env::args().nth(2).map_or(1, |n| n.parse().unwrap()) {
        let r = treering_bench::replay::replay(&dir.join("base"), &dir.join("wal")).unwrap();
        println!(
            "{} records {} bytes {:?} cpu {:?}, held {} read {}",
            r.records,
            r.wal_bytes,
            r.elapsed,
            r.cpu,
            r.pages.held(),
            r.pages.read
        );
    }
}
