//! Typed maps: the same code on nodes and in the simulator gives what a plain map gives; a watch that missed deletes
//! starts over and never goes stale silently; conditions, updates, conflicts, formats.
//!
//! Negative control: `WatchPastFloor` lets a watch read on although the log has forgotten removals after its cursor.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings::map::Codec;
use tidings::sim::Sim;
use tidings::{
    Control, Error, Map, MapEvent, MapWatch, Node, OnlyIf, PutOptions, Store, WatchOptions, WriteError,
};
use tidings_proptest::{Dice, ms, nodes};

type State = BTreeMap<String, u32>;

/// Reads the events that have come into a state. Returns whether the watch has started over.
async fn read<S: Store>(watch: &mut MapWatch<u32, S>, state: &mut State) -> bool {
    let mut has_resynced = false;
    poll_fn(|cx| {
        while let Poll::Ready(Some(event)) = Pin::new(&mut *watch).poll_next(cx) {
            match event {
                MapEvent::Put { key, value, .. } => _ = state.insert(key, *value),
                MapEvent::Delete { key, .. }
                | MapEvent::Expired { key, .. }
                | MapEvent::Invalid { key, .. } => _ = state.remove(&key),
                MapEvent::Resync => {
                    state.clear();
                    has_resynced = true;
                }
                _ => {}
            }
        }
        Poll::Ready(())
    })
    .await;
    has_resynced
}

fn state_of<S: Store>(map: &Map<u32, S>) -> State {
    map.iter().flatten().map(|(key, value)| (key, *value)).collect()
}

/// A key is deleted while the watch does not read; then so many keys elsewhere that the log forgets that removal.
async fn delete_is_forgotten<S: Store>(store: S) -> (State, bool) {
    let map = store.map::<u32>("m/");
    map.put("stays", &1).unwrap();
    map.put("gone", &1).unwrap();
    let (mut watch, mut state) = (map.watch(), State::new());
    read(&mut watch, &mut state).await;
    assert_eq!(state.len(), 2);
    map.delete("gone").unwrap();
    for i in 0..5_000 {
        store.put(&format!("elsewhere/{i}"), b"v").unwrap();
        store.delete(&format!("elsewhere/{i}")).unwrap();
    }
    let has_resynced = read(&mut watch, &mut state).await;
    (state, has_resynced)
}

#[tokio::test]
async fn slow_typed_watch_below_the_floor_starts_over() {
    let right = (State::from([("stays".to_owned(), 1)]), true);
    let sim = |control| Sim::new(1).without_checks().broken(control).nodes(1);
    assert_eq!(delete_is_forgotten(sim(None).node(0)).await, right);
    assert_eq!(delete_is_forgotten(nodes::start("a", &[]).await).await, right);
    // The control: the deleted key stays for ever.
    let (stale, has_resynced) = delete_is_forgotten(sim(Some(Control::WatchPastFloor)).node(0)).await;
    assert_eq!((stale.contains_key("gone"), has_resynced), (true, false));
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u32),
    PutIf(u8, u32, bool),
    Update(u8, u32),
    Delete(u8),
    Spoil(u8),
    Read,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..6_u8;
    prop_oneof![
        3 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Op::Put(key, value)),
        2 => (key.clone(), any::<u32>(), any::<bool>()).prop_map(|(key, value, old)| Op::PutIf(key, value, old)),
        2 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Op::Update(key, value)),
        2 => key.clone().prop_map(Op::Delete),
        1 => key.prop_map(Op::Spoil),
        2 => Just(Op::Read),
    ]
}

