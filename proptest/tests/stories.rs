//! The twelve stories of the replication rules: the cases in which simpler rules lost data. Each runs in a scripted
//! cluster, and again with the simpler rule as its negative control (`with_control`), which the oracle must detect, and
//! without the oracle an assertion about what the user sees.
//!
//! A broken rule shows in one of two ways. If a value is covered and not held, every node drops it: a loss. If a value
//! is held although its delete is covered, the user sees a removed value until a repair with a node that merged the
//! delete.

use std::time::Duration;

use tidings::sim::{Disk, Sim};
use tidings::{Config, Control, PutOptions, ReplicaEvent};
use tidings_proptest::{Noticed, ms, run_until, with_control};

/// Limit for something that must happen in a story.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A cluster whose nodes are linked and compared.
fn met(mut sim: Sim) -> Sim {
    sim.run_for(ms(300));
    sim
}

/// Adds a node that keeps no removals in its log, so that a peer that missed one needs a repair.
fn forgetful(sim: Sim) -> Sim {
    let mut config = Config::lan();
    config.removals_max = 0;
    sim.config(config).nodes(1).config(Config::lan())
}

/// Lets time pass until a condition holds.
fn until(sim: &mut Sim, is_so: impl Fn(&mut Sim) -> bool) {
    run_until(sim, ms(1), WAIT_MAX, is_so);
}

fn holds(sim: &mut Sim, i: usize, key: &str) -> bool {
    sim.node(i).get(key).is_some()
}

/// Heals all partitions and asserts that every node holds the keys of `held` and none of `removed`.
fn ends_with(sim: &mut Sim, held: &[&str], removed: &[&str]) {
    sim.heal();
    sim.assert_converged();
    for i in 0..sim.len() {
        held.iter().for_each(|key| assert!(holds(sim, i, key), "node {i} lost {key}"));
        removed.iter().for_each(|key| assert!(!holds(sim, i, key), "node {i} brought {key} back"));
    }
}

/// Nodes that share 400 rows, of which 0 and `other` are partitioned. Each has written a little meanwhile, and 0 keeps
/// no removals, so that their next contact is a repair of several round trips in which most ranges compare equal at
/// once.
fn parted(sim: Sim, count: usize, other: usize) -> Sim {
    let mut sim = met(forgetful(sim.delay(ms(20))).nodes(count - 1));
    for i in 0..400 {
        sim.node(0).put(format!("k{i}"), "shared").unwrap();
    }
    sim.assert_converged();
    sim.partition(&[0], &[other]);
    sim.node(0).put("k1", "of 0").unwrap();
    sim.node(0).delete("k2").unwrap();
    sim.node(other).put("k3", "of the other").unwrap();
    sim
}

/// Story 1. A row needs its context, not only its dots. Otherwise a row that arrives after its removal comes back.
///
/// Control: `NoContext`.
#[test]
fn removed_write_arriving_after_its_removal_stays_removed() {
    with_control(Control::NoContext, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes(3));
        sim.delay_traffic(1, 2);
        sim.node(1).put("k", "d1").unwrap();
        until(&mut sim, |sim| holds(sim, 0, "k"));
        sim.node(0).delete("k").unwrap();
        sim.run_for(ms(50));
        sim.resume_traffic(1, 2);
        sim.run_for(ms(50));
        assert!(!holds(&mut sim, 2, "k"), "the late frame brought it back");
        ends_with(&mut sim, &[], &["k"]);
    });
}

/// Story 2. Node 2 has not merged what 0 deleted, so that both compare equal. The removed write arrives during the
/// repair: after its range was settled, or between the digest and the verdict about it.
///
/// Controls: `SettledUncovered`, `OldDigest`.
#[test]
fn removed_write_arriving_during_a_repair_stays_removed() {
    for control in [Control::SettledUncovered, Control::OldDigest] {
        with_control(control, Noticed::Loss, |seed, sim| {
            let mut sim = parted(sim, 3, 2);
            sim.delay_traffic(1, 2);
            sim.node(1).put("late", "d1").unwrap();
            until(&mut sim, |sim| holds(sim, 0, "late"));
            sim.node(0).delete("late").unwrap();
            sim.heal();
            until(&mut sim, |sim| sim.node(2).status().sessions > 0);
            sim.run_for(ms(4 * seed));
            sim.resume_traffic(1, 2);
            until(&mut sim, |sim| sim.node(2).status().sessions == 0);
            assert!(!holds(&mut sim, 2, "late"), "the value is still held after the session");
            ends_with(&mut sim, &[], &["late"]);
        });
    }
}

