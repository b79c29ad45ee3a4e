//! Merging what peers send into the store: rows, settled ranges, and the claims that are accepted.
//!
//! A row is merged in two halves: its dots, and what its sender covers at its key. Both belong to the same step, and
//! none may be left out: covered and not held is removed, for ever, and what is removed and not covered comes back.
//! Nothing is taken here that was not checked: [`LocalStore::check_row`] judges rows, [`LocalStore::claim_bounds`]
//! says which claims a reader of frames lets through.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{LocalStore, PeerCoverage, PeerRow, Refusal, entry, key};
use crate::config::VectorSettings;
use crate::controls::Control;
use crate::id::LogId;
use crate::store::coverage::{ClaimBounds, Clocks, Coverage, HashIntervals};
use crate::store::digest::{HashRange, Place};
use crate::store::entry::{DOTS_MAX, Dot, DotSet, Removal};
use crate::store::slab::ChangeOrigin;
use crate::time::{HybridClock, Stamp, Time};

impl LocalStore {
    /// Whether a row may be merged. Only its dots are judged, never its context.
    pub(crate) fn check_row(&self, now: Time, dot_set: &DotSet) -> Result<(), Refusal> {
        if !key::key_is_well_formed(dot_set.key()) {
            return Err(Refusal::Key);
        }
        if dot_set.dots().len() > DOTS_MAX {
            return Err(Refusal::Dots);
        }
        let key = dot_set.key();
        if !dot_set.dots().iter().all(|dot| entry::value_is_acceptable(key, dot.value())) {
            return Err(Refusal::Value);
        }
        let limit = HybridClock::limit(now, self.skew_max);
        if dot_set.dots().iter().any(|dot| dot.stamp().clock > limit) {
            return Err(Refusal::FromTheFuture);
        }
        Ok(())
    }

    /// The greatest claims that are accepted from a peer now.
    pub(crate) fn claim_bounds(&self, now: Time) -> ClaimBounds {
        let clock_max = match self.controls {
            controls if controls.has(Control::ClaimsUnbounded) => u64::MAX,
            _ => self.taken_max(now),
        };
        let own_clock = match self.controls {
            controls if controls.has(Control::OwnClaimTaken) => clock_max,
            _ => self.coverage.clock_with_withheld(self.run),
        };
        ClaimBounds { clock_max, own_last: Stamp { clock: own_clock, origin: self.run } }
    }

    /// Makes the claim of a peer true that this run's events up to `clock` are merged there, although the last one is
    /// earlier: from now on this run stamps only above that clock, and counts itself as complete up to there. That is so,
    /// because it has no event between its last one and that clock.
    ///
    /// Nothing changes if this run may not stamp that clock yet: its next writes would be refused everywhere. The peer
    /// will repeat the claim when the time has come. The clock is raised to the present at least: a peer that was told
    /// several false clocks repeats them one by one, and by then all of them are past.
    pub(crate) fn fulfil_own_claim(&mut self, now: Time, clock: u64) {
        if clock > HybridClock::limit(now, self.skew_max) || self.controls.has(Control::OwnClaimUnfulfilled) {
            return;
        }
        let clock = clock.max(HybridClock::limit(now, Duration::ZERO));
        self.clock.advance_to(clock);
        self.coverage.claim(Stamp { clock, origin: self.run });
    }

    /// Withholds claims from the future; they are no longer sent to peers. See [`Coverage::withhold_future`].
    pub(crate) fn withhold_future(&mut self, now: Time) -> bool {
        if self.controls.has(Control::FutureTold) {
            return false;
        }
        self.coverage.withhold_future(HybridClock::limit(now, self.skew_max), self.taken_max(now))
    }

    /// While claims are withheld: contexts are sent up to the greatest clock that peers accept now.
    pub(crate) fn set_sendable_max(&mut self, now: Time) {
        self.coverage.set_sendable_max(self.taken_max(now));
    }

    pub(crate) fn vector_settings(&self) -> VectorSettings {
        self.vector_settings
    }

