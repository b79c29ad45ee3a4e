//! Who in this process waits for news of leases and leaders.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::election::{Leader, LeaseState, Sighting};
use crate::id::LeaseId;

/// The channels to those who wait for the outcome of campaigns, and to those who follow who leads.
#[derive(Debug, Default)]
pub(in crate::node) struct Listeners {
    pub(in crate::node) leases: BTreeMap<LeaseId, watch::Sender<LeaseState>>,
    pub(in crate::node) leaders: BTreeMap<String, watch::Sender<Sighting>>,
}

impl Listeners {
    pub(in crate::node) fn lease(&mut self, id: LeaseId, state: LeaseState) {
        if let Some(listener) = self.leases.get(&id) {
            listener.send_replace(state);
        }
        if matches!(state, LeaseState::Ended(_)) {
            self.leases.remove(&id);
        }
    }

    pub(in crate::node) fn leader(&mut self, name: &str, leader: Option<Leader>) {
        if let Some(listener) = self.leaders.get(name) {
            listener.send_replace(Sighting::Known(leader));
        }
    }
}
