//! Elections in the simulator: scripted stories and random histories. After every step the simulator checks that at
//! most one node holds a lease, each by its own clock at the same true instant, and that tokens grow.
//!
//! Negative controls: `NoQuarantine`, `NoDriftMargin`, `PromiseNotKept` and `TermReused` must be detected by random
//! histories, `VotersDiffer` and `LeaseMaxForgotten` by stories.
//!
//! `TIDINGS_SEEDS` sets the number of random histories, `TIDINGS_SEED` replays one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings::core::{LeaseEnd, LeaseState};
use tidings::sim::{DiskFault, Sim};
use tidings::{Config, Control, ReplicaEvent};
use tidings_proptest::{Elections, Noticed, for_chosen_seeds, notice, run_until, voters};

const SECOND: Duration = Duration::from_secs(1);
/// Quarantine of voters after their start, with the settings of [`config`].
const QUARANTINE: Duration = Duration::from_millis(13_400);

fn config(count: usize) -> Config {
    let mut config = Config::lan();
    config.clock_skew_max = SECOND * 2;
    config.voters = voters(count);
    config
}

/// A cluster whose voters are past their quarantine.
fn settled(sim: Sim, nodes: usize) -> Sim {
    let mut sim = sim.seeds(&[0, 1]).nodes(nodes);
    sim.run_for(QUARANTINE);
    sim
}

fn until(sim: &mut Sim, within: Duration, is_so: impl Fn(&mut Sim) -> bool) -> Duration {
    run_until(sim, Duration::from_micros(500), within, is_so)
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
    assert_eq!(sim.holders("cron").len(), 1, "the lease was not renewed");
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
    let ids: Vec<tidings::core::LeaseId> =
        (0..5).map(|i| sim.node(i).campaign("cron", "x").unwrap()).collect();
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

#[test]
fn random_election_histories_have_at_most_one_leader() {
    let terms = AtomicU64::new(0);
    let run = |seed| terms.fetch_add(Elections::new(seed).run().terms(), Ordering::Relaxed);
    for_chosen_seeds(1_000, |seed| _ = run(seed));
    println!("{} leases won", terms.into_inner());
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..5 {
        assert_eq!(Elections::new(seed).run().trace(), Elections::new(seed).run().trace());
    }
}

/// Random histories per broken rule.
const CONTROL_SEEDS: u64 = 3_000;

#[test]
fn every_broken_rule_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let rules = [
        (Control::NoQuarantine, Noticed::TwoHolders),
        (Control::NoDriftMargin, Noticed::TwoHolders),
        (Control::PromiseNotKept, Noticed::Token),
        (Control::TermReused, Noticed::Token),
    ];
    for (control, expected) in rules {
        let run = |seed| notice(|| _ = Elections { control: Some(control), ..Elections::new(seed) }.run());
        assert_eq!((0..CONTROL_SEEDS).find_map(run), Some(expected), "{control:?}");
    }
    _ = std::panic::take_hook();
}

/// Five nodes: three have one list of voters and two have another. One voter is on both lists.
fn divided(control: Option<Control>) -> Sim {
    let list = |names: [&str; 3]| {
        let mut config = config(0);
        config.voters = names.map(str::to_owned).to_vec();
        config
    };
    let sim = Sim::new(4).broken(control).seeds(&[0, 3]).config(list(["n0", "n1", "n2"])).nodes(3);
    let mut sim = sim.config(list(["n2", "n3", "n4"])).nodes(2);
    sim.run_for(QUARANTINE);
    sim.node(0).campaign("cron", "x").unwrap();
    sim.node(3).campaign("cron", "y").unwrap();
    sim.run_for(SECOND * 30);
    sim
}

#[test]
fn different_voter_lists_are_refused_and_reported() {
    let mut sim = divided(None);
    assert_eq!(sim.holders("cron").len(), 1);
    let differs = |event: &ReplicaEvent| matches!(event, ReplicaEvent::VotersDiffer { .. });
    let told: BTreeSet<usize> =
        sim.events().into_iter().filter(|(_, event)| differs(event)).map(|(i, _)| i).collect();
    assert!(told.contains(&2) && told.contains(&3), "{told:?}");
}

#[test]
fn uncompared_voter_lists_make_two_leaders() {
    let noticed = notice(|| _ = divided(Some(Control::VotersDiffer)));
    assert!(matches!(noticed, Some(Noticed::TwoHolders | Noticed::Token)), "{noticed:?}");
}

#[test]
fn nodes_with_different_lease_bounds_do_not_link() {
    let with = |lease_max: u64, skew: u64| {
        let mut config = config(3);
        (config.lease_time_max, config.clock_skew_max) = (SECOND * lease_max as u32, SECOND * skew as u32);
        config
    };
    for (lease_max, skew) in [(5, 2), (10, 3)] {
        let sim = Sim::new(12).seeds(&[0, 1]).config(with(10, 2)).nodes(2);
        let mut sim = sim.config(with(lease_max, skew)).nodes(1);
        sim.run_for(SECOND * 20);
        for i in 0..3 {
            sim.node(i).campaign("cron", "x").unwrap();
        }
        sim.run_for(SECOND * 10);
        assert!(sim.holders("cron").iter().all(|(i, _)| *i != 2), "a node with other bounds holds the lease");
        assert_eq!(sim.holders("cron").len(), 1);
        assert_eq!(sim.node(2).members().len(), 1, "it knows itself alone");
    }
}

