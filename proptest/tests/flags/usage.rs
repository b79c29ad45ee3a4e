//! What is reported of the use of flags.

use std::collections::BTreeMap;

use tidings::flags::Flags;
use tidings::sim::{Sim, SimNode};
use tidings_proptest::ms;

use crate::starting::started;
use crate::{anonymous, number};

/// Longer than the time between two reports.
const REPORTED: u64 = 11_000;

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

fn reported(sim: &mut Sim, i: usize) -> Flags<SimNode> {
    let node = sim.node(i);
    started(Flags::builder(&node, "flags/").report_usage(), sim).expect("the prefix ends with a slash")
}

/// What a node holds of the counts of another one.
fn counts(sim: &Sim, at: usize, of: usize) -> Option<Counts> {
    let entry = sim.node(at).get(format!("flags-usage/node/{}", sim.node(of).name()))?;
    Some(serde_json::from_slice(entry.value()).expect("it is JSON"))
}

fn counted(counts: &[(&str, &[(&str, u64)])]) -> Counts {
    let variants = |of: &[(&str, u64)]| of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    counts.iter().map(|(flag, of)| ((*flag).to_owned(), variants(of))).collect()
}

#[test]
fn all_nodes_see_what_each_has_evaluated() {
    let mut sim = Sim::new(1).seeds(&[0]).nodes(3);
    for flag in ["used", "other", "unused"] {
        sim.node(0).put(format!("flags/default/{flag}"), number(1)).unwrap();
    }
    let (a, b) = (reported(&mut sim, 0), reported(&mut sim, 1));
    sim.run_for(ms(1_000));
    (0..3).for_each(|_| assert_eq!(a.int("used", 0, &anonymous()), 1));
    assert!(!a.bool("used", false, &anonymous()), "it is no boolean");
    assert_eq!(b.int("other", 0, &anonymous()), 1);
    // Neither of these counts.
    assert_eq!(b.snapshot().uncounted().int("unused", 0, &anonymous()), 1);
    assert_eq!(b.int("unheard-of", 7, &anonymous()), 7);
    sim.run_for(ms(REPORTED));
    let day = sim.node(2).get("flags-usage/day/default/used").expect("the day is written");
    assert!(day.value().starts_with(b"\"20") && day.value().len() == 12, "{:?}", day.value());
    assert!(sim.node(2).get("flags-usage/day/default/other").is_some());
    assert_eq!(sim.node(2).scan("flags-usage/day/").len(), 2);
    assert_eq!(counts(&sim, 2, 0), Some(counted(&[("default/used", &[("", 1), ("only", 3)])])));
    assert_eq!(counts(&sim, 2, 1), Some(counted(&[("default/other", &[("only", 1)])])));

    // A new definition goes on counting; a node that is gone counts no more, and its days stay.
    sim.node(2).put("flags/default/used", number(2)).unwrap();
    sim.run_for(ms(1_000));
    assert_eq!(a.int("used", 0, &anonymous()), 2);
    sim.crash(1);
    sim.run_for(ms(60_000));
    assert_eq!(counts(&sim, 2, 0), Some(counted(&[("default/used", &[("", 1), ("only", 4)])])));
    assert_eq!(counts(&sim, 2, 1), None);
    assert_eq!(sim.node(2).scan("flags-usage/day/").len(), 2);
}

#[test]
fn days_of_many_flags_are_written_in_small_portions() {
    const FLAGS: usize = 500;
    let mut sim = Sim::new(1).nodes(3);
    for i in 0..FLAGS {
        sim.node(0).put(format!("flags/default/{i:03}"), number(1)).unwrap();
    }
    let all: Vec<_> = (0..3).map(|i| reported(&mut sim, i)).collect();
    sim.run_for(ms(1_000));
    all.iter().for_each(|flags| (0..FLAGS).for_each(|i| _ = flags.int(&format!("{i:03}"), 0, &anonymous())));
    let mut before = 0;
    let mut looks = 0;
    while before < FLAGS {
        sim.run_for(ms(10_000));
        let now = sim.node(0).scan("flags-usage/day/").len();
        assert!(now > before && now - before <= 3 * 64, "{before} became {now}");
        before = now;
        looks += 1;
    }
    // Alone, a node would take 8 looks: they share the work.
    assert!(looks <= 5, "{looks}");
}

#[test]
fn node_that_evaluates_nothing_writes_no_usage() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("flags/default/other", number(1)).unwrap();
    let flags = reported(&mut sim, 0);
    let before = node.status().head;
    sim.run_for(ms(60_000));
    assert_eq!((node.status().head, node.scan("flags-usage/").len()), (before, 0));
    assert_eq!(flags.int("other", 0, &anonymous()), 1);
    sim.run_for(ms(60_000));
    assert_eq!(node.scan("flags-usage/").len(), 2, "the control: a day and a report");
}

#[test]
fn usage_is_refused_where_its_keys_would_be_flags() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    for prefix in ["", "/", "flags"] {
        let builder = Flags::builder(&node, prefix).report_usage();
        let error = started(builder, &mut sim).expect_err("usage would be under the prefix");
        assert!(error.to_string().contains("ends with a slash"), "{error}");
    }
}
