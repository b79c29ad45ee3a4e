//! Coverage: which events are merged here.
//!
//! **A dot that is covered and not held was removed, for ever.** That is how deletes work without tombstones. So
//! nothing may ever be claimed here that was not merged: a false claim deletes a write, here and wherever the claim
//! spreads. Stamps have gaps, so nothing may be inferred from neighbours either.
//!
//! An event of a key is covered if one of five parts has it:
//!
//! - The **vector**: for each origin the stamp up to which *every* event of it is merged, at all keys. It is enough for
//!   nearly everything. It moves only when an origin is known to be complete up to a stamp: by a local event, a flush
//!   end, a forwarded claim or a finished repair.
//! - **Extra coverage**: what is merged beyond the vector, by the place of the key in hash space; for a single key (a
//!   point) or a whole range that a repair has settled (a span). The clocks covered there are the *context*. It is
//!   needed because rows arrive before their origin is complete: without it a dot that was removed here would come back
//!   when another peer sends it. One structure serves both, because merging all rows of a range with one context *is*
//!   merging each of them with it. A span stands for a finished merge, so it stays true when its session is aborted.
//!   Extra coverage is deleted once the vector has caught up.
//! - **Covered by held**: a held dot covers itself and the earlier dots of its origin at the key (see
//!   [`DotSet::covers_by_held`](crate::store::entry::DotSet::covers_by_held)), so they need no extra coverage while it
//!   is held. A long flush may bring millions of rows before its end; they leave nothing in the extra coverage. When
//!   such a dot leaves its key, what it covered must be recorded first ([`Coverage::cover_removed`]).
//! - **Leftovers**: extra coverage that stands under an earlier hash key. When a node takes over the hash key of
//!   another cluster, all places change. A context at a known key moves along; one of a range cannot. See [`regions`].
//! - **Withheld claims**: those whose clock lies too far in the future, made or taken while this node's clock was
//!   wrong. They count here and on the disk, but peers would refuse them as a violation, so peers are not told of them
//!   until their time has come. See [`Coverage::withhold_future`].

use crdts::CvRDT;

use crate::id::RunId;
use crate::store::digest::{HashKey, HashRange, Place};
use crate::time::Stamp;

mod bounds;
mod clocks;
mod map;
mod regions;
mod sum;
mod vector;

pub(crate) use bounds::ClaimBounds;
pub(crate) use clocks::{BUCKETS, BucketMask, Clocks};
use map::{CoverageMap, regions_of};
pub(crate) use regions::{HashIntervals, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, PeerRegions, RegionCoverage};
use regions::{LEFTOVER_ITEMS_KEPT_MAX, Leftover, Leftovers};
pub(crate) use sum::ClocksSum;
use vector::OwnVector;
pub(crate) use vector::{BeyondOwn, NamedOld, SharedOld, Vector, VectorNews};

/// The most origins in a vector. Claims about further origins are ignored. Their rows are merged, but a repair with a
/// peer that knows them never ends with a claim.
pub(crate) const ORIGINS_MAX: usize = 1 << 22;

/// Clocks that a sweep may look at for each change since the last one.
const CLOCKS_PER_CHANGE: usize = 32;

/// A cached result: what of the peer's vector that was asked about last lies beyond this replica's. The ranges and rows
/// of a session come one after the other with the same vector of the peer, and that vector may have an entry for every
/// process start of the past.
#[derive(Clone, Debug)]
struct BeyondVector {
    of: Vector,
    beyond: BeyondOwn,
}

/// Which events are merged on this replica: a vector, and what is covered beyond it at single keys and in ranges.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    hash_key: HashKey,
    own: OwnVector,
    beyond_vector: Option<BeyondVector>,
    extra: CoverageMap,
    /// For each origin the greatest stamp beyond the vector of a dot that is covered by being held alone.
    covered_by_held: Clocks,
    /// Extra coverage under earlier hash keys, until the vector has caught up. Almost always empty: clusters that
    /// started apart seldom meet.
    leftovers: Leftovers,
    /// Claims from the future that peers are not told of, see [`Coverage::withhold_future`].
    withheld: Clocks,
    /// While anything here is from the future: the greatest clock of a context that peers are told of.
    sendable_max: Option<u64>,
    /// How often extra coverage or leftovers have changed.
    extra_changes: u64,
    /// Changes since the last sweep, and the number of changes after which the next one is due. It grows with the
    /// contexts and the clocks in them, so that a sweep costs little for each change however many there are.
    unswept: usize,
    sweep_after: usize,
}