/// A value that was overwritten by one with a lifetime. That one has ended by the clock of node 2 when it arrives, so that
/// node 2 does not take it. It must cover it all the same: node 1 has the overwritten value and no other.
///
/// Control: `DeadUncovered`.
#[test]
fn value_overwritten_by_an_expired_one_stays_removed() {
    with_control(Control::DeadUncovered, Noticed::Loss, |_, sim| {
        let mut sim = sim.rate(100_000).nodes(3);
        sim.partition(&[1], &[2]);
        sim.crash(2);
        sim.skew(2, 3_000);
        sim.restart(2);
        sim.run_for(Duration::from_secs(5));
        // Both know a position in the log of the other one, so that their next link begins with tails.
        sim.node(0).put("first", "v").unwrap();
        sim.node(2).put("second", "v").unwrap();
        sim.run_for(Duration::from_secs(2));
        assert!(holds(&mut sim, 0, "second") && holds(&mut sim, 2, "first"));
        sim.partition(&[0], &[2]);
        sim.node(0).put("k", "v0").unwrap();
        until(&mut sim, |sim| holds(sim, 1, "k"));
        sim.partition(&[0], &[1]);
        sim.node(0).put_with("k", "v1", PutOptions::new().ttl(Duration::from_secs(1))).unwrap();
        sim.node(0).put("large", vec![b'x'; 300_000]).unwrap();
        sim.node(0).put("marker", "v").unwrap();
        sim.run_for(Duration::from_secs(9));
        // Nodes 0 and 2 meet. The end of the flush waits for the large value.
        sim.heal();
        sim.partition(&[1], &[0, 2]);
        until(&mut sim, |sim| holds(sim, 2, "marker"));
        sim.delay_traffic(0, 2);
        assert!(!holds(&mut sim, 2, "k") && !holds(&mut sim, 2, "large"));
        // Meanwhile node 2 repairs with node 1.
        sim.heal();
        sim.partition(&[0], &[1]);
        sim.run_for(Duration::from_secs(4));
        sim.resume_traffic(0, 2);
        until(&mut sim, |sim| holds(sim, 2, "large"));
        // Node 0 is lost before a repair with it could mend anything.
        sim.crash(0);
        sim.run_for(Duration::from_secs(20));
        assert!(sim.is_converged());
        (1..3).for_each(|i| assert!(!holds(&mut sim, i, "k"), "node {i} brought it back"));
    });
}

/// Node 1 learns of a delete by repair and has no row for it. Node 2 is linked with node 1 only.
fn delete_known_from_a_reconcile(sim: Sim) -> Sim {
    let mut sim = met(forgetful(sim).nodes(2));
    sim.node(0).put("k", "d1").unwrap();
    sim.assert_converged();
    sim.partition(&[0], &[1, 2]);
    sim.node(0).delete("k").unwrap();
    sim.heal();
    sim.partition(&[0], &[2]);
    until(&mut sim, |sim| !holds(sim, 1, "k"));
    sim
}

/// Story 3. A tail claims less than the coverage of its sender. Otherwise the receiver covers a delete that it was not
/// sent.
///
/// Control: `TailClaimsAll`.
#[test]
fn tail_claims_nothing_its_sender_learned_by_repair() {
    with_control(Control::TailClaimsAll, Noticed::Loss, |_, sim| {
        let mut sim = delete_known_from_a_reconcile(sim);
        until(&mut sim, |sim| sim.node(1).status().sessions == 0);
        sim.node(1).put("other", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 2, "other"));
        let same_seen = sim.node(1).status().vector_hash == sim.node(2).status().vector_hash;
        assert!(!(same_seen && holds(&mut sim, 2, "k")), "equal vectors, and a different value is held");
        ends_with(&mut sim, &["other"], &["k"]);
    });
}

