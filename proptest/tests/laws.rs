//! The laws of the data types as property tests: sets against `crdts::Orswot`, registers against `crdts::LWWReg`, one
//! replica against a map, replicas against a model of events, and merging against its algebraic laws. The models are
//! independent of the library; a replica that differs from them fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crdts::{CmRDT, CvRDT, LWWReg, Orswot};
use proptest::prelude::*;
use tidings::core::{Batch, Input, Lane, Output, Replica, Setup, Time};
use tidings::sim::Sim;
use tidings::{Config, Entry, PutOptions, Stamp};
use tidings_proptest::replicas::carry;

fn at(ms: u64) -> Time {
    Time { mono: Duration::from_millis(ms), wall: Duration::from_millis(1_000_000 + ms) }
}

fn converged(sim: &mut Sim) {
    sim.heal();
    sim.assert_converged();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Three sites that merge now and then hold the same elements as with whole-state merges of `Orswot`.
    #[test]
    fn sets_agree_with_orswot(steps in prop::collection::vec((0..3_usize, 0..5_u8, 0..4_u8), 1..60)) {
        let mut sim = Sim::new(1).nodes(3);
        sim.run_for(Duration::from_millis(100));
        let mut model: [Orswot<u8, usize>; 3] = Default::default();
        sim.partition(&[0], &[1, 2]);
        sim.partition(&[1], &[2]);
        for (site, element, action) in steps {
            match action {
                0 | 1 => {
                    let context = model[site].read_ctx().derive_add_ctx(site);
                    let add = model[site].add(element, context);
                    model[site].apply(add);
                    sim.node(site).set("s").add(element.to_string()).unwrap();
                }
                2 => {
                    let context = model[site].contains(&element).derive_rm_ctx();
                    let remove = model[site].rm(element, context);
                    model[site].apply(remove);
                    sim.node(site).set("s").remove(element.to_string()).unwrap();
                }
                _ => {
                    converged(&mut sim);
                    let mut all = model[0].clone();
                    all.merge(model[1].clone());
                    all.merge(model[2].clone());
                    model.fill(all);
                    sim.partition(&[0], &[1, 2]);
                    sim.partition(&[1], &[2]);
                }
            }
            let mut ours: Vec<String> = sim.node(site).set("s").iter().collect();
            let mut theirs: Vec<String> =
                model[site].read().val.into_iter().map(|element| element.to_string()).collect();
            ours.sort();
            theirs.sort();
            prop_assert_eq!(ours, theirs);
        }
    }

    /// In registers that are only put, the greatest stamp wins, as in `LWWReg`.
    #[test]
    fn put_only_registers_agree_with_lwwreg(steps in prop::collection::vec((0..3_usize, 0..4_u8, 0..100_u32), 1..40)) {
        let mut sim = Sim::new(2).nodes(3);
        sim.run_for(Duration::from_millis(100));
        sim.partition(&[0], &[1, 2]);
        sim.partition(&[1], &[2]);
        let mut model: BTreeMap<u8, LWWReg<String, String>> = BTreeMap::new();
        for (site, key, value) in steps {
            let stamp = sim.node(site).put(key.to_string(), value.to_string()).unwrap().stamp().unwrap();
            let register = LWWReg { val: value.to_string(), marker: stamp.to_string() };
            model.entry(key).and_modify(|old| old.merge(register.clone())).or_insert(register);
        }
        converged(&mut sim);
        for (key, register) in model {
            for i in 0..3 {
                let entry = sim.node(i).get(key.to_string()).unwrap();
                prop_assert_eq!(entry.value(), register.val.as_bytes());
            }
        }
    }

    /// One replica behaves like a map.
    #[test]
    fn a_single_replica_is_a_map(steps in prop::collection::vec((0..40_u8, prop::option::of(0..100_u8)), 1..300)) {
        let mut replica = Replica::new(Setup::new(Config::lan(), 3));
        let mut model = BTreeMap::new();
        for (i, (key, value)) in steps.into_iter().enumerate() {
            let (now, name) = (at(i as u64), format!("{key:03}"));
            if let Some(value) = value {
                replica.put(now, &name, &[value]).unwrap();
                model.insert(name, value);
            } else {
                let deleted = replica.delete(now, &name).unwrap().is_some();
                prop_assert_eq!(deleted, model.remove(&name).is_some());
            }
            prop_assert_eq!(replica.len(), model.len());
        }
        let all = replica.scan(at(1_000), "");
        let ours: Vec<(String, u8)> = all.iter().map(|entry| (entry.key().to_owned(), entry.value()[0])).collect();
        prop_assert_eq!(ours, model.into_iter().collect::<Vec<_>>());
    }

    /// Arbitrary bytes, and real frames with changed bytes, neither panic nor stop the replica.
    #[test]
    fn hostile_bytes_never_harm(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        bulk in any::<bool>(),
    ) {
        let mut ours = Replica::new(Setup::new(Config::lan(), 4));
        let mut theirs = Replica::new(Setup::new(Config::lan(), 5));
        ours.put(at(0), "kept", b"v").unwrap();
        for i in 0..50 {
            theirs.put(at(0), &format!("k{i}"), b"v").unwrap();
        }
        for replica in [&mut ours, &mut theirs] {
            replica.handle(at(1), Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS));
        }
        theirs.want_repair(tidings::core::LinkId::new(1));
        for _ in 0..6 {
            for to_ours in [true, false] {
                let (from, to) = if to_ours { (&mut theirs, &mut ours) } else { (&mut ours, &mut theirs) };
                let mut outputs = Vec::new();
                while let Some(output) = from.poll() {
                    outputs.push(output);
                }
                for output in outputs {
                    let Output::Stream(id, lane, mut bytes) = output else { continue };
                    if to_ours && !bytes.is_empty() {
                        // Not the length, which would only make the replica wait for more bytes.
                        flips.iter().for_each(|(at, by)| {
                            let at = at.index(bytes.len());
                            if at > 3 { bytes[at] ^= by; }
                        });
                    }
                    to.handle(at(2), Input::Stream(id, lane, &bytes));
                }
            }
        }
        ours.handle(at(3), Input::LinkUp(tidings::core::LinkId::new(2), tidings::core::Abilities::OURS));
        let lane = if bulk { Lane::Bulk } else { Lane::Live };
        ours.handle(at(3), Input::Stream(tidings::core::LinkId::new(2), lane, &noise));
        ours.handle(at(3), Input::Datagram(tidings::core::LinkId::new(2), &noise));
        while ours.poll().is_some() {}
        ours.put(at(4), "later", b"v").unwrap();
        let later = ours.get(at(4), "later").unwrap();
        prop_assert_eq!(later.value(), b"v");
    }
}

