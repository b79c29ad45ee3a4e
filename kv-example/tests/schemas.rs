//! JSON Schemas beside values: what a node refuses, what it says, and what is left as it is.

mod common;

use std::process::Output;

use common::{Reply, Running, ask, serve};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings::{Config, Live, Node, Security};
use tidings_proptest::processes::eventually;

const LIMIT: &str = r#"{ "type": "object", "properties": { "max": { "type": "integer", "minimum": 1 } }, "required": ["max"] }"#;

fn put(node: &Running, key: &str, value: &str) -> Reply {
    ask("PUT", &format!("{}/v1/kv/{key}", node.http), &[], value.as_bytes())
}

fn check(node: &Running, key: &str, value: &str) -> Value {
    let reply = ask("POST", &format!("{}/v1/check/{key}", node.http), &[], value.as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn value_that_does_not_satisfy_its_schema_is_refused() {
    let node = serve("a", &[], &[]);
    assert_eq!(check(&node, "limits/api", "1"), json!({ "schema": null, "errors": [] }));
    assert_eq!(put(&node, "limits/$schema", LIMIT).status, 200);
    let refused = put(&node, "limits/api", r#"{"max": 0}"#);
    let body = refused.json();
    assert_eq!(
        (refused.status, &body["code"], &body["schema"]),
        (422, &json!("schema"), &json!("limits/$schema"))
    );
    assert_eq!(
        (&body["errors"][0]["path"], &body["detail"]),
        (&json!("/max"), &json!("nothing was written"))
    );
    assert!(body["errors"][0]["message"].as_str().unwrap().contains("minimum"), "{body}");
    assert_eq!(ask("GET", &format!("{}/v1/kv/limits/api", node.http), &[], b"").status, 404);

    let checked = check(&node, "limits/api", "{}");
    assert_eq!(
        (&checked["schema"], checked["errors"].as_array().unwrap().len()),
        (&json!("limits/$schema"), 1)
    );
    assert_eq!(check(&node, "limits/api", r#"{"max": 1}"#)["errors"], json!([]));
    assert_eq!(check(&node, "limits/api", "max 1")["errors"][0]["path"], "");
    assert_eq!(put(&node, "limits/api", r#"{"max": 1}"#).status, 200);
    assert_eq!(put(&node, "other/api", "anything").status, 200);
    // The longest prefix counts, and a schema that was replaced or deleted does not.
    assert_eq!(put(&node, "limits/web/$schema", r#"{"type": "string"}"#).status, 200);
    assert_eq!(put(&node, "limits/web/a", r#"{"max": 1}"#).status, 422);
    assert_eq!(put(&node, "limits/web/a", r#""one""#).status, 200);
    assert_eq!(put(&node, "limits/web/$schema", r#"{"type": "integer"}"#).status, 200);
    assert_eq!(put(&node, "limits/web/a", r#""one""#).status, 422);
    node.line(&["del", "limits/web/$schema"]);
    assert_eq!(put(&node, "limits/web/a", "5").status, 422, "the one of the shorter prefix");
}

#[test]
fn schema_that_cannot_be_used_is_refused_when_it_is_put() {
    let node = serve("a", &[], &[]);
    for wrong in ["", "no JSON", r#"{"type": 5}"#, r#"{"$ref": "https://127.0.0.1/x"}"#, r##"{"$ref": "#"}"##]
    {
        let refused = put(&node, "limits/$schema", wrong);
        let body = refused.json();
        assert_eq!(
            (refused.status, &body["code"], &body["schema"]),
            (422, &json!("schema"), &Value::Null),
            "{wrong}"
        );
        assert!(body["errors"][0]["message"].is_string(), "{body}");
        assert!(!check(&node, "limits/$schema", wrong)["errors"].as_array().unwrap().is_empty());
    }
    assert_eq!(node.line(&["list", "--keys-only"]), "");
    assert_eq!(put(&node, "a$schema", "{}").status, 200, "a schema may be for every beginning of keys");
    assert_eq!(put(&node, "ab", "no JSON").status, 422);
    assert_eq!(put(&node, "b", "no JSON").status, 200);
}

#[test]
fn put_shows_each_error_and_check_lists_what_is_invalid() {
    let node = serve("a", &[], &[]);
    node.line(&["put", "limits/old", r#"{"max": "many"}"#]);
    node.line(&["put", "limits/text", "no JSON"]);
    node.line(&["put", "limits/good", r#"{"max": 5}"#]);
    node.line(&["put", "limits/$schema", LIMIT]);
    let refused = node.run(&["put", "limits/new", r#"{"max": -1}"#]);
    assert_eq!(refused.status.code(), Some(4));
    let lines: Vec<String> = said(&refused).lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines[1].starts_with("  /max: "), "{lines:?}");

    let listed = node.run(&["check", "--prefix", "limits/"]);
    let shown = String::from_utf8(listed.stdout.clone()).unwrap();
    assert_eq!(listed.status.code(), Some(1), "{}", said(&listed));
    assert!(
        shown.contains("limits/old   a ") && shown.contains("/max") && shown.contains("limits/text"),
        "{shown}"
    );
    assert!(!shown.contains("limits/good") && shown.lines().count() == 3, "{shown}");
    let json = node.run(&["check", "--prefix", "limits/old", "--json"]);
    let row: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&row["key"], &row["writer"], &row["errors"][0]["path"]),
        (&json!("limits/old"), &json!("a"), &json!("/max"))
    );
    assert_eq!(node.run(&["check", "--prefix", "limits/g"]).status.code(), Some(0));
    for number in 0..1_100 {
        assert_eq!(put(&node, &format!("many/{number}"), "x").status, 200);
    }
    put(&node, "many/$schema", r#"{"type": "string"}"#);
    let listed = node.run(&["check", "--prefix", "many/", "--json"]);
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), 1_100, "in pages");
}

#[test]
fn wrong_requests_for_checks_are_refused() {
    let node = serve("a", &[], &["--value-bytes-max", "1000"]);
    let large = ask("POST", &format!("{}/v1/check/k", node.http), &[], &[b' '; 2_000]);
    assert_eq!((large.status, &large.json()["code"]), (413, &json!("too_large")));
    for path in ["/v1/check?limit=0", "/v1/check?perfix=x"] {
        assert_eq!(ask("GET", &format!("{}{path}", node.http), &[], b"").status, 400, "{path}");
    }
    assert_eq!(ask("PUT", &format!("{}/v1/check/k", node.http), &[], b"1").status, 405);
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct App {
    db: Db,
    mode: Mode,
    limit: Option<u8>,
    hosts: Vec<Host>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Db {
    pool: u32,
    url: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Mode {
    Fast { level: u8 },
    Safe { level: u8, copies: u8 },
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    weight: Option<f64>,
}

#[test]
fn schemas_of_rust_types_judge_what_others_put() {
    let node = serve("a", &[], &[]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let security = Security::secret(common::SECRET).unwrap();
        let member = Node::builder("b").seeds([&node.addr]).security(security).config(Config::local());
        let member = member.start().await.unwrap();
        member.ready().await.unwrap();
        for builder in [Live::<App>::builder(&member, "app/"), Live::builder(&member, "whole").exact()] {
            builder.put_schema().start().await.unwrap_err();
        }
        member.map::<Host>("hosts/").put_schema().unwrap();
        for key in ["app/x", "whole", "hosts/x"] {
            eventually("the schema has arrived", || check(&node, key, "1")["schema"].is_string());
        }
        member.shutdown().await;
    });
    let whole = r#"{"db": {"pool": 1, "url": "x"}, "mode": {"kind": "Fast", "level": 1}, "hosts": []}"#;
    for (key, value, path) in [
        ("app/db/pool", "5", None),
        ("app/db/pool", "-1", Some("")),
        ("app/db/pool", "4294967295", None),
        ("app/db/pool", "4294967296", Some("")),
        ("app/db", r#"{"pool": 5}"#, None),
        ("app/db", r#"{"pool": "5"}"#, Some("/pool")),
        ("app/mode/level", "1", None),
        ("app/mode", r#"{"kind": "Safe", "level": 1, "copies": 2}"#, None),
        ("app/limit", "null", None),
        ("app/limit", "256", Some("")),
        ("app/hosts", r#"[{"name": "a", "weight": 0.5}]"#, None),
        ("app/hosts", r#"[{"name": "a"}, {"nam": "b"}]"#, Some("/1")),
        ("app/nothing", "1", Some("")),
        ("whole", whole, None),
        ("whole", "{}", Some("")),
        ("hosts/a", r#"{"name": "a"}"#, None),
        ("hosts/a", r#"{"weight": 1}"#, Some("")),
    ] {
        let errors = check(&node, key, value)["errors"].clone();
        assert_eq!(errors[0]["path"].as_str(), path, "{key} {value}: {errors}");
    }
}
