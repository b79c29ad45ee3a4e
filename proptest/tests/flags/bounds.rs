//! Bounds: hostile definitions and contexts cost a bounded number of steps, a typed error and nothing else; and usual
//! evaluations allocate nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use tidings::flags::{
    CONTEXT_BYTES_MAX, Context, DEFINITION_DEPTH_MAX, FlagError, FlagValue, Flags, Snapshot, check,
    check_file,
};
use tidings::sim::Sim;
use tidings_proptest::{Folder, ms};

use crate::starting::started;
use crate::{shorts, switch};

/// A flag with a rule, beside one that must answer whatever the rule is.
fn flags(rule: &Value) -> Snapshot {
    let file = format!(r#"{{"flags": {{"hostile": {}, "good": {}}}}}"#, switch(rule), switch(&json!(true)));
    Snapshot::from_json(&file).expect("it is a file of flags").0
}

fn error(flags: &Snapshot, context: &Context<'_>) -> String {
    let told = flags.details("hostile", true, context);
    assert!(told.value, "the default counts");
    assert!(flags.bool("good", false, &Context::anonymous()), "no other flag is affected");
    told.error.expect("it has an error").to_string()
}

fn nested(open: &str, inner: &str, close: &str, depth: usize) -> Value {
    serde_json::from_str(&format!("{}{inner}{}", open.repeat(depth), close.repeat(depth)))
        .expect("it is JSON")
}

#[test]
fn rules_that_would_take_all_time_or_memory_are_stopped() {
    let list: Vec<usize> = (0..1_000).collect();
    let context = Context::anonymous().with("list", format!("{list:?}").parse::<FlagValue>().unwrap());
    let double = json!({"cat": [{"var": "accumulator"}, {"var": "accumulator"}]});
    let lists = json!({"merge": [{"var": "accumulator"}, {"var": "accumulator"}]});
    let mut walk = json!({"==": [{"var": ""}, -1]});
    for _ in 0..20 {
        walk = json!({"some": [list, walk]});
    }
    let walked = (0..5).fold(json!({"var": ""}), |inner, _| json!({"map": [list, inner]}));
    for rule in [
        json!({"reduce": [{"var": "list"}, double, "doubled"]}),
        json!({"reduce": [list, double, "doubled"]}),
        json!({"reduce": [{"var": "list"}, lists, [1]]}),
        json!({"reduce": [{"var": "list"}, [{"var": "accumulator"}, {"var": "accumulator"}], 1]}),
        walk,
        walked,
    ] {
        let told = error(&flags(&rule), &context);
        assert!(told.contains("more than 1048576 steps"), "{told}");
    }
}

/// What one evaluation may allocate: 32 bytes for each step. Copies are counted so, and not by the time that they take.
const COPIED_BYTES_MAX: u64 = 32 << 20;

/// A step must not hide work: what is read whole costs steps by its size, also if it is read again and again.
#[test]
fn rules_that_read_large_values_again_and_again_are_stopped() {
    let list: Vec<usize> = (0..1_000).collect();
    let texts = vec!["x".repeat(1 << 10); 1_000];
    let large: Vec<Value> = (0..1_000).map(|i| json!([[i], "text"])).collect();
    let long = "1".repeat(1 << 16);
    let wide: Vec<_> = (0..40_000).map(|i| format!("\"a{i}\": {i}")).collect();
    let context = Context::from_json(&format!("{{{}}}", wide.join(","))).unwrap();
    let some = |list: Value, rule: Value| json!({"some": [list, rule]});
    let repeated = |part: Value, times: usize| Value::Array(vec![part; times]);
    let any = |name: &str, times: usize| json!({"or": repeated(json!({"$ref": name}), times)});
    let shared = json!({"often": any("more", 64), "more": any("absent", 64),
                        "absent": {"or": repeated(json!({"var": "accumulator.z"}), 128)}});
    let made = json!([{"cat": repeated(json!(long), 4)}]);
    let some_lists = Value::Array((0..1_000).map(|i| json!([i])).collect());
    let parts = vec!["x"; 5_000].join(".");
    let made_deep = nested("[", &made.to_string(), "]", 40);
    for (name, rule) in [
        ("parts of what was made", json!({"reduce": [[1], {"$ref": "often"}, made]})),
        ("equal to a list", some(json!(list), json!({"==": ["x", large]}))),
        ("the same list", some(json!(list), json!({"===": [{"merge": [large, 1]}, large]}))),
        ("in a list", some(json!(list), json!({"in": [{"var": ""}, large]}))),
        ("in a text", some(json!(list), json!({"in": ["2", long]}))),
        ("in texts", some(json!(texts), some(json!(texts), json!({"in": [{"var": ""}, ["x", "y"]]})))),
        ("number of a text", some(json!(list), json!({"<": [long, 1]}))),
        ("sum of texts", some(json!(list), json!({"<": [{"+": [long, long]}, 1]}))),
        ("order of texts", some(json!(list), json!({"<": [{"cat": [long]}, long]}))),
        ("prefix", some(json!(list), json!({"starts_with": [long, format!("{long}2")]}))),
        ("version", some(json!(list), json!({"sem_ver": [long, "=", long]}))),
        (
            "length",
            some(json!(vec![long.clone(); 300]), some(json!(list), json!({"==": [{"var": "length"}, 1]}))),
        ),
        (
            "share of a text",
            some(json!(list), json!({"!": {"fractional": [{"cat": [long, ""]}, ["on", 1], ["off", 1]]}})),
        ),
        (
            "share of a text as it is",
            some(json!(list), json!({"!": {"fractional": [long, ["on", 1], ["off", 1]]}})),
        ),
        ("a walk over and over", json!({"or": repeated(json!({"some": [list]}), 1_100)})),
        ("absent attributes", json!({"or": repeated(json!({"var": "none"}), 1_000)})),
        ("text of lists", json!({"cat": [{"map": [list, large]}]})),
        ("result of lists", json!({"if": [true, {"map": [list, large]}]})),
        ("name of a variable", some(json!(list), json!({"var": [{"cat": [{"merge": [large]}]}]}))),
        ("name of many parts", some(json!(list), json!({"var": parts}))),
        ("name of one long part", some(json!(list), json!({"var": long}))),
        ("what was made in a list", json!({"or": repeated(json!({"in": [made, some_lists]}), 20)})),
        ("text of nested lists", json!({"or": repeated(json!({"==": ["2", made_deep]}), 20)})),
    ] {
        let file = json!({"$evaluators": shared, "flags": {
            "hostile": {"state": "ENABLED", "variants": {"on": true}, "targeting": rule}}});
        let (flags, _) = Snapshot::from_json(&file.to_string()).unwrap();
        let mut told = None;
        let allocated = allocation_counter::measure(|| {
            told = flags.details("hostile", true, &context).error.map(|error| error.to_string());
        });
        assert!(allocated.bytes_total < COPIED_BYTES_MAX, "{name}: {allocated:?}");
        assert!(
            told.as_ref().is_some_and(|told| told.contains("more than 1048576 steps")),
            "{name}: {told:?}"
        );
    }
}

#[test]
fn hostile_numbers_are_errors_or_no_bucket() {
    let context = Context::new("me").with("infinite", f64::INFINITY).with("nan", f64::NAN).with("zero", 0);
    for (rule, text) in [
        (json!({"/": [1, {"var": "zero"}]}), "divided by zero"),
        (json!({"%": [1, 0.0]}), "divided by zero"),
        (json!({"+": ["abc", 1]}), "no number"),
        (json!({"-": [{"var": "infinite"}, {"var": "infinite"}]}), "no number"),
        (json!({"*": [{"var": "nan"}, 2]}), "no number"),
        (json!({"max": []}), "no number"),
    ] {
        let told = error(&flags(&json!({"<": [rule, 1]})), &context);
        assert!(told.contains(text), "{told}");
    }
    let rule =
        json!({"+": [i64::MAX, i64::MAX, {"*": [i64::MIN, -1]}, {"%": [i64::MIN, -1]}, {"-": [i64::MIN]}]});
    assert!(flags(&json!({">": [rule, 1]})).bool("hostile", false, &context));
    for weights in [[i64::MAX, i64::MAX], [i64::MIN, 0], [2_147_483_647, 1]] {
        let [a, b] = weights;
        let buckets = flags(&json!({"fractional": [["x", a], ["x", b]]}));
        let told = buckets.details("hostile", true, &context);
        assert_eq!((told.value, told.variant.as_deref(), told.error), (false, Some("off"), None));
    }
    for hostile in ["infinite", "nan"] {
        let rule = json!({"fractional": [{"var": hostile}, ["x", 1], ["x", 1]]});
        let file = json!({"metadata": {"fractional": 3}, "flags": {"f": {
            "state": "ENABLED", "variants": {"x": true}, "targeting": rule}}});
        assert!(Snapshot::from_json(&file.to_string()).unwrap().0.bool("f", false, &context));
    }
}

#[test]
fn definitions_that_are_malformed_fail_alone() {
    let deep = nested("{\"!\":", "1", "}", DEFINITION_DEPTH_MAX - 1);
    let deeper = nested("{\"!\":", r#"{"$ref": "deeper"}"#, "}", 20);
    let deepest = nested("{\"!\":", r#"{"$ref": "deep"}"#, "}", 20);
    for (definition, text) in [
        (format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)), "recursion limit"),
        (switch(&json!({"unheard_of": 1})), "no operator \"unheard_of\""),
        (switch(&json!({"$ref": "none"})), "shared rules"),
        ("7".to_owned(), "an integer"),
        (
            json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "b"}).to_string(),
            "none of its variants",
        ),
        (
            json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": 5}).to_string(),
            "neither a text",
        ),
        (
            json!({"state": "ENABLED", "variants": {"a": 1}, "metadata": {"x": []}}).to_string(),
            "its metadata field \"x\" is a list",
        ),
        (
            switch(&json!({"and": [true, {"unheard_of": 1}]})),
            "at /if/0/and/1: there is no operator \"unheard_of\"",
        ),
        (
            json!({"state": "ENABLED", "variants": {"a": 1}, "targeting": [1]}).to_string(),
            "a rule is an object",
        ),
    ] {
        let told = match check("flags/default/f", definition.as_bytes()) {
            // A check of one value does not know the shared rules.
            Ok(()) => error(&flags(&json!({"$ref": "none"})), &Context::anonymous()),
            Err(fault) => fault.to_string(),
        };
        assert!(told.contains(text), "{told}");
    }
    let shared = json!({"flags": {"f": serde_json::from_str::<Value>(&switch(&deepest)).unwrap(),
                                  "g": serde_json::from_str::<Value>(&switch(&json!(true))).unwrap()},
                        "$evaluators": {"deep": deeper, "deeper": deep, "loop": {"$ref": "loop"}}});
    let (snapshot, rejected) = Snapshot::from_json(&shared.to_string()).unwrap();
    let told = snapshot.details("f", true, &Context::anonymous());
    assert_eq!((told.value, told.error.expect("it is malformed").code()), (true, "PARSE_ERROR"));
    assert!(snapshot.bool("g", false, &Context::anonymous()));
    let rejected: Vec<_> = rejected.iter().map(|it| it.error.to_string()).collect();
    assert_eq!(rejected, ["the shared rule \"loop\" refers to itself", "the rule is nested deeper than 128"]);
}

