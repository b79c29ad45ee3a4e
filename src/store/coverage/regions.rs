//! Contexts with the regions of hash space in which they hold, and leftovers.
//!
//! A context is recorded by places in hash space. When a node takes over the hash key of another cluster, these places
//! mean nothing under the new hash key. So the contexts keep their old hash key beside them: they are *leftovers*. A
//! leftover that is merged within a range under the new hash key holds in the intersection of both regions.
//!
//! Leftovers must not multiply. They are sent with every range of a session and narrowed to it by the receiver, so one
//! leftover would come back as one for each range. So leftovers with the same context whose regions differ under only
//! one hash key are joined: once a session has settled all ranges, what it brought is what the peer had.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Clocks, Vector};
use crate::store::digest::HashKey;
use crate::time::Stamp;

/// Leftovers that a replica keeps, each counted once for every hash key that restricts it: a row is looked up under each
/// of them. A range that would exceed this is not settled: its rows are merged one by one, and
/// the session claims nothing. Honest clusters keep one for each different context, a few dozen at most.
pub(crate) const LEFTOVERS_MAX: usize = 4_096;

/// Intervals and clocks of all leftovers that are sent in one direction of a session. A replica keeps twice as many:
/// those that a session brings may be here already, and are counted once more then.
pub(crate) const LEFTOVER_ITEMS_MAX: usize = 1 << 20;
pub(super) const LEFTOVER_ITEMS_KEPT_MAX: usize = 2 * LEFTOVER_ITEMS_MAX;

/// A set of positions in hash space: intervals with both ends included, which neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HashIntervals {
    /// The last position of each interval, by its first.
    intervals: BTreeMap<u64, u64>,
}

impl HashIntervals {
    pub(crate) fn between(first: u64, last: u64) -> Self {
        Self { intervals: BTreeMap::from([(first, last)]) }
    }

