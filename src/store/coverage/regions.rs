//! Contexts with the regions of hash space in which they hold, and leftovers.
//!
//! A context is recorded by places in hash space. When a node takes over the hash key of another cluster, these places
//! mean nothing under the new hash key. So the contexts keep their old hash key beside them: they are *leftovers*. A
//! leftover that is merged within a range under the new hash key holds in the intersection of both regions.
//!
//! Leftovers must not multiply. They are sent with every range of a session and hold there alone, so one leftover would
//! come back as one for each range. So what says the same is joined, in [`Leftovers::add`]: once a session has settled
//! all ranges, what it brought is what the peer had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crdts::CvRDT;

use super::{Clocks, Vector};
use crate::store::digest::HashKey;
use crate::time::Stamp;

/// Leftovers that a replica keeps, each counted once for every earlier hash key that restricts it: a row is looked up
/// under each of them. A range that would exceed this is not settled: its rows are merged one by one, and
/// the session claims nothing. Honest clusters keep one for each different context, a few dozen at most.
pub(crate) const LEFTOVERS_MAX: usize = 4_096;

/// Intervals and clocks of all leftovers that are sent in one direction of a session. A replica keeps twice as many:
/// those that a session brings may be here already, and are counted once more then.
pub(crate) const LEFTOVER_ITEMS_MAX: usize = 1 << 20;
pub(super) const LEFTOVER_ITEMS_KEPT_MAX: usize = 2 * LEFTOVER_ITEMS_MAX;

/// Leftovers with the same clocks, or with the same regions, that a new one is compared with. Honest clusters have one
/// or two. What is not found this way is kept twice, and covers the same.
const ALIKE_MAX: usize = 16;

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

    pub(crate) fn all() -> Self {
        Self::between(0, u64::MAX)
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

    /// The positions that are in both.
    fn common_with(&self, other: &Self) -> Self {
        let mut common = Self::default();
        for (first, last) in other.iter() {
            self.within(first, last).iter().for_each(|(first, last)| common.add(first, last));
        }
        common
    }

    fn join(&mut self, other: &Self) {
        other.iter().for_each(|(first, last)| self.add(first, last));
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
        self.clocks.covers(stamp) && self.is_for(key, &mut None)
    }

    /// Whether it holds for this key. `place` has the place of the key under the hash key that was asked for last: many
    /// leftovers have the same one.
    pub(crate) fn is_for(&self, key: &[u8], place: &mut Option<(HashKey, u64)>) -> bool {
        self.regions.iter().all(|(hash_key, intervals)| {
            let position = match *place {
                Some((known, position)) if known == *hash_key => position,
                _ => hash_key.place(key).line_position(),
            };
            *place = Some((*hash_key, position));
            intervals.has(position)
        })
    }
}

/// A context under earlier hash keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leftover {
    /// The context, and where it holds under earlier hash keys: never under the present one, and never everywhere.
    told: RegionCoverage,
    /// Where it holds under the present hash key. `None`: everywhere.
    here: Option<HashIntervals>,
}

/// Whether `a`, regions under the present hash key, has all of `b`.
fn has_all_here(a: Option<&HashIntervals>, b: Option<&HashIntervals>) -> bool {
    a.is_none_or(|a| b.is_some_and(|b| a.has_all_of(b)))
}

/// Mixes a number into a hash. What has the same hash is compared, so it need not withstand an attacker.
fn mix(hash: u64, number: u64) -> u64 {
    (hash.rotate_left(29) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl RegionCoverage {
    pub(crate) fn clocks_hash(&self) -> u64 {
        self.clocks.iter().fold(1, |hash, (origin, clock)| mix(mix(hash, origin.number()), clock))
    }

    pub(crate) fn regions_hash(&self) -> u64 {
        self.regions.iter().fold(2, |hash, (key, intervals)| {
            let hash = mix(mix(hash, key.words().0), key.words().1);
            intervals.iter().fold(hash, |hash, (first, last)| mix(mix(hash, first), last))
        })
    }

    fn has_same_regions(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.regions, &other.regions) || self.regions == other.regions
    }

    fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.regions, &other.regions) && self.clocks.is_shared_with(&other.clocks)
    }

    /// Whether this one holds wherever the other one does. None of their regions is all of hash space.
    fn has_regions_of(&self, other: &Self) -> bool {
        let lies_within = |(hash_key, intervals): (&HashKey, &HashIntervals)| {
            other.regions.get(hash_key).is_some_and(|others| intervals.has_all_of(others))
        };
        Arc::ptr_eq(&self.regions, &other.regions) || self.regions.iter().all(lies_within)
    }

    /// The hash key of the only region in which the two differ.
    fn differing_key(&self, other: &Self) -> Option<HashKey> {
        if !self.regions.keys().eq(other.regions.keys()) {
            return None;
        }
        let mut differing = self.regions.iter().filter(|(key, intervals)| other.regions[*key] != **intervals);
        let first = differing.next()?.0;
        differing.next().is_none().then_some(*first)
    }
}

