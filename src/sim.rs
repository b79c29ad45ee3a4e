//! A simulator for whole clusters: real replicas, virtual time, faulty links, crashes, and an oracle that checks every
//! replica after every step.
//!
//! The same seed gives the same run, bit for bit. Use it to test your own logic under partitions, loss and crashes:
//!
//! ```
//! use std::time::Duration;
//! let mut sim = tidings::sim::Sim::new(7).nodes(3).loss(0.1);
//! sim.node(0).put("flag", "on")?;
//! sim.partition(&[0], &[1, 2]);
//! sim.node(1).put("flag", "off")?;
//! sim.run_for(Duration::from_secs(5));
//! sim.heal();
//! sim.assert_converged();
//! # Ok::<(), tidings::WriteError>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::{catch_unwind, resume_unwind};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::arrivals::Arrivals;
use crate::config::{Config, VectorSettings};
use crate::controls::Controls;
use crate::id::{LinkId, RunId};
use crate::membership::{Member, MemberEvent, PeerExit};
use crate::replica::saved::Saved;
use crate::replica::{Input, Lane, Replica, ReplicaEvent, Setup};
use crate::store::digest::fingerprint;
use crate::time::{HybridClock, Time};

mod disk;
mod faults;
mod leaders;
mod members;
mod network;
mod node;
mod oracle;

use disk::SimDisk;
pub use disk::{Disk, DiskFault};
use leaders::LeaseOracle;
pub use node::{SimBatch, SimCounter, SimNode, SimSet, SimWatch};
pub use oracle::SimFault;
use oracle::{Oracle, OracleEvent};

/// Wall-clock time at the start of every simulation, in milliseconds since the epoch.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Where links have a rate, a stream delivers at most this many bytes at once, and no more than the link carries in one
/// of `PARTS_PER_SECOND` parts of a second: a long frame arrives piece by piece.
const CHUNK_BYTES_MAX: u64 = 16 << 10;
const CHUNK_BYTES_MIN: u64 = 256;
const PARTS_PER_SECOND: u64 = 20;

/// Vectors have old parts within a simulation, and these are compared in buckets.
const VECTOR_SETTINGS: VectorSettings =
    VectorSettings { cut_interval: Duration::from_secs(2), buckets_min: 3 };

/// The virtual time within which a simulation has to converge.
const CONVERGENCE_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
enum SimEvent {
    Datagram(LinkId, usize, Vec<u8>),
    Stream(LinkId, usize, Lane, Vec<u8>),
    Drained(LinkId, usize, Lane, usize),
    Connect(usize, usize),
    /// A datagram from a member to a run of a node, linked or not.
    Packet(Box<Member>, usize, RunId, Vec<u8>),
    /// One node dials another one at an address.
    Dial(usize, usize, SocketAddr),
    PeerClosing(LinkId, usize, PeerExit),
    Down(LinkId),
    Wake(usize, u64),
    /// A node's outputs are carried out, some time after the input that led to them.
    Drain(usize, u64),
    Persisted(usize, u64),
}

#[derive(Debug)]
struct SimLink {
    ends: [usize; 2],
    /// When the last bytes of each stream arrive, by receiving end and lane: streams keep their order.
    arrivals: [[Duration; 2]; 2],
    /// When everything given to the link so far has been sent, by receiving end and lane. The live lane is sent first.
    departures: [[Duration; 2]; 2],
    /// Something on the way to this end was lost. A stream never continues behind a gap.
    has_gap: [bool; 2],
}

/// A monotonic clock that runs too fast or too slow.
#[derive(Clone, Copy, Debug, Default)]
struct DriftingClock {
    /// When the rate was last changed: by true time, and by this clock.
    since: Duration,
    own: Duration,
    ppm: i64,
}

impl DriftingClock {
    fn rate(self) -> u128 {
        (1_000_000 + self.ppm.clamp(-900_000, 900_000)).unsigned_abs().into()
    }

    fn read(self, now: Duration) -> Duration {
        self.own + nanos((now - self.since).as_nanos() * self.rate() / 1_000_000)
    }

    /// The true time in which this clock advances by `own`.
    fn until(self, own: Duration) -> Duration {
        nanos(own.as_nanos() * 1_000_000 / self.rate())
    }
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).expect("a simulation ends within five hundred years"))
}

#[derive(Debug)]
struct SimState {
    replica: Option<Replica>,
    has_disk: bool,
    disk: SimDisk,
    /// Counts starts. What belongs to an earlier start is ignored.
    starts: u64,
    skew_ms: i64,
    arrivals: Arrivals,
    drifting_clock: DriftingClock,
    wake_at: Option<Duration>,
    slowness: u32,
    config: Config,
    is_tainted: bool,
    addr: SocketAddr,
    /// Its process is stopped: what arrives waits.
    is_paused: bool,
    /// The share of its datagrams and frames in which some bytes are changed at random.
    garbling: f64,
}

