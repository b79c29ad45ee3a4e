//! The endpoint: dials whom the core wants to be linked with, and lets in who belongs to the cluster.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use moka::sync::Cache;
use quinn::{Connection, Endpoint, Incoming, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::admission::{Admission, HandshakeVerdict, Permit, SourceAddr};
use super::congestion::{CongestionWindows, close};
use super::driver::LinkEvent;
use super::greeting::Greeting;
use super::link::{CLOSE_ENDED, CLOSE_REFUSED, CLOSE_SECURITY, NoLink, greet, no_link, welcome};
use super::peers::{NodeEvent, NodeIdentity};
use super::round_trip::{RECEIVE_WINDOW_FIRST, SEND_WINDOW_MAX};
use super::security::{SERVER_NAME, Security};
use super::shared::{Core, Shared, wall};
use crate::membership::Contact;
use crate::node::error::StartError;

/// Addresses dialled at a time; more of them wait. A handshake is work, and with many at once each would seem to be far
/// away: a connection remembers its first round trip for a long time, and waits for three of them before it sends a lost
/// packet again.
const DIALS_MAX: usize = 4;
/// Whoever takes longer keeps nobody waiting any more.
const DIAL_SLOT_TIME: Duration = Duration::from_millis(100);
const DIAL_TIME_MAX: Duration = Duration::from_secs(5);
/// An address that leads to this node itself is tried again only now and then: addresses move.
const ITSELF_PAUSE: Duration = Duration::from_secs(60);
/// A refusal or an unreachable seed is told once in this time, of so many different ones.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
const REPORTS_MAX: u64 = 1_024;
/// Refusals of connections that others began, told in each [`REPORT_INTERVAL`] whatever their source addresses are:
/// a stranger invents as many addresses as it likes. Further ones are counted, and the count is logged.
const REFUSALS_TOLD_MAX: u32 = 32;

/// First packets of handshakes that were received and not yet decided about. Deciding never waits, so there are few
/// even under load; beyond it, the connection is refused.
const INCOMING_MAX: usize = 1_024;
/// Further packets of one such handshake, and of all of them, in bytes; beyond it, they are dropped and sent again.
const INCOMING_BYTES_MAX: u64 = 64 << 10;
const INCOMING_TOTAL_BYTES_MAX: u64 = 4 << 20;
/// How long an answer "no such host" counts.
const NO_HOST_TIME: Duration = Duration::from_secs(2);

/// The socket's buffers. One socket serves all links, and what overflows is missed by those who sent least: the loss
/// of a lone packet is noticed only after tens of milliseconds.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;
/// What may be on its way on one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// How long a peer may keep an acknowledgement back. A packet that nothing follows counts as lost only after that time.
const ACK_DELAY_MAX: Duration = Duration::from_millis(2);
/// Links are kept while nothing is said: whether their other end lives is for the failure detector to find. In a
/// cluster of a thousand, two given members have a word with each other every four minutes.
const IDLE_TIME_MAX: Duration = Duration::from_secs(1_800);

/// Whom the core wants to be linked with.
#[derive(Clone, Copy, Debug)]
pub(super) enum DialRequest {
    Member(Contact),
    Seeds,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: NodeIdentity,
    pub(super) security: Security,
    endpoint: Endpoint,
    pub(super) happenings: mpsc::Sender<LinkEvent>,
    seeds: Vec<String>,
    dials: Arc<Semaphore>,
    pub(super) questions: Arc<Semaphore>,
    admission: Admission,
    reported: Cache<String, ()>,
    refusals_told: Mutex<RefusalsTold>,
    no_hosts: Cache<String, ()>,
    /// Seeds whose addresses are being asked for: the system may take long to answer.
    resolving: Mutex<BTreeSet<String>>,
    /// Addresses that lead to this node.
    itself: Cache<SocketAddr, ()>,
}

impl Network {
    pub(super) fn new(
        shared: Arc<Shared>,
        identity: NodeIdentity,
        security: Security,
        endpoint: Endpoint,
        happenings: mpsc::Sender<LinkEvent>,
        seeds: Vec<String>,
    ) -> Arc<Self> {
        let cache = |time| Cache::builder().max_capacity(REPORTS_MAX).time_to_live(time).build();
        let (reported, no_hosts) = (cache(REPORT_INTERVAL), cache(NO_HOST_TIME));
        let itself = Cache::builder().max_capacity(REPORTS_MAX).time_to_live(ITSELF_PAUSE).build();
        let (dials, questions) = (Arc::new(Semaphore::new(DIALS_MAX)), Arc::new(Semaphore::new(1)));
        Arc::new(Self {
            shared,
            identity,
            security,
            endpoint,
            happenings,
            seeds,
            dials,
            questions,
            admission: Admission::new(),
            reported,
            refusals_told: Mutex::default(),
            no_hosts,
            resolving: Mutex::default(),
            itself,
        })
    }

    /// Runs until the node is closed, then lets go of everything.
    pub(super) async fn run(
        self: Arc<Self>,
        mut wishes: mpsc::UnboundedReceiver<DialRequest>,
        _ending: ShutdownGuard,
    ) {
        tokio::spawn(Self::follow_security(self.clone()));
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        tokio::pin!(closed);
        loop {
            tokio::select! {
                () = &mut closed => break,
                Some(wish) = wishes.recv() => self.handle_dial_request(wish),
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    self.decide(incoming);
                }
            }
        }
        self.end().await;
    }

    /// Decides about a connection that somebody begins. Never waits: the next one may be a member's.
    fn decide(self: &Arc<Self>, incoming: Incoming) {
        let addr = incoming.remote_address().ip();
        match self.admission.handshake(addr, incoming.remote_address_validated()) {
            HandshakeVerdict::Accept(place, time) => {
                tokio::spawn(Self::let_in(self.clone(), incoming, place, time));
            }
            // It is permitted for every address that is not validated.
            HandshakeVerdict::Retry => _ = incoming.retry(),
            HandshakeVerdict::Refuse => incoming.refuse(),
        }
    }

    fn handle_dial_request(self: &Arc<Self>, wish: DialRequest) {
        match wish {
            DialRequest::Member(contact) => {
                _ = tokio::spawn(Self::dial_once(self.clone(), contact.addr, None))
            }
            DialRequest::Seeds => {
                for seed in &self.seeds {
                    tokio::spawn(Self::seek(self.clone(), seed.clone()));
                }
            }
        }
    }

    async fn end(&self) {
        // A node that has panicked did not end in order: it is expected back.
        let has_panicked = self.shared.lock_closed().is_none();
        let code = if has_panicked { CLOSE_ENDED } else { self.shared.close_code.load(Ordering::Relaxed) };
        // Whoever leads here learns that it is over before others learn that this node is.
        self.shared.end_leases();
        for wire in self.shared.lock_closed().iter().flat_map(|core| core.senders.values()) {
            wire.close(code);
        }
        self.endpoint.close(VarInt::from_u32(code), b"");
        self.shared.let_go().into_values().for_each(Waker::wake);
        // So that the peers hear of it; but a peer that is gone must not hold this up.
        _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    pub(super) fn greeting(&self) -> Greeting {
        let core = self.shared.lock_closed();
        let own = core.and_then(|core| core.replica.own_member().cloned());
        let (meta, meta_version) = own.map_or_else(Default::default, |own| (own.meta, own.meta_version));
        Greeting {
            cluster: self.identity.cluster.clone(),
            name: self.shared.name.clone(),
            run: self.shared.run,
            app_version: self.identity.app_version.clone(),
            wall_ms: wall().as_millis() as u64,
            advertised: self.identity.advertised,
            port: self.shared.addr.port(),
            meta,
            meta_version,
        }
    }

    /// Tells the user once in a while.
    fn report(&self, what: String, event: NodeEvent) {
        if !self.reported.contains_key(&what) {
            tracing::warn!(node = %self.shared.name, ?event, "no link");
            self.reported.insert(what, ());
            self.shared.events.push(event);
            self.shared.progress.notify_waiters();
        }
    }

    /// Tells the user of a refusal of somebody who connected to this node, unless too many were told of lately.
    fn report_stranger(&self, addr: SocketAddr, why: NoLink) {
        let NoLink::Refused { by_us, refusal } = why else { return };
        let what = format!("{:?} {by_us} {refusal:?}", SourceAddr::from(addr.ip()));
        if self.reported.contains_key(&what) {
            return;
        }
        let mut told = self.refusals_told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = told.count(self.shared.now().mono, &self.shared.name);
        drop(told);
        if is_told {
            self.report(what, NodeEvent::PeerRefused { addr, by_us, refusal });
        }
    }

    fn report_no_link(&self, addr: SocketAddr, target: Option<&str>, why: NoLink) {
        match why {
            NoLink::Refused { by_us, refusal } => {
                let what = format!("{} {by_us} {refusal:?}", addr.ip());
                self.report(what, NodeEvent::PeerRefused { addr, by_us, refusal });
            }
            NoLink::Unreachable(reason) => {
                if let Some(target) = target {
                    let event = NodeEvent::Unreachable { target: target.to_owned(), reason };
                    self.report(target.to_owned(), event);
                }
            }
            NoLink::Itself | NoLink::Duplicate => {}
        }
    }

    async fn let_in(self: Arc<Self>, incoming: Incoming, place: Permit, time: Duration) {
        let addr = incoming.remote_address();
        let connected = self.shake_hands(incoming, time).await;
        // Whoever is still at its handshake does not keep out those who have a good certificate.
        drop(place);
        let linked = match (connected, self.admission.greeting(addr.ip())) {
            (Ok(connection), Some(_place)) => welcome(&self, connection).await.map(|_| ()),
            (Ok(connection), None) => {
                close(&connection, CLOSE_REFUSED);
                Err(NoLink::Unreachable("too many greetings at a time".to_owned()))
            }
            (Err(error), _) => Err(error),
        };
        if let Err(why) = linked {
            self.report_stranger(addr, why);
        }
    }

    async fn shake_hands(&self, incoming: Incoming, time: Duration) -> Result<Connection, NoLink> {
        let config = self.security.server(&self.shared.name);
        let config = config.map_err(|error| NoLink::Unreachable(error.to_string()))?;
        let accepted = incoming.accept_with(Arc::new(tuned_server(config)));
        let connecting = accepted.map_err(|error| no_link(&self.security, &error))?;
        let late = |_| NoLink::Unreachable("the handshake was not finished".to_owned());
        let connected = timeout(time, connecting).await.map_err(late)?;
        connected.map_err(|error| no_link(&self.security, &error))
    }

    /// Tries all addresses of a seed that lead to nobody linked yet.
    async fn seek(self: Arc<Self>, seed: String) {
        if !self.resolving().insert(seed.clone()) {
            return;
        }
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        let resolved = tokio::select! {
            () = closed => return,
            resolved = self.resolve(&seed) => resolved,
        };
        self.resolving().remove(&seed);
        match resolved {
            Ok(addrs) => {
                for addr in addrs {
                    tokio::spawn(Self::dial_once(self.clone(), addr, Some(seed.clone())));
                }
            }
            Err(reason) => {
                let event = NodeEvent::Unreachable { target: seed.clone(), reason };
                self.report(seed, event);
            }
        }
    }

    /// Tries once to be linked with whoever is at an address. The core asks again if that is needed.
    pub(super) async fn dial_once(self: Arc<Self>, addr: SocketAddr, seed: Option<String>) {
        let begin = |core: &mut Core| !core.peers.is_linked(addr) && core.peers.dialling.insert(addr);
        if self.itself.contains_key(&addr) || !self.shared.lock().is_some_and(|mut core| begin(&mut core)) {
            return;
        }
        let _dialling = Dialling(&self.shared, addr);
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        let dialled = async {
            let turn = self.dials.acquire().await.expect("it is never closed");
            // While this waited for its turn, the other side may have dialled.
            if self.shared.lock().is_none_or(|core| core.peers.is_linked(addr)) {
                return Ok(());
            }
            tracing::debug!(node = %self.shared.name, %addr, ?seed, "dialling");
            let dialled = self.dial(addr);
            tokio::pin!(dialled);
            if let Ok(linked) = timeout(DIAL_SLOT_TIME, &mut dialled).await {
                return linked;
            }
            drop(turn);
            dialled.await
        };
        tokio::select! {
            () = closed => {}
            dialled = dialled => match dialled {
                Err(NoLink::Itself) => self.itself.insert(addr, ()),
                Err(why) => self.report_no_link(addr, seed.as_deref(), why),
                Ok(()) => {}
            }
        }
    }

    fn resolving(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.resolving.lock().expect("nothing panics while it changes")
    }

    async fn dial(self: &Arc<Self>, addr: SocketAddr) -> Result<(), NoLink> {
        let unreachable = |error: &dyn std::fmt::Display| NoLink::Unreachable(error.to_string());
        let config = self.security.client(&self.shared.name).map_err(|error| unreachable(&error))?;
        let connecting = self
            .endpoint
            .connect_with(tuned_client(config), addr, SERVER_NAME)
            .map_err(|error| unreachable(&error))?;
        let connected = timeout(DIAL_TIME_MAX, connecting).await.map_err(|_| unreachable(&"no answer"))?;
        let connection = connected.map_err(|error| no_link(&self.security, &error))?;
        greet(self, connection, addr).await.map(|_| ())
    }

    /// All addresses of a seed, asked for anew each time.
    async fn resolve(&self, seed: &str) -> Result<Vec<SocketAddr>, String> {
        if let Ok(addr) = seed.parse() {
            return Ok(vec![addr]);
        }
        if self.no_hosts.contains_key(seed) {
            return Err("no such host, a moment ago".to_owned());
        }
        let found: Result<Vec<SocketAddr>, _> = tokio::net::lookup_host(seed).await.map(Iterator::collect);
        let addrs = found.map_err(|error| error.to_string()).and_then(|addrs| {
            let v4 = self.shared.addr.is_ipv4();
            let usable: Vec<SocketAddr> = addrs.into_iter().filter(|addr| !v4 || addr.is_ipv4()).collect();
            if usable.is_empty() { Err("no address that this node can reach".to_owned()) } else { Ok(usable) }
        });
        if addrs.is_err() {
            self.no_hosts.insert(seed.to_owned(), ());
        }
        addrs
    }

    /// Closes the links of peers that are no longer accepted, whenever that changes.
    async fn follow_security(self: Arc<Self>) {
        let mut versions = self.security.changes();
        loop {
            tokio::select! {
                () = self.shared.wait_for(|shared| shared.is_closed().then_some(())) => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
            let Some(core) = self.shared.lock() else { return };
            for wire in core.senders.values() {
                if !self.security.accepts(wire.connection()) {
                    wire.close(CLOSE_SECURITY);
                }
            }
        }
    }
}

/// How many refusals of strangers the user was told of since the beginning of a [`REPORT_INTERVAL`].
#[derive(Debug, Default)]
struct RefusalsTold {
    since: Duration,
    told: u32,
    untold: u64,
}

impl RefusalsTold {
    /// Whether one more is told.
    fn count(&mut self, now: Duration, node: &str) -> bool {
        if now >= self.since + REPORT_INTERVAL {
            if self.untold > 0 {
                tracing::warn!(node, count = self.untold, "further connections were refused");
            }
            *self = Self { since: now, ..Self::default() };
        }
        let is_told = self.told < REFUSALS_TOLD_MAX;
        self.told += u32::from(is_told);
        self.untold += u64::from(!is_told);
        is_told
    }
}

/// An address that is being dialled: while this is there, not a second time.
struct Dialling<'a>(&'a Shared, SocketAddr);

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if let Some(mut core) = self.0.lock() {
            core.peers.dialling.remove(&self.1);
        }
    }
}

