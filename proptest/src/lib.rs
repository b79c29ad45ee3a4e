//! What the simulation tests share: random histories of writes mixed with every fault the simulator knows, and
//! stories told with a broken rule as proof that they can fail.

mod leading;
mod real;
mod watching;

pub use leading::Elections;
pub use real::{GUARD, guarded, refusal};
pub use watching::Watcher;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tidings::{Config, Control, Disk, DiskFault, PutOptions, ReplicaEvent, Sim, WriteError};

/// A small generator of its own, so that the history does not depend on what the replicas draw.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// What a cluster of at most five nodes and a few dozen keys may need to agree again, once everything is healed:
/// virtual time, and bytes of all nodes together. A write from a minute ahead is refused until then, and
/// its link is put off for up to 32 s more.
const AGREEMENT_MAX: Duration = Duration::from_secs(100);
const AGREEMENT_BYTES_MAX: u64 = 1 << 20;
/// Contexts that may be left beyond the vector: of runs that ended between sending a write and claiming it.
const CLOUD_MAX: usize = 128;

/// What a slow link carries, in bytes a second: less than a busy history writes.
const SLOW_RATE: u64 = 4_000;

/// So many do not fit in a frame among others. With such values links carry so many times as much, and that much may be
/// needed to agree: what is refused, because it seems to come from the future, comes again with every new link.
const LARGE_BYTES: usize = 70_000;
const LARGE_TIMES: u64 = 64;

/// What a very slow link carries, and the timeout of repairs then: a large value takes longer than the timeout, even than
/// twelve times as long, which is what a repair is given while live writes move.
const SLOWEST_RATE: u64 = 16_000;
const SHORT_TIMEOUT: Duration = Duration::from_millis(300);

/// What a random history consists of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seeds everything.
    pub seed: u64,
    /// How many steps it has.
    pub steps: usize,
    /// The rule that is broken, if any.
    pub control: Option<Control>,
    /// Whether the nodes find each other as members, and pass writes on between groups.
    pub grouped: bool,
}

