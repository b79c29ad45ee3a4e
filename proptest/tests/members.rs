//! Membership in the simulator: nodes find each other, lost nodes are called down in time, and healthy nodes are not,
//! despite packet loss, slow nodes and partitions. Figures are printed beside their targets; see them with
//! `--nocapture`.
//!
//! Negative control: `NoLocalHealth` switches off Lifeguard's local health, see
//! `starved_nodes_do_not_take_healthy_ones_for_dead`. Repeated announcements have theirs in `reunion.rs`.
//!
//! `TIDINGS_MEMBERS_FULL=1` runs everything at full length: 1,000 nodes, 1,000 node-hours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings::limits::META_BYTES_MAX;
use tidings::sim::Sim;
use tidings::{Control, Member, MemberEvent, MemberState, ReplicaEvent, RunId};
use tidings_proptest::{Dice, run_until};

const SECOND: Duration = Duration::from_secs(1);

/// Bytes of a datagram beside its content: QUIC's header, connection id, packet number and tag (33), and at most one
/// acknowledgement in a packet of its own (36).
const DATAGRAM_BYTES: u64 = 33 + 36;

fn is_full() -> bool {
    std::env::var_os("TIDINGS_MEMBERS_FULL").is_some()
}

fn cluster(seed: u64, count: usize) -> Sim {
    Sim::new(seed).seeds(&[0, 1]).without_checks().nodes(count)
}

/// A cluster whose members know each other and are linked.
fn settled(seed: u64, count: usize) -> Sim {
    let mut sim = cluster(seed, count);
    agree(&mut sim, SECOND * 15);
    sim.run_for(SECOND * 5);
    sim.member_events();
    sim
}

/// The names of the other members that a node believes to be alive.
fn living(sim: &mut Sim, i: usize) -> BTreeSet<String> {
    let members = sim.node(i).members();
    members.into_iter().skip(1).filter(|member| member.state.is_alive()).map(|member| member.name).collect()
}

fn up(sim: &Sim) -> Vec<usize> {
    (0..sim.len()).filter(|i| sim.is_up(*i)).collect()
}

/// Whether every running node believes that exactly the running nodes are alive.
fn all_agree(sim: &mut Sim) -> bool {
    let up = up(sim);
    let names: BTreeSet<String> = up.iter().map(|i| sim.name(*i)).collect();
    up.iter().all(|i| {
        let mut known = living(sim, *i);
        known.insert(sim.name(*i)) && known == names
    })
}

/// Runs until all nodes agree on the members. Returns how long that took.
fn agree(sim: &mut Sim, within: Duration) -> Duration {
    run_until(sim, SECOND / 5, within, all_agree)
}

/// The names in all `Down` events since the last call, repeated ones included.
fn downs(sim: &mut Sim) -> Vec<String> {
    let down = |event| match event {
        MemberEvent::Down(member) => Some(member.name),
        _ => None,
    };
    sim.member_events().into_iter().filter_map(|(_, _, event)| down(event)).collect()
}

fn state(sim: &mut Sim, i: usize, name: &str) -> Option<MemberState> {
    sim.node(i).members().into_iter().find(|member| member.name == name).map(|member| member.state)
}

#[test]
fn nodes_find_each_other_through_seeds() {
    let counts = if is_full() { &[2, 3, 10, 40, 200, 1_000][..] } else { &[2, 3, 10, 40, 150] };
    for count in counts {
        let mut sim = cluster(1, *count);
        let took = agree(&mut sim, SECOND * 15);
        println!("{count} nodes started at once agree after {took:?} (15 s)");
        assert_eq!(downs(&mut sim), [""; 0]);
        sim.node(0).put("k", "v").unwrap();
        sim.assert_converged();
    }
}

