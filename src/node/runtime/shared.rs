//! What the handles, the driver and the links of one node share: the replica behind one mutex, and the signals beside
//! it.
//!
//! Everything that changes the replica happens under that mutex, and the read index follows before it is released; so a
//! writer reads its own write, and an acknowledged row can be read. Nothing may wait for the network or the disk under
//! it. Wakers are called after it is released. After a panic under the lock the node is closed: writes and waits fail,
//! and reads of the index still answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::arrivals::Arrivals;
use crate::error::WriteError;
use crate::id::{LinkId, LogId, RunId};
use crate::membership::{Contact, Member, MemberEvent};
use crate::node::disk::link::DiskLink;
use crate::node::net::peers::{DialRequest, LinkEnd, NodeEvent, Peers};
use crate::node::net::seeds::DialTargets;
use crate::node::net::sender::LinkSender;
use crate::node::runtime::clock::mono;
use crate::node::runtime::event_log::EventLog;
use crate::node::runtime::index::{Index, IndexCursor};
use crate::node::runtime::join_board::JoinBoard;
use crate::node::runtime::listeners::{Listeners, tell};
use crate::node::runtime::log::{log_event, log_member};
use crate::node::runtime::spans::{end_repair_span, repair_span};
use crate::replica::{Output, Replica};
use crate::store::entry::Revision;
use crate::store::watch::WatchId;
use crate::time::Time;

/// How long a node that ends waits for each of: its leases being released, its last writes being acknowledged, its
/// peers having heard that it leaves.
pub(in crate::node) const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);

/// Everything behind the node's one lock.
#[derive(Debug)]
pub(in crate::node) struct Core {
    pub(in crate::node) replica: Replica,
    /// How long the writes of others take to arrive.
    pub(in crate::node) arrivals: Arrivals,
    pub(in crate::node) index_cursor: IndexCursor,
    pub(in crate::node) wakers: BTreeMap<WatchId, Waker>,
    pub(in crate::node) senders: BTreeMap<LinkId, LinkSender>,
    pub(in crate::node) peers: Peers,
    pub(in crate::node) next_link: LinkId,
    pub(in crate::node) elections: Listeners,
    /// Repairs under way: the peer's name, and the span of the repair.
    pub(in crate::node) repairs: BTreeMap<LinkId, (String, tracing::Span)>,
}

#[derive(Debug)]
pub(in crate::node) struct Shared {
    pub(in crate::node) name: String,
    pub(in crate::node) run: RunId,
    pub(in crate::node) addr: SocketAddr,
    core: Mutex<Core>,
    /// Held by the driver while it waits for the core: see [`Shared::lock_first`].
    lock_queue: Mutex<()>,
    /// The driver waits for the core; others wait for `lock_queue` first.
    is_turn_taken: AtomicBool,
    /// Links whose connection has taken bytes that the replica was not told of yet.
    drained: Mutex<Vec<LinkId>>,
    pub(in crate::node) index: Index,
    pub(in crate::node) disk: DiskLink,
    /// The id of the change log that revisions belong to.
    log: AtomicU64,
    /// The runtime in which the node was started: its tasks and timers run there.
    pub(in crate::node) runtime: tokio::runtime::Handle,
    is_closed: AtomicBool,
    /// Whether local writes were refused as busy when that was last checked.
    pub(in crate::node) is_busy: AtomicBool,
    /// Wakes the driver: the replica may have something to do.
    pub(in crate::node) wake_driver: Notify,
    /// Something may have changed for waiting futures: acknowledgements, readiness, room for writes, members, the end.
    pub(in crate::node) progress: Notify,
    /// The code with which connections are closed when the node ends.
    pub(in crate::node) close_code: AtomicU32,
    /// The network task has closed all connections and has ended.
    pub(in crate::node) ended: tokio::sync::watch::Sender<bool>,
    pub(in crate::node) events: EventLog<NodeEvent>,
    pub(in crate::node) member_events: EventLog<MemberEvent>,
    pub(in crate::node) join_board: JoinBoard,
    #[cfg(feature = "json")]
    pub(in crate::node) rejections: crate::node::runtime::rejections::Rejections,
    #[cfg(feature = "metrics")]
    pub(in crate::node) meter: crate::node::runtime::meter::Meter,
    pub(in crate::node) dial_targets: DialTargets,
}

