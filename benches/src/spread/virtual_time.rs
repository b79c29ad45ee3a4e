//! In the simulator: a write's way to the last of many nodes beside a tree that somebody drew for it, and how often
//! a row is delivered.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use tidings::Config;
use tidings::sim::Sim;
use tidings_benches::plot::{Axis, Plot};
use tidings_benches::sized;
use tidings_benches::table::{Table, quantiles};

/// The mean one-way delay of a link; the simulator's spread is half of it to three halves.
const DELAY: Duration = Duration::from_micros(100);
/// How exactly an arrival is seen.
const GRAIN: Duration = Duration::from_micros(5);
const FORMING_TIME_MAX: Duration = Duration::from_secs(60);
const SETTLING_TIME: Duration = Duration::from_secs(10);
/// What has not arrived everywhere by then is counted as lost.
const PATIENCE: Duration = Duration::from_secs(10);
const WRITES: u64 = 60;
const TREES: u64 = 2_000;

/// Nodes that find each other, and have.
pub(super) fn formed(seed: u64, count: usize, delay: Duration) -> (Sim, Duration) {
    let mut sim = Sim::new(seed).delay(delay).seeds(&[0, 1]).without_checks().nodes(count);
    let has_all = |sim: &mut Sim, i: usize| {
        sim.node(i).members().iter().filter(|member| member.state.is_alive()).count() == count
    };
    while sim.now() < FORMING_TIME_MAX && !(0..count).all(|i| has_all(&mut sim, i)) {
        sim.run_for(Duration::from_millis(200));
    }
    let formed = sim.now();
    sim.run_for(SETTLING_TIME);
    (sim, formed)
}

pub(super) fn sim() {
    let mut table = Table::new("spread-sim", "From a put to the last node in virtual time, links of 100 us");
    table.note("The tree: a root and all others below it, level by level, each with as few below it as bring it down to as many hops as tidings takes: one up to 30 nodes, then two; the same random delays, and no time for anything else.");
    let mut plot =
        Plot::new("From a put to the last node in virtual time", Axis::log("nodes"), Axis::linear("us"));
    let mut lines: [Vec<(f64, f64)>; 4] = Default::default();
    for count in [30, 100, 300, 1_000].into_iter().take(sized(2, 4)) {
        let begin = std::time::Instant::now();
        let (mut sim, formed) = formed(7, count, DELAY);
        let hops = if count > Config::lan().mesh_members_max { 2 } else { 1 };
        let (figures, lost, repeats, sendings) = spread(&mut sim, count);
        let name = format!("{count} nodes,");
        let fan_out = (1..count).find(|fan: &usize| fan.pow(hops) >= count - 1).unwrap_or(count);
        let [tree_p50, tree_p99, _] = quantiles((0..TREES).map(|seed| tree(seed, count, fan_out)).collect());
        let [p50, p99, _] = quantiles(figures.clone());
        table.row(&format!("{name} to the last"), "tidings", "us", None, figures);
        for (quantile, ours, floor) in [("p50", p50, tree_p50), ("p99", p99, tree_p99)] {
            table.row(&format!("{name} {quantile}"), "tidings", "us", None, vec![ours]);
            table.row(&format!("{name} {quantile}"), "an optimal tree", "us", None, vec![floor]);
            table.row(&format!("{name} {quantile} in trees"), "tidings", "x", Some(2.0), vec![ours / floor]);
        }
        table.row(
            &format!("{name} deliveries of a row, per node and write"),
            "tidings",
            "",
            Some(1.2),
            vec![repeats],
        );
        table.row(
            &format!("{name} datagrams and frames, per node and write"),
            "tidings",
            "",
            None,
            vec![sendings],
        );
        table.note(&format!(
            "{count} nodes knew each other after {:.1} s; {lost} of {WRITES} writes had not arrived everywhere after 10 s; simulated in {:.0} s.",
            formed.as_secs_f64(),
            begin.elapsed().as_secs_f64()
        ));
        for (line, figure) in lines.iter_mut().zip([p50, p99, tree_p50, tree_p99]) {
            line.push((count as f64, figure));
        }
        table.save();
    }
    for (name, line) in
        ["tidings p50", "tidings p99", "optimal tree p50", "optimal tree p99"].into_iter().zip(lines)
    {
        plot.line(name, line);
    }
    plot.save("spread-sim");
}

/// Microseconds to the last node for each write, how many got lost, how often a row was delivered to a node, and what
/// was sent for it, the heartbeats of the time included.
fn spread(sim: &mut Sim, count: usize) -> (Vec<f64>, usize, f64, f64) {
    let received = |sim: &mut Sim| (0..count).map(|i| sim.node(i).status().rows_received).sum::<u64>();
    let (rows_before, sent_before) = (received(sim), sim.sendings());
    let (mut figures, mut lost) = (Vec::new(), 0);
    for write in 0..WRITES {
        let from = write as usize * 7_919 % count;
        let key = format!("spread/{write}");
        let begin = sim.now();
        sim.node(from).put(&key, "v").expect("acceptable");
        let mut missing: Vec<usize> = (0..count).filter(|i| *i != from).collect();
        while !missing.is_empty() && sim.now() - begin < PATIENCE {
            // Coarser when it takes long, so that a lost write does not take for ever.
            let grain = if sim.now() - begin < DELAY * 20 { GRAIN } else { DELAY * 10 };
            sim.run_for(grain);
            missing.retain(|i| sim.node(*i).get(&key).is_none());
        }
        if missing.is_empty() {
            figures.push((sim.now() - begin).as_secs_f64() * 1e6);
        } else {
            lost += 1;
        }
        sim.run_for(Duration::from_millis(50));
    }
    let deliveries = (count as u64 - 1) * WRITES;
    let rows = (received(sim) - rows_before) as f64 / deliveries as f64;
    (figures, lost, rows, (sim.sendings() - sent_before) as f64 / deliveries as f64)
}

/// Microseconds to the last node of a tree with random delays.
fn tree(seed: u64, count: usize, fan_out: usize) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut arrivals = vec![0.0];
    for i in 1..count {
        let delay = DELAY.as_secs_f64() * 1e6 * (0.5 + f64::from(random.next_u32()) / f64::from(u32::MAX));
        arrivals.push(arrivals[(i - 1) / fan_out] + delay);
    }
    arrivals.into_iter().fold(0.0, f64::max)
}
