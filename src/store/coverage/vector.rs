//! Vectors in two parts: the old one, which hardly changes any more, and the recent one.
//!
//! A vector has an entry for every process start that ever wrote. Nearly all of these runs have ended, and their
//! entries are the same on all replicas. So a vector is divided at a *cut*, a clock at least an hour ago. Entries up to
//! the cut are the *old part*. It is named by a count and a sum of hashes, and a peer whose old part has the same name
//! is sent the name instead of the entries. The recent part is sent in full. This changes how a vector is sent, never
//! what is claimed.
//!
//! The old part of a replica's own vector must hold exactly the entries up to the cut: otherwise replicas with the same
//! vector would have old parts with different names. An entry that grows past the cut moves to the recent part.

use std::collections::VecDeque;

use crdts::CvRDT;

use super::clocks::{BucketMask, Clocks};
use super::sum::{BucketSums, ClocksSum};
use crate::id::RunId;
use crate::time::Stamp;

/// Entries that move to the old part in one step.
const MOVED_MAX: usize = 256;

/// Encoded, the name of an old part is about as long as this many entries.
const NAME_ENTRIES: usize = 2;

/// Old parts that were offered and are kept. A peer that names an older one loses its link, and is offered the present
/// one over the next link.
const OFFERS_MAX: usize = 64;

/// For each origin the stamp up to which everything of it is merged by somebody.
///
/// `recent` takes precedence: where both parts have an entry, the recent one is greater.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vector {
    old: Clocks,
    recent: Clocks,
}

impl Vector {
    fn clock(&self, origin: RunId) -> Option<u64> {
        self.recent.clock(origin).or_else(|| self.old.clock(origin))
    }

    /// The clock of an origin, 0 if it has no entry.
    pub(crate) fn get(&self, origin: RunId) -> u64 {
        self.clock(origin).unwrap_or(0)
    }

    pub(crate) fn covers(&self, stamp: Stamp) -> bool {
        self.get(stamp.origin) >= stamp.clock
    }

    /// Whether every entry of these clocks is covered.
    pub(crate) fn covers_all(&self, clocks: &Clocks) -> bool {
        self.missing(clocks).is_empty()
    }

    /// The entries of `clocks` that lie beyond this vector.
    pub(crate) fn missing(&self, clocks: &Clocks) -> Clocks {
        clocks.beyond(&self.recent).beyond(&self.old)
    }

    /// The entries of this vector that lie beyond another one. What both share is not looked at.
    pub(crate) fn beyond(&self, other: &Self) -> Clocks {
        // Each part is compared with its like first, with which it shares most.
        let mut beyond = self.old.beyond(&other.old).beyond(&other.recent);
        beyond.merge(self.recent.beyond(&other.recent).beyond(&other.old));
        beyond
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.old.is_empty() && self.recent.is_empty()
    }

    /// The number of entries, of a vector without an origin in both parts.
    pub(crate) fn len(&self) -> usize {
        self.old.len() + self.recent.len()
    }

    /// Whether both are one and the same vector. Equal vectors may be separate ones.
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        self.old.is_shared_with(&other.old) && self.recent.is_shared_with(&other.recent)
    }

    /// The old part.
    pub(crate) fn old(&self) -> &Clocks {
        &self.old
    }

    /// The news of this vector for a peer that was told `told` of it. `shared`: what the peer has as well.
    pub(crate) fn news_since(&self, told: &Self, shared: Option<SharedOld>) -> VectorNews {
        let entries = self.beyond(told);
        if let Some(shared) = shared.filter(|_| entries.len() > NAME_ENTRIES) {
            let mut named = told.clone();
            named.join_old(&shared.entries);
            let rest = self.beyond(&named);
            if rest.len() + NAME_ENTRIES < entries.len() {
                return VectorNews { old: Some(shared.name), entries: rest };
            }
        }
        VectorNews { old: None, entries }
    }

    /// All entries.
    pub(crate) fn clocks(&self) -> Clocks {
        let mut all = self.old.clone();
        all.merge(self.recent.clone());
        all
    }

    /// Raises the vector by entries that were told.
    pub(crate) fn join(&mut self, told: &Clocks) {
        let news = self.missing(told);
        self.recent.merge(news);
    }

    /// Raises the vector by an old part that was named.
    pub(crate) fn join_old(&mut self, old: &Clocks) {
        self.old.merge(old.clone());
        self.recent = self.recent.beyond(&self.old);
    }
}

