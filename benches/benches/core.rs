//! The core's verbs, at 100,000 keys.

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tidings::core::{Input, Output};
use tidings_benches::{Pair, at, filled, key, replica, value};

const KEYS: u64 = 100_000;

fn writes(criterion: &mut Criterion) {
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
    let mut new = KEYS;
    criterion.bench_function("put, a new key", |bencher| {
        bencher.iter(|| {
            new += 1;
            replica.put(at(i + new), &key(new), &text).expect("acceptable")
        });
    });
}

fn reads(criterion: &mut Criterion) {
    let replica = filled(1, KEYS);
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let mut i = 0_u64;
    criterion.bench_function("get", |bencher| {
        bencher.iter(|| {
            i += 7_919;
            replica.get(at(i), &keys[(i % KEYS) as usize])
        });
    });
    criterion
        .bench_function("scan a hundred", |bencher| bencher.iter(|| replica.scan(at(1), "bench/000").len()));
}

fn digests(criterion: &mut Criterion) {
    let mut replica = filled(1, KEYS);
    criterion.bench_function("digest of 100,000 rows, built anew", |bencher| {
        bencher.iter(|| replica.rebuild_digest());
    });
    criterion.bench_function("digest upkeep of 100,000 overwrites", |bencher| {
        bencher.iter(|| replica.churn_digest());
    });
}

/// Replication between two replicas without a network.
fn replication(criterion: &mut Criterion) {
    criterion.bench_function("merge a frame of 100 new rows", |bencher| {
        let mut pair = Pair::new(replica(1), replica(2), at(0));
        pair.run(false);
        let mut i = 0;
        let frames = |pair: &mut Pair| {
            let mut frames = Vec::new();
            while let Some(output) = pair.ends[0].poll() {
                if let Output::Stream(id, lane, bytes) = output {
                    pair.ends[0].handle(at(1), Input::Drained(id, lane, bytes.len()));
                    frames.push((id, lane, bytes));
                }
            }
            frames
        };
        bencher.iter_custom(|rounds| {
            let mut merging = Duration::ZERO;
            for _ in 0..rounds {
                for _ in 0..100 {
                    i += 1;
                    pair.ends[0].put(at(i), &key(i), &value(i)).expect("acceptable");
                }
                for (id, lane, bytes) in frames(&mut pair) {
                    let start = std::time::Instant::now();
                    pair.ends[1].handle(at(i), Input::Stream(id, lane, &bytes));
                    merging += start.elapsed();
                }
            }
            merging
        });
    });
    let mut pair = Pair::new(filled(1, KEYS), replica(2), at(2 * KEYS));
    pair.run(false);
    let mut i = 0;
    criterion.bench_function("reconcile 10 differences of 100,000", |bencher| {
        bencher.iter_batched(
            || {
                i += 10;
                i
            },
            |from| {
                pair.ends
                    .iter_mut()
                    .for_each(|end| end.handle(at(3 * KEYS), Input::LinkDown(tidings::core::LinkId::new(1))));
                for j in 0..10 {
                    pair.ends[1].put(at(3 * KEYS), &key((from + j) % KEYS), b"changed").expect("acceptable");
                }
                pair.ends.iter_mut().for_each(|end| {
                    end.handle(
                        at(3 * KEYS),
                        Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS),
                    );
                });
                pair.ends.iter_mut().for_each(|end| end.want_repair(tidings::core::LinkId::new(1)));
                pair.run(true).bytes
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(all, writes, reads, digests, replication);
criterion_main!(all);
