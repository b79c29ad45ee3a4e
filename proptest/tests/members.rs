//! Members in the simulator: nodes that find each other by themselves, are missed when they are gone, and are not
//! missed when they are there.

use std::collections::BTreeSet;
use std::time::Duration;

use tidings::{Config, MemberEvent, MemberState, Sim};

const SECOND: Duration = Duration::from_secs(1);

fn cluster(seed: u64, count: usize) -> Sim {
    Sim::new(seed).seeds(&[0, 1]).without_checks().nodes(count)
}

/// The names of the others that a node believes to live.
fn living(sim: &mut Sim, i: usize) -> BTreeSet<String> {
    let members = sim.node(i).members();
    members.into_iter().skip(1).filter(|member| member.state.is_alive()).map(|member| member.name).collect()
}

/// Whether every node that runs believes in all others that run, and in nobody else.
fn all_agree(sim: &mut Sim) -> bool {
    let up: Vec<usize> = (0..sim.len()).filter(|i| sim.is_up(*i)).collect();
    up.iter().all(|i| {
        let others = up.iter().filter(|other| *other != i).map(|other| sim.name(*other)).collect();
        living(sim, *i) == others
    })
}

/// Runs until all agree. How long that took.
fn agree(sim: &mut Sim, within: Duration) -> Duration {
    let since = sim.now();
    while !all_agree(sim) {
        assert!(sim.now() - since < within, "no agreement after {within:?}");
        sim.run_for(SECOND / 10);
    }
    sim.now() - since
}

#[test]
fn a_cluster_finds_itself_through_its_seeds() {
    for count in [2, 3, 10, 40, 200] {
        let mut sim = cluster(1, count);
        let took = agree(&mut sim, SECOND * 15);
        println!("{count} nodes agree after {took:?}");
        sim.node(0).put("k", "v").unwrap();
        sim.assert_converged();
    }
}

#[test]
fn a_crash_is_noticed_by_all() {
    for (count, most) in [(3, 6), (10, 6), (100, 9)] {
        let mut times = Vec::new();
        for seed in 0..10 {
            let mut sim = cluster(seed, count);
            agree(&mut sim, SECOND * 15);
            sim.run_for(SECOND * 5);
            sim.member_events();
            sim.crash(2);
            let at = sim.now();
            sim.run_for(SECOND * 15);
            for (when, who, event) in sim.member_events() {
                match event {
                    MemberEvent::Down(member) => {
                        assert_eq!(member.name, "n2", "{who}");
                        times.push(when - at);
                    }
                    MemberEvent::Suspect(member) => assert_eq!(member.name, "n2", "{who}"),
                    event => panic!("{event:?}"),
                }
            }
        }
        times.sort();
        assert_eq!(times.len(), 10 * (count - 1));
        println!("{count} nodes: p50 {:?} p99 {:?} of {most} s", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
}

#[test]
fn halves_that_were_apart_for_long_find_each_other_again() {
    for count in [2, 6, 10, 50] {
        let mut sim = cluster(3, count);
        agree(&mut sim, SECOND * 15);
        let (a, b): (Vec<usize>, Vec<usize>) = (0..count).partition(|i| i % 2 == 0);
        sim.partition(&a, &b);
        sim.run_for(SECOND * 60);
        for i in 0..count {
            assert_eq!(living(&mut sim, i).len(), if i % 2 == 0 { a.len() } else { b.len() } - 1);
        }
        sim.member_events();
        sim.heal();
        let took = agree(&mut sim, SECOND * 60);
        println!("{count} nodes: healed after {took:?}");
        let down = sim.member_events().into_iter().filter(|(_, _, e)| matches!(e, MemberEvent::Down(_))).count();
        println!("{down} downs");
        sim.assert_converged();
    }
}

#[test]
fn who_leaves_is_told_at_once_and_as_such() {
    let mut sim = cluster(4, 8);
    agree(&mut sim, SECOND * 15);
    sim.leave(3);
    sim.run_for(SECOND / 50);
    for i in [0, 1, 2, 4, 5, 6, 7] {
        let members = sim.node(i).members();
        let left = members.iter().find(|member| member.name == "n3").expect("it is remembered");
        assert_eq!(left.state, MemberState::Left);
    }
    sim.run_for(SECOND * 20);
    assert!(all_agree(&mut sim));
    sim.restart(3);
    agree(&mut sim, SECOND * 5);
}

#[test]
fn idle_traffic_does_not_grow_with_the_cluster() {
    for count in [3, 30, 100, 300] {
        let mut sim = cluster(5, count);
        agree(&mut sim, SECOND * 15);
        sim.run_for(SECOND * 20);
        let (bytes, sendings) = (sim.bytes_sent(), sim.sendings());
        sim.run_for(SECOND * 60);
        let bytes = (sim.bytes_sent() - bytes) / 60 / count as u64;
        let sendings = (sim.sendings() - sendings) as f64 / 60.0 / count as f64;
        println!("{count} nodes: {bytes} B/s, {sendings:.2} sendings/s a node; about {:.0} B/s of UDP", bytes as f64 + sendings * 69.0);
    }
}

#[test]
fn config_is_default() {
    assert_eq!(Config::default(), Config::lan());
}
