//! The disk: one more follower of the change log.
//!
//! [`Replica::persist`] returns what has changed since the last transaction. Rows are collected in parts of about two
//! thousand, so that writers never wait long. The last part adds the rows that changed meanwhile and the claims as of
//! that moment. All parts must be written in one transaction: then the stored `Coverage` is never ahead of the stored
//! rows, nor the rows ahead of it. While a transaction is under way the log coalesces changes for the next one.
//!
//! A disk failure is reported with [`Input::PersistFailed`](crate::core::Input::PersistFailed). From then on this
//! replica refuses local writes, but goes on reading and replicating. It forgets nothing that was not acknowledged by
//! the disk, so the first transaction after [`Input::DiskBack`](crate::core::Input::DiskBack) contains all of it again,
//! whatever became of the failed one.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "durable")]
use super::{Output, ReplicaEvent};
use super::{Replica, VOTER_MEMO};
use crate::controls::Control;
use crate::election::{Elections, VoterMemo};
use crate::error::WriteError;
use crate::id::{LogId, RowId};
use crate::replica::saved::{self, DiskChange, DiskSummary, Saved, StoredVectorSum};
use crate::store::coverage::{Clocks, RegionCoverage, Vector};
use crate::store::digest::HashKey;
use crate::store::entry::{DotSet, Revision};
use crate::store::{DiskFollower, ExpiredKeys, LocalStore, PeerPositions};

/// Rows in one part of a transaction, except for the last: a writer waits for about a tenth of a millisecond. With
/// fewer rows a writer waits more often, and each wake-up costs more than the rows do.
const TRANSACTION_PART_ROWS: usize = 2_048;

/// A part of a transaction for the disk.
#[derive(Clone, Debug)]
pub struct Persist {
    begins: bool,
    is_whole: bool,
    rows: Vec<DotSet>,
    metadata: Option<Box<DiskMetadata>>,
}

/// The claims at the moment of a transaction's last part.
#[derive(Clone, Debug)]
struct DiskMetadata {
    vector: Clocks,
    /// Contexts beyond the vector. `None`: the disk has them.
    extra_regions: Option<Vec<RegionCoverage>>,
    positions: Vec<(LogId, Option<u64>)>,
    memos: Vec<(String, Option<Vec<u8>>)>,
    state: DiskSummary,
}

impl Persist {
    /// A new transaction begins: parts of an earlier one that had no end are void.
    pub fn begins(&self) -> bool {
        self.begins
    }

    /// The transaction replaces everything stored before.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The transaction is complete: write all its parts at once, and answer with
    /// [`Input::Persisted`](crate::core::Input::Persisted) when they are safe.
    pub fn ends(&self) -> bool {
        self.metadata.is_some()
    }

    /// What the disk is to put and to remove. A key may stand in a transaction twice: the later change counts.
    pub fn changes(&self) -> impl Iterator<Item = DiskChange> {
        self.rows.iter().map(saved::encode_row).chain(self.metadata())
    }

    /// The rows among the changes.
    #[cfg(feature = "durable")]
    pub(crate) fn rows(&self) -> &[DotSet] {
        &self.rows
    }

    /// All other changes.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = DiskChange> {
        self.metadata.iter().flat_map(|metadata| {
            let seen =
                metadata.vector.iter().map(|(origin, clock)| saved::encode_vector_entry(origin, clock));
            let positions = metadata.positions.iter().map(|(log, at)| saved::encode_position(*log, *at));
            let memos = metadata.memos.iter().map(|(name, memo)| saved::encode_memo(name, memo.as_deref()));
            let extra = metadata.extra_regions.iter().map(|regions| saved::encode_extra_regions(regions));
            let summary = std::iter::once(saved::encode_summary(&metadata.state));
            seen.chain(positions).chain(memos).chain(extra).chain(summary)
        })
    }

    /// Drops the rows and leaves the claims: a deliberate fault for tests.
    #[cfg(feature = "__controls")]
    pub(crate) fn forget_rows(&mut self) {
        self.rows.clear();
    }
}

/// How far a transaction reached in everything that the disk follows.
#[derive(Clone, Debug)]
struct DiskMark {
    head: u64,
    vector: Vector,
    withheld: Clocks,
    extra: ExtraMark,
    hash_key: HashKey,
    memos: u64,
}

/// The contexts beyond the vector that the disk has.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ExtraMark {
    /// [`Coverage::extra_changes`](crate::store::coverage::Coverage::extra_changes) when they were written.
    changes: u64,
    /// As how many they were written. What is loaded from a disk may be kept as fewer.
    stored: u64,
}

