//! Negative controls of the random histories: each broken rule must be detected by one of them, in the expected way. A
//! check that cannot fail does not count.
//!
//! Each rule of `EXPECTED` is broken by its [`Control`] in the histories of [`Plan`], seed after seed, until one of
//! them fails. The rules of `SCRIPTED` are broken in the test files named there.

use tidings::Control;
use tidings_proptest::{Noticed, Plan, notice};

/// Random histories per rule, at most.
const SEEDS: u64 = 4_000;

/// How each broken rule is detected in random histories. A safety rule that showed only as missing convergence would
/// mean that the oracle does not see it.
const EXPECTED: [(Control, Noticed); 19] = [
    (Control::CursorKept, Noticed::Oracle),
    (Control::ClaimDespiteRefusal, Noticed::Oracle),
    (Control::DoneAfterRefusal, Noticed::Oracle),
    (Control::TailClaimsAll, Noticed::Oracle),
    (Control::NoContext, Noticed::Oracle),
    (Control::OldOrigin, Noticed::Oracle),
    (Control::SeenAhead, Noticed::Oracle),
    (Control::EndVector, Noticed::Oracle),
    (Control::EndHead, Noticed::Oracle),
    (Control::NoSettled, Noticed::Oracle),
    (Control::FloorPassed, Noticed::Oracle),
    (Control::NoCloud, Noticed::Oracle),
    (Control::ArrivalOrder, Noticed::Oracle),
    (Control::EarlyPromise, Noticed::Promise),
    (Control::TornTaken, Noticed::Promise),
    (Control::OldStart, Noticed::Oracle),
    (Control::GoneIsKept, Noticed::Oracle),
    (Control::RepairUnawaited, Noticed::Oracle),
    (Control::DropsInDoubt, Noticed::Oracle),
];

/// Rules whose violation random histories meet too seldom, or that concern traffic alone. Each is broken by a test in
/// `stories.rs`, `flow.rs`, `joining.rs` or `slow_links.rs`, except: forwarded claims and large rows in `spread.rs`,
/// elections in `leaders.rs`, `ClaimsUnbounded` in `garbled.rs`, `FutureTold` in `clocks.rs`, `LeftoversNarrowed` in
/// `islands.rs`, `WatchPastFloor` in `watches.rs`, `NoLocalHealth` in `members.rs`, `AnnouncedOnce` in `reunion.rs`.
const SCRIPTED: [Control; 26] = [
    Control::ClaimsUnbounded,
    Control::RelayClaimsAll,
    Control::OwnFromFrame,
    Control::OldDigest,
    Control::LinksKept,
    Control::NoVerify,
    Control::NoKeep,
    Control::AmidCounts,
    Control::AmidForEver,
    Control::ChainDespiteGap,
    Control::ChainUnchecked,
    Control::LargesUnawaited,
    Control::NoQuarantine,
    Control::NoDriftMargin,
    Control::PromiseNotKept,
    Control::TermReused,
    Control::VotersDiffer,
    Control::ManyDonors,
    Control::DonorKept,
    Control::WholeFramesCount,
    Control::FutureTold,
    Control::LeftoversNarrowed,
    Control::WatchPastFloor,
    Control::NoLocalHealth,
    Control::AnnouncedOnce,
    Control::LeaseMaxForgotten,
];

/// The seed of the first history that detects a broken rule, and how.
fn first(control: Control) -> Option<(u64, Noticed)> {
    let run = |seed| notice(|| _ = Plan { control: Some(control), ..Plan::new(seed) }.run());
    (0..SEEDS).find_map(|seed| run(seed).map(|noticed| (seed, noticed)))
}

#[test]
fn random_histories_detect_each_control_as_expected() {
    std::panic::set_hook(Box::new(|_| {}));
    let found = EXPECTED.map(|(control, expected)| (control, expected, first(control)));
    for (control, _, noticed) in &found {
        println!("{control:?}: {noticed:?}");
    }
    let wrong: Vec<_> = found
        .into_iter()
        .filter(|(_, expected, found)| found.map(|(_, noticed)| noticed) != Some(*expected))
        .collect();
    assert!(wrong.is_empty(), "(rule, expected, found): {wrong:#?}");
}

#[test]
fn every_control_has_a_random_history_or_a_story() {
    let known = |control: &Control| {
        EXPECTED.iter().any(|(expected, _)| expected == control) || SCRIPTED.contains(control)
    };
    assert!(Control::ALL.iter().all(known));
}
