//! Who in this process waits for news of leases and leaders.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot, watch};

use crate::election::LeaseState;
use crate::error::SetVotersError;
use crate::id::LeaseId;
use crate::node::net::peers::NodeEvent;

/// The channels to those who wait for the outcome of campaigns, and those who observe who leads.
#[derive(Debug, Default)]
pub(in crate::node) struct Listeners {
    leases: BTreeMap<LeaseId, LeaseListener>,
    /// By the name of the lease. Notified when the leader has changed, and when the node is closed. Who leads is read
    /// from the replica.
    pub(in crate::node) leaders: BTreeMap<String, Arc<Notify>>,
    /// Who waits for a change of the voters.
    pub(in crate::node) voters: Option<oneshot::Sender<Result<(), SetVotersError>>>,
}

/// A campaign of this node, or the lease that it has won.
#[derive(Debug)]
struct LeaseListener {
    name: String,
    state: watch::Sender<LeaseState>,
}

impl Listeners {
    pub(in crate::node) fn voters_set(&mut self, outcome: Result<(), SetVotersError>) {
        if let Some(listener) = self.voters.take() {
            // Nobody waits any more if the future was dropped.
            _ = listener.send(outcome);
        }
    }

    /// A campaign has begun. Returns where its state is to be read.
    pub(in crate::node) fn begin(&mut self, id: LeaseId, name: String) -> watch::Receiver<LeaseState> {
        let (state, reader) = watch::channel(LeaseState::Waiting);
        self.leases.insert(id, LeaseListener { name, state });
        reader
    }

    /// Passes on what has become of a campaign. Returns the event to report, if a lease was won or has ended.
    pub(in crate::node) fn lease(&mut self, id: LeaseId, state: LeaseState) -> Option<NodeEvent> {
        let listener = self.leases.get(&id)?;
        let before = listener.state.send_replace(state);
        let name = listener.name.clone();
        if matches!(state, LeaseState::Ended(_)) {
            self.leases.remove(&id);
        }
        match (before, state) {
            (LeaseState::Waiting, LeaseState::Held(token)) => Some(NodeEvent::LeaseWon { name, token }),
            (LeaseState::Held(token), LeaseState::Ended(end)) => {
                Some(NodeEvent::LeaseEnded { name, token, end })
            }
            _ => None,
        }
    }

    /// The leases that are held.
    #[cfg(feature = "metrics")]
    pub(in crate::node) fn held(&self) -> usize {
        let is_held = |listener: &&LeaseListener| matches!(*listener.state.borrow(), LeaseState::Held(_));
        self.leases.values().filter(is_held).count()
    }
}