/// One operation of a user at a replica.
#[derive(Clone, Debug)]
enum Deed {
    Put(u8, u8),
    PutFor(u8, u64),
    Delete(u8),
    Add(u8),
    Remove(u8),
    Count(i8),
    Batch(Vec<(u8, Option<u8>)>),
}

fn deeds() -> impl Strategy<Value = Deed> {
    let batch = prop::collection::vec((0..6_u8, prop::option::of(any::<u8>())), 1..4);
    prop_oneof![
        3 => (0..6_u8, any::<u8>()).prop_map(|(key, value)| Deed::Put(key, value)),
        2 => (0..6_u8).prop_map(Deed::Delete),
        2 => (0..6_u8).prop_map(Deed::Add),
        1 => (0..6_u8).prop_map(Deed::Remove),
        1 => any::<i8>().prop_map(Deed::Count),
        1 => batch.prop_map(Deed::Batch),
    ]
}

/// The same with values that expire, some before the comparison and some after it.
fn passing_deeds() -> impl Strategy<Value = Deed> {
    prop_oneof![4 => deeds(), 1 => (0..6_u8, 1..100_000_u64).prop_map(|(key, ms)| Deed::PutFor(key, ms))]
}

fn register(key: u8) -> String {
    format!("r{key}")
}

fn element(key: u8) -> String {
    format!("e{key}")
}