/// A simulated cluster of real replicas in virtual time, with faulty links, crashes and an oracle. The same seed gives
/// the same run, bit for bit. What the oracle finds makes it panic; the payload of the panic is a [`SimFault`].
#[derive(Debug)]
pub struct Sim {
    seed: u64,
    random: ChaCha8Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), SimEvent>,
    sequence: u64,
    nodes: Vec<SimState>,
    links: BTreeMap<LinkId, SimLink>,
    next_link: LinkId,
    cuts: BTreeSet<(usize, usize)>,
    /// Directions in which everything is held back; and what waits there or for a stopped process, by its place in the
    /// queue.
    holds: BTreeSet<(usize, usize)>,
    waiting: BTreeMap<u64, SimEvent>,
    loss: f64,
    processing_delay: f64,
    delay: Duration,
    rate: Option<u64>,
    config: Config,
    oracle: Oracle,
    checks: bool,
    trace: u64,
    events: Vec<(usize, ReplicaEvent)>,
    bytes: u64,
    /// Datagrams and frames.
    sendings: u64,
    /// Links that nodes broke because nothing moved on them.
    timeouts: u64,
    controls: Controls,
    /// The nodes by which the others find each other. `None`: the simulator links all nodes.
    seeds: Option<Vec<usize>>,
    /// Where nodes are linked as a tree: the number of nodes below each node.
    /// Groups that were set by hand.
    #[cfg(feature = "__controls")]
    groups: Vec<Vec<usize>>,
    member_events: Vec<(Duration, usize, MemberEvent)>,
    leaders: LeaseOracle,
}

