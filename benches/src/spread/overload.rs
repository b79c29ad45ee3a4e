//! A writer that outruns its peers: does memory stay flat, do the members stay calm, and how soon is all the same
//! again?

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::Endpoint;
use tidings::{MemberEvent, MemberState, Node, WatchOptions, WriteError};
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::{Table, quantiles};
use tidings_benches::{key, resident, runtime, sized};
use tidings_proptest::relay::{Faults, Relay};

use super::cluster::{message, mutual_tls, start_node, wait_until_formed};

/// In seconds, as the next.
const IDLE_SECONDS: [u64; 2] = [2, 5];
/// Of the writer.
const LOAD_SECONDS: [u64; 2] = [5, 20];
/// How often every key is written before the overload: memory that was filled once is not yet that of a store in use.
const CALM_ROUNDS: [u64; 2] = [3, 10];
/// Round trips are averages: this long after what was written calmly, they are those of a node at rest.
const RESTING_TIME: Duration = Duration::from_secs(2);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
/// What shows whether a link leads through the relay.
const TRIAL_BYTES: usize = 10_000;
const STARTS_MAX: usize = 20;
/// Convergence that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first samples under load are of streams and buffers that fill for the first time.
const FILLING_TIME: Duration = Duration::from_secs(1);

struct Case {
    name: &'static str,
    keys: u64,
    value_bytes: usize,
    /// What gets through to one of the peers, in bytes a second.
    slow: Option<f64>,
}

const CASES: [Case; 4] = [
    Case { name: "100 bytes", keys: 10_000, value_bytes: 100, slow: None },
    Case { name: "100 KiB", keys: 50, value_bytes: 100 << 10, slow: None },
    Case { name: "100 bytes, slow peer", keys: 10_000, value_bytes: 100, slow: Some(4e6) },
    Case { name: "100 KiB, slow peer", keys: 50, value_bytes: 100 << 10, slow: Some(20e6) },
];

pub(super) fn overload() {
    let mut table = Table::new("spread-overload", "One thread writes as fast as it can, two peers follow");
    table.note("Three nodes in this process; memory is the process's, theirs and the benchmark's together, and the level before is the one after every key was written ten times (three in the short run), at a calm rate. Probes: QUIC's own smoothed round trips of all links, read every 10 ms, since the failure detector shows none; and a put every 10 ms on the second node until the third tells of it.");
    table.note("The bare push writes the same on two streams of its own, 124 bytes every 10 ms and then as fast as they take it, beside a thread that spins in the writer's place: what its round trips are under load is due to the machine and to QUIC alone.");
    table.note("The slow peer is behind a relay that lets 4 MB/s (100 bytes) or 20 MB/s (100 KiB) through.");
    let mut plot = Plot::new("Resident memory under overload", Axis::linear("seconds"), Axis::linear("MiB"))
        .without_dots();
    runtime().block_on(bare(&mut table));
    for case in CASES {
        let line = runtime().block_on(run(&case, &mut table));
        plot.line(case.name, line);
        table.save();
    }
    plot.save("spread-overload");
}

fn time(seconds: [u64; 2]) -> Duration {
    Duration::from_secs(sized(seconds[0], seconds[1]))
}

/// What is seen from outside while something goes on.
#[derive(Default)]
struct Seen {
    memory: Vec<(f64, f64)>,
    trips: Vec<f64>,
    live: Vec<f64>,
    suspected: usize,
    lag: u64,
}

/// Looks at the nodes until told to stop.
async fn watch(nodes: Vec<Node>, stop: Arc<AtomicBool>) -> Seen {
    let (mut seen, begin) = (Seen::default(), Instant::now());
    let mut live = nodes[2].watch_with("live", WatchOptions::new().exact().without_current());
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let put = Instant::now();
        if nodes[1].put("live", number.to_string()).is_ok() {
            // Under overload an event may be of a later put; none is waited for longer than that.
            _ = tokio::time::timeout(Duration::from_secs(2), live.next()).await;
            seen.live.push(put.elapsed().as_secs_f64() * 1e3);
        }
        for node in &nodes {
            for peer in node.status().peers {
                seen.trips.push(peer.rtt.as_secs_f64() * 1e3);
                seen.lag = seen.lag.max(peer.lag_bytes);
            }
            seen.suspected +=
                node.members().iter().filter(|member| member.state == MemberState::Suspect).count();
        }
        seen.memory.push((begin.elapsed().as_secs_f64(), resident() as f64 / f64::from(1 << 20)));
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    seen
}