fn batch_of(writes: &[(u8, Option<u8>)]) -> Batch {
    writes.iter().fold(Batch::new(), |batch, (key, value)| match value {
        Some(value) => batch.put(register(*key), [*value]),
        None => batch.delete(register(*key)),
    })
}

fn act(replica: &mut Replica, now: Time, deed: &Deed) -> Vec<Option<Stamp>> {
    match deed {
        Deed::Put(key, value) => vec![Some(replica.put(now, &register(*key), &[*value]).unwrap())],
        Deed::PutFor(key, ms) => {
            let options = PutOptions::new().ttl(Duration::from_millis(*ms));
            vec![Some(replica.put_with(now, &register(*key), b"passing", &options).unwrap())]
        }
        Deed::Delete(key) => vec![replica.delete(now, &register(*key)).unwrap()],
        Deed::Add(key) => vec![Some(replica.set_add(now, "s", &element(*key)).unwrap())],
        Deed::Remove(key) => vec![replica.set_remove(now, "s", &element(*key)).unwrap()],
        Deed::Count(by) => vec![Some(replica.counter_add(now, "c", i64::from(*by)).unwrap())],
        Deed::Batch(writes) => replica.commit(now, &batch_of(writes)).unwrap(),
    }
}

/// Carries the outputs of two replicas to each other until neither has more.
fn talk(now: Time, link: tidings::core::LinkId, a: &mut Replica, b: &mut Replica) {
    loop {
        let mut is_silent = true;
        for to_b in [true, false] {
            let (from, to) = if to_b { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
            while let Some(output) = from.poll() {
                is_silent = false;
                match &output {
                    Output::Stream(id, ..) | Output::Datagram(id, _) if *id == link => {
                        carry(now, link, from, to, &output);
                    }
                    Output::RepairBegun(_) | Output::Repair(..) => {}
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
        if is_silent {
            return;
        }
    }
}

/// Links two replicas, repairs them, and ends the link.
fn exchange(now: Time, a: &mut Replica, b: &mut Replica) {
    const LINK: tidings::core::LinkId = tidings::core::LinkId::new(1);
    for replica in [&mut *a, &mut *b] {
        replica.handle(now, Input::LinkUp(LINK, tidings::core::Abilities::OURS));
    }
    a.want_repair(LINK);
    talk(now, LINK, a, b);
    for replica in [a, b] {
        replica.handle(now, Input::LinkDown(LINK));
    }
}

/// Replicas after a history of unlinked operations. Each holds a row of its own, because a blank replica would adopt
/// the hash key of the other whatever it is.
fn apart(count: usize, history: &[(usize, Deed)]) -> Vec<Replica> {
    let mut replicas: Vec<Replica> =
        (0..count).map(|i| Replica::new(Setup::new(Config::lan(), i as u64))).collect();
    for (i, replica) in replicas.iter_mut().enumerate() {
        replica.put(at(0), &format!("own {i}"), b"v").unwrap();
    }
    for (step, (i, deed)) in history.iter().enumerate() {
        act(&mut replicas[i % count], at(step as u64), deed);
    }
    replicas
}

/// What must be equal in two replicas with the same state: root, vector hash and entries.
fn state(replica: &Replica, now: Time) -> (u128, u64, Vec<String>) {
    let status = replica.status();
    let told = |entry: &Entry| format!("{entry:?} {:?}", entry.conflicts().collect::<Vec<_>>());
    (status.root, status.vector_hash, replica.scan(now, "").iter().map(told).collect())
}

/// Lets pairs of replicas exchange everything, one pair after another.
fn meet(now: Time, mut replicas: Vec<Replica>, pairs: &[(usize, usize)]) -> Vec<Replica> {
    for (a, b) in pairs {
        let [a, b] = replicas.get_disjoint_mut([*a, *b]).unwrap();
        exchange(now, a, b);
    }
    replicas
}

/// A model replica: all events that it knows, and the stamps that they removed.
#[derive(Clone, Debug, Default)]
struct Model {
    /// By key and stamp: the value, if it is a put.
    events: BTreeMap<(String, Stamp), Option<Vec<u8>>>,
    removed: BTreeSet<Stamp>,
    /// By replica: the number of its counter steps, and their sum.
    shares: BTreeMap<usize, (u32, i64)>,
}

impl Model {
    fn dots(&self, key: &str) -> Vec<(Stamp, Vec<u8>)> {
        let here = self.events.iter().filter(|((of, stamp), _)| of == key && !self.removed.contains(stamp));
        here.filter_map(|((_, stamp), value)| Some((*stamp, value.clone()?))).collect()
    }

    fn write(&mut self, key: String, stamp: Option<Stamp>, value: Option<Vec<u8>>) {
        let before = self.dots(&key);
        assert_eq!(
            stamp.is_none(),
            value.is_none() && before.is_empty(),
            "a delete of a key without a value must have no stamp"
        );
        let Some(stamp) = stamp else { return };
        self.removed.extend(before.iter().map(|(stamp, _)| *stamp));
        self.events.insert((key, stamp), value);
    }

    fn act(&mut self, i: usize, deed: &Deed, stamps: &[Option<Stamp>]) {
        match deed {
            Deed::Put(key, value) => self.write(register(*key), stamps[0], Some(vec![*value])),
            Deed::Delete(key) => self.write(register(*key), stamps[0], None),
            Deed::Add(key) => self.write(element(*key), stamps[0], Some(Vec::new())),
            Deed::Remove(key) => self.write(element(*key), stamps[0], None),
            Deed::Count(by) => {
                let share = self.shares.entry(i).or_default();
                *share = (share.0 + 1, share.1 + i64::from(*by));
            }
            Deed::Batch(writes) => {
                for ((key, value), stamp) in writes.iter().zip(stamps) {
                    self.write(register(*key), *stamp, value.map(|value| vec![value]));
                }
            }
            Deed::PutFor(..) => unreachable!("the model has no expiry"),
        }
    }

    fn learn(&mut self, other: &Self) {
        self.events.extend(other.events.clone());
        self.removed.extend(&other.removed);
        for (i, theirs) in &other.shares {
            let mine = self.shares.entry(*i).or_default();
            *mine = (*mine).max(*theirs);
        }
    }

    fn agrees(&self, replica: &Replica, now: Time) {
        for key in 0..6 {
            let dots = self.dots(&register(key));
            let entry = replica.get(now, &register(key));
            let ours = entry.iter().flat_map(|entry| std::iter::once(entry.clone()).chain(entry.conflicts()));
            let ours: Vec<(Stamp, Vec<u8>)> =
                ours.map(|entry| (entry.stamp(), entry.value().to_vec())).collect();
            // The winner has the greatest stamp; conflicts follow in descending order.
            assert_eq!(ours, dots.into_iter().rev().collect::<Vec<_>>(), "{}", register(key));
        }
        let elements: Vec<String> = (0..6).map(element).filter(|e| !self.dots(e).is_empty()).collect();
        assert_eq!(replica.set_iter(now, "s").collect::<Vec<_>>(), elements);
        assert!((0..6).map(element).all(|e| replica.set_contains(now, "s", &e) == elements.contains(&e)));
        assert_eq!(replica.counter_value("c"), self.shares.values().map(|(_, sum)| sum).sum::<i64>());
    }
}

/// A time after all writes.
const LATER_MS: u64 = 10_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Merging whole replicas is commutative, associative and idempotent.
    #[test]
    fn replicas_end_equal_in_any_order_of_merges(
        history in prop::collection::vec((0..3_usize, deeds()), 0..80),
    ) {
        let now = at(LATER_MS);
        let orders: [&[(usize, usize)]; 5] = [
            &[(0, 1), (0, 2), (0, 1)],
            &[(1, 0), (2, 0), (1, 0)],
            &[(1, 2), (0, 1), (1, 2)],
            &[(2, 0), (1, 2), (0, 1)],
            &[(0, 1), (0, 1), (1, 2), (1, 2), (2, 0), (2, 0), (0, 1)],
        ];
        let mut expected = None;
        for order in orders {
            let replicas = meet(now, apart(3, &history), order);
            for replica in &replicas {
                let state = state(replica, now);
                prop_assert_eq!(expected.get_or_insert_with(|| state.clone()), &state);
            }
            let heads: Vec<_> = replicas.iter().map(|replica| replica.status().head).collect();
            let again = meet(now, replicas, order);
            let unmoved: Vec<_> = again.iter().map(|replica| replica.status().head).collect();
            prop_assert_eq!(heads, unmoved, "a repeated exchange changed something");
        }
    }

    /// The digest depends only on what is held, not on how it was received: by one repair, by the tail write by write,
    /// or by the repair of a second half.
    #[test]
    fn digest_depends_on_the_state_alone(
        history in prop::collection::vec((0..1_usize, passing_deeds()), 0..80),
        half in any::<prop::sample::Index>(),
    ) {
        const LINK: tidings::core::LinkId = tidings::core::LinkId::new(1);
        let now = at(LATER_MS);
        let wake = |replica: &mut Replica| replica.handle(now, Input::Wake);
        let blank = |seed| Replica::new(Setup::new(Config::lan(), seed));
        // A replica that gets everything by one repair at the end.
        let mut source = apart(1, &history).remove(0);
        wake(&mut source);
        let mut at_once = blank(10);
        exchange(now, &mut source, &mut at_once);
        wake(&mut at_once);
        prop_assert_eq!(state(&source, now), state(&at_once, now));
        // A replica that follows each write, and one that is repaired in the middle and at the end.
        let mut source = apart(1, &[]).remove(0);
        let (mut follower, mut late) = (blank(11), blank(12));
        for replica in [&mut source, &mut follower] {
            replica.handle(at(0), Input::LinkUp(LINK, tidings::core::Abilities::OURS));
        }
        for (step, (_, deed)) in history.iter().enumerate() {
            act(&mut source, at(step as u64), deed);
            talk(at(step as u64), LINK, &mut source, &mut follower);
            if step == half.index(history.len()) {
                exchange(at(step as u64), &mut follower, &mut late);
                for replica in [&mut source, &mut follower] {
                    replica.handle(at(step as u64), Input::LinkDown(LINK));
                    replica.handle(at(step as u64), Input::LinkUp(LINK, tidings::core::Abilities::OURS));
                }
            }
        }
        for replica in [&mut source, &mut follower] {
            replica.handle(now, Input::LinkDown(LINK));
            wake(replica);
        }
        exchange(now, &mut source, &mut late);
        wake(&mut late);
        exchange(now, &mut source, &mut follower);
        prop_assert_eq!(state(&source, now), state(&late, now));
        prop_assert_eq!(state(&source, now), state(&follower, now));
        prop_assert_eq!(source.status().root, at_once.status().root);
    }

    /// Registers, sets, counters and batches, at one replica and at two concurrently, agree with a model of events and
    /// of what they removed.
    #[test]
    fn everything_agrees_with_a_plain_model_of_events(
        history in prop::collection::vec((0..2_usize, prop::option::weighted(0.9, deeds())), 0..120),
        alone in any::<bool>(),
    ) {
        let mut replicas = apart(2, &[]);
        let mut models = [Model::default(), Model::default()];
        for (step, (i, deed)) in history.iter().enumerate() {
            let (now, i) = (at(step as u64), if alone { 0 } else { *i });
            if let Some(deed) = deed {
                let stamps = act(&mut replicas[i], now, deed);
                models[i].act(i, deed, &stamps);
            } else {
                replicas = meet(now, replicas, &[(0, 1)]);
                let [a, b] = &mut models;
                a.learn(b);
                b.learn(a);
            }
            for (model, replica) in models.iter().zip(&replicas) {
                model.agrees(replica, now);
            }
        }
    }
}
