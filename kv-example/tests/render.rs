//! `tidings render` as a process: files that follow the keys, over crashes and restarts.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Running, ask, folder, program, serve};
use tidings_proptest::processes::{eventually, signal};
use tidings_proptest::relay::{Faults, Relay};

/// A rendering that ends with the test.
struct Rendering(Child);

impl Drop for Rendering {
    fn drop(&mut self) {
        // Ends its command as well; a killed one leaves that behind.
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.0.id(), "TERM");
        }
        _ = self.0.wait();
    }
}

fn command(node: &str, words: &[&str], out: &Path) -> Command {
    let mut command = program();
    command.args(["render", "--prefix", "app/", "--out"]).arg(out).args(words).env("TIDINGS_NODE", node);
    command
}

fn begin(node: &str, words: &[&str], out: &Path) -> Rendering {
    Rendering(command(node, words, out).stderr(Stdio::null()).spawn().unwrap())
}

fn once(node: &Running, words: &[&str], out: &Path) -> Output {
    command(&node.http, &[&["--once"], words].concat(), out).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn read(out: &Path, name: &str) -> String {
    fs::read_to_string(out.join(name)).unwrap_or_default()
}

/// The names in a directory, without the states of this program.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
    names.sort();
    names
}

fn states(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_string_lossy().contains("..tidings-")).collect()
}

#[test]
fn keys_become_files_that_follow_them() {
    let node = serve("a", &[], &[]);
    node.line(&["put", "app/db/pool", "5"]);
    node.line(&["put", "app/name", "shop"]);
    node.line(&["put", "other", "x"]);
    let folder = folder("render");
    let (out, ran) = (folder.join("out"), folder.join("ran"));
    let script = format!("cat \"$TIDINGS_OUT/name\" >> {0}; echo >> {0}; exit 3", ran.display());
    let _rendering = begin(&node.http, &["--", "sh", "-c", &script], &out);
    eventually("both are there", || read(&out, "db/pool") == "5" && read(&out, "name") == "shop");
    assert_eq!(names(&out), ["db", "name"]);
    assert_eq!(fs::read_link(out.join("name")).unwrap(), Path::new("..data/name"));
    let mode = fs::metadata(out.join("db/pool")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o644);

    let before = fs::read_link(out.join("..data")).unwrap();
    node.line(&["put", "app/name", "store"]);
    eventually("the command is run for it, after it failed before", || {
        read(&folder, "ran") == "shop\nstore\n"
    });
    assert_ne!(fs::read_link(out.join("..data")).unwrap(), before);
    eventually("the state before is removed", || states(&out).len() == 1);
    // A write that changes no byte, and a key elsewhere, run nothing.
    node.line(&["put", "app/name", "store"]);
    node.line(&["put", "other", "y"]);
    node.line(&["del", "app/db/pool"]);
    eventually("what was deleted is gone", || names(&out) == ["name"]);
    eventually("it is run once for that", || read(&folder, "ran") == "shop\nstore\nstore\n");
}

/// Puts one small value and some of 900 kB in one batch, all of which begin with a number.
fn put_numbered(node: &Running, number: usize) {
    let put = |key: &str, bytes: usize| serde_json::json!({ "put": format!("app/{key}"), "value": format!("{number:06}{}", "x".repeat(bytes)) });
    let mut writes = vec![put("conf", 0)];
    writes.extend((0..5).map(|i| put(&format!("data-{i}"), 900_000)));
    let body = serde_json::json!({ "writes": writes }).to_string();
    let headers = [("content-type", "application/json")];
    let reply = ask("POST", &format!("{}/v1/batch", node.http), &headers, body.as_bytes());
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

/// Bytes per second between two nodes, of which a batch takes several seconds.
const SLOW: f64 = 1_500_000.0;

/// Two nodes with a slow network between them: all that leads to the second one is slow.
fn serve_apart() -> (Running, Running, Relay) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let relay = runtime.block_on(Relay::start(Faults { rate: Some(SLOW), ..Faults::default() }));
    let addr = relay.addr().to_string();
    let b = serve("b", &[], &["--advertise", &addr]);
    relay.lead_to(b.addr.parse().unwrap());
    let a = serve("a", &[&addr], &[]);
    (a, b, relay)
}

