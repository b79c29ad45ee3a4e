//! Nodes of the crate `reconcile`, a rival: each holds the whole map, sends a write to all others at once over UDP, and
//! compares fingerprints of ranges of keys with them in rounds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reconcile::replicated_map::{Config, RunOutcome};
use reconcile::tokio_util::sync::CancellationToken;
use reconcile::{ClusterKey, InMemoryPersistence, ReplicatedMap, Transport, UdpTransport, async_trait};
use tidings_benches::{key, runtime, value};
use tidings_proptest::Dice;
use tidings_proptest::relay::Faults;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

pub(crate) type Map = ReplicatedMap<String, Vec<u8>>;

/// What a table says about the two settings.
pub(crate) const SETTINGS_NOTE: &str = "reconcile 0.5 has the settings that it documents as its defaults, with a cluster key. \"reconcile, fast\" has no key, a repair interval of 10 ms (150 ms by default), a reconcile interval of 100 ms (1 s) and no snapshots (every 5 s, in memory). Each node is told the addresses of all others, as its discovery by DNS does.";

/// Loss is drawn in parts of this.
const PARTS: usize = 1 << 20;
/// Of two maps whose comparisons are measured.
const REPAIR_INTERVAL: Duration = Duration::from_millis(50);
/// No datagram for this long: a comparison is over.
const QUIET_TIME: Duration = Duration::from_millis(200);
/// A comparison that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any comparison takes: no round begins by itself.
const NEVER: Duration = Duration::from_secs(3_600);

/// How its nodes are set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Settings {
    Documented,
    Fast,
}

impl Settings {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Documented => "reconcile",
            Self::Fast => "reconcile, fast",
        }
    }

    fn config(self, addr: SocketAddr) -> Config {
        let config = Config::new(addr.port()).with_listen_addr(addr.ip());
        match self {
            Self::Documented => config.with_cluster_key(ClusterKey::new([7; 32])),
            Self::Fast => config
                .with_insecure_no_key()
                .with_repair_interval(Duration::from_millis(10))
                .with_reconcile_interval(Duration::from_millis(100))
                .with_snapshot_interval(None),
        }
    }
}

/// Addresses for the nodes of a cluster: they differ in the host, since all must have one port.
pub(crate) async fn addrs(count: usize) -> Vec<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
    let port = socket.local_addr().expect("it is bound").port();
    let host = |at: usize| IpAddr::from(Ipv4Addr::from(0x7f07_0001 + at as u32));
    (0..count).map(|at| SocketAddr::new(host(at), port)).collect()
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) map: Map,
    stop: CancellationToken,
    running: JoinHandle<RunOutcome>,
}

