//! What fixed scenarios cost in the simulator, in counts that no machine changes: kept in `benches/counts.tsv`, so that
//! a change that sends more is seen before it lands.
//!
//! `TIDINGS_COUNTS=write cargo test -p tidings-benches --test counts` keeps the present ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidings::sim::Sim;
use tidings_benches::history::costs;
use tidings_benches::{Pair, at, filled, key, replica, value};

/// How much more or less a count may be. The order of random draws moves counts a little when code moves.
const TOLERANCE_PERCENT: u64 = 10;
/// Counts below this are allowed to move by it.
const SLACK: u64 = 2;
const SECOND: Duration = Duration::from_secs(1);

/// How often this thread asks for room meanwhile.
fn allocations(run: impl FnOnce()) -> u64 {
    allocation_counter::measure(run).count_total
}

type Counts = BTreeMap<String, u64>;

fn cluster(count: usize) -> Sim {
    let mut sim = Sim::new(7).seeds(&[0, 1]).without_checks().nodes(count);
    sim.run_for(SECOND * 20);
    sim
}

fn rows(sim: &mut Sim) -> u64 {
    let up: Vec<usize> = (0..sim.len()).filter(|i| sim.is_up(*i)).collect();
    up.into_iter().map(|i| sim.node(i).status().rows_received).sum()
}

fn add(counts: &mut Counts, scenario: &str, sim: &mut Sim, run: impl FnOnce(&mut Sim)) {
    let traffic = |sim: &mut Sim| (sim.sendings(), sim.bytes_sent(), rows(sim));
    let before = traffic(sim);
    run(sim);
    let after = traffic(sim);
    let differences = [after.0 - before.0, after.1 - before.1, after.2 - before.2];
    for (what, count) in ["messages", "bytes", "rows"].into_iter().zip(differences) {
        counts.insert(format!("{scenario}: {what}"), count);
    }
}

fn measured() -> Counts {
    let mut counts = Counts::new();
    for count in [3, 30, 60] {
        let mut sim = cluster(count);
        add(&mut counts, &format!("{count} nodes idle for 10 s"), &mut sim, |sim| sim.run_for(SECOND * 10));
        add(&mut counts, &format!("{count} nodes, 100 writes in 10 s"), &mut sim, |sim| {
            for i in 0..100 {
                sim.node(i % count).put(format!("k{i}"), "v").expect("acceptable");
                sim.run_for(SECOND / 10);
            }
        });
    }
    let history = costs(10_000);
    for (what, bytes) in [
        ("a check in sync", history.check_bytes),
        ("a new link", history.link_bytes),
        ("the first write over it", history.first_write_bytes),
        ("healing two differences", history.repair_bytes),
        ("healing two differences, apart", history.reunion_bytes),
        ("joining", history.join_bytes),
    ] {
        counts.insert(format!("10,000 dead runs, {what}: bytes"), bytes);
    }
    let mut sim = cluster(3);
    for i in 0..10_000 {
        sim.node(i % 3).put(format!("k{i:05}"), [7; 100]).expect("acceptable");
    }
    sim.run_for(SECOND * 5);
    sim.crash(2);
    add(&mut counts, "a blank node joins two with 10,000 keys, 5 s", &mut sim, |sim| {
        sim.restart(2);
        sim.run_for(SECOND * 5);
        assert_eq!(sim.node(2).len(), 10_000, "it has all");
    });
    sim.partition(&[0, 1], &[2]);
    for i in 0..10 {
        sim.node(0).put(format!("k{i:05}"), "other").expect("acceptable");
    }
    sim.run_for(SECOND * 15);
    add(&mut counts, "10 differences in 10,000 keys after a split, 10 s", &mut sim, |sim| {
        sim.heal();
        sim.run_for(SECOND * 10);
        sim.assert_converged();
    });
    measured_core(&mut counts);
    counts
}

