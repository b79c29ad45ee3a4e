//! Values that are bound to the life of the process that wrote them: hidden while it is not believed alive, back after a
//! partition, and dropped like an expired value once it has left, was replaced or forgotten. Scripted stories, and random
//! histories with partitions, crashes, restarts, twins and pauses, under the oracle.
//!
//! Negative control: `AwayEndsRuns` drops them as soon as the process does not answer.

use std::time::Duration;

use tidings::sim::{Disk, Sim, SimWatch};
use tidings::{Config, Control, PutOptions, WatchEvent};
use tidings_proptest::{Dice, Noticed, for_chosen_seeds, notice};

const SECOND: Duration = Duration::from_secs(1);
/// Members are remembered for so long. No partition and no pause in these histories takes longer.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// Within this time a failure is found, and its end too.
const FOUND_IN: Duration = Duration::from_secs(30);

fn bound() -> PutOptions {
    PutOptions::new().ephemeral()
}

fn cluster(seed: u64, control: Option<Control>, nodes: usize) -> Sim {
    let mut config = Config::lan();
    config.forget_after = FORGET_AFTER;
    let sim = Sim::new(seed).broken(control).config(config).seeds(&[0, 1]);
    let mut sim = sim.nodes_with_disk(nodes);
    sim.run_for(SECOND * 10);
    sim
}

/// The keys that each running node shows.
fn shown(sim: &Sim) -> Vec<(usize, Vec<String>)> {
    let keys = |i| sim.node(i).scan("").iter().map(|entry| entry.key().to_owned()).collect();
    (0..sim.len()).filter(|i| sim.is_up(*i)).map(|i| (i, keys(i))).collect()
}

fn all_show(sim: &Sim, expected: &[&str]) {
    for (i, keys) in shown(sim) {
        assert_eq!(keys, expected, "node {i} at {:?}", sim.now());
    }
}

/// That each running node holds so many entries, hidden ones included.
fn all_hold(sim: &Sim, entries: usize) {
    for i in (0..sim.len()).filter(|i| sim.is_up(*i)) {
        assert_eq!(sim.node(i).len(), entries, "node {i} at {:?}", sim.now());
    }
}

fn told(watch: &mut SimWatch) -> Vec<String> {
    let events = std::iter::from_fn(|| watch.try_next());
    let told = events.map(|event| match event {
        WatchEvent::Put(entry) => format!("put {}", entry.key()),
        WatchEvent::Delete { key, .. } => format!("delete {key}"),
        WatchEvent::Expired { key, .. } => format!("expired {key}"),
        other => format!("{other:?}"),
    });
    told.collect()
}

/// Two sides that each put a value, part for half a minute, and meet again.
fn parted(seed: u64, control: Option<Control>) {
    let mut sim = cluster(seed, control, 4);
    sim.node(0).put_with("a", "v", bound()).unwrap();
    sim.node(2).put_with("b", "v", bound()).unwrap();
    sim.run_for(SECOND);
    all_show(&sim, &["a", "b"]);
    let mut watch = sim.node(3).watch("");
    assert_eq!(told(&mut watch).len(), 3, "two values, and that these were all");
    sim.partition(&[0, 1], &[2, 3]);
    sim.run_for(FOUND_IN);
    let side = |i: usize| if i < 2 { "a" } else { "b" };
    shown(&sim).iter().for_each(|(i, keys)| assert_eq!(*keys, [side(*i)], "node {i}"));
    all_hold(&sim, 2);
    assert_eq!(told(&mut watch), ["expired a"]);
    sim.heal();
    sim.run_for(FOUND_IN);
    sim.assert_converged();
    all_show(&sim, &["a", "b"]);
    assert_eq!(told(&mut watch), ["put a"]);
    sim.node(1).delete("a").unwrap();
    sim.run_for(SECOND);
    all_hold(&sim, 1);
    assert_eq!(told(&mut watch), ["delete a"], "a delete is a delete");
}

#[test]
fn partition_hides_bound_values_and_brings_them_back() {
    (0..10).for_each(|seed| parted(seed, None));
}

#[test]
fn dropping_what_does_not_answer_loses_it() {
    std::panic::set_hook(Box::new(|_| {}));
    let lost = notice(|| parted(0, Some(Control::AwayEndsRuns)));
    assert_eq!(lost, Some(Noticed::Oracle));
    let noticed = |seed| notice(|| history(seed, Some(Control::AwayEndsRuns))) == Some(Noticed::Oracle);
    assert!((0..20).any(noticed), "random histories notice it too");
    _ = std::panic::take_hook();
}

