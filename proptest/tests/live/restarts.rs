//! Live values and typed watches on real nodes, over random writes, writes that are not acceptable, and restarts.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use futures_core::Stream;
use tidings::live::{LiveError, LiveState};
use tidings::{Live, MapEvent, MapWatch, Node};
use tidings_proptest::{Dice, nodes};

use crate::{Plain, held};

/// Starts a live value, if what the store holds is acceptable.
async fn start(node: &Node) -> Option<Live<Plain>> {
    match Live::<Plain>::builder(node, "p/").start().await {
        Ok(live) => Some(live),
        Err(LiveError::Rejected(rejected)) => {
            assert!(!rejected.is_empty() && held(node).is_none(), "{rejected:?}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn write(node: &Node, dice: &mut Dice) {
    let (key, text) = (format!("p/k{}", dice.below(5)), dice.below(1_000_000).to_string());
    match dice.below(8) {
        0..3 => _ = node.put(key, text).unwrap(),
        3 => _ = node.put(key, "no number").unwrap(),
        4 | 5 => _ = node.delete(key).unwrap(),
        6 => _ = node.batch().put(key, &text).put("p/k0", &text).delete("p/k1").commit().unwrap(),
        _ => _ = node.delete_prefix("p/k").unwrap(),
    }
}

/// Whether a live value is what its node holds, or says that it is not.
fn agrees(node: &Node, live: &Live<Plain>) -> bool {
    match held(node) {
        Some(held) => {
            *live.load() == held && live.state() == LiveState::Current && live.rejected().is_empty()
        }
        None => live.state() == LiveState::Rejected && !live.rejected().is_empty(),
    }
}

/// Takes everything that a watch has to tell now.
async fn follow(watch: &mut MapWatch<u32>, copy: &mut Plain) {
    loop {
        let next = poll_fn(|cx| match Pin::new(&mut *watch).poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(event),
            Poll::Pending => Poll::Ready(None),
        });
        match next.await {
            Some(MapEvent::Put { key, value, .. }) => _ = copy.insert(key, *value),
            Some(MapEvent::Delete { key, .. } | MapEvent::Invalid { key, .. }) => _ = copy.remove(&key),
            Some(MapEvent::Resync) => copy.clear(),
            Some(_) => {}
            None => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_values_of_two_nodes_agree_through_restarts() {
    let mut dice = Dice::new(29);
    let a = nodes::start("a", &[]).await;
    let mut b = nodes::start("b", &[&a]).await;
    let live = start(&a).await.unwrap();
    let mut other = start(&b).await;
    let (mut slow, mut copy) = (a.map::<u32>("p/").watch(), Plain::new());
    for round in 0..30 {
        for _ in 0..40 {
            write(if dice.below(2) == 0 { &a } else { &b }, &mut dice);
        }
        if dice.below(3) == 0 {
            b.shutdown().await;
            if let Some(ended) = other.take() {
                nodes::until(|| ended.state() == LiveState::Ended).await;
            }
            write(&a, &mut dice);
            b = nodes::start("b", &[&a]).await;
        }
        if round % 10 == 9 {
            // More removals than the change log remembers: the watch has to start over.
            for i in 0..5_000 {
                a.put(format!("elsewhere/{i}"), "v").unwrap();
                a.delete(format!("elsewhere/{i}")).unwrap();
            }
            follow(&mut slow, &mut copy).await;
        }
        let stamps = |node: &Node| -> Vec<_> { node.scan("p/").iter().map(tidings::Entry::stamp).collect() };
        nodes::until(|| stamps(&a) == stamps(&b)).await;
        if other.is_none() {
            other = start(&b).await;
        }
        nodes::until(|| agrees(&a, &live) && other.as_ref().is_none_or(|live| agrees(&b, live))).await;
    }
    follow(&mut slow, &mut copy).await;
    let numbers = a.map::<u32>("p/");
    let right: Plain = numbers.iter().filter_map(Result::ok).map(|(key, value)| (key, *value)).collect();
    assert_eq!(copy, right);
    b.shutdown().await;
    a.shutdown().await;
}
