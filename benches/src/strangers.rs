//! What a flood of strangers costs those that are members: beside the same without it, in one run.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tidings::{Node, WatchOptions};
use tidings_benches::table::Table;
use tidings_benches::{builder, runtime, value};
use tidings_proptest::authority::{Authority, VALID};
use tidings_proptest::nodes::ready;
use tidings_proptest::strangers::{Flood, SilentMembers, addresses};

const NODES: usize = 20;
const WRITES: usize = 1_000;

async fn start(authority: &Authority, name: &str, seeds: &[&Node]) -> Node {
    ready(builder(name, seeds).security(authority.security(name, VALID))).await
}

/// Milliseconds from the start of each of some nodes until it is ready, and microseconds from each of some writes on one
/// linked node to the event on another. Writes are spread over time: a flood that pauses would hide.
async fn times(authority: &Authority, a: &Node, b: &Node, round: &str) -> (Vec<f64>, Vec<f64>) {
    let mut starts = Vec::new();
    for i in 0..NODES {
        let begin = Instant::now();
        let node = start(authority, &format!("{round}-{i}"), &[a]).await;
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        node.shutdown().await;
    }
    let mut watch = b.watch_with("k", WatchOptions::new().without_current());
    let mut writes = Vec::new();
    for i in 0..WRITES {
        let begin = Instant::now();
        a.put("k", value(i as u64)).expect("acceptable");
        watch.next().await.expect("it is open");
        writes.push(begin.elapsed().as_nanos() as f64 / 1e3);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (starts, writes)
}

/// 1,000 first packets a second to each of two linked nodes, from 200 addresses, and 48 peers with valid certificates
/// that never greet.
pub(crate) fn strangers() {
    runtime().block_on(async {
        let authority = Authority::new("strangers");
        let a = start(&authority, "a", &[]).await;
        let b = start(&authority, "b", &[&a]).await;
        let mut table =
            Table::new("node-strangers", "Members while strangers are in the way, and without them");
        let (starts, writes) = times(&authority, &a, &b, "quiet").await;
        let [ready_quiet, ..] = table.quantiles("start to ready, quiet", "tidings", "ms", starts);
        let [put_quiet, put_quiet_p99, _] = table.quantiles("put to event, quiet", "tidings", "us", writes);
        let mut sources = addresses(1, 199);
        sources.push(Ipv4Addr::LOCALHOST);
        let floods = [&a, &b].map(|node| Flood::new(node.addr(), &sources));
        floods.iter().for_each(|flood| flood.set_per_second(1_000));
        let silent = SilentMembers::new(&authority, &a, &addresses(2, 1), 48);
        while silent.shut_out() == 0 {
            tokio::task::yield_now().await;
        }
        let (starts, writes) = times(&authority, &a, &b, "flood").await;
        let longest = starts.iter().copied().fold(0.0, f64::max);
        let [ready, ..] = table.quantiles("start to ready, flood", "tidings", "ms", starts);
        table.row("start to ready, flood, longest", "tidings", "ms", Some(2_000.0), vec![longest]);
        let [put, put_p99, _] = table.quantiles("put to event, flood", "tidings", "us", writes);
        table.row("start to ready, flood in quiet, p50", "tidings", "x", None, vec![ready / ready_quiet]);
        table.row("put to event, flood in quiet, p50", "tidings", "x", Some(2.0), vec![put / put_quiet]);
        table.row("put to event, flood in quiet, p99", "tidings", "x", None, vec![put_p99 / put_quiet_p99]);
        drop((floods, silent));
        table.save();
        tokio::join!(a.shutdown(), b.shutdown());
    });
}
