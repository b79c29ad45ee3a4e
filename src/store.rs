//! The store: entries, change log, `Seen`, digest and expiry, kept in step.
//!
//! Everything here happens in one instant: stamping, inserting, giving the revision and updating the digest are
//! one call. [`Store::apply`] changes what a key holds when something was written or merged. Two things change it without
//! an event and without a revision: `drop_expired`, when a value has expired, and `fill`, which takes in a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crdts::CvRDT;

use crate::config::Config;
use crate::controls::{Control, Controls};
use crate::error::WriteError;
use crate::store::change_log::ChangeLog;
use crate::store::coverage::{ClaimBounds, Context, Pending, Seen, ToldPending};
use crate::store::digest::{Digest, HashKey, Place, Range};
use crate::store::entry::{DOTS_MAX, Held, Record};
use crate::store::slab::{Order, Slab, Slot, Source};
use crate::time::{HybridClock, Stamp, Time};

pub(crate) mod change_log;
pub(crate) mod coverage;
pub(crate) mod digest;
pub(crate) mod entry;
mod expiry;
mod integrity;
pub(crate) mod slab;
pub(crate) mod watch;

#[cfg(test)]
pub(crate) use expiry::DROPPED_MAX;

/// What scratch memory keeps from one write to the next.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// A condition on a write, compared with what this node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnlyIf {
    /// Only if the key has no value.
    Absent,
    /// Only if the key's value is the one written with this stamp.
    Stamp(Stamp),
}

/// Why a row of a peer is not merged. Nothing of it is; the rows behind it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A stamp lies further in the future than the permitted clock skew.
    FromTheFuture,
    /// The key has no form that this library writes.
    Key,
    /// A value is too large or not of the form of its keyspace.
    Value,
    /// More concurrent dots than any key may hold.
    Dots,
}

/// A row as it came from a peer: the key's dots and what is covered there.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) held: Held,
    /// The sender's vector in the instant in which it cut the row.
    pub(crate) vector: Arc<Context>,
    /// What the sender covers at this key beyond that.
    pub(crate) context: Option<Arc<Context>>,
}

impl Row {
    fn covers(&self, stamp: Stamp) -> bool {
        coverage::covers(&self.vector, stamp)
            || self.context.as_ref().is_some_and(|c| coverage::covers(c, stamp))
            || self.held.implies(stamp)
    }
}

/// What a peer covers in a range: its vector of an instant, and its cloud there.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) vector: Arc<Context>,
    pub(crate) pending: Vec<Pending>,
    /// The peer has told all of its cloud there. Otherwise its vector alone would name dots as removed without the events
    /// that removed them: nothing may be settled by this base, nor any row be merged with it.
    pub(crate) is_whole: bool,
}

impl Base {
    pub(crate) fn new(vector: Arc<Context>, told: ToldPending) -> Self {
        Self { vector, pending: told.pending, is_whole: told.is_whole }
    }

    /// What is covered at one key beyond the vector.
    pub(crate) fn context(&self, key: &[u8]) -> Option<Arc<Context>> {
        let mut here = self.pending.iter().filter(|pending| pending.is_for(key));
        let mut all = here.next()?.context.clone();
        here.for_each(|pending| Arc::make_mut(&mut all).merge(Context::clone(&pending.context)));
        Some(all)
    }

    fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        coverage::covers(&self.vector, stamp) || self.pending.iter().any(|pending| pending.covers(key, stamp))
    }
}

/// How many logs of peers are remembered. A process start makes one.
const POSITIONS_MAX: usize = 4_096;

/// Where a disk that has failed stands: it holds nothing back.
pub(crate) const NOTHING_KEPT: u64 = u64::MAX;

