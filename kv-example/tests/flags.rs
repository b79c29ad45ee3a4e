//! `tidings flags` as a process: definitions are changed, rolled out, moved in and out.

mod common;

use std::fs;
use std::process::Output;

use common::{Running, ask, folder, serve};
use serde_json::{Value, json};

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Runs `tidings flags` with these words, and reads its answer as JSON.
fn answer(node: &Running, words: &[&str]) -> Value {
    let line = node.line(&[&["flags"], words, &["--json"]].concat());
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"))
}

fn definition(node: &Running, flag: &str) -> Value {
    answer(node, &["show", flag])["definition"].clone()
}

fn variant(node: &Running, flag: &str, words: &[&str]) -> Value {
    answer(node, &[&["eval", flag], words].concat())["variant"].clone()
}

#[test]
fn flags_are_made_targeted_and_rolled_out() {
    let node = serve("a", &[], &[]);
    let flags = |words: &[&str]| node.run(&[&["flags"], words].concat());
    let stamp = node.line(&["flags", "create", "checkout", "--note", "first"]);
    assert_eq!(answer(&node, &["show", "checkout"])["stamp"], stamp, "what is printed is for --if-stamp");
    assert_eq!(code(&flags(&["create", "checkout"])), 4, "there is one already");
    node.line(&["flags", "target", "checkout", "on", "--when", "email ends_with @example.com"]);
    node.line(&["flags", "rollout", "checkout", "on", "0"]);
    let staff = ["--key", "u1", "-c", "email=ann@example.com"];
    let eval = |words: &[&str]| variant(&node, "checkout", words);
    assert_eq!((eval(&staff), eval(&["--key", "u1"])), (json!("on"), json!("off")));
    node.line(&["flags", "rollout", "checkout", "on", "100%"]);
    assert_eq!(eval(&["--key", "u1"]), "on");
    let rule = &definition(&node, "checkout")["targeting"]["if"];
    assert_eq!((&rule[1], &rule[2]), (&json!("on"), &json!({ "fractional": [["on", 100], ["off", 0]] })));
    node.line(&["flags", "target", "checkout", "on", "--remove"]);
    node.line(&["flags", "set-default", "checkout", "on"]);
    assert_eq!(node.line(&["flags", "set-default", "checkout", "on"]), "unchanged");
    assert_eq!(eval(&[]), "on", "without a key the default counts");
    node.line(&["flags", "disable", "checkout"]);
    assert_eq!(answer(&node, &["eval", "checkout"])["reason"], "DISABLED");
    node.line(&["flags", "enable", "checkout"]);

    node.line(&[
        "flags",
        "create",
        "color",
        "--variant",
        "red=red",
        "--variant",
        "blue=blue",
        "--set",
        "shop",
    ]);
    assert_eq!(answer(&node, &["list", "--set", "shop"])["flag"], "color");
    assert!(node.line(&["flags", "list"]).contains("checkout"));
    for (words, expected) in [
        (&["rollout", "checkout", "gone", "5"][..], 2),
        (&["rollout", "checkout", "on", "101"], 2),
        (&["target", "checkout", "on", "--when", "email is x"], 2),
        (&["target", "checkout", "on"], 2),
        (&["set-default", "checkout", "gone"], 2),
        (&["enable", "nothing"], 1),
        (&["show", "nothing"], 1),
        (&["history", "nothing"], 1),
        (&["history", "checkout", "--note", "why"], 2),
        (&["history", "checkout", "--if-stamp", &stamp], 2),
        (&["eval", "nothing"], 1),
        (&["create", "bad", "--variant", "on=1", "--variant", "off=x"], 4),
        (&["create", "bad", "--targeting", r#"{"unheard": []}"#], 4),
    ] {
        let output = flags(words);
        assert_eq!(code(&output), expected, "{words:?}: {}", said(&output));
    }
    node.line(&["flags", "delete", "checkout"]);
    assert_eq!(code(&flags(&["delete", "checkout"])), 1);
}

#[test]
fn definition_nested_too_deep_leaves_the_list_readable() {
    let node = serve("a", &[], &[]);
    node.line(&["flags", "create", "checkout"]);
    let deep = format!("{}{}", "[".repeat(126), "]".repeat(126));
    let deep = format!(r#"{{"state":"ENABLED","variants":{deep}}}"#);
    node.line(&["put", "flags/default/deep", &deep, "--force"]);
    assert!(node.line(&["flags", "list"]).contains("checkout"));
    assert_eq!(definition(&node, "deep"), Value::Null);
    let export = node.run(&["flags", "export"]);
    assert!(code(&export) != 0 && said(&export).contains("nested too deep"), "{}", said(&export));
}

#[test]
fn lost_race_says_so_and_writes_nothing() {
    let node = serve("a", &[], &[]);
    node.line(&["flags", "create", "checkout"]);
    let stamp = answer(&node, &["show", "checkout"])["stamp"].as_str().unwrap().to_owned();
    node.line(&["flags", "rollout", "checkout", "on", "5"]);
    let before = definition(&node, "checkout");
    for words in [
        &["disable", "checkout"][..],
        &["rollout", "checkout", "on", "100"],
        &["delete", "checkout"],
        &["history", "checkout", "--roll-back"],
    ] {
        let lost = node.run(&[&["flags"], words, &["--if-stamp", &stamp]].concat());
        assert!(code(&lost) == 4 && said(&lost).contains("by somebody else"), "{words:?}: {}", said(&lost));
    }
    assert_eq!(definition(&node, "checkout"), before);
}

#[test]
fn history_tells_who_and_leads_back() {
    let node = serve("a", &[], &[]);
    node.line(&["flags", "create", "checkout", "--by", "ann", "--note", "new page"]);
    let first = definition(&node, "checkout");
    node.line(&["flags", "rollout", "checkout", "on", "50", "--by", "bob"]);
    let told = node.line(&["flags", "history", "checkout"]);
    assert!(told.contains("ann") && told.contains("new page") && told.contains("bob"), "{told}");
    node.line(&["flags", "history", "checkout", "--roll-back"]);
    assert_eq!(definition(&node, "checkout"), first);
    node.line(&["flags", "history", "checkout", "--roll-back", "--to", "2"]);
    assert_eq!(definition(&node, "checkout")["targeting"]["fractional"][0][1], 50);
    node.line(&["flags", "delete", "checkout"]);
    node.line(&["flags", "history", "checkout", "--roll-back"]);
    assert_eq!(definition(&node, "checkout")["targeting"]["fractional"][0][1], 50, "a delete is taken back");
    assert_eq!(code(&node.run(&["flags", "history", "checkout", "--roll-back", "--to", "99"])), 1);
}

#[test]
fn flag_that_was_made_again_is_not_stale() {
    let node = serve("a", &[], &[]);
    for flag in ["again", "new"] {
        node.line(&["flags", "create", flag]);
    }
    // As the library writes it: the day of the last evaluation, here of an earlier flag of the name.
    node.line(&["put", "flags-usage/day/default/again", "\"2020-01-01\""]);
    let stale = node.line(&["flags", "stale", "--days", "30"]);
    assert!(!stale.contains("again") && !stale.contains("new"), "{stale}");
    node.line(&["flags", "delete", "again"]);
    assert_eq!(code(&node.run(&["get", "flags-usage/day/default/again"])), 1, "the day goes with the flag");
}

#[test]
fn file_of_flagd_goes_in_and_out_unchanged() {
    let node = serve("a", &[], &[]);
    let folder = folder("flags");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let whole = json!({
        "$schema": "https://flagd.dev/schema/v0/flags.json",
        "$evaluators": { "staff": { "ends_with": [{ "var": "email" }, "@example.com"] } },
        "metadata": { "owner": "shop" },
        "flags": {
            "a": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
                   "targeting": { "if": [{ "$ref": "staff" }, "on"] } },
            "b": { "state": "DISABLED", "variants": { "x": 1 }, "defaultVariant": "x" }
        }
    });
    fs::write(file("in.json"), whole.to_string()).unwrap();
    let import = |words: &[&str]| node.run(&[&["flags", "import"], words, &["--from", "flagd"]].concat());
    let dry = import(&[&file("in.json"), "--dry-run"]);
    assert_eq!((code(&dry), node.line(&["list", "--keys-only"])), (0, String::new()));
    let done = import(&[&file("in.json")]);
    assert_eq!((code(&done), &done.stdout), (0, &dry.stdout), "{}", said(&done));
    assert_eq!(variant(&node, "a", &["-c", "email=ann@example.com"]), "on");
    node.line(&["flags", "export", "--out", &file("out.json")]);
    let out: Value = serde_json::from_str(&fs::read_to_string(file("out.json")).unwrap()).unwrap();
    assert_eq!(out, whole);
    assert!(import(&[&file("out.json")]).stdout.is_empty(), "nothing is left to write");
    for words in [&["flags", "lint"][..], &["flags", "lint", &file("out.json")]] {
        assert_eq!(code(&node.run(words)), 0, "{words:?}");
    }

    fs::write(
        file("one.yaml"),
        "flags:\n  c:\n    state: ENABLED\n    variants: {\"on\": true, \"off\": false}\n    defaultVariant: \"off\"\n",
    )
    .unwrap();
    let yaml = import(&[&file("one.yaml")]);
    assert_eq!(code(&yaml), 0, "{}", said(&yaml));
    import(&[&file("in.json"), "--prune"]);
    assert_eq!(code(&node.run(&["flags", "show", "c"])), 1, "the file lacks it");

    // Shared rules without one that another flag refers to would break that flag.
    fs::write(file("rules.json"), r#"{"$evaluators": {"nobody": {"==": [1, 2]}}, "flags": {}}"#).unwrap();
    let refused = import(&[&file("rules.json")]);
    assert!(code(&refused) == 4 && said(&refused).contains("staff"), "{}", said(&refused));
    assert_eq!(variant(&node, "a", &["-c", "email=ann@example.com"]), "on");

    // All or none: one bad definition keeps everything out.
    let mut bad = whole;
    bad["flags"]["a"]["state"] = json!("DISABLED");
    bad["flags"]["b"]["defaultVariant"] = json!("gone");
    fs::write(file("bad.json"), bad.to_string()).unwrap();
    let refused = import(&[&file("bad.json")]);
    assert!(code(&refused) == 4 && said(&refused).contains("gone"), "{}", said(&refused));
    assert_eq!(definition(&node, "a")["state"], "ENABLED");
    assert_eq!(code(&node.run(&["flags", "lint", &file("bad.json")])), 1);
    let body = json!({ "changes": [{ "flag": "a", "definition": null, "if": "absent" }, { "flag": "b", "definition": null }] });
    let reply = ask("POST", &format!("{}/v1/flag-sets/default", node.http), &[], body.to_string().as_bytes());
    assert_eq!((reply.status, code(&node.run(&["flags", "show", "b"]))), (412, 0), "all or none");
    node.line(&["put", "flags/default/hand", "{\"state\": \"ON\"}", "--force"]);
    let lint = node.run(&["flags", "lint"]);
    assert!(code(&lint) == 1 && String::from_utf8_lossy(&lint.stdout).contains("hand"), "{lint:?}");
}

#[test]
fn schema_of_a_set_is_no_flag() {
    let node = serve("a", &[], &[]);
    let file = folder("flags-schema").join("set.json").to_str().unwrap().to_owned();
    let schema = ["flags/default/$schema", r#"{"required": ["state"]}"#];
    node.line(&["flags", "create", "checkout"]);
    node.line(&[&["put"], &schema[..]].concat());
    assert_eq!(answer(&node, &["list"])["flag"], "checkout", "alone");
    assert_eq!(code(&node.run(&["flags", "lint"])), 0);
    node.line(&["flags", "export", "--out", &file]);
    let out: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(out["flags"].as_object().unwrap().keys().collect::<Vec<_>>(), ["checkout"]);
    let import = node.run(&["flags", "import", &file, "--from", "flagd", "--prune"]);
    assert!(code(&import) == 0 && import.stdout.is_empty(), "{import:?}");
    for flag in ["$schema", "new$schema"] {
        for words in [["create", flag], ["delete", flag], ["show", flag], ["history", flag]] {
            let refused = node.run(&[&["flags"], &words[..]].concat());
            let told = said(&refused);
            assert!(code(&refused) != 0 && told.contains("no name of a flag"), "{words:?}: {told}");
        }
        let listed = ask("GET", &format!("{}/v1/flags?flag={flag}", node.http), &[], b"").json();
        assert_eq!(listed["flags"], json!([]), "{flag}");
    }
    assert_eq!(node.line(&["get", schema[0]]), schema[1]);
}

#[test]
fn dry_run_of_an_import_tells_what_would_be_refused() {
    let node = serve("a", &[], &[]);
    let folder = folder("flags-dry");
    let targeted = |rule: &str| {
        json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
                "targeting": { "if": [{ "$ref": rule }, "on"] } })
    };
    let import = |file: &Value, more: &[&str]| {
        let path = folder.join("in.json");
        fs::write(&path, file.to_string()).unwrap();
        node.run(&[&["flags", "import", path.to_str().unwrap(), "--from", "flagd"], more].concat())
    };
    let staff = json!({ "ends_with": [{ "var": "email" }, "@example.com"] });
    let began = json!({ "$evaluators": { "staff": staff }, "flags": { "a": targeted("staff") } });
    assert_eq!(code(&import(&began, &[])), 0);
    let keys = || node.line(&["list", "--keys-only"]);
    let before = keys();

    // The rules of the cluster count where the file has none.
    let refers = json!({ "flags": { "b": targeted("staff") } });
    let dry = import(&refers, &["--dry-run"]);
    assert_eq!(code(&dry), 0, "{}", said(&dry));
    assert!(String::from_utf8_lossy(&dry.stdout).starts_with("+ b "), "{dry:?}");
    assert_eq!(code(&import(&refers, &["--dry-run", "--prune"])), 4, "they would be deleted");

    // Other rules would break a flag that the file lacks, and a schema of the store is for each flag.
    let other_rules = json!({ "$evaluators": { "nobody": false }, "flags": {} });
    node.line(&["put", "flags/default/c$schema", r#"{"required": ["metadata"]}"#]);
    let unfit = json!({ "flags": { "c": targeted("staff") } });
    for (file, what) in [(&other_rules, "staff"), (&unfit, "c$schema")] {
        let [dry, real] = [&["--dry-run"][..], &[]].map(|more| import(file, more));
        assert!(code(&dry) == 4 && said(&dry).contains(what), "{}", said(&dry));
        assert_eq!((code(&real), said(&real)), (4, said(&dry)));
    }
    node.line(&["del", "flags/default/c$schema"]);
    let check = |only_if: &str| {
        let body = json!({ "changes": [{ "flag": "a", "definition": null, "if": only_if }] }).to_string();
        ask("POST", &format!("{}/v1/flag-checks/default", node.http), &[], body.as_bytes()).status
    };
    let stamp = answer(&node, &["show", "a"])["stamp"].as_str().unwrap().to_owned();
    assert_eq!((check(&stamp), check("absent")), (200, 412));
    assert_eq!(keys(), before, "nothing was written");
}

#[test]
fn import_of_unleash_tells_what_it_cannot_translate() {
    let node = serve("a", &[], &[]);
    let strategy =
        |name: &str| json!({ "featureName": "f", "name": name, "parameters": { "userIds": "u1" } });
    let file = json!({
        "features": [{ "name": "f", "type": "release" }],
        "featureStrategies": [strategy("userWithId"), strategy("ourOwn")],
        "featureEnvironments": [{ "featureName": "f", "environment": "production", "enabled": true }]
    });
    let import = |more: &[&str]| {
        let words = [&["flags", "import", "-", "--from", "unleash"], more].concat();
        node.run_with_input(&words, file.to_string().as_bytes())
    };
    let refused = import(&[]);
    assert!(code(&refused) == 4 && said(&refused).contains("ourOwn"), "{}", said(&refused));
    assert_eq!(node.line(&["list", "--keys-only"]), "");
    assert_eq!(code(&import(&["--partial"])), 0);
    assert_eq!(variant(&node, "f", &["--key", "u1"]), "on");
    assert_eq!(variant(&node, "f", &["--key", "u2"]), "off");
}

#[test]
fn api_refuses_what_no_flag_is() {
    let node = serve("a", &[], &[]);
    let put = |path: &str, body: &str| {
        let reply = ask("PUT", &format!("{}/v1/flags/{path}", node.http), &[], body.as_bytes());
        (reply.status, reply.json())
    };
    let good = r#"{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}"#;
    assert_eq!(put("default/a", good).0, 200);
    let (status, body) = put("default/a?if=absent", good);
    assert_eq!((status, &body["code"]), (412, &json!("condition")), "{body}");
    for (path, body, expected) in [
        ("default/b", "no JSON", 422),
        ("default/b", r#"{"state": "ON", "variants": {"on": true}}"#, 422),
        (
            "default/b",
            r#"{"state": "ENABLED", "variants": {"on": true}, "targeting": {"$ref": "gone"}}"#,
            422,
        ),
        ("default/$metadata", r#"{"fractional": 9}"#, 422),
        ("default/$evaluators", "[]", 422),
        ("default/b?if=soon", good, 400),
        ("default/b?iff=absent", good, 400),
        ("a%2Fb/c", good, 400),
    ] {
        let (status, told) = put(path, body);
        assert_eq!(status, expected, "{path}: {told}");
        assert!(expected != 422 || told["errors"][0]["message"].is_string(), "{path}: {told}");
    }
    node.line(&["put", "flags/$schema", r#"{"required": ["metadata"]}"#]);
    assert_eq!(put("default/b", good).0, 422, "the schema of the store counts as well");
    assert_eq!(node.line(&["list", "flags/default/", "--keys-only"]), "flags/default/a");
}
