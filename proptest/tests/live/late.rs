//! Batches whose rest takes long: no view shows a part of one while the rest can be expected, and each says that it
//! waits.
//!
//! Negative control: with `PartAfterTime` the part is taken after a fixed time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use tidings::live::{LiveState, WholeLook, WholeWatch};
use tidings::sim::{Sim, SimNode};
use tidings::{Config, Control, Entry, Live};
use tidings_proptest::{holds_unless, ms, run_until};

use crate::started;

/// Bytes per second of each link.
const SLOW: u64 = 200_000;
/// It takes 20 s on such a link.
const LARGE: usize = 4 << 20;

fn config() -> Config {
    let mut config = Config::lan();
    config.value_bytes_max = tidings::limits::VALUE_BYTES_CEILING;
    config
}

/// Writes a batch: two numbers, and between them, in the order of the keys, a value of so many bytes.
fn write(node: &SimNode, number: usize, bytes: usize) {
    let large = format!("\"{number}{}\"", " ".repeat(bytes));
    let batch = node.batch().put("app/a", number.to_string()).put("app/large", large);
    batch.put("app/z", number.to_string()).commit().expect("acceptable");
}

/// The number of the batch that these values are of.
fn number_of(values: &BTreeMap<String, serde_json::Value>) -> usize {
    let number = |key: &str| values[key].to_string().trim_matches(['"', ' ']).parse().expect("a number");
    let numbers: [usize; 3] = ["a", "large", "z"].map(number);
    assert!(numbers.iter().all(|number| *number == numbers[0]), "a part of a batch: {numbers:?}");
    numbers[0]
}

/// What a reader of a whole watch has, who looks without waiting.
struct Reader {
    watch: WholeWatch<SimNode>,
    held: BTreeMap<String, Entry>,
}

impl Reader {
    fn new(node: &SimNode) -> Self {
        Self { watch: node.watch_whole("app/"), held: BTreeMap::new() }
    }

    fn next(&mut self) -> Option<WholeLook> {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(item) = Pin::new(&mut self.watch).poll_next(&mut cx) else { return None };
        let item = item.expect("the node is open");
        item.gone.iter().for_each(|key| _ = self.held.remove(&key[4..]));
        self.held.extend(item.entries.iter().map(|entry| (entry.key()[4..].to_owned(), entry.clone())));
        Some(item)
    }

    /// The number of the batch that it has.
    fn number(&mut self) -> usize {
        while self.next().is_some() {}
        let value = |entry: &Entry| serde_json::from_slice(entry.value()).expect("it is JSON");
        number_of(&self.held.iter().map(|(key, entry)| (key.clone(), value(entry))).collect())
    }
}

/// The views of one node.
struct Views {
    live: Live<BTreeMap<String, serde_json::Value>>,
    reader: Reader,
}

impl Views {
    fn start(sim: &mut Sim, node: &SimNode) -> Self {
        let live = started(Live::builder(node, "app/"), sim).expect("any map is acceptable");
        Self { live, reader: Reader::new(node) }
    }

    /// The number of the batch that both show.
    fn number(&mut self) -> [usize; 2] {
        [number_of(&self.live.load()), self.reader.number()]
    }

    fn are_late(&self) -> bool {
        self.live.state() == LiveState::Stale && self.reader.watch.is_late()
    }
}

/// Runs until both views show the batch of this number, and returns how long they were late.
fn until_shown(sim: &mut Sim, views: &mut Views, number: usize, within: Duration) -> Duration {
    let (began, mut late) = (sim.now(), Duration::ZERO);
    while views.number() != [number; 2] {
        assert!(sim.now() - began < within, "the batch is not shown: {:?}", views.number());
        sim.run_for(ms(50));
        late += if views.are_late() { ms(50) } else { Duration::ZERO };
    }
    sim.run_for(ms(100));
    _ = views.reader.next();
    assert!(views.live.state() == LiveState::Current && !views.reader.watch.is_late());
    late
}

/// Two nodes with links of this rate, and views of the second one that show the first batch of the first one.
fn first_shown(sim: Sim, rate: u64) -> (Sim, Views) {
    let mut sim = sim.config(config()).delay(ms(3)).rate(rate).seeds(&[0]).nodes(2);
    sim.run_for(ms(2_000));
    write(&sim.node(0), 1, 10);
    sim.run_for(ms(1_000));
    let b = sim.node(1);
    let mut views = Views::start(&mut sim, &b);
    assert_eq!(views.number(), [1, 1]);
    (sim, views)
}

