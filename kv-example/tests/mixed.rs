//! Clusters of programs of two versions, while clients write: rolled forward, back, and forward again, without loss.
//!
//! The other program is the first one of today's wire version, the earliest that can run beside today's. `.ci/run` builds
//! it. By hand, for any earlier commit:
//!
//! ```sh
//! git worktree add ../earlier COMMIT && (cd ../earlier && cargo build -p kv-example)
//! TIDINGS_EARLIER=$PWD/../earlier/target/debug/tidings cargo test -p kv-example --test mixed -- --nocapture
//! ```
//!
//! Two programs of different wire versions refuse each other instead, by name; that is what is then asserted.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use common::{PROGRAM, Running, SECRET, ask, folder, program, start};
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{eventually, signal};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Accepted writes between two restarts, of each client.
const WRITES_BETWEEN: usize = 100;

/// One of so many values is large.
const LARGE_EACH: usize = 20;
const LARGE_BYTES: usize = 100_000;

/// A node, and where its log goes.
fn node(binary: &Path, folder: &Path, name: &str, seeds: &[String]) -> Running {
    let mut command = Command::new(binary);
    for (variable, _) in program().get_envs() {
        command.env_remove(variable);
    }
    command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command
        .args(["--profile", "local", "--log", "warn", "--voter", "a,b,c", "--data-dir"])
        .arg(folder.join(name));
    command.args(seeds.iter().flat_map(|seed| ["--seed", seed])).env("TIDINGS_SECRET", SECRET);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join(format!("{name}.log")));
    command.stderr(log.unwrap());
    start(command)
}

fn is_ready(node: &Running) -> bool {
    ask("GET", &format!("{}/readyz", node.http), &[], b"").status == 200
}

/// What clients did, and were told that it was done.
#[derive(Default)]
struct Done {
    put: Mutex<BTreeSet<String>>,
    deleted: Mutex<BTreeSet<String>>,
    counted: AtomicI64,
    /// Steps of the counter whose answer never came.
    uncertain: AtomicI64,
}

/// One client of one node, whose address changes when it is restarted.
fn write(http: &Mutex<String>, name: &str, done: &Done, is_over: &AtomicBool) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(GUARD));
    let agent: ureq::Agent = config.build().into();
    let is_done = |method: &str, path: &str, body: &str| {
        let url = format!("{}{path}", http.lock().unwrap());
        let request = ureq::http::Request::builder().method(method).uri(url).body(body.to_owned()).unwrap();
        agent.run(request).is_ok_and(|reply| reply.status() == 200)
    };
    for i in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("load/{name}/{i}");
        let path = format!("/v1/kv/{key}");
        // Some values travel beside the others.
        let value = if i % LARGE_EACH == 1 { key.repeat(LARGE_BYTES / key.len()) } else { key.clone() };
        if !is_done("PUT", &path, &value) {
            // The node is being restarted.
            std::thread::sleep(std::time::Duration::from_millis(5));
        } else if i % 5 != 0 {
            done.put.lock().unwrap().insert(key);
        } else if is_done("DELETE", &path, "") {
            done.deleted.lock().unwrap().insert(key);
        }
        let counter =
            if is_done("POST", "/v1/counters/load?by=1", "") { &done.counted } else { &done.uncertain };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Restarts each node with this program, one after another, while the clients go on.
fn roll(binary: &Path, folder: &Path, nodes: &mut [Running], http: &[Mutex<String>], done: &Done) {
    for at in 0..nodes.len() {
        signal(nodes[at].pid(), "TERM");
        nodes[at].process.child.wait().unwrap();
        let others = nodes.iter().enumerate().filter(|(other, _)| *other != at);
        let seeds: Vec<String> = others.map(|(_, node)| node.addr.clone()).collect();
        nodes[at] = node(binary, folder, NAMES[at], &seeds);
        nodes[at].http.clone_into(&mut http[at].lock().unwrap());
        eventually("the restarted node is ready", || is_ready(&nodes[at]));
        let before = done.put.lock().unwrap().len();
        eventually("clients go on", || done.put.lock().unwrap().len() >= before + WRITES_BETWEEN);
    }
}

/// What of the clients' writes is not as they were told, on any of the nodes.
fn faults(nodes: &[Running], done: &Done) -> Vec<String> {
    let digests: Vec<&str> = nodes.iter().map(|node| node.http.as_str()).collect();
    eventually("all hold the same", || nodes[0].run(&[&["digest"], &digests[..]].concat()).status.success());
    let (put, deleted) = (done.put.lock().unwrap(), done.deleted.lock().unwrap());
    let (least, uncertain) = (done.counted.load(Ordering::Relaxed), done.uncertain.load(Ordering::Relaxed));
    let mut faults = Vec::new();
    for node in nodes {
        let listed = node.line(&["list", "load/", "--keys-only"]);
        let held: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
        faults.extend(put.difference(&held).map(|key| format!("{key} is lost")));
        faults.extend(deleted.intersection(&held).map(|key| format!("{key} was deleted and is back")));
        let counted = node.line(&["counter", "get", "load"]).parse::<i64>().unwrap();
        if !(least..=least + uncertain).contains(&counted) {
            faults.push(format!("{counted} steps are counted of {least} and {uncertain} uncertain ones"));
        }
    }
    println!("{} puts, {} deletes, {least} steps, {} faults", put.len(), deleted.len(), faults.len());
    faults
}

