//! The user's operations on a replica: reads, writes, watches and sets. Counters and batches have modules of their own.

#[cfg(any(feature = "json", feature = "node"))]
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

#[cfg(feature = "json")]
use crdts::CvRDT;
use serde::{Deserialize, Serialize};

use super::Replica;
#[cfg(any(feature = "json", feature = "node"))]
use super::link::Link;
#[cfg(any(feature = "json", feature = "node"))]
use crate::controls::Control;
use crate::error::WriteError;
use crate::form;
use crate::id::RunId;
use crate::store::OnlyIf;
#[cfg(feature = "json")]
use crate::store::WholeLook;
#[cfg(any(feature = "json", feature = "node"))]
use crate::store::coverage::Clocks;
#[cfg(feature = "json")]
use crate::store::entry::Revision;
use crate::store::entry::{DotSet, EXPIRY_MS_MIN, Entry};
use crate::store::key::{self, Space};
use crate::store::watch::{WatchEvent, WatchId, WatchOptions};
#[cfg(any(feature = "json", feature = "node"))]
use crate::store::{MissingOrigin, RestFrom};
use crate::time::{Lifetime, Stamp, Time};

/// The longest page of a listing.
const PAGE_ROWS_MAX: usize = 1_024;

impl Replica {
    /// Puts a value.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&mut self, now: Time, key: &str, value: &[u8]) -> Result<Stamp, WriteError> {
        self.put_with(now, key, value, &PutOptions::new())
    }

    /// Puts a value under a condition, or with a time to live.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_with(
        &mut self,
        now: Time,
        key: &str,
        value: &[u8],
        options: &PutOptions,
    ) -> Result<Stamp, WriteError> {
        self.check_writable(now)?;
        key::check_key(key.as_bytes())?;
        self.store.check_value_bytes(value.len())?;
        self.check_valid(key, value)?;
        let mut stored = Vec::with_capacity(1 + key.len());
        key::register_key(key, &mut stored);
        if let Some(only_if) = options.only_if {
            self.store.check_condition(now, &stored, only_if)?;
        }
        self.check_room(&stored, value.len())?;
        let lifetime = options.lifetime(now, self.store.first_run);
        Ok(self.write_put(now, &stored, value, lifetime))
    }

    /// Deletes a key: the values that it holds here are removed everywhere, for good. `None` if it holds nothing.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&mut self, now: Time, key: &str) -> Result<Option<Stamp>, WriteError> {
        self.delete_when(now, key, None)
    }

    /// Deletes a key under a condition, which is checked against what is held here.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete_if(&mut self, now: Time, key: &str, only_if: OnlyIf) -> Result<Option<Stamp>, WriteError> {
        self.delete_when(now, key, Some(only_if))
    }

    fn delete_when(
        &mut self,
        now: Time,
        key: &str,
        only_if: Option<OnlyIf>,
    ) -> Result<Option<Stamp>, WriteError> {
        self.check_writable(now)?;
        key::check_key(key.as_bytes())?;
        let mut stored = Vec::with_capacity(1 + key.len());
        key::register_key(key, &mut stored);
        if let Some(only_if) = only_if {
            self.store.check_condition(now, &stored, only_if)?;
        }
        Ok(self.write_delete(now, &stored))
    }

    /// The value of a key.
    pub fn get(&self, now: Time, key: &str) -> Option<Entry> {
        let mut stored = Vec::with_capacity(1 + key.len());
        key::register_key(key, &mut stored);
        let (dot_set, revision) = self.store.dot_set(&stored)?;
        self.entry_of(now, dot_set, revision)
    }

    /// All entries whose key begins like this, in key order.
    pub fn scan(&self, now: Time, prefix: &str) -> Vec<Entry> {
        let mut stored = Vec::new();
        key::register_key(prefix, &mut stored);
        self.store
            .with_prefix(&stored)
            .filter_map(|(dot_set, revision)| self.entry_of(now, dot_set, revision))
            .collect()
    }

    /// The same with its instant, and what is missing at these entries and at the keys `held`. If anything is, a part
    /// of what another node has written in one batch may still be arriving.
    #[cfg(feature = "json")]
    pub(crate) fn scan_whole(&self, now: Time, prefix: &str, held: &[String]) -> WholeLook {
        let entries = self.scan(now, prefix);
        let keys = entries.iter().map(Entry::key).chain(held.iter().map(String::as_str));
        let claimed = self.claimed_below(&key::register(prefix));
        let mut missing = Clocks::default();
        keys.map(key::register).for_each(|key| missing.merge(self.store.missing(&key, &claimed)));
        let revision = Revision { log: self.store.log.id, number: self.store.log.head() };
        WholeLook::new(entries, Vec::new(), revision, self.missing_origins(&missing, &claimed))
    }

    /// See [`LocalStore::changes_whole`].
    #[cfg(feature = "json")]
    pub(crate) fn changes_whole(&self, now: Time, prefix: &str, since: Revision) -> Option<WholeLook> {
        let prefix = key::register(prefix);
        let claimed = self.claimed_below(&prefix);
        let origins = |missing: &Clocks| self.missing_origins(missing, &claimed);
        self.store.changes_whole(now, &prefix, since, &claimed, origins)
    }

    /// For each peer whose claim waits for large rows, none of them at a stored key with this prefix: the claim. All that
    /// the peer wrote up to there has arrived below the prefix.
    #[cfg(any(feature = "json", feature = "node"))]
    pub(crate) fn claimed_below(&self, prefix: &[u8]) -> Clocks {
        let claims = self
            .links
            .values()
            .filter_map(|link| link.tail_receiver.claim_below(self.store.controls, prefix));
        claims.map(|Stamp { clock, origin }| (origin, clock)).collect()
    }

    /// What is known of the origins of what a look lacks. `claimed`: see [`Replica::claimed_below`].
    #[cfg(any(feature = "json", feature = "node"))]
    pub(crate) fn missing_origins(&self, missing: &Clocks, claimed: &Clocks) -> Vec<MissingOrigin> {
        // Nearly always.
        if missing.is_empty() {
            return Vec::new();
        }
        let mut pieces: BTreeMap<RunId, u64> = BTreeMap::new();
        for link in self.links.values() {
            let Some((log, run)) = link.peer else { continue };
            for origin in link.tail_receiver.awaited_origins(self.store.controls, link.tail_peer(log, run)) {
                *pieces.entry(origin).or_default() += link.tail_receiver.pieces;
            }
        }
        let vector = self.store.coverage.vector();
        let anew = if self.store.controls.has(Control::OverdueAnew) { self.store.log.head() } else { 0 };
        let missing_origin = |(origin, _)| MissingOrigin {
            origin,
            reached: vector.get(origin).max(claimed.get(origin)) + anew,
            pieces: pieces.get(&origin).copied().unwrap_or_default(),
            rest: self.rest_from(origin, pieces.contains_key(&origin)),
        };
        missing.iter().map(missing_origin).collect()
    }

    #[cfg(any(feature = "json", feature = "node"))]
    fn rest_from(&self, origin: RunId, is_claimed: bool) -> RestFrom {
        if self.store.controls.has(Control::PartAfterTime) {
            return RestFrom::Nobody;
        }
        let reached = self.store.coverage.vector().get(origin);
        let mut sessions = self.links.values().filter_map(|link| link.repair.session.as_ref());
        if sessions.any(|session| session.will_claim(origin) > reached) {
            return RestFrom::Repair;
        }
        let is_peer = |link: &Link| link.peer.is_some_and(|(_, run)| run == origin);
        let is_reached = self.is_living(self.run_of_origin(origin)) || self.links.values().any(is_peer);
        // Until it has caught up, any peer may hold the rest.
        let is_fed = self.is_joining() && self.links.len() > 0;
        if is_claimed || is_reached || is_fed { RestFrom::Tail } else { RestFrom::Nobody }
    }

    /// The first `rows` entries (at most [`PAGE_ROWS_MAX`]) whose stored key begins with `prefix` and comes behind `after`.
    pub(crate) fn page(&self, now: Time, prefix: &[u8], after: Option<&[u8]>, rows: usize) -> Vec<Entry> {
        // The least key that is greater than `after`.
        let next = after.map_or_else(Vec::new, |after| [after, &[0]].concat());
        let below = self
            .store
            .iter_from(next.as_slice().max(prefix))
            .take_while(|(dot_set, _)| dot_set.key().starts_with(prefix));
        let entries = below.filter_map(|(dot_set, revision)| self.entry_of(now, dot_set, revision));
        entries.take(rows.min(PAGE_ROWS_MAX)).collect()
    }

    fn entry_of(&self, now: Time, dot_set: &DotSet, number: u64) -> Option<Entry> {
        self.store.entry(now, dot_set, number)
    }

    /// How many entries are held, those of sets and counters included.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a local write while the disk has failed, the clock is in doubt, stamps are ahead of it, or the cluster
    /// lags.
    pub(super) fn check_writable(&mut self, now: Time) -> Result<(), WriteError> {
        self.check_disk_usable()?;
        self.look_at_clock(now);
        if self.wall_clock.is_doubted() {
            return Err(WriteError::Clock { off: self.wall_clock.off() });
        }
        if let Some(off) = self.store.stamps_ahead(now) {
            return Err(WriteError::Clock { off });
        }
        if !self.is_busy(now) {
            return Ok(());
        }
        self.write_limiter.count_refused();
        Err(WriteError::Busy)
    }

    /// Refuses a put that would let the store grow beyond its limit.
    pub(super) fn check_room(&self, stored: &[u8], value_bytes: usize) -> Result<(), WriteError> {
        self.store.check_room(std::iter::once((stored, Some(value_bytes))))
    }

    pub(super) fn write_put(&mut self, now: Time, stored: &[u8], value: &[u8], lifetime: Lifetime) -> Stamp {
        self.write_limiter.count_written(now.mono, (stored.len() + value.len()) as u64);
        let (stamp, _) = self.store.put(now, stored, value, lifetime);
        self.judge_runs(now);
        self.follow();
        stamp
    }

    pub(super) fn write_delete(&mut self, now: Time, stored: &[u8]) -> Option<Stamp> {
        self.write_limiter.count_written(now.mono, stored.len() as u64);
        let (stamp, _) = self.store.delete(now, stored)?;
        self.follow();
        Some(stamp)
    }

    /// Begins a watch of stored keys. It must be closed.
    pub(crate) fn watch(&mut self, prefix: Vec<u8>, options: WatchOptions) -> WatchId {
        self.watches.open(&self.store, prefix, options)
    }

    pub(crate) fn take_ready_watches(&mut self) -> std::collections::BTreeSet<WatchId> {
        self.watches.take_ready()
    }

    pub(crate) fn unwatch(&mut self, id: WatchId) {
        self.watches.close(id);
    }

    /// The next events of a watch, and whether there are no more for now.
    pub(crate) fn watched(&mut self, now: Time, id: WatchId) -> (Vec<WatchEvent>, bool) {
        let (mut events, is_done) = self.watches.next(id, now, &self.store);
        for event in &mut events {
            if let WatchEvent::Delete { stamp: Some(stamp), writer, .. } = event {
                *writer = self.name_of_origin(stamp.origin);
            }
        }
        (events, is_done)
    }

    pub(super) fn element(set: &str, element: &str) -> Result<Vec<u8>, WriteError> {
        key::check_key(set.as_bytes())?;
        key::check_key(element.as_bytes())?;
        Ok(key::element_key(set, element))
    }

    /// Adds an element to a set. Wins over a concurrent removal.
    ///
    /// # Errors
    /// If a name is not acceptable, or the disk has failed.
    pub fn set_add(&mut self, now: Time, set: &str, element: &str) -> Result<Stamp, WriteError> {
        self.set_add_with(now, set, element, &PutOptions::new())
    }

    /// Adds an element under a condition, with a time to live, or bound to the life of this process.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn set_add_with(
        &mut self,
        now: Time,
        set: &str,
        element: &str,
        options: &PutOptions,
    ) -> Result<Stamp, WriteError> {
        self.check_writable(now)?;
        let stored = Self::element(set, element)?;
        if let Some(only_if) = options.only_if {
            self.store.check_condition(now, &stored, only_if)?;
        }
        self.check_room(&stored, 0)?;
        let lifetime = options.lifetime(now, self.store.first_run);
        Ok(self.write_put(now, &stored, &[], lifetime))
    }

    /// Removes an element from a set. Additions that this node has not seen stay.
    ///
    /// # Errors
    /// If a name is not acceptable, or the disk has failed.
    pub fn set_remove(&mut self, now: Time, set: &str, element: &str) -> Result<Option<Stamp>, WriteError> {
        self.check_writable(now)?;
        let stored = Self::element(set, element)?;
        Ok(self.write_delete(now, &stored))
    }

    /// Whether an element is in a set.
    pub fn set_contains(&self, now: Time, set: &str, element: &str) -> bool {
        let stored = Self::element(set, element);
        let row = stored.as_ref().ok().and_then(|stored| self.store.dot_set(stored));
        row.is_some_and(|(dot_set, _)| self.store.is_visible(now, dot_set))
    }

    /// The elements of a set, in order.
    pub fn set_iter(&self, now: Time, set: &str) -> impl Iterator<Item = String> {
        let prefix = key::element_key(set, "");
        let elements = self.store.with_prefix(&prefix);
        let elements = elements.filter_map(|(dot_set, revision)| self.entry_of(now, dot_set, revision));
        elements.map(|element| element.key().to_owned()).collect::<Vec<_>>().into_iter()
    }

    /// The number of elements of a set. It walks over all of them.
    pub(crate) fn set_len(&self, now: Time, set: &str) -> usize {
        let prefix = key::element_key(set, "");
        let elements = self.store.with_prefix(&prefix);
        elements.filter(|(dot_set, _)| self.store.is_visible(now, dot_set)).count()
    }

    /// Names of the sets or counters that hold something, in the order of their stored keys, from `from` on: at most
    /// `limit`, and where to go on if there may be more.
    pub(crate) fn names_from(
        &self,
        now: Time,
        space: Space,
        from: Option<Vec<u8>>,
        limit: usize,
    ) -> (Vec<String>, Option<Vec<u8>>) {
        let (mut names, mut next) = (Vec::new(), from.unwrap_or_else(|| vec![space as u8]));
        for _ in 0..limit {
            let mut rows = self.store.iter_from(&next).take_while(|(row, _)| row.key()[0] == space as u8);
            let Some((first, _)) = rows.next() else { return (names, None) };
            let name = key::collection_of(first.key()).to_owned();
            let prefix = key::collection_key(space, &name);
            if self.store.with_prefix(&prefix).any(|(row, _)| self.store.is_visible(now, row)) {
                names.push(name.clone());
            }
            drop(rows);
            next = key::behind_collection(space, &name);
        }
        (names, Some(next))
    }
}

