//! Who in this process waits for news of leases and leaders.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot, watch};

use crate::election::LeaseState;
use crate::error::{SetSettingsError, SetVotersError};
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
    pub(in crate::node) voters: Waiting<SetVotersError>,
    /// Who waits for a change of the shared settings.
    pub(in crate::node) settings: Waiting<SetSettingsError>,
}

/// The channel to a call that waits for the outcome of a change.
pub(in crate::node) type Waiting<E> = Option<oneshot::Sender<Result<(), E>>>;

/// Tells a call the outcome.
pub(in crate::node) fn tell<E>(waiting: &mut Waiting<E>, outcome: Result<(), E>) {
    if let Some(caller) = waiting.take() {
        // Nobody waits any more if the future was dropped.
        _ = caller.send(outcome);
    }
}

/// A campaign of this node, or the lease that it has won.
#[derive(Debug)]
struct LeaseListener {
    name: String,
    state: watch::Sender<LeaseState>,
}

impl Listeners {
    /// Whether a call waits for a change of the voters or of the shared settings. Only one of them is under way at a time.
    pub(in crate::node) fn is_change_awaited(&self) -> bool {
        self.voters.as_ref().is_some_and(|caller| !caller.is_closed())
            || self.settings.as_ref().is_some_and(|caller| !caller.is_closed())
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
