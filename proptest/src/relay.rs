//! A UDP relay before a node. It forwards packets in both directions, loses some, delays them, or lets through so many
//! bytes a second; the rest waits in the socket's own buffer, which overflows as a router's does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Dice;

/// All relays have a thread of their own: a network does not wait for the work of those that it connects.
static NETWORK: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads can be started")
});

/// The largest UDP datagram.
const PACKET_BYTES_MAX: usize = 65_536;
/// A debt below it is carried on.
const TIMER_ERROR: Duration = Duration::from_micros(100);
/// Loss is drawn in parts of this.
const PARTS: usize = 1 << 20;

/// What a relay does to packets, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// This share of them is lost.
    pub loss: f64,
    /// They arrive this much later.
    pub delay: Duration,
    /// Bytes a second that get through.
    pub rate: Option<f64>,
    /// Which ones are lost.
    pub seed: u64,
}

impl Faults {
    /// The same for another relay, or another way through one.
    #[must_use]
    pub fn at(self, place: u64) -> Self {
        Self { seed: self.seed + place, ..self }
    }
}

/// A running relay. It ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    passed: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Starts a relay on loopback. It drops everything until [`Relay::lead_to`] puts something behind it.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(faults: Faults) -> Self {
        let binding = NETWORK.spawn(UdpSocket::bind("127.0.0.1:0"));
        let socket = Arc::new(binding.await.expect("it does not panic").expect("a port is free"));
        let addr = socket.local_addr().expect("it is bound");
        let target = Arc::new(OnceLock::new());
        let passed = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn_on(run(socket, target.clone(), Arc::clone(&passed), faults), NETWORK.handle());
        Self { addr, target, passed, _tasks: tasks }
    }

    /// The address at which others reach what is behind it.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Puts something behind it.
    ///
    /// # Panics
    /// If something is behind it already.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.set(target).expect("it leads to one place");
    }

    /// The bytes that were sent to the target.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Forwards towards the target. Each sender gets a socket of its own for the way back.
async fn run(
    front: Arc<UdpSocket>,
    target: Arc<OnceLock<SocketAddr>>,
    passed: Arc<AtomicU64>,
    faults: Faults,
) {
    let mut ways: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let (mut backs, mut gate) = (JoinSet::new(), Gate::new(faults));
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let (received, has_waited) = receive(&front, &mut packet).await;
        let Ok((length, from)) = received else { continue };
        let Some(target) = target.get() else { continue };
        let way = if let Some(way) = ways.get(&from) {
            way.clone()
        } else {
            let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port is free"));
            ways.insert(from, way.clone());
            let gate = Gate::new(faults.at(ways.len() as u64));
            backs.spawn(run_back(way.clone(), front.clone(), from, gate));
            way
        };
        if gate.forward(&way, *target, &packet[..length], has_waited).await {
            passed.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// Forwards from the target to one sender.
async fn run_back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, mut gate: Gate) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let (received, has_waited) = receive(&way, &mut packet).await;
        let Ok((length, _)) = received else { continue };
        gate.forward(&front, to, &packet[..length], has_waited).await;
    }
}

/// The next packet, and whether it was there already.
async fn receive(socket: &UdpSocket, packet: &mut [u8]) -> (std::io::Result<(usize, SocketAddr)>, bool) {
    let waited = socket.try_recv_from(packet);
    if waited.is_ok() { (waited, true) } else { (socket.recv_from(packet).await, false) }
}

/// One direction of a link.
struct Gate {
    faults: Faults,
    dice: Dice,
    free_at: Instant,
}

impl Gate {
    fn new(faults: Faults) -> Self {
        Self { faults, dice: Dice::new(faults.seed), free_at: Instant::now() }
    }

    /// Sends a packet on, and answers whether it arrives.
    async fn forward(
        &mut self,
        socket: &Arc<UdpSocket>,
        to: SocketAddr,
        packet: &[u8],
        has_waited: bool,
    ) -> bool {
        let passes = self.lets_through(packet.len(), has_waited).await;
        if passes && self.faults.delay.is_zero() {
            _ = socket.send_to(packet, to).await;
        } else if passes {
            let (socket, packet, delay) = (socket.clone(), packet.to_vec(), self.faults.delay);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                _ = socket.send_to(&packet, to).await;
            });
        }
        passes
    }

    /// Waits until the link has taken a packet, and answers whether it arrives. The time of one that has waited begins
    /// where the one before it was taken, even if the relay comes to it later than that.
    #[expect(clippy::cast_precision_loss, reason = "both numbers are below 2^53")]
    async fn lets_through(&mut self, bytes: usize, has_waited: bool) -> bool {
        if (self.dice.below(PARTS) as f64) < self.faults.loss * PARTS as f64 {
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