/// Story 4. Rows that were left out while a node did not forward are not claimed once it forwards.
///
/// Control: `ForwarderClaimsAll`.
#[test]
fn rows_left_out_by_one_flush_are_not_claimed_by_a_fuller_one() {
    with_control(Control::ForwarderClaimsAll, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes(3));
        sim.delay_traffic(1, 2);
        sim.node(1).put("left out", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 0, "left out"));
        sim.node(0).put("own", "v").unwrap();
        sim.run_for(ms(50));
        sim.group(&[&[0, 2]]);
        sim.node(0).put("later", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 2, "later"));
        sim.resume_traffic(1, 2);
        ends_with(&mut sim, &["left out", "own", "later"], &[]);
    });
}

/// Story 4, in reverse. A node stops forwarding in the middle of a flush of several frames.
///
/// Control: `OwnFromFrame`.
#[test]
fn own_rows_are_sent_when_forwarding_stops_in_mid_flush() {
    with_control(Control::OwnFromFrame, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.delay(ms(20)).nodes(3));
        sim.group(&[&[0, 2]]);
        concurrent_writes_in_the_middle_of_a_flush(&mut sim, |sim| sim.group(&[]));
    });
}

/// Story 5. A remote write moves an own row to the end of the log in the middle of a flush of several frames.
///
/// Control: `OwnFromFrame`.
#[test]
fn own_row_moved_in_mid_flush_is_still_sent() {
    with_control(Control::OwnFromFrame, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.delay(ms(20)).nodes(3));
        concurrent_writes_in_the_middle_of_a_flush(&mut sim, |_| ());
    });
}

fn concurrent_writes_in_the_middle_of_a_flush(sim: &mut Sim, meanwhile: impl Fn(&mut Sim)) {
    sim.node(0).put("first", "v").unwrap();
    sim.node(2).put("first", "w").unwrap();
    sim.run_for(Duration::from_secs(2));
    sim.partition(&[0], &[1, 2]);
    // More bytes than the window, so that the flush takes several frames.
    for i in 0..300 {
        sim.node(0).put(format!("k{i:03}"), vec![b'x'; 3_000]).unwrap();
        sim.node(2).put(format!("k{:03}", 299 - i), "concurrent").unwrap();
    }
    sim.heal();
    until(sim, |sim| sim.node(2).get("k000").is_some_and(|entry| entry.conflicts().count() == 1));
    meanwhile(sim);
    sim.assert_converged();
    for (i, key) in (0..3).flat_map(|i| (0..300).map(move |k| (i, format!("k{k:03}")))) {
        assert_eq!(sim.node(i).get(&key).unwrap().conflicts().count(), 1, "node {i} lost a write of {key}");
    }
}

/// Story 6. A link breaks in the middle of a flush, and the next link carries a later flush.
///
/// Control: `CursorKept`.
#[test]
fn frames_of_two_flushes_are_never_fitted_together() {
    with_control(Control::CursorKept, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes(2));
        sim.node(0).put("before", "v").unwrap();
        sim.assert_converged();
        sim.delay_traffic(0, 1);
        for i in 0..100 {
            sim.node(0).put(format!("k{i}"), vec![b'x'; 3_000]).unwrap();
        }
        sim.run_for(ms(5));
        sim.break_between(0, 1);
        sim.resume_traffic(0, 1);
        sim.node(0).put("after", "v").unwrap();
        ends_with(&mut sim, &["before", "k0", "k99", "after"], &[]);
    });
}

/// Story 7. Writes made during a session are not part of what the session compares.
///
/// Controls: `EndVector`, `EndHead`.
#[test]
fn repair_claims_only_what_the_peer_had_at_its_start() {
    for control in [Control::EndVector, Control::EndHead] {
        with_control(control, Noticed::Loss, |_, sim| {
            let mut sim = parted(sim, 2, 1);
            sim.heal();
            until(&mut sim, |sim| sim.node(1).status().sessions > 0);
            let mut written = Vec::new();
            while sim.node(1).status().sessions > 0 {
                written.push(format!("meanwhile {}", written.len()));
                sim.node(0).put(written.last().unwrap(), "v").unwrap();
                sim.run_for(ms(2));
            }
            let written: Vec<&str> = written.iter().map(String::as_str).collect();
            ends_with(&mut sim, &written, &[]);
        });
    }
}

