//! Batches of another node: a live value takes each as a whole, with its deletes.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Live, Store};
use tidings_proptest::for_chosen_seeds;

use crate::started;

type Values = BTreeMap<String, String>;

/// Keys of a batch: their values fill several frames and more than one window.
const KEYS: usize = 60;
const BATCHES: usize = 10;

/// The number that all values have, if they are those of one batch: each also puts a key with its number, and deletes
/// that of the batch before.
fn batch_of(values: &Values) -> Option<usize> {
    let number: usize = values.get("00")?.trim().parse().ok()?;
    let is_same = |value: &String| value.trim() == number.to_string();
    let is_whole = values.len() == KEYS + 1 && values.contains_key(&format!("only-{number}"));
    (is_whole && values.values().all(is_same)).then_some(number)
}

fn write(store: &impl Store, number: usize) {
    let value = format!("\"{number:<800}\"");
    let mut batch = store.batch().delete(format!("app/only-{}", number - 1));
    for key in 0..KEYS {
        batch = batch.put(format!("app/{key:02}"), &value);
    }
    batch.put(format!("app/only-{number}"), &value).commit().expect("acceptable");
}

/// Returns how many looks at the store itself showed a mixture meanwhile.
fn follow_batches(seed: u64) -> u64 {
    let sim = Sim::new(seed).config(Config::local()).delay(Duration::from_millis(3));
    let mut sim = sim.loss(if seed.is_multiple_of(2) { 0.0 } else { 0.05 }).seeds(&[0]).nodes(2);
    sim.run_for(Duration::from_secs(1));
    let (a, b) = (sim.node(0), sim.node(1));
    write(&a, 1);
    sim.run_for(Duration::from_secs(2));
    let given = started(Live::builder(&b, "app/"), &mut sim);
    let live: Live<Values> = given.expect("what the store holds is acceptable");
    let (mut mixed, mut last) = (0, 1);
    for number in 2..=BATCHES {
        write(&a, number);
        for _ in 0..30 {
            sim.run_for(Duration::from_millis(1));
            let value = |entry: &tidings::Entry| serde_json::from_slice(entry.value()).expect("it is a text");
            let held: Values =
                b.scan("app/").iter().map(|it| (it.key()[4..].to_owned(), value(it))).collect();
            mixed += u64::from(batch_of(&held).is_none());
            let number = batch_of(&live.load()).unwrap_or_else(|| panic!("seed {seed}: a torn value"));
            assert!(number >= last, "seed {seed}: back from {last} to {number}");
            last = number;
        }
    }
    sim.run_for(Duration::from_secs(10));
    assert_eq!(batch_of(&live.load()), Some(BATCHES), "seed {seed}");
    mixed
}

#[test]
fn live_value_takes_batches_of_another_node_as_a_whole() {
    let all = std::sync::atomic::AtomicU64::new(0);
    for_chosen_seeds(10, |seed| {
        all.fetch_add(follow_batches(seed), std::sync::atomic::Ordering::Relaxed);
    });
    // The control: the store itself shows mixtures.
    println!("{all:?} looks at the store were mixed");
    assert!(all.into_inner() > 0);
}