/// Three nodes of a program, one after another.
fn cluster(binary: &Path, folder: &Path) -> Vec<Running> {
    let mut nodes: Vec<Running> = Vec::new();
    for name in NAMES {
        let seeds: Vec<String> = nodes.iter().map(|node| node.addr.clone()).collect();
        nodes.push(node(binary, folder, name, &seeds));
    }
    eventually("all are ready", || nodes.iter().all(is_ready));
    nodes
}

/// One client for each node, while something is done.
fn under_load(nodes: &mut [Running], work: impl FnOnce(&mut [Running], &[Mutex<String>], &Done)) -> Done {
    let http: Vec<Mutex<String>> = nodes.iter().map(|node| Mutex::new(node.http.clone())).collect();
    let (done, is_over) = (Done::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (http, name) in http.iter().zip(NAMES) {
            let (done, is_over) = (&done, &is_over);
            scope.spawn(move || write(http, name, done, is_over));
        }
        let _ending = Ending(&is_over);
        work(nodes, &http, &done);
    });
    done
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { _ = std::fs::copy(&path, &to).unwrap() }
    }
}

/// Ends the clients when it is dropped, also by a failure, which would wait for them for ever otherwise.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn programs_of_two_versions_lose_nothing_together() {
    let Some(earlier) = std::env::var_os("TIDINGS_EARLIER").map(PathBuf::from) else {
        return println!("SKIPPED: TIDINGS_EARLIER names no earlier program");
    };
    let (folder, later) = (folder("mixed"), Path::new(PROGRAM));
    let mut nodes = cluster(&earlier, &folder);
    let refused = {
        let other = node(later, &folder, "other", &[nodes[0].addr.clone()]);
        let says_so = |name: &str| {
            let log = std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap();
            log.contains("of the wire format")
        };
        eventually("it is ready or refused", || is_ready(&other) || says_so("other"));
        let refused = !is_ready(&other);
        if refused {
            eventually("the earlier node names the version, too", || says_so("a"));
        }
        refused
    };
    if refused {
        return println!("the wire versions differ: refused by name");
    }
    let done = under_load(&mut nodes, |nodes, http, done| {
        for (binary, way) in [(later, "forward"), (&earlier, "back"), (later, "forward")] {
            roll(binary, &folder, nodes, http, done);
            println!("rolled {way}");
        }
    });
    assert_eq!(faults(&nodes, &done), Vec::<String>::new());
}

/// The negative control: what the check of a mixed cluster is for, done to a cluster of today's program.
#[test]
fn lost_and_returned_writes_are_noticed() {
    let mut nodes = cluster(Path::new(PROGRAM), &folder("noticed"));
    let done = under_load(&mut nodes, |_, _, done| {
        eventually("clients write", || done.put.lock().unwrap().len() >= WRITES_BETWEEN);
    });
    assert_eq!(faults(&nodes, &done), Vec::<String>::new());
    let first = |keys: &Mutex<BTreeSet<String>>| keys.lock().unwrap().first().unwrap().clone();
    let (put, deleted) = (first(&done.put), first(&done.deleted));
    let notices = |words: &[&str], fault: &str| {
        nodes[1].line(words);
        let found = faults(&nodes, &done);
        assert!(found.len() == NAMES.len() && found.iter().all(|one| one.contains(fault)), "{found:?}");
    };
    notices(&["del", &put], &format!("{put} is lost"));
    nodes[1].line(&["put", &put, &put]);
    notices(&["put", &deleted, "again"], &format!("{deleted} was deleted and is back"));
    nodes[1].line(&["del", &deleted]);
    let steps = done.uncertain.load(Ordering::Relaxed) + 1;
    notices(&["counter", "add", "load", &steps.to_string()], "steps are counted");
}

/// What the first program of wire version 2 left on its disk: commit `bf90f4e`, run as `a` beside `b`.
#[test]
fn directory_of_the_earliest_program_is_loaded() {
    let folder = folder("earliest");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proptest/fixtures/program-wire-v2");
    copy(&fixture, &folder.join("a"));
    let load = || {
        let a = node(Path::new(PROGRAM), &folder, "a", &[]);
        eventually("it answers", || ask("GET", &format!("{}/healthz", a.http), &[], b"").status == 200);
        a
    };
    let mut a = load();
    for restart in [false, true] {
        if restart {
            a.line(&["put", "new", "v", "--durable"]);
            signal(a.pid(), "TERM");
            a.process.child.wait().unwrap();
            a = load();
            assert_eq!(a.line(&["get", "new"]), "v");
            a.line(&["del", "new"]);
        }
        assert_eq!(a.line(&["list", "--keys-only"]), "both\ndeep/er/key\nlarge\nlate\nof-b");
        assert_eq!(a.run(&["get", "large"]).stdout, [7; 5_000]);
        let both = ask("GET", &format!("{}/v1/kv/both?meta=true", a.http), &[], b"").json();
        let mut values =
            [&both["value"], &both["conflicts"][0]["value"]].map(|value| value.as_str().unwrap());
        values.sort_unstable();
        assert_eq!(values, ["of a", "of b"]);
        let late = ask("GET", &format!("{}/v1/kv/late?meta=true", a.http), &[], b"").json();
        assert!(late["expires_ms"].as_u64().is_some_and(|at| at > 3_000_000_000_000));
        assert_eq!(a.line(&["set", "list", "s"]), "x\ny");
        assert_eq!(a.line(&["counter", "get", "c"]), "5");
        assert_eq!(a.line(&["voters"]), "a");
    }
}
