//! Negative controls: each broken rule must be detected by a test. A check that cannot fail does not count.
//!
//! [`shown`] says of each [`Control`] which test detects it. Most rules are broken here, in the histories of [`Plan`],
//! seed after seed, until one of them fails in the expected way. The others are broken by a test in another file:
//! random histories meet their violation too seldom, or it concerns traffic alone. Other tests may break the same rule
//! again, in a story of their own.

use std::path::Path;

use tidings::Control;
use tidings_proptest::{Noticed, Plan, notice};

/// Random histories per rule, at most.
const SEEDS: u64 = 8_000;

/// What detects a broken rule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shown {
    /// The random histories of this file, in this way. A safety rule that showed only as missing convergence would mean
    /// that the oracle does not see it.
    Random(Noticed),
    /// A test: the name of its file, and its own.
    Test(&'static str, &'static str),
}

/// The one test that must detect a control.
fn shown(control: Control) -> Shown {
    use Shown::{Random, Test};
    match control {
        Control::CursorKept
        | Control::ClaimDespiteRefusal
        | Control::DoneAfterRefusal
        | Control::TailClaimsAll
        | Control::NoContext
        | Control::OldOrigin
        | Control::SeenAhead
        | Control::EndVector
        | Control::EndHead
        | Control::SettledUncovered
        | Control::FloorPassed
        | Control::NoExtraCoverage
        | Control::ArrivalOrder
        | Control::OldStart
        | Control::GoneIsKept
        | Control::RepairUnawaited
        | Control::OldPartAssumed
        | Control::BucketsAssumed
        | Control::DropsInDoubt => Random(Noticed::Oracle),
        Control::EarlyPromise | Control::TornTaken => Random(Noticed::Promise),
        Control::ForwarderClaimsAll => {
            Test("stories.rs", "rows_left_out_by_one_flush_are_not_claimed_by_a_fuller_one")
        }
        Control::OwnFromFrame => Test("stories.rs", "own_rows_are_sent_when_forwarding_stops_in_mid_flush"),
        Control::OldDigest => Test("stories.rs", "removed_write_arriving_during_a_repair_stays_removed"),
        Control::LinksKept => Test("stories.rs", "links_are_broken_before_claims_are_given_up"),
        Control::RemovedUncovered => Test("stories.rs", "row_deleted_in_mid_flush_stays_deleted"),
        Control::DeadUncovered => Test("stories.rs", "value_overwritten_by_an_expired_one_stays_removed"),
        Control::NoVerify => Test("stories.rs", "a_lost_entry_is_found_before_it_spreads_as_a_delete"),
        Control::FluxCounts => Test("flow.rs", "a_long_flush_is_not_repaired_while_it_moves"),
        Control::FluxForEver => Test("flow.rs", "stalled_tail_does_not_suppress_a_repair"),
        Control::ManyDonors => Test("joining.rs", "one_donor_at_a_time_feeds_a_joiner"),
        Control::KnownIsCaughtUp => Test("joining.rs", "restarted_node_is_ready_when_it_has_caught_up"),
        Control::JoinersCaughtUp => Test("joining.rs", "nodes_that_join_together_wait_for_the_cluster"),
        Control::DonorKept => Test("joining.rs", "stalled_donor_is_replaced_before_its_session_ends"),
        Control::WholeFramesCount => Test("slow_links.rs", "frame_longer_than_the_timeout_breaks_no_link"),
        Control::ForwardedDespiteGap | Control::ForwardedUnchecked => {
            Test("spread.rs", "forwarded_claims_without_their_rows_are_detected")
        }
        Control::LargesUnawaited => Test("spread.rs", "the_end_of_a_flush_waits_for_its_large_rows"),
        Control::NoQuarantine | Control::NoDriftMargin | Control::PromiseNotKept | Control::TermReused => {
            Test("leaders.rs", "every_broken_rule_is_noticed")
        }
        Control::LeaseMaxForgotten => Test("leaders.rs", "lowered_lease_bound_keeps_earlier_promises"),
        Control::VotersDiffer => Test("leaders.rs", "uncompared_voter_lists_make_two_leaders"),
        Control::QuarantineKept => {
            Test("settings.rs", "longer_leases_prolong_the_quarantine_after_a_lost_disk")
        }
        Control::MemoForgotten => Test("settings.rs", "voter_with_an_unreadable_memo_does_not_vote"),
        Control::BeginningIgnored => Test("settings.rs", "clusters_that_began_otherwise_stay_apart"),
        Control::JointSkipped | Control::JointCutShort | Control::BallotIgnored => {
            Test("voters.rs", "every_broken_rule_of_changes_is_noticed")
        }
        Control::AdoptionUnasked => Test("voters.rs", "call_ends_when_the_new_voters_have_the_list"),
        Control::InvitedInQuarantine => Test("voters.rs", "leader_stays_when_new_voters_have_just_started"),
        Control::ForcedAtOnce => Test("voters.rs", "forced_voters_wait_for_the_leases_of_lost_ones"),
        Control::EpochUnbounded => Test("garbled.rs", "forged_lists_of_voters_end_no_elections"),
        Control::StatedLog => Test("garbled.rs", "naming_the_log_of_another_node_loses_no_write"),
        Control::ClaimsUnbounded => Test("garbled.rs", "without_bounds_on_claims_later_writes_are_lost"),
        Control::OwnClaimTaken => Test("liars.rs", "writes_survive_claims_about_the_run_of_their_reader"),
        Control::OwnClaimUnfulfilled => {
            Test("liars.rs", "false_claim_about_a_silent_node_parts_no_honest_pair")
        }
        Control::ForwardedFromAnybody => Test("liars.rs", "writes_survive_claims_forwarded_by_no_delegate"),
        Control::TasksUnlimited => Test("liars.rs", "tasks_of_a_session_are_limited"),
        Control::RefusalsAllTold => Test("liars.rs", "reports_of_refused_rows_are_limited"),
        Control::EndIsFinal => Test("liars.rs", "member_whose_end_was_made_up_comes_back"),
        Control::MetaNotOutranked => Test("liars.rs", "made_up_metadata_goes_once_its_author_is_gone"),
        Control::ForgetsLiving => Test("forgetting.rs", "request_does_not_forget_a_member_that_came_back"),
        Control::ForgetRequestKept => Test("forgetting.rs", "request_ends_when_the_member_is_back"),
        Control::NotOutranked => Test("liars.rs", "member_comes_back_under_a_later_generation_than_any_lie"),
        Control::ShareReadBack => Test("counters.rs", "adding_to_a_dropped_share_loses_steps"),
        Control::AloneUnready => Test("survivor.rs", "node_that_was_never_ready_waits_for_a_peer"),
        Control::SourcesUnlimited => {
            Test("strangers.rs", "stranger_without_a_limit_of_its_own_keeps_nodes_out")
        }
        Control::NoneGivesWay => Test("strangers.rs", "without_giving_way_silent_members_keep_nodes_out"),
        Control::LargesElsewhere => Test("whole.rs", "batch_with_a_large_value_is_seen_as_a_whole"),
        Control::PartIsWhole => Test("whole.rs", "whole_looks_never_mix_two_batches"),
        Control::OverdueAnew => Test("live/whole.rs", "batch_cut_off_by_a_crash_delays_no_later_change"),
        Control::PartAfterTime => Test("live/late.rs", "batch_with_a_value_on_a_slow_link_is_awaited"),
        Control::GrowthUnchecked => Test("full.rs", "full_store_takes_only_deletes_and_writes_of_others"),
        Control::AwayEndsRuns => Test("ephemeral.rs", "dropping_what_does_not_answer_loses_it"),
        Control::FutureTold => Test("clocks.rs", "node_that_was_ahead_sends_no_future_claims"),
        Control::LeftoversNarrowed => Test("islands.rs", "leftovers_multiply_if_they_are_not_joined"),
        Control::WatchPastFloor => Test("watches.rs", "watch_that_reads_past_the_floor_is_detected"),
        Control::NoLocalHealth => Test("members.rs", "starved_nodes_do_not_take_healthy_ones_for_dead"),
        Control::AnnouncedOnce => Test("reunion.rs", "announcing_once_leaves_members_apart"),
    }
}