impl Coverage {
    pub(crate) fn new(hash_key: HashKey) -> Self {
        Self {
            hash_key,
            own: OwnVector::default(),
            beyond_vector: None,
            extra: CoverageMap::default(),
            covered_by_held: Clocks::default(),
            leftovers: Leftovers::default(),
            withheld: Clocks::default(),
            sendable_max: None,
            extra_changes: 0,
            unswept: 0,
            sweep_after: 0,
        }
    }

    /// For each origin the stamp up to which everything is merged, without withheld claims. Peers are told of this one.
    pub(crate) fn vector(&self) -> &Vector {
        self.own.vector()
    }

    /// The vector with the claims that peers are not told of, see [`Coverage::withhold_future`].
    pub(crate) fn vector_with_withheld(&self) -> Clocks {
        let mut known = self.vector().clocks();
        known.merge(self.withheld.clone());
        known
    }

    /// The claims that peers are not told of.
    pub(crate) fn withheld(&self) -> &Clocks {
        &self.withheld
    }

    /// The entries of [`Coverage::vector_with_withheld`] that have grown since `vector` and `withheld` were those of this
    /// replica. It costs what has changed.
    pub(crate) fn claims_since(&self, vector: &Vector, withheld: &Clocks) -> Clocks {
        let mut claims = self.vector().beyond(vector);
        claims.merge(self.withheld.clone());
        vector.missing(&claims).beyond(withheld)
    }

    /// The clock of one origin in [`Coverage::vector_with_withheld`].
    pub(crate) fn clock_with_withheld(&self, origin: RunId) -> u64 {
        self.vector().get(origin).max(self.withheld.get(origin))
    }

    /// The sum of [`Coverage::vector_with_withheld`].
    pub(crate) fn sum_with_withheld(&self) -> ClocksSum {
        self.own.sum_raised_to(&self.withheld)
    }

    /// The part of a peer's vector that lies beyond the own one. Asked again about the same vector, it costs only what
    /// the own one has grown meanwhile.
    pub(crate) fn beyond_vector(&mut self, theirs: &Vector) -> Clocks {
        let own = self.own.vector();
        if self.beyond_vector.as_ref().is_none_or(|known| !known.of.is_shared_with(theirs)) {
            let beyond = BeyondOwn::of(theirs, own);
            self.beyond_vector = Some(BeyondVector { of: theirs.clone(), beyond });
        }
        let known = self.beyond_vector.as_mut().expect("just made sure");
        known.beyond.update(&Clocks::default(), own).clone()
    }

    /// The part of a context that peers are told of: beyond the vector, and not from the future.
    pub(crate) fn told_to_peers(&self, context: &Clocks) -> Clocks {
        let told = self.vector().missing(context);
        match self.sendable_max {
            Some(max) => told.iter().filter(|(_, clock)| *clock <= max).collect(),
            None => told,
        }
    }

    /// Withholds the claims whose clock is over `taken_max` from peers until their time has come. They were made or
    /// taken while this node's clock was wrong, and no peer would accept them. They still count here and on the disk,
    /// so that no delete of that time is undone. Peers are told of these origins up to `right_max`, the greatest clock
    /// that a node with a right clock stamps. Returns whether something is withheld now that peers were told of before.
    ///
    /// Rows are sent without withheld contexts. So a peer that took the same writes from the future keeps holding what
    /// later writes here have removed, until the time of those writes has come.
    pub(crate) fn withhold_future(&mut self, right_max: u64, taken_max: u64) -> bool {
        let withheld = std::mem::take(&mut self.withheld);
        let (later, now): (Vec<_>, Vec<_>) = withheld.iter().partition(|(_, clock)| *clock > right_max);
        self.withheld = later.into_iter().collect();
        now.into_iter().for_each(|(origin, clock)| self.claim(Stamp { clock, origin }));
        let ahead = self.own.entries_over(taken_max);
        for (origin, clock) in &ahead {
            let stamp = Stamp { clock: *clock, origin: *origin };
            self.own.set(Stamp { clock: right_max, ..stamp });
            self.withheld.raise(stamp);
            self.covered_by_held.raise(stamp);
        }
        let is_lowered = !ahead.is_empty();
        if is_lowered {
            // The vector was lowered, so more lies beyond it than the cache says.
            self.beyond_vector = None;
        }
        let contexts = self.extra.spans.values().map(|span| &span.clocks);
        let mut contexts = contexts.chain(self.leftovers.iter().map(Leftover::clocks));
        let is_ahead = |context: &Clocks| context.iter().any(|(_, clock)| clock > taken_max);
        let withholds = !self.withheld.is_empty() || contexts.any(is_ahead);
        self.sendable_max = withholds.then_some(taken_max);
        is_lowered
    }

