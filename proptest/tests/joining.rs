//! Joining: a blank replica takes rows from one donor at a time. A donor that crashes or stalls is replaced, and rows
//! that have arrived are not sent again. The tests count the bytes of rows that repairs move.
//!
//! Negative controls, which must fail with every seed: `ManyDonors` takes rows from every peer at once, `DonorKept`
//! waits for a stalled donor as long as for any session, `KnownIsCaughtUp` counts as caught up with a peer whose log it
//! knows from an earlier run, `JoinersCaughtUp` counts as caught up with one that joins as well.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Control, JoinProgress};
use tidings_proptest::{holds_unless, ms};

const SEEDS: u64 = 5;
const KEYS: usize = 4_000;
/// A key of 20 bytes with a value of 104.
const ROW_BYTES: u64 = 124;
/// Overhead of a row on the wire, at most.
const WIRE_BYTES: u64 = 40;

fn key(i: usize) -> String {
    format!("join/{i:015}")
}

/// Bytes of rows that repairs have moved so far, summed over the nodes that are up.
fn rows_bytes(sim: &mut Sim) -> u64 {
    let up: Vec<usize> = (0..sim.len()).filter(|i| sim.is_up(*i)).collect();
    up.into_iter().map(|i| sim.node(i).status().traffic.rows_bytes).sum()
}

/// A cluster whose nodes hold all rows, except the last one, which is down.
fn full_but_one(sim: Sim, nodes: usize) -> Sim {
    let mut sim = sim.without_checks().rate(400_000).nodes(nodes);
    sim.crash(nodes - 1);
    for i in 0..KEYS {
        sim.node(i % (nodes - 1)).put(key(i), vec![b'v'; 104]).unwrap();
    }
    sim.run_for(Duration::from_secs(30));
    assert!((0..nodes - 1).all(|i| sim.node(i).len() == KEYS));
    sim
}

/// Runs until a node is ready. Returns every change of its join progress.
fn watch_joining(
    sim: &mut Sim,
    i: usize,
    mut each: impl FnMut(&mut Sim, &JoinProgress),
) -> Vec<JoinProgress> {
    let began = sim.now();
    let mut steps = Vec::new();
    loop {
        let step = sim.node(i).joining();
        if steps.last() != Some(&step) {
            steps.push(step.clone());
        }
        if step.is_ready {
            return steps;
        }
        each(sim, &step);
        assert!(sim.now() - began < Duration::from_secs(120), "the node did not join in time: {step:?}");
        sim.run_for(ms(5));
    }
}

#[test]
fn one_donor_at_a_time_feeds_a_joiner() {
    holds_unless(Control::ManyDonors, SEEDS, |sim| {
        let mut sim = full_but_one(sim, 5);
        let before = rows_bytes(&mut sim);
        sim.restart(4);
        let steps = watch_joining(&mut sim, 4, |_, _| {});
        sim.assert_converged();
        let moved = rows_bytes(&mut sim) - before;
        let once = KEYS as u64 * (ROW_BYTES + WIRE_BYTES);
        assert!(moved < once * 21 / 20, "{moved} bytes of rows moved, {once} would do");
        let fed: Vec<&JoinProgress> = steps.iter().filter(|step| step.donor.is_some()).collect();
        assert!(fed.len() > 5, "too few steps of progress: {steps:?}");
        assert!(fed.windows(2).all(|pair| pair[0].entries_done <= pair[1].entries_done));
        assert!(fed.iter().all(|step| {
            step.entries_expected == KEYS as u64 && step.bytes_expected == fed[0].bytes_expected
        }));
        let last = steps.last().unwrap();
        assert_eq!((last.entries_done, last.entries_expected), (KEYS as u64, KEYS as u64));
        assert_eq!((last.bytes_done, last.donor.as_ref()), (last.bytes_expected, None));
    });
}

