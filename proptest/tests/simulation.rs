//! Random histories of writes and all faults under the oracle: no replica may cover what it did not merge, and all must
//! converge after healing. `TIDINGS_SEEDS` sets the number of histories, 2,000 by default; `TIDINGS_SEED` replays one.
//!
//! The negative controls are in `controls.rs`: each rule is broken in the same histories, and must be detected.

use tidings_proptest::{Plan, for_chosen_seeds};

#[test]
fn random_fault_histories_keep_every_rule_and_converge() {
    for_chosen_seeds(2_000, |seed| _ = Plan::new(seed).run());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        assert_eq!(Plan::new(seed).run().trace(), Plan::new(seed).run().trace());
    }
}
