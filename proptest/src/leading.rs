//! Random histories of elections: campaigns, resignations and every fault. After each step the simulator checks that a
//! lease has at most one holder and that tokens grow.

use std::time::Duration;

use tidings::core::LeaseId;
use tidings::sim::{Disk, DiskFault, Sim};
use tidings::{Config, Control};

use crate::Dice;

const NAMES: [&str; 2] = ["cron", "mail"];
const SKEW_MAX_MS: i64 = 2_000;
/// Largest offset of a clock in histories without wild clocks. Together with the drift of one step it stays within half
/// of the permitted skew.
const SET_MS: i64 = 800;
/// Quarantine of voters after their start, with a margin for the slowest clocks.
const QUARANTINE: Duration = Duration::from_millis(14_200);
/// Limit for the nodes to find each other again after healing.
const REUNION: Duration = Duration::from_secs(40);

/// Parameters of a random history of elections.
#[derive(Clone, Copy, Debug)]
pub struct Elections {
    /// Seed of the simulator and of the dice.
    pub seed: u64,
    /// The broken rule, if any.
    pub control: Option<Control>,
    /// Whether the list of voters is changed on the way. Every node has a disk then, and disks lose nothing that was
    /// synced.
    pub changes_voters: bool,
    /// Whether the times that voters share are changed on the way. What holds for `changes_voters` holds then, too.
    pub changes_times: bool,
}

/// A running history: the cluster, and what was done to its clocks.
struct History {
    sim: Sim,
    dice: Dice,
    /// Wall clocks show any time. Every node has a disk then, and disks lose nothing that was synced.
    has_wild_clocks: bool,
    changes_voters: bool,
    changes_times: bool,
    /// Drift so far in microseconds, and drift rate in millionths.
    drifted: Vec<i64>,
    drift: Vec<i64>,
    set: Vec<i64>,
    campaigns: Vec<(usize, LeaseId)>,
}

impl Elections {
    /// A history without broken rules.
    pub fn new(seed: u64) -> Self {
        Self { seed, control: None, changes_voters: false, changes_times: false }
    }

    /// A history in which the list of voters is changed.
    pub fn with_changes(seed: u64) -> Self {
        Self { changes_voters: true, ..Self::new(seed) }
    }

    /// A history in which the times that voters share are changed, and the list of voters.
    pub fn with_other_times(seed: u64) -> Self {
        Self { changes_times: true, ..Self::with_changes(seed) }
    }

    /// Runs the history, heals all faults and asserts that every lease has a holder within a bounded time.
    ///
    /// # Panics
    /// If a lease has two holders, a token does not grow, or there is no leader in time.
    pub fn run(self) -> Sim {
        let mut dice = Dice::new(self.seed);
        let voters = [3, 3, 3, 4, 5][dice.below(5)];
        let count = voters + dice.below(2) + if self.changes_voters { 2 } else { 0 };
        let mut config = Config::lan();
        config.clock_skew_max = Duration::from_millis(SKEW_MAX_MS as u64);
        config.lease_time = Duration::from_millis([500, 3_000, 10_000][dice.below(3)]);
        config.voters = crate::voters(voters);
        let lease = config.lease_time;
        if self.seed.is_multiple_of(2) {
            // The shortest quarantine that the lease time permits.
            config.lease_time_max = lease;
        }
        let has_wild_clocks = dice.below(2) == 0;
        let sim = Sim::new(self.seed).broken(self.control).config(config).seeds(&[0, 1]);
        let sim = sim.loss([0.0, 0.05, 0.25][dice.below(3)]);
        let sim = if self.seed % 3 == 1 { sim.processing_delay(0.2) } else { sim };
        let sim = sim.delay(Duration::from_millis([1, 5, 60][dice.below(3)]));
        let disks = if has_wild_clocks || self.changes_voters { count } else { dice.below(count + 1) };
        let sim = sim.nodes_with_disk(disks).nodes(count - disks);
        let zeros = vec![0; count];
        let (drifted, drift, set) = (zeros.clone(), zeros.clone(), zeros);
        let Self { changes_voters, changes_times, .. } = self;
        let campaigns = Vec::new();
        let mut history = History {
            sim,
            dice,
            has_wild_clocks,
            changes_voters,
            changes_times,
            drifted,
            drift,
            set,
            campaigns,
        };
        history.pass(QUARANTINE);
        for _ in 0..60 {
            history.step();
            let ms = [0, 1, 3, 20, 300, 1_000, 4_000][history.dice.below(7)];
            history.pass(Duration::from_millis(ms));
        }
        history.heal();
        // A change that was asked for last may still take its two steps.
        let changing = if self.changes_voters { QUARANTINE * 2 } else { Duration::ZERO };
        let within = QUARANTINE + REUNION + lease * 3 + changing;
        let end = history.sim.now() + within;
        for i in 0..count {
            history.campaign(i);
        }
        if has_wild_clocks && self.changes_voters {
            // A node whose clock is further off than permitted takes no writes of others, so it learns of no other list.
            history.pass(within);
            return history.sim;
        }
        while NAMES.iter().any(|name| history.sim.holders(name).is_empty()) {
            assert!(history.sim.now() < end, "seed {}: no leader within {within:?}", self.seed);
            history.pass(Duration::from_millis(50));
        }
        history.sim
    }
}