    pub(crate) fn add(&mut self, mut first: u64, mut last: u64) {
        let route = last.saturating_add(1);
        while let Some((start, end)) = self.intervals.range(..=route).next_back().map(|(s, e)| (*s, *e)) {
            if end.checked_add(1).is_some_and(|next| next < first) {
                break;
            }
            self.intervals.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.intervals.insert(first, last);
    }

    pub(crate) fn is_all(&self) -> bool {
        self.intervals.get(&0) == Some(&u64::MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    fn has(&self, place: u64) -> bool {
        self.intervals.range(..=place).next_back().is_some_and(|(_, last)| place <= *last)
    }

    fn has_all_of(&self, other: &Self) -> bool {
        other.iter().all(|(first, last)| {
            self.intervals.range(..=first).next_back().is_some_and(|(_, end)| last <= *end)
        })
    }

    /// The part between two positions, both included.
    pub(crate) fn within(&self, first: u64, last: u64) -> Self {
        let before = self.intervals.range(..first).next_back().filter(|(_, end)| **end >= first);
        let inside = before.into_iter().chain(self.intervals.range(first..=last));
        Self { intervals: inside.map(|(start, end)| (first.max(*start), last.min(*end))).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.intervals.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.intervals.iter().map(|(first, last)| (*first, *last))
    }
}

/// A context and the keys for which it holds: those whose place lies in the region under *each* of these hash keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RegionCoverage {
    /// Shared, because a leftover is named again with every range of a session.
    pub(crate) regions: Arc<BTreeMap<HashKey, HashIntervals>>,
    pub(crate) clocks: Clocks,
}

/// The contexts that a peer sent with a range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeerRegions {
    pub(crate) regions: Vec<RegionCoverage>,
    /// The peer sent all that it has there.
    pub(crate) is_whole: bool,
}

impl RegionCoverage {
    pub(crate) fn new(hash_key: HashKey, intervals: HashIntervals, context: Clocks) -> Self {
        Self { regions: Arc::new(BTreeMap::from([(hash_key, intervals)])), clocks: context }
    }

    /// The number of intervals and clocks, which is what keeping and sending it costs.
    pub(crate) fn items(&self) -> usize {
        self.regions.values().map(HashIntervals::len).sum::<usize>() + self.clocks.len()
    }

    /// The number of hash keys, which is what it costs to ask whether it is for a key.
    pub(crate) fn hash_keys(&self) -> usize {
        self.regions.len()
    }

    /// Whether it covers this event of this key.
    pub(crate) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.clocks.covers(stamp) && self.is_for(key)
    }

    pub(crate) fn is_for(&self, key: &[u8]) -> bool {
        self.regions.iter().all(|(hash_key, intervals)| intervals.has(hash_key.place(key).line_position()))
    }

    /// The same context, only for keys between two positions under `hash_key`. `None` if there can be no such key.
    pub(crate) fn narrowed_to(mut self, hash_key: HashKey, first: u64, last: u64) -> Option<Self> {
        let intervals = match self.regions.get(&hash_key) {
            Some(intervals) => intervals.within(first, last),
            None => HashIntervals::between(first, last),
        };
        if intervals.is_empty() {
            return None;
        }
        Arc::make_mut(&mut self.regions).insert(hash_key, intervals);
        Some(self)
    }

    /// Whether the context may hold for a key between two positions under `hash_key`.
    pub(super) fn may_concern(&self, hash_key: HashKey, first: u64, last: u64) -> bool {
        self.regions.get(&hash_key).is_none_or(|intervals| !intervals.within(first, last).is_empty())
    }

    /// The positions under this hash key, if no other hash key restricts the region.
    pub(super) fn intervals_under(&self, hash_key: HashKey) -> Option<HashIntervals> {
        match self.regions.len() {
            0 => Some(HashIntervals::between(0, u64::MAX)),
            1 => self.regions.get(&hash_key).cloned(),
            _ => None,
        }
    }

    /// Whether this one covers everything that the other one covers. Both are leftovers, so none of their regions is
    /// all of hash space.
    fn has_all_of(&self, other: &Self) -> bool {
        let lies_within = |(hash_key, intervals): (&HashKey, &HashIntervals)| {
            other.regions.get(hash_key).is_some_and(|others| intervals.has_all_of(others))
        };
        self.regions.iter().all(lies_within) && other.clocks.is_covered_by(&self.clocks)
    }

    /// The hash key under which the two may be joined: their clocks are equal, and only this region differs.
    fn joint_key(&self, other: &Self) -> Option<HashKey> {
        if !self.regions.keys().eq(other.regions.keys()) || self.clocks != other.clocks {
            return None;
        }
        let mut differing = self.regions.iter().filter(|(key, intervals)| other.regions[*key] != **intervals);
        let first = differing.next()?.0;
        differing.next().is_none().then_some(*first)
    }

    fn join(&mut self, other: &Self, hash_key: HashKey) {
        let own = Arc::make_mut(&mut self.regions).get_mut(&hash_key);
        if let (Some(own), Some(others)) = (own, other.regions.get(&hash_key)) {
            others.iter().for_each(|(first, last)| own.add(first, last));
        }
    }
}

/// The contexts that stand under earlier hash keys. Those that say the same are kept as one.
#[derive(Clone, Debug, Default)]
pub(super) struct Leftovers {
    all: Vec<RegionCoverage>,
}

impl Leftovers {
    pub(super) fn iter(&self) -> impl Iterator<Item = &RegionCoverage> {
        self.all.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn hash_keys(&self) -> usize {
        self.all.iter().map(RegionCoverage::hash_keys).sum()
    }

    pub(super) fn items(&self) -> usize {
        self.all.iter().map(RegionCoverage::items).sum()
    }

    /// Adds a leftover. Returns it instead if it is none, because it holds everywhere or only the present hash key
    /// restricts it.
    pub(super) fn add(&mut self, mut new: RegionCoverage, hash_key: HashKey) -> Option<RegionCoverage> {
        loop {
            Arc::make_mut(&mut new.regions).retain(|_, intervals| !intervals.is_all());
            if new.intervals_under(hash_key).is_some() {
                return Some(new);
            }
            if self.all.iter().any(|known| known.has_all_of(&new)) {
                return None;
            }
            let joint = |(i, known): (usize, &RegionCoverage)| Some((i, known.joint_key(&new)?));
            let Some((i, under)) = self.all.iter().enumerate().find_map(joint) else {
                self.all.retain(|known| !new.has_all_of(known));
                self.all.push(new);
                return None;
            };
            new.join(&self.all.swap_remove(i), under);
        }
    }

    /// Adds a leftover without joining it with others.
    pub(super) fn push(&mut self, new: RegionCoverage) {
        if !self.all.contains(&new) {
            self.all.push(new);
        }
    }

    /// Deletes what the vector has caught up with, and joins what has become the same. Returns those that are leftovers
    /// no more.
    pub(super) fn sweep(&mut self, vector: &Vector, hash_key: HashKey) -> Vec<RegionCoverage> {
        let mut changed = Vec::new();
        for region in std::mem::take(&mut self.all) {
            let left = vector.missing(&region.clocks);
            match left.len() {
                0 => {}
                same if same == region.clocks.len() => self.all.push(region),
                _ => changed.push(RegionCoverage { clocks: left, ..region }),
            }
        }
        changed.into_iter().filter_map(|region| self.add(region, hash_key)).collect()
    }
}
