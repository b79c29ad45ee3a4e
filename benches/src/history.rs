//! What the history of a cluster costs: origins of runs that have ended, which every vector names for ever.

use std::time::{Duration, Instant};

use tidings::core::{Input, LinkId, Replica};
use tidings_benches::table::Table;
use tidings_benches::{Pair, at, key, replica, sized, value};

/// Keys that both replicas hold.
const KEYS: u64 = 1_000;

/// A replica that knows this many dead runs.
fn old_replica(seed: u64, runs: u64) -> Replica {
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

/// The bytes of what crosses until both are silent, besides the rows of repairs.
fn bytes(pair: &mut Pair) -> f64 {
    let crossed = pair.run(false);
    (crossed.bytes - crossed.rows) as f64
}

pub(crate) fn origins() {
    let mut table = Table::new("core-origins", "What dead runs cost, over one link");
    table.note("Both replicas hold 1,000 keys and cover one write each of so many runs that have ended; the joining one is blank. Bytes are those of both directions, besides the rows of repairs.");
    for runs in [3, 1_000, 10_000].into_iter().chain((sized(0, 1) > 0).then_some(100_000)) {
        let name = |what: &str| format!("{runs} dead runs, {what}");
        let mut pair = Pair::new(old_replica(1, runs), old_replica(2, runs), at(0));
        for i in 0..KEYS {
            pair.ends[0].put(at(i), &key(i), &value(i)).expect("acceptable");
        }
        settle(&mut pair);
        pair.wake(Duration::from_secs(2));
        let check = bytes(&mut pair) / 2.0;
        table.row(&name("a check in sync"), "tidings", "bytes", Some(64.0), vec![check]);

        pair.reconnect();
        let linked = bytes(&mut pair);
        table.row(&name("a new link"), "tidings", "bytes", None, vec![linked]);
        pair.ends[0].put(at(KEYS), &key(0), b"first").expect("acceptable");
        let first = bytes(&mut pair);
        table.row(&name("the first write over it"), "tidings", "bytes", Some(1_024.0), vec![first]);

        let link = LinkId::new(1);
        pair.ends.iter_mut().for_each(|end| end.handle(at(KEYS), Input::LinkDown(link)));
        for (end, i) in pair.ends.iter_mut().zip(1..) {
            end.put(at(KEYS + 1), &key(i), b"apart").expect("acceptable");
        }
        pair.ends.iter_mut().for_each(|end| end.handle(at(KEYS + 1), Input::LinkUp(link)));
        let begin = Instant::now();
        // As if the positions were lost, so that only a comparison finds the two rows.
        let crossed = pair.run(true);
        let took = begin.elapsed().as_secs_f64() * 1e3;
        let healed = (crossed.bytes - crossed.rows) as f64;
        table.row(&name("healing two differences"), "tidings", "bytes", Some(4_096.0), vec![healed]);
        table.row(&name("healing two differences"), "tidings", "ms", None, vec![took]);

        let [donor, _] = pair.ends;
        let mut joining = Pair::new(donor, replica(3), at(KEYS + 2));
        let begin = Instant::now();
        joining.run(false);
        let took = begin.elapsed().as_secs_f64() * 1e3;
        table.row(&name("joining"), "tidings", "ms", None, vec![took]);
        table.row(&name("the longest step of joining"), "tidings", "ms", Some(5.0), vec![joining.longest_ms]);
    }
    table.save();
}
