//! Watches: events are ordered and unique, the last value of a key is never missed, a watch resumes from any revision,
//! and it reports a resync when it cannot. Tested over random histories with all faults, with a consumer that rebuilds
//! the state from events (`Watcher`), and with scripted stories.
//!
//! Negative control: `WatchPastFloor` lets a watch read on although the log has forgotten removals after its cursor.

use std::time::Duration;

use tidings::sim::{Sim, SimWatch};
use tidings::{Config, Control, PutOptions, Stamp, WatchEvent, WatchOptions};
use tidings_proptest::{Noticed, Plan, Watcher, ms, notice};

/// Runs a random history with watchers on every node, which read seldom or often, resume, and check their state.
fn watched(seed: u64, control: Option<Control>) {
    let mut watchers: Vec<Vec<Watcher>> = Vec::new();
    let plan = Plan { control, ..Plan::new(seed) };
    let mut sim = plan.run_with(|sim, dice| {
        watchers.resize_with(sim.len(), Vec::new);
        for (i, watchers) in watchers.iter_mut().enumerate() {
            watchers.retain(|watcher| !watcher.is_over());
            if !sim.is_up(i) {
                continue;
            }
            if watchers.len() < 3 {
                watchers.push(Watcher::new(sim.node(i), ["", "k", "k1", "tk"][dice.below(4)]));
            }
            for watcher in watchers {
                match dice.below(8) {
                    0..=2 => watcher.read(3),
                    3 => watcher.resume(dice.below(64)),
                    4 => watcher.check(|key| !key.starts_with('t')),
                    _ => {}
                }
            }
        }
    });
    sim.run_for(Duration::from_secs(20));
    for (i, mut watchers) in watchers.into_iter().enumerate() {
        watchers.retain(|watcher| !watcher.is_over());
        watchers.push(Watcher::new(sim.node(i), ""));
        watchers.iter_mut().for_each(|watcher| watcher.check(|_| true));
    }
}

#[test]
fn watches_are_ordered_unique_gap_free_and_resumable() {
    (0..100).for_each(|seed| watched(seed, None));
}

#[test]
fn watch_that_reads_past_the_floor_is_detected() {
    std::panic::set_hook(Box::new(|_| {}));
    let noticed = |seed| notice(|| watched(seed, Some(Control::WatchPastFloor))).is_some();
    assert!((0..100).any(noticed));
    _ = std::panic::take_hook();
}

#[test]
fn watch_reports_deletes_made_during_initial_values() {
    let story = |control| {
        let mut config = Config::lan();
        config.removals_max = 1;
        let sim = Sim::new(1).broken(control).config(config).nodes(1);
        // With many more keys, the initial values are read in the order of the log.
        for count in [600, 6_000] {
            (0..count).for_each(|i| _ = sim.node(0).put(format!("{count}/{i}"), "v").unwrap());
            let mut watcher = Watcher::new(sim.node(0), &format!("{count}/"));
            watcher.read(1);
            (0..100).for_each(|i| _ = sim.node(0).delete(format!("{count}/{i}")).unwrap());
            watcher.check(|_| true);
        }
    };
    story(None);
    assert_eq!(notice(|| story(Some(Control::WatchPastFloor))), Some(Noticed::Loss));
}

#[test]
fn slow_watch_sees_the_last_value_once() {
    let sim = Sim::new(1).nodes(1);
    let mut watch = sim.node(0).watch_with("k", WatchOptions::new().without_current());
    assert_eq!(watch.try_next(), None);
    for i in 0..10_000 {
        sim.node(0).put("k", format!("{i}")).unwrap();
        sim.node(0).put(format!("other{}", i % 10), "v").unwrap();
    }
    let Some(WatchEvent::Put(entry)) = watch.try_next() else { panic!("the change is reported") };
    assert_eq!(entry.value(), b"9999");
    assert_eq!(watch.try_next(), None);
}

