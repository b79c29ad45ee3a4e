//! Batches of another node: a snapshot of the flags shows each as a whole, with its deletes.

use std::sync::atomic::{AtomicU64, Ordering};

use tidings::flags::Snapshot;
use tidings::live::LiveState;
use tidings::sim::Sim;
use tidings::{Config, Control, Store};
use tidings_proptest::{for_chosen_seeds, holds_unless, ms, run_until};

use crate::{anonymous, number, simulated};

/// Flags of a batch: their definitions fill several frames.
const FLAGS: usize = 60;
const BATCHES: i64 = 8;

fn write(store: &impl Store, batch_number: i64) {
    let definition = format!("{:<1200}", number(batch_number));
    let mut batch = store.batch().delete(format!("flags/default/only-{}", batch_number - 1));
    for flag in 0..FLAGS {
        batch = batch.put(format!("flags/default/f{flag:02}"), &definition);
    }
    batch.put(format!("flags/default/only-{batch_number}"), &definition).commit().expect("acceptable");
}

/// The number of the batch, if all that is there is of one.
fn batch_of(flags: &Snapshot) -> Option<i64> {
    let number = flags.int("f00", -1, &anonymous());
    let keys = flags.keys();
    let is_whole = keys.len() == FLAGS + 1 && keys.iter().any(|key| **key == format!("only-{number}"));
    (is_whole && keys.iter().all(|key| flags.int(key, -1, &anonymous()) == number)).then_some(number)
}

/// Whether the store itself holds parts of two batches.
fn is_mixed(store: &impl Store) -> bool {
    let held: Vec<_> = store.scan("flags/").iter().map(|entry| entry.value().to_vec()).collect();
    held.len() != FLAGS + 1 || held.iter().any(|value| *value != held[0])
}

/// Returns how many looks at the store itself showed a mixture meanwhile.
fn follow_batches(seed: u64) -> u64 {
    let sim = Sim::new(seed).config(Config::local()).delay(ms(3));
    let mut sim = sim.loss(if seed.is_multiple_of(2) { 0.0 } else { 0.05 }).seeds(&[0]).nodes(2);
    sim.run_for(ms(1_000));
    let (a, b) = (sim.node(0), sim.node(1));
    write(&a, 1);
    sim.run_for(ms(2_000));
    let flags = simulated(&mut sim, 1);
    let (mut mixed, mut last) = (0, 1);
    for number in 2..=BATCHES {
        write(&a, number);
        for _ in 0..30 {
            sim.run_for(ms(1));
            mixed += u64::from(is_mixed(&b));
            let number =
                batch_of(&flags.snapshot()).unwrap_or_else(|| panic!("seed {seed}: a torn snapshot"));
            assert!(number >= last, "seed {seed}: back from {last} to {number}");
            last = number;
        }
    }
    sim.run_for(ms(10_000));
    assert_eq!(batch_of(&flags.snapshot()), Some(BATCHES), "seed {seed}");
    mixed
}

#[test]
fn snapshots_show_batches_of_another_node_as_a_whole() {
    let all = AtomicU64::new(0);
    for_chosen_seeds(10, |seed| _ = all.fetch_add(follow_batches(seed), Ordering::Relaxed));
    // The control: the store itself shows mixtures.
    assert!(all.into_inner() > 0);
}

/// A writer that is cut off in the middle of a batch keeps nobody from later changes: two seconds after it was found
/// down its part counts.
#[test]
fn part_of_a_batch_counts_when_its_writer_stays_away() {
    let mut sim = Sim::new(7).config(Config::local()).delay(ms(3)).rate(200_000).seeds(&[0, 1]).nodes(3);
    sim.run_for(ms(1_000));
    let [a, b, c] = [0, 1, 2].map(|node| sim.node(node));
    write(&a, 1);
    sim.run_for(ms(2_000));
    let flags = simulated(&mut sim, 1);
    write(&a, 2);
    let is_mixed = (0..200).any(|_| {
        sim.run_for(ms(1));
        is_mixed(&b)
    });
    assert!(is_mixed, "the batch takes longer than a flush");
    sim.partition(&[0], &[1, 2]);
    assert_eq!(batch_of(&flags.snapshot()), Some(1), "what is arriving is awaited");
    c.put("flags/default/later", number(1)).expect("acceptable");
    sim.run_for(ms(10_000));
    assert_eq!(flags.int("later", 0, &anonymous()), 1, "others are not awaited with it");
    sim.heal();
    sim.run_for(ms(10_000));
    assert_eq!(flags.int("f00", -1, &anonymous()), 2);
}

/// A definition of one mebibyte, nearly all of it blanks, on a link on which it takes ten seconds.
fn large_definition_on_a_slow_link(sim: Sim) {
    let mut sim = sim.config(Config::lan()).delay(ms(3)).rate(100_000).seeds(&[0]).nodes(2);
    sim.run_for(ms(2_000));
    let a = sim.node(0);
    let write = |batch_number: i64, bytes: usize| {
        let large = format!("{}{}", number(batch_number), " ".repeat(bytes));
        let batch = a.batch().put("flags/default/a", number(batch_number)).put("flags/default/large", large);
        batch.commit().expect("acceptable");
    };
    write(1, 100);
    sim.run_for(ms(1_000));
    let flags = simulated(&mut sim, 1);
    assert_eq!(flags.state(), LiveState::Current);
    write(2, 1_000_000);
    let began = sim.now();
    let both = || ["a", "large"].map(|flag| flags.snapshot().int(flag, -1, &anonymous()));
    let took = run_until(&mut sim, ms(50), ms(20_000), |sim| {
        let [a, large] = both();
        assert_eq!(a, large, "a torn snapshot");
        let (is_late, waited) = (flags.state() == LiveState::Stale, sim.now() - began);
        assert!(is_late || a == 2 || waited < ms(3_000), "it is not said that they are old");
        a == 2
    });
    assert!(took > ms(8_000), "{took:?} on a slow link");
}

#[test]
fn flags_await_a_definition_on_a_slow_link() {
    holds_unless(Control::PartAfterTime, 2, large_definition_on_a_slow_link);
}
