//! The core's verbs at 100,000 keys.

use criterion::{Criterion, criterion_group, criterion_main};
use tidings_benches::{at, filled, key, value};

const KEYS: u64 = 100_000;

fn core(criterion: &mut Criterion) {
    let mut replica = filled(1, KEYS);
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let text = value(7);
    let mut i = 0_u64;
    criterion.bench_function("put, overwrite", |bencher| {
        bencher.iter(|| {
            i += 7_919;
            replica.put(at(i), &keys[(i % KEYS) as usize], &text).expect("acceptable")
        });
    });
    criterion.bench_function("put and delete a key", |bencher| {
        bencher.iter(|| {
            i += 1;
            replica.put(at(i), "once", &text).expect("acceptable");
            replica.delete(at(i), "once").expect("acceptable")
        });
    });
    criterion.bench_function("get", |bencher| {
        bencher.iter(|| {
            i += 7_919;
            replica.get(at(i), &keys[(i % KEYS) as usize])
        });
    });
}

criterion_group!(all, core);
criterion_main!(all);
