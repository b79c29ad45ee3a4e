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
use crate::store::coverage::Coverage;
use crate::store::digest::{Digest, HashKey, Place};
use crate::store::entry::{Dot, DotSet, Entry, Removal, Revision};
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
mod merging;
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
#[cfg(any(feature = "json", feature = "node"))]
pub(crate) use complete::{MissingOrigin, RestFrom};
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
