//! The experiment of van Renesse, Dumitriu, Gough and Thomas, "Efficient Reconciliation and Flow Control for
//! Anti-Entropy Protocols" (2008): 128 members with 64 keys each, each member updating its own at a steady rate. The
//! rate of updates doubles for a while, and later what the links can carry is halved for a while. How stale is what
//! the members have of each other, and does it come back?

use std::time::Duration;

use tidings::sim::Sim;
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::sized;
use tidings_benches::table::{Table, quantiles};

use super::virtual_time::formed;

const MEMBERS: usize = 128;
const KEYS: usize = 64;
/// Between two updates of one member, at the usual rate.
const UPDATE_INTERVAL: Duration = Duration::from_secs(4);
/// Large enough that what a frame costs beside its rows does not decide.
const VALUE_BYTES: usize = 1_000;
const DELAY: Duration = Duration::from_millis(1);
/// Nodes whose view is looked at.
const READERS: usize = 16;
/// A link's capacity is the least of these, each half the one before, that carries the usual rate.
const RATE_MOST: u64 = 64_000;
const RATES: u32 = 8;
/// It does if hardly anything is older than this after the time of a trial.
const STALE_MAX: f64 = 1.0;
const TRIAL_SECONDS: u64 = 12;
/// How many seconds each phase takes: its name, its rate of updates, and its part of the capacity.
const PHASES: [(&str, u64, u32, f64); 5] = [
    ("usual", 50, 1, 1.0),
    ("updates x 2", 50, 2, 1.0),
    ("usual", 75, 1, 1.0),
    ("links / 2", 50, 1, 0.5),
    ("usual", 75, 1, 1.0),
];

/// An update: of which key, the how manieth, and when.
type Update = (usize, usize, Duration);

/// The cluster, and what each member wrote when.
struct Experiment {
    sim: Sim,
    /// Of each member, in order. It updates its keys in turn.
    updates: Vec<Vec<Update>>,
    /// How many of each member's updates a reader has, up to the first that it lacks.
    has: Vec<Vec<usize>>,
    next: usize,
}

impl Experiment {
    fn new() -> Self {
        let (mut sim, _) = formed(2_008, MEMBERS, DELAY);
        let mut updates = Vec::new();
        for member in 0..MEMBERS {
            updates.push((0..KEYS).map(|key| (key, 1, sim.now())).collect());
            let node = sim.node(member);
            let batch =
                (0..KEYS).fold(node.batch(), |batch, key| batch.put(Self::key(member, key), Self::value(1)));
            batch.commit().expect("acceptable");
        }
        sim.run_for(Duration::from_secs(20));
        Self { sim, updates, has: vec![vec![0; MEMBERS]; READERS], next: 0 }
    }

    fn key(member: usize, key: usize) -> String {
        format!("member-{member:03}/{key:02}")
    }

    /// How many updates there were.
    fn value(updates: usize) -> String {
        format!("{updates:0>VALUE_BYTES$}")
    }

    fn update(&mut self, member: usize) {
        let updates = &mut self.updates[member];
        let (key, version) = (updates.len() % KEYS, updates.len() / KEYS + 1);
        updates.push((key, version, self.sim.now()));
        self.sim.node(member).put(Self::key(member, key), Self::value(version)).expect("acceptable");
    }

    /// One second at this multiple of the usual rate, all members evenly in turn.
    fn second(&mut self, factor: u32) {
        let interval = UPDATE_INTERVAL / (MEMBERS as u32 * factor);
        let end = self.sim.now() + Duration::from_secs(1);
        while self.sim.now() + interval <= end {
            self.next = (self.next + 1) % MEMBERS;
            self.update(self.next);
            self.sim.run_for(interval);
        }
        self.sim.run_for(end - self.sim.now());
    }