/// Does the same on a typed map and on a plain one, which must stay equal, and so must what a watch tells.
async fn equals_a_plain_map<S: Store>(store: S, ops: &[Op]) {
    let map = store.map::<u32>("m/");
    store.scan("m/").iter().for_each(|entry| _ = store.delete(entry.key()).unwrap());
    // `None`: a value of another type.
    let mut model: BTreeMap<String, Option<u32>> = BTreeMap::new();
    let (mut watch, mut told) = (map.watch(), State::new());
    for op in ops {
        match op {
            Op::Put(key, value) => {
                map.put(key.to_string(), value).unwrap();
                model.insert(key.to_string(), Some(*value));
            }
            Op::PutIf(key, value, is_right) => {
                let key = key.to_string();
                let held = store.get(&format!("m/{key}"));
                let only_if = match held {
                    Some(entry) if *is_right => OnlyIf::Stamp(entry.stamp()),
                    None if !*is_right => OnlyIf::Stamp(store.put("other", b"v").unwrap().stamp_of()),
                    _ => OnlyIf::Absent,
                };
                let written = map.put_if(&key, value, only_if);
                let is_refused = matches!(written, Err(Error::Write(WriteError::Condition { .. })));
                assert_eq!(is_refused, !*is_right);
                if *is_right {
                    model.insert(key, Some(*value));
                }
            }
            Op::Update(key, value) => {
                let key = key.to_string();
                let updated = map.update(&key, |old| old.map_or(*value, |old| old.wrapping_add(*value)));
                match model.get(&key) {
                    Some(None) => {
                        assert!(matches!(updated, Err(Error::Decode(error)) if error.key.ends_with(&key)));
                    }
                    old => {
                        let new = old.copied().flatten().map_or(*value, |old| old.wrapping_add(*value));
                        updated.unwrap();
                        model.insert(key, Some(new));
                    }
                }
            }
            Op::Delete(key) => {
                let key = key.to_string();
                map.delete(&key).unwrap();
                model.remove(&key);
            }
            Op::Spoil(key) => {
                store.put(&format!("m/{key}"), b"not a number").unwrap();
                model.insert(key.to_string(), None);
            }
            Op::Read => _ = read(&mut watch, &mut told).await,
        }
        assert!(map.keys().eq(model.keys().cloned()));
        for (key, value) in &model {
            assert_eq!(map.get(key).ok().map(|value| *value.expect("it is there")), *value);
            assert_eq!(map.entry(key).ok().map(|entry| *entry.expect("it is there").value), *value);
        }
        assert_eq!(map.get("nothing"), Ok(None));
    }
    read(&mut watch, &mut told).await;
    let right: State = model.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    assert_eq!((state_of(&map), told), (right.clone(), right));
}

trait StampOf {
    fn stamp_of(self) -> tidings::Stamp;
}

impl<R: tidings::WriteReceipt> StampOf for R {
    fn stamp_of(self) -> tidings::Stamp {
        self.stamp().expect("a put has a stamp")
    }
}

#[test]
fn typed_map_equals_a_plain_map_on_nodes_and_in_simulations() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let node: Node = runtime.block_on(nodes::start("a", &[]));
    proptest!(ProptestConfig::with_cases(64), |(ops in prop::collection::vec(op(), 1..60))| {
        let sim = Sim::new(1).nodes(1);
        runtime.block_on(equals_a_plain_map(sim.node(0), &ops));
        runtime.block_on(equals_a_plain_map(node.view(), &ops));
    });
}

#[test]
fn concurrent_updates_of_one_node_are_all_counted() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let node = runtime.block_on(nodes::start("a", &[]));
    let count = |is_compared: bool| {
        let map = node.map::<u64>(format!("{is_compared}/"));
        map.put("n", &0).unwrap();
        let update = |map: &Map<u64>| {
            for _ in 0..2_000 {
                if is_compared {
                    // It gives up after 32 tries in a row, which says that nothing was written.
                    while map.update("n", |old| old.map_or(1, |old| old + 1)).is_err() {}
                } else {
                    map.put("n", &(*map.get("n").unwrap().unwrap() + 1)).unwrap();
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let map = map.clone();
                scope.spawn(move || update(&map));
            }
        });
        *map.get("n").unwrap().unwrap()
    };
    assert_eq!(count(true), 8_000);
    // The control: to read and to put loses updates.
    assert!((0..20).any(|_| count(false) < 8_000));
    runtime.block_on(node.shutdown());
}

/// How many typed reads were another value than that of the write which raw reads found before and after, and of how many.
fn wrong_reads(node: &Node, seed: u64, read: impl Fn(&str) -> Option<u64>) -> (usize, usize) {
    let (mut dice, mut wrong, mut compared) = (Dice::new(seed), 0, 0);
    for _ in 0..50_000 {
        let key = dice.below(MANY).to_string();
        let raw = || node.get(format!("m/{key}"));
        let (before, value, after) = (raw(), read(&key), raw());
        if let (Some(before), Some(after)) = (before, after)
            && before.stamp() == after.stamp()
        {
            let right = String::from_utf8_lossy(before.value()).parse().ok();
            compared += 1;
            wrong += usize::from(value != right);
        }
    }
    (wrong, compared)
}

/// More keys than a map keeps decoded.
const MANY: usize = 6_000;

