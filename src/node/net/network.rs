//! The endpoint: dials the members and seeds that the core asks for, and admits incoming connections.
//!
//! The core decides whom to dial and when to dial again; a dial here is one attempt. Every connection, dialled or
//! incoming, becomes a link only through the greeting in `link.rs`. The task that accepts connections must never wait:
//! the next packet may be a member's.
//!
//! What strangers can cause is bounded: the places for handshakes (`admission.rs`), the buffers for their first
//! packets, and the refusals that are reported.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use moka::sync::Cache;
use quinn::{Connection, Endpoint, Incoming, TransportConfig, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tracing::Instrument;

use crate::error::{Cause, StartError};
use crate::membership::Contact;
use crate::node::net::admission::{Admission, HandshakeVerdict, Permit, SourceAddr};
use crate::node::net::congestion::{CongestionWindows, close};
use crate::node::net::link::{Greeter, NoLink, greet, no_link, welcome};
use crate::node::net::peers::{DialRequest, NodeEvent, NodeIdentity};
use crate::node::net::round_trip::{RECEIVE_WINDOW_FIRST, SEND_WINDOW_MAX};
use crate::node::net::security::{SERVER_NAME, Security};
use crate::node::net::seeds::Seed;
use crate::node::net::sender::{CLOSE_ENDED, CLOSE_REFUSED, CLOSE_SECURITY, LinkEvent};
use crate::node::runtime::shared::{Core, Shared};
use crate::node::runtime::spans::handshake_span;

/// Dials in progress at a time; further ones wait. With many handshakes at once the work of each makes the round trips
/// look long. A connection remembers its first round trip for a long time, and waits for three of them before it
/// retransmits a lost packet.
const DIALS_MAX: usize = 4;
/// A dial that takes longer goes on, but no longer counts towards [`DIALS_MAX`].
const DIAL_SLOT_TIME: Duration = Duration::from_millis(100);
/// Dials for members that a datagram was for, and that wait for their turn. Further ones are left out: what other
/// members say decides to whom datagrams go, and where.
const DATAGRAM_DIALS_MAX: usize = 64;
/// Timeout of the handshake of a dial.
const DIAL_TIME_MAX: Duration = Duration::from_secs(5);
/// An address that led to this node itself is dialled again after this time, because addresses move.
const ITSELF_PAUSE: Duration = Duration::from_secs(60);
/// The certificates of linked peers are verified again this often, because they expire.
const VERIFY_INTERVAL: Duration = Duration::from_secs(10);
/// The same refusal or unreachable seed is reported once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// Different reports that are remembered, so that they are not repeated. Also the entries of the other caches here.
const REPORTS_MAX: u64 = 1_024;
/// Refusals of incoming connections that are reported in each [`REPORT_INTERVAL`], whatever their source addresses are:
/// a stranger can use any number of addresses. Further ones are counted, and the count is logged.
const REFUSALS_TOLD_MAX: u32 = 32;

/// First packets of handshakes that were received and not decided about yet. Deciding never waits, so there are few
/// even under load. Beyond this number a connection is refused.
const INCOMING_MAX: usize = 1_024;
/// Bytes of further packets of one such handshake, and of all of them. Beyond it packets are dropped, and
/// retransmitted.
const INCOMING_BYTES_MAX: u64 = 64 << 10;
const INCOMING_TOTAL_BYTES_MAX: u64 = 4 << 20;
/// How long a seed whose name could not be resolved is not resolved again.
const NO_HOST_TIME: Duration = Duration::from_secs(2);

/// The socket's buffers. One socket serves all links. When it overflows, the links that send little suffer most: the
/// loss of a single packet is noticed only after tens of milliseconds.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;
/// Bytes in flight on one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// How long a peer may delay a QUIC acknowledgement. The last packet of a burst counts as lost only after that time.
const ACK_DELAY_MAX: Duration = Duration::from_millis(2);
/// Idle timeout of a connection. It is long, because the failure detector finds out whether the other end lives. In a
/// cluster of 1,000 members, two given members exchange a packet every four minutes.
const IDLE_TIME_MAX: Duration = Duration::from_secs(1_800);

#[derive(Debug)]
pub(in crate::node) struct Network {
    shared: Arc<Shared>,
    greeter: Arc<Greeter>,
    endpoint: Endpoint,
    dials: Arc<Semaphore>,
    datagram_dials: Arc<Semaphore>,
    admission: Admission,
    reported: Cache<String, ()>,
    refusals_told: Mutex<RefusalsTold>,
    no_hosts: Cache<String, ()>,
    /// Seeds that are being resolved: the operating system may take long to answer.
    resolving: Mutex<BTreeSet<String>>,
    /// Addresses that led to this node itself.
    itself: Cache<SocketAddr, ()>,
}

impl Network {
    pub(in crate::node) fn new(
        shared: Arc<Shared>,
        identity: NodeIdentity,
        security: Security,
        endpoint: Endpoint,
        events: mpsc::Sender<LinkEvent>,
    ) -> Arc<Self> {
        let cache = |time| Cache::builder().max_capacity(REPORTS_MAX).time_to_live(time).build();
        let (reported, no_hosts) = (cache(REPORT_INTERVAL), cache(NO_HOST_TIME));
        let itself = Cache::builder().max_capacity(REPORTS_MAX).time_to_live(ITSELF_PAUSE).build();
        let dials = Arc::new(Semaphore::new(DIALS_MAX));
        let admission = Admission::new(security.controls());
        let greeter = Greeter {
            shared: shared.clone(),
            identity,
            security,
            events,
            rtt_probes: Arc::new(Semaphore::new(1)),
        };
        Arc::new(Self {
            shared,
            greeter: Arc::new(greeter),
            endpoint,
            dials,
            datagram_dials: Arc::new(Semaphore::new(DATAGRAM_DIALS_MAX)),
            admission,
            reported,
            refusals_told: Mutex::default(),
            no_hosts,
            resolving: Mutex::default(),
            itself,
        })
    }

    /// Runs until the node is closed, then closes all connections and the endpoint.
    pub(in crate::node) async fn run(
        self: Arc<Self>,
        mut dial_requests: mpsc::UnboundedReceiver<DialRequest>,
        _ending: ShutdownGuard,
    ) {
        tokio::spawn(Self::follow_security(self.clone()));
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        tokio::pin!(closed);
        loop {
            tokio::select! {
                () = &mut closed => break,
                Some(request) = dial_requests.recv() => self.handle_dial_request(request),
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    self.decide(incoming);
                }
            }
        }
        self.end().await;
    }

    /// Decides about an incoming connection. Must never wait: the next one may be a member's.
    fn decide(self: &Arc<Self>, incoming: Incoming) {
        let addr = incoming.remote_address().ip();
        let is_validated = incoming.remote_address_validated();
        let decide = if is_validated { Admission::validated } else { Admission::unvalidated };
        match decide(&self.admission, addr) {
            HandshakeVerdict::Accept(place, time) => {
                let span = handshake_span(&self.shared.name, incoming.remote_address());
                tokio::spawn(Self::let_in(self.clone(), incoming, place, time).instrument(span));
            }
            // A retry cannot fail for an address that is not validated.
            HandshakeVerdict::Retry => _ = incoming.retry(),
            HandshakeVerdict::Refuse => incoming.refuse(),
        }
    }

    fn handle_dial_request(self: &Arc<Self>, request: DialRequest) {
        match request {
            DialRequest::Member(contact) => self.dial_member(contact, None),
            DialRequest::Datagram(contact) => {
                if let Ok(place) = self.datagram_dials.clone().try_acquire_owned() {
                    self.dial_member(contact, Some(place));
                }
            }
            DialRequest::Seeds => {
                for seed in self.shared.dial_targets.seeds.all() {
                    tokio::spawn(Self::seek(self.clone(), seed));
                }
            }
        }
    }

    fn dial_member(self: &Arc<Self>, contact: Contact, place: Option<OwnedSemaphorePermit>) {
        let is_linked = |core: &Core| core.peers.link(contact.run).is_some();
        if !self.shared.lock().is_some_and(|core| is_linked(&core)) {
            _ = tokio::spawn(Self::dial_once(self.clone(), contact.addr, None, place));
        }
    }

    async fn end(&self) {
        // A node that has panicked did not leave: it is expected back.
        let has_panicked = self.shared.lock_closed().is_none();
        let code = if has_panicked { CLOSE_ENDED } else { self.shared.close_code.load(Ordering::Relaxed) };
        // Leases end here before peers learn that this node ends.
        self.shared.end_leases();
        for wire in self.shared.lock_closed().iter().flat_map(|core| core.senders.values()) {
            wire.close(code);
        }
        self.endpoint.close(VarInt::from_u32(code), b"");
        self.shared.let_go().into_values().for_each(Waker::wake);
        // Time for the close packets to reach the peers; a peer that is gone delays this by at most 1 s.
        _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    /// Reports an event, unless the same one (by `what`) was reported within [`REPORT_INTERVAL`].
    fn report(&self, what: String, event: NodeEvent) {
        if !self.reported.contains_key(&what) {
            self.reported.insert(what, ());
            self.shared.report(event);
        }
    }

    /// The configuration of a handshake of this node. Where there is none no link can be made: that is logged once in
    /// each [`REPORT_INTERVAL`].
    fn own_config<T>(&self, config: Result<T, StartError>) -> Result<T, NoLink> {
        config.map_err(|error| {
            let what = "own configuration";
            if !self.reported.contains_key(what) {
                self.reported.insert(what.to_owned(), ());
                let node = &*self.shared.name;
                tracing::warn!(node, reason = %error, "no links can be made; replace the certificate files");
            }
            NoLink::Unreachable(error.to_string())
        })
    }

    /// Reports that an incoming connection was refused, unless [`REFUSALS_TOLD_MAX`] refusals were reported in this
    /// interval.
    fn report_stranger(&self, addr: SocketAddr, why: NoLink) {
        let NoLink::Refused { by_us, refusal } = why else { return };
        #[cfg(feature = "metrics")]
        self.shared.meter.count_refusal(by_us, &refusal);
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
                #[cfg(feature = "metrics")]
                self.shared.meter.count_refusal(by_us, &refusal);
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
        let connected = tokio::select! {
            connected = self.shake_hands(incoming, time) => connected,
            () = place.taken_over() => Err(NoLink::Unreachable("the handshake gave way to another".to_owned())),
        };
        // Handshakes of strangers must not take places from nodes with a valid certificate, so greetings have their
        // own.
        drop(place);
        let linked = match connected {
            // A place is taken only by who has a valid certificate, because the oldest greeting may have to give way.
            Ok(connection) => {
                if let Some(place) = self.admission.greeting(addr.ip()) {
                    self.exchange_greetings(connection, &place).await
                } else {
                    close(&connection, CLOSE_REFUSED);
                    Err(NoLink::Unreachable("too many greetings in progress".to_owned()))
                }
            }
            Err(error) => Err(error),
        };
        if let Err(why) = linked {
            self.report_stranger(addr, why);
        }
    }

    /// The link is made in one step at the end of the greeting, so it can be abandoned until then.
    async fn exchange_greetings(&self, connection: Connection, place: &Permit) -> Result<(), NoLink> {
        tokio::select! {
            linked = welcome(&self.greeter, connection.clone()) => linked.map(|_| ()),
            () = place.taken_over() => {
                close(&connection, CLOSE_REFUSED);
                Err(NoLink::Unreachable("the greeting gave way to another".to_owned()))
            }
        }
    }

    async fn shake_hands(&self, incoming: Incoming, time: Duration) -> Result<Connection, NoLink> {
        let config = self.greeter.security.server(&self.greeter.identity.cluster, &self.shared.name);
        let config = self.own_config(config)?;
        let accepted = incoming.accept_with(Arc::new(tuned_server(config)));
        let connecting = accepted.map_err(|error| no_link(&self.greeter.security, &error))?;
        let late = |_| NoLink::Unreachable("the handshake timed out".to_owned());
        let connected = timeout(time, connecting).await.map_err(late)?;
        connected.map_err(|error| no_link(&self.greeter.security, &error))
    }

    /// Resolves a seed, and dials all its addresses that do not lead to a linked node.
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
                    tokio::spawn(Self::dial_once(self.clone(), addr, Some(seed.clone()), None));
                }
            }
            Err(reason) => {
                let event = NodeEvent::Unreachable { target: seed.clone(), reason };
                self.report(seed, event);
            }
        }
    }

    /// Dials an address once. The core asks again if no link came of it and one is still wanted. A place among those
    /// that wait is given up when it is this dial's turn.
    async fn dial_once(
        self: Arc<Self>,
        addr: SocketAddr,
        seed: Option<String>,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let begin = |core: &mut Core| !core.peers.is_linked(addr) && core.peers.dialling.insert(addr);
        if self.itself.contains_key(&addr) || !self.shared.lock().is_some_and(|mut core| begin(&mut core)) {
            return;
        }
        let _dialling = Dialling(&self.shared, addr);
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        let dialled = async {
            let turn = self.dials.acquire().await.expect("it is never closed");
            drop(place);
            // The other side may have dialled while this waited for its turn.
            if self.shared.lock().is_none_or(|core| core.peers.is_linked(addr)) {
                return Ok(());
            }
            tracing::debug!(node = %self.shared.name, %addr, seed, "dialling");
            let dialled = self.dial(addr).instrument(handshake_span(&self.shared.name, addr));
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
        let (cluster, name) = (&self.greeter.identity.cluster, &self.shared.name);
        let config = self.own_config(self.greeter.security.client(cluster, name))?;
        let connecting = self
            .endpoint
            .connect_with(tuned_client(config), addr, SERVER_NAME)
            .map_err(|error| unreachable(&error))?;
        let connected = timeout(DIAL_TIME_MAX, connecting).await.map_err(|_| unreachable(&"timed out"))?;
        let connection = connected.map_err(|error| no_link(&self.greeter.security, &error))?;
        greet(&self.greeter, connection, addr).await.map(|_| ())
    }

    /// All addresses of a seed. They are resolved at every call, but for [`NO_HOST_TIME`] after a failure.
    async fn resolve(&self, seed: &str) -> Result<Vec<SocketAddr>, String> {
        if self.no_hosts.contains_key(seed) {
            return Err("the name could not be resolved a moment ago".to_owned());
        }
        let found = match Seed::read(seed) {
            Some(Seed::Host(host, port)) => {
                let found = tokio::net::lookup_host((host, port)).await;
                found.map(Iterator::collect::<Vec<_>>).map_err(|error| error.to_string())
            }
            #[cfg(feature = "srv")]
            Some(Seed::Srv(service)) => self.greeter.identity.name_servers.resolve(service).await,
            _ => Err("the seed has no known form".to_owned()),
        };
        let addrs = found.and_then(|addrs| {
            let v4 = self.shared.addr.is_ipv4();
            let usable: Vec<SocketAddr> = addrs.into_iter().filter(|addr| !v4 || addr.is_ipv4()).collect();
            if usable.is_empty() { Err("no address that this node can reach".to_owned()) } else { Ok(usable) }
        });
        if addrs.is_err() {
            self.no_hosts.insert(seed.to_owned(), ());
        }
        addrs
    }

    /// After every change of the security, and every [`VERIFY_INTERVAL`] where certificates can expire, closes the
    /// links of peers that are no longer accepted.
    async fn follow_security(self: Arc<Self>) {
        let security = &self.greeter.security;
        let mut versions = security.changes();
        loop {
            tokio::select! {
                () = self.shared.wait_for(|shared| shared.is_closed().then_some(())) => return,
                changed = versions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(VERIFY_INTERVAL), if security.can_expire() => {}
            }
            let Some(core) = self.shared.lock() else { return };
            let senders = core.senders.iter().filter_map(|(id, wire)| {
                let name = core.peers.name(*id)?.to_owned();
                Some((*id, name, wire.connection().clone()))
            });
            let links: Vec<_> = senders.collect();
            // Signatures are verified without the lock.
            drop(core);
            let refused = security.no_longer_accepted(&self.greeter.identity.cluster, links);
            let Some(core) = self.shared.lock() else { return };
            refused.iter().filter_map(|id| core.senders.get(id)).for_each(|wire| wire.close(CLOSE_SECURITY));
        }
    }
}

