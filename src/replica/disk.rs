//! What goes to the disk, and comes back from it.

use std::collections::BTreeMap;

use super::Replica;
use crate::controls::Control;
use crate::digest::{HashKey, Node};
use crate::entry::{Held, Record};
use crate::seen::Pending;

/// One transaction for the disk: rows and what is seen, of one instant.
#[derive(Clone, Debug)]
pub struct Persist {
    /// The log's head in that instant.
    pub(crate) head: u64,
    rows: Vec<Held>,
    seen: BTreeMap<u64, u64>,
    clouds: Vec<Pending>,
    positions: BTreeMap<u64, u64>,
    hash_key: HashKey,
    clock: u64,
    run: u64,
    root: Node,
    /// The rows replace everything stored before.
    is_whole: bool,
}

impl Persist {
    /// What to answer with once it is safe.
    pub fn head(&self) -> u64 {
        self.head
    }
}

/// What a disk holds: the sum of all [`Persist`]s.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    rows: BTreeMap<Vec<u8>, Held>,
    latest: Option<Box<Persist>>,
}

impl Saved {
    /// Takes in one transaction.
    pub fn apply(&mut self, mut persist: Persist) {
        if persist.is_whole {
            self.rows.clear();
        }
        for held in persist.rows.drain(..) {
            if held.is_empty() {
                self.rows.remove(held.key());
            } else {
                self.rows.insert(held.key().to_vec(), held);
            }
        }
        self.latest = Some(Box::new(persist));
    }

    /// Takes in only what a transaction says is seen, without its rows.
    #[cfg(feature = "__controls")]
    pub(crate) fn apply_seen(&mut self, mut persist: Persist) {
        persist.rows.clear();
        self.latest = Some(Box::new(persist));
    }
}

impl Replica {
    pub(super) fn load(&mut self, saved: Saved) {
        let Saved { rows, latest: Some(latest) } = saved else { return };
        let store = &mut self.store;
        store.rekey(latest.hash_key);
        store.clock.observe(latest.clock);
        if store.controls.has(Control::OldOrigin) {
            store.run = latest.run;
        }
        store.seen.restore(latest.seen, &latest.clouds);
        store.refill(rows.into_values());
        store.positions = latest.positions;
        store.log.raise_floor(store.log.head().max(1));
        if store.root() != latest.root {
            store.is_damaged = !store.controls.has(Control::SeenAhead);
        }
        self.recover();
    }

    pub(super) fn persist(&mut self) -> Option<Persist> {
        let store = &mut self.store;
        let mark = (store.log.head(), store.seen.version(), store.seen.spans());
        if !self.has_disk || self.persisting || (mark == self.persisted && !self.persist_whole) {
            return None;
        }
        let since = if self.persist_whole { 0 } else { self.persisted.0 };
        let is_whole = std::mem::take(&mut self.persist_whole);
        self.persisting = true;
        self.persisted = mark;
        let mut rows: Vec<Held> =
            store.log.after(since).map(|(_, slot)| store.slot(slot).held.clone()).collect();
        let nothing = |key: &[u8]| Held::Nothing(Record::bare(key));
        let dropped = std::mem::take(&mut store.dropped);
        rows.extend(
            dropped.iter().map(|key| store.held(key).map_or_else(|| nothing(key), |(h, _)| h.clone())),
        );
        Some(Persist {
            head: mark.0,
            rows,
            seen: store.seen.vector().dots.clone(),
            clouds: store.seen.clouds(),
            positions: store.positions.clone(),
            hash_key: store.hash_key,
            clock: store.clock.last(),
            run: store.run,
            root: store.root(),
            is_whole,
        })
    }
}
