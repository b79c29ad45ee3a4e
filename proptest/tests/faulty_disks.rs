//! Disks that lose writes, tear transactions, fail and fill up, tested in the simulator and with a single replica whose
//! disk is a map.
//!
//! Negative controls: `EarlyPromise` acknowledges writes before the sync, `TornTaken` reads a torn transaction.

use std::collections::BTreeMap;

use tidings::core::{Input, Replica, Saved, SavedError, Setup, Time};
use tidings::sim::{Disk, DiskFault, Sim};
use tidings::{Config, Control, WriteError};
use tidings_proptest::{Noticed, ms, notice};

#[test]
fn full_disk_refuses_writes_but_not_replication() {
    let mut sim = Sim::new(1).nodes_with_disk(2);
    sim.run_for(ms(500));
    sim.node(0).put("before", "v").unwrap();
    sim.run_for(ms(100));
    sim.disk_fault(0, Some(DiskFault::Full));
    sim.node(0).put("during", "v").unwrap();
    sim.run_for(ms(100));
    assert_eq!(sim.node(0).put("k", "v"), Err(WriteError::Disk));
    assert_eq!(sim.node(0).delete("before"), Err(WriteError::Disk));
    assert_eq!(sim.node(0).counter("c").add(1), Err(WriteError::Disk));
    sim.node(1).put("other", "v").unwrap();
    sim.node(1).delete("before").unwrap();
    sim.run_for(ms(500));
    assert!(sim.node(0).get("other").is_some() && sim.node(0).get("before").is_none());
    sim.disk_fault(0, None);
    sim.node(0).put("after", "v").unwrap();
    sim.run_for(ms(100));
    sim.partition(&[0], &[1]);
    sim.restart(0);
    let keys: Vec<String> = sim.node(0).scan("").iter().map(|entry| entry.key().to_owned()).collect();
    assert_eq!(keys, ["after", "during", "other"]);
    sim.heal();
    sim.assert_converged();
}

#[test]
fn disk_that_cannot_sync_acknowledges_nothing_until_restart() {
    let mut sim = Sim::new(2).nodes_with_disk(1);
    sim.run_for(ms(100));
    sim.node(0).put("safe", "v").unwrap();
    sim.run_for(ms(100));
    sim.disk_fault(0, Some(DiskFault::SyncFails));
    sim.node(0).put("unsafe", "v").unwrap();
    sim.run_for(ms(100));
    let status = sim.node(0).status();
    assert!(status.has_disk_failed && status.durable != Some(status.head));
    sim.disk_fault(0, None);
    sim.run_for(ms(1_000));
    assert_eq!(sim.node(0).put("k", "v"), Err(WriteError::Disk));
    sim.restart(0);
    assert!(sim.node(0).get("safe").is_some());
    sim.node(0).put("k", "v").unwrap();
    sim.run_for(ms(100));
    let status = sim.node(0).status();
    assert_eq!(status.durable, Some(status.head));
}

/// Writes and crashes 30 times, at varying points of a transaction.
fn crashes(seed: u64, sim: Sim) {
    let mut sim = sim.nodes_with_disk(1);
    for round in 0..30 {
        for i in 0..3 {
            sim.node(0).put(format!("k{}", (round + i) % 7), "v").unwrap();
            sim.node(0).delete(format!("k{}", (round + i + 3) % 7)).unwrap();
            sim.run_for(ms((seed + round * i) % 5));
        }
        sim.restart_with(0, Disk::Latest);
        assert!(sim.events().is_empty(), "the replica reported an event after it read its disk");
    }
}

#[test]
fn a_crash_loses_nothing_that_was_acknowledged_as_durable() {
    let noticed =
        |control| (0..20).find_map(|seed| notice(|| crashes(seed, Sim::new(seed).broken(Some(control)))));
    (0..100).for_each(|seed| crashes(seed, Sim::new(seed)));
    assert_eq!(noticed(Control::EarlyPromise), Some(Noticed::Promise));
    assert!(noticed(Control::TornTaken).is_some());
}

/// The simplest disk: a map.
#[derive(Default)]
struct Plain {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    parts: usize,
}

