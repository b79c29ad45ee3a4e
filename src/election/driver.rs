//! The state of a node that drives a change of the voters, see [`super::change`], and of one that waits for the new voters
//! to have their list, see [`super::adoption`].

use std::time::Duration;

use super::VoterRules;
use super::voter_list::{Electorate, Step, VoterList};
use crate::id::RunId;
use crate::time::Stamp;

/// This node drives the next step of a change.
#[derive(Debug)]
pub(super) struct Change {
    /// The voters and times that the cluster is to have.
    pub(super) wanted: Electorate,
    pub(super) ballot: Stamp,
    /// The id of the first request under this ballot. An answer to an earlier request may be about another list, under
    /// an equal ballot of this node: both are of one millisecond, or the wall clock was set back between them.
    pub(super) request_id_min: u64,
    pub(super) stage: ChangeStage,
    /// The voters, in the order of the seats; and behind them the wanted nodes that are no voters yet.
    pub(super) peers: Vec<ChangePeer>,
    /// When a majority of the present list had adopted it.
    pub(super) adopted_at: Option<Duration>,
    pub(super) act_at: Duration,
    pub(super) tries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChangeStage {
    /// Another driver may be at it; a ballot begins at `act_at`.
    Waiting,
    Preparing,
    Accepting(Step),
}

#[derive(Debug)]
pub(super) struct ChangePeer {
    pub(super) name: String,
    /// The run that lives under the name.
    pub(super) run: Option<RunId>,
    pub(super) answer: Option<ChangeAnswer>,
    /// The greatest term that it had granted when it had adopted the present list.
    pub(super) adopted: Option<u64>,
}

/// The last answer under the present ballot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChangeAnswer {
    Prepared(Option<(Stamp, Step)>),
    Accepted,
    NoDisk,
    Differs(VoterRules),
}

/// Which voters are known to have the list that a call asked for.
#[derive(Clone, Debug)]
pub(super) struct Adoption {
    /// The epoch of the list. The answers of voters count as long as it is in force here.
    pub(super) epoch: u64,
    /// The id of the question, of which each repetition has the same. Answers to earlier requests do not count.
    pub(super) request_id: u64,
    /// By seat.
    pub(super) has_list: Vec<bool>,
    /// When a call that has changed nothing fails. `None`: it has, and the change goes on for as long as it takes.
    pub(super) until: Option<Duration>,
    pub(super) act_at: Duration,
    pub(super) tries: u32,
}

impl Change {
    pub(super) fn new(list: &VoterList, wanted: Electorate, act_at: Duration) -> Self {
        let mut names = list.names();
        names.extend(wanted.voters.iter().filter(|name| !list.has(name)).cloned());
        let peer = |name| ChangePeer { name, run: None, answer: None, adopted: None };
        Self {
            wanted,
            ballot: Stamp::default(),
            request_id_min: 0,
            stage: ChangeStage::Waiting,
            peers: names.into_iter().map(peer).collect(),
            adopted_at: None,
            act_at,
            tries: 0,
        }
    }

    pub(super) fn is_prepared(&self, at: usize) -> bool {
        matches!(self.peers[at].answer, Some(ChangeAnswer::Prepared(_)))
    }

    pub(super) fn is_accepted(&self, at: usize) -> bool {
        self.peers[at].answer == Some(ChangeAnswer::Accepted)
    }

    /// The next step as this driver would have it.
    fn own_step(&self, list: &VoterList) -> Step {
        match list.following() {
            None => Step { electorate: self.wanted.clone(), term_floor: 0 },
            Some(electorate) => {
                let terms = self.peers.iter().filter_map(|peer| peer.adopted);
                Step { electorate, term_floor: terms.max().unwrap_or_default() }
            }
        }
    }

    /// The step to accept: that of the greatest ballot that somebody had accepted, or else this driver's own.
    pub(super) fn step(&self, list: &VoterList) -> Step {
        let accepted = |peer: &ChangePeer| match &peer.answer {
            Some(ChangeAnswer::Prepared(accepted)) => accepted.clone(),
            _ => None,
        };
        let latest = self.peers.iter().filter_map(accepted).max_by_key(|(ballot, _)| *ballot);
        latest.map_or_else(|| self.own_step(list), |(_, step)| step)
    }

    pub(super) fn begin(&mut self, stage: ChangeStage) {
        self.stage = stage;
        self.tries = 0;
        self.peers.iter_mut().for_each(|peer| peer.answer = None);
    }
}
