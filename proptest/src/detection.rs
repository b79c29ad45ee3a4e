//! Negative controls: how a broken rule was detected, and stories that run with one rule broken.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidings::Control;
use tidings::sim::{Sim, SimFault};

/// How a broken rule was detected: by the simulator, as one kind of [`SimFault`], or by an assertion of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Noticed {
    /// The oracle found a replica that covers what it did not merge.
    Oracle,
    /// A disk lost what it had acknowledged as durable, or could not be read back.
    Promise,
    /// Several nodes held a lease at the same time.
    TwoHolders,
    /// Two lists of voters under one epoch.
    TwoVoterLists,
    /// A list of voters that the voters of the list before it have not decided.
    VotersUndecided,
    /// The token of a lease did not grow.
    Token,
    /// An assertion about what a user sees failed.
    Loss,
    /// The replicas did not converge.
    Divergence,
}

/// Runs something that may panic and classifies the panic. `None`: no panic.
pub fn notice(run: impl FnOnce()) -> Option<Noticed> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    Some(match panic.downcast_ref() {
        None => Noticed::Loss,
        Some(
            SimFault::Lost(_)
            | SimFault::Returned(_)
            | SimFault::Invented(_)
            | SimFault::Uncovered(_)
            | SimFault::Differing(_),
        ) => Noticed::Oracle,
        Some(SimFault::DurableLost(_) | SimFault::DiskUnreadable(_)) => Noticed::Promise,
        Some(SimFault::TwoHolders(_)) => Noticed::TwoHolders,
        Some(SimFault::TwoVoterLists(_)) => Noticed::TwoVoterLists,
        Some(SimFault::VotersUndecided(_)) => Noticed::VotersUndecided,
        Some(SimFault::TokenNotGrown(_)) => Noticed::Token,
        Some(SimFault::NotConverged(_)) => Noticed::Divergence,
        Some(_) => unreachable!("there is no other kind of fault"),
    })
}

/// Seeds per story.
const STORY_SEEDS: u64 = 20;

/// Runs a story, which must pass with every seed, and runs it again with one rule broken. With some seed the oracle
/// must detect the broken rule; with the oracle switched off, some seed must fail with `user_sees`.
///
/// # Panics
/// If the story fails, or the broken rule is not detected in both ways.
pub fn with_control(control: Control, user_sees: Noticed, story: impl Fn(u64, Sim)) {
    (0..STORY_SEEDS).for_each(|seed| story(seed, Sim::new(seed).broken(None)));
    let broken = |seed| Sim::new(seed).broken(Some(control));
    let watched = (0..STORY_SEEDS).any(|seed| notice(|| story(seed, broken(seed))) == Some(Noticed::Oracle));
    assert!(watched, "the oracle does not detect {control:?}");
    let unwatched: BTreeSet<Noticed> =
        (0..STORY_SEEDS).filter_map(|seed| notice(|| story(seed, broken(seed).without_checks()))).collect();
    assert!(unwatched.contains(&user_sees), "without the oracle {control:?} is detected as {unwatched:?}");
}

/// Runs a story with every seed below `seeds`: it must pass, and with one rule broken an assertion of its own must fail.
///
/// # Panics
/// If the story fails, or the broken rule is not detected.
pub fn holds_unless(control: Control, seeds: u64, story: impl Fn(Sim)) {
    for seed in 0..seeds {
        story(Sim::new(seed).broken(None));
        let broken = notice(|| story(Sim::new(seed).broken(Some(control))));
        assert_eq!(broken, Some(Noticed::Loss), "{control:?} is not detected with seed {seed}");
    }
}
