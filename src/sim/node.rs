//! Simulated nodes: reads, writes and watches, with the verbs of `Node`.
//!
//! A handle belongs to a node, not to one start of it. While the node is down, its writes fail as those of a closed
//! `Node` do and its reads find nothing; after a restart it works again. A watch belongs to the start in which it was
//! made.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use super::World;
use super::handle::{SharedWorld, WorldGuard};
use super::oracle::OracleEvent;
use super::timers::SimSleep;
use super::watch::SimWatch;
use crate::arrivals::Arrival;
use crate::error::WriteError;
use crate::membership::Member;
use crate::replica::{Batch, FoldedShares, JoinProgress, PutOptions, Readiness, Replica, Status};
use crate::store::OnlyIf;
#[cfg(feature = "json")]
use crate::store::WholeLook;
use crate::store::entry::{Dot, Entry, Revision};
use crate::store::key::{CounterPart, Space, counter_prefix, element_key, register};
use crate::store::watch::WatchOptions;
use crate::time::{Lifetime, Stamp, Time};
#[cfg(feature = "crdts")]
use crate::typed::Merged;
use crate::typed::{Counter, Set, Store, WriteBatch, WriteReceipt};
#[cfg(feature = "json")]
use crate::typed::{Map, WholeWatch};

/// One node of a [`Sim`](super::Sim), with the verbs of `Node`. It is cheap to clone and can be kept.
///
/// While the node is down, writes return [`WriteError::Closed`] and reads find nothing. After a restart the same handle
/// works again.
#[derive(Clone)]
pub struct SimNode {
    world: SharedWorld,
    pub(super) i: usize,
    name: Arc<str>,
}

impl std::fmt::Debug for SimNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNode").field("name", &self.name).finish_non_exhaustive()
    }
}

impl World {
    /// A node's replica, and its time; `None` while it is down.
    pub(super) fn replica(&mut self, i: usize) -> Option<(&mut Replica, Time)> {
        let now = self.time(i);
        Some((self.nodes[i].replica.as_mut()?, now))
    }

    /// Does one write, records it for the oracle, and carries out the node's outputs.
    fn write(
        &mut self,
        i: usize,
        key: &[u8],
        write: impl FnOnce(&mut Replica, Time) -> Result<Option<Stamp>, WriteError>,
    ) -> Result<SimReceipt, WriteError> {
        let (replica, now) = self.replica(i).ok_or(WriteError::Closed)?;
        let before = replica.store.dot_set(key).map(|(dot_set, _)| dot_set.stamps().collect());
        let stamp = write(replica, now)?;
        let revision = replica.head();
        if let Some(stamp) = stamp {
            let dot_set = replica.store.dot_set(key).map(|(dot_set, _)| dot_set);
            let is_put = dot_set.is_some();
            let lifetime = dot_set.and_then(|dot_set| dot_set.dots().last()).map(Dot::lifetime);
            let lifetime = lifetime.unwrap_or_default();
            let until_ms = self.until_ms(now, lifetime.expires);
            let (removed, run) = (before.unwrap_or_default(), lifetime.run);
            self.record(i, key, OracleEvent { stamp, removed, is_put, until_ms, run, is_ahead: false });
        }
        self.drain(i);
        Ok(SimReceipt { stamp, revision })
    }

    /// Applies a batch, records its writes for the oracle, and carries out the node's outputs.
    fn commit(&mut self, i: usize, batch: &Batch) -> Result<SimReceipt, WriteError> {
        let (replica, now) = self.replica(i).ok_or(WriteError::Closed)?;
        let (run, member_run) = (replica.store.run, replica.store.first_run);
        let mut held: BTreeMap<Vec<u8>, Vec<Stamp>> = BTreeMap::new();
        for key in batch.writes.iter().map(|write| write.stored(run)) {
            let before = replica.store.dot_set(&key);
            let stamps = before.map(|(before, _)| before.stamps().collect());
            held.insert(key, stamps.unwrap_or_default());
        }
        let stamps = replica.commit(now, batch)?;
        let receipt =
            SimReceipt { stamp: stamps.iter().rev().copied().flatten().next(), revision: replica.head() };
        for (write, stamp) in batch.writes.iter().zip(stamps) {
            let Some(stamp) = stamp else { continue };
            let (key, is_put) = (write.stored(run), write.is_put());
            let now_held = if is_put { vec![stamp] } else { Vec::new() };
            let removed = held.insert(key.clone(), now_held).unwrap_or_default();
            let Lifetime { expires, run } = write.lifetime(now, member_run);
            let until_ms = self.until_ms(now, expires);
            self.record(i, &key, OracleEvent { stamp, removed, is_put, until_ms, run, is_ahead: false });
        }
        self.drain(i);
        Ok(receipt)
    }