/// A transaction whose rows are being collected.
#[derive(Debug)]
struct Staging {
    log: LogId,
    /// The log position that its parts have reached.
    cursor: u64,
    /// The log's head when it began. Later rows are left to the last part.
    goal: u64,
}

/// A transaction on its way to the disk, and what it takes to begin it again.
#[derive(Debug)]
struct Flight {
    log: LogId,
    before: Option<DiskMark>,
    mark: DiskMark,
    expired_keys: Vec<Vec<u8>>,
    changed_positions: BTreeSet<LogId>,
    changed: BTreeSet<String>,
}

/// Progress of a copy of everything, which is taken in parts.
#[cfg(feature = "durable")]
#[derive(Debug, Default)]
pub(crate) struct SnapshotCursor {
    cursor: DiskCursor,
    marks: (LogId, u64, u64),
}

/// The disk's position in the change log, and the memos.
#[derive(Debug, Default)]
pub(super) struct DiskCursor {
    /// What the last transaction reached. `None` if the next one has to write everything.
    last_transaction: Option<DiskMark>,
    staging: Option<Staging>,
    flight: Option<Flight>,
    /// The log position that the disk has acknowledged, and the count of memo changes that it has.
    safe: Option<(Revision, u64)>,
    memos: BTreeMap<String, Vec<u8>>,
    /// Memos that changed since the last transaction, and the number of changes so far.
    changed: BTreeSet<String>,
    changes: u64,
}

impl DiskCursor {
    /// The number of memo changes so far, and how many of them the disk has.
    pub(super) fn memo_marks(&self) -> (u64, u64) {
        (self.changes, self.safe.map_or(0, |(_, memos)| memos))
    }

    pub(super) fn memo(&self, name: &str) -> Option<&[u8]> {
        self.memos.get(name).map(Vec::as_slice)
    }

    fn mark(&self, store: &LocalStore) -> DiskMark {
        DiskMark {
            head: store.log.head(),
            vector: store.coverage.vector().clone(),
            withheld: store.coverage.withheld().clone(),
            extra: self.extra_mark(store),
            hash_key: store.hash_key,
            memos: self.changes,
        }
    }

    /// The contexts that the disk has after a transaction that ends now.
    fn extra_mark(&self, store: &LocalStore) -> ExtraMark {
        let (changes, count) = (store.coverage.extra_changes(), store.coverage.extra_count());
        let known = self.last_transaction.as_ref().map(|base| base.extra);
        let unchanged = known.filter(|extra| extra.changes == changes);
        unchanged.unwrap_or(ExtraMark { changes, stored: count as u64 })
    }

    /// Whether anything has changed since a transaction that reached `base`. Asked after every step.
    fn is_past(&self, base: &DiskMark, store: &LocalStore) -> bool {
        base.head != store.log.head()
            || base.extra.changes != store.coverage.extra_changes()
            || base.hash_key != store.hash_key
            || base.memos != self.changes
            || !store.coverage.claims_since(&base.vector, &base.withheld).is_empty()
    }

    /// The next part of a transaction.
    fn part(&mut self, store: &LocalStore, rows_max: usize) -> Persist {
        let is_whole = self.last_transaction.is_none();
        let begins = self.staging.as_ref().is_none_or(|staging| staging.log != store.log.id);
        if begins {
            let cursor = self.last_transaction.as_ref().map_or(0, |base| base.head);
            self.staging = Some(Staging { log: store.log.id, cursor, goal: store.log.head() });
        }
        let staging = self.staging.as_mut().expect("just made sure");
        let mut later = store.log.rows_after(staging.cursor);
        let part: Vec<(u64, RowId)> = later.by_ref().take(rows_max).collect();
        let dot_set = |rows: Vec<(u64, RowId)>| {
            let rows = store.many(rows.into_iter().map(|(_, id)| id));
            rows.into_iter().map(|row| row.dot_set.clone()).collect()
        };
        let is_full = part.len() == rows_max;
        if let Some((last, _)) = part.last().filter(|(last, _)| is_full && *last < staging.goal) {
            staging.cursor = *last;
            return Persist { begins, is_whole, rows: dot_set(part), metadata: None };
        }
        let rows = dot_set(part.into_iter().chain(later).collect());
        self.staging = None;
        Persist { begins, is_whole, rows, metadata: Some(Box::new(self.metadata(store))) }
    }

