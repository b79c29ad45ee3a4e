//! Live values: whole, never stale in silence, never invalid. The same code runs on nodes and in the simulator.
//!
//! Negative controls: loading key by key tears; and `WatchPastFloor` lets the watch behind a live value miss a delete,
//! which makes the value stale for ever.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_core::Stream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tidings::live::{Layer, LiveBuilder, LiveError, LiveSource, LiveState, Rejected, Values};
use tidings::sim::{Sim, SimNode};
use tidings::{Control, Live, Node, NodeEvent, Store};
use tidings_proptest::{Dice, ms, nodes};

mod bad_input;
mod last_good;
mod late;
mod restarts;
mod told;
mod whole;

type Plain = BTreeMap<String, u32>;

/// Starts a live value on a simulated node.
fn started<T: DeserializeOwned + Send + Sync + 'static>(
    builder: LiveBuilder<T, SimNode>,
    sim: &mut Sim,
) -> Result<Live<T>, LiveError> {
    let slot = Arc::new(Mutex::new(None));
    let given = slot.clone();
    sim.spawn(async move { *given.lock().unwrap() = Some(builder.start().await) });
    for _ in 0..100 {
        if let Some(started) = slot.lock().unwrap().take() {
            return started;
        }
        sim.run_for(ms(100));
    }
    panic!("it did not start within ten seconds");
}

/// A source as `layer NAME`, or as `KEY by WRITER`.
fn short(from: &LiveSource) -> String {
    match from {
        LiveSource::Layer { name } => format!("layer {name}"),
        LiveSource::Key { key, writer, .. } => format!("{key} by {writer}"),
        other => other.to_string(),
    }
}

