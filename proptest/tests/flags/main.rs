//! Feature flags over the store: whole, never stale in silence, and alone in failing. The same code runs on nodes and in
//! the simulator.
//!
//! Negative controls: flags of two snapshots are torn; and `WatchPastFloor` lets the watch behind flags miss a delete,
//! which makes them stale for ever.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tidings::flags::{Context, Flags, FlagsEvent, Snapshot};
use tidings::live::{LiveSource, LiveState, Rejected};
use tidings::sim::{Sim, SimNode};
use tidings::{Control, Node, NodeEvent, Store};
use tidings_proptest::{ms, nodes};

mod bounds;
mod file;
mod history;
mod starting;
mod usage;
mod whole;

/// A flag of one integer.
fn number(value: impl serde::Serialize) -> String {
    json!({"state": "ENABLED", "variants": {"only": value}, "defaultVariant": "only"}).to_string()
}

/// A flag that is on for those whom a rule chooses.
fn switch(rule: &serde_json::Value) -> String {
    json!({"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
           "targeting": {"if": [rule, "on"]}})
    .to_string()
}

fn anonymous() -> Context<'static> {
    Context::anonymous()
}

/// What is malformed, as `KEY by WRITER`.
fn shorts(rejected: &[Rejected]) -> Vec<String> {
    let short = |rejected: &Rejected| match &rejected.from {
        Some(LiveSource::Key { key, writer, .. }) => format!("{key} by {writer}"),
        other => format!("{other:?}"),
    };
    rejected.iter().map(short).collect()
}

/// What an application sees, step by step. It writes by itself, and waits for the event of each step.
async fn story<S: Store>(store: S) -> Vec<String> {
    let flags = Flags::new(&store, "flags/");
    let mut events = flags.events();
    while events.next().await != Some(FlagsEvent::Ready) {}
    let mut seen = Vec::new();
    let steps = [
        ("default/limit", number(1)),
        ("default/limit", number("text")),
        ("default/limit", "{".to_owned()),
        ("default/limit", number(3)),
        ("default/new", "[]".to_owned()),
        ("default/$evaluators", json!({"is_ann": {"==": [{"var": "targetingKey"}, "ann"]}}).to_string()),
        ("default/new", switch(&json!({"$ref": "is_ann"}))),
        ("default/$evaluators", json!({"is_ann": {"==": [{"var": "targetingKey"}, "eve"]}}).to_string()),
        ("default/$evaluators", json!({}).to_string()),
        ("default/$metadata", json!({"owner": "me", "fractional": 3}).to_string()),
    ];
    for (at, (key, value)) in (1..).zip(steps) {
        store
            .batch()
            .put(format!("flags/{key}"), value)
            .put("flags/default/at", number(at))
            .commit()
            .unwrap();
        while flags.int("at", 0, &anonymous()) != at {
            store.sleep(ms(1)).await;
        }
        let limit = flags.details("limit", -1, &anonymous());
        let new = flags.details("new", false, &Context::new("ann"));
        let code = |error: Option<tidings::flags::FlagError>| error.map_or("-", |error| error.code());
        seen.push(format!(
            "limit {} {} new {} {} {:?} {:?} {:?}",
            limit.value,
            code(limit.error),
            new.value,
            code(new.error),
            limit.metadata.keys().collect::<Vec<_>>(),
            shorts(&flags.rejected()),
            flags.state(),
        ));
    }
    store.delete_prefix("flags/default/").unwrap();
    store.put("end", b"v").unwrap();
    loop {
        match events.next().await {
            Some(FlagsEvent::Closed) => break,
            Some(_) => {}
            None => panic!("it ends before the node is closed"),
        }
    }
    seen.push(format!(
        "{:?} {:?} {}",
        events.next().await,
        flags.state(),
        flags.int("limit", -1, &anonymous())
    ));
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_of_flags_is_the_same_on_nodes_and_in_simulations() {
    let look = async |node: &Node| {
        let rejected = |event| match event {
            NodeEvent::Rejected { live, rejected } => Some((live, shorts(&[rejected]))),
            _ => None,
        };
        let expected = ("flags/".to_owned(), vec!["flags/default/limit by n0".to_owned()]);
        assert_eq!(nodes::event(node, rejected).await, expected);
    };
    let simulated = nodes::story_on_both(story, story, look).await;

    let empty: [&str; 0] = [];
    let line = |text: &str, metadata: &[&str], rejected: &[&str]| {
        let state = if rejected.is_empty() { LiveState::Current } else { LiveState::Rejected };
        format!("{text} {metadata:?} {rejected:?} {state:?}")
    };
    let expected = [
        line("limit 1 - new false FLAG_NOT_FOUND", &empty, &empty),
        line("limit -1 TYPE_MISMATCH new false FLAG_NOT_FOUND", &empty, &empty),
        line("limit -1 TYPE_MISMATCH new false FLAG_NOT_FOUND", &empty, &["flags/default/limit by n0"]),
        line("limit 3 - new false FLAG_NOT_FOUND", &empty, &empty),
        line("limit 3 - new false PARSE_ERROR", &empty, &["flags/default/new by n0"]),
        line("limit 3 - new false PARSE_ERROR", &empty, &["flags/default/new by n0"]),
        line("limit 3 - new true -", &empty, &empty),
        line("limit 3 - new false -", &empty, &empty),
        // The rule that it refers to is gone: it keeps what it was.
        line("limit 3 - new false -", &empty, &["flags/default/new by n0"]),
        line("limit 3 - new false -", &["fractional", "owner"], &["flags/default/new by n0"]),
        "None Ended -1".to_owned(),
    ];
    assert_eq!(simulated, expected, "{simulated:#?}");
}

#[test]
fn sets_are_apart_and_keys_that_name_no_flag_are_reported() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("flags/default/a", number(1)).unwrap();
    node.put("flags/web/a", number(2)).unwrap();
    node.put("flags/web/with/slash", number(3)).unwrap();
    node.put("flags/a", number(4)).unwrap();
    let flags = Flags::new(&node, "flags/");
    sim.run_for(ms(1));
    let web = flags.of_set("web");
    let values = [
        flags.int("a", 0, &anonymous()),
        web.int("a", 0, &anonymous()),
        web.int("with/slash", 0, &anonymous()),
    ];
    assert_eq!(values, [1, 2, 3]);
    assert_eq!(flags.snapshot().of_set("web").int("a", 0, &anonymous()), 2);
    assert_eq!(shorts(&flags.rejected()), ["flags/a by n0"]);
    let gone = flags.of_set("none").details("a", 5, &anonymous());
    assert_eq!(
        gone.error.unwrap().to_string(),
        "there is no flag \"a\" in the set \"none\"; the default was used"
    );
    assert_eq!(web.snapshot().keys().len(), 2);
}