#[test]
fn no_state_in_force_has_a_part_of_a_batch() {
    let (a, b, _relay) = serve_apart();
    eventually("a is ready", || ask("GET", &format!("{}/readyz", a.http), &[], b"").status == 200);
    put_numbered(&a, 1);
    eventually("b has it", || b.run(&["digest", &a.http]).status.success());
    let folder = folder("render-batches");
    let (out, ran, said) = (folder.join("out"), folder.join("ran"), folder.join("said"));
    // One line for each state in force, with the numbers in it.
    let script =
        "echo $(for file in \"$TIDINGS_OUT\"/..data/*; do head -c 6 \"$file\"; echo; done | sort -u)";
    let script = format!("{script} >> {}", ran.display());
    let mut rendering = command(&b.http, &["--", "sh", "-c", &script], &out);
    let _rendering = Rendering(rendering.stderr(fs::File::create(said).unwrap()).spawn().unwrap());
    eventually("the first is rendered", || read(&folder, "ran") == "000001\n");
    for number in 2..=3 {
        put_numbered(&a, number);
        let last = format!("{number:06}\n");
        eventually("it is rendered", || read(&folder, "ran").ends_with(&last));
    }
    let ran = read(&folder, "ran");
    assert!(ran.lines().all(|line| line.split(' ').count() == 1), "a state mixes two batches:\n{ran}");
    let said = read(&folder, "said");
    assert!(said.contains("the rest of a batch of another node has not come yet"), "{said}");
}

#[test]
fn node_without_a_place_for_whole_batches_is_followed_by_key() {
    let node = serve("a", &[], &[]);
    node.line(&["put", "app/a", "1"]);
    let url = format!("{}/v1/watch?prefix=app/&whole=true", node.http);
    // Each is held open until the test is over.
    let held: Vec<_> = (0..16)
        .map(|_| {
            let mut lines = common::lines(&url, None);
            lines.next().expect("it begins with a state");
            lines
        })
        .collect();
    assert_eq!(ask("GET", &url, &[], b"").status, 429);
    let out = folder("render-by-key").join("out");
    let _rendering = begin(&node.http, &[], &out);
    eventually("it is there", || read(&out, "a") == "1");
    node.line(&["put", "app/b", "2"]);
    node.line(&["del", "app/a"]);
    eventually("it follows", || names(&out) == ["b"] && read(&out, "b") == "2");
    drop(held);
}

/// An address that was free a moment ago.
fn free_addr() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The command that serves a node whose API is at this address, so that it is found there again after a restart.
fn serve_at(http: &str) -> Command {
    let mut command = program();
    command.args(["serve", "--name", "a", "--listen", "127.0.0.1:0", "--profile", "local", "--log", "off"]);
    command.args(["--http", http]).env("TIDINGS_SECRET", common::SECRET);
    command
}

#[test]
fn rendering_goes_on_when_the_node_is_back() {
    let folder = folder("render-restart");
    let out = folder.join("out");
    let data = folder.join("data");
    let http = free_addr();
    let start = || {
        let mut command = serve_at(&http);
        command.arg("--data-dir").arg(&data);
        common::start(command)
    };
    // Begun before the node.
    let _rendering = begin(&format!("http://{http}"), &[], &out);
    let node = start();
    node.line(&["put", "app/a", "1", "--durable"]);
    eventually("it is there", || read(&out, "a") == "1");
    drop(node);
    let node = start();
    node.line(&["put", "app/b", "2"]);
    node.line(&["del", "app/a"]);
    eventually("the later state is there", || names(&out) == ["b"] && read(&out, "b") == "2");
}

