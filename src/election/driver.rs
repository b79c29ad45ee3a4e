//! The state of a node that drives a change of the voters, see [`super::change`], and of one that waits for the new voters
//! to have their list, see [`super::adoption`].

use std::time::Duration;

use super::VoterRules;
use super::voter_list::{Electorate, Step, VoterList};
use crate::config::ClusterSettings;
use crate::id::RunId;
use crate::time::Stamp;

/// What a call on this node asks for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Other voters.
    Voters(Vec<String>),
    /// Other shared settings, whose lease times differ from the present ones.
    Settings(ClusterSettings),
}

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

/// A call that waits.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) stage: AskedStage,
}

#[derive(Clone, Debug)]
pub(super) enum AskedStage {
    /// Nothing is written yet. It fails if the voters have not promised until then. Nodes of the new list that are in
    /// quarantine prolong this, up to `latest`.
    Preparing { until: Duration, latest: Duration },
    /// The store names the list as the wanted one.
    Wanted,
    /// The list was in force here, and its voters are asked whether they have it.
    Adopted(Adoption),
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

#[cfg(test)]
mod tests {
    use super::super::messages::{Call, Request, VoterAnswer};
    use super::super::voter::clock_now;
    use super::super::voter_list::credible_max;
    use super::super::{ElectionEffect, ElectionMessage, Elections, VoterMemo};
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::time::Time;

    const OWN: RunId = RunId::new(3);

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn at(seconds: u64) -> Time {
        Time::default().later_by(Duration::from_secs(seconds))
    }

    /// The voter `c`, at the joint list that leads from `a`, `b` and `c` to `b`, `c` and `d`. Runs are counted from 1.
    fn driver() -> Elections {
        let (voters, next) = (named(&["a", "b", "c"]), Some(named(&["b", "c", "d"])));
        let list = VoterList { epoch: 3, voters, next, ..VoterList::default() };
        let memo = VoterMemo { list: Some(list), ..VoterMemo::default() };
        let mut driver = Elections::new("c", OWN, &Config::lan(), Controls::default(), true, memo);
        (1..).zip(&mut driver.voters).for_each(|(run, voter)| voter.run = Some(RunId::new(run)));
        driver.wake(at(100));
        driver
    }

    fn stage(driver: &Elections) -> &ChangeStage {
        &driver.change.as_ref().expect("it drives a change").stage
    }

    /// Lets time pass until the driver sends ballots. Answers the time, and the ballot with the id of the request.
    fn asked(driver: &mut Elections) -> (Time, Stamp, u64) {
        for seconds in 101..200 {
            driver.wake(at(seconds));
            let calls = driver.effects.drain(..).filter_map(|effect| match effect {
                ElectionEffect::Send(_, ElectionMessage::Request(call), _) => Some(call),
                _ => None,
            });
            let mut ballots = calls.filter_map(|call| match call.request {
                Request::Prepare { ballot } => Some((at(seconds), ballot, call.request_id)),
                _ => None,
            });
            if let Some(found) = ballots.next_back() {
                return found;
            }
        }
        unreachable!("it sends no ballot")
    }

    #[test]
    fn term_that_nobody_can_have_granted_is_no_term_floor() {
        let step = |term_floor| Step {
            electorate: Electorate { voters: named(&["b", "c", "d"]), times: None },
            term_floor,
        };
        let mut driver = driver();
        let (now, ballot, request_id) = asked(&mut driver);
        let limit = credible_max(clock_now(now));
        let answer = |driver: &mut Elections, run, term_max, accepted: Option<Step>| {
            let accepted = accepted.map(|step| (ballot, step));
            let answer = VoterAnswer::Prepared { ballot, term_max, accepted };
            driver.message(now, RunId::new(run), ElectionMessage::Answer(Some(request_id), answer));
        };
        for run in [1, 2, OWN.number()] {
            answer(&mut driver, run, 7, None);
        }
        answer(&mut driver, 4, u64::MAX, None);
        answer(&mut driver, 4, limit + 1, None);
        answer(&mut driver, 4, 7, Some(step(limit + 1)));
        let over = now.later_by(driver.joint_time());
        driver.wake(over);
        assert_eq!(*stage(&driver), ChangeStage::Accepting(step(7)));
        // As a voter it accepts no such step either.
        let accept = |term_floor| {
            let request = Request::Accept { ballot, step: step(term_floor) };
            let (hash, lease) = (driver.rules_hash, driver.lease);
            ElectionMessage::Request(Call { hash, request_id, lease, request })
        };
        let limit = credible_max(clock_now(over));
        let (beyond, last) = (accept(limit + 1), accept(limit));
        driver.message(over, RunId::new(4), beyond);
        assert_eq!(driver.ballots.accepted, None);
        driver.message(over, RunId::new(4), last);
        assert_eq!(driver.ballots.accepted, Some((ballot, step(limit))));
        let memo = driver.memo();
        assert!(VoterMemo::read(Some(&memo)).is_ok(), "a restarted voter would be silent");
    }
}