#[test]
fn a_crash_is_noticed_by_all_in_time() {
    let seeds = if is_full() { 40 } else { 4 };
    for (count, most) in [(2, 6), (3, 6), (10, 6), (100, 9)] {
        let mut times = Vec::new();
        for seed in 0..seeds {
            let mut sim = settled(seed, count);
            sim.crash(1);
            let at = sim.now();
            sim.run_for(SECOND * 15);
            for (when, who, event) in sim.member_events() {
                match event {
                    MemberEvent::Down(member) => {
                        assert_eq!(member.name, "n1", "as {who} saw it");
                        times.push(when - at);
                    }
                    MemberEvent::Suspect(member) => assert_eq!(member.name, "n1", "as {who} saw it"),
                    event => panic!("{event:?}"),
                }
            }
        }
        times.sort();
        assert_eq!(times.len(), seeds as usize * (count - 1), "each other node must report the crash once");
        let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("a crash among {count}: p50 {median:?}, p99 {late:?} ({most} s)");
        // Virtual time, so that the figure is the same in every run.
        assert!(late <= SECOND * most);
    }
}

#[test]
fn a_node_that_comes_back_replaces_its_dead_run_at_once() {
    let mut sim = settled(2, 6);
    let before = sim.node(4).members()[0].run;
    sim.crash(4);
    sim.restart(4);
    sim.run_for(SECOND);
    for i in 0..6 {
        let members = sim.node(i).members();
        let runs: Vec<RunId> = members.iter().filter(|member| member.name == "n4").map(|m| m.run).collect();
        assert_eq!(runs.len(), 1, "node {i} knows more than one run of a name");
        assert_ne!(runs[0], before);
    }
    assert!(all_agree(&mut sim));
    sim.run_for(SECOND * 30);
    assert!(all_agree(&mut sim), "the earlier run came back");
}

#[test]
fn halves_that_were_apart_for_long_find_each_other_again() {
    for count in if is_full() { vec![2, 3, 6, 10, 50, 100, 200] } else { vec![2, 3, 10, 50] } {
        let mut sim = settled(3, count);
        let (a, b): (Vec<usize>, Vec<usize>) = (0..count).partition(|i| i % 2 == 0);
        sim.partition(&a, &b);
        sim.run_for(SECOND * 120);
        for i in 0..count {
            let half = if i % 2 == 0 { &a } else { &b };
            assert_eq!(living(&mut sim, i).len(), half.len() - 1);
        }
        sim.node(0).put("k", "from one half").unwrap();
        sim.member_events();
        sim.heal();
        let took = agree(&mut sim, SECOND * 30);
        println!("halves of {count} agree {took:?} after healing (two probe intervals and 5 s)");
        assert!(took <= SECOND * 6);
        assert_eq!(downs(&mut sim), [""; 0], "of {count} nodes one was called down after healing");
        sim.assert_converged();
        assert_eq!(sim.node(1).get("k").unwrap().value(), b"from one half");
    }
}

#[test]
fn leaving_node_is_seen_as_left_at_once() {
    let mut sim = settled(4, 8);
    sim.node(3).put("last", "words").unwrap();
    sim.run_for(SECOND / 100);
    sim.leave(3);
    // A round trip takes up to 3 ms in this simulation.
    sim.run_for(SECOND / 250);
    for i in up(&sim) {
        assert_eq!(state(&mut sim, i, "n3"), Some(MemberState::Left));
        assert_eq!(sim.node(i).get("last").unwrap().value(), b"words");
    }
    sim.run_for(SECOND * 20);
    assert!(all_agree(&mut sim));
    assert_eq!(downs(&mut sim), [""; 0]);
    sim.restart(3);
    agree(&mut sim, SECOND * 5);
}

#[test]
fn packet_loss_marks_no_member_down() {
    let hours = if is_full() { 100 } else { 1 };
    let mut sim = Sim::new(5).seeds(&[0, 1]).without_checks().loss(0.05).nodes(10);
    agree(&mut sim, SECOND * 15);
    sim.run_for(SECOND * 5);
    sim.member_events();
    let (mut suspected, mut lost) = (0, Vec::new());
    for _ in 0..hours * 60 {
        sim.run_for(SECOND * 60);
        for (_, _, event) in sim.member_events() {
            match event {
                MemberEvent::Suspect(_) => suspected += 1,
                MemberEvent::Down(member) => lost.push(member.name),
                _ => {}
            }
        }
    }
    println!(
        "{} node-hours at 5 % loss: {suspected} times suspected, {} called down (0)",
        hours * 10,
        lost.len()
    );
    assert!(suspected > 0, "the loss caused no suspicion, so that the test proves nothing");
    assert_eq!(lost, [""; 0]);
}