/// Story 8. An older disk lacks writes that were made under its origin, so that a restart must take a new origin.
///
/// Control: `OldOrigin`.
#[test]
fn restart_with_an_older_disk_loses_no_own_write() {
    with_control(Control::OldOrigin, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes_with_disk(3));
        sim.node(0).put("early", "v").unwrap();
        sim.assert_converged();
        sim.partition(&[0], &[2]);
        sim.node(0).put("lost", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 1, "lost"));
        sim.crash(0);
        sim.partition(&[1], &[0, 2]);
        sim.restart_with(0, Disk::Older(1));
        assert!(!holds(&mut sim, 0, "lost"));
        sim.node(0).put("late", "v").unwrap();
        ends_with(&mut sim, &["early", "lost", "late"], &[]);
    });
}

/// Story 9. On the disk, coverage is never ahead of its rows.
///
/// Control: `SeenAhead`.
#[test]
fn crash_between_two_transactions_loses_nothing() {
    with_control(Control::SeenAhead, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes_with_disk(2));
        sim.node(0).put("first", "v").unwrap();
        sim.assert_converged();
        sim.node(0).put("second", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 1, "second"));
        sim.restart_with(1, Disk::Older(1));
        ends_with(&mut sim, &["first", "second"], &[]);
    });
}

/// Story 10. A row from the future is refused. Neither the end of its own flush nor that of the next flush, which is
/// empty, claims it.
///
/// Controls: `ClaimDespiteRefusal`, `DoneAfterRefusal`.
#[test]
fn a_refused_row_is_not_claimed_by_any_flush_of_its_link() {
    for control in [Control::ClaimDespiteRefusal, Control::DoneAfterRefusal] {
        with_control(control, Noticed::Loss, |_, sim| {
            let mut config = Config::lan();
            config.clock_skew_max = ms(1_000);
            let mut sim = met(sim.config(config).nodes_with_disk(2));
            sim.node(0).put("removed", "v").unwrap();
            sim.assert_converged();
            // A row is refused if it is more than `clock_skew_max` ahead. From twice that on the link would end.
            sim.run_for(ms(100));
            // The clock is wrong from the start, so that there is no step, and of two nodes neither has a majority.
            sim.crash(0);
            sim.skew(0, 1_500);
            sim.restart(0);
            sim.run_for(ms(300));
            sim.node(0).put("early", "v").unwrap();
            sim.run_for(ms(50));
            let refused =
                |(i, event): &(usize, ReplicaEvent)| *i == 1 && matches!(event, ReplicaEvent::Refused { .. });
            assert!(sim.events().iter().any(refused));
            // The row of a delete has no dots, so that nothing in it is refused.
            sim.node(0).delete("removed").unwrap();
            sim.run_for(ms(50));
            assert!(!holds(&mut sim, 1, "removed"));
            sim.skew(0, 0);
            ends_with(&mut sim, &["early"], &["removed"]);
        });
    }
}

/// Story 11. The row of a removal is dropped from the log before it was sent.
///
/// Control: `FloorPassed`.
#[test]
fn a_tail_stops_where_the_floor_has_passed_its_cursor() {
    with_control(Control::FloorPassed, Noticed::Loss, |_, sim| {
        let mut sim = met(forgetful(sim).nodes(1));
        sim.node(0).put("k", "d1").unwrap();
        until(&mut sim, |sim| holds(sim, 1, "k"));
        sim.delay_traffic(1, 0);
        sim.node(0).delete("k").unwrap();
        sim.node(0).put("other", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 1, "other") || sim.node(0).status().sessions > 0);
        assert!(!(holds(&mut sim, 1, "other") && holds(&mut sim, 1, "k")), "the tail went on past the floor");
        sim.resume_traffic(1, 0);
        ends_with(&mut sim, &["other"], &["k"]);
    });
}

