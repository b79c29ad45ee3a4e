//! Values with a merge of their own: whatever nodes write at the same time, in whatever order it arrives, all of them
//! come to the same value, and nothing that was written is lost.
//!
//! Negative control: a plain map, which keeps the concurrent version with the greatest stamp, loses changes in the same
//! histories.

use std::collections::BTreeSet;
use std::sync::Arc;

use crdts::{CmRDT, CvRDT, GSet, VClock};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tidings::sim::{Sim, SimNode};
use tidings::{Map, OnlyIf, PutOptions, WriteError};
use tidings_proptest::ms;

const NODES: usize = 3;

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Change(usize, u32),
    Part(usize),
    Heal,
    Run(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..NODES, 0..1_000_u32).prop_map(|(node, what)| Step::Change(node, what)),
        1 => (0..NODES).prop_map(Step::Part),
        1 => Just(Step::Heal),
        2 => (1..400_u64).prop_map(Step::Run),
    ];
    prop::collection::vec(step, 1..40)
}

/// Runs a history in which `change` changes a value, until all nodes have the same writes.
fn run(seed: u64, steps: &[Step], mut change: impl FnMut(&SimNode, u32)) -> Sim {
    let mut sim = Sim::new(seed).loss(0.1).nodes(NODES);
    for step in steps {
        match step {
            Step::Change(node, what) => change(&sim.node(*node), *what),
            Step::Part(node) => {
                let others: Vec<usize> = (0..NODES).filter(|other| other != node).collect();
                sim.partition(&[*node], &others);
            }
            Step::Heal => sim.heal(),
            Step::Run(time) => sim.run_for(ms(*time)),
        }
    }
    sim.heal();
    sim.assert_converged();
    sim
}

/// What was changed, each once.
fn changes(steps: &[Step]) -> Vec<u32> {
    let what = |step: &Step| if let Step::Change(_, what) = step { Some(*what) } else { None };
    steps.iter().filter_map(what).collect()
}

/// A type of the user's: the greatest number of each of two kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Highest {
    even: u32,
    odd: u32,
}

impl CvRDT for Highest {
    type Validation = std::convert::Infallible;

    fn validate_merge(&self, _: &Self) -> Result<(), Self::Validation> {
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.even = self.even.max(other.even);
        self.odd = self.odd.max(other.odd);
    }
}

fn concatenated(node: &SimNode) -> Map<Vec<u32>, SimNode> {
    // The order of the versions matters here.
    node.map("list/")
        .resolve_with(|versions: &[Arc<Vec<u32>>]| versions.iter().flat_map(|it| it.to_vec()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn merged_values_lose_no_change_and_agree(seed in any::<u64>(), steps in steps()) {
        let sim = run(seed, &steps, |node, what| {
            node.merged::<GSet<u32>>("set").update(|set| set.insert(what)).unwrap();
            node.merged::<Highest>("highest").update(|highest| {
                let place = if what % 2 == 0 { &mut highest.even } else { &mut highest.odd };
                *place = what.max(*place);
            }).unwrap();
            let actor = node.name().to_owned();
            node.merged::<VClock<String>>("count").update(|count| {
                let step = count.inc(actor.clone());
                count.apply(step);
            }).unwrap();
        });
        let changes = changes(&steps);
        let greatest = |odd| changes.iter().copied().filter(|what| what % 2 == odd).max().unwrap_or(0);
        for i in 0..NODES {
            let node = sim.node(i);
            let set = node.merged::<GSet<u32>>("set").get().unwrap().read();
            prop_assert_eq!(set, changes.iter().copied().collect::<BTreeSet<u32>>());
            let highest = node.merged::<Highest>("highest").get().unwrap();
            prop_assert_eq!(highest, Highest { even: greatest(0), odd: greatest(1) });
            let count = node.merged::<VClock<String>>("count").get().unwrap();
            prop_assert_eq!(count.iter().map(|dot| dot.counter).sum::<u64>(), changes.len() as u64);
        }
    }

    #[test]
    fn resolved_values_agree_whatever_the_order(seed in any::<u64>(), steps in steps()) {
        let sim = run(seed, &steps, |node, what| {
            concatenated(node).update("k", |old| [old.map_or(&[][..], Vec::as_slice), &[what]].concat()).unwrap();
        });
        let all = |i| concatenated(&sim.node(i)).get("k").unwrap();
        (1..NODES).for_each(|i| assert_eq!(all(i), all(0), "node {i}"));
        let found: BTreeSet<u32> = all(0).iter().flat_map(|list| list.iter().copied()).collect();
        prop_assert_eq!(found, changes(&steps).into_iter().collect::<BTreeSet<u32>>());
        let iterated: Vec<_> = concatenated(&sim.node(0)).iter().map(|item| item.unwrap().1).collect();
        prop_assert_eq!(iterated, all(0).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn plain_map_loses_concurrent_changes() {
    let steps = [
        Step::Part(0),
        Step::Change(0, 1),
        Step::Change(1, 2),
        Step::Heal,
        Step::Run(5_000),
        Step::Change(2, 3),
    ];
    let sim = run(1, &steps, |node, what| {
        let map = node.map::<Vec<u32>>("list/");
        map.update("k", |old| [old.map_or(&[][..], Vec::as_slice), &[what]].concat()).unwrap();
    });
    assert_eq!(
        sim.node(0).map::<Vec<u32>>("list/").get("k").unwrap().unwrap().len(),
        2,
        "one of three is lost"
    );
}

#[test]
fn concurrent_value_that_arrives_refuses_a_write_by_revision() {
    let mut sim = Sim::new(1).nodes(2);
    sim.run_for(ms(1_000));
    sim.partition(&[0], &[1]);
    sim.node(1).put("k", "earlier").unwrap();
    sim.run_for(ms(10));
    sim.node(0).put("k", "later").unwrap();
    let read = sim.node(0).get("k").unwrap();
    sim.heal();
    sim.assert_converged();
    assert_eq!(
        sim.node(0).get("k").unwrap().stamp(),
        read.stamp(),
        "the value is the same, with another one beside"
    );
    let write = |only_if| sim.node(0).put_with("k", "new", PutOptions::new().only_if(only_if));
    let refused = write(OnlyIf::Revision(read.revision()));
    assert!(matches!(refused, Err(WriteError::Condition { .. })), "it would replace what was never read");
    write(OnlyIf::Revision(sim.node(0).get("k").unwrap().revision())).unwrap();
}

#[test]
fn watch_of_a_merged_value_gives_the_joined_one() {
    let mut sim = Sim::new(1).nodes(2);
    sim.run_for(ms(1_000));
    sim.partition(&[0], &[1]);
    for (i, what) in [(0, 1), (1, 2)] {
        sim.node(i).merged::<GSet<u32>>("set").update(|set| set.insert(what)).unwrap();
    }
    let mut watch = sim.node(0).merged::<GSet<u32>>("set").watch();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tells = told.clone();
    sim.spawn(async move {
        while let Some(event) = watch.next().await {
            if let tidings::MapEvent::Put { value: set, .. } = event {
                tells.lock().unwrap().push(set.read());
            }
        }
    });
    sim.heal();
    sim.assert_converged();
    assert_eq!(*told.lock().unwrap(), [BTreeSet::from([1]), BTreeSet::from([1, 2])]);
}
