//! Measures real nodes on loopback, beside what they are built on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidings::{Node, Quorum, WatchOptions, WriteError};
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::{Table, quantile};
use tidings_benches::{builder, key, resident, runtime, value};
use tidings_proptest::nodes::ready;

use crate::reconcile_rs;
use crate::spread::mutual_tls;

pub(crate) const PARTS: &[(&str, fn())] = &[
    ("gets", gets),
    ("views", crate::views::views),
    ("changes", crate::views::changes),
    ("latency", latency),
    ("throughput", throughput),
    ("fanout", fanout),
    ("starts", starts),
    ("strangers", crate::strangers::strangers),
    ("memory", memory),
];

const KEYS: u64 = 10_000;
const ROUNDS: usize = 3_000;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn start(name: &str, seeds: &[&Node]) -> Node {
    ready(builder(name, seeds)).await
}

/// Microseconds.
fn micros(nanos: Vec<u64>) -> Vec<f64> {
    nanos.into_iter().map(|nanos| nanos as f64 / 1e3).collect()
}

/// Reads beside a bare concurrent map, then under a saturating writer and a joining peer.
fn gets() {
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let bare: papaya::HashMap<String, Arc<[u8]>> = papaya::HashMap::new();
    for (i, key) in keys.iter().enumerate() {
        node.put(key, value(i as u64)).expect("acceptable");
        bare.pin().insert(key.clone(), value(i as u64).into());
    }
    let sharded: dashmap::DashMap<String, Arc<[u8]>> = dashmap::DashMap::new();
    for (i, key) in keys.iter().enumerate() {
        sharded.insert(key.clone(), value(i as u64).into());
    }
    let reconcile = reconcile_rs::filled(KEYS, KEYS);
    let each = |get: &dyn Fn(&String)| {
        let start = Instant::now();
        (0..1_000_000_usize).for_each(|i| get(&keys[i * 7_919 % keys.len()]));
        start.elapsed().as_nanos() as f64 / 1e6
    };
    let mut table = Table::new("node-gets", "Reading one of 10,000 keys, from a thread of the user's");
    table.note("reconcile 0.5 is its map without a network; its get answers a reference into the tree of that moment.");
    let mut figures: [Vec<f64>; 5] = Default::default();
    for _ in 0..5 {
        figures[0].push(each(&|key| _ = std::hint::black_box(node.get(key))));
        figures[1].push(each(&|key| _ = std::hint::black_box(bare.pin().get(key).cloned())));
        figures[2].push(each(&|key| _ = std::hint::black_box(sharded.get(key).map(|value| value.clone()))));
        figures[3].push(each(&|key| _ = std::hint::black_box(reconcile.get(key))));
        figures[4].push(each(&|key| _ = std::hint::black_box(reconcile.get_cloned(key))));
    }
    drop(reconcile);
    let [ours, papaya, dashmap, map, map_cloned] = figures;
    let ratios = ours.iter().zip(&papaya).map(|(ours, theirs)| ours / theirs).collect();
    table.row("get", "tidings", "ns", None, ours);
    table.row("get and clone", "papaya", "ns", None, papaya);
    table.row("get and clone", "DashMap", "ns", None, dashmap);
    table.row("get", "reconcile", "ns", None, map);
    table.row("get and clone", "reconcile", "ns", None, map_cloned);
    table.row("get, in papaya's", "tidings", "x", Some(1.5), ratios);
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, halt, texts) = (node.clone(), stop.clone(), keys.clone());
    let writing = std::thread::spawn(move || {
        let mut i = 0_usize;
        while !halt.load(Ordering::Relaxed) {
            i += 1;
            if let Err(WriteError::Busy) = writer.put(&texts[i % texts.len()], value(i as u64)) {
                std::thread::yield_now();
            }
        }
    });
    let joiner = runtime.block_on(start("b", &[&node]));
    let mut nanos = Vec::with_capacity(1_000_000);
    for i in 0..1_000_000_usize {
        let start = Instant::now();
        std::hint::black_box(node.get(&keys[i * 7_919 % keys.len()]));
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    stop.store(true, Ordering::Relaxed);
    writing.join().expect("the writer ends");
    let mut all = micros(nanos);
    all.sort_by(f64::total_cmp);
    for (share, name, target) in [(0.5, "p50", None), (0.99, "p99", Some(5.0)), (0.999, "p99.9", Some(50.0))]
    {
        let name = format!("get under a writer and a joiner, {name}");
        table.row(&name, "tidings", "us", target, vec![quantile(&all, share)]);
    }
    table.save();
    runtime.block_on(async { tokio::join!(joiner.shutdown(), node.shutdown()) });
}

