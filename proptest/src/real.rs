//! What the tests of real nodes share.

use std::time::Duration;

use tidings::{Node, NodeEvent, PeerRefusal};

/// Guards against a test that would wait for ever; nothing is measured by it.
pub const GUARD: Duration = Duration::from_secs(300);

/// What a future answers.
///
/// # Panics
///
/// Panics when nothing happens for far too long.
pub async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it happens before the test gives up")
}

/// Why a node refused a peer, or was refused, the next time that it happens.
///
/// # Panics
///
/// Panics if the node is closed, or if it does not happen.
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