impl Node {
    /// Starts one that knows these others, and calls `hear` with each value before it is put into the map.
    pub(crate) async fn start(
        settings: Settings,
        addr: SocketAddr,
        others: &[SocketAddr],
        faults: Option<Faults>,
        hear: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Self {
        let config = settings.config(addr);
        let [receive, send] = [config.recv_buffer_size, config.send_buffer_size];
        let udp = UdpTransport::bind(addr, receive, send).await.expect("the port is free");
        let transport: Arc<dyn Transport> = match faults {
            Some(Faults { loss, seed, .. }) => {
                Arc::new(Lossy { udp, loss, dice: Mutex::new(Dice::new(seed)) })
            }
            None => Arc::new(udp),
        };
        let map = Map::new_with_transport(config, transport).expect("valid settings");
        others.iter().filter(|other| **other != addr).for_each(|other| map.seed_peer(other.ip()));
        map.set_pre_insert(move |_, entry| {
            if let Some(value) = entry.value() {
                hear(value);
            }
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn(map.clone().run(stop.clone()));
        Self { map, stop, running }
    }

    /// Keys of its map.
    pub(crate) fn len(&self) -> usize {
        self.map.snapshot().len()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        _ = self.running.await;
    }
}

/// UDP of which a share of what is sent is lost.
struct Lossy {
    udp: UdpTransport,
    loss: f64,
    dice: Mutex<Dice>,
}

#[async_trait]
impl Transport for Lossy {
    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.udp.recv_from(buf).await
    }

    async fn send_to(&self, buf: &[u8], dst: &SocketAddr) -> io::Result<usize> {
        let drawn = self.dice.lock().expect("nobody panics with it").below(PARTS);
        if (drawn as f64) < self.loss * PARTS as f64 {
            Ok(buf.len())
        } else {
            self.udp.send_to(buf, dst).await
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// A map that no network reaches, with so many keys. They are put there in groups of this size.
pub(crate) fn filled(keys: u64, group: u64) -> Map {
    let [end, _] = wire(&Arc::default());
    let map = Map::new_with_transport(config_of_pair(), Arc::new(end)).expect("valid settings");
    for from in (0..keys).step_by(group as usize) {
        fill(&map, from..(from + group).min(keys));
    }
    map
}

/// Puts keys there, without sending them to anybody.
pub(crate) fn fill(map: &Map, keys: Range<u64>) {
    let rows: Vec<(String, Vec<u8>)> = keys.map(|i| (key(i), value(i))).collect();
    map.load_bulk(&rows);
}

/// Settings with which a map begins no round by itself. What it received is compared once more, as always.
fn config_of_pair() -> Config {
    let config = Config::new(1).with_insecure_no_key().with_snapshot_interval(None);
    config.with_reconcile_interval(NEVER).with_repair_interval(REPAIR_INTERVAL)
}

/// Two maps on a wire that counts.
struct Pair {
    maps: [Map; 2],
    sent: Arc<Sent>,
    stop: CancellationToken,
}

impl Pair {
    /// Two with the same keys.
    async fn start(keys: u64) -> Self {
        let sent = Arc::default();
        let [a, b] = wire(&sent).map(|end| {
            let other = end.other.ip();
            let map = Map::new_with_transport(config_of_pair(), Arc::new(end)).expect("valid settings");
            map.with_seed(other)
        });
        let kept = Arc::new(InMemoryPersistence::default());
        let a = a.with_persistence(kept.clone()).expect("it is empty");
        fill(&a, 0..keys);
        a.snapshot_now().expect("memory does not fail");
        let maps = [a, b.with_persistence(kept).expect("memory does not fail")];
        let stop = CancellationToken::new();
        for map in &maps {
            tokio::spawn(map.clone().run(stop.clone()));
        }
        let pair = Self { maps, sent, stop };
        pair.settle().await;
        pair
    }

    /// Waits until both hold the same and say nothing. Answers the bytes and the round trips until then.
    async fn settle(&self) -> [f64; 2] {
        let (begin, bytes) = (Instant::now(), || self.sent.bytes.load(Ordering::Relaxed));
        let mut before = None;
        while before.replace(bytes()) != Some(bytes()) || !self.is_equal() {
            assert!(begin.elapsed() < PATIENCE, "they become equal");
            tokio::time::sleep(QUIET_TIME).await;
        }
        self.sent.places.iter().for_each(|place| place.store(0, Ordering::Relaxed));
        let flights = self.sent.flights.swap(0, Ordering::Relaxed);
        [self.sent.bytes.swap(0, Ordering::Relaxed) as f64, flights as f64 / 2.0]
    }

    fn is_equal(&self) -> bool {
        let [a, b] = &self.maps;
        a.fingerprint(..) == b.fingerprint(..)
    }

    /// One round, which the first begins.
    async fn compare(&self) -> [f64; 2] {
        self.maps[0].start_reconciliation().await;
        self.settle().await
    }

    /// Bytes of a message that carries one row with this value: from what one and what many cost.
    async fn row_bytes(&self, value: &[u8]) -> f64 {
        const MANY: u64 = 400;
        let rows: Vec<(String, Vec<u8>)> = (0..=MANY).map(|i| (key(i), value.to_vec())).collect();
        self.maps[1].insert_bulk(&rows[..1]);
        let [one, _] = self.settle().await;
        self.maps[1].insert_bulk(&rows);
        let [all, _] = self.settle().await;
        (all - one) / MANY as f64
    }
}

/// Bytes besides the rows and round trips of comparisons: where both are equal, and with so many differences.
pub(crate) struct Comparisons {
    pub(crate) equal: Vec<f64>,
    pub(crate) differing: Vec<[Vec<f64>; 2]>,
}

/// Measures them at so many keys. The one that begins lacks what was changed on the other.
pub(crate) fn comparisons(keys: u64, differences: &[u64], repetitions: usize) -> Comparisons {
    const VALUE: &[u8] = b"changed on one side";
    runtime().block_on(async {
        let pair = Pair::start(keys).await;
        let mut equal = Vec::new();
        for _ in 0..repetitions {
            equal.push(pair.compare().await[0]);
        }
        let row = pair.row_bytes(VALUE).await;
        let mut differing = Vec::new();
        for count in differences {
            let mut figures: [Vec<f64>; 2] = Default::default();
            for _ in 0..repetitions {
                let rows: Vec<(String, Vec<u8>)> =
                    (0..*count).map(|i| (key(i * 37 + count), VALUE.to_vec())).collect();
                pair.maps[1].load_bulk(&rows);
                let [bytes, trips] = pair.compare().await;
                figures[0].push(bytes - row * *count as f64);
                figures[1].push(trips);
            }
            differing.push(figures);
        }
        pair.stop.cancel();
        Comparisons { equal, differing }
    })
}

/// What two maps sent to each other.
#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    /// The longest chain of datagrams of which each was sent after the one before it had come.
    flights: AtomicU64,
    /// Of each map: the place in such a chain of the last datagram that came to it.
    places: [AtomicU64; 2],
}

/// One end of a wire that carries every datagram at once and in order.
struct End {
    at: usize,
    addr: SocketAddr,
    other: SocketAddr,
    /// Datagrams with their places in a chain.
    sender: UnboundedSender<(Vec<u8>, u64)>,
    receiver: tokio::sync::Mutex<UnboundedReceiver<(Vec<u8>, u64)>>,
    sent: Arc<Sent>,
}

fn wire(sent: &Arc<Sent>) -> [End; 2] {
    let addrs = [[127, 7, 0, 1], [127, 7, 0, 2]].map(|host| SocketAddr::from((host, 1)));
    let ((to_b, at_b), (to_a, at_a)) = (unbounded_channel(), unbounded_channel());
    let end = |at: usize, sender, receiver| {
        let receiver = tokio::sync::Mutex::new(receiver);
        End { at, addr: addrs[at], other: addrs[1 - at], sender, receiver, sent: sent.clone() }
    };
    [end(0, to_b, at_a), end(1, to_a, at_b)]
}

#[async_trait]
impl Transport for End {
    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = self.receiver.lock().await.recv().await;
        let Some((bytes, place)) = received else { return std::future::pending().await };
        self.sent.places[self.at].fetch_max(place, Ordering::Relaxed);
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), self.other))
    }

    async fn send_to(&self, buf: &[u8], dst: &SocketAddr) -> io::Result<usize> {
        // Its probes of addresses at random reach nobody.
        if *dst == self.other {
            let place = self.sent.places[self.at].load(Ordering::Relaxed) + 1;
            self.sent.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.sent.flights.fetch_max(place, Ordering::Relaxed);
            _ = self.sender.send((buf.to_vec(), place));
        }
        Ok(buf.len())
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}