/// Restarts one of five nodes with its disk after the others have written. `old` names the keys that they held before.
/// Asserts that the node is ready when it has everything, for at most so many percent of the bytes of the rows.
fn restarted(sim: Sim, old: impl Fn(usize) -> String, percent_max: u64) {
    let mut sim = sim.without_checks().rate(400_000).nodes_with_disk(5);
    (0..KEYS).for_each(|i| _ = sim.node(i % 5).put(old(i), "old").unwrap());
    sim.run_for(Duration::from_secs(30));
    sim.crash(4);
    (0..KEYS).for_each(|i| _ = sim.node(i % 4).put(key(i), vec![b'v'; 104]).unwrap());
    sim.run_for(Duration::from_secs(30));
    let before = sim.bytes_sent();
    sim.restart(4);
    watch_joining(&mut sim, 4, |_, _| {});
    let is_new = |i: usize| sim.node(4).get(key(i)).is_some_and(|entry| entry.value().len() == 104);
    assert_eq!((0..KEYS).filter(|i| is_new(*i)).count(), KEYS, "it is ready without all of it");
    sim.assert_converged();
    let (moved, once) = (sim.bytes_sent() - before, KEYS as u64 * (ROW_BYTES + WIRE_BYTES));
    assert!(moved < once * percent_max / 100, "{moved} bytes moved, {once} are the rows");
}

#[test]
fn restarted_node_is_ready_when_it_has_caught_up() {
    holds_unless(Control::KnownIsCaughtUp, SEEDS, |sim| restarted(sim, |_| "old".to_owned(), 110));
}

/// Three nodes with disks whose seed is node 0. The last two hold one value, and are started again at the same time
/// after node 0 has got many.
fn two_join_again(sim: Sim) -> Sim {
    let mut sim = sim.without_checks().rate(400_000).seeds(&[0]).nodes_with_disk(3);
    sim.node(0).put("old", "v").unwrap();
    sim.run_for(Duration::from_secs(30));
    (1..3).for_each(|i| sim.crash(i));
    (0..KEYS).for_each(|i| _ = sim.node(0).put(key(i), vec![b'v'; 504]).unwrap());
    sim.run_for(Duration::from_secs(30));
    (1..3).for_each(|i| sim.restart(i));
    sim
}

#[test]
fn nodes_that_join_together_wait_for_the_cluster() {
    holds_unless(Control::JoinersCaughtUp, SEEDS, |sim| {
        let mut sim = two_join_again(sim);
        for i in 1..3 {
            watch_joining(&mut sim, i, |_, _| {});
            assert_eq!(sim.node(i).len(), KEYS + 1, "it is ready without all of it");
        }
    });
}

/// Both know that there is a cluster, and hold a part of its data. They wait for it, but not for ever.
#[test]
fn joiners_whose_donor_died_wait_for_it_for_a_time() {
    for comes_back in [true, false] {
        let mut sim = two_join_again(Sim::new(5));
        while sim.node(1).len() < KEYS / 2 {
            sim.run_for(ms(5));
        }
        sim.crash(0);
        sim.run_for(Duration::from_secs(60));
        assert!((1..3).all(|i| !sim.node(i).joining().is_ready && sim.node(i).len() < KEYS));
        if comes_back {
            sim.restart(0);
        }
        for i in 1..3 {
            watch_joining(&mut sim, i, |_, _| {});
            assert_eq!(sim.node(i).len() == KEYS + 1, comes_back);
        }
    }
}

/// How long it takes until all of three nodes are ready that were down at the same time. Without `has_data` they are
/// new. So many of them are started again.
fn ready_together(has_data: bool, started: usize) -> Duration {
    let mut sim = Sim::new(5).seeds(&[0, 1, 2]).nodes_with_disk(3);
    if has_data {
        sim.run_for(Duration::from_secs(30));
        (0..KEYS).for_each(|i| _ = sim.node(i % 3).put(key(i), "v").unwrap());
        // The last writes of each are known to itself alone.
        sim.partition(&[0], &[1]);
        sim.partition(&[0, 1], &[2]);
        (0..30).for_each(|i| _ = sim.node(i % 3).put(format!("last/{i}"), "v").unwrap());
        sim.run_for(Duration::from_secs(30));
        (0..3).for_each(|i| sim.crash(i));
        sim.heal();
        (0..started).for_each(|i| sim.restart(i));
    } else {
        (started..3).for_each(|i| sim.crash(i));
    }
    let began = sim.now();
    (0..started).for_each(|i| _ = watch_joining(&mut sim, i, |_, _| {}));
    let took = sim.now() - began;
    sim.run_for(Duration::from_secs(10));
    assert!((1..started).all(|i| sim.node(i).len() == sim.node(0).len()));
    took
}

