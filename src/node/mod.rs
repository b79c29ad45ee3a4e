//! The node: the replica on a real clock and a real network. The only impure place of the library.

mod admission;
mod batch;
mod builder;
mod clock;
mod congestion;
mod disk;
mod driver;
mod election;
pub(crate) mod error;
mod greeting;
mod index;
mod joining;
mod link;
#[cfg(feature = "metrics")]
mod metrics;
mod network;
mod peers;
mod receipt;
mod round_trip;
mod security;
mod shared;
mod views;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use batch::NodeBatch;
pub use builder::Builder;
pub use election::{Election, LeaderStream, Leadership};
pub use joining::Joining;
pub use peers::{NodeEvent, PeerRefusal};
pub use receipt::{Quorum, Receipt};
pub use security::{Security, TlsRefusal};
pub use views::{Counter, Set};
#[cfg(feature = "json")]
pub use views::{Map, MapEvent, MapWatch};
pub use watch::{Events, Watch};

use crate::arrivals::Arrival;
use crate::error::{ElectionError, WriteError};
use crate::membership::{META_BYTES_MAX, META_ENTRIES_MAX, Member, MemberEvent};
#[cfg(feature = "durable")]
use crate::node::error::SnapshotError;
use crate::node::error::WaitError;
use crate::replica::{PutOptions, Status};
use crate::store::OnlyIf;
use crate::store::entry::Entry;
use crate::store::watch::WatchStart;
use link::LinkSender;
use shared::Shared;

/// How long the end of a node waits for its last writes to arrive somewhere.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);

/// Entries read in one go by a scan.
const SCAN_ROWS: usize = 1_024;
/// A scan that had to begin anew this often holds the lock instead.
const SCAN_TRIES: usize = 3;

/// One node of a cluster: a full replica of the store, linked to its peers. Cheap to clone; all clones are the same
/// node, and it ends when the last of them is dropped: it leaves the cluster, as with [`Node::shutdown`] but without
/// waiting for anything. Everything else that it hands out (watches, receipts, views)
/// does not keep it alive.
///
/// ```
/// use tidings::{Config, Node, Security, WatchEvent};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = Security::generate_secret();
/// let a = Node::builder("a").listen("127.0.0.1:0".parse()?).security(Security::secret(&secret)?);
/// let a = a.config(Config::local()).start().await?;
/// let b = Node::builder("b").listen("127.0.0.1:0".parse()?).security(Security::secret(&secret)?);
/// let b = b.config(Config::local()).seeds([a.addr().to_string()]).start().await?;
/// b.ready().await?;
///
/// let mut watch = b.watch("limits/").without_current();
/// a.put("limits/max", "100")?;
/// let Some(WatchEvent::Put(entry)) = watch.next().await else { panic!("the put is told") };
/// assert_eq!((entry.key(), entry.value()), ("limits/max", &b"100"[..]));
/// assert_eq!(b.get("limits/max").unwrap().value(), b"100");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
    _life: Arc<NodeGuard>,
}

/// Ends the node with its last handle.
#[derive(Debug)]
struct NodeGuard(Arc<Shared>);

impl Drop for NodeGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Node {
    /// Begins to describe a node. The name is unique in the cluster and stays with the node when it is restarted.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    fn new(shared: Arc<Shared>) -> Self {
        Self { _life: Arc::new(NodeGuard(shared.clone())), shared }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The address that the node is bound to, with the real port where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Waits until this node has everything that a peer had when it began to catch up with it, and is linked with the
    /// members that it knows of then: what it writes goes to all of them at once. A member that cannot be reached holds this
    /// up for one [`Config::probe_interval`](crate::Config::probe_interval) at most. A node without seeds is ready at once.
    ///
    /// # Errors
    /// If the node is closed before that.
    pub async fn ready(&self) -> Result<(), WaitError> {
        let is_ready = |shared: &Shared| {
            let Some(core) = shared.lock() else { return Some(Err(WaitError::Closed)) };
            (core.is_alone || core.replica.is_ready()).then_some(Ok(()))
        };
        self.shared.wait_for(is_ready).await
    }

    /// How far this node is in catching up, until it is [`ready`](Self::ready). Reads are answered meanwhile from what
    /// has arrived.
    pub fn joining(&self) -> Joining {
        Joining::new(&self.shared)
    }

    // Registers.

