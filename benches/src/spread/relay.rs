//! A UDP relay before a node: it forwards packets in both directions and loses some, or lets through so many bytes a
//! second and leaves the rest to wait in the socket's own buffer, which overflows as a router's does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What a relay does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// This share of them is lost, in each direction.
    pub(super) loss: f64,
    /// Bytes a second that get through, in each direction.
    pub(super) rate: Option<f64>,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    addr: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(super) async fn start(faults: Faults, seed: u64) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port is free"));
        let addr = socket.local_addr().expect("it is bound");
        let target = Arc::new(OnceLock::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(run(socket, target.clone(), faults, seed));
        Self { addr, target, _tasks: tasks }
    }

    /// Where others reach what is behind it.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Puts something behind it.
    pub(super) fn lead_to(&self, target: SocketAddr) {
        self.target.set(target).expect("it leads to one place");
    }
}

/// Towards the target; each sender gets a way back of its own.
async fn run(front: Arc<UdpSocket>, target: Arc<OnceLock<SocketAddr>>, faults: Faults, seed: u64) {
    let mut ways: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let (mut backs, mut gate) = (JoinSet::new(), Gate::new(faults, seed));
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((length, from)) = front.recv_from(&mut packet).await else { continue };
        let Some(target) = target.get() else { continue };
        let way = if let Some(way) = ways.get(&from) {
            way.clone()
        } else {
            let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port is free"));
            way.connect(target).await.expect("loopback takes everything");
            ways.insert(from, way.clone());
            let gate = Gate::new(faults, seed + ways.len() as u64);
            backs.spawn(run_back(way.clone(), front.clone(), from, gate));
            way
        };
        if gate.lets_through(length).await {
            _ = way.send(&packet[..length]).await;
        }
    }
}

async fn run_back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, mut gate: Gate) {
    let mut packet = vec![0; 65_536];
    loop {
        let Ok(length) = way.recv(&mut packet).await else { continue };
        if gate.lets_through(length).await {
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
    fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, random: ChaCha8Rng::seed_from_u64(seed), free_at: Instant::now() }
    }

    async fn lets_through(&mut self, bytes: usize) -> bool {
        if f64::from(self.random.next_u32()) < self.faults.loss * f64::from(u32::MAX) {
            return false;
        }
        if let Some(rate) = self.faults.rate {
            self.free_at = self.free_at.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate);
            // Timers are good to a millisecond: a debt below that is carried on.
            if self.free_at > Instant::now() + Duration::from_millis(1) {
                tokio::time::sleep_until(self.free_at).await;
            }
        }
        true
    }
}