fn shorts(rejected: &[Rejected]) -> Vec<String> {
    let text = |rejected: &Rejected| {
        let from = rejected.from.as_ref().map_or_else(|| "nothing".to_owned(), short);
        format!("{from} [{}]", rejected.path)
    };
    rejected.iter().map(text).collect()
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct App {
    #[serde(default)]
    name: String,
    db: Db,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Db {
    pool: u32,
    #[serde(default)]
    url: Option<String>,
}

fn check(app: &App) -> Result<(), String> {
    if app.db.pool == 0 { Err("the pool must not be empty".to_owned()) } else { Ok(()) }
}

/// What the application below sees, step by step. It writes by itself, so that each step is certain.
async fn story<S: Store>(store: S) -> Vec<String> {
    let mut seen = Vec::new();
    let nothing = Live::<App>::builder(&store, "app/").start().await;
    seen.push(nothing.unwrap_err().to_string());
    store.put("app/db/pool", b"5").unwrap();
    let mut app = Live::<App>::builder(&store, "app/").validate(check).start().await.unwrap();
    seen.push(format!("{:?} {:?}", *app.load(), app.state()));
    let mut url = app.select(|app| &app.db.url);
    store.batch().put("app/db/pool", "6").put("app/name", "\"shop\"").commit().unwrap();
    seen.push(format!("{:?}", app.changed().await.unwrap()));
    store.put("app/db/url", b"\"x\"").unwrap();
    seen.push(format!("{:?} {:?}", app.changed().await.unwrap(), url.changed().await.unwrap()));
    for (key, wrong) in
        [("app/db/pool", "0"), ("app/db/pool", "\"a\""), ("app/db/pool", "{"), ("app/db", "{}")]
    {
        store.put(key, wrong.as_bytes()).unwrap();
        while app.state() != LiveState::Rejected {
            store.sleep(ms(1)).await;
        }
        let told: Vec<String> = app.rejected().iter().map(|it| it.error.to_string()).collect();
        seen.push(format!("{} {:?} {told:?}", app.load().db.pool, shorts(&app.rejected())));
        store.delete("app/db").unwrap();
        store.put("app/db/pool", b"6").unwrap();
        while app.state() != LiveState::Current {
            store.sleep(ms(1)).await;
        }
    }
    // The value was the same whenever it was acceptable: nobody was woken.
    store.put("app/db/pool", b"7").unwrap();
    seen.push(format!("{:?}", app.changed().await.unwrap()));
    seen.push(format!("{:?}", app.why("db").iter().map(short).collect::<Vec<_>>()));
    store.put("end", b"v").unwrap();
    seen.push(format!("{:?} {:?} {:?}", app.changed().await, url.changed().await, app.state()));
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_of_a_live_value_is_the_same_on_nodes_and_in_simulations() {
    let look = async |node: &Node| {
        let rejected = |event| match event {
            NodeEvent::Rejected { live, rejected } => Some((live, shorts(&[rejected]))),
            _ => None,
        };
        let expected = ("app/".to_owned(), vec!["app/db/pool by n0 []".to_owned()]);
        assert_eq!(nodes::event(node, rejected).await, expected);
    };
    let simulated = nodes::story_on_both(story, story, look).await;

    assert!(simulated[0].contains("missing field `db`"), "{simulated:#?}");
    let expected = [
        "App { name: \"\", db: Db { pool: 5, url: None } } Current",
        "App { name: \"shop\", db: Db { pool: 6, url: None } }",
        "App { name: \"shop\", db: Db { pool: 6, url: Some(\"x\") } } Some(\"x\")",
        "6 [\"app/db/pool by n0 []\"] [\"the pool must not be empty\"]",
    ];
    assert_eq!(simulated[1..5], expected, "{simulated:#?}");
    for (line, named) in
        [(5, "app/db/pool by n0 [db.pool]"), (6, "app/db/pool by n0 [db.pool]"), (7, "app/db by n0 [db]")]
    {
        assert!(simulated[line].starts_with("6 ") && simulated[line].contains(named), "{simulated:#?}");
    }
    assert!(simulated[7].contains("the prefix of db/pool"), "{simulated:#?}");
    assert_eq!(simulated[8], "App { name: \"shop\", db: Db { pool: 7, url: Some(\"x\") } }");
    assert_eq!(simulated[9], "[\"app/db/url by n0\", \"app/db/pool by n0\"]");
    assert_eq!(simulated[10], "None None Ended");
}

/// Twenty fields that a writer always sets together.
#[derive(Debug, Deserialize)]
struct Twenty {
    #[serde(flatten)]
    fields: BTreeMap<String, u64>,
}

impl Twenty {
    fn is_torn(&self) -> bool {
        let mut values = self.fields.values();
        let first = values.next();
        values.any(|value| Some(value) != first) || self.fields.len() != 20
    }
}

fn write_twenty(store: &impl Store, number: u64) {
    let batch =
        (0..20).fold(store.batch(), |batch, field| batch.put(format!("t/{field}"), number.to_string()));
    batch.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_a_torn_struct_in_100_000_batches() {
    let node = nodes::start("a", &[]).await;
    write_twenty(&node, 0);
    let live = Live::<Twenty>::builder(&node, "t/").start().await.unwrap();
    let (stop, torn, torn_by_key) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let seen = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut last = None;
                while !stop.load(Ordering::Relaxed) {
                    let twenty = live.load();
                    torn.fetch_add(usize::from(twenty.is_torn()), Ordering::Relaxed);
                    let number = twenty.fields.get("0").copied();
                    assert!(number >= last, "a reader went back");
                    seen.fetch_add(usize::from(number != last), Ordering::Relaxed);
                    last = number;
                    // The control: the same fields, key by key.
                    let mut keys =
                        (0..20).map(|field| node.get(format!("t/{field}")).unwrap().value().to_vec());
                    let first = keys.next();
                    let differs = keys.any(|value| Some(value) != first);
                    torn_by_key.fetch_add(usize::from(differs), Ordering::Relaxed);
                }
            });
        }
        (1..=100_000).for_each(|number| write_twenty(&node, number));
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(torn.into_inner(), 0);
    assert!(seen.into_inner() > 100, "the readers saw few of the values");
    assert!(torn_by_key.into_inner() > 0, "loading key by key must tear");
    nodes::until(|| live.load().fields["0"] == 100_000).await;
}

/// Counts how often it is read, and gives nothing.
struct Reads(Arc<AtomicUsize>);

impl Layer for Reads {
    type Values = BTreeMap<String, u32>;

    fn name(&self) -> String {
        "counter".to_owned()
    }

    fn values(&self) -> Result<Self::Values, Box<dyn StdError + Send + Sync>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(BTreeMap::new())
    }
}

