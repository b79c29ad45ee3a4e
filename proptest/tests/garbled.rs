//! A member whose frames are changed at random for a while, into well-formed and malformed ones, and which then leaves.
//!
//! While it is linked it may write anything, as any member can. Writes of the other nodes after its end must last. A
//! believed claim with a clock in the far future would remove them on every node, their writer included.
//!
//! Another member calls its log by the name of another node's log, and must not make the writes of that node be left
//! out.
//!
//! A third one writes lists of voters and records of settings that count as later than any other. It can take the leases
//! that way, as any member can, but not prevent that other voters are put in force. A list may also say that any term
//! was granted. Leases are granted above it, and the voters can be changed.
//!
//! Negative controls: `ClaimsUnbounded` believes claims with any clock, and loses later writes in some history.
//! `StatedLog` believes the name of the log. `EpochUnbounded` believes any number of changes.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Control, ReplicaEvent};
use tidings_proptest::{
    Dice, SHORT_QUARANTINE, for_chosen_seeds, ms, notice, run_until, short_leases, voters,
};

/// Histories per test run; `TIDINGS_SEEDS` sets another number.
const SEEDS: u64 = 300;

/// Nodes that keep to the protocol. One more node does not.
const HONEST: usize = 3;

/// Bound of a claim: twice the permitted skew ahead of the clock. Writes made after this time are safe from false
/// claims.
const CLAIMS_AHEAD: Duration = Duration::from_secs(4);

fn write(sim: &mut Sim, dice: &mut Dice, nodes: usize) {
    let i = dice.below(nodes);
    let key = format!("k{}", dice.below(12));
    match dice.below(4) {
        0 => _ = sim.node(i).delete(key).unwrap(),
        1 => _ = sim.node(i).set("s").add(key).unwrap(),
        2 => _ = sim.node(i).counter("c").add(1).unwrap(),
        _ => _ = sim.node(i).put(key, "v").unwrap(),
    }
}

fn history(seed: u64, control: Option<Control>) {
    let mut dice = Dice::new(seed);
    let mut config = Config::lan();
    config.clock_skew_max = CLAIMS_AHEAD / 2;
    config.removals_max = [0, 4_096][dice.below(2)];
    let sim = Sim::new(seed).broken(control).config(config).without_checks();
    let mut sim = sim.delay(ms([1, 20][dice.below(2)])).nodes(HONEST + 1);
    let liar = HONEST;
    sim.garble(liar, [0.05, 0.3, 0.8][dice.below(3)]);
    for _ in 0..60 {
        write(&mut sim, &mut dice, HONEST + 1);
        if dice.below(6) == 0 {
            sim.break_between(liar, dice.below(HONEST));
        }
        if dice.below(10) == 0 {
            sim.partition(&[liar, dice.below(HONEST)], &[dice.below(HONEST)]);
        }
        sim.run_for(ms([0, 1, 40, 300][dice.below(4)]));
        sim.heal();
    }
    sim.crash(liar);
    sim.run_for(CLAIMS_AHEAD + ms(1_000));
    for n in 0..20 {
        for i in 0..HONEST {
            sim.node(i).put(format!("later {i} {n}"), "v").unwrap();
        }
        sim.run_for(ms([0, 7, 100][dice.below(3)]));
    }
    sim.assert_converged();
    for i in 0..HONEST {
        for (writer, n) in (0..HONEST).flat_map(|writer| (0..20).map(move |n| (writer, n))) {
            let key = format!("later {writer} {n}");
            assert!(sim.node(i).get(&key).is_some(), "seed {seed}: node {i} lost {key}");
        }
    }
}

#[test]
fn writes_last_once_a_garbling_member_is_gone() {
    for_chosen_seeds(SEEDS, |seed| history(seed, None));
}

#[test]
fn without_bounds_on_claims_later_writes_are_lost() {
    let is_lost = |seed| notice(|| history(seed, Some(Control::ClaimsUnbounded))).is_some();
    assert!((0..SEEDS).any(is_lost), "ClaimsUnbounded is not detected");
}

/// Writes of node 0 while it is cut off. The log of node 2 has fewer changes, so that node 0 would believe that node 1
/// has come so far.
const WRITES: usize = 20;

/// Lets node 2 repair node 1 under the name of the log of node 0, which is cut off meanwhile. Returns how many writes
/// of node 0 both have in the end, and whether node 1 has reported a false claim.
fn stolen_log(control: Option<Control>) -> (usize, bool) {
    let mut sim = Sim::new(1).broken(control).seeds(&[0, 1]).without_checks().nodes(3);
    sim.partition(&[2], &[0, 1]);
    sim.name_log_of(2, 0);
    sim.run_for(ms(10_000));
    for i in 0..2 {
        sim.node(i).put(format!("first {i}"), "v").unwrap();
    }
    sim.run_for(ms(5_000));
    sim.partition(&[0], &[1]);
    for n in 0..WRITES {
        sim.node(0).put(format!("k{n}"), "v").unwrap();
    }
    for n in 0..WRITES / 2 {
        sim.node(2).put(format!("false {n}"), "v").unwrap();
    }
    sim.heal();
    sim.partition(&[0], &[1, 2]);
    sim.run_for(ms(30_000));
    let is_told =
        |(i, event): (usize, ReplicaEvent)| i == 1 && matches!(event, ReplicaEvent::ClaimRefused { .. });
    let is_reported = sim.events().into_iter().any(is_told);
    sim.crash(2);
    sim.heal();
    sim.run_for(ms(60_000));
    let has = |i: usize, n: usize| sim.node(i).get(format!("k{n}")).is_some();
    ((0..WRITES).filter(|n| has(0, *n) && has(1, *n)).count(), is_reported)
}