impl From<Clocks> for Vector {
    fn from(recent: Clocks) -> Self {
        Self { old: Clocks::default(), recent }
    }
}

/// An old part, or some of its buckets, by the sum under which the side that has it has offered it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NamedOld {
    pub(crate) sum: ClocksSum,
    /// `None`: all of it.
    pub(crate) buckets: Option<BucketMask>,
}

/// Entries that both ends of a link have, and the name under which the peer knows them.
#[derive(Clone, Debug)]
pub(crate) struct SharedOld {
    pub(crate) name: NamedOld,
    pub(crate) entries: Clocks,
}

/// What a frame tells of its sender's vector beyond what was told before on the same stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct VectorNews {
    /// The vector includes this old part of the reader.
    pub(crate) old: Option<NamedOld>,
    pub(crate) entries: Clocks,
}

/// What of a peer's vector lies beyond this replica's own, kept up to date in the time that the own one has grown.
#[derive(Clone, Debug, Default)]
pub(crate) struct BeyondOwn {
    /// The own vector as of the last call.
    own: Vector,
    beyond: Clocks,
}

impl BeyondOwn {
    pub(crate) fn of(vector: &Vector, own: &Vector) -> Self {
        Self { own: own.clone(), beyond: vector.beyond(own) }
    }

    /// Takes over what the peer has told of its vector, and drops what the own one has caught up with.
    pub(crate) fn update(&mut self, told: &Clocks, own: &Vector) -> &Clocks {
        if !self.beyond.is_empty() {
            for (origin, clock) in own.beyond(&self.own).iter() {
                if self.beyond.clock(origin).is_some_and(|beyond| beyond <= clock) {
                    self.beyond.remove(origin);
                }
            }
        }
        self.own = own.clone();
        self.beyond.merge(own.missing(told));
        &self.beyond
    }
}

/// The vector of this replica, with what is kept up to date beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnVector {
    vector: Vector,
    /// Entries with a clock up to this one are the old part.
    cut: u64,
    /// Entries of the recent part may lie below the cut.
    is_cutting: bool,
    old_sums: BucketSums,
    recent_sum: ClocksSum,
    /// Old parts that were offered to peers, the latest one last.
    offers: VecDeque<(ClocksSum, Clocks)>,
}

impl OwnVector {
    pub(super) fn vector(&self) -> &Vector {
        &self.vector
    }

    /// The sum of all entries.
    pub(super) fn sum(&self) -> ClocksSum {
        self.old_sums.all.plus(self.recent_sum)
    }

    pub(super) fn old_sums(&self) -> &BucketSums {
        &self.old_sums
    }

    /// The sum of all entries, with those of `raised` instead of lesser ones.
    pub(super) fn sum_raised_to(&self, raised: &Clocks) -> ClocksSum {
        let mut sum = self.sum();
        for (origin, clock) in raised.iter() {
            match self.vector.clock(origin) {
                Some(own) if own >= clock => continue,
                Some(own) => _ = sum.subtract(origin, own),
                None => {}
            }
            sum.add(origin, clock);
        }
        sum
    }

    /// The entries over a clock. The old part is walked only if that clock lies below the cut.
    pub(super) fn entries_over(&self, clock: u64) -> Vec<(RunId, u64)> {
        let Vector { old, recent } = &self.vector;
        let old = (clock < self.cut).then(|| old.iter()).into_iter().flatten();
        old.chain(recent.iter()).filter(|entry| entry.1 > clock).collect()
    }

    /// Sets an entry, which may become less.
    pub(super) fn set(&mut self, stamp: Stamp) {
        let (Stamp { origin, clock }, Vector { old, recent }) = (stamp, &mut self.vector);
        if clock <= self.cut {
            if let Some(before) = recent.clock(origin) {
                recent.remove(origin);
                self.recent_sum.subtract(origin, before);
            }
            if let Some(before) = old.insert(origin, clock) {
                self.old_sums.subtract(origin, before);
            }
            self.old_sums.add(origin, clock);
        } else {
            if let Some(before) = recent.insert(origin, clock) {
                self.recent_sum.subtract(origin, before);
            } else if let Some(before) = old.clock(origin) {
                old.remove(origin);
                self.old_sums.subtract(origin, before);
            }
            self.recent_sum.add(origin, clock);
        }
    }