    /// Puts a value. It is visible here at once.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<Receipt, WriteError> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Puts a value under a condition, or for a time.
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
        let write = self.shared.write(|replica, now| replica.put_with(now, key, value, &options));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, Some(stamp), revision))
    }

    /// Deletes a key: what it holds here is removed everywhere, for ever. What this node had not seen survives.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<Receipt, WriteError> {
        let write = self.shared.write(|replica, now| replica.delete(now, key.as_ref()));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, stamp, revision))
    }

    /// Deletes a key if it still holds what somebody has read ([`OnlyIf::Stamp`]). As with [`PutOptions::only_if`] that
    /// is compared with what this node holds, not with the whole cluster.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret("a secret for examples")?;
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
        let write = self.shared.write(|replica, now| replica.delete_if(now, key.as_ref(), only_if));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, stamp, revision))
    }

    /// The value of a key. Waits for nothing, and sees this process's own writes. After the node is closed it
    /// answers from the last state.
    pub fn get(&self, key: impl AsRef<str>) -> Option<Entry> {
        self.shared.index.register(self.shared.log(), key.as_ref(), || shared::wall().as_millis() as u64)
    }

    /// All entries whose key begins like this, in key order, as they were in one instant. Writers wait no longer
    /// than for a short piece of it.
    pub fn scan(&self, prefix: impl AsRef<str>) -> Vec<Entry> {
        views::scan(&self.shared, prefix.as_ref())
    }

    /// The entries whose key begins like this and comes after another in key order, at most so many (and at most
    /// 1,024), as they were in one instant: for listings that are shown page by page. Writes between two pages are
    /// seen by the later one as far as they concern it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret("a secret for examples")?;
    /// # let node = tidings::Node::builder("a").security(security).start().await?;
    /// node.batch().put("k/1", "a").put("k/2", "b").put("k/3", "c").put("l/1", "d").commit()?;
    /// let page = node.scan_page("k/", None, 2);
    /// assert_eq!(page.iter().map(tidings::Entry::key).collect::<Vec<_>>(), ["k/1", "k/2"]);
    /// let page = node.scan_page("k/", page.last().map(tidings::Entry::key), 2);
    /// assert_eq!(page.iter().map(tidings::Entry::key).collect::<Vec<_>>(), ["k/3"]);
    /// # Ok(()) }
    /// ```
    pub fn scan_page(&self, prefix: impl AsRef<str>, after: Option<&str>, rows: usize) -> Vec<Entry> {
        views::page(&self.shared, prefix.as_ref(), after, rows)
    }

    /// How many entries the store holds, those of sets and counters included.
    pub fn len(&self) -> usize {
        self.shared.lock_closed().map_or(0, |core| core.replica.len())
    }

    /// Whether the store holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Several writes, applied in one step by [`NodeBatch::commit`].
    pub fn batch(&self) -> NodeBatch {
        NodeBatch::new(&self.shared)
    }

    /// Watches all keys that begin like this; with [`Watch::exact`] this key alone.
    pub fn watch(&self, prefix: impl AsRef<str>) -> Watch {
        let mut stored = Vec::new();
        crate::store::entry::register_key(prefix.as_ref(), &mut stored);
        Watch::new(&self.shared, WatchStart::at(stored))
    }

    /// A set of names.
    pub fn set(&self, name: impl Into<String>) -> Set {
        Set::new(&self.shared, name.into())
    }

    /// A counter.
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        Counter::new(&self.shared, name.into())
    }

    /// The keys that begin like this as a map of values of one type, kept as JSON.
    #[cfg(feature = "json")]
    pub fn map<T>(&self, prefix: impl Into<String>) -> Map<T> {
        Map::new(&self.shared, prefix.into())
    }

    // The cluster.

    /// Everybody this node knows of, itself first.
    pub fn members(&self) -> Vec<Member> {
        self.shared.members()
    }

    /// A lease by this name, which one node has at a time. See [`Election`] for what is guaranteed.
    pub fn election(&self, name: impl Into<String>) -> Election {
        Election::new(&self.shared, name.into())
    }

    /// Waits until this node has the lease of this name, to hold it briefly: dropped, it goes to the next. It is the same
    /// lease as that of [`Node::election`], with the node's name as its value.
    ///
    /// # Errors
    /// See [`ElectionError`].
    pub async fn lock(&self, name: impl Into<String>) -> Result<Leadership, ElectionError> {
        self.election(name).campaign(self.name()).await
    }

    /// The same, without waiting for whoever has it.
    ///
    /// # Errors
    /// [`ElectionError::Taken`] if somebody has it, or is about to.
    pub async fn try_lock(&self, name: impl Into<String>) -> Result<Leadership, ElectionError> {
        self.election(name).try_campaign(self.name()).await
    }

    /// Who should lead, by what this node knows of the members now: a choice by hash among those that live. No message
    /// is sent and nothing is agreed upon. All nodes that know the same members say the same; **in a partition, and while
    /// members come and go, two may be named, each by some nodes, or one that is gone**. Nothing here may do harm then:
    /// for everything else there is [`Node::election`].
    pub fn leader_hint(&self, name: impl AsRef<str>) -> Option<Member> {
        let core = self.shared.lock_closed()?;
        core.replica.leader_hint(name.as_ref()).cloned()
    }

    /// Members that come and go from now on.
    pub fn member_events(&self) -> Events<MemberEvent> {
        Events::new(&self.shared, |shared| &shared.member_events, self.shared.member_events.cursor_at_end())
    }

    /// What whoever runs this node should know of: what has happened so far, as far as it is kept, then what does.
    pub fn events(&self) -> Events<NodeEvent> {
        Events::new(&self.shared, |shared| &shared.events, self.shared.events.cursor_at_oldest())
    }

    /// What this node holds and has seen, and how far its peers are behind.
    pub fn status(&self) -> NodeStatus {
        NodeStatus::of(&self.shared)
    }

    /// Waits until writes are not refused as [`WriteError::Busy`].
    ///
    /// # Errors
    /// If the node is closed.
    pub async fn writable(&self) -> Result<(), WaitError> {
        let is_writable = |shared: &Shared| {
            let Some(core) = shared.lock() else { return Some(Err(WaitError::Closed)) };
            if !core.replica.is_busy(shared.now()) {
                return Some(Ok(()));
            }
            // Whoever waits is told of the change back, also if the driver has not seen this one yet.
            shared.is_busy.store(true, Ordering::Relaxed);
            drop(core);
            shared.wake_driver.notify_one();
            None
        };
        self.shared.wait_for(is_writable).await
    }

    /// Changes what this node tells about itself, for all others to see.
    ///
    /// # Errors
    /// If it is over [`META_BYTES_MAX`] or [`META_ENTRIES_MAX`], or the
    /// node is closed; nothing changes then.
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

    /// Leaves the cluster, and closes the node: its last writes are given a moment to reach all peers, they are told that
    /// it leaves, then every link, watch and wait ends, and the port is free. Reads are answered from the last state.
    ///
    /// The others see it as [`MemberState::Left`](crate::MemberState::Left): they do not look for it, and no
    /// [`Quorum`] counts it any more. A node that is started again under its name joins as new.
    pub async fn shutdown(&self) {
        self.resign_and_confirm().await;
        if let Some(mut core) = self.shared.lock() {
            core.replica.leave(self.shared.now());
        }
        self.shared.wake_driver.notify_one();
        // Whoever has heard it breaks its link.
        let is_told = |shared: &Shared| match shared.lock() {
            Some(core) => core.senders.is_empty().then_some(()),
            None => Some(()),
        };
        _ = tokio::time::timeout(FAREWELL_TIME_MAX, self.shared.wait_for(is_told)).await;
        self.close().await;
    }

    /// Closes the node as [`shutdown`](Self::shutdown) does, but stays a member that is expected back, as before a restart
    /// that others should wait for. They know at once that its process has ended, see it as
    /// [`MemberState::Down`](crate::MemberState::Down), go on looking for it, and count it in every [`Quorum`] of all or
    /// most members.
    pub async fn shutdown_expecting_return(&self) {
        self.shared.close_code.store(link::CLOSE_ENDED, Ordering::Relaxed);
        self.resign_and_confirm().await;
        self.close().await;
    }

    /// Gives up all leases, and gives the last writes a moment to reach all peers.
    async fn resign_and_confirm(&self) {
        self.shared.resign_all().await;
        let Some(head) = self.shared.lock().map(|core| core.replica.head()) else { return };
        let is_told = |shared: &Shared| {
            let mut core = shared.lock()?;
            if core.replica.is_acked(head) {
                return Some(());
            }
            core.replica.request_acks(head, None);
            drop(core);
            shared.wake_driver.notify_one();
            None
        };
        _ = tokio::time::timeout(FAREWELL_TIME_MAX, self.shared.wait_for(is_told)).await;
    }

    /// Ends everything, and waits until the port and the directory are free.
    async fn close(&self) {
        self.shared.close();
        let mut ended = self.shared.ended.subscribe();
        _ = ended.wait_for(|ended| *ended).await;
        // The connections' tasks let go of the socket a little later.
        let is_free = async {
            while std::net::UdpSocket::bind(self.shared.addr).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        _ = tokio::time::timeout(Duration::from_secs(1), is_free).await;
        self.shared.wait_for(|shared| shared.disk.has_ended().then_some(())).await;
    }

    /// Writes everything that this node holds, as of one instant, into a file, from which a node can be started where
    /// no peer can be reached: see [`Builder::restore`]. Writers do not wait for it. The file appears when it is whole
    /// and safe; until then there is another beside it, whose name ends in `.tmp`.
    ///
    /// # Errors
    /// See [`SnapshotError`]; what stood at the path before stands there still.
    #[cfg(feature = "durable")]
    pub async fn snapshot(&self, path: impl Into<std::path::PathBuf>) -> Result<(), SnapshotError> {
        let (shared, path) = (self.shared.clone(), path.into());
        let written = tokio::task::spawn_blocking(move || disk::write_snapshot(&shared, &path)).await;
        written.unwrap_or(Err(SnapshotError::Failed))
    }

    /// Makes every write to the disk fail like this, or none.
    #[cfg(all(feature = "durable", feature = "__controls"))]
    #[doc(hidden)]
    pub fn fail_disk(&self, kind: Option<std::io::ErrorKind>) {
        let fault = self.shared.disk.fault.get().expect("the node has a disk");
        *fault.lock().expect("nobody panics with it") = kind;
    }

    /// Panics while it holds the core, as a bug would.
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

/// What a node tells about itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// This start of its process.
    pub run: u64,
    /// Where it is bound.
    pub addr: SocketAddr,
    /// Whether it is closed.
    pub is_closed: bool,
    /// Whether writes are refused as [`WriteError::Busy`] because the cluster is too far behind.
    pub is_busy: bool,
    /// The replica: root, counts, bytes. Missing if it panicked.
    pub store: Option<Status>,
    /// The peers that this node is linked to.
    pub peers: Vec<PeerStatus>,
    /// How long the writes of other nodes take to arrive here, by the run that wrote.
    pub arrivals: Vec<Arrival>,
}