#[test]
fn local_preset_elects_a_leader_in_two_seconds() {
    for seed in 0..20 {
        let mut config = Config::local();
        config.voters = voters(3);
        let mut sim = Sim::new(seed).config(config).seeds(&[0, 1]).nodes(3);
        for i in 0..3 {
            sim.node(i).campaign("cron", "x").unwrap();
        }
        let took = until(&mut sim, SECOND * 2, |sim| !sim.holders("cron").is_empty());
        println!("seed {seed}: a leader after {took:?}");
    }
}

/// Voters with disks grant a lease of 10 s. They are restarted with a `lease_time_max` of 1 s while its holder cannot
/// reach them.
fn lower_the_bound(control: Option<Control>) {
    let (mut long, mut short) = (config(3), config(3));
    long.lease_time = SECOND * 10;
    (short.lease_time, short.lease_time_max) = (SECOND, SECOND);
    let sim = Sim::new(13).broken(control).config(long).seeds(&[0, 1]).nodes_with_disk(3);
    let mut sim = sim.nodes(1);
    sim.run_for(QUARANTINE);
    sim.node(3).campaign("cron", "old").unwrap();
    until(&mut sim, SECOND, |sim| !sim.holders("cron").is_empty());
    sim.partition(&[3], &[0, 1, 2]);
    for i in 0..3 {
        sim.reconfigure(i, short.clone());
        sim.restart(i);
        sim.node(i).campaign("cron", "new").unwrap();
    }
    let since = sim.now();
    until(&mut sim, SECOND * 30, |sim| sim.holders("cron").first().is_some_and(|(i, _)| *i < 3));
    println!("a new leader after {:?}", sim.now() - since);
}

#[test]
fn lowered_lease_bound_keeps_earlier_promises() {
    lower_the_bound(None);
    let noticed = notice(|| lower_the_bound(Some(Control::LeaseMaxForgotten)));
    assert_eq!(noticed, Some(Noticed::TwoHolders));
}

#[test]
fn observers_see_who_leads_and_that_nobody_does() {
    let mut sim = settled(Sim::new(6).config(config(3)).loss(0.1), 5);
    sim.node(4).observe("cron").unwrap();
    until(&mut sim, SECOND * 3, |sim| sim.node(4).leader("cron") == Some(None));
    let id = sim.node(3).campaign("cron", "of 3").unwrap();
    let sees = |sim: &mut Sim, value: Option<&[u8]>| {
        let leader = sim.node(4).leader("cron").flatten();
        leader.as_ref().map(|leader| &leader.value[..]) == value
    };
    until(&mut sim, SECOND, |sim| sees(sim, Some(b"of 3")));
    // The voters that granted the lease know of it before its holder does.
    until(&mut sim, SECOND, |sim| matches!(sim.node(3).lease(id), Some(LeaseState::Held(_))));
    sim.node(3).proclaim(id, "of 3, still").unwrap();
    // If the news is lost, the observer asks again each half of a lease time, and that may be lost as well.
    until(&mut sim, SECOND * 6, |sim| sees(sim, Some(b"of 3, still")));
    assert_eq!(sim.node(4).leader("cron").flatten().unwrap().token, sim.last_token("cron").unwrap());
    sim.crash(3);
    until(&mut sim, SECOND * 5, |sim| sees(sim, None));
    // An observer that is cut off from the voters must stop naming a leader.
    sim.node(0).campaign("cron", "of 0").unwrap();
    until(&mut sim, SECOND, |sim| sees(sim, Some(b"of 0")));
    sim.partition(&[4], &[0, 1, 2]);
    until(&mut sim, SECOND * 5, |sim| sees(sim, None));
    assert_eq!(sim.holders("cron").len(), 1);
}

#[test]
fn rolling_restart_of_voters_keeps_the_leader() {
    let mut sim = settled(Sim::new(6).config(config(3)), 4);
    sim.node(3).campaign("cron", "x").unwrap();
    sim.run_for(SECOND);
    let token = sim.last_token("cron");
    for i in 0..3 {
        sim.crash(i);
        sim.run_for(SECOND);
        sim.restart(i);
        // The voter must find the others, pass its quarantine and grant the lease again.
        sim.run_for(QUARANTINE + SECOND * 3);
        assert_eq!(sim.holders("cron"), [(3, token.unwrap())]);
    }
    // Without two of three voters the lease ends.
    sim.crash(0);
    sim.crash(1);
    sim.restart(0);
    sim.restart(1);
    sim.run_for(SECOND * 4);
    assert!(sim.holders("cron").is_empty());
    sim.node(3).campaign("cron", "x").unwrap();
    sim.run_for(QUARANTINE + SECOND * 10);
    assert_eq!(sim.holders("cron").len(), 1);
    assert!(sim.last_token("cron") > token);
}

