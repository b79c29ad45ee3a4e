//! Measures feature flags beside other programs that evaluate the same definitions.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use flagd_evaluation_engine::Operator;
use open_feature::EvaluationContext;
use tidings::flags::{Context, Flags, FlagsEvent, Snapshot};
use tidings::{Node, WatchEvent};
use tidings_benches::runtime;
use tidings_benches::table::Table;

use crate::node::start;
use crate::per_step;

pub(crate) const PARTS: &[(&str, fn())] =
    &[("evaluations", evaluations), ("loads", loads), ("changes", changes), ("bulk", bulk)];

const REPETITIONS: usize = 5;
const LIST: &str =
    r#"{"if":[{"in":[{"var":"country"},["de","at","ch","fr","it","es","pt","nl"]]},"on","off"]}"#;
const SHARE: &str = r#"{"fractional":[["on",50],["off",50]]}"#;

/// A script for npm's `flagd-core`: nanoseconds of an evaluation of a flag, with a context that is made each time.
const NPM: &str = r"
const { createRequire } = require('module');
const { FlagdCore } = createRequire(process.argv[1] + '/')('@openfeature/flagd-core');
const quiet = { error() {}, warn() {}, info() {}, debug() {} };
const core = new FlagdCore(undefined, quiet);
core.setConfigurations(process.argv[2]);
const time = (flag, context) => {
  const start = process.hrtime.bigint();
  for (let i = 0; i < 300000; i++) core.resolveBooleanEvaluation(flag, false, context(i), quiet);
  return Number(process.hrtime.bigint() - start) / 300000;
};
const run = () => [
  time('static', (i) => ({ targetingKey: 'user-' + i % 1000 })),
  time('list', (i) => ({ targetingKey: 'user-' + i % 1000, country: 'at' })),
  time('share', (i) => ({ targetingKey: 'user-' + i % 1000 })),
];
run();
for (let i = 0; i < 5; i++) console.log(run().join(' '));
";

fn definition(targeting: &str) -> String {
    format!(
        r#"{{"state":"ENABLED","variants":{{"on":true,"off":false}},"defaultVariant":"off","targeting":{targeting}}}"#
    )
}

/// The figures of npm's `flagd-core`, from the folder that `TIDINGS_FLAGD_RIVALS` names.
fn of_npm() -> Option<[Vec<f64>; 3]> {
    let folder = std::env::var("TIDINGS_FLAGD_RIVALS").ok()?;
    let flags = [("static", "{}"), ("list", LIST), ("share", SHARE)];
    let flags: Vec<_> = flags.map(|(name, rule)| format!("\"{name}\":{}", definition(rule))).into();
    let file = format!("{{\"flags\":{{{}}}}}", flags.join(","));
    let output = Command::new("node").args(["-e", NPM, &folder, &file]).output().ok()?;
    let mut figures: [Vec<f64>; 3] = Default::default();
    for line in String::from_utf8(output.stdout).ok()?.lines() {
        let numbers = line.split(' ').map(|number| number.parse().expect("a number"));
        figures.iter_mut().zip(numbers).for_each(|(figures, number): (_, f64)| figures.push(number));
    }
    (figures[0].len() == REPETITIONS).then_some(figures)
}

