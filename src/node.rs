//! The node: one [`Replica`](crate::replica::Replica) on a real clock, network and disk, and the user's handle to it.
//!
//! This is the only impure part of the library: sockets, threads, clocks, files and randomness are used here and
//! nowhere else. The rules of replication, membership and elections belong to the core; nothing here decides about
//! them.
//!
//! The replica stands behind one mutex ([`Shared`]). Nothing here may wait for the network or the disk while it holds
//! that mutex. `get` takes no lock that a writer can hold: it reads the index.

mod api;
mod disk;
mod net;
mod runtime;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use api::builder::Builder;
pub use api::election::{Election, LeaderEvent, Leadership, Observer};
pub use api::joining::Joining;
pub use api::receipt::{Quorum, Receipt};
pub use api::status::{NodeStatus, PeerStatus};
pub use api::watch::{Events, Watch};
pub use net::peers::{LinkEnd, NodeEvent, PeerRefusal};
pub use net::security::{Security, TlsRefusal};

#[cfg(feature = "durable")]
use crate::error::SnapshotError;
use crate::error::{ElectionError, ForgetError, SeedError, WaitError, WriteError};
use crate::membership::{META_BYTES_MAX, META_ENTRIES_MAX, Member, MemberEvent};
use crate::node::net::peers::DialRequest;
use crate::replica::{PutOptions, Replica};
use crate::store::OnlyIf;
use crate::store::entry::Entry;
use crate::store::key::register;
use crate::store::watch::WatchOptions;
use crate::time::{Stamp, Time};
#[cfg(feature = "crdts")]
use crate::typed::Merged;
use crate::typed::{Counter, Set, Store, WriteBatch};
#[cfg(feature = "json")]
use crate::typed::{Map, WholeWatch};
use runtime::shared::{FAREWELL_TIME_MAX, Shared};

/// One node of a cluster: a full replica of the store, linked to its peers.
///
/// It is cheap to clone, and all clones are handles to the same node. When the last handle is dropped, the node leaves
/// the cluster as with [`Node::shutdown`], but without waiting for anything. Watches, receipts and views do not keep it
/// alive.
///
/// ```
/// use tidings::{Config, Node, Security, WatchEvent, WatchOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = Security::generate_secret();
/// let a = Node::builder("a").listen("127.0.0.1:0".parse()?).security(Security::secret(&secret)?);
/// let a = a.config(Config::local()).start().await?;
/// let b = Node::builder("b").listen("127.0.0.1:0".parse()?).security(Security::secret(&secret)?);
/// let b = b.config(Config::local()).seeds([a.addr().to_string()]).start().await?;
/// b.ready().await?;
///
/// let mut watch = b.watch_with("limits/", WatchOptions::new().without_current());
/// a.put("limits/max", "100")?;
/// let Some(WatchEvent::Put(entry)) = watch.next().await else { panic!("the put is reported") };
/// assert_eq!((entry.key(), entry.value()), ("limits/max", &b"100"[..]));
/// assert_eq!(b.get("limits/max").unwrap().value(), b"100");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
    /// `None` in views, which do not keep the node alive.
    _life: Option<Arc<NodeGuard>>,
}

/// Closes the node when the last handle is dropped, or a shutdown that has begun.
#[derive(Debug)]
struct NodeGuard(Arc<Shared>);

impl Drop for NodeGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Node {
    /// Configures a node with this name. The name must be unique in the cluster and stay the same after a restart.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    fn new(shared: Arc<Shared>) -> Self {
        Self { _life: Some(Arc::new(NodeGuard(shared.clone()))), shared }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The address that the node is bound to. If port 0 was asked for, it holds the real port.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Waits until this node has caught up with one peer and is linked with the members that it knows of then.
    ///
    /// It has caught up when it holds everything that the peer held when catching up began; from then on its writes go
    /// to all those members at once. A member that cannot be reached delays this by at most one
    /// [`Config::probe_interval`](crate::Config::probe_interval). A node without seeds is ready at once.
    ///
    /// The peer must have caught up itself. Where all nodes start at once none has: then the node is ready with what
    /// one of them held, after one probe interval without a link to a peer that has caught up. If there was such a peer
    /// and it does not finish, that takes 12 times [`Config::sync_timeout`](crate::Config::sync_timeout).
    ///
    /// # Errors
    /// [`WaitError::Closed`] if the node is closed before that.
    pub async fn ready(&self) -> Result<(), WaitError> {
        let is_ready = |shared: &Shared| {
            let Some(core) = shared.lock() else { return Some(Err(WaitError::Closed)) };
            shared.join_board.has_joined(&core.replica).then_some(Ok(()))
        };
        self.shared.wait_for(is_ready).await
    }