impl Leftover {
    /// A context under a present hash key. It may be none: see [`Leftover::is_by_place`].
    pub(super) fn new(mut told: RegionCoverage, hash_key: HashKey) -> Self {
        let mut here = None;
        if told.regions.iter().any(|(key, intervals)| *key == hash_key || intervals.is_all()) {
            let regions = Arc::make_mut(&mut told.regions);
            here = regions.remove(&hash_key);
            regions.retain(|_, intervals| !intervals.is_all());
        }
        Self { told, here: here.filter(|here| !here.is_all()) }
    }

    /// Whether no earlier hash key restricts it, so that it is no leftover.
    pub(super) fn is_by_place(&self) -> bool {
        self.told.regions.is_empty()
    }

    /// The same only for keys whose place is one of `places`. `None` if there can be no such key.
    pub(super) fn narrowed_to(self, places: &HashIntervals) -> Option<Self> {
        let here = self.here.map_or_else(|| places.clone(), |here| here.common_with(places));
        (!here.is_empty()).then(|| Self { here: Some(here).filter(|here| !here.is_all()), ..self })
    }

    pub(super) fn clocks(&self) -> &Clocks {
        &self.told.clocks
    }

    /// The places under the present hash key.
    pub(super) fn places(&self) -> HashIntervals {
        self.here.clone().unwrap_or_else(HashIntervals::all)
    }

    pub(super) fn covers(&self, key: &[u8], place: u64, stamp: Stamp) -> bool {
        self.told.clocks.covers(stamp) && self.is_for(key, place, &mut None)
    }

    /// Whether it holds for a key at this place. See [`RegionCoverage::is_for`].
    pub(super) fn is_for(&self, key: &[u8], place: u64, earlier: &mut Option<(HashKey, u64)>) -> bool {
        self.here.as_ref().is_none_or(|here| here.has(place)) && self.told.is_for(key, earlier)
    }

    /// With all hash keys that restrict it.
    pub(super) fn with_all_keys(&self, hash_key: HashKey) -> RegionCoverage {
        let mut told = self.told.clone();
        if let Some(here) = &self.here {
            Arc::make_mut(&mut told.regions).insert(hash_key, here.clone());
        }
        told
    }

    /// The regions to name where it is told for these places, and there alone. `None` if it does not hold there. The
    /// present hash key is left out if it holds at all of them, so that a session names it in the same way for all its
    /// ranges, although the places at which it holds grow meanwhile.
    pub(super) fn regions_within(
        &self,
        places: &HashIntervals,
        hash_key: HashKey,
    ) -> Option<Arc<BTreeMap<HashKey, HashIntervals>>> {
        match &self.here {
            Some(here) if !here.has_all_of(places) => {
                (!here.common_with(places).is_empty()).then(|| self.with_all_keys(hash_key).regions)
            }
            _ => Some(self.told.regions.clone()),
        }
    }

    /// As far as the vector does not cover it. `None`: the vector covers all of it.
    pub(super) fn beyond(mut self, vector: &Vector) -> Option<Self> {
        if !self.is_by_place() {
            self.told.clocks = vector.missing(&self.told.clocks);
        }
        (!self.told.clocks.is_empty()).then_some(self)
    }

    /// Earlier hash keys that restrict it.
    pub(super) fn hash_keys(&self) -> usize {
        self.told.hash_keys()
    }

    pub(super) fn items(&self) -> usize {
        self.told.items() + self.here.as_ref().map_or(0, HashIntervals::len)
    }

    fn has_all_of(&self, other: &Self) -> bool {
        has_all_here(self.here.as_ref(), other.here.as_ref())
            && self.told.has_regions_of(&other.told)
            && other.told.clocks.is_covered_by(&self.told.clocks)
    }

