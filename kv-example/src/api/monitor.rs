//! What the dashboard shows of the past: who was there, what happened, how far away the peers were.
//!
//! Three short histories, each bounded. A page that shows them follows with a cursor. All of it is read from what the
//! node knows anyway: looking at a node never writes to its store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tidings::{MemberEvent, MemberState, Node, NodeStatus, RunId};

use super::view;

/// How often members are counted, and for how long that is kept: ten minutes.
const CENSUS_INTERVAL: Duration = Duration::from_secs(1);
const CENSUSES_KEPT: usize = 600;
/// How often round trips and arrival times are read while a page is open, and how many readings are kept.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
const SAMPLES_KEPT: usize = 600;
/// A peer that owes a confirmation for longer than this is shown as late.
const LATE_TIME: Duration = Duration::from_secs(2);
const LOG_LINES_KEPT: usize = 300;
/// Members that were forgotten, the latest ones.
const FORGOTTEN_KEPT: usize = 20;
/// Names of runs that are remembered.
const WRITERS_MAX: usize = 8_192;

/// The latest values of something, numbered from the first.
#[derive(Debug)]
struct Ring<T> {
    first: u64,
    kept: VecDeque<T>,
    kept_max: usize,
}

impl<T: Clone> Ring<T> {
    fn new(kept_max: usize) -> Self {
        Self { first: 0, kept: VecDeque::new(), kept_max }
    }

    fn push(&mut self, value: T) {
        self.kept.push_back(value);
        if self.kept.len() > self.kept_max {
            self.kept.pop_front();
            self.first += 1;
        }
    }

    fn read(&self, cursor: &mut u64) -> Vec<T> {
        let from = cursor.saturating_sub(self.first) as usize;
        *cursor = self.first + self.kept.len() as u64;
        self.kept.iter().skip(from).cloned().collect()
    }
}

#[derive(Debug)]
struct Histories {
    writers: BTreeMap<RunId, String>,
    censuses: Ring<Value>,
    samples: Ring<Value>,
    log: Ring<Value>,
    forgotten: Ring<Value>,
}

/// The histories of one node, and whether somebody looks at them.
#[derive(Debug)]
pub(crate) struct Monitor {
    histories: Mutex<Histories>,
    is_ready: AtomicBool,
    viewers: AtomicUsize,
}

/// What a viewer has not seen yet.
#[derive(Debug, Default)]
pub(super) struct Viewed {
    censuses: u64,
    samples: u64,
    log: u64,
}

