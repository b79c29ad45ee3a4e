//! Measures the disk beside a bare append with `fdatasync`, in the same run and the same folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fjall::PersistMode;
use redb::ReadableDatabase;
use tidings::{Node, WriteError};
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::Table;
use tidings_benches::{builder, key, runtime, sized, value};
use tidings_proptest::{Folder, number};
use tokio::runtime::Runtime;

pub(crate) const PARTS: &[(&str, fn())] = &[
    ("engines", engines),
    ("single", single),
    ("group", group),
    ("unawaited", unawaited),
    ("opening", opening),
    ("room", room),
];

const ROUNDS: u64 = 1_000;
const MIB: f64 = 1_048_576.0;
/// How long the room is watched, unless `TIDINGS_BENCH_SECONDS` says otherwise.
const ROOM_SECONDS: u64 = 600;

/// A folder of its own, below `TIDINGS_BENCH_DIR` or where temporary files are.
fn folder() -> Folder {
    let below = std::env::var_os("TIDINGS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    Folder::below(&below)
}

fn start(runtime: &Runtime, dir: Option<&Path>) -> Node {
    let builder = builder("a", &[]);
    let builder = if let Some(dir) = dir { builder.data_dir(dir) } else { builder };
    runtime.block_on(builder.start()).expect("it starts")
}

fn median(mut micros: Vec<f64>) -> f64 {
    micros.sort_by(f64::total_cmp);
    micros[micros.len() / 2]
}

fn each(rounds: u64, mut step: impl FnMut(u64)) -> f64 {
    let time = |i| {
        let begin = Instant::now();
        step(i);
        begin.elapsed().as_nanos() as f64 / 1e3
    };
    median((0..rounds).map(time).collect())
}

/// What one durable put writes at the least: its key and its value.
fn bare(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("bare")).expect("it can be made");
    let bytes = [key(1).into_bytes(), value(1)].concat();
    each(ROUNDS, |_| {
        file.write_all(&bytes).expect("there is room");
        file.sync_data().expect("it syncs");
    })
}

/// Both engines with one row and some claims in a synced transaction, empty and with 100,000 keys.
fn engines() {
    const ROWS: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("rows");
    let folder = folder();
    let redb = redb::Database::create(folder.at("redb")).expect("it can be made");
    let fjall = fjall::Database::builder(folder.at("fjall")).open().expect("it can be made");
    let rows = fjall.keyspace("rows", fjall::KeyspaceCreateOptions::default).expect("it can be made");
    let in_redb = |from: u64, count: u64| {
        let transaction = redb.begin_write().expect("it is open");
        {
            let mut table = transaction.open_table(ROWS).expect("it is there");
            for i in from..from + count {
                table.insert(key(i).as_bytes(), &value(i)[..]).expect("there is room");
            }
            table.insert(&b"claims"[..], &[0; 100][..]).expect("there is room");
        }
        transaction.commit().expect("there is room");
    };
    let in_fjall = |from: u64, count: u64| {
        let mut batch = fjall.batch().durability(Some(PersistMode::SyncData));
        (from..from + count).for_each(|i| batch.insert(&rows, key(i), value(i)));
        batch.insert(&rows, "claims", [0; 100]);
        batch.commit().expect("there is room");
    };
    let mut table =
        Table::new("disk-engines", "Two engines, a synced transaction of rows and 100 bytes of claims");
    for loaded in [0, 100_000] {
        let begin = Instant::now();
        (0..loaded / 5_000).for_each(|i| in_redb(i * 5_000, 5_000));
        let redb_took = begin.elapsed();
        let begin = Instant::now();
        (0..loaded / 5_000).for_each(|i| in_fjall(i * 5_000, 5_000));
        if loaded > 0 {
            let took = [("redb", redb_took), ("fjall", begin.elapsed())];
            for (who, took) in took {
                table.row("loading 100 k", who, "s", None, vec![took.as_secs_f64()]);
            }
        }
        let floor = bare(&folder.0);
        for count in [1, 100] {
            let redb = each(ROUNDS / 2, |i| in_redb(i * 7_919 % 100_000, count));
            let fjall = each(ROUNDS / 2, |i| in_fjall(i * 7_919 % 100_000, count));
            let name = format!("{count} rows among {loaded}");
            let times = [("append and fdatasync", floor), ("redb", redb), ("fjall", fjall)];
            for (who, micros) in times {
                table.row(&name, who, "us", None, vec![micros]);
            }
        }
    }
    let begin = Instant::now();
    let transaction = redb.begin_read().expect("it is open");
    let all = transaction.open_table(ROWS).expect("it is there");
    let count = redb::ReadableTable::iter(&all).expect("it is open").count();
    let redb_took = begin.elapsed();
    let begin = Instant::now();
    let same = rows.iter().filter_map(|guard| guard.into_inner().ok()).count();
    assert_eq!(count, same, "both have the same");
    let took = [("redb", redb_took), ("fjall", begin.elapsed())];
    for (who, took) in took {
        table.row("reading all", who, "s", None, vec![took.as_secs_f64()]);
    }
    table.save();
}

