//! `tidings config` as a process: keys as documents, and back.

mod common;

use std::fs;
use std::process::Output;

use common::{Running, ask, folder, relay, run_with_input, serve};
use serde_json::{Value, json};

fn shown(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn batch(node: &Running, body: &Value) -> (u16, Value) {
    let reply = ask("POST", &format!("{}/v1/batch", node.http), &[], body.to_string().as_bytes());
    (reply.status, reply.json())
}

#[test]
fn fields_are_set_read_and_explained() {
    let node = serve("a", &[], &[]);
    assert_eq!(code(&node.run(&["config", "get", "app/"])), 1, "there is nothing");
    assert_eq!(node.line(&["config", "set", "app/", "db.pool", "20"]), "+ app/db/pool = 20");
    assert_eq!(node.line(&["config", "set", "app/", "db.pool", "21"]), "~ app/db/pool = 21 (was 20)");
    assert_eq!(node.line(&["config", "set", "app/", "db.pool", "21"]), "", "the same again writes nothing");
    node.line(&["config", "set", "app/", "name", "shop"]);
    node.line(&["config", "set", "app/", "version", "1.0", "--text"]);
    node.line(&["config", "set", "app/", "low", "-5"]);
    assert_eq!(
        (node.line(&["get", "app/name"]), node.line(&["get", "app/version"])),
        ("\"shop\"".into(), "\"1.0\"".into())
    );
    assert_eq!(node.line(&["config", "get", "app/", "db/pool"]), "21");
    assert_eq!(node.line(&["config", "get", "app/", "name"]), "shop");
    assert_eq!(node.line(&["config", "get", "app/", "db"]), "pool = 21");
    let whole: Value = serde_json::from_str(&node.line(&["config", "get", "app/", "--json"])).unwrap();
    assert_eq!(whole, json!({ "db": { "pool": 21 }, "low": -5, "name": "shop", "version": "1.0" }));
    assert_eq!(node.line(&["config", "get", "app/", "db", "--format", "yaml"]), "pool: 21");

    let why = node.line(&["config", "why", "app/", "db.pool"]);
    assert!(why.contains("in force") && why.contains("app/db/pool") && why.contains(" a "), "{why}");
    for wrong in [&["config", "why", "app/", "db.x"][..], &["config", "get", "app/", "db.x"]] {
        assert_eq!(code(&node.run(wrong)), 1, "{wrong:?}");
    }
    for wrong in [
        &["config", "set", "app/", "db", "1"][..],
        &["config", "set", "app/", "db..pool", "1"],
        &["config", "set", "app/", "$schema", "1"],
        &["config", "set", "app", "db.pool", "1"],
        &["config", "get", "app/", "--format", "xml"],
    ] {
        let output = node.run(wrong);
        assert_eq!(code(&output), 2, "{wrong:?}: {}", said(&output));
    }
    node.line(&["put", "app/bad", "no JSON"]);
    let output = node.run(&["config", "get", "app/"]);
    assert!(code(&output) == 2 && said(&output).contains("app/bad"), "{}", said(&output));
}

#[test]
fn documents_are_imported_compared_and_exported() {
    let node = serve("a", &[], &[]);
    let folder = folder("config");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    fs::write(file("a.toml"), "name = \"shop\"\n\n[db]\nhosts = [\"x\", \"y\"]\npool = 5\n").unwrap();
    let dry = node.line(&["config", "import", "app/", &file("a.toml"), "--dry-run"]);
    assert_eq!((dry.lines().count(), node.line(&["list", "--keys-only"])), (3, String::new()));
    assert_eq!(node.line(&["config", "import", "app/", &file("a.toml")]), dry);
    assert_eq!(node.line(&["list", "--keys-only"]), "app/db/hosts\napp/db/pool\napp/name");
    for name in ["b.toml", "b.yaml", "b.yml", "b.json"] {
        node.line(&["config", "export", "app/", "--out", &file(name)]);
        assert_eq!(node.line(&["config", "diff", "app/", &file(name)]), "", "{name}");
    }
    assert_eq!(fs::read_to_string(file("b.toml")).unwrap(), fs::read_to_string(file("a.toml")).unwrap());

    fs::write(file("c.yaml"), "db:\n  pool: 6\n  size: 1\n").unwrap();
    let diff = node.run(&["config", "diff", "app/", &file("c.yaml")]);
    let lines = "- app/db/hosts (was [\"x\",\"y\"])\n~ app/db/pool = 6 (was 5)\n+ app/db/size = 1\n- app/name (was \"shop\")\n";
    assert_eq!((code(&diff), shown(&diff).as_str()), (1, lines));
    node.line(&["put", "app/$schema", "{}"]);
    node.line(&["config", "import", "app/", &file("c.yaml")]);
    assert_eq!(
        node.line(&["config", "get", "app/", "name"]),
        "shop",
        "without --prune what is lacking stays"
    );
    node.line(&["config", "import", "app/", &file("c.yaml"), "--prune"]);
    assert_eq!(node.line(&["list", "--keys-only"]), "app/$schema\napp/db/pool\napp/db/size");
    let stdin = node
        .run_with_input(&["config", "import", "app/", "-", "--format", "json"], br#"{"db": {"pool": 7}}"#);
    assert_eq!(shown(&stdin), "~ app/db/pool = 7 (was 6)\n");
    for wrong in [
        &["config", "import", "app/", "-"][..],
        &["config", "export", "app/"],
        &["config", "diff", "app/", "/no/such.toml"],
    ] {
        assert!([2, 6].contains(&code(&node.run(wrong))), "{wrong:?}");
    }
    fs::write(file("d.json"), "{\"db\": {\"pool\": 1}, \"db\": {}}").unwrap();
    let twice = node.run(&["config", "import", "app/", &file("d.json")]);
    assert!(code(&twice) == 2 && said(&twice).contains("twice"), "{}", said(&twice));
}

#[test]
fn import_is_one_step_and_refused_as_a_whole() {
    let node = serve("a", &[], &[]);
    let schema =
        r#"{"x-tidings-fields": true, "properties": {"db": {"properties": {"pool": {"type": "integer"}}}}}"#;
    node.line(&["put", "app/$schema", schema]);
    let input = br#"{"db": {"pool": "many"}, "name": "x"}"#;
    for words in [&["--dry-run"][..], &[]] {
        let refused = node
            .run_with_input(&[&["config", "import", "app/", "-", "--format", "json"], words].concat(), input);
        assert!(code(&refused) == 4 && said(&refused).contains("integer"), "{words:?}: {}", said(&refused));
    }
    assert_eq!(node.line(&["list", "app/n", "--keys-only"]), "");

    let stamp = node.line(&["put", "app/name", "\"x\""]);
    let put = |only_if: &str| {
        let name = json!({ "put": "app/name", "value": "\"y\"", "only_if": only_if });
        batch(&node, &json!({ "writes": [{ "put": "app/other", "value": "1" }, name] }))
    };
    for only_if in ["absent", "0000000000000001-0000000000000001"] {
        let (status, body) = put(only_if);
        assert_eq!((status, &body["code"]), (412, &json!("condition")), "{body}");
        assert_eq!(node.line(&["list", "app/o", "--keys-only"]), "", "all or none");
    }
    assert_eq!(put(&stamp).0, 200);
    assert_eq!(
        (node.line(&["get", "app/name"]), node.line(&["get", "app/other"])),
        ("\"y\"".into(), "1".into())
    );
    let (status, _) = batch(
        &node,
        &json!({ "writes": [{ "delete": "app/name" }, { "put": "b", "value_base64": "/wA=" }] }),
    );
    assert_eq!((status, node.run(&["get", "b"]).stdout), (200, vec![255, 0]));
    for wrong in [
        json!({}),
        json!([]),
        json!({ "writes": [{}] }),
        json!({ "writes": [{ "put": "k" }] }),
        json!({ "writes": [{ "put": "k", "value": "1", "value_base64": "" }] }),
        json!({ "writes": [{ "put": "k", "value_base64": "?" }] }),
        json!({ "writes": [{ "put": "k", "value": "1", "delete": "k" }] }),
        json!({ "writes": [{ "put": "k", "value": "1", "only_if": "soon" }] }),
        json!({ "writes": [{ "put": "", "value": "1" }] }),
        json!({ "writes": [{ "put": "k", "value": "1", "ttl": "1s" }] }),
    ] {
        let (status, body) = batch(&node, &wrong);
        assert!(status == 400 && body["error"].is_string(), "{wrong}: {body}");
    }
}

#[test]
fn import_is_refused_if_any_of_its_keys_has_changed() {
    let node = serve("a", &[], &[]);
    let input = br#"{"same": 1, "other": 2}"#;
    let words = ["config", "import", "app/", "-", "--format", "json", "--prune"];
    // What somebody else writes between the read and the write of an import.
    let import = |theirs: &'static [&'static str]| {
        for (key, value) in [("app/same", "1"), ("app/other", "1"), ("app/pruned", "1")] {
            node.line(&["put", key, value]);
        }
        let http = node.http.clone();
        let relay = relay(&node, u64::MAX, move |part| {
            if part.starts_with("POST /v1/batch") {
                assert!(run_with_input(&http, theirs, b"").status.success());
            }
        });
        run_with_input(&relay, &words, input)
    };
    for theirs in [&["put", "app/same", "9"][..], &["put", "app/new", "9"], &["del", "app/same"]] {
        let refused = import(theirs);
        assert!(code(&refused) == 4 && said(&refused).contains("were changed"), "{}", said(&refused));
        assert_eq!(
            (node.line(&["get", "app/other"]), node.line(&["get", "app/pruned"])),
            ("1".into(), "1".into())
        );
    }
    let done = import(&["put", "apple", "9"]);
    assert_eq!(code(&done), 0, "{}", said(&done));
    assert_eq!(node.line(&["list", "app/", "--keys-only"]), "app/other\napp/same");
    // A revision of another run of the node is no condition that holds.
    let since = "0000000000000001-0000000000000001";
    let other =
        json!({ "writes": [{ "put": "x", "value": "1" }], "unchanged": { "prefix": "x", "since": since } });
    assert_eq!(batch(&node, &other).0, 412);
    let wrong = json!({ "writes": [], "unchanged": { "prefix": "x", "since": "now" } });
    assert_eq!(batch(&node, &wrong).0, 400);
}

#[test]
fn documents_that_cannot_be_read_are_named() {
    let (node, folder) = (serve("a", &[], &[]), folder("config-unreadable"));
    let (round, other) = (folder.join("round.toml"), folder.join("other.toml"));
    std::os::unix::fs::symlink(&other, &round).unwrap();
    std::os::unix::fs::symlink(&round, &other).unwrap();
    std::fs::create_dir(folder.join("dir.toml")).unwrap();
    for (name, reason) in
        [("round.toml", "symbolic links"), ("dir.toml", "directory"), ("none.toml", "No such file")]
    {
        let path = folder.join(name);
        let failed = node.run(&["config", "import", "app/", path.to_str().unwrap()]);
        let said = said(&failed);
        assert!(!failed.status.success() && said.contains(path.to_str().unwrap()), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(node.line(&["list", "app/", "--keys-only"]), "");
}

#[test]
fn history_tells_what_is_kept_and_no_more() {
    let node = serve("a", &[], &[]);
    for value in ["1", "2", "3"] {
        node.line(&["config", "set", "app/", "db.pool", value]);
    }
    node.line(&["config", "set", "app/", "db2", "1"]);
    node.line(&["del", "app/db2"]);
    let history = node.run(&["config", "history", "app/"]);
    let text = shown(&history);
    assert!(text.contains("delete  app/db2") && text.contains("put     app/db/pool  3"), "{text}");
    assert!(text.lines().count() == 3 && said(&history).contains("earlier values are not kept"), "{text}");
    let of_db = node.line(&["config", "history", "app/", "db", "--limit", "1", "--json"]);
    let event: Value = serde_json::from_str(&of_db).unwrap();
    assert_eq!(
        (&event["event"], &event["key"], &event["value"], &event["writer"]),
        (&json!("put"), &json!("app/db/pool"), &json!("3"), &json!("a"))
    );
    assert_eq!(ask("GET", &format!("{}/v1/history?limit=0", node.http), &[], b"").status, 400);
}

#[test]
fn node_that_has_not_caught_up_is_refused() {
    // Nobody is at its seed, so it does not know what its cluster holds.
    let empty = serve("b", &["127.0.0.1:1"], &[]);
    let folder = folder("config-unready");
    let file = folder.join("app.yaml");
    fs::write(&file, "pool: 5\n").unwrap();
    let file_word = file.to_str().unwrap();
    for words in [
        &["config", "get", "app/"][..],
        &["config", "export", "app/", "--out", file_word],
        &["config", "import", "app/", file_word],
        &["config", "set", "app/", "db.pool", "6"],
        &["flags", "export", "--out", file_word],
        &["flags", "create", "banner"],
    ] {
        let refused = empty.run(words);
        assert!(code(&refused) == 4 && said(&refused).contains("synced"), "{words:?}: {}", said(&refused));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "pool: 5\n");
    assert_eq!(empty.line(&["list", "--json"]), "");
}
