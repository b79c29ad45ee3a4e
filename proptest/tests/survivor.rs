//! A node that comes back after an outage of all others: it is ready with what its disk holds, after
//! `Config::alone_after`.
//!
//! Negative control: `AloneUnready` is ready alone with a part of the data as well.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::status::Readiness;
use tidings::{Config, Control, MemberState, Node, NodeEvent, ReplicaEvent};
use tidings_proptest::nodes::{self, builder, guarded, ready, until};
use tidings_proptest::{Folder, holds_unless, ms};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn config() -> Config {
    let mut config = Config::lan();
    config.forget_after = seconds(60);
    config
}

/// Three nodes that hold a value, of which two end for ever and the third is started again.
fn survivor(sim: Sim) -> Sim {
    let mut sim = sim;
    sim.run_for(seconds(10));
    sim.node(0).put("k", "v").expect("it can be written");
    sim.run_for(seconds(110));
    sim.assert_converged();
    (0..3).for_each(|i| sim.crash(i));
    sim.events();
    sim.restart(2);
    sim
}

fn is_ready(sim: &mut Sim, i: usize) -> bool {
    sim.node(i).joining().is_ready
}

fn ready_alone(sim: &mut Sim) -> usize {
    sim.events().iter().filter(|(_, event)| matches!(event, ReplicaEvent::ReadyAlone { .. })).count()
}

#[test]
fn last_node_with_a_disk_is_ready_after_alone_after() {
    for seed in 0..5 {
        let sim = Sim::new(seed).config(config()).seeds(&[0, 1, 2]).nodes_with_disk(3);
        let mut sim = survivor(sim);
        let began = sim.now();
        sim.run_for(seconds(29));
        assert!(!is_ready(&mut sim, 2), "it waits for the others first");
        sim.run_for(seconds(2));
        assert!(is_ready(&mut sim, 2));
        assert_eq!(ready_alone(&mut sim), 1);
        assert_eq!(sim.node(2).get("k").expect("it is kept").value(), b"v");
        sim.node(2).put("k", "w").expect("it can be written");
        let members = sim.node(2).members();
        assert_eq!(members.len(), 3, "the others are known still: {members:?}");
        for member in members.iter().filter(|member| member.name != "n2") {
            let since = member.since.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            assert_eq!(member.state, MemberState::Down);
            assert!(since >= began, "down since before this run: {since:?}");
        }
        // The others come back after all.
        sim.restart(0);
        sim.restart(1);
        for _ in 0..200 {
            sim.run_for(ms(50));
            assert!(is_ready(&mut sim, 2), "once ready it stays ready");
        }
        sim.assert_converged();
        assert_eq!(sim.node(0).get("k").expect("it has arrived").value(), b"w");
        assert_eq!(ready_alone(&mut sim), 0);
    }
}

#[test]
fn node_without_a_disk_waits_for_a_peer() {
    let mut sim = survivor(Sim::new(1).config(config()).seeds(&[0, 1, 2]).nodes(3));
    sim.run_for(seconds(3_600));
    assert!(!is_ready(&mut sim, 2) && sim.node(2).is_empty());
}

#[test]
fn node_that_was_never_ready_waits_for_a_peer() {
    holds_unless(Control::AloneUnready, 5, |sim| {
        let mut sim =
            sim.config(config()).without_checks().rate(200_000).seeds(&[0, 1, 2]).nodes_with_disk(2);
        for i in 0..4_000 {
            sim.node(0).put(format!("{i}"), vec![b'v'; 100]).expect("it can be written");
        }
        sim.run_for(seconds(10));
        let mut sim = sim.nodes_with_disk(1);
        while sim.node(2).len() < 2_000 {
            sim.run_for(ms(5));
        }
        sim.run_for(ms(200));
        assert!(!is_ready(&mut sim, 2), "it is in the middle of joining");
        (0..3).for_each(|i| sim.crash(i));
        sim.restart(2);
        assert!(!sim.node(2).is_empty(), "its disk holds a part");
        sim.run_for(seconds(3_600));
        assert!(!is_ready(&mut sim, 2), "a part of the data is not served");
        sim.restart(0);
        sim.run_for(seconds(60));
        assert!(is_ready(&mut sim, 2) && sim.node(2).len() == 4_000);
    });
}

#[test]
fn others_that_come_back_in_time_are_waited_for() {
    let sim = Sim::new(3).config(config()).seeds(&[0, 1, 2]).nodes_with_disk(3);
    let mut sim = survivor(sim);
    sim.run_for(seconds(20));
    sim.restart(0);
    sim.run_for(seconds(20));
    assert!(is_ready(&mut sim, 2));
    assert_eq!(ready_alone(&mut sim), 0, "it has caught up instead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_survivor_says_that_it_is_ready_alone() {
    let folder = Folder::new();
    let a = ready(builder("a", &[]).data_dir(folder.at("a"))).await;
    let b = ready(builder("b", &[&a]).data_dir(folder.at("b"))).await;
    let seed = a.addr().to_string();
    a.put("k", "v").expect("it can be written");
    until(|| b.get("k").is_some() && b.status().readiness == Readiness::Joined).await;
    b.put("l", "w").expect("it can be written").durable().await.expect("the disk works");
    a.shutdown_expecting_return().await;
    b.shutdown().await;
    let again = builder("b", &[]).seeds([seed]).data_dir(folder.at("b"));
    let b: Node = again.start().await.expect("it starts");
    assert_eq!(b.status().readiness, Readiness::Joining);
    let alone = |event| matches!(event, NodeEvent::Store(ReplicaEvent::ReadyAlone { .. })).then_some(());
    nodes::event(&b, alone).await;
    guarded(b.ready()).await.expect("the node is open");
    assert_eq!(b.status().readiness, Readiness::Alone);
    assert!(b.get("k").is_some() && b.get("l").is_some());
    let a = b.members().into_iter().find(|member| member.name == "a").expect("it is known");
    assert_eq!(a.state, MemberState::Down);
    assert!(a.since.elapsed().expect("not in the future") < seconds(3_600), "not since 1970");
    b.shutdown().await;
}
