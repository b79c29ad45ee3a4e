//! Elections in the simulator, and their check: at every instant of true time at most one node holds a lease by its own
//! clock, and tokens grow. Only for simulations with [`Sim::seeds`], because voters are members.

use std::collections::BTreeMap;

use super::{Sim, SimFault, SimNode, World};
use crate::election::{Attempts, Leader, LeaseState, VoterList};
use crate::error::{ElectionError, SetSettingsError, SetVotersError};
use crate::id::LeaseId;
use crate::replica::Replica;
use crate::time::{Stamp, Time};

/// The campaigns of all nodes, and the tokens that were granted so far.
#[derive(Debug, Default)]
pub(super) struct LeaseOracle {
    /// By node, number of its start and campaign: the name of the lease and the state that was reported last.
    campaigns: BTreeMap<(usize, u64, LeaseId), (String, LeaseState)>,
    /// The last token of each lease.
    tokens: BTreeMap<String, Stamp>,
    terms: u64,
    /// What became of the last change of the voters that each node was asked for.
    voters_set: BTreeMap<usize, Result<(), SetVotersError>>,
    /// What became of the last change of the shared settings that each node was asked for.
    pub(super) settings_set: BTreeMap<usize, Result<(), SetSettingsError>>,
    /// The lists of voters that were in force anywhere, by their epochs.
    lists: BTreeMap<u64, VoterList>,
}

impl LeaseOracle {
    pub(super) fn voters_set(&mut self, i: usize, outcome: Result<(), SetVotersError>) {
        self.voters_set.insert(i, outcome);
    }

    pub(super) fn settings_set(&mut self, i: usize, outcome: Result<(), SetSettingsError>) {
        self.settings_set.insert(i, outcome);
    }
}

impl Sim {
    /// The token of the latest holder of a lease in the whole cluster.
    pub fn last_token(&self, name: &str) -> Option<Stamp> {
        self.world().leaders.tokens.get(name).copied()
    }

    /// How many times leases were won so far.
    pub fn terms(&self) -> u64 {
        self.world().leaders.terms
    }

    /// The nodes that hold a lease by their own clocks, including those whose process is stopped.
    pub fn holders(&self, name: &str) -> Vec<(usize, Stamp)> {
        self.world().holders(name)
    }
}

impl World {
    fn holders(&self, name: &str) -> Vec<(usize, Stamp)> {
        let holds = |i: &usize| self.nodes[*i].replica.as_ref()?.holds(self.time(*i), name);
        (0..self.nodes.len()).filter_map(|i| Some((i, holds(&i)?))).collect()
    }

    pub(super) fn lease_output(&mut self, i: usize, id: LeaseId, state: LeaseState) {
        let campaign = self.leaders.campaigns.get_mut(&(i, self.nodes[i].starts, id));
        let (name, known) = campaign.expect("it was begun here");
        *known = state;
        let LeaseState::Held(token) = state else { return };
        let name = name.clone();
        self.leaders.terms += 1;
        let last = self.leaders.tokens.insert(name.clone(), token);
        if let Some(last) = last.filter(|last| self.checks && last.clock >= token.clock) {
            let what = format!("{name}: token {token} of node {i} does not follow {last}");
            self.fail(SimFault::TokenNotGrown(what));
        }
    }

    /// Fails if another list of voters is in force elsewhere under the same epoch, or if the voters of the list before
    /// have not decided this one.
    pub(super) fn check_voter_list(&mut self, list: &VoterList) {
        let content = |list: &VoterList| VoterList { term_floor: 0, ..list.clone() };
        let known = self.leaders.lists.get(&list.epoch);
        if let Some(known) = known.filter(|known| self.checks && content(known) != content(list)) {
            let what = format!("epoch {}: {:?} and {:?}", list.epoch, known, list);
            self.fail(SimFault::TwoVoterLists(what));
        }
        if known.is_none() {
            self.check_decided(list);
            self.leaders.lists.insert(list.epoch, list.clone());
        }
    }

    /// Fails if a list is in force that no majority of the voters of the list before has accepted, and that was not
    /// forced either.
    fn check_decided(&self, list: &VoterList) {
        let before = list.epoch.checked_sub(1).and_then(|epoch| self.leaders.lists.get(&epoch));
        let has_accepted = |name: &str| {
            let mut named = (0..self.nodes.len()).filter(|i| *self.nodes[*i].name == *name);
            named.any(|i| self.voter_memo(i).is_some_and(|memo| memo.has_accepted(list)))
        };
        if self.checks && list.is_accepted(before, has_accepted) == Some(false) {
            self.fail(SimFault::VotersUndecided(format!("{list:?} after {before:?}")));
        }
    }

    /// Fails if more than one node holds a lease.
    pub(super) fn check_leaders(&self) {
        for name in self.leaders.tokens.keys().filter(|_| self.checks) {
            let holders = self.holders(name);
            if holders.len() > 1 {
                self.fail(SimFault::TwoHolders(format!("{name}: two holders: {holders:?}")));
            }
        }
    }
}

