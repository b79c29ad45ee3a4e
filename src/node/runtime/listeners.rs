//! Who in this process waits for news of leases and leaders.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot, watch};

use crate::election::LeaseState;
use crate::error::SetVotersError;
use crate::id::LeaseId;

/// The channels to those who wait for the outcome of campaigns, and those who observe who leads.
#[derive(Debug, Default)]
pub(in crate::node) struct Listeners {
    pub(in crate::node) leases: BTreeMap<LeaseId, watch::Sender<LeaseState>>,
    /// By the name of the lease. Notified when the leader has changed, and when the node is closed. Who leads is read
    /// from the replica.
    pub(in crate::node) leaders: BTreeMap<String, Arc<Notify>>,
    /// Who waits for a change of the voters.
    pub(in crate::node) voters: Option<oneshot::Sender<Result<(), SetVotersError>>>,
}

impl Listeners {
    pub(in crate::node) fn voters_set(&mut self, outcome: Result<(), SetVotersError>) {
        if let Some(listener) = self.voters.take() {
            // Nobody waits any more if the future was dropped.
            _ = listener.send(outcome);
        }
    }

    pub(in crate::node) fn lease(&mut self, id: LeaseId, state: LeaseState) {
        if let Some(listener) = self.leases.get(&id) {
            listener.send_replace(state);
        }
        if matches!(state, LeaseState::Ended(_)) {
            self.leases.remove(&id);
        }
    }
}
