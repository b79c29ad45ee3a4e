//! User code in the simulator: what handles of simulated nodes do, and that tasks run in virtual time and repeat.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_core::Stream;
use tidings::sim::{Sim, SimNode, SimReceipt, SimWatch};
use tidings::{WatchEvent, WriteError};

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
    let mut watch = pin!(sim.node(0).watch_with("k", tidings::WatchOptions::new().without_current()));
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