#[test]
fn thousand_leases_renew_under_5000_bytes_per_second() {
    let cost = |leases: usize| {
        let mut sim = settled(Sim::new(7).config(config(5)).without_checks(), 5);
        for lease in 0..leases {
            sim.node(lease % 5).campaign(&format!("e{lease}"), "x").unwrap();
        }
        sim.run_for(SECOND * 10);
        let (bytes, sendings) = (sim.bytes_sent(), sim.sendings());
        sim.run_for(SECOND * 30);
        let held = (0..leases).filter(|lease| !sim.holders(&format!("e{lease}")).is_empty()).count();
        assert_eq!(held, leases);
        // QUIC adds 33 bytes to a datagram, and at most one acknowledgement of 36 bytes.
        (sim.bytes_sent() - bytes + (sim.sendings() - sendings) * 69) / 30 / 5
    };
    let (idle, held) = (cost(0), cost(1_000));
    println!("1,000 leases held: {} bytes a second and node (5,000), beside {idle} without", held - idle);
    assert!(held - idle < 5_000);
}

#[test]
fn try_campaign_always_ends_in_time() {
    let mut sim = settled(Sim::new(8).config(config(3)), 3);
    let first = sim.node(0).try_campaign("cron", "x").unwrap();
    sim.run_for(SECOND / 10);
    assert!(matches!(sim.node(0).lease(first), Some(LeaseState::Held(_))));
    let second = sim.node(1).try_campaign("cron", "x").unwrap();
    sim.run_for(SECOND / 10);
    assert_eq!(sim.node(1).lease(second), Some(LeaseState::Ended(LeaseEnd::Taken)));
    sim.partition(&[2], &[0, 1]);
    let third = sim.node(2).try_campaign("cron", "x").unwrap();
    sim.run_for(SECOND * 4);
    let ended = LeaseEnd::NoMajority { reached: 1, needed: 2 };
    assert_eq!(sim.node(2).lease(third), Some(LeaseState::Ended(ended)));
}

#[test]
fn voters_whose_disks_are_back_vote_again() {
    let sim = Sim::new(10).config(config(3)).seeds(&[0, 1]).nodes_with_disk(3);
    let mut sim = sim.nodes(1);
    sim.run_for(QUARANTINE);
    let first = sim.node(3).campaign("cron", "x").unwrap();
    until(&mut sim, SECOND, |sim| !sim.holders("cron").is_empty());
    for i in 0..3 {
        sim.disk_fault(i, Some(DiskFault::Full));
        sim.node(i).put(format!("{i}"), "v").unwrap();
    }
    sim.run_for(SECOND);
    assert!((0..3).all(|i| sim.node(i).status().has_disk_failed));
    // Renewals are covered by the promise on the disk. New promises are not given.
    assert_eq!(sim.holders("cron").len(), 1);
    sim.node(3).resign(first);
    sim.run_for(SECOND);
    sim.node(3).try_campaign("cron", "x").unwrap();
    sim.run_for(SECOND * 15);
    assert!(sim.holders("cron").is_empty());
    (0..3).for_each(|i| sim.disk_fault(i, None));
    sim.run_for(SECOND * 15);
    sim.node(3).campaign("cron", "x").unwrap();
    until(&mut sim, SECOND * 15, |sim| !sim.holders("cron").is_empty());
}

#[test]
fn candidate_two_days_ahead_blocks_no_other() {
    let mut sim = settled(Sim::new(11).config(config(3)), 3);
    sim.skew(0, 48 * 3_600_000);
    let ahead = sim.node(0).campaign("cron", "x").unwrap();
    until(&mut sim, SECOND * 5, |sim| !sim.holders("cron").is_empty());
    sim.run_for(SECOND * 5);
    sim.node(0).resign(ahead);
    sim.run_for(SECOND);
    sim.skew(0, 0);
    for i in [1, 0, 2] {
        let id = sim.node(i).campaign("cron", "x").unwrap();
        until(&mut sim, SECOND * 10, |sim| !sim.holders("cron").is_empty());
        sim.node(i).resign(id);
        sim.run_for(SECOND);
    }
    // The same once the voters have forgotten that lease and keep only its term as the floor of all others.
    sim.run_for(SECOND * 60);
    for i in 0..3 {
        sim.node(i).campaign("other", "x").unwrap();
    }
    until(&mut sim, SECOND * 10, |sim| !sim.holders("other").is_empty());
}

#[test]
fn leader_hints_agree_and_name_living_members() {
    let mut sim = settled(Sim::new(9).config(config(3)), 5);
    let hint = |sim: &mut Sim, i: usize| sim.node(i).leader_hint("cron").unwrap();
    let first = hint(&mut sim, 0);
    assert!((1..5).all(|i| hint(&mut sim, i) == first));
    let gone: usize = first[1..].parse().unwrap();
    sim.crash(gone);
    sim.run_for(SECOND * 15);
    let others: BTreeSet<String> = (0..5).filter(|i| *i != gone).map(|i| hint(&mut sim, i)).collect();
    assert!(others.len() == 1 && !others.contains(&first));
}