#[test]
fn typed_read_has_the_stamp_of_the_raw_read() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let node = runtime.block_on(nodes::start("a", &[]));
    let map = node.map::<u64>("m/");
    (0..MANY).for_each(|i| _ = map.put(i.to_string(), &0).unwrap());
    let is_over = AtomicBool::new(false);
    let write = || {
        let mut dice = Dice::new(7);
        for number in (1..10_000_000).take_while(|_| !is_over.load(Ordering::Relaxed)) {
            let key = dice.below(MANY).to_string();
            if dice.below(8) == 0 {
                map.delete(key).unwrap()
            } else {
                map.put(key, &number).unwrap()
            };
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(write);
        let typed = |key: &str| map.get(key).unwrap().as_deref().copied();
        let readers: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn({
                    let node = &node;
                    move || wrong_reads(node, seed, typed)
                })
            })
            .collect();
        let counts: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        // The control: a value that is kept by its key alone.
        let kept = Mutex::new(BTreeMap::new());
        let stale = |key: &str| *kept.lock().unwrap().entry(key.to_owned()).or_insert_with(|| typed(key));
        let control = wrong_reads(&node, 5, stale);
        is_over.store(true, Ordering::Relaxed);
        assert!(counts.iter().all(|(wrong, compared)| *wrong == 0 && *compared > 1_000), "{counts:?}");
        assert!(control.0 > 0, "{control:?}");
    });
    runtime.block_on(node.shutdown());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decoded_value_expires_on_a_node() {
    let node = nodes::start("a", &[]).await;
    let map = node.map::<u32>("m/");
    map.put_with("k", &1, PutOptions::new().ttl(ms(200))).unwrap();
    map.put("other", &2).unwrap();
    // Nothing else changes meanwhile.
    nodes::until(|| {
        map.get("k").unwrap();
        node.get("m/k").is_none()
    })
    .await;
    assert_eq!(map.get("k").unwrap(), None);
    assert_eq!(map.get("other").unwrap().as_deref(), Some(&2));
    node.shutdown().await;
}

#[test]
fn entry_names_writers_and_conflicts() {
    let mut sim = Sim::new(1).nodes(3);
    sim.run_for(ms(1_000));
    sim.partition(&[0], &[1, 2]);
    sim.node(0).put("m/k", "no number").unwrap();
    sim.run_for(ms(100));
    // The later stamp wins.
    sim.node(1).map::<u32>("m/").put("k", &11).unwrap();
    sim.heal();
    sim.assert_converged();
    let map = sim.node(2).map::<u32>("m/");
    let entry = map.entry("k").unwrap().expect("it holds a value");
    assert_eq!((entry.key.as_str(), *entry.value, entry.writer.name.as_deref()), ("k", 11, Some("n1")));
    assert_eq!(entry.stamp, sim.node(2).get("m/k").unwrap().stamp());
    let [Err(conflict)] = &entry.conflicts[..] else { panic!("{:?}", entry.conflicts) };
    assert_eq!(conflict.key, "m/k");
    map.put("k", &12).unwrap();
    assert!(map.entry("k").unwrap().unwrap().conflicts.is_empty());
}

#[test]
fn values_expire_and_conditions_hold_for_deletes() {
    let mut sim = Sim::new(1).nodes(1);
    let map = sim.node(0).map::<u32>("m/");
    map.put_with("k", &1, PutOptions::new().ttl(ms(100))).unwrap();
    assert!(map.entry("k").unwrap().unwrap().expires_at.is_some());
    sim.run_for(ms(200));
    assert_eq!(map.get("k"), Ok(None));
    let stamp = map.put("k", &2).unwrap().stamp().unwrap();
    map.put("k", &3).unwrap();
    assert!(map.delete_if("k", OnlyIf::Stamp(stamp)).is_err());
    let stamp = map.entry("k").unwrap().unwrap().stamp;
    map.delete_if("k", OnlyIf::Stamp(stamp)).unwrap();
    assert_eq!(map.get("k"), Ok(None));
}

/// Binary instead of JSON.
struct Cbor;

impl Codec for Cbor {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes)?;
        Ok(bytes)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
        Ok(ciborium::from_reader(bytes)?)
    }
}

#[test]
fn values_in_another_format_are_written_and_read() {
    let sim = Sim::new(1).nodes(1);
    let json = sim.node(0).map::<Vec<u32>>("m/");
    let cbor = json.clone().with_codec::<Cbor>();
    cbor.put("k", &vec![1, 500]).unwrap();
    assert_eq!(sim.node(0).get("m/k").unwrap().value(), [0x82, 0x01, 0x19, 0x01, 0xf4]);
    assert_eq!(*cbor.get("k").unwrap().unwrap(), [1, 500]);
    assert!(Arc::ptr_eq(&cbor.get("k").unwrap().unwrap(), &cbor.get("k").unwrap().unwrap()));
    // What is of another format is named, in both directions.
    let named = |error: Error| matches!(error, Error::Decode(error) if error.key == "m/k");
    assert!(named(json.get("k").unwrap_err()));
    json.put("k", &vec![7]).unwrap();
    assert!(named(cbor.get("k").unwrap_err()));
    cbor.update("new", |old| old.map_or(vec![1], Clone::clone)).unwrap();
    assert_eq!(*cbor.get("new").unwrap().unwrap(), [1]);
}

