//! Traffic of a busy cluster: a long flush is sent once, by the tail. Checks find a mismatch meanwhile but start no
//! repair, and still find a difference that no tail will remove. Rows and bytes of repairs are counted.
//!
//! Negative controls, which must fail with every seed: `FluxCounts` counts a mismatch although the tail is in flux,
//! `FluxForEver` suppresses a mismatch as long as the tail has anything left to send.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Control};
use tidings_proptest::{holds_unless, ms, run_until};

const SEEDS: u64 = 10;

/// Frames and bytes of rows that repairs have sent so far, summed over all nodes.
fn repairs(sim: &mut Sim) -> (u64, u64) {
    let traffic: Vec<_> = (0..sim.len()).map(|i| sim.node(i).status().traffic).collect();
    (traffic.iter().map(|it| it.frames).sum(), traffic.iter().map(|it| it.rows_bytes).sum())
}

/// In a linked cluster each writer puts this many rows. Asserts that the tails alone carry them.
fn tails_alone_carry(sim: Sim, nodes: usize, writers: usize, rows: usize, bytes: usize) {
    let mut sim = sim.nodes(nodes);
    sim.run_for(Duration::from_secs(5));
    let (before, sent) = (repairs(&mut sim), sim.bytes_sent());
    let began = sim.now();
    for writer in 0..writers {
        (0..rows).for_each(|i| _ = sim.node(writer).put(format!("{writer}/{i}"), vec![b'x'; bytes]).unwrap());
    }
    sim.assert_converged();
    assert!(sim.now() - began > Duration::from_secs(4), "the flush was too short for this test");
    let after = repairs(&mut sim);
    assert_eq!(after, before, "repairs (frames, bytes of rows) ran beside {sent} bytes of the tails");
    let sent = sim.bytes_sent() - sent;
    let least = (writers * rows * bytes * (nodes - 1)) as u64;
    assert!(sent < least * 3 / 2, "{sent} bytes were sent for {least} bytes of values");
    assert!((0..nodes).all(|i| sim.node(i).len() == writers * rows));
}

#[test]
fn a_long_flush_is_not_repaired_while_it_moves() {
    for nodes in [2, 3] {
        holds_unless(Control::FluxCounts, SEEDS, |sim| {
            tails_alone_carry(sim.rate(100_000), nodes, 1, 300, 3_000);
        });
    }
}

#[test]
fn long_flushes_both_ways_are_not_repaired_while_they_move() {
    holds_unless(Control::FluxCounts, SEEDS, |sim| tails_alone_carry(sim.rate(100_000), 3, 2, 300, 3_000));
}

#[test]
fn fifty_thousand_rows_are_sent_once() {
    holds_unless(Control::FluxCounts, SEEDS, |sim| {
        tails_alone_carry(sim.without_checks().rate(1_000_000), 2, 1, 50_000, 100);
    });
}

/// Node 2 wrote a key that node 1 has and that node 0 can only get from node 1 by repair. Meanwhile the tail from 0 to
/// 1, or that from 1 to 0, always has rows left to send.
fn is_found_amid_a_flush_that_never_ends(sim: Sim, writer: usize) {
    let mut config = Config::lan();
    config.sync_interval = ms(100);
    let mut sim = sim.without_checks().config(config).rate(100_000).nodes(3);
    sim.run_for(Duration::from_secs(5));
    sim.partition(&[0], &[2]);
    let (began, before) = (sim.now(), sim.node(0).status().traffic.frames);
    sim.node(2).put("found", "v").unwrap();
    while sim.node(0).get("found").is_none() {
        let passed = sim.now() - began;
        assert!(passed < Duration::from_secs(60), "the difference was not found in time");
        let is_alone = sim.node(0).status().traffic.frames == before;
        assert!(passed > Duration::from_secs(5) || is_alone, "a repair began within five seconds");
        (0..20).for_each(|i| _ = sim.node(writer).put(format!("{i}"), vec![b'x'; 3_000]).unwrap());
        sim.run_for(ms(50));
    }
}

#[test]
fn a_real_difference_is_found_although_a_flush_never_ends() {
    for writer in [0, 1] {
        holds_unless(Control::FluxForEver, SEEDS, |sim| is_found_amid_a_flush_that_never_ends(sim, writer));
        holds_unless(Control::FluxCounts, SEEDS, |sim| is_found_amid_a_flush_that_never_ends(sim, writer));
    }
}

#[test]
fn stalled_tail_does_not_suppress_a_repair() {
    holds_unless(Control::FluxForEver, SEEDS, |sim| {
        let mut sim = sim.nodes(2);
        sim.run_for(Duration::from_secs(5));
        // One frame takes hours, so that the flush does not end.
        let mut sim = sim.rate(1);
        let before = repairs(&mut sim);
        sim.node(0).put("k", vec![b'x'; 10_000]).unwrap();
        sim.run_for(Duration::from_secs(20));
        assert_ne!(repairs(&mut sim), before, "no repair began although the tail stands still");
    });
}

#[test]
fn a_key_too_large_for_any_frame_holds_up_no_other() {
    let mut config = Config::lan();
    config.value_bytes_max = tidings::limits::VALUE_BYTES_CEILING;
    let mut sim = Sim::new(0).without_checks().config(config).nodes(6);
    sim.run_for(ms(1_000));
    for i in 0..5 {
        sim.partition(&[i], &(0..6).filter(|other| *other != i).collect::<Vec<_>>());
    }
    let value = vec![b'x'; tidings::limits::VALUE_BYTES_CEILING];
    (0..5).for_each(|i| _ = sim.node(i).put("huge", &value).unwrap());
    sim.heal();
    // The five values together are too large to be sent to node 5.
    sim.run_for(Duration::from_secs(10));
    for round in 0..3 {
        (0..6).for_each(|i| _ = sim.node(i).put(format!("small/{i}"), [round]).unwrap());
        let arrived = |sim: &mut Sim, at: usize| {
            (0..6).all(|i| sim.node(at).get(format!("small/{i}")).is_some_and(|it| it.value() == [round]))
        };
        run_until(&mut sim, ms(100), Duration::from_secs(10), |sim| (0..6).all(|at| arrived(sim, at)));
    }
    // After small values replaced the large ones, all nodes converge.
    sim.node(0).put("huge", "no more").unwrap();
    sim.run_for(Duration::from_secs(1));
    (1..5).for_each(|i| _ = sim.node(i).put("huge", format!("nor {i}")).unwrap());
    sim.assert_converged();
}
