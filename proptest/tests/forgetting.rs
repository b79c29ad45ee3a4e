//! Members that are gone are forgotten: after a time, or when somebody asks for it. What was forgotten counts nowhere,
//! and joins as a new member when it comes back.

use std::time::Duration;

use tidings::members::ForgetError;
use tidings::sim::Sim;
use tidings::{Config, Control, MemberEvent, MemberState, PutOptions};
use tidings_proptest::Dice;

const SECOND: Duration = Duration::from_secs(1);
/// Limit for what the nodes find out by themselves: a failure takes at most 10 s, a sync interval 1 s.
const PATIENCE: Duration = Duration::from_secs(60);

fn cluster(seed: u64, nodes: usize, forget_after: Duration) -> Sim {
    joined(Sim::new(seed), nodes, forget_after)
}

fn joined(sim: Sim, nodes: usize, forget_after: Duration) -> Sim {
    let mut config = Config::lan();
    config.forget_after = forget_after;
    let mut sim = sim.config(config).seeds(&[0, 1]).nodes(nodes);
    sim.run_for(SECOND * 10);
    sim
}

/// The members that a node lists, itself left out, with their states.
fn listed(sim: &Sim, i: usize) -> Vec<(String, MemberState)> {
    let members = sim.node(i).members();
    members.into_iter().skip(1).map(|member| (member.name, member.state)).collect()
}

fn until(sim: &mut Sim, what: &str, mut holds: impl FnMut(&Sim) -> bool) {
    let end = sim.now() + PATIENCE;
    while !holds(sim) {
        assert!(sim.now() < end, "not within a minute: {what}");
        sim.run_for(SECOND / 2);
    }
}

fn knows(sim: &Sim, i: usize, name: &str) -> bool {
    listed(sim, i).iter().any(|(other, _)| other == name)
}

#[test]
fn member_that_was_down_for_too_long_is_forgotten_everywhere() {
    let mut sim = cluster(1, 4, SECOND * 30);
    sim.crash(3);
    until(&mut sim, "node 3 is down", |sim| listed(sim, 0).contains(&("n3".to_owned(), MemberState::Down)));
    sim.run_for(SECOND * 15);
    assert!((0..3).all(|i| knows(&sim, i, "n3")), "it is forgotten too early");
    until(&mut sim, "node 3 is forgotten", |sim| !(0..3).any(|i| knows(sim, i, "n3")));
    let told = sim.member_events();
    let forgotten = told.iter().filter(|(_, _, event)| matches!(event, MemberEvent::Forgotten(_))).count();
    assert_eq!(forgotten, 3, "each node reports it once");
    sim.run_for(SECOND * 60);
    assert!(!(0..3).any(|i| knows(&sim, i, "n3")), "it came back by hearsay");
    sim.restart(3);
    until(&mut sim, "node 3 joins as a new one", |sim| (0..3).all(|i| knows(sim, i, "n3")));
}

#[test]
fn member_is_forgotten_although_the_others_restart() {
    let mut config = Config::lan();
    config.forget_after = SECOND * 30;
    let mut sim = Sim::new(3).config(config).seeds(&[0, 1]).nodes_with_disk(3);
    sim.run_for(SECOND * 10);
    sim.crash(2);
    let mut restart_in_turn = |times: usize| {
        for i in 0..2 * times {
            sim.run_for(SECOND * 10);
            sim.crash(i % 2);
            sim.restart(i % 2);
        }
        sim.run_for(SECOND);
        (0..2).filter(|i| knows(&sim, *i, "n2")).count()
    };
    assert_eq!(restart_in_turn(1), 2, "they look for it after a restart");
    assert_eq!(restart_in_turn(3), 0, "it is never forgotten");
}

