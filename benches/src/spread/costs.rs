//! What a cluster costs against its size: at rest, and for every write.

use std::time::{Duration, Instant};

use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::Table;
use tidings_benches::{runtime, sized};

use super::cluster::{Cluster, Kind, Writers, loopback_bytes};

/// How long a cluster is watched doing nothing, in seconds.
const REST_SECONDS: [u64; 2] = [3, 20];
/// What has just formed has still something to say.
const SETTLING_TIME: Duration = Duration::from_secs(2);
const WRITES: [usize; 2] = [100, 500];
const REPETITIONS: usize = 5;

/// What the plot is made of.
const REST_BYTES: &str = "at rest, bytes a node of";
const WRITE_BYTES: &str = "a write, bytes a receiver of";

/// Of this process and of the loopback device, so far.
#[derive(Clone, Copy)]
struct Spent {
    at: Instant,
    cpu: Duration,
    bytes: u64,
}

impl Spent {
    fn now() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let times = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        let nanos = times.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum();
        Self { at: Instant::now(), cpu: Duration::from_nanos(nanos), bytes: loopback_bytes() }
    }

    /// Seconds, milliseconds of processors, and bytes since then.
    fn since(self) -> [f64; 3] {
        let now = Self::now();
        let cpu = now.cpu.saturating_sub(self.cpu).as_secs_f64() * 1e3;
        [(now.at - self.at).as_secs_f64(), cpu, now.bytes.saturating_sub(self.bytes) as f64]
    }
}

/// What each repetition found: processor and bytes a second and node at rest, and a write and receiver.
#[derive(Default)]
struct Found {
    rest: [Vec<f64>; 2],
    write: [Vec<f64>; 2],
}

impl Found {
    async fn add(&mut self, kind: Kind, count: usize) {
        let mut cluster = Cluster::start(kind, count, None).await;
        tokio::time::sleep(SETTLING_TIME).await;
        let [quick, full] = REST_SECONDS;
        let begin = Spent::now();
        tokio::time::sleep(Duration::from_secs(sized(quick, full))).await;
        let [rested, rest_cpu, rest_bytes] = begin.since();
        let at_rest = [rest_cpu / rested, rest_bytes / rested];
        for (kept, rate) in self.rest.iter_mut().zip(at_rest) {
            kept.push(rate / count as f64);
        }
        if kind.is_fast() {
            let writes = sized(WRITES[0], WRITES[1]);
            let begin = Spent::now();
            for _ in 0..writes {
                _ = cluster.spread().await;
            }
            let [took, cpu, bytes] = begin.since();
            let deliveries = (writes * (count - 1)) as f64;
            for ((kept, spent), rate) in self.write.iter_mut().zip([cpu, bytes]).zip(at_rest) {
                kept.push((spent - rate * took).max(0.0) / deliveries);
            }
        }
        cluster.stop().await;
    }
}

pub(super) fn costs() {
    let mut table = Table::new("spread-costs", "What a cluster costs, against its size");
    table.note("All nodes of a contestant in this process: the processor's time is that of all its threads. Bytes are those of the loopback device, headers of IP and of UDP or TCP with them.");
    table.note("A write is 124 bytes, one at a time, what the cluster spends at rest subtracted; its cost is divided by the nodes that receive it. The benchmark's own waiting for arrivals is in it, for all alike.");
    let kinds = [
        Kind::Push(Writers::One),
        Kind::Tidings,
        Kind::Chitchat(Duration::from_millis(100)),
        // The others only in the long run.
        Kind::Chitchat(Duration::from_secs(1)),
        Kind::Foca,
        #[cfg(feature = "memberlist")]
        Kind::Memberlist(Duration::from_millis(200)),
    ];
    let kinds = &kinds[..sized(3, kinds.len())];
    for count in [3, 10, 30, 100].into_iter().take(sized(3, 4)) {
        for kind in kinds.iter().copied() {
            let repetitions = if kind == Kind::Tidings { sized(1, REPETITIONS) } else { 1 };
            let (name, mut found) = (kind.name(), Found::default());
            for _ in 0..repetitions {
                runtime().block_on(found.add(kind, count));
            }
            let mut row = |what: &str, unit: &str, all: Vec<f64>| {
                if !all.is_empty() {
                    table.row(&format!("{what} {count}"), &name, unit, None, all);
                }
            };
            let Found { rest: [rest_cpu, rest_bytes], write: [write_cpu, write_bytes] } = found;
            row("at rest, processor a node of", "ms/s", rest_cpu);
            row(REST_BYTES, "/s", rest_bytes);
            row("a write, processor a receiver of", "ms", write_cpu);
            row(WRITE_BYTES, "bytes", write_bytes);
            table.save();
        }
    }
    let mut plot = Plot::new(
        "Bytes a node and second at rest, and a write and receiver",
        Axis::log("nodes"),
        Axis::log("bytes"),
    );
    for kind in kinds {
        for (what, label) in [(REST_BYTES, "at rest"), (WRITE_BYTES, "a write")] {
            let curve = table.curve(&format!("{what} "), &kind.name());
            if !curve.is_empty() {
                plot.line(&format!("{}, {label}", kind.name()), curve);
            }
        }
    }
    plot.save("spread-costs");
}
