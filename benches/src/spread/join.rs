//! A blank node joins a cluster that holds much: how long until it has everything, and what that does to live writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::Endpoint;
use tidings::{Node, WatchEvent, WatchOptions};
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::{Table, quantiles};
use tidings_benches::{key, runtime, sized, value};

use super::cluster::{mutual_tls, start_node, wait_until_formed};
use super::rivals;
use crate::reconcile_rs::{self, SETTINGS_NOTE, Settings};

/// Bytes of a key and its value.
const PAIR_BYTES: usize = 124;
const REPETITIONS: usize = 3;
/// A joining that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a rival.
const RIVAL_PATIENCE: Duration = Duration::from_secs(30);
/// Between two live writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(4);

pub(super) fn join() {
    let mut table = Table::new("spread-join", "A blank node joins three that hold many keys of 124 bytes");
    table.note("All nodes in this process. From start() to ready(), and until len() is equal; the live writes go from one old node to a watch on another, one every 4 ms.");
    let sizes = [(1_000, None), (10_000, None), (100_000, Some(0.6)), (1_000_000, Some(6.0))];
    let mut curves: [Vec<(f64, f64)>; 2] = Default::default();
    for (keys, target) in sizes.into_iter().take(sized(3, 4)) {
        let name = format!("{} k keys,", keys / 1_000);
        let floor: Vec<f64> = (0..REPETITIONS).map(|_| runtime().block_on(bare(keys))).collect();
        let floor =
            table.row(&format!("{name} connect and read them all"), "bare quinn stream", "s", None, floor);
        let (mut ready, mut equal) = (Vec::new(), Vec::new());
        let (mut before, mut during): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
        runtime().block_on(async {
            let nodes = filled(keys).await;
            for i in 0..REPETITIONS {
                let idle = live_while(&nodes, tokio::time::sleep(Duration::from_secs(2))).await;
                let times = async {
                    let times = joining(&nodes, i, keys).await;
                    ready.push(times.0);
                    equal.push(times.1);
                };
                let busy = live_while(&nodes, times).await;
                for (kept, all) in [(&mut before, idle), (&mut during, busy)] {
                    let [p50, p99, _] = quantiles(all);
                    kept[0].push(p50);
                    kept[1].push(p99);
                }
            }
            shut_down(nodes).await;
        });
        table.row(&format!("{name} start() to ready()"), "tidings", "s", None, ready);
        let equal = table.row(&format!("{name} start() to equal len()"), "tidings", "s", target, equal);
        curves[0].push((keys as f64, floor));
        curves[1].push((keys as f64, equal));
        for (i, quantile) in ["p50", "p99"].into_iter().enumerate() {
            let (idle, busy) = (std::mem::take(&mut before[i]), std::mem::take(&mut during[i]));
            table.row(&format!("{name} live {quantile} before"), "tidings", "ms", None, idle);
            table.row(&format!("{name} live {quantile} meanwhile"), "tidings", "ms", None, busy);
        }
        table.save();
    }
    let mut plot = Plot::new("Joining, until all keys are there", Axis::log("keys"), Axis::log("seconds"));
    for (who, curve) in ["bare quinn stream", "tidings"].into_iter().zip(curves) {
        plot.line(who, curve);
    }
    match runtime().block_on(rival(100_000)) {
        Ok(seconds) => {
            table.row("100 k keys, start to all keys", "chitchat 100 ms", "s", None, vec![seconds]);
            plot.line("chitchat 100 ms", vec![(1e5, seconds)]);
        }
        Err(keys) => {
            table.note(&format!("chitchat at 100 ms had {keys} of 100,000 keys after 30 s; given up."));
        }
    }
    reconcile_joins(&mut table, &mut plot);
    plot.save("spread-join");
    table.save();
}

/// A blank node of `reconcile` beside one that holds all keys.
fn reconcile_joins(table: &mut Table, plot: &mut Plot) {
    table.note(SETTINGS_NOTE);
    for settings in [Settings::Documented, Settings::Fast] {
        let joinings = 0..sized(1, REPETITIONS);
        let times: Result<Vec<f64>, usize> =
            joinings.map(|_| runtime().block_on(reconcile(settings, 100_000))).collect();
        let name = settings.name();
        match times {
            Ok(times) => {
                let middle = table.row("100 k keys, start to all keys", name, "s", None, times);
                plot.line(name, vec![(1e5, middle)]);
            }
            Err(keys) => {
                table.note(&format!("{name} had {keys} of 100,000 keys after 30 s; given up."));
            }
        }
    }
}

async fn filled(keys: u64) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..3 {
        let seed = nodes.first().map(Node::addr);
        nodes.push(start_node(&format!("n{i}"), seed, None).await.0);
    }
    wait_until_formed(&nodes).await;
    for i in 0..keys {
        while nodes[(i % 3) as usize].put(key(i), value(i)).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let begin = Instant::now();
    while nodes.iter().any(|node| node.len() as u64 != keys) && begin.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nodes
}