/// The end of all waits, also of those in other runtimes if this one goes away under the node.
pub(super) struct ShutdownGuard(pub(super) Arc<Shared>);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        self.0.close();
        self.0.end_leases();
        self.0.let_go().into_values().for_each(Waker::wake);
        self.0.ended.send_replace(true);
    }
}

/// What connections may cost, and when they count as dead.
fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.max_ack_delay(Some(ACK_DELAY_MAX));
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_FIRST))
        .send_window(SEND_WINDOW_MAX)
        .datagram_receive_buffer_size(Some(64 << 10))
        .congestion_controller_factory(Arc::new(CongestionWindows::default()))
        .max_idle_timeout(Some(IDLE_TIME_MAX.try_into().expect("half an hour")));
    Arc::new(config)
}

fn tuned_client(mut config: quinn::ClientConfig) -> quinn::ClientConfig {
    config.transport_config(transport());
    config
}

fn tuned_server(mut config: quinn::ServerConfig) -> quinn::ServerConfig {
    config.transport_config(transport());
    config
}

/// Binds the endpoint, for dialling and for being dialled.
pub(super) fn bind(listen: SocketAddr, config: quinn::ServerConfig) -> Result<Endpoint, StartError> {
    let failed = |error: std::io::Error| StartError::Bind { addr: listen, reason: error.to_string() };
    let socket = std::net::UdpSocket::bind(listen).map_err(failed)?;
    // What the system refuses of it, it refuses: then more is lost, and sent again, when many send at once.
    let sizes = socket2::SockRef::from(&socket);
    _ = sizes.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    _ = sizes.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    let runtime = Arc::new(quinn::TokioRuntime);
    // Each handshake brings the configuration of its instant; this one says that there are handshakes.
    let mut config = tuned_server(config);
    config
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime).map_err(failed)
}
