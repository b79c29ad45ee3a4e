//! The twelve stories of the replication rules: the cases in which simpler rules lost data, each told with a
//! scripted cluster, and with the simpler rule as proof that the story can fail.
//!
//! A breach shows as a loss where a value is covered and not held, because then everybody drops it. Where a value
//! is held although its delete is covered, the user sees a removed value for a while, until a reconcile with
//! somebody who did merge the delete puts it right.

use std::time::Duration;

use tidings::{Config, Control, Disk, ReplicaEvent, Sim};
use tidings_proptest::{Noticed, with_control};

/// How long a story waits for something that must happen.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A cluster whose nodes have met.
fn met(mut sim: Sim) -> Sim {
    sim.run_for(ms(300));
    sim
}

/// Adds a node that forgets removals at once: whoever misses one has to reconcile with it.
fn forgetful(sim: Sim) -> Sim {
    let mut config = Config::lan();
    config.removals_max = 0;
    sim.config(config).nodes(1).config(Config::lan())
}

/// Lets time pass until something is so.
fn until(sim: &mut Sim, is_so: impl Fn(&mut Sim) -> bool) {
    let end = sim.now() + WAIT_MAX;
    while !is_so(sim) {
        assert!(sim.now() < end, "waited in vain");
        sim.run_for(ms(1));
    }
}

fn holds(sim: &mut Sim, i: usize, key: &str) -> bool {
    sim.node(i).get(key).is_some()
}

/// Heals everything, and demands that all nodes hold these keys and none of those.
fn ends_with(sim: &mut Sim, held: &[&str], removed: &[&str]) {
    sim.heal();
    sim.assert_converged();
    for i in 0..sim.len() {
        held.iter().for_each(|key| assert!(holds(sim, i, key), "node {i} lost {key}"));
        removed.iter().for_each(|key| assert!(!holds(sim, i, key), "node {i} brought {key} back"));
    }
}

/// Two or more nodes that share many rows, of which 0 and `other` have parted: each has written a little alone, and
/// 0 has forgotten a removal, so that their next contact is a reconcile of several round trips, most of whose
/// ranges compare equal at once.
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

/// Story 1. A row needs its context, not only its dots.
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

/// Story 2. Node 2 has never seen what 0 deleted, so both are equal; the removed write arrives while they compare:
/// after its range was settled, or between the digest and the verdict about it.
#[test]
fn removed_write_arriving_during_a_repair_stays_removed() {
    for control in [Control::NoSettled, Control::OldDigest] {
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
            assert!(!holds(&mut sim, 2, "late"), "the session's end left it there");
            ends_with(&mut sim, &[], &["late"]);
        });
    }
}

/// Node 1 learns of a delete by reconcile and has no row for it; node 2 hears of it from node 1 alone.
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

/// Story 3. Who claims everything that its sender has seen disagrees with it from then on.
#[test]
fn tail_claims_nothing_its_sender_learned_by_repair() {
    with_control(Control::TailClaimsAll, Noticed::Loss, |_, sim| {
        let mut sim = delete_known_from_a_reconcile(sim);
        until(&mut sim, |sim| sim.node(1).status().sessions == 0);
        sim.node(1).put("other", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 2, "other"));
        let same_seen = sim.node(1).status().seen == sim.node(2).status().seen;
        assert!(!(same_seen && holds(&mut sim, 2, "k")), "the same is seen and something else held");
        ends_with(&mut sim, &["other"], &["k"]);
    });
}

/// Story 4. Rows that were left out while a node did not relay are not claimed when it does.
#[test]
fn rows_left_out_by_one_flush_are_not_claimed_by_a_fuller_one() {
    with_control(Control::RelayClaimsAll, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes(3));
        sim.delay_traffic(1, 2);
        sim.node(1).put("left out", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 0, "left out"));
        sim.node(0).put("own", "v").unwrap();
        sim.run_for(ms(50));
        sim.relay(0, true);
        sim.node(0).put("relayed", "v").unwrap();
        until(&mut sim, |sim| holds(sim, 2, "relayed"));
        sim.resume_traffic(1, 2);
        ends_with(&mut sim, &["left out", "own", "relayed"], &[]);
    });
}