impl Plain {
    /// Takes all parts of pending transactions, and acknowledges each transaction.
    fn follow(&mut self, replica: &mut Replica) {
        while let Some(part) = replica.persist() {
            self.parts += 1;
            if part.begins() && part.is_whole() {
                self.map.clear();
            }
            for (key, value) in part.changes() {
                match value {
                    Some(value) => _ = self.map.insert(key, value),
                    None => _ = self.map.remove(&key),
                }
            }
            if part.ends() {
                replica.handle(Time::default(), Input::Persisted);
            }
        }
    }

    fn read(&self) -> Result<Saved, SavedError> {
        Saved::read(self.map.clone().into_iter().map(Ok::<_, SavedError>))
    }
}

fn replica(seed: u64, saved: Option<Saved>) -> Replica {
    let mut setup = Setup::new(Config::lan(), seed);
    (setup.has_disk, setup.saved) = (true, saved);
    Replica::new(setup)
}

#[test]
fn promise_is_safe_only_after_the_disk_acknowledged_it() {
    let (mut disk, mut a) = (Plain::default(), replica(1, None));
    disk.follow(&mut a);
    assert!(a.are_memos_safe());
    a.set_memo("promise/cron", Some(b"to b"));
    assert!(!a.are_memos_safe());
    let part = a.persist().unwrap();
    assert!(part.ends() && !a.are_memos_safe());
    a.handle(Time::default(), Input::PersistFailed);
    a.handle(Time::default(), Input::DiskBack);
    assert!(!a.are_memos_safe());
    disk.follow(&mut a);
    assert!(a.are_memos_safe());
    let a = replica(2, Some(disk.read().unwrap()));
    assert_eq!(a.memo("promise/cron"), Some(&b"to b"[..]));
}

#[test]
fn large_transaction_is_written_in_parts_and_only_once() {
    let (mut disk, mut a) = (Plain::default(), replica(1, None));
    for i in 0..50_000 {
        a.put(Time::default(), &format!("k{i}"), b"v").unwrap();
    }
    // Writes between two parts belong to the same transaction.
    let first = a.persist().unwrap();
    assert!(first.begins() && !first.ends());
    a.put(Time::default(), "k0", b"w").unwrap();
    a.delete(Time::default(), "k1").unwrap();
    first.changes().for_each(|(key, value)| _ = disk.map.insert(key, value.unwrap_or_default()));
    disk.follow(&mut a);
    assert!(disk.parts > 10);
    let (root, saved) = (a.status().root, disk.read().unwrap());
    let mut a = replica(2, Some(saved));
    assert_eq!((a.status().root, a.len()), (root, 49_999));
    assert!(a.persist().is_none());
}

/// One bit of each stored byte is flipped in turn, and each record removed in turn: reading the disk fails, or the
/// replica reports damage.
#[test]
fn every_changed_byte_on_disk_is_detected() {
    let (mut disk, mut a) = (Plain::default(), replica(1, None));
    a.put(Time::default(), "k", b"value").unwrap();
    a.set_add(Time::default(), "s", "x").unwrap();
    a.counter_add(Time::default(), "c", 7).unwrap();
    a.set_memo("promise", Some(b"to b"));
    disk.follow(&mut a);
    let damaged = |map: BTreeMap<Vec<u8>, Vec<u8>>| {
        let Ok(saved) = (Plain { map, parts: 0 }).read() else { return true };
        let mut replica = replica(2, Some(saved));
        std::iter::from_fn(|| replica.poll()).any(|output| format!("{output:?}").contains("Damaged"))
    };
    assert!(!damaged(disk.map.clone()));
    for (key, value) in &disk.map {
        for at in 0..value.len() {
            let mut map = disk.map.clone();
            map.get_mut(key).unwrap()[at] ^= 4;
            assert!(damaged(map), "byte {at} of {key:?}");
        }
        let mut map = disk.map.clone();
        map.remove(key);
        // Only a memo may be missing, because nothing else refers to it.
        assert!(damaged(map) || key.ends_with(b"promise"), "{key:?} is missing");
    }
}
