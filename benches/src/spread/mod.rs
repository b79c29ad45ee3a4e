//! Measures how fast and at what cost writes spread, beside a bare push over the same protocol and beside rivals.

use std::time::Duration;

use tidings_benches::plot::{Axis, Plot};
use tidings_benches::table::{Table, quantiles};
use tidings_benches::{runtime, sized};
use tidings_proptest::relay::Faults;

mod cluster;
mod costs;
mod join;
mod overload;
mod oversubscribed;
mod paper;
mod rivals;
mod virtual_time;

pub(crate) use cluster::mutual_tls;
use cluster::{Cluster, Kind, Writers};
use oversubscribed::BusyThreads;

use crate::reconcile_rs::{SETTINGS_NOTE, Settings};

pub(crate) const PARTS: &[(&str, fn())] = &[
    ("last", last),
    ("oversubscribed", oversubscribed),
    ("join", join::join),
    ("overload", overload::overload),
    ("sim", virtual_time::sim),
    ("paper", paper::paper),
    ("loss", loss),
    ("costs", costs::costs),
];

/// Samples of the fast contestants, all repetitions together.
const SAMPLES: [usize; 2] = [300, 900];
/// The same where datagrams are lost: of up to ten nodes, so many that the p99 waits for a lost one even where every
/// fiftieth write does; of more, fewer, since most of them wait.
const SAMPLES_LOSSY: [usize; 2] = [1_500, 300];
/// At most so many of `reconcile`, which waits for a timer after each loss: in the short run, in the long one.
const SAMPLES_LOSSY_RIVAL: [usize; 2] = [100, 1_500];
const RECONCILE: [Kind; 2] = [Kind::Reconcile(Settings::Documented), Kind::Reconcile(Settings::Fast)];
const ONE_PROCESS_NOTE: &str = "All nodes of a contestant are in this process, on a runtime of two threads. A watch, a callback or a returning read takes the time of arrival.";
const ARRIVAL_NOTE: &str =
    "Of reconcile, a write has arrived when the hook is called that it runs before it changes the map.";
/// The size of the cluster that shares its cores with busy threads.
const OVERSUBSCRIBED_NODES: usize = 10;
/// Samples of those that take seconds for each, in each repetition.
const SLOW_SAMPLES: usize = 3;
/// Their repetitions in the short run.
const SLOW_REPETITIONS_QUICK: usize = 1;
/// Clusters of a contestant one after another; of those that take long to form, fewer.
const REPETITIONS: usize = 5;
const REPETITIONS_LARGE: usize = 3;

fn repetitions(count: usize) -> usize {
    if count > 30 { REPETITIONS_LARGE } else { REPETITIONS }
}

/// Our own p50 and p99 in those of the floor that was measured just before, repetition by repetition.
fn ratios(table: &mut Table, name: &str, what: &str, ours: &Repetitions, floor: &Repetitions) {
    for (i, (quantile, target)) in [("p50", None), ("p99", Some(3.0))].into_iter().enumerate() {
        let pairs = ours.quantiles[i].iter().zip(&floor.quantiles[i]);
        let ratios = pairs.map(|(ours, floor)| ours / floor).collect();
        table.row(&format!("{name} {quantile} in {what}"), "tidings", "x", target, ratios);
    }
}

/// What a contestant did: the three quantiles of each repetition, in milliseconds.
#[derive(Default)]
struct Repetitions {
    quantiles: [Vec<f64>; 3],
    lost: usize,
    samples: usize,
}

impl Repetitions {
    /// One repetition: a cluster that is started for it, and stopped afterwards.
    async fn add(&mut self, kind: Kind, count: usize, faults: Option<Faults>, samples: usize) {
        let mut cluster = Cluster::start(kind, count, faults).await;
        let mut all = Vec::new();
        for _ in 0..samples {
            self.samples += 1;
            match cluster.spread().await {
                Some(ms) => all.push(ms),
                None => self.lost += 1,
            }
        }
        cluster.stop().await;
        for (kept, quantile) in self.quantiles.iter_mut().zip(quantiles(all)) {
            kept.push(quantile);
        }
    }

