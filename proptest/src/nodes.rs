//! Real nodes on loopback: how tests and measurements start them, and how they wait for them.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tidings::sim::{Sim, SimNode};
use tidings::{Builder, Config, Node, NodeEvent, PeerRefusal, Security, Store};

use crate::ms;

/// Time limit against a test that would wait for ever. No test measures by it.
pub const GUARD: Duration = Duration::from_secs(300);

/// Awaits a future for at most [`GUARD`].
///
/// # Panics
/// If the future is not ready in time.
pub async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future)
        .await
        .expect("the awaited event happens within the time limit of the test")
}

/// Lets other tasks run until a condition holds.
///
/// # Panics
/// If it does not hold in time.
pub async fn until(holds: impl Fn() -> bool) {
    guarded(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The secret of all nodes in tests, also of those in processes that a test starts.
const SECRET: &str = "tx4m-9vkd-q2ph-7rzs-w8bn-c3fy-j6ga-u5eh";

/// One security for all nodes of a process: to derive keys from a secret is slow on purpose.
pub fn security() -> Security {
    static SECURITY: OnceLock<Security> = OnceLock::new();
    let new = || Security::secret(SECRET).expect("it is strong");
    SECURITY.get_or_init(new).clone()
}

/// A node on a free port of loopback with [`security`] and [`Config::local`]. It joins through these nodes.
pub fn builder(name: &str, seeds: &[&Node]) -> Builder {
    let seeds = seeds.iter().map(|node| node.addr().to_string());
    Node::builder(name).security(security()).config(Config::local()).seeds(seeds)
}

/// Starts a node and waits until it is ready.
///
/// # Panics
/// If it does not start, or is not ready in time.
pub async fn ready(builder: Builder) -> Node {
    let node = builder.start().await.expect("the node starts");
    guarded(node.ready()).await.expect("the node is open");
    node
}

/// Starts the node of [`builder`] and waits until it is ready.
///
/// # Panics
/// If it does not start, or is not ready in time.
pub async fn start(name: &str, seeds: &[&Node]) -> Node {
    ready(builder(name, seeds)).await
}

/// Waits for an event of a node to which `pick` has an answer, and returns the answer.
///
/// # Panics
/// If the node is closed, or there is no such event in time.
pub async fn event<T>(node: &Node, pick: impl Fn(NodeEvent) -> Option<T>) -> T {
    let mut events = node.events();
    guarded(async {
        loop {
            if let Some(picked) = pick(events.next().await.expect("the node is open")) {
                return picked;
            }
        }
    })
    .await
}

/// Waits for the next refusal that a node reports, of a peer or by a peer, and returns the reason.
///
/// # Panics
/// If the node is closed, or reports no refusal in time.
pub async fn refusal(node: &Node) -> PeerRefusal {
    let pick = |event| match event {
        NodeEvent::PeerRefused { refusal, .. } => Some(refusal),
        _ => None,
    };
    event(node, pick).await
}

/// What a story sees on a simulated node and on a real one, both called `n0`: it has to be the same. The story writes the
/// key `end`; then its node is closed, after `look` was called with the real one.
///
/// # Panics
/// If it does not come to its end, or sees something else on the two nodes.
pub async fn story_on_both<A, B>(
    simulated: impl FnOnce(SimNode) -> A,
    real: impl FnOnce(Node) -> B,
    look: impl AsyncFnOnce(&Node),
) -> Vec<String>
where
    A: Future<Output = Vec<String>> + Send + 'static,
    B: Future<Output = Vec<String>> + Send + 'static,
{
    let mut sim = Sim::new(1).nodes(1);
    let slot = Arc::new(Mutex::new(None));
    let (given, story) = (slot.clone(), simulated(sim.node(0)));
    sim.spawn(async move { *given.lock().expect("nobody panics") = Some(story.await) });
    sim.run_for(ms(2_000));
    assert!(sim.node(0).get("end").is_some(), "it came to its end");
    sim.crash(0);
    sim.run_for(ms(1));
    let seen = slot.lock().expect("nobody panics").take().expect("it has ended");

    let node = start("n0", &[]).await;
    let told = tokio::spawn(real(node.view()));
    until(|| node.get("end").is_some()).await;
    look(&node).await;
    node.shutdown().await;
    assert_eq!(guarded(told).await.expect("it does not panic"), seen);
    seen
}
