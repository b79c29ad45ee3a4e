//! A member with a valid identity that tells well-formed lies for a while, among honest members with partitions, broken
//! links, restarts from disks, and clocks that differ.
//!
//! While it is there it may write anything, as any member can. For the honest members the promise is: they do not
//! panic, what they keep for others stays within its limits, and once the liar is gone and three times the permitted
//! clock skew has passed, their writes are never lost and reach everybody, they know one another as they are, and no
//! two of them stay unable to sync because of what the liar told one of them.
//!
//! What they write while it lies may be lost by a false claim about the run of a third node, which no reader can tell
//! from the truth (`docs/replication.md`, "Bounds on claims"). Where such claims may not be forwarded, all writes
//! survive, and in any case those that everybody had merged. A row that the liar makes up at the key of another node is
//! a write or a delete, which every member may make; so these tests have it make up rows at keys of its own alone
//! ([`Spared`]).
//!
//! `TIDINGS_LIE` names the one kind of lie that is told alone.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::time::Duration;

use tidings::core::{Abilities, Input, LinkId, Replica, Setup, Time};
use tidings::sim::{Lie, Sim, Spared};
use tidings::{Config, Control, MemberState, ReplicaEvent};
use tidings_proptest::{Dice, for_chosen_seeds, ms, notice};

/// Histories of all lies together; `TIDINGS_SEEDS` sets another number.
const SEEDS: u64 = 60;

/// Histories of each kind of lie alone.
const SEEDS_ALONE: u64 = 4;

/// Histories in which the fate of each write is known.
const SEEDS_SPARING: u64 = 8;

/// Histories in which a broken rule must be noticed, at most.
const SEEDS_BROKEN: u64 = 60;

const SKEW_MAX: Duration = Duration::from_secs(2);

/// By how many milliseconds the clock of an honest node is ahead: two of them are within the permitted skew.
const HONEST_AHEAD_MS: [i64; 5] = [-900, -450, 0, 450, 900];

/// Writes this long after the last lie are safe from false claims: these reach twice the permitted skew ahead of the
/// believer's clock, which may be one skew ahead of the writer's.
const SAFE_AFTER: Duration = Duration::from_secs(3 * SKEW_MAX.as_secs());

/// How long honest nodes may take to hold the same once the liar is gone. Contexts of thousands of runs that it has made
/// up go with each range of a repair, over links of a limited rate: seed 19 needs more than two minutes.
const HEALING_MAX: Duration = Duration::from_secs(300);

fn config(mesh_members_max: usize) -> Config {
    let mut config = Config::lan();
    config.clock_skew_max = SKEW_MAX;
    config.mesh_members_max = mesh_members_max;
    config
}

/// Lets time pass, and checks all that honest nodes keep for others against its limits.
fn pass(sim: &mut Sim, honest: usize, time: Duration) {
    sim.run_for(time);
    for i in 0..honest {
        for kept in sim.node(i).kept() {
            let is_within = kept.limit.is_none_or(|limit| kept.count <= limit);
            assert!(is_within, "node {i} keeps {} {}, limit {:?}", kept.count, kept.name, kept.limit);
        }
    }
}

fn is_refused_claim(event: &(usize, ReplicaEvent)) -> bool {
    matches!(event.1, ReplicaEvent::ClaimRefused { .. })
}

/// What a node believes falsely of an honest one: that it is dead, or metadata that it does not have.
fn false_belief(sim: &Sim, honest: usize) -> Option<String> {
    (0..honest).flat_map(|i| (0..honest).map(move |other| (i, other))).find_map(|(i, other)| {
        // A node lists itself first. Others may live under its name, as far as the liar says.
        let own = sim.node(other).members().remove(0);
        let known = sim.node(i).members().into_iter().find(|member| member.run == own.run);
        match known.filter(|known| known.state == MemberState::Alive) {
            None => Some(format!("node {i} shuts node {other} out")),
            Some(known) if known.meta != own.meta => {
                Some(format!("node {i} has {:?} of {other}", known.meta))
            }
            Some(_) => None,
        }
    })
}