/// Nobody knows the process that has put the value: it is no member of its successors.
#[test]
fn restarts_do_not_keep_values_of_an_ended_process() {
    let mut sim = cluster(1, None, 1);
    sim.node(0).put_with("a", "v", bound()).unwrap();
    sim.run_for(SECOND);
    for _ in 0..4 {
        sim.crash(0);
        sim.restart(0);
        all_show(&sim, &[]);
        all_hold(&sim, 1);
        sim.run_for(FORGET_AFTER * 3 / 10);
    }
    all_hold(&sim, 0);
}

#[test]
fn process_that_leaves_takes_its_values_along() {
    let mut sim = cluster(1, None, 4);
    sim.node(3).put_with("a", "v", bound()).unwrap();
    sim.node(3).put("kept", "v").unwrap();
    sim.node(3).put_with("both", "v", bound().ttl(SECOND * 3_600)).unwrap();
    sim.run_for(SECOND);
    let mut watch = sim.node(0).watch("");
    assert_eq!(told(&mut watch).len(), 4);
    sim.leave(3);
    sim.run_for(SECOND * 5);
    all_show(&sim, &["kept"]);
    all_hold(&sim, 1);
    let mut told = told(&mut watch);
    told.sort_unstable();
    assert_eq!(told, ["expired a", "expired both"]);
    sim.assert_converged();
}

#[test]
fn restarted_process_replaces_its_earlier_run() {
    let mut sim = cluster(1, None, 3);
    sim.node(2).put_with("a", "v", bound()).unwrap();
    sim.run_for(SECOND * 2);
    sim.crash(2);
    sim.restart(2);
    assert_eq!(sim.node(2).get("a"), None, "the disk has it, and nobody lives to whom it is bound");
    assert_eq!(sim.node(2).len(), 1);
    sim.run_for(FOUND_IN);
    all_hold(&sim, 0);
    sim.node(2).put_with("a", "again", bound()).unwrap();
    sim.run_for(SECOND);
    all_show(&sim, &["a"]);
    sim.assert_converged();
}

/// A cluster in which `n3` has written a bound value, has crashed, and is held for gone.
fn with_crashed_writer() -> Sim {
    let mut sim = cluster(1, None, 4);
    sim.node(3).put_with("a", "v", bound()).unwrap();
    sim.run_for(SECOND);
    sim.crash(3);
    sim.run_for(FOUND_IN);
    sim
}

#[test]
fn values_of_a_crashed_process_go_when_it_is_forgotten() {
    let mut sim = with_crashed_writer();
    all_show(&sim, &[]);
    all_hold(&sim, 1);
    sim.run_for(FORGET_AFTER);
    all_hold(&sim, 0);
    sim.assert_converged();
}

#[test]
fn values_go_at_once_when_somebody_asks_to_forget() {
    let mut sim = with_crashed_writer();
    sim.node(1).forget("n3").unwrap();
    sim.run_for(SECOND * 5);
    all_show(&sim, &[]);
    // The request itself is the only entry.
    all_hold(&sim, 1);
}

#[test]
fn newcomer_hides_and_drops_values_of_unknown_runs() {
    let mut sim = cluster(1, None, 3);
    sim.node(2).put_with("a", "v", bound()).unwrap();
    sim.run_for(SECOND * 2);
    // All processes end, and their disks alone remember the value. Nobody knows the run any more.
    (0..3).for_each(|i| sim.crash(i));
    (0..2).for_each(|i| sim.restart(i));
    sim = sim.nodes(1);
    sim.run_for(FOUND_IN);
    all_show(&sim, &[]);
    all_hold(&sim, 1);
    sim.run_for(FORGET_AFTER);
    all_hold(&sim, 0);
    sim.assert_converged();
}

