//! Waiting in the simulator, whose time is virtual and exact.

use std::time::Duration;

use tidings::Config;
use tidings::sim::Sim;

/// Milliseconds.
pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Lets time pass step by step until a condition holds. Returns how long that took.
///
/// # Panics
/// If it does not hold within the limit.
#[track_caller]
pub fn run_until(
    sim: &mut Sim,
    step: Duration,
    within: Duration,
    holds: impl Fn(&mut Sim) -> bool,
) -> Duration {
    let since = sim.now();
    while !holds(sim) {
        assert!(sim.now() - since < within, "the condition did not hold within {within:?}");
        sim.run_for(step);
    }
    sim.now() - since
}

/// The names of the first nodes of a simulation, for a list of voters.
pub fn voters(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("n{i}")).collect()
}

/// Quarantine of a voter after its start, with [`short_leases`].
pub const SHORT_QUARANTINE: Duration = Duration::from_secs(5);

/// Leases of 3 s, granted by the first `count` nodes of a simulation.
pub fn short_leases(count: usize) -> Config {
    let mut config = Config::lan();
    let [second, three_seconds] = [1, 3].map(Duration::from_secs);
    (config.clock_skew_max, config.lease_time, config.lease_time_max) =
        (second, three_seconds, three_seconds);
    config.voters = voters(count);
    config
}

/// Nodes with disks and [`short_leases`], past their quarantine.
pub fn electing(seed: u64, voters: usize, nodes: usize) -> Sim {
    let mut sim = Sim::new(seed).config(short_leases(voters)).seeds(&[0, 2]).nodes_with_disk(nodes);
    sim.run_for(SHORT_QUARANTINE);
    sim
}