/// One evaluation with its context, which is made each time.
fn evaluations() {
    const STEPS: u64 = 2_000_000;
    const RIVAL_STEPS: u64 = 20_000;
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    for (name, rule) in [("static", "{}"), ("list", LIST), ("share", SHARE)] {
        node.put(format!("flags/default/{name}"), definition(rule)).expect("acceptable");
    }
    let flags = Flags::new(&node, "flags/");
    let snapshot = flags.snapshot();
    let users: Vec<String> = (0..1_000).map(|i| format!("user-{i}")).collect();
    let user = |i: u64| users[i as usize % users.len()].as_str();
    let engine = Operator::new();
    let mut ours: [Vec<f64>; 4] = Default::default();
    let mut theirs: [Vec<f64>; 2] = Default::default();
    for _ in 0..REPETITIONS {
        let mut measure = |at: usize, evaluate: &dyn Fn(u64) -> bool| {
            let run = || (0..STEPS).for_each(|i| _ = black_box(evaluate(i)));
            ours[at].push(per_step(STEPS, run));
        };
        measure(0, &|i| flags.bool("static", false, &Context::new(user(i))));
        measure(1, &|i| flags.bool("list", false, &Context::new(user(i)).with("country", "at")));
        measure(2, &|i| flags.bool("share", false, &Context::new(user(i))));
        measure(3, &|i| snapshot.bool("static", false, &Context::new(user(i))));
        let mut measure = |at: usize, rule: &str, context: &dyn Fn(u64) -> EvaluationContext| {
            let run = || {
                (0..RIVAL_STEPS).for_each(|i| _ = black_box(engine.apply("list", rule, &context(i))));
            };
            theirs[at].push(per_step(RIVAL_STEPS, run));
        };
        let of_user = |i| EvaluationContext::default().with_targeting_key(user(i));
        measure(0, LIST, &|i| of_user(i).with_custom_field("country", "at"));
        measure(1, SHARE, &of_user);
    }
    let mut table = Table::new("flags-evaluations", "One evaluation of a boolean flag, its context included");
    table.note("A list rule asks whether an attribute is one of eight texts; a share is `fractional` with two buckets. flagd-evaluation-engine 0.1.0 is given the text of the rule, as its own provider does. npm's flagd-core 4.0.1 is measured by itself in node, after a round to warm up; without it its rows are left out.");
    let ratios = |over: &[f64], under: &[f64]| over.iter().zip(under).map(|(a, b)| a / b).collect::<Vec<_>>();
    let names = ["without a rule", "list rule", "share"];
    for (at, engine) in [(1, &theirs[0]), (2, &theirs[1])] {
        let name = format!("{}, times faster than flagd-evaluation-engine", names[at]);
        table.rate(&name, "tidings", "x", Some(25.0), ratios(engine, &ours[at]));
        table.row(names[at], "flagd-evaluation-engine", "ns", None, engine.clone());
    }
    if let Some(npm) = of_npm() {
        for (at, npm) in npm.into_iter().enumerate() {
            let name = format!("{}, times faster than npm's flagd-core", names[at]);
            table.rate(&name, "tidings", "x", (at > 0).then_some(25.0), ratios(&npm, &ours[at]));
            table.row(names[at], "flagd-core (npm)", "ns", None, npm);
        }
    }
    let [plain, list, share, of_snapshot] = ours;
    table.row(names[0], "tidings", "ns", Some(50.0), plain);
    table.row(names[1], "tidings", "ns", Some(150.0), list);
    table.row(names[2], "tidings", "ns", Some(300.0), share);
    table.row("without a rule, of a snapshot", "tidings", "ns", None, of_snapshot);
    table.save();
    runtime.block_on(node.shutdown());
}

/// Ten thousand flags, from the store and from a file.
fn loads() {
    const FLAGS: usize = 10_000;
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    let rules = ["{}", LIST, SHARE];
    let all: Vec<_> = (0..FLAGS).map(|i| (format!("flag-{i}"), definition(rules[i % rules.len()]))).collect();
    for (name, definition) in &all {
        node.put(format!("flags/default/{name}"), definition).expect("acceptable");
    }
    let file: Vec<_> = all.iter().map(|(name, definition)| format!("\"{name}\":{definition}")).collect();
    let file = format!("{{\"flags\":{{{}}}}}", file.join(","));
    let (mut of_store, mut of_file, mut changing) = (Vec::new(), Vec::new(), Vec::new());
    let millis = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        let flags = Flags::new(&node, "flags/");
        of_store.push(millis(start));
        assert_eq!(flags.snapshot().keys().len(), FLAGS);
        let start = Instant::now();
        assert!(Snapshot::from_json(&file).expect("acceptable").1.is_empty());
        of_file.push(millis(start));
        runtime.block_on(async {
            let mut events = flags.events();
            while events.next().await != Some(FlagsEvent::Ready) {}
            let start = Instant::now();
            node.put("flags/default/flag-0", &all[0].1).expect("acceptable");
            assert!(matches!(events.next().await, Some(FlagsEvent::Changed(_))));
            changing.push(millis(start));
        });
    }
    let mut table = Table::new("flags-loads", "10,000 flags, two thirds of them with rules");
    table.row("read from the store and compiled", "tidings", "ms", Some(200.0), of_store);
    table.row("read from a file and compiled", "tidings", "ms", Some(200.0), of_file);
    table.row("one of them changed, until it is in force", "tidings", "ms", None, changing);
    table.save();
    runtime.block_on(node.shutdown());
}

