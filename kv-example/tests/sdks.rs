//! Programs in other languages, through SDKs that nobody here wrote: those that ask a node for flags by OFREP, and
//! those that follow a set by flagd.sync.v1 or a file and evaluate it themselves. `.ci/run` installs them.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use common::browser::{self, Page};
use common::{Running, ask, folder, private_file, program, serve, serve_sets};
use serde_json::{Value, json};
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{Process, eventually};

const TOKEN: &str = "correct-horse-battery-staple-wagon-pier";
const READ_TOKEN: &str = "violet-onion-harbor-maple-rocket-sand";
/// The flag that all tests ask for: `old` or another one for everybody, and `own` for one user.
const FLAG: &str = "banner";
const USERS: usize = 40;

fn flag(default: &str) -> String {
    let rule = json!({"if": [{"==": [{"var": "targetingKey"}, "ann"]}, "own"]});
    let variants = json!({"old": "Old", "new": "New", "own": "Own"});
    json!({"state": "ENABLED", "variants": variants, "defaultVariant": default, "targeting": rule})
        .to_string()
}

/// Half of all users have each variant.
const HALVES: &str = r#"{"state": "ENABLED", "variants": {"a": "A", "b": "B"}, "defaultVariant": "a",
    "targeting": {"fractional": [["a", 50], ["b", 50]]}}"#;

#[derive(Clone, Copy, Debug)]
enum Sdk {
    Npm,
    Pypi,
    Crate,
}

impl Sdk {
    fn folder() -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("flag-sdks")
    }

    fn path(self) -> PathBuf {
        Self::folder().join(match self {
            Self::Npm => "node_modules",
            Self::Pypi => "venv/bin/python3",
            Self::Crate => "target/debug/ofrep-client",
        })
    }

    /// Whether it is there. On a machine that tests for others it has to be.
    fn is_installed(self) -> bool {
        let is_there = self.path().exists();
        assert!(is_there || std::env::var_os("CI").is_none(), "CI needs the SDKs that .ci/run installs");
        if !is_there {
            eprintln!(
                "\n*** SKIPPED: the SDKs for {self:?} are not installed; they are NOT tested (see .ci/run) ***\n"
            );
        }
        is_there
    }

    /// A script, or the program, of `sdks`.
    fn command(self, script: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdks").join(script);
        let mut command = match self {
            Self::Npm => Command::new("node"),
            Self::Pypi | Self::Crate => Command::new(self.path()),
        };
        match self {
            Self::Npm => command.arg(script).arg(Self::folder()),
            Self::Pypi => command.arg(script),
            Self::Crate => &mut command,
        };
        command
    }
}

/// Three nodes that know one another; requests need a token.
fn cluster(folder: &Path, words: &[&str]) -> [Running; 3] {
    let (token, read_token) = (folder.join("token"), folder.join("read-token"));
    private_file(&token, TOKEN);
    private_file(&read_token, READ_TOKEN);
    let [token, read_token] = [token, read_token].map(|path| path.display().to_string());
    let words = [&["--token-file", token.as_str(), "--read-token-file", &read_token], words].concat();
    let a = serve("a", &[], &words);
    let [b, c] = ["b", "c"].map(|name| serve(name, &[&a.addr], &words));
    [a, b, c]
}

