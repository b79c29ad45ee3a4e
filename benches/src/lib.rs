//! What the measurements share: keys and values of the agreed sizes, nodes, and two replicas joined by a wire that
//! counts. What they share with the tests is in `tidings-proptest`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tidings::core::{Input, Lane, Output, Replica, Setup, Time};
use tidings::{Builder, Config, Node};
use tokio::runtime::Runtime;

pub mod history;
pub mod plot;
pub mod processes;
pub mod table;

/// Where this stands in the environment, measurements take small sizes, for a report of some minutes.
pub const QUICK: &str = "TIDINGS_BENCHES_QUICK";

/// The first if the time is short, otherwise the second.
pub fn sized<T>(quick: T, full: T) -> T {
    if std::env::var_os(QUICK).is_some() { quick } else { full }
}

/// A key of 24 bytes.
pub fn key(i: u64) -> String {
    // Spread, so that neighbours in time are not neighbours in order.
    format!("bench/{:018x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3)
}

/// What the nodes of a measurement run on: a thread for each of two cores.
///
/// # Panics
/// If the system has no thread left.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A node with the configuration of the measurements. It joins through these nodes.
pub fn builder(name: &str, seeds: &[&Node]) -> Builder {
    tidings_proptest::nodes::builder(name, seeds).config(Config::lan())
}

/// Starts nodes that find each other through the first one, and waits until each is linked with all others.
///
/// # Panics
/// If one of them does not start.
pub async fn mesh(count: usize, build: impl Fn(usize, &[&Node]) -> Builder) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..count {
        let seeds: Vec<&Node> = nodes.iter().take(1).collect();
        let node = build(i, &seeds).start().await.expect("it starts");
        nodes.push(node);
    }
    while !nodes.iter().all(|node| node.status().peers.len() == count - 1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes
}

/// A value of 100 bytes.
pub fn value(i: u64) -> Vec<u8> {
    format!("{i:0>100}").into_bytes()
}

/// A moment this many microseconds after the start.
pub fn at(micros: u64) -> Time {
    let wall = Duration::from_secs(1_700_000_000) + Duration::from_micros(micros);
    Time { mono: Duration::from_micros(micros), wall }
}

/// A replica.
pub fn replica(seed: u64) -> Replica {
    Replica::new(Setup::new(Config::lan(), seed))
}

/// A replica with this many keys.
///
/// # Panics
/// Never: the keys and values are acceptable.
pub fn filled(seed: u64, keys: u64) -> Replica {
    let mut replica = replica(seed);
    for i in 0..keys {
        replica.put(at(i), &key(i), &value(i)).expect("acceptable");
    }
    replica
}

/// What crossed the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crossed {
    /// Bytes of everything, both directions.
    pub bytes: u64,
    /// Of these, rows.
    pub rows: u64,
    /// How often the direction changed: half round trips.
    pub flights: u64,
}

/// Two replicas and the link between them.
#[derive(Debug)]
pub struct Pair {
    /// Both.
    pub ends: [Replica; 2],
    /// The longest single step of one of them, in milliseconds.
    pub longest_ms: f64,
    now: Time,
}

impl Pair {
    /// Joins two replicas.
    pub fn new(a: Replica, b: Replica, now: Time) -> Self {
        let mut pair = Self { ends: [a, b], longest_ms: 0.0, now };
        pair.ends.iter_mut().for_each(|end| {
            end.handle(now, Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS));
        });
        pair
    }

    /// Breaks the link and makes a new one, so that both compare.
    pub fn reconnect(&mut self) {
        for end in &mut self.ends {
            end.handle(self.now, Input::LinkDown(tidings::core::LinkId::new(1)));
            end.handle(
                self.now,
                Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS),
            );
        }
    }

    /// Carries everything to and fro until both are silent. With `bulk_only`, live traffic is not counted.
    pub fn run(&mut self, bulk_only: bool) -> Crossed {
        let mut crossed = Crossed::default();
        let before: u64 = self.ends.iter().map(|end| end.status().traffic.rows_bytes).sum();
        loop {
            let (mut moved, mut counted) = (false, false);
            let mut flights: [VecDeque<Output>; 2] = Default::default();
            for (end, flight) in self.ends.iter_mut().zip(&mut flights) {
                loop {
                    let begin = Instant::now();
                    let output = end.poll();
                    self.longest_ms = self.longest_ms.max(begin.elapsed().as_secs_f64() * 1e3);
                    let Some(output) = output else { break };
                    if let Output::Stream(id, lane, bytes) = &output {
                        end.handle(self.now, Input::Drained(*id, *lane, bytes.len()));
                    }
                    flight.push_back(output);
                }
            }
            for (from, flight) in flights.into_iter().enumerate() {
                for output in flight {
                    moved = true;
                    counted |= self.deliver(1 - from, &output, bulk_only, &mut crossed);
                }
            }
            if !moved {
                break;
            }
            crossed.flights += u64::from(counted);
        }
        let after: u64 = self.ends.iter().map(|end| end.status().traffic.rows_bytes).sum();
        crossed.rows = after - before;
        crossed
    }

    fn deliver(&mut self, to: usize, output: &Output, bulk_only: bool, crossed: &mut Crossed) -> bool {
        let (input, bytes, counts) = match output {
            Output::Datagram(id, bytes) => (Input::Datagram(*id, bytes), bytes, true),
            Output::Stream(id, lane, bytes) => {
                (Input::Stream(*id, *lane, bytes), bytes, !bulk_only || *lane == Lane::Bulk)
            }
            _ => return false,
        };
        if bulk_only && matches!(bytes.get(5), Some(2)) && matches!(output, Output::Stream(_, Lane::Live, _))
        {
            // A lost position: the tail does not resume, and everything is left to the comparison.
            return false;
        }
        crossed.bytes += if counts { bytes.len() as u64 } else { 0 };
        let begin = Instant::now();
        self.ends[to].handle(self.now, input);
        self.longest_ms = self.longest_ms.max(begin.elapsed().as_secs_f64() * 1e3);
        counts
    }

    /// Lets time pass for both.
    pub fn wake(&mut self, later: Duration) {
        self.now = self.now.later_by(later);
        self.ends.iter_mut().for_each(|end| end.handle(self.now, Input::Wake));
    }
}

/// This process's resident memory in bytes.
pub fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
}