impl NodeStatus {
    fn of(shared: &Shared) -> Self {
        let core = shared.lock_closed();
        let status = core.map(|core| {
            let peer = |(id, name, addr): (_, &str, _)| {
                let (lag_changes, lag_bytes) = core.replica.lag(id);
                let lag_time = core.replica.lag_time(shared.now(), id);
                let connection = core.senders.get(&id).map(LinkSender::connection);
                let rtt = connection.map(quinn::Connection::rtt).unwrap_or_default();
                let sent_bytes = connection.map_or(0, |connection| connection.stats().udp_tx.bytes);
                PeerStatus { name: name.to_owned(), addr, lag_changes, lag_bytes, lag_time, rtt, sent_bytes }
            };
            (
                core.replica.status(),
                core.peers.links().map(peer).collect(),
                core.arrivals.figures(shared.now(), &core.replica),
            )
        });
        let (store, peers, arrivals) =
            status.map_or_else(Default::default, |(store, peers, arrivals)| (Some(store), peers, arrivals));
        NodeStatus {
            name: shared.name.clone(),
            run: shared.run,
            addr: shared.addr,
            is_closed: shared.is_closed(),
            is_busy: shared.is_busy.load(Ordering::Relaxed),
            store,
            peers,
            arrivals,
        }
    }
}

/// A linked peer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Where it can be reached.
    pub addr: SocketAddr,
    /// Changes that were not sent to it yet.
    pub lag_changes: u64,
    /// About how many bytes they are.
    pub lag_bytes: u64,
    /// For how long it has owed the confirmation of something that it was sent; zero if nothing is overdue. One
    /// confirmation is enough for many writes: it comes half a
    /// [`Config::sync_interval`](crate::Config::sync_interval) after the first.
    pub lag_time: Duration,
    /// The round trip to it.
    pub rtt: Duration,
    /// What was sent to it in UDP datagrams since this link was made, their headers not counted.
    pub sent_bytes: u64,
}
