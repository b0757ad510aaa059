//! Reading WAL: bytes to records, CRC included.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use treering_bench::wal;
use treering_pgfmt::{
    version::PgMajor,
    wal::{reader::WalDecoder, record::Record},
};

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read wal");
    for body in [64, 1024] {
        let (start, bytes) = wal(4096, body);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("records of {body} bytes"), |b| {
            b.iter(|| {
                let mut decoder = WalDecoder::new(PgMajor::V15, start);
                let mut records = 0;
                for chunk in bytes.chunks(128 * 1024) {
                    decoder.feed(chunk);
                    while let Some(raw) = decoder.next_record().expect("valid") {
                        Record::decode(PgMajor::V15, &raw).expect("decodes");
                        records += 1;
                    }
                }
                assert_eq!(records, 4096);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read);
criterion_main!(benches);
