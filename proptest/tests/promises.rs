//! Promises to the user, one scripted cluster each: deletes, concurrent writes, expiry, repair of damage, refused
//! writes and typed errors. Each test asserts what a user reads in the end. The rules behind the promises are tested in
//! `stories.rs`, with negative controls.

use std::time::Duration;

use tidings::limits::{BATCH_WRITES_MAX, KEY_BYTES_MAX};
use tidings::sim::{Disk, Sim};
use tidings::{Config, OnlyIf, PutOptions, ReplicaEvent, WriteError};
use tidings_proptest::ms;

fn pair(seed: u64) -> Sim {
    let mut sim = Sim::new(seed).nodes_with_disk(2);
    sim.run_for(ms(100));
    sim
}

#[test]
fn a_changed_value_is_found_by_the_scrub_and_fetched_anew() {
    let mut config = Config::lan();
    config.scrub_interval = Duration::from_secs(1);
    let mut sim = Sim::new(3).config(config).nodes(2);
    sim.run_for(ms(100));
    sim.node(0).put("k", "right").unwrap();
    sim.run_for(ms(500));
    assert!(sim.damage(1, "k", true));
    sim.run_for(Duration::from_secs(5));
    assert!(sim.events().iter().any(|(node, event)| *node == 1 && *event == ReplicaEvent::Damaged));
    sim.assert_converged();
    assert_eq!(sim.node(1).get("k").unwrap().value(), b"right");
}

#[test]
fn a_delete_survives_the_return_of_an_old_backup() {
    let mut sim = pair(5);
    sim.node(0).put("gone", "v").unwrap();
    sim.run_for(ms(500));
    for i in 0..5 {
        sim.node(1).put("other", format!("{i}")).unwrap();
        sim.run_for(ms(50));
    }
    sim.crash(1);
    sim.node(0).delete("gone").unwrap();
    sim.run_for(Duration::from_secs(3_600));
    sim.restart_with(1, Disk::Older(2));
    sim.assert_converged();
    assert!(sim.node(0).get("gone").is_none() && sim.node(1).get("gone").is_none());
    assert_eq!(sim.node(0).status().extra_contexts, 0);
}

#[test]
fn a_write_that_a_delete_had_not_seen_survives_it() {
    let mut sim = pair(6);
    sim.node(0).put("k", "old").unwrap();
    sim.run_for(ms(500));
    sim.partition(&[0], &[1]);
    sim.node(0).delete("k").unwrap();
    sim.node(1).put("k", "new").unwrap();
    sim.heal();
    sim.assert_converged();
    assert_eq!(sim.node(0).get("k").unwrap().value(), b"new");
}

#[test]
fn an_add_wins_over_a_concurrent_remove() {
    let mut sim = pair(7);
    sim.node(0).set("s").add("x").unwrap();
    sim.run_for(ms(500));
    sim.partition(&[0], &[1]);
    sim.node(0).set("s").remove("x").unwrap();
    sim.node(1).set("s").add("x").unwrap();
    sim.heal();
    sim.assert_converged();
    assert!(sim.node(0).set("s").contains("x"));
}

#[test]
fn expired_values_vanish_on_every_node() {
    let mut sim = pair(8);
    sim.node(0).put_with("k", "v", PutOptions::new().ttl(ms(800))).unwrap();
    sim.run_for(ms(500));
    assert!(sim.node(1).get("k").unwrap().expires_at().is_some());
    sim.run_for(ms(400));
    assert!(sim.node(0).get("k").is_none() && sim.node(1).get("k").is_none());
    sim.run_for(Duration::from_secs(20));
    assert_eq!((sim.node(0).len(), sim.node(1).len()), (0, 0));
}

#[test]
fn writes_from_the_future_are_refused_and_come_again_later() {
    let mut config = Config::lan();
    config.clock_skew_max = ms(1_000);
    let mut sim = Sim::new(9).config(config).nodes(2);
    sim.run_for(ms(100));
    // A row is refused if its stamp is more than `clock_skew_max` ahead. From twice that on the link ends, see the next
    // test.
    // The clock is wrong from the start, so that there is no step, and of two nodes neither has a majority against it.
    sim.crash(0);
    sim.skew(0, 1_900);
    sim.restart(0);
    sim.run_for(ms(300));
    sim.node(0).put("early", "v").unwrap();
    sim.run_for(ms(500));
    assert!(sim.node(1).get("early").is_none());
    assert!(
        sim.events().iter().any(|(node, event)| *node == 1 && matches!(event, ReplicaEvent::Refused { .. }))
    );
    // Other keys of that node are not delayed for ever, and the refused row arrives once its time has come.
    sim.skew(0, 0);
    sim.assert_converged();
    assert!(sim.node(1).get("early").is_some());
}