/// One writer who waits for each of its puts, with a new directory and after a restart.
fn single() {
    let (folder, runtime) = (folder(), runtime());
    let mut table = Table::new("disk-single", "One writer who waits until each put is durable, p50");
    for (name, in_appends) in [
        ("put and durable", "put and durable, in appends"),
        ("the same, restarted", "the same, restarted, in appends"),
    ] {
        let node = start(&runtime, Some(&folder.at("a")));
        let (mut floors, mut puts, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            let floor = bare(&folder.0);
            let put = |i| runtime.block_on(node.put(key(i), value(i)).expect("acceptable").durable());
            let ours = each(ROUNDS, |i| put(i).expect("it is safe"));
            floors.push(floor);
            puts.push(ours);
            ratios.push(ours / floor);
        }
        table.row("124 bytes", "append and fdatasync", "us", None, floors);
        table.row(name, "tidings", "us", None, puts);
        table.row(in_appends, "tidings", "x", Some(1.5), ratios);
        runtime.block_on(node.shutdown());
    }
    table.save();
}

/// A hundred writers who wait, beside one.
fn group() {
    let (folder, runtime) = (folder(), runtime());
    let node = start(&runtime, Some(&folder.at("a")));
    let rate = |writers: u64, each: u64| {
        let begin = Instant::now();
        let write = |writer| {
            let node = node.clone();
            runtime.spawn(async move {
                for i in 0..each {
                    let receipt = node.put(key(writer * each + i), value(i)).expect("acceptable");
                    receipt.durable().await.expect("it is safe");
                }
            })
        };
        let tasks: Vec<_> = (0..writers).map(write).collect();
        tasks.into_iter().for_each(|task| runtime.block_on(task).expect("it ends"));
        (writers * each) as f64 / begin.elapsed().as_secs_f64()
    };
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..5 {
        let (one, many) = (rate(1, 2_000), rate(100, 200));
        rates.iter_mut().zip([one, many, many / one]).for_each(|(kept, rate)| kept.push(rate));
    }
    let mut table =
        Table::new("disk-group", "A hundred writers who wait until each put is durable, beside one");
    let [one, many, ratios] = rates;
    table.rate("one writer", "tidings", "/s", None, one);
    table.rate("a hundred", "tidings", "/s", None, many);
    table.rate("a hundred, in one's", "tidings", "x", Some(10.0), ratios);
    table.save();
    runtime.block_on(node.shutdown());
}

/// Puts that nobody waits for, with a disk and without.
fn unawaited() {
    let mut table = Table::new("disk-unawaited", "Puts that nobody waits for, with a disk and without");
    for (name, keys, puts) in
        [("over 10,000 keys", 10_000, 1_000_000), ("on distinct keys", u64::MAX, 400_000)]
    {
        let puts = puts / sized(3, 1);
        let texts: Vec<String> = (0..keys.min(puts)).map(key).collect();
        let text = value(7);
        let rate = |dir: Option<&Path>| {
            let runtime = runtime();
            let node = start(&runtime, dir);
            let begin = Instant::now();
            for i in 0..puts {
                while let Err(WriteError::Busy) = node.put(&texts[(i % keys) as usize], &text) {
                    std::thread::yield_now();
                }
            }
            let rate = puts as f64 / begin.elapsed().as_secs_f64();
            runtime.block_on(node.shutdown());
            // Who frees hundreds of thousands of rows keeps whoever allocates waiting: that is over before the next.
            drop((runtime, node));
            rate
        };
        let mut rates: [Vec<f64>; 3] = Default::default();
        for _ in 0..5 {
            let folder = folder();
            let (memory, disk) = (rate(None), rate(Some(&folder.at("a"))));
            rates.iter_mut().zip([memory, disk, disk / memory]).for_each(|(kept, rate)| kept.push(rate));
        }
        let [memory, disk, ratios] = rates;
        table.rate(&format!("puts {name}, in memory"), "tidings", "/s", None, memory);
        table.rate(&format!("puts {name}, with a disk"), "tidings", "/s", None, disk);
        table.rate(&format!("puts {name}, share"), "tidings", "x", Some(0.7), ratios);
    }
    table.save();
}

