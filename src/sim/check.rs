//! Tests of user code: many seeds, with random faults.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rand_core::Rng;

use super::{Disk, Sim};

/// The longest time between two random faults, in milliseconds.
const FAULT_PAUSE_MS_MAX: u64 = 2_000;
/// The most faults of a plan that a strategy makes.
#[cfg(feature = "proptest")]
const FAULTS_MAX: usize = 32;

/// Runs a test with one simulation for each of these seeds. If one of them panics, the seed is printed with what
/// replays it alone, and the panic goes on.
///
/// ```
/// use std::time::Duration;
/// use tidings::sim;
///
/// sim::check(0..20, |sim| {
///     let mut sim = sim.nodes(3);
///     (0..3).for_each(|i| _ = sim.node(i).counter("visits").add(1).unwrap());
///     sim.run_with_faults(Duration::from_secs(20));
///     sim.assert_converged();
///     assert!((0..3).all(|i| sim.node(i).counter("visits").value() == 3));
/// });
/// ```
///
/// # Panics
/// If the test does.
pub fn check(seeds: impl IntoIterator<Item = u64>, test: impl Fn(Sim)) {
    for seed in seeds {
        let run = AssertUnwindSafe(|| test(Sim::new(seed)));
        if let Err(panic) = catch_unwind(run) {
            // The panic hook gets a text, as from every other panic; the code that catches the panic gets the first
            // one.
            _ = catch_unwind(|| panic!("seed {seed} failed\nreplay: tidings::sim::check([{seed}], ..)"));
            resume_unwind(panic);
        }
    }
}

impl Sim {
    /// Lets virtual time pass as [`run_for`](Self::run_for) does, with random faults that depend on the seed alone:
    /// partitions, lost packets, processes that are stopped for a while, and crashes with restarts of nodes that have a
    /// disk. At the end no fault is left; packets are lost as before.
    ///
    /// A crash loses what was not durable, as a real one may. Nodes without a disk do not crash: what only one of them
    /// knows would be lost for good.
    pub fn run_with_faults(&mut self, time: Duration) {
        let (end, loss) = (self.now() + time, self.world().loss);
        while self.now() < end {
            self.random_fault();
            let pause = Duration::from_millis(1 + self.draw() % FAULT_PAUSE_MS_MAX);
            self.run_for(pause.min(end - self.now()));
        }
        self.end_faults(loss);
    }

    fn draw(&mut self) -> u64 {
        self.world().random.next_u64()
    }

    fn random_fault(&mut self) {
        if self.is_empty() {
            return;
        }
        let i = self.draw() as usize % self.len();
        let fault = match self.draw() % 8 {
            0 | 1 => {
                let sides = self.draw();
                PlannedFault::Partition((0..self.len()).filter(|i| sides >> (i % 64) & 1 == 0).collect())
            }
            2 | 3 => PlannedFault::Heal,
            4 => PlannedFault::Loss((self.draw() % 4) as u8 * 10),
            5 => PlannedFault::Pause(i),
            6 => PlannedFault::ResumeAll,
            _ if !self.world().nodes[i].has_disk => return,
            _ if self.is_up(i) => PlannedFault::Crash(i),
            _ => PlannedFault::Restart(i),
        };
        self.cause(&fault);
    }

    /// Lets virtual time pass under the faults of a plan: each of them, then the time beside it. At the end no fault is
    /// left, as after [`run_with_faults`](Self::run_with_faults). A fault of a node that there is not changes nothing.
    ///
    /// With the feature `proptest`, `sim::faults` is a strategy for plans: a test that fails is tried with fewer
    /// faults, until only those are left without which it succeeds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidings::sim::{PlannedFault as Fault, Sim};
    ///
    /// let mut sim = Sim::new(1).nodes_with_disk(3);
    /// sim.node(0).put("k", "v")?;
    /// let second = Duration::from_secs(1);
    /// sim.run_with_plan(&[(Fault::Partition(vec![0]), second), (Fault::Crash(1), second), (Fault::Heal, second)]);
    /// sim.assert_converged();
    /// assert!((0..3).all(|i| sim.node(i).get("k").is_some()));
    /// # Ok::<(), tidings::WriteError>(())
    /// ```
    pub fn run_with_plan(&mut self, plan: &[(PlannedFault, Duration)]) {
        let loss = self.world().loss;
        for (fault, time) in plan {
            self.cause(fault);
            self.run_for(*time);
        }
        self.end_faults(loss);
    }