impl Shared {
    pub(in crate::node) fn new(
        name: String,
        run: RunId,
        addr: SocketAddr,
        replica: Replica,
        dial_targets: DialTargets,
        join_board: JoinBoard,
    ) -> Arc<Self> {
        let log = replica.status().head.log;
        let core = Core {
            replica,
            arrivals: Arrivals::default(),
            index_cursor: IndexCursor::default(),
            wakers: BTreeMap::new(),
            senders: BTreeMap::new(),
            peers: Peers::default(),
            next_link: LinkId::new(1),
            elections: Listeners::default(),
            repairs: BTreeMap::new(),
        };
        Arc::new(Self {
            #[cfg(feature = "metrics")]
            meter: crate::node::runtime::meter::Meter::new(&name),
            name,
            run,
            addr,
            core: Mutex::new(core),
            lock_queue: Mutex::default(),
            is_turn_taken: AtomicBool::new(false),
            drained: Mutex::default(),
            index: Index::new(),
            disk: DiskLink::default(),
            log: AtomicU64::new(log.number()),
            runtime: tokio::runtime::Handle::current(),
            is_closed: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            wake_driver: Notify::new(),
            progress: Notify::new(),
            close_code: AtomicU32::new(crate::node::net::sender::CLOSE_LEFT),
            ended: tokio::sync::watch::Sender::new(false),
            events: EventLog::new(),
            member_events: EventLog::new(),
            join_board,
            #[cfg(feature = "json")]
            rejections: crate::node::runtime::rejections::Rejections::default(),
            dial_targets,
        })
    }

    #[expect(clippy::unused_self, reason = "whose time it is, though all have the same")]
    pub(in crate::node) fn now(&self) -> Time {
        Time { mono: mono(), wall: wall() }
    }

    pub(in crate::node) fn log(&self) -> LogId {
        LogId::new(self.log.load(Ordering::Relaxed))
    }