/// The store of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) log: ChangeLog,
    pub(crate) seen: Seen,
    /// This run: the origin of every event written here, in use from the first one on.
    pub(crate) run: u64,
    pub(crate) hash_key: HashKey,
    pub(crate) clock: HybridClock,
    pub(crate) controls: Controls,
    slab: Slab,
    order: Order,
    digest: Digest,
    /// What will expire: (milliseconds, slot, stamp).
    expiries: BTreeSet<(u64, u32, Stamp)>,
    /// What has expired and is not dropped yet, in the same form.
    hidden: BTreeSet<(u64, u32, Stamp)>,
    /// Whether the clock is believed enough for dropping what has expired.
    pub(crate) may_drop: bool,
    /// The wall-clock time of the last look at them.
    expired_to: u64,
    /// The disk's cursor, if there is a disk: the log keeps its removals until they are there. While it has failed that is
    /// [`NOTHING_KEPT`].
    pub(crate) disk: Option<u64>,
    /// For each log of a peer, how far it is merged.
    pub(crate) positions: BTreeMap<u64, u64>,
    /// Of these, what changed since the disk was last told.
    pub(crate) moved: BTreeSet<u64>,
    /// Keys that changed quietly, by an expiry, since the disk was last told. None, if there were too many to note: then
    /// it has to be told everything.
    pub(crate) dropped: Option<Vec<Vec<u8>>>,
    /// How often any key changed so.
    pub(crate) drops: u64,
    /// Bytes of all keys and values.
    bytes: u64,
    /// Set when a leaf no longer adds up. Nothing may leave this replica before it gave up its claims.
    pub(crate) is_damaged: bool,
    value_bytes_max: usize,
    removals_max: usize,
    skew_max: std::time::Duration,
    text: Vec<u8>,
    room: Vec<u8>,
}

impl Store {
    pub(crate) fn new(config: &Config, run: u64, log: u64, hash_key: HashKey, controls: Controls) -> Self {
        Self {
            log: ChangeLog::new(log),
            seen: Seen::new(hash_key),
            run,
            hash_key,
            clock: HybridClock::default(),
            controls,
            slab: Slab::default(),
            order: Order::new(),
            digest: Digest::new(),
            expiries: BTreeSet::new(),
            hidden: BTreeSet::new(),
            may_drop: true,
            expired_to: 0,
            disk: None,
            positions: BTreeMap::new(),
            moved: BTreeSet::new(),
            dropped: Some(Vec::new()),
            drops: 0,
            bytes: 0,
            is_damaged: false,
            value_bytes_max: config.value_bytes_max,
            removals_max: config.removals_max,
            skew_max: config.clock_skew_max,
            text: Vec::new(),
            room: Vec::new(),
        }
    }

    // Reading.

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn held(&self, key: &[u8]) -> Option<(&Held, u64)> {
        let slot = self.slab.at(self.find(key, self.hash_key.place(key))?);
        (!slot.held.is_empty()).then_some((&slot.held, slot.revision))
    }

    pub(crate) fn slot(&self, slot: u32) -> &Slot {
        self.slab.at(slot)
    }

    pub(crate) fn many(&self, slots: impl IntoIterator<Item = u32>) -> Vec<&Slot> {
        self.slab.many(slots)
    }

