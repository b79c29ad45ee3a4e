//! The digest as the store keeps it, and the integrity check that it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{NOTHING_KEPT, Store, expiring};
use crate::store::change_log::ChangeLog;
use crate::store::coverage::{self, Context, Seen};
use crate::store::digest::{Digest, HashKey, Node, Range};
use crate::store::entry::{Held, Record};
use crate::store::slab::{Order, Slab, Slot, Source};

impl Store {
    pub(crate) fn root(&self) -> Node {
        self.digest.root()
    }

    /// Count and sum of a range's rows.
    pub(crate) fn node(&self, range: Range) -> Node {
        self.digest.node(range).unwrap_or_else(|| {
            let mut node = Node::default();
            for slot in self.slots(range) {
                node.change(0, self.row_hash(slot));
            }
            node
        })
    }

    pub(crate) fn row_hash(&self, slot: u32) -> u128 {
        self.slab.at(slot).hash(self.hash_key)
    }

    /// The slots of all rows in a range that hold something.
    pub(crate) fn slots(&self, range: Range) -> Vec<u32> {
        let mut slots = Vec::new();
        for leaf in self.digest.leaves_of(range) {
            slots.extend(self.digest.leaf_slots(leaf).filter(|slot| {
                let held = &self.slab.at(*slot).held;
                !held.is_empty() && range.contains(self.hash_key.place(held.key()))
            }));
        }
        slots
    }

    /// Recomputes the leaves of a range, and says whether they add up.
    pub(crate) fn verify(&mut self, range: Range) -> bool {
        let leaves: Vec<usize> = self.digest.leaves_of(range).collect();
        leaves.into_iter().all(|leaf| self.verify_leaf(leaf))
    }

    /// Whether the leaf of one key adds up. Values are not read again: this finds what is lost, not what is changed.
    pub(crate) fn key_adds_up(&self, key: &[u8]) -> bool {
        self.leaf_adds_up(self.digest.leaf_of(self.hash_key.place(key)))
    }

    fn leaf_adds_up(&self, leaf: usize) -> bool {
        let mut node = Node::default();
        self.digest.leaf_slots(leaf).for_each(|slot| node.change(0, self.row_hash(slot)));
        node == self.digest.leaf_node(leaf)
    }

    /// The same for the next leaves in turn, for the background.
    pub(crate) fn scrub(&mut self, from: usize, leaves: usize) -> usize {
        for leaf in from..(from + leaves).min(self.digest.leaves()) {
            self.verify_leaf(leaf);
        }
        from + leaves
    }

    pub(crate) fn leaves(&self) -> usize {
        self.digest.leaves()
    }

    fn verify_leaf(&mut self, leaf: usize) -> bool {
        let is_intact = |slot: u32| self.slab.at(slot).held.dots().iter().all(Record::is_intact);
        self.is_damaged |= !(self.leaf_adds_up(leaf) && self.digest.leaf_slots(leaf).all(is_intact));
        !self.is_damaged
    }

    /// From now on this store counts under another hash key.
    pub(crate) fn rekey(&mut self, hash_key: HashKey) {
        self.hash_key = hash_key;
        let slots: Vec<u32> = self.log.after(0).map(|(_, slot)| slot).collect();
        self.seen.rekey(hash_key, slots.iter().map(|at| self.slab.at(*at).held.key()));
        self.digest = Digest::of(
            slots.len(),
            slots.into_iter().map(|at| {
                let slot = self.slab.at(at);
                let place = hash_key.place(slot.held.key());
                (place, at, slot.held.hash(hash_key, place))
            }),
        );
    }

    /// Takes a disk's rows, in the order of their keys, into a store without any.
    pub(crate) fn fill(&mut self, rows: Vec<Held>) {
        for held in rows {
            for dot in held.dots() {
                self.clock.recall(dot.stamp().clock);
                self.seen.imply(dot.stamp());
            }
            self.bytes += held.bytes();
            let expiring = expiring(&held);
            let mut slot = Slot::new(held);
            slot.move_to(self.log.head() + 1, Source::Elsewhere);
            let at = self.slab.insert(slot);
            self.order.insert(at, &self.slab);
            self.schedule(at, expiring, true);
            self.log.append(at, false, Source::Elsewhere);
        }
        // The digest is made of what came from the disk, all at once.
        self.rekey(self.hash_key);
    }

    /// A store with these rows and no claims, for a new run after an integrity fault.
    pub(crate) fn refill(&mut self, rows: impl IntoIterator<Item = Held>) {
        for held in rows {
            let place = self.hash_key.place(held.key());
            for dot in held.dots() {
                self.clock.observe(dot.stamp().clock);
                self.seen.imply(dot.stamp());
            }
            self.apply(self.find(held.key(), place), place, held, Source::Elsewhere);
        }
    }

    /// Gives up all claims: what is still held is covered dot by dot, everything else is unknown again.
    pub(crate) fn give_up_claims(&mut self, run: u64, log: u64) {
        let intact = |held: &Held| {
            let dots = held.dots().iter().filter(|dot| dot.is_intact()).cloned().collect();
            Held::from_records(held.key(), dots)
        };
        let rows: BTreeMap<Vec<u8>, Held> =
            self.from(&[]).map(|(held, _)| (held.key().to_vec(), intact(held))).collect();
        self.run = run;
        self.log = ChangeLog::new(log);
        self.seen = Seen::new(self.hash_key);
        self.positions.clear();
        self.slab = Slab::default();
        self.order = Order::new();
        self.digest = Digest::new();
        self.expiries.clear();
        self.hidden.clear();
        self.bytes = 0;
        self.is_damaged = false;
        for held in rows.values() {
            let place = self.hash_key.place(held.key());
            let mut context = Context::new();
            held.dots().iter().for_each(|dot| coverage::raise(&mut context, dot.stamp()));
            self.seen.cover_key(held.key(), place, &Arc::new(context));
        }
        self.refill(rows.into_values().filter(|held| !held.is_empty()));
        self.log.raise_floor(self.log.head().max(1));
        self.disk = self.disk.map(|at| if at == NOTHING_KEPT { at } else { 0 });
    }
}