#[test]
fn replaced_token_is_read_from_its_file_again() {
    let folder = folder("render-token");
    let (out, own) = (folder.join("out"), folder.join("own"));
    let [full, read_only] = ["full", "read"].map(|name| folder.join(name));
    let token = |name: &str| format!("{name}-{}", common::SECRET.replace(' ', "-"));
    common::private_file(&full, token("full"));
    common::private_file(&read_only, token("one"));
    common::private_file(&own, token("one"));
    let http = free_addr();
    let start = || {
        let mut command = serve_at(&http);
        command.arg("--token-file").arg(&full).arg("--read-token-file").arg(&read_only);
        common::start(command)
    };
    let put = |node: &Running, value: &str| {
        let path = format!("{}/v1/kv/app/a", node.http);
        let bearer = format!("Bearer {}", token("full"));
        common::ask("PUT", &path, &[("authorization", &bearer)], value.as_bytes()).status
    };
    let node = start();
    let words = ["--token-file", own.to_str().unwrap()];
    let _rendering = begin(&node.http, &words, &out);
    let mut watch = program();
    watch.args(["watch", "app/", "--count", "2"]).args(words).env("TIDINGS_NODE", &node.http);
    let watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(put(&node, "1"), 200);
    eventually("it is rendered", || read(&out, "a") == "1");
    drop(node);
    common::private_file(&read_only, token("two"));
    let node = start();
    assert_eq!(put(&node, "2"), 200);
    // Those who follow get their token later than the node.
    common::private_file(&own, token("two"));
    eventually("it is rendered with the next token", || read(&out, "a") == "2");
    let told = String::from_utf8(watch.wait_with_output().unwrap().stdout).unwrap();
    assert!(told.ends_with("app/a = 2\n"), "{told}");
}

#[test]
fn node_that_has_not_caught_up_deletes_no_files() {
    let folder = folder("render-ready");
    let out = folder.join("out");
    let node = serve("a", &[], &[]);
    node.line(&["put", "app/a", "1"]);
    assert_eq!(once(&node, &[], &out).status.code(), Some(0));
    // Nobody is at its seed, so it does not know what its cluster holds.
    let empty = serve("b", &["127.0.0.1:1"], &[]);
    let output = once(&empty, &[], &out);
    assert!(output.status.code() == Some(3) && said(&output).contains("synced"), "{}", said(&output));
    assert_eq!(read(&out, "a"), "1");
}

#[test]
fn state_that_a_crash_left_is_not_in_force_and_is_removed() {
    let node = serve("a", &[], &[]);
    let out = folder("render-crash").join("out");
    node.line(&["put", "app/a", "1"]);
    assert_eq!(once(&node, &[], &out).status.code(), Some(0));
    let in_force = fs::read_link(out.join("..data")).unwrap();
    // As a process leaves it that is killed between the files and the link.
    fs::create_dir(out.join("..tidings-1")).unwrap();
    fs::write(out.join("..tidings-1/a"), "half").unwrap();
    std::os::unix::fs::symlink("..tidings-1", out.join("..data_next")).unwrap();
    std::os::unix::fs::symlink("..data/gone", out.join("gone")).unwrap();
    assert_eq!(read(&out, "a"), "1");
    assert_eq!(
        once(&node, &["--", "sh", "-c", "exit 9"], &out).status.code(),
        Some(0),
        "nothing has changed"
    );
    assert_eq!((states(&out), names(&out)), (vec![out.join(&in_force)], vec!["a".to_owned()]));
    node.line(&["put", "app/a", "2"]);
    assert_eq!(once(&node, &["--mode", "0640", "--", "sh", "-c", "exit 9"], &out).status.code(), Some(9));
    assert_eq!((read(&out, "a"), states(&out).len()), ("2".to_owned(), 1));
    assert_eq!(fs::metadata(out.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(out.join("..data/")).unwrap().permissions().mode() & 0o777, 0o750);
}

#[test]
fn hostile_keys_write_nothing_outside() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-hostile");
    let out = folder.join("below/out");
    for key in [
        "app/../up",
        "app//etc/x",
        "app/x/../../../up",
        "app/..data",
        "app/..lock",
        "app/.",
        "app/a",
        "app/a/b",
    ] {
        node.line(&["put", key, "v"]);
    }
    node.line(&["put", "app/\u{1b}[2J", "v"]);
    let output = once(&node, &[], &out);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert_eq!(said(&output).matches("left out").count(), 7, "{}", said(&output));
    assert!(!said(&output).contains('\u{1b}') && said(&output).contains("\"app/a\""), "{}", said(&output));
    assert_eq!(names(&out), ["\u{1b}[2J", "a"]);
    assert_eq!(
        (read(&out, "a/b"), names(&folder), names(&folder.join("below"))),
        ("v".into(), vec!["below".into()], vec!["out".into()])
    );
}

