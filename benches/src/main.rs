//! Measures the core and prints it beside a rival in the same run.
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chitchat::{Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig};
use tidings::{Input, Sim};
use tidings_benches::{Pair, at, filled, key, replica, resident, value};

const KEYS: u64 = 100_000;
const REPETITIONS: usize = 5;

mod disk;
mod leaders;
mod members;
mod node;
mod report;
mod spread;

/// A report's name and its parts.
type Report = (&'static str, &'static [(&'static str, fn())]);

const REPORTS: [Report; 6] = [
    (
        "core",
        &[
            ("memory", memory),
            ("digests", digests),
            ("puts", puts),
            ("merges", merges),
            ("reconciles", reconciles),
            ("simulator", simulator),
        ],
    ),
    ("node", node::PARTS),
    ("members", members::PARTS),
    ("disk", disk::PARTS),
    ("leaders", leaders::PARTS),
    ("spread", spread::PARTS),
];

fn main() -> ExitCode {
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
        eprintln!("usage: tidings-benches report [--full] [--only PART]");
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

fn row(name: &str, unit: &str, mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let median = figures[figures.len() / 2];
    println!("{name:<44} {:>10.1} {median:>10.1} {:>10.1} {unit}", figures[0], figures[figures.len() - 1]);
    median
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
    println!("\n{KEYS} keys of 24 bytes, values of 100             min     median        max");
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let values: Vec<Vec<u8>> = (0..KEYS).map(value).collect();
    let texts: Vec<String> = values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    let shuffled: Vec<usize> = (0..KEYS).map(|i| (i * 7_919 % KEYS) as usize).collect();
    let mut figures: [Vec<f64>; 5] = Default::default();
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
    }
    let [new, new_rival, over, over_rival, get] = figures;
    let ours = row("put, a new key", "ns", new);
    let theirs = row("chitchat set, a new key", "ns", new_rival);
    println!("{:<44} {:>21.2}   (target: at most 0.7)", "  ratio", ours / theirs);
    let ours = row("put, overwrite at random", "ns", over);
    let theirs = row("chitchat set, overwrite at random", "ns", over_rival);
    println!("{:<44} {:>21.2}   (target: at most 0.7)", "  ratio", ours / theirs);
    row("get (the core's, not the node's)", "ns", get);
}

/// What a second replica spends on merging what the first one put: as it comes, a hundred rows a frame, and as one
/// backlog, whose rows are remembered beyond the vector until its end.
fn merges() {
    for (name, group) in [("merging a remote row, live", 100), ("merging a remote row, of one backlog", KEYS)]
    {
        let figures = (0..REPETITIONS as u64).map(|repetition| merging(repetition, group)).collect();
        row(name, "ns", figures);
    }
}

fn merging(repetition: u64, group: u64) -> f64 {
    let mut pair = Pair::new(replica(repetition), replica(repetition + 100), at(0));
    pair.run(false);
    let mut merging = Duration::ZERO;
    for from in (0..KEYS).step_by(usize::try_from(group).expect("few")) {
        for i in from..from + group {
            pair.ends[0].put(at(i), &key(i), &value(i)).expect("acceptable");
        }
        while let Some(output) = pair.ends[0].poll() {
            let tidings::Output::Stream(id, lane, bytes) = output else { continue };
            pair.ends[0].handle(at(KEYS), Input::Drained(id, lane, bytes.len()));
            let start = Instant::now();
            pair.ends[1].handle(at(KEYS), Input::Stream(id, lane, &bytes));
            merging += start.elapsed();
        }
    }
    assert_eq!(pair.ends[1].len() as u64, KEYS, "everything was merged");
    merging.as_nanos() as f64 / KEYS as f64
}

fn memory() {
    const MANY: u64 = 1_000_000;
    let before = resident();
    let replica = filled(1, MANY);
    let bytes = resident().saturating_sub(before);
    println!(
        "memory at {MANY} keys of 24 + 100 bytes: {} bytes a key resident (target: at most 250)",
        bytes / MANY
    );
    assert_eq!(replica.len() as u64, MANY, "all are there");
    drop(replica);
    let before = resident();
    let mut theirs = rival();
    for i in 0..MANY {
        theirs.self_node_state().set(key(i), String::from_utf8_lossy(&value(i)));
    }
    let bytes = resident().saturating_sub(before);
    println!("chitchat: {} bytes a key resident, on pages that were freed before in part", bytes / MANY);
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
    println!();
    row("digest of 1 M rows, built anew (target: 500)", "ms", building);
    let mut few = filled(3, KEYS);
    let churning = (0..REPETITIONS).map(|_| per_step(KEYS, || few.churn_digest())).collect();
    row("digest upkeep of an overwrite (target: 200)", "ns", churning);
    pair.run(false);
    let mut check = None;
    while check.is_none() {
        pair.ends[0].handle(at(3 * MANY), Input::Wake);
        while let Some(output) = pair.ends[0].poll() {
            if let tidings::Output::Datagram(_, bytes) = output {
                check = Some(bytes);
            }
        }
    }
    let check = check.expect("the loop ends with one");
    let mut checking = Vec::new();
    for _ in 0..REPETITIONS {
        checking.push(per_step(10_000, || {
            for _ in 0..10_000 {
                pair.ends[1].handle(at(3 * MANY), Input::Datagram(1, &check));
                while std::hint::black_box(pair.ends[1].poll()).is_some() {}
            }
        }));
    }
    row("a check in sync, answered (target: 5,000)", "ns", checking);
}

fn reconciles() {
    println!("\nreconcile, both directions, besides the rows: bytes, half round trips, (rows' bytes)");
    for keys in [10_000, 100_000, 1_000_000] {
        let mut pair = Pair::new(filled(1, keys), replica(2), at(2 * keys));
        let start = Instant::now();
        pair.run(false);
        let joined = start.elapsed();
        println!("{keys} keys: joining blank {:.2} s for both sides", joined.as_secs_f64());
        // The first tick still claims what the session taught.
        for _ in 0..2 {
            pair.wake(Duration::from_secs(2));
            pair.run(false);
        }
        pair.wake(Duration::from_secs(2));
        let crossed = pair.run(false);
        println!("  in sync: {} bytes for two checks (target: at most 64 each)", crossed.bytes);
        for differences in [1, 10, 1_000] {
            let now = at(3 * keys);
            pair.ends.iter_mut().for_each(|end| end.handle(now, Input::LinkDown(1)));
            for i in 0..differences {
                let key = key(i * 37 + differences);
                pair.ends[1].put(now, &key, b"changed on one side").expect("acceptable");
            }
            // As if the follower's position were lost: blank logs force a comparison.
            let crossed = compare(&mut pair);
            let own = crossed.bytes - crossed.rows;
            let target = match differences {
                1 => 1,
                10 => 4,
                _ => 280,
            };
            println!(
                "  {differences:>5} differences: {own:>8} bytes (target at 1 M: {target} KiB), {} half trips, ({})",
                crossed.flights, crossed.rows
            );
        }
    }
}

/// Reconciles over a link on which no live frame is carried.
fn compare(pair: &mut Pair) -> tidings_benches::Crossed {
    for end in &mut pair.ends {
        end.handle(at(1), Input::LinkUp(1));
        end.compare(1);
    }
    pair.run(true)
}

fn simulator() {
    println!();
    for (nodes, seconds) in [(5, 600), (100, 60)] {
        let mut sim = Sim::new(1).without_checks().nodes(nodes);
        let start = Instant::now();
        for second in 0..seconds {
            sim.node(second % nodes).put(key(second as u64 % 50), "value").expect("acceptable");
            sim.run_for(Duration::from_secs(1));
        }
        let took = start.elapsed().as_secs_f64();
        println!(
            "simulator: {nodes} nodes, {seconds} s in {took:.2} s: {:.0} times real time",
            seconds as f64 / took
        );
    }
}
