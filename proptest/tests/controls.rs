//! Negative controls: each broken rule must be noticed, and as what it is. A check that cannot fail does not count.

use tidings::Control;
use tidings_proptest::{Noticed, Plan, notice};

/// Random histories per rule.
const SEEDS: u64 = 4_000;

/// By what each breach shows in random histories. A rule of safety that showed only as replicas which never become
/// equal would say that the oracle is blind.
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

/// Rules whose breach random histories meet too seldom, or that are about traffic alone; each has a scripted story in
/// `stories.rs`, `flow.rs`, `joining.rs` or `slow_links.rs`. Those of passing on are broken in `spread.rs`, those of elections in
/// `leaders.rs`. Claims without bounds are those of `garbled.rs`, claims from the future those of `clocks.rs`, leftovers those of `islands.rs`. The last four are those of
/// `watches.rs`, `members.rs`, `reunion.rs` and `leaders.rs`.
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

/// By what the first breach is noticed, and in which history.
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
    assert!(wrong.is_empty(), "rule, expected, found: {wrong:#?}");
}

#[test]
fn every_control_has_a_random_history_or_a_story() {
    let known = |control: &Control| {
        EXPECTED.iter().any(|(expected, _)| expected == control) || SCRIPTED.contains(control)
    };
    assert!(Control::ALL.iter().all(known));
}