#[test]
fn bound_values_of_twins_end_and_nodes_agree() {
    for seed in 0..10 {
        let mut sim = cluster(seed, None, 4);
        sim.node(3).put_with("first", "v", bound()).unwrap();
        sim.run_for(SECOND);
        sim.partition(&[3], &[0, 1, 2]);
        sim.run_for(FOUND_IN);
        // Somebody takes node 3 for dead and starts another process under its name.
        sim.crash(2);
        sim.share_name(2, 3);
        sim.restart_with(2, Disk::Blank);
        sim.run_for(FOUND_IN);
        sim.node(2).put_with("second", "v", bound()).unwrap();
        sim.run_for(SECOND);
        assert!((0..3).all(|i| sim.node(i).get("first").is_none() && sim.node(i).get("second").is_some()));
        assert!(sim.node(3).get("first").is_some(), "for itself it lives");
        sim.heal();
        sim.run_for(FOUND_IN * 2);
        sim.assert_converged();
        let told = shown(&sim);
        assert!(told.iter().all(|(_, keys)| *keys == told[0].1), "{told:?}");
        // One of the twins ends; what the other one puts now stays.
        sim.leave(2);
        sim.run_for(FOUND_IN);
        sim.node(3).put_with("third", "v", bound()).unwrap();
        sim.run_for(FOUND_IN);
        sim.assert_converged();
        assert!(told.len() == 4 && shown(&sim).iter().all(|(_, keys)| keys.contains(&"third".to_owned())));
    }
}

/// One step of a random history.
fn step(sim: &mut Sim, dice: &mut Dice) {
    let i = dice.below(sim.len());
    let key = format!("k{}", dice.below(6));
    match dice.below(24) {
        0..=8 => _ = sim.node(i).put_with(key, "v", bound()),
        9 => _ = sim.node(i).put_with(key, "v", bound().ttl(SECOND * (1 + dice.below(100) as u32))),
        10 => _ = sim.node(i).put(key, "v"),
        11 => _ = sim.node(i).delete(key),
        12 => _ = sim.node(i).batch().put_with("k0", "v", bound()).delete("k1").commit(),
        13 | 14 => {
            let (a, b): (Vec<usize>, Vec<usize>) = (0..sim.len()).partition(|_| dice.below(2) == 0);
            sim.partition(&a, &b);
        }
        15 | 16 => sim.heal(),
        17 => sim.crash(i),
        18 => sim.leave(i),
        19 | 20 if !sim.is_up(i) => {
            let disk = [Disk::Latest, Disk::Latest, Disk::Blank][dice.below(3)];
            sim.restart_with(i, disk);
        }
        21 => {
            sim.pause(i);
            sim.run_for(SECOND * (1 + dice.below(15) as u32));
            sim.resume(i);
        }
        22 if dice.below(4) == 0 => {
            // A twin, for a while.
            sim.crash(i);
            sim.share_name(i, dice.below(sim.len()));
            sim.restart_with(i, Disk::Blank);
        }
        _ => sim.set_loss([0.0, 0.1, 0.3][dice.below(3)]),
    }
}

/// A random history: its values are judged by the oracle at each step, and by what users see at its end.
fn history(seed: u64, control: Option<Control>) {
    let mut dice = Dice::new(seed);
    let mut sim = cluster(seed, control, 3 + dice.below(3));
    let mut parted = Duration::ZERO;
    for _ in 0..60 {
        step(&mut sim, &mut dice);
        let time = Duration::from_millis(dice.below(4_000) as u64);
        sim.run_for(time);
        // Whoever is cut off for longer than members are remembered loses what is bound to its life.
        parted += time;
        if parted > FORGET_AFTER / 3 {
            sim.heal();
            sim.run_for(SECOND * 10);
            parted = Duration::ZERO;
        }
    }
    sim.heal();
    sim.set_loss(0.0);
    // Every process that is gone is replaced, and members have time to settle.
    (0..sim.len()).filter(|i| !sim.is_up(*i)).collect::<Vec<_>>().into_iter().for_each(|i| sim.restart(i));
    sim.run_for(FORGET_AFTER * 2);
    sim.assert_converged();
    let (first, living) = (shown(&sim)[0].1.clone(), sim.node(0).members());
    for (i, keys) in shown(&sim) {
        assert_eq!(keys, first, "node {i} shows something else than node 0");
        assert_eq!(sim.node(i).len(), keys.len(), "node {i} still holds what is hidden");
        for entry in sim.node(i).scan("").into_iter().filter(tidings::Entry::is_ephemeral) {
            let is_alive =
                living.iter().any(|member| member.run == entry.origin() && member.state.is_alive());
            assert!(is_alive, "node {i} shows {entry:?} of a process that has ended");
        }
    }
}

#[test]
fn bound_values_live_exactly_as_long_as_their_process() {
    for_chosen_seeds(60, |seed| history(seed, None));
}
