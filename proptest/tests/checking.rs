//! Tests of user code in the simulator: `sim::check` with random faults. The same seed gives the same faults.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tidings::sim::{self, Sim};

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

#[test]
fn check_stops_at_the_first_seed_that_fails() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let last = Cell::new(0);
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        sim::check(5..100, |sim| {
            last.set(last.get() + 1);
            assert!(last.get() < 3 || sim.is_empty() && sim.now() > TIME, "the third one");
        });
    }));
    std::panic::set_hook(hook);
    assert_eq!((failed.unwrap_err().downcast_ref(), last.get()), (Some(&"the third one"), 3));
}