#[test]
fn watch_begins_when_it_is_made() {
    let sim = Sim::new(1).nodes(1);
    sim.node(0).put("before", "v").unwrap();
    let mut whole = sim.node(0).watch("");
    let mut changes = sim.node(0).watch_with("", WatchOptions::new().without_current());
    sim.node(0).put("after", "v").unwrap();
    sim.node(0).delete("before").unwrap();
    let told =
        |watch: &mut SimWatch| -> Vec<WatchEvent> { std::iter::from_fn(|| watch.try_next()).collect() };
    // The value of `before` is gone when the watch is first read, so the watch never reports that it was there.
    assert!(matches!(&told(&mut whole)[..],
        [WatchEvent::Current, WatchEvent::Put(entry), WatchEvent::Delete { key, .. }]
            if entry.key() == "after" && key == "before"));
    assert!(matches!(&told(&mut changes)[..],
        [WatchEvent::Put(entry), WatchEvent::Delete { key, .. }] if entry.key() == "after" && key == "before"));
}

#[test]
fn exact_has_no_effect_on_watches_of_sets() {
    let sim = Sim::new(1).nodes(1);
    let mut watch = sim.node(0).set("s").watch_with(WatchOptions::new().exact().without_current());
    sim.node(0).set("s").add("x").unwrap();
    assert!(matches!(watch.try_next(), Some(WatchEvent::Put(entry)) if entry.key() == "x"));
}

#[test]
fn watch_of_a_quiet_prefix_never_falls_behind() {
    let mut config = Config::lan();
    config.removals_max = 1;
    let sim = Sim::new(1).config(config).nodes(1);
    let mut watch = sim.node(0).watch_with("quiet", WatchOptions::new().exact());
    assert_eq!(watch.try_next(), Some(WatchEvent::Current));
    for i in 0..1_000 {
        sim.node(0).put(format!("k{i}"), "v").unwrap();
        sim.node(0).delete(format!("k{i}")).unwrap();
    }
    assert_eq!(watch.try_next(), None, "the watch of a quiet prefix reported an event");
    sim.node(0).put("quieter", "v").unwrap();
    sim.node(0).put("quiet", "v").unwrap();
    assert!(matches!(watch.try_next(), Some(WatchEvent::Put(entry)) if entry.key() == "quiet"));
}

