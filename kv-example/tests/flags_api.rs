//! Feature flags over HTTP: what is listed, and what evaluations say.

mod common;

use common::{Reply, Running, ask, folder, program, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::eventually;

const CHECKOUT: &str = r#"{"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
    "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.com"]}, "on"]}, "metadata": {"owner": "shop"}}"#;

fn put(node: &Running, key: &str, value: &str) {
    // Some are malformed.
    let reply = ask("PUT", &format!("{}/v1/kv/{key}?force=true", node.http), &[], value.as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.json());
}

fn list(node: &Running, query: &str) -> Value {
    let reply = ask("GET", &format!("{}/v1/flags{query}", node.http), &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()
}

fn names(listed: &Value) -> Vec<&str> {
    listed["flags"].as_array().unwrap().iter().map(|flag| flag["flag"].as_str().unwrap()).collect()
}

fn evaluate(node: &Running, body: &Value) -> Reply {
    let headers = [("content-type", "application/json")];
    ask("POST", &format!("{}/v1/flags/evaluate", node.http), &headers, body.to_string().as_bytes())
}

fn results(node: &Running, body: &Value) -> Value {
    let reply = evaluate(node, body);
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()["results"].clone()
}

#[test]
fn flags_are_listed_with_usage_plan_and_writer() {
    let node = serve("a", &[], &[]);
    put(&node, "flags/default/checkout", CHECKOUT);
    put(&node, "flags/default/theme", r#"{"state": "DISABLED", "variants": {"a": "x", "b": "y"}}"#);
    put(&node, "flags/default/$metadata", r#"{"fractional": 2}"#);
    put(&node, "flags/default/$evaluators", "{}");
    put(&node, "flags/other/deep/one", r#"{"state": "ENABLED", "variants": {"a": 1, "b": "y"}}"#);
    put(&node, "flags-usage/day/default/checkout", r#""2026-11-30""#);
    put(
        &node,
        "flags-usage/node/a",
        r#"{"default/checkout": {"on": 12, "": 3}, "other/checkout": {"on": 1}}"#,
    );
    put(&node, "flags-usage/node/b", r#"{"default/checkout": {"on": 5}}"#);
    put(&node, "flags-usage/node/c", r#"{"default/checkout": "no counts"}"#);
    put(&node, "flags-plans/default/checkout", r#"{"any": "plan"}"#);

    let listed = list(&node, "");
    assert_eq!((&listed["prefix"], &listed["set"]), (&json!("flags/"), &json!("default")));
    assert_eq!(listed["sets"], json!(["default", "other"]));
    assert_eq!(names(&listed), ["checkout", "theme"]);
    let flag = &listed["flags"][0];
    let stored =
        ask("GET", &format!("{}/v1/kv/flags/default/checkout?meta=true", node.http), &[], b"").json();
    assert_eq!(flag["stamp"], stored["stamp"]);
    for (field, expected) in [
        ("key", json!("flags/default/checkout")),
        ("state", json!("ENABLED")),
        ("type", json!("boolean")),
        ("variants", json!({ "on": true, "off": false })),
        ("defaultVariant", json!("off")),
        ("metadata", json!({ "owner": "shop" })),
        ("writer", json!("a")),
        ("rejected", Value::Null),
        ("conflict", json!(false)),
        ("lastEvaluated", json!("2026-11-30")),
        ("evaluations", json!({ "on": 17, "": 3 })),
        ("plan", json!({ "any": "plan" })),
    ] {
        assert_eq!(flag[field], expected, "{field}");
    }
    assert!(flag["targeting"]["if"].is_array());
    let theme = &listed["flags"][1];
    assert_eq!(
        (&theme["targeting"], &theme["lastEvaluated"], &theme["evaluations"]),
        (&Value::Null, &Value::Null, &json!({}))
    );
    let other = list(&node, "?set=other");
    assert_eq!((names(&other), &other["flags"][0]["type"]), (vec!["deep/one"], &Value::Null));
    assert_eq!(names(&list(&node, "?flag=theme")), ["theme"]);
    assert_eq!(names(&list(&node, "?flag=nothing")), [""; 0]);
    assert_eq!(names(&list(&node, "?set=none")), [""; 0]);
}

#[test]
fn malformed_flag_is_listed_with_reason_and_last_good() {
    let node = serve("a", &[], &[]);
    put(&node, "flags/default/checkout", CHECKOUT);
    let asked = json!({ "flag": "checkout", "context": { "email": "ann@example.com" } });
    eventually("the flag is in force", || results(&node, &asked)[0]["variant"] == "on");
    put(&node, "flags/default/checkout", r#"{"state": "NEITHER", "variants": {"on": true}}"#);
    put(&node, "flags/default/new", "no JSON");
    eventually("both are reported", || list(&node, "")["rejected"].as_array().map(Vec::len) == Some(2));
    let listed = list(&node, "");
    assert_eq!((&listed["state"], names(&listed)), (&json!("rejected"), vec!["checkout", "new"]));
    let [checkout, new] = [&listed["flags"][0], &listed["flags"][1]];
    assert!(checkout["rejected"].as_str().unwrap().contains("ENABLED"), "{checkout}");
    assert_eq!(
        (&checkout["state"], &checkout["variants"], &checkout["has_last_good"]),
        (&json!("NEITHER"), &json!({ "on": true }), &json!(true))
    );
    assert!(new["rejected"].as_str().unwrap().contains("JSON"), "{new}");
    assert_eq!(
        (&new["state"], &new["type"], &new["has_last_good"]),
        (&Value::Null, &Value::Null, &json!(false))
    );
    assert_eq!(results(&node, &asked)[0]["variant"], "on", "the last good definition is in force");
    assert_eq!(results(&node, &json!({ "flag": "new" }))[0]["error"]["code"], "PARSE_ERROR");
}

#[test]
fn evaluations_tell_value_reason_metadata_and_error() {
    let node = serve("a", &[], &[]);
    put(&node, "flags/default/checkout", CHECKOUT);
    put(&node, "flags/default/off", r#"{"state": "DISABLED", "variants": {"on": true}}"#);
    put(
        &node,
        "flags/default/theme",
        r#"{"state": "ENABLED", "variants": {"a": {"b": [1.5]}}, "defaultVariant": "a"}"#,
    );
    let ann = json!({ "targetingKey": "u1", "email": "ann@example.com" });
    eventually("all are in force", || {
        results(&node, &json!({ "context": ann })).as_array().map(Vec::len) == Some(3)
    });
    let all = results(&node, &json!({ "set": "default", "context": ann }));
    let expected = json!([
        { "flag": "checkout", "value": true, "variant": "on", "reason": "TARGETING_MATCH",
          "metadata": { "owner": "shop" }, "error": null },
        { "flag": "off", "value": null, "variant": null, "reason": "DISABLED", "metadata": {}, "error": null },
        { "flag": "theme", "value": { "b": [1.5] }, "variant": "a", "reason": "STATIC", "metadata": {}, "error": null },
    ]);
    assert_eq!(all, expected);
    let other = results(&node, &json!({ "flag": "checkout", "context": { "email": "bob@example.org" } }));
    assert_eq!((&other[0]["value"], &other[0]["reason"]), (&json!(false), &json!("DEFAULT")));
    let unknown = &results(&node, &json!({ "flag": "none" }))[0];
    assert_eq!((&unknown["reason"], &unknown["error"]["code"]), (&json!("ERROR"), &json!("FLAG_NOT_FOUND")));
    assert!(unknown["error"]["message"].as_str().unwrap().contains("no flag \"none\""), "{unknown}");
    let large = json!({ "flag": "checkout", "context": { "x": "x".repeat(1_200_000) } });
    assert_eq!(results(&node, &large)[0]["error"]["code"], "INVALID_CONTEXT");
}

#[test]
fn flags_and_evaluations_come_in_pages_that_miss_none() {
    let node = serve("a", &[], &[]);
    for number in 0..25 {
        put(&node, &format!("flags/default/Flag-{number:02}"), CHECKOUT);
    }
    put(&node, "flags/default/$metadata", "{}");
    eventually("all are in force", || results(&node, &json!({})).as_array().map(Vec::len) == Some(25));
    let (mut seen, mut after) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = list(&node, &format!("?limit=10&search=flag{after}"));
        seen.extend(names(&page).into_iter().map(str::to_owned));
        after = page["next"].as_str().map(|next| format!("&after={next}")).unwrap_or_default();
    }
    assert_eq!((seen.len(), after.as_str(), seen[24].as_str()), (25, "", "Flag-24"));
    assert_eq!(names(&list(&node, "?search=FLAG-1&limit=10")).len(), 10);
    assert_eq!(list(&node, "?search=FLAG-1&limit=10")["next"], Value::Null);

    let (mut seen, mut after) = (0, Value::Null);
    for _ in 0..3 {
        let page = evaluate(&node, &json!({ "limit": 10, "after": after })).json();
        seen += page["results"].as_array().unwrap().len();
        after = page["next"].clone();
    }
    assert_eq!((seen, after), (25, Value::Null));
}

#[test]
fn wrong_requests_about_flags_are_refused() {
    let node = serve("a", &[], &[]);
    for query in ["?limit=0", "?limit=1001", "?sett=x"] {
        let reply = ask("GET", &format!("{}/v1/flags{query}", node.http), &[], b"");
        assert_eq!(reply.status, 400, "{query}");
    }
    let deep = json!({ "context": serde_json::from_str::<Value>(&format!("{}{}", r#"{"a":"#.repeat(100), "1".to_owned() + &"}".repeat(100))).unwrap() });
    assert_eq!(evaluate(&node, &deep).status, 200);
    for body in [json!([]), json!({ "context": 5 }), json!({ "flags": "x" }), json!({ "limit": 0 })] {
        assert_eq!(evaluate(&node, &body).status, 400, "{body}");
    }
    let headers = [("content-type", "application/json")];
    let url = format!("{}/v1/flags/evaluate", node.http);
    let deep = format!(r#"{{"context": {}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    assert_eq!(ask("POST", &url, &headers, deep.as_bytes()).status, 400);
    assert_eq!(ask("PUT", &url, &headers, b"{}").status, 405);
}

#[test]
fn read_token_lists_and_evaluates_and_writes_nothing() {
    let folder = folder("flags-tokens");
    let token = |name: &str| {
        let path = folder.join(name).to_str().unwrap().to_owned();
        assert!(program().args(["secret", "--out", &path]).status().unwrap().success());
        let token = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        (path, format!("Bearer {token}"))
    };
    let ((full_file, full), (read_file, read)) = (token("full"), token("read"));
    let node = serve("a", &[], &["--token-file", &full_file, "--read-token-file", &read_file]);
    let ask = |bearer: &str, method: &str, path: &str, body: &str| {
        let headers = [("authorization", bearer), ("content-type", "application/json")];
        ask(method, &format!("{}{path}", node.http), &headers, body.as_bytes())
    };
    let may_write = |bearer: &str| ask(bearer, "GET", "/v1/flags", "").json()["may_write"].clone();
    assert_eq!((may_write(&full), may_write(&read)), (json!(true), json!(false)));
    assert_eq!(ask(&read, "POST", "/v1/flags/evaluate", "{}").status, 200);
    assert_eq!(ask(&read, "PUT", "/v1/kv/flags/default/x", CHECKOUT).status, 403);
    assert_eq!(ask("Bearer none", "GET", "/v1/flags", "").status, 401);
    assert_eq!(ask("Bearer none", "POST", "/v1/flags/evaluate", "{}").status, 401);
}

#[test]
fn malformed_flag_keeps_its_last_good_one_over_a_restart() {
    let dir = folder("flags-restart");
    let arguments = ["--data-dir", dir.to_str().unwrap()];
    let asked = json!({ "flag": "checkout", "context": { "email": "ann@example.com" } });
    let mut node = serve("a", &[], &arguments);
    put(&node, "flags/default/checkout", CHECKOUT);
    eventually("the flag is in force", || results(&node, &asked)[0]["value"] == true);
    let file = || std::fs::read_to_string(dir.join("flags.json"));
    eventually("it is kept", || file().is_ok_and(|text| text.contains("checkout")));
    let key = format!("{}/v1/kv/flags/default/checkout?durable=true&force=true", node.http);
    assert_eq!(ask("PUT", &key, &[], br#"{"state": "NEITHER"}"#).status, 200);
    eventually("it is malformed", || list(&node, "")["flags"][0]["rejected"].is_string());
    assert_eq!(results(&node, &asked)[0]["value"], true);
    node.process.child.kill().unwrap();
    node.process.child.wait().unwrap();
    let node = serve("a", &[], &arguments);
    eventually("it is malformed", || list(&node, "")["flags"][0]["rejected"].is_string());
    assert_eq!(results(&node, &asked)[0]["value"], true);
}

#[test]
fn evaluations_of_single_flags_are_reported_and_others_not() {
    let node = serve("a", &[], &[]);
    for flag in ["asked", "tried"] {
        put(&node, &format!("flags/default/{flag}"), CHECKOUT);
    }
    eventually("both are in force", || names(&list(&node, "")) == ["asked", "tried"]);
    let ofrep = format!("{}/ofrep/v1/evaluate/flags", node.http);
    let body = br#"{"context": {"email": "ann@example.com"}}"#;
    eventually("it is in force", || {
        ask("POST", &format!("{ofrep}/asked"), &[], body).json()["value"] == true
    });
    assert_eq!(ask("POST", &ofrep, &[], body).status, 200);
    results(&node, &json!({ "context": {} }));
    eventually("the use is reported", || list(&node, "")["flags"][0]["lastEvaluated"].is_string());
    let flags = list(&node, "")["flags"].clone();
    assert!(flags[0]["evaluations"]["on"].as_u64().is_some_and(|count| count > 0), "{flags}");
    assert_eq!((&flags[1]["lastEvaluated"], &flags[1]["evaluations"]), (&Value::Null, &json!({})));
    let metrics = || String::from_utf8(ask("GET", &format!("{}/metrics", node.http), &[], b"").body).unwrap();
    let series =
        r#"tidings_flag_variant_evaluations_total{node="a",set="default",flag="asked",variant="on"} "#;
    eventually("they are a metric", || {
        let metrics = metrics();
        let count = metrics.lines().find_map(|line| line.strip_prefix(series)?.parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    });
    assert!(!metrics().contains(r#"flag="tried""#), "trials and whole sets are not counted");
}

#[test]
fn malformed_flags_are_named_by_checks_and_put_by_force_alone() {
    let node = serve("a", &[], &[]);
    let url = |key: &str| format!("{}/v1/kv/{key}", node.http);
    let batch = |query: &str, value: &str| {
        let writes = json!([{ "put": "other", "value": "x" }, { "put": "flags/default/a", "value": value }]);
        let body = json!({ "writes": writes }).to_string();
        let headers = [("content-type", "application/json")];
        ask("POST", &format!("{}/v1/batch{query}", node.http), &headers, body.as_bytes())
    };
    for (key, value) in [
        ("flags/default/a", r#"{"state": "NEITHER"}"#),
        ("flags/default/a", "{"),
        ("flags/default/$evaluators", "[]"),
        ("flags/default/$metadata", r#"{"fractional": 4}"#),
    ] {
        let refused = ask("PUT", &url(key), &[], value.as_bytes());
        assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("definition")), "{key} {value}");
        assert!(refused.json()["errors"][0]["message"].is_string());
        let checked = ask("POST", &format!("{}/v1/check/{key}", node.http), &[], value.as_bytes());
        assert_eq!((checked.status, &checked.json()["errors"]), (200, &refused.json()["errors"]), "{key}");
        assert_eq!(ask("GET", &url(key), &[], b"").status, 404, "nothing was written");
    }
    assert_eq!(batch("", "{").status, 422);
    assert_eq!(ask("GET", &url("other"), &[], b"").status, 404, "all or none");
    assert!(!node.run(&["put", "flags/default/a", "{"]).status.success());
    node.line(&["put", "flags/default/a", "{", "--force"]);
    assert_eq!(batch("?force=true", "7").status, 200);
    // The controls: what is no flag, what refers to rules that come later, and what only flagd's schema refuses.
    let refers =
        r#"{"state": "ENABLED", "variants": {"on": 1}, "targeting": {"if": [{"$ref": "later"}, "on"]}}"#;
    for (key, value) in [
        ("flags-history/default/a", "{"),
        ("flags/default/$schema", "{}"),
        ("flags/default/b", refers),
        ("flags/default/c", r#"{"state": "ENABLED", "variants": {"a": 1, "b": "y"}}"#),
    ] {
        let checked = ask("POST", &format!("{}/v1/check/{key}", node.http), &[], value.as_bytes());
        assert_eq!(checked.json()["errors"], json!([]), "{key}");
        assert_eq!(ask("PUT", &url(key), &[], value.as_bytes()).status, 200, "{key}");
    }
    let not_here = ask("POST", &format!("{}/v1/counters/c?force=true", node.http), &[], b"");
    assert_eq!(not_here.status, 400);
}