impl Plan {
    /// A history without broken rules.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: 60, control: None, grouped: false }
    }

    /// The same of a cluster that is large for its configuration: its nodes find each other as members, and pass
    /// writes on between groups.
    pub fn grouped(seed: u64) -> Self {
        Self { grouped: true, ..Self::new(seed) }
    }

    /// Whether some of its values are large.
    fn has_large(self) -> bool {
        self.seed % 5 == 2
    }

    /// Whether large values take longer than every timeout on its links.
    fn is_slowest(self) -> bool {
        self.has_large() && self.seed % 4 == 1
    }

    /// Runs it, then heals everything and demands convergence.
    ///
    /// # Panics
    /// If the oracle finds a fault or the cluster does not converge.
    pub fn run(self) -> Sim {
        self.run_with(|_, _| {})
    }

    /// The same, with something done after each step.
    ///
    /// # Panics
    /// If the oracle finds a fault or the cluster does not converge.
    pub fn run_with(self, mut each_step: impl FnMut(&mut Sim, &mut Dice)) -> Sim {
        let mut dice = Dice::new(self.seed);
        let mut config = Config::lan();
        let removals_max = [0, 1, 3, 4_096][dice.below(4)];
        config.removals_max = removals_max;
        config.relay = dice.below(3) == 0;
        config.clock_skew_max = Duration::from_secs(2);
        let loss = [0.0, 0.05, 0.3][dice.below(3)];
        let mut count = 2 + dice.below(4);
        if self.grouped {
            config.relay = false;
            // Between two and four groups; in some histories the cluster shrinks below the border and grows again.
            (count, config.mesh_members_max) = (4 + dice.below(6), [1, 1, 3, 6][dice.below(4)]);
        }
        if self.is_slowest() {
            config.sync_timeout = SHORT_TIMEOUT;
        }
        let sim = Sim::new(self.seed).broken(self.control).config(config).loss(loss);
        let sim = if self.grouped { sim.seeds(&[0, 1]) } else { sim };
        let delay = Duration::from_millis([1, 20, 150][dice.below(3)]);
        // Where the timeout is short, round trips are short as well.
        let sim = sim.delay(if self.is_slowest() { delay.min(Duration::from_millis(20)) } else { delay });
        // In some histories flushes take long. Not for the dice, so that the other histories stay what they are.
        let times = if self.has_large() { LARGE_TIMES } else { 1 };
        let sim = if self.seed % 4 == 3 { sim.rate(SLOW_RATE * times) } else { sim };
        let sim = if self.is_slowest() { sim.rate(SLOWEST_RATE) } else { sim };
        let sim = if self.seed % 3 == 1 { sim.processing_delay(0.2) } else { sim };
        let with_disk = dice.below(count + 1);
        let mut sim = sim.nodes_with_disk(with_disk).nodes(count - with_disk);
        for _ in 0..self.steps {
            step(&mut sim, &mut dice, self);
            sim.run_for(Duration::from_millis([0, 1, 7, 40, 300, 2_000][dice.below(6)]));
            each_step(&mut sim, &mut dice);
        }
        sim.heal();
        for i in 0..sim.len() {
            sim.skew(i, 0);
            sim.drift(i, 0);
            sim.slow(i, 1);
            sim.disk_fault(i, None);
            sim.resume(i);
            if !sim.is_up(i) {
                sim.restart(i);
            }
        }
        if self.control.is_none() {
            let differs =
                |(_, event): &(usize, ReplicaEvent)| matches!(event, ReplicaEvent::Disagreement { .. });
            assert!(!sim.events().iter().any(differs), "seed {}: healthy nodes disagree", self.seed);
        }
        let (healed_at, bytes_before) = (sim.now(), sim.bytes_sent());
        sim.assert_converged();
        let (took, bytes) = (sim.now() - healed_at, sim.bytes_sent() - bytes_before);
        let seed = self.seed;
        // There a large value takes 4.4 s on each link, and a node may lack ten of them.
        let took_max = if self.is_slowest() { 2 * AGREEMENT_MAX } else { AGREEMENT_MAX };
        assert!(
            took <= took_max && bytes <= AGREEMENT_BYTES_MAX * times,
            "seed {seed}: took {took:?} and {bytes} bytes"
        );
        for i in 0..sim.len() {
            let status = sim.node(i).status();
            assert!(
                status.extra_contexts <= CLOUD_MAX && status.removals <= removals_max.max(64),
                "grew: {status:?}"
            );
        }
        sim.assert_converged_in_time();
        sim
    }
}

fn step(sim: &mut Sim, dice: &mut Dice, plan: Plan) {
    let i = dice.below(sim.len());
    if dice.below(5) == 0 {
        // Only the failure detector can miss a process that is stopped.
        match if plan.grouped { dice.below(4) } else { 3 } {
            0 => sim.pause(i),
            1 => (0..sim.len()).for_each(|i| sim.resume(i)),
            _ => fault(sim, dice, i),
        }
    } else if sim.is_up(i) {
        for _ in 0..=dice.below(3) {
            write(sim, dice, i, plan.has_large());
        }
    }
}

fn write(sim: &mut Sim, dice: &mut Dice, i: usize, some_are_large: bool) {
    let key = format!("k{}", dice.below(6));
    let mut value = format!("v{}", dice.below(1_000));
    if some_are_large && value.ends_with(['0', '5']) {
        value.push_str(&"x".repeat(LARGE_BYTES));
    }
    let mut node = sim.node(i);
    let done = match dice.below(12) {
        0..=3 => node.put(key, value).map(drop),
        4..=6 => node.delete(key).map(drop),
        7 => node.set("s").add(key).map(drop),
        8 => node.set("s").remove(key).map(drop),
        9 => node.counter("c").add(1).map(drop),
        10 => node.batch().put(key, value).delete("k0").put("k1", "b").commit(),
        _ => {
            let ttl = Duration::from_millis(100 + dice.below(5_000) as u64);
            node.put_with(format!("t{key}"), value, PutOptions::new().ttl(ttl)).map(drop)
        }
    };
    let is_expected = match done {
        Ok(()) | Err(WriteError::Clock { .. }) => true,
        Err(_) => sim.node(i).status().has_disk_failed,
    };
    assert!(
        is_expected,
        "a small write is always accepted by a right clock while there is a disk to take it: {done:?}"
    );
}