/// Starting on a directory with many keys: everything readable, all indexes built.
fn opening() {
    let runtime = runtime();
    let mut table =
        Table::new("disk-opening", "Starting on a folder with many keys of 124 bytes, all indexes built");
    let mut curve = Vec::new();
    let sizes = [(1_000, None), (10_000, None), (100_000, Some(0.8)), (1_000_000, Some(3.5))];
    for (keys, target) in sizes.into_iter().take(sized(3, 4)) {
        let folder = folder();
        let node = start(&runtime, Some(&folder.0));
        for i in 0..keys {
            while let Err(WriteError::Busy) = node.put(key(i), value(i)) {
                std::thread::yield_now();
            }
        }
        runtime.block_on(node.shutdown());
        drop(node);
        let mut times = Vec::new();
        for _ in 0..5 {
            let begin = Instant::now();
            let node = start(&runtime, Some(&folder.0));
            let took = begin.elapsed().as_secs_f64();
            assert!(node.len() as u64 == keys && node.get(key(7)).is_some(), "it is all there");
            times.push(took);
            runtime.block_on(node.shutdown());
        }
        let name = format!("{} k keys", keys / 1_000);
        curve.push((keys as f64, table.row(&name, "tidings", "s", target, times)));
        table.row(
            &format!("{name}, on the disk"),
            "tidings",
            "MiB",
            None,
            vec![bytes(&folder.0) as f64 / MIB],
        );
    }
    let mut plot = Plot::new("Starting on a folder", Axis::log("keys"), Axis::log("seconds"));
    plot.line("tidings", curve);
    plot.save("disk-opening");
    table.save();
}

/// What a folder takes on the disk.
fn bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(path) else {
        return path.metadata().map_or(0, |file| file.blocks() * 512);
    };
    entries.flatten().map(|entry| bytes(&entry.path())).sum()
}

/// Constant overwriting, each round as durable as it can be.
fn room() {
    const KEYS: u64 = 200_000;
    let seconds = number("TIDINGS_BENCH_SECONDS");
    let time = Duration::from_secs(seconds.unwrap_or(sized(20, ROOM_SECONDS)));
    let (folder, runtime) = (folder(), runtime());
    let node = start(&runtime, Some(&folder.0));
    let (begin, mut last, mut most, mut puts) = (Instant::now(), Instant::now(), 0, 0_u64);
    while begin.elapsed() < time {
        for _ in 0..1_000 {
            puts += 1;
            let at = puts.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            _ = node.put(key(at % KEYS), value(puts));
        }
        // As fast as the disk takes it, rather than as memory does.
        let receipt = node.put("round", puts.to_string()).expect("acceptable");
        runtime.block_on(receipt.durable()).expect("it is safe");
        if last.elapsed() >= Duration::from_secs(1) {
            last = Instant::now();
            most = most.max(bytes(&folder.0));
        }
    }
    let live = node.status().store.map_or(0, |store| store.bytes);
    let limit = 3 * live + (128 << 20);
    let title = format!("Room on the disk while {} MiB are overwritten for {time:?}", live >> 20);
    let mut table = Table::new("disk-room", &title);
    table.row("most", "tidings", "MiB", Some(limit as f64 / MIB), vec![most as f64 / MIB]);
    table.row("at the end", "tidings", "MiB", None, vec![bytes(&folder.0) as f64 / MIB]);
    table.rate("puts", "tidings", "/s", None, vec![puts as f64 / begin.elapsed().as_secs_f64()]);
    table.save();
    runtime.block_on(node.shutdown());
}