#[test]
fn cluster_whose_nodes_all_start_at_once_gets_ready() {
    for (has_data, started) in [(false, 3), (true, 3), (false, 2), (true, 2)] {
        let took = ready_together(has_data, started);
        assert!(took < Duration::from_secs(5), "{took:?} (with data: {has_data}, {started} started)");
    }
}

/// How long each of nine nodes takes to join that start one after another, where the first one has no seeds.
fn ready_times(control: Option<Control>) -> Vec<Duration> {
    let mut sim = Sim::new(7).broken(control).seeds(&[0]).nodes(1);
    let mut times = Vec::new();
    for i in 1..10 {
        sim = sim.nodes(1);
        let began = sim.now();
        watch_joining(&mut sim, i, |_, _| {});
        times.push(sim.now() - began);
    }
    times
}

#[test]
fn nodes_that_join_one_after_another_wait_for_nobody_else() {
    let (present, with_any_peer) = (ready_times(None), ready_times(Some(Control::JoinersCaughtUp)));
    let is_as_soon = |(present, other): (&Duration, &Duration)| *present <= *other + ms(10);
    assert!(present.iter().zip(&with_any_peer).all(is_as_soon), "{present:?}, {with_any_peer:?}");
}

#[test]
fn overwritten_values_come_from_one_donor_too() {
    // No peer holds more entries than the node, which lists its old values.
    holds_unless(Control::KnownIsCaughtUp, 2, |sim| restarted(sim, key, 160));
}

#[test]
fn node_that_missed_little_costs_no_more_than_tails_would() {
    let bytes = |seed, control| {
        let mut sim = Sim::new(seed).broken(control).without_checks().nodes_with_disk(3);
        (0..KEYS).for_each(|i| _ = sim.node(i % 3).put(key(i), "old").unwrap());
        sim.run_for(Duration::from_secs(30));
        sim.crash(2);
        (0..10).for_each(|i| _ = sim.node(0).put(key(i * 7), "new").unwrap());
        sim.run_for(Duration::from_secs(5));
        let before = sim.bytes_sent();
        sim.restart(2);
        sim.run_for(Duration::from_secs(2));
        assert!((0..10).all(|i| sim.node(2).get(key(i * 7)).unwrap().value() == b"new"));
        sim.bytes_sent() - before
    };
    // Whether a check more or less falls into the time differs.
    let sum = |control| (0..10).map(|seed| bytes(seed, control)).sum::<u64>();
    let (present, with_tails) = (sum(None), sum(Some(Control::KnownIsCaughtUp)));
    assert!(present <= with_tails * 11 / 10, "{present} bytes, {with_tails} with tails");
}

/// Applies `harm` to the donor when half of the rows have arrived. Asserts that another donor sends only the rest.
fn donor_is_replaced(sim: Sim, bytes_twice: u64, limit: Duration, harm: impl Fn(&mut Sim, usize)) {
    let mut sim = full_but_one(sim, 4);
    let before = rows_bytes(&mut sim);
    sim.restart(3);
    let (mut harmed, mut fed_at_harm, mut lost_bytes) = (None, 0, 0);
    let mut began = sim.now();
    let steps = watch_joining(&mut sim, 3, |sim, step| {
        if harmed.is_none() && step.entries_done > KEYS as u64 / 2 {
            let donor = step.donor.clone().expect("it has a donor");
            let i = (0..3).find(|i| sim.name(*i) == donor).expect("the donor is a node of this cluster");
            lost_bytes = sim.node(i).status().traffic.rows_bytes;
            harm(sim, i);
            // A donor that is still up is counted by `rows_bytes` itself.
            lost_bytes *= u64::from(!sim.is_up(i));
            (harmed, fed_at_harm, began) = (Some(donor), step.entries_done, sim.now());
        }
    });
    let took = sim.now() - began;
    assert!(took < limit, "joining took {took:?} after the harm");
    let first = harmed.expect("the donor was harmed before the joining ended");
    assert!(steps.iter().any(|step| step.donor.as_ref().is_some_and(|donor| *donor != first)));
    assert!(steps.iter().all(|step| !(step.donor.is_some() && step.donor.as_ref() != Some(&first))
        || step.entries_done >= fed_at_harm));
    sim.heal();
    sim.assert_converged();
    let moved = rows_bytes(&mut sim) + lost_bytes - before;
    let once = KEYS as u64 * (ROW_BYTES + WIRE_BYTES) + bytes_twice;
    assert!(moved < once * 21 / 20, "{moved} bytes of rows moved, {once} would do");
}

