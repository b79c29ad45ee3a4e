//! The limit of the store's size: which local writes it refuses, what is counted, and what it never refuses.
//!
//! Negative control: `GrowthUnchecked` accepts every local write.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tidings::core::{Batch, Replica, Setup, Time};
use tidings::limits::ENTRY_BYTES;
use tidings::sim::Sim;
use tidings::{Config, Control, PutOptions, ReplicaEvent, WriteError};
use tidings_proptest::holds_unless;

/// The least limit that is permitted.
const LIMIT: usize = 64 << 10;

fn limited() -> Config {
    let mut config = Config::lan();
    config.store_bytes_max = LIMIT;
    config
}

/// A write of the model: its key, and the size of the value that the key holds afterwards.
#[derive(Clone, Debug)]
enum Write {
    Put(u8, usize),
    Delete(u8),
    Add(u8),
    Remove(u8),
    Count,
}

/// What is held, by stored key: the bytes of key and value.
type Held = BTreeMap<String, usize>;

impl Write {
    fn apply(&self, held: &mut Held) {
        match self {
            Self::Put(key, bytes) => {
                _ = held.insert(format!("k{key}"), 1 + format!("k{key}").len() + bytes);
            }
            Self::Add(element) => {
                _ = held.insert(format!("set {element}"), 3 + 3 + format!("{element}").len());
            }
            Self::Count => _ = held.insert("counter".to_owned(), 3 + 7 + 8 + 8),
            Self::Delete(key) => _ = held.remove(&format!("k{key}")),
            Self::Remove(element) => _ = held.remove(&format!("set {element}")),
        }
    }

    fn add_to(&self, batch: Batch) -> Batch {
        match self {
            Self::Put(key, bytes) => batch.put(format!("k{key}"), vec![b'v'; *bytes]),
            Self::Delete(key) => batch.delete(format!("k{key}")),
            Self::Add(element) => batch.set_add("set", element.to_string()),
            Self::Remove(element) => batch.set_remove("set", element.to_string()),
            Self::Count => batch.counter_add("counter", 1),
        }
    }

    fn commit(&self, replica: &mut Replica, now: Time) -> Result<(), WriteError> {
        match self {
            Self::Put(key, bytes) => {
                let options = PutOptions::new();
                replica.put_with(now, &format!("k{key}"), &vec![b'v'; *bytes], &options).map(|_| ())
            }
            Self::Delete(key) => replica.delete(now, &format!("k{key}")).map(|_| ()),
            Self::Add(element) => replica.set_add(now, "set", &element.to_string()).map(|_| ()),
            Self::Remove(element) => replica.set_remove(now, "set", &element.to_string()).map(|_| ()),
            Self::Count => replica.counter_add(now, "counter", 1).map(|_| ()),
        }
    }
}

fn size(held: &Held) -> u64 {
    held.values().map(|bytes| *bytes as u64 + ENTRY_BYTES).sum()
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        6 => (0..40_u8, 0..8_000_usize).prop_map(|(key, bytes)| Write::Put(key, bytes)),
        1 => (0..40_u8).prop_map(Write::Delete),
        2 => any::<u8>().prop_map(Write::Add),
        1 => any::<u8>().prop_map(Write::Remove),
        1 => Just(Write::Count),
    ]
}

proptest! {
    #[test]
    fn size_is_exact_and_growth_beyond_the_limit_is_refused(
        steps in prop::collection::vec(prop::collection::vec(write(), 1..4), 1..60)
    ) {
        let mut replica = Replica::new(Setup::new(limited(), 1));
        let now = Time { mono: Duration::from_secs(1), wall: Duration::from_secs(1_000_000) };
        let mut held = Held::new();
        for step in steps {
            let mut after = held.clone();
            step.iter().for_each(|write| write.apply(&mut after));
            let (bytes, needed, limit) = (size(&held), size(&after), LIMIT as u64);
            let result = match &step[..] {
                [write] => write.commit(&mut replica, now),
                writes => {
                    let batch = writes.iter().fold(Batch::new(), |batch, write| write.add_to(batch));
                    replica.commit(now, &batch).map(|_| ())
                }
            };
            if needed > limit && needed > bytes {
                prop_assert_eq!(result, Err(WriteError::Full { bytes, needed, limit }));
            } else {
                prop_assert_eq!(result, Ok(()));
                held = after;
            }
            prop_assert_eq!(replica.status().size_bytes, size(&held));
            prop_assert!(replica.status().size_bytes <= limit);
        }
    }
}

