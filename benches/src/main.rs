//! Measures the core and prints it beside a rival in the same run.
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chitchat::{Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig};
use crdts::CmRDT;
use merkle_search_tree::MerkleSearchTree;
use merkle_search_tree::diff::diff;
use tidings::core::Input;
use tidings::sim::Sim;
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::Table;
use tidings_benches::{Pair, at, filled, key, replica, resident, sized, value};

const KEYS: u64 = 100_000;
const REPETITIONS: usize = 5;

mod disk;
mod flags;
mod leaders;
mod members;
mod node;
mod reconcile_rs;
mod report;
mod spread;
mod strangers;
mod views;

/// A report's name and its parts.
type Report = (&'static str, &'static [(&'static str, fn())]);

const REPORTS: [Report; 7] = [
    (
        "core",
        &[
            ("memory", memory),
            ("digests", digests),
            ("puts", puts),
            ("merges", merges),
            ("reconciles", reconciles),
            ("simulator", simulator),
            ("origins", tidings_benches::history::origins),
        ],
    ),
    ("node", node::PARTS),
    ("flags", flags::PARTS),
    ("members", members::PARTS),
    ("disk", disk::PARTS),
    ("leaders", leaders::PARTS),
    ("spread", spread::PARTS),
];

fn main() -> ExitCode {
    tidings_benches::table::start();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &arguments[..]
        && first == members::NODE
    {
        return members::node(rest);
    }
    if let [first, rest @ ..] = &arguments[..]
        && first == leaders::NODE
    {
        return leaders::node(rest);
    }
    if let [first, rest @ ..] = &arguments[..]
        && first == "report"
    {
        return report::report(rest);
    }
    let report = arguments.first().and_then(|name| REPORTS.iter().find(|(report, _)| report == name));
    let wanted = arguments.get(1).map(String::as_str);
    let parts = report.map_or(&[][..], |(_, parts)| parts);
    let is_wanted = |part: &&(&str, fn())| wanted.is_none_or(|wanted| wanted == part.0);
    let takes_sizes = wanted == Some("last");
    if arguments.len() > if takes_sizes { 3 } else { 2 } || parts.iter().filter(is_wanted).count() == 0 {
        for (report, parts) in REPORTS {
            let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
            eprintln!("usage: tidings-benches {report} [{}]", names.join(" | "));
        }
        eprintln!("usage: tidings-benches report [--full] [--only NAME]");
        return ExitCode::from(2);
    }
    parts.iter().filter(is_wanted).for_each(|(_, run)| run());
    ExitCode::SUCCESS
}

/// Nanoseconds per step.
fn per_step(steps: u64, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as f64 / steps as f64
}

fn rival() -> Chitchat {
    let address = ([127, 0, 0, 1], 1).into();
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new("bench", 1, address),
        cluster_id: "bench".to_owned(),
        gossip_interval: Duration::from_secs(1),
        listen_addr: address,
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: Duration::from_secs(3_600),
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: chitchat::ProtocolVersion::V0,
    };
    let (_, seeds) = tokio::sync::watch::channel(HashSet::new());
    Chitchat::with_chitchat_id_and_seeds(config, seeds, Vec::new())
}

fn puts() {
    let mut table =
        Table::new("core-puts", "Reading and writing in the core, 100 k keys of 24 bytes, values of 100");
    table.note("The core alone: one thread, no lock, no network, no index for readers. crdts is its Map of MVReg with one actor, as its documentation has it: each write reads the context first.");
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let values: Vec<Vec<u8>> = (0..KEYS).map(value).collect();
    let texts: Vec<String> = values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    let shuffled: Vec<usize> = (0..KEYS).map(|i| (i * 7_919 % KEYS) as usize).collect();
    let mut figures: [Vec<f64>; 7] = Default::default();
    for repetition in 0..REPETITIONS {
        let mut ours = replica(repetition as u64);
        figures[0].push(per_step(KEYS, || {
            for (i, key) in keys.iter().enumerate() {
                ours.put(at(i as u64), key, &values[i]).expect("acceptable");
            }
        }));
        let mut theirs = rival();
        figures[1].push(per_step(KEYS, || {
            for (key, text) in keys.iter().zip(&texts) {
                theirs.self_node_state().set(key, text);
            }
        }));
        figures[2].push(per_step(KEYS, || {
            for (step, i) in shuffled.iter().enumerate() {
                ours.put(at(KEYS + step as u64), &keys[*i], &values[step]).expect("acceptable");
            }
        }));
        figures[3].push(per_step(KEYS, || {
            for (step, i) in shuffled.iter().enumerate() {
                theirs.self_node_state().set(&keys[*i], &texts[step]);
            }
        }));
        figures[4].push(per_step(KEYS, || {
            for i in &shuffled {
                std::hint::black_box(ours.get(at(2 * KEYS), &keys[*i]));
            }
        }));
        let mut map: crdts::Map<String, crdts::MVReg<Vec<u8>, u64>, u64> = crdts::Map::new();
        let mut write = |key: &String, value: &Vec<u8>| {
            let context = map.get(key).derive_add_ctx(1);
            let update =
                map.update(key.clone(), context, |register, context| register.write(value.clone(), context));
            map.apply(update);
        };
        figures[5]
            .push(per_step(KEYS, || keys.iter().zip(&values).for_each(|(key, value)| write(key, value))));
        figures[6].push(per_step(KEYS, || {
            shuffled.iter().enumerate().for_each(|(step, i)| write(&keys[*i], &values[step]));
        }));
    }
    let [new, new_rival, over, over_rival, get, new_crdts, over_crdts] = figures;
    let sets = [
        ("put, a new key", new, new_rival, new_crdts),
        ("put, overwrite at random", over, over_rival, over_crdts),
    ];
    for (name, ours, theirs, map) in sets {
        let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        table.row(name, "tidings", "ns", None, ours);
        table.row(name, "chitchat", "ns", None, theirs);
        table.row(name, "crdts", "ns", None, map);
        table.row(&format!("{name}, in chitchat's"), "tidings", "x", Some(0.7), ratios);
    }
    table.row("get", "tidings", "ns", None, get);
    table.save();
}

/// What a second replica spends on merging what the first one put: as it comes, a hundred rows at a time, and as one
/// backlog, whose rows are remembered beyond the vector until its end.
fn merges() {
    let mut table =
        Table::new("core-merges", "Merging the rows of another replica, beside an own put of a new key");
    table.note("Puts and merges take turns: a hundred of each, or all of each where it is one backlog. Keys and values are made before.");
    let rows: Vec<(String, Vec<u8>)> = (0..KEYS).map(|i| (key(i), value(i))).collect();
    for (name, group) in [("live", 100), ("of one backlog", rows.len())] {
        let pairs: Vec<[f64; 2]> =
            (0..REPETITIONS as u64).map(|repetition| merging(repetition, &rows, group)).collect();
        let figures = |of: fn(&[f64; 2]) -> f64| pairs.iter().map(of).collect();
        table.row(&format!("put of a new key, {name}"), "tidings", "ns", None, figures(|[put, _]| *put));
        table.row(
            &format!("merging a remote row, {name}"),
            "tidings",
            "ns",
            None,
            figures(|[_, merge]| *merge),
        );
        let name = format!("merging a remote row, {name}, in puts");
        table.row(&name, "tidings", "x", Some(1.0), figures(|[put, merge]| merge / put));
    }
    table.save();
}

/// Nanoseconds for a put, and for merging it elsewhere.
fn merging(repetition: u64, rows: &[(String, Vec<u8>)], group: usize) -> [f64; 2] {
    let mut pair = Pair::new(replica(repetition), replica(repetition + 100), at(0));
    pair.run(false);
    let [mut putting, mut merging] = [Duration::ZERO; 2];
    for (number, group) in rows.chunks(group).enumerate() {
        let start = Instant::now();
        for (key, value) in group {
            pair.ends[0].put(at(number as u64), key, value).expect("acceptable");
        }
        putting += start.elapsed();
        while let Some(output) = pair.ends[0].poll() {
            let tidings::core::Output::Stream(id, lane, bytes) = output else { continue };
            pair.ends[0].handle(at(KEYS), Input::Drained(id, lane, bytes.len()));
            let start = Instant::now();
            pair.ends[1].handle(at(KEYS), Input::Stream(id, lane, &bytes));
            merging += start.elapsed();
        }
    }
    assert_eq!(pair.ends[1].len(), rows.len(), "everything was merged");
    [putting, merging].map(|time| time.as_nanos() as f64 / rows.len() as f64)
}

fn memory() {
    const MANY: u64 = 1_000_000;
    let before = resident();
    let replica = filled(1, MANY);
    let bytes = resident().saturating_sub(before);
    let mut table = Table::new("core-memory", "Resident memory at 1 M keys of 24 bytes, values of 100");
    let each = |bytes: u64| vec![bytes as f64 / MANY as f64];
    table.row("a key", "tidings", "bytes", Some(250.0), each(bytes));
    assert_eq!(replica.len() as u64, MANY, "all are there");
    let before = resident();
    let mut theirs = rival();
    for i in 0..MANY {
        theirs.self_node_state().set(key(i), String::from_utf8_lossy(&value(i)));
    }
    let bytes = resident().saturating_sub(before);
    table.row("a key", "chitchat", "bytes", None, each(bytes));
    // Fewer: a million takes minutes.
    let before = resident();
    let map = reconcile_rs::filled(KEYS, 1_000);
    let bytes = resident().saturating_sub(before) as f64 / KEYS as f64;
    table.row("a key, at 100 k keys", "reconcile", "bytes", None, vec![bytes]);
    table.note("All are kept until the end, so that none uses pages that another one freed. reconcile 0.5 is filled in groups of 1,000 keys, without being sent to anybody; for each group it copies those nodes of its trees that the group changes, and what was freed of them is in its figure.");
    drop((replica, theirs, map));
    table.save();
}

/// The digest alone: built anew for a million rows, and compared when both sides agree.
fn digests() {
    const MANY: u64 = 1_000_000;
    let mut pair = Pair::new(filled(1, MANY), replica(2), at(2 * MANY));
    let mut building = Vec::new();
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        pair.ends[0].rebuild_digest();
        building.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut table = Table::new("core-digests", "The digest");
    table.row("1 M rows, built anew", "tidings", "ms", Some(500.0), building);
    let mut few = filled(3, KEYS);
    let churning = (0..REPETITIONS).map(|_| per_step(KEYS, || few.churn_digest())).collect();
    table.row("upkeep for an overwrite", "tidings", "ns", Some(200.0), churning);
    pair.run(false);
    let mut check = None;
    while check.is_none() {
        pair.ends[0].handle(at(3 * MANY), Input::Wake);
        while let Some(output) = pair.ends[0].poll() {
            if let tidings::core::Output::Datagram(_, bytes) = output {
                check = Some(bytes);
            }
        }
    }
    let check = check.expect("the loop ends with one");
    let mut checking = Vec::new();
    for _ in 0..REPETITIONS {
        checking.push(per_step(10_000, || {
            for _ in 0..10_000 {
                pair.ends[1].handle(at(3 * MANY), Input::Datagram(tidings::core::LinkId::new(1), &check));
                while std::hint::black_box(pair.ends[1].poll()).is_some() {}
            }
        }));
    }
    table.row("a check in sync, answered", "tidings", "ns", Some(5_000.0), checking);
    table.save();
}

fn reconciles() {
    let mut table =
        Table::new("core-reconciles", "What a comparison costs besides the rows, both directions");
    table.note("The bound is what any method has to send to find differences among 64-bit hashes of rows: 8 bytes for each. What is above it buys few round trips and exactness.");
    table.note("merkle-search-tree as its documentation has it: one side sends the key ranges and hashes of all its pages, the other answers with the ranges that differ, and is sent what lies in them; rows in them that do not differ are counted, those that do are not. That is one direction of the two. Version 0.8 answers with ranges that hold most of the rows; what the pages alone cost is shown too.");
    table.note("reconcile 0.5: the payloads of the datagrams of two maps on a wire that loses nothing, without a cluster key, from the round that the one without the changes begins until both have been silent for 200 ms, less what the changed rows take in a message. Rows that were sent although they do not differ are counted. Its round trips are half the longest chain of datagrams that waited for each other. After it received rows a map compares once more, after its repair interval, here 50 ms: that is in them. An answer that comes before the sender has set its repair timer does not stop it, and the check is sent once more.");
    let mut plot = Plot::new("Bytes of a comparison besides the rows", Axis::log("keys"), Axis::log("bytes"));
    let mut curves: [Vec<(f64, f64)>; 3] = Default::default();
    let (mut rival_curve, mut reconcile_curve) = (Vec::new(), Vec::new());
    for keys in [10_000, 100_000, 1_000_000] {
        let rival = rival_comparisons(keys, [1, 10, 1_000]);
        let reconcile = reconcile_rs::comparisons(keys, &[1, 10, 1_000], sized(1, REPETITIONS));
        rival_curve.push((keys as f64, rival[0][0]));
        let mut pair = Pair::new(filled(1, keys), replica(2), at(2 * keys));
        let start = Instant::now();
        pair.run(false);
        let joined = start.elapsed().as_secs_f64();
        let name = format!("{} k keys", keys / 1_000);
        table.row(&format!("{name}, joining blank, both sides"), "tidings", "s", None, vec![joined]);
        // The first tick still claims what the session taught.
        for _ in 0..2 {
            pair.wake(Duration::from_secs(2));
            pair.run(false);
        }
        pair.wake(Duration::from_secs(2));
        let crossed = pair.run(false).bytes as f64 / 2.0;
        table.row(&format!("{name}, a check in sync"), "tidings", "bytes", Some(64.0), vec![crossed]);
        table.row(&format!("{name}, a check in sync"), "reconcile", "bytes", None, reconcile.equal);
        let differing = [1, 10, 1_000].into_iter().zip(reconcile.differing).enumerate();
        for (i, (differences, [their_bytes, their_trips])) in differing {
            let now = at(3 * keys);
            pair.ends
                .iter_mut()
                .for_each(|end| end.handle(now, Input::LinkDown(tidings::core::LinkId::new(1))));
            for i in 0..differences {
                let key = key(i * 37 + differences);
                pair.ends[1].put(now, &key, b"changed on one side").expect("acceptable");
            }
            // As if the follower's position were lost: blank logs force a comparison.
            let crossed = compare(&mut pair);
            let own = (crossed.bytes - crossed.rows) as f64;
            let kib = match differences {
                1 => 1.0,
                10 => 4.0,
                _ => 280.0,
            };
            let name = format!("{name}, {differences} differences");
            let target = (keys == 1_000_000).then_some(kib * 1_024.0);
            table.row(&name, "tidings", "bytes", target, vec![own]);
            table.row(&name, "bound", "bytes", None, vec![8.0 * differences as f64]);
            let trips = crossed.flights as f64 / 2.0;
            table.row(&name, "tidings", "round trips", Some(4.0), vec![trips]);
            table.row(&name, "merkle-search-tree", "bytes", None, vec![rival[i][1]]);
            table.row(&name, "its pages alone", "bytes", None, vec![rival[i][0]]);
            let bytes = table.row(&name, "reconcile", "bytes", None, their_bytes);
            table.row(&name, "reconcile", "round trips", None, their_trips);
            if differences == 1 {
                reconcile_curve.push((keys as f64, bytes));
            }
            curves[i].push((keys as f64, own));
        }
    }
    for (differences, curve) in [1, 10, 1_000].into_iter().zip(curves) {
        plot.line(&format!("tidings, differences: {differences}"), curve);
    }
    plot.line("merkle-search-tree, pages", rival_curve);
    plot.line("reconcile, differences: 1", reconcile_curve);
    plot.save("core-reconciles");
    table.save();
}

/// The bytes with which `merkle-search-tree` finds so many differences: those of its pages, and all.
fn rival_comparisons(keys: u64, differences: [u64; 3]) -> [[f64; 2]; 3] {
    /// Of a key, a page's hash, and a row.
    const BYTES: [usize; 3] = [24, 16, 124];
    let mut theirs = MerkleSearchTree::default();
    let mut values: BTreeMap<String, Vec<u8>> = (0..keys).map(|i| (key(i), value(i))).collect();
    values.iter().for_each(|(key, value)| theirs.upsert(key.clone(), value));
    theirs.root_hash();
    let mut ours = MerkleSearchTree::default();
    values.iter().for_each(|(key, value)| ours.upsert(key.clone(), value));
    differences.map(|differences| {
        let mut changed = BTreeSet::new();
        for i in 0..differences {
            let key = key(i * 37 + differences);
            theirs.upsert(key.clone(), &b"changed on one side".to_vec());
            changed.insert(key);
        }
        theirs.root_hash();
        ours.root_hash();
        let told = theirs.serialise_page_ranges().expect("it is hashed");
        let pages = told.len();
        let wanted = diff(ours.serialise_page_ranges().expect("it is hashed"), told);
        let mut besides = 0;
        for range in &wanted {
            let inside = values.range(range.start().clone()..=range.end().clone());
            besides += inside.filter(|(key, _)| !changed.contains(*key)).count();
        }
        let pages = pages * (2 * BYTES[0] + BYTES[1]);
        let bytes = pages + wanted.len() * 2 * BYTES[0] + besides * BYTES[2];
        for key in changed {
            let value = b"changed on one side".to_vec();
            ours.upsert(key.clone(), &value);
            values.insert(key, value);
        }
        [pages as f64, bytes as f64]
    })
}

/// Reconciles over a link on which no live frame is carried.
fn compare(pair: &mut Pair) -> tidings_benches::Crossed {
    for end in &mut pair.ends {
        end.handle(at(1), Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS));
        end.want_repair(tidings::core::LinkId::new(1));
    }
    pair.run(true)
}

fn simulator() {
    let mut table = Table::new("core-simulator", "The simulator, a write a second");
    for (nodes, seconds) in [(5, 600), (100, 60)] {
        let mut sim = Sim::new(1).without_checks().nodes(nodes);
        let start = Instant::now();
        for second in 0..seconds {
            sim.node(second % nodes).put(key(second as u64 % 50), "value").expect("acceptable");
            sim.run_for(Duration::from_secs(1));
        }
        let took = start.elapsed().as_secs_f64();
        let name = format!("{nodes} nodes, {seconds} s");
        let target = if nodes == 5 { 1.2 } else { 60.0 };
        table.row(&format!("{name}, take"), "tidings", "s", Some(target), vec![took]);
        table.rate(&format!("{name}, times real time"), "tidings", "x", None, vec![seconds as f64 / took]);
    }
    table.save();
}
