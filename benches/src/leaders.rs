//! Measures elections: on real nodes in this process, and on processes that are killed.

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use tidings::{Config, Leadership, Node};
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::processes::{hear, spawn};
use tidings_benches::table::Table;
use tidings_benches::{builder, mesh, runtime, sized};
use tidings_proptest::processes::Process;
use tidings_proptest::{Folder, voters};

pub(crate) const PARTS: &[(&str, fn())] =
    &[("campaigns", campaigns), ("durable", durable), ("held", held), ("kills", kills)];

/// With this as its first argument the program is one node of the cluster that is measured.
pub(crate) const NODE: &str = "leader-node";

const VOTERS: usize = 5;
const CANDIDATES: usize = 3;
const KILLS: usize = 30;
const ROUNDS: usize = 200;
const HELD: usize = 1_000;

fn config() -> Config {
    let mut config = Config::lan();
    config.voters = voters(VOTERS);
    config
}

async fn cluster(dir: Option<&std::path::Path>) -> Vec<Node> {
    let nodes = mesh(VOTERS, |i, seeds| {
        let name = format!("n{i}");
        let node = builder(&name, seeds).config(config());
        if let Some(dir) = dir { node.data_dir(dir.join(name)) } else { node }
    });
    let nodes = nodes.await;
    // Voters are silent after their start; this waits for them.
    nodes[0].lock("first").await.expect("it is open").resign().await;
    nodes
}

async fn campaign(nodes: &[Node]) -> Vec<f64> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let since = Instant::now();
        let lead = nodes[round % VOTERS].election(format!("e{round}")).campaign("x").await.expect("it wins");
        times.push(since.elapsed().as_secs_f64() * 1e3);
        lead.resign().await;
    }
    times
}

/// A free lease, and one that is given up.
fn campaigns() {
    runtime().block_on(async {
        let mut table =
            Table::new("leaders-campaigns", "Winning a lease among five voters, and giving it up");
        let nodes = cluster(None).await;
        let rtts = nodes[0].status().peers.into_iter().map(|peer| peer.rtt.as_secs_f64() * 1e3).collect();
        let [rtt, ..] = table.quantiles("round trip as QUIC estimates it", "quinn", "ms", rtts);
        table.quantiles("a write until all have it and say so", "tidings", "ms", echo(&nodes).await);
        let [p50, ..] = table.quantiles("campaign for a free lease", "tidings", "ms", campaign(&nodes).await);
        table.row("the same, p50 in round trips", "tidings", "x", Some(3.0), vec![p50 / rtt]);
        let mut times = Vec::new();
        let mut lead = nodes[0].lock("door").await.expect("it is free");
        for round in 1..=ROUNDS {
            let node = nodes[round % VOTERS].clone();
            let waiting = tokio::spawn(async move {
                let lead = node.lock("door").await.expect("it comes");
                (lead, Instant::now())
            });
            tokio::time::sleep(Duration::from_millis(30)).await;
            let since = Instant::now();
            lead.resign().await;
            let (next, at) = waiting.await.expect("it does not panic");
            times.push((at - since).as_secs_f64() * 1e3);
            lead = next;
        }
        let [_, p99, _] = table.quantiles("resign until the next one leads", "tidings", "ms", times);
        table.row("the same, p99", "tidings", "ms", Some(20.0), vec![p99]);
        table.save();
    });
}

async fn echo(nodes: &[Node]) -> Vec<f64> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let since = Instant::now();
        let receipt = nodes[round % VOTERS].put("k", "v").expect("small");
        receipt.seen_by(tidings::Quorum::All, Duration::from_secs(10)).await.expect("all live");
        times.push(since.elapsed().as_secs_f64() * 1e3);
    }
    times
}

fn durable() {
    let folder = Folder::new();
    runtime().block_on(async {
        let mut table =
            Table::new("leaders-durable", "Winning a lease where promises have to be on the disk");
        let nodes = cluster(Some(&folder.0)).await;
        let rtt = nodes[0].status().peers.iter().map(|peer| peer.rtt.as_secs_f64() * 1e3).sum::<f64>();
        let rtt = rtt / (VOTERS - 1) as f64;
        let mut syncs = Vec::new();
        for _ in 0..ROUNDS {
            let since = Instant::now();
            nodes[0].put("k", "v").expect("small").durable().await.expect("the disk works");
            syncs.push(since.elapsed().as_secs_f64() * 1e3);
        }
        let [sync, ..] = table.quantiles("a durable write", "tidings", "ms", syncs);
        let [p50, ..] = table.quantiles("campaign for a free lease", "tidings", "ms", campaign(&nodes).await);
        let name = "the same, p50 in three round trips and a durable write";
        table.row(name, "tidings", "x", Some(1.0), vec![p50 / (3.0 * rtt + sync)]);
        table.save();
    });
}

