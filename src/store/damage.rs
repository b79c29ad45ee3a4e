//! Damage that tests and measurements do to a store on purpose.

use super::LocalStore;
#[cfg(feature = "__controls")]
use super::limited;
#[cfg(feature = "__measures")]
use crate::id::{RowId, RunId};
#[cfg(feature = "__measures")]
use crate::store::digest::{Place, fingerprint};
#[cfg(feature = "__controls")]
use crate::store::entry::{Dot, DotSet, Removal};
#[cfg(feature = "__measures")]
use crate::time::HybridClock;

#[cfg(feature = "__measures")]
impl LocalStore {
    /// Covers one write each of this many runs. The same number names the same runs on every node.
    pub(crate) fn cover_dead_runs(&mut self, count: u64) {
        let run = |i: u64| RunId::new(fingerprint(0, &i.to_le_bytes()));
        let runs = (0..count).map(|i| (run(i), (i + 1) << HybridClock::COUNTER_BITS)).collect();
        self.coverage.load(&runs, &[]);
    }

    /// Does to the digest what overwriting every row once does, including the hash of the key that also finds the row.
    pub(crate) fn churn_digest(&mut self) {
        let rows: Vec<RowId> = self.log.rows_after(0).map(|(_, id)| id).collect();
        for id in rows {
            let dot_set = &self.slab.at(id).dot_set;
            let place = self.hash_key.place(dot_set.key());
            let hash = |place: &Place| dot_set.digest_share(self.hash_key, *std::hint::black_box(place));
            let (old, new) = (hash(&place), hash(&place));
            self.digest.change(place, old, new);
        }
    }
}

#[cfg(feature = "__controls")]
impl LocalStore {
    /// Loses an entry as a bug or a bit flip would: everything but the sums of the digest forgets it.
    pub(crate) fn lose(&mut self, key: &[u8]) -> bool {
        let place = self.hash_key.place(key);
        let Some(at) = self.row_of(key, place).filter(|at| !self.slab.at(*at).dot_set.is_empty()) else {
            return false;
        };
        self.key_index.remove(key, &self.slab);
        self.digest.lose(place, at);
        self.log.take_out(self.slab.at(at).revision);
        let dot_set = self.slab.at(at).dot_set.clone();
        self.schedule(at, limited(&dot_set), false);
        self.slab.remove(at);
        true
    }

    /// Loses an entry and takes it out of the digest as well, so that no check on this node can notice.
    pub(crate) fn misplace(&mut self, key: &[u8]) -> bool {
        let place = self.hash_key.place(key);
        let Some(at) = self.row_of(key, place).filter(|at| !self.slab.at(*at).dot_set.is_empty()) else {
            return false;
        };
        self.replace(at, place, DotSet::empty(key, Removal::Unknown));
        self.log.mark_removal(self.slab.at(at).revision);
        true
    }

    /// Changes one bit in each dot of a key.
    pub(crate) fn flip(&mut self, key: &[u8]) -> bool {
        let Some(at) = self.row_of(key, self.hash_key.place(key)) else { return false };
        let dots: Vec<Dot> = self.slab.at(at).dot_set.dots().iter().map(Dot::damaged).collect();
        let changed = !dots.is_empty();
        self.slab.at_mut(at).dot_set = DotSet::from_dots(key, dots);
        changed
    }
}
