//! User code over the trait `Store`: it runs alike on nodes and in the simulator. And user code in the simulator: what
//! handles of simulated nodes do, and that tasks run in virtual time and repeat.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_core::Stream;
use tidings::sim::{Sim, SimNode, SimReceipt, SimWatch};
use tidings::{OnlyIf, PutOptions, Store, WatchEvent, WatchOptions, WriteError, WriteReceipt};
use tidings_proptest::nodes;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Passes a baton on: whenever `from` changes on a node, the node puts `to`, with one more in it.
async fn relay(node: SimNode, from: &'static str, to: &'static str, log: Arc<Mutex<Vec<String>>>) {
    let mut watch = node.watch(from);
    while let Some(event) = watch.next().await {
        let WatchEvent::Put(entry) = event else { continue };
        let count: u32 = String::from_utf8_lossy(entry.value()).parse().expect("a number");
        log.lock().unwrap().push(format!("{to} {count}"));
        if count < 20 {
            node.put(to, (count + 1).to_string()).unwrap();
        }
    }
    log.lock().unwrap().push(format!("{to} ended"));
}

/// A run of three tasks under loss, in which one node stops: its trace, and what the tasks did in which order.
fn run_with_tasks(seed: u64) -> (u64, Vec<String>) {
    let mut sim = Sim::new(seed).nodes(3).loss(0.2);
    let log = Arc::new(Mutex::new(Vec::new()));
    for (i, from, to) in [(0, "a", "b"), (1, "b", "c"), (2, "c", "a")] {
        let node = sim.node(i);
        sim.spawn(relay(node, from, to, log.clone()));
    }
    sim.node(1).put("a", "0").unwrap();
    sim.run_for(ms(30_000));
    sim.assert_converged();
    sim.crash(2);
    sim.run_for(ms(10));
    let log = log.lock().unwrap().clone();
    (sim.trace(), log)
}

#[test]
fn tasks_run_in_virtual_time_and_repeat() {
    let (trace, log) = run_with_tasks(7);
    let counts = (0..=20).map(|count| format!("{} {count}", ["b", "c", "a"][count % 3]));
    assert_eq!(log, counts.chain(["a ended".to_owned()]).collect::<Vec<_>>());
    assert_eq!((trace, log), run_with_tasks(7));
    assert_ne!(trace, run_with_tasks(8).0);
}

#[test]
fn tasks_are_polled_in_the_order_of_their_numbers() {
    let mut sim = Sim::new(1).nodes(1);
    let log = Arc::new(Mutex::new(Vec::new()));
    for name in ["first", "second", "third"] {
        let (mut watch, log) = (sim.node(0).watch("k"), log.clone());
        sim.spawn(async move {
            while watch.next().await.is_some() {
                log.lock().unwrap().push(name);
            }
        });
    }
    sim.run_for(ms(1));
    log.lock().unwrap().clear();
    sim.node(0).put("k", "v").unwrap();
    assert!(log.lock().unwrap().is_empty(), "a task runs only while virtual time passes");
    sim.run_for(ms(1));
    assert_eq!(*log.lock().unwrap(), ["first", "second", "third"]);
}

#[test]
fn handle_works_again_after_a_restart() {
    let mut sim = Sim::new(1).nodes_with_disk(1);
    let node = sim.node(0);
    node.put("k", "v").unwrap();
    let mut watch = node.watch("k");
    assert!(matches!(watch.try_next(), Some(WatchEvent::Put(_))));
    assert_eq!(watch.try_next(), Some(WatchEvent::Current));
    sim.run_for(ms(100));
    sim.crash(0);
    assert_eq!(node.put("k", "w"), Err(WriteError::Closed));
    assert_eq!(node.delete("k"), Err(WriteError::Closed));
    assert_eq!(node.set("s").add("x"), Err(WriteError::Closed));
    assert_eq!(node.counter("c").add(1), Err(WriteError::Closed));
    assert_eq!(node.batch().put("k", "w").commit(), Err(WriteError::Closed));
    assert_eq!((node.get("k"), node.len(), node.scan("").len()), (None, 0, 0));
    let mut late = node.watch("k");
    assert_eq!((late.try_next(), watch.try_next()), (None, None));
    sim.restart(0);
    assert!(late.is_over() && watch.is_over(), "a watch belongs to one start of its node");
    assert_eq!(node.get("k").unwrap().value(), b"v");
    let receipt: SimReceipt = node.put("k", "w").unwrap();
    assert_eq!(receipt.stamp(), node.get("k").map(|entry| entry.stamp()));
    assert_eq!(receipt.revision(), node.get("k").unwrap().revision());
}

