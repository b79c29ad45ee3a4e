//! Tests of user code in the simulator: `sim::check` with random faults. The same seed gives the same faults.

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use tidings::sim::{self, PlannedFault, Sim};

const TIME: Duration = Duration::from_secs(30);

/// A counter that every node adds to while faults happen.
fn visits(mut sim: Sim) -> u64 {
    let mut expected = 0_i64;
    for round in 0..5 {
        for i in (0..sim.len()).filter(|i| sim.is_up(*i)).collect::<Vec<_>>() {
            // What is not durable may be lost in a crash.
            if sim.node(i).counter(format!("visits/{i}")).add(1).is_ok() {
                expected += i64::from(i == 0);
            }
        }
        sim.run_with_faults(TIME / (round + 1));
    }
    sim.assert_converged();
    let all = |i: usize| sim.node(i).counter("visits/0").value();
    assert!((0..sim.len()).all(|i| all(i) == all(0)));
    assert!(all(0) <= expected);
    sim.trace()
}

#[test]
fn same_seed_gives_the_same_faults() {
    let traces = |seeds: [u64; 3]| {
        let traces = RefCell::new(Vec::new());
        sim::check(seeds, |sim| traces.borrow_mut().push(visits(sim.nodes_with_disk(4))));
        traces.into_inner()
    };
    let first = traces([1, 2, 3]);
    assert_eq!(first, traces([1, 2, 3]));
    assert!(first[0] != first[1] && first[1] != first[2]);
}

#[test]
fn nodes_without_a_disk_lose_nothing_in_random_faults() {
    sim::check(0..10, |sim| {
        let mut sim = sim.nodes(3);
        (0..3).for_each(|i| _ = sim.node(i).counter("visits").add(1).unwrap());
        sim.run_with_faults(TIME);
        sim.assert_converged();
        assert!((0..3).all(|i| sim.node(i).counter("visits").value() == 3));
    });
}

#[test]
fn members_find_each_other_again_after_random_faults() {
    sim::check(0..5, |sim| {
        let mut sim = sim.seeds(&[0, 1]).nodes_with_disk(4);
        sim.run_with_faults(TIME);
        sim.node(0).put("k", "v").unwrap();
        sim.assert_converged();
        assert!((0..4).all(|i| sim.node(i).get("k").is_some()));
    });
}

/// What is printed when this panics, and the panic. The hook is one for the process: only one test at a time has it.
fn printed(run: impl FnOnce()) -> (String, Box<dyn std::any::Any + Send>) {
    static HOOK: Mutex<()> = Mutex::new(());
    let _turn = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let (usual, kept) = (panic::take_hook(), lines.clone());
    panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
        kept.lock().unwrap().push(text.to_owned());
    }));
    let failed = panic::catch_unwind(panic::AssertUnwindSafe(run));
    panic::set_hook(usual);
    let lines = lines.lock().unwrap().join("\n");
    (lines, failed.expect_err("it panics"))
}

#[test]
fn check_stops_at_the_first_seed_that_fails() {
    let last = Cell::new(0);
    let (lines, failed) = printed(|| {
        sim::check(5..100, |sim| {
            last.set(last.get() + 1);
            assert!(last.get() < 3 || sim.is_empty() && sim.now() > TIME, "the third one");
        });
    });
    assert_eq!((failed.downcast_ref(), last.get()), (Some(&"the third one"), 3));
    assert!(lines.contains("seed 7 failed\nreplay: tidings::sim::check([7], ..)"), "{lines}");
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(64) })]

    /// What every node holds on its disk before the faults begin, every node holds after them.
    #[test]
    fn faults_of_plans_lose_nothing_that_is_durable(seed: u64, plan in sim::faults(3)) {
        let mut sim = Sim::new(seed).nodes_with_disk(3);
        (0..3).for_each(|i| _ = sim.node(i).counter("visits").add(1).unwrap());
        sim.run_for(Duration::from_secs(2));
        sim.run_with_plan(&plan);
        prop_assert!((0..3).all(|i| sim.is_up(i)));
        sim.assert_converged();
        prop_assert!((0..3).all(|i| sim.node(i).counter("visits").value() == 3));
    }
}

/// A faulty application: it loses its note in a partition of three nodes.
fn keeps_its_note(seed: u64, plan: &[(PlannedFault, Duration)]) -> bool {
    let mut sim = Sim::new(seed).nodes(3);
    sim.node(0).put("note", "v").unwrap();
    sim.run_with_plan(plan);
    let is_split =
        |fault: &PlannedFault| matches!(fault, PlannedFault::Partition(side) if (1..3).contains(&side.len()));
    if plan.iter().any(|(fault, _)| is_split(fault)) {
        sim.node(0).delete("note").unwrap();
    }
    sim.assert_converged();
    sim.node(2).get("note").is_some()
}

#[test]
fn failing_plan_is_printed_as_code_that_fails_when_pasted() {
    let (lines, _) = printed(|| {
        let config = Config { failure_persistence: None, ..Config::with_cases(256) };
        proptest!(config, |(plan in sim::faults(3))| {
            sim::check([3], |sim| assert!(keeps_its_note(3, &plan) && sim.is_empty(), "the note is lost"));
        });
    });
    // Pasted from what is printed. Which node is alone depends on the random numbers of the run.
    let pasted = |node| [(PlannedFault::Partition(vec![node]), Duration::from_millis(1))];
    let code = |node| format!("plan = [(PlannedFault::Partition(vec![{node}]), Duration::from_millis(1))]");
    let node = (0..3).find(|node| lines.contains(&code(*node))).unwrap_or_else(|| panic!("{lines}"));
    assert!(lines.contains("replay: tidings::sim::check([3], ..)"), "{lines}");
    assert!(!keeps_its_note(3, &pasted(node)));
    assert!(keeps_its_note(3, &[]));
}

#[test]
fn every_fault_of_a_plan_is_printed_as_code() {
    let strategy = sim::faults(3);
    let mut runner = TestRunner::deterministic();
    let plan = |_| format!("{:?}", strategy.new_tree(&mut runner).expect("it has values").current());
    let all = (0..100).map(plan).collect::<Vec<_>>().join("; ");
    for fault in [
        "(PlannedFault::Heal, Duration::from_millis(",
        "(PlannedFault::ResumeAll, Duration",
        "(PlannedFault::Cut(1, 2), Duration",
        "(PlannedFault::Loss(20), Duration",
        "(PlannedFault::Pause(0), Duration",
        "(PlannedFault::Crash(1), Duration",
        "(PlannedFault::Restart(2), Duration",
        "(PlannedFault::Partition(vec![0, 1]), Duration",
    ] {
        assert!(all.contains(fault), "{fault}");
    }
}

#[test]
fn plan_may_name_nodes_that_there_are_not() {
    let second = Duration::from_secs(1);
    let faults = [
        PlannedFault::Partition(vec![7, 0]),
        PlannedFault::Cut(0, 0),
        PlannedFault::Cut(0, 9),
        PlannedFault::Loss(255),
        PlannedFault::Pause(9),
        PlannedFault::Crash(0),
        PlannedFault::Crash(9),
        PlannedFault::Restart(0),
        PlannedFault::Restart(9),
    ];
    let mut sim = Sim::new(1).nodes(2);
    sim.run_with_plan(&faults.map(|fault| (fault, second)));
    sim.node(0).put("k", "v").unwrap();
    sim.assert_converged();
    assert!(sim.node(1).get("k").is_some());
    Sim::new(1).run_with_plan(&[(PlannedFault::Crash(0), second)]);
}