    fn cause(&mut self, fault: &PlannedFault) {
        let nodes = self.len();
        match fault {
            PlannedFault::Heal => self.heal(),
            PlannedFault::Partition(side) => {
                let (a, b): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|i| side.contains(i));
                self.partition(&a, &b);
            }
            PlannedFault::Cut(from, to) if (0..nodes).contains(from.max(to)) && from != to => {
                self.cut(*from, *to);
            }
            PlannedFault::Loss(percent) => self.set_loss(f64::from(*percent.min(&100)) / 100.0),
            PlannedFault::Pause(i) if *i < nodes => self.pause(*i),
            PlannedFault::ResumeAll => (0..nodes).for_each(|i| self.resume(i)),
            PlannedFault::Crash(i) if *i < nodes && self.is_up(*i) && self.world().nodes[*i].has_disk => {
                self.crash(*i);
            }
            PlannedFault::Restart(i) if *i < nodes && !self.is_up(*i) => self.restart(*i),
            PlannedFault::Cut(..)
            | PlannedFault::Pause(_)
            | PlannedFault::Crash(_)
            | PlannedFault::Restart(_) => {}
        }
    }

    fn end_faults(&mut self, loss: f64) {
        self.heal();
        self.set_loss(loss);
        for i in 0..self.len() {
            self.resume(i);
            if !self.is_up(i) && self.world().nodes[i].has_disk {
                self.restart_with(i, Disk::Latest);
            }
        }
    }
}

/// A fault of a plan ([`Sim::run_with_plan`]), or the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlannedFault {
    /// Ends all partitions and cuts.
    Heal,
    /// Cuts all links between these nodes and the others.
    Partition(Vec<usize>),
    /// Cuts one direction, from the first of two nodes to the second.
    Cut(usize, usize),
    /// Loses so many percent of all datagrams from now on.
    Loss(u8),
    /// Stops a process; it runs on at [`ResumeAll`](Self::ResumeAll).
    Pause(usize),
    /// Lets all processes run on.
    ResumeAll,
    /// Crashes a node that has a disk. Nodes without one do not crash: what only one of them knows would be lost.
    Crash(usize),
    /// Starts a crashed node with what its disk kept.
    Restart(usize),
}

/// A plan of faults that a strategy has made: a list for [`Sim::run_with_plan`]. Shown for debugging, it is Rust code,
/// so that the plan of a test that fails can be pasted into one that runs with it alone.
#[cfg(feature = "proptest")]
#[derive(Clone, PartialEq, Eq)]
pub struct FaultPlan(Vec<(PlannedFault, Duration)>);

#[cfg(feature = "proptest")]
impl std::ops::Deref for FaultPlan {
    type Target = [(PlannedFault, Duration)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(feature = "proptest")]
impl std::fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[")?;
        for (at, (fault, time)) in self.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            // The other variants are shown as they are written.
            match fault {
                PlannedFault::Partition(side) => write!(f, "(PlannedFault::Partition(vec!{side:?})")?,
                fault => write!(f, "(PlannedFault::{fault:?}")?,
            }
            write!(f, ", Duration::from_millis({}))", time.as_millis())?;
        }
        f.write_str("]")
    }
}

/// A strategy for plans of up to 32 faults among so many nodes, for [`Sim::run_with_plan`]. A test that fails shows its
/// plan as Rust code:
///
/// ```text
/// minimal failing input: seed = 0, plan = [(PlannedFault::Partition(vec![0]), Duration::from_millis(1))]
/// ```
///
/// ```
/// use proptest::prelude::*;
/// use tidings::sim::{self, Sim};
///
/// proptest!(ProptestConfig::with_cases(10), |(seed: u64, plan in sim::faults(3))| {
///     let mut sim = Sim::new(seed).nodes_with_disk(3);
///     (0..3).for_each(|i| _ = sim.node(i).set("seen").add(format!("node {i}")).unwrap());
///     sim.run_for(std::time::Duration::from_secs(1)); // on all disks, and on all nodes
///     sim.run_with_plan(&plan);
///     sim.assert_converged();
///     prop_assert!((0..3).all(|i| sim.node(i).set("seen").len() == 3));
/// });
/// ```
#[cfg(feature = "proptest")]
pub fn faults(nodes: usize) -> impl proptest::strategy::Strategy<Value = FaultPlan> + Clone {
    use proptest::prelude::*;
    let node = || 0..nodes.max(1);
    // What comes first is what a failing test is reduced to.
    let fault = prop_oneof![
        2 => Just(PlannedFault::Heal),
        1 => Just(PlannedFault::ResumeAll),
        2 => proptest::sample::subsequence((0..nodes).collect::<Vec<_>>(), 0..=nodes).prop_map(PlannedFault::Partition),
        1 => (node(), node()).prop_map(|(from, to)| PlannedFault::Cut(from, to)),
        1 => (0..=3_u8).prop_map(|tenths| PlannedFault::Loss(tenths * 10)),
        1 => node().prop_map(PlannedFault::Pause),
        1 => node().prop_map(PlannedFault::Crash),
        1 => node().prop_map(PlannedFault::Restart),
    ];
    let time = (1..=FAULT_PAUSE_MS_MAX).prop_map(Duration::from_millis);
    proptest::collection::vec((fault, time), 0..=FAULTS_MAX).prop_map(FaultPlan)
}