    /// Whether claims or contexts from the future are withheld from peers.
    pub(crate) fn withholds_future(&self) -> bool {
        self.sendable_max.is_some()
    }

    /// While there are claims from the future: sets up to which clock peers are told of contexts.
    pub(crate) fn set_sendable_max(&mut self, taken_max: u64) {
        if let Some(sendable_max) = &mut self.sendable_max {
            *sendable_max = taken_max;
        }
    }

    /// Moves the cut between the old and the recent part of the vector. Called in every sync interval. Returns whether
    /// the old part has all its entries since this call.
    pub(crate) fn set_cut(&mut self, cut: u64) -> bool {
        self.own.set_cut(cut)
    }

    /// The sum of the vector's old part.
    pub(crate) fn old_sum(&self) -> ClocksSum {
        self.own.old_sums().all
    }

    /// The sums of the buckets of the vector's old part.
    pub(crate) fn old_buckets(&self) -> &[u64; BUCKETS] {
        &self.own.old_sums().buckets
    }

    /// The sum of the vector's old part. A peer may refer to it from now on.
    pub(crate) fn offer_old(&mut self) -> ClocksSum {
        self.own.offer()
    }

    /// Raises `vector`, what a peer told of its own, by the news of a frame. False if they refer to an old part that is
    /// not kept here any more.
    #[must_use]
    pub(crate) fn take_news(&self, vector: &mut Vector, news: &VectorNews) -> bool {
        self.own.take_news(vector, news)
    }

    /// Records that every event of an origin up to this one is merged. The caller must know that, not guess it.
    pub(crate) fn claim(&mut self, stamp: Stamp) {
        self.raise_vector(stamp);
        if self.unswept > self.sweep_after {
            self.sweep();
        }
    }

    /// Whether these claims fit into the vector.
    pub(crate) fn has_room_for(&self, vector: &Vector) -> bool {
        self.vector().len() + vector.len() <= ORIGINS_MAX || {
            let news = vector.beyond(self.vector());
            let new = news.iter().filter(|(origin, _)| self.vector().get(*origin) == 0).count();
            self.vector().len() + new <= ORIGINS_MAX
        }
    }

    /// Whether a claim of this origin fits into the vector.
    pub(crate) fn has_room_for_origin(&self, origin: RunId) -> bool {
        self.vector().len() < ORIGINS_MAX || self.vector().get(origin) > 0
    }

    /// As [`Coverage::claim`] for many origins, with one sweep for all of them.
    pub(crate) fn claim_all(&mut self, vector: &Vector) {
        let news = vector.beyond(self.vector());
        self.own.join(&news);
        self.covered_by_held = self.vector().missing(&self.covered_by_held);
        // A session has ended: the vector that it came with need not be remembered any longer.
        self.beyond_vector = None;
        self.sweep();
    }

    fn raise_vector(&mut self, stamp: Stamp) {
        if self.vector().covers(stamp) {
            return;
        }
        self.own.set(stamp);
        if self.covered_by_held.get(stamp.origin) <= stamp.clock {
            self.covered_by_held.remove(stamp.origin);
        }
        self.unswept += 1;
    }

    /// Whether this event of this key is merged here, apart from what held dots cover: `LocalStore::covers` asks both.
    pub(crate) fn covers(&self, key: &[u8], place: Place, stamp: Stamp) -> bool {
        self.vector().covers(stamp)
            || self.withheld.covers(stamp)
            || self.extra.at(place.line_position()).is_some_and(|context| context.covers(stamp))
            || self.leftovers.iter().any(|leftover| leftover.covers(key, place.line_position(), stamp))
    }

    /// What is covered at this key beyond the vector. Usually nothing.
    pub(crate) fn context(&self, key: &[u8], place: Place) -> Option<Clocks> {
        let (at, mut earlier) = (place.line_position(), None);
        let here = self.leftovers.iter().filter(|leftover| leftover.is_for(key, at, &mut earlier));
        let mut contexts = self.extra.at(at).into_iter().chain(here.map(Leftover::clocks));
        let mut all = contexts.next()?.clone();
        for context in contexts {
            all.merge(context.clone());
        }
        Some(all)
    }