/// Story 12. A replica that gave up its claims after damage accepts nothing more over its earlier links.
///
/// Control: `LinksKept`.
#[test]
fn links_are_broken_before_claims_are_given_up() {
    with_control(Control::LinksKept, Noticed::Loss, |_, sim| {
        let mut config = Config::lan();
        config.scrub_interval = Duration::from_secs(1);
        let mut sim = met(sim.config(config).nodes(2));
        sim.node(0).put("kept", "v").unwrap();
        sim.run_for(ms(500));
        assert!(sim.damage(1, "kept", false));
        for _ in 0..40 {
            sim.run_for(ms(150));
            sim.node(0).put("other", "v").unwrap();
            sim.run_for(ms(30));
            if sim.events().iter().any(|(_, event)| *event == ReplicaEvent::Damaged) {
                break;
            }
        }
        ends_with(&mut sim, &["kept", "other"], &[]);
    });
}

/// Not one of the twelve. In the middle of a flush, a received row is covered only because it is held. It must stay
/// covered when it is removed, so that a forwarder that sends it late does not bring it back.
///
/// Control: `RemovedUncovered`.
#[test]
fn row_deleted_in_mid_flush_stays_deleted() {
    with_control(Control::RemovedUncovered, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.delay(ms(20)).nodes(3));
        sim.node(0).put("before", "v").unwrap();
        sim.assert_converged();
        sim.group(&[&[1, 2]]);
        sim.delay_traffic(2, 1);
        sim.partition(&[0], &[1]);
        sim.node(0).put("k", "d1").unwrap();
        (0..300).for_each(|i| _ = sim.node(0).put(format!("k{i}"), vec![b'x'; 3_000]).unwrap());
        until(&mut sim, |sim| holds(sim, 2, "k"));
        sim.heal();
        until(&mut sim, |sim| holds(sim, 1, "k"));
        sim.node(1).delete("k").unwrap();
        sim.resume_traffic(2, 1);
        sim.run_for(ms(50));
        assert!(!holds(&mut sim, 1, "k"), "a forwarded frame brought it back");
        ends_with(&mut sim, &["before", "k0", "k299"], &["k"]);
    });
}

/// Not one of the twelve. An entry that was lost by corruption looks like a delete to every other node.
///
/// Control: `NoVerify`.
#[test]
fn a_lost_entry_is_found_before_it_spreads_as_a_delete() {
    with_control(Control::NoVerify, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes_with_disk(2));
        for i in 0..100 {
            sim.node(0).put(format!("k{i}"), "v").unwrap();
        }
        sim.run_for(ms(500));
        assert!(sim.damage(0, "k7", false));
        // New rows make the ranges differ, so that the damaged leaf is listed.
        sim.partition(&[0], &[1]);
        for i in 100..200 {
            sim.node(1).put(format!("k{i}"), "v").unwrap();
        }
        sim.run_for(ms(50));
        sim.restart_with(1, Disk::Latest);
        ends_with(&mut sim, &["k7"], &[]);
        assert_eq!((sim.node(0).len(), sim.node(1).len()), (200, 200));
    });
}

/// The side that sends the last rows of a repair settles while it sends, and then takes the tail of its peer at once.
/// The sync interval is an hour, so that no check can help.
#[test]
fn a_donor_follows_its_joiner_as_soon_as_the_joiner_follows_it() {
    let mut config = Config::lan();
    config.sync_interval = Duration::from_secs(3_600);
    for seed in 0..20 {
        let mut sim = Sim::new(seed).config(config.clone()).nodes(2);
        sim.partition(&[0], &[1]);
        for i in 0..200 {
            sim.node(0).put(format!("k{i}"), "v").unwrap();
        }
        sim.heal();
        sim.run_for(Duration::from_secs(2));
        assert_eq!(sim.node(1).len(), 200);
        sim.node(1).put("from the joiner", "v").unwrap();
        sim.run_for(ms(50));
        assert!(sim.node(0).get("from the joiner").is_some(), "seed {seed}");
    }
}