/// Counts the refusals of incoming connections that were reported, and not reported, in this [`REPORT_INTERVAL`].
#[derive(Debug, Default)]
struct RefusalsTold {
    since: Duration,
    told: u32,
    untold: u64,
}

impl RefusalsTold {
    /// Counts one refusal, and answers whether it is to be reported.
    fn count(&mut self, now: Duration, node: &str) -> bool {
        if now >= self.since + REPORT_INTERVAL {
            if self.untold > 0 {
                tracing::warn!(node, count = self.untold, "further incoming connections were refused");
            }
            *self = Self { since: now, ..Self::default() };
        }
        let is_told = self.told < REFUSALS_TOLD_MAX;
        self.told += u32::from(is_told);
        self.untold += u64::from(!is_told);
        is_told
    }
}

/// Marks an address as being dialled until it is dropped, so that it is not dialled twice at the same time.
struct Dialling<'a>(&'a Shared, SocketAddr);

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if let Some(mut core) = self.0.lock() {
            core.peers.dialling.remove(&self.1);
        }
    }
}

/// Ends all waits when it is dropped: after an orderly end, and also when the runtime is shut down while the node runs.
/// Waits in other runtimes end too.
pub(in crate::node) struct ShutdownGuard(pub(in crate::node) Arc<Shared>);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        self.0.close();
        self.0.end_leases();
        self.0.let_go().into_values().for_each(Waker::wake);
        self.0.ended.send_replace(true);
    }
}