/// A bi-directional stream of quinn that echoes 100 bytes, on the same runtime, with the same kind of keys.
async fn echoes() -> Vec<u64> {
    let (client, server, addr) = plain_quinn();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.expect("it is open").await.expect("it connects");
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let mut bytes = [0; 100];
        while recv.read_exact(&mut bytes).await.is_ok() {
            if send.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let connection = client.connect(addr, "localhost").expect("valid").await.expect("it connects");
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let mut nanos = Vec::new();
    let mut bytes = [7; 100];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        send.write_all(&bytes).await.expect("it is open");
        recv.read_exact(&mut bytes).await.expect("it is open");
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    connection.close(0_u32.into(), b"");
    _ = serving.await;
    nanos
}

fn plain_quinn() -> (quinn::Endpoint, quinn::Endpoint, SocketAddr) {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let (server, client) = mutual_tls();
    let server = quinn::Endpoint::server(server, any).expect("it binds");
    let mut endpoint = quinn::Endpoint::client(any).expect("it binds");
    endpoint.set_default_client_config(client);
    let addr = server.local_addr().expect("it is bound");
    (endpoint, server, addr)
}

/// From a put to the watch on another node, and to the knowledge that a majority has it.
fn latency() {
    let runtime = runtime();
    runtime.block_on(async {
        let mut table = Table::new("node-latency", "From a put to others, beside an echo of 100 bytes");
        let [echo, ..] =
            table.quantiles("100 bytes there and back", "bare quinn", "us", micros(echoes().await));
        let a = start("a", &[]).await;
        let b = start("b", &[&a]).await;
        let mut watch = b.watch_with("k", WatchOptions::new().without_current());
        let mut nanos = Vec::new();
        for i in 0..ROUNDS {
            let begin = Instant::now();
            a.put("k", value(i as u64)).expect("acceptable");
            watch.next().await.expect("it is open");
            nanos.push(begin.elapsed().as_nanos() as u64);
        }
        let [p50, p99, _] = table.quantiles("put on A to the event on B", "tidings", "us", micros(nanos));
        table.row("the same, p50 in p50 of echoes", "tidings", "x", Some(2.0), vec![p50 / echo]);
        table.row("the same, p99 in p50 of echoes", "tidings", "x", Some(5.0), vec![p99 / echo]);
        let c = start("c", &[&a, &b]).await;
        let mut nanos = Vec::new();
        for i in 0..ROUNDS {
            let begin = Instant::now();
            let receipt = a.put("k", value(i as u64)).expect("acceptable");
            receipt.seen_by(Quorum::Majority, PATIENCE).await.expect("it is seen");
            nanos.push(begin.elapsed().as_nanos() as u64);
        }
        let [p50, ..] = table.quantiles("put to seen_by(Majority) of three", "tidings", "us", micros(nanos));
        table.row("the same, p50 in p50 of echoes", "tidings", "x", Some(3.0), vec![p50 / echo]);
        table.quantiles("100 bytes there and back, again", "bare quinn", "us", micros(echoes().await));
        table.save();
        tokio::join!(a.shutdown(), b.shutdown(), c.shutdown());
    });
}

/// One writing thread while two peers follow.
fn throughput() {
    let runtime = runtime();
    let mut table = Table::new("node-throughput", "One thread writes, two peers follow");
    for (name, keys, writes, target) in [
        ("over 10,000 keys", KEYS, 600_000_u64, 200_000.0),
        ("on distinct keys", u64::MAX, 400_000, 80_000.0),
    ] {
        let (a, b, c) = runtime.block_on(async {
            let a = start("a", &[]).await;
            let b = start("b", &[&a]).await;
            let c = start("c", &[&a, &b]).await;
            (a, b, c)
        });
        let texts: Vec<String> = (0..keys.min(writes)).map(key).collect();
        let text = value(7);
        let (begin, mut busy, mut lag) = (Instant::now(), 0_u64, 0);
        let mut last = None;
        for i in 0..writes {
            loop {
                if let Ok(receipt) = a.put(&texts[(i % keys) as usize], &text) {
                    last = Some(receipt);
                    break;
                }
                busy += 1;
                std::thread::yield_now();
            }
            if i % 10_000 == 0 {
                lag = a.status().peers.iter().map(|peer| peer.lag_bytes).max().unwrap_or(0).max(lag);
            }
        }
        let rate = writes as f64 / begin.elapsed().as_secs_f64();
        let seen = runtime.block_on(last.expect("there were writes").seen_by(Quorum::All, PATIENCE));
        let all = writes as f64 / begin.elapsed().as_secs_f64();
        seen.expect("all have it in time");
        table.rate(&format!("puts {name}"), "tidings", "/s", Some(target), vec![rate]);
        table.rate(&format!("puts {name}, until all have them"), "tidings", "/s", None, vec![all]);
        table.row(&format!("puts {name}, greatest lag"), "tidings", "KiB", None, vec![lag as f64 / 1_024.0]);
        table.row(&format!("puts {name}, refused as busy"), "tidings", "times", None, vec![busy as f64]);
        runtime.block_on(async { tokio::join!(a.shutdown(), b.shutdown(), c.shutdown()) });
    }
    table.save();
}

/// From one write to the last of many watches of that key on the same node.
fn fanout() {
    let runtime = runtime();
    let mut table =
        Table::new("node-fanout", "From a put to the last of many watches of that key on the same node");
    let mut plot = Plot::new("One write and many watches, p50", Axis::log("watches"), Axis::log("us"));
    let mut curves: [Vec<(f64, f64)>; 2] = Default::default();
    for count in [1_usize, 10, 100, 1_000, 10_000] {
        let rounds = (100_000 / count).clamp(20, 1_000);
        let ours = runtime.block_on(async {
            let node = start("a", &[]).await;
            let (told, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
            for _ in 0..count {
                let (mut watch, told) =
                    (node.watch_with("k", WatchOptions::new().exact().without_current()), told.clone());
                tokio::spawn(async move { while watch.next().await.is_some() && told.send(()).is_ok() {} });
            }
            let times =
                fan(rounds, count, &mut arrivals, |i| _ = node.put("k", value(i)).expect("acceptable")).await;
            node.shutdown().await;
            times
        });
        let bare = runtime.block_on(async {
            let (sender, _) = tokio::sync::broadcast::channel(16);
            let (told, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
            for _ in 0..count {
                let (mut receiver, told) = (sender.subscribe(), told.clone());
                tokio::spawn(async move { while receiver.recv().await.is_ok() && told.send(()).is_ok() {} });
            }
            fan(rounds, count, &mut arrivals, |i| _ = sender.send(Arc::new(value(i)))).await
        });
        let name = format!("{count} watches");
        let [ours, ..] = table.quantiles(&name, "tidings", "us", ours);
        let [bare, ..] = table.quantiles(&name, "tokio broadcast", "us", bare);
        table.row(&format!("{name}, p50 in broadcasts"), "tidings", "x", None, vec![ours / bare]);
        curves[0].push((count as f64, ours));
        curves[1].push((count as f64, bare));
    }
    let [ours, bare] = curves;
    plot.line("tidings", ours);
    plot.line("tokio broadcast", bare);
    plot.save("node-fanout");
    table.save();
}

async fn fan(
    rounds: usize,
    count: usize,
    arrivals: &mut tokio::sync::mpsc::UnboundedReceiver<()>,
    write: impl Fn(u64),
) -> Vec<f64> {
    // So that all of them wait.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut times = Vec::new();
    for i in 0..rounds {
        let begin = Instant::now();
        write(i as u64);
        for _ in 0..count {
            arrivals.recv().await.expect("they run");
        }
        times.push(begin.elapsed().as_nanos() as f64 / 1e3);
    }
    times
}

/// From the start of a node to its first exchange with a live seed.
fn starts() {
    let runtime = runtime();
    runtime.block_on(async {
        let a = start("a", &[]).await;
        a.put("k", "v").expect("acceptable");
        let mut nanos = Vec::new();
        for i in 0..50 {
            let begin = Instant::now();
            let node = start(&format!("n{i}"), &[&a]).await;
            assert!(node.get("k").is_some(), "it is ready");
            nanos.push(begin.elapsed().as_nanos() as u64);
            node.shutdown().await;
        }
        let mut table =
            Table::new("node-starts", "From the start of a node to its first exchange with a seed");
        let [_, p99, _] = table.quantiles("start to ready", "tidings", "us", micros(nanos));
        table.row("start to ready, p99", "tidings", "us", Some(50_000.0), vec![p99]);
        table.save();
        a.shutdown().await;
    });
}

/// Connections first: what is freed is used again, and would hide what comes after it.
fn memory() {
    const PEERS: usize = 20;
    const MANY: u64 = 1_000_000;
    let runtime = runtime();
    let mut table = Table::new("node-memory", "Resident memory of a node");
    let each = runtime.block_on(async {
        let mut nodes = Vec::new();
        for i in 0..PEERS {
            nodes.push(builder(&format!("n{i}"), &[]).start().await.expect("it starts"));
        }
        let before = resident();
        let seeds: Vec<&Node> = nodes.iter().collect();
        nodes.push(builder("center", &seeds).start().await.expect("it starts"));
        // The others learn of each other through the center, until everybody is linked with everybody.
        let ends = || nodes.iter().map(|node| node.status().peers.len()).sum::<usize>();
        while ends() < PEERS * (PEERS + 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        resident().saturating_sub(before) as f64 / ends() as f64 / 1_024.0
    });
    table.row("a connection, at each of its ends", "tidings", "KiB", Some(100.0), vec![each]);
    let node = runtime.block_on(start("a", &[]));
    let before = resident();
    for i in 0..MANY {
        node.put(key(i), value(i)).expect("acceptable");
    }
    let bytes = resident().saturating_sub(before) as f64 / MANY as f64;
    table.row("a key at 1 M, index included", "tidings", "bytes", Some(310.0), vec![bytes]);
    table.save();
    runtime.block_on(node.shutdown());
}