    /// Everything held from `key` on, in key order.
    pub(crate) fn from<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a Held, u64)> + 'a {
        self.order.from(key, &self.slab).map(|slot| {
            let slot = self.slab.at(slot);
            (&slot.held, slot.revision)
        })
    }

    pub(crate) fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Held, u64)> + 'a {
        self.from(prefix).take_while(move |(held, _)| held.key().starts_with(prefix))
    }

    /// Whether this event of this key is merged here.
    pub(crate) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.held(key).is_some_and(|(held, _)| held.implies(stamp))
            || self.seen.covers(key, self.hash_key.place(key), stamp)
    }

    // Local events.

    /// Puts a value. The limits are the caller's: see [`Store::check_value`].
    pub(crate) fn put(&mut self, now: Time, key: &[u8], value: &[u8], expires: u64) -> (Stamp, u64) {
        let place = self.hash_key.place(key);
        let slot = self.find(key, place);
        let stamp = self.stamp(now);
        self.text.extend_from_slice(key);
        self.text.extend_from_slice(value);
        let record = Record::new(stamp, expires, key.len(), &self.text, &mut self.room);
        for scratch in [&mut self.text, &mut self.room] {
            scratch.clear();
            scratch.shrink_to(SCRATCH_BYTES_MAX);
        }
        let revision = self.apply(slot, place, Held::One(record), Source::Own);
        self.seen.claim(stamp);
        (stamp, revision)
    }

    /// Deletes what is held; a delete of nothing is no event.
    pub(crate) fn delete(&mut self, now: Time, key: &[u8]) -> Option<(Stamp, u64)> {
        let place = self.hash_key.place(key);
        let slot = self.find(key, place).filter(|slot| !self.slab.at(*slot).held.is_empty())?;
        let stamp = self.stamp(now);
        let revision = self.apply(Some(slot), place, Held::Nothing(Record::bare(key)), Source::Own);
        self.seen.claim(stamp);
        Some((stamp, revision))
    }

    pub(crate) fn check_value(&self, bytes: usize) -> Result<(), WriteError> {
        let limit = self.value_bytes_max;
        if bytes > limit { Err(WriteError::ValueTooLarge { bytes, limit }) } else { Ok(()) }
    }

    pub(crate) fn check_condition(&self, now: Time, key: &[u8], only_if: OnlyIf) -> Result<(), WriteError> {
        let winner = self.held(key).and_then(|(held, _)| held.winner(now.wall_ms()));
        let current = winner.map(Record::stamp);
        let holds = match only_if {
            OnlyIf::Absent => current.is_none(),
            OnlyIf::Stamp(stamp) => current == Some(stamp),
        };
        if holds { Ok(()) } else { Err(WriteError::Condition { current }) }
    }

    /// How far the next local event would be stamped ahead, if peers would refuse it for that.
    pub(crate) fn stamps_ahead(&mut self, now: Time) -> Option<std::time::Duration> {
        self.clock.ahead(now, self.skew_max)
    }

    fn stamp(&mut self, now: Time) -> Stamp {
        Stamp { clock: self.clock.tick(now), origin: self.run }
    }

    // Merging.

    /// Whether a row may be merged, judged by its own dots alone.
    pub(crate) fn check_row(&self, now: Time, held: &Held) -> Result<(), Refusal> {
        if !entry::key_is_well_formed(held.key()) {
            return Err(Refusal::Key);
        }
        if held.dots().len() > DOTS_MAX {
            return Err(Refusal::Dots);
        }
        let space = entry::space_of(held.key()).expect("well formed");
        if !held.dots().iter().all(|dot| entry::value_is_acceptable(space, dot.value())) {
            return Err(Refusal::Value);
        }
        let limit = HybridClock::limit(now, self.skew_max);
        if held.dots().iter().any(|dot| dot.stamp().clock > limit) {
            return Err(Refusal::FromTheFuture);
        }
        Ok(())
    }

    /// What a peer may claim now.
    pub(crate) fn claim_bounds(&self, now: Time) -> ClaimBounds {
        let clock_max = match self.controls {
            controls if controls.has(Control::ClaimsUnbounded) => u64::MAX,
            _ => self.taken_max(now),
        };
        let own = Stamp { clock: self.seen.known_clock(self.run), origin: self.run };
        ClaimBounds { clock_max, own }
    }

    /// Keeps claims from the future to itself: see [`Seen::withhold`].
    pub(crate) fn withhold(&mut self, now: Time) -> bool {
        if self.controls.has(Control::FutureTold) {
            return false;
        }
        self.seen.withhold(HybridClock::limit(now, self.skew_max), self.taken_max(now))
    }

    /// While it does that, contexts are told up to what peers take.
    pub(crate) fn tell_up_to(&mut self, now: Time) {
        self.seen.tell_up_to(self.taken_max(now));
    }

    /// The greatest clock of a claim that is taken. A peer takes writes that are ahead of its clock by the permitted skew,
    /// and its clock may be ahead of this one's by as much, so a claim may be ahead by twice that.
    fn taken_max(&self, now: Time) -> u64 {
        HybridClock::limit(now, self.skew_max.saturating_mul(2))
    }

    /// Merges the dots of accepted rows, and tells which of them were news. What they claim is recorded by
    /// [`Store::cover_row`], after any claim that came in the same instant.
    pub(crate) fn merge_rows(&mut self, now: Time, rows: &[Row], source: Source, mut news: impl FnMut(&Row)) {
        let places: Vec<Place> = rows.iter().map(|row| self.hash_key.place(row.held.key())).collect();
        self.digest.look_at(&places);
        for (row, place) in rows.iter().zip(places) {
            row.held.dots().iter().for_each(|dot| self.seen.imply(dot.stamp()));
            if self.merge(now, &row.held, place, source, |stamp| row.covers(stamp)) {
                row.held.dots().iter().for_each(|dot| self.clock.observe(dot.stamp().clock));
                news(row);
            }
        }
    }

    fn merge(
        &mut self,
        now: Time,
        theirs: &Held,
        place: Place,
        source: Source,
        theirs_cover: impl Fn(Stamp) -> bool,
    ) -> bool {
        let key = theirs.key();
        let slot = self.find(key, place);
        let mine = slot.map(|slot| &self.slab.at(slot).held);
        let dead = |stamp: Stamp| {
            if !self.may_drop {
                return false;
            }
            let dot = theirs.dots().iter().find(|dot| dot.stamp() == stamp);
            dot.is_some_and(|dot| self.is_due(now, dot))
        };
        let implied = |stamp: Stamp| mine.is_some_and(|mine| mine.implies(stamp));
        let covered = |stamp: Stamp| implied(stamp) || self.seen.covers(key, place, stamp) || dead(stamp);
        let arrival_wins = self.controls.has(Control::ArrivalOrder) && theirs.dots().len() == 1;
        let merged = if arrival_wins
            && mine.is_some_and(|mine| !mine.is_empty())
            && theirs.dots().iter().all(|dot| !covered(dot.stamp()))
        {
            Some(theirs.clone())
        } else {
            entry::merge(mine, theirs, covered, theirs_cover)
        };
        let Some(merged) = merged else { return false };
        self.apply(slot, place, merged, source);
        true
    }

    /// Records what a merged row covers, as far as nothing else here does.
    pub(crate) fn cover_row(&mut self, row: &Row) {
        let excess = self.seen.excess(&row.vector);
        self.cover_row_beyond(row, &excess);
    }

    /// The same, where it is known what of the sender's vector lies beyond this replica's own.
    pub(crate) fn cover_row_beyond(&mut self, row: &Row, excess: &Arc<Context>) {
        if self.controls.has(Control::NoContext) || (excess.dots.is_empty() && row.context.is_none()) {
            return;
        }
        if self.controls.has(Control::NoCloud) {
            return;
        }
        let key = row.held.key();
        let place = self.hash_key.place(key);
        self.seen.cover_key(key, place, excess);
        if let Some(context) = &row.context {
            self.seen.cover_key(key, place, context);
        }
    }

    /// A tail's `done`: its sender's own origin is claimed, never anything else.
    pub(crate) fn claim_tail(&mut self, stamp: Stamp, vector: &Context) {
        if self.controls.has(Control::TailClaimsAll) {
            self.seen.claim_all(vector);
        }
        if stamp.clock > 0 {
            self.seen.claim(stamp);
        }
    }

    /// The latest revision of a peer's log up to which everything is merged here.
    pub(crate) fn completed(&self, log: u64) -> u64 {
        self.positions.get(&log).copied().unwrap_or(0)
    }

    pub(crate) fn complete(&mut self, log: u64, revision: u64) {
        let position = self.positions.entry(log).or_default();
        *position = revision.max(*position);
        self.moved.insert(log);
        if self.positions.len() > POSITIONS_MAX {
            // Any will do: a peer whose position is forgotten is compared with instead.
            let other = self.positions.keys().copied().find(|other| *other != log);
            if let Some(other) = other {
                self.positions.remove(&other);
                self.moved.insert(other);
            }
        }
    }

    /// Whether a range may be settled by what a peer covers there: all of it is told, and can be recorded.
    pub(crate) fn may_settle(&self, base: &Base) -> bool {
        base.is_whole && self.seen.has_room(&base.pending)
    }

    /// Merges a peer's full listing of a range: its rows, and an empty row for every other key. From then on the
    /// range is covered by what the peer covered. `rows` are accepted ones.
    pub(crate) fn settle(&mut self, now: Time, range: Range, rows: &[Row], base: &Base, source: Source) {
        let covers_any = !base.vector.dots.is_empty() || !base.pending.is_empty();
        let slots = if covers_any { self.slots(range) } else { Vec::new() };
        if !slots.is_empty() {
            let listed: BTreeSet<&[u8]> = rows.iter().map(|row| row.held.key()).collect();
            for slot in slots {
                let held = self.slab.at(slot).held.clone();
                if !listed.contains(held.key()) {
                    let empty = Held::Nothing(Record::bare(held.key()));
                    let place = self.hash_key.place(held.key());
                    self.merge(now, &empty, place, source, |stamp| base.covers(held.key(), stamp));
                }
            }
        }
        self.merge_rows(now, rows, source, |_| ());
        self.cover_range(range, base);
        for row in rows {
            if !Arc::ptr_eq(&row.vector, &base.vector) || row.context.is_some() {
                self.cover_row(row);
            }
        }
    }

    /// Records that a range is equal to a peer's.
    pub(crate) fn cover_range(&mut self, range: Range, base: &Base) {
        if self.controls.has(Control::NoSettled) || self.controls.has(Control::NoCloud) {
            return;
        }
        let excess = self.seen.excess(&base.vector);
        self.seen.cover_range(range, &excess);
        let is_joined = !self.controls.has(Control::LeftoversNarrowed);
        let cover = if is_joined { Seen::cover_pending } else { Seen::cover_narrowed };
        base.pending.iter().for_each(|pending| cover(&mut self.seen, range, pending));
    }

    // The one change.

    /// Replaces what a key holds, moves it to the end of the log, and keeps digest, order and expiries in step.
    fn apply(&mut self, at: Option<u32>, place: Place, held: Held, source: Source) -> u64 {
        let revision = self.log.head() + 1;
        let at = if let Some(at) = at {
            self.log.take_out(self.slab.at(at).revision);
            self.replace(at, place, held);
            at
        } else {
            self.add(place, held)
        };
        let slot = self.slab.at_mut(at);
        slot.move_to(revision, source);
        let is_removal = slot.held.is_empty();
        self.log.append(at, is_removal, source)
    }

    /// Takes in a key that has no slot yet.
    fn add(&mut self, place: Place, held: Held) -> u32 {
        let hash = held.hash(self.hash_key, place);
        let expiring = expiring(&held);
        self.bytes += held.bytes();
        let is_empty = held.is_empty();
        let at = self.slab.insert(Slot::new(held));
        let (slab, hash_key) = (&self.slab, self.hash_key);
        let hashes = |rows: Vec<&Slot>| rows.into_iter().map(|row| row.hash(hash_key)).collect();
        self.digest.insert(place, at, hash, |slots| hashes(slab.many(slots.iter().copied())));
        if !is_empty {
            self.order.insert(at, &self.slab);
        }
        self.schedule(at, expiring, true);
        at
    }

    /// Replaces what a key holds, in everything but the log.
    fn replace(&mut self, at: u32, place: Place, held: Held) {
        let (was_empty, is_empty) = (self.slab.at(at).held.is_empty(), held.is_empty());
        if is_empty && !was_empty {
            self.order.remove(held.key(), &self.slab);
        }
        let new = held.hash(self.hash_key, place);
        let mut come = expiring(&held);
        self.bytes += held.bytes();
        let old = std::mem::replace(&mut self.slab.at_mut(at).held, held);
        self.digest.change(place, old.hash(self.hash_key, place), new);
        self.keep(at, place, &old);
        self.bytes -= old.bytes();
        let mut gone = expiring(&old);
        gone.retain(|dot| !come.contains(dot));
        come.retain(|(_, stamp)| !old.holds(*stamp));
        self.schedule(at, come, true);
        self.schedule(at, gone, false);
        if was_empty && !is_empty {
            self.order.insert(at, &self.slab);
        }
    }

    /// What a key no longer holds stays covered.
    fn keep(&mut self, at: u32, place: Place, old: &Held) {
        if self.seen.is_settled() || self.controls.has(Control::NoKeep) || self.controls.has(Control::NoCloud)
        {
            return;
        }
        let held = &self.slab.at(at).held;
        let gone = old.dots().iter().map(Record::stamp).filter(|stamp| !held.implies(*stamp));
        gone.for_each(|stamp| self.seen.keep(held.key(), place, stamp));
    }

    fn find(&self, key: &[u8], place: Place) -> Option<u32> {
        self.digest.find(place, |slot| self.slab.at(slot).held.key() == key)
    }

    /// Forgets the oldest removals beyond the limit, and raises the floor past them.
    pub(crate) fn trim(&mut self) {
        while self.log.removals() > self.removals_max {
            let Some(oldest) = self.log.oldest_removal() else { return };
            if self.disk.is_some_and(|disk| disk < oldest) {
                return;
            }
            let slot = self.log.slot(oldest).expect("a removal has its row");
            self.log.take_out(oldest);
            self.log.raise_floor(oldest);
            let place = self.hash_key.place(self.slab.at(slot).held.key());
            self.digest.remove(place, slot);
            self.slab.remove(slot);
        }
    }

    /// The disk has everything up to this revision.
    pub(crate) fn persisted(&mut self, revision: u64) {
        self.disk = self.disk.max(Some(revision));
        self.trim();
    }
}