    /// The claims as of now.
    fn metadata(&self, store: &LocalStore) -> DiskMetadata {
        let is_whole = self.last_transaction.is_none();
        let logs = if is_whole {
            store.peer_positions.logs().collect()
        } else {
            store.peer_positions.changed().clone()
        };
        let names = if is_whole { self.memos.keys().cloned().collect() } else { self.changed.clone() };
        let position = |log| (log, store.peer_positions.known(log));
        let memo = |name| (self.memos.get(&name).cloned(), name);
        let vector = match &self.last_transaction {
            Some(base) => store.coverage.claims_since(&base.vector, &base.withheld),
            None => store.coverage.vector_with_withheld(),
        };
        let extra = self.extra_mark(store);
        let is_extra_known = self.last_transaction.as_ref().is_some_and(|base| base.extra == extra);
        DiskMetadata {
            vector,
            extra_regions: (!is_extra_known).then(|| store.coverage.extra_regions()),
            positions: logs.into_iter().map(position).collect(),
            memos: names.into_iter().map(memo).map(|(memo, name)| (name, memo)).collect(),
            state: DiskSummary {
                hash_key: store.hash_key,
                clock: store.clock.last(),
                run: store.run,
                root: store.root().sum(),
                vector_sum: StoredVectorSum::Second(store.coverage.sum_with_withheld()),
                extra_regions: extra.stored,
                has_voter_times: VoterMemo::read(self.memo(VOTER_MEMO)).map_or(true, |memo| memo.has_times()),
            },
        }
    }

    /// The next transaction has to write everything.
    pub(super) fn require_full_write(&mut self) {
        self.last_transaction = None;
        self.safe = None;
    }
}

impl Replica {
    pub(super) fn load(&mut self, saved: Saved) {
        let Saved { rows, vector: seen, extra_regions, positions, memos, state: Some(state), is_copy } =
            saved
        else {
            return;
        };
        let store = &mut self.store;
        store.hash_key = state.hash_key;
        store.coverage.rekey(state.hash_key, std::iter::empty());
        store.clock.load(state.clock);
        if store.controls.has(Control::OldOrigin) {
            store.run = state.run;
        }
        store.coverage.load(&seen, &extra_regions);
        store.fill(rows);
        if !positions.is_empty() {
            self.wall_clock.note_others();
        }
        store.peer_positions = PeerPositions::loaded(positions);
        store.log.raise_floor(store.log.head().max(1));
        self.disk.memos = memos;
        if store.disk != DiskFollower::NoDisk && !is_copy {
            let mut mark = self.disk.mark(store);
            mark.extra.stored = state.extra_regions;
            store.disk = DiskFollower::At(mark.head);
            self.disk.safe = Some((Revision { log: store.log.id, number: mark.head }, 0));
            self.disk.last_transaction = Some(mark);
        }
        store.is_damaged = store.root().sum() != state.root && !store.controls.has(Control::SeenAhead);
        self.load_away_times();
        self.recover_from_damage();
    }

    /// Whether what it was made from is damaged. For the time before its first output is polled.
    #[cfg(feature = "durable")]
    pub(crate) fn found_damage(&self) -> bool {
        self.outputs.iter().any(|output| matches!(output, Output::Event(ReplicaEvent::Damaged)))
    }

    /// The next part of what the disk is to write, if something has changed and no transaction is under way.
    pub fn persist(&mut self) -> Option<Persist> {
        if !self.wants_disk() {
            return None;
        }
        let (store, disk) = (&mut self.store, &mut self.disk);
        if let ExpiredKeys::TooMany = store.expired_keys {
            store.expired_keys = ExpiredKeys::Listed(Vec::new());
            (disk.last_transaction, disk.staging) = (None, None);
        }
        let mut part = disk.part(store, TRANSACTION_PART_ROWS);
        if part.ends() {
            let dropped = store.expired_keys.take();
            part.rows.extend(dropped.iter().map(|key| store.dot_set_or_empty(key)));
            let mark = disk.mark(store);
            let before = disk.last_transaction.replace(mark.clone());
            let (moved, changed) = (store.peer_positions.take_changed(), std::mem::take(&mut disk.changed));
            disk.flight = Some(Flight {
                log: store.log.id,
                before,
                mark,
                expired_keys: dropped,
                changed_positions: moved,
                changed,
            });
        }
        Some(part)
    }

