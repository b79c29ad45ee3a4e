//! The digest of the store, and the integrity check that it provides.
//!
//! The sums of the digest are kept apart from the rows and follow every write. If a leaf, recomputed from its rows,
//! differs from its sum, an entry was lost or damaged. What this replica covers cannot be trusted then: a lost entry is
//! covered and not held, and so would be deleted everywhere. So a leaf is recomputed before its rows are listed for a
//! peer, on load and in the background, and after a fault all claims are given up before anything else is sent.

use std::collections::BTreeMap;

use super::{DiskFollower, LocalStore, bound::BoundRuns, limited};
use crate::controls::Control;
use crate::id::{LogId, RowId};
use crate::store::change_log::ChangeLog;
use crate::store::coverage::{Clocks, Coverage};
use crate::store::digest::{Digest, DigestNode, HashKey, HashRange};
use crate::store::entry::{Dot, DotSet};
use crate::store::slab::{ChangeOrigin, KeyIndex, Slab, StoredRow};

impl LocalStore {
    pub(crate) fn root(&self) -> DigestNode {
        self.digest.root()
    }

    /// Count and sum of the rows of a range.
    pub(crate) fn node(&self, range: HashRange) -> DigestNode {
        self.digest.node(range).unwrap_or_else(|| {
            let mut node = DigestNode::default();
            for id in self.rows_in(range) {
                node.change(0, self.row_digest(id));
            }
            node
        })
    }

    pub(crate) fn row_digest(&self, id: RowId) -> u128 {
        self.slab.at(id).digest_share(self.hash_key)
    }

    /// All rows in a range that hold something.
    pub(crate) fn rows_in(&self, range: HashRange) -> Vec<RowId> {
        let mut rows = Vec::new();
        for leaf in self.digest.leaves_of(range) {
            rows.extend(self.digest.leaf_rows(leaf).filter(|id| {
                let dot_set = &self.slab.at(*id).dot_set;
                !dot_set.is_empty() && range.contains(self.hash_key.place(dot_set.key()))
            }));
        }
        rows
    }

    /// Recomputes the leaves of a range, and returns whether they add up. If not, the store is damaged from then on.
    pub(crate) fn verify(&mut self, range: HashRange) -> bool {
        let leaves: Vec<usize> = self.digest.leaves_of(range).filter(|_| self.verifies_leaves()).collect();
        leaves.into_iter().all(|leaf| self.verify_leaf(leaf))
    }

    /// Whether the leaf of one key adds up. Values are not read again: this finds entries that are lost, not values
    /// that changed.
    pub(crate) fn key_adds_up(&self, key: &[u8]) -> bool {
        !self.verifies_leaves() || self.leaf_adds_up(self.digest.leaf_of(self.hash_key.place(key)))
    }

    /// Whether leaves are recomputed before anything of them is sent.
    fn verifies_leaves(&self) -> bool {
        !self.controls.has(Control::NoVerify)
    }

    fn leaf_adds_up(&self, leaf: usize) -> bool {
        let mut node = DigestNode::default();
        self.digest.leaf_rows(leaf).for_each(|id| node.change(0, self.row_digest(id)));
        node == self.digest.leaf_node(leaf)
    }

    /// Verifies the next leaves, for the background check. Returns where the next call continues.
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
        let is_intact = |id: RowId| self.slab.at(id).dot_set.dots().iter().all(Dot::is_intact);
        self.is_damaged |= !(self.leaf_adds_up(leaf) && self.digest.leaf_rows(leaf).all(is_intact));
        !self.is_damaged
    }

    /// Changes the hash key: builds the digest anew and moves the extra coverage. This hides damage, so all leaves must
    /// be verified before.
    pub(crate) fn rekey(&mut self, hash_key: HashKey) {
        self.hash_key = hash_key;
        let rows: Vec<RowId> = self.log.rows_after(0).map(|(_, id)| id).collect();
        self.coverage.rekey(hash_key, rows.iter().map(|id| self.slab.at(*id).dot_set.key()));
        self.digest = Digest::of(
            rows.len(),
            rows.into_iter().map(|id| {
                let row = self.slab.at(id);
                let place = hash_key.place(row.dot_set.key());
                (place, id, row.dot_set.digest_share(hash_key, place))
            }),
        );
    }

    /// Loads the rows of a disk, in key order, into an empty store.
    pub(crate) fn fill(&mut self, rows: Vec<DotSet>) {
        for dot_set in rows {
            for dot in dot_set.dots() {
                self.clock.load(dot.stamp().clock);
                self.coverage.note_covered_by_held(dot.stamp());
            }
            self.bytes += dot_set.bytes();
            let limited = limited(&dot_set);
            let mut row = StoredRow::new(dot_set);
            row.move_to(self.log.head() + 1, ChangeOrigin::Learned);
            let id = self.slab.insert(row);
            self.key_index.insert(id, &self.slab);
            self.schedule(id, limited, true);
            self.log.append(id, ChangeOrigin::Learned);
        }
        // Builds the digest of all rows at once.
        self.rekey(self.hash_key);
    }

    /// Adds rows to an emptied store, for a new run after an integrity fault.
    pub(crate) fn refill(&mut self, rows: impl IntoIterator<Item = DotSet>) {
        for dot_set in rows {
            let place = self.hash_key.place(dot_set.key());
            for dot in dot_set.dots() {
                self.clock.advance_to(dot.stamp().clock);
                self.coverage.note_covered_by_held(dot.stamp());
            }
            self.apply(self.row_of(dot_set.key(), place), place, dot_set, ChangeOrigin::Learned);
        }
    }

    /// Gives up all claims after an integrity fault and goes on as a new run with a new log: each intact dot that is
    /// held stays, covered by itself, and everything else counts as not merged. All links must be broken before.
    pub(crate) fn give_up_claims(&mut self) {
        let intact = |dot_set: &DotSet| {
            let dots = dot_set.dots().iter().filter(|dot| dot.is_intact()).cloned().collect();
            DotSet::from_dots(dot_set.key(), dots)
        };
        let rows: BTreeMap<Vec<u8>, DotSet> =
            self.iter_from(&[]).map(|(dot_set, _)| (dot_set.key().to_vec(), intact(dot_set))).collect();
        self.generation += 1;
        self.run = self.first_run.after(self.generation);
        self.log = ChangeLog::new(LogId::of(self.run));
        self.coverage = Coverage::new(self.hash_key);
        self.peer_positions.clear();
        self.slab = Slab::default();
        self.key_index = KeyIndex::new();
        self.digest = Digest::new();
        self.expiries.clear();
        self.hidden.clear();
        self.bound = BoundRuns::default();
        self.bytes = 0;
        self.is_damaged = false;
        for dot_set in rows.values() {
            let place = self.hash_key.place(dot_set.key());
            let mut context = Clocks::default();
            dot_set.dots().iter().for_each(|dot| _ = context.raise(dot.stamp()));
            self.coverage.cover_key(dot_set.key(), place, &context);
        }
        self.refill(rows.into_values().filter(|dot_set| !dot_set.is_empty()));
        self.log.raise_floor(self.log.head().max(1));
        if let DiskFollower::At(at) = &mut self.disk {
            *at = 0;
        }
    }
}
