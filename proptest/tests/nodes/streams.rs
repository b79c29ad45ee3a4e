//! Streams of a node: each is a `Stream`, misses nothing, replays what is kept, and ends with its node.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use tidings::{Config, LeaderEvent, MapEvent, MemberEvent, NodeEvent, WatchEvent};
use tidings_proptest::nodes::{builder, guarded, start};

/// Polls a stream once, as a `next` that is dropped while it waits.
pub(super) fn look<S: Stream + Unpin>(stream: &mut S) -> Poll<Option<S::Item>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

async fn item<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    guarded(poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx))).await
}

/// Waits for the end of a stream. It has begun to wait when this returns.
fn end_of<S: Stream + Unpin + Send + 'static>(mut stream: S) -> tokio::task::JoinHandle<()> {
    while look(&mut stream).is_ready() {}
    tokio::spawn(async move { while item(&mut stream).await.is_some() {} })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_miss_nothing_and_end_with_their_node() {
    let mut config = Config::local();
    config.voters = vec!["a".to_owned()];
    let a = builder("a", &[]).config(config.clone()).start().await.unwrap();
    let (mut watch, mut map) = (a.watch("k/"), a.map::<u32>("k/").watch());
    let (mut events, mut members) = (a.events(), a.member_events());
    let mut observer = a.election("e").observe().unwrap();
    assert_eq!(look(&mut watch), Poll::Ready(Some(WatchEvent::Current)));
    assert_eq!(look(&mut map), Poll::Ready(Some(MapEvent::Current)));
    assert!(item(&mut observer).await.is_some(), "the voter says that nobody leads");
    // Every stream waits now, with a waker that wakes nobody.
    assert!(look(&mut watch).is_pending() && look(&mut map).is_pending());
    assert!(look(&mut events).is_pending() && look(&mut members).is_pending());
    assert!(look(&mut observer).is_pending());

    a.put("k/x", "1").unwrap();
    assert!(matches!(item(&mut watch).await, Some(WatchEvent::Put(entry)) if entry.key() == "k/x"));
    assert!(
        matches!(item(&mut map).await, Some(MapEvent::Put { key, value, .. }) if key == "x" && *value == 1)
    );
    let b = builder("b", &[&a]).config(config.clone()).start().await.unwrap();
    assert!(matches!(item(&mut members).await, Some(MemberEvent::Joined(member)) if member.name == "b"));
    let mut joining = b.joining();
    let mut last = None;
    while let Some(step) = item(&mut joining).await {
        last = Some(step);
    }
    assert!(last.is_some_and(|step| step.is_ready));
    let stranger = builder("c", &[&a]).config(config).cluster("other").start().await.unwrap();
    let refused = async { while !matches!(item(&mut events).await, Some(NodeEvent::PeerRefused { .. })) {} };
    guarded(refused).await;
    let lead = guarded(a.election("e").campaign("v")).await.unwrap();
    let event = match item(&mut observer).await {
        Some(LeaderEvent::Vacant) => item(&mut observer).await,
        event => event,
    };
    assert!(matches!(event, Some(LeaderEvent::Leads(leader)) if leader.token == lead.token()));

    let late = builder("d", &[]).seeds(["127.0.0.1:1"]).start().await.unwrap();
    let ends = [
        end_of(watch),
        end_of(map),
        end_of(events),
        end_of(members),
        end_of(observer),
        end_of(late.joining()),
    ];
    drop(lead);
    guarded(a.shutdown()).await;
    guarded(late.shutdown()).await;
    for end in ends {
        guarded(end).await.unwrap();
    }
    drop((b, stranger));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_both_kinds_begin_with_past_ones() {
    let a = start("a", &[]).await;
    let _b = start("b", &[&a]).await;
    let (made, joined) = (item(&mut a.events()).await, item(&mut a.member_events()).await);
    assert!(matches!(&made, Some(NodeEvent::LinkMade { peer, .. }) if peer == "b"));
    assert!(matches!(&joined, Some(MemberEvent::Joined(member)) if member.name == "b"));
    // Whoever begins later gets the same events.
    assert_eq!(look(&mut a.events()), Poll::Ready(made));
    assert_eq!(look(&mut a.member_events()), Poll::Ready(joined));
}