#[test]
fn one_request_forgets_a_member_on_all_nodes() {
    for seed in 0..20 {
        let mut sim = cluster(seed, 5, SECOND * 3_600);
        assert_eq!(sim.node(0).forget("n4").unwrap_err(), ForgetError::NotGone { name: "n4".to_owned() });
        assert_eq!(sim.node(0).forget("x").unwrap_err(), ForgetError::Unknown { name: "x".to_owned() });
        sim.crash(4);
        sim.partition(&[0, 1], &[2, 3]);
        sim.set_loss(0.2);
        until(&mut sim, "node 4 is down", |sim| {
            listed(sim, 0).contains(&("n4".to_owned(), MemberState::Down))
        });
        sim.node(0).forget("n4").unwrap();
        assert!(!knows(&sim, 0, "n4"));
        sim.run_for(SECOND * 20);
        sim.heal();
        until(&mut sim, "node 4 is forgotten", |sim| !(0..4).any(|i| knows(sim, i, "n4")));
        sim.set_loss(0.0);
        sim.restart(4);
        let is_alive = |sim: &Sim, i| listed(sim, i).contains(&("n4".to_owned(), MemberState::Alive));
        until(&mut sim, "node 4 is back", |sim| (0..4).all(|i| is_alive(sim, i)));
        sim.assert_converged();
    }
}

#[test]
fn sides_that_forgot_each_other_meet_again() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let mut sim = cluster(seed, 5, SECOND * 20);
        sim.partition(&[0, 1], &[2, 3, 4]);
        sim.run_for(SECOND * 60);
        assert!(
            !knows(&sim, 0, "n2") && !knows(&sim, 2, "n0"),
            "seed {seed}: they did not forget each other"
        );
        sim.node(0).put("left", "v").unwrap();
        sim.node(2).put("right", "v").unwrap();
        sim.set_loss([0.0, 0.3][dice.below(2)]);
        sim.heal();
        until(&mut sim, "all know all", |sim| {
            (0..5).all(|i| {
                let members = listed(sim, i);
                members.len() == 4 && members.iter().all(|(_, state)| *state == MemberState::Alive)
            })
        });
        sim.set_loss(0.0);
        sim.assert_converged();
        assert!((0..5).all(|i| sim.node(i).get("left").is_some() && sim.node(i).get("right").is_some()));
    }
}

/// Three nodes of which the last was cut off when the first asked to forget it. They can reach each other again.
fn with_a_member_asked_to_be_forgotten(seed: u64, control: Option<Control>) -> Sim {
    let mut sim = joined(Sim::new(seed).broken(control), 3, SECOND * 3_600);
    sim.partition(&[0, 1], &[2]);
    until(&mut sim, "node 2 is down", |sim| listed(sim, 0).contains(&("n2".to_owned(), MemberState::Down)));
    sim.node(0).forget("n2").unwrap();
    sim.heal();
    sim
}

/// Whether a member that somebody asked to forget while it was cut off stays known once it is back.
fn stays_known(control: Option<Control>) -> bool {
    let mut sim = with_a_member_asked_to_be_forgotten(7, control);
    sim.run_for(SECOND * 20);
    (0..40).all(|_| {
        sim.run_for(SECOND / 4);
        (0..2).all(|i| listed(&sim, i).contains(&("n2".to_owned(), MemberState::Alive)))
    })
}

#[test]
fn request_does_not_forget_a_member_that_came_back() {
    assert!(stays_known(None));
    assert!(!stays_known(Some(Control::ForgetsLiving)));
}

/// Whether a member that is back after a request to forget it keeps what is bound to its life through a short absence.
fn outlives_an_outage(control: Option<Control>) -> bool {
    let mut sim = with_a_member_asked_to_be_forgotten(8, control);
    let is_back = |sim: &Sim| (0..2).all(|i| listed(sim, i).contains(&("n2".to_owned(), MemberState::Alive)));
    until(&mut sim, "node 2 is back", is_back);
    sim.run_for(SECOND * 20);
    sim.node(2).put_with("session", "v", PutOptions::new().ephemeral()).unwrap();
    sim.run_for(SECOND * 5);
    assert!((0..2).all(|i| sim.node(i).get("session").is_some()), "it is bound to a run that lives");
    sim.partition(&[0, 1], &[2]);
    sim.run_for(SECOND * 15);
    assert!((0..2).all(|i| sim.node(i).get("session").is_none()), "a value whose run is away is hidden");
    sim.heal();
    until(&mut sim, "node 2 is back", is_back);
    sim.run_for(SECOND * 20);
    (0..3).all(|i| sim.node(i).get("session").is_some())
}

#[test]
fn request_ends_when_the_member_is_back() {
    assert!(outlives_an_outage(None));
    assert!(!outlives_an_outage(Some(Control::ForgetRequestKept)));
}