/// The liar is gone. The honest nodes go on writing: nothing of that is lost, and they come to hold the same.
fn heal(sim: &mut Sim, honest: usize, seed: u64) {
    sim.run_for(SAFE_AFTER + ms(1_000));
    for n in 0..20 {
        for i in 0..honest {
            sim.node(i).put(format!("later {i} {n}"), "v").unwrap();
        }
        sim.run_for(ms(150));
    }
    let end = sim.now() + HEALING_MAX;
    while !sim.is_converged() {
        let statuses =
            || (0..honest).map(|i| format!("{:?}", sim.node(i).status())).collect::<Vec<_>>().join("\n");
        assert!(sim.now() < end, "seed {seed}: honest nodes differ\n{}", statuses());
        sim.run_for(ms(250));
    }
    for i in 0..honest {
        for (writer, n) in (0..honest).flat_map(|writer| (0..20).map(move |n| (writer, n))) {
            let key = format!("later {writer} {n}");
            assert!(sim.node(i).get(&key).is_some(), "seed {seed}: node {i} lost {key}");
        }
    }
    while let Some(belief) = false_belief(sim, honest) {
        assert!(sim.now() < end, "seed {seed}: {belief}");
        sim.run_for(ms(250));
    }
    sim.events();
    for i in 0..honest {
        sim.node(i).put(format!("last {i}"), "v").unwrap();
    }
    sim.run_for(Config::lan().sync_interval * 8);
    assert!(
        !sim.events().iter().any(is_refused_claim),
        "seed {seed}: honest nodes refuse each other's claims"
    );
    for (i, writer) in (0..honest).flat_map(|i| (0..honest).map(move |writer| (i, writer))) {
        assert!(
            sim.node(i).get(format!("last {writer}")).is_some(),
            "seed {seed}: node {i} lacks the last write"
        );
    }
}

fn write(sim: &Sim, dice: &mut Dice, i: usize) {
    let key = format!("k{}", dice.below(12));
    // A clock that peers have moved ahead may refuse a write for a moment.
    match dice.below(5) {
        0 => _ = sim.node(i).delete(key),
        1 => _ = sim.node(i).set("s").add(key),
        2 => _ = sim.node(i).put(key, vec![b'x'; 100_000]),
        _ => _ = sim.node(i).put(key, "v"),
    }
}

/// Honest nodes with clocks that differ within the permitted skew, and one that is to lie and whose clock is ahead by
/// one of these times in milliseconds.
fn cluster(
    seed: u64,
    dice: &mut Dice,
    config: Config,
    control: Option<Control>,
    ahead: &[i64],
) -> (Sim, usize) {
    let honest = 3 + dice.below(2);
    let sim = Sim::new(seed).broken(control).config(config).without_checks().seeds(&[0, 1]);
    let mut sim = sim.delay(ms([1, 20][dice.below(2)])).nodes_with_disk(honest).nodes(1);
    for i in 0..honest {
        sim.skew(i, HONEST_AHEAD_MS[dice.below(HONEST_AHEAD_MS.len())]);
    }
    sim.skew(honest, ahead[dice.below(ahead.len())]);
    sim.run_for(ms(3_000));
    (sim, honest)
}

