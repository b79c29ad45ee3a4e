//! Waiting in the simulator, whose time is virtual and exact.

use std::time::Duration;

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