    /// Moves the cut of the vector to one to two cut intervals before this time. Called in every sync interval. Returns
    /// whether the old part should be offered to the peers again.
    pub(crate) fn advance_cut(&mut self, now: Time) -> bool {
        let interval_ms = self.vector_settings.cut_interval.as_millis() as u64;
        let cut_ms = (now.wall_ms() / interval_ms).saturating_sub(1) * interval_ms;
        let has_moved = self.coverage.set_cut(cut_ms << HybridClock::COUNTER_BITS);
        has_moved && self.coverage.old_sum().count >= self.vector_settings.buckets_min
    }

    /// The greatest clock of a claim that is accepted: `2 × clock_skew_max` ahead of the wall clock. A peer accepts
    /// writes that are one skew ahead of its own clock, and that clock may be one skew ahead of this one.
    fn taken_max(&self, now: Time) -> u64 {
        HybridClock::limit(now, self.skew_max.saturating_mul(2))
    }

    /// Merges the dots of accepted rows, and calls `news` for each row that changed something.
    ///
    /// This is the first half of merging a row. In the same step it must be followed by [`LocalStore::cover_row`] or
    /// [`LocalStore::cover_row_beyond`] for each row, or by [`LocalStore::cover_ranges`] for a range that holds all of
    /// them, which record what the sender covers there. Without that, a value that a row has removed can come back. If
    /// a flush end came with the rows, its claims go between the two halves: the vector then has most of what would be
    /// recorded.
    pub(crate) fn merge_rows(
        &mut self,
        now: Time,
        rows: &[PeerRow],
        source: ChangeOrigin,
        mut news: impl FnMut(&PeerRow),
    ) {
        let intervals: Vec<Place> = rows.iter().map(|row| self.hash_key.place(row.dot_set.key())).collect();
        self.digest.look_at(&intervals);
        for (row, place) in rows.iter().zip(intervals) {
            row.dot_set.dots().iter().for_each(|dot| self.coverage.note_covered_by_held(dot.stamp()));
            if self.merge_row(now, &row.dot_set, place, source, |stamp| row.covers(stamp)) {
                row.dot_set.dots().iter().for_each(|dot| self.clock.advance_to(dot.stamp().clock));
                news(row);
            }
        }
    }

    fn merge_row(
        &mut self,
        now: Time,
        theirs: &DotSet,
        place: Place,
        source: ChangeOrigin,
        theirs_cover: impl Fn(Stamp) -> bool,
    ) -> bool {
        let key = theirs.key();
        let row = self.row_of(key, place);
        let mine = row.map(|id| &self.slab.at(id).dot_set);
        let implied = |stamp: Stamp| mine.is_some_and(|mine| mine.covers_by_held(stamp));
        let is_known = |stamp: Stamp| implied(stamp) || self.coverage.covers(key, place, stamp);
        let dead = theirs.dots().iter().filter(|dot| self.may_be_dropped(now, dot) && !is_known(dot.stamp()));
        let dead: Vec<Stamp> = dead.map(Dot::stamp).collect();
        let covered = |stamp: Stamp| is_known(stamp) || dead.contains(&stamp);
        let arrival_wins = self.controls.has(Control::ArrivalOrder) && theirs.dots().len() == 1;
        let merged = if arrival_wins
            && mine.is_some_and(|mine| !mine.is_empty())
            && theirs.dots().iter().all(|dot| !covered(dot.stamp()))
        {
            Some(theirs.clone())
        } else {
            entry::merge_dots(mine, theirs, covered, theirs_cover)
        };
        let was_hidden = |mine: &DotSet| mine.dots().iter().all(|dot| self.is_hidden(now, dot));
        let merged = merged.map(|merged| match merged.removal() {
            // It expired for the users of this node before the peer dropped it.
            Some(Removal::Unknown) if mine.is_some_and(was_hidden) => DotSet::empty(key, Removal::Expired),
            _ => merged,
        });
        self.cover_dead(key, place, &dead);
        let Some(merged) = merged else { return false };
        self.apply(row, place, merged, source);
        true
    }

    /// Covers dots that are not taken because they may be dropped, as if they had been taken and dropped: the values
    /// that they have overwritten may come later, from a peer that has not merged them, and stay removed.
    fn cover_dead(&mut self, key: &[u8], place: Place, dead: &[Stamp]) {
        if !self.keeps_extra_coverage() || self.controls.has(Control::DeadUncovered) {
            return;
        }
        for stamp in dead {
            self.coverage.cover_key(key, place, &Clocks::from_iter([(stamp.origin, stamp.clock)]));
        }
    }