/// Counts how often it was woken, and uses the world while it is.
struct Counting(SimNode, AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        // This would wait for ever if the world were locked.
        _ = self.0.get("k");
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn wakers_are_called_once_the_world_is_unlocked() {
    let mut sim = Sim::new(1).nodes(1);
    let counting = Arc::new(Counting(sim.node(0), AtomicUsize::new(0)));
    let waker = Waker::from(counting.clone());
    let mut watch = pin!(sim.node(0).watch_with("k", WatchOptions::new().without_current()));
    let mut poll = || watch.as_mut().poll_next(&mut Context::from_waker(&waker));
    assert_eq!(poll(), Poll::Pending);
    let woken = || counting.1.load(Ordering::Relaxed);
    sim.node(0).put("other", "v").unwrap();
    assert_eq!(woken(), 0, "a change of another key wakes nobody");
    sim.node(0).put("k", "v").unwrap();
    assert_eq!(woken(), 1);
    assert!(matches!(poll(), Poll::Ready(Some(WatchEvent::Put(_)))));
    assert_eq!(poll(), Poll::Pending);
    sim.crash(0);
    assert_eq!(woken(), 2, "the end of a watch wakes its reader");
    assert_eq!(poll(), Poll::Ready(None));
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<Sim>();
    shareable::<SimNode>();
    shareable::<SimWatch>();
}

#[test]
fn world_can_be_used_after_a_panic_under_its_lock() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.skew(1, 0)));
    assert!(panic.is_err(), "there is no such node");
    node.put("k", "v").unwrap();
    sim.assert_converged();
}

/// Keeps a copy of everything below `in/<name>/` under `out/<name>/`, as an application follows its part of the store.
/// The control `ignores_deletes` leaves what was deleted.
async fn copy<S: Store>(store: S, ignores_deletes: bool) {
    let prefix = format!("in/{}/", store.name());
    let mut watch = store.watch(&prefix);
    while let Some(event) = poll_fn(|cx| Pin::new(&mut watch).poll_next(cx)).await {
        let Some(key) = event.key() else { continue };
        let copy = key.replacen("in/", "out/", 1);
        match &event {
            WatchEvent::Put(entry) => _ = store.put(&copy, entry.value()).unwrap(),
            _ if ignores_deletes => {}
            _ => _ = store.delete(&copy).unwrap(),
        }
    }
}

/// First half of what each node does: it writes for the node behind it, and for all.
fn write<S: Store>(store: &S, next: &str) {
    let own = store.name().to_owned();
    for i in 0..4 {
        store.put(&format!("in/{next}/{i}"), format!("{own} {i}").as_bytes()).unwrap();
    }
    let batch = store.batch().put(format!("in/{next}/0"), "batched").put(format!("batch/{own}"), "1");
    let receipt = batch.delete(format!("in/{next}/1")).commit().unwrap();
    let key = format!("batch/{own}");
    assert!(
        store.get(&key).is_some_and(|entry| Some(entry.stamp()) < receipt.stamp()),
        "the delete comes last"
    );
    let receipt = store.put(&key, b"2").unwrap();
    assert_eq!(store.get(&key).map(|entry| entry.revision()), Some(receipt.revision()));
    store.set("names").add(&own).unwrap();
    store.set("left").add(&own).unwrap();
    store.counter("steps").add(5).unwrap();
    store.map::<Vec<u32>>("map/").put(&own, &vec![1, 2]).unwrap();
}