    /// The next part of a copy of everything. `None` in place of a later part: the copy must start again, because the
    /// log was replaced, its floor rose, or rows expired, so changes to rows in earlier parts may be lost.
    #[cfg(feature = "durable")]
    pub(crate) fn copy(&self, copy: &mut SnapshotCursor, rows_max: usize) -> Option<Persist> {
        let marks = (self.store.log.id, self.store.log.floor(), self.store.expiry_count);
        if copy.cursor.staging.is_some() && copy.marks != marks {
            *copy = SnapshotCursor::default();
            return None;
        }
        copy.marks = marks;
        Some(copy.cursor.part(&self.store, rows_max))
    }

    /// Whether there is something for the disk to do now.
    pub(crate) fn wants_disk(&self) -> bool {
        let disk = &self.disk;
        let is_ready = matches!(self.store.disk, DiskFollower::At(_)) && disk.flight.is_none();
        is_ready
            && (disk.staging.is_some()
                || !self.store.expired_keys.is_empty()
                || disk.last_transaction.as_ref().is_none_or(|base| disk.is_past(base, &self.store)))
    }

    pub(super) fn on_persisted(&mut self) {
        let Some(flight) = self.disk.flight.take() else { return };
        // After damage there is a new log, of which the disk has nothing yet.
        if flight.log == self.store.log.id {
            self.disk.safe =
                Some((Revision { log: flight.log, number: flight.mark.head }, flight.mark.memos));
            self.store.advance_disk(flight.mark.head);
        }
        self.keep_promises();
    }

    /// Puts the changes of the failed transaction back, for the first one after the disk is back. Until then the log
    /// retains no removals for the disk.
    pub(super) fn on_persist_failed(&mut self) {
        let (store, disk) = (&mut self.store, &mut self.disk);
        self.promises.clear();
        self.election.iter_mut().for_each(Elections::on_disk_failed);
        disk.staging = None;
        if let Some(flight) = disk.flight.take() {
            if let ExpiredKeys::Listed(keys) = &mut store.expired_keys {
                keys.extend(flight.expired_keys);
            }
            store.peer_positions.put_changed_back(flight.changed_positions);
            disk.changed.extend(flight.changed);
            disk.last_transaction = flight.before.filter(|_| flight.log == store.log.id);
        }
        store.disk = DiskFollower::Failed;
    }

    pub(super) fn on_disk_back(&mut self) {
        let (store, disk) = (&mut self.store, &mut self.disk);
        self.election.iter_mut().for_each(Elections::on_disk_back);
        // Removals that the log has forgotten meanwhile cannot be replayed: then everything is written again.
        disk.last_transaction.take_if(|base| base.head < store.log.floor());
        store.disk = DiskFollower::At(disk.last_transaction.as_ref().map_or(0, |base| base.head));
    }

    /// Refuses local writes while the disk has failed.
    pub(super) fn check_disk_usable(&self) -> Result<(), WriteError> {
        if self.has_disk_failed() { Err(WriteError::Disk) } else { Ok(()) }
    }

    /// Whether there is a disk, working or not.
    pub(super) fn has_disk(&self) -> bool {
        self.store.disk != DiskFollower::NoDisk
    }

    /// Whether the disk has failed and is not back.
    pub fn has_disk_failed(&self) -> bool {
        self.store.disk == DiskFollower::Failed
    }

    /// The revision up to which the disk has the change log. `None` without a disk, or before its first transaction.
    pub fn durable(&self) -> Option<Revision> {
        self.disk.safe.map(|(revision, _)| revision)
    }

    // Memos: values that a protocol needs again after a restart, such as a promise.

    /// Stores a memo under a name, or removes it. Messages that depend on it must not be sent before
    /// [`Replica::are_memos_safe`].
    pub fn set_memo(&mut self, name: &str, memo: Option<&[u8]>) {
        if self.note_memo(name, memo) {
            self.disk.changes += 1;
        }
    }

    /// As [`Replica::set_memo`], for a memo that nobody waits for: it goes to the disk with the next transaction and
    /// begins none. Returns whether it has changed.
    pub(super) fn note_memo(&mut self, name: &str, memo: Option<&[u8]>) -> bool {
        let memos = &mut self.disk.memos;
        let old = match memo {
            Some(memo) => memos.insert(name.to_owned(), memo.to_vec()),
            None => memos.remove(name),
        };
        let has_changed = old.as_deref() != memo;
        if has_changed {
            self.disk.changed.insert(name.to_owned());
        }
        has_changed
    }

    /// The memo stored under a name, in this run or an earlier one.
    pub fn memo(&self, name: &str) -> Option<&[u8]> {
        self.disk.memo(name)
    }

