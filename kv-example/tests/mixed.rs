//! Clusters of programs of several versions, while clients write and campaign for a lease: rolled forward from one to the
//! next, and back, without loss and without two holders at a time.
//!
//! The earlier programs are the first one of today's wire version, which is the earliest that can run beside today's, and
//! that of the commit in the file `landed`, from which users upgrade. On the commit that introduces a wire version, the
//! first one is that of the version before. `.ci/run` builds them, and says which wire versions they have. By hand, for any
//! earlier commit, or for several with `:` between them, the earliest first:
//!
//! ```sh
//! git worktree add ../earlier COMMIT && (cd ../earlier && cargo build -p kv-example)
//! TIDINGS_EARLIER=$PWD/../earlier/target/debug/tidings cargo test -p kv-example --test mixed -- --nocapture
//! ```
//!
//! Two programs of different wire versions refuse each other instead, by name; that is what is then asserted, with both
//! versions, and the rolls leave that program out.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use common::{PROGRAM, Running, SECRET, ask, entry, folder, program, start};
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{Process, eventually, signal};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Accepted writes between two restarts, of each client.
const WRITES_BETWEEN: usize = 100;

/// One of so many values is large.
const LARGE_EACH: usize = 20;
const LARGE_BYTES: usize = 100_000;

/// One of so many values expires after the test, and one of so many at once.
const LATE_EACH: usize = 7;
const BRIEF_EACH: usize = 11;

/// A client is told so often that its lease goes on (`HELD_INTERVAL` of the API), and gives it up after so many times.
const HELD_INTERVAL: Duration = Duration::from_millis(500);
const HELD_MAX: u32 = 2;

/// A node, and where its log goes.
fn node(binary: &Path, folder: &Path, name: &str, seeds: &[String]) -> Running {
    start(serve_command(binary, folder, name, seeds))
}

fn serve_command(binary: &Path, folder: &Path, name: &str, seeds: &[String]) -> Command {
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
    command
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
    /// How many of the keys were put with which time to live.
    late: AtomicI64,
    brief: AtomicI64,
    held: Mutex<Vec<Held>>,
}

/// A lease of one client, and the time in which it was certainly held.
#[derive(Clone, Debug)]
struct Held {
    token: String,
    asked: Instant,
    since: Instant,
    until: Instant,
}