    /// The progress of catching up, as a stream that ends when the node is [`ready`](Self::ready). Until then reads are
    /// answered from what has arrived.
    pub fn joining(&self) -> Joining {
        Joining::new(&self.shared)
    }

    fn write(
        &self,
        write: impl FnOnce(&mut Replica, Time) -> Result<Option<Stamp>, WriteError>,
    ) -> Result<Receipt, WriteError> {
        let (stamp, revision) = self.shared.write(write)?;
        Ok(Receipt::new(&self.shared, stamp, revision))
    }

    // Registers.

    /// Writes a value. Reads on this node see it at once.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<Receipt, WriteError> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Writes a value under a condition, with a time to live, or both.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_with(
        &self,
        key: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<Receipt, WriteError> {
        let (key, value) = (key.as_ref(), value.as_ref());
        self.write(|replica, now| replica.put_with(now, key, value, &options).map(Some))
    }

    /// Deletes a key: what it holds on this node is removed everywhere, for ever. A concurrent write that this node has
    /// not received yet survives.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<Receipt, WriteError> {
        self.write(|replica, now| replica.delete(now, key.as_ref()))
    }

    /// Deletes a key if it still holds the value that was read before ([`OnlyIf::Stamp`]). As with
    /// [`PutOptions::only_if`] the condition is compared with what this node holds, not with the whole cluster.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
    /// # let node = tidings::Node::builder("a").security(security).start().await?;
    /// use tidings::{OnlyIf, WriteError};
    ///
    /// node.put("job", "one")?;
    /// let read = node.get("job").expect("it was just put");
    /// node.put("job", "two")?;
    /// let refused = node.delete_if("job", OnlyIf::Stamp(read.stamp()));
    /// assert!(matches!(refused, Err(WriteError::Condition { .. })));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete_if(&self, key: impl AsRef<str>, only_if: OnlyIf) -> Result<Receipt, WriteError> {
        self.write(|replica, now| replica.delete_if(now, key.as_ref(), only_if))
    }

    /// Writes a value unless the key holds exactly that, as [`Store::put_if_changed`] does.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_if_changed(
        &self,
        key: impl AsRef<str>,
        value: impl AsRef<[u8]>,
    ) -> Result<Option<Receipt>, WriteError> {
        Store::put_if_changed(self, key.as_ref(), value.as_ref())
    }

    /// Deletes all keys that begin with `prefix`, as [`Store::delete_prefix`] does.
    ///
    /// # Errors
    /// See [`Store::delete_prefix`].
    pub fn delete_prefix(&self, prefix: impl AsRef<str>) -> Result<usize, WriteError> {
        Store::delete_prefix(self, prefix.as_ref())
    }

    /// The value of a key. It never waits for a writer, the network or the disk, and sees this process's own writes at
    /// once. After the node is closed it answers from the last state.
    pub fn get(&self, key: impl AsRef<str>) -> Option<Entry> {
        self.shared.index.register(self.shared.log(), key.as_ref(), runtime::shared::wall_ms)
    }

    /// All entries whose key begins with `prefix`, in key order, as they were at one instant. It holds the lock for
    /// 1,024 entries at a time, so that writers wait for one such piece only. If an attempt fails because removals were
    /// forgotten meanwhile, it is repeated; the third attempt holds the lock throughout.
    pub fn scan(&self, prefix: impl AsRef<str>) -> Vec<Entry> {
        api::scan::scan(&self.shared, &register(prefix.as_ref()))
    }

    /// One page of a listing: the first `rows` entries (at most 1,024) whose key begins with `prefix` and comes behind
    /// `after` in key order, as they were at one instant. A later page shows the writes made since the earlier one.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
    /// # let node = tidings::Node::builder("a").security(security).start().await?;
    /// node.batch().put("k/1", "a").put("k/2", "b").put("k/3", "c").put("l/1", "d").commit()?;
    /// let page = node.scan_page("k/", None, 2);
    /// assert_eq!(page.iter().map(tidings::Entry::key).collect::<Vec<_>>(), ["k/1", "k/2"]);
    /// let page = node.scan_page("k/", page.last().map(tidings::Entry::key), 2);
    /// assert_eq!(page.iter().map(tidings::Entry::key).collect::<Vec<_>>(), ["k/3"]);
    /// # Ok(()) }
    /// ```
    pub fn scan_page(&self, prefix: impl AsRef<str>, after: Option<&str>, rows: usize) -> Vec<Entry> {
        api::scan::page(&self.shared, &register(prefix.as_ref()), after.map(register).as_deref(), rows)
    }

    /// The number of entries in the store, those of sets and counters included.
    pub fn len(&self) -> usize {
        self.shared.lock_closed().map_or(0, |core| core.replica.len())
    }

    /// Whether the store holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An empty batch of writes, which [`WriteBatch::commit`] applies in one local step.
    pub fn batch(&self) -> WriteBatch {
        Store::batch(self)
    }

    /// Watches all keys that begin with `prefix`: first the current values, then every change.
    pub fn watch(&self, prefix: impl AsRef<str>) -> Watch {
        self.watch_with(prefix, WatchOptions::new())
    }

    /// Watches with options: one key alone, from an earlier position on, or changes only.
    pub fn watch_with(&self, prefix: impl AsRef<str>, options: WatchOptions) -> Watch {
        Watch::new(&self.shared, register(prefix.as_ref()), options)
    }

    /// Watches all keys that begin with `prefix`, with everything that a batch has changed in one item.
    #[cfg(feature = "json")]
    pub fn watch_whole(&self, prefix: impl AsRef<str>) -> WholeWatch {
        Store::watch_whole(self, prefix.as_ref())
    }

    /// The set of this name, whose elements are strings.
    pub fn set(&self, name: impl Into<String>) -> Set {
        Set::new(self.view(), name.into())
    }

    /// The counter of this name.
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        Counter::new(self.view(), name.into())
    }

    /// The names of all sets that begin with `prefix` and have elements, in order, as [`Store::sets`] reads them.
    pub fn sets(&self, prefix: impl AsRef<str>) -> Vec<String> {
        Store::sets(self, prefix.as_ref())
    }

    /// The names of all counters that begin with `prefix`, in order, as [`Store::counters`] reads them.
    pub fn counters(&self, prefix: impl AsRef<str>) -> Vec<String> {
        Store::counters(self, prefix.as_ref())
    }

    /// The keys that begin with `prefix`, as a map of values of type `T`, stored as JSON.
    #[cfg(feature = "json")]
    pub fn map<T>(&self, prefix: impl Into<String>) -> Map<T> {
        Map::new(self.view(), prefix.into())
    }

    /// The value of this key, whose concurrent versions are joined by their type, stored as JSON.
    #[cfg(feature = "crdts")]
    pub fn merged<T: crdts::CvRDT + Clone>(&self, key: impl Into<String>) -> Merged<T> {
        Merged::new(self.view(), key.into())
    }

    // The cluster.

    /// All members that this node knows of, itself first.
    pub fn members(&self) -> Vec<Member> {
        self.shared.members()
    }

    /// The member whose run wrote what has this stamp: of [`Entry::stamp`], or of a delete
    /// ([`WatchEvent::Delete`](crate::WatchEvent::Delete)). Known of living members and of those that are gone and not
    /// forgotten yet. Of the earlier runs of a member those are known, without metadata, that were replaced while this
    /// node ran and less than [`Config::forget_after`](crate::Config::forget_after) ago: the latest 1,024.
    pub fn member_of(&self, stamp: Stamp) -> Option<Member> {
        self.shared.lock_closed()?.replica.member_of(stamp).cloned()
    }

    /// The lease of this name, which at most one node holds at a time. [`Election`] states the guarantees.
    pub fn election(&self, name: impl Into<String>) -> Election {
        Election::new(&self.shared, name.into())
    }

    /// Waits until this node holds the lease of this name, for use as a lock. Dropping it releases the lease to the
    /// next candidate. It is the same lease as that of [`Node::election`], with the node's name as its value.
    ///
    /// # Errors
    /// See [`ElectionError`].
    pub async fn lock(&self, name: impl Into<String>) -> Result<Leadership, ElectionError> {
        self.election(name).campaign(self.name()).await
    }

    /// As [`lock`](Self::lock), but does not wait while another node holds the lease.
    ///
    /// # Errors
    /// [`ElectionError::Taken`] if somebody else has the lease or is about to have it; otherwise see [`ElectionError`].
    pub async fn try_lock(&self, name: impl Into<String>) -> Result<Leadership, ElectionError> {
        self.election(name).try_campaign(self.name()).await
    }

    /// A hint at a leader: the living member with the greatest hash for this name, as this node knows the members now.
    ///
    /// No message is sent and nothing is agreed upon. Nodes that know the same members give the same answer. **In a
    /// partition, and while members come and go, different nodes may name different members, or one that is gone.** Use
    /// it only where two leaders do no harm, and [`Node::election`] everywhere else.
    pub fn leader_hint(&self, name: impl AsRef<str>) -> Option<Member> {
        let core = self.shared.lock_closed()?;
        core.replica.leader_hint(name.as_ref()).cloned()
    }

    /// Changes of the membership: first the past ones that are kept (the latest 1,024), then new ones. For the present
    /// state see [`members`](Self::members).
    pub fn member_events(&self) -> Events<MemberEvent> {
        Events::new(&self.shared, |shared| &shared.member_events)
    }

    /// Events that the operator of this node should know of: first the past ones that are kept (the latest 1,024), then
    /// new ones.
    pub fn events(&self) -> Events<NodeEvent> {
        Events::new(&self.shared, |shared| &shared.events)
    }

    /// The state of this node: what it holds, and how far each peer is behind.
    pub fn status(&self) -> NodeStatus {
        NodeStatus::of(&self.shared)
    }

    /// Waits until writes are not refused with [`WriteError::Busy`].
    ///
    /// # Errors
    /// [`WaitError::Closed`] if the node is closed.
    pub async fn writable(&self) -> Result<(), WaitError> {
        let is_writable = |shared: &Shared| {
            let Some(core) = shared.lock() else { return Some(Err(WaitError::Closed)) };
            if !core.replica.is_busy(shared.now()) {
                return Some(Ok(()));
            }
            // The driver notifies waiters when busy changes to not busy; it may not have seen that the node is busy
            // yet.
            shared.is_busy.store(true, Ordering::Relaxed);
            drop(core);
            shared.wake_driver.notify_one();
            None
        };
        self.shared.wait_for(is_writable).await
    }

    /// Replaces this node's metadata, which all members see.
    ///
    /// # Errors
    /// If it exceeds [`META_BYTES_MAX`] or [`META_ENTRIES_MAX`], or the node is closed; nothing changes then.
    pub fn set_meta(&self, meta: BTreeMap<String, String>) -> Result<(), WriteError> {
        let (entries, limit) = (meta.len(), META_ENTRIES_MAX);
        if entries > limit {
            return Err(WriteError::MetaEntries { entries, limit });
        }
        let bytes: usize = meta.iter().map(|(key, value)| key.len() + value.len()).sum();
        let mut core = self.shared.lock().ok_or(WriteError::Closed)?;
        if !core.replica.set_meta(meta) {
            return Err(WriteError::ValueTooLarge { bytes, limit: META_BYTES_MAX });
        }
        drop(core);
        self.shared.wake_driver.notify_one();
        Ok(())
    }

    /// Adds a seed, as [`Builder::seeds`] does, and dials all seeds now. It is tried for as long as the node runs, so
    /// that nodes which were started apart become one cluster.
    ///
    /// # Errors
    /// See [`SeedError`]; nothing is changed then.
    pub fn join(&self, seed: impl Into<String>) -> Result<(), SeedError> {
        if self.shared.is_closed() {
            return Err(SeedError::Closed);
        }
        self.shared.dial_targets.seeds.add(seed.into())?;
        self.shared.request_dial(DialRequest::Seeds);
        Ok(())
    }

    /// Forgets a member that is gone, on all nodes: it counts in no [`Quorum`] any more, is not listed, and is not looked
    /// for. If it comes back, it joins as a new one. Members that nobody forgets are forgotten after
    /// [`Config::forget_after`](crate::Config::forget_after).
    ///
    /// Every node forgets it within a sync interval from when the request has reached it. A node that believes the
    /// member alive keeps it until it is down there too. A member that was only cut off ends the request when it is back.
    ///
    /// # Errors
    /// See [`ForgetError`]; nothing is changed then.
    pub fn forget(&self, name: &str) -> Result<Receipt, ForgetError> {
        let (stamp, revision) = self.shared.write(|replica, now| Ok(replica.forget(now, name)))?;
        Ok(Receipt::new(&self.shared, Some(stamp?), revision))
    }

    /// Leaves the cluster and closes the node.
    ///
    /// It releases its leases, waits until its last writes are acknowledged by all peers, and tells them that it
    /// leaves, each for at most 1 s. Then every link, watch and wait ends, and the port is free. Reads are answered
    /// from the last state.
    ///
    /// The others see it as [`MemberState::Left`](crate::MemberState::Left): they do not dial it, and no [`Quorum`]
    /// counts it any more. A node that is started again under its name joins as new.
    ///
    /// If the future is dropped once it was polled, the node is closed at once, without waiting for anything.
    pub async fn shutdown(&self) {
        let _closing = NodeGuard(self.shared.clone());
        self.resign_and_confirm().await;
        if let Some(mut core) = self.shared.lock() {
            core.replica.leave(self.shared.now());
        }
        self.shared.wake_driver.notify_one();
        // A peer that has learned of it closes its link.
        let is_told = |shared: &Shared| match shared.lock() {
            Some(core) => core.senders.is_empty().then_some(()),
            None => Some(()),
        };
        _ = tokio::time::timeout(FAREWELL_TIME_MAX, self.shared.wait_for(is_told)).await;
        self.close().await;
    }

    /// Closes the node as [`shutdown`](Self::shutdown) does, but it stays a member that is expected back, as before a
    /// restart. The others know at once that its process has ended, see it as
    /// [`MemberState::Down`](crate::MemberState::Down), go on dialling it, and still count it in [`Quorum::All`] and
    /// [`Quorum::Majority`].
    pub async fn shutdown_expecting_return(&self) {
        let _closing = NodeGuard(self.shared.clone());
        self.shared.close_code.store(net::sender::CLOSE_ENDED, Ordering::Relaxed);
        self.resign_and_confirm().await;
        self.close().await;
    }

    /// Releases all leases, then waits until the last writes are acknowledged, each for at most [`FAREWELL_TIME_MAX`].
    async fn resign_and_confirm(&self) {
        self.shared.resign_all().await;
        let Some(head) = self.shared.lock().map(|core| core.replica.head()) else { return };
        let is_told = |shared: &Shared| {
            let mut core = shared.lock()?;
            if core.replica.is_acked(head) {
                return Some(());
            }
            core.replica.request_acks(head);
            drop(core);
            shared.wake_driver.notify_one();
            None
        };
        _ = tokio::time::timeout(FAREWELL_TIME_MAX, self.shared.wait_for(is_told)).await;
    }

    /// Closes the node, and waits until the port and the directory are free.
    async fn close(&self) {
        self.shared.close();
        let mut ended = self.shared.ended.subscribe();
        _ = ended.wait_for(|ended| *ended).await;
        // The connections' tasks close the socket a little later.
        let is_free = async {
            while std::net::UdpSocket::bind(self.shared.addr).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        _ = tokio::time::timeout(Duration::from_secs(1), is_free).await;
        self.shared.wait_for(|shared| shared.disk.has_ended().then_some(())).await;
    }

    /// Writes everything that this node holds, as of one instant, to a file. [`Builder::restore`] starts a node from it
    /// where no peer can be reached.
    ///
    /// Writers do not wait for it. It takes memory for a second copy of the store, so one is written at a time and
    /// further ones wait. It is written to a file beside `path` whose name ends in `.tmp`, synced, and then
    /// renamed.
    ///
    /// # Errors
    /// See [`SnapshotError`]; a file that was at `path` before is unchanged then.
    #[cfg(feature = "durable")]
    pub async fn snapshot(&self, path: impl Into<std::path::PathBuf>) -> Result<(), SnapshotError> {
        let (shared, path) = (self.shared.clone(), path.into());
        let writing = tokio::task::spawn_blocking(move || disk::write_snapshot(&shared, &path));
        let written = writing.await;
        written.unwrap_or(Err(SnapshotError::Failed))
    }

    /// From now on makes every write to the disk fail with this error; `None`: no write fails.
    #[cfg(all(feature = "durable", feature = "__controls"))]
    #[doc(hidden)]
    pub fn fail_disk(&self, kind: Option<std::io::ErrorKind>) {
        let fault = self.shared.disk.fault.get().expect("the node has a disk");
        *fault.lock().expect("nobody panics with it") = kind;
    }

    /// Lets the disk thread panic at its next write, as a bug would.
    #[cfg(all(feature = "durable", feature = "__controls"))]
    #[doc(hidden)]
    pub fn panic_on_disk(&self) {
        let fault = self.shared.disk.fault.get().expect("the node has a disk").clone();
        let holder = std::thread::spawn(move || {
            let _held = fault.lock();
            panic!("on purpose");
        });
        _ = holder.join();
    }

    /// Panics while it holds the lock of the core, as a bug would.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn panic_inside(&self) {
        _ = self.shared.write(|_, _| -> Result<(), WriteError> { panic!("on purpose") });
    }

    /// Whether the node is closed.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}