/// Somebody looks. While nobody does, nothing is timed.
#[derive(Debug)]
pub(super) struct Viewer(Arc<Monitor>);

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Monitor {
    /// Begins to look after a node, until it is closed.
    pub(crate) fn start(node: &Node) -> Arc<Self> {
        let histories = Histories {
            writers: BTreeMap::from([(node.status().run, node.name().to_owned())]),
            censuses: Ring::new(CENSUSES_KEPT),
            samples: Ring::new(SAMPLES_KEPT),
            log: Ring::new(LOG_LINES_KEPT),
            forgotten: Ring::new(FORGOTTEN_KEPT),
        };
        let monitor = Arc::new(Self {
            histories: Mutex::new(histories),
            is_ready: AtomicBool::new(false),
            viewers: AtomicUsize::new(0),
        });
        tokio::spawn(Self::follow_members(monitor.clone(), node.clone()));
        tokio::spawn(Self::follow_events(monitor.clone(), node.clone()));
        tokio::spawn(Self::count(monitor.clone(), node.clone()));
        tokio::spawn(Self::sample(monitor.clone(), node.clone()));
        let (ready, node) = (monitor.clone(), node.clone());
        tokio::spawn(async move {
            if node.ready().await.is_ok() {
                ready.is_ready.store(true, Ordering::Relaxed);
                ready.tell("node", "this node is ready");
            }
        });
        monitor
    }

    fn lock(&self) -> MutexGuard<'_, Histories> {
        self.histories.lock().expect("nothing panics while it changes")
    }

    /// Whether the first sync with the cluster is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// The name of a writer, if its run was ever met.
    pub(crate) fn writer(&self, origin: RunId) -> Option<String> {
        self.lock().writers.get(&origin).cloned()
    }

    /// Notes that something happened.
    pub(crate) fn tell(&self, kind: &str, text: impl Into<String>) {
        let line = json!({ "t": view::ms(SystemTime::now()), "kind": kind, "text": text.into() });
        self.lock().log.push(line);
    }

    pub(super) fn view(self: &Arc<Self>) -> Viewer {
        self.viewers.fetch_add(1, Ordering::Relaxed);
        Viewer(self.clone())
    }

    /// What is new since a viewer last asked.
    pub(super) fn news(&self, viewed: &mut Viewed) -> Option<Value> {
        let histories = self.lock();
        let censuses = histories.censuses.read(&mut viewed.censuses);
        let samples = histories.samples.read(&mut viewed.samples);
        let log = histories.log.read(&mut viewed.log);
        let is_empty = censuses.is_empty() && samples.is_empty() && log.is_empty();
        (!is_empty).then(|| json!({ "censuses": censuses, "samples": samples, "log": log }))
    }

    /// The members that were forgotten while this node ran, the latest ones.
    pub(super) fn forgotten(&self) -> Vec<Value> {
        self.lock().forgotten.read(&mut 0)
    }

    async fn follow_members(self: Arc<Self>, node: Node) {
        let mut events = node.member_events();
        while let Some(event) = events.next().await {
            let member = event.member();
            self.lock().writers.insert(member.run, member.name.clone());
            if matches!(event, MemberEvent::Forgotten(_)) {
                let line = json!({ "name": member.name, "t": view::ms(SystemTime::now()) });
                self.lock().forgotten.push(line);
            }
            self.tell("member", event.to_string());
        }
    }

    async fn follow_events(self: Arc<Self>, node: Node) {
        let mut events = node.events();
        while let Some(event) = events.next().await {
            self.tell("node", event.to_string());
        }
    }

    async fn count(self: Arc<Self>, node: Node) {
        let mut ticks = tokio::time::interval(CENSUS_INTERVAL);
        while !node.is_closed() {
            ticks.tick().await;
            let members = node.members();
            let count = |state| members.iter().filter(|member| member.state == state).count();
            let census = json!({
                "t": view::ms(SystemTime::now()),
                "alive": count(MemberState::Alive),
                "suspect": count(MemberState::Suspect),
                "down": count(MemberState::Down),
            });
            let mut histories = self.lock();
            histories.censuses.push(census);
            histories.writers.extend(members.iter().map(|member| (member.run, member.name.clone())));
            if histories.writers.len() > WRITERS_MAX {
                histories.writers.retain(|run, _| members.iter().any(|member| member.run == *run));
            }
        }
    }

    /// Reads how far away the peers are, while a page is open.
    async fn sample(self: Arc<Self>, node: Node) {
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while !node.is_closed() {
            ticks.tick().await;
            if self.viewers.load(Ordering::Relaxed) > 0 && node.members().len() > 1 {
                self.lock().samples.push(sample(&node.status()));
            }
        }
    }
}

/// Round trips to the median and the slowest peer, arrival times of others' writes, and whether a peer is late.
fn sample(status: &NodeStatus) -> Value {
    let micros = |time: Option<Duration>| time.map(|time| time.as_micros() as u64);
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    };
    let rtts: Vec<Duration> = status.peers.iter().map(|peer| peer.rtt).collect();
    json!({
        "t": view::ms(SystemTime::now()),
        "rtt_max_us": micros(rtts.iter().max().copied()),
        "rtt_us": micros(median(rtts)),
        "arrival_p50_us": micros(median(status.arrivals.iter().map(|arrival| arrival.p50).collect())),
        "arrival_p99_us": micros(status.arrivals.iter().map(|arrival| arrival.p99).max()),
        "late": status.peers.iter().any(|peer| peer.lag_time > LATE_TIME),
    })
}