fn history(seed: u64, lies: &[Lie], control: Option<Control>) {
    let mut dice = Dice::new(seed);
    let config = config([30, 2][dice.below(2)]);
    let (mut sim, honest) = cluster(seed, &mut dice, config, control, &[0, 900, -900, 3_600_000, -3_600_000]);
    let liar = honest;
    sim.lie(liar, lies, [0.05, 0.3, 0.8][dice.below(3)]);
    for _ in 0..40 {
        let i = dice.below(honest + 1);
        write(&sim, &mut dice, i);
        match dice.below(12) {
            0 => sim.break_between(liar, dice.below(honest)),
            1 => sim.partition(&[liar, dice.below(honest)], &[dice.below(honest)]),
            2 => sim.restart(dice.below(honest)),
            3 => sim.break_between(dice.below(honest), dice.below(honest)),
            _ => {}
        }
        pass(&mut sim, honest, ms([0, 1, 40, 300, 1_500][dice.below(5)]));
        sim.heal();
    }
    sim.crash(liar);
    heal(&mut sim, honest, seed);
}

/// What honest nodes lost of their writes, each at a key of its own, and which of their deletes were undone.
#[derive(Debug, Default, PartialEq)]
struct Lost {
    /// Written and merged by all before the first lie.
    before: Vec<String>,
    /// Written while the liar lied.
    during: Vec<String>,
    /// Deleted while the liar lied, and there again.
    revived: Vec<String>,
}