/// Bytes that may be in flight when a donor is lost: a window and a frame.
const ON_THE_WAY_BYTES: u64 = (256 + 64) << 10;

#[test]
fn a_donor_that_dies_is_replaced_without_starting_over() {
    holds_unless(Control::ManyDonors, SEEDS, |sim| {
        donor_is_replaced(sim, ON_THE_WAY_BYTES, Duration::from_secs(10), Sim::crash);
    });
}

#[test]
fn stalled_donor_is_replaced_before_its_session_ends() {
    holds_unless(Control::DonorKept, SEEDS, |sim| {
        donor_is_replaced(sim, 2 * ON_THE_WAY_BYTES, Duration::from_secs(7), |sim, donor| {
            sim.delay_traffic(donor, 3);
            sim.delay_traffic(3, donor);
        });
    });
}

#[test]
fn arrived_rows_are_readable_during_joining() {
    let mut sim = full_but_one(Sim::new(7), 3);
    sim.restart(2);
    let mut shares = Vec::new();
    watch_joining(&mut sim, 2, |sim, step| {
        let found = (0..KEYS).filter(|i| sim.node(2).get(key(*i)).is_some()).count();
        assert_eq!(found as u64, step.entries_done);
        shares.push(found);
    });
    assert!(shares.iter().any(|found| *found > 0 && *found < KEYS), "{shares:?}");
}

#[test]
fn a_large_state_is_joined_while_writes_go_on() {
    const LARGE_KEYS: usize = 100;
    let mut sim = Sim::new(3).without_checks().rate(100 << 20).nodes(3);
    sim.crash(2);
    for i in 0..LARGE_KEYS {
        sim.node(i % 2).put(key(i), vec![b'v'; 1 << 20]).unwrap();
    }
    sim.run_for(Duration::from_secs(20));
    sim.restart(2);
    let mut written = 0;
    watch_joining(&mut sim, 2, |sim, _| {
        // New keys, old keys and deletes, at both donors.
        sim.node(written % 2).put(format!("new/{written}"), "v").unwrap();
        sim.node(1).put(key(written % LARGE_KEYS), "shorter").unwrap();
        sim.node(0).delete(key((written + 50) % LARGE_KEYS)).unwrap();
        written += 1;
    });
    assert!(written > 20, "the joining was too short for this test: {written} rounds");
    sim.assert_converged();
    assert!((0..written).all(|i| sim.node(2).get(format!("new/{i}")).is_some()));
}

#[test]
fn arrival_times_show_the_delay_of_the_network_alone() {
    let mut sim = Sim::new(5).delay(ms(50)).nodes(3);
    sim.run_for(Duration::from_secs(5));
    let round = |sim: &mut Sim, i: usize| {
        sim.node(0).put(format!("k{i}"), "v").unwrap();
        sim.run_for(ms(100));
    };
    (0..100).for_each(|i| round(&mut sim, i));
    // A node that was down gets the writes hours later by repair, which must not count as arrival time.
    sim.crash(2);
    (100..200).for_each(|i| round(&mut sim, i));
    sim.run_for(Duration::from_secs(2 * 3_600));
    sim.restart(2);
    sim.assert_converged();
    assert!(sim.node(2).arrivals().is_empty());
    let arrivals = sim.node(1).arrivals();
    assert_eq!((arrivals.len(), arrivals[0].count), (1, 200));
    // A delay of the simulator lies between 0.5 and 1.5 times the mean.
    let near = |time: Duration| time >= ms(24) && time <= ms(96);
    assert!(near(arrivals[0].latest) && near(arrivals[0].mean), "{arrivals:?}");
    (200..300).for_each(|i| round(&mut sim, i));
    let arrivals = sim.node(2).arrivals();
    assert_eq!((arrivals.len(), arrivals[0].count), (1, 100));
    let [a] = &arrivals[..] else { panic!("there is more than one origin") };
    assert!(near(a.mean) && near(a.p50) && near(a.p99) && near(a.max), "{a:?}");
    assert!(a.p50 <= a.p99 && a.p99 <= a.max, "{a:?}");
}