/// What the core alone allocates, and how often a comparison goes to and fro.
fn measured_core(counts: &mut Counts) {
    const KEYS: u64 = 10_000;
    let mut count = |what: &str, number: u64| _ = counts.insert(what.to_owned(), number);
    let (keys, values): (Vec<String>, Vec<Vec<u8>>) = (0..KEYS).map(|i| (key(i), value(i))).unzip();
    let mut one = replica(1);
    let mut put = |from: u64| {
        allocations(|| {
            for i in 0..KEYS {
                let (key, value) = (&keys[i as usize], &values[i as usize]);
                one.put(at(from + i), key, value).expect("acceptable");
            }
        })
    };
    count("10,000 new keys in the core: allocations", put(0));
    count("10,000 overwrites in the core: allocations", put(KEYS));
    let mut pair = Pair::new(filled(1, KEYS), replica(2), at(2 * KEYS));
    count("10,000 keys to a blank replica: allocations of both", allocations(|| _ = pair.run(false)));
    for differences in [1, 10, 1_000] {
        let now = at(3 * KEYS);
        pair.ends
            .iter_mut()
            .for_each(|end| end.handle(now, tidings::core::Input::LinkDown(tidings::core::LinkId::new(1))));
        for i in 0..differences {
            pair.ends[1].put(now, &key(i * 7 + differences), b"other").expect("acceptable");
        }
        for end in &mut pair.ends {
            end.handle(
                now,
                tidings::core::Input::LinkUp(tidings::core::LinkId::new(1), tidings::core::Abilities::OURS),
            );
            end.want_repair(tidings::core::LinkId::new(1));
        }
        let mut crossed = tidings_benches::Crossed::default();
        let allocated = allocations(|| crossed = pair.run(true));
        let name = format!("{differences} differences in 10,000 keys, compared");
        count(&format!("{name}: bytes besides the rows"), crossed.bytes - crossed.rows);
        count(&format!("{name}: flights"), crossed.flights);
        count(&format!("{name}: allocations of both"), allocated);
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.tsv")
}

/// Every count that is not where it was kept, or is missing on one side.
fn moved(kept: &Counts, now: &Counts) -> Vec<String> {
    let names = kept.keys().chain(now.keys().filter(|name| !kept.contains_key(*name)));
    let told = names.filter_map(|name| {
        let (before, after) = (kept.get(name).copied(), now.get(name).copied());
        let is_near = before.zip(after).is_some_and(|(before, after)| {
            before.abs_diff(after) <= (before * TOLERANCE_PERCENT / 100).max(SLACK)
        });
        (!is_near).then(|| format!("{name}: {before:?} -> {after:?}"))
    });
    told.collect()
}

#[test]
fn fixed_scenarios_cost_what_they_did() {
    let now = measured();
    if std::env::var_os("TIDINGS_COUNTS").is_some_and(|what| what == "write") {
        let text = now.iter().fold(String::new(), |mut text, (name, count)| {
            _ = writeln!(text, "{name}\t{count}");
            text
        });
        std::fs::write(file(), text).expect("the folder can be written");
        return;
    }
    let text = std::fs::read_to_string(file()).expect("the counts are kept");
    let parse = |line: &str| line.split_once('\t').map(|(name, count)| (name.to_owned(), count.parse().ok()));
    let kept: Option<Counts> =
        text.lines().map(|line| parse(line).and_then(|(name, count)| Some((name, count?)))).collect();
    let moved = moved(&kept.expect("the file is whole"), &now);
    assert!(moved.is_empty(), "counts moved; if that is meant, keep the new ones:\n{}", moved.join("\n"));
}

#[test]
fn count_that_moved_is_reported() {
    let counts = |messages| Counts::from([("messages".to_owned(), messages)]);
    assert!(moved(&counts(1_000), &counts(1_100)).is_empty());
    assert_eq!(moved(&counts(1_000), &counts(1_101)).len(), 1);
    assert_eq!(moved(&counts(1_000), &counts(899)).len(), 1);
    assert_eq!(moved(&counts(1_000), &Counts::new()).len(), 1);
    assert_eq!(moved(&Counts::new(), &counts(1_000)).len(), 1);
}