/// The processor time that this process has used.
fn used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn held() {
    runtime().block_on(async {
        let mut table = Table::new("leaders-held", "What 1,000 held leases cost each of five nodes");
        let nodes = cluster(None).await;
        let sent =
            || -> u64 { nodes.iter().flat_map(|n| n.status().peers).map(|peer| peer.sent_bytes).sum() };
        let measure = async |name: &str| {
            tokio::time::sleep(Duration::from_secs(8)).await;
            let (bytes, time) = (sent(), used());
            let seconds = sized(10, 20);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let each = seconds as f64 * VOTERS as f64;
            let bytes = (sent() - bytes) as f64 / each;
            let share = (used() - time).as_secs_f64() / each * 100.0;
            println!("  {name}: {bytes:.0} bytes a second and node, {share:.2} % of a core a node");
            (bytes, share)
        };
        let idle = measure("idle").await;
        let since = Instant::now();
        let campaigns: Vec<_> = (0..HELD)
            .map(|i| {
                let node = nodes[i % VOTERS].clone();
                tokio::spawn(async move { node.election(format!("e{i}")).campaign("x").await })
            })
            .collect();
        let mut leases: Vec<Leadership> = Vec::new();
        for campaign in campaigns {
            leases.push(campaign.await.expect("it does not panic").expect("it wins"));
        }
        table.row("1,000 leases won at once", "tidings", "s", None, vec![since.elapsed().as_secs_f64()]);
        let busy = measure("1,000 leases held").await;
        let (bytes, share) = (busy.0 - idle.0, busy.1 - idle.1);
        table.row("sent for them", "tidings", "bytes/s", Some(5_000.0), vec![bytes]);
        table.row("processor time for them", "tidings", "% of a core", Some(1.0), vec![share]);
        table.save();
        assert!(leases.iter().all(Leadership::is_valid), "all are held still");
    });
}

/// One node in this process: `NAME SEED`. Campaigns if it is no voter, once it is told to, and says when it leads.
pub(crate) fn node(arguments: &[String]) -> ExitCode {
    let [name, seed] = arguments else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let seeds = (!seed.is_empty()).then(|| seed.clone());
        let node = builder(name, &[]).config(config()).seeds(seeds);
        let node = node.start().await.expect("it starts");
        println!("addr {}", node.addr());
        let stdin = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
        if name.starts_with('c') {
            while let Ok(lead) = node.election("cron").campaign("x").await {
                println!("leads {name}");
                lead.lost().await;
            }
        }
        _ = stdin.await;
    });
    ExitCode::SUCCESS
}

fn kills() {
    let (sender, heard) = channel();
    let mut voters = vec![spawn(NODE, "n0", "", &sender)];
    let seed = hear(&heard, "addr ").0;
    voters.extend((1..VOTERS).map(|i| spawn(NODE, &format!("n{i}"), &seed, &sender)));
    let name = |i: usize| format!("c{i}");
    let mut candidates: Vec<Process> =
        (0..CANDIDATES).map(|i| spawn(NODE, &name(i), &seed, &sender)).collect();
    let mut leader = hear(&heard, "leads ").0;
    let mut times = Vec::new();
    for _ in 0..sized(6, KILLS) {
        std::thread::sleep(Duration::from_millis(1_300));
        let at = (0..CANDIDATES).find(|i| name(*i) == leader).expect("a candidate");
        let since = Instant::now();
        candidates[at].child.kill().expect("it is ours");
        let (next, when) = hear(&heard, "leads ");
        times.push((when - since).as_secs_f64());
        candidates[at] = spawn(NODE, &name(at), &seed, &sender);
        leader = next;
        _ = std::io::stdout().flush();
    }
    let mut table =
        Table::new("leaders-kills", "kill -9 of the leader, leases of 3 s, processes on loopback");
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let mut plot = Plot::new(
        "After kill -9 of a leader",
        Axis::linear("seconds"),
        Axis::linear("% of the kills after which one leads"),
    );
    let share = |i: usize| 100.0 * (i + 1) as f64 / sorted.len() as f64;
    plot.line(
        "tidings, leases of 3 s",
        sorted.iter().enumerate().map(|(i, time)| (*time, share(i))).collect(),
    );
    plot.save("leaders-kills");
    let [_, p99, _] = table.quantiles("until the next one leads", "tidings", "s", times);
    table.row("until the next one leads, p99", "tidings", "s", Some(4.0), vec![p99]);
    table.save();
}