    /// Until when a value has to be held that a node has written with this expiry. If the writer's clock is ahead, it
    /// has lived for the time asked for before its expiry has come.
    fn until_ms(&self, now: Time, expires: Option<NonZeroU64>) -> Option<u64> {
        let true_ms = self.wall_ms();
        expires.map(|ms| ms.get().min(true_ms + ms.get().saturating_sub(now.wall_ms())))
    }

    /// Writes several rows of a counter, records them for the oracle, and carries out the node's outputs. `write` returns
    /// the key and the stamp of each.
    fn write_counter<T>(
        &mut self,
        i: usize,
        counter: &str,
        write: impl FnOnce(&mut Replica, Time) -> Result<(Vec<(Vec<u8>, Stamp)>, T), WriteError>,
    ) -> Result<T, WriteError> {
        let (replica, now) = self.replica(i).ok_or(WriteError::Closed)?;
        let prefix = counter_prefix(counter);
        let rows = replica
            .store
            .with_prefix(&prefix)
            .map(|(dot_set, _)| (dot_set.key().to_owned(), dot_set.stamps().collect::<Vec<_>>()));
        let mut before: BTreeMap<_, _> = rows.collect();
        let (rows, written) = write(replica, now)?;
        for (key, stamp) in rows {
            let is_put = self.replica(i).is_some_and(|(replica, _)| replica.store.dot_set(&key).is_some());
            let removed = before.remove(&key).unwrap_or_default();
            self.record(
                i,
                &key,
                OracleEvent { stamp, removed, is_put, until_ms: None, run: None, is_ahead: false },
            );
        }
        self.drain(i);
        Ok(written)
    }
}

impl SimNode {
    pub(super) fn new(world: &SharedWorld, i: usize) -> Self {
        let name = world.lock().nodes[i].name.clone();
        Self { world: world.clone(), i, name }
    }

