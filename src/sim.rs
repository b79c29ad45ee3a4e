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
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::arrivals::Arrivals;
use crate::config::{Config, VectorSettings};
use crate::controls::Controls;
use crate::id::{LinkId, RunId};
use crate::membership::{Member, MemberEvent, PeerExit};
use crate::replica::saved::Saved;
use crate::replica::{Input, Lane, Readiness, Replica, ReplicaEvent, Setup, Validators};
use crate::store::digest::fingerprint;
use crate::store::watch::WatchId;
use crate::time::{HybridClock, Time};

mod check;
mod disk;
mod faults;
mod handle;
#[cfg(feature = "__controls")]
mod hostile;
mod leaders;
mod members;
mod network;
mod node;
mod oracle;
mod settings;
mod tasks;
mod timers;
mod watch;

#[cfg(feature = "proptest")]
pub use check::{FaultPlan, faults};
pub use check::{PlannedFault, check};
use disk::SimDisk;
pub use disk::{Disk, DiskFault};
pub use handle::Sim;
#[cfg(feature = "__controls")]
#[doc(hidden)]
pub use hostile::{Lie, Spared};
use leaders::LeaseOracle;
pub use node::{SimNode, SimReceipt};
pub use oracle::SimFault;
use oracle::{Oracle, OracleEvent};
use tasks::SpawnedTasks;
use timers::SimTimers;
pub use watch::SimWatch;

/// Wall-clock time at the start of every simulation, in milliseconds since the epoch.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Where links have a rate, a stream delivers at most this many bytes at once, and no more than the link carries in one
/// of `PARTS_PER_SECOND` parts of a second: a long frame arrives piece by piece.
const CHUNK_BYTES_MAX: u64 = 16 << 10;
const CHUNK_BYTES_MIN: u64 = 256;
const PARTS_PER_SECOND: u64 = 20;

/// Under the oracle, vectors have old parts within a simulation, and these are compared in buckets.
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
    name: Arc<str>,
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
    /// What changes and adds to what it sends: see [`hostile`].
    #[cfg(feature = "__controls")]
    liar: Option<hostile::Liar>,
    /// Who waits for events of a watch of the present start.
    wakers: BTreeMap<WatchId, Waker>,
    /// Who waits until the node is ready, or has caught up with a peer, or stops.
    joining: Vec<Waker>,
    /// What they were told of last.
    readiness: Readiness,
}

