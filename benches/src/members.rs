//! Measures membership on real processes: how soon a killed one is missed, and what an idle cluster costs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tidings::{Config, MemberEvent, Node, Security};
use tidings_benches::table::Table;
use tidings_benches::{runtime, sized};

pub(crate) const PARTS: &[(&str, fn())] = &[("kills", kills), ("leaving", leaving), ("idle", idle)];

/// With this as its first argument the program is one node of the cluster that is measured.
pub(crate) const NODE: &str = "member-node";

const NODES: usize = 10;
const KILLS: usize = 12;
const SECRET: &str = "a secret for benchmarks";

/// One node in this process: `NAME SEED`. Tells what happens to members, and runs until it is killed.
pub(crate) fn node(arguments: &[String]) -> ExitCode {
    let [name, seed] = arguments else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let seeds = (!seed.is_empty()).then(|| seed.clone());
        let node = Node::builder(name).security(Security::secret(SECRET).expect("good enough"));
        let node = node.config(Config::lan()).seeds(seeds).start().await.expect("it starts");
        println!("addr {}", node.addr());
        let mut events = node.member_events();
        while let Some(event) = events.next().await {
            match event {
                MemberEvent::Joined(member) => println!("joined {}", member.name),
                MemberEvent::Down(member) => println!("down {}", member.name),
                _ => {}
            }
        }
    });
    ExitCode::SUCCESS
}

/// A node in a process of its own; ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What a process said, and when that was heard.
type Heard = (usize, String, Instant);

fn spawn(i: usize, seed: &str, heard: &Sender<Heard>) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let mut child = command
        .args([NODE, &format!("n{i}"), seed])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let heard = heard.clone();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if heard.send((i, line, Instant::now())).is_err() {
                break;
            }
        }
    });
    Process(child)
}

/// Waits until this was said so often. When that was, each time.
fn wait_for(heard: &Receiver<Heard>, what: &str, times: usize) -> Vec<Instant> {
    let mut found = Vec::new();
    while found.len() < times {
        let (_, line, when) = heard.recv_timeout(Duration::from_secs(60)).expect("it comes within a minute");
        if line == what {
            found.push(when);
        }
    }
    found
}

fn kills() {
    let (sender, heard) = channel();
    let mut nodes = vec![spawn(0, "", &sender)];
    let seed = loop {
        let (_, line, _) = heard.recv_timeout(Duration::from_secs(60)).expect("it starts");
        if let Some(addr) = line.strip_prefix("addr ") {
            break addr.to_owned();
        }
    };
    for i in 1..NODES {
        nodes.push(spawn(i, &seed, &sender));
        // All that were there see it, and it sees all of them.
        wait_for(&heard, &format!("joined n{i}"), i);
    }
    // Until everybody has a link with everybody.
    std::thread::sleep(Duration::from_secs(3));
    let mut times = Vec::new();
    for kill in 0..sized(3, KILLS) {
        let i = 1 + kill % (NODES - 1);
        let killed = Instant::now();
        nodes[i].0.kill().expect("it is ours");
        let missed = wait_for(&heard, &format!("down n{i}"), NODES - 1);
        times.extend(missed.into_iter().map(|when| (when - killed).as_secs_f64()));
        nodes[i] = spawn(i, &seed, &sender);
        wait_for(&heard, &format!("joined n{i}"), NODES - 1);
        std::thread::sleep(Duration::from_secs(2));
    }
    let mut table =
        Table::new("members-kills", "kill -9 of one of ten processes until another one calls it down");
    let [_, p99, _] = table.quantiles("until a node knows", "tidings", "s", times);
    table.row("until a node knows, p99", "tidings", "s", Some(6.0), vec![p99]);
    table.save();
}

async fn cluster(count: usize) -> Vec<Node> {
    let security = Security::secret(SECRET).expect("good enough");
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..count {
        let seeds = nodes.first().map(|node| node.addr().to_string());
        let node = Node::builder(format!("n{i}")).security(security.clone()).config(Config::lan());
        nodes.push(node.seeds(seeds).start().await.expect("it starts"));
    }
    let is_linked = |node: &Node| node.status().peers.len() == count - 1;
    while !nodes.iter().all(is_linked) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes
}

fn leaving() {
    runtime().block_on(async {
        let (mut times, mut trips) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let nodes = cluster(4).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            trips.extend(nodes[1].status().peers.iter().map(|peer| peer.rtt.as_secs_f64() * 1e3));
            let mut events: Vec<_> = nodes[1..].iter().map(Node::member_events).collect();
            let since = Instant::now();
            let leaving = nodes[0].clone();
            let left = tokio::spawn(async move { leaving.shutdown().await });
            for events in &mut events {
                while !matches!(events.next().await, Some(MemberEvent::Left(_))) {}
                times.push(since.elapsed().as_secs_f64() * 1e3);
            }
            left.await.expect("it does not panic");
        }
        let mut table = Table::new("members-leaving", "From leave() until another of four nodes knows");
        let [trip, ..] = table.quantiles("round trip as QUIC estimates it", "quinn", "ms", trips);
        let [p50, ..] = table.quantiles("until another node knows", "tidings", "ms", times);
        table.row("the same, p50 in round trips", "tidings", "x", Some(1.0), vec![p50 / trip]);
        table.save();
    });
}

fn idle() {
    let mut table =
        Table::new("members-idle", "What an idle cluster sends, bytes of UDP payload a second and node");
    for count in [3, 10].into_iter().take(sized(1, 2)) {
        let each = runtime().block_on(async {
            let nodes = cluster(count).await;
            let sent = || -> u64 {
                nodes.iter().flat_map(|node| node.status().peers).map(|peer| peer.sent_bytes).sum()
            };
            // Path discovery and the first comparisons are over by then.
            tokio::time::sleep(Duration::from_secs(10)).await;
            let before = sent();
            let seconds = sized(15, 30);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            (sent() - before) as f64 / (seconds as f64 * count as f64)
        });
        table.row(&format!("{count} nodes"), "tidings", "bytes/s", Some(600.0), vec![each]);
    }
    table.save();
}