/// The seed of the first history that detects a broken rule in this way.
fn first(control: Control, expected: Noticed) -> Option<u64> {
    let run = |seed| notice(|| _ = Plan { control: Some(control), ..Plan::new(seed) }.run());
    (0..SEEDS).find(|seed| run(*seed) == Some(expected))
}

#[test]
fn random_histories_detect_each_control_as_expected() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut wrong = Vec::new();
    for control in Control::ALL {
        let Shown::Random(expected) = shown(control) else { continue };
        let found = first(control, expected);
        println!("{control:?}: {found:?}");
        wrong.extend(found.is_none().then_some((control, expected)));
    }
    assert!(wrong.is_empty(), "(rule, expected): {wrong:#?}");
}

fn read(file: impl AsRef<Path>) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the file is there")
}

/// Whether a file has a test of this name whose body breaks this rule.
fn breaks(source: &str, test: &str, control: Control) -> bool {
    let body =
        source.split_once(&format!("#[test]\nfn {test}()")).and_then(|(_, rest)| rest.split("\n}\n").next());
    body.is_some_and(|body| {
        let names = body.split(|c: char| !(c.is_alphanumeric() || c == ':'));
        names.into_iter().any(|name| name == format!("Control::{control:?}"))
    })
}

#[test]
fn each_control_is_broken_by_the_test_that_is_named() {
    for control in Control::ALL {
        if let Shown::Test(file, test) = shown(control) {
            let text = read(Path::new("tests").join(file));
            assert!(breaks(&text, test, control), "{test} in {file} does not break {control:?}");
        }
    }
    let text = "#[test]\nfn a() {\n    story(Control::OldStart);\n}\n\n#[test]\nfn b() {\n}\n";
    assert!(breaks(text, "a", Control::OldStart));
    assert!(!breaks(text, "a", Control::OldOrigin) && !breaks(text, "b", Control::OldStart));
}

/// The compiler demands an arm of [`shown`] for each control; this demands its place in the list that is run through.
#[test]
fn list_of_all_controls_is_complete() {
    let text = read("../src/controls.rs");
    let variants = text.split_once("pub enum Control {").and_then(|(_, rest)| rest.split("\n}\n").next());
    let is_variant = |line: &&str| line.ends_with(',') && line.trim_start().starts_with(char::is_uppercase);
    let variants: Vec<&str> = variants.expect("the enum is there").lines().filter(is_variant).collect();
    let listed = Control::ALL.map(|control| format!("    {control:?},"));
    assert!(variants.iter().all(|variant| listed.iter().any(|listed| listed == variant)), "{variants:?}");
    assert_eq!(variants.len(), listed.len(), "a control is listed twice");
}