    pub(super) fn world(&self) -> WorldGuard<'_> {
        self.world.lock()
    }

    /// Reads from the replica; `None` while the node is down.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Replica, Time) -> T) -> Option<T> {
        let world = &mut *self.world();
        world.replica(self.i).map(|(replica, now)| read(replica, now))
    }

    fn write(
        &self,
        key: &[u8],
        write: impl FnOnce(&mut Replica, Time) -> Result<Option<Stamp>, WriteError>,
    ) -> Result<SimReceipt, WriteError> {
        self.world().write(self.i, key, write)
    }

    /// The node's name as a member.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The median peer's lag, in bytes.
    pub fn median_lag(&self) -> u64 {
        self.read(|replica, _| replica.median_lag()).unwrap_or_default()
    }

    /// All members that this node knows, itself first. Empty unless the simulation has
    /// [`Sim::seeds`](super::Sim::seeds).
    pub fn members(&self) -> Vec<Member> {
        let members =
            |replica: &Replica| replica.own_member().into_iter().chain(replica.members()).cloned().collect();
        self.read(|replica, _| members(replica)).unwrap_or_default()
    }

    /// The member whose run wrote what has this stamp. Where the nodes are no members, the simulator knows.
    pub fn member_of(&self, stamp: Stamp) -> Option<Member> {
        self.world().member_of(stamp, self.i)
    }

    /// The first half of a counter's compaction, [`Replica::fold_counter`], with the receipt of its last write.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn fold_counter(&self, counter: &str) -> Result<(FoldedShares, SimReceipt), WriteError> {
        self.world().write_counter(self.i, counter, |replica, now| {
            let folded = replica.fold_counter(now, counter)?;
            let receipt = SimReceipt { stamp: folded.stamp(), revision: replica.head() };
            Ok((folded.tables.clone(), (folded, receipt)))
        })
    }

    /// The second half, [`Replica::drop_folded`]. Returns the number of shares that were dropped.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn drop_folded(&self, counter: &str, folded: &FoldedShares) -> Result<usize, WriteError> {
        self.world().write_counter(self.i, counter, |replica, now| {
            let keys = folded.shares.iter().map(|(key, _)| key.clone());
            let stamps = replica.drop_folded(now, folded)?;
            let dropped: Vec<_> = keys.zip(stamps).filter_map(|(key, stamp)| Some((key, stamp?))).collect();
            let count = dropped.len();
            Ok((dropped, count))
        })
    }

    /// The number of nodes that are known here to have a write of this node, itself included. Asks its peers to say so;
    /// what they answer arrives later.
    pub fn count_seen(&self, receipt: &SimReceipt) -> usize {
        let mut world = self.world();
        let Some((replica, _)) = world.replica(self.i) else { return 0 };
        let count = replica.count_acked(receipt.revision, receipt.stamp);
        replica.request_acks(receipt.revision);
        world.drain(self.i);
        count
    }

    /// Everything that peers can make this node keep, beside the limit of each.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn kept(&self) -> Vec<crate::replica::Kept> {
        self.read(|replica, _| replica.kept()).unwrap_or_default()
    }

    /// Changes this node's metadata. False, with nothing changed, if it exceeds a limit or the node is down.
    pub fn set_meta(&self, meta: BTreeMap<String, String>) -> bool {
        let world = &mut *self.world();
        let Some((replica, _)) = world.replica(self.i) else { return false };
        let told = replica.set_meta(meta);
        world.drain(self.i);
        told
    }

    /// Puts a value.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<SimReceipt, WriteError> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Puts a value under a condition or for a time.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_with(
        &self,
        key: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<SimReceipt, WriteError> {
        let (key, value) = (key.as_ref(), value.as_ref());
        self.write(&register(key), |replica, now| replica.put_with(now, key, value, &options).map(Some))
    }

    /// Deletes a key. Its receipt has no stamp if the key holds nothing on this node.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<SimReceipt, WriteError> {
        let key = key.as_ref();
        self.write(&register(key), |replica, now| replica.delete(now, key))
    }

    /// Deletes a key under a condition, which is compared with what this node holds.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete_if(&self, key: impl AsRef<str>, only_if: OnlyIf) -> Result<SimReceipt, WriteError> {
        let key = key.as_ref();
        self.write(&register(key), |replica, now| replica.delete_if(now, key, only_if))
    }

    /// Writes a value unless the key holds exactly that, as [`Store::put_if_changed`] does.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_if_changed(
        &self,
        key: impl AsRef<str>,
        value: impl AsRef<[u8]>,
    ) -> Result<Option<SimReceipt>, WriteError> {
        Store::put_if_changed(self, key.as_ref(), value.as_ref())
    }

    /// Deletes all keys that begin with `prefix`, as [`Store::delete_prefix`] does.
    ///
    /// # Errors
    /// See [`Store::delete_prefix`].
    pub fn delete_prefix(&self, prefix: impl AsRef<str>) -> Result<usize, WriteError> {
        Store::delete_prefix(self, prefix.as_ref())
    }

    /// The value of a key.
    pub fn get(&self, key: impl AsRef<str>) -> Option<Entry> {
        self.read(|replica, now| replica.get(now, key.as_ref()))?
    }

    /// All entries whose keys begin with this prefix, in key order.
    pub fn scan(&self, prefix: impl AsRef<str>) -> Vec<Entry> {
        self.read(|replica, now| replica.scan(now, prefix.as_ref())).unwrap_or_default()
    }

    /// One page of a listing: the first `rows` entries (at most 1,024) whose key begins with `prefix` and comes behind
    /// `after` in key order.
    pub fn scan_page(&self, prefix: impl AsRef<str>, after: Option<&str>, rows: usize) -> Vec<Entry> {
        self.page(&register(prefix.as_ref()), after.map(register).as_deref(), rows)
    }

    fn page(&self, prefix: &[u8], after: Option<&[u8]>, rows: usize) -> Vec<Entry> {
        self.read(|replica, now| replica.page(now, prefix, after, rows)).unwrap_or_default()
    }

    /// The number of entries held, including those of sets and counters.
    pub fn len(&self) -> usize {
        self.read(|replica, _| replica.len()).unwrap_or_default()
    }

    /// Whether the node holds no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An empty batch of writes, which [`WriteBatch::commit`] applies in one local step.
    pub fn batch(&self) -> WriteBatch<Self> {
        Store::batch(self)
    }

    /// The set of this name, whose elements are strings.
    pub fn set(&self, name: impl Into<String>) -> Set<Self> {
        Set::new(self.view(), name.into())
    }

    /// The counter of this name.
    pub fn counter(&self, name: impl Into<String>) -> Counter<Self> {
        Counter::new(self.view(), name.into())
    }

    /// The names of all sets that begin with `prefix` and have elements, in order.
    pub fn sets(&self, prefix: impl AsRef<str>) -> Vec<String> {
        self.names(Space::Set, prefix.as_ref())
    }

    /// The names of all counters that begin with `prefix`, in order.
    pub fn counters(&self, prefix: impl AsRef<str>) -> Vec<String> {
        self.names(Space::Counter, prefix.as_ref())
    }

    fn names(&self, space: Space, prefix: &str) -> Vec<String> {
        let names = self.read(|replica, now| replica.names_from(now, space, None, usize::MAX).0);
        let mut names = names.unwrap_or_default();
        names.retain(|name| name.starts_with(prefix));
        names.sort_unstable();
        names
    }

    /// The keys that begin with `prefix`, as a map of values of type `T`, stored as JSON.
    #[cfg(feature = "json")]
    pub fn map<T>(&self, prefix: impl Into<String>) -> Map<T, Self> {
        Map::new(self.view(), prefix.into())
    }

    /// The value of this key, whose concurrent versions are joined by their type, stored as JSON.
    #[cfg(feature = "crdts")]
    pub fn merged<T: crdts::CvRDT + Clone>(&self, key: impl Into<String>) -> Merged<T, Self> {
        Merged::new(self.view(), key.into())
    }

    /// Watches all keys that begin with this prefix. The watch ends when the node stops.
    pub fn watch(&self, prefix: impl AsRef<str>) -> SimWatch {
        self.watch_with(prefix, WatchOptions::new())
    }

    /// Watches with options: one key alone, from an earlier position on, or changes only.
    pub fn watch_with(&self, prefix: impl AsRef<str>, options: WatchOptions) -> SimWatch {
        SimWatch::new(&self.world, self.i, register(prefix.as_ref()), options)
    }

    /// Watches all keys that begin with `prefix`, with everything that a batch has changed in one item.
    #[cfg(feature = "json")]
    pub fn watch_whole(&self, prefix: impl AsRef<str>) -> WholeWatch<Self> {
        Store::watch_whole(self, prefix.as_ref())
    }

    /// The node's progress in catching up with the others. While it is down nothing is done.
    pub fn joining(&self) -> JoinProgress {
        let world = &*self.world();
        let Some(replica) = &world.nodes[self.i].replica else { return JoinProgress::default() };
        let progress = replica.join_progress();
        let donor = replica.donor().and_then(|link| world.other_end(link, self.i));
        JoinProgress { donor: progress.donor.or(donor.map(super::members::name)), ..progress }
    }

    /// How long the writes of others take to arrive here.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let world = &*self.world();
        let (now, node) = (world.time(self.i), &world.nodes[self.i]);
        node.replica.as_ref().map_or_else(Vec::new, |replica| node.arrivals.figures(now, replica))
    }

    /// A summary of what the node holds and has merged.
    ///
    /// # Panics
    /// If the node is down.
    pub fn status(&self) -> Status {
        let status = self.read(|replica, _| replica.status());
        status.unwrap_or_else(|| panic!("node {} is down", self.i))
    }
}