/// Second half, when all nodes hold what the first half wrote.
fn revise<S: Store>(store: &S, next: &str) {
    let own = store.name().to_owned();
    let key = format!("in/{next}/2");
    let read = store.get(&key).unwrap();
    let absent = store.put_with(&key, b"w", PutOptions::new().only_if(OnlyIf::Absent));
    assert!(matches!(absent, Err(WriteError::Condition { current }) if current == Some(read.stamp())));
    store.put_with(&key, b"revised", PutOptions::new().only_if(OnlyIf::Stamp(read.stamp()))).unwrap();
    assert!(matches!(store.delete_if(&key, OnlyIf::Stamp(read.stamp())), Err(WriteError::Condition { .. })));
    store.delete(&format!("in/{next}/3")).unwrap();
    assert_eq!(store.delete("nothing").unwrap().stamp(), None);
    assert_eq!(store.set("left").page(None, 1).len(), 1);
    store.set("left").remove(&own).unwrap();
    store.counter("steps").add(-1).unwrap();
    let map = store.map::<Vec<u32>>("map/");
    let numbers = map.get(&own).unwrap().unwrap();
    map.put(&own, &[&numbers[..], &[3]].concat()).unwrap();
    // `next` reads it too; an entry of another type is an error, not a panic.
    assert!(store.map::<String>("map/").get(next).is_err());
}

/// Everything that a node holds, as an application reads it.
fn state<S: Store>(store: &S) -> Vec<String> {
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = store.scan_page("", after.as_deref(), 5);
        let Some(last) = page.last() else { break };
        after = Some(last.key().to_owned());
        entries.extend(page);
    }
    let mut state: Vec<String> = entries
        .iter()
        .map(|entry| format!("{} = {}", entry.key(), String::from_utf8_lossy(entry.value())))
        .collect();
    for name in ["names", "left"] {
        state.push(format!("{name}: {:?}", store.set(name).iter().collect::<Vec<_>>()));
    }
    state.push(format!("steps: {}", store.counter("steps").value()));
    state
}

/// All ways to read agree, as long as nothing changes.
fn check_reads<S: Store>(store: &S) {
    let scanned = store.scan("");
    assert!(scanned.iter().all(|entry| store.get(entry.key()).map(|it| it.stamp()) == Some(entry.stamp())));
    // Each node has a share of the counter.
    assert_eq!(store.len(), scanned.len() + store.set("names").len() + store.set("left").len() + 3);
    for set in ["names", "left"].map(|name| store.set(name)) {
        assert!(set.iter().all(|element| set.contains(element)));
        let count = set.iter().count();
        assert_eq!((count, count == 0), (set.len(), set.is_empty()));
        assert_eq!(set.page(None, 2).into_iter().next_back(), set.iter().take(2).last());
    }
    assert!(!store.is_empty() && !store.set("names").contains("nobody"));
}

/// The nodes with the name of the node behind each.
fn pairs<S: Store>(stores: &[S]) -> impl Iterator<Item = (&S, &str)> {
    stores.iter().enumerate().map(|(i, store)| (store, stores[(i + 1) % stores.len()].name()))
}

/// The application in a simulation with loss and partitions.
fn simulated(seed: u64, ignores_deletes: bool) -> Vec<String> {
    let mut sim = Sim::new(seed).nodes(3).loss(0.2);
    let stores = [0, 1, 2].map(|i| sim.node(i));
    stores.iter().for_each(|store| sim.spawn(copy(store.view(), ignores_deletes)));
    sim.partition(&[0], &[1, 2]);
    pairs(&stores).for_each(|(store, next)| write(store, next));
    sim.run_for(ms(2_000));
    sim.heal();
    sim.assert_converged();
    sim.partition(&[0, 1], &[2]);
    pairs(&stores).for_each(|(store, next)| revise(store, next));
    sim.run_for(ms(2_000));
    sim.heal();
    sim.assert_converged();
    stores.iter().for_each(check_reads);
    let states = stores.each_ref().map(state);
    assert!(states.iter().all(|state| *state == states[0]), "{states:#?}");
    states[0].clone()
}