    /// Its rows. Answers the middle p99.
    fn rows(&self, table: &mut Table, name: &str, contestant: &str) -> f64 {
        let Self { quantiles, lost, samples } = self;
        let mut row = |quantile: &str, all: &Vec<f64>| {
            table.row(&format!("{name} {quantile}"), contestant, "ms", None, all.clone())
        };
        row("p50", &quantiles[0]);
        let p99 = row("p99", &quantiles[1]);
        row("max", &quantiles[2]);
        if *lost > 0 {
            table.note(&format!(
                "{name} {contestant}: {lost} of {samples} writes did not reach everybody in time."
            ));
        }
        p99
    }
}

/// From a put to the last node.
fn last() {
    let mut table =
        Table::new("spread-last", "From a put to the last node, 124 bytes, real sockets on loopback");
    table.note(ONE_PROCESS_NOTE);
    table.note("Min, median and max are over the repetitions, each with a cluster of its own; the contestants take turns. The bare push has one writer, whose few connections stay warm; the others write in turn, the push \"in turn\" over a connection between any two. A write that is nowhere after 30 s (5 s in the short run) counts as lost. Of tidings, everything here begins when a cluster's links are made and known; while hundreds of them are being made in one process, what they seem to be away is this machine's work, and a lost packet waits for it.");
    table.note(SETTINGS_NOTE);
    table.note(ARRIVAL_NOTE);
    let only: Option<usize> = std::env::args().nth(3).and_then(|count| count.parse().ok());
    let sizes = [3, 10, 30, 100]
        .into_iter()
        .filter(|count| only.map_or(*count <= sized(30, 100), |only| only == *count));
    for count in sizes {
        let contestants = if only.is_some() { floors_and_ours() } else { everybody() };
        contest(&mut table, &format!("{count} nodes,"), count, contestants, Cores::Free);
        if only.is_none() {
            table.save();
        }
    }
    if only.is_some() {
        return;
    }
    let mut plot = Plot::new("From a put to the last node, p99", Axis::log("nodes"), Axis::log("ms"));
    let mut names: Vec<&String> = Vec::new();
    for row in &table.rows {
        if !names.contains(&&row.contestant) && row.unit == "ms" {
            names.push(&row.contestant);
        }
    }
    for name in names {
        let rows = table.rows.iter().filter(|row| row.contestant == *name);
        let points = rows
            .filter_map(|row| Some((row.name.strip_suffix(" nodes, p99")?.parse().ok()?, row.figures[1])));
        plot.line(name, points.collect());
    }
    plot.save("spread-last");
}

/// The same on a machine whose cores are busy.
fn oversubscribed() {
    let mut table = Table::new("spread-oversubscribed", "From a put to the last node beside busy threads");
    table.note("Meanwhile twice as many threads as the machine has cores only compute, in the same process.");
    table.note(ONE_PROCESS_NOTE);
    table.note(SETTINGS_NOTE);
    table.note(ARRIVAL_NOTE);
    let mut contestants = floors_and_ours();
    contestants.extend(RECONCILE);
    let name = format!("{OVERSUBSCRIBED_NODES} nodes,");
    contest(&mut table, &name, OVERSUBSCRIBED_NODES, contestants, Cores::Oversubscribed);
    table.save();
}

fn floors_and_ours() -> Vec<Kind> {
    vec![Kind::Push(Writers::One), Kind::Push(Writers::All), Kind::Tidings]
}

fn everybody() -> Vec<Kind> {
    let mut contestants = floors_and_ours();
    contestants.push(Kind::Foca);
    contestants.extend(RECONCILE);
    contestants.extend([
        Kind::Chitchat(Duration::from_millis(100)),
        Kind::Chitchat(Duration::from_secs(1)),
        #[cfg(feature = "memberlist")]
        Kind::Memberlist(Duration::from_millis(200)),
        #[cfg(feature = "memberlist")]
        Kind::Memberlist(Duration::from_millis(20)),
    ]);
    contestants
}