/// Waits for the next item of a stream, and counts the polls.
async fn counted<S: Stream + Unpin>(stream: &mut S, polls: &AtomicUsize) -> Option<S::Item> {
    poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut *stream).poll_next(cx)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_wakes_one_of_a_thousand_live_values() {
    const COUNT: usize = 1_000;
    let node = nodes::start("a", &[]).await;
    let polls: Arc<Vec<AtomicUsize>> = Arc::new((0..COUNT).map(|_| AtomicUsize::new(0)).collect());
    let made: Vec<Arc<AtomicUsize>> = (0..COUNT).map(|_| Arc::default()).collect();
    let seen = Arc::new(AtomicUsize::new(0));
    for (i, made) in made.iter().enumerate() {
        node.put(format!("{i}/x"), "0").unwrap();
        let builder = Live::<Plain>::builder(&node, format!("{i}/")).over(Reads(made.clone()));
        let mut live = builder.start().await.unwrap();
        let (polls, seen) = (polls.clone(), seen.clone());
        tokio::spawn(async move {
            while counted(&mut live, &polls[i]).await.is_some() {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let counts = || -> Vec<(usize, usize)> {
        polls
            .iter()
            .zip(&made)
            .map(|(polls, made)| (polls.load(Ordering::Relaxed), made.load(Ordering::Relaxed)))
            .collect()
    };
    nodes::until(|| counts().iter().all(|count| *count == (1, 1))).await;
    for i in [7, 700] {
        let before = (counts(), seen.load(Ordering::Relaxed));
        node.put(format!("{i}/x"), "1").unwrap();
        nodes::until(|| seen.load(Ordering::Relaxed) > before.1 && counts()[i].0 == before.0[i].0 + 2).await;
        let mut expected = before.0;
        expected[i] = (expected[i].0 + 2, expected[i].1 + 1);
        assert_eq!(counts(), expected);
    }
    node.shutdown().await;
}

#[test]
fn part_wakes_only_if_it_has_changed() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("a", "1").unwrap();
    node.batch().put("p/a", "1").put("p/b", "1").commit().unwrap();
    let live = started(Live::<Plain>::builder(&node, "p/"), &mut sim).unwrap();
    let polls: Arc<[AtomicUsize; 2]> = Arc::default();
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let (mut part, polls) = (live.select(move |plain| &plain[name]), polls.clone());
        sim.spawn(async move { while counted(&mut part, &polls[i]).await.is_some() {} });
    }
    sim.run_for(ms(10));
    for i in 2..12 {
        node.put("p/a", i.to_string()).unwrap();
        sim.run_for(ms(10));
    }
    assert_eq!(polls.each_ref().map(|polls| polls.load(Ordering::Relaxed)), [21, 1]);
}

#[test]
fn changes_within_the_debounce_are_taken_together() {
    let mut sim = Sim::new(1).nodes(1);
    let (node, reads) = (sim.node(0), Arc::new(AtomicUsize::new(0)));
    let builder = Live::<Plain>::builder(&node, "p/").over(Reads(reads.clone())).debounce(ms(50));
    let live = started(builder, &mut sim).unwrap();
    let mut other = live.clone();
    let seen: Arc<Mutex<Vec<Plain>>> = Arc::default();
    let list = seen.clone();
    sim.spawn(async move {
        while let Some(plain) = other.changed().await {
            list.lock().unwrap().push((*plain).clone());
        }
    });
    sim.run_for(ms(10));
    for i in 0..40 {
        node.put("p/a", i.to_string()).unwrap();
        sim.run_for(ms(5));
    }
    // A steady stream of changes does not put it off: the value is made anew every 50 ms.
    assert_eq!(reads.load(Ordering::Relaxed), 1 + 4);
    sim.run_for(ms(100));
    assert_eq!(live.load()["a"], 39);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|plain| plain["a"]).collect::<Vec<_>>(), [9, 19, 29, 39]);
}