/// The transport settings of all connections: flow control, acknowledgements, and the idle timeout.
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

/// Binds the endpoint, which dials and accepts connections.
pub(in crate::node) fn bind(listen: SocketAddr, config: quinn::ServerConfig) -> Result<Endpoint, StartError> {
    let failed = |error: std::io::Error| StartError::Bind { addr: listen, reason: Cause::new(error) };
    let socket = std::net::UdpSocket::bind(listen).map_err(failed)?;
    // Best effort: with smaller buffers more packets are lost, and retransmitted, when many peers send at once.
    let sizes = socket2::SockRef::from(&socket);
    _ = sizes.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    _ = sizes.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    let runtime = Arc::new(quinn::TokioRuntime);
    // Every handshake is accepted with the TLS configuration of that instant. This one only makes the endpoint accept
    // incoming connections.
    let mut config = tuned_server(config);
    config
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;
    use crate::node::runtime::shared::tests::shared;

    fn network(shared: Arc<Shared>) -> Arc<Network> {
        let security = Security::secret(&Security::generate_secret()).unwrap();
        let config = security.server("cluster", "n").unwrap();
        let endpoint = bind(([127, 0, 0, 1], 0).into(), config).unwrap();
        let identity = NodeIdentity {
            cluster: "cluster".to_owned(),
            app_version: String::new(),
            accepts_version: Box::new(|_| true),
            advertised: None,
            #[cfg(feature = "srv")]
            name_servers: crate::node::net::srv::NameServers::default(),
        };
        let (events, _) = mpsc::channel(1);
        Network::new(shared, identity, security, endpoint, events)
    }

    #[test]
    fn dials_for_datagrams_wait_in_a_limited_number() {
        let shared = shared();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let network = network(shared.clone());
            let busy = network.dials.acquire_many(DIALS_MAX as u32).await.unwrap();
            let contact = |n: u16| Contact { run: RunId::new(n.into()), addr: ([127, 0, 0, 1], n).into() };
            for n in 10_000..11_000 {
                network.handle_dial_request(DialRequest::Datagram(contact(n)));
            }
            network.handle_dial_request(DialRequest::Member(contact(11_000)));
            let waiting = || shared.lock().unwrap().peers.dialling.clone();
            // All tasks run before this one again.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(waiting().len(), DATAGRAM_DIALS_MAX + 1);
            assert!(waiting().contains(&contact(11_000).addr), "a member that is to be linked is dialled");
            shared.close();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(network.datagram_dials.available_permits(), DATAGRAM_DIALS_MAX);
            drop(busy);
        });
    }
}