#[test]
fn naming_the_log_of_another_node_loses_no_write() {
    assert_eq!(stolen_log(None), (WRITES, true));
    let (kept, is_reported) = stolen_log(Some(Control::StatedLog));
    assert!(kept < WRITES && !is_reported, "StatedLog is not detected: {kept} writes, {is_reported}");
}

/// The greatest epoch that is read.
const EPOCH_MAX: u64 = u64::MAX / 4;

/// A member writes a list of voters that names itself, with any epoch and term floor, and a record of settings that was
/// changed any number of times. Other voters are put in force by hand after its end, and have to elect.
fn forged(seed: u64, epoch: u64, control: Option<Control>) {
    let mut dice = Dice::new(seed);
    let mut any = || (dice.below(usize::MAX) as u64) >> dice.below(64);
    let (floor, number) = (any(), any());
    let config = short_leases(3);
    let sim = Sim::new(seed).broken(control).config(config).seeds(&[0, 2]).without_checks();
    let mut sim = sim.nodes_with_disk(HONEST + 1);
    sim.run_for(SHORT_QUARANTINE);
    sim.forge_voters(HONEST, epoch, floor, vec!["n3".to_owned()]);
    sim.forge_settings(HONEST, number);
    sim.run_for(ms(2_000));
    sim.crash(HONEST);
    sim.node(0).force_voters(voters(HONEST)).expect("it can be written");
    // What fails is told by the values that were written.
    println!("seed {seed}: epoch {epoch}, floor {floor}, record {number}");
    let step = ms(10);
    run_until(&mut sim, step, ms(5_000), |sim| {
        (0..HONEST).all(|i| sim.node(i).voters().is_some_and(|list| list.voters == voters(HONEST)))
    });
    sim.node(1).campaign("cron", "x").expect("there are voters");
    run_until(&mut sim, step, ms(20_000), |sim| sim.node(1).holds("cron").is_some());
    let mut settings = sim.node(2).cluster_settings().expect("it is up").present;
    settings.mesh_members_max = 9;
    sim.node(2).set_cluster_settings(settings).expect("it can be written");
    run_until(&mut sim, step, ms(5_000), |sim| {
        (0..HONEST).all(|i| sim.node(i).config().is_some_and(|config| config.mesh_members_max == 9))
    });
}

#[test]
fn forged_lists_of_voters_end_no_elections() {
    for_chosen_seeds(40, |seed| {
        let mut dice = Dice::new(seed);
        let edges = [u64::MAX, u64::MAX - 1, EPOCH_MAX + 1, EPOCH_MAX, EPOCH_MAX - 1, 1, 2];
        let random = (dice.below(usize::MAX) as u64) >> dice.below(64);
        forged(seed, edges.get(dice.below(edges.len() * 2)).copied().unwrap_or(random), None);
    });
    assert!(notice(|| forged(0, EPOCH_MAX, Some(Control::EpochUnbounded))).is_some());
}

/// How far ahead of the clock a term floor may be.
const FLOOR_AHEAD_MAX: Duration = Duration::from_secs(1_000 * 365 * 24 * 3_600);

/// A member writes a list of the voters of today with a term floor, which counts or does not. After its end a lease is
/// granted, the voters are changed and start again, others are forced, and a lease is granted again.
fn forged_floor(floor: impl FnOnce(u64) -> u64, counts: bool) {
    let sim = Sim::new(1).config(short_leases(HONEST)).seeds(&[0, 2]).without_checks();
    let mut sim = sim.nodes_with_disk(HONEST + 2);
    sim.run_for(SHORT_QUARANTINE);
    sim.node(0).put("k", "v").unwrap();
    let clock_ms = sim.node(0).get("k").expect("it was written").stamp().wall_ms();
    sim.forge_voters(HONEST + 1, 6, floor(clock_ms), voters(HONEST));
    sim.run_for(ms(2_000));
    sim.crash(HONEST + 1);
    assert_eq!(sim.node(0).voters().map(|list| list.epoch), Some(if counts { 6 } else { 0 }));
    let lead = |sim: &mut Sim, i: usize| {
        sim.node(i).campaign("cron", "x").expect("there are voters");
        run_until(sim, ms(10), ms(20_000), |sim| sim.node(i).holds("cron").is_some());
    };
    let has_list = |sim: &mut Sim, voters: &[&str]| {
        let has_list = |list: tidings::voters::VoterList| list.next.is_none() && list.voters == voters;
        (0..=HONEST).all(|i| sim.node(i).voters().is_some_and(has_list))
    };
    lead(&mut sim, 1);
    sim.node(0).set_voters(["n0", "n1", "n3"]).expect("it begins");
    run_until(&mut sim, ms(10), ms(20_000), |sim| sim.node(0).voters_set() == Some(Ok(())));
    run_until(&mut sim, ms(10), ms(5_000), |sim| has_list(sim, &["n0", "n1", "n3"]));
    (0..=HONEST).for_each(|i| sim.restart(i));
    sim.run_for(SHORT_QUARANTINE);
    lead(&mut sim, 0);
    sim.node(2).force_voters(["n2", "n3"]).expect("it can be written");
    run_until(&mut sim, ms(10), ms(5_000), |sim| has_list(sim, &["n2", "n3"]));
    sim.crash(0);
    lead(&mut sim, 2);
}

#[test]
fn forged_term_floors_end_no_elections() {
    let furthest = FLOOR_AHEAD_MAX.as_millis() as u64;
    forged_floor(|clock_ms| (clock_ms + furthest) << 16, true);
    forged_floor(|clock_ms| (clock_ms + furthest + 2_000) << 16, false);
    // The greatest that is read, and one more.
    forged_floor(|_| EPOCH_MAX, false);
    forged_floor(|_| EPOCH_MAX + 1, false);
}