/// The events of the default set, as they come.
fn events_of(flags: &Flags<SimNode>, sim: &mut Sim) -> Arc<Mutex<Vec<FlagsEvent>>> {
    let seen: Arc<Mutex<Vec<FlagsEvent>>> = Arc::default();
    let (mut events, list) = (flags.events(), seen.clone());
    sim.spawn(async move {
        while let Some(event) = events.next().await {
            list.lock().unwrap().push(event);
        }
    });
    seen
}

#[test]
fn events_name_the_flags_that_changed() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    let seen = events_of(&flags, &mut sim);
    sim.run_for(ms(1));
    let batch = node.batch().put("flags/default/b", number(1)).put("flags/default/a", number(1));
    batch.put("flags/web/c", number(1)).commit().unwrap();
    sim.run_for(ms(1));
    node.put("flags/default/b", number(2)).unwrap();
    sim.run_for(ms(1));
    node.delete("flags/default/a").unwrap();
    sim.run_for(ms(1));
    // A rule in the same definition as before compiles to the same flag only if it is the same write.
    let changed = |keys: &[&str]| FlagsEvent::Changed(keys.iter().map(|key| Arc::from(*key)).collect());
    let expected =
        [FlagsEvent::Stale, FlagsEvent::Ready, changed(&["a", "b"]), changed(&["b"]), changed(&["a"])];
    assert_eq!(seen.lock().unwrap()[..], expected);
}