#[test]
fn event_of_a_refused_row_names_the_peer() {
    for has_members in [false, true] {
        let mut config = Config::lan();
        config.clock_skew_max = ms(1_000);
        let sim = Sim::new(9).config(config);
        let mut sim = if has_members { sim.seeds(&[0]) } else { sim }.nodes(2);
        sim.run_for(ms(100));
        // The clock is wrong from the start, so that there is no step.
        sim.crash(0);
        sim.skew(0, 1_900);
        sim.restart(0);
        sim.run_for(ms(300));
        let stamp = sim.node(0).put("early", "v").unwrap().stamp().unwrap();
        sim.run_for(ms(500));
        let named = sim.events().into_iter().find_map(|(_, event)| match event {
            ReplicaEvent::Refused { peer, key, .. } if key == "early" => Some(peer),
            _ => None,
        });
        let named = named.expect("the row is refused");
        // The text of a stamp ends with the run that wrote.
        assert!(if has_members { named == "n0" } else { stamp.to_string().ends_with(&named) }, "{named}");
    }
}

#[test]
fn claims_of_the_far_future_end_the_link() {
    let mut config = Config::lan();
    config.clock_skew_max = ms(1_000);
    let mut sim = Sim::new(9).config(config).nodes(2);
    sim.run_for(ms(100));
    // The clock is wrong from the start, so that there is no step, and of two nodes neither has a majority against it.
    sim.crash(0);
    sim.skew(0, 20_000);
    sim.restart(0);
    sim.run_for(ms(300));
    sim.node(0).put("early", "v").unwrap();
    sim.run_for(ms(500));
    assert!(sim.node(1).get("early").is_none());
    let is_refused = |(node, event): &(usize, ReplicaEvent)| {
        *node == 1 && matches!(event, ReplicaEvent::ClaimRefused { .. })
    };
    assert!(sim.events().iter().any(is_refused));
    sim.skew(0, 0);
    sim.node(1).put("other", "v").unwrap();
    sim.assert_converged();
    assert!(sim.node(1).get("early").is_some() && sim.node(0).get("other").is_some());
}

#[test]
fn values_at_the_size_limit_travel_and_larger_are_refused() {
    let mut config = Config::lan();
    config.value_bytes_max = 16 << 20;
    let mut sim = Sim::new(10).config(config).nodes(2);
    sim.run_for(ms(100));
    let value = vec![7; 16 << 20];
    sim.node(0).put("large", &value).unwrap();
    sim.partition(&[0], &[1]);
    sim.node(1).put("large", &value[1..]).unwrap();
    sim.node(0).put("small", "v").unwrap();
    sim.heal();
    sim.assert_converged();
    assert_eq!(sim.node(1).get("large").unwrap().conflicts().count(), 1);
    let limit = 16 << 20;
    let refused = sim.node(0).put("large", vec![7; limit + 1]);
    assert_eq!(refused, Err(WriteError::ValueTooLarge { bytes: limit + 1, limit }));
}

#[test]
fn bad_input_is_a_typed_error_and_writes_nothing() {
    let sim = pair(11);
    let node = sim.node(0);
    assert_eq!(node.put("", "v"), Err(WriteError::KeyEmpty));
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(node.put(&long, "v"), Err(WriteError::KeyTooLong { bytes: KEY_BYTES_MAX + 1 }));
    node.put(&long[1..], "v").unwrap();
    let bad = node.batch().put("fine", "v").delete("").commit();
    assert_eq!(bad, Err(WriteError::KeyEmpty));
    assert!(node.get("fine").is_none());
    let many = (0..=BATCH_WRITES_MAX).fold(node.batch(), |batch, _| batch.put("k", "v"));
    assert_eq!(many.commit(), Err(WriteError::BatchTooLarge { writes: BATCH_WRITES_MAX + 1 }));
    let stamp = node.put("once", "v").unwrap().stamp().unwrap();
    let again = node.put_with("once", "w", PutOptions::new().only_if(OnlyIf::Absent));
    assert_eq!(again, Err(WriteError::Condition { current: Some(stamp) }));
    node.put_with("once", "w", PutOptions::new().only_if(OnlyIf::Stamp(stamp))).unwrap();
    node.counter("c").add(i64::MAX).unwrap();
    assert_eq!(node.counter("c").add(1), Err(WriteError::CounterOverflow));
}

/// Until its first session each node hashes under a hash key of its own, and a check does not say under which.
#[test]
fn a_new_cluster_reports_no_disagreement() {
    for seed in 0..20 {
        let mut sim = Sim::new(seed).nodes(2);
        sim.run_for(ms(300));
        sim.node(0).put("k", "v").unwrap();
        sim.assert_converged();
        let disagrees =
            |(_, event): &(usize, ReplicaEvent)| matches!(event, ReplicaEvent::Disagreement { .. });
        assert!(!sim.events().iter().any(disagrees), "seed {seed}");
    }
}
