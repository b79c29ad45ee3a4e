//! The store of one replica: entries, change log, [`Coverage`], digest and expiry, kept in step.
//!
//! Stamping, inserting, assigning the revision and updating the digest are one call, so no follower ever sees them
//! apart. Every write, local or merged, changes a key through [`LocalStore::apply`]. Two functions change a key without
//! it: `drop_expired` removes an expired dot, without an event and without a revision, and `fill` loads the rows of a
//! disk.
//!
//! A dot that leaves its key must stay covered, or it would come back when it arrives again. And nothing may become
//! covered here that was not merged: see [`coverage`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::{Config, VectorSettings};
use crate::controls::{Control, Controls};
use crate::error::WriteError;
use crate::id::{LogId, RowId, RunId};
use crate::store::change_log::ChangeLog;
use crate::store::coverage::{ClaimBounds, Clocks, Coverage};
use crate::store::digest::{Digest, HashKey, HashRange, Place};
use crate::store::entry::{DOTS_MAX, Dot, DotSet, Entry, Removal, Revision};
use crate::store::slab::{ChangeOrigin, KeyIndex, Slab, StoredRow};
use crate::time::{HybridClock, Lifetime, Stamp, Time};

mod bound;
pub(crate) mod change_log;
mod complete;
pub(crate) mod coverage;
#[cfg(any(feature = "__controls", feature = "__measures"))]
mod damage;
pub(crate) mod digest;
pub(crate) mod entry;
mod expiry;
mod integrity;
pub(crate) mod key;
mod peer_row;
mod positions;
mod room;

pub(crate) mod slab;
pub(crate) mod watch;

use bound::BoundRuns;
pub(crate) use bound::RunLife;
pub(crate) use change_log::DiskFollower;
#[cfg(feature = "json")]
pub use complete::WholeLook;
#[cfg(test)]
pub(crate) use expiry::DROPPED_MAX;
pub(crate) use expiry::ExpiredKeys;
pub use peer_row::Refusal;
pub(crate) use peer_row::{PeerCoverage, PeerRow};
#[cfg(any(feature = "__controls", test))]
pub(crate) use positions::POSITIONS_MAX;
pub(crate) use positions::PeerPositions;

/// Bytes that a scratch buffer keeps from one write to the next.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// A condition on a write, compared with what this node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum OnlyIf {
    /// Only if the key has no value.
    Absent,
    /// Only if the key's value is the one written with this stamp.
    Stamp(Stamp),
    /// Only if nothing of the key has changed on this node since it was read at this revision
    /// ([`Entry::revision`](crate::Entry::revision)): neither its value nor the concurrent ones beside it.
    Revision(Revision),
}

/// The store of one replica.
#[derive(Clone, Debug)]
pub(crate) struct LocalStore {
    pub(crate) log: ChangeLog,
    pub(crate) coverage: Coverage,
    /// This run: the origin of every event written here since the claims were last given up.
    pub(crate) run: RunId,
    /// The run with which this process began: as a member, the one that its handshakes prove.
    pub(crate) first_run: RunId,
    /// How often this process has given up its claims.
    pub(crate) generation: u64,
    pub(crate) hash_key: HashKey,
    pub(crate) clock: HybridClock,
    pub(crate) controls: Controls,
    slab: Slab,
    key_index: KeyIndex,
    digest: Digest,
    /// Dots that will expire: (expiry in milliseconds, row id, stamp).
    expiries: BTreeSet<(u64, RowId, Stamp)>,
    /// Dots that have expired and are not dropped yet, in the same form.
    hidden: BTreeSet<(u64, RowId, Stamp)>,
    bound: BoundRuns,
    /// Whether the wall clock is trusted enough to drop expired dots.
    pub(crate) may_drop: bool,
    /// Wall-clock milliseconds at the last call of [`LocalStore::expire`].
    expired_to: u64,
    pub(crate) disk: DiskFollower,
    pub(crate) peer_positions: PeerPositions,
    pub(crate) expired_keys: ExpiredKeys,
    /// Expired dots that were dropped so far.
    pub(crate) expiry_count: u64,
    /// Bytes of the keys and values of all held dots.
    bytes: u64,
    /// Set when an entry of the library itself has changed.
    pub(crate) has_reserved_news: bool,
    /// Set when a leaf of the digest does not add up. Nothing may be sent before this replica gave up its claims.
    pub(crate) is_damaged: bool,
    value_bytes_max: usize,
    store_bytes_max: u64,
    removals_max: usize,
    skew_max: std::time::Duration,
    vector_settings: VectorSettings,
    text: Vec<u8>,
    room: Vec<u8>,
}

