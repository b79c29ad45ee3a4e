//! Batches of another node, seen as a whole: what [`Store::scan_whole`] calls whole never shows a part of one.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Entry, PutOptions, Store};
use tidings_proptest::for_chosen_seeds;

/// Keys of a batch: their values fill several frames and more than one window.
const KEYS: usize = 60;
const BATCHES: usize = 10;
/// The batch during which the nodes are parted.
const CUT_OFF: usize = 6;
const STEP: Duration = Duration::from_millis(1);

/// What a look at the batches shows: the number that all values have, or `None` if they differ.
fn number_of(entries: &[Entry]) -> Option<String> {
    let number = |entry: &Entry| String::from_utf8_lossy(entry.value()).trim().to_owned();
    let first = entries.first().map(number)?;
    entries.iter().all(|entry| number(entry) == first).then_some(first)
}

/// Writes batches on one node while another one looks at them, and returns how many looks were mixed: of those that were
/// called whole, and of all.
fn mixed_looks(seed: u64, loss: f64) -> (u64, u64) {
    let sim = Sim::new(seed).config(Config::local()).loss(loss).delay(Duration::from_millis(3));
    let mut sim = sim.seeds(&[0]).nodes(3);
    sim.run_for(Duration::from_secs(1));
    let (a, b) = (sim.node(0), sim.node(1));
    let (mut wrong, mut all) = (0, 0);
    for number in 1..=BATCHES {
        let value = format!("{number:<800}");
        let batch = (0..KEYS)
            .fold(a.batch(), |batch, key| batch.put_with(format!("app/{key:02}"), &value, PutOptions::new()));
        batch.commit().expect("acceptable");
        if number == CUT_OFF {
            sim.partition(&[0], &[1]);
        }
        for look in 0..40 {
            if number == CUT_OFF + 1 && look == 20 {
                sim.heal();
            }
            sim.run_for(STEP);
            let (entries, is_whole) = b.scan_whole("app/", &[]);
            let is_mixed = !entries.is_empty() && number_of(&entries).is_none();
            all += u64::from(is_mixed);
            wrong += u64::from(is_mixed && is_whole);
        }
    }
    sim.run_for(Duration::from_secs(20));
    let (entries, is_whole) = b.scan_whole("app/", &[]);
    assert_eq!(
        (number_of(&entries).as_deref(), is_whole),
        (Some(BATCHES.to_string().as_str()), true),
        "seed {seed}"
    );
    (wrong, all)
}

#[test]
fn whole_looks_never_mix_two_batches() {
    let all = std::sync::atomic::AtomicU64::new(0);
    for_chosen_seeds(10, |seed| {
        let (wrong, mixed) = mixed_looks(seed, if seed % 2 == 0 { 0.0 } else { 0.05 });
        assert_eq!(wrong, 0, "seed {seed}: a look that was called whole mixes two batches");
        all.fetch_add(mixed, std::sync::atomic::Ordering::Relaxed);
    });
    // The control: looks that do not ask see mixtures.
    println!("{all:?} looks were mixed");
    assert!(all.into_inner() > 0);
}