#[test]
fn files_of_others_are_left_alone() {
    let node = serve("a", &[], &[]);
    let out = folder("render-taken").join("out");
    node.line(&["put", "app/a", "1"]);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("a"), "mine").unwrap();
    fs::write(out.join("b"), "mine").unwrap();
    let output = once(&node, &[], &out);
    assert!(
        output.status.code() == Some(6) && said(&output).contains("not made by this program"),
        "{}",
        said(&output)
    );
    assert_eq!(read(&out, "a"), "mine");
    fs::remove_file(out.join("a")).unwrap();
    assert_eq!(once(&node, &[], &out).status.code(), Some(0));
    assert_eq!((read(&out, "a"), read(&out, "b")), ("1".into(), "mine".into()));
    let _rendering = begin(&node.http, &["--", "sleep", "600"], &out);
    node.line(&["put", "app/a", "2"]);
    eventually("it is rendered", || read(&out, "a") == "2");
    let output = once(&node, &[], &out);
    assert!(said(&output).contains("rendered by another process"), "{}", said(&output));
    // Something that is no directory, a mode that is none, no node.
    assert_eq!(once(&node, &[], &out.join("b")).status.code(), Some(6));
    assert_eq!(once(&node, &["--mode", "999"], &out).status.code(), Some(2));
    let nobody = command("http://127.0.0.1:1", &["--once"], &out.with_file_name("other")).output().unwrap();
    assert_eq!(nobody.status.code(), Some(3));
}

#[test]
fn command_runs_alone_and_ends_with_the_rendering() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-command");
    let (out, log, go) = (folder.join("out"), folder.join("log"), folder.join("go"));
    // It says for which state it runs, and knows how long it will sleep before it says that it ends.
    let script = format!(
        "a=$(cat \"$TIDINGS_OUT/a\"); echo begin $a >> {0}; while ! test -e {1}; do sleep 0.01; done; \
         pause=$(cat {1}); echo end $a >> {0}; exec sleep $pause",
        log.display(),
        go.display()
    );
    let mut rendering = begin(&node.http, &["--", "sh", "-c", &script], &out);
    node.line(&["put", "app/a", "1"]);
    eventually("it runs", || read(&folder, "log") == "begin 1\n");
    for number in 2..20 {
        node.line(&["put", "app/a", &number.to_string()]);
    }
    let now = (read(&folder, "log"), read(&out, "a"));
    assert_eq!(now, ("begin 1\n".to_owned(), "1".to_owned()), "changes wait");
    fs::write(folder.join("next"), "0").unwrap();
    fs::rename(folder.join("next"), &go).unwrap();
    // The last changes may reach it only when it runs for those before.
    eventually("it has run for the last change", || read(&folder, "log").ends_with("end 19\n"));
    let log = read(&folder, "log");
    let lines: Vec<&str> = log.lines().collect();
    let is_one_run = |run: &[&str]| run[0].strip_prefix("begin ") == run[1].strip_prefix("end ");
    assert!(lines.chunks(2).all(is_one_run) && lines.len() < 2 * 19, "never two at a time: {log}");
    fs::write(folder.join("next"), "600").unwrap();
    fs::rename(folder.join("next"), &go).unwrap();
    node.line(&["put", "app/a", "20"]);
    eventually("it sleeps", || read(&folder, "log").ends_with("end 20\n"));
    signal(rendering.0.id(), "TERM");
    assert!(rendering.0.wait().unwrap().success());
}