/// Proof that a write was accepted on a node of a [`Sim`](super::Sim).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimReceipt {
    pub(super) stamp: Option<Stamp>,
    pub(super) revision: Revision,
}

impl SimReceipt {
    /// The write's stamp. `None` if there was nothing to do, as when a key is deleted that holds nothing.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// The position of the write in the node's change log.
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

impl WriteReceipt for SimReceipt {
    fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    fn revision(&self) -> Revision {
        self.revision
    }
}

/// Ends when a node is ready, with `true`, or has stopped. With `needs_peer` it has to have caught up with a peer.
struct SimJoined {
    node: SimNode,
    needs_peer: bool,
}

impl Future for SimJoined {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut world = self.node.world();
        let i = self.node.i;
        let is_alone = world.is_alone(i);
        let Some(replica) = &world.nodes[i].replica else { return Poll::Ready(false) };
        let is_over = match replica.readiness() {
            Readiness::Joining => false,
            Readiness::Alone => !self.needs_peer,
            Readiness::Joined => true,
        };
        if is_alone || is_over {
            return Poll::Ready(true);
        }
        let waiting = &mut world.nodes[i].joining;
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Store for SimNode {
    type Receipt = SimReceipt;
    type Watch = SimWatch;

    fn name(&self) -> &str {
        &self.name
    }

    /// A clone: handles do not keep a simulated node alive.
    fn view(&self) -> Self {
        self.clone()
    }

    fn put_with(&self, key: &str, value: &[u8], options: PutOptions) -> Result<SimReceipt, WriteError> {
        self.put_with(key, value, options)
    }

    fn delete(&self, key: &str) -> Result<SimReceipt, WriteError> {
        self.delete(key)
    }

    fn delete_if(&self, key: &str, only_if: OnlyIf) -> Result<SimReceipt, WriteError> {
        self.delete_if(key, only_if)
    }

    fn commit(&self, batch: &Batch) -> Result<SimReceipt, WriteError> {
        self.world().commit(self.i, batch)
    }

    fn get(&self, key: &str) -> Option<Entry> {
        self.get(key)
    }

    fn scan(&self, prefix: &str) -> Vec<Entry> {
        self.scan(prefix)
    }

    #[cfg(feature = "json")]
    fn scan_whole(&self, prefix: &str, held: &[String]) -> Option<WholeLook> {
        self.read(|replica, now| replica.scan_whole(now, prefix, held))
    }

    #[cfg(feature = "json")]
    fn changes_whole(&self, prefix: &str, since: Revision) -> Option<WholeLook> {
        self.read(|replica, now| replica.changes_whole(now, prefix, since))?
    }

    fn scan_page(&self, prefix: &str, after: Option<&str>, rows: usize) -> Vec<Entry> {
        self.scan_page(prefix, after, rows)
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn watch_with(&self, prefix: &str, options: WatchOptions) -> SimWatch {
        self.watch_with(prefix, options)
    }

    fn set_add_with(&self, set: &str, element: &str, options: PutOptions) -> Result<SimReceipt, WriteError> {
        self.write(&element_key(set, element), |replica, now| {
            replica.set_add_with(now, set, element, &options).map(Some)
        })
    }

    fn set_remove(&self, set: &str, element: &str) -> Result<SimReceipt, WriteError> {
        self.write(&element_key(set, element), |replica, now| replica.set_remove(now, set, element))
    }

    fn set_contains(&self, set: &str, element: &str) -> bool {
        self.read(|replica, now| replica.set_contains(now, set, element)).unwrap_or_default()
    }

    fn set_entry(&self, set: &str, element: &str) -> Option<Entry> {
        let first = self.page(&element_key(set, element), None, 1).pop();
        first.filter(|entry| entry.key() == element)
    }

    fn set_iter(&self, set: &str) -> impl Iterator<Item = String> + use<> {
        let elements = self.read(|replica, now| replica.set_iter(now, set).collect::<Vec<_>>());
        elements.unwrap_or_default().into_iter()
    }

    fn set_entries(&self, set: &str, after: Option<&str>, rows: usize) -> Vec<Entry> {
        let after = after.map(|after| element_key(set, after));
        self.page(&element_key(set, ""), after.as_deref(), rows)
    }

    fn set_len(&self, set: &str) -> usize {
        self.read(|replica, now| replica.set_len(now, set)).unwrap_or_default()
    }

    fn set_watch(&self, set: &str, options: WatchOptions) -> SimWatch {
        SimWatch::new(&self.world, self.i, element_key(set, ""), options.inexact())
    }

    fn counter_add(&self, counter: &str, by: i64) -> Result<SimReceipt, WriteError> {
        let world = &mut *self.world();
        let (replica, _) = world.replica(self.i).ok_or(WriteError::Closed)?;
        let key = CounterPart::Share(replica.store.run).key(counter);
        world.write(self.i, &key, |replica, now| replica.counter_add(now, counter, by).map(Some))
    }

    fn counter_value(&self, counter: &str) -> i64 {
        self.read(|replica, _| replica.counter_value(counter)).unwrap_or_default()
    }

    fn counter_changes(&self, counter: &str) -> SimWatch {
        SimWatch::new(&self.world, self.i, counter_prefix(counter), WatchOptions::new())
    }

    fn sets(&self, prefix: &str) -> Vec<String> {
        self.names(Space::Set, prefix)
    }

    fn counters(&self, prefix: &str) -> Vec<String> {
        self.names(Space::Counter, prefix)
    }

    /// In virtual time, as far ahead as the node's clock is.
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.world().time(self.i).wall
    }

    /// In virtual time, by the node's monotonic clock. The task goes on while the node is paused or down.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        SimSleep::new(&self.world, self.i, time)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.world().spawned.push(task);
    }

    /// Does the work at once. It takes no virtual time.
    fn blocking<R, W>(&self, work: W) -> impl Future<Output = Option<R>> + Send + use<R, W>
    where
        R: Send + 'static,
        W: FnOnce() -> R + Send + 'static,
    {
        std::future::ready(Some(work()))
    }

    fn joined(&self) -> impl Future<Output = bool> + Send + use<> {
        SimJoined { node: self.clone(), needs_peer: false }
    }

    fn caught_up(&self) -> impl Future<Output = bool> + Send + use<> {
        SimJoined { node: self.clone(), needs_peer: true }
    }

    fn has_merged(&self, key: &str, stamp: Stamp) -> bool {
        self.read(|replica, _| replica.store.covers(&register(key), stamp)).unwrap_or_default()
    }

    fn member_of(&self, stamp: Stamp) -> Option<Member> {
        self.member_of(stamp)
    }
}