impl History {
    /// Lets time pass, at most one second per step, and sets each wall clock to its chosen offset after each step.
    fn pass(&mut self, time: Duration) {
        let mut left = time;
        loop {
            let step = left.min(Duration::from_secs(1));
            self.sim.run_for(step);
            left -= step;
            let micros = i64::try_from(step.as_micros()).expect("a second");
            for i in 0..self.sim.len() {
                self.drifted[i] += micros * self.drift[i] / 1_000_000;
                self.sim.skew(i, self.set[i] - self.drifted[i] / 1_000);
            }
            if left.is_zero() {
                return;
            }
        }
    }

    fn campaign(&mut self, i: usize) {
        for name in NAMES {
            let id = self.sim.node(i).campaign(name, "v").expect("small enough");
            self.campaigns.push((i, id));
        }
    }

    fn step(&mut self) {
        let i = self.dice.below(self.sim.len());
        let name = NAMES[self.dice.below(NAMES.len())];
        let is_up = self.sim.is_up(i);
        match self.dice.below(10) {
            0..=3 if is_up => {
                let id = if self.dice.below(4) == 0 {
                    self.sim.node(i).try_campaign(name, "v")
                } else {
                    self.sim.node(i).campaign(name, "v")
                };
                self.campaigns.extend(id.ok().map(|id| (i, id)));
            }
            4 if !self.campaigns.is_empty() => {
                let at = self.dice.below(self.campaigns.len());
                let (i, id) = self.campaigns.swap_remove(at);
                if self.sim.is_up(i) {
                    self.sim.node(i).resign(id);
                }
            }
            5 => {
                // Faults of the holder find more than faults of others.
                let holder = self.sim.holders(name).first().map(|(holder, _)| *holder);
                self.fault(holder.unwrap_or(i));
            }
            6 if self.changes_times && is_up => match self.dice.below(4) {
                0 => self.change_voters(i),
                1 => self.change_lease(i),
                _ => self.change_times(i),
            },
            6 if self.changes_voters && is_up => self.change_voters(i),
            _ => self.fault(i),
        }
    }

    /// Asks for one to five other voters, sometimes for those of a list that shares no name with the present one.
    fn change_voters(&mut self, i: usize) {
        let count = self.sim.len();
        let first = self.dice.below(count);
        let wanted = 1 + self.dice.below(count.min(5));
        let names = (first..first + wanted).map(|at| format!("n{}", at % count));
        // A node without a majority, or with a doubted clock, refuses.
        _ = self.sim.node(i).set_voters(names);
    }

    /// Asks for another greatest lease time, sometimes for another difference of the clocks.
    fn change_times(&mut self, i: usize) {
        let mut settings = self.sim.node(i).cluster_settings().expect("it is up").present;
        settings.lease_time_max = Duration::from_millis([500, 1_000, 3_000, 10_000][self.dice.below(4)]);
        if self.dice.below(4) == 0 {
            settings.clock_skew_max =
                Duration::from_millis(SKEW_MAX_MS as u64 * (1 + self.dice.below(2) as u64));
        }
        _ = self.sim.node(i).set_cluster_settings(settings);
    }

    /// Lets a node ask for the longest lease that is permitted, or for a short one.
    fn change_lease(&mut self, i: usize) {
        let mut config = self.sim.node(i).config().expect("it is up");
        config.lease_time = [config.lease_time_max, Duration::from_millis(500)][self.dice.below(2)];
        _ = self.sim.node(i).reconfigure(config);
    }

    fn fault(&mut self, i: usize) {
        let (sim, dice) = (&mut self.sim, &mut self.dice);
        let other = dice.below(sim.len());
        match dice.below(14) {
            0 => sim.crash(i),
            1 | 2 => sim.restart(i),
            3 if !self.has_wild_clocks && !self.changes_voters => {
                sim.restart_with(i, [Disk::Blank, Disk::Older(1), Disk::Older(8)][dice.below(3)]);
            }
            4 if i != other => sim.partition(&[i], &[other]),
            5 if i != other => sim.cut(i, other),
            6 => {
                let (left, right): (Vec<usize>, Vec<usize>) =
                    (0..sim.len()).partition(|_| dice.below(2) == 0);
                sim.partition(&left, &right);
            }
            7 => sim.heal(),
            8 if sim.is_up(i) => sim.pause(i),
            9 => (0..sim.len()).for_each(|i| sim.resume(i)),
            10 => {
                let ppm = [-50_000, -20_000, 0, 20_000, 50_000][dice.below(5)];
                sim.drift(i, ppm);
                self.drift[i] = ppm;
            }
            11 => {
                let off = [-SET_MS, -SET_MS / 3, 0, SET_MS / 2, SET_MS][dice.below(5)];
                self.set[i] = if self.has_wild_clocks { off * 4_000 } else { off };
            }
            12 => sim.slow(i, [1, 1, 20, 100][dice.below(4)]),
            13 => sim.disk_fault(
                i,
                [Some(DiskFault::Full), Some(DiskFault::SyncFails), None, None][dice.below(4)],
            ),
            _ => {}
        }
    }

    fn heal(&mut self) {
        self.sim.heal();
        for i in 0..self.sim.len() {
            self.sim.resume(i);
            self.sim.drift(i, 0);
            self.drift[i] = 0;
            self.sim.slow(i, 1);
            self.sim.disk_fault(i, None);
            // A disk whose sync failed is not used again before a restart.
            if !self.sim.is_up(i) || self.sim.node(i).status().has_disk_failed {
                self.sim.restart(i);
            }
        }
    }
}