/// The application on three nodes of this process; `expected` is what they have to come to.
async fn on_nodes(expected: &[String]) {
    let a = nodes::start("n0", &[]).await;
    let b = nodes::start("n1", &[&a]).await;
    let c = nodes::start("n2", &[&a, &b]).await;
    let stores = [a, b, c];
    let tasks: Vec<_> = stores.iter().map(|store| tokio::spawn(copy(store.view(), false))).collect();
    pairs(&stores).for_each(|(store, next)| write(store, next));
    nodes::until(|| {
        let held = |store: &tidings::Node| {
            (store.counter("steps").value(), store.scan("out/").len(), store.scan("map/").len())
        };
        stores.iter().all(|store| held(store) == (15, 9, 3))
    })
    .await;
    pairs(&stores).for_each(|(store, next)| revise(store, next));
    nodes::until(|| stores.iter().all(|store| state(store) == expected)).await;
    for store in stores {
        check_reads(&store);
        store.shutdown().await;
    }
    // Their watches have ended.
    for task in tasks {
        nodes::guarded(task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn application_runs_alike_on_nodes_and_in_simulations() {
    let expected = simulated(1, false);
    assert!(expected.contains(&"out/n1/2 = revised".to_owned()), "{expected:#?}");
    assert!(expected.contains(&"steps: 12".to_owned()), "{expected:#?}");
    (2..20).for_each(|seed| assert_eq!(simulated(seed, false), expected, "seed {seed}"));
    on_nodes(&expected).await;
}

#[test]
fn application_that_ignores_deletes_comes_to_another_state() {
    let (right, wrong) = (simulated(1, false), simulated(1, true));
    let surplus: Vec<&String> = wrong.iter().filter(|line| !right.contains(line)).collect();
    assert!(!surplus.is_empty() && surplus.iter().all(|line| line.starts_with("out/")), "{surplus:?}");
}

/// Adds one to a counter after each of some times, and then says whether the node had caught up.
async fn tick<S: Store>(store: S, times: Vec<Duration>) {
    for time in times {
        store.sleep(time).await;
        store.counter("ticks").add(1).expect("the node accepts writes");
    }
    let doubled = store.blocking(|| 21 * 2).await.expect("the work does not panic");
    let has_joined = store.joined().await;
    store.put("end", format!("{doubled} {has_joined}").as_bytes()).expect("the node accepts writes");
}

#[test]
fn timers_of_tasks_end_in_virtual_time() {
    let mut sim = Sim::new(1).nodes(2);
    let store = sim.node(0);
    // Spawned by a task, which was itself spawned through a handle.
    let spawner = store.clone();
    store.spawn(async move { spawner.spawn(tick(spawner.clone(), vec![ms(100), ms(0), ms(50)])) });
    let ticks = |sim: &mut Sim, more: u64| {
        sim.run_for(ms(more));
        store.counter("ticks").value()
    };
    assert_eq!([99, 1, 49, 1].map(|more| ticks(&mut sim, more)), [0, 2, 2, 3]);
    sim.run_for(ms(1_000));
    assert_eq!(store.get("end").unwrap().value(), b"42 true");
    assert_eq!(
        store.member_of(store.get("end").unwrap().stamp()).map(|member| member.name).as_deref(),
        Some("n0")
    );
}

#[test]
fn timer_follows_the_clock_of_its_node() {
    let mut sim = Sim::new(1).nodes(1);
    sim.drift(0, 500_000);
    sim.node(0).spawn(tick(sim.node(0), vec![ms(150)]));
    sim.run_for(ms(99));
    assert_eq!(sim.node(0).counter("ticks").value(), 0);
    sim.run_for(ms(2));
    assert_eq!(sim.node(0).counter("ticks").value(), 1);
}

#[test]
fn timers_that_write_nothing_leave_the_trace_alone() {
    let trace = |with_timers: bool| {
        let mut sim = Sim::new(5).nodes(3).loss(0.2);
        if with_timers {
            let node = sim.node(1);
            sim.spawn(async move {
                loop {
                    node.sleep(ms(7)).await;
                }
            });
        }
        sim.node(0).put("k", "v").unwrap();
        sim.run_for(ms(5_000));
        sim.trace()
    };
    assert_eq!(trace(false), trace(true));
}

#[test]
fn node_that_is_cut_off_has_not_joined() {
    let mut sim = Sim::new(1).nodes(2);
    sim.partition(&[0], &[1]);
    sim.node(0).spawn(tick(sim.node(0), Vec::new()));
    sim.run_for(ms(60_000));
    assert_eq!(sim.node(0).get("end"), None);
    sim.heal();
    sim.run_for(ms(10_000));
    assert_eq!(sim.node(0).get("end").unwrap().value(), b"42 true");
}

#[test]
fn simulation_drops_tasks_that_were_never_polled() {
    let held = Arc::new(());
    let sim = Sim::new(1).nodes(1);
    let (node, kept) = (sim.node(0), held.clone());
    sim.node(0).spawn(async move { _ = (node, kept) });
    drop(sim);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_and_tasks_run_on_a_node() {
    let node = nodes::start("n0", &[]).await;
    node.spawn(tick(node.view(), vec![ms(1), ms(0)]));
    nodes::until(|| node.get("end").is_some()).await;
    assert_eq!(node.get("end").unwrap().value(), b"42 true");
    assert_eq!(node.counter("ticks").value(), 2);
    assert_eq!(
        node.member_of(node.get("end").unwrap().stamp()).map(|member| member.name).as_deref(),
        Some("n0")
    );
    assert_eq!(node.blocking(|| panic!("on purpose")).await, None::<()>);
    node.shutdown().await;
    assert!(!node.joined().await);
}

/// Batches of all kinds of writes, conditional puts and deletes of a prefix.
fn batches<S: Store>(store: &S) {
    store.put("a/1", b"one").unwrap();
    let one = store.get("a/1").unwrap();
    let all = store
        .batch()
        .put("a/2", "two")
        .put_with("a/3", "three", PutOptions::new().only_if(OnlyIf::Absent))
        .delete_if("a/1", OnlyIf::Stamp(one.stamp()))
        .set_add("s", "x")
        .counter_add("c", 2)
        .counter_add("c", 3)
        .set_remove("s", "x");
    assert_eq!((all.len(), all.is_empty()), (7, false));
    for refused in [
        all.clone().put_with("a/4", "four", PutOptions::new().only_if(OnlyIf::Stamp(one.stamp()))),
        all.clone().delete_if("a/1", OnlyIf::Absent),
        all.clone().counter_add("c", i64::MAX),
        all.clone().set_add("s", ""),
        all.clone().counter_add("", 1),
    ] {
        let before = store.len();
        refused.commit().unwrap_err();
        assert_eq!((store.len(), store.counter("c").value()), (before, 0), "a part of it was written");
    }
    all.commit().unwrap();
    let keys = |prefix| store.scan(prefix).iter().map(|entry| entry.key().to_owned()).collect::<Vec<_>>();
    assert_eq!(keys("a/"), ["a/2", "a/3"]);
    assert_eq!((store.counter("c").value(), store.set("s").len()), (5, 0));
    store.counter("c").add(1).unwrap();
    assert_eq!(store.counter("c").value(), 6);
    assert!(store.put_if_changed("a/2", b"two").unwrap().is_none());
    assert!(store.put_if_changed("a/2", b"2").unwrap().is_some());
    store.put_with("a/2", b"2", PutOptions::new().ttl(ms(3_600_000))).unwrap();
    assert!(store.put_if_changed("a/2", b"2").unwrap().is_some(), "it would have expired");
    let since = store.put("ab", b"another prefix").unwrap().revision();
    let unchanged =
        |prefix| store.batch().put("b/1", "1").delete("b/1").unchanged_since(prefix, since).commit();
    unchanged("a/").unwrap();
    for change in [|store: &S| store.put("a/4", b"4").unwrap(), |store: &S| store.delete("a/4").unwrap()] {
        let since = store.put("ab", b"another prefix").unwrap().revision();
        let batch = |prefix| store.batch().put("b/1", "1").unchanged_since(prefix, since).commit();
        change(store);
        assert_eq!(batch("a/").unwrap_err(), WriteError::Changed { prefix: "a/".to_owned() });
        assert!(store.get("b/1").is_none(), "nothing of it was written");
        batch("ab").unwrap();
        store.delete("b/1").unwrap();
    }
    assert_eq!((store.delete_prefix("a/"), store.delete_prefix("a/")), (Ok(2), Ok(0)));
    assert_eq!(keys(""), ["ab"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_of_any_writes_is_applied_whole_or_not_at_all() {
    let mut sim = Sim::new(1).nodes(2);
    batches(&sim.node(0));
    sim.assert_converged();
    assert_eq!(sim.node(1).counter("c").value(), 6);
    let node = nodes::start("n0", &[]).await;
    batches(&node);
    node.shutdown().await;
}

/// Listings of sets and counters, elements with an expiry, and the watch of a counter. `later` lets a time pass.
async fn collections<S: Store>(store: &S, later: impl AsyncFn(Duration)) {
    for (set, element) in [("b", "x"), ("aa", "x"), ("aa", "y"), ("a/long/name", "x"), ("aa\u{10ffff}", "x")]
    {
        store.set(set).add(element).unwrap();
    }
    ["hits", "z", "hit"].iter().for_each(|name| _ = store.counter(name).add(1).unwrap());
    store.put("aa", b"a register").unwrap();
    assert_eq!(store.sets(""), ["a/long/name", "aa", "aa\u{10ffff}", "b"]);
    assert_eq!(store.sets("aa"), ["aa", "aa\u{10ffff}"]);
    assert_eq!((store.counters(""), store.counters("hi")).0, ["hit", "hits", "z"]);
    assert_eq!(store.counters("hi"), ["hit", "hits"]);
    store.set("b").remove("x").unwrap();
    assert_eq!(store.sets("b"), Vec::<String>::new(), "a set without elements is none");

    let mut values = store.counter("hits").watch();
    assert_eq!(values.next().await, Some(1));
    store.counter("hits").add(2).unwrap();
    store.counter("hits").add(-2).unwrap();
    store.counter("hits").add(4).unwrap();
    assert_eq!(values.next().await, Some(5));

    let short = PutOptions::new().ttl(ms(300));
    let set = store.set("short");
    set.add_with("e", short.only_if(OnlyIf::Absent)).unwrap();
    set.add_with("e", short.only_if(OnlyIf::Absent)).unwrap_err();
    store.batch().set_add_with("short", "f", short).commit().unwrap();
    set.add("stays").unwrap();
    assert_eq!((set.len(), set.contains("e")), (3, true));
    assert!(set.entries(None, 9).iter().all(|it| it.expires_at().is_some() == (it.key() != "stays")));
    later(ms(400)).await;
    assert_eq!(set.iter().collect::<Vec<_>>(), ["stays"]);
    assert_eq!((set.len(), set.contains("e"), set.page(None, 9).len()), (1, false, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_and_counters_are_listed_and_watched() {
    let sim = std::sync::Mutex::new(Sim::new(1).nodes(1));
    let node = sim.lock().unwrap().node(0);
    collections(&node, async |time| sim.lock().unwrap().run_for(time)).await;

    let node = nodes::start("n0", &[]).await;
    // A node that runs looks at the time by itself: the elements are gone when it has passed.
    collections(&node, async |time| tokio::time::sleep(time).await).await;
}
