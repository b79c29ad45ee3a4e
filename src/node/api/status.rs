//! What a node reports of itself.

#[cfg(feature = "json")]
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrival;
#[cfg(feature = "json")]
use crate::error::Rejected;
use crate::form;
use crate::id::RunId;
use crate::node::net::sender::LinkSender;
use crate::node::runtime::shared::Shared;
use crate::replica::{Readiness, Status};

/// The state of a node at one instant; see [`Node::status`](crate::Node::status).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// The run: a random number for this start of the process.
    pub run: RunId,
    /// The address that the node is bound to.
    pub addr: SocketAddr,
    /// Whether the node is closed.
    pub is_closed: bool,
    /// Whether writes are refused with [`WriteError::Busy`](crate::WriteError::Busy) because the cluster is too far
    /// behind.
    pub is_busy: bool,
    /// Whether the node is ready, and whether it has caught up with its cluster. `Joining` if the replica has panicked.
    pub readiness: Readiness,
    /// The replica: root, counts, bytes. `None` if the replica has panicked.
    pub store: Option<Status>,
    /// The peers: members that this node is linked with.
    pub peers: Vec<PeerStatus>,
    /// How long the writes of other nodes take to arrive here, by the run that wrote them.
    pub arrivals: Vec<Arrival>,
    /// What live values and feature flags do not apply now, by their keys or prefixes. Those of one name are together.
    #[cfg(feature = "json")]
    #[serde(default)]
    pub rejected: BTreeMap<String, Vec<Rejected>>,
}

impl NodeStatus {
    pub(in crate::node) fn of(shared: &Shared) -> Self {
        let core = shared.lock_closed();
        let status = core.map(|core| {
            let peer = |(id, name, addr): (_, &str, _)| {
                let (lag_changes, lag_bytes) = core.replica.lag(id);
                let lag_time = core.replica.lag_time(shared.now(), id);
                let connection = core.senders.get(&id).map(LinkSender::connection);
                let rtt = connection.map(quinn::Connection::rtt).unwrap_or_default();
                let sent_bytes = connection.map_or(0, |connection| connection.stats().udp_tx.bytes);
                PeerStatus { name: name.to_owned(), addr, lag_changes, lag_bytes, lag_time, rtt, sent_bytes }
            };
            (
                shared.join_board.readiness(&core.replica),
                core.replica.status(),
                core.peers.links().map(peer).collect(),
                core.arrivals.figures(shared.now(), &core.replica),
            )
        });
        let (readiness, store, peers, arrivals) = match status {
            Some((readiness, store, peers, arrivals)) => (readiness, Some(store), peers, arrivals),
            None => Default::default(),
        };
        NodeStatus {
            name: shared.name.clone(),
            run: shared.run,
            addr: shared.addr,
            is_closed: shared.is_closed(),
            is_busy: shared.is_busy.load(Ordering::Relaxed),
            readiness,
            store,
            peers,
            arrivals,
            #[cfg(feature = "json")]
            rejected: shared.rejections.all(),
        }
    }
}

/// A peer of a node: its lag, and the figures of the link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer's name.
    pub name: String,
    /// The address at which others can reach it.
    pub addr: SocketAddr,
    /// Changes that were not sent to it yet.
    pub lag_changes: u64,
    /// About how many bytes these changes are: their number times the average size of an entry.
    pub lag_bytes: u64,
    /// How long the peer has owed an acknowledgement of something that was sent to it; zero if it owes none. One
    /// acknowledgement covers many writes, so a peer may delay it, at most for half a
    /// [`Config::sync_interval`](crate::Config::sync_interval). That delay does not count.
    #[serde(with = "form::span")]
    pub lag_time: Duration,
    /// The smoothed round trip.
    #[serde(with = "form::span")]
    pub rtt: Duration,
    /// Bytes sent to it in UDP datagrams since this link was made, without UDP and IP headers.
    pub sent_bytes: u64,
}
