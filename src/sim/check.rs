//! Tests of user code: many seeds, with random faults.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rand_core::Rng;

use super::{Disk, Sim};

/// The longest time between two random faults, in milliseconds.
const FAULT_PAUSE_MS_MAX: u64 = 2_000;

/// Runs a test with one simulation for each of these seeds. If one of them panics, the seed is printed with what replays
/// it alone, and the panic goes on.
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
            // The panic hook gets a text, as from every other panic; whoever catches the panic gets the first one.
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
        self.heal();
        self.set_loss(loss);
        for i in 0..self.len() {
            self.resume(i);
            if !self.is_up(i) && self.world().nodes[i].has_disk {
                self.restart_with(i, Disk::Latest);
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.world().random.next_u64()
    }

    fn random_fault(&mut self) {
        if self.is_empty() {
            return;
        }
        let i = self.draw() as usize % self.len();
        match self.draw() % 8 {
            0 | 1 => {
                let sides = self.draw();
                let (a, b): (Vec<usize>, Vec<usize>) =
                    (0..self.len()).partition(|i| sides >> (i % 64) & 1 == 0);
                self.partition(&a, &b);
            }
            2 | 3 => self.heal(),
            4 => {
                let tenths = (self.draw() % 4) as u8;
                self.set_loss(f64::from(tenths) / 10.0);
            }
            5 => self.pause(i),
            6 => (0..self.len()).for_each(|i| self.resume(i)),
            _ if !self.world().nodes[i].has_disk => {}
            _ if self.is_up(i) => self.crash(i),
            _ => self.restart(i),
        }
    }
}
