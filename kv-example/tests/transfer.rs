//! `tidings dump` and `load` over nodes that have not caught up, connections that break, and writes of others meanwhile.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

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
