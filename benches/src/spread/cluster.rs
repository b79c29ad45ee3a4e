//! The contestants: clusters of one kind each, all in this process and on its one runtime. Each receiver tells of an
//! arrival the moment its own program hears of it: a watch, a callback, or a read that returns.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, SendStream};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tidings::{Node, WatchEvent, WatchOptions};
use tidings_benches::{builder, key, sized, value};
use tidings_proptest::relay::{Faults, Relay};
use tidings_proptest::tls;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::rivals;
use crate::reconcile_rs::{self, Settings};

/// How long a write may take to arrive everywhere before it counts as lost.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// How long a cluster may take to form.
const FORMING_TIME_MAX: Duration = Duration::from_secs(120);
/// Nothing new for this long: it has formed.
const QUIET_TIME: Duration = Duration::from_millis(500);
/// What a node receives in this time when its cluster has come to rest, at most: it knows its links.
const REST_BYTES_MAX: u64 = 1_000;
/// Between one write's last arrival and the next write.
const PAUSE: Duration = Duration::from_millis(3);

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Tidings,
    /// Streams that are already open, and nothing else.
    Push(Writers),
    Chitchat(Duration),
    #[cfg(feature = "memberlist")]
    Memberlist(Duration),
    Foca,
    Reconcile(Settings),
}

/// Who writes in a push: the first node alone, whose few connections stay warm; or all in turn, as they do in the other
/// contestants, over a connection between any two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Writers {
    One,
    All,
}

impl Kind {
    pub(super) fn is_fast(self) -> bool {
        matches!(self, Self::Tidings | Self::Push(_) | Self::Reconcile(_))
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Tidings => "tidings".to_owned(),
            Self::Push(Writers::One) => "bare quinn push".to_owned(),
            Self::Push(Writers::All) => "bare quinn push, in turn".to_owned(),
            Self::Chitchat(every) => format!("chitchat {} ms", every.as_millis()),
            #[cfg(feature = "memberlist")]
            Self::Memberlist(every) => format!("memberlist {} ms", every.as_millis()),
            Self::Foca => "foca, at once".to_owned(),
            Self::Reconcile(settings) => settings.name().to_owned(),
        }
    }
}

/// A write has come to a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) at: usize,
    pub(super) when: Instant,
}

/// Where a node tells of what it hears.
#[derive(Clone, Debug)]
pub(super) struct Ear {
    pub(super) at: usize,
    pub(super) arrivals: UnboundedSender<Arrival>,
}

impl Ear {
    /// Takes the value, or a whole message: its last hundred bytes are the number.
    pub(super) fn hear(&self, bytes: &[u8]) {
        let when = Instant::now();
        let digits = bytes.len().checked_sub(20).map(|from| &bytes[from..]);
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if let Some(number) = number {
            _ = self.arrivals.send(Arrival { number, at: self.at, when });
        }
    }
}

/// The bytes of a write where there are no keys: the key and the value, 124 in all.
pub(super) fn message(from: usize, number: u64) -> Vec<u8> {
    [key(from as u64).into_bytes(), value(number)].concat()
}

enum Nodes {
    Tidings(Vec<Node>, Vec<Relay>),
    Push(Push),
    Chitchat(Vec<rivals::Chitchat>),
    #[cfg(feature = "memberlist")]
    Memberlist(Vec<rivals::Memberlist>),
    Foca(Vec<rivals::Foca>),
    Reconcile(Vec<reconcile_rs::Node>),
}

/// A running cluster of one kind.
pub(super) struct Cluster {
    count: usize,
    nodes: Nodes,
    arrivals: UnboundedReceiver<Arrival>,
    _tasks: JoinSet<()>,
    number: u64,
}

impl Cluster {
    /// Starts it, and waits until it has formed.
    pub(super) async fn start(kind: Kind, count: usize, faults: Option<Faults>) -> Self {
        let (sender, arrivals) = unbounded_channel();
        let ears: Vec<Ear> = (0..count).map(|at| Ear { at, arrivals: sender.clone() }).collect();
        let mut tasks = JoinSet::new();
        let nodes = match kind {
            Kind::Tidings => {
                let (nodes, relays) = start_tidings(&ears, faults, &mut tasks).await;
                Nodes::Tidings(nodes, relays)
            }
            Kind::Push(writers) => Nodes::Push(Push::start(&ears, writers, faults, &mut tasks).await),
            Kind::Chitchat(every) => Nodes::Chitchat(rivals::Chitchat::cluster(&ears, every).await),
            #[cfg(feature = "memberlist")]
            Kind::Memberlist(every) => Nodes::Memberlist(rivals::Memberlist::cluster(&ears, every).await),
            Kind::Foca => Nodes::Foca(rivals::Foca::cluster(&ears, &mut tasks).await),
            Kind::Reconcile(settings) => {
                Nodes::Reconcile(rivals::reconcile_cluster(&ears, settings, faults).await)
            }
        };
        let mut cluster = Self { count, nodes, arrivals, _tasks: tasks, number: 0 };
        // What comes first pays for what is set up with the first use.
        for _ in 0..if kind.is_fast() { count } else { 1 } {
            _ = cluster.spread().await;
        }
        cluster
    }