/// How to put a value.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PutOptions {
    #[serde(default, with = "form::span_option")]
    ttl: Option<Duration>,
    #[serde(default)]
    is_ephemeral: bool,
    pub(super) only_if: Option<OnlyIf>,
}

impl PutOptions {
    /// No time to live, not ephemeral, no condition.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value expires after this time, on every node.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Binds the value to the life of this process, for what is true only while it runs: the address of a service, say.
    ///
    /// Every node hides the value while it does not believe this run of the process alive: for a watch it expires then,
    /// and is put again if the run comes back after a partition. Once the run has left, was replaced by another one of
    /// the same name, or was gone for [`Config::forget_after`](crate::Config::forget_after), the value is dropped as if it
    /// had expired, and is gone for good. A process that starts again writes its values anew.
    ///
    /// Another node that writes the key replaces the value, and a delete removes it, as with any other. Together with
    /// [`ttl`](Self::ttl) it ends with what comes first. In a [`Sim`](crate::sim::Sim) this needs
    /// [`Sim::seeds`](crate::sim::Sim::seeds); other simulated nodes are no members and believe every run alive.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    /// Writes only if this condition holds on this node.
    #[must_use]
    pub fn only_if(mut self, only_if: OnlyIf) -> Self {
        self.only_if = Some(only_if);
        self
    }

    /// The lifetime of a value that is put now by the member of this run.
    pub(crate) fn lifetime(&self, now: Time, run: RunId) -> Lifetime {
        let ms = self.ttl.map(|ttl| now.wall.saturating_add(ttl).as_millis());
        let ms = ms.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX).max(EXPIRY_MS_MIN));
        Lifetime { expires: ms.and_then(NonZeroU64::new), run: self.is_ephemeral.then_some(run) }
    }
}