#[test]
fn watch_distinguishes_deletes_from_expiries() {
    let mut sim = Sim::new(1).nodes(2);
    sim.run_for(ms(100));
    sim.node(0).put_with("short", "v", PutOptions::new().ttl(ms(500))).unwrap();
    sim.node(0).put("long", "v").unwrap();
    sim.node(0).set("s").add("x").unwrap();
    sim.run_for(ms(100));
    let mut watch = sim.node(1).watch("");
    let mut set = sim.node(1).set("s").watch();
    let told = |watch: &mut SimWatch| -> Vec<String> {
        std::iter::from_fn(|| watch.try_next())
            .map(|event| match event {
                WatchEvent::Put(entry) => format!("put {}", entry.key()),
                WatchEvent::Delete { key, .. } => format!("delete {key}"),
                WatchEvent::Expired { key, .. } => format!("expired {key}"),
                other => format!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(told(&mut watch), ["put short", "put long", "Current"]);
    assert_eq!(told(&mut set), ["put x", "Current"]);
    sim.run_for(ms(600));
    sim.node(0).delete("long").unwrap();
    sim.node(0).set("s").remove("x").unwrap();
    sim.run_for(ms(100));
    assert_eq!(told(&mut watch), ["expired short", "delete long"]);
    assert_eq!(told(&mut set), ["delete x"]);
    // A new watch on the expired key reports no value.
    let mut late = sim.node(1).watch("short");
    assert_eq!(told(&mut late), ["Current"]);
}

#[test]
fn what_expired_while_the_node_was_down_is_no_initial_value() {
    let mut sim = Sim::new(1).nodes_with_disk(1);
    let node = sim.node(0);
    node.put("k", "v").unwrap();
    node.put_with("short", "v", PutOptions::new().ttl(ms(5_000))).unwrap();
    sim.run_for(Duration::from_secs(2));
    sim.crash(0);
    sim.run_for(Duration::from_secs(20));
    sim.restart(0);
    // Before the node does anything.
    let mut watch = sim.node(0).watch("");
    let first: Vec<WatchEvent> = std::iter::from_fn(|| watch.try_next()).collect();
    assert!(
        matches!(&first[..], [WatchEvent::Put(entry), WatchEvent::Current] if entry.key() == "k"),
        "{first:?}"
    );
}

#[test]
fn watch_from_a_revision_of_another_run_starts_over() {
    let mut sim = Sim::new(1).nodes_with_disk(1);
    sim.node(0).put("a", "v").unwrap();
    let revision = sim.node(0).get("a").unwrap().revision();
    let mut watch = sim.node(0).watch_with("", WatchOptions::new().resume_from(revision));
    assert_eq!(
        watch.try_next(),
        Some(WatchEvent::Current),
        "a watch that resumes at the head reports nothing else"
    );
    sim.run_for(ms(100));
    sim.crash(0);
    sim.restart(0);
    assert_eq!(watch.try_next(), None, "a watch must end with its node");
    let mut watch = sim.node(0).watch_with("", WatchOptions::new().resume_from(revision));
    assert_eq!(watch.try_next(), Some(WatchEvent::Resync));
    assert!(matches!(watch.try_next(), Some(WatchEvent::Put(entry)) if entry.key() == "a"));
    assert_eq!(watch.try_next(), Some(WatchEvent::Current));
}

/// A deleted key's event, as (stamp, writer).
fn deleted(watch: &mut SimWatch) -> (Option<Stamp>, Option<String>) {
    let mut events = std::iter::from_fn(|| watch.try_next());
    let deleted = events.find_map(|event| match event {
        WatchEvent::Delete { stamp, writer, .. } => Some((stamp, writer)),
        _ => None,
    });
    deleted.expect("a delete is reported")
}

#[test]
fn watch_says_who_deleted_a_key() {
    for has_members in [true, false] {
        let sim = Sim::new(1);
        let sim = if has_members { sim.seeds(&[0]) } else { sim };
        let mut sim = sim.nodes(3);
        sim.run_for(ms(3_000));
        sim.node(0).put("k", "v").unwrap();
        sim.run_for(ms(100));
        let mut watches = [0, 1, 2].map(|i| sim.node(i).watch("k"));
        let stamp = sim.node(1).delete("k").unwrap().stamp();
        sim.run_for(ms(100));
        for (i, watch) in watches.iter_mut().enumerate() {
            assert_eq!(deleted(watch), (stamp, Some("n1".to_owned())), "at node {i}");
            assert_eq!(sim.node(i).member_of(stamp.unwrap()).unwrap().name, "n1");
        }
    }
}

#[test]
fn watch_does_not_guess_who_deleted_a_key() {
    let mut config = Config::lan();
    config.removals_max = 1;
    let mut sim = Sim::new(1).config(config).nodes(3);
    sim.node(0).put("k", "v").unwrap();
    sim.run_for(ms(1_000));
    let mut watch = sim.node(2).watch("k");
    sim.partition(&[2], &[0, 1]);
    sim.node(0).delete("k").unwrap();
    // The removal leaves the logs: only a repair can tell of it.
    for i in 0..10 {
        sim.node(0).put(format!("k{i}"), "v").unwrap();
        sim.node(0).delete(format!("k{i}")).unwrap();
    }
    sim.run_for(ms(3_000));
    sim.heal();
    sim.assert_converged();
    assert_eq!(deleted(&mut watch), (None, None));
}
