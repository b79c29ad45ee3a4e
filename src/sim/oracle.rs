//! The oracle: the global history of writes, and what every replica has to hold because of it.
//!
//! The rule, for every replica at every instant: a dot that it covers is held if and only if no event that it covers
//! removed the dot. All other promises of the library about convergence and deletes follow from this.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use thiserror::Error;

use crate::id::RunId;
use crate::store::LocalStore;
use crate::time::Stamp;

/// What a simulation found wrong. The text says where and what.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
#[non_exhaustive]
pub enum SimFault {
    /// A node covers a write that nobody removed and does not hold it.
    Lost(String),
    /// A node covers the removal of a write and still holds it.
    Returned(String),
    /// A node holds a write that no node made.
    Invented(String),
    /// A node holds a write that it does not cover.
    Uncovered(String),
    /// Two nodes cover the same and do not hold the same.
    Differing(String),
    /// A node covers less after a restart than it had acknowledged as durable.
    DurableLost(String),
    /// What a node's disk kept in a crash cannot be read.
    DiskUnreadable(String),
    /// Several nodes hold a lease at the same time.
    TwoHolders(String),
    /// Two lists of voters follow the same one.
    TwoVoterLists(String),
    /// A list of voters is in force that was neither decided by the voters of the list before it nor forced.
    VotersUndecided(String),
    /// The token of a new holder of a lease is not greater than that of the holder before it.
    TokenNotGrown(String),
    /// The nodes did not come to hold the same in time.
    NotConverged(String),
}

/// A put or delete of one key.
#[derive(Clone, Debug)]
pub(crate) struct OracleEvent {
    pub(crate) stamp: Stamp,
    /// The dots that the writer held under the key.
    pub(crate) removed: Vec<Stamp>,
    pub(crate) is_put: bool,
    /// Until when, by a correct clock, it has to be held if nothing removes it. `None`: for ever.
    pub(crate) until_ms: Option<u64>,
    /// The run to whose life it is bound: it has to be held only while the process lives.
    pub(crate) run: Option<RunId>,
    /// Its stamp is further ahead than a correct clock permits, so it is claimed to peers only when that time has come.
    /// Until then, what it removed may be gone on replicas that do not cover it; and its value may be held where its
    /// removal is covered.
    pub(crate) is_ahead: bool,
}

/// All events of a simulation, by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    events: BTreeMap<Vec<u8>, Vec<OracleEvent>>,
    /// The root of a replica with this vector (under this hash key) and nothing beyond it.
    roots: BTreeMap<(u64, (u64, u64)), u128>,
    has_expiries: bool,
    /// Runs to whose end nodes may have dropped what was bound to their lives.
    ended: BTreeSet<RunId>,
    /// A replica has given up its claims and covers its dots one by one. What it sends is true for these dots, but does
    /// not name the events that removed others.
    pub(crate) has_faults: bool,
}

impl Oracle {
    /// Records one local write.
    pub(crate) fn record(&mut self, key: &[u8], event: OracleEvent) {
        self.has_expiries |= event.until_ms.is_some() || event.run.is_some();
        self.events.entry(key.to_vec()).or_default().push(event);
    }

    /// A process has ended, its name was given to another one, or somebody has forgotten its member.
    pub(crate) fn end_run(&mut self, run: RunId) {
        self.ended.insert(run);
    }

    /// A node has written an entry of the library itself, which expires and is not recorded.
    pub(crate) fn note_unrecorded_expiry(&mut self) {
        self.has_expiries = true;
    }

    /// The latest wall-clock time of all stamps that were ahead.
    #[cfg(feature = "__controls")]
    pub(crate) fn last_ahead_ms(&self) -> Option<u64> {
        let ahead = self.events.values().flatten().filter(|event| event.is_ahead);
        ahead.map(|event| event.stamp.wall_ms()).max()
    }

    /// Compares the replica of node `i` with the history. Before its expiry by the true clock, a dot that expires has
    /// to be held like any other.
    pub(crate) fn check(&mut self, i: usize, store: &LocalStore, wall_ms: u64) -> Result<(), SimFault> {
        let run = store.run;
        for (key, events) in &self.events {
            let dot_set: BTreeSet<Stamp> =
                store.dot_set(key).map(|(dot_set, _)| dot_set.stamps().collect()).unwrap_or_default();
            let mut removed = BTreeSet::new();
            let covered: Vec<&OracleEvent> =
                events.iter().filter(|event| store.covers(key, event.stamp)).collect();
            covered.iter().for_each(|event| removed.extend(event.removed.iter().copied()));
            for event in covered
                .into_iter()
                .filter(|event| event.is_put && event.until_ms.is_none_or(|ms| ms > wall_ms))
                .filter(|event| event.run.is_none_or(|run| !self.ended.contains(&run)))
            {
                let should = !removed.contains(&event.stamp);
                let gone = |other: &OracleEvent| {
                    (self.has_faults || other.is_ahead) && other.removed.contains(&event.stamp)
                };
                let is_excused = if should { events.iter().any(gone) } else { event.is_ahead };
                if is_excused {
                    continue;
                }
                if dot_set.contains(&event.stamp) != should {
                    let (what, fault): (_, fn(String) -> SimFault) = if should {
                        ("does not hold", SimFault::Lost)
                    } else {
                        ("still holds", SimFault::Returned)
                    };
                    let mut told = String::new();
                    for event in events {
                        let is_covered = store.covers(key, event.stamp);
                        _ = write!(told, "\n  {event:?} covered: {is_covered}");
                    }
                    return Err(fault(format!(
                        "node {i}: run {run:x} covers and {what} {:?} of {:?}; held: {dot_set:?}{told}",
                        event.stamp,
                        String::from_utf8_lossy(key),
                    )));
                }
            }
            let place = store.hash_key.place(key);
            for stamp in &dot_set {
                if !events.iter().any(|event| event.is_put && event.stamp == *stamp) {
                    let what = format!("node {i}: run {run:x} holds {stamp:?}, which nobody wrote");
                    return Err(SimFault::Invented(what));
                }
                if !store.coverage.covers(key, place, *stamp) && !store.coverage.may_cover_by_held(*stamp) {
                    let what = format!("node {i}: run {run:x} holds {stamp:?} and does not cover it");
                    return Err(SimFault::Uncovered(what));
                }
            }
        }
        self.check_root(i, store)
    }

    /// Two replicas with equal coverage have to hold the same.
    fn check_root(&mut self, i: usize, store: &LocalStore) -> Result<(), SimFault> {
        if !store.coverage.is_vector_only() || self.has_expiries {
            return Ok(());
        }
        let at = (store.coverage.vector_hash(), store.hash_key.words());
        let root = store.root().sum();
        match self.roots.insert(at, root) {
            Some(other) if other != root => Err(SimFault::Differing(format!(
                "node {i}: run {:x} covers the same as another replica and holds something else",
                store.run
            ))),
            _ => Ok(()),
        }
    }
}
