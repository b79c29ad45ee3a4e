//! Measures typed views beside what they are built on.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tidings::{Live, WatchOptions};
use tidings_benches::runtime;
use tidings_benches::table::{Table, quantiles};

use crate::node::start;
use crate::per_step;

/// Typed reads beside raw ones, and loads of a live value beside those of a bare pointer.
pub(crate) fn views() {
    const KEYS: usize = 1_000;
    const READS: u64 = 1_000_000;
    const LOADS: u64 = 20_000_000;
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    let map = node.map::<Vec<u32>>("lists/");
    let keys: Vec<String> = (0..KEYS).map(|i| format!("{i:018}")).collect();
    let whole: Vec<String> = keys.iter().map(|key| format!("lists/{key}")).collect();
    keys.iter().for_each(|key| _ = map.put(key, &(1_000..1_020).collect()).expect("acceptable"));
    node.put("app/port", "80").expect("acceptable");
    let live: Live<BTreeMap<String, u32>> =
        runtime.block_on(Live::builder(&node, "app/").start()).expect("acceptable");
    let bare = ArcSwap::new(Arc::new(BTreeMap::from([("port".to_owned(), 80_u32)])));
    let mut figures: [Vec<f64>; 5] = Default::default();
    for _ in 0..5 {
        let at = |i: u64| i as usize * 7_919 % KEYS;
        figures[0].push(per_step(READS, || (0..READS).for_each(|i| _ = black_box(node.get(&whole[at(i)])))));
        figures[1].push(per_step(READS, || (0..READS).for_each(|i| _ = black_box(map.get(&keys[at(i)])))));
        figures[2].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(bare.load().len()))));
        figures[3].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(live.load().len()))));
        figures[4].push(per_step(LOADS, || (0..LOADS).for_each(|_| _ = black_box(live.load_full().len()))));
    }
    let mut table = Table::new("node-views", "Typed views: one of 1,000 keys, and a live value");
    table.note("Keys of 24 bytes with their prefix, values of 101 bytes of JSON: a list of 20 numbers.");
    let ratios = |over: &[f64], under: &[f64]| over.iter().zip(under).map(|(a, b)| a / b).collect();
    table.row("typed get, in raw gets", "tidings", "x", Some(1.5), ratios(&figures[1], &figures[0]));
    table.row(
        "load of a live value, in bare loads",
        "tidings",
        "x",
        Some(1.5),
        ratios(&figures[3], &figures[2]),
    );
    let [raw, typed, bare, load, full] = figures;
    table.row("raw get", "tidings", "ns", None, raw);
    table.row("typed get", "tidings", "ns", None, typed);
    table.row("load", "ArcSwap", "ns", None, bare);
    table.row("load of a live value", "tidings", "ns", None, load);
    table.row("load of a live value, to keep", "tidings", "ns", None, full);
    table.save();
    runtime.block_on(node.shutdown());
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