async fn run(case: &Case, table: &mut Table) -> Vec<(f64, f64)> {
    let (nodes, relay) = start(case).await;
    let mut downs: Vec<_> = nodes.iter().map(Node::member_events).collect();
    let (puts, busy) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let halt = Arc::new(AtomicBool::new(false));
    let (is_used, used) = tokio::sync::oneshot::channel();
    let (overload, is_overload) = std::sync::mpsc::channel::<()>();
    // One thread for both, so that what it overwrites is its own: memory differs in which thread it came from.
    let writing = {
        let (node, halt, puts, busy) = (nodes[0].clone(), halt.clone(), puts.clone(), busy.clone());
        let (keys, bytes) = (case.keys, case.value_bytes);
        std::thread::spawn(move || {
            let keys: Vec<String> = (0..keys).map(key).collect();
            write_calmly(&node, &keys, bytes);
            _ = is_used.send(());
            if is_overload.recv().is_ok() {
                write(&node, &keys, bytes, &halt, &puts, &busy);
            }
        })
    };
    used.await.expect("the writer does not panic");
    converged(&nodes).await;
    look_while(&nodes, tokio::time::sleep(RESTING_TIME)).await;
    let idle = look_while(&nodes, tokio::time::sleep(time(IDLE_SECONDS))).await;
    let passed = || relay.as_ref().map_or(0, Relay::passed);
    let passed_before = passed();
    overload.send(()).expect("the writer waits");
    let under_load = look_while(&nodes, tokio::time::sleep(time(LOAD_SECONDS))).await;
    let through = (passed() - passed_before) as f64 / time(LOAD_SECONDS).as_secs_f64();
    halt.store(true, Ordering::Relaxed);
    writing.join().expect("it does not panic");
    let settled = converged(&nodes).await;
    let mut down = 0;
    for events in &mut downs {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
            down += usize::from(matches!(event, MemberEvent::Down(_)));
        }
    }
    for node in nodes {
        node.shutdown().await;
    }
    drop(relay);
    if let Some(rate) = case.slow {
        let what = format!("{}: what reached the slow one, of what can", case.name);
        table.row(&what, "tidings", "", None, vec![through / rate]);
    }
    let counts = (puts.load(Ordering::Relaxed), busy.load(Ordering::Relaxed), down);
    tell(table, case, idle, under_load, settled, counts)
}

/// A writer, another, and one that is slow.
async fn start(case: &Case) -> (Vec<Node>, Option<Relay>) {
    for _ in 0..STARTS_MAX {
        // The slow one first: the others dial it, through its relay.
        let faults = case.slow.map(|rate| Faults { rate: Some(rate), ..Faults::default() });
        let (slow, addr, relay) = start_node("n2", None, faults).await;
        let (writer, ..) = start_node("n0", Some(addr), None).await;
        let (other, ..) = start_node("n1", Some(addr), None).await;
        let nodes = vec![writer, other, slow];
        wait_until_formed(&nodes).await;
        // Where both ends dial each other one link is kept, and it may be the one that goes past the relay.
        let mut is_slow = true;
        for node in &nodes[..2] {
            let before = relay.as_ref().map_or(0, Relay::passed);
            node.put("trial", vec![0; TRIAL_BYTES]).expect("it is acceptable");
            converged(&nodes).await;
            is_slow &= relay.as_ref().is_none_or(|relay| relay.passed() >= before + TRIAL_BYTES as u64);
        }
        nodes[0].delete("trial").expect("it is acceptable");
        converged(&nodes).await;
        if is_slow {
            return (nodes, relay);
        }
        for node in nodes {
            node.shutdown().await;
        }
    }
    panic!("no link leads through the relay");
}