#[test]
fn change_of_metadata_or_shared_rules_alone_is_an_event() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    let events = events_of(&flags, &mut sim);
    let mut after = |key: &str, value: Option<&str>| {
        match value {
            Some(value) => _ = node.put(format!("flags/{key}"), value).unwrap(),
            None => _ = node.delete(format!("flags/{key}")).unwrap(),
        }
        sim.run_for(ms(1));
        std::mem::take(&mut *events.lock().unwrap())
    };
    let nameless = || [FlagsEvent::Changed(Vec::new())];
    after("web/c", Some("7"));
    // A set without a flag, and one whose only flag was never usable.
    for flag in [None, Some("{")] {
        if let Some(flag) = flag {
            assert_eq!(after("default/bad", Some(flag)).len(), 1);
        }
        assert_eq!(after("default/$metadata", Some(r#"{"owner": "shop"}"#)), nameless());
        assert_eq!(after("default/$metadata", Some(r#"{"owner": "sales"}"#)), nameless());
        assert_eq!(after("default/$metadata", None), nameless());
        assert_eq!(after("default/$evaluators", Some(r#"{"a": true}"#)), nameless());
        assert_eq!(after("default/$evaluators", None), nameless());
        // The control: another set, and what is malformed and changes nothing that is in force.
        assert_eq!(after("web/$metadata", Some(r#"{"owner": "shop"}"#)), []);
        assert_eq!(after("web/$metadata", None), []);
        assert_eq!(after("default/$metadata", Some("{")), []);
        assert_eq!(after("default/$metadata", None), []);
    }
}

#[test]
fn task_ends_with_its_last_handle() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    let (snapshot, mut events) = (flags.snapshot(), flags.events());
    sim.run_for(ms(1));
    drop(flags);
    node.put("flags/default/a", number(1)).unwrap();
    sim.run_for(ms(1));
    let told = Arc::new(AtomicBool::new(false));
    let ended = told.clone();
    sim.spawn(async move {
        while events.next().await.is_some() {}
        ended.store(true, Ordering::Relaxed);
    });
    sim.run_for(ms(1));
    assert!(told.load(Ordering::Relaxed), "the events have an end");
    assert_eq!(snapshot.int("a", 0, &anonymous()), 0);
}

/// The value of a flag that was deleted, after the log has forgotten the delete and before the task came to run.
fn after_forgotten_delete(control: Option<Control>) -> i64 {
    let mut sim = Sim::new(1).without_checks().broken(control).nodes(1);
    let node = sim.node(0);
    node.put("flags/default/gone", number(1)).unwrap();
    let flags = Flags::new(&node, "flags/");
    sim.run_for(ms(1));
    node.delete("flags/default/gone").unwrap();
    for i in 0..5_000 {
        node.put(format!("elsewhere/{i}"), "v").unwrap();
        node.delete(format!("elsewhere/{i}")).unwrap();
    }
    sim.run_for(ms(1_000));
    flags.int("gone", 0, &anonymous())
}

#[test]
fn flags_are_right_after_deletes_that_the_log_forgot() {
    assert_eq!(after_forgotten_delete(None), 0);
    assert_eq!(after_forgotten_delete(Some(Control::WatchPastFloor)), 1);
}

/// So many are enough for the readers on any machine.
const BATCHES_MAX: i64 = 500_000;

fn pair(snapshot: &Snapshot) -> [i64; 2] {
    ["a", "b"].map(|flag| snapshot.int(flag, 0, &anonymous()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_snapshot_is_torn_in_20_000_batches() {
    let node = nodes::start("a", &[]).await;
    let flags = Flags::new(&node, "flags/");
    let (stop, torn, torn_by_flag) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let (seen, mut last) = (AtomicUsize::new(0), 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let [a, b] = pair(&flags.snapshot());
                    torn.fetch_add(usize::from(a != b), Ordering::Relaxed);
                    seen.fetch_add(usize::from(a != last), Ordering::Relaxed);
                    last = a;
                    // The control: each flag of a snapshot of its own, with something between them.
                    let first = flags.int("a", 0, &anonymous());
                    std::thread::yield_now();
                    let differs = first != flags.int("b", 0, &anonymous());
                    torn_by_flag.fetch_add(usize::from(differs), Ordering::Relaxed);
                }
            });
        }
        for value in 1..=BATCHES_MAX {
            let is_enough = seen.load(Ordering::Relaxed) > 100 && torn_by_flag.load(Ordering::Relaxed) > 0;
            if is_enough && value > 20_000 {
                break;
            }
            last = value;
            let batch = node.batch().put("flags/default/a", number(value));
            batch.put("flags/default/b", number(value)).commit().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(torn.into_inner(), 0);
    assert!(seen.into_inner() > 100, "the readers saw few of the states");
    assert!(torn_by_flag.into_inner() > 0, "flags of two snapshots must differ");
    nodes::until(|| pair(&flags.snapshot()) == [last; 2]).await;
    node.shutdown().await;
}

fn simulated(sim: &mut Sim, i: usize) -> Flags<SimNode> {
    let flags = Flags::new(&sim.node(i), "flags/");
    sim.run_for(ms(1));
    flags
}
