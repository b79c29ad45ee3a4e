//! Random histories of a cluster: writes, mixed with every fault of the simulator.

use std::time::Duration;

use tidings::sim::{Disk, DiskFault, Sim};
use tidings::{Config, Control, PutOptions, ReplicaEvent, WriteError};

use crate::Dice;

/// Limits for a cluster of at most five nodes and a few dozen keys to converge after healing: virtual time, and bytes
/// sent by all nodes together. A write stamped one minute ahead is refused for that minute, and the next session over
/// its link backs off for up to 32 s more.
const AGREEMENT_MAX: Duration = Duration::from_secs(100);
const AGREEMENT_BYTES_MAX: u64 = 1 << 20;
/// Limit of extra coverage contexts at the end. A run that ends between sending a write and claiming it leaves some.
const EXTRA_CONTEXTS_MAX: usize = 128;

/// Rate of a slow link in bytes per second: less than a busy history writes.
const SLOW_RATE: u64 = 4_000;

/// Bytes of a large value, which does not fit into a frame with others. In histories with large values the link rates
/// and the byte limit are multiplied by `LARGE_TIMES`: a row refused for a stamp in the future is sent again over every
/// new link.
const LARGE_BYTES: usize = 70_000;
const LARGE_TIMES: u64 = 64;

/// Rate of the slowest links in bytes per second, and the repair timeout used with them. A large value takes longer
/// than the timeout, and longer than twelve times the timeout, the limit of a repair while live writes move.
const SLOWEST_RATE: u64 = 16_000;
const SHORT_TIMEOUT: Duration = Duration::from_millis(300);

/// What a random history consists of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the simulator and of the dice.
    pub seed: u64,
    /// Number of steps before healing.
    pub steps: usize,
    /// The broken rule, if any.
    pub control: Option<Control>,
    /// Whether the nodes link themselves by membership, and delegates forward writes between groups.
    pub grouped: bool,
}

impl Plan {
    /// A history without broken rules.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: 60, control: None, grouped: false }
    }

    /// A history of a cluster above its `mesh_members_max`: nodes link themselves by membership, and delegates forward
    /// writes between groups.
    pub fn grouped(seed: u64) -> Self {
        Self { grouped: true, ..Self::new(seed) }
    }

    /// Whether some of its values are large.
    fn has_large(self) -> bool {
        self.seed % 5 == 2
    }

    /// Whether a large value takes longer than every timeout on the links of this history.
    fn is_slowest(self) -> bool {
        self.has_large() && self.seed % 4 == 1
    }

    /// Runs the history, heals all faults and asserts convergence within the limits of this module.
    ///
    /// # Panics
    /// If the oracle finds a fault or the cluster does not converge.
    pub fn run(self) -> Sim {
        self.run_with(|_, _| {})
    }

    /// Like [`Plan::run`], with a callback after each step.
    ///
    /// # Panics
    /// If the oracle finds a fault or the cluster does not converge.
    pub fn run_with(self, mut each_step: impl FnMut(&mut Sim, &mut Dice)) -> Sim {
        let mut dice = Dice::new(self.seed);
        let mut config = Config::lan();
        let removals_max = [0, 1, 3, 4_096][dice.below(4)];
        config.removals_max = removals_max;
        let is_divided = dice.below(3) == 0 && !self.grouped;
        config.clock_skew_max = Duration::from_secs(2);
        let loss = [0.0, 0.05, 0.3][dice.below(3)];
        let mut count = 2 + dice.below(4);
        if self.grouped {
            // Two to four groups; in some histories the cluster shrinks below the mesh limit and grows again.
            (count, config.mesh_members_max) = (4 + dice.below(6), [1, 1, 3, 6][dice.below(4)]);
        }
        if self.is_slowest() {
            config.sync_timeout = SHORT_TIMEOUT;
        }
        let sim = Sim::new(self.seed).broken(self.control).config(config).loss(loss);
        let sim = if self.grouped { sim.seeds(&[0, 1]) } else { sim };
        let delay = Duration::from_millis([1, 20, 150][dice.below(3)]);
        // With a short timeout the round trips must be short as well.
        let sim = sim.delay(if self.is_slowest() { delay.min(Duration::from_millis(20)) } else { delay });
        // In some histories flushes take long. Chosen by the seed and not by the dice, so that other histories stay the
        // same.
        let times = if self.has_large() { LARGE_TIMES } else { 1 };
        let sim = if self.seed % 4 == 3 { sim.rate(SLOW_RATE * times) } else { sim };
        let sim = if self.is_slowest() { sim.rate(SLOWEST_RATE) } else { sim };
        let sim = if self.seed % 3 == 1 { sim.processing_delay(0.2) } else { sim };
        let with_disk = dice.below(count + 1);
        let mut sim = sim.nodes_with_disk(with_disk).nodes(count - with_disk);
        for _ in 0..self.steps {
            if is_divided && dice.below(10) == 0 {
                divide(&mut sim, &mut dice);
            }
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
            assert!(
                !sim.events().iter().any(differs),
                "seed {}: a disagreement was reported without a broken rule",
                self.seed
            );
        }
        let (healed_at, bytes_before) = (sim.now(), sim.bytes_sent());
        sim.assert_converged();
        let (took, bytes) = (sim.now() - healed_at, sim.bytes_sent() - bytes_before);
        let seed = self.seed;
        // On the slowest links a large value takes 4.4 s per link, and a node may lack ten of them.
        let took_max = if self.is_slowest() { 2 * AGREEMENT_MAX } else { AGREEMENT_MAX };
        assert!(
            took <= took_max && bytes <= AGREEMENT_BYTES_MAX * times,
            "seed {seed}: took {took:?} and {bytes} bytes"
        );
        for i in 0..sim.len() {
            let status = sim.node(i).status();
            assert!(
                status.extra_contexts <= EXTRA_CONTEXTS_MAX && status.removals <= removals_max.max(64),
                "grew: {status:?}"
            );
        }
        sim.assert_converged_in_time();
        sim
    }
}

/// Divides the nodes into two groups, or ends the division: then nobody forwards.
fn divide(sim: &mut Sim, dice: &mut Dice) {
    let (left, right): (Vec<usize>, Vec<usize>) = (0..sim.len()).partition(|_| dice.below(2) == 0);
    sim.group([&[&left[..], &right[..]][..], &[]][dice.below(2)]);
}

fn step(sim: &mut Sim, dice: &mut Dice, plan: Plan) {
    let i = dice.below(sim.len());
    if dice.below(5) == 0 {
        // Stopped processes only where a failure detector can call them down.
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
    let node = sim.node(i);
    let done = match dice.below(12) {
        0..=3 => node.put(key, value).map(drop),
        4..=6 => node.delete(key).map(drop),
        7 => node.set("s").add(key).map(drop),
        8 => node.set("s").remove(key).map(drop),
        9 => node.counter("c").add(1).map(drop),
        10 => node.batch().put(key, value).delete("k0").put("k1", "b").commit().map(drop),
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
        "a small write must be accepted while the clock is trusted and the disk works: {done:?}"
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

/// Sets the clock of a node. Only one clock at a time is beyond the permitted skew, because the majority must have the
/// right time. A clock that is wrong since its node started shows no step to that node.
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
