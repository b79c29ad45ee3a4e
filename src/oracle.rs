//! The oracle: the global history of events, and what every replica must hold because of it.
//!
//! For every replica at every instant: a dot that it covers is held if and only if no event that it covers removed
//! the dot. Everything else the library promises about convergence and deletes follows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::store::Store;
use crate::time::Stamp;

#[derive(Clone, Debug)]
struct Event {
    stamp: Stamp,
    /// The dots that the writer held under the key.
    removed: Vec<Stamp>,
    is_put: bool,
    expires: bool,
}

/// All events of a simulation, by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    events: BTreeMap<Vec<u8>, Vec<Event>>,
    /// What a replica with this vector, and nothing beyond it, held.
    roots: BTreeMap<(u64, (u64, u64)), u128>,
    has_expiries: bool,
    /// A replica has given up its claims and covers its dots one by one. What it tells is true of the dots, but
    /// no longer names the events that removed the others.
    pub(crate) has_faults: bool,
}

impl Oracle {
    /// Records one local event: what was held before, and what it wrote.
    pub(crate) fn record(
        &mut self,
        key: &[u8],
        before: Vec<Stamp>,
        stamp: Stamp,
        is_put: bool,
        expires: bool,
    ) {
        self.has_expiries |= expires;
        let event = Event { stamp, removed: before, is_put, expires };
        self.events.entry(key.to_vec()).or_default().push(event);
    }

    /// Compares a replica with the history.
    pub(crate) fn check(&mut self, store: &Store) -> Result<(), String> {
        for (key, events) in &self.events {
            let held: BTreeSet<Stamp> = store
                .held(key)
                .map(|(held, _)| held.dots().iter().map(super::entry::Record::stamp).collect())
                .unwrap_or_default();
            let mut removed = BTreeSet::new();
            let covered: Vec<&Event> = events.iter().filter(|event| store.covers(key, event.stamp)).collect();
            covered.iter().for_each(|event| removed.extend(event.removed.iter().copied()));
            for event in covered.into_iter().filter(|event| event.is_put && !event.expires) {
                let should = !removed.contains(&event.stamp);
                let gone = |other: &Event| other.removed.contains(&event.stamp);
                if should && self.has_faults && events.iter().any(gone) {
                    continue;
                }
                if held.contains(&event.stamp) != should {
                    let what = if should { "does not hold" } else { "still holds" };
                    let mut told = String::new();
                    for event in events {
                        let is_covered = store.covers(key, event.stamp);
                        _ = write!(told, "\n  {event:?} covered: {is_covered}");
                    }
                    return Err(format!(
                        "run {:x} covers and {what} {:?} of {:?}; held: {held:?}{told}",
                        store.run,
                        event.stamp,
                        String::from_utf8_lossy(key),
                    ));
                }
            }
            let place = store.hash_key.place(key);
            for stamp in &held {
                if !events.iter().any(|event| event.is_put && event.stamp == *stamp) {
                    return Err(format!("run {:x} holds {stamp:?}, which nobody wrote", store.run));
                }
                if !store.seen.covers(key, place, *stamp) && !store.seen.implies(*stamp) {
                    return Err(format!("run {:x} holds {stamp:?} and does not cover it", store.run));
                }
            }
        }
        self.check_root(store)
    }

    /// Equal `Seen` means equal state.
    fn check_root(&mut self, store: &Store) -> Result<(), String> {
        if !store.seen.is_settled() || self.has_expiries {
            return Ok(());
        }
        let at = (store.seen.hash(), store.hash_key.words());
        let root = store.root().sum();
        match self.roots.insert(at, root) {
            Some(other) if other != root => Err(format!(
                "run {:x} has seen the same as another replica and holds something else",
                store.run
            )),
            _ => Ok(()),
        }
    }
}