/// Story 4, the other way about. A node stops to relay in the middle of a flush that takes several frames.
#[test]
fn own_rows_are_sent_when_relaying_stops_in_mid_flush() {
    with_control(Control::OwnFromFrame, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.delay(ms(20)).nodes(3));
        sim.relay(0, true);
        concurrent_writes_in_the_middle_of_a_flush(&mut sim, |sim| sim.relay(0, false));
    });
}

/// Story 5. A remote write moves an own row in the middle of a flush that takes several frames.
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
    // More than the window holds, so that the flush takes several frames.
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

/// Story 6. A link breaks in the middle of a flush, and the next one carries a later flush.
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

/// Story 7. What is written while a session runs lies beyond what the session compares.
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

/// Story 8. An older disk no longer knows what was written under its origin.
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

/// Story 9. What is seen is never ahead of its rows on the disk.
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

/// Story 10. A row from the future is refused; neither its own flush nor the next one, which is empty, claims it.
#[test]
fn a_refused_row_is_not_claimed_by_any_flush_of_its_link() {
    for control in [Control::ClaimDespiteRefusal, Control::DoneAfterRefusal] {
        with_control(control, Noticed::Loss, |_, sim| {
            let mut config = Config::lan();
            config.clock_skew_max = ms(1_000);
            let mut sim = met(sim.config(config).nodes_with_disk(2));
            sim.node(0).put("removed", "v").unwrap();
            sim.assert_converged();
            // Rows are refused from one permitted skew ahead on; from two on the whole link would be.
            sim.run_for(ms(100));
            // A clock that is wrong from the start makes no step; of two nodes neither knows who is right.
            sim.crash(0);
            sim.skew(0, 1_500);
            sim.restart(0);
            sim.run_for(ms(300));
            sim.node(0).put("early", "v").unwrap();
            sim.run_for(ms(50));
            let refused =
                |(i, event): &(usize, ReplicaEvent)| *i == 1 && matches!(event, ReplicaEvent::Refused { .. });
            assert!(sim.events().iter().any(refused));
            // An empty row has no dots to refuse.
            sim.node(0).delete("removed").unwrap();
            sim.run_for(ms(50));
            assert!(!holds(&mut sim, 1, "removed"));
            sim.skew(0, 0);
            ends_with(&mut sim, &["early"], &["removed"]);
        });
    }
}

/// Story 11. A removal row is dropped before it was sent.
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
        assert!(!(holds(&mut sim, 1, "other") && holds(&mut sim, 1, "k")), "the tail went on");
        sim.resume_traffic(1, 0);
        ends_with(&mut sim, &["other"], &["k"]);
    });
}

/// Story 12. A replica that gave up its claims takes nothing more from the links it had.
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

/// Beside the twelve: in the middle of a flush, what was received is covered only because it is held. It stays
/// covered when it is removed, and does not come back from somebody else who relays it late.
#[test]
fn row_deleted_in_mid_flush_stays_deleted() {
    with_control(Control::NoKeep, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.delay(ms(20)).nodes(3));
        sim.node(0).put("before", "v").unwrap();
        sim.assert_converged();
        sim.relay(2, true);
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
        assert!(!holds(&mut sim, 1, "k"), "a relayed frame brought it back");
        ends_with(&mut sim, &["before", "k0", "k299"], &["k"]);
    });
}

/// Beside the twelve: an entry that was lost by corruption looks like a delete to everybody else.
#[test]
fn a_lost_entry_is_found_before_it_spreads_as_a_delete() {
    with_control(Control::NoVerify, Noticed::Loss, |_, sim| {
        let mut sim = met(sim.nodes_with_disk(2));
        for i in 0..100 {
            sim.node(0).put(format!("k{i}"), "v").unwrap();
        }
        sim.run_for(ms(500));
        assert!(sim.damage(0, "k7", false));
        // Something to compare about: the whole leaf is listed.
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

/// The side that sends the last rows of a comparison settles while it sends, and follows from then on as well.
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