/// Definitions stand deeper in files and in what is kept than in their keys.
#[test]
fn definitions_within_the_bound_of_depth_are_in_every_file() {
    let folder = Folder::new();
    let path = folder.at("flags.lastgood");
    let depths =
        [DEFINITION_DEPTH_MAX - 1, DEFINITION_DEPTH_MAX, DEFINITION_DEPTH_MAX + 1, 124, 125, 126, 127];
    let malformed: Vec<_> =
        depths[2..].iter().map(|depth| format!("flags/default/at-{depth} by n0")).collect();
    let list = |depth: usize| nested("[", "", "]", depth);
    let good =
        |depth: usize| json!({"state": "ENABLED", "variants": {"on": {"list": list(depth - 3)}}}).to_string();
    let rules = |depth: usize| json!({"staff": true, "deep": list(depth - 1)}).to_string();
    let looked_up = |flags: &Snapshot| {
        let found = |depth: &usize| flags.keys().contains(&format!("at-{depth}").into());
        let on = flags.bool("staff", false, &Context::anonymous());
        (depths.iter().filter(|depth| found(depth)).count(), on)
    };
    {
        let mut sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = started(Flags::builder(&node, "flags/").last_good(&path), &mut sim).unwrap();
        for depth in depths {
            node.put(format!("flags/default/at-{depth}"), good(depth)).unwrap();
            let told = check("flags/default/f", good(depth).as_bytes());
            assert_eq!(told.is_ok(), depth <= DEFINITION_DEPTH_MAX, "{told:?} at {depth}");
        }
        node.put("flags/default/staff", switch(&json!({"$ref": "staff"}))).unwrap();
        node.put("flags/default/$evaluators", rules(DEFINITION_DEPTH_MAX)).unwrap();
        sim.run_for(ms(1));
        assert_eq!(shorts(&flags.rejected()), malformed);
        assert!(flags.rejected()[0].to_string().contains("nested deeper than 100"), "{:?}", flags.rejected());
        node.put("flags/default/$evaluators", rules(DEFINITION_DEPTH_MAX + 1)).unwrap();
        sim.run_for(ms(1));
        assert_eq!(flags.rejected().len(), malformed.len() + 1);
        let file = flags.snapshot().to_json();
        assert_eq!(check_file(&file), []);
        let whole: Value = serde_json::from_str(&file).expect("it is not too deep");
        assert_eq!(whole["flags"].as_object().map(serde_json::Map::len), Some(3));
        assert_eq!(looked_up(&flags.snapshot()), (depths.len(), true));
    }
    // A file with more levels than that is one, and each definition in it stands by itself.
    let file =
        format!(r#"{{"flags": {{"a": {}, "b": {}}}}}"#, good(DEFINITION_DEPTH_MAX + 1), switch(&json!(true)));
    assert_eq!(check_file(&file).iter().map(|fault| &*fault.flag).collect::<Vec<_>>(), ["a"]);
    let mut sim = Sim::new(2).nodes(2);
    sim.partition(&[0], &[1]);
    let flags = started(Flags::builder(&sim.node(0), "flags/").last_good(&path), &mut sim).unwrap();
    assert_eq!(looked_up(&flags.snapshot()), (2, true));
}

#[test]
fn context_over_its_bound_fails_alone() {
    let flags = flags(&json!({"==": [{"var": "x"}, 1]}));
    let large = Context::new("me").with("x", 1).with("large", "x".repeat(CONTEXT_BYTES_MAX));
    assert_eq!(flags.details("hostile", true, &large).error, Some(FlagError::ContextTooLarge));
    assert!(flags.bool("hostile", false, &Context::new("me").with("x", 1)));
    let wide: Vec<_> = (0..50_000).map(|i| format!("\"{i}\": [{i}]")).collect();
    let wide = Context::from_json(&format!("{{{}, \"x\": 1}}", wide.join(","))).unwrap();
    assert!(flags.bool("hostile", false, &wide));
    assert!(Context::from_json(&format!("{}{}", "{\"a\":".repeat(10_000), "}".repeat(10_000))).is_err());
}

#[test]
fn errors_of_a_rule_name_the_flag_and_what_it_gave() {
    let file = json!({"flags": {"f": {"state": "ENABLED", "variants": {"a": true}, "targeting": {"cat": ["x\n", 1]}}}});
    let (flags, _) = Snapshot::from_json(&file.to_string()).unwrap();
    let told = flags.details("f", false, &Context::anonymous());
    assert_eq!(
        told.error.unwrap().to_string(),
        "the rule of the flag \"f\" gave \"x\\n1\", which is none of its variants; the default was used"
    );
    assert_eq!((told.reason.name(), told.variant), ("ERROR", None));
}

#[test]
fn usual_evaluations_allocate_nothing() {
    let file = json!({"metadata": {"fractional": 3}, "flags": {
        "static": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"},
        "text": {"state": "ENABLED", "variants": {"a": "b"}, "defaultVariant": "a"},
        "disabled": {"state": "DISABLED", "variants": {"on": true}},
        "list": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                 "targeting": {"if": [{"in": [{"var": "country"}, ["de", "at", "ch"]]}, "on", "off"]}},
        "rule": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                 "targeting": {"if": [{"and": [{"starts_with": [{"var": "email"}, "ann"]},
                                               {"sem_ver": [{"var": "version"}, ">=", "1.2.0"]},
                                               {"<": [{"var": "age"}, 50]}]}, "on", null]}},
        "late": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                 "targeting": {"if": [{"and": [{"<": [1, {"var": "$flagd.timestamp"}]},
                                               {"==": [{"var": "$flagd.flagKey"}, "late"]}]}, "on", "off"]}},
        "share": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                  "targeting": {"fractional": [["on", 50], ["off", 50]]}}}});
    let (flags, rejected) = Snapshot::from_json(&file.to_string()).unwrap();
    assert!(rejected.is_empty());
    let context = Context::new("user-17")
        .with("country", "at")
        .with("email", "ann@example.com")
        .with("version", "1.10.0")
        .with("age", 42);
    let mut on = 0;
    let text: Arc<str> = "default".into();
    let allocated = allocation_counter::measure(|| {
        for flag in ["static", "disabled", "list", "rule", "late", "share", "none"] {
            on += usize::from(flags.bool(flag, true, &context));
        }
        assert_eq!(&*flags.string("text", text.clone(), &context), "b");
    });
    assert_eq!(allocated.count_total, 0);
    let with_context = allocation_counter::measure(|| {
        on += usize::from(flags.bool("list", false, &Context::new("user-17").with("country", "at")));
    });
    assert_eq!(with_context.count_total, 0);
    assert!(on >= 6, "{on}");
    let counted = allocation_counter::measure(|| _ = std::hint::black_box(String::from("x")));
    assert!(counted.count_total > 0, "allocations are counted");
}