    /// Raises the vector by entries beyond it.
    pub(super) fn join(&mut self, news: &Clocks) {
        let (mut above, mut known) = (Vec::new(), Vec::new());
        for (origin, clock) in news.iter() {
            if clock > self.cut {
                above.push((origin, clock));
            } else if self.vector.clock(origin).is_some() {
                known.push((origin, clock));
            } else {
                self.old_sums.add(origin, clock);
            }
        }
        // Nearly all are old and new here, and then the maps are merged as a whole.
        let mut old = news.clone();
        for (origin, clock) in above.into_iter().chain(known) {
            old.remove(origin);
            self.set(Stamp { clock, origin });
        }
        self.vector.old.merge(old);
    }

    /// Moves the cut, and at most [`MOVED_MAX`] of the entries that it has passed. Called in every sync interval, so
    /// that the others follow. Returns whether this call moved the last of them.
    pub(super) fn set_cut(&mut self, cut: u64) -> bool {
        if cut < self.cut {
            // The wall clock was ahead.
            let ahead: Vec<(RunId, u64)> = self.vector.old.iter().filter(|entry| entry.1 > cut).collect();
            self.cut = cut;
            ahead.into_iter().for_each(|(origin, clock)| self.set(Stamp { clock, origin }));
        }
        self.is_cutting |= self.cut < cut;
        self.cut = cut;
        let was_cutting = self.is_cutting;
        if was_cutting {
            let behind = self.vector.recent.iter().filter(|entry| entry.1 <= cut);
            let behind: Vec<(RunId, u64)> = behind.take(MOVED_MAX).collect();
            self.is_cutting = behind.len() == MOVED_MAX;
            behind.into_iter().for_each(|(origin, clock)| self.set(Stamp { clock, origin }));
        }
        was_cutting && !self.is_cutting
    }

    /// The old part holds exactly the entries up to the cut, and each part has its sum.
    #[cfg(test)]
    pub(super) fn assert_divided(&self) {
        let Vector { old, recent } = &self.vector;
        assert!(old.iter().all(|(_, clock)| clock <= self.cut), "{self:?}");
        assert!(self.is_cutting || recent.iter().all(|(_, clock)| clock > self.cut), "{self:?}");
        assert_eq!(old.without(recent).len(), old.len(), "no origin stands in both");
        assert_eq!(
            [old, recent].map(|part| ClocksSum::of(part.iter())),
            [self.old_sums.all, self.recent_sum]
        );
    }

    /// The sum of the old part as it is now. A peer may refer to it from now on.
    pub(super) fn offer(&mut self) -> ClocksSum {
        let sum = self.old_sums.all;
        if self.offers.back().is_none_or(|(offered, _)| *offered != sum) {
            self.offers.retain(|(offered, _)| *offered != sum);
            self.offers.push_back((sum, self.vector.old.clone()));
            if self.offers.len() > OFFERS_MAX {
                self.offers.pop_front();
            }
        }
        sum
    }

    /// Takes the news of a peer's vector. False if they refer to an old part that is not known here any more.
    pub(super) fn take_news(&self, vector: &mut Vector, news: &VectorNews) -> bool {
        if let Some(NamedOld { sum, buckets }) = news.old {
            let Some((_, old)) = self.offers.iter().rev().find(|(offered, _)| *offered == sum) else {
                return false;
            };
            vector.join_old(&buckets.map_or_else(|| old.clone(), |buckets| old.within(&buckets)));
        }
        vector.join(&news.entries);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_may_name_the_latest_offers_of_an_old_part() {
        let mut own = OwnVector::default();
        own.set_cut(10);
        let offers = 1..=OFFERS_MAX as u64 + 1;
        let offered: Vec<ClocksSum> = offers
            .map(|origin| {
                own.set(Stamp { clock: 1, origin: RunId::new(origin) });
                own.offer()
            })
            .collect();
        let names = |sum| {
            let news = VectorNews { old: Some(NamedOld { sum, buckets: None }), entries: Clocks::default() };
            let mut told = Vector::default();
            own.take_news(&mut told, &news).then_some(told.len())
        };
        assert_eq!(names(offered[0]), None, "the oldest one is forgotten");
        assert_eq!(names(offered[1]), Some(2));
        assert_eq!(names(offered[OFFERS_MAX]), Some(OFFERS_MAX + 1));
        assert_eq!(own.offers.len(), OFFERS_MAX);
    }
}