    /// Records that a row of this key was merged with this context.
    pub(crate) fn cover_key(&mut self, key: &[u8], place: Place, context: &Clocks) {
        // The range around the key was covered with the same context.
        if self.extra.at(place.line_position()).is_some_and(|here| here.is_shared_with(context)) {
            return;
        }
        if !context.iter().all(|(origin, clock)| self.covers(key, place, Stamp { clock, origin })) {
            self.extra.add_point(place.line_position(), context);
            self.note_extra_change();
        }
    }

    /// Notes that a dot beyond the vector may be covered only because it is held.
    pub(crate) fn note_covered_by_held(&mut self, stamp: Stamp) {
        if !self.vector().covers(stamp) {
            self.covered_by_held.raise(stamp);
        }
    }

    /// Whether a held dot with this stamp may be one that is covered only because it is held.
    pub(crate) fn may_cover_by_held(&self, stamp: Stamp) -> bool {
        self.covered_by_held.covers(stamp)
    }

    /// A dot leaves its key: records what it covered by being held.
    pub(crate) fn cover_removed(&mut self, key: &[u8], place: Place, stamp: Stamp) {
        if self.may_cover_by_held(stamp) {
            let context = Clocks::from_iter([(stamp.origin, stamp.clock)]);
            self.cover_key(key, place, &context);
        }
    }

    /// Whether the vector covers everything that is merged here.
    pub(crate) fn is_vector_only(&self) -> bool {
        self.extra_count() == 0 && self.covered_by_held.is_empty()
    }

    /// Records that all rows of a range were merged with this context.
    pub(crate) fn cover_range(&mut self, range: HashRange, context: &Clocks) {
        if !context.is_empty() {
            self.extra.add(range.first(), range.last(), context);
            self.note_extra_change();
        }
    }

    /// Whether what a peer sent can be recorded within the limits for leftovers. Of one that is here already for other
    /// places, the hash keys do not count again.
    pub(crate) fn has_room(&self, regions: &[RegionCoverage]) -> bool {
        let leftovers = regions.iter().map(|region| self.leftover(region)).filter(|it| !it.is_by_place());
        let mut new = leftovers
            .filter_map(|it| it.beyond(self.own.vector()))
            .filter(|it| !self.leftovers.has_all_of(it))
            .peekable();
        // Without new leftovers there is room even if a change of the hash key left more than the limit here: the
        // vector catches up with those only if repairs can go on.
        if new.peek().is_none() {
            return true;
        }
        let (mut hash_keys, mut items) = (self.leftovers.hash_keys(), self.leftovers.items());
        for new in new {
            hash_keys += if self.leftovers.has_elsewhere(&new) { 0 } else { new.hash_keys() };
            items += new.items();
        }
        hash_keys <= LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_KEPT_MAX
    }

    fn leftover(&self, region: &RegionCoverage) -> Leftover {
        Leftover::new(region.clone(), self.hash_key)
    }

    /// Records a context that a peer sent with ranges that are merged, for the keys at these places.
    pub(crate) fn cover_region(&mut self, places: &HashIntervals, region: &RegionCoverage) {
        let narrowed = self.leftover(region).narrowed_to(places);
        if let Some(narrowed) = narrowed.and_then(|it| it.beyond(self.own.vector())) {
            let changes = self.leftovers.changes();
            let here = self.leftovers.add(narrowed);
            if let Some(here) = &here {
                self.cover_places(here);
            }
            if here.is_some() || self.leftovers.changes() != changes {
                self.note_extra_change();
            }
        }
    }

    /// The same without joining leftovers that have the same clocks: the fault of `Control::LeftoversNarrowed`.
    pub(crate) fn cover_region_narrowed(&mut self, places: &HashIntervals, region: &RegionCoverage) {
        for (first, last) in places.iter() {
            let here = HashIntervals::between(first, last);
            match self.leftover(region).narrowed_to(&here) {
                Some(narrowed) if !narrowed.is_by_place() => {
                    self.leftovers.push(narrowed);
                    self.note_extra_change();
                }
                _ => self.cover_region(&here, region),
            }
        }
    }

    /// Records a context that no earlier hash key restricts.
    fn cover_places(&mut self, context: &Leftover) {
        for (first, last) in context.places().iter() {
            self.extra.add(first, last, context.clocks());
        }
    }

