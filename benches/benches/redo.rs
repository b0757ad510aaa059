//! Redo of chains of heap records on one page: how long one page takes that was not read for a while.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use treering_bench::{TABLE, heap_insert};
use treering_pgfmt::{redo, version::PgMajor};
use treering_types::{Key, Lsn, PAGE_SIZE};

fn chains(c: &mut Criterion) {
    let key = Key::rel_block(TABLE, 0);
    let mut group = c.benchmark_group("redo heap insert");
    for records in [2_u16, 64, 220] {
        let changes: Vec<_> = (1..=records).map(heap_insert).collect();
        group.throughput(Throughput::Elements(u64::from(records)));
        group.bench_function(format!("{records} records"), |b| {
            let mut page = Box::new([0; PAGE_SIZE]);
            b.iter(|| {
                for (n, change) in changes.iter().enumerate() {
                    let lsn = Lsn(0x100_0000 + n as u64 * 64);
                    redo::apply(PgMajor::V15, &key, lsn, change, &mut page).expect("applies");
                }
                page[8191]
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chains);
criterion_main!(benches);