#[test]
fn command_that_failed_is_run_again_at_the_next_start() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-due");
    let (template, ran) = (folder.join("in.j2"), folder.join("ran"));
    fs::write(&template, "{{ a }}").unwrap();
    node.line(&["put", "app/a", "1"]);
    let count = format!("echo >> {}; test -e {}", ran.display(), folder.join("good").display());
    for (name, words) in [("dir", vec![]), ("file", vec!["--template", template.to_str().unwrap()])] {
        let out = folder.join(name);
        let once = || once(&node, &[&words[..], &["--", "sh", "-c", &count]].concat(), &out).status.code();
        assert_eq!((once(), once()), (Some(1), Some(1)), "the bytes are the same, and the command is run");
        fs::write(folder.join("good"), "").unwrap();
        assert_eq!((once(), once()), (Some(0), Some(0)));
        assert_eq!(read(&folder, "ran").lines().count(), 3, "after it has succeeded it is not run again");
        ["good", "ran"].iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    }
    assert!(!folder.join("dir/..command_due").exists() && !folder.join(".file.command_due").exists());
}

#[test]
fn command_that_was_killed_is_run_again_at_the_next_start() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-killed");
    let (out, log) = (folder.join("out"), folder.join("log"));
    node.line(&["put", "app/a", "1"]);
    let mut rendering =
        begin(&node.http, &["--", "sh", "-c", &format!("echo >> {}; exec sleep 600", log.display())], &out);
    eventually("it runs", || read(&folder, "log") == "\n");
    signal(rendering.0.id(), "TERM");
    assert!(rendering.0.wait().unwrap().success());
    let words = ["--", "sh", "-c", &format!("echo again >> {}", log.display())];
    let _rendering = begin(&node.http, &words, &out);
    eventually("it is run to its end", || {
        read(&folder, "log") == "\nagain\n" && !out.join("..command_due").exists()
    });
    // In one process, a put of the same value is no reason to run it.
    node.line(&["put", "app/a", "1"]);
    node.line(&["put", "app/a", "2"]);
    eventually("it is run for the change", || read(&folder, "log") == "\nagain\nagain\n");
}

#[test]
fn template_makes_one_file() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-template");
    let (template, out) = (folder.join("in.j2"), folder.join("out.conf"));
    fs::write(&template, "pool={{ db.pool }}\n{% for host in hosts %}{{ host }}\n{% endfor %}").unwrap();
    node.line(&["put", "app/db/pool", "5"]);
    let words = ["--template", template.to_str().unwrap(), "--", "sh", "-c", "cat \"$TIDINGS_OUT\""];
    let missing = once(&node, &words, &out);
    assert!(missing.status.code() == Some(6) && said(&missing).contains("line 2"), "{}", said(&missing));
    assert!(!out.exists());
    node.line(&["put", "app/hosts", "[\"x\", \"y\"]"]);
    let made = once(&node, &words, &out);
    assert_eq!((made.status.code(), &made.stdout[..]), (Some(0), &b"pool=5\nx\ny\n"[..]), "{}", said(&made));
    assert_eq!(once(&node, &words, &out).stdout, b"", "nothing has changed");
    node.line(&["del", "app/hosts"]);
    assert_eq!(once(&node, &words, &out).status.code(), Some(6));
    assert_eq!(read(&folder, "out.conf"), "pool=5\nx\ny\n", "what was rendered before stays");
    assert_eq!(once(&node, &words, &folder).status.code(), Some(2), "a directory");
    let missing = once(&node, &["--template", "/no/such.j2"], &out);
    assert_eq!(missing.status.code(), Some(6));
    assert_eq!(names(&folder), ["in.j2", "out.conf"]);
    // What cannot be read is named with its path, and what was rendered before stays.
    let (round, other) = (folder.join("round.j2"), folder.join("other.j2"));
    std::os::unix::fs::symlink(&other, &round).unwrap();
    std::os::unix::fs::symlink(&round, &other).unwrap();
    for (wrong, reason) in
        [(&round, "symbolic links"), (&folder, "no regular file"), (&folder.join("none"), "No such file")]
    {
        let failed = once(&node, &["--template", wrong.to_str().unwrap()], &out);
        let said = said(&failed);
        assert!(failed.status.code() == Some(6), "{said}");
        assert!(said.contains(wrong.to_str().unwrap()) && said.contains(reason), "{said}");
    }
    assert_eq!(read(&folder, "out.conf"), "pool=5\nx\ny\n");
}