/// From a put on one node to the new answer on another, beside a watch there.
fn changes() {
    const ROUNDS: i64 = 1_000;
    let runtime = runtime();
    let (answered, watched) = runtime.block_on(async {
        let a = start("a", &[]).await;
        let b = start("b", &[&a]).await;
        (change(&a, &b, ROUNDS, true).await, change(&a, &b, ROUNDS, false).await)
    });
    let mut table = Table::new("flags-changes", "From a put on one node to another node, 100 flags");
    let by_flags = table.quantiles("to the new answer", "tidings", "us", answered);
    let by_watch = table.quantiles("to a watch", "tidings", "us", watched);
    for (at, quantile) in ["p50", "p99"].into_iter().enumerate() {
        let name = format!("to the new answer, in those to a watch, {quantile}");
        table.row(&name, "tidings", "x", Some(1.5), vec![by_flags[at] / by_watch[at]]);
    }
    table.save();
}

/// Microseconds from each put to the event of flags, or of a watch.
async fn change(a: &Node, b: &Node, rounds: i64, is_of_flags: bool) -> Vec<f64> {
    let number =
        |i: i64| format!(r#"{{"state":"ENABLED","variants":{{"only":{i}}},"defaultVariant":"only"}}"#);
    for i in 0..100 {
        a.put(format!("flags/default/flag-{i}"), number(-1)).expect("acceptable");
    }
    let flags = Flags::new(b, "flags/");
    let (mut events, mut watch) = (flags.events(), b.watch("flags/"));
    while flags.snapshot().keys().len() < 100 {
        events.next().await;
    }
    let mut took = Vec::new();
    for i in 0..rounds {
        let start = Instant::now();
        a.put("flags/default/flag-50", number(i)).expect("acceptable");
        if is_of_flags {
            while flags.int("flag-50", 0, &Context::anonymous()) != i {
                events.next().await;
            }
        } else {
            loop {
                match watch.next().await {
                    Some(WatchEvent::Put(entry)) if entry.value() == number(i).as_bytes() => break,
                    _ => {}
                }
            }
        }
        took.push(start.elapsed().as_nanos() as f64 / 1e3);
    }
    took
}

/// What the program `tidings` measured.
#[derive(serde::Deserialize)]
struct Figures {
    what: String,
    under_way: usize,
    unit: String,
    all: Vec<f64>,
}

/// All flags of a set over OFREP, beside a bare handler that answers with the same bytes. The program that serves it
/// measures it.
fn bulk() {
    const FLAGS: &str = "1000";
    let program = std::env::current_exe().expect("this program").with_file_name("tidings");
    let output = Command::new(program).args(["bench", "--floor", "--flags", FLAGS, "--json"]).output();
    let output = output.expect("build it first: cargo build --release -p kv-example");
    let all: Vec<Figures> = serde_json::from_slice(&output.stdout).expect("it prints figures");
    let mut table = Table::new(
        "flags-bulk",
        "1,000 flags evaluated over OFREP, beside a bare axum handler with the same bytes",
    );
    table.note("32 connections in the process of the server, turn by turn; with several requests under way on a connection, the cost of the server stands out beside that of the client. With 304: the client has the present answer.");
    for Figures { what, under_way, unit, all } in all {
        let contestant = if what.ends_with("bare handler") { "axum" } else { "tidings" };
        let name = if unit == "ms" { what.clone() } else { format!("{what}, {under_way} under way") };
        match unit.as_str() {
            "ms" => table.row(&name, contestant, "ms", Some(5.0), all),
            "%" => table.rate(&name, contestant, "%", what.starts_with("with 304").then_some(80.0), all),
            unit => table.rate(&name, contestant, unit, None, all),
        };
    }
    table.save();
}
