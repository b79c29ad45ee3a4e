//! A UDP relay before a node: it forwards packets in both directions and loses some, or lets through so many bytes a
//! second and leaves the rest to wait in the socket's own buffer, which overflows as a router's does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// All relays have a thread of their own: a network does not wait for the work of those that it connects.
static NETWORK: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads can be started")
});

/// A debt below it is carried on.
const TIMER_ERROR: Duration = Duration::from_micros(100);

/// What a relay does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// This share of them is lost, in each direction.
    pub(super) loss: f64,
    /// Bytes a second that get through, in each direction.
    pub(super) rate: Option<f64>,
    /// Which ones are lost.
    pub(super) seed: u64,
}

impl Faults {
    /// The same for another relay, or another way through one.
    pub(super) fn at(self, place: u64) -> Self {
        Self { seed: self.seed + place, ..self }
    }
}

/// Runs until it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    addr: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    passed: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(super) async fn start(faults: Faults) -> Self {
        let binding = NETWORK.spawn(UdpSocket::bind("127.0.0.1:0"));
        let socket = Arc::new(binding.await.expect("it does not panic").expect("a port is free"));
        let addr = socket.local_addr().expect("it is bound");
        let target = Arc::new(OnceLock::new());
        let passed = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn_on(run(socket, target.clone(), Arc::clone(&passed), faults), NETWORK.handle());
        Self { addr, target, passed, _tasks: tasks }
    }

    /// Where others reach what is behind it.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Puts something behind it.
    pub(super) fn lead_to(&self, target: SocketAddr) {
        self.target.set(target).expect("it leads to one place");
    }

    /// How many bytes have come to the target.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Towards the target; each sender gets a way back of its own.
async fn run(
    front: Arc<UdpSocket>,
    target: Arc<OnceLock<SocketAddr>>,
    passed: Arc<AtomicU64>,
    faults: Faults,
) {
    let mut ways: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let (mut backs, mut gate) = (JoinSet::new(), Gate::new(faults));
    let mut packet = vec![0; 65_536];
    loop {
        let waited = front.try_recv_from(&mut packet);
        let has_waited = waited.is_ok();
        let received = if has_waited { waited } else { front.recv_from(&mut packet).await };
        let Ok((length, from)) = received else { continue };
        let Some(target) = target.get() else { continue };
        let way = if let Some(way) = ways.get(&from) {
            way.clone()
        } else {
            let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port is free"));
            way.connect(target).await.expect("loopback takes everything");
            ways.insert(from, way.clone());
            let gate = Gate::new(faults.at(ways.len() as u64));
            backs.spawn(run_back(way.clone(), front.clone(), from, gate));
            way
        };
        if gate.lets_through(length, has_waited).await {
            _ = way.send(&packet[..length]).await;
            passed.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

async fn run_back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, mut gate: Gate) {
    let mut packet = vec![0; 65_536];
    loop {
        let waited = way.try_recv(&mut packet);
        let has_waited = waited.is_ok();
        let received = if has_waited { waited } else { way.recv(&mut packet).await };
        let Ok(length) = received else { continue };
        if gate.lets_through(length, has_waited).await {
            _ = front.send_to(&packet[..length], to).await;
        }
    }
}

struct Gate {
    faults: Faults,
    random: ChaCha8Rng,
    free_at: Instant,
}

impl Gate {
    fn new(faults: Faults) -> Self {
        Self { faults, random: ChaCha8Rng::seed_from_u64(faults.seed), free_at: Instant::now() }
    }

    /// Waits until the link has taken a packet, and answers whether it arrives. The time of one that has waited begins
    /// where the one before it was taken, even if the relay comes to it later than that.
    async fn lets_through(&mut self, bytes: usize, has_waited: bool) -> bool {
        if f64::from(self.random.next_u32()) < self.faults.loss * f64::from(u32::MAX) {
            return false;
        }
        if let Some(rate) = self.faults.rate {
            if !has_waited {
                self.free_at = self.free_at.max(Instant::now());
            }
            self.free_at += Duration::from_secs_f64(bytes as f64 / rate);
            // The runtime's timers are good to a millisecond only, in which some links take ten packets.
            let debt = self.free_at.saturating_duration_since(Instant::now());
            if debt > TIMER_ERROR {
                _ = tokio::task::spawn_blocking(move || std::thread::sleep(debt)).await;
            }
        }
        true
    }
}