/// The floor of the round trips: one node that pushes to two, at rest and as fast as it can.
async fn bare(table: &mut Table) {
    let (server, client) = mutual_tls();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut center = Endpoint::client(any).expect("it binds");
    center.set_default_client_config(client);
    let (mut receivers, mut connections, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        let receiver = Endpoint::server(server.clone(), any).expect("it binds");
        let addr = receiver.local_addr().expect("it is bound");
        let accepting = receiver.clone();
        let accepted = tokio::spawn(async move { accepting.accept().await.expect("it is open").await });
        let connection = center.connect(addr, "localhost").expect("valid").await.expect("it connects");
        let accepted = accepted.await.expect("it does not panic").expect("a good client");
        streams.push(connection.open_uni().await.expect("a stream"));
        connections.extend([connection, accepted.clone()]);
        tokio::spawn(async move {
            let mut stream = accepted.accept_uni().await.expect("a stream");
            let mut bytes = vec![0; 64 << 10];
            while matches!(stream.read(&mut bytes).await, Ok(Some(_))) {}
        });
        receivers.push(receiver);
    }
    let is_loaded = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let is_loaded = is_loaded.clone();
            tokio::spawn(async move {
                let (small, large) = (message(0, 0), vec![0; 64 << 10]);
                loop {
                    let is_loaded = is_loaded.load(Ordering::Relaxed);
                    stream.write_all(if is_loaded { &large } else { &small }).await.expect("it is open");
                    if !is_loaded {
                        tokio::time::sleep(SAMPLE_INTERVAL).await;
                    }
                }
            })
        })
        .collect();
    let mut trips: [Vec<f64>; 2] = Default::default();
    for (trips, (load, time)) in
        trips.iter_mut().zip([(false, time(IDLE_SECONDS)), (true, time(LOAD_SECONDS))])
    {
        is_loaded.store(load, Ordering::Relaxed);
        if load {
            // In the place of the writer, who takes a core.
            let spinning = is_loaded.clone();
            std::thread::spawn(move || {
                while spinning.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let begin = Instant::now();
        while begin.elapsed() < time {
            trips.extend(connections.iter().map(|connection| connection.rtt().as_secs_f64() * 1e3));
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }
    is_loaded.store(false, Ordering::Relaxed);
    let [calm, loaded] = trips.map(|trips| quantiles(trips)[1]);
    let mut row = |what: &str, unit, figure| {
        table.row(&format!("round trip p99 {what}"), "bare quinn push", unit, None, vec![figure]);
    };
    row("idle", "ms", calm);
    row("under load", "ms", loaded);
    row("in idle ones", "x", loaded / calm);
    writing.iter().for_each(tokio::task::JoinHandle::abort);
    receivers.iter().chain([&center]).for_each(|endpoint| endpoint.close(0_u32.into(), b""));
}

/// Writes every key again and again, at a rate that everybody can follow.
fn write_calmly(node: &Node, keys: &[String], bytes: usize) {
    let value = vec![0; bytes];
    let pace = (keys.len() / 1_000).max(1);
    for _ in 0..sized(CALM_ROUNDS[0], CALM_ROUNDS[1]) {
        for (i, key) in keys.iter().enumerate() {
            while node.put(key, &value).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if i % pace == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn write(node: &Node, keys: &[String], bytes: usize, halt: &AtomicBool, puts: &AtomicU64, busy: &AtomicU64) {
    let mut value = vec![0; bytes];
    for (i, key) in (0_u64..).zip(keys.iter().cycle()) {
        if halt.load(Ordering::Relaxed) {
            break;
        }
        value[..8].copy_from_slice(&i.to_le_bytes());
        match node.put(key, &value) {
            Ok(_) => puts.fetch_add(1, Ordering::Relaxed),
            Err(WriteError::Busy) => {
                std::thread::yield_now();
                busy.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => panic!("{error}"),
        };
    }
}

async fn look_while(nodes: &[Node], something: impl Future<Output = ()>) -> Seen {
    let stop = Arc::new(AtomicBool::new(false));
    let looking = tokio::spawn(watch(nodes.to_vec(), stop.clone()));
    something.await;
    stop.store(true, Ordering::Relaxed);
    looking.await.expect("it does not panic")
}

/// Seconds until all hold the same. NaN: not in time.
async fn converged(nodes: &[Node]) -> f64 {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let mut roots = nodes.iter().map(|node| node.status().store.map(|store| store.root));
        let first = roots.next().flatten();
        if first.is_some() && roots.all(|root| root == first) {
            return begin.elapsed().as_secs_f64();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    f64::NAN
}

fn tell(
    table: &mut Table,
    case: &Case,
    idle: Seen,
    load: Seen,
    settled: f64,
    (puts, busy, down): (u64, u64, usize),
) -> Vec<(f64, f64)> {
    let name = case.name;
    let level = idle.memory.last().map_or(f64::NAN, |(_, mib)| *mib);
    let filled = load.memory.iter().find(|(at, _)| *at >= FILLING_TIME.as_secs_f64());
    let filled = filled.map_or(f64::NAN, |(_, mib)| *mib);
    let all: Vec<f64> = load.memory.iter().map(|(_, mib)| *mib).collect();
    let [_, _, most] = quantiles(all.clone());
    table.row(&format!("{name}: memory before"), "tidings", "MiB", None, vec![level]);
    table.row(&format!("{name}: memory under load"), "tidings", "MiB", None, all);
    table.row(&format!("{name}: most, in the level before"), "tidings", "x", Some(1.1), vec![most / level]);
    table.row(
        &format!("{name}: most, in the level after 1 s"),
        "tidings",
        "x",
        Some(1.1),
        vec![most / filled],
    );
    table.row(
        &format!("{name}: puts"),
        "tidings",
        "/s",
        None,
        vec![puts as f64 / time(LOAD_SECONDS).as_secs_f64()],
    );
    table.row(
        &format!("{name}: busy answers"),
        "tidings",
        "/s",
        None,
        vec![busy as f64 / time(LOAD_SECONDS).as_secs_f64()],
    );
    table.row(
        &format!("{name}: most that a peer lagged"),
        "tidings",
        "KiB",
        None,
        vec![load.lag as f64 / 1_024.0],
    );
    for (what, idle, load) in [("round trip", idle.trips, load.trips), ("live put", idle.live, load.live)] {
        let ([_, calm, _], [_, loaded, _]) = (quantiles(idle), quantiles(load));
        table.row(&format!("{name}: {what} p99 idle"), "tidings", "ms", None, vec![calm]);
        table.row(&format!("{name}: {what} p99 under load"), "tidings", "ms", None, vec![loaded]);
        let target = (what == "round trip").then_some(2.0);
        table.row(&format!("{name}: {what} p99 in idle ones"), "tidings", "x", target, vec![loaded / calm]);
    }
    table.row(
        &format!("{name}: seen suspect, of all looks"),
        "tidings",
        "",
        Some(0.0),
        vec![load.suspected as f64],
    );
    table.row(&format!("{name}: members called down"), "tidings", "", Some(0.0), vec![down as f64]);
    table.row(&format!("{name}: all the same after"), "tidings", "s", Some(2.0), vec![settled]);
    load.memory
}