/// Everything in a simulation. Its handles lock it; all code of the simulator below them works on it.
#[derive(Debug)]
struct World {
    seed: u64,
    random: ChaCha8Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), SimEvent>,
    sequence: u64,
    nodes: Vec<SimState>,
    /// Wakers to be called once the world is unlocked.
    woken: Vec<Waker>,
    timers: SimTimers,
    /// Tasks that user code spawned through a handle, until they are polled for the first time.
    spawned: SpawnedTasks,
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
    validators: Validators,
    /// The nodes by which the others find each other. `None`: the simulator links all nodes.
    seeds: Option<Vec<usize>>,
    /// Groups that were set by hand.
    #[cfg(feature = "__controls")]
    groups: Vec<Vec<usize>>,
    member_events: Vec<(Duration, usize, MemberEvent)>,
    leaders: LeaseOracle,
    /// What nodes send, while that is recorded.
    #[cfg(feature = "__controls")]
    recorded: Option<Vec<hostile::Told>>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            nodes: Vec::new(),
            woken: Vec::new(),
            timers: SimTimers::default(),
            spawned: SpawnedTasks::default(),
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
            #[cfg(feature = "__controls")]
            recorded: None,
            controls: Controls::default(),
            validators: Validators::default(),
        }
    }

    fn add(&mut self, has_disk: bool) {
        let i = self.nodes.len();
        let config = self.config.clone();
        self.nodes.push(SimState {
            name: members::name(i).into(),
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
            #[cfg(feature = "__controls")]
            liar: None,
            wakers: BTreeMap::new(),
            joining: Vec::new(),
            readiness: Readiness::default(),
        });
        self.start(i, None);
        if self.seeds.is_none() {
            (0..i).for_each(|other| self.schedule(Duration::ZERO, SimEvent::Connect(other, i)));
        }
    }

    /// Ends a node's run, and with it its watches. Returns whether it was up.
    fn stop(&mut self, i: usize) -> bool {
        let node = &mut self.nodes[i];
        self.woken.extend(std::mem::take(&mut node.wakers).into_values());
        self.woken.append(&mut node.joining);
        let Some(replica) = node.replica.take() else { return false };
        self.oracle.end_run(replica.store.first_run);
        true
    }

    fn start(&mut self, i: usize, saved: Option<Saved>) {
        let vector = if self.checks { VECTOR_SETTINGS } else { VectorSettings::default() };
        let config = Config { vector, ..self.nodes[i].config.clone() };
        let mut setup = Setup::new(config, self.random.next_u64());
        setup.saved = saved;
        setup.has_disk = self.nodes[i].has_disk;
        setup.controls = self.controls;
        setup.validators = self.validators.clone();
        if self.seeds.is_some() {
            setup.member = Some(self.member(i));
            setup.is_founder = self.is_alone(i);
        }
        let node = &mut self.nodes[i];
        node.starts += 1;
        node.readiness = Readiness::default();
        node.wake_at = None;
        node.replica = Some(Replica::new(setup));
        node.arrivals = Arrivals::default();
        self.note_twins(i);
        self.check_durability(i);
        self.drain(i);
    }

    /// What is bound to the life of a process may end when another one starts under its name.
    fn note_twins(&mut self, i: usize) {
        let runs = self.nodes.iter().filter(|node| node.name == self.nodes[i].name);
        let runs: Vec<RunId> =
            runs.filter_map(|node| node.replica.as_ref()).map(|replica| replica.store.first_run).collect();
        if runs.len() > 1 {
            runs.into_iter().for_each(|run| self.oracle.end_run(run));
        }
    }

    fn is_up(&self, i: usize) -> bool {
        self.nodes[i].replica.is_some()
    }

    /// How long to run before looking again whether the nodes have converged; `None` if they have. Fails at `end`.
    fn converges_by(&self, end: Duration) -> Option<Duration> {
        if self.is_converged() {
            return None;
        }
        if self.now >= end {
            let states: Vec<String> = self.live().map(|r| format!("{:?}", r.status())).collect();
            self.fail(SimFault::NotConverged(format!("not converged:\n{}", states.join("\n"))));
        }
        let next = self.now + self.config.sync_interval / 4;
        Some(next.min(end) - self.now)
    }

    /// How long it takes until the clock has passed every write that was stamped ahead, and peers know of it.
    #[cfg(feature = "__controls")]
    fn wait_of_stamps_ahead(&self) -> Option<Duration> {
        let wait = Duration::from_millis(self.oracle.last_ahead_ms()?.saturating_sub(self.wall_ms()));
        Some(wait + self.config.sync_interval * 64)
    }

    fn is_converged(&self) -> bool {
        let mut states = self.live().map(|replica| {
            let status = replica.status();
            (status.root, status.vector_hash, status.sessions)
        });
        states.next().is_none_or(|first| first.2 == 0 && states.all(|state| state == first))
    }

    fn check_all(&mut self) {
        (0..self.nodes.len()).for_each(|i| self.check(i));
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
        let event_at = self.queue.first_key_value().map(|((at, _), _)| *at);
        if let Some(at) = self.timers.next()
            && at <= end
            && event_at.is_none_or(|event_at| at < event_at)
        {
            self.now = self.now.max(at);
            self.woken.extend(self.timers.take_next());
            return true;
        }
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
                    #[cfg(feature = "__controls")]
                    self.add_lies(i);
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
            Input::LinkUp(id, _) => (id.number(), 2),
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
            let ready = replica.take_ready_watches().into_iter();
            self.woken.extend(ready.filter_map(|id| node.wakers.remove(&id)));
            let readiness = replica.readiness();
            if std::mem::replace(&mut node.readiness, readiness) != readiness {
                self.woken.append(&mut node.joining);
            }
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
