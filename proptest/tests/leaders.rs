//! Elections in the simulator. After every step the simulator itself checks that at most one node holds a lease, by
//! its own clock at that true instant, and that tokens grow.
//!
//! `TIDINGS_SEEDS` sets how many random histories there are, `TIDINGS_SEED` replays one.

use std::time::Duration;

use tidings::{Config, LeaseEnd, LeaseState, Sim};

const SECOND: Duration = Duration::from_secs(1);
/// How long voters are silent after their start, with the clocks of [`config`].
const QUARANTINE: Duration = Duration::from_millis(13_400);

fn config(voters: usize) -> Config {
    let mut config = Config::lan();
    config.clock_skew_max = SECOND * 2;
    config.voters = (0..voters).map(|i| format!("n{i}")).collect();
    config
}

/// A cluster whose voters vote.
fn settled(sim: Sim, nodes: usize) -> Sim {
    let mut sim = sim.seeds(&[0, 1]).nodes(nodes);
    sim.run_for(QUARANTINE);
    sim
}

fn until(sim: &mut Sim, within: Duration, is_so: impl Fn(&mut Sim) -> bool) -> Duration {
    let since = sim.now();
    while !is_so(sim) {
        assert!(sim.now() - since < within, "not within {within:?}");
        sim.run_for(Duration::from_micros(500));
    }
    sim.now() - since
}

#[test]
fn a_candidate_wins_an_idle_cluster_in_two_round_trips() {
    let mut sim = settled(Sim::new(1).config(config(5)), 5);
    let id = sim.node(0).campaign("cron", "me").unwrap();
    let took = until(&mut sim, SECOND, |sim| !sim.holders("cron").is_empty());
    println!("won after {took:?}");
    assert!(took < Duration::from_millis(8));
    assert!(matches!(sim.node(0).lease(id), Some(LeaseState::Held(_))));
    sim.run_for(SECOND * 60);
    assert_eq!(sim.holders("cron").len(), 1, "it is renewed");
    assert_eq!(sim.terms(), 1);
    sim.node(0).resign(id);
    assert_eq!(sim.node(0).lease(id), Some(LeaseState::Ended(LeaseEnd::Resigned)));
}

#[test]
fn a_crashed_leader_is_followed_within_a_lease_and_a_second() {
    let mut sim = settled(Sim::new(2).config(config(5)), 5);
    for i in 0..5 {
        sim.node(i).campaign("cron", format!("{i}")).unwrap();
    }
    until(&mut sim, SECOND, |sim| !sim.holders("cron").is_empty());
    sim.run_for(SECOND * 10);
    let first = sim.holders("cron")[0].0;
    sim.crash(first);
    let took = until(&mut sim, SECOND * 5, |sim| !sim.holders("cron").is_empty());
    println!("followed after {took:?}");
}

#[test]
fn a_resigned_lease_goes_to_the_next_at_once() {
    let mut sim = settled(Sim::new(3).config(config(5)), 5);
    let ids: Vec<u64> = (0..5).map(|i| sim.node(i).campaign("cron", "x").unwrap()).collect();
    for _ in 0..5 {
        until(&mut sim, SECOND, |sim| !sim.holders("cron").is_empty());
        sim.run_for(SECOND);
        let first = sim.holders("cron")[0].0;
        sim.node(first).resign(ids[first]);
        assert!(sim.holders("cron").is_empty());
        if sim.terms() < 5 {
            let took = until(&mut sim, SECOND * 5, |sim| !sim.holders("cron").is_empty());
            println!("followed after {took:?}");
            assert!(took < Duration::from_millis(8));
        }
    }
}
