//! A set as a file for programs that evaluate it themselves.

use std::sync::Arc;

use serde_json::{Value, json};
use tidings::flags::{Context, Flags, FlagsEvent, Snapshot, check_file};
use tidings::sim::Sim;
use tidings_proptest::ms;

use crate::{anonymous, events_of, number, switch};

fn parsed(snapshot: &Snapshot) -> Value {
    let text = snapshot.to_json();
    assert_eq!(check_file(&text), []);
    let (again, _) = Snapshot::from_json(&text).unwrap();
    assert_eq!(again.to_json(), text, "it is what it says");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn file_has_the_definitions_in_force_and_no_malformed_one() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    let mut put = |writes: &[(&str, &str)]| {
        writes.iter().for_each(|(key, value)| _ = node.put(format!("flags/default/{key}"), *value).unwrap());
        sim.run_for(ms(1));
        flags.snapshot()
    };
    assert_eq!(parsed(&put(&[])), json!({"flags": {}}));
    let referring =
        r#"{"state": "ENABLED", "variants": {"x": 1}, "targeting": {"if": [{"$ref": "rule"}, "x"]}}"#;
    let shared = r#"{"rule": {"==": [1, 1]}}"#;
    let one = number(1);
    let before = put(&[("$evaluators", shared), ("$metadata", r#"{"v": 1}"#), ("a", &one), ("r", referring)]);
    let whole = parsed(&before);
    assert_eq!(
        (&whole["metadata"], &whole["$evaluators"]["rule"]),
        (&json!({"v": 1}), &json!({"==": [1, 1]}))
    );
    assert_eq!(whole["flags"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a", "r"]);

    // Malformed ones: the last good one stays, and a flag that never had one is not there.
    let after = put(&[("a", "{"), ("new", r#"{"state": "ENABLED"}"#), ("$metadata", "5")]);
    assert_eq!(parsed(&after), whole);
    assert!(Arc::ptr_eq(&after.to_json(), &flags.snapshot().to_json()), "it is made once for a state");
    assert_eq!(before.of_set("other").to_json(), after.of_set("none").to_json());

    // One whose rule refers to what is gone: it is still evaluated here, and no file can hold it.
    let gone = put(&[("$evaluators", "{}")]);
    assert_eq!(gone.int("r", 0, &anonymous()), 1);
    assert_eq!(parsed(&gone)["flags"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a"]);
}

/// What a program gets that evaluates the file itself, or starts from what was kept, must be what this node answers.
#[test]
fn malformed_flag_follows_shared_rules_and_metadata() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    let events = events_of(&flags, &mut sim);
    let mut put = |key: &str, value: &str| {
        node.put(format!("flags/default/{key}"), value).unwrap();
        sim.run_for(ms(1));
        (flags.snapshot(), std::mem::take(&mut *events.lock().unwrap()))
    };
    let staff = |who: &[&str]| json!({"staff": {"in": [{"var": "targetingKey"}, who]}}).to_string();
    let answers = |snapshot: &Snapshot, flag: &str| -> Vec<_> {
        let users = (0..100).map(|i| format!("user-{i}")).chain(["ann".to_owned(), "eve".to_owned()]);
        users.map(|user| snapshot.details(flag, false, &Context::new(user))).collect()
    };
    let of_file = |snapshot: &Snapshot| Snapshot::from_json(&snapshot.to_json()).unwrap().0;
    put("$evaluators", &staff(&["ann", "eve"]));
    put("staff", &switch(&json!({"$ref": "staff"})));
    put("half", &switch(&json!({"==": [{"fractional": [["a", 1], ["b", 1]]}, "a"]})));
    let (before, _) = put("$metadata", r#"{"fractional": 2}"#);
    for flag in ["staff", "half"] {
        let (after, events) = put(flag, "{");
        assert_eq!(answers(&after, flag), answers(&before, flag));
        assert_eq!(events, [], "what is in force is what it was");
    }
    let (rules, events) = put("$evaluators", &staff(&["eve"]));
    assert_eq!(events, [FlagsEvent::Changed(vec!["half".into(), "staff".into()])]);
    assert!(before.bool("staff", false, &Context::new("ann")));
    assert!(!rules.bool("staff", false, &Context::new("ann")), "she is no longer among the staff");
    assert!(rules.bool("staff", false, &Context::new("eve")));
    let (metadata, _) = put("$metadata", r#"{"fractional": 3, "owner": "shop"}"#);
    assert_ne!(answers(&metadata, "half"), answers(&before, "half"), "the versions differ");
    for snapshot in [&rules, &metadata] {
        for flag in ["staff", "half"] {
            assert_eq!(answers(snapshot, flag), answers(&of_file(snapshot), flag), "{flag}");
        }
    }
}