/// The value on a node after a delete that its log has forgotten before the task of the live value came to run.
fn after_forgotten_delete(control: Option<Control>) -> Plain {
    let mut sim = Sim::new(1).without_checks().broken(control).nodes(1);
    let node = sim.node(0);
    node.batch().put("p/stays", "1").put("p/gone", "1").commit().unwrap();
    let live = started(Live::<Plain>::builder(&node, "p/"), &mut sim).unwrap();
    node.delete("p/gone").unwrap();
    for i in 0..5_000 {
        node.put(format!("elsewhere/{i}"), "v").unwrap();
        node.delete(format!("elsewhere/{i}")).unwrap();
    }
    sim.run_for(ms(1_000));
    (*live.load_full()).clone()
}

#[test]
fn live_value_is_right_after_deletes_that_the_log_forgot() {
    let right = Plain::from([("stays".to_owned(), 1)]);
    assert_eq!(after_forgotten_delete(None), right);
    assert_ne!(after_forgotten_delete(Some(Control::WatchPastFloor)), right);
}

/// A live value on a node. It notes the pair that only node 0 writes, always in one batch.
fn started_with_log(sim: &mut Sim, i: usize, log: &Arc<Mutex<Vec<(u32, u32)>>>) -> Option<Live<Plain>> {
    let log = log.clone();
    let check = move |plain: &Plain| {
        if let (0, Some(a), Some(b)) = (i, plain.get("a"), plain.get("b")) {
            log.lock().unwrap().push((*a, *b));
        }
        Ok::<(), String>(())
    };
    let builder = Live::<Plain>::builder(&sim.node(i), "p/").joined_timeout(ms(10)).validate(check);
    started(builder, sim).ok()
}

/// One step of a random history: a write, among them such as are no numbers, a partition, or a restart.
fn step(sim: &mut Sim, dice: &mut Dice, step: usize, lives: &mut [Option<Live<Plain>>]) {
    let (i, key, text) = (dice.below(3), format!("p/k{}", dice.below(4)), step.to_string());
    let node = sim.node(i);
    match dice.below(8) {
        0 | 1 => _ = sim.node(0).batch().put("p/a", &text).put("p/b", &text).commit(),
        2 => _ = node.put(key, text),
        3 => _ = node.put(key, "no number"),
        4 => _ = node.delete(key),
        5 => sim.partition(&[i], &[(i + 1) % 3, (i + 2) % 3]),
        6 => sim.heal(),
        _ if dice.below(3) == 0 && i != 0 && sim.is_up(i) => {
            sim.crash(i);
            sim.run_for(ms(5));
            if let Some(live) = lives[i].take() {
                assert_eq!(live.state(), LiveState::Ended);
            }
            sim.restart(i);
        }
        _ => {}
    }
    sim.run_for(ms(dice.below(200) as u64));
}

/// The numbers that a node holds; `None` if one of its values is none.
fn held(node: &impl Store) -> Option<Plain> {
    let number = |entry: &tidings::Entry| {
        let number = String::from_utf8_lossy(entry.value()).parse().ok()?;
        Some((entry.key()["p/".len()..].to_owned(), number))
    };
    node.scan("p/").iter().map(number).collect()
}