/// Who uses the machine's cores beside a cluster.
#[derive(Clone, Copy, PartialEq)]
enum Cores {
    Free,
    Oversubscribed,
}

/// The contestants take turns. The first three must be the two pushes and `tidings`.
fn contest(table: &mut Table, name: &str, count: usize, contestants: Vec<Kind>, cores: Cores) {
    let repetitions = repetitions(count);
    let mut contestants: Vec<(Kind, Repetitions)> =
        contestants.into_iter().map(|kind| (kind, Repetitions::default())).collect();
    for turn in 0..repetitions {
        for (kind, figures) in &mut contestants {
            let samples =
                if kind.is_fast() { sized(SAMPLES[0], SAMPLES[1]) / repetitions } else { SLOW_SAMPLES };
            if kind.is_fast() || turn < sized(SLOW_REPETITIONS_QUICK, repetitions) {
                let _busy = (cores == Cores::Oversubscribed).then(BusyThreads::start);
                runtime().block_on(figures.add(*kind, count, None, samples));
            }
        }
    }
    for (kind, figures) in &contestants {
        figures.rows(table, name, &kind.name());
    }
    let [(_, push), (_, in_turn), (_, ours), ..] = &contestants[..] else { unreachable!("three at least") };
    ratios(table, name, "bare pushes", ours, push);
    ratios(table, name, "bare pushes in turn", ours, in_turn);
}

/// The same where datagrams are lost.
fn loss() {
    let mut table = Table::new("spread-loss", "From a put to the last node under loss of datagrams");
    table.note("Every node and every receiver of the push is behind a UDP relay that loses this share of the packets in each direction, in each repetition others. The nodes of reconcile have no relay: their own transport loses the same share of what they send, which spares them a hop.");
    table.note(SETTINGS_NOTE);
    let kinds = [Kind::Push(Writers::One), Kind::Tidings, RECONCILE[0], RECONCILE[1]];
    let mut plot = Plot::new("Under loss, p99", Axis::linear("% of datagrams lost"), Axis::log("ms"));
    for count in [3, 10, 30, 100].into_iter().filter(|count| *count == sized(10, *count)) {
        let mut curves: [Vec<(f64, f64)>; 2] = Default::default();
        for percent in [0_u32, 1, 5].into_iter().filter(|percent| *percent != sized(1, 100)) {
            let name = format!("{count} nodes, {percent} % lost,");
            let loss = f64::from(percent) / 100.0;
            let mut figures: [Repetitions; 4] = Default::default();
            let repetitions = repetitions(count);
            let samples = SAMPLES_LOSSY[usize::from(count > 10)];
            let [quick, full] = SAMPLES_LOSSY_RIVAL;
            for turn in 0..repetitions {
                let faults = Some(Faults { loss, seed: 1_000_000 * turn as u64, ..Faults::default() });
                for (kind, figures) in kinds.into_iter().zip(&mut figures) {
                    let is_rival = matches!(kind, Kind::Reconcile(_));
                    let samples = if is_rival { samples.min(sized(quick, full)) } else { samples };
                    runtime().block_on(figures.add(kind, count, faults, samples / repetitions));
                }
            }
            for (i, (kind, figures)) in kinds.iter().zip(&figures).enumerate() {
                let p99 = figures.rows(&mut table, &name, &kind.name());
                // More lines than those of the first two could not be told from each other.
                if let Some(curve) = curves.get_mut(i) {
                    curve.push((f64::from(percent), p99));
                }
            }
            let [push, ours, ..] = &figures;
            ratios(&mut table, &name, "bare pushes", ours, push);
            table.save();
        }
        for (kind, curve) in kinds.iter().zip(curves) {
            plot.line(&format!("{}, {count} nodes", kind.name()), curve);
        }
    }
    plot.save("spread-loss");
}