#[test]
fn set_of_flags_keeps_the_last_good_definition_of_each() {
    let node = serve("a", &[], &[]);
    let folder = folder("render-flags");
    let out = folder.join("flags.json");
    let flag =
        |value: u64| format!(r#"{{"state":"ENABLED","variants":{{"v":{value}}},"defaultVariant":"v"}}"#);
    node.line(&["put", "flags/mobile/$metadata", r#"{"owner":"shop"}"#]);
    node.line(&["put", "flags/mobile/limit", &flag(1)]);
    let mut command = program();
    command.args(["render", "--flags", "mobile", "--out"]).arg(&out).env("TIDINGS_NODE", &node.http);
    let _rendering = Rendering(command.stderr(Stdio::null()).spawn().unwrap());
    let value = |flag: &str| {
        let text = fs::read_to_string(&out).unwrap_or_default();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        file["flags"][flag]["variants"]["v"].as_u64()
    };
    eventually("it is rendered", || value("limit") == Some(1));
    // JSON, and malformed: only the node knows the last good one.
    node.line(&["put", "flags/mobile/limit", r#"{"state":"NEITHER","variants":{"v":2}}"#, "--force"]);
    node.line(&["put", "flags/mobile/later", &flag(3)]);
    eventually("another change is rendered", || value("later") == Some(3));
    assert_eq!(value("limit"), Some(1));
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(tidings::flags::check_file(&text), []);
    assert!(text.contains(r#""owner":"shop""#));
    node.line(&["put", "flags/mobile/limit", &flag(4)]);
    eventually("it is mended", || value("limit") == Some(4));
    node.line(&["del", "flags/mobile/limit"]);
    eventually("it is gone", || value("limit").is_none());
    assert_eq!(value("later"), Some(3));
    // In the file definitions stand deeper than in their keys.
    for depth in [100, 101, 126, 127] {
        let deep = format!("{}{}", "[".repeat(depth - 2), "]".repeat(depth - 2));
        let deep = format!(r#"{{"state":"ENABLED","variants":{{"v":{deep}}}}}"#);
        node.line(&["put", &format!("flags/mobile/depth-{depth}"), &deep, "--force"]);
    }
    node.line(&["put", "flags/mobile/later", &flag(5)]);
    eventually("a set with deep definitions is rendered", || value("later") == Some(5));
    let text = fs::read_to_string(&out).unwrap();
    assert!(text.contains("depth-100") && !text.contains("depth-101"));

    let once = folder.join("once.json");
    let words = ["render", "--flags", "unheard-of", "--once", "--out", once.to_str().unwrap()];
    assert!(node.run(&words).status.success());
    assert_eq!(fs::read_to_string(&once).unwrap(), r#"{"flags":{}}"#);
    let both = ["render", "--flags", "mobile", "--prefix", "app/", "--out", once.to_str().unwrap()];
    assert!(!node.run(&both).status.success(), "one of the two");
    assert!(!node.run(&["render", "--out", once.to_str().unwrap()]).status.success());
}