    pub(in crate::node) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Takes the lock; `None` once the node is closed, or if the core has panicked, which closes it.
    pub(in crate::node) fn lock(&self) -> Option<MutexGuard<'_, Core>> {
        if self.is_closed() {
            return None;
        }
        let Some(core) = self.lock_closed() else {
            self.close();
            return None;
        };
        // The node may have been closed while this waited for the lock. After `close` nothing new may begin.
        (!self.is_closed()).then_some(core)
    }

    /// Takes the lock before all callers that come later, and returns whether it had to wait; `None` if the core has
    /// panicked. For the driver: the operating system's mutex is not fair, so a thread that writes in a loop takes it
    /// again before a waiting thread is awake, and nothing would be sent or merged meanwhile.
    pub(in crate::node) fn lock_first(&self) -> Option<(MutexGuard<'_, Core>, bool)> {
        if let Ok(core) = self.core.try_lock() {
            return Some((core, false));
        }
        let _turn = self.lock_queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_turn_taken.store(true, Ordering::Relaxed);
        let core = self.core.lock();
        self.is_turn_taken.store(false, Ordering::Relaxed);
        Some((core.ok()?, true))
    }

    pub(in crate::node) fn drained(&self) -> MutexGuard<'_, Vec<LinkId>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock even if the node is closed, to read the last state; `None` if the core has panicked.
    pub(in crate::node) fn lock_closed(&self) -> Option<MutexGuard<'_, Core>> {
        if self.is_turn_taken.load(Ordering::Relaxed) {
            drop(self.lock_queue.lock());
        }
        self.core.lock().ok()
    }

    /// Drops the sending sides of all links, also after a panic, and returns the wakers of the watches, which end now.
    pub(in crate::node) fn let_go(&self) -> BTreeMap<WatchId, Waker> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.senders.clear();
        std::mem::take(&mut core.wakers)
    }

    /// Ends all campaigns, leases and observers of this node, which is closed, also after a panic.
    pub(in crate::node) fn end_leases(&self) {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut core.elections);
        drop(core);
        ended.leaders.values().for_each(|observers| observers.notify_waiters());
    }

    /// Closes the node: from now on no write is accepted, and every wait ends.
    pub(in crate::node) fn close(&self) {
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            self.wake_driver.notify_one();
            self.disk.request_sync();
            self.progress.notify_waiters();
            let streams = [&self.events.notify, &self.member_events.notify, &self.join_board.notify];
            streams.into_iter().for_each(|readers| readers.notify_waiters());
        }
    }

    /// Makes one local write. Under the same lock the read index follows, so that the writer reads it at once.
    pub(in crate::node) fn write<T>(
        &self,
        write: impl FnOnce(&mut Replica, Time) -> Result<T, WriteError>,
    ) -> Result<(T, Revision), WriteError> {
        #[cfg(feature = "metrics")]
        let began = std::time::Instant::now();
        let written = self.try_write(write);
        #[cfg(feature = "metrics")]
        self.meter.count_write(&written, began.elapsed());
        written
    }

    fn try_write<T>(
        &self,
        write: impl FnOnce(&mut Replica, Time) -> Result<T, WriteError>,
    ) -> Result<(T, Revision), WriteError> {
        let mut core = self.lock().ok_or(WriteError::Closed)?;
        let now = self.now();
        let written = write(&mut core.replica, now)?;
        let revision = core.replica.head();
        let wakers = self.follow(&mut core, now);
        drop(core);
        self.wake_driver.notify_one();
        wakers.into_iter().for_each(Waker::wake);
        Ok((written, revision))
    }

    /// Brings the read index to the head of the log, wakes the disk, and returns the wakers of watches that have
    /// something to read. The caller wakes them once the lock is released.
    pub(in crate::node) fn follow(&self, core: &mut Core, now: Time) -> Vec<Waker> {
        self.log.store(core.replica.head().log.number(), Ordering::Relaxed);
        self.index.follow(&mut core.index_cursor, &core.replica.store, now);
        if core.replica.wants_disk() {
            self.disk.wake_disk();
        }
        let ready = core.replica.take_ready_watches();
        ready.into_iter().filter_map(|id| core.wakers.remove(&id)).collect()
    }

    /// Waits until `done` returns `Some`. It is called again after every notification of `progress`.
    pub(in crate::node) async fn wait_for<T>(&self, mut done: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if let Some(done) = done(self) {
                return done;
            }
            progress.await;
        }
    }

    /// Gives up all leases, and waits for at most [`FAREWELL_TIME_MAX`] until the voters know of it.
    pub(in crate::node) async fn resign_all(&self) {
        if let Some(mut core) = self.lock() {
            core.replica.resign_all(self.now());
        }
        self.wake_driver.notify_one();
        let is_told = |shared: &Self| match shared.lock() {
            Some(core) => (!core.replica.owes_releases()).then_some(()),
            None => Some(()),
        };
        _ = tokio::time::timeout(FAREWELL_TIME_MAX, self.wait_for(is_told)).await;
    }

    pub(in crate::node) fn members(&self) -> Vec<Member> {
        let members = |core: &Core| {
            core.replica.own_member().into_iter().chain(core.replica.members()).cloned().collect()
        };
        self.lock_closed().map_or_else(Vec::new, |core| members(&core))
    }

    /// Carries out one output of the replica. It runs under the lock and must not wait. If it returns a [`Notify`], the
    /// caller must trigger it once it has released the lock.
    pub(in crate::node) fn dispatch(&self, core: &mut Core, output: Output) -> Option<Arc<Notify>> {
        #[cfg(feature = "metrics")]
        self.meter.count_sent(&output);
        match output {
            Output::Stream(id, lane, bytes) => {
                if let Some(wire) = core.senders.get(&id) {
                    wire.send(lane, bytes);
                }
            }
            Output::Datagram(id, bytes) => {
                if let Some(wire) = core.senders.get(&id) {
                    wire.send_datagram(bytes);
                }
            }
            Output::Break(id, reason) => {
                if let Some(wire) = core.senders.remove(&id) {
                    wire.close(crate::node::net::sender::CLOSE_BROKEN);
                }
                let (peer, addr) = core.peers.remove_link(id)?;
                return Some(self.add_event(NodeEvent::LinkEnded {
                    peer,
                    addr,
                    end: LinkEnd::Broken(reason),
                }));
            }
            Output::MemberDatagram(to, bytes) => self.send_packet(core, to, bytes),
            Output::RepairBegun(id) => {
                let peer = core.peers.name(id).unwrap_or_default().to_owned();
                let span = repair_span(&self.name, &peer);
                core.repairs.insert(id, (peer, span));
            }
            Output::Repair(id, repair) => {
                let (peer, span) = core.repairs.remove(&id)?;
                end_repair_span(&span, &repair);
                return Some(self.add_event(NodeEvent::RepairEnded { peer, repair }));
            }
            Output::Dial(contact) => self.request_dial(DialRequest::Member(contact)),
            Output::Seek => self.request_dial(DialRequest::Seeds),
            Output::Member(event) => {
                log_member(&self.name, &event);
                return Some(self.member_events.add(event));
            }
            Output::VotersSet(outcome) => tell(&mut core.elections.voters, outcome),
            Output::SettingsSet(outcome) => tell(&mut core.elections.settings, outcome),
            Output::Lease(id, state) => {
                let event = core.elections.lease(id, state)?;
                return Some(self.add_event(event));
            }
            Output::Leader(name, _) => return core.elections.leaders.get(&name).cloned(),
            Output::Event(event) => return Some(self.add_event(event.into())),
        }
        None
    }
}