    /// One write, by the next writer in turn: milliseconds until the last of the others has it.
    pub(super) async fn spread(&mut self) -> Option<f64> {
        self.number += 1;
        let writers = if let Nodes::Push(push) = &self.nodes { push.streams.len() } else { self.count };
        let (number, from) = (self.number, (self.number as usize * 7) % writers);
        let (begin, patience) = (Instant::now(), sized(PATIENCE[0], PATIENCE[1]));
        self.put(from, number).await;
        let (mut has, mut missing, mut last) = (vec![false; self.count], self.count - 1, begin);
        has[from] = true;
        while missing > 0 {
            let left = patience.saturating_sub(begin.elapsed());
            let arrival = timeout(left, self.arrivals.recv()).await.ok()?.expect("the ears are open");
            if arrival.number == number && !std::mem::replace(&mut has[arrival.at], true) {
                missing -= 1;
                last = last.max(arrival.when);
            }
        }
        tokio::time::sleep(PAUSE).await;
        Some((last - begin).as_secs_f64() * 1e3)
    }

    async fn put(&mut self, from: usize, number: u64) {
        match &mut self.nodes {
            Nodes::Tidings(nodes, _) => {
                nodes[from].put(key(from as u64), value(number)).expect("nobody is behind");
            }
            Nodes::Push(push) => push.put(from, number).await,
            Nodes::Chitchat(nodes) => nodes[from].put(from, number).await,
            #[cfg(feature = "memberlist")]
            Nodes::Memberlist(nodes) => nodes[from].put(from, number),
            Nodes::Foca(nodes) => nodes[from].put(from, number),
            Nodes::Reconcile(nodes) => {
                nodes[from].map.insert(key(from as u64), value(number));
            }
        }
    }

    pub(super) async fn stop(self) {
        match self.nodes {
            Nodes::Tidings(nodes, relays) => {
                let mut ends = JoinSet::new();
                nodes.into_iter().for_each(|node| _ = ends.spawn(async move { node.shutdown().await }));
                ends.join_all().await;
                drop(relays);
            }
            Nodes::Push(push) => push.stop(),
            Nodes::Chitchat(nodes) => rivals::Chitchat::stop(nodes).await,
            #[cfg(feature = "memberlist")]
            Nodes::Memberlist(nodes) => rivals::Memberlist::stop(nodes).await,
            Nodes::Foca(nodes) => drop(nodes),
            Nodes::Reconcile(nodes) => {
                for node in nodes {
                    node.stop().await;
                }
            }
        }
    }
}

/// A node on loopback, behind a relay if there are faults.
pub(super) async fn start_node(
    name: &str,
    seed: Option<SocketAddr>,
    faults: Option<Faults>,
) -> (Node, SocketAddr, Option<Relay>) {
    let relay = match faults {
        Some(faults) => Some(Relay::start(faults).await),
        None => None,
    };
    let mut builder = builder(name, &[]).seeds(seed.map(|seed| seed.to_string()));
    if let Some(relay) = &relay {
        builder = builder.advertise(relay.addr().to_string());
    }
    let node = builder.start().await.expect("it starts");
    if let Some(relay) = &relay {
        relay.lead_to(node.addr());
    }
    let addr = relay.as_ref().map_or(node.addr(), Relay::addr);
    (node, addr, relay)
}

async fn start_tidings(
    ears: &[Ear],
    faults: Option<Faults>,
    tasks: &mut JoinSet<()>,
) -> (Vec<Node>, Vec<Relay>) {
    let (mut nodes, mut relays, mut seed) = (Vec::new(), Vec::new(), None);
    for ear in ears {
        let faults = faults.map(|faults| faults.at(1_000 * ear.at as u64));
        let (node, addr, relay) = start_node(&format!("n{}", ear.at), seed, faults).await;
        seed = seed.or(Some(addr));
        relays.extend(relay);
        let (mut watch, ear) =
            (node.watch_with("bench/", WatchOptions::new().without_current()), ear.clone());
        tasks.spawn(async move {
            while let Some(event) = watch.next().await {
                if let WatchEvent::Put(entry) = event {
                    ear.hear(entry.value());
                }
            }
        });
        nodes.push(node);
    }
    wait_until_formed(&nodes).await;
    (nodes, relays)
}