    /// What is covered beyond the vector within a range, as far as peers are told of it.
    pub(crate) fn extra_in(&self, range: HashRange) -> Vec<RegionCoverage> {
        self.extra_in_all(&[range])
    }

    /// The same within several ranges. A leftover that concerns more than one of them is listed once.
    pub(crate) fn extra_in_all(&self, ranges: &[HashRange]) -> Vec<RegionCoverage> {
        let mut places = HashIntervals::default();
        ranges.iter().for_each(|range| places.add(range.first(), range.last()));
        let mut told = Vec::new();
        for leftover in self.leftovers.iter() {
            let clocks = self.told_to_peers(leftover.clocks());
            if !clocks.is_empty()
                && let Some(regions) = leftover.regions_within(&places, self.hash_key)
            {
                told.push(RegionCoverage { regions, clocks });
            }
        }
        for (first, last) in ranges.iter().map(|range| (range.first(), range.last())) {
            let before = self.extra.spans.range(..first).next_back().filter(|(_, span)| span.last >= first);
            for (start, span) in before.into_iter().chain(self.extra.spans.range(first..=last)) {
                let context = self.told_to_peers(&span.clocks);
                if !context.is_empty() {
                    let intervals = HashIntervals::between(first.max(*start), last.min(span.last));
                    told.push(RegionCoverage::new(self.hash_key, intervals, context));
                }
            }
        }
        told
    }

    /// Whether more than `limit` contexts would have to be sent with this range.
    pub(crate) fn is_crowded(&self, range: HashRange, limit: usize) -> bool {
        self.extra.spans.range(range.first()..=range.last()).nth(limit).is_some()
    }

    /// Deletes the contexts that the vector has caught up with.
    pub(crate) fn sweep(&mut self) {
        let count = self.extra_count();
        let vector = self.own.vector();
        self.extra.spans.retain(|_, span| !vector.covers_all(&span.clocks));
        let here = self.leftovers.sweep(vector);
        here.iter().for_each(|context| self.cover_places(context));
        // A leftover that has lost clocks which the vector has says the same as before.
        self.extra_changes += u64::from(self.extra_count() != count || !here.is_empty());
        let cost = |context: &Clocks| 1 + context.len() / CLOCKS_PER_CHANGE;
        let spans = self.extra.spans.values().map(|span| cost(&span.clocks));
        self.sweep_after = spans.chain(self.leftovers.iter().map(|it| cost(it.clocks()))).sum();
        self.unswept = 0;
    }

