//! Wall clocks that jump, are wrong from the start, or return to the right time. Tested in the simulator: no value of
//! other nodes is lost, and local writes are refused with `WriteError::Clock` while the clock is in doubt.
//!
//! Negative controls: `DropsInDoubt` drops expired values although the clock is in doubt, `FutureTold` sends claims
//! that were made while the clock was ahead.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Control, PutOptions, ReplicaEvent, WriteError};
use tidings_proptest::{Noticed, with_control};

const HOUR_MS: i64 = 3_600_000;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lasting(seconds: u64) -> PutOptions {
    PutOptions::new().ttl(Duration::from_secs(seconds))
}

/// Three nodes that hold a value for an hour.
fn with_value(sim: Sim) -> Sim {
    let mut sim = sim.config(Config::lan()).nodes_with_disk(3);
    sim.run_for(seconds(10));
    sim.node(1).put_with("k", "v", lasting(3_600)).unwrap();
    sim.assert_converged();
    sim.run_for(seconds(1));
    sim
}

fn all_hold(sim: &mut Sim, key: &str) {
    (0..sim.len()).for_each(|i| assert!(sim.node(i).get(key).is_some(), "node {i} lost {key}"));
}

/// Sets the clock of the first node right, and asserts that every node still holds the value.
fn comes_right_and_all_hold_it(sim: &mut Sim) {
    sim.skew(0, 0);
    sim.run_for(seconds(30));
    sim.assert_converged();
    all_hold(sim, "k");
}

fn all_write(sim: &mut Sim) {
    for i in 0..sim.len() {
        sim.node(i).put(format!("of {i}"), "v").unwrap();
    }
    sim.assert_converged();
    (0..sim.len()).for_each(|i| all_hold(sim, &format!("of {i}")));
}

#[test]
fn a_clock_that_jumps_ahead_for_a_while_expires_nothing() {
    with_control(Control::DropsInDoubt, Noticed::Loss, |_, sim| {
        let mut sim = with_value(sim);
        sim.skew(0, 2 * HOUR_MS);
        sim.run_for(seconds(12));
        comes_right_and_all_hold_it(&mut sim);
    });
}

#[test]
fn writes_are_refused_while_the_clock_is_in_doubt() {
    for ahead in [2 * HOUR_MS, -2 * HOUR_MS] {
        let mut sim = with_value(Sim::new(1));
        sim.skew(0, ahead);
        let off = sim.node(0).put("k", "w");
        assert!(matches!(off, Err(WriteError::Clock { off }) if off > seconds(7_000)), "{off:?}");
        sim.run_for(seconds(120));
        assert!(sim.node(0).delete("k").is_err(), "a clock that peers contradict stays in doubt");
        assert!(sim.node(0).status().clock_off.is_some_and(|off| off > seconds(7_000)));
        sim.node(1).put("other", "v").unwrap();
        sim.skew(0, 0);
        all_write(&mut sim);
        all_hold(&mut sim, "k");
        let events = sim.events();
        let of = |event: &dyn Fn(&ReplicaEvent) -> bool| {
            events.iter().filter(|(i, e)| *i == 0 && event(e)).count()
        };
        assert_eq!(of(&|event| matches!(event, ReplicaEvent::ClockInDoubt { .. })), 1);
        assert_eq!(of(&|event| matches!(event, ReplicaEvent::ClockTrusted)), 1);
        assert!(
            !events.iter().any(|(i, event)| *i != 0 && matches!(event, ReplicaEvent::ClockInDoubt { .. }))
        );
    }
}

#[test]
fn a_clock_that_is_wrong_from_the_start_expires_nothing() {
    with_control(Control::DropsInDoubt, Noticed::Loss, |_, sim| {
        let mut sim = with_value(sim);
        sim.crash(0);
        sim.skew(0, 2 * HOUR_MS);
        sim.restart(0);
        sim.run_for(seconds(30));
        comes_right_and_all_hold_it(&mut sim);
    });
}

#[test]
fn majority_of_nodes_puts_a_wrong_clock_in_doubt() {
    let mut sim = with_value(Sim::new(2));
    sim.crash(0);
    sim.skew(0, 2 * HOUR_MS);
    sim.restart(0);
    sim.run_for(seconds(30));
    assert!(matches!(sim.node(0).put("k", "w"), Err(WriteError::Clock { .. })));
    sim.skew(0, 0);
    sim.run_for(seconds(10));
    all_write(&mut sim);
}

#[test]
fn restart_recovers_from_stamps_of_the_future() {
    let mut sim = with_value(Sim::new(3));
    sim.partition(&[0], &[1, 2]);
    sim.crash(0);
    sim.skew(0, 2 * HOUR_MS);
    sim.restart(0);
    sim.node(0).put("early", "v").unwrap();
    sim.run_for(seconds(1));
    sim.skew(0, 0);
    sim.run_for(seconds(70));
    // Stamps never go back within a run, so that every later stamp of this run would be ahead as well.
    assert!(matches!(sim.node(0).put("k", "w"), Err(WriteError::Clock { off }) if off > seconds(7_000)));
    sim.crash(0);
    sim.restart(0);
    sim.node(0).put("early", "w").unwrap();
    sim.node(0).put("late", "v").unwrap();
    sim.heal();
    sim.assert_converged();
    for i in 0..3 {
        assert_eq!(sim.node(i).get("early").unwrap().value(), b"w");
        assert!(sim.node(i).get("late").is_some() && sim.node(i).get("k").is_some());
    }
}

