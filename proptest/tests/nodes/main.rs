//! Real nodes on loopback: what users do with them in `operations`, their starts and ends in `lifetimes`, who becomes a
//! peer or a member in `members`, and where they look for others in `seeds`. Hostile peers are tested in `hostile.rs`.
//!
//! What is tested here is the surroundings of the replica: network, runtime, handles. The rules of replication are
//! tested in the simulator, with negative controls.

mod lifetimes;
mod members;
mod operations;
mod seeds;
mod streams;

use tidings::{Node, Watch, WatchEvent, WatchOptions};
use tidings_proptest::nodes::guarded;

/// Waits until a key has this value on a node.
async fn sees(node: &Node, key: &str, value: &[u8]) {
    let mut watch = node.watch_with(key, WatchOptions::new().exact());
    while !matches!(next(&mut watch).await, WatchEvent::Put(entry) if entry.value() == value) {}
}

/// The next event of a watch.
async fn next(watch: &mut Watch) -> WatchEvent {
    guarded(watch.next()).await.expect("the node is open")
}