fn put(node: &Running, key: &str, value: &str) {
    let mut command = program();
    command.args(["put", key, value, "--force", "--wait", "all", "--timeout", "60s"]);
    let output = command.env("TIDINGS_NODE", &node.http).env("TIDINGS_TOKEN", TOKEN).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The variant that a node gives a user, by OFREP.
fn variant(node: &Running, set: &str, flag: &str, user: &str) -> Value {
    let headers = [("x-api-key", READ_TOKEN), ("flagd-selector", set)];
    let body = json!({"context": {"targetingKey": user}}).to_string();
    let url = format!("{}/ofrep/v1/evaluate/flags/{flag}", node.http);
    ask("POST", &url, &headers, body.as_bytes()).json()["variant"].clone()
}

fn have(nodes: &[&Running], expected: &str) {
    let has = |node: &&Running| variant(node, "default", FLAG, "bob") == expected;
    eventually("all nodes have it", || nodes.iter().all(has));
}

/// Answers every request with a page or its script, until the test ends.
fn site(listener: &TcpListener, script: &[u8]) {
    let page = b"<!doctype html><title>flags</title><script src=script.js></script>".as_slice();
    for mut client in listener.incoming().map_while(Result::ok) {
        let mut head = [0; 4_096];
        let Ok(read) = client.read(&mut head) else { continue };
        let is_script = head[..read].starts_with(b"GET /script.js");
        let (kind, body) = if is_script { ("text/javascript", script) } else { ("text/html", page) };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(body));
    }
}

#[test]
fn the_web_sdk_follows_flags_in_a_browser() {
    if !Sdk::Npm.is_installed() {
        return;
    }
    let Some(chromium) = browser::program() else { return };
    let folder = folder("web-sdk");
    let bundle = folder.join("script.js");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdks/web.js");
    let made = Command::new(Sdk::Npm.path().join(".bin/esbuild"))
        .args(["--bundle", "--format=iife", "--log-level=error"])
        .arg(source)
        .arg(format!("--outfile={}", bundle.display()))
        .env("NODE_PATH", Sdk::Npm.path())
        .status();
    assert!(made.unwrap().success());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let script = std::fs::read(bundle).unwrap();
    std::thread::spawn(move || site(&listener, &script));

    let [a, mut b, c] = cluster(&folder, &["--ofrep-origin", &origin]);
    put(&a, "flags/default/banner", &flag("old"));
    have(&[&a, &b, &c], "old");
    let page = Page::open(chromium, &folder, &origin);
    let connect = |domain: &str, node: &Running| {
        page.eval(&format!("connect('{domain}', '{}', '{READ_TOKEN}', 'bob')", node.http));
    };
    let value = || page.eval("client.getStringValue('banner', 'code default')");
    connect("b", &b);
    assert_eq!(value(), "Old");
    // The stream tells at once, and what it tells is not new: 304.
    page.wait("answers.some(answer => answer.status === 304)");

    // Written on A: an event from B, and the new value.
    page.eval("told.length = 0");
    put(&a, "flags/default/banner", &flag("new"));
    page.wait("told.some(([event, flags]) => event === 'PROVIDER_CONFIGURATION_CHANGED' && flags.includes('banner'))");
    assert_eq!(value(), "New");

    // Another user, and the first one again.
    page.eval("become('b', 'ann')");
    assert_eq!(value(), "Own");
    page.eval("become('b', 'bob')");
    assert_eq!(value(), "New");

    // B is killed: its client says so and keeps its values; that of another node has the same ones, to the digest.
    page.eval("answers.length = 0; become('b', 'bob')");
    let known = page.eval("answers.find(answer => answer.etag).etag");
    page.eval("told.length = 0");
    b.process.child.kill().unwrap();
    page.wait("told.some(([event]) => event === 'PROVIDER_STALE')");
    assert_eq!(value(), "New");
    page.eval("answers.length = 0");
    connect("c", &c);
    assert_eq!(value(), "New");
    assert_eq!(page.eval("answers[0].etag"), known);
    assert_eq!(page.errors(), Vec::<String>::new());
}

