//! Measures typed views beside what they are built on.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidings::{Live, Map, Node, Store, WatchOptions};
use tidings_benches::runtime;
use tidings_benches::table::{Table, quantiles};
use tokio::runtime::Runtime;

use crate::node::start;
use crate::per_step;

/// Keys of each map that is read.
const FEW: usize = 1_000;
const MANY: usize = 10_000;
const READS: u64 = 1_000_000;

/// What is read.
struct Lists {
    node: Node,
    map: Map<Vec<u32>>,
    /// Without the prefix, and with it.
    keys: Vec<[String; 2]>,
}

impl Lists {
    fn new(node: &Node, prefix: &str, count: usize) -> Self {
        let map = node.map::<Vec<u32>>(prefix);
        let keys: Vec<[String; 2]> = (0..count)
            .map(|i| format!("{i:018}"))
            .map(|key| [key.clone(), format!("{prefix}{key}")])
            .collect();
        keys.iter().for_each(|[key, _]| _ = map.put(key, &(1_000..1_020).collect()).expect("acceptable"));
        Self { node: node.view(), map, keys }
    }

    /// Nanoseconds of a raw read and of a typed one, each by so many threads at once.
    fn reads(&self, threads: usize) -> [f64; 2] {
        let at = |i: u64| i as usize * 7_919 % self.keys.len();
        let raw = |i: u64| _ = black_box(self.node.get(&self.keys[at(i)][1]));
        let typed = |i: u64| _ = black_box(self.map.get(&self.keys[at(i)][0]));
        [by_all(threads, raw), by_all(threads, typed)]
    }
}

/// Nanoseconds of a read, by so many threads at once.
fn by_all(threads: usize, read: impl Fn(u64) + Sync) -> f64 {
    per_step(READS, || {
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| _ = scope.spawn(|| (0..READS).for_each(&read)));
        });
    })
}

/// Writes to other keys while something runs: one after each pause, or without pause.
fn while_written<T>(node: &Node, pause: Option<Duration>, run: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                node.put(format!("elsewhere/{:018}", i % FEW as u64), "value").expect("acceptable");
                pause.into_iter().for_each(std::thread::sleep);
            }
        });
        let result = run();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

/// Typed reads beside raw ones, and loads of a live value beside those of a bare pointer.
pub(crate) fn views() {
    const ROUNDS: usize = 5;
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    let (few, many) = (Lists::new(&node, "lists/", FEW), Lists::new(&node, "many/", MANY));
    let mut table = Table::new("node-views", "Typed views: one of 1,000 keys, and a live value");
    table.note("Keys of 24 bytes with their prefix, values of 101 bytes of JSON: a list of 20 numbers. Writers write 1,000 other keys in turn.");
    let rounds = |reads: &dyn Fn() -> [f64; 2]| -> [Vec<f64>; 2] {
        let (raw, typed) = (0..ROUNDS).map(|_| reads().into()).unzip();
        [raw, typed]
    };
    let each_ms = Some(Duration::from_millis(1));
    let cases = [
        ("", Some(1.5), rounds(&|| few.reads(1))),
        (
            ", a write elsewhere each ms",
            Some(1.5),
            rounds(&|| while_written(&node, each_ms, || few.reads(1))),
        ),
        (", writes elsewhere without pause", None, rounds(&|| while_written(&node, None, || few.reads(1)))),
        (", of 10,000 keys", None, rounds(&|| many.reads(1))),
        (", by 4 threads", None, rounds(&|| few.reads(4))),
    ];
    let ratios = |over: &[f64], under: &[f64]| over.iter().zip(under).map(|(a, b)| a / b).collect();
    for (case, target, [raw, typed]) in &cases {
        table.row(&format!("typed get, in raw gets{case}"), "tidings", "x", *target, ratios(typed, raw));
    }
    let [bare, load, full] = loads(&runtime, &node);
    table.row("load of a live value, in bare loads", "tidings", "x", Some(1.5), ratios(&load, &bare));
    for (case, _, [raw, typed]) in cases {
        table.row(&format!("raw get{case}"), "tidings", "ns", None, raw);
        table.row(&format!("typed get{case}"), "tidings", "ns", None, typed);
    }
    table.row("load", "ArcSwap", "ns", None, bare);
    table.row("load of a live value", "tidings", "ns", None, load);
    table.row("load of a live value, to keep", "tidings", "ns", None, full);
    table.save();
    runtime.block_on(node.shutdown());
}

/// Nanoseconds of a load of a bare pointer, of a live value, and of one that is kept.
fn loads(runtime: &Runtime, node: &Node) -> [Vec<f64>; 3] {
    const LOADS: u64 = 20_000_000;
    node.put("app/port", "80").expect("acceptable");
    let live: Live<BTreeMap<String, u32>> =
        runtime.block_on(Live::builder(node, "app/").start()).expect("acceptable");
    let bare = ArcSwap::new(Arc::new(BTreeMap::from([("port".to_owned(), 80_u32)])));
    let mut figures: [Vec<f64>; 3] = Default::default();
    for _ in 0..5 {
        figures[0].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(bare.load().len()))));
        figures[1].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(live.load().len()))));
        figures[2].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(live.load_full().len()))));
    }
    figures
}

/// From a put on one node until another node's live value has it, beside the watch that both are built on.
pub(crate) fn changes() {
    const BLOCKS: usize = 11;
    const PUTS: usize = 300;
    let runtime = runtime();
    let mut table = Table::new("node-changes", "From a put on one node to another node's live value");
    table.note("Two nodes in this process. Blocks of 300 puts, one after the other has arrived, in turn for a watch and for a live value of 10 keys.");
    let mut figures: [Vec<f64>; 2] = Default::default();
    runtime.block_on(async {
        let a = start("a", &[]).await;
        let b = start("b", &[&a]).await;
        (0..10).for_each(|i| _ = a.put(format!("app/f{i}"), "0").expect("acceptable"));
        let mut live: Live<BTreeMap<String, u32>> =
            Live::builder(&b, "app/").start().await.expect("acceptable");
        while live.load().len() < 10 {
            live.changed().await.expect("the node lives");
        }
        let mut watch = b.watch_with("other/", WatchOptions::new().without_current());
        for block in 0..BLOCKS {
            let [mut by_watch, mut by_live] = [Vec::new(), Vec::new()];
            for i in 1..=PUTS {
                let number = (block * PUTS + i) as u32;
                let began = Instant::now();
                a.put("other/f0", number.to_string()).expect("acceptable");
                watch.next().await.expect("the node lives");
                by_watch.push(began.elapsed().as_nanos() as f64 / 1e3);
                let began = Instant::now();
                a.put("app/f0", number.to_string()).expect("acceptable");
                while live.load()["f0"] != number {
                    live.changed().await.expect("the node lives");
                }
                by_live.push(began.elapsed().as_nanos() as f64 / 1e3);
            }
            figures[0].push(quantiles(by_watch)[0]);
            figures[1].push(quantiles(by_live)[0]);
        }
        b.shutdown().await;
        a.shutdown().await;
    });
    let [watch, live] = figures;
    let ratios = live.iter().zip(&watch).map(|(live, watch)| live / watch).collect();
    table.row("put to changed(), in puts to watch", "tidings", "x", Some(1.5), ratios);
    table.row("put to watch, median", "tidings", "µs", None, watch);
    table.row("put to changed(), median", "tidings", "µs", None, live);
    table.save();
}