/// The client of one node that campaigns for the one lease, holds it for a while, and campaigns again.
fn campaign(http: &Mutex<String>, done: &Done, is_over: &AtomicBool) {
    let config = ureq::Agent::config_builder().timeout_global(Some(HELD_INTERVAL * (HELD_MAX + 4)));
    let agent: ureq::Agent = config.build().into();
    while !is_over.load(Ordering::Relaxed) {
        let url = format!("{}/v1/elections/mixed/campaign", http.lock().unwrap());
        let asked = Instant::now();
        // It is refused while another client holds the lease, and while too few voters vote.
        let Ok(reply) = agent.post(url).content_type("application/json").send(r#"{"once": true}"#) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let lines = BufReader::new(reply.into_body().into_reader()).lines();
        let mut told = 0;
        let mut event = String::new();
        // The stream of a node that is restarted breaks.
        for line in lines.map_while(Result::ok) {
            if let Some(name) = line.strip_prefix("event: ") {
                name.clone_into(&mut event);
            }
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            let token = data["token"].as_str().unwrap().to_owned();
            let mut held = done.held.lock().unwrap();
            match event.as_str() {
                "elected" => {
                    let since = Instant::now();
                    held.push(Held { token, asked, since, until: since });
                }
                "held" => {
                    // The server waits for at least the interval before it says so.
                    told += 1;
                    let of_this = held.iter_mut().find(|held| held.token == token).unwrap();
                    of_this.until = of_this.since.max(asked + HELD_INTERVAL * told);
                }
                _ => break,
            }
            if told == HELD_MAX {
                break;
            }
        }
    }
}

/// Leases that two clients held at a time, and tokens that did not grow.
fn lease_faults(held: &[Held]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, one) in held.iter().enumerate() {
        for other in &held[at + 1..] {
            if one.since < other.until && other.since < one.until {
                faults.push(format!("{} and {} were held at a time", one.token, other.token));
            }
            let is_sooner = |one: &Held, other: &Held| one.since < other.asked && one.token >= other.token;
            if is_sooner(one, other) || is_sooner(other, one) {
                faults
                    .push(format!("of {} and {} the later token is not the greater", one.token, other.token));
            }
        }
    }
    faults
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
        if i % BRIEF_EACH == 0 && is_done("PUT", &format!("/v1/kv/brief/{name}/{i}?ttl=300ms"), "v") {
            done.brief.fetch_add(1, Ordering::Relaxed);
        }
        let is_late = i % LATE_EACH == 0;
        if !is_done("PUT", &if is_late { format!("{path}?ttl=1h") } else { path.clone() }, &value) {
            // The node is being restarted.
            std::thread::sleep(std::time::Duration::from_millis(5));
        } else if i % 5 != 0 {
            done.late.fetch_add(i64::from(is_late), Ordering::Relaxed);
            done.put.lock().unwrap().insert(key);
        } else if is_done("DELETE", &path, "") {
            done.deleted.lock().unwrap().insert(key);
        }
        let counter =
            if is_done("POST", "/v1/counters/load?by=1", "") { &done.counted } else { &done.uncertain };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Restarts each node with this program, one after another, while the clients go on. Each time a lease is won; the voters
/// are changed while one node has this program.
fn roll(binary: &Path, folder: &Path, nodes: &mut [Running], http: &[Mutex<String>], done: &Done) {
    for at in 0..nodes.len() {
        restart(binary, folder, nodes, at);
        nodes[at].http.clone_into(&mut http[at].lock().unwrap());
        eventually("the restarted node is ready", || is_ready(&nodes[at]));
        let restarted = Instant::now();
        let is_won = || done.held.lock().unwrap().iter().any(|held| held.asked > restarted);
        eventually("a lease is won again", is_won);
        if at == 0 {
            change_voters(nodes);
        }
        let before = done.put.lock().unwrap().len();
        eventually("clients go on", || done.put.lock().unwrap().len() >= before + WRITES_BETWEEN);
    }
}

/// Takes a voter from the list and puts it back, asked at a node of each program: the first node has one, the others the
/// other.
fn change_voters(nodes: &[Running]) {
    for (node, voters) in [(0, [NAMES[0], NAMES[2]].join(",")), (1, NAMES.join(","))] {
        // An earlier program may take an answer about the list of before for a refusal.
        let is_set = || nodes[node].run(&["voters", "--set", &voters]).status.success();
        eventually("the voters are changed", is_set);
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
    let held = done.held.lock().unwrap();
    faults.extend(lease_faults(&held));
    faults.extend(expiry_faults(nodes, &put));
    let (late, brief) = (done.late.load(Ordering::Relaxed), done.brief.load(Ordering::Relaxed));
    println!(
        "{} puts, {} deletes, {least} steps, {late} values with a long and {brief} with a short time to live, {} leases, {} \
         faults",
        put.len(),
        deleted.len(),
        held.len(),
        faults.len()
    );
    faults
}

/// Whether a key of the load was put with a long time to live.
fn is_late(key: &str) -> bool {
    key.rsplit('/').next().unwrap().parse::<usize>().unwrap().is_multiple_of(LATE_EACH)
}

/// Values that expire too soon, too late, or not at the same time everywhere.
fn expiry_faults(nodes: &[Running], put: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for key in put.iter().filter(|key| is_late(key)).take(20) {
        let expiries: Vec<_> = nodes.iter().map(|node| entry(node, key)["expires_ms"].as_u64()).collect();
        if expiries[0].is_none() || expiries.iter().any(|expiry| *expiry != expiries[0]) {
            faults.push(format!("{key} expires at {expiries:?}"));
        }
    }
    let are_gone = || nodes.iter().all(|node| node.line(&["list", "brief/", "--keys-only"]).is_empty());
    eventually("what has a short time to live is gone", are_gone);
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
            scope.spawn(move || campaign(http, done, is_over));
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

/// The program of an earlier commit, and its wire version, if that is said.
struct Earlier {
    binary: PathBuf,
    wire: Option<u8>,
}

/// The earlier programs that are named, the earliest first.
fn earlier_programs() -> Vec<Earlier> {
    let binaries = std::env::var_os("TIDINGS_EARLIER").unwrap_or_default();
    let wires = std::env::var("TIDINGS_EARLIER_WIRE").unwrap_or_default();
    let mut wires = wires.split(':').map(|version| version.parse().ok());
    let binaries = std::env::split_paths(&binaries).filter(|binary| !binary.as_os_str().is_empty());
    binaries.map(|binary| Earlier { binary, wire: wires.next().flatten() }).collect()
}

/// Whether an earlier program becomes a peer of today's. If not, each has to refuse the other by both wire versions.
fn is_peer(earlier: &Earlier, folder: &Path) -> bool {
    _ = std::fs::create_dir(folder);
    let before = node(&earlier.binary, folder, "before", &[]);
    let today = node(Path::new(PROGRAM), folder, "today", std::slice::from_ref(&before.addr));
    let versions = |name: &str| versions_named(&folder.join(format!("{name}.log")));
    eventually("it is ready or refused", || is_ready(&today) || versions("today").is_some());
    let ours = wire_version();
    let Some((theirs, named)) = versions("today") else {
        assert_eq!(earlier.wire.unwrap_or(ours), ours, "programs of two wire versions are linked");
        return true;
    };
    assert_eq!((earlier.wire.unwrap_or(theirs), named), (theirs, ours), "other versions than those named");
    assert_ne!(theirs, ours, "programs of one wire version refuse each other");
    eventually("the earlier node names the versions, too", || versions("before") == Some((ours, theirs)));
    println!("version {theirs} of the wire format and version {ours} refuse each other by name");
    false
}

#[test]
fn programs_of_several_versions_lose_nothing_together() {
    let earlier = earlier_programs();
    if earlier.is_empty() {
        return println!("SKIPPED: TIDINGS_EARLIER names no earlier program");
    }
    let folder = folder("mixed");
    let is_peer = |(at, one): &(usize, Earlier)| is_peer(one, &folder.join(format!("peer-{at}")));
    let peers = earlier.into_iter().enumerate().filter(is_peer).map(|(_, earlier)| earlier.binary);
    let programs: Vec<PathBuf> = peers.chain([PathBuf::from(PROGRAM)]).collect();
    let [first, others @ ..] = &programs[..] else { unreachable!("today's is there") };
    if others.is_empty() {
        return;
    }
    let mut nodes = cluster(first, &folder);
    let done = under_load(&mut nodes, |nodes, http, done| {
        let back = programs.iter().rev().skip(1).map(|binary| (binary, "back"));
        for (binary, way) in others.iter().map(|binary| (binary, "forward")).chain(back) {
            roll(binary, &folder, nodes, http, done);
            println!("rolled {way} to {}", binary.display());
        }
    });
    assert_eq!(faults(&nodes, &done), Vec::<String>::new());
    settings_of_two_versions(first, &folder, nodes);
}

/// Today's wire version.
fn wire_version() -> u8 {
    let source = include_str!("../../src/wire/frame.rs");
    let number = source.split("const WIRE_VERSION: u8 = ").nth(1).and_then(|rest| rest.split(';').next());
    number.and_then(|number| number.parse().ok()).expect("the source names it")
}

/// The versions of a refusal in a node's log: that of the other node, and its own.
fn versions_named(log: &Path) -> Option<(u8, u8)> {
    let log = std::fs::read_to_string(log).unwrap();
    let (before, after) = log.split_once(" of the wire format, this one ")?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some((before.rsplit(' ').next()?.parse().ok()?, digits(after).parse().ok()?))
}

/// Stops a node, and starts it with a program.
fn restart(binary: &Path, folder: &Path, nodes: &mut [Running], at: usize) {
    signal(nodes[at].pid(), "TERM");
    nodes[at].process.child.wait().unwrap();
    let others = nodes.iter().enumerate().filter(|(other, _)| *other != at);
    let seeds: Vec<String> = others.map(|(_, node)| node.addr.clone()).collect();
    nodes[at] = node(binary, folder, NAMES[at], &seeds);
}

/// Shared settings are not changed while one node has the earlier program, which does not follow them; and that program
/// does not start on the directory of a voter that has stored changed lease times. All nodes have the earlier program
/// when this begins.
fn settings_of_two_versions(earlier: &Path, folder: &Path, mut nodes: Vec<Running>) {
    let (today, change) = (Path::new(PROGRAM), ["settings", "--set", "lease_time_max=2s"]);
    let renew = |nodes: &mut Vec<Running>, at: usize| {
        restart(today, folder, nodes, at);
        eventually("the restarted node is ready", || is_ready(&nodes[at]));
    };
    renew(&mut nodes, 1);
    renew(&mut nodes, 2);
    let refused = nodes[1].run(&change);
    if refused.status.success() {
        // The earlier program follows shared settings: nothing more is to be said of the two.
        return println!("the earlier program follows changed settings");
    }
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("the program of the node a does not follow settings"), "{text}");
    let lease_time_max = |node: &Running| {
        let shown = node.line(&["settings"]);
        let line = shown.lines().find(|line| line.starts_with("lease_time_max")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(lease_time_max(&nodes[1]), "1s", "they were not changed");
    renew(&mut nodes, 0);
    nodes[1].line(&change);
    // Each voter has answered under the new times, so they are on its disk.
    eventually("a lease is won", || nodes[0].run(&["lock", "after", "--", "true"]).status.success());
    assert_eq!(lease_time_max(&nodes[0]), "2s");
    signal(nodes[0].pid(), "TERM");
    nodes[0].process.child.wait().unwrap();
    let seeds: Vec<String> = nodes[1..].iter().map(|node| node.addr.clone()).collect();
    let mut started = Process::start(serve_command(earlier, folder, NAMES[0], &seeds), |_| ());
    eventually("the earlier program ends", || started.child.try_wait().unwrap().is_some());
    let log = std::fs::read_to_string(folder.join("a.log")).unwrap();
    assert!(log.contains("layout version 4 of a later release"), "{log}");
    nodes[0] = node(today, folder, NAMES[0], &seeds);
    eventually("today's program goes on", || is_ready(&nodes[0]));
    nodes[0].line(&["settings", "--roll-back"]);
    assert_eq!(lease_time_max(&nodes[0]), "1s");
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
    let late = done.put.lock().unwrap().iter().find(|key| is_late(key)).unwrap().clone();
    nodes[1].line(&["put", &late, "for ever"]);
    let found = faults(&nodes, &done);
    assert!(found.len() == 1 && found[0].contains(&format!("{late} expires at [None")), "{found:?}");
    done.put.lock().unwrap().remove(&late);
    let steps = done.uncertain.load(Ordering::Relaxed) + 1;
    notices(&["counter", "add", "load", &steps.to_string()], "steps are counted");
}

#[test]
fn versions_of_a_refusal_are_read_from_a_log() {
    let log = folder("versions").join("log");
    let refusal = tidings::PeerRefusal::WireVersion { theirs: 3, ours: 2 };
    std::fs::write(&log, format!("WARN peer refused: {refusal}  addr=127.0.0.1:1\n")).unwrap();
    assert_eq!(versions_named(&log), Some((3, 2)));
    std::fs::write(&log, "WARN peer refused: the name is taken by a live node\n").unwrap();
    assert_eq!(versions_named(&log), None);
}

/// The negative control of the check of leases.
#[test]
fn overlapping_leases_and_lower_tokens_are_noticed() {
    let start = Instant::now();
    let held = |token: &str, asked: u64, since: u64, until: u64| {
        let [asked, since, until] = [asked, since, until].map(|ms| start + Duration::from_millis(ms));
        Held { token: token.to_owned(), asked, since, until }
    };
    let [first, second] = [held("01-b", 0, 10, 500), held("02-a", 490, 510, 900)];
    assert_eq!(lease_faults(&[first.clone(), second.clone()]), Vec::<String>::new());
    let early = held("02-a", 300, 400, 900);
    assert_eq!(lease_faults(&[early, first.clone()]), ["02-a and 01-b were held at a time"]);
    let lower = Held { token: "00-c".to_owned(), ..second };
    assert_eq!(lease_faults(&[first, lower]), ["of 01-b and 00-c the later token is not the greater"]);
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