impl LocalStore {
    pub(crate) fn new(config: &Config, run: RunId, hash_key: HashKey, controls: Controls) -> Self {
        Self {
            log: ChangeLog::new(LogId::of(run)),
            coverage: Coverage::new(hash_key),
            run,
            first_run: run,
            generation: 0,
            hash_key,
            clock: HybridClock::default(),
            controls,
            slab: Slab::default(),
            key_index: KeyIndex::new(),
            digest: Digest::new(),
            expiries: BTreeSet::new(),
            hidden: BTreeSet::new(),
            bound: BoundRuns::default(),
            may_drop: true,
            expired_to: 0,
            disk: DiskFollower::NoDisk,
            peer_positions: PeerPositions::default(),
            expired_keys: ExpiredKeys::Listed(Vec::new()),
            expiry_count: 0,
            bytes: 0,
            has_reserved_news: false,
            is_damaged: false,
            value_bytes_max: config.value_bytes_max,
            store_bytes_max: config.store_bytes_max as u64,
            removals_max: config.removals_max,
            skew_max: config.clock_skew_max,
            vector_settings: config.vector,
            text: Vec::new(),
            room: Vec::new(),
        }
    }

    /// Works with other limits from now on.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.value_bytes_max = config.value_bytes_max;
        self.store_bytes_max = config.store_bytes_max as u64;
        self.removals_max = config.removals_max;
        self.skew_max = config.clock_skew_max;
    }

    // Reading.

    pub(crate) fn len(&self) -> usize {
        self.key_index.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn dot_set(&self, key: &[u8]) -> Option<(&DotSet, u64)> {
        let row = self.slab.at(self.row_of(key, self.hash_key.place(key))?);
        (!row.dot_set.is_empty()).then_some((&row.dot_set, row.revision))
    }

    /// What a key holds, for a peer. If it holds nothing, this says why, as long as the log has the removal.
    pub(crate) fn dot_set_or_empty(&self, key: &[u8]) -> DotSet {
        let row = self.row_of(key, self.hash_key.place(key));
        row.map_or_else(|| DotSet::empty(key, Removal::Unknown), |id| self.slab.at(id).dot_set.clone())
    }

    /// Whether reads pass over a dot: it has expired, or the run to whose life it is bound is not believed alive.
    pub(crate) fn is_hidden(&self, now: Time, dot: &Dot) -> bool {
        let lifetime = dot.lifetime();
        lifetime.is_limited()
            && (dot.has_expired(now.wall_ms()) || lifetime.run.is_some_and(|run| !self.bound.is_alive(run)))
    }

    /// Whether readers see anything of what a key holds.
    pub(crate) fn is_visible(&self, now: Time, dot_set: &DotSet) -> bool {
        dot_set.winner(|dot| self.is_hidden(now, dot)).is_some()
    }

    /// What a key holds, as its readers see it.
    pub(crate) fn entry(&self, now: Time, dot_set: &DotSet, number: u64) -> Option<Entry> {
        let revision = Revision { log: self.log.id, number };
        Entry::new(dot_set, revision, |dot| self.is_hidden(now, dot))
    }

    /// What a row shows to the followers of the log. A dot that has expired is shown until [`LocalStore::expire`] moves
    /// the row: a follower is told then, and not twice.
    pub(crate) fn logged_entry(&self, id: RowId, number: u64) -> Option<Entry> {
        let revision = Revision { log: self.log.id, number };
        Entry::new(&self.row(id).dot_set, revision, |dot| self.is_hidden_in_log(id, dot))
    }

    pub(crate) fn row(&self, id: RowId) -> &StoredRow {
        self.slab.at(id)
    }

    pub(crate) fn many(&self, ids: impl IntoIterator<Item = RowId>) -> Vec<&StoredRow> {
        self.slab.many(ids)
    }

    /// The entries from `key` on, in key order.
    pub(crate) fn iter_from<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a DotSet, u64)> + 'a {
        self.key_index.iter_from(key, &self.slab).map(|id| {
            let row = self.slab.at(id);
            (&row.dot_set, row.revision)
        })
    }

    pub(crate) fn with_prefix<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a DotSet, u64)> + 'a {
        self.iter_from(prefix).take_while(move |(dot_set, _)| dot_set.key().starts_with(prefix))
    }

    /// Whether this event of this key is merged here.
    pub(crate) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.dot_set(key).is_some_and(|(dot_set, _)| dot_set.covers_by_held(stamp))
            || self.coverage.covers(key, self.hash_key.place(key), stamp)
    }

    // Local events.

    /// Puts a value. The caller has checked the limits, see [`LocalStore::check_value_bytes`].
    pub(crate) fn put(&mut self, now: Time, key: &[u8], value: &[u8], lifetime: Lifetime) -> (Stamp, u64) {
        let place = self.hash_key.place(key);
        let row = self.row_of(key, place);
        let stamp = self.stamp(now);
        self.text.extend_from_slice(key);
        self.text.extend_from_slice(value);
        let dot = Dot::new(stamp, lifetime, key.len(), &self.text, &mut self.room);
        for scratch in [&mut self.text, &mut self.room] {
            scratch.clear();
            scratch.shrink_to(SCRATCH_BYTES_MAX);
        }
        let revision = self.apply(row, place, DotSet::One(dot), ChangeOrigin::Own);
        self.coverage.claim(stamp);
        (stamp, revision)
    }

    /// Deletes what the key holds. A delete of nothing is no event and returns `None`.
    pub(crate) fn delete(&mut self, now: Time, key: &[u8]) -> Option<(Stamp, u64)> {
        let place = self.hash_key.place(key);
        let row = self.row_of(key, place).filter(|id| !self.slab.at(*id).dot_set.is_empty())?;
        let stamp = self.stamp(now);
        let empty = DotSet::empty(key, Removal::Deleted(stamp));
        let revision = self.apply(Some(row), place, empty, ChangeOrigin::Own);
        self.coverage.claim(stamp);
        Some((stamp, revision))
    }

    pub(crate) fn check_value_bytes(&self, bytes: usize) -> Result<(), WriteError> {
        let limit = self.value_bytes_max;
        if bytes > limit { Err(WriteError::ValueTooLarge { bytes, limit }) } else { Ok(()) }
    }

    pub(crate) fn check_condition(&self, now: Time, key: &[u8], only_if: OnlyIf) -> Result<(), WriteError> {
        let is_hidden = |dot: &Dot| self.is_hidden(now, dot);
        let row = self.dot_set(key);
        let winner = row.and_then(|(dot_set, _)| dot_set.winner(is_hidden));
        let current = winner.map(Dot::stamp);
        let holds = match only_if {
            OnlyIf::Absent => current.is_none(),
            OnlyIf::Stamp(stamp) => current == Some(stamp),
            OnlyIf::Revision(Revision { log, number }) => {
                log == self.log.id && row.is_some_and(|(_, revision)| revision == number)
            }
        };
        if holds { Ok(()) } else { Err(WriteError::Condition { current }) }
    }

    /// How far ahead the next local event would be stamped, if that is too far for peers to accept.
    pub(crate) fn stamps_ahead(&mut self, now: Time) -> Option<std::time::Duration> {
        self.clock.ahead(now, self.skew_max)
    }

    fn stamp(&mut self, now: Time) -> Stamp {
        Stamp { clock: self.clock.next_clock(now), origin: self.run }
    }

    // Merging.

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
        let own = Stamp { clock: self.coverage.clock_with_withheld(self.run), origin: self.run };
        ClaimBounds { clock_max, own_last: own }
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
        let clock = clock.max(HybridClock::limit(now, std::time::Duration::ZERO));
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
    /// [`LocalStore::cover_row_beyond`] for each row, or by [`LocalStore::cover_range`] for a range that holds all of
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
        self.cover_range(range, peer_coverage);
        for row in rows {
            if !row.vector.is_shared_with(&peer_coverage.vector) || row.context.is_some() {
                self.cover_row(row);
            }
        }
    }

    /// Records that a settled range is covered by what the peer covers there. The range compared equal in this instant,
    /// or all rows of the peer's listing were merged: then this is the second half of merging them, without which a
    /// removed value can come back. Must not be called for a range that was merged in part: that would remove the rest.
    pub(crate) fn cover_range(&mut self, range: HashRange, peer_coverage: &PeerCoverage) {
        if self.controls.has(Control::SettledUncovered) || !self.keeps_extra_coverage() {
            return;
        }
        let beyond = self.coverage.beyond_vector(&peer_coverage.vector);
        self.coverage.cover_range(range, &beyond);
        let is_joined = !self.controls.has(Control::LeftoversNarrowed);
        let cover = if is_joined { Coverage::cover_region } else { Coverage::cover_region_narrowed };
        peer_coverage.regions.iter().for_each(|region| cover(&mut self.coverage, range, region));
    }

    // Changing a row.

    /// Replaces what a key holds, moves the key to the end of the log, and updates digest, key index and expiries.
    fn apply(&mut self, row: Option<RowId>, place: Place, dot_set: DotSet, source: ChangeOrigin) -> u64 {
        let revision = self.log.head() + 1;
        let id = if let Some(id) = row {
            self.log.take_out(self.slab.at(id).revision);
            self.replace(id, place, dot_set);
            id
        } else {
            self.add(place, dot_set)
        };
        let row = self.slab.at_mut(id);
        row.move_to(revision, source);
        self.has_reserved_news |= key::is_reserved(row.dot_set.key());
        let is_removal = row.dot_set.is_empty();
        self.log.append(id, source);
        if is_removal {
            self.log.mark_removal(revision);
        }
        revision
    }

    /// Adds a key that has no row yet.
    fn add(&mut self, place: Place, dot_set: DotSet) -> RowId {
        let hash = dot_set.digest_share(self.hash_key, place);
        let limited = limited(&dot_set);
        self.bytes += dot_set.bytes();
        let is_empty = dot_set.is_empty();
        let id = self.slab.insert(StoredRow::new(dot_set));
        let (slab, hash_key) = (&self.slab, self.hash_key);
        let hashes = |rows: Vec<&StoredRow>| rows.into_iter().map(|row| row.digest_share(hash_key)).collect();
        self.digest.insert(place, id, hash, |ids| hashes(slab.many(ids.iter().copied())));
        if !is_empty {
            self.key_index.insert(id, &self.slab);
        }
        self.schedule(id, limited, true);
        id
    }

    /// Replaces what a key holds everywhere but in the log.
    fn replace(&mut self, id: RowId, place: Place, dot_set: DotSet) {
        let (was_empty, is_empty) = (self.slab.at(id).dot_set.is_empty(), dot_set.is_empty());
        if is_empty && !was_empty {
            self.key_index.remove(dot_set.key(), &self.slab);
        }
        let new = dot_set.digest_share(self.hash_key, place);
        let mut come = limited(&dot_set);
        self.bytes += dot_set.bytes();
        let old = std::mem::replace(&mut self.slab.at_mut(id).dot_set, dot_set);
        self.digest.change(place, old.digest_share(self.hash_key, place), new);
        self.cover_removed(id, place, &old);
        self.bytes -= old.bytes();
        // What stays is not scheduled anew: it may be hidden already. A stamp may come back with another lifetime.
        let (mut gone, stay) = (limited(&old), come.clone());
        come.retain(|dot| !gone.contains(dot));
        gone.retain(|dot| !stay.contains(dot));
        self.schedule(id, gone, false);
        self.schedule(id, come, true);
        if was_empty && !is_empty {
            self.key_index.insert(id, &self.slab);
        }
    }

    /// Whether anything is covered beyond the vector.
    fn keeps_extra_coverage(&self) -> bool {
        !self.controls.has(Control::NoExtraCoverage)
    }

    /// Dots that a key no longer holds stay covered: see [`Coverage::cover_removed`].
    fn cover_removed(&mut self, id: RowId, place: Place, old: &DotSet) {
        let is_forgotten = self.controls.has(Control::RemovedUncovered) || !self.keeps_extra_coverage();
        if self.coverage.is_vector_only() || is_forgotten {
            return;
        }
        let dot_set = &self.slab.at(id).dot_set;
        let gone = old.stamps().filter(|stamp| !dot_set.covers_by_held(*stamp));
        gone.for_each(|stamp| self.coverage.cover_removed(dot_set.key(), place, stamp));
    }

    fn row_of(&self, key: &[u8], place: Place) -> Option<RowId> {
        self.digest.find(place, |id| self.slab.at(id).dot_set.key() == key)
    }

    /// Forgets the oldest removals over `removals_max` and raises the floor past them, but none that the disk lacks.
    pub(crate) fn trim(&mut self) {
        while self.log.removals() > self.removals_max {
            let Some(oldest) = self.log.oldest_removal() else { return };
            if matches!(self.disk, DiskFollower::At(disk) if disk < oldest) {
                return;
            }
            let id = self.log.row_at(oldest).expect("a removal has its row");
            self.log.take_out(oldest);
            self.log.raise_floor(oldest);
            let place = self.hash_key.place(self.slab.at(id).dot_set.key());
            self.digest.remove(place, id);
            self.slab.remove(id);
        }
    }

    /// The disk has everything up to this revision: removals up to there may be forgotten.
    pub(crate) fn advance_disk(&mut self, revision: u64) {
        if let DiskFollower::At(at) = &mut self.disk {
            *at = (*at).max(revision);
        }
        self.trim();
    }
}

/// The dots that end by themselves.
fn limited(dot_set: &DotSet) -> Vec<(Lifetime, Stamp)> {
    let dots = dot_set.dots().iter().map(|dot| (dot.lifetime(), dot.stamp()));
    dots.filter(|(lifetime, _)| lifetime.is_limited()).collect()
}

#[cfg(test)]
impl LocalStore {
    /// An empty store of this run, for tests.
    pub(crate) fn of_run(run: u64) -> Self {
        Self::new(&Config::lan(), RunId::new(run), HashKey::default(), Controls::default())
    }
}