/// What an SDK says of the flag on each of these nodes.
fn told(sdk: Sdk, user: &str, nodes: &[&Running]) -> Vec<Value> {
    let mut command = sdk.command("ofrep.py");
    command.args([READ_TOKEN, FLAG, user]).args(nodes.iter().map(|node| &node.http));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn asks_any_node(sdk: Sdk, folder: &Path, expected: impl Fn(&str, &str) -> Value, lost: &Value) {
    let [a, mut b, c] = cluster(folder, &[]);
    put(&a, "flags/default/banner", &flag("old"));
    have(&[&a, &b, &c], "old");
    assert_eq!(told(sdk, "bob", &[&a, &b]), [expected("Old", "old"), expected("Old", "old")]);
    put(&a, "flags/default/banner", &flag("new"));
    have(&[&a, &b, &c], "new");
    assert_eq!(told(sdk, "bob", &[&b]), [expected("New", "new")]);
    assert_eq!(told(sdk, "ann", &[&b]), [expected("Own", "own")], "another user");
    // B is killed: its client gives the program's default, and every other node the same value as before.
    b.process.child.kill().unwrap();
    b.process.child.wait().unwrap();
    let after = told(sdk, "bob", &[&b, &a, &c]);
    assert_eq!(after, [lost.clone(), expected("New", "new"), expected("New", "new")]);
}

#[test]
fn the_python_sdk_asks_any_node_by_ofrep() {
    if !Sdk::Pypi.is_installed() {
        return;
    }
    let expected = |value: &str, variant: &str| {
        let reason = if variant == "own" { "TARGETING_MATCH" } else { "DEFAULT" };
        json!([value, variant, reason, null])
    };
    let lost = json!(["code default", null, "ERROR", "GENERAL"]);
    asks_any_node(Sdk::Pypi, &folder("python-ofrep"), expected, &lost);
}

#[test]
fn the_rust_sdk_asks_any_node_by_ofrep() {
    if !Sdk::Crate.is_installed() {
        return;
    }
    let expected = |value: &str, variant: &str| json!([value, variant]);
    asks_any_node(Sdk::Crate, &folder("rust-ofrep"), expected, &json!([null, "GENERAL"]));
}

/// A program that evaluates flags itself, and what it says of them.
struct Follower {
    _process: Process,
    lines: Receiver<String>,
}

impl Follower {
    fn start(sdk: Sdk, words: &[&str]) -> Self {
        let mut command = match sdk {
            Sdk::Npm => sdk.command("flagd.cjs"),
            _ => sdk.command("flagd.py"),
        };
        command.args(words);
        let (sender, lines) = channel();
        Self { _process: Process::start(command, move |line| _ = sender.send(line)), lines }
    }

    /// Waits until it says that all users have these variants.
    fn says(&self, flag: &str, expected: impl Fn(usize) -> Value) {
        let expected: Vec<Value> = (0..USERS).map(expected).collect();
        let mut said = Value::Null;
        for _ in 0..100 {
            let Ok(line) = self.lines.recv_timeout(GUARD) else { break };
            said = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if said[flag] == json!(expected) {
                return;
            }
        }
        panic!("{flag} is {}", said[flag]);
    }
}

/// Writes on one node, follows another one.
fn follows_a_set(sdk: Sdk, set: &str, fractional: u8) {
    let (a, _) = serve_sets("a", &[], &[]);
    let (b, port) = serve_sets("b", &[&a.addr], &["--expect-return"]);
    let key = |flag: &str| format!("flags/{set}/{flag}");
    put(&a, &key("$metadata"), &json!({ "fractional": fractional }).to_string());
    put(&a, &key("$evaluators"), r#"{"is-seven": {"==": [{"var": "targetingKey"}, "user-7"]}}"#);
    put(&a, &key("halves"), HALVES);
    put(
        &a,
        &key("banner"),
        &flag("old").replace(r#"{"==":[{"var":"targetingKey"},"ann"]}"#, r#"{"$ref":"is-seven"}"#),
    );
    put(&a, "flags/another/banner", &flag("new"));
    eventually("the other node has it", || variant(&b, set, "banner", "user-7") == "own");
    let follower = Follower::start(sdk, &["sync", &port, set, "banner", "halves"]);
    let seventh = |other: &'static str| move |user| if user == 7 { json!("own") } else { json!(other) };
    follower.says("banner", seventh("old"));
    put(&a, &key("banner"), &flag("new").replace("\"ann\"", "\"user-7\""));
    follower.says("banner", seventh("new"));
    // A malformed definition: the last good one stays, and everything else goes on.
    put(&a, &key("banner"), r#"{"state": "ENABLED", "variants": {}}"#);
    put(&a, &key("halves"), &HALVES.replace("50", "30"));
    let halves = |user: usize| variant(&b, set, "halves", &format!("user-{user}"));
    eventually("it is in force", || {
        let tenth = (0..USERS).map(halves).filter(|variant| variant == "a").count();
        tenth > 0 && tenth < USERS
    });
    follower.says("halves", halves);
    put(&a, &key("later"), HALVES);
    follower.says("banner", seventh("new"));
}

#[test]
fn npm_flagd_provider_follows_a_set_in_its_process() {
    if Sdk::Npm.is_installed() {
        follows_a_set(Sdk::Npm, "two", 2);
    }
}

#[test]
fn pypi_flagd_provider_follows_a_set_in_its_process() {
    if Sdk::Pypi.is_installed() {
        follows_a_set(Sdk::Pypi, "three", 3);
    }
}

/// A file that `tidings render` keeps up to date.
fn follows_a_file(sdk: Sdk, name: &str) {
    let folder = folder(name);
    let node = serve("a", &[], &[]);
    put(&node, "flags/default/$evaluators", r#"{"nobody": {"==": [1, 2]}}"#);
    put(&node, "flags/default/broken", "{");
    put(&node, "flags/default/banner", &flag("old"));
    let out = folder.join("flags.json");
    let mut render = program();
    render.args(["render", "--flags", "default", "--out"]).arg(&out);
    let _render = Process::start(
        {
            render.env("TIDINGS_NODE", &node.http);
            render
        },
        |_| {},
    );
    eventually("the file is there", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.contains("banner"))
    });
    let text = std::fs::read_to_string(&out).unwrap();
    assert_eq!(tidings::flags::check_file(&text), []);
    let follower = Follower::start(sdk, &["file", out.to_str().unwrap(), "banner"]);
    follower.says("banner", |_| json!("old"));
    put(&node, "flags/default/banner", &flag("new"));
    follower.says("banner", |_| json!("new"));
}

#[test]
fn npm_flagd_provider_follows_a_file() {
    if Sdk::Npm.is_installed() {
        follows_a_file(Sdk::Npm, "npm-file");
    }
}

#[test]
fn pypi_flagd_provider_follows_a_file() {
    if Sdk::Pypi.is_installed() {
        follows_a_file(Sdk::Pypi, "pypi-file");
    }
}

#[test]
fn sets_for_flagd_need_a_token_where_there_is_one() {
    if !Sdk::Pypi.is_installed() {
        return;
    }
    let folder = folder("sync-token");
    let (token, read_token) = (folder.join("token"), folder.join("read-token"));
    private_file(&token, TOKEN);
    private_file(&read_token, READ_TOKEN);
    let words = ["--token-file", token.to_str().unwrap(), "--read-token-file", read_token.to_str().unwrap()];
    let (node, port) = serve_sets("a", &[], &words);
    put(&node, "flags/mobile/banner", &flag("old"));
    eventually("it is in force", || variant(&node, "mobile", "banner", "bob") == "old");
    let fetch = |set: &str, token: &str| -> Value {
        let output = Sdk::Pypi.command("flagd.py").args(["fetch", &port, set, token]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    for token in [TOKEN, READ_TOKEN] {
        assert!(fetch("flagSetId=mobile", token)["flags"]["banner"].is_object());
    }
    assert_eq!(fetch("unheard-of", READ_TOKEN), json!({"flags": {}}));
    assert_eq!(fetch("source=x", READ_TOKEN), "INVALID_ARGUMENT");
    for wrong in ["", "wrong"] {
        assert_eq!(fetch("mobile", wrong), "UNAUTHENTICATED");
    }
    // A port that others can reach needs a token.
    let mut open = program();
    open.args([
        "serve",
        "--name",
        "o",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--flagd-sync",
        "0.0.0.0:0",
    ]);
    let refused = open.env("TIDINGS_SECRET", common::SECRET).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no token"));
}