/// Seconds until a new node is ready, and until it has as much as the others. NaN: not in time.
async fn joining(nodes: &[Node], i: usize, keys: u64) -> (f64, f64) {
    let begin = Instant::now();
    let (node, ..) = start_node(&format!("blank-{i}"), Some(nodes[i % 3].addr()), None).await;
    let is_ready = tokio::time::timeout(PATIENCE, node.ready()).await.is_ok();
    let ready = if is_ready { begin.elapsed().as_secs_f64() } else { f64::NAN };
    while (node.len() as u64) < keys && begin.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let equal = if node.len() as u64 >= keys { begin.elapsed().as_secs_f64() } else { f64::NAN };
    node.shutdown().await;
    (ready, equal)
}

/// Milliseconds from a put on the first to the event on the second, while something happens.
async fn live_while(nodes: &[Node], something: impl Future<Output = ()>) -> Vec<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let (halt, writer) = (stop.clone(), nodes[0].clone());
    let mut watch = nodes[1].watch_with("live", WatchOptions::new().exact().without_current());
    let writing = tokio::spawn(async move {
        let mut figures = Vec::new();
        for i in 0_u64.. {
            if halt.load(Ordering::Relaxed) {
                break;
            }
            let begin = Instant::now();
            if writer.put("live", value(i)).is_ok() {
                while let Some(event) = watch.next().await {
                    if matches!(&event, WatchEvent::Put(entry) if entry.value() == value(i)) {
                        break;
                    }
                }
                figures.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            tokio::time::sleep(WRITE_INTERVAL).await;
        }
        figures
    });
    something.await;
    stop.store(true, Ordering::Relaxed);
    writing.await.expect("it does not panic")
}

async fn shut_down(nodes: Vec<Node>) {
    for node in nodes {
        node.shutdown().await;
    }
}

/// Seconds to connect over mutual TLS and read the same bytes from one stream.
async fn bare(keys: u64) -> f64 {
    let (server, client) = mutual_tls();
    let any = ([127, 0, 0, 1], 0).into();
    let source = Endpoint::server(server, any).expect("it binds");
    let addr = source.local_addr().expect("it is bound");
    let accepting = source.clone();
    let serving = tokio::spawn(async move {
        let connection = accepting.accept().await.expect("it is open").await.expect("a good client");
        let mut stream = connection.open_uni().await.expect("a stream");
        let chunk = vec![7; PAIR_BYTES * 100];
        for _ in 0..keys / 100 {
            stream.write_all(&chunk).await.expect("it is open");
        }
        stream.finish().expect("it is open");
        connection.closed().await;
    });
    let begin = Instant::now();
    let mut endpoint = Endpoint::client(any).expect("it binds");
    endpoint.set_default_client_config(client);
    let connection = endpoint.connect(addr, "localhost").expect("valid").await.expect("it connects");
    let mut stream = connection.accept_uni().await.expect("a stream");
    let mut bytes = 0;
    while let Some(chunk) = stream.read_chunk(1 << 16, true).await.expect("it is open") {
        bytes += chunk.bytes.len();
    }
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(bytes, keys as usize * PAIR_BYTES, "everything came");
    connection.close(0_u32.into(), b"");
    _ = serving.await;
    seconds
}

/// Seconds until a blank chitchat node has all keys of another; or how many it had when it was given up.
async fn rival(keys: u64) -> Result<f64, usize> {
    let every = Duration::from_millis(100);
    let full = rivals::Chitchat::start(0, every, &[]).await;
    full.fill(keys).await;
    let begin = Instant::now();
    let blank = rivals::Chitchat::start(1, every, &[full.addr()]).await;
    let mut has = 0;
    while has < keys as usize && begin.elapsed() < RIVAL_PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
        has = blank.len().await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    rivals::Chitchat::stop(vec![full, blank]).await;
    if has < keys as usize { Err(has) } else { Ok(seconds) }
}

/// The same of `reconcile`.
async fn reconcile(settings: Settings, keys: u64) -> Result<f64, usize> {
    let addrs = reconcile_rs::addrs(2).await;
    let full = reconcile_rs::Node::start(settings, addrs[0], &addrs, None, |_| ()).await;
    reconcile_rs::fill(&full.map, 0..keys);
    let begin = Instant::now();
    let blank = reconcile_rs::Node::start(settings, addrs[1], &addrs, None, |_| ()).await;
    let mut has = 0;
    while has < keys as usize && begin.elapsed() < RIVAL_PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
        has = blank.len();
    }
    let seconds = begin.elapsed().as_secs_f64();
    full.stop().await;
    blank.stop().await;
    if has < keys as usize { Err(has) } else { Ok(seconds) }
}
