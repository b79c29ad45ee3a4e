//! The command line as a process: what it prints, and how it ends.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use common::{ask, conflict, entry, folder, private_file, program, run_with_input, serve};
use serde_json::Value;
use tidings_proptest::processes::{eventually, signal};

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn shown(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn keys_sets_and_counters_are_used_from_the_command_line() {
    let node = serve("a", &[], &[]);
    let stamp = node.line(&["put", "greeting", "hello"]);
    assert_eq!(node.line(&["get", "greeting"]), "hello");
    assert_eq!(code(&node.run(&["get", "nothing"])), 1);
    assert_eq!(code(&node.run(&["put", "greeting", "other", "--if-absent"])), 4);
    let refused = node.run(&["put", "greeting", "other", "--if-stamp", "0000000000000001-0000000000000001"]);
    assert!(code(&refused) == 4 && said(&refused).contains(&stamp), "{}", said(&refused));
    node.line(&["put", "greeting", "bye", "--if-stamp", &stamp]);
    assert_eq!(code(&node.run_with_input(&["put", "binary", "-"], &[0, 159, 146, 150])), 0);
    assert_eq!(node.run(&["get", "binary"]).stdout, [0, 159, 146, 150]);
    assert_eq!(node.line(&["list", "--keys-only"]), "binary\ngreeting");
    let table = node.line(&["list", "gre"]);
    assert!(table.starts_with("KEY") && table.contains("bye") && table.lines().count() == 2, "{table}");
    let entry: Value = serde_json::from_str(&node.line(&["get", "greeting", "--json"])).unwrap();
    assert_eq!((&entry["value"], &entry["writer"]), (&"bye".into(), &"a".into()));
    node.line(&["del", "greeting"]);
    assert_eq!(code(&node.run(&["del", "greeting", "binary"])), 1, "one of them was not there");
    assert_eq!(node.line(&["list", "--keys-only"]), "");

    node.line(&["set", "add", "banned", "mallory"]);
    node.line(&["set", "add", "banned", "trudy"]);
    assert_eq!(code(&node.run(&["set", "has", "banned", "mallory"])), 0);
    node.line(&["set", "remove", "banned", "mallory"]);
    assert_eq!(code(&node.run(&["set", "has", "banned", "mallory"])), 1);
    assert_eq!(node.line(&["set", "list", "banned"]), "trudy");
    assert_eq!(node.line(&["counter", "add", "hits", "5"]), "5");
    assert_eq!(node.line(&["counter", "add", "hits", "-2"]), "3");
    assert_eq!(node.line(&["counter", "get", "hits"]), "3");
}

#[test]
fn errors_say_what_to_do() {
    let nobody = run_with_input("127.0.0.1:1", &["get", "k"], b"");
    assert_eq!(code(&nobody), 3);
    assert!(said(&nobody).contains("no node at 127.0.0.1:1") && said(&nobody).contains("tidings serve"));
    for (words, expected) in [
        (&["get"][..], 2),
        (&["gte", "k"], 2),
        (&["put", "k", "v", "--ttl", "soon"], 3),
        (&["get", "k", "--timeout", "soon"], 2),
        (&["get", "k", "--node", "https://somewhere"], 2),
        (&["serve"], 2),
        (&["serve", "--name", "a"], 2),
    ] {
        let output = run_with_input("127.0.0.1:1", words, b"");
        assert_eq!(code(&output), expected, "{words:?}: {}", said(&output));
        assert!(!said(&output).is_empty() && !said(&output).contains("panicked"), "{words:?}");
    }
    let no_secret = run_with_input("", &["serve", "--name", "a"], b"");
    assert!(said(&no_secret).contains("tidings secret"), "{}", said(&no_secret));
    let mut outside = program();
    outside.args(["serve", "--name", "a", "--http", "0.0.0.0:0"]).env("TIDINGS_SECRET", common::SECRET);
    let outside = outside.output().unwrap();
    assert!(code(&outside) == 2 && said(&outside).contains("--token-file"), "{}", said(&outside));
    let mut unread = program();
    unread.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut unread = unread.spawn().unwrap();
    drop(unread.stdout.take());
    assert!(!said(&unread.wait_with_output().unwrap()).contains("panicked"), "its reader is gone");
    let usage = run_with_input("", &["--help"], b"");
    assert!(code(&usage) == 0 && shown(&usage).contains("Exit codes"));
}

#[test]
fn secrets_have_to_be_private_and_a_file_has_all_settings() {
    let folder = folder("settings");
    let secret = folder.join("secret.txt");
    assert!(program().args(["secret", "--out"]).arg(&secret).status().unwrap().success());
    assert!(
        !program().args(["secret", "--out"]).arg(&secret).status().unwrap().success(),
        "nothing is overwritten"
    );
    let settings = folder.join("node.toml");
    let text = format!(
        "name = \"from-file\"\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nprofile = \"local\"\n\
         secret_file = {secret:?}\nmeta = {{ zone = \"eu-1\" }}\n"
    );
    std::fs::write(&settings, &text).unwrap();
    let mut command = program();
    command.args(["serve", "--log", "off", "--config"]).arg(&settings).args(["--name", "from-flag"]);
    let node = common::start(command);
    let member: Value = serde_json::from_str(&node.line(&["members", "--json"])).unwrap();
    assert_eq!((&member["name"], &member["meta"]["zone"]), (&"from-flag".into(), &"eu-1".into()));
    drop(node);

    std::fs::write(&settings, text.replace("profile", "profil")).unwrap();
    let output = program().args(["serve", "--config"]).arg(&settings).output().unwrap();
    assert!(code(&output) == 2 && said(&output).contains("profil"), "{}", said(&output));
    std::fs::write(&settings, &text).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = program().args(["serve", "--config"]).arg(&settings).output().unwrap();
    assert!(code(&output) == 2 && said(&output).contains("chmod 600"), "{}", said(&output));
}

#[test]
fn a_watch_prints_runs_commands_and_ends_when_told() {
    let node = serve("a", &[], &[]);
    node.line(&["put", "w/1", "one"]);
    assert_eq!(node.line(&["watch", "w/", "--count", "1"]), "put      w/1 = one");
    let run = ["watch", "w/", "--count", "1", "--", "sh", "-c", "echo $TIDINGS_EVENT $TIDINGS_KEY $(cat)"];
    assert_eq!(node.line(&run), "put w/1 one");
    let failing = node.run(&["watch", "w/", "--", "sh", "-c", "exit 7"]);
    assert_eq!(code(&failing), 7);
    let missing = node.run(&["watch", "w/", "--", "/no/such/command"]);
    assert_eq!(code(&missing), 6);
    let event: Value = serde_json::from_str(&node.line(&["watch", "w/", "--count", "1", "--json"])).unwrap();
    node.line(&["put", "w/2", "two"]);
    let from = event["revision"].as_str().unwrap();
    assert_eq!(node.line(&["watch", "w/", "--from", from, "--count", "1"]), "put      w/2 = two");
}

#[test]
fn watch_command_is_told_that_deletes_may_be_missed() {
    let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = || {
        let mut command = program();
        command.args([
            "serve",
            "--name",
            "a",
            "--listen",
            "127.0.0.1:0",
            "--profile",
            "local",
            "--log",
            "off",
        ]);
        command.args(["--http", &http]).env("TIDINGS_SECRET", common::SECRET);
        common::start(command)
    };
    let node = start();
    node.line(&["put", "w/gone", "1"]);
    let ran = folder("resync").join("ran");
    let script = format!("echo \"$TIDINGS_EVENT $TIDINGS_KEY\" >> {}", ran.display());
    let mut watch = program();
    watch.args(["watch", "w/", "--", "sh", "-c", &script]).env("TIDINGS_NODE", &node.http);
    let mut watch = watch.spawn().unwrap();
    let told = || std::fs::read_to_string(&ran).unwrap_or_default();
    eventually("it is run for the value", || told() == "put w/gone\n");
    // Without a disk nothing is there any more, and nobody tells that it was deleted.
    drop(node);
    let node = start();
    node.line(&["put", "w/later", "2"]);
    eventually("it is told to forget", || told().ends_with("resync \nput w/later\n"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn slow_watch_command_runs_for_the_last_change() {
    let node = serve("a", &[], &[]);
    let folder = folder("folding");
    let (out, go) = (folder.join("out"), folder.join("go"));
    let script = format!(
        "cat >> {}; echo >> {0}; while ! test -e {}; do sleep 0.01; done",
        out.display(),
        go.display()
    );
    let mut watch = program();
    watch.args(["watch", "k", "--exact", "--", "sh", "-c", &script]).env("TIDINGS_NODE", &node.http);
    let mut watch = watch.spawn().unwrap();
    let run_for = || std::fs::read_to_string(&out).unwrap_or_default();
    node.line(&["put", "k", "first"]);
    eventually("it is run for the first", || run_for() == "first\n");
    for number in 0..30 {
        node.line(&["put", "k", &number.to_string()]);
    }
    std::fs::write(&go, "").unwrap();
    eventually("it is run for the last", || run_for().ends_with("\n29\n"));
    assert!(run_for().lines().count() < 20, "{}", run_for());
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn dump_loads_elsewhere_and_loading_twice_writes_nothing() {
    let (a, b) = (serve("a", &[], &[]), serve("b", &[], &[]));
    for number in 0..30 {
        a.line(&["put", &format!("k/{number}"), &format!("value {number}")]);
    }
    a.run_with_input(&["put", "k/binary", "-"], &[255, 0]);
    a.line(&["put", "k/late", "v", "--ttl", "1h"]);
    a.line(&["put", "k/bound", "v", "--ephemeral"]);
    a.line(&["set", "add", "k/set", "x"]);
    a.line(&["set", "add", "k/set", "y", "--ttl", "1h"]);
    a.line(&["set", "add", "k/set", "bound", "--ephemeral"]);
    a.line(&["counter", "add", "k/count", "7"]);
    assert!(a.line(&["get", "--conflicts", "k/bound"]).contains("with its node"));
    let file = folder("dump").join("all.jsonl");
    let file = file.to_str().unwrap();
    assert!(a.run(&["dump", "k/", "--out", file]).status.success());
    let loaded = b.run(&["load", file]);
    assert!(said(&loaded).contains("35 entries written, 0 were there"), "{}", said(&loaded));
    let again = b.run(&["load", file]);
    assert!(said(&loaded).contains("left out: 2 bound to a process"), "{}", said(&loaded));
    assert!(said(&again).contains("0 entries written, 35 were there"), "{}", said(&again));
    assert_eq!(b.run(&["get", "k/binary"]).stdout, [255, 0]);
    assert_eq!(b.line(&["set", "list", "k/set"]), "x\ny");
    assert_eq!(
        (b.line(&["set", "names"]), b.line(&["counter", "list", "k"])),
        ("k/set".into(), "k/count 7".into())
    );
    let lines = |dump: &str| -> Vec<serde_json::Value> {
        let lines = dump.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut lines: Vec<serde_json::Value> = lines.collect();
        // The time that is left is counted from the load on, to the millisecond.
        lines.retain(|line| line["ephemeral"].is_null());
        lines.iter_mut().for_each(|line| _ = line.as_object_mut().unwrap().remove("expires_ms"));
        lines
    };
    assert_eq!(lines(&b.line(&["dump", "k/"])), lines(&std::fs::read_to_string(file).unwrap()));
    let torn = b.run_with_input(&["load"], b"{\"key\": \"x\", \"value\": \"1\"}\n{\"key\":");
    assert!(code(&torn) == 2 && said(&torn).contains("line 2"), "{}", said(&torn));
}

#[test]
fn load_makes_what_is_there_end_as_in_the_dump() {
    let node = serve("a", &[], &[]);
    node.line(&["put", "k/permanent", "v", "--ttl", "1h"]);
    node.line(&["put", "k/bound", "v", "--ephemeral"]);
    node.line(&["put", "k/late", "v"]);
    node.line(&["put", "k/same", "v", "--ttl", "1h"]);
    node.line(&["set", "add", "k/set", "permanent", "--ttl", "1h"]);
    node.line(&["set", "add", "k/set", "late"]);
    let expires =
        |path: &str| ask("GET", &format!("{}/v1/{path}", node.http), &[], b"").json()["expires_ms"].as_u64();
    let soon = expires("kv/k/same?meta=true").unwrap();
    let input = format!(
        r#"{{"key": "k/permanent", "value": "v"}}
           {{"key": "k/bound", "value": "v"}}
           {{"key": "k/late", "value": "v", "expires_ms": {soon}}}
           {{"key": "k/same", "value": "v", "expires_ms": {soon}}}
           {{"set": "k/set", "element": "permanent"}}
           {{"set": "k/set", "element": "late", "expires_ms": {soon}}}"#
    );
    let kept = node.run_with_input(&["load", "--keep"], input.as_bytes());
    assert!(said(&kept).contains("0 entries written, 6 were there"), "{}", said(&kept));
    let loaded = node.run_with_input(&["load"], input.as_bytes());
    assert!(said(&loaded).contains("5 entries written, 1 were there"), "{}", said(&loaded));
    for path in ["kv/k/permanent?meta=true", "kv/k/bound?meta=true", "sets/k%2Fset/permanent"] {
        assert_eq!(expires(path), None, "{path}");
    }
    assert_eq!(entry(&node, "k/bound")["ephemeral"], false);
    for path in ["kv/k/late?meta=true", "sets/k%2Fset/late"] {
        assert!(expires(path).is_some_and(|expires| expires.abs_diff(soon) < 60_000), "{path}");
    }
    let again = node.run_with_input(&["load"], input.as_bytes());
    assert!(said(&again).contains("0 entries written, 6 were there"), "{}", said(&again));
}

#[test]
fn dump_lists_concurrent_values_and_load_counts_them() {
    let [node, _other] = conflict("k/x", ["one", "two"]);
    let dump = node.line(&["dump", "k/"]);
    let line: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let (winner, losers) = (line["value"].as_str().unwrap(), line["conflicts"].as_array().unwrap());
    let loser = losers[0]["value"].as_str().unwrap();
    assert!(losers.len() == 1 && BTreeSet::from([winner, loser]) == BTreeSet::from(["one", "two"]), "{dump}");
    let empty = serve("c", &[], &[]);
    let loaded = empty.run_with_input(&["load"], dump.as_bytes());
    assert!(said(&loaded).contains("1 entries written, 0 were there"), "{}", said(&loaded));
    assert!(said(&loaded).contains("1 that had lost against another write"), "{}", said(&loaded));
    assert_eq!(empty.line(&["get", "k/x"]), winner);
    assert_eq!(entry(&empty, "k/x")["conflicts"], serde_json::json!([]));
}

#[test]
fn status_names_what_is_not_applied() {
    let node = serve("a", &[], &[]);
    assert!(!node.line(&["status"]).contains("not applied"));
    node.line(&["put", "flags/default/broken", "{}", "--force"]);
    eventually("the status names it", || node.line(&["status"]).contains("not applied in flags/: the key"));
    let rejected = ask("GET", &format!("{}/v1/status", node.http), &[], b"").json()["rejected"].clone();
    assert_eq!(rejected[0]["live"], "flags/", "{rejected}");
    assert!(
        rejected[0]["reason"].as_str().unwrap().contains("\"flags/default/broken\" (written by a,"),
        "{rejected}"
    );
    node.line(&["del", "flags/default/broken"]);
    eventually("nothing is left", || !node.line(&["status"]).contains("not applied"));
}

#[test]
fn the_cluster_is_shown_compared_and_left() {
    let a = serve("a", &[], &[]);
    let mut b = serve("b", &[&a.addr], &[]);
    a.line(&["put", "k", "v"]);
    eventually("both hold the same", || {
        a.run(&["digest", &b.http]).status.success() && a.line(&["members"]).lines().count() == 3
    });
    assert!(a.line(&["status"]).contains("cluster tidings, ready"));
    let table = a.line(&["members"]);
    assert!(table.contains("a (asked)") && table.contains("alive"), "{table}");
    let other = serve("other", &[], &[]);
    other.line(&["put", "k", "w"]);
    assert_eq!(code(&a.run(&["digest", &other.http])), 1, "islands differ");
    assert_eq!(b.line(&["leave"]), "b leaves");
    assert!(b.process.child.wait().unwrap().success());
    eventually("a knows", || a.line(&["members"]).contains("left"));
    assert!(said(&a.run(&["forget", "a"])).contains("is not gone"), "a node does not forget itself");
    assert_eq!(a.line(&["forget", "b"]), "b is forgotten");
    assert_eq!(a.line(&["members"]).lines().count(), 2);
    let unknown = a.run(&["forget", "b"]);
    assert!(code(&unknown) != 0 && said(&unknown).contains("no member is called"), "{}", said(&unknown));
    let wrong = a.run(&["join", "nowhere:x"]);
    assert!(
        code(&wrong) != 0 && said(&wrong).contains("none of the forms host, host:port"),
        "{}",
        said(&wrong)
    );
    a.line(&["join", &other.addr]);
    eventually("a and other hold the same", || a.run(&["digest", &other.http]).status.success());
    assert!(said(&a.run(&["forget", "other"])).contains("is not gone"));
    let report = a.line(&["bench", "--requests", "500", "--keys", "10", "--clean", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["requests"], 500);
    assert_eq!(a.line(&["list", "--keys-only"]), "k");
    assert!(a.line(&["completions", "bash"]).contains("tidings"));
}

#[test]
fn a_secret_is_rotated_without_a_restart() {
    let folder = folder("rotation");
    let write = |name: &str, secrets: &[&str]| {
        let file = folder.join(name);
        std::fs::write(&file, secrets.join("\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (old, new) = (common::SECRET, "magnet sierra candle voyage bishop quartz lumber anchor");
    let a = serve("a", &[], &["--secret-file", &write("a", &[old])]);
    let b = serve("b", &[&a.addr], &["--secret-file", &write("b", &[old])]);
    let newcomer = |name: &str, seeds: &[&str], secrets: &[&str]| {
        serve(name, seeds, &["--secret-file", &write(name, secrets)])
    };
    let peers = |node: &common::Running| {
        let status: Value = serde_json::from_str(&node.line(&["status", "--json"])).unwrap();
        status["peers"].as_array().unwrap().len()
    };
    let step = |secrets: &[&str]| {
        for node in [("a", &a), ("b", &b)] {
            write(node.0, secrets);
            signal(node.1.pid(), "HUP");
        }
    };
    eventually("they are linked", || peers(&a) == 1);

    // Each step is for when the one before is done everywhere; what a newcomer with other secrets meets shows it.
    for (secrets, shown_by) in [([old, new], &[new, old][..]), ([new, old], &[new])] {
        step(&secrets);
        let c = newcomer("c", &[&a.addr, &b.addr], shown_by);
        eventually("the newcomer is linked with both", || peers(&c) == 2);
        assert_eq!(c.line(&["leave"]), "c leaves");
        eventually("it is gone", || peers(&a) == 1);
    }
    step(&[new]);
    for node in [&a, &b] {
        // It would be linked with a node at any step but the last.
        let late = newcomer("late", &[&node.addr], &[old, new]);
        let told =
            format!("{} refused this node: the nodes have different secrets or cluster names", node.addr);
        common::events(&format!("{}/v1/dash", late.http), None, |name, data| {
            name == "news" && data["log"].as_array().unwrap().iter().any(|line| line["text"] == told.as_str())
        });
    }
    eventually("they are linked by the new secret", || peers(&a) == 1 && peers(&b) == 1);
    a.line(&["put", "k", "v"]);
    eventually("it arrives", || b.run(&["get", "k"]).stdout == b"v");
}

#[test]
#[cfg(target_os = "linux")] // `script` takes other arguments elsewhere.
fn nothing_in_a_key_is_obeyed_by_a_terminal() {
    let node = serve("a", &[], &[]);
    let key = "k\u{1b}[2J\u{7}\u{9b}31m";
    node.line(&["put", key, "v\u{1b}]0;title\u{7}"]);
    node.line(&["set", "add", "s", key]);
    // What a program reads is as it is: the control of this test.
    assert_eq!(node.line(&["list", "--keys-only"]), key);
    for words in ["list", "list --keys-only", "set list s", "get \"$KEY\"", "watch --count 1"] {
        let mut terminal = std::process::Command::new("script");
        terminal.args(["-qec", &format!("{} {words}", common::PROGRAM), "/dev/null"]);
        terminal.env("KEY", key).env("TIDINGS_NODE", &node.http);
        let output = terminal.stdin(std::process::Stdio::null()).output().unwrap();
        let shown = shown(&output);
        assert!(output.status.success() && shown.contains('·'), "{words}: {shown}");
        assert!(shown.chars().all(|c| !c.is_control() || "\r\n".contains(c)), "{words}: {shown:?}");
    }
}

#[test]
fn only_the_leader_runs_its_command() {
    let node = serve("a", &[], &["--voter", "a", "--lease-time", "10s", "--lease-time-max", "10s"]);
    assert!(!node.run(&["leader", "cron"]).status.success(), "voters that have just started elect nobody");
    let out = folder("elect").join("token");
    let script = format!("echo $TIDINGS_FENCING_TOKEN > {}; exec sleep 60", out.display());
    let mut elect = program();
    elect.args(["elect", "cron", "first", "--", "sh", "-c", &script]).env("TIDINGS_NODE", &node.http);
    let mut elect = elect.spawn().unwrap();
    eventually("the first leads", || node.run(&["leader", "cron"]).status.success());
    assert!(node.line(&["leader", "cron"]).starts_with("first (token "));
    eventually("its command runs", || std::fs::read_to_string(&out).is_ok_and(|token| token.len() > 16));
    assert_eq!(code(&node.run(&["lock", "cron", "--once", "--", "true"])), 4, "it is taken");
    signal(elect.id(), "TERM");
    assert_eq!(elect.wait().unwrap().code(), Some(1));
    eventually("nobody leads", || code(&node.run(&["leader", "cron"])) == 1);
    assert_eq!(code(&node.run(&["lock", "cron", "--", "sh", "-c", "exit 9"])), 9);
    let script = "test \"$TIDINGS_FENCING_TOKEN\" \\> \"$(cat $0)\"";
    let later = node.run(&["lock", "cron", "--", "sh", "-c", script, out.to_str().unwrap()]);
    assert!(later.status.success(), "the later token is the greater one");

    let voterless = serve("none", &[], &[]);
    let refused = voterless.run(&["leader", "cron"]);
    assert!(code(&refused) == 2 && said(&refused).contains("--voter"), "{}", said(&refused));
}

#[test]
fn voters_are_shown_and_changed() {
    let folder = folder("voters");
    let start = |name: &str, seeds: &[&str], voter: &str| {
        let dir = folder.join(name);
        serve(name, seeds, &["--voter", voter, "--data-dir", dir.to_str().unwrap()])
    };
    let a = start("a", &[], "a");
    let b = start("b", &[&a.addr], "a");
    assert_eq!(a.line(&["voters"]), "a");
    eventually("a knows b", || a.line(&["members"]).lines().count() == 3);
    let unknown = a.run(&["voters", "--set", "a,c"]);
    assert!(
        code(&unknown) != 0 && said(&unknown).contains("the node c did not answer"),
        "{}",
        said(&unknown)
    );
    let twice = a.run(&["voters", "--set", "b,b"]);
    assert!(code(&twice) == 2 && said(&twice).contains("each once"), "{}", said(&twice));
    assert_eq!(a.line(&["voters", "--set", "b"]), "b");
    eventually("b knows", || b.line(&["voters"]) == "b");
    eventually("b grants", || a.run(&["lock", "cron", "--once", "--", "true"]).status.success());
    assert_eq!(a.line(&["voters", "--set", "a", "--force"]), "a");
    assert!(code(&a.run(&["voters", "--force"])) == 2, "it needs a list");

    let voterless = serve("none", &[], &[]);
    assert_eq!(voterless.line(&["voters"]), "there are no voters, so there are no elections");
}

#[test]
fn sigterm_leaves_unless_the_return_is_expected() {
    let a = serve("a", &[], &[]);
    let in_file = folder("expected").join("node.toml");
    std::fs::write(&in_file, "expect_return = true\n").unwrap();
    let in_file = ["--config", in_file.to_str().unwrap()];
    let cases: [(&str, &[&str], &str); 3] =
        [("b", &[], "left"), ("c", &["--expect-return"], "down"), ("d", &in_file, "down")];
    for (name, more, expected) in cases {
        let mut node = serve(name, &[&a.addr], more);
        let state = || {
            let members = common::ask("GET", &format!("{}/v1/members", a.http), &[], b"").json();
            let members = members["members"].as_array().unwrap();
            members.iter().find(|member| member["name"] == name).map(|member| member["state"].clone())
        };
        eventually("it is a member", || state() == Some("alive".into()));
        signal(node.pid(), "TERM");
        assert!(node.process.child.wait().unwrap().success());
        eventually(&format!("{name} is {expected}"), || state() == Some(expected.into()));
        if expected == "left" {
            // Nobody waits for it.
            let url = format!("{}/v1/kv/k?wait=all&timeout=60s", a.http);
            assert_eq!(common::ask("PUT", &url, &[], b"v").status, 200);
        }
    }
}

/// Starts a node that does not start, and answers what it says.
fn refused(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(code(&output), 2, "{}", said(&output));
    said_by(&output)
}

/// All that it wrote.
fn said_by(output: &Output) -> String {
    said(output) + &shown(output)
}

#[test]
fn a_broken_settings_file_is_explained_without_its_values() {
    let file = folder("broken").join("node.toml");
    let secret = "correct horse battery staple";
    for (line, told) in [
        (format!("secrte = \"{secret}\""), "line 3: there is no setting \"secrte\""),
        (format!("secret = \"{secret}"), "line 3: this is not TOML"),
        (format!("secret {secret}"), "line 3: this is not TOML"),
        (format!("secret = [\"{secret}\"]"), "line 3: the value of \"secret\""),
        (format!("profile = \"{secret}\""), "line 3: the value of \"profile\""),
        (format!("voters = \"{secret}\""), "line 3: the value of \"voters\""),
        (format!("http = \"{secret}\""), "line 3: the value of \"http\""),
        (format!("meta = {{ zone = [\"{secret}\"] }}"), "line 3: "),
        (format!("secret = \"{secret}\"\nlease_tiem = \"1s\""), "line 4: there is no setting \"lease_tiem\""),
    ] {
        private_file(&file, format!("# A comment\nname = \"a\"\n{line}\n"));
        let said = refused(program().args(["serve", "--config"]).arg(&file));
        assert!(said.contains(told) && said.contains("node.toml"), "{told}: {said}");
        for word in secret.split(' ') {
            assert!(!said.contains(word), "{line}: {said}");
        }
    }
}

#[test]
fn no_error_shows_a_secret_or_a_token() {
    let folder = folder("unshown");
    let (secrets, token) = (folder.join("secrets"), folder.join("token"));
    let shows = |said: &str| ["hunter2", "hunter3"].iter().any(|word| said.contains(word));
    let serve = |http: &str, env: &str, value: &std::ffi::OsStr| {
        let mut command = program();
        command.args(["serve", "--name", "a", "--listen", "127.0.0.1:0", "--http", http]).env(env, value);
        command
    };
    let local = "127.0.0.1:0";
    // Easy to guess, of the wrong encoding, and readable by others.
    let said = refused(&mut serve(local, "TIDINGS_SECRET", "hunter2".as_ref()));
    assert!(!shows(&said) && said.contains("at least 80 are needed"), "{said}");
    assert!(said.contains("tidings secret --out"), "{said}");
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"hunter2 \xff hunter2 hunter2");
    let said = refused(&mut serve(local, "TIDINGS_SECRET", bytes));
    assert!(!shows(&said) && said.contains("not UTF-8"), "{said}");
    private_file(&secrets, b"hunter2 \xff hunter2 hunter2");
    let output = serve(local, "TIDINGS_SECRET_FILE", secrets.as_os_str()).output().unwrap();
    assert!(!output.status.success() && !shows(&(said_by(&output))), "{}", said_by(&output));
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&mut serve(local, "TIDINGS_SECRET_FILE", secrets.as_os_str()));
    assert!(!shows(&said) && said.contains("chmod 600"), "{said}");
    // A token that anybody guesses is refused, also where only this machine can ask.
    for (text, is_in_file) in [("hunter3", true), ("fifteen-hunter3", false)] {
        private_file(&token, text);
        let mut command = serve(local, "TIDINGS_SECRET", common::SECRET.as_ref());
        if is_in_file {
            command.arg("--token-file").arg(&token);
        } else {
            command.env("TIDINGS_TOKEN", text);
        }
        let said = refused(&mut command);
        let told = ["at least 80 are needed", "tidings secret"];
        assert!(!shows(&said) && told.iter().all(|told| said.contains(told)), "{said}");
    }
}

#[test]
fn strong_token_permits_a_public_http_address() {
    let token = folder("good-token").join("token");
    assert!(program().args(["secret", "--out"]).arg(&token).status().unwrap().success());
    let mut command = program();
    command.args(["serve", "--name", "a", "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0", "--log", "off"]);
    command.env("TIDINGS_SECRET", common::SECRET).arg("--token-file").arg(&token);
    let node = common::start(command);
    let local = node.http.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(common::ask("GET", &format!("{local}/v1/kv"), &[], b"").status, 401);
    let words = ["list", "--token-file", token.to_str().unwrap()];
    assert!(run_with_input(&local, &words, b"").status.success());
}

#[test]
fn data_snapshots_and_secrets_are_for_their_owner_only() {
    let folder = folder("modes");
    let (dir, dump) = (folder.join("above").join("data"), folder.join("keys.jsonl"));
    // The shell's umask is the one that most systems have.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "umask 022; exec \"$@\"", "sh", common::PROGRAM]);
    command.args(common::SERVE_A);
    command.arg("--data-dir").arg(&dir).env("TIDINGS_SECRET", common::SECRET);
    let node = common::start(command);
    node.line(&["put", "k", "v", "--durable"]);
    node.line(&["snapshot", "monday"]);
    assert!(node.run(&["dump", "--out", dump.to_str().unwrap()]).status.success());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // Those of the disk engine included.
    let (mut folders, mut files) = (vec![folder.join("above")], vec![dump]);
    let mut at = 0;
    while let Some(folder) = folders.get(at).cloned() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
        at += 1;
    }
    for made in [dir.join("node/store"), dir.join("snapshots")] {
        assert!(folders.contains(&made), "{folders:?}");
    }
    folders.iter().for_each(|folder| assert_eq!(mode(folder), 0o700, "{}", folder.display()));
    let secret = folder.join("secret");
    let script = format!("umask 022; exec {} secret --out {}", common::PROGRAM, secret.display());
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    files.push(secret);
    files.iter().for_each(|file| assert_eq!(mode(file), 0o600, "{}", file.display()));
}

#[test]
fn damaged_directory_is_named_with_what_to_do() {
    let dir = folder("damaged");
    let dir = dir.to_str().unwrap();
    let mut node = serve("a", &[], &["--data-dir", dir]);
    node.line(&["put", "k", "v", "--durable"]);
    node.process.child.kill().unwrap();
    node.process.child.wait().unwrap();
    std::fs::write(format!("{dir}/node/store/version"), "damaged").unwrap();
    let serve_again = [&common::SERVE_A[..], &["--data-dir", dir]].concat();
    let refused = program().args(&serve_again).env("TIDINGS_SECRET", common::SECRET).output().unwrap();
    let told = said(&refused);
    for words in ["node/store/version is damaged", "none that the engine knows", "--rejoin-on-corruption"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let anew = serve("a", &[], &["--data-dir", dir, "--rejoin-on-corruption"]);
    assert_eq!(anew.line(&["list", "--keys-only"]), "");
}
