//! What the history of a cluster costs: origins of runs that have ended, which every vector keeps for ever.
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::time::{Duration, Instant};

use tidings::core::{Input, LinkId, Replica};

use crate::table::Table;
use crate::{Crossed, Pair, at, key, replica, resident, sized, value};

/// Keys that both replicas hold.
const KEYS: u64 = 1_000;
const LINK: LinkId = LinkId::new(1);

/// What two replicas with the same dead runs pay for them, over one link and in both directions. Bytes are those besides
/// the rows of repairs.
#[derive(Clone, Copy, Debug)]
pub struct HistoryCosts {
    /// One comparison while both hold the same, in each direction.
    pub check_bytes: u64,
    /// A new link between them.
    pub link_bytes: u64,
    /// The first write over it.
    pub first_write_bytes: u64,
    /// A repair of two differing rows.
    pub repair_bytes: u64,
    /// The same, if one side also has ten dead runs that the other does not know.
    pub reunion_bytes: u64,
    /// A blank replica joins one of them.
    pub join_bytes: u64,
    /// How long that takes, in milliseconds.
    pub join_ms: f64,
    /// The longest step under a lock of it.
    pub join_step_ms: f64,
}

/// A replica that knows this many dead runs.
pub fn old_replica(seed: u64, runs: u64) -> Replica {
    let mut replica = replica(seed);
    replica.cover_dead_runs(runs);
    replica
}

/// Lets two linked replicas compare until both are silent.
fn settle(pair: &mut Pair) {
    for _ in 0..4 {
        pair.run(false);
        pair.wake(Duration::from_secs(2));
    }
    pair.run(false);
}

fn besides_rows(crossed: Crossed) -> u64 {
    crossed.bytes - crossed.rows
}

/// Writes one row on each side while they are not linked, and lets them repair.
fn repair(pair: &mut Pair, step: u64) -> u64 {
    pair.ends.iter_mut().for_each(|end| end.handle(at(KEYS + step), Input::LinkDown(LINK)));
    for (end, i) in pair.ends.iter_mut().zip(1..) {
        end.put(at(KEYS + step), &key(i), &value(step)).expect("acceptable");
    }
    for end in &mut pair.ends {
        end.handle(at(KEYS + step), Input::LinkUp(LINK, tidings::core::Abilities::OURS));
        // As if the positions were lost, so that only a comparison finds the two rows.
        end.want_repair(LINK);
    }
    besides_rows(pair.run(false))
}

/// Measures two replicas that cover one write each of so many runs that have ended.
pub fn costs(runs: u64) -> HistoryCosts {
    let mut pair = Pair::new(old_replica(1, runs), old_replica(2, runs), at(0));
    for i in 0..KEYS {
        pair.ends[0].put(at(i), &key(i), &value(i)).expect("acceptable");
    }
    settle(&mut pair);
    pair.wake(Duration::from_secs(2));
    let check_bytes = besides_rows(pair.run(false)) / 2;

    pair.reconnect();
    let link_bytes = besides_rows(pair.run(false));
    pair.ends[0].put(at(KEYS), &key(0), b"first").expect("acceptable");
    let first_write_bytes = besides_rows(pair.run(false));
    let repair_bytes = repair(&mut pair, 1);

    let [donor, other] = pair.ends;
    let mut joining = Pair::new(donor, replica(3), at(KEYS + 2));
    let begin = Instant::now();
    let join_bytes = besides_rows(joining.run(false));
    let join_ms = begin.elapsed().as_secs_f64() * 1e3;

    let [mut donor, _] = joining.ends;
    donor.handle(at(KEYS + 2), Input::LinkDown(LINK));
    donor.cover_dead_runs(runs + 10);
    let mut apart = Pair::new(donor, other, at(KEYS + 3));
    let reunion_bytes = repair(&mut apart, 4);
    let join_step_ms = joining.longest_ms;
    HistoryCosts {
        check_bytes,
        link_bytes,
        first_write_bytes,
        repair_bytes,
        reunion_bytes,
        join_bytes,
        join_ms,
        join_step_ms,
    }
}

/// Replicas whose memory is measured together: what one of them has freed while it was built is used by the next.
const MEASURED_TOGETHER: u64 = 4;

/// Replicas that know this many dead runs, and the bytes of resident memory that each of them costs each replica.
fn memory_per_run(runs: u64) -> (Vec<Replica>, f64) {
    let before = resident();
    let replicas = (1..=MEASURED_TOGETHER).map(|run| old_replica(run, runs)).collect();
    let bytes = resident().saturating_sub(before) as f64;
    (replicas, bytes / (runs * MEASURED_TOGETHER) as f64)
}

/// The table of what dead runs cost.
pub fn origins() {
    let mut table = Table::new("core-origins", "What dead runs cost, over one link");
    table.note("Both replicas hold 1,000 keys and cover one write each of so many runs that have ended; the joining one is blank. Memory is that of each of four replicas in one process. Bytes are those of both directions, besides the rows of repairs. Apart: one side also covers ten dead runs that the other does not know.");
    let largest = sized(None, Some(1_000_000));
    // First, while no memory was freed that would be used again; for the same reason the replicas are kept meanwhile.
    let mut kept = Vec::new();
    for runs in [100_000].into_iter().chain(largest) {
        let (replicas, bytes) = memory_per_run(runs);
        kept.extend(replicas);
        table.row(&format!("{runs} dead runs, memory of each"), "tidings", "bytes", Some(40.0), vec![bytes]);
    }
    drop(kept);
    for runs in [3, 1_000, 10_000, 100_000].into_iter().chain(largest) {
        let costs = costs(runs);
        let mut row = |what: &str, unit: &str, target: Option<f64>, figure: f64| {
            table.row(&format!("{runs} dead runs, {what}"), "tidings", unit, target, vec![figure]);
        };
        row("a check in sync", "bytes", Some(64.0), costs.check_bytes as f64);
        row("a new link", "bytes", None, costs.link_bytes as f64);
        row("the first write over it", "bytes", Some(1_024.0), costs.first_write_bytes as f64);
        row("healing two differences", "bytes", Some(4_096.0), costs.repair_bytes as f64);
        row("healing two differences, apart", "bytes", None, costs.reunion_bytes as f64);
        row("joining", "bytes", None, costs.join_bytes as f64);
        // Of a million dead runs it is asked that a node joins within 5 s.
        let (join_ms, step_ms) = if runs > 100_000 { (5_000.0, None) } else { (500.0, Some(5.0)) };
        row("joining", "ms", Some(join_ms), costs.join_ms);
        row("the longest step of joining", "ms", step_ms, costs.join_step_ms);
    }
    table.save();
}
