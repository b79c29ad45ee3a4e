//! The endpoint: who is dialled, who is let in, and how often that is tried. Nobody stops trying.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use moka::sync::Cache;
use quinn::{Endpoint, Incoming, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::driver::Happening;
use super::link::{CLOSE_SECURITY, HINT, NoLink, greet, no_link, welcome};
use super::peers::{Identity, NodeEvent};
use super::security::{SERVER_NAME, Security};
use super::shared::{Shared, wall};
use crate::error::StartError;
use crate::wire::{Greeting, decode_greeting, encode_greeting};

/// Handshakes of others under way at a time; more of them wait.
const HANDSHAKES_MAX: usize = 64;
/// The first pause after a failure, doubled each time up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A link that lasted this long was a success.
const LINK_TIME_MIN: Duration = Duration::from_secs(1);
/// An address that leads to this node itself is tried again only now and then: addresses move.
const ITSELF_PAUSE: Duration = Duration::from_secs(60);
const DIAL_TIME_MAX: Duration = Duration::from_secs(5);
/// A learned address that fails this often in a row is forgotten.
const LEARNED_TRIES: u32 = 10;
/// A refusal or an unreachable seed is told once in this time, of so many different ones.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
const REPORTS_MAX: u64 = 1_024;
/// How long an answer "no such host" counts.
const NO_HOST_TIME: Duration = Duration::from_secs(2);

/// What may be on its way on one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// A link is heard of this often, and is dead when it is silent for this long.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);

/// Addresses in one hint: a datagram must hold them.
const HINT_ADDRS_MAX: usize = 32;

/// What is dialled.
#[derive(Clone, Debug)]
enum Target {
    Seed(String),
    Learned(SocketAddr),
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) security: Security,
    endpoint: Endpoint,
    pub(super) happenings: mpsc::Sender<Happening>,
    reported: Cache<String, ()>,
    no_hosts: Cache<String, ()>,
}

impl Network {
    pub(super) fn new(
        shared: Arc<Shared>,
        identity: Identity,
        security: Security,
        endpoint: Endpoint,
        happenings: mpsc::Sender<Happening>,
    ) -> Arc<Self> {
        let cache = |time| Cache::builder().max_capacity(REPORTS_MAX).time_to_live(time).build();
        let (reported, no_hosts) = (cache(REPORT_INTERVAL), cache(NO_HOST_TIME));
        Arc::new(Self { shared, identity, security, endpoint, happenings, reported, no_hosts })
    }