/// A history without restarts, which lose what is not on the disk.
fn lost(seed: u64, config: Config, lies: &[Lie], spared: Spared, control: Option<Control>) -> Lost {
    let mut dice = Dice::new(seed);
    let (mut sim, honest) = cluster(seed, &mut dice, config, control, &[0, 900, -900]);
    let liar = honest;
    let (mut before, mut during, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for (i, n) in (0..honest).flat_map(|i| (0..10).map(move |n| (i, n))) {
        for key in [format!("before {i} {n}"), format!("gone {i} {n}")] {
            sim.node(i).put(&key, "v").unwrap();
            before.extend(key.starts_with("before").then_some(key));
        }
    }
    sim.run_for(ms(5_000));
    assert!(sim.is_converged());
    sim.lie_sparing(liar, lies, [0.05, 0.3][dice.below(2)], spared);
    for n in 0..60 {
        let i = dice.below(honest);
        let value = if dice.below(6) == 0 { vec![b'x'; 100_000] } else { b"v".to_vec() };
        let (key, gone) = (format!("during {n}"), format!("gone {} {}", dice.below(honest), dice.below(10)));
        // A clock that peers have moved ahead may refuse a write for a moment.
        during.extend(sim.node(i).put(&key, value).is_ok().then_some(key));
        deleted.extend(sim.node(i).delete(&gone).is_ok().then_some(gone));
        match dice.below(12) {
            0 => sim.break_between(liar, dice.below(honest)),
            1 => sim.partition(&[liar, dice.below(honest)], &[dice.below(honest)]),
            2 => sim.break_between(dice.below(honest), dice.below(honest)),
            _ => {}
        }
        pass(&mut sim, honest, ms([0, 1, 40, 300][dice.below(4)]));
        sim.heal();
    }
    sim.crash(liar);
    heal(&mut sim, honest, seed);
    let held = |key: &String| (0..honest).any(|i| sim.node(i).get(key).is_some());
    let missing = |keys: Vec<String>| keys.into_iter().filter(|key| !held(key)).collect();
    Lost {
        before: missing(before),
        during: missing(during),
        revived: deleted.into_iter().filter(held).collect(),
    }
}

/// Whether one of the histories with a broken rule fails, from this seed on.
fn is_noticed(first: u64, history: impl Fn(u64)) -> bool {
    let noticed = (first..first + SEEDS_BROKEN).find(|seed| notice(|| history(*seed)).is_some());
    println!("noticed with seed {noticed:?}");
    noticed.is_some()
}

#[test]
fn honest_nodes_recover_from_all_lies_together() {
    for_chosen_seeds(SEEDS, |seed| history(seed, &Lie::ALL, None));
}

#[test]
fn honest_nodes_recover_from_each_kind_of_lie() {
    let failed = Mutex::new(Vec::new());
    let chosen = std::env::var("TIDINGS_LIE").ok();
    let is_chosen = |lie: &Lie| chosen.as_ref().is_none_or(|name| format!("{lie:?}") == *name);
    for lie in Lie::ALL.into_iter().filter(is_chosen) {
        for_chosen_seeds(SEEDS_ALONE, |seed| {
            if catch_unwind(|| history(seed, &[lie], None)).is_err() {
                failed.lock().expect("nobody panics with it").push((lie, seed));
            }
        });
    }
    let failed = failed.into_inner().expect("nobody panics with it");
    assert!(failed.is_empty(), "histories with one kind of lie that failed: {failed:?}");
}

/// The liar tells one node of claims about another one that never writes. What the first then sends to the second is
/// beyond what the second wrote.
fn silent_node(seed: u64, sim: Sim) {
    let mut sim = sim.config(config(30)).without_checks().seeds(&[0, 1]).nodes(3);
    sim.run_for(ms(2_000));
    sim.node(0).put("first", "v").unwrap();
    sim.run_for(ms(2_000));
    sim.partition(&[0], &[2]);
    sim.lie(2, &[Lie::Starts, Lie::News], 0.9);
    sim.run_for(ms(6_000));
    sim.crash(2);
    sim.heal();
    sim.run_for(SAFE_AFTER + HEALING_MAX / 4);
    sim.node(1).put("after", "v").unwrap();
    sim.run_for(HEALING_MAX / 2);
    sim.events();
    sim.node(1).put("last", "v").unwrap();
    sim.run_for(ms(2_000));
    for key in ["after", "last"] {
        let held = [0, 1].map(|i| sim.node(i).get(key).is_some());
        assert!(
            held[0],
            "seed {seed}: node 0 lacks {key}: {held:?}, {:#?}",
            [0, 1].map(|i| sim.node(i).status())
        );
    }
    assert!(!sim.events().iter().any(is_refused_claim), "honest nodes refuse each other's claims");
    assert!(sim.is_converged());
}

#[test]
fn false_claim_about_a_silent_node_parts_no_honest_pair() {
    (0..16).for_each(|seed| silent_node(seed, Sim::new(seed)));
    let broken = |seed| Sim::new(seed).broken(Some(Control::OwnClaimUnfulfilled));
    let is_noticed = |seed| notice(|| silent_node(seed, broken(seed))).is_some();
    assert!((0..16).any(is_noticed), "the broken rule is not detected");
}

#[test]
fn member_comes_back_under_a_later_generation_than_any_lie() {
    let rosters = |seed, control| history(seed, &[Lie::Rosters], control);
    (115..122).for_each(|seed| rosters(seed, None));
    let is_noticed = |seed| notice(|| rosters(seed, Some(Control::NotOutranked))).is_some();
    let noticed = (115..400).find(|seed| is_noticed(*seed));
    println!("noticed with seed {noticed:?}");
    assert!(noticed.is_some(), "the broken rule is not detected");
}

#[test]
fn member_whose_end_was_made_up_comes_back() {
    // In this history a node believes that a node with which it is not linked has ended.
    let rosters = |control| history(122, &[Lie::Rosters], control);
    rosters(None);
    assert!(notice(|| rosters(Some(Control::EndIsFinal))).is_some(), "the broken rule is not detected");
}

#[test]
fn writes_survive_claims_forwarded_by_no_delegate() {
    // All are linked with all, so that nobody forwards.
    let nothing = |seed: u64, control| {
        let lost = lost(seed, config(30), &[Lie::FlushEnds], Spared::Rows, control);
        assert_eq!(lost, Lost::default(), "seed {seed}");
    };
    for_chosen_seeds(SEEDS_SPARING, |seed| nothing(seed, None));
    let broken = |seed| nothing(seed, Some(Control::ForwardedFromAnybody));
    assert!(is_noticed(0, broken), "a claim that nobody may forward loses nothing");
}

#[test]
fn writes_survive_claims_about_the_run_of_their_reader() {
    // The liar names the run of its reader beyond what that has written, and no run of a third node.
    let nothing = |seed: u64, control| {
        let lies = [Lie::FlushEnds, Lie::News];
        let lost = lost(seed, config(30), &lies, Spared::RowsAndRuns, control);
        assert_eq!(lost, Lost::default(), "seed {seed}");
    };
    for_chosen_seeds(SEEDS_SPARING, |seed| nothing(seed, None));
    let broken = |seed| nothing(seed, Some(Control::OwnClaimTaken));
    assert!(is_noticed(0, broken), "a claim that its reader knows to be false loses nothing");
}

/// What no check can prevent where a liar may claim: so here its claims are taken although it forwards nothing.
#[test]
fn writes_that_all_had_merged_survive_false_claims() {
    let lost =
        |seed| lost(seed, config(30), &[Lie::FlushEnds], Spared::Rows, Some(Control::ForwardedFromAnybody));
    let lost: Vec<Lost> = (0..2).map(lost).collect();
    assert!(lost.iter().all(|lost| lost.before.is_empty() && lost.revived.is_empty()), "{lost:?}");
    assert!(lost.iter().any(|lost| !lost.during.is_empty()), "nothing is claimed that was not merged");
}

#[test]
fn tasks_of_a_session_are_limited() {
    let asks = |seed, control| {
        let mut dice = Dice::new(seed);
        let (mut sim, honest) = cluster(seed, &mut dice, config(30), control, &[0]);
        sim.lie(honest, &[Lie::Asks], 0.8);
        (0..20).for_each(|_| pass(&mut sim, honest, ms(250)));
    };
    (0..4).for_each(|seed| asks(seed, None));
    assert!(is_noticed(0, |seed| asks(seed, Some(Control::TasksUnlimited))), "the limit is not reached");
}

#[test]
fn what_crowds_of_made_up_runs_leave_is_limited() {
    for seed in 0..2 {
        let mut dice = Dice::new(seed);
        let (mut sim, honest) = cluster(seed, &mut dice, config(30), None, &[0]);
        sim.events();
        sim.lie(honest, &[Lie::Crowds], 0.05);
        (0..20).for_each(|_| pass(&mut sim, honest, ms(500)));
        let is_of_crowd =
            |event: &ReplicaEvent| matches!(event, ReplicaEvent::NameTwice(who) if who.name == "lie-crowd");
        let told = sim.events().iter().filter(|(_, event)| is_of_crowd(event)).count();
        assert!(told < 100, "seed {seed}: one name is reported {told} times");
    }
}

#[test]
fn reports_of_refused_rows_are_limited() {
    let refused = |seed, control| history(seed, &[Lie::RefusedRows], control);
    assert!(is_noticed(0, |seed| refused(seed, Some(Control::RefusalsAllTold))), "the limit is not reached");
}

#[test]
fn made_up_metadata_goes_once_its_author_is_gone() {
    let rosters = |seed, control| history(seed, &[Lie::Rosters], control);
    (12..16).for_each(|seed| rosters(seed, None));
    assert!(is_noticed(12, |seed| rosters(seed, Some(Control::MetaNotOutranked))), "no member believes it");
}

/// Nodes refuse further links, which the simulator does not. So the limit would be noticed if they did not.
#[test]
fn too_many_links_would_be_noticed() {
    let mut replica = Replica::new(Setup::new(Config::lan(), 1));
    let exceeds = |replica: &Replica| {
        let links = replica.kept().into_iter().find(|kept| kept.name == "links").expect("they are counted");
        links.limit.is_some_and(|limit| links.count > limit)
    };
    for id in 0..1_024 {
        replica.handle(Time::default(), Input::LinkUp(LinkId::new(id), Abilities::OURS));
    }
    assert!(!exceeds(&replica));
    replica.handle(Time::default(), Input::LinkUp(LinkId::new(1_024), Abilities::OURS));
    assert!(exceeds(&replica));
}