/// Until everybody knows everybody, no link has come for a while, and little is said.
pub(super) async fn wait_until_formed(nodes: &[Node]) {
    let begin = Instant::now();
    let links = || nodes.iter().map(|node| node.status().peers.len()).sum::<usize>();
    let (mut before, mut said) = (0, loopback_bytes());
    while begin.elapsed() < FORMING_TIME_MAX {
        tokio::time::sleep(QUIET_TIME).await;
        let (now, all) = (links(), loopback_bytes());
        let are_known = nodes.iter().all(|node| node.members().len() == nodes.len());
        if are_known && now == before && all - said <= REST_BYTES_MAX * nodes.len() as u64 {
            break;
        }
        (before, said) = (now, all);
    }
    for node in nodes {
        node.ready().await.expect("it is not closed");
    }
}

/// What has gone over the loopback device so far.
pub(super) fn loopback_bytes() -> u64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let own = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    own.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The floor: writers with an open stream to each other node, over mutual TLS, write the bytes to all of them.
struct Push {
    /// Of each writer.
    streams: Vec<Vec<SendStream>>,
    endpoints: Vec<Endpoint>,
    _relays: Vec<Relay>,
}

impl Push {
    async fn start(ears: &[Ear], writers: Writers, faults: Option<Faults>, tasks: &mut JoinSet<()>) -> Self {
        let (server, client) = mutual_tls();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let (mut endpoints, mut addrs, mut relays) = (Vec::new(), Vec::new(), Vec::new());
        for ear in ears {
            let mut endpoint = Endpoint::server(server.clone(), any).expect("it binds");
            endpoint.set_default_client_config(client.clone());
            let mut addr = endpoint.local_addr().expect("it is bound");
            if let Some(faults) = faults {
                let relay = Relay::start(faults.at(1_000 * ear.at as u64)).await;
                relay.lead_to(addr);
                addr = relay.addr();
                relays.push(relay);
            }
            endpoints.push(endpoint);
            addrs.push(addr);
        }
        let count = if writers == Writers::One { 1 } else { ears.len() };
        let mut streams: Vec<Vec<SendStream>> = (0..count).map(|_| Vec::new()).collect();
        for from in 0..count {
            for to in from + 1..ears.len() {
                let dialling = endpoints[from].connect(addrs[to], "localhost").expect("valid");
                let accepting = async { endpoints[to].accept().await.expect("it is open").await };
                let (dialled, accepted) = tokio::join!(dialling, accepting);
                let ends = [(from, dialled.expect("it connects")), (to, accepted.expect("a good client"))];
                for (i, (at, connection)) in ends.iter().enumerate() {
                    if let Some(streams) = streams.get_mut(*at) {
                        streams.push(connection.open_uni().await.expect("a stream"));
                    }
                    let (listener, connection) = &ends[1 - i];
                    tasks.spawn(listen(connection.clone(), ears[*listener].clone()));
                }
            }
        }
        Self { streams, endpoints, _relays: relays }
    }

    async fn put(&mut self, from: usize, number: u64) {
        let bytes = message(from, number);
        let mut framed = (bytes.len() as u16).to_le_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        for stream in &mut self.streams[from] {
            stream.write_all(&framed).await.expect("it is open");
        }
    }

    fn stop(self) {
        for endpoint in self.endpoints {
            endpoint.close(0_u32.into(), b"");
        }
    }
}

/// Hears what comes over a connection.
async fn listen(connection: Connection, ear: Ear) {
    let Ok(mut stream) = connection.accept_uni().await else { return };
    let (mut length, mut bytes) = ([0; 2], [0; 1_024]);
    while stream.read_exact(&mut length).await.is_ok() {
        let bytes = &mut bytes[..usize::from(u16::from_le_bytes(length))];
        if stream.read_exact(bytes).await.is_err() {
            break;
        }
        ear.hear(bytes);
    }
}

/// For both sides, with one certificate that both trust.
pub(crate) fn mutual_tls() -> (quinn::ServerConfig, quinn::ClientConfig) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = certified.cert.into();
    let key = || PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let server = rustls::ServerConfig::builder_with_provider(provider);
    let server = server.with_protocol_versions(versions).expect("known");
    let server = server.with_client_cert_verifier(verifier.build().expect("there is a root"));
    let server = server.with_single_cert(vec![certificate.clone()], key().into()).expect("a good one");
    let server = QuicServerConfig::try_from(server).expect("fit for QUIC");
    let client = tls::client(roots).with_client_auth_cert(vec![certificate], key().into());
    (quinn::ServerConfig::with_crypto(Arc::new(server)), tls::quic(client.expect("a good one")))
}