fn random_history(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut sim = Sim::new(seed).nodes_with_disk(3).loss(0.2);
    let mut lives: Vec<Option<Live<Plain>>> = vec![None, None, None];
    let pairs: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    for number in 0..60 {
        for (i, live) in lives.iter_mut().enumerate() {
            if live.is_none() && sim.is_up(i) {
                *live = started_with_log(&mut sim, i, &pairs);
            }
        }
        step(&mut sim, &mut dice, number, &mut lives);
    }
    sim.heal();
    sim.assert_converged();
    sim.run_for(ms(20_000));
    for (i, live) in lives.iter().enumerate() {
        let Some(live) = live else { continue };
        if let Some(held) = held(&sim.node(i)) {
            assert_eq!(
                (&*live.load(), live.state(), live.rejected().len()),
                (&held, LiveState::Current, 0),
                "seed {seed}, node {i}"
            );
        } else {
            assert_eq!(live.state(), LiveState::Rejected, "seed {seed}, node {i}");
            assert!(live.rejected().iter().all(|it| matches!(&it.from, Some(LiveSource::Key { .. }))));
        }
    }
    let pairs = pairs.lock().unwrap();
    assert!(pairs.iter().all(|(a, b)| a == b), "seed {seed}: a batch was torn on its own node");
}

#[test]
fn live_values_agree_with_the_store_after_random_histories() {
    (0..100).for_each(random_history);
}

#[test]
fn layers_lie_under_and_over_the_store() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("app/db/pool", "2").unwrap();
    let builder = Live::<App>::builder(&node, "app/")
        .under(Values::new("defaults", json!({"name": "x", "db": {"pool": 1, "url": "low"}})))
        .under(Values::new("file", json!({"name": "y"})))
        .over(Values::new("env", json!({"db": {"url": "high"}})));
    let live = started(builder, &mut sim).unwrap();
    let right = App { name: "y".to_owned(), db: Db { pool: 2, url: Some("high".to_owned()) } };
    assert_eq!(*live.load(), right);
    let why = |path: &str| live.why(path).iter().map(short).collect::<Vec<_>>();
    assert_eq!(why("db.url"), ["layer env", "layer defaults"]);
    assert_eq!(why("db.pool"), ["app/db/pool by n0", "layer defaults"]);
    assert_eq!(why("name"), ["layer file", "layer defaults"]);
    assert!(why("nothing").is_empty());
    node.delete("app/db/pool").unwrap();
    sim.run_for(ms(1));
    assert_eq!((live.load().db.pool, why("db.pool")), (1, vec!["layer defaults".to_owned()]));
}

#[test]
fn task_ends_with_its_last_handle() {
    let mut sim = Sim::new(1).nodes(1);
    let reads = Arc::new(AtomicUsize::new(0));
    let builder = Live::<Plain>::builder(&sim.node(0), "p/").over(Reads(reads.clone()));
    let live = started(builder, &mut sim).unwrap();
    let part = live.select(|plain| &plain["a"]);
    drop(live);
    sim.node(0).put("p/a", "1").unwrap();
    sim.run_for(ms(1));
    assert_eq!((reads.load(Ordering::Relaxed), part.load()), (2, 1));
    drop(part);
    sim.run_for(ms(1));
    sim.node(0).put("p/a", "2").unwrap();
    sim.run_for(ms(1));
    assert_eq!(reads.load(Ordering::Relaxed), 2);
    assert_eq!(Arc::strong_count(&reads), 1, "the task is gone");
}

#[test]
fn clone_has_seen_what_its_original_has() {
    let mut sim = Sim::new(1).nodes(1);
    let mut live = started(Live::<Plain>::builder(&sim.node(0), "p/"), &mut sim).unwrap();
    let now = |live: &mut Live<Plain>| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match Pin::new(live).poll_next(&mut cx) {
            Poll::Ready(value) => value.map(|value| value["a"]),
            Poll::Pending => None,
        }
    };
    let mut early = live.clone();
    sim.node(0).put("p/a", "1").unwrap();
    sim.run_for(ms(1));
    assert_eq!(now(&mut live), Some(1));
    let mut late = live.clone();
    assert_eq!([now(&mut early), now(&mut late), now(&mut live)], [Some(1), None, None]);
}
