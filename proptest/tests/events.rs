//! What a node tells of its work while it runs: events of links, repairs and leases, and the spans of `tracing`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tidings::core::{LeaseEnd, PeerExit};
use tidings::events::LinkEnd;
use tidings::{Config, Node, NodeEvent, Quorum};
use tidings_proptest::Folder;
use tidings_proptest::nodes::{self, GUARD, builder, guarded, ready, until};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Waits for an event of a node.
async fn event(node: &Node, is_it: impl Fn(&NodeEvent) -> bool) -> NodeEvent {
    nodes::event(node, |event| is_it(&event).then_some(event)).await
}

fn voting(names: &[&str]) -> Config {
    let mut config = Config::local();
    config.voters = names.iter().map(|name| (*name).to_owned()).collect();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_repairs_are_told_with_peer_and_reason() {
    let a = nodes::start("a", &[]).await;
    (0..100).for_each(|i| _ = a.put(format!("{i}"), "v").expect("it can be written"));
    let b = nodes::start("b", &[&a]).await;
    let made = event(&a, |event| matches!(event, NodeEvent::LinkMade { .. })).await;
    assert_eq!(made, NodeEvent::LinkMade { peer: "b".to_owned(), addr: b.addr() });
    event(&b, |event| matches!(event, NodeEvent::LinkMade { peer, .. } if peer == "a")).await;
    let repaired = event(&b, |event| matches!(event, NodeEvent::RepairEnded { .. })).await;
    let NodeEvent::RepairEnded { peer, repair } = &repaired else { panic!("{repaired:?}") };
    assert_eq!(peer, "a");
    assert!(repair.is_complete && repair.rows >= 100 && repair.bytes > 100, "{repair:?}");
    assert!(repaired.to_string().starts_with("a repair with a is complete: "), "{repaired}");
    let end_of = |event: NodeEvent| match event {
        NodeEvent::LinkEnded { peer, end, .. } if peer != "c" => Some(end),
        _ => None,
    };
    b.shutdown_expecting_return().await;
    assert_eq!(nodes::event(&a, end_of).await, LinkEnd::PeerExit(PeerExit::Ends));
    let c = nodes::start("c", &[&a]).await;
    c.shutdown().await;
    let left = |event: &NodeEvent| matches!(event, NodeEvent::LinkEnded { peer, .. } if peer == "c");
    let NodeEvent::LinkEnded { end, .. } = event(&a, left).await else { panic!("not a link") };
    // A peer that leaves is told farewell by the replica first, which breaks the link.
    assert!(matches!(end, LinkEnd::PeerExit(PeerExit::Leaves) | LinkEnd::Broken(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_won_given_up_and_lost_are_told() {
    let config = voting(&["a", "b", "c"]);
    let a = ready(builder("a", &[]).config(config.clone())).await;
    let b = ready(builder("b", &[&a]).config(config.clone())).await;
    let c = ready(builder("c", &[&a]).config(config)).await;
    let lead = guarded(a.election("cron").campaign("a")).await.expect("the voters can be reached");
    let token = lead.token();
    let won = event(&a, |event| matches!(event, NodeEvent::LeaseWon { .. })).await;
    assert_eq!(won, NodeEvent::LeaseWon { name: "cron".to_owned(), token });
    lead.resign().await;
    let ended = event(&a, |event| matches!(event, NodeEvent::LeaseEnded { .. })).await;
    assert_eq!(ended, NodeEvent::LeaseEnded { name: "cron".to_owned(), token, end: LeaseEnd::Resigned });
    let lead = guarded(a.election("other").campaign("a")).await.expect("the voters can be reached");
    b.shutdown_expecting_return().await;
    c.shutdown_expecting_return().await;
    guarded(lead.lost()).await;
    let is_lost = |event: &NodeEvent| matches!(event, NodeEvent::LeaseEnded { end: LeaseEnd::Lost, .. });
    let lost = event(&a, is_lost).await;
    assert!(lost.to_string().contains("lost the lease other"), "{lost}");
}

/// A span: its name, its fields as text, and whether it is closed.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    fields: BTreeMap<&'static str, String>,
    is_closed: bool,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps all spans of the library.
#[derive(Default)]
struct Spans {
    next: AtomicU64,
    seen: Mutex<BTreeMap<u64, (Seen, u64)>>,
}

impl Spans {
    fn of_all() -> &'static Arc<Self> {
        static SPANS: OnceLock<Arc<Spans>> = OnceLock::new();
        SPANS.get_or_init(|| {
            let spans = Arc::<Spans>::default();
            tracing::subscriber::set_global_default(Shared(spans.clone())).expect("it is the only one");
            spans
        })
    }

    /// The closed spans of this name, of this node.
    fn closed(&self, name: &str, node: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("nobody panics with it");
        let is_it = |seen: &&Seen| {
            let of_node = seen.fields.get("node").is_some_and(|of| of.trim_matches('"') == node);
            seen.name == name && seen.is_closed && of_node
        };
        seen.values().map(|(seen, _)| seen).filter(is_it).cloned().collect()
    }
}

struct Shared(Arc<Spans>);

impl Subscriber for Shared {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("tidings::")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut seen = Seen { name: span.metadata().name(), ..Seen::default() };
        span.record(&mut seen);
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.seen.lock().expect("nobody panics with it").insert(id, (seen, 1));
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut seen = self.0.seen.lock().expect("nobody panics with it");
        values.record(&mut seen.get_mut(&span.into_u64()).expect("it was made").0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn clone_span(&self, id: &Id) -> Id {
        self.0.seen.lock().expect("nobody panics with it").get_mut(&id.into_u64()).expect("it was made").1 +=
            1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut seen = self.0.seen.lock().expect("nobody panics with it");
        let (span, handles) = seen.get_mut(&id.into_u64()).expect("it was made");
        *handles -= 1;
        span.is_closed |= *handles == 0;
        *handles == 0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_cover_handshake_join_repair_campaign_and_disk() {
    let spans = Spans::of_all();
    let folder = Folder::new();
    let config = voting(&["span-a"]);
    let a = ready(builder("span-a", &[]).config(config.clone()).data_dir(folder.at("a"))).await;
    a.put("k", "v").expect("it can be written").durable().await.expect("the disk works");
    let b = ready(builder("span-b", &[&a]).config(config)).await;
    let lead = guarded(b.election("cron").campaign("b")).await.expect("the voter can be reached");
    b.put("l", "v").expect("it can be written").seen_by(Quorum::All, GUARD).await.expect("a has it");
    let token = lead.token().to_string();
    lead.resign().await;
    let all = [
        ("handshake", "span-a"),
        ("handshake", "span-b"),
        ("join", "span-b"),
        ("repair", "span-b"),
        ("campaign", "span-b"),
        ("disk_transaction", "span-a"),
    ];
    for (name, node) in all {
        until(|| !spans.closed(name, node).is_empty()).await;
    }
    let field = |name, node, field| spans.closed(name, node)[0].fields.get(field).cloned();
    assert_eq!(field("join", "span-b", "readiness").as_deref(), Some("\"joined\""));
    assert_eq!(field("repair", "span-b", "peer").as_deref(), Some("span-a"));
    assert_eq!(field("repair", "span-b", "is_complete").as_deref(), Some("true"));
    assert_eq!(field("campaign", "span-b", "name").as_deref(), Some("\"cron\""));
    assert_eq!(field("campaign", "span-b", "token"), Some(token));
    assert!(field("disk_transaction", "span-a", "rows").is_some());
}
