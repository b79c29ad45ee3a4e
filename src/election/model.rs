//! The voter alone, for a model checker: the real rules, behind types that the checker can name.

use std::time::Duration;

use super::Promised;
use super::messages::{Call, GrantKind, Request, VoterAnswer};
use super::voter::Voter;
use crate::config::{Config, LEASE_TIME_MAX};
use crate::controls::{Control, Controls};
use crate::id::RunId;
use crate::time::{Stamp, Time};

const NAME: &str = "lease";

/// A voter with one lease, of the longest lease time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelVoter(Voter);

/// A request of a candidate, which is named by the number of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelRequest {
    /// Grant the lease under this term. True: the candidate holds it already under this term.
    Grant(u64, bool),
    /// Prolong the session with this id.
    Renew(u64),
    /// Release the lease under this term.
    Release(u64),
}

/// The voter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelAnswer {
    /// The lease is granted under this term and session.
    Granted(u64, u64),
    /// The session with this id continues.
    Renewed(u64),
    /// Any other answer; it promises nothing.
    Other,
}

impl ModelVoter {
    /// A voter that starts now. `salt` makes its session ids differ from those of other runs; `floor` is the greatest
    /// term that its disk kept.
    pub fn new(now: Duration, control: Option<Control>, salt: u64, floor: u64) -> Self {
        let mut config = Config::lan();
        (config.clock_skew_max, config.lease_time) = (Duration::from_millis(1), LEASE_TIME_MAX);
        let promised = Promised { term: floor, lease: Duration::ZERO };
        let mut voter = Voter::new(&config, Controls { broken: control }, promised, salt);
        voter.wake(at(now));
        Self(voter)
    }

    /// Handles a request from a run.
    pub fn handle(&mut self, now: Duration, run: RunId, request: ModelRequest) -> ModelAnswer {
        let stamp = |clock| Stamp { clock, origin: run };
        let name = NAME.to_owned();
        let request = match request {
            ModelRequest::Grant(term, again) => {
                let kind = if again { GrantKind::Held } else { GrantKind::New };
                Request::Grant { name, term: stamp(term), kind, value: Vec::new() }
            }
            ModelRequest::Renew(session) => Request::Renew { session },
            ModelRequest::Release(term) => Request::Release { name, term: stamp(term) },
        };
        let call = Call { hash: 0, request_id: 0, lease: LEASE_TIME_MAX, request };
        self.0.handle(at(now), run, call);
        self.0.normalize(at(now));
        let mut answers = std::mem::take(&mut self.0.answers).into_iter();
        match answers.find(|reply| reply.to == run).map(|reply| reply.answer) {
            Some(VoterAnswer::Granted { term, session, .. }) => ModelAnswer::Granted(term.clock, session),
            Some(VoterAnswer::Renewed { session, goes_on: true }) => ModelAnswer::Renewed(session),
            _ => ModelAnswer::Other,
        }
    }

    /// Lets time pass. All calls together may let at most half a minute pass.
    pub fn pass(&mut self, now: Duration) {
        self.0.normalize(at(now));
    }

    /// The voter's clock. New terms have to be above it.
    pub fn clock(now: Duration) -> u64 {
        super::voter::clock_now(at(now))
    }
}

fn at(now: Duration) -> Time {
    Time { mono: now, wall: now }
}