#[test]
fn node_that_was_ahead_sends_no_future_claims() {
    for control in [None, Some(Control::FutureTold)] {
        let mut sim = with_value(Sim::new(9).broken(control));
        sim.partition(&[0], &[1, 2]);
        sim.crash(0);
        sim.skew(0, 2 * HOUR_MS);
        sim.restart(0);
        sim.node(0).put("early", "v").unwrap();
        sim.run_for(seconds(1));
        sim.skew(0, 0);
        sim.run_for(seconds(1));
        sim.heal();
        sim.run_for(seconds(30));
        sim.node(1).put("late", "v").unwrap();
        sim.run_for(seconds(5));
        let refused = |(_, event): &(usize, ReplicaEvent)| matches!(event, ReplicaEvent::ClaimRefused { .. });
        let is_refused = sim.events().iter().any(refused);
        assert_eq!(is_refused, control.is_some(), "future claims are refused with {control:?}");
        assert!(is_refused || sim.node(0).get("late").is_some());
    }
}

/// All clocks were two hours ahead, as with a bad time server, and writes were exchanged meanwhile.
#[test]
fn deletes_by_wrong_clocks_stay_deleted() {
    let mut sim = Sim::new(8).config(Config::lan()).nodes_with_disk(3).without_checks();
    (0..3).for_each(|i| sim.skew(i, 2 * HOUR_MS));
    sim.run_for(seconds(100));
    (0..20).for_each(|i| _ = sim.node(i % 3).put(format!("k{i}"), "v").unwrap());
    sim.assert_converged();
    sim.run_for(seconds(1));
    sim.crash(2);
    (0..10).for_each(|i| _ = sim.node(0).delete(format!("k{i}")).unwrap());
    sim.run_for(seconds(1));
    (0..2).for_each(|i| sim.crash(i));
    (0..3).for_each(|i| sim.skew(i, 0));
    (0..3).for_each(|i| sim.restart(i));
    sim.run_for(seconds(10));
    (0..3).for_each(|i| _ = sim.node(i).put(format!("of {i}"), "v").unwrap());
    sim.run_for(seconds(100));
    for i in 0..3 {
        (0..3).for_each(|other| assert!(sim.node(other).get(format!("of {i}")).is_some(), "{i} at {other}"));
    }
    sim.run_for(Duration::from_millis(HOUR_MS as u64 * 2 + 120_000));
    sim.assert_converged();
    for i in 0..3 {
        (0..10).for_each(|k| assert!(sim.node(i).get(format!("k{k}")).is_none(), "k{k} is back at {i}"));
        (10..20).for_each(|k| assert!(sim.node(i).get(format!("k{k}")).is_some(), "k{k} is lost at {i}"));
    }
}

#[test]
fn clock_step_of_all_nodes_is_accepted() {
    // The oracle lets values expire by the true time, which the nodes do not have here.
    let mut sim = with_value(Sim::new(4)).without_checks();
    (0..3).for_each(|i| sim.skew(i, 2 * HOUR_MS));
    sim.run_for(seconds(30));
    assert!(sim.node(0).put("other", "v").is_err());
    sim.run_for(seconds(60));
    all_write(&mut sim);
    sim.run_for(seconds(60));
    assert_eq!(sim.node(2).len(), 3, "the expired value was not dropped");
}

#[test]
fn lone_node_accepts_a_step_and_two_nodes_never_doubt() {
    let mut sim = Sim::new(5).nodes(1);
    sim.node(0).put_with("k", "v", lasting(10)).unwrap();
    sim.skew(0, HOUR_MS);
    assert!(sim.node(0).put("other", "v").is_err());
    sim.run_for(seconds(62));
    sim.node(0).put("other", "v").unwrap();
    assert_eq!(sim.node(0).len(), 1);

    let mut sim = Sim::new(6).nodes(1);
    sim.run_for(seconds(1));
    sim.skew(0, -HOUR_MS);
    sim.run_for(seconds(100));
    sim = sim.nodes(1);
    sim.run_for(seconds(100));
    (0..2).for_each(|i| _ = sim.node(i).put("k", "v").unwrap());
}

/// Number of disagreements that the nodes reported.
fn disagreements(sim: &mut Sim) -> usize {
    let events = sim.events();
    events.iter().filter(|(_, event)| matches!(event, ReplicaEvent::Disagreement { .. })).count()
}

#[test]
fn different_expiry_instants_are_no_disagreement() {
    for seed in 0..200 {
        let mut config = Config::lan();
        config.clock_skew_max = seconds(1);
        let mut sim = Sim::new(seed).config(config).nodes(3);
        sim.skew(2, -500);
        for i in 0..60 {
            let key = format!("k{}", i % 7);
            sim.node(i % 3).put_with(key, "v", lasting(1 + i as u64 % 3)).unwrap();
            sim.run_for(Duration::from_millis(300));
            if i % 20 == 19 {
                sim.run_for(seconds(12));
            }
        }
        sim.run_for(seconds(20));
        assert_eq!(disagreements(&mut sim), 0, "seed {seed}");
    }
}

/// The entry and its part of the digest are lost together, so that no leaf is damaged and only the comparison with the
/// peer can show it.
#[test]
fn entry_lost_with_its_digest_is_reported() {
    let mut sim = Sim::new(7).nodes(2);
    (0..20).for_each(|i| _ = sim.node(0).put(format!("k{i}"), "v").unwrap());
    sim.assert_converged();
    sim.run_for(seconds(5));
    assert_eq!(disagreements(&mut sim), 0);
    let mut sim = sim.without_checks();
    assert!(sim.misplace(1, "k7"));
    sim.run_for(seconds(20));
    assert!(disagreements(&mut sim) > 0);
}