    /// For each reader and member: how many seconds old the oldest update is that the reader lacks.
    fn staleness(&mut self) -> Vec<f64> {
        let now = self.sim.now();
        let mut ages = Vec::new();
        for (i, has) in self.has.iter_mut().enumerate() {
            let reader = i * MEMBERS / READERS;
            for (member, (has, updates)) in has.iter_mut().zip(&self.updates).enumerate() {
                let is_there = |(key, version, _): &&Update| {
                    let entry = self.sim.node(reader).get(Self::key(member, *key));
                    let held = entry.and_then(|entry| std::str::from_utf8(entry.value()).ok()?.parse().ok());
                    held.unwrap_or(0) >= *version
                };
                *has += updates[*has..].iter().take_while(is_there).count();
                if member != reader {
                    ages.push(updates.get(*has).map_or(0.0, |(.., since)| (now - *since).as_secs_f64()));
                }
            }
        }
        ages
    }

    /// Sets what a link carries from now on.
    fn carry(&mut self, bytes: u64) {
        self.sim = std::mem::replace(&mut self.sim, Sim::new(0)).rate(bytes);
    }
}

/// The least capacity of a link that carries the usual rate of updates.
fn capacity() -> Option<u64> {
    let mut experiment = Experiment::new();
    let mut carries = |bytes: &u64| {
        experiment.carry(*bytes);
        (0..TRIAL_SECONDS).for_each(|_| experiment.second(1));
        let [_, p99, _] = quantiles(experiment.staleness());
        println!("  links of {bytes} bytes a second: p99 of the staleness {p99:.2} s");
        p99 <= STALE_MAX
    };
    (0..RATES).map(|i| RATE_MOST >> i).take_while(|bytes| carries(bytes)).last()
}

pub(super) fn paper() {
    let title = "128 members with 64 keys each, in virtual time: staleness (van Renesse et al. 2008)";
    let mut table = Table::new("spread-paper", title);
    let Some(bytes) = capacity() else {
        table.note("No capacity that was tried carries the usual rate.");
        return table.save();
    };
    table.note(&format!(
        "Each member updates one of its keys every {} s, with {VALUE_BYTES} bytes. A link carries {bytes} bytes a second in each direction, the least of a row of halvings at which p99 stays under {STALE_MAX} s.",
        UPDATE_INTERVAL.as_secs()
    ));
    table.note("Staleness: the age of the oldest update of a member that a reader has not got, 0 if it has all; of all members at 16 readers, each second. Each row takes the last fifth of its phase.");
    let mut experiment = Experiment::new();
    experiment.carry(bytes);
    let start = experiment.sim.now();
    let mut plot =
        Plot::new("Staleness, as in van Renesse et al. 2008", Axis::linear("seconds"), Axis::linear("s"))
            .without_dots();
    let (mut lines, mut levels): ([Vec<(f64, f64)>; 3], Vec<f64>) = Default::default();
    for (i, (name, seconds, factor, share)) in PHASES.into_iter().enumerate() {
        let seconds = seconds / sized(2, 1);
        plot.mark((experiment.sim.now() - start).as_secs_f64(), name);
        #[expect(clippy::cast_sign_loss, reason = "shares are positive")]
        let capacity = (bytes as f64 * share) as u64;
        experiment.carry(capacity);
        let mut phase: [Vec<f64>; 3] = Default::default();
        for second in 0..seconds {
            experiment.second(factor);
            let at = (experiment.sim.now() - start).as_secs_f64();
            for ((line, phase), age) in
                lines.iter_mut().zip(&mut phase).zip(quantiles(experiment.staleness()))
            {
                line.push((at, age));
                if second + seconds / 5 >= seconds {
                    phase.push(age);
                }
            }
        }
        for (quantile, ages) in ["p50", "p99", "oldest"].into_iter().zip(phase) {
            // What the first phase had is what the last one has to come back to.
            let target = if i + 1 == PHASES.len() && quantile == "p99" {
                levels.get(1).map(|p99| p99 * 1.1 + 0.01)
            } else {
                None
            };
            let phase = format!("{}. {name}: {quantile}", i + 1);
            levels.push(table.row(&phase, "tidings", "s", target, ages));
        }
    }
    table.save();
    for (name, line) in ["p50", "p99", "oldest"].into_iter().zip(lines) {
        plot.line(name, line);
    }
    plot.save("spread-paper");
}