/// The events that have come.
fn told<S: Store>(watch: &mut MapWatch<u32, S>) -> Vec<MapEvent<u32>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut next = || match Pin::new(&mut *watch).poll_next(&mut cx) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    };
    std::iter::from_fn(&mut next).collect()
}

/// Events without their positions.
fn shown(events: &[MapEvent<u32>]) -> Vec<String> {
    let event = |event: &MapEvent<u32>| match event {
        MapEvent::Put { key, value, .. } => format!("put {key} {value}"),
        MapEvent::Invalid { key, .. } => format!("invalid {key}"),
        MapEvent::Delete { key, stamp, writer, .. } => {
            format!("delete {key} by {} {}", writer.as_deref().unwrap_or("-"), stamp.is_some())
        }
        MapEvent::Expired { key, .. } => format!("expired {key}"),
        other => format!("{other:?}"),
    };
    events.iter().map(event).collect()
}

#[test]
fn typed_watch_resumes_behind_any_of_its_events() {
    let mut sim = Sim::new(1).nodes(2);
    let (here, there) = (sim.node(0).map::<u32>("m/"), sim.node(1).map::<u32>("m/"));
    let mut watch = here.watch();
    assert_eq!(shown(&told(&mut watch)), ["Current"]);
    there.put_with("short", &1, PutOptions::new().ttl(ms(300))).unwrap();
    there.put("long", &2).unwrap();
    sim.node(1).put("m/spoilt", "no number").unwrap();
    sim.run_for(ms(100));
    there.delete("long").unwrap();
    sim.run_for(ms(1_000));
    here.put("last", &3).unwrap();
    let all = told(&mut watch);
    let expected = ["invalid spoilt", "delete long by n1 true", "expired short", "put last 3"];
    assert_eq!(shown(&all), expected);
    for (at, event) in all.iter().enumerate() {
        let behind = WatchOptions::new().resume_from(event.revision().expect("it is about a key"));
        let mut resumed = here.watch_with("", behind);
        let expected: Vec<_> = expected[at + 1..].iter().copied().chain(["Current"]).collect();
        assert_eq!(shown(&told(&mut resumed)), expected, "behind {event:?}");
    }
    // Only a part of the map, and changes only.
    let mut part = here.watch_with("la", WatchOptions::new());
    assert_eq!(shown(&told(&mut part)), ["put last 3", "Current"]);
    let mut changes = here.watch_with("last", WatchOptions::new().exact().without_current());
    here.put("lasting", &4).unwrap();
    here.put("last", &5).unwrap();
    assert_eq!(shown(&told(&mut changes)), ["put last 5"]);
    // A position of another node leads to a new start, and so does one that the log has passed.
    sim.run_for(ms(100));
    let foreign = sim.node(1).get("m/last").unwrap().revision();
    let mut resumed = here.watch_with("", WatchOptions::new().resume_from(foreign));
    assert_eq!(shown(&told(&mut resumed))[0], "Resync");
    for i in 0..5_000 {
        sim.node(0).put(format!("elsewhere/{i}"), "v").unwrap();
        sim.node(0).delete(format!("elsewhere/{i}")).unwrap();
    }
    let old = WatchOptions::new().resume_from(all[0].revision().unwrap());
    let events = shown(&told(&mut here.watch_with("", old)));
    assert_eq!((&*events[0], &*events[events.len() - 1]), ("Resync", "Current"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decoded_value_of_a_node_that_is_down_is_hidden() {
    let a = nodes::start("a", &[]).await;
    let b = nodes::start("b", &[&a]).await;
    b.map::<u32>("m/").put_with("bound", &1, PutOptions::new().ephemeral()).unwrap();
    b.put("m/stays", "2").unwrap();
    let map = a.map::<u32>("m/");
    let both =
        || (map.get("bound").unwrap().as_deref().copied(), map.get("stays").unwrap().as_deref().copied());
    nodes::until(|| both() == (Some(1), Some(2))).await;
    assert_eq!(both(), (Some(1), Some(2)), "it is decoded");
    b.shutdown_expecting_return().await; // as before a restart: the value is hidden and not dropped
    nodes::until(|| a.get("m/bound").is_none()).await;
    assert_eq!(both(), (None, Some(2)));
    a.shutdown().await;
}