impl SimNode {
    /// Begins to campaign for a lease.
    ///
    /// # Errors
    /// See [`ElectionError`]; nothing began then.
    pub fn campaign(&self, name: &str, value: impl AsRef<[u8]>) -> Result<LeaseId, ElectionError> {
        self.begin_campaign(name, value.as_ref(), Attempts::UntilWon)
    }

    /// Tries once to win a lease.
    ///
    /// # Errors
    /// See [`ElectionError`]; nothing began then.
    pub fn try_campaign(&self, name: &str, value: impl AsRef<[u8]>) -> Result<LeaseId, ElectionError> {
        self.begin_campaign(name, value.as_ref(), Attempts::One)
    }

    fn begin_campaign(&self, name: &str, value: &[u8], attempts: Attempts) -> Result<LeaseId, ElectionError> {
        let world = &mut *self.world();
        let (replica, now) = world.replica(self.i).ok_or(ElectionError::Closed)?;
        let id = replica.campaign(now, name, value, attempts)?;
        let key = (self.i, world.nodes[self.i].starts, id);
        world.leaders.campaigns.insert(key, (name.to_owned(), LeaseState::Waiting));
        world.drain(self.i);
        Ok(id)
    }

    /// Gives up a lease or a campaign.
    pub fn resign(&self, id: LeaseId) {
        let world = &mut *self.world();
        let Some((replica, now)) = world.replica(self.i) else { return };
        replica.resign(now, id);
        world.drain(self.i);
    }

    /// Changes the value that a leader publishes.
    ///
    /// # Errors
    /// If the value is too large, or the lease is not held.
    pub fn proclaim(&self, id: LeaseId, value: impl AsRef<[u8]>) -> Result<(), ElectionError> {
        let world = &mut *self.world();
        let (replica, now) = world.replica(self.i).ok_or(ElectionError::Closed)?;
        let told = replica.proclaim(now, id, value.as_ref());
        world.drain(self.i);
        told
    }

    /// The state of a campaign of this run, as it was last reported to its process.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseState> {
        let world = &*self.world();
        let key = (self.i, world.nodes[self.i].starts, id);
        world.leaders.campaigns.get(&key).map(|(_, state)| *state)
    }

    /// The token of a lease that this node holds now, by its own clock.
    pub fn holds(&self, name: &str) -> Option<Stamp> {
        self.read(|replica, now| replica.holds(now, name))?
    }

    /// Begins to observe who holds a lease. It lasts until the node stops.
    ///
    /// # Errors
    /// See [`ElectionError`]; nothing began then.
    pub fn observe(&self, name: &str) -> Result<(), ElectionError> {
        let world = &mut *self.world();
        let (replica, now) = world.replica(self.i).ok_or(ElectionError::Closed)?;
        let observed = replica.observe(now, name);
        world.drain(self.i);
        observed
    }

    /// The holder of an observed lease, if any. `None` as long as that is unknown.
    pub fn leader(&self, name: &str) -> Option<Option<Leader>> {
        self.read(|replica, _| replica.leader(name).cloned())?
    }

    /// Begins to change the list of voters of the whole cluster, as `Node::set_voters` does.
    ///
    /// # Errors
    /// See [`SetVotersError`]; nothing began then.
    pub fn set_voters<T: Into<String>>(
        &self,
        voters: impl IntoIterator<Item = T>,
    ) -> Result<(), SetVotersError> {
        self.world().leaders.voters_set.remove(&self.i);
        self.change_voters(voters, |replica, now, voters| {
            replica.forget_caller();
            replica.set_voters(now, voters)
        })
    }

    /// Puts another list of voters in force without asking the present ones, as `Node::force_voters` does.
    ///
    /// # Errors
    /// See [`SetVotersError`]; nothing is changed then.
    pub fn force_voters<T: Into<String>>(
        &self,
        voters: impl IntoIterator<Item = T>,
    ) -> Result<(), SetVotersError> {
        self.change_voters(voters, Replica::force_voters)
    }

    fn change_voters<T: Into<String>>(
        &self,
        voters: impl IntoIterator<Item = T>,
        change: impl FnOnce(&mut Replica, Time, &[String]) -> Result<(), SetVotersError>,
    ) -> Result<(), SetVotersError> {
        let voters: Vec<String> = voters.into_iter().map(Into::into).collect();
        let mut world = self.world();
        let (replica, now) = world.replica(self.i).ok_or(SetVotersError::Closed)?;
        change(replica, now, &voters)?;
        world.drain(self.i);
        Ok(())
    }

    /// What became of the last [`SimNode::set_voters`]. `None` as long as that is open.
    pub fn voters_set(&self) -> Option<Result<(), SetVotersError>> {
        self.world().leaders.voters_set.get(&self.i).cloned()
    }

    /// The list of voters, as far as this node knows.
    pub fn voters(&self) -> Option<VoterList> {
        self.read(|replica, _| replica.voters().cloned())?
    }

    /// The name of the member that a lease of this name falls to, as this node sees the members. Other nodes may see
    /// another.
    pub fn leader_hint(&self, name: &str) -> Option<String> {
        self.read(|replica, _| replica.leader_hint(name).map(|member| member.name.clone()))?
    }
}