impl Sim {
    /// An empty cluster. All randomness comes from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            nodes: Vec::new(),
            links: BTreeMap::new(),
            next_link: LinkId::new(1),
            cuts: BTreeSet::new(),
            holds: BTreeSet::new(),
            waiting: BTreeMap::new(),
            loss: 0.0,
            processing_delay: 0.0,
            delay: Duration::from_millis(1),
            rate: None,
            config: Config::lan(),
            oracle: Oracle::default(),
            checks: true,
            trace: 0,
            events: Vec::new(),
            bytes: 0,
            sendings: 0,
            timeouts: 0,
            seeds: None,
            #[cfg(feature = "__controls")]
            groups: Vec::new(),
            member_events: Vec::new(),
            leaders: LeaseOracle::default(),
            controls: Controls::default(),
        }
    }

    /// Sets the configuration of the nodes that are added after this.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Loses this share, 0 to 1, of all datagrams, and delays streams as if packets had been lost.
    #[must_use]
    pub fn loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// For this share, 0 to 1, of its inputs a node's outputs are carried out later, so that other inputs come in
    /// between.
    #[must_use]
    pub fn processing_delay(mut self, share: f64) -> Self {
        self.processing_delay = share;
        self
    }

    /// The mean one-way delay of a link.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The bytes per second that the streams of a link carry in each direction. Unlimited without this.
    #[must_use]
    pub fn rate(mut self, bytes: u64) -> Self {
        self.rate = Some(bytes.max(1));
        self
    }

    /// Runs without the oracle, for simulations with many keys.
    #[must_use]
    pub fn without_checks(mut self) -> Self {
        self.checks = false;
        self
    }

    /// Adds nodes without a disk. They are all connected with each other, unless [`Sim::seeds`] was called before.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        (0..count).for_each(|_| self.add(false));
        self
    }

    /// Adds nodes with a disk.
    #[must_use]
    pub fn nodes_with_disk(mut self, count: usize) -> Self {
        (0..count).for_each(|_| self.add(true));
        self
    }

    /// Breaks one rule in all nodes that are added after this.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    #[must_use]
    pub fn broken(mut self, control: Option<crate::controls::Control>) -> Self {
        self.controls.broken = control;
        self
    }

    fn add(&mut self, has_disk: bool) {
        let i = self.nodes.len();
        let config = self.config.clone();
        self.nodes.push(SimState {
            replica: None,
            has_disk,
            disk: SimDisk::default(),
            starts: 0,
            skew_ms: 0,
            arrivals: Arrivals::default(),
            drifting_clock: DriftingClock::default(),
            wake_at: None,
            slowness: 1,
            config,
            is_tainted: false,
            addr: members::addr(i, 0),
            is_paused: false,
            garbling: 0.0,
        });
        self.start(i, None);
        if self.seeds.is_none() {
            (0..i).for_each(|other| self.schedule(Duration::ZERO, SimEvent::Connect(other, i)));
        }
    }

    fn start(&mut self, i: usize, saved: Option<Saved>) {
        let config = Config { vector: VECTOR_SETTINGS, ..self.nodes[i].config.clone() };
        let mut setup = Setup::new(config, self.random.next_u64());
        setup.saved = saved;
        setup.has_disk = self.nodes[i].has_disk;
        setup.controls = self.controls;
        if self.seeds.is_some() {
            setup.member = Some(self.member(i));
        }
        let node = &mut self.nodes[i];
        node.starts += 1;
        node.wake_at = None;
        node.replica = Some(Replica::new(setup));
        node.arrivals = Arrivals::default();
        self.check_durability(i);
        self.drain(i);
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The number of nodes, including crashed ones.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A fingerprint of everything that happened so far. It is equal for equal seeds.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// The bytes that all nodes have sent.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes
    }

    /// The number of links that nodes broke because a repair over them made no progress.
    pub fn timeouts(&self) -> u64 {
        self.timeouts
    }

    /// The events that nodes reported since the last call, each with the index of its node.
    pub fn events(&mut self) -> Vec<(usize, ReplicaEvent)> {
        std::mem::take(&mut self.events)
    }

    /// Whether a node runs.
    pub fn is_up(&self, i: usize) -> bool {
        self.nodes[i].replica.is_some()
    }

    /// One node, with the verbs of `Node`.
    ///
    /// # Panics
    /// If the node has crashed.
    pub fn node(&mut self, i: usize) -> SimNode<'_> {
        assert!(self.is_up(i), "node {i} is down");
        SimNode { sim: self, i }
    }

    // Running.

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until all live nodes hold the same and have merged the same, and checks them all.
    ///
    /// # Panics
    /// If that takes longer than ten virtual minutes, or the oracle finds a fault.
    pub fn assert_converged(&mut self) {
        let end = self.now + CONVERGENCE_MAX;
        loop {
            if self.is_converged() {
                break;
            }
            if self.now >= end {
                let states: Vec<String> = self.live().map(|r| format!("{:?}", r.status())).collect();
                self.fail(SimFault::NotConverged(format!("not converged:\n{}", states.join("\n"))));
            }
            let next = self.now + self.config.sync_interval / 4;
            self.run_for(next.min(end) - self.now);
        }
        (0..self.nodes.len()).for_each(|i| self.check(i));
    }

    /// Runs until the clock has passed every write that a wrong clock stamped ahead, and demands convergence again:
    /// claims of such writes are sent only then.
    ///
    /// # Panics
    /// As [`Sim::assert_converged`].
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn assert_converged_in_time(&mut self) {
        let Some(last) = self.oracle.last_ahead_ms() else { return };
        let wait = Duration::from_millis(last.saturating_sub(self.wall_ms()));
        self.run_for(wait + self.config.sync_interval * 64);
        self.assert_converged();
    }

    /// Whether all live nodes hold the same and have merged the same, and no repair is running. Clocks beyond the
    /// vector may remain for ever: of a run that ended between sending a write and claiming it.
    pub fn is_converged(&self) -> bool {
        let mut states = self.live().map(|replica| {
            let status = replica.status();
            (status.root, status.vector_hash, status.sessions)
        });
        states.next().is_none_or(|first| first.2 == 0 && states.all(|state| state == first))
    }

    fn live(&self) -> impl Iterator<Item = &Replica> {
        self.nodes.iter().filter_map(|node| node.replica.as_ref())
    }

    /// Panics with what was found. The panic hook gets a text with the seed, as from every other panic. The payload,
    /// for those who catch the panic, is the fault itself.
    fn fail(&self, fault: SimFault) -> ! {
        let (seed, now) = (self.seed, self.now);
        let replay = format!("replay: the same steps on Sim::new({seed})");
        _ = catch_unwind(|| panic!("seed {seed} at {now:?}: {fault}\n{replay}"));
        resume_unwind(Box::new(fault))
    }

    fn step(&mut self, end: Duration) -> bool {
        let Some(((at, sequence), event)) = self.queue.pop_first() else { return false };
        if at > end {
            self.queue.insert((at, sequence), event);
            return false;
        }
        self.now = at;
        if self.is_held(&event) {
            self.waiting.insert(sequence, event);
            return true;
        }
        match event {
            SimEvent::Datagram(id, to, bytes) => {
                self.hand(id, to, Input::Datagram(id, &bytes));
            }
            SimEvent::Stream(id, to, lane, bytes) => {
                self.hand(id, to, Input::Stream(id, lane, &bytes));
            }
            SimEvent::Drained(id, to, lane, bytes) => self.hand(id, to, Input::Drained(id, lane, bytes)),
            SimEvent::Down(id) => self.break_link(id),
            SimEvent::Connect(a, b) => self.connect(a, b),
            SimEvent::Packet(from, to, run, bytes) => {
                if self.run_of(to) == Some(run) {
                    self.input(to, Input::MemberDatagram(&from, &bytes));
                }
            }
            SimEvent::Dial(from, to, addr) => self.dialled(from, to, addr),
            SimEvent::PeerClosing(id, to, exit) => {
                self.hand(id, to, Input::PeerClosing { link: id, exit });
                self.break_link(id);
            }
            SimEvent::Wake(i, starts) => {
                if self.nodes[i].starts == starts && self.nodes[i].wake_at.is_some_and(|wake| wake <= at) {
                    self.nodes[i].wake_at = None;
                    self.input(i, Input::Wake);
                }
            }
            SimEvent::Drain(i, starts) => {
                if self.nodes[i].starts == starts && self.is_up(i) {
                    self.drain(i);
                }
            }
            SimEvent::Persisted(i, starts) => {
                if self.nodes[i].starts == starts && self.is_up(i) {
                    self.synced(i);
                }
            }
        }
        true
    }

    /// Hands an input to the node at a link's end, unless the link is gone.
    fn hand(&mut self, id: LinkId, to: usize, input: Input<'_>) {
        if self.links.contains_key(&id) {
            self.input(to, input);
        }
    }

    fn input(&mut self, i: usize, input: Input<'_>) {
        let now = self.time(i);
        let note = match input {
            Input::Datagram(id, bytes) | Input::Stream(id, _, bytes) => (id.number(), fingerprint(1, bytes)),
            Input::MemberDatagram(_, bytes) => (0, fingerprint(1, bytes)),
            Input::LinkUp(id) => (id.number(), 2),
            Input::LinkDown(id) => (id.number(), 3),
            _ => (0, 4),
        };
        let mut bytes = [0; 40];
        let parts = [self.trace, self.now.as_nanos() as u64, i as u64, note.0, note.1];
        for (at, part) in parts.into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&part.to_le_bytes());
        }
        self.trace = fingerprint(0, &bytes);
        let Some(replica) = &mut self.nodes[i].replica else { return };
        replica.handle(now, input);
        if self.chance(self.processing_delay) {
            let (later, starts) = (self.jitter(self.delay), self.nodes[i].starts);
            self.schedule(later, SimEvent::Drain(i, starts));
        } else {
            self.drain(i);
        }
    }

    fn time(&self, i: usize) -> Time {
        let mono = self.nodes[i].drifting_clock.read(self.now);
        let wall = (WALL_START_MS + mono.as_millis() as u64).saturating_add_signed(self.nodes[i].skew_ms);
        Time { mono, wall: Duration::from_millis(wall) }
    }

    /// Carries out a node's outputs, checks the node, and plans its next wake-up.
    fn drain(&mut self, i: usize) {
        while let Some(output) = self.nodes[i].replica.as_mut().and_then(Replica::poll) {
            self.output(i, output);
        }
        let now = self.time(i);
        let node = &mut self.nodes[i];
        if let Some(replica) = &mut node.replica {
            node.arrivals.follow(now, replica);
        }
        self.write_disk(i);
        self.check(i);
        self.check_leaders();
        let Some(replica) = &self.nodes[i].replica else { return };
        let later = replica.deadline().mono.saturating_sub(self.time(i).mono);
        let at = self.now + self.nodes[i].drifting_clock.until(later).max(Duration::from_micros(1));
        if self.nodes[i].wake_at.is_none_or(|wake| at < wake) {
            self.nodes[i].wake_at = Some(at);
            let starts = self.nodes[i].starts;
            self.schedule(at.saturating_sub(self.now), SimEvent::Wake(i, starts));
        }
    }

    /// Records a local write for the oracle. Whether its stamp is ahead is found out here.
    fn record(&mut self, i: usize, key: &[u8], event: OracleEvent) {
        let now = Time { mono: self.now, wall: Duration::from_millis(self.wall_ms()) };
        let is_ahead = event.stamp.clock > HybridClock::limit(now, self.nodes[i].config.clock_skew_max);
        self.oracle.record(key, OracleEvent { is_ahead, ..event });
    }

    /// What a correct wall clock shows, in milliseconds.
    fn wall_ms(&self) -> u64 {
        WALL_START_MS + self.now.as_millis() as u64
    }

    fn check(&mut self, i: usize) {
        let node = &self.nodes[i];
        let Some(replica) = node.replica.as_ref().filter(|_| self.checks && !node.is_tainted) else { return };
        if let Err(fault) = self.oracle.check(i, &replica.store, self.wall_ms()) {
            self.fail(fault);
        }
    }
}
