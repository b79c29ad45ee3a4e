//! Measures elections: on real nodes in this process, and on processes that are killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tidings::{Config, Leadership, Node, Security};

pub(crate) const PARTS: &[(&str, fn())] =
    &[("campaigns", campaigns), ("durable", durable), ("held", held), ("kills", kills)];

/// With this as its first argument the program is one node of the cluster that is measured.
pub(crate) const NODE: &str = "leader-node";

const VOTERS: usize = 5;
const CANDIDATES: usize = 3;
const KILLS: usize = 30;
const ROUNDS: usize = 200;
const HELD: usize = 1_000;
const SECRET: &str = "a secret for benchmarks";

fn config() -> Config {
    let mut config = Config::lan();
    config.voters = (0..VOTERS).map(|i| format!("n{i}")).collect();
    config
}

fn security() -> Security {
    Security::secret(SECRET).expect("good enough")
}

async fn cluster(dir: Option<&std::path::Path>) -> Vec<Node> {
    let security = security();
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..VOTERS {
        let seeds = nodes.first().map(|node| node.addr().to_string());
        let name = format!("n{i}");
        let mut node = Node::builder(&name).security(security.clone()).config(config()).seeds(seeds);
        if let Some(dir) = dir {
            node = node.data_dir(dir.join(name));
        }
        nodes.push(node.start().await.expect("it starts"));
    }
    let is_linked = |node: &Node| node.status().peers.len() == VOTERS - 1;
    while !nodes.iter().all(is_linked) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Voters are silent after their start; this waits for them.
    nodes[0].lock("first").await.expect("it is open").resign().await;
    nodes
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn percentiles(name: &str, unit: &str, mut figures: Vec<f64>, target: &str) {
    figures.sort_by(f64::total_cmp);
    let at = |percent: usize| figures[(figures.len() - 1) * percent / 100];
    println!(
        "{name}: p50 {:.2} {unit}, p99 {:.2}, max {:.2}, of {} ({target})",
        at(50),
        at(99),
        at(100),
        figures.len()
    );
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
        let nodes = cluster(None).await;
        let rtts = nodes[0].status().peers.into_iter().map(|peer| peer.rtt.as_secs_f64() * 1e3).collect();
        percentiles("round trip as QUIC estimates it", "ms", rtts, "");
        percentiles(
            "echo: a write until all have it",
            "ms",
            echo(&nodes).await,
            "one round trip and two hops",
        );
        percentiles("campaign for a free lease", "ms", campaign(&nodes).await, "3 round trips");
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
        percentiles("resign until the next one leads", "ms", times, "20");
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
    let dir = std::env::temp_dir().join(format!("tidings-leaders-{}", std::process::id()));
    runtime().block_on(async {
        let nodes = cluster(Some(&dir)).await;
        let mut syncs = Vec::new();
        for _ in 0..ROUNDS {
            let since = Instant::now();
            nodes[0].put("k", "v").expect("small").durable().await.expect("the disk works");
            syncs.push(since.elapsed().as_secs_f64() * 1e3);
        }
        percentiles("a durable write", "ms", syncs, "");
        let name = "campaign for a free lease, with disks";
        percentiles(name, "ms", campaign(&nodes).await, "3 round trips and one sync");
    });
    _ = std::fs::remove_dir_all(dir);
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
        let nodes = cluster(None).await;
        let sent =
            || -> u64 { nodes.iter().flat_map(|n| n.status().peers).map(|peer| peer.sent_bytes).sum() };
        let measure = async |name: &str| {
            tokio::time::sleep(Duration::from_secs(8)).await;
            let (bytes, time) = (sent(), used());
            let seconds = 20;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let each = seconds as f64 * VOTERS as f64;
            let bytes = (sent() - bytes) as f64 / each;
            let share = (used() - time).as_secs_f64() / each * 100.0;
            println!("{name}: {bytes:.0} bytes a second and node, {share:.2} % of a core a node");
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
        println!("{HELD} leases won at once in {:?}", since.elapsed());
        let busy = measure("1,000 leases held").await;
        let (bytes, share) = (busy.0 - idle.0, busy.1 - idle.1);
        println!("for the leases: {bytes:.0} bytes a second (5,000), {share:.2} % of a core (1)");
        assert!(leases.iter().all(Leadership::is_valid), "all are held still");
    });
}

/// One node in this process: `NAME SEED`. Campaigns if it is no voter, once it is told to, and says when it leads.
pub(crate) fn node(arguments: &[String]) -> ExitCode {
    let [name, seed] = arguments else { return ExitCode::from(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let seeds = (!seed.is_empty()).then(|| seed.clone());
        let node = Node::builder(name).security(security()).config(config()).seeds(seeds);
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

/// A node in a process of its own; ends with this.
struct Process(Child, #[expect(dead_code, reason = "open as long as the process is wanted")] ChildStdin);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

type Heard = (String, Instant);

fn spawn(name: &str, seed: &str, heard: &Sender<Heard>) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([NODE, name, seed]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("this program starts");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let input = child.stdin.take().expect("it is piped");
    let heard = heard.clone();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if heard.send((line, Instant::now())).is_err() {
                break;
            }
        }
    });
    Process(child, input)
}

fn hear(heard: &Receiver<Heard>, beginning: &str) -> Heard {
    loop {
        let (line, at) = heard.recv_timeout(Duration::from_secs(90)).expect("it comes in time");
        if let Some(rest) = line.strip_prefix(beginning) {
            return (rest.to_owned(), at);
        }
    }
}

fn kills() {
    let (sender, heard) = channel();
    let mut voters = vec![spawn("n0", "", &sender)];
    let seed = hear(&heard, "addr ").0;
    voters.extend((1..VOTERS).map(|i| spawn(&format!("n{i}"), &seed, &sender)));
    let name = |i: usize| format!("c{i}");
    let mut candidates: Vec<Process> = (0..CANDIDATES).map(|i| spawn(&name(i), &seed, &sender)).collect();
    let mut leader = hear(&heard, "leads ").0;
    let mut times = Vec::new();
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(1_300));
        let at = (0..CANDIDATES).find(|i| name(*i) == leader).expect("a candidate");
        let since = Instant::now();
        candidates[at].0.kill().expect("it is ours");
        let (next, when) = hear(&heard, "leads ");
        times.push((when - since).as_secs_f64());
        candidates[at] = spawn(&name(at), &seed, &sender);
        leader = next;
        _ = std::io::stdout().flush();
    }
    percentiles("kill -9 of the leader until the next one leads", "s", times, "lease of 3 s and 1 s");
}
