//! Plans of flags with real nodes: a holder that is killed, metrics, changes by hand.

mod common;

use std::process::Output;

use common::{Running, ask, conflict, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::{eventually, signal};

const VOTERS: [&str; 6] = ["--voter", "a", "--voter", "b", "--voter", "c"];

fn three() -> [Running; 3] {
    let a = serve("a", &[], &VOTERS);
    let b = serve("b", &[&a.addr], &VOTERS);
    let c = serve("c", &[&a.addr], &VOTERS);
    [a, b, c]
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn plan(node: &Running, flag: &str) -> Value {
    json_of(&node.run(&["flags", "plan", "show", flag, "--json"]))
}

fn share(node: &Running, flag: &str) -> Value {
    json_of(&node.run(&["flags", "show", flag, "--json"]))["definition"]["targeting"]["fractional"][0][1]
        .clone()
}

fn holder(node: &Running) -> Option<String> {
    let reply = ask("GET", &format!("{}/v1/elections/flags-plans", node.http), &[], b"");
    (reply.status == 200).then(|| reply.json()["leader"].as_str().map(str::to_owned))?
}

#[test]
fn plan_goes_on_when_its_holder_is_killed() {
    let nodes = three();
    nodes[0].line(&["flags", "create", "checkout"]);
    let words = [
        "flags",
        "plan",
        "start",
        "checkout",
        "--variant",
        "on",
        "--steps",
        "5%,25%,50%,100%",
        "--wait",
        "2s",
    ];
    nodes[0].line(&words);
    eventually("the first step", || plan(&nodes[1], "checkout")["done"].as_u64() >= Some(1));
    eventually("every node has the flag", || nodes.iter().all(|node| share(node, "checkout").is_u64()));
    let mut killed = None;
    eventually("a holder is known", || {
        killed = holder(&nodes[0]);
        killed.is_some()
    });
    let killed = killed.unwrap();
    let at = ["a", "b", "c"].iter().position(|name| *name == killed).unwrap();
    let done_before = plan(&nodes[at], "checkout")["done"].as_u64().unwrap();
    signal(nodes[at].pid(), "KILL");
    let left = &nodes[(at + 1) % 3];
    eventually("the plan is done", || plan(left, "checkout")["state"] == "done");
    assert!(done_before < 4, "it was killed in the middle: {done_before}");
    assert_eq!(share(left, "checkout"), 100);
    let shown = json_of(&left.run(&["flags", "show", "checkout", "--json"]));
    assert_eq!(shown["definition"]["defaultVariant"], "off");
    let url = format!("{}/v1/flags/default/checkout/history", left.http);
    let told = ask("GET", &url, &[], b"").json();
    let said: Vec<&str> =
        told["history"].as_array().unwrap().iter().rev().filter_map(|item| item["note"].as_str()).collect();
    let steps: Vec<&str> =
        said.iter().filter(|note| note.starts_with("step")).map(|note| &note[..11]).collect();
    assert_eq!(
        steps,
        ["step 1 of 4", "step 2 of 4", "step 3 of 4", "step 4 of 4"],
        "each step once: {said:?}"
    );
}

#[test]
fn metric_of_any_node_stops_a_plan_and_takes_it_back() {
    let [a, b, c] = three();
    for flag in ["own", "app"] {
        a.line(&["flags", "create", flag]);
    }
    let begin = |flag: &str, stop_if: &str, on_stop: &str| {
        let words =
            ["flags", "plan", "start", flag, "--variant", "on", "--steps", "5%,25%,100%", "--wait", "1h"];
        a.line(&[&words[..], &["--stop-if", stop_if, "--on-stop", on_stop]].concat());
    };
    begin("own", "tidings_http_requests_total>1000", "roll-back");
    begin("app", "errors>10", "step-back");
    b.line(&["put", "flags-metrics/errors/app-1", "10", "--ephemeral"]);
    eventually("both have begun", || share(&b, "own") == 5 && share(&b, "app") == 5);
    eventually("the node reports its own metric", || {
        c.run(&["get", "flags-metrics/tidings_http_requests_total/c"]).status.success()
    });
    assert_eq!(
        (&plan(&c, "own")["state"], &plan(&c, "app")["state"]),
        (&json!("running"), &json!("running"))
    );

    b.line(&["put", "flags-metrics/errors/app-1", "11", "--ephemeral"]);
    eventually("the application's metric stops it", || plan(&c, "app")["state"] == "stopped");
    assert!(plan(&c, "app")["reason"].as_str().unwrap().contains("app-1"));
    eventually("one step back is none", || share(&c, "app").is_null());
    assert_eq!(plan(&c, "own")["state"], "running", "the other one goes on");

    for _ in 0..1_001 {
        assert_eq!(ask("GET", &format!("{}/v1/kv?limit=1", c.http), &[], b"").status, 200);
    }
    eventually("the node's own metric stops it", || plan(&b, "own")["state"] == "stopped");
    assert!(plan(&b, "own")["reason"].as_str().unwrap().contains("\"c\""), "{}", plan(&b, "own"));
    eventually("it is rolled back", || share(&b, "own").is_null());
}

#[test]
fn holder_that_cannot_write_leaves_plans_to_another_node() {
    let nodes = three();
    let [a, ..] = &nodes;
    a.line(&["flags", "create", "checkout"]);
    let words = ["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5,100", "--wait", "1h"];
    a.line(&[&words[..], &["--stop-if", "errors > 10", "--on-stop", "roll-back"]].concat());
    a.run_with_input(&["put", "filler", "-"], "x".repeat(100_000).as_bytes());
    eventually("it has begun everywhere", || {
        let has = |node: &Running| node.run(&["get", "filler"]).status.success();
        nodes.iter().all(|node| share(node, "checkout") == 5 && has(node))
    });
    let mut held_by = None;
    eventually("a holder is known", || {
        held_by = holder(a);
        held_by.is_some()
    });
    let at = ["a", "b", "c"].iter().position(|name| Some(*name) == held_by.as_deref()).unwrap();
    let (full, other) = (&nodes[at], &nodes[(at + 1) % 3]);
    let token = plan(full, "checkout")["token"].clone();
    let config = format!("{}/v1/config", full.http);
    let json = [("content-type", "application/json")];
    assert_eq!(ask("PATCH", &config, &json, br#"{"store_bytes_max": 65536}"#).status, 200);
    assert!(!full.run(&["put", "more", "1"]).status.success(), "the store is full");
    other.line(&["put", "flags-metrics/errors/app", "11", "--ephemeral"]);
    eventually("it stops", || plan(other, "checkout")["state"] == "stopped");
    eventually("it is rolled back", || nodes.iter().all(|node| share(node, "checkout").is_null()));
    assert_ne!(plan(other, "checkout")["token"], token, "under another lease");
}

#[test]
fn plan_that_two_sides_changed_is_taken_back_without_a_runner() {
    let step = |percent: u8| {
        let rollout = json!({ "variant": "on", "percent": percent });
        json!({ "wait_ms": 0, "edit": { "rollout": rollout } })
    };
    let flag =
        json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" });
    let before = json!({ "id": "1", "by": "ann", "note": "", "steps": [step(5), step(100)], "state": "paused",
        "done": 0, "next_ms": 0, "base": null, "stop_if": null, "on_stop": "hold", "reason": "", "token": "" });
    let mut after = before.clone();
    (after["state"], after["done"], after["base"]) = (json!("running"), json!(1), flag.clone());
    for (action, state) in [("roll-back", "rolled_back"), ("cancel", "cancelled"), ("resume", "running")] {
        let [a, _b] = conflict("flags-plans/default/f", [&after.to_string(), &before.to_string()]);
        a.line(&["put", "flags/default/f", &flag.to_string()]);
        a.line(&["flags", "rollout", "f", "on", "5"]);
        assert_eq!((&plan(&a, "f")["state"], &plan(&a, "f")["base"]), (&json!("paused"), &flag));
        a.line(&["flags", "plan", action, "f"]);
        assert_eq!(plan(&a, "f")["state"], state);
        assert_eq!(share(&a, "f"), Value::Null, "{action}: the flag is as the plan that counts says");
        if action == "cancel" {
            a.line(&["flags", "plan", "roll-back", "f"]);
            assert_eq!(plan(&a, "f")["state"], "rolled_back");
        }
    }
}

#[test]
fn plan_of_one_step_is_watched_and_taken_back() {
    let node = serve("a", &[], &["--voter", "a"]);
    let begin = |flag: &str, more: &[&str]| {
        node.line(&["flags", "create", flag]);
        let words = ["flags", "plan", "start", flag, "--variant", "on", "--steps", "100", "--wait", "1h"];
        node.line(&[&words[..], more].concat())
    };
    begin("free", &[]);
    begin("watched", &["--stop-if", "errors > 10", "--on-stop", "roll-back"]);
    eventually("a plan without a condition is done at once", || plan(&node, "free")["state"] == "done");
    eventually("the other one has taken its step", || share(&node, "watched") == 100);
    assert_eq!(
        (&plan(&node, "watched")["state"], &plan(&node, "watched")["watch_ms"]),
        (&json!("running"), &json!(3_600_000))
    );
    assert!(node.line(&["flags", "plan", "show", "watched"]).contains("watched until done in"));
    node.line(&["put", "flags-metrics/errors/app-1", "11", "--ephemeral"]);
    eventually("it is taken back", || {
        plan(&node, "watched")["state"] == "stopped" && share(&node, "watched").is_null()
    });
    let url = format!("{}/v1/flags/default/free/plan", node.http);
    let asked = json!({ "steps": [{ "wait_ms": 0, "edit": "enable" }], "watch_ms": 1_000 }).to_string();
    let refused = ask("PUT", &url, &[("content-type", "application/json")], asked.as_bytes());
    assert_eq!(refused.status, 400, "it is about a condition");
}

#[test]
fn plan_stops_when_who_reports_its_metric_is_killed() {
    let [a, b, c] = three();
    a.line(&["flags", "create", "checkout"]);
    let report = || c.line(&["put", "flags-metrics/errors/app", "1", "--ephemeral"]);
    report();
    let words = ["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5,100", "--wait", "1h"];
    let missing = ["--stop-if-missing", "--on-stop", "roll-back"];
    let refused = a.run(&[&words[..], &missing].concat());
    assert_eq!(refused.status.code(), Some(2), "it is about the metric of --stop-if");
    a.line(&[&words[..], &["--stop-if", "errors > 10"], &missing].concat());
    assert!(a.line(&["flags", "plan", "show", "checkout"]).contains("stops if errors > 10 or it is missing"));
    eventually("it has begun", || {
        report();
        share(&b, "checkout") == 5
    });
    signal(c.pid(), "KILL");
    eventually("it stops", || plan(&a, "checkout")["state"] == "stopped");
    let reason = plan(&a, "checkout")["reason"].to_string();
    // If the killed node ran the plan, the next one has not seen who reported it.
    assert!(
        reason.contains("does not report errors") || reason.contains("nobody reports errors"),
        "{reason}"
    );
    eventually("it is rolled back", || share(&b, "checkout").is_null());
}

#[test]
fn plan_has_the_uptime_of_a_node_that_nobody_scrapes() {
    let node = serve("a", &[], &["--voter", "a"]);
    node.line(&["flags", "create", "checkout"]);
    let words = ["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5,100", "--wait", "1h"];
    node.line(&[&words[..], &["--stop-if", "tidings_uptime_seconds > 1e9"]].concat());
    let uptime = || {
        let got = node.run(&["get", "flags-metrics/tidings_uptime_seconds/a"]);
        String::from_utf8(got.stdout).unwrap().trim().parse::<f64>().ok()
    };
    eventually("it is reported", || uptime().is_some());
    let before = uptime();
    eventually("it grows", || uptime() > before);
}

#[test]
fn rate_of_a_counter_stops_a_plan_and_its_total_does_not() {
    let node = serve("a", &[], &["--voter", "a"]);
    node.line(&["flags", "create", "checkout"]);
    let begin = ["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5,100", "--wait", "1h"];
    let with = |stop_if: &str| node.run(&[&begin[..], &["--stop-if", stop_if]].concat());
    for (wrong, said) in [
        ("rate(errors > 5", "at character 12: \")\" is missing"),
        ("sum(errors) > 5", "at character 1: the only function is rate(METRIC)"),
        ("rate(tidings_members) > 5", "tidings_members is a gauge: compare its value"),
    ] {
        let refused = with(wrong);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && told.contains(said), "{wrong}: {told}");
    }
    let url = format!("{}/v1/flags/default/checkout/plan", node.http);
    let asked = json!({ "steps": [{ "wait_ms": 0, "edit": "enable" }], "stop_if": "errors >" }).to_string();
    let refused = ask("PUT", &url, &[("content-type", "application/json")], asked.as_bytes());
    let told = refused.json()["error"].to_string();
    assert!(refused.status == 400 && told.contains("at character 9: this is no number"), "{told}");

    let report = |total: u64| {
        node.line(&["put", "flags-metrics/errors/app-1", &total.to_string(), "--ephemeral"]);
    };
    report(1_000_000);
    assert!(with("rate(errors) > 1000").status.success());
    assert_eq!(plan(&node, "checkout")["stop_if"], "rate(errors) > 1000");
    eventually("it has begun", || share(&node, "checkout") == 5);
    assert_eq!(plan(&node, "checkout")["state"], "running", "its total is above the number");
    let mut total = 1_000_000;
    eventually("its rate stops it", || {
        total += 1_000_000;
        report(total);
        plan(&node, "checkout")["state"] == "stopped"
    });
    let reason = plan(&node, "checkout")["reason"].to_string();
    assert!(reason.contains("rate(errors) is ") && reason.contains("app-1"), "{reason}");
}

#[test]
fn hand_stops_pauses_and_rolls_back() {
    let node = serve("a", &[], &["--voter", "a"]);
    for flag in ["hand", "halt", "back", "later"] {
        node.line(&["flags", "create", flag]);
    }
    for flag in ["hand", "halt", "back"] {
        node.line(&["flags", "plan", "start", flag, "--variant", "on", "--steps", "5,100", "--wait", "1h"]);
    }
    node.line(&["flags", "disable", "later", "--at", "+1s"]);
    for flag in ["hand", "halt", "back"] {
        eventually("it has begun", || share(&node, flag) == 5);
    }
    eventually("a change of one step is made", || plan(&node, "later")["state"] == "done");
    let later = json_of(&node.run(&["flags", "show", "later", "--json"]));
    assert_eq!(later["definition"]["state"], "DISABLED");
    node.line(&["flags", "target", "later", "on", "--when", "plan == gold", "--at", "+1s"]);
    eventually("a target is added", || plan(&node, "later")["state"] == "done");
    let later = json_of(&node.run(&["flags", "show", "later", "--json"]));
    assert_eq!(later["definition"]["targeting"]["if"], json!([{ "==": [{ "var": "plan" }, "gold"] }, "on"]));

    node.line(&["flags", "set-default", "hand", "on"]);
    eventually("a change by hand stops it", || plan(&node, "hand")["state"] == "stopped");
    assert!(node.line(&["flags", "show", "hand"]).contains("by somebody else"));
    assert_eq!(share(&node, "hand"), 5, "it stays as it was changed");
    let refused = node.run(&["flags", "plan", "roll-back", "hand"]);
    assert_eq!(refused.status.code(), Some(4), "what was changed by hand is not taken back");

    node.line(&["flags", "plan", "pause", "halt"]);
    let second =
        node.run(&["flags", "plan", "start", "halt", "--variant", "on", "--steps", "1", "--wait", "1s"]);
    assert_ne!(second.status.code(), Some(0), "there is a plan already");
    node.line(&["flags", "plan", "resume", "halt"]);
    assert_eq!(plan(&node, "halt")["state"], "running");
    node.line(&["flags", "plan", "cancel", "halt"]);
    assert_eq!((&plan(&node, "halt")["state"], share(&node, "halt")), (&json!("cancelled"), json!(5)));

    node.line(&["flags", "plan", "roll-back", "back"]);
    assert_eq!((&plan(&node, "back")["state"], share(&node, "back")), (&json!("rolled_back"), Value::Null));
    for wrong in [&["flags", "plan", "resume", "back"][..], &["flags", "plan", "show", "nothing"]] {
        assert!(!node.run(wrong).status.success(), "{wrong:?}");
    }
}

#[test]
fn plans_take_a_stamp_and_a_note() {
    let node = serve("a", &[], &["--voter", "a"]);
    for flag in ["checkout", "back"] {
        node.line(&["flags", "create", flag]);
    }
    let shown = || json_of(&node.run(&["flags", "show", "checkout", "--json"]));
    let stale = shown()["stamp"].as_str().unwrap().to_owned();
    node.line(&["flags", "disable", "checkout"]);
    let now = shown()["stamp"].as_str().unwrap().to_owned();
    let start = ["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5", "--wait", "1h"];
    let start = [&start[..], &["--at", "+1h"]].concat();
    let with = |words: &[&str], stamp: &str| node.run(&[words, &["--if-stamp", stamp]].concat());
    let is_refused = |words: &[&str]| {
        let refused = with(words, &stale);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(4) && said.contains("by somebody else"), "{words:?}: {said}");
    };
    is_refused(&start);
    is_refused(&["flags", "enable", "checkout", "--at", "+1h"]);
    assert_eq!(plan(&node, "checkout"), Value::Null);
    let started = with(&start, &now);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    for action in ["pause", "cancel", "roll-back"] {
        is_refused(&["flags", "plan", action, "checkout"]);
    }
    assert_eq!(plan(&node, "checkout")["state"], "running");
    let pause = ["flags", "plan", "pause", "checkout", "--by", "ann", "--note", "lunch"];
    assert!(with(&pause, &now).status.success());
    assert_eq!(plan(&node, "checkout")["reason"], "paused by ann: lunch");

    node.line(&["flags", "plan", "start", "back", "--variant", "on", "--steps", "5,100", "--wait", "1h"]);
    eventually("it has begun", || share(&node, "back") == 5);
    node.line(&["flags", "plan", "roll-back", "back", "--note", "slow"]);
    let history = ask("GET", &format!("{}/v1/flags/default/back/history", node.http), &[], b"").json();
    assert_eq!(history["history"][0]["note"], "a plan was rolled back: slow");
    let shown = node.run(&["flags", "plan", "show", "back", "--note", "none is written"]);
    assert_eq!(shown.status.code(), Some(2), "what is only shown takes no note");
}

#[test]
fn plan_without_voters_says_what_is_missing() {
    let node = serve("a", &[], &[]);
    node.line(&["flags", "create", "checkout"]);
    for words in [
        &["flags", "enable", "checkout", "--at", "+1s"][..],
        &["flags", "plan", "start", "checkout", "--variant", "on", "--steps", "5", "--wait", "1s"],
    ] {
        let refused = node.run(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("--voter"), "{words:?}: {said}");
    }
}
