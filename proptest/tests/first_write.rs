//! As soon as all nodes of a new cluster are ready, a write reaches every member at once: within some link delays, far
//! below every interval of the configuration. Measured in virtual time, which is exact, so that the limit can be tight.

use std::time::Duration;

use tidings::Config;
use tidings::sim::Sim;

const SEEDS: u64 = 100;
/// The mean delay of a link, one way.
const DELAY: Duration = Duration::from_millis(1);
/// Limit until all nodes have the write: some link delays, and far less than any interval of [`Config::lan`].
const ARRIVAL_MAX: Duration = Duration::from_millis(20);
/// Limit until all nodes of a new cluster are ready.
const READY_MAX: Duration = Duration::from_secs(5);

fn is_ready(sim: &mut Sim) -> bool {
    (0..sim.len()).all(|i| sim.node(i).joining().is_ready)
}

/// Forms a cluster in which each node has these seeds, and returns how long the first write takes to reach the last
/// node once all are ready.
fn first_write(seed: u64, count: usize, seeds: &[usize]) -> Duration {
    let mut sim = Sim::new(seed).config(Config::lan()).delay(DELAY).seeds(seeds).nodes(count);
    while !is_ready(&mut sim) {
        assert!(sim.now() < READY_MAX, "seed {seed}: the nodes are not ready in time");
        sim.run_for(DELAY / 2);
    }
    let ready_at = sim.now();
    sim.node(0).put("first", "write").unwrap();
    while !(0..count).all(|i| sim.node(i).get("first").is_some()) {
        assert!(sim.now() < ready_at + READY_MAX, "seed {seed}: the write does not arrive");
        sim.run_for(DELAY / 2);
    }
    sim.now() - ready_at
}

fn first_writes_are_quick(count: usize) {
    for seeds in [&[0][..], &[1], &[0, 1], &[0, 1, 2]] {
        for seed in 0..SEEDS {
            let took = first_write(seed, count, seeds);
            assert!(
                took <= ARRIVAL_MAX,
                "seed {seed}, {count} nodes, seeds {seeds:?}: the write took {took:?}"
            );
        }
    }
}

#[test]
fn the_first_write_of_three_ready_nodes_is_quick() {
    first_writes_are_quick(3);
}

#[test]
fn the_first_write_of_ten_ready_nodes_is_quick() {
    first_writes_are_quick(10);
}