    /// The second half of merging a row, after [`LocalStore::merge_rows`]: records what the row's sender covers at its
    /// key, as far as it is not covered here yet. Without it a value that the row has removed can come back.
    pub(crate) fn cover_row(&mut self, row: &PeerRow) {
        let beyond = self.coverage.beyond_vector(&row.vector);
        self.cover_row_beyond(row, &beyond);
    }

    /// As [`LocalStore::cover_row`], where the caller knows `beyond`: the part of the sender's vector that lies beyond
    /// this replica's vector.
    pub(crate) fn cover_row_beyond(&mut self, row: &PeerRow, beyond: &Clocks) {
        let is_nothing = beyond.is_empty() && row.context.is_none();
        if is_nothing || !self.keeps_extra_coverage() || self.controls.has(Control::NoContext) {
            return;
        }
        let key = row.dot_set.key();
        let place = self.hash_key.place(key);
        self.coverage.cover_key(key, place, beyond);
        if let Some(context) = &row.context {
            self.coverage.cover_key(key, place, context);
        }
    }

    /// The revision of a peer's log up to which everything is merged here.
    pub(crate) fn position_in(&self, log: LogId) -> u64 {
        self.peer_positions.revision(log)
    }

    /// Whether a range may be settled with a peer's coverage: all of it was sent, and there is room to record it.
    pub(crate) fn may_settle(&self, peer_coverage: &PeerCoverage) -> bool {
        peer_coverage.is_whole && self.coverage.has_room(&peer_coverage.regions)
    }

    /// Merges a peer's full listing of a range: its rows, and an empty row for every other key held here. From then on
    /// the range is covered by what the peer covered there. `rows` have passed [`LocalStore::check_row`].
    pub(crate) fn settle_range(
        &mut self,
        now: Time,
        range: HashRange,
        rows: &[PeerRow],
        peer_coverage: &PeerCoverage,
        source: ChangeOrigin,
    ) {
        let covers_any = !peer_coverage.vector.is_empty() || !peer_coverage.regions.is_empty();
        let held = if covers_any { self.rows_in(range) } else { Vec::new() };
        if !held.is_empty() {
            let listed: BTreeSet<&[u8]> = rows.iter().map(|row| row.dot_set.key()).collect();
            for id in held {
                let dot_set = self.slab.at(id).dot_set.clone();
                if !listed.contains(dot_set.key()) {
                    let empty = DotSet::empty(dot_set.key(), Removal::Unknown);
                    let place = self.hash_key.place(dot_set.key());
                    self.merge_row(now, &empty, place, source, |stamp| {
                        peer_coverage.covers(dot_set.key(), stamp)
                    });
                }
            }
        }
        self.merge_rows(now, rows, source, |_| ());
        self.cover_ranges(&[range], peer_coverage);
        for row in rows {
            if !row.vector.is_shared_with(&peer_coverage.vector) || row.context.is_some() {
                self.cover_row(row);
            }
        }
    }

    /// Records that settled ranges are covered by what the peer covers there. They compared equal in this instant, or
    /// all rows of the peer's listing were merged: then this is the second half of merging them, without which a
    /// removed value can come back. Must not be called for a range that was merged in part: that would remove the rest.
    pub(crate) fn cover_ranges(&mut self, ranges: &[HashRange], peer_coverage: &PeerCoverage) {
        if self.controls.has(Control::SettledUncovered) || !self.keeps_extra_coverage() {
            return;
        }
        let beyond = self.coverage.beyond_vector(&peer_coverage.vector);
        let mut places = HashIntervals::default();
        for range in ranges {
            self.coverage.cover_range(*range, &beyond);
            places.add(range.first(), range.last());
        }
        let is_joined = !self.controls.has(Control::LeftoversNarrowed);
        let cover = if is_joined { Coverage::cover_region } else { Coverage::cover_region_narrowed };
        peer_coverage.regions.iter().for_each(|region| cover(&mut self.coverage, &places, region));
    }
}