    /// Whether the disk has all memos, so that they survive a crash. Always true without a disk.
    pub fn are_memos_safe(&self) -> bool {
        !self.has_disk() || self.disk.safe.map_or(0, |(_, memos)| memos) == self.disk.changes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::replica::{Input, PutOptions, Setup};
    use crate::store::DROPPED_MAX;
    use crate::time::Time;

    #[test]
    fn expiry_during_a_disk_failure_is_bounded_and_written_later() {
        let at = |seconds| Time {
            mono: Duration::from_secs(seconds),
            wall: Duration::from_secs(1_000_000 + seconds),
        };
        let mut replica = Replica::new(Setup { has_disk: true, ..Setup::new(Config::lan(), 1) });
        let write = |replica: &mut Replica, now| -> bool {
            let parts: Vec<Persist> = std::iter::from_fn(|| replica.persist()).collect();
            replica.handle(now, Input::Persisted);
            parts.first().is_some_and(Persist::is_whole)
        };
        let ttl = PutOptions::new().ttl(Duration::from_secs(1));
        replica.put(at(0), "stays", b"v").unwrap();
        for (began, count, is_whole) in [(0, 10, false), (10_000, DROPPED_MAX + 1, true)] {
            for i in 0..count {
                replica.put_with(at(began), &format!("{i}"), b"v", &ttl).unwrap();
            }
            write(&mut replica, at(began));
            replica.handle(at(began), Input::PersistFailed);
            let later = at(began + 1_000);
            for _ in 0..count {
                if replica.store.limited_dots() == 0 {
                    break;
                }
                replica.handle(later, Input::Wake);
            }
            assert!(replica.len() == 1 && replica.persist().is_none());
            assert_eq!(matches!(replica.store.expired_keys, ExpiredKeys::TooMany), is_whole);
            replica.handle(later, Input::DiskBack);
            assert_eq!(write(&mut replica, later), is_whole);
            assert!(replica.persist().is_none() && replica.store.expired_keys.is_empty());
        }
    }

    #[test]
    fn contexts_are_written_only_when_they_have_changed() {
        const CONTEXTS: u64 = 30_000;
        let mut replica = Replica::new(Setup { has_disk: true, ..Setup::new(Config::lan(), 1) });
        let cover = |replica: &mut Replica, i: u64| {
            let key = i.to_le_bytes();
            let place = replica.store.hash_key.place(&key);
            let context = Clocks::from_iter([(crate::id::RunId::new(2), 7)]);
            replica.store.coverage.cover_key(&key, place, &context);
        };
        // The bytes of a transaction, and how many contexts the disk has after it.
        let mut disk = BTreeMap::new();
        let mut write = |replica: &mut Replica| {
            let parts: Vec<Persist> = std::iter::from_fn(|| replica.persist()).collect();
            replica.handle(Time::default(), Input::Persisted);
            let changes: Vec<_> = parts.iter().flat_map(Persist::changes).collect();
            let bytes: usize =
                changes.iter().map(|(key, it)| key.len() + it.as_ref().map_or(0, Vec::len)).sum();
            for (key, value) in changes {
                match value {
                    Some(value) => _ = disk.insert(key, value),
                    None => _ = disk.remove(&key),
                }
            }
            let entries = disk.iter().map(|(key, value)| Ok((key.as_slice(), value.as_slice())));
            let saved = Saved::read::<crate::replica::saved::SavedError, _>(entries).expect("it adds up");
            (bytes, saved.extra_regions.len() as u64, saved)
        };
        (0..CONTEXTS).for_each(|i| cover(&mut replica, i));
        let (bytes, contexts, _) = write(&mut replica);
        assert!(bytes as u64 > CONTEXTS && contexts == CONTEXTS);
        replica.put(Time::default(), "k", b"v").unwrap();
        let (bytes, contexts, _) = write(&mut replica);
        assert!(bytes < 1_024 && contexts == CONTEXTS, "{bytes} bytes, {contexts} contexts");
        cover(&mut replica, CONTEXTS);
        let (bytes, contexts, saved) = write(&mut replica);
        assert!(bytes as u64 > CONTEXTS && contexts == CONTEXTS + 1);

        let setup = Setup { has_disk: true, saved: Some(saved), ..Setup::new(Config::lan(), 2) };
        let mut replica = Replica::new(setup);
        replica.put(Time::default(), "k", b"v").unwrap();
        let (bytes, contexts, _) = write(&mut replica);
        assert!(bytes < 1_024 && contexts == CONTEXTS + 1, "{bytes} bytes, {contexts} contexts");
    }
}