/// The dots that will expire, and when.
fn expiring(held: &Held) -> Vec<(u64, Stamp)> {
    held.dots().iter().filter(|dot| dot.expires() != 0).map(|dot| (dot.expires(), dot.stamp())).collect()
}

#[cfg(feature = "__measures")]
impl Store {
    /// What overwriting every row once costs the digest, with the hash of the key, which finds the row as well.
    pub(crate) fn churn_digest(&mut self) {
        let slots: Vec<u32> = self.log.after(0).map(|(_, slot)| slot).collect();
        for at in slots {
            let held = &self.slab.at(at).held;
            let place = self.hash_key.place(held.key());
            let hash = |place: &Place| held.hash(self.hash_key, *std::hint::black_box(place));
            let (old, new) = (hash(&place), hash(&place));
            self.digest.change(place, old, new);
        }
    }
}

#[cfg(feature = "__controls")]
impl Store {
    /// Loses an entry, as a bug or a bit flip would: nothing else notices.
    pub(crate) fn lose(&mut self, key: &[u8]) -> bool {
        let place = self.hash_key.place(key);
        let Some(at) = self.find(key, place).filter(|at| !self.slab.at(*at).held.is_empty()) else {
            return false;
        };
        self.order.remove(key, &self.slab);
        self.digest.lose(place, at);
        self.log.take_out(self.slab.at(at).revision);
        let held = self.slab.at(at).held.clone();
        self.schedule(at, expiring(&held), false);
        self.slab.remove(at);
        true
    }

    /// Loses an entry and takes it out of the digest: nothing here can notice.
    pub(crate) fn misplace(&mut self, key: &[u8]) -> bool {
        let place = self.hash_key.place(key);
        let Some(at) = self.find(key, place).filter(|at| !self.slab.at(*at).held.is_empty()) else {
            return false;
        };
        self.replace(at, place, Held::Nothing(Record::bare(key)));
        self.log.mark_removal(self.slab.at(at).revision);
        true
    }

    /// Changes a value by one bit.
    pub(crate) fn flip(&mut self, key: &[u8]) -> bool {
        let Some(at) = self.find(key, self.hash_key.place(key)) else { return false };
        let dots: Vec<Record> = self.slab.at(at).held.dots().iter().map(Record::damaged).collect();
        let changed = !dots.is_empty();
        self.slab.at_mut(at).held = Held::from_records(key, dots);
        changed
    }
}
