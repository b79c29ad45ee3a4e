//! `tidings dump` and `load` over nodes that have not caught up, connections that break, and writes of others meanwhile.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::{Arc, Mutex};

use common::{folder, relay, run_with_input, serve};

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn dump_that_fails_leaves_the_one_before() {
    let node = serve("a", &[], &[]);
    let value = "v".repeat(10_000);
    for number in 0..30 {
        node.line(&["put", &format!("k/{number}"), &value]);
    }
    let folder = folder("dump-fails");
    let file = folder.join("all.jsonl");
    let words = ["dump", "--out", file.to_str().unwrap()];
    assert!(node.run(&words).status.success());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read_to_string(&file).unwrap();
    assert_eq!(before.lines().count(), 30);
    node.line(&["put", "k/30", "later"]);

    let torn = run_with_input(&relay(&node, 100_000, |_| ()), &words, b"");
    assert!(!torn.status.success(), "{}", said(&torn));
    // Nobody is at its seed, so it does not know what its cluster holds.
    let empty = serve("b", &["127.0.0.1:1"], &[]);
    for words in [&words[..], &words[..1]] {
        let refused = empty.run(words);
        assert!(refused.status.code() == Some(4) && said(&refused).contains("synced"), "{}", said(&refused));
    }
    let names = || fs::read_dir(&folder).unwrap().count();
    assert_eq!((fs::read_to_string(&file).unwrap(), names()), (before, 1), "only the dump, as it was");

    // A whole one takes its place, with its mode, also behind a link.
    let link = folder.join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(node.run(&["dump", "--out", link.to_str().unwrap()]).status.success());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 31);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && names() == 2);
    let piped = node.run(&["dump", "--out", "/dev/stdout"]);
    assert_eq!(String::from_utf8(piped.stdout).unwrap().lines().count(), 31, "no file takes its place");
}

#[test]
fn load_asks_whether_the_node_has_caught_up() {
    let empty = serve("b", &["127.0.0.1:1"], &[]);
    let refused = empty.run_with_input(&["load"], br#"{"counter": "c", "value": 100}"#);
    assert!(refused.status.code() == Some(4) && said(&refused).contains("synced"), "{}", said(&refused));
    assert_eq!(empty.line(&["counter", "get", "c"]), "0");
}

#[test]
fn dump_with_values_beside_their_schema_is_loaded() {
    let (node, empty) = (serve("a", &[], &[]), serve("b", &[], &[]));
    node.line(&["put", "k/a", "many"]);
    node.line(&["put", "k/$schema", r#"{"type": "integer"}"#]);
    let dump = node.line(&["dump"]);
    assert!(dump.starts_with(r#"{"key":"k/$schema""#), "{dump}");
    for told in ["2 entries written, 0 were there", "0 entries written, 2 were there"] {
        let loaded = empty.run_with_input(&["load"], dump.as_bytes());
        assert!(said(&loaded).contains(told), "{}", said(&loaded));
    }
    assert_eq!(empty.line(&["get", "k/a"]), "many");
    assert_eq!(empty.run(&["put", "k/b", "many"]).status.code(), Some(4), "without force it counts");
    let batch = |query: &str| {
        let body = br#"{"writes": [{"put": "k/b", "value": "many"}]}"#;
        common::ask("POST", &format!("{}/v1/batch{query}", empty.http), &[], body).status
    };
    assert_eq!((batch(""), batch("?force=true")), (422, 200));
}

#[test]
fn load_keeps_what_was_written_meanwhile() {
    let node = serve("a", &[], &[]);
    let (http, asked) = (node.http.clone(), Arc::new(Mutex::new(String::new())));
    let all = asked.clone();
    // Between the read of the key and its write.
    let http = relay(&node, u64::MAX, move |part| {
        all.lock().unwrap().push_str(part);
        if part.starts_with("PUT /v1/kv/k%2Fx") || part.starts_with("PUT /v1/kv/k/x") {
            assert!(run_with_input(&http, &["put", "k/x", "theirs"], b"").status.success());
        }
    });
    let soon = 1_000 + std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 + 3_600_000;
    let input = format!(
        r#"{{"key": "k/x", "value": "ours"}}
           {{"key": "k/late", "value": "v", "expires_ms": {soon}}}
           {{"key": "k/over", "value": "v", "expires_ms": 1}}
           {{"set": "k/set", "element": "over", "expires_ms": 1}}"#
    );
    let loaded = run_with_input(&http, &["load", "--keep"], input.as_bytes());
    assert!(said(&loaded).contains("1 entries written, 3 were there"), "{}", said(&loaded));
    assert_eq!(node.line(&["get", "k/x"]), "theirs");
    // The node decides by its own clock what is over.
    let asked = asked.lock().unwrap();
    assert!(asked.contains(&format!("expires_ms={soon}")) && !asked.contains("ttl="), "{asked}");
    assert_eq!(node.line(&["list", "--keys-only"]), "k/late\nk/x");
}
