//! Batches of another node: a live value, and a watch of whole batches, take each as a whole, with its deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings::live::WholeWatch;
use tidings::sim::{Sim, SimNode};
use tidings::{Config, Control, Entry, Live, Node, Quorum, Store};
use tidings_proptest::nodes::{self, guarded};
use tidings_proptest::{for_chosen_seeds, holds_unless, ms, run_until};

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

/// The writer dies when the small row of a batch has arrived and its large row has not.
fn cut_off_by_a_crash(sim: Sim) {
    let mut sim = sim.config(Config::lan()).delay(ms(3)).rate(100_000).nodes(3);
    sim.run_for(ms(2_000));
    let (reader, other, writer) = (sim.node(0), sim.node(1), sim.node(2));
    let given = started(Live::builder(&reader, "app/"), &mut sim);
    let live: Live<BTreeMap<String, u32>> = given.expect("an empty map is acceptable");
    writer.batch().put("app/k", "1").put("blob/large", vec![b' '; 1 << 20]).commit().expect("acceptable");
    let has_small = |node: &SimNode| node.get("app/k").is_some();
    run_until(&mut sim, ms(1), ms(2_000), |_| has_small(&reader) && has_small(&other));
    sim.crash(2);
    // The first change may be waited for.
    other.put("app/k", "2").expect("acceptable");
    sim.run_for(ms(3_000));
    assert!(reader.scan("blob/").is_empty(), "the large row was not sent");
    for number in 3..6 {
        other.put("app/k", number.to_string()).expect("acceptable");
        run_until(&mut sim, ms(1), ms(100), |_| live.load().get("k") == Some(&number));
    }
}

#[test]
fn batch_cut_off_by_a_crash_delays_no_later_change() {
    holds_unless(Control::OverdueAnew, 4, cut_off_by_a_crash);
}

/// Fields that a writer always sets together. Each has others beside it that never change, so that a scan of all of them,
/// which reads 1,024 keys at a time, meets these fields in several pieces.
const FIELDS: usize = 20;
const BESIDE: usize = 75;
/// Batches on real nodes: at least, and at most until a plain scan was mixed.
const REAL_BATCHES: usize = 2_000;
const REAL_BATCHES_MAX: usize = 20_000;
/// Batches that are written without waiting for the other node.
const BURST: usize = 20;

fn write_fields(node: &Node, number: usize) {
    let value = format!("\"{number:<3000}\"");
    let batch = (0..FIELDS).fold(node.batch(), |batch, field| batch.put(format!("f/{field:02}/v"), &value));
    batch.commit().expect("acceptable");
}

/// The numbers that these entries have.
fn numbers_of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> BTreeSet<String> {
    let fields = entries.into_iter().filter(|entry| entry.key().ends_with("/v"));
    fields.map(|entry| String::from_utf8_lossy(entry.value()).trim_matches(['"', ' ']).to_owned()).collect()
}

/// One field with what stands beside it.
#[derive(serde::Deserialize)]
struct Field {
    v: String,
}

/// Follows all batches up to the last one, and returns how many items it took. The number of the last one is there before
/// that is written.
async fn follow_whole(mut watch: WholeWatch, last: Arc<AtomicUsize>) -> usize {
    let (mut held, mut items) = (BTreeMap::new(), 0);
    loop {
        let item = guarded(watch.next()).await.expect("the node is open");
        assert!(item.is_whole);
        held.extend(item.entries.into_iter().map(|entry| (entry.key().to_owned(), entry)));
        let numbers = numbers_of(held.values());
        assert_eq!(numbers.len(), 1, "an item has a part of a batch: {numbers:?}");
        items += 1;
        if numbers.contains(&last.load(Ordering::SeqCst).to_string()) {
            return items;
        }
    }
}