impl Shared {
    /// Logs an event and adds it for the readers, under the lock of the core. The caller must trigger what it returns
    /// once it has released the lock.
    pub(in crate::node) fn add_event(&self, event: NodeEvent) -> Arc<Notify> {
        log_event(&self.name, &event);
        #[cfg(feature = "metrics")]
        self.meter.count_event(&event);
        self.events.add(event)
    }

    /// Logs an event and adds it for the readers. Not under the lock of the core, where [`Shared::dispatch`] adds.
    pub(in crate::node) fn report(&self, event: NodeEvent) {
        log_event(&self.name, &event);
        self.events.push(event);
    }

    pub(in crate::node) fn request_dial(&self, request: DialRequest) {
        // An error means that the network task has ended; then no link is needed any more.
        _ = self.dial_targets.requests.send(request);
    }

    /// Sends a datagram to a member over its link. Without a link it is dropped, and the member is dialled for the
    /// next.
    fn send_packet(&self, core: &Core, to: Contact, bytes: Vec<u8>) {
        let wire = core.peers.link(to.run).and_then(|id| core.senders.get(&id));
        match wire {
            Some(wire) => wire.send_datagram(bytes),
            None => self.request_dial(DialRequest::Datagram(to)),
        }
    }
}

pub(in crate::node) fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The same in milliseconds.
pub(in crate::node) fn wall_ms() -> u64 {
    wall().as_millis() as u64
}

#[cfg(test)]
pub(in crate::node) mod tests {
    use super::*;
    use crate::config::Config;
    use crate::replica::Setup;

    pub(in crate::node) fn shared() -> Arc<Shared> {
        // Nothing runs in it, but a node keeps a handle to its runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _entered = runtime.enter();
        let (requests, _) = tokio::sync::mpsc::unbounded_channel();
        let dial_targets = DialTargets { requests, seeds: crate::node::net::seeds::Seeds::default() };
        let replica = Replica::new(Setup::new(Config::lan(), 1));
        let addr = ([127, 0, 0, 1], 1).into();
        Shared::new("n".to_owned(), RunId::new(1), addr, replica, dial_targets, JoinBoard::alone())
    }

    #[test]
    fn waiting_for_the_lock_fails_after_close() {
        for _ in 0..200 {
            let shared = shared();
            let begun = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                let held = shared.lock();
                let late = scope.spawn(|| {
                    begun.wait();
                    shared.lock().is_none()
                });
                begun.wait();
                std::thread::yield_now();
                shared.close();
                drop(held);
                assert!(late.join().unwrap());
            });
        }
    }

    #[test]
    fn lock_first_goes_before_all_later_waiters() {
        let shared = shared();
        let order = Mutex::new(Vec::new());
        for _ in 0..200 {
            std::thread::scope(|scope| {
                let held = shared.lock();
                scope.spawn(|| {
                    let core = shared.lock_first();
                    order.lock().unwrap().push("first");
                    drop(core);
                });
                while !shared.is_turn_taken.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                for _ in 0..3 {
                    scope.spawn(|| {
                        let core = shared.lock();
                        order.lock().unwrap().push("later");
                        drop(core);
                    });
                }
                drop(held);
            });
            assert_eq!(std::mem::take(&mut *order.lock().unwrap()), ["first", "later", "later", "later"]);
        }
    }
}
