//! Support for the tests of real nodes: waiting with a time limit, and waiting for a refusal.

use std::time::Duration;

use tidings::{Node, NodeEvent, PeerRefusal};

/// Time limit against a test that would wait for ever. No test measures by it.
pub const GUARD: Duration = Duration::from_secs(300);

/// Awaits a future for at most [`GUARD`].
///
/// # Panics
///
/// Panics if the future is not ready in time.
pub async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future)
        .await
        .expect("the awaited event happens within the time limit of the test")
}

/// Waits for the next refusal that a node reports, of a peer or by a peer, and returns the reason.
///
/// # Panics
///
/// Panics if the node is closed, or if no refusal is reported in time.
pub async fn refusal(node: &Node) -> PeerRefusal {
    let mut events = node.events();
    guarded(async {
        loop {
            if let NodeEvent::PeerRefused { refusal, .. } = events.next().await.expect("the node is open") {
                return refusal;
            }
        }
    })
    .await
}
