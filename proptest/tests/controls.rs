//! Negative controls: each broken rule must be noticed. A check that cannot fail does not count.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tidings::Control;
use tidings_proptest::Plan;

/// The first random history in which the broken rule is noticed.
fn caught(control: Control, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| {
        let plan = Plan { control: Some(control), ..Plan::new(*seed) };
        catch_unwind(AssertUnwindSafe(|| plan.run())).is_err()
    })
}

/// Rules whose breach random histories meet too seldom; each has a scripted story in `stories.rs`.
const SCRIPTED: [Control; 4] =
    [Control::OwnFromFrame, Control::OldDigest, Control::LinksKept, Control::NoVerify];

#[test]
fn every_broken_rule_is_noticed_by_random_histories() {
    std::panic::set_hook(Box::new(|_| {}));
    let random = Control::ALL.into_iter().filter(|control| !SCRIPTED.contains(control));
    let missed: Vec<_> = random.filter(|control| caught(*control, 500).is_none()).collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