#[test]
fn full_store_takes_only_deletes_and_writes_of_others() {
    holds_unless(Control::GrowthUnchecked, 5, |sim| {
        let mut sim = sim.config(limited()).nodes(2);
        sim.partition(&[0], &[1]);
        for i in 0..2 {
            (0..6).for_each(|key| _ = sim.node(i).put(format!("{i}/{key}"), vec![b'v'; 10_000]).unwrap());
            let refused = sim.node(i).put(format!("{i}/6"), vec![b'v'; 10_000]);
            assert!(
                matches!(refused, Err(WriteError::Full { limit, .. }) if limit == LIMIT as u64),
                "{refused:?}"
            );
            assert_eq!(sim.node(i).len(), 6, "nothing was written");
        }
        sim.heal();
        sim.assert_converged();
        for i in 0..2 {
            assert_eq!(sim.node(i).len(), 12, "what others wrote is merged beyond the limit");
            assert!(sim.node(i).status().size_bytes > LIMIT as u64);
        }
        let node = sim.node(0);
        assert!(matches!(node.put("small", "v"), Err(WriteError::Full { .. })));
        assert!(matches!(node.set("s").add("e"), Err(WriteError::Full { .. })));
        assert!(matches!(node.counter("c").add(1), Err(WriteError::Full { .. })));
        let batch = node.batch().delete("0/0").put("more", vec![b'v'; 20_000]);
        assert!(matches!(batch.commit(), Err(WriteError::Full { .. })), "a batch is refused as a whole");
        assert!(node.get("0/0").is_some());
        node.put("0/0", vec![b'w'; 10_000]).expect("it does not grow");
        node.batch()
            .put("more", vec![b'v'; 9_000])
            .delete("0/0")
            .commit()
            .expect("the batch shrinks the store");
        (0..6).for_each(|key| _ = node.delete(format!("1/{key}")).expect("deletes always go through"));
        sim.assert_converged();
        sim.node(1).put("small", "v").expect("there is room again");
        sim.assert_converged();
    });
}

/// The limit is each node's own: the first node has the least one, the others have the usual one.
#[test]
fn node_with_the_lowest_limit_holds_what_others_write() {
    holds_unless(Control::GrowthUnchecked, 5, |sim| {
        let mut sim = sim.config(Config::lan()).nodes(3);
        sim.node(0).reconfigure(limited()).expect("it is permitted");
        let put = |sim: &Sim, i: usize, part: &str| {
            (0..6).for_each(|key| {
                _ = sim.node(i).put(format!("{part}/{key}"), vec![b'v'; 10_000]).expect("there is room");
            });
        };
        let is_full = |sim: &Sim| matches!(sim.node(0).put("own", vec![b'v'; 10_000]), Err(WriteError::Full { limit, .. }) if limit == LIMIT as u64);
        put(&sim, 1, "live");
        sim.assert_converged();
        assert!(is_full(&sim), "what others wrote fills it");
        put(&sim, 1, "beyond");
        sim.assert_converged();
        assert_eq!(sim.node(0).len(), 12, "live writes of others are merged beyond the limit");
        sim.partition(&[0], &[1, 2]);
        put(&sim, 2, "apart");
        sim.heal();
        sim.assert_converged();
        assert_eq!(sim.node(0).len(), 18, "so is what a repair brings");
        sim.reconfigure(0, limited());
        sim.crash(0);
        sim.restart(0);
        sim.assert_converged();
        assert_eq!((sim.node(0).len(), is_full(&sim)), (18, true), "a blank node joins beyond its limit");
        let filling = |told: Vec<(usize, ReplicaEvent)>| {
            let nodes =
                told.into_iter().filter(|(_, event)| matches!(event, ReplicaEvent::StoreFilling { .. }));
            nodes.map(|(node, _)| node).collect::<Vec<_>>()
        };
        assert_eq!(filling(sim.events()), [0, 0], "once in each life of the full node");
        // It is read and deleted from there as everywhere.
        (0..6).for_each(|key| {
            sim.node(0).delete(format!("live/{key}")).expect("deletes go through");
            sim.node(0).delete(format!("beyond/{key}")).expect("deletes go through");
        });
        sim.assert_converged();
        assert_eq!(sim.node(1).len(), 6);
        sim.node(0).put("own", "v").expect("there is room again");
        sim.node(0).reconfigure(Config::lan()).expect("it is permitted");
        put(&sim, 0, "raised");
        sim.assert_converged();
    });
}

#[test]
fn filling_and_room_are_told_once_each_time() {
    let mut sim = Sim::new(1).config(limited()).nodes(1);
    let of_size = |events: Vec<(usize, ReplicaEvent)>| -> Vec<&'static str> {
        let kind = |(_, event): &(usize, ReplicaEvent)| match event {
            ReplicaEvent::StoreFilling { .. } => Some("filling"),
            ReplicaEvent::StoreHasRoom { .. } => Some("room"),
            _ => None,
        };
        events.iter().filter_map(kind).collect()
    };
    let mut told = Vec::new();
    // The value that brings the store to this share of its limit, in percent.
    for percent in [79, 81, 75, 81, 71, 69, 79, 81] {
        let bytes = LIMIT / 100 * percent - ENTRY_BYTES as usize - 2;
        sim.node(0).put("k", vec![b'v'; bytes]).unwrap();
        sim.run_for(Duration::from_millis(10));
        told.push(of_size(sim.events()));
    }
    let none = Vec::new;
    let expected = [none(), vec!["filling"], none(), none(), none(), vec!["room"], none(), vec!["filling"]];
    assert_eq!(told, expected);
}