    /// Changes the hash key. A context at a single key of `keys` moves to the new place of that key; all others stay
    /// under the old hash key, as leftovers.
    pub(crate) fn rekey<'a>(&mut self, hash_key: HashKey, keys: impl Iterator<Item = &'a [u8]>) {
        self.sweep();
        if hash_key == self.hash_key {
            return;
        }
        self.extra_changes += 1;
        let mut before = std::mem::take(&mut self.extra);
        let old_key = std::mem::replace(&mut self.hash_key, hash_key);
        if !before.spans.is_empty() {
            for key in keys {
                let at = old_key.place(key).line_position();
                if before.spans.get(&at).is_some_and(|span| span.last == at)
                    && let Some(point) = before.spans.remove(&at)
                {
                    self.extra.add_point(hash_key.place(key).line_position(), &point.clocks);
                }
            }
        }
        let leftovers = std::mem::take(&mut self.leftovers);
        let told = leftovers.iter().map(|leftover| leftover.with_all_keys(old_key));
        for region in told.chain(regions_of(&before, old_key)) {
            if let Some(here) = self.leftovers.add(Leftover::new(region, hash_key)) {
                self.cover_places(&here);
            }
        }
    }

    fn note_extra_change(&mut self) {
        self.extra_changes += 1;
        self.unswept += 1;
    }

    /// How often what is covered beyond the vector by place has changed.
    pub(crate) fn extra_changes(&self) -> u64 {
        self.extra_changes
    }

    /// The number of contexts that are kept beyond the vector.
    pub(crate) fn extra_count(&self) -> usize {
        self.extra.spans.len() + self.leftovers.len()
    }

    /// The number of contexts under earlier hash keys.
    #[cfg(feature = "__controls")]
    pub(crate) fn leftovers(&self) -> usize {
        self.leftovers.len()
    }

    /// Everything that is covered beyond the vector by place, for the disk.
    pub(crate) fn extra_regions(&self) -> Vec<RegionCoverage> {
        let leftovers = self.leftovers.iter().map(|leftover| leftover.with_all_keys(self.hash_key));
        leftovers.chain(regions_of(&self.extra, self.hash_key)).collect()
    }

    /// Takes over the coverage that a disk holds.
    pub(crate) fn load(&mut self, vector: &Clocks, regions: &[RegionCoverage]) {
        // All of it is old until the cut is set by the clock.
        let last = vector.iter().map(|(_, clock)| clock).max().unwrap_or(0);
        self.own.set_cut(last);
        self.claim_all(&Vector::from(vector.clone()));
        regions.iter().for_each(|region| self.cover_region(&HashIntervals::all(), region));
    }

    /// A fingerprint of the vector and the hash key: digests can be compared only under the same hash key, so equal
    /// fingerprints have to mean that too.
    pub(crate) fn vector_hash(&self) -> u64 {
        self.own.sum().fingerprint(self.hash_key.words().0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn context(dots: &[(u64, u64)]) -> Clocks {
        dots.iter().map(|(origin, clock)| (RunId::new(*origin), *clock)).collect()
    }

    fn places(range: HashRange) -> HashIntervals {
        HashIntervals::between(range.first(), range.last())
    }

    fn vector(dots: &[(u64, u64)]) -> Vector {
        context(dots).into()
    }

    #[test]
    fn overlapping_spans_keep_the_join_at_every_point() {
        let mut extra = CoverageMap::default();
        let mut plain: BTreeMap<u64, Clocks> = BTreeMap::new();
        let pieces = [(10, 20, 1), (15, 30, 2), (0, 12, 3), (5, 40, 4), (20, 20, 5), (0, 63, 6), (63, 63, 7)];
        for (first, last, clock) in pieces {
            let new = context(&[(clock % 3, clock)]);
            extra.add(first, last, &new);
            for point in first..=last {
                plain.entry(point).or_default().merge(new.clone());
            }
            for point in 0..64 {
                assert_eq!(extra.at(point).cloned(), plain.get(&point).cloned(), "{point}");
            }
        }
        extra.add(u64::MAX - 1, u64::MAX, &context(&[(1, 1)]));
        assert!(extra.at(u64::MAX).is_some() && extra.at(u64::MAX - 2).is_none());
    }

    #[test]
    fn neighbours_with_the_same_context_are_one_span() {
        let mut extra = CoverageMap::default();
        let same = context(&[(1, 1)]);
        for first in (0..1_000).step_by(10) {
            extra.add(first, first + 9, &same);
        }
        assert_eq!(extra.spans.len(), 1);
    }

    #[test]
    fn claims_of_too_many_origins_do_not_fit() {
        let most = ORIGINS_MAX as u64;
        let vector =
            |range: std::ops::Range<u64>| Vector::from(range.map(|i| (RunId::new(i), 1)).collect::<Clocks>());
        let mut seen = Coverage::new(HashKey::default());
        let all = vector(1..most);
        assert!(seen.has_room_for(&all));
        seen.claim_all(&all);
        assert!(seen.has_room_for(&all) && seen.has_room_for(&vector(1..most + 1)));
        assert!(!seen.has_room_for(&vector(most..most + 2)));
        assert!(seen.has_room_for_origin(RunId::new(most)));
        seen.claim(Stamp { clock: 1, origin: RunId::new(most) });
        assert!(seen.has_room_for_origin(RunId::new(1)) && !seen.has_room_for_origin(RunId::new(most + 1)));
    }

    #[test]
    fn extra_coverage_is_empty_once_the_vector_caught_up() {
        let mut seen = Coverage::new(HashKey::default());
        seen.cover_range(HashRange::ALL, &context(&[(1, 5), (2, 7)]));
        let place = HashKey::default().place(b"k");
        assert!(seen.covers(b"k", place, Stamp { clock: 7, origin: RunId::new(2) }));
        seen.claim(Stamp { clock: 5, origin: RunId::new(1) });
        seen.sweep();
        assert_eq!(seen.extra_count(), 1);
        seen.claim(Stamp { clock: 9, origin: RunId::new(2) });
        seen.sweep();
        assert_eq!(seen.extra_count(), 0);
    }

    #[test]
    fn contexts_survive_a_change_of_the_hash_key() {
        let mut seen = Coverage::new(HashKey::default());
        let old = HashKey::default().place(b"k");
        seen.cover_key(b"k", old, &context(&[(1, 5)]));
        let other = HashKey::from_words(1, 2);
        seen.rekey(other, std::iter::empty());
        assert!(seen.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: RunId::new(1) }));
        assert!(!seen.covers(b"l", other.place(b"l"), Stamp { clock: 5, origin: RunId::new(1) }));
        seen.cover_key(b"m", other.place(b"m"), &context(&[(1, 6)]));
        assert_eq!((seen.leftovers.len(), seen.extra.spans.len()), (1, 1));
        // As after each start from a disk: the same hash key again moves nothing.
        seen.rekey(other, std::iter::empty());
        assert_eq!((seen.leftovers.len(), seen.extra.spans.len()), (1, 1));
        let mut third = Coverage::new(other);
        for range in [
            HashRange::at(other.place(b"l").line_position(), 60),
            HashRange::at(other.place(b"k").line_position(), 60),
        ] {
            assert!(!third.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: RunId::new(1) }));
            seen.extra_in(range).iter().for_each(|region| third.cover_region(&places(range), region));
        }
        assert!(third.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: RunId::new(1) }));
    }

    #[test]
    fn leftover_told_with_every_range_stays_one() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let mut teller = Coverage::new(old);
        for at in 0..100 {
            teller.cover_range(HashRange::at(at << 50, 20), &context(&[(1, 5)]));
        }
        teller.rekey(new, std::iter::empty());
        assert_eq!(teller.extra_count(), 1, "what says the same is one");
        let mut hearer = Coverage::new(new);
        for _ in 0..3 {
            for child in 0..16 {
                let range = HashRange::ALL.child(child);
                let told = teller.extra_in(range);
                told.iter().for_each(|region| hearer.cover_region(&places(range), region));
                assert_eq!(hearer.extra_count(), 1, "after range {child}");
            }
            assert_eq!(hearer.extra_regions(), teller.extra_regions());
        }
        hearer.claim_all(&vector(&[(1, 5)]));
        assert_eq!(hearer.extra_count(), 0);
    }

    #[test]
    fn leftover_is_told_only_where_it_is_merged() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let stamp = Stamp { clock: 5, origin: RunId::new(1) };
        let told = RegionCoverage::new(old, places(HashRange::ALL.child(0)), context(&[(1, 5)]));
        let (here, elsewhere) = (HashRange::ALL.child(1), HashRange::ALL.child(2));
        let mut teller = Coverage::new(new);
        teller.cover_region(&places(here), &told);
        assert_eq!(
            teller.extra_in(here.child(3)),
            std::slice::from_ref(&told),
            "the present hash key is not named"
        );
        assert!(teller.extra_in(elsewhere).is_empty());
        for ranges in [&[here][..], &[here, elsewhere], &[HashRange::ALL]] {
            let mut hearer = Coverage::new(new);
            let mut all = HashIntervals::default();
            ranges.iter().for_each(|range| all.add(range.first(), range.last()));
            teller.extra_in_all(ranges).iter().for_each(|region| hearer.cover_region(&all, region));
            assert_eq!(hearer.extra_count(), 1);
            for key in (0..=u8::MAX).map(|i| [i]) {
                let place = new.place(&key);
                assert_eq!(
                    hearer.covers(&key, place, stamp),
                    teller.covers(&key, place, stamp),
                    "{ranges:?}"
                );
            }
        }
    }

    #[test]
    fn context_of_a_known_key_follows_it_to_a_new_hash_key() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let mut seen = Coverage::new(old);
        seen.cover_key(b"k", old.place(b"k"), &context(&[(1, 5)]));
        seen.rekey(new, std::iter::once(&b"k"[..]));
        assert!(seen.leftovers.iter().next().is_none());
        assert!(seen.covers(b"k", new.place(b"k"), Stamp { clock: 5, origin: RunId::new(1) }));
    }

    #[test]
    fn sweeping_costs_no_more_than_what_changes() {
        let mut seen = Coverage::new(HashKey::default());
        let vector: Clocks = (0..50_000).map(|origin| (RunId::new(origin), 7)).collect();
        seen.cover_range(HashRange::ALL.child(1), &vector);
        let mut sweeps = 0;
        for (origin, clock) in vector.iter() {
            seen.claim(Stamp { clock, origin });
            sweeps += usize::from(seen.unswept == 0);
        }
        let most = 2 * CLOCKS_PER_CHANGE;
        assert!(sweeps <= most, "{sweeps} sweeps, each of which looks at up to {} clocks", vector.len());
        seen.sweep();
        assert!(seen.is_vector_only());
    }

    #[test]
    fn beyond_vector_follows_the_vector_and_is_computed_once() {
        let mut seen = Coverage::new(HashKey::default());
        let mut theirs = vector(&[(1, 5), (2, 7), (3, 9)]);
        let first = seen.beyond_vector(&theirs);
        assert_eq!(first, theirs.clocks());
        seen.claim(Stamp { clock: 4, origin: RunId::new(1) });
        seen.claim(Stamp { clock: 8, origin: RunId::new(4) });
        assert!(first.is_shared_with(&seen.beyond_vector(&theirs)), "what has grown is not in it");
        seen.claim(Stamp { clock: 7, origin: RunId::new(2) });
        assert_eq!(seen.beyond_vector(&theirs), context(&[(1, 5), (3, 9)]));
        theirs.join(&context(&[(5, 1)]));
        assert_eq!(
            seen.beyond_vector(&theirs),
            context(&[(1, 5), (3, 9), (5, 1)]),
            "a context that grew is another"
        );
        seen.claim_all(&theirs);
        assert!(seen.beyond_vector(&theirs).is_empty());
        assert!(seen.withhold_future(6, 6));
        assert_eq!(seen.beyond_vector(&theirs), context(&[(2, 7), (3, 9)]), "the vector was lowered");
    }

    /// One change of a vector.
    #[derive(Clone, Debug)]
    enum Change {
        Claim(RunId, u64),
        Cut(u64),
        ClaimAll(Clocks),
        Withhold(u64),
        Rekey(u64),
        Restore(Clocks),
    }

    fn run() -> impl Strategy<Value = RunId> {
        (0..8_u64).prop_map(RunId::new)
    }

    fn changes() -> impl Strategy<Value = Change> {
        let vector = || prop::collection::btree_map(run(), 1..20_u64, 0..6).prop_map(Clocks::from_iter);
        prop_oneof![
            (run(), 0..20_u64).prop_map(|(origin, clock)| Change::Claim(origin, clock)),
            (0..20_u64).prop_map(Change::Cut),
            vector().prop_map(Change::ClaimAll),
            (0..20_u64).prop_map(Change::Withhold),
            (0..3_u64).prop_map(Change::Rekey),
            vector().prop_map(Change::Restore),
        ]
    }

    proptest! {
        #[test]
        fn vector_hash_and_beyond_vector_match_a_recomputation(
            changes in prop::collection::vec(changes(), 0..40),
            theirs in prop::collection::btree_map(run(), 1..20_u64, 0..6),
        ) {
            let mut seen = Coverage::new(HashKey::default());
            let theirs = Vector::from(Clocks::from_iter(theirs));
            let mut marks = vec![seen.clone()];
            for change in changes {
                match change {
                    Change::Claim(origin, clock) => seen.claim(Stamp { clock, origin }),
                    Change::Cut(cut) => _ = seen.set_cut(cut),
                    Change::ClaimAll(dots) => seen.claim_all(&dots.into()),
                    Change::Withhold(clock_max) => _ = seen.withhold_future(clock_max, clock_max),
                    Change::Rekey(word) => seen.rekey(HashKey::from_words(word, word), std::iter::empty()),
                    Change::Restore(vector) => seen.load(&vector, &[]),
                }
                seen.own.assert_divided();
                let sum = ClocksSum::of(seen.vector().clocks().iter());
                prop_assert_eq!(seen.vector_hash(), sum.fingerprint(seen.hash_key.words().0));
                prop_assert_eq!(seen.sum_with_withheld(), ClocksSum::of(seen.vector_with_withheld().iter()));
                prop_assert_eq!(seen.beyond_vector(&theirs), theirs.beyond(seen.vector()));
                for mark in &marks {
                    let claims = seen.vector_with_withheld().beyond(&mark.vector_with_withheld());
                    prop_assert_eq!(seen.claims_since(mark.vector(), mark.withheld()), claims);
                }
                marks.push(seen.clone());
            }
        }
    }

    #[test]
    fn hash_depends_on_hash_key_even_of_empty_vector() {
        let (one, other) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        assert_ne!(Coverage::new(one).vector_hash(), Coverage::new(other).vector_hash());
    }
}