/// A tenth of the nodes is stopped most of the time, or (`deaf`) sends and receives nothing most of the time. Returns
/// how often healthy nodes were called down and suspected.
fn starve(control: Option<Control>, deaf: bool, pause: Duration, run: Duration) -> (usize, usize) {
    let count = 40;
    let mut sim = Sim::new(6).broken(control).seeds(&[0, 1]).without_checks().nodes(count);
    sim.run_for(SECOND * 10);
    sim.member_events();
    let starved: Vec<usize> = (count - count / 10..count).collect();
    let names: Vec<String> = starved.iter().map(|i| sim.name(*i)).collect();
    let until = sim.now() + SECOND * 60;
    while sim.now() < until {
        for i in &starved {
            if deaf {
                (0..count).for_each(|other| sim.delay_traffic(*i, other));
                (0..count).for_each(|other| sim.delay_traffic(other, *i));
            } else {
                sim.pause(*i);
            }
        }
        sim.run_for(pause);
        for i in &starved {
            if deaf {
                (0..count).for_each(|other| sim.resume_traffic(*i, other));
                (0..count).for_each(|other| sim.resume_traffic(other, *i));
            } else {
                sim.resume(*i);
            }
        }
        sim.run_for(run);
    }
    let (mut lost, mut suspected) = (0, 0);
    for (_, _, event) in sim.member_events() {
        match event {
            MemberEvent::Down(member) if !names.contains(&member.name) => lost += 1,
            MemberEvent::Suspect(member) if !names.contains(&member.name) => suspected += 1,
            _ => {}
        }
    }
    (lost, suspected)
}

#[test]
fn starved_nodes_do_not_take_healthy_ones_for_dead() {
    let (mut ours, mut plain) = (0, 0);
    for (deaf, pause, run) in
        [(true, 2_000, 10), (true, 4_000, 200), (false, 4_000, 200), (false, 8_000, 1_000)]
    {
        let (pause, run) = (Duration::from_millis(pause), Duration::from_millis(run));
        let with = starve(None, deaf, pause, run);
        let without = starve(Some(Control::NoLocalHealth), deaf, pause, run);
        let kind = if deaf { "deaf" } else { "stopped" };
        println!("a tenth {kind} {pause:?}, well {run:?}: called down {} (plain {})", with.0, without.0);
        println!("    suspected {} (plain {})", with.1, without.1);
        (ours, plain) = (ours + with.0, plain + without.0);
    }
    assert!(plain > 100, "NoLocalHealth called too few healthy nodes down: {plain}");
    assert!(ours * 10 <= plain, "called down: {ours} with local health, {plain} without");
}

#[test]
fn node_cut_off_from_one_peer_stays_a_member() {
    let mut sim = settled(7, 6);
    sim.cut(0, 1);
    sim.run_for(SECOND * 60);
    assert_eq!(downs(&mut sim), [""; 0]);
    sim.node(0).put("k", "v").unwrap();
    sim.run_for(SECOND * 10);
    assert_eq!(sim.node(1).get("k").unwrap().value(), b"v", "the write did not arrive over other nodes");
    sim.heal();
    sim.assert_converged();
}

#[test]
fn slow_node_is_not_called_down() {
    let mut sim = settled(8, 8);
    // Up to 150 ms each way; an answer to a probe is expected within 200 ms.
    sim.slow(5, 150);
    sim.run_for(SECOND * 300);
    assert_eq!(downs(&mut sim), [""; 0]);
}