    /// Both as one, if one covers exactly what the two cover together.
    fn joined_with(&self, other: &Self) -> Option<Self> {
        let (has_same_regions, has_same_here) =
            (self.told.has_same_regions(&other.told), self.here == other.here);
        let mut joined = self.clone();
        if has_same_regions && has_same_here {
            joined.told.clocks.merge(other.told.clocks.clone());
            return Some(joined);
        }
        if self.told.clocks != other.told.clocks {
            return None;
        }
        if has_same_regions {
            let (here, others) = (joined.here.as_mut()?, other.here.as_ref()?);
            here.join(others);
            joined.here.take_if(|here| here.is_all());
        } else if has_same_here {
            let key = self.told.differing_key(&other.told)?;
            let regions = Arc::make_mut(&mut joined.told.regions);
            regions.get_mut(&key)?.join(&other.told.regions[&key]);
            regions.retain(|_, intervals| !intervals.is_all());
        } else {
            return None;
        }
        Some(joined)
    }
}

/// The contexts that stand under earlier hash keys. Those that say the same are kept as one.
///
/// A session brings thousands of them with each range, and most are here already. So what is equal is found by its
/// hashes: adding one takes the logarithm of their number, not the number.
#[derive(Clone, Debug, Default)]
pub(super) struct Leftovers {
    all: BTreeMap<u64, Leftover>,
    /// (hash, number in `all`): twice for each, by its clocks and by its regions.
    by_hash: BTreeSet<(u64, u64)>,
    next: u64,
    /// How often they have changed.
    changes: u64,
}

impl Leftovers {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Leftover> {
        self.all.values()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Earlier hash keys of all.
    pub(super) fn hash_keys(&self) -> usize {
        self.iter().map(Leftover::hash_keys).sum()
    }

    pub(super) fn items(&self) -> usize {
        self.iter().map(Leftover::items).sum()
    }

    fn hashes(new: &Leftover) -> [u64; 2] {
        [new.told.clocks_hash(), new.told.regions_hash()]
    }

    /// Those with the same clocks or the same regions.
    fn alike(&self, hashes: [u64; 2]) -> impl Iterator<Item = (u64, &Leftover)> {
        let of_hash = |hash| self.by_hash.range((hash, 0)..=(hash, u64::MAX)).take(ALIKE_MAX);
        hashes.into_iter().flat_map(of_hash).map(|(_, number)| (*number, &self.all[number]))
    }

    /// Whether all that it covers is covered by one that is kept.
    pub(super) fn has_all_of(&self, new: &Leftover) -> bool {
        self.alike(Self::hashes(new)).any(|(_, known)| known.has_all_of(new))
    }

    /// Whether it is kept already, perhaps for other places: adding it, or a part of it, makes none more.
    pub(super) fn has_elsewhere(&self, new: &Leftover) -> bool {
        let mut alike = self.alike(Self::hashes(new));
        alike.any(|(_, known)| known.told.has_same_regions(&new.told) && known.told.clocks == new.told.clocks)
    }

    /// Adds a leftover. Returns it instead if no earlier hash key restricts it.
    pub(super) fn add(&mut self, mut new: Leftover) -> Option<Leftover> {
        while !new.is_by_place() {
            let hashes = Self::hashes(&new);
            if self.alike(hashes).any(|(_, known)| known.has_all_of(&new)) {
                return None;
            }
            let join = |(number, known): (u64, &Leftover)| {
                if new.has_all_of(known) {
                    return Some((number, new.clone()));
                }
                Some((number, known.joined_with(&new)?))
            };
            let Some((number, joined)) = self.alike(hashes).find_map(join) else {
                self.insert(new, hashes);
                return None;
            };
            if joined.here.is_some() && self.all[&number].told.is_shared_with(&joined.told) {
                // Only the places have grown, as with each range of a session.
                self.all.insert(number, joined);
                self.changes += 1;
                return None;
            }
            self.remove(number);
            new = joined;
        }
        Some(new)
    }

    /// Adds a leftover without joining it with others.
    pub(super) fn push(&mut self, new: Leftover) {
        if self.iter().all(|known| *known != new) {
            let hashes = Self::hashes(&new);
            self.insert(new, hashes);
        }
    }

    fn insert(&mut self, new: Leftover, hashes: [u64; 2]) {
        self.next += 1;
        self.by_hash.extend(hashes.map(|hash| (hash, self.next)));
        self.all.insert(self.next, new);
        self.changes += 1;
    }

