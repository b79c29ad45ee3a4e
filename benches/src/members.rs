//! Measures membership on real processes: how soon a killed one is missed, and what an idle cluster costs.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tidings::{MemberEvent, Node};
use tidings_benches::processes::{Heard, hear, spawn};
use tidings_benches::table::Table;
use tidings_benches::{builder, mesh, runtime, sized};

pub(crate) const PARTS: &[(&str, fn())] = &[("kills", kills), ("leaving", leaving), ("idle", idle)];

/// With this as its first argument the program is one node of the cluster that is measured.
pub(crate) const NODE: &str = "member-node";

const NODES: usize = 10;
const KILLS: usize = 12;

/// One node in this process: `NAME SEED`. Tells what happens to members, and runs until it is killed.
pub(crate) fn node(arguments: &[String]) -> ExitCode {
    let [name, seed] = arguments else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let seeds = (!seed.is_empty()).then(|| seed.clone());
        let node = builder(name, &[]).seeds(seeds).start().await.expect("it starts");
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

/// Waits until lines that begin like this were said so often. When that was, each time.
fn wait_for(heard: &Receiver<Heard>, what: &str, times: usize) -> Vec<Instant> {
    (0..times).map(|_| hear(heard, what).1).collect()
}

fn kills() {
    let (sender, heard) = channel();
    let mut nodes = vec![spawn(NODE, "n0", "", &sender)];
    let seed = hear(&heard, "addr ").0;
    for i in 1..NODES {
        nodes.push(spawn(NODE, &format!("n{i}"), &seed, &sender));
        // All that were there see it, and it sees all of them.
        wait_for(&heard, &format!("joined n{i}"), i);
    }
    // Until everybody has a link with everybody.
    std::thread::sleep(Duration::from_secs(3));
    let mut times = Vec::new();
    for kill in 0..sized(3, KILLS) {
        let i = 1 + kill % (NODES - 1);
        let killed = Instant::now();
        nodes[i].child.kill().expect("it is ours");
        let missed = wait_for(&heard, &format!("down n{i}"), NODES - 1);
        times.extend(missed.into_iter().map(|when| (when - killed).as_secs_f64()));
        nodes[i] = spawn(NODE, &format!("n{i}"), &seed, &sender);
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
    mesh(count, |i, seeds| builder(&format!("n{i}"), seeds)).await
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