fn large_value_on_a_slow_link(sim: Sim) {
    let (mut sim, mut views) = first_shown(sim, SLOW);
    let a = sim.node(0);
    write(&a, 2, LARGE);
    let late = until_shown(&mut sim, &mut views, 2, ms(40_000));
    assert!(late > ms(15_000), "late for {late:?} alone");
}

#[test]
fn batch_with_a_value_on_a_slow_link_is_awaited() {
    holds_unless(Control::PartAfterTime, 2, large_value_on_a_slow_link);
}

fn batches_without_a_pause(sim: Sim) {
    let (mut sim, mut views) = first_shown(sim, SLOW * 10);
    let a = sim.node(0);
    for number in 2..100 {
        write(&a, number, 200_000);
        sim.run_for(ms(100));
        _ = views.number();
    }
    write(&a, 100, 200_000);
    until_shown(&mut sim, &mut views, 100, ms(2_000));
}

#[test]
fn batches_that_come_without_a_pause_are_never_torn() {
    holds_unless(Control::PartAfterTime, 2, batches_without_a_pause);
}

/// The writer is gone, and another node that has all of its batch repairs the reader.
fn repair_that_takes_long(sim: Sim) {
    let mut sim = sim.config(config()).delay(ms(3)).rate(SLOW).nodes(3);
    sim.run_for(ms(1_000));
    let (reader, other, writer) = (sim.node(0), sim.node(1), sim.node(2));
    write(&writer, 1, 10);
    sim.run_for(ms(2_000));
    let mut views = Views::start(&mut sim, &reader);
    sim.partition(&[0], &[1, 2]);
    write(&writer, 2, LARGE);
    run_until(&mut sim, ms(100), ms(40_000), |_| {
        other.get("app/large").is_some_and(|it| it.value().len() > LARGE)
    });
    sim.run_for(ms(2_000));
    sim.crash(2);
    sim.heal();
    until_shown(&mut sim, &mut views, 2, ms(60_000));
}

#[test]
fn batch_that_a_long_repair_brings_is_awaited() {
    holds_unless(Control::PartAfterTime, 2, repair_that_takes_long);
}

/// A start in the middle of a batch has nothing older to show.
#[test]
fn start_within_a_batch_becomes_whole_by_itself() {
    let mut sim = Sim::new(3).config(config()).delay(ms(3)).rate(SLOW).seeds(&[0]).nodes(2);
    sim.run_for(ms(2_000));
    let (a, b) = (sim.node(0), sim.node(1));
    write(&a, 1, LARGE);
    run_until(&mut sim, ms(1), ms(1_000), |_| b.get("app/a").is_some());
    let mut reader = Reader::new(&b);
    let live: Live<BTreeMap<String, serde_json::Value>> =
        started(Live::builder(&b, "app/"), &mut sim).expect("any map is acceptable");
    assert_eq!((live.load().len(), live.state()), (2, LiveState::Stale), "after two seconds there is a part");
    let mut items = Vec::new();
    for _ in 0..400 {
        sim.run_for(ms(100));
        items.extend(reader.next().map(|item| (item.entries.len(), item.is_whole)));
    }
    assert_eq!(items, [(2, false), (1, true)]);
    assert_eq!((number_of(&live.load()), live.state()), (1, LiveState::Current));
}

/// The reader cannot reach the writer, which lives, and nobody else has the rest of its batch for 80 s.
#[test]
fn living_writer_of_whom_nothing_comes_delays_others_once() {
    let mut sim = Sim::new(5).config(config()).delay(ms(3)).rate(SLOW).seeds(&[0]).nodes(3);
    sim.run_for(ms(2_000));
    let [reader, other, writer] = [0, 1, 2].map(|node| sim.node(node));
    let given = started(Live::builder(&reader, "app/"), &mut sim);
    let live: Live<BTreeMap<String, serde_json::Value>> = given.expect("an empty map is acceptable");
    write(&writer, 1, (16 << 20) - 10);
    run_until(&mut sim, ms(1), ms(1_000), |_| reader.get("app/a").is_some());
    sim.partition(&[0], &[2]);
    let has = |number: u32| live.load().get("k") == Some(&number.into());
    other.put("app/k", "1").expect("acceptable");
    sim.run_for(ms(40_000));
    assert!(!has(1) && live.state() == LiveState::Stale, "a living writer is awaited");
    run_until(&mut sim, ms(100), ms(25_000), |_| has(1));
    for number in 2..6 {
        other.put("app/k", number.to_string()).expect("acceptable");
        run_until(&mut sim, ms(1), ms(100), |_| has(number));
        assert_eq!(live.state(), LiveState::Current);
        sim.run_for(ms(1_000));
    }
    assert!(live.load().get("large").is_none(), "the large value is still on its way");
}