    fn remove(&mut self, number: u64) -> Option<Leftover> {
        let known = self.all.remove(&number)?;
        for hash in Self::hashes(&known) {
            self.by_hash.remove(&(hash, number));
        }
        self.changes += 1;
        Some(known)
    }

    /// Deletes what the vector has caught up with, and joins what has become the same. Returns those that are leftovers
    /// no more.
    pub(super) fn sweep(&mut self, vector: &Vector) -> Vec<Leftover> {
        let caught_up = |(number, known): (&u64, &Leftover)| {
            let left = vector.missing(known.clocks());
            (left.len() != known.clocks().len()).then_some((*number, left))
        };
        let caught_up: Vec<(u64, Clocks)> = self.all.iter().filter_map(caught_up).collect();
        let removed = caught_up.into_iter().filter_map(|(number, left)| {
            let known = self.remove(number)?;
            let told = RegionCoverage { clocks: left, ..known.told };
            (!told.clocks.is_empty()).then_some(Leftover { told, ..known })
        });
        let changed: Vec<Leftover> = removed.collect();
        changed.into_iter().filter_map(|leftover| self.add(leftover)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::RunId;

    fn hash_key(i: u64) -> HashKey {
        HashKey::from_words(i, i)
    }

    /// Sixteenths of hash space, one for each bit.
    fn sixteenths(mask: u16) -> HashIntervals {
        let mut intervals = HashIntervals::default();
        let chosen = (0..16_u64).filter(|i| mask >> i & 1 == 1);
        chosen.for_each(|i| intervals.add(i << 60, i << 60 | u64::MAX >> 4));
        intervals
    }

    fn masks() -> impl Strategy<Value = u16> {
        prop_oneof![Just(u16::MAX), 1..u16::MAX, (0..16).prop_map(|i| 1_u16 << i)]
    }

    /// A context under some of three hash keys, the first of which is the present one, and where it is merged.
    fn contexts() -> impl Strategy<Value = (RegionCoverage, HashIntervals)> {
        let regions =
            prop::collection::btree_map((0..3_u64).prop_map(hash_key), masks().prop_map(sixteenths), 1..4);
        let clocks = prop::collection::btree_map((0..3_u64).prop_map(RunId::new), 1..3_u64, 1..3);
        (regions, clocks, masks()).prop_map(|(regions, clocks, places)| {
            let clocks = Clocks::from_iter(clocks);
            (RegionCoverage { regions: Arc::new(regions), clocks }, sixteenths(places))
        })
    }

    proptest! {
        #[test]
        fn leftovers_cover_what_was_added(
            added in prop::collection::vec(contexts(), 1..30),
            vector in prop::collection::btree_map((0..3_u64).prop_map(RunId::new), 1..3_u64, 0..2),
        ) {
            let (mut leftovers, mut by_place) = (Leftovers::default(), Vec::new());
            for (region, places) in &added {
                let new = Leftover::new(region.clone(), hash_key(0)).narrowed_to(places);
                by_place.extend(new.and_then(|new| leftovers.add(new)));
            }
            let vector = Vector::from(Clocks::from_iter(vector));
            for is_swept in [false, true] {
                if is_swept {
                    by_place.extend(leftovers.sweep(&vector));
                }
                for key in (0..100_u8).map(|i| [i]) {
                    let place = hash_key(0).place(&key).line_position();
                    for stamp in (0..6).map(|i| Stamp { clock: 1 + i / 3, origin: RunId::new(i % 3) }) {
                        let was_added = added.iter().any(|(region, places)| {
                            places.has(place) && region.covers(&key, stamp)
                        });
                        let mut all = leftovers.iter().chain(&by_place);
                        let is_covered = all.any(|leftover| leftover.covers(&key, place, stamp));
                        let is_in_vector = is_swept && vector.covers(stamp);
                        prop_assert_eq!(is_covered || is_in_vector, was_added || is_in_vector);
                    }
                }
            }
            prop_assert_eq!(leftovers.by_hash.len(), 2 * leftovers.len());
            let known: Vec<Leftover> = leftovers.iter().cloned().collect();
            let is_found = |known: &Leftover| leftovers.has_all_of(known) && leftovers.has_elsewhere(known);
            prop_assert!(known.iter().all(is_found));
            let changes = leftovers.changes();
            prop_assert!(known.into_iter().all(|known| leftovers.add(known).is_none()));
            prop_assert_eq!(leftovers.changes(), changes, "what is held is not added again");
        }
    }
}
