//! Counters whose shares are folded into tables and dropped, by several nodes at once, while others count, crash and
//! are partitioned: no step is lost and none counts twice.
//!
//! Negative controls: with `ShareReadBack` a run adds to the share that is stored, which another node may have dropped;
//! and shares that are dropped before every node has the table can be lost.
//!
//! `TIDINGS_SEEDS=n` runs n histories.

use std::time::Duration;

use tidings::sim::{Sim, SimReceipt};
use tidings::{Config, Control};
use tidings_proptest::{Dice, number};

const STEP: Duration = Duration::from_millis(200);
const STEPS: usize = 40;

/// A cluster whose node 0 never crashes. Another node crashes only when all have its last step, so that every step that
/// was accepted must count in the end.
struct Count {
    sim: Sim,
    dice: Dice,
    expected: i64,
    /// The last step of each node.
    last: Vec<Option<SimReceipt>>,
}

impl Count {
    fn new(seed: u64, control: Option<Control>) -> Self {
        let mut dice = Dice::new(seed);
        let mut config = Config::lan();
        config.removals_max = [0, 2, 4_096][dice.below(3)];
        let nodes = 2 + dice.below(4);
        let with_disk = dice.below(nodes + 1);
        let sim = Sim::new(seed).broken(control).config(config).loss([0.0, 0.2][dice.below(2)]);
        let sim = sim.nodes_with_disk(with_disk).nodes(nodes - with_disk);
        Self { sim, dice, expected: 0, last: vec![None; nodes] }
    }

    fn add(&mut self) {
        let (i, by) = (self.dice.below(self.sim.len()), [-3, -1, 0, 2, 5][self.dice.below(5)]);
        if let Ok(receipt) = self.sim.node(i).counter("c").add(by) {
            self.expected += by;
            self.last[i] = Some(receipt);
        }
    }

    /// Runs until all nodes have a write, if they get it in time.
    fn all_have(&mut self, i: usize, receipt: &SimReceipt) -> bool {
        for _ in 0..10 {
            if self.sim.node(i).count_seen(receipt) == self.sim.len() {
                return true;
            }
            if self.dice.below(3) == 0 {
                self.add();
            }
            self.sim.run_for(STEP);
        }
        false
    }

    /// Restarts a node whose steps all nodes have. What it adds while that is found out would be lost, so then it stays.
    fn restart(&mut self) {
        let i = self.dice.below(self.sim.len());
        let last = self.last[i];
        let has_shared = last.as_ref().is_none_or(|receipt| self.all_have(i, receipt));
        if i != 0
            && has_shared
            && self.last[i].as_ref().map(SimReceipt::stamp) == last.as_ref().map(SimReceipt::stamp)
        {
            self.last[i] = None;
            self.sim.crash(i);
            self.sim.restart(i);
        }
    }

    fn compact(&mut self) {
        let i = self.dice.below(self.sim.len());
        let (folded, receipt) = self.sim.node(i).fold_counter("c").unwrap();
        if folded.stamp().is_some() && self.all_have(i, &receipt) {
            self.sim.node(i).drop_folded("c", &folded).unwrap();
        }
    }

    fn partition(&mut self) {
        let nodes = self.sim.len();
        let (side, other): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|_| self.dice.below(2) == 0);
        self.sim.partition(&side, &other);
    }

    /// Runs the history. Returns the value of the counter on each node in the end, and what it should be.
    fn run(mut self) -> (Vec<i64>, i64) {
        for _ in 0..STEPS {
            match self.dice.below(10) {
                0..5 => self.add(),
                5 => self.restart(),
                6 | 7 => self.compact(),
                8 => self.partition(),
                _ => self.sim.heal(),
            }
            self.sim.run_for(STEP);
        }
        self.sim.heal();
        self.sim.assert_converged();
        let values = (0..self.sim.len()).map(|i| self.sim.node(i).counter("c").value()).collect();
        (values, self.expected)
    }
}

/// The seeds at which some node counts wrongly.
fn miscounts(seeds: u64, control: Option<Control>) -> Vec<u64> {
    let is_wrong = |seed: &u64| {
        let (values, expected) = Count::new(*seed, control).run();
        values.iter().any(|value| *value != expected)
    };
    (0..seeds).filter(is_wrong).collect()
}

#[test]
fn compaction_loses_no_step_and_counts_none_twice() {
    let wrong = miscounts(number("TIDINGS_SEEDS").unwrap_or(500), None);
    assert!(wrong.is_empty(), "seeds {wrong:?}");
}

#[test]
fn adding_to_a_dropped_share_loses_steps() {
    assert!(!miscounts(500, Some(Control::ShareReadBack)).is_empty());
}

/// Whether a step is lost when a node folds the shares of 100 counters while it is partitioned, and is lost itself, with
/// what it wrote, while the others repair with it. `waits`: it drops shares only once all nodes have the tables.
fn loses_with_the_folder(seed: u64, waits: bool) -> bool {
    let mut config = Config::lan();
    // Removals are not in the log, so that the others learn of them by repair, which compares keys in any order.
    config.removals_max = 0;
    let mut sim = Sim::new(seed).config(config).rate(20_000).nodes(3);
    let counters: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    for name in &counters {
        sim.node(2).counter(name.as_str()).add(1).unwrap();
    }
    sim.assert_converged();
    sim.crash(2);
    sim.run_for(Duration::from_secs(5));
    sim.partition(&[0], &[1]);
    for name in &counters {
        let (folded, receipt) = sim.node(1).fold_counter(name).unwrap();
        if !waits || sim.node(1).count_seen(&receipt) == 3 {
            sim.node(1).drop_folded(name, &folded).unwrap();
        }
    }
    sim.heal();
    sim.run_for(Duration::from_millis(20 * (seed % 100)));
    sim.crash(1);
    sim.restart(1);
    sim.restart(2);
    sim.assert_converged();
    counters.iter().any(|name| sim.node(0).counter(name.as_str()).value() != 1)
}

#[test]
fn shares_dropped_before_all_have_the_table_are_lost() {
    assert!((0..300).any(|seed| loses_with_the_folder(seed, false)));
    assert!(!(0..300).any(|seed| loses_with_the_folder(seed, true)));
}