#[test]
fn stopped_process_is_called_down_and_recovers() {
    let mut sim = settled(9, 5);
    sim.pause(2);
    sim.run_for(SECOND * 60);
    for i in [0, 1, 3, 4] {
        assert_eq!(state(&mut sim, i, "n2"), Some(MemberState::Down));
    }
    sim.node(0).put("k", "v").unwrap();
    sim.member_events();
    sim.resume(2);
    agree(&mut sim, SECOND * 10);
    let recovered =
        |event: &MemberEvent| matches!(event, MemberEvent::Recovered(member) if member.name == "n2");
    assert_eq!(sim.member_events().iter().filter(|(_, _, event)| recovered(event)).count(), 4);
    sim.assert_converged();
    assert_eq!(sim.node(2).get("k").unwrap().value(), b"v");
}

#[test]
fn cluster_restarts_at_once_and_one_by_one() {
    let mut sim = settled(10, 12);
    (0..12).for_each(|i| sim.crash(i));
    sim.run_for(SECOND * 3);
    (0..12).for_each(|i| sim.restart(i));
    println!("restarted at once: agreed after {:?}", agree(&mut sim, SECOND * 15));
    sim.run_for(SECOND * 5);
    for i in 0..12 {
        sim.crash(i);
        sim.run_for(SECOND * 2);
        sim.restart(i);
        sim.run_for(SECOND * 2);
    }
    println!("restarted one by one: agreed after {:?}", agree(&mut sim, SECOND * 15));
    sim.node(0).put("k", "v").unwrap();
    sim.assert_converged();
}

#[test]
fn seeds_that_all_died_are_found_at_their_new_addresses() {
    let mut sim = settled(11, 6);
    for i in [0, 1] {
        sim.crash(i);
        sim.relocate(i);
    }
    sim.run_for(SECOND * 120);
    for i in 2..6 {
        assert_eq!(living(&mut sim, i).len(), 3);
    }
    for i in [0, 1] {
        sim.restart(i);
    }
    println!("found after {:?}", agree(&mut sim, SECOND * 30));
    // The same for a node that was alone for ten minutes, with dead seeds only.
    (0..6).for_each(|i| sim.crash(i));
    sim.restart(5);
    sim.run_for(SECOND * 600);
    sim.relocate(0);
    sim.restart(0);
    println!("found after {:?}", agree(&mut sim, SECOND * 15));
}

#[test]
fn nodes_with_a_disk_find_each_other_again_without_any_seed() {
    let mut sim = Sim::new(17).seeds(&[0]).nodes_with_disk(5);
    agree(&mut sim, SECOND * 15);
    sim.run_for(SECOND * 30);
    (0..5).for_each(|i| sim.crash(i));
    // The only seed stays down.
    (1..5).for_each(|i| sim.restart(i));
    println!("found after {:?}", agree(&mut sim, SECOND * 30));
    sim.node(1).put("k", "v").unwrap();
    sim.assert_converged();
    for i in 1..5 {
        assert_eq!(
            state(&mut sim, i, "n0"),
            Some(MemberState::Down),
            "the missing seed is still known as down"
        );
    }
}

#[test]
fn metadata_reaches_every_member_and_is_bounded() {
    let mut sim = settled(12, 40);
    let meta = |text: &str| BTreeMap::from([("role".to_owned(), text.to_owned())]);
    assert!(sim.node(7).set_meta(meta("cache")));
    sim.run_for(SECOND * 3);
    for i in 0..40 {
        let members = sim.node(i).members();
        let told = members.iter().find(|member| member.name == "n7").unwrap();
        assert_eq!(told.meta, meta("cache"), "at {i}");
    }
    let updated = |event: &MemberEvent| matches!(event, MemberEvent::Updated(member) if member.name == "n7");
    assert_eq!(sim.member_events().iter().filter(|(_, _, event)| updated(event)).count(), 39);
    assert!(!sim.node(7).set_meta(meta(&"x".repeat(META_BYTES_MAX))), "metadata over the limit was accepted");
    assert!(
        sim.node(7).set_meta(meta(&"x".repeat(META_BYTES_MAX - 4))),
        "metadata of exactly the limit was refused"
    );
    sim.run_for(SECOND * 3);
    assert!(sim.node(8).members().iter().any(|member| member.meta == meta(&"x".repeat(META_BYTES_MAX - 4))));
    assert_eq!(sim.node(7).members()[0].meta_version, 3);
}

