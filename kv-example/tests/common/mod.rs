//! Nodes and commands as processes, as a user has them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod browser;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use serde_json::Value;
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{Process, eventually};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidings");
pub const SECRET: &str = "walnut cobalt ferry oxygen plural tundra mosaic ivory";

/// A `serve` or a `demo` that ends with the test.
pub struct Running {
    pub process: Process,
    pub http: String,
    /// Where other nodes find it.
    pub addr: String,
}

/// The program without settings of the surroundings.
pub fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDINGS_")) {
        command.env_remove(name);
    }
    command
}

/// Starts a program that says in one line where its API is.
pub fn start(command: Command) -> Running {
    start_and_say(command).0
}

/// The same, with that line.
pub fn start_and_say(command: Command) -> (Running, String) {
    let (sender, lines) = channel();
    let process = Process::start(command, move |line| _ = sender.send(line));
    let line = lines.iter().find(|line| line.contains("://")).expect("it says where it is");
    let word = |after: &str| {
        let rest = line.split(after).nth(1).unwrap_or_default();
        rest.split([',', ' ']).next().unwrap_or_default().to_owned()
    };
    let scheme = if line.contains("https://") { "https" } else { "http" };
    let http = format!("{scheme}://{}", word("://"));
    let addr = word(" at ");
    (Running { process, http, addr }, line)
}

/// The arguments of a node named `a` on free ports of this machine, for tests that make its process themselves.
pub const SERVE_A: [&str; 9] =
    ["serve", "--name", "a", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "off"];

/// A node on free ports of this machine, with further arguments.
pub fn serve(name: &str, seeds: &[&str], more: &[&str]) -> Running {
    let mut command = program();
    command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.args(["--profile", "local", "--log", "off"]).args(more).env("TIDINGS_SECRET", SECRET);
    for seed in seeds {
        command.args(["--seed", seed]);
    }
    start(command)
}

/// A node that serves sets to others on a port of its own.
pub fn serve_sets(name: &str, seeds: &[&str], words: &[&str]) -> (Running, String) {
    let folder = folder(&format!("sets-{name}-{}", words.len()));
    let mut command = program();
    command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.args(["--profile", "local", "--log", "off", "--flagd-sync", "127.0.0.1:0"]).args(words);
    command.env("TIDINGS_SECRET", SECRET).current_dir(folder);
    seeds.iter().for_each(|seed| _ = command.args(["--seed", seed]));
    let (node, line) = start_and_say(command);
    let port = line.rsplit(':').next().unwrap().trim().to_owned();
    (node, port)
}

impl Running {
    /// Runs a command of the program on this node.
    pub fn run(&self, words: &[&str]) -> Output {
        run_with_input(&self.http, words, b"")
    }

    pub fn run_with_input(&self, words: &[&str], input: &[u8]) -> Output {
        run_with_input(&self.http, words, input)
    }

    /// Runs it, and expects it to succeed with one line.
    pub fn line(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

pub fn run_with_input(http: &str, words: &[&str], input: &[u8]) -> Output {
    let mut command = program();
    command.args(words).env("TIDINGS_NODE", http);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that does not read its input may have ended already.
    _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A file as secrets and keys have to be.
pub fn private_file(path: &std::path::Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A fresh folder below the build's own.
pub fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// An answer of the API.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The largest answer that tests read.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// One request to the API, without any help of the program's own client.
pub fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(GUARD));
    let agent: ureq::Agent = config.build().into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let reply = if matches!(method, "GET" | "DELETE") && body.is_empty() {
        agent.run(request.body(()).unwrap())
    } else {
        agent.run(request.body(body).unwrap())
    };
    let mut reply = reply.unwrap();
    let headers = reply.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = reply.body_mut().with_config().limit(REPLY_BYTES_MAX).read_to_vec().unwrap();
    Reply { status: reply.status().as_u16(), headers, body }
}

/// A key with everything about it.
pub fn entry(node: &Running, key: &str) -> Value {
    ask("GET", &format!("{}/v1/kv/{key}?meta=true", node.http), &[], b"").json()
}

/// Two nodes that wrote the same key without knowing of each other, and then met.
pub fn conflict(key: &str, values: [&str; 2]) -> [Running; 2] {
    let (a, b) = (serve("a", &[], &[]), serve("b", &[], &[]));
    a.line(&["put", key, values[0]]);
    b.line(&["put", key, values[1]]);
    b.line(&["join", &a.addr]);
    eventually("both values are there", || entry(&a, key)["conflicts"].as_array().map(Vec::len) == Some(1));
    eventually("they hold the same", || a.run(&["digest", &b.http]).status.success());
    [a, b]
}

/// Reads events of a stream until one satisfies; answers all of them as (name, id, data).
pub fn events(
    url: &str,
    last: Option<&str>,
    is_last: impl Fn(&str, &Value) -> bool,
) -> Vec<(String, String, Value)> {
    let config = ureq::Agent::config_builder().timeout_global(Some(GUARD));
    let agent: ureq::Agent = config.build().into();
    let mut request = agent.get(url);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let reader = BufReader::new(request.call().unwrap().into_body().into_reader());
    let (mut found, mut name, mut id, mut data) = (Vec::new(), String::new(), String::new(), Value::Null);
    for line in reader.lines() {
        let line = line.unwrap();
        match line.split_once(": ") {
            Some(("event", text)) => text.clone_into(&mut name),
            Some(("id", text)) => text.clone_into(&mut id),
            Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
            None if line.is_empty() && !name.is_empty() => {
                let is_over = is_last(&name, &data);
                found.push((std::mem::take(&mut name), id.clone(), data.clone()));
                if is_over {
                    return found;
                }
            }
            _ => {}
        }
    }
    panic!("the stream ended: {found:?}");
}

/// The lines of a stream of events, as they come.
pub fn lines(url: &str, last: Option<&str>) -> impl Iterator<Item = String> + use<> {
    let config = ureq::Agent::config_builder().timeout_global(Some(GUARD));
    let agent: ureq::Agent = config.build().into();
    let mut request = agent.get(url);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    BufReader::new(request.call().unwrap().into_body().into_reader()).lines().map(|line| line.unwrap())
}

/// A relay before the API of a node, which ends with the test's process. It passes requests on after `seen` was called with
/// each part of them, and of the answers on one connection so many bytes. Returns its address.
pub fn relay(node: &Running, answer_bytes_max: u64, seen: impl Fn(&str) + Send + Sync + 'static) -> String {
    let to = node.http.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(seen);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut node) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut answers, mut back) = (node.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                _ = io::copy(&mut (&mut answers).take(answer_bytes_max), &mut back);
                _ = back.shutdown(Shutdown::Both);
            });
            let seen = seen.clone();
            thread::spawn(move || {
                let mut part = [0; 4_096];
                while let Ok(bytes @ 1..) = client.read(&mut part) {
                    seen(&String::from_utf8_lossy(&part[..bytes]));
                    if node.write_all(&part[..bytes]).is_err() {
                        return;
                    }
                }
                _ = node.shutdown(Shutdown::Both);
            });
        }
    });
    http
}