    /// Runs until the node is closed, then lets go of everything.
    pub(super) async fn run(self: Arc<Self>, seeds: Vec<String>) {
        for seed in seeds {
            tokio::spawn(Self::dial_on(Arc::downgrade(&self), Target::Seed(seed)));
        }
        tokio::spawn(Self::follow_security(self.clone()));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let closed = self.shared.wait_for(|shared| shared.is_closed().then_some(()));
        tokio::pin!(closed);
        let mut hints = tokio::time::interval(self.identity.hint_interval);
        loop {
            let permit = handshakes.clone().acquire_owned().await.expect("it is never closed");
            tokio::select! {
                () = &mut closed => break,
                _ = hints.tick() => self.hint_one(),
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    let network = self.clone();
                    tokio::spawn(async move {
                        network.let_in(incoming).await;
                        drop(permit);
                    });
                }
            }
        }
        self.end().await;
    }

    async fn end(&self) {
        let code = self.shared.close_code.load(Ordering::Relaxed);
        self.endpoint.close(VarInt::from_u32(code), b"");
        self.shared.let_go().into_values().for_each(Waker::wake);
        // So that the peers hear of it; but a peer that is gone must not hold this up.
        _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
        self.shared.ended.send_replace(true);
    }

    pub(super) fn greeting(&self) -> Greeting {
        let core = self.shared.lock_closed();
        let (meta, peers) =
            core.map_or_else(Default::default, |core| (core.peers.own().meta.clone(), core.peers.addrs()));
        Greeting {
            cluster: self.identity.cluster.clone(),
            name: self.shared.name.clone(),
            run: self.shared.run,
            app_version: self.identity.app_version.clone(),
            wall_ms: wall().as_millis() as u64,
            advertised: self.identity.advertised,
            port: self.shared.addr.port(),
            meta,
            peers,
        }
    }

    /// Tells every peer where somebody can be reached. It may get lost: they are told again.
    pub(super) fn hint_all(&self, addrs: &[SocketAddr]) {
        let Some(core) = self.shared.lock() else { return };
        core.wires.values().for_each(|wire| wire.send_datagram(hint(addrs)));
    }

    /// Tells one peer where some others can be reached.
    fn hint_one(&self) {
        let Some(core) = self.shared.lock() else { return };
        let mut addrs = core.peers.addrs();
        if addrs.is_empty() {
            return;
        }
        let wires: Vec<_> = core.wires.values().collect();
        wires[random_below(wires.len())].send_datagram({
            let from = random_below(addrs.len());
            addrs.rotate_left(from);
            addrs.truncate(HINT_ADDRS_MAX);
            hint(&addrs)
        });
    }

    pub(super) fn take_hint(self: &Arc<Self>, bytes: &[u8]) {
        let Ok(addrs) = decode_greeting::<Vec<SocketAddr>>(bytes) else { return };
        let Some(mut core) = self.shared.lock() else { return };
        let new: Vec<SocketAddr> = addrs.into_iter().filter(|addr| core.peers.learn(*addr)).collect();
        drop(core);
        new.into_iter().for_each(|addr| self.dial_learned(addr));
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

    async fn let_in(self: &Arc<Self>, incoming: Incoming) {
        let addr = incoming.remote_address();
        let connected = match self.security.server(&self.shared.name) {
            Ok(config) => {
                let accepted = incoming.accept_with(Arc::new(tuned_server(config)));
                accepted.map_err(|error| no_link(&self.security, &error))
            }
            Err(error) => Err(NoLink::Unreachable(error.to_string())),
        };
        let linked = match connected {
            Ok(connecting) => match connecting.await {
                Ok(connection) => welcome(self, connection).await.map(|_| ()),
                Err(error) => Err(no_link(&self.security, &error)),
            },
            Err(error) => Err(error),
        };
        if let Err(why) = linked {
            self.report_no_link(addr, None, why);
        }
    }

    /// Dials an address that another node told, until it is linked or has failed often enough.
    pub(super) fn dial_learned(self: &Arc<Self>, addr: SocketAddr) {
        tokio::spawn(Self::dial_on(Arc::downgrade(self), Target::Learned(addr)));
    }

    /// Dials a target again and again, as long as the node lives: a partition that heals after a year must find both
    /// sides trying. Only a learned address that never answered is given up, and one whose node has left.
    async fn dial_on(network: Weak<Self>, target: Target) {
        let (mut failures, mut was_linked) = (0, false);
        while let Some(network) = network.upgrade() {
            let shared = network.shared.clone();
            if shared.is_closed() {
                return;
            }
            let mut pause = PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow(failures));
            match network.dial_once(&target).await {
                Dialled::Linked => (failures, was_linked) = (0, true),
                Dialled::Itself => pause = ITSELF_PAUSE,
                Dialled::Failed => failures = (failures + 1).min(LEARNED_TRIES),
            }
            if let Target::Learned(addr) = &target
                && let Some(mut core) = shared.lock()
                && (core.peers.has_left(*addr) || (failures == LEARNED_TRIES && !was_linked))
            {
                core.peers.unlearn(*addr);
                return;
            }
            drop(network);
            let closed = shared.wait_for(|shared| shared.is_closed().then_some(()));
            _ = timeout(jittered(pause), closed).await;
        }
    }

    /// Tries every address of a target once; waits as long as one of them is linked.
    async fn dial_once(self: &Arc<Self>, target: &Target) -> Dialled {
        let addrs = match target {
            Target::Learned(addr) => vec![*addr],
            Target::Seed(seed) => match self.resolve(seed).await {
                Ok(addrs) => addrs,
                Err(reason) => {
                    let event = NodeEvent::Unreachable { target: seed.clone(), reason };
                    self.report(seed.clone(), event);
                    return Dialled::Failed;
                }
            },
        };
        let mut outcome = Dialled::Failed;
        for addr in addrs {
            if !self.is_linked(addr) {
                match self.dial(addr).await {
                    Ok(()) | Err(NoLink::Duplicate) => {}
                    Err(NoLink::Itself) => {
                        outcome = Dialled::Itself;
                        continue;
                    }
                    Err(why) => {
                        let seed = if let Target::Seed(seed) = target { Some(seed.as_str()) } else { None };
                        self.report_no_link(addr, seed, why);
                        continue;
                    }
                }
            }
            let since = tokio::time::Instant::now();
            self.shared.wait_for(|s| (s.is_closed() || !self.is_linked(addr)).then_some(())).await;
            if since.elapsed() >= LINK_TIME_MIN {
                outcome = Dialled::Linked;
            }
        }
        outcome
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

    fn is_linked(&self, addr: SocketAddr) -> bool {
        self.shared.lock().is_some_and(|core| core.peers.is_linked(addr))
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
            for wire in core.wires.values() {
                if !self.security.accepts(wire.connection()) {
                    wire.close(CLOSE_SECURITY);
                }
            }
        }
    }
}

/// What connections may cost, and when they count as dead.
fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW_BYTES))
        .send_window(2 * u64::from(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(64 << 10))
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .max_idle_timeout(Some(IDLE_TIME_MAX.try_into().expect("a few seconds")));
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

enum Dialled {
    Linked,
    Itself,
    Failed,
}

fn hint(addrs: &[SocketAddr]) -> Vec<u8> {
    let mut bytes = vec![HINT];
    bytes.extend(encode_greeting(&addrs.to_vec()));
    bytes
}

fn random_below(limit: usize) -> usize {
    let mut bytes = [0; 8];
    // Without randomness the first will do.
    _ = getrandom::fill(&mut bytes);
    usize::from_le_bytes(bytes) % limit
}

/// Between half of a pause and the whole, so that nodes that failed together do not try together.
fn jittered(pause: Duration) -> Duration {
    pause - pause / 512 * random_below(256) as u32
}

/// Binds the endpoint, for dialling and for being dialled.
pub(super) fn bind(listen: SocketAddr, config: quinn::ServerConfig) -> Result<Endpoint, StartError> {
    let failed = |error: std::io::Error| StartError::Bind { addr: listen, reason: error.to_string() };
    let socket = std::net::UdpSocket::bind(listen).map_err(failed)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    // Each handshake brings the configuration of its instant; this one says that there are handshakes.
    let config = Some(tuned_server(config));
    Endpoint::new(quinn::EndpointConfig::default(), config, socket, runtime).map_err(failed)
}