#[test]
fn round_trips_are_estimated() {
    let mut sim = settled(13, 5);
    sim.run_for(SECOND * 20);
    for Member { name, rtt, .. } in sim.node(0).members().into_iter().skip(1) {
        let rtt = rtt.unwrap_or_else(|| panic!("{name} was never measured"));
        assert!((Duration::from_millis(1)..Duration::from_millis(4)).contains(&rtt), "{name}: {rtt:?}");
    }
}

#[test]
fn idle_traffic_does_not_grow_with_the_cluster() {
    for count in if is_full() { &[3, 30, 100, 300, 1_000][..] } else { &[3_u64, 30, 100] } {
        let mut sim = cluster(14, *count as usize);
        // When a thousand nodes join at once, their gossip takes half a minute.
        sim.run_for(SECOND * 60);
        let (bytes, sendings) = (sim.bytes_sent(), sim.sendings());
        let seconds = 30;
        sim.run_for(Duration::from_secs(seconds));
        let datagrams = sim.sendings() - sendings;
        let all = sim.bytes_sent() - bytes + datagrams * DATAGRAM_BYTES;
        let (udp, datagrams) = (all / seconds / count, datagrams / seconds / count);
        println!("{count} idle nodes: {udp} bytes of UDP a second and node (600), in {datagrams} datagrams");
        assert!(udp < 600);
    }
}

#[test]
fn membership_is_the_same_for_the_same_seed() {
    let run = |seed| {
        let mut sim = Sim::new(seed).seeds(&[0]).loss(0.1).nodes(5);
        sim.run_for(SECOND * 10);
        sim.crash(1);
        sim.run_for(SECOND * 10);
        sim.restart(1);
        sim.run_for(SECOND * 10);
        (sim.trace(), format!("{:?}", sim.member_events()))
    };
    assert_eq!(run(15), run(15));
    assert_ne!(run(15).0, run(16).0);
}

#[test]
fn random_membership_histories_agree_and_converge() {
    for seed in 0..if is_full() { 300 } else { 30 } {
        let mut dice = Dice::new(seed);
        let loss = [0.0, 0.05, 0.2][dice.below(3)];
        let mut sim = Sim::new(seed).seeds(&[0, 1]).loss(loss).nodes(2 + dice.below(4));
        for _ in 0..40 {
            let (i, other) = (dice.below(sim.len()), dice.below(sim.len()));
            match dice.below(10) {
                0 if sim.is_up(i) => sim.crash(i),
                1 if !sim.is_up(i) => sim.restart(i),
                2 if i != other => sim.partition(&[i], &[other]),
                3 => sim.heal(),
                4 if sim.is_up(i) => sim.pause(i),
                5 => sim.resume(i),
                6 if sim.is_up(i) => sim.leave(i),
                _ if sim.is_up(i) => {
                    let key = format!("k{}", dice.below(5));
                    let node = sim.node(i);
                    let done = if dice.below(3) == 0 {
                        node.delete(key).map(|_| ())
                    } else {
                        node.put(key, "v").map(|_| ())
                    };
                    done.unwrap();
                }
                _ => {}
            }
            sim.run_for(Duration::from_millis([1, 50, 700, 9_000][dice.below(4)]));
        }
        sim.heal();
        for i in 0..sim.len() {
            sim.resume(i);
            if !sim.is_up(i) {
                sim.restart(i);
            }
        }
        agree(&mut sim, SECOND * 60);
        sim.assert_converged();
        let odd =
            |event: &ReplicaEvent| matches!(event, ReplicaEvent::NameTwice(_) | ReplicaEvent::MembersFull);
        let odd = sim.events().into_iter().find(|(_, event)| odd(event));
        assert!(odd.is_none(), "seed {seed}: {odd:?}");
    }
}
