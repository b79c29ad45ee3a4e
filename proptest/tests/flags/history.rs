//! Random histories of partitions, crashes, twins and malformed definitions: at the end all nodes answer alike.

use std::sync::atomic::{AtomicUsize, Ordering};

use tidings::flags::{Context, Flags};
use tidings::live::LiveState;
use tidings::sim::{Sim, SimNode};
use tidings_proptest::{Dice, for_chosen_seeds, ms};

use crate::{number, pair, simulated, switch};

const NODES: usize = 3;

/// A definition, which every fourth time is malformed in one of several ways.
fn definition(dice: &mut Dice, step: usize) -> String {
    match dice.below(12) {
        0 => "{".to_owned(),
        1 => serde_json::json!({"state": "ENABLED", "variants": {}}).to_string(),
        2 => switch(&serde_json::json!({"unheard_of": 1})),
        3..=5 => switch(&serde_json::json!({"fractional": [["on", step % 100], ["off", 50]]})),
        6 => switch(&serde_json::json!({"$ref": "shared"})),
        _ => number(step.is_multiple_of(2)),
    }
}

fn change(sim: &mut Sim, dice: &mut Dice, step: usize) {
    let (i, node) = (dice.below(NODES), dice.below(NODES));
    let node = sim.node(node);
    let key = format!("flags/default/f{}", dice.below(5));
    match dice.below(12) {
        0 | 1 => {
            let batch = sim.node(0).batch().put("flags/default/a", number(step));
            _ = batch.put("flags/default/b", number(step)).commit();
        }
        2..=5 => _ = node.put(key, definition(dice, step)),
        6 => _ = node.delete(key),
        7 => {
            let shared = [r#"{"shared": {"var": "x"}}"#, r#"{"shared": {"!": {"var": "x"}}}"#, "{}", "["];
            _ = node.put("flags/default/$evaluators", shared[dice.below(4)]);
        }
        8 => _ = node.put("flags/default/$metadata", format!(r#"{{"fractional": {}}}"#, dice.below(3) + 1)),
        9 => sim.partition(&[i], &[(i + 1) % NODES, (i + 2) % NODES]),
        10 => sim.heal(),
        _ if i != 0 && sim.is_up(i) => {
            sim.crash(i);
            if dice.below(4) == 0 {
                // It comes back under the name of another one.
                sim.share_name(i, i % 2 + 1);
            }
            sim.run_for(ms(5));
            sim.restart(i);
        }
        _ => {}
    }
    sim.run_for(ms(dice.below(200) as u64));
}

/// What a node answers to several subjects, with each flag's name.
fn answers(flags: &Flags<SimNode>) -> Vec<String> {
    let snapshot = flags.snapshot();
    let mut answers = Vec::new();
    for subject in 0..8 {
        let context = Context::new(format!("user-{subject}")).with("x", subject % 2 == 0);
        for flag in ["f0", "f1", "f2", "f3", "f4", "a", "b"] {
            let told = snapshot.details(flag, false, &context);
            answers.push(format!(
                "{flag} {} {:?} {:?}",
                told.value,
                told.variant,
                told.error.map(|it| it.code())
            ));
        }
    }
    answers
}

/// Returns whether the last corrections changed an answer: a node that missed them would be found.
fn history(seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    let mut sim = Sim::new(seed).nodes_with_disk(NODES).loss(0.1);
    let mut all: Vec<Option<Flags<SimNode>>> = (0..NODES).map(|_| None).collect();
    for step in 0..40 {
        for (i, flags) in all.iter_mut().enumerate() {
            if flags.as_ref().is_none_or(|flags| flags.state() == LiveState::Ended) && sim.is_up(i) {
                *flags = Some(simulated(&mut sim, i));
            }
        }
        change(&mut sim, &mut dice, step);
        let [a, b] = pair(&all[0].as_ref().expect("node 0 never crashes").snapshot());
        assert_eq!(a, b, "seed {seed}: a batch was torn on its own node");
    }
    sim.heal();
    sim.assert_converged();
    sim.run_for(ms(20_000));
    let all = all.into_iter().enumerate().map(|(i, flags)| match flags {
        Some(flags) if flags.state() != LiveState::Ended => flags,
        _ => simulated(&mut sim, i),
    });
    let all: Vec<_> = all.collect();
    sim.run_for(ms(1));
    // All follow the store. Whether a flag is malformed can depend on which shared rules a node has seen; whether
    // anything is cannot.
    for (i, flags) in all.iter().enumerate() {
        assert_eq!(flags.state(), all[0].state(), "seed {seed}, node {i}");
        assert_eq!(
            flags.state() == LiveState::Rejected,
            !flags.rejected().is_empty(),
            "seed {seed}, node {i}"
        );
    }
    let before = answers(&all[0]);
    // What is malformed is corrected, so that nothing depends on what a node saw before.
    for i in 0..5 {
        let key = format!("flags/default/f{i}");
        let names = |flags: &Flags<SimNode>| flags.rejected().iter().any(|it| it.to_string().contains(&key));
        let is_malformed = all.iter().any(names);
        if is_malformed {
            sim.node(i % NODES).put(key, number(i % 2 == 0)).expect("the node runs");
        }
    }
    sim.node(1).put("flags/default/$evaluators", r#"{"shared": {"var": "x"}}"#).expect("the node runs");
    sim.node(2).put("flags/default/$metadata", r#"{"fractional": 3}"#).expect("the node runs");
    sim.assert_converged();
    sim.run_for(ms(1_000));
    let expected = answers(&all[0]);
    for (i, flags) in all.iter().enumerate() {
        assert_eq!(flags.rejected().len(), 0, "seed {seed}, node {i}: {:?}", flags.rejected());
        assert_eq!(flags.state(), LiveState::Current, "seed {seed}, node {i}");
        assert_eq!(answers(flags), expected, "seed {seed}, node {i}");
    }
    // The same as of a node that has seen nothing before.
    let fresh = simulated(&mut sim, 1);
    assert_eq!(answers(&fresh), expected, "seed {seed}");
    before != expected
}

#[test]
fn nodes_answer_alike_after_random_histories() {
    let changed = AtomicUsize::new(0);
    for_chosen_seeds(1_000, |seed| _ = changed.fetch_add(usize::from(history(seed)), Ordering::Relaxed));
    assert!(changed.into_inner() > 0, "the answers tell nothing apart");
}