fn fault(sim: &mut Sim, dice: &mut Dice, i: usize) {
    let other = dice.below(sim.len());
    match dice.below(13) {
        0 | 1 => sim.crash(i),
        2 => sim.restart_with(i, Disk::Latest),
        3 => sim.restart_with(i, [Disk::Blank, Disk::Older(1), Disk::Older(8)][dice.below(3)]),
        4 if i != other => sim.partition(&[i], &[other]),
        5 if i != other => sim.cut(i, other),
        6 => {
            let (left, right): (Vec<usize>, Vec<usize>) = (0..sim.len()).partition(|_| dice.below(2) == 0);
            sim.partition(&left, &right);
        }
        7 => sim.heal(),
        8 => skew(sim, dice, i),
        9 => sim.slow(i, [1, 1, 20, 200][dice.below(4)]),
        10 => sim.drift(i, [-20_000, -300, 0, 500, 20_000][dice.below(5)]),
        11 => sim.disk_fault(i, [Some(DiskFault::Full), Some(DiskFault::SyncFails), None][dice.below(3)]),
        12 => sim.disk_fault(i, None),
        _ if i != other => sim.break_between(i, other),
        _ => {}
    }
}

/// Sets a clock; beyond the permitted skew one at a time, since most of the nodes must have the right time. A clock that
/// is wrong from a start on is not noticed by its own step.
fn skew(sim: &mut Sim, dice: &mut Dice, i: usize) {
    let ms = [-1_500, 0, 900, 1_900, 60_000, 60_000, 60_000][dice.below(7)];
    if ms < 60_000 {
        return sim.skew(i, ms);
    }
    (0..sim.len()).for_each(|other| sim.skew(other, 0));
    let restarts = dice.below(3) == 0;
    if restarts {
        sim.crash(i);
    }
    sim.skew(i, ms);
    if restarts {
        sim.restart(i);
    }
}

/// By what a fault was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Noticed {
    /// The oracle found a replica that claims what it did not merge.
    Oracle,
    /// A disk lost what it had promised, or gave back what does not add up.
    Promise,
    /// Something a user would miss was asserted in vain.
    Loss,
    /// The replicas never became equal.
    Divergence,
}

/// Runs something that may panic, and says by what a fault in it was noticed.
pub fn notice(run: impl FnOnce()) -> Option<Noticed> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
    let text = text.unwrap_or_default();
    let of_oracle = ["covers and", "which nobody wrote", "does not cover it", "covers the same as another"];
    Some(match text {
        _ if of_oracle.iter().any(|what| text.contains(what)) => Noticed::Oracle,
        _ if ["acknowledged as durable", "its disk cannot be opened"]
            .iter()
            .any(|what| text.contains(what)) =>
        {
            Noticed::Promise
        }
        _ if text.contains("not converged") => Noticed::Divergence,
        _ => Noticed::Loss,
    })
}

/// Runs something under every seed below this one, on two threads.
pub fn for_each_seed(seeds: u64, run: impl Fn(u64) + Sync) {
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    run(seed);
                }
            });
        }
    });
}

/// Over how many seeds a story is told.
const STORY_SEEDS: u64 = 20;

/// Tells a story, which must hold, and tells it again with one rule broken, which must be noticed: by the oracle,
/// and without the oracle by what a user sees in the end.
///
/// # Panics
/// If the story does not hold, or the breach is not noticed as said.
pub fn with_control(control: Control, user_sees: Noticed, story: impl Fn(u64, Sim)) {
    (0..STORY_SEEDS).for_each(|seed| story(seed, Sim::new(seed).broken(None)));
    let broken = |seed| Sim::new(seed).broken(Some(control));
    let watched = (0..STORY_SEEDS).any(|seed| notice(|| story(seed, broken(seed))) == Some(Noticed::Oracle));
    assert!(watched, "{control:?} goes unnoticed by the oracle");
    let unwatched: BTreeSet<Noticed> =
        (0..STORY_SEEDS).filter_map(|seed| notice(|| story(seed, broken(seed).without_checks()))).collect();
    assert!(unwatched.contains(&user_sees), "{control:?} shows as {unwatched:?}");
}