/// On real nodes, while one writes, the other one looks in every way: whole scans, a live value, a watch of whole batches,
/// and as the control plain scans.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_view_on_another_node_shows_a_part_of_a_batch() {
    let a = nodes::start("a", &[]).await;
    let b = nodes::start("b", &[&a]).await;
    for field in 0..FIELDS {
        (0..BESIDE).for_each(|i| _ = a.put(format!("f/{field:02}/x{i}"), "0").expect("acceptable"));
    }
    write_fields(&a, 0);
    nodes::until(|| b.scan("f/").len() == FIELDS * (BESIDE + 1)).await;
    let live = Live::<BTreeMap<String, Field>>::builder(&b, "f/").start().await.expect("acceptable");
    let last = Arc::new(AtomicUsize::new(usize::MAX));
    let follower = tokio::spawn(follow_whole(b.watch_whole("f/"), last.clone()));
    let is_over = AtomicBool::new(false);
    let (whole, mixed, loads) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let look = b.scan_whole("f/", &[]).expect("the node is open");
                let numbers = numbers_of(&look.entries);
                assert!(!look.is_whole || numbers.len() == 1, "a look called whole is mixed: {numbers:?}");
                whole.fetch_add(u64::from(look.is_whole), Ordering::Relaxed);
                let is_mixed = numbers_of(&b.scan("f/")).len() > 1;
                mixed.fetch_add(u64::from(is_mixed), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut last = String::new();
            while !is_over.load(Ordering::Relaxed) {
                let loaded = live.load();
                let number = loaded["00"].v.trim().to_owned();
                assert!(loaded.values().all(|field| field.v.trim() == number), "a torn value");
                loads.fetch_add(usize::from(number != last), Ordering::Relaxed);
                last = number;
                std::thread::yield_now();
            }
        });
        tokio::task::block_in_place(|| {
            for number in 1..=REAL_BATCHES_MAX {
                let is_last = number == REAL_BATCHES_MAX
                    || (number >= REAL_BATCHES && mixed.load(Ordering::Relaxed) > 0);
                if is_last {
                    last.store(number, Ordering::SeqCst);
                }
                write_fields(&a, number);
                if is_last {
                    break;
                }
                if number % BURST == 0 {
                    let seen = a.put("burst", "over").expect("acceptable");
                    let seen = seen.seen_by(Quorum::All, nodes::GUARD);
                    tokio::runtime::Handle::current().block_on(seen).expect("the other node lives");
                }
            }
        });
        is_over.store(true, Ordering::Relaxed);
    });
    let items = guarded(follower).await.expect("no item had a part of a batch");
    let last = last.load(Ordering::SeqCst).to_string();
    nodes::until(|| live.load()["00"].v.trim() == last).await;
    let (whole, mixed, loads) = (whole.into_inner(), mixed.into_inner(), loads.into_inner());
    println!(
        "{last} batches, {whole} whole looks, {mixed} mixed scans, {loads} values, {items} items of the watch"
    );
    // The control is plain scans: each is of one instant, but a part of a batch may be there at that instant.
    assert!(whole > 0 && mixed > 0 && loads > 1 && items > 1);
    tokio::join!(a.shutdown(), b.shutdown());
}

/// A copy of the keys below `app/`, filled from whole items in the simulator.
#[test]
fn items_of_a_whole_watch_are_batches_in_simulations() {
    for_chosen_seeds(4, |seed| {
        let mut sim = Sim::new(seed).config(Config::local()).loss(0.05).seeds(&[0]).nodes(2);
        sim.run_for(ms(1_000));
        let (a, mut watch) = (sim.node(0), sim.node(1).watch_whole("app/"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let given = seen.clone();
        sim.spawn(async move {
            let mut held = BTreeMap::new();
            while let Some(item) = watch.next().await {
                item.gone.iter().for_each(|key| _ = held.remove(&key[4..]));
                held.extend(item.entries.iter().map(|it| (it.key()[4..].to_owned(), it.value().to_vec())));
                let text = |value: &Vec<u8>| serde_json::from_slice(value).expect("it is a text");
                let values: Values = held.iter().map(|(key, value)| (key.clone(), text(value))).collect();
                given.lock().unwrap().push((item.is_whole, values.len(), batch_of(&values)));
            }
            given.lock().unwrap().push((true, 0, Some(usize::MAX))); // the node was stopped
        });
        for number in 1..=BATCHES {
            write(&a, number);
            sim.run_for(ms(40));
        }
        sim.run_for(ms(5_000));
        sim.crash(1);
        sim.run_for(ms(1));
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0], (true, 0, None), "seed {seed}: at first nothing is there");
        assert!(
            seen[1..].iter().all(|(is_whole, _, batch)| *is_whole && batch.is_some()),
            "seed {seed}: {seen:?}"
        );
        let [.., (_, _, last), (_, _, end)] = seen[..] else { panic!("seed {seed}: {seen:?}") };
        assert_eq!((last, end), (Some(BATCHES), Some(usize::MAX)), "seed {seed}");
    });
}
