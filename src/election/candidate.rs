//! Candidates and holders: one candidacy for each lease that this node campaigns for or holds.
//!
//! A holder relies on a voter's promise for nine tenths of the promised time ([`Elections::counted_time`]), measured
//! from before it sent the request. It holds the lease as long as the promises of a majority cover the present. So its
//! lease ends before any of these promises can end.
//!
//! Campaigns of one node for the same lease wait in a queue of that node, so that two tasks of one process exclude each
//! other too.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::messages::{GrantKind, Request, Standing, VoterStatement};
use super::voter_list::VoterSets;
use super::{
    ASK_TIME_MIN, ElectionEffect, Elections, LeaseEnd, LeaseState, PeerVoter, Sent, TERM_AHEAD_MAX,
    check_election_name, check_leader_value,
};
use crate::config::ELECTIONS_MAX;
use crate::controls::Control;
use crate::error::ElectionError;
use crate::id::LeaseId;
use crate::time::{HybridClock, Stamp, Time};

/// What this node does to get or keep one lease. It exists as long as its queue is not empty.
#[derive(Debug)]
pub(super) struct Candidacy {
    /// The first campaign is active or holds the lease; the others wait for it.
    queue: VecDeque<Campaign>,
    stage: Stage,
    begun: Duration,
    /// The same moment by the wall clock, in microseconds: voters order waiting candidates by it.
    since: u64,
    /// When to ask the voters again, or to repeat the requests for grants.
    act_at: Duration,
    tries: u32,
    /// The voters' latest statements, by index of the voter, since the candidacy last asked or requested grants.
    statements: Vec<Option<VoterStatement>>,
    /// What voters have granted, by index of the voter.
    grants: Vec<Option<Granted>>,
    /// The id of the first request that carries the present value.
    proclaimed: u64,
    /// Until when promises under earlier lists of voters cover this lease.
    covered_until: Duration,
}

/// How often a campaign tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempts {
    /// Once. The campaign ends without the lease if a majority does not grant it.
    One,
    /// Until the lease is won or the campaign is resigned.
    UntilWon,
}

#[derive(Debug)]
struct Campaign {
    id: LeaseId,
    value: Vec<u8>,
    attempts: Attempts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    /// Grant requests for this term were sent, the first of them with this id. They fail at this time.
    Requesting(Stamp, u64, Duration),
    Held(Stamp),
}

/// The voter's session under which it granted the lease, and the id of the request that it last confirmed.
#[derive(Clone, Copy, Debug)]
struct Granted {
    session: u64,
    number: u64,
}

impl Candidacy {
    fn new(voters: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            stage: Stage::Asking,
            begun: Duration::ZERO,
            since: 0,
            act_at: Duration::ZERO,
            tries: 0,
            statements: vec![None; voters],
            grants: vec![None; voters],
            proclaimed: 0,
            covered_until: Duration::ZERO,
        }
    }

    /// Starts again with asking: for the next campaign in the queue, or for the same one.
    fn restart(&mut self, act_at: Duration) {
        self.stage = Stage::Asking;
        (self.act_at, self.tries, self.covered_until) = (act_at, 0, Duration::ZERO);
        self.statements.fill(None);
        self.grants.fill(None);
    }

    fn begin(&mut self, now: Time) {
        self.restart(now.mono);
        (self.begun, self.since) = (now.mono, now.wall.as_micros() as u64);
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held(_))
    }

    fn first(&self) -> &Campaign {
        self.queue.front().expect("a candidacy has a campaign")
    }

    /// Whether a voter's promise under its present session covers this lease.
    fn is_granted(&self, at: usize, voter: &PeerVoter) -> bool {
        self.grant(at, voter).is_some()
    }

    /// What a voter granted under its present session.
    fn grant(&self, at: usize, voter: &PeerVoter) -> Option<Granted> {
        self.grants[at].filter(|granted| Some(granted.session) == voter.session)
    }

    /// Until when the promises of a majority cover this lease.
    fn valid_until(&self, quorum: &VoterSets, voters: &[PeerVoter]) -> Duration {
        let counted_until = |at: usize| {
            let is_granted = self.is_granted(at, &voters[at]);
            if is_granted { voters[at].counted_until } else { Duration::ZERO }
        };
        quorum.reached_by_majority(counted_until).max(self.covered_until)
    }

    /// The seats of the voters change: by new seat, the seat that the voter had. A lease that is held stays covered by
    /// what was promised until now; a campaign begins again.
    pub(super) fn reseat(
        &mut self,
        now: Duration,
        quorum: &VoterSets,
        voters: &[PeerVoter],
        old_seats: &[Option<usize>],
    ) {
        let covered_until = self.valid_until(quorum, voters);
        self.statements = vec![None; old_seats.len()];
        self.grants = old_seats.iter().map(|old| self.grants[(*old)?]).collect();
        if let Stage::Held(_) = self.stage {
            self.covered_until = covered_until;
        } else {
            self.restart(now);
        }
    }

    /// Whether this voter has stated something like this.
    fn has_stated(&self, at: usize, standing: impl Fn(Standing) -> bool) -> bool {
        self.statements[at].is_some_and(|told| standing(told.standing))
    }
}

impl Elections {
    // What the user does.

    /// Begins to campaign until the lease is won; with [`Attempts::One`], tries only once.
    pub(crate) fn campaign(
        &mut self,
        now: Time,
        name: &str,
        value: &[u8],
        attempts: Attempts,
    ) -> Result<LeaseId, ElectionError> {
        check_election_name(name)?;
        check_leader_value(value)?;
        if attempts == Attempts::One && self.candidacies.contains_key(name) {
            return Err(ElectionError::Taken);
        }
        if self.names.len() >= ELECTIONS_MAX {
            return Err(ElectionError::TooMany);
        }
        let id = self.next_id;
        self.next_id = LeaseId::new(id.number() + 1);
        self.names.insert(id, name.to_owned());
        let candidacy =
            self.candidacies.entry(name.to_owned()).or_insert_with(|| Candidacy::new(self.voters.len()));
        candidacy.queue.push_back(Campaign { id, value: value.to_vec(), attempts });
        if candidacy.queue.len() == 1 {
            candidacy.begin(now);
            self.deadline = Duration::ZERO;
        }
        Ok(id)
    }

    /// Gives up a lease or a campaign.
    pub(crate) fn resign(&mut self, now: Time, id: LeaseId) {
        let Some(name) = self.names.get(&id).cloned() else { return };
        let candidacy = self.candidacies.get_mut(&name).expect("a campaign has a candidacy");
        if candidacy.first().id == id {
            self.end(now, &name, LeaseEnd::Resigned);
        } else {
            candidacy.queue.retain(|campaign| campaign.id != id);
            self.names.remove(&id);
            self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Ended(LeaseEnd::Resigned)));
        }
    }

    /// Gives up all leases and campaigns of this node.
    pub(crate) fn resign_all(&mut self, now: Time) {
        let ids: Vec<LeaseId> = self.names.keys().rev().copied().collect();
        ids.into_iter().for_each(|id| self.resign(now, id));
    }

    /// Changes the value of a held lease. Its term stays the same.
    pub(crate) fn proclaim(&mut self, now: Time, id: LeaseId, value: &[u8]) -> Result<(), ElectionError> {
        check_leader_value(value)?;
        let held = self.lease(id).filter(|(_, valid_until)| *valid_until > now.mono);
        let (Some((term, _)), Some(name)) = (held, self.names.get(&id).cloned()) else {
            return Err(ElectionError::Lost);
        };
        let number = self.new_request_id(now.mono);
        let candidacy = self.candidacies.get_mut(&name).expect("it is held");
        candidacy.proclaimed = number;
        value.clone_into(&mut candidacy.queue[0].value);
        self.send_all(now.mono, &Request::Grant { name, term, kind: GrantKind::Held, value: value.to_vec() });
        self.deadline = Duration::ZERO;
        Ok(())
    }

    /// The term of a held lease, and until when it is held.
    pub(crate) fn lease(&self, id: LeaseId) -> Option<(Stamp, Duration)> {
        let candidacy = self.candidacies.get(self.names.get(&id)?)?;
        match candidacy.stage {
            Stage::Held(term) if candidacy.first().id == id => {
                Some((term, candidacy.valid_until(&self.quorum, &self.voters)))
            }
            _ => None,
        }
    }

    /// The same, by the name of the lease.
    pub(crate) fn holds(&self, name: &str) -> Option<(Stamp, Duration)> {
        self.candidacies.get(name).and_then(|candidacy| self.lease(candidacy.first().id))
    }

    // Candidates.

    fn ask_voters(&mut self, now: Duration, name: &str) {
        let jitter = self.jitter(self.lease / 16);
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        candidacy.statements.fill(None);
        candidacy.act_at = now + (ASK_TIME_MIN * (1 << candidacy.tries.min(8))).min(self.lease / 4) + jitter;
        candidacy.tries += 1;
        let since = (candidacy.first().attempts == Attempts::UntilWon).then_some(candidacy.since);
        self.send_all(now, &Request::Ask { name: name.to_owned(), since });
    }

    pub(super) fn on_statement(
        &mut self,
        now: Time,
        at: usize,
        number: Option<u64>,
        name: &str,
        told: VoterStatement,
    ) {
        self.voters[at].unanswered = false;
        if let Standing::Quarantined(ms) = told.standing {
            self.voters[at].quarantine_until = now.mono + Duration::from_millis(ms.into());
        }
        let Some(candidacy) = self.candidacies.get_mut(name) else {
            if told.standing == Standing::Free {
                // No campaign of this node waits for the lease any more, so the voter need not wait for the offer to
                // run out.
                self.send(now.mono, at, Request::Release { name: name.to_owned(), term: Stamp::default() });
            }
            return;
        };
        // A voter whose clock is too far ahead has no influence on terms.
        let is_sane = told.clock <= HybridClock::limit(now, TERM_AHEAD_MAX);
        match candidacy.stage {
            Stage::Asking if is_sane => {
                candidacy.statements[at] = Some(told);
                self.consider(now, name);
            }
            Stage::Requesting(_, first, _) if number >= Some(first) => {
                candidacy.statements[at] = Some(told);
                if !self.quorum.is_met(|at| candidacy.statements[at].is_none()) {
                    self.retreat(now, name);
                }
            }
            _ => {}
        }
    }

    /// Requests grants if a majority would grant the lease. Otherwise plans when to ask again, or ends a single try.
    fn consider(&mut self, now: Time, name: &str) {
        let lease = self.lease;
        let jitter = self.jitter(lease / 8);
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        // A node with another list of voters may count another majority.
        let is_one_list = self.voters.iter().all(|voter| voter.differs_until <= now.mono);
        let is_free = |at| candidacy.has_stated(at, |standing| standing == Standing::Free);
        if is_one_list && self.quorum.is_met(is_free) {
            // Whether all lists agree is known only when every voter with a known run has answered; or has let the
            // first question time out.
            let is_silent =
                |(voter, told): (&PeerVoter, &Option<VoterStatement>)| voter.run.is_some() && told.is_none();
            let waits = candidacy.tries < 2 && self.voters.iter().zip(&candidacy.statements).any(is_silent);
            if !waits {
                self.request_grants(now.mono, name);
            }
            return;
        }
        let is_taken = |at| candidacy.has_stated(at, |standing| matches!(standing, Standing::Taken(_)));
        if candidacy.first().attempts == Attempts::One && !self.quorum.is_met(|at| !is_taken(at)) {
            return self.end(now, name, LeaseEnd::Taken);
        }
        if self.quorum.is_met(|at| candidacy.statements[at].is_some()) {
            let left = |told: &VoterStatement| match told.standing {
                Standing::Free => None,
                Standing::Taken(ms) | Standing::Quarantined(ms) => Some(Duration::from_millis(ms.into())),
            };
            let left = candidacy.statements.iter().flatten().filter_map(left).min().unwrap_or_default();
            candidacy.act_at = now.mono + left.clamp(lease / 16, lease) + jitter;
            self.deadline = self.deadline.min(candidacy.act_at);
        }
    }

    fn request_grants(&mut self, now: Duration, name: &str) {
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        // Voters whose clock or greatest term is more than `TERM_AHEAD_MAX` ahead of a majority's clocks do not count:
        // no other voter would grant a term above theirs, unless a majority has granted such terms while its clocks were
        // wrong.
        let clock = |at: usize| Reverse(candidacy.statements[at].map_or(u64::MAX, |told| told.clock));
        let Reverse(limit) = self.quorum.reached_by_majority(clock);
        let top = |at: usize| candidacy.statements[at].map_or(0, |told| told.lease_term_max);
        let limit = limit
            .saturating_add(HybridClock::units(TERM_AHEAD_MAX))
            .max(self.quorum.reached_by_majority(top));
        let counted =
            candidacy.statements.iter().flatten().filter(|told| told.clock.max(told.lease_term_max) <= limit);
        let clock = counted.clone().map(|told| told.clock).max().unwrap_or(0);
        let top = counted.map(|told| told.lease_term_max).max().unwrap_or(0);
        // The term has to be above the voters' clocks still when the requests arrive. Requests that arrive later than
        // this are too late for the lease anyway.
        let clock = clock.saturating_add(HybridClock::units(self.lease));
        let clock = clock.max(top.saturating_add(1)).max(self.last_term + 1);
        let reuses = self.controls.has(Control::TermReused) && self.last_term > 0;
        self.last_term = if reuses { self.last_term } else { clock };
        let term = Stamp { clock: self.last_term, origin: self.own };
        candidacy.statements.fill(None);
        let number = self.next_request_id(now);
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        candidacy.stage = Stage::Requesting(term, number, now + self.lease / 2);
        candidacy.proclaimed = number;
        candidacy.act_at = now + self.lease / 8;
        self.deadline = self.deadline.min(candidacy.act_at);
        let value = candidacy.first().value.clone();
        self.send_all(now, &Request::Grant { name: name.to_owned(), term, kind: GrantKind::New, value });
    }

    /// Repeats the requests for grants to voters that have not answered.
    fn request_grants_again(&mut self, now: Duration, name: &str, term: Stamp) {
        let candidacy = self.candidacies.get_mut(name).expect("it requests grants");
        candidacy.act_at = now + self.lease / 8;
        let silent = |at: &usize| candidacy.statements[*at].is_none() && candidacy.grants[*at].is_none();
        let silent: Vec<usize> = (0..candidacy.statements.len()).filter(silent).collect();
        let value = candidacy.first().value.clone();
        for at in silent {
            let (name, value) = (name.to_owned(), value.clone());
            self.send(now, at, Request::Grant { name, term, kind: GrantKind::New, value });
        }
    }

    /// Releases what was granted, because it is no majority, and asks again a little later.
    fn retreat(&mut self, now: Time, name: &str) {
        let later = self.lease / 64 + self.jitter(self.lease / 16);
        self.release(now.mono, name);
        let candidacy = self.candidacies.get_mut(name).expect("it requests grants");
        candidacy.restart(now.mono + later);
        self.deadline = self.deadline.min(candidacy.act_at);
    }

    pub(super) fn on_grant(
        &mut self,
        now: Time,
        at: usize,
        number: u64,
        name: &str,
        term: Stamp,
        session: u64,
    ) {
        let Some(Sent { at: asked, lease }) = self.request_times.get(&number).copied() else { return };
        let counted = self.counted_time(lease);
        let candidacy = self.candidacies.get_mut(name);
        let wanted = candidacy.filter(|candidacy| match candidacy.stage {
            Stage::Requesting(wanted, ..) | Stage::Held(wanted) => wanted == term,
            Stage::Asking => false,
        });
        let Some(candidacy) = wanted else {
            // The grant came too late.
            return self.give_back(now.mono, at, name, term);
        };
        let voter = &mut self.voters[at];
        if voter.session != Some(session) {
            if number < voter.confirmed {
                return;
            }
            (voter.session, voter.counted_until) = (Some(session), Duration::ZERO);
        }
        voter.confirm(number, asked, counted, lease);
        let number = candidacy.grants[at].map_or(number, |granted| number.max(granted.number));
        candidacy.grants[at] = Some(Granted { session, number });
        let valid_until = candidacy.valid_until(&self.quorum, &self.voters);
        self.deadline = self.deadline.min(self.voters[at].renew_at).min(valid_until);
        if matches!(candidacy.stage, Stage::Requesting(..)) && valid_until > now.mono {
            candidacy.stage = Stage::Held(term);
            let id = candidacy.first().id;
            self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Held(term)));
            self.deadline = Duration::ZERO;
        }
    }

    // The end.

    /// Ends the first campaign of a candidacy; the next one in the queue begins.
    fn end(&mut self, now: Time, name: &str, end: LeaseEnd) {
        self.release(now.mono, name);
        let candidacy = self.candidacies.get_mut(name).expect("it ends");
        let id = candidacy.queue.pop_front().expect("a candidacy has a campaign").id;
        self.names.remove(&id);
        self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Ended(end)));
        if candidacy.queue.is_empty() {
            self.candidacies.remove(name);
        } else {
            candidacy.begin(now);
            self.deadline = Duration::ZERO;
        }
    }

    /// Tells all voters that this node does not hold, request or wait for a lease any more.
    pub(super) fn release(&mut self, now: Duration, name: &str) {
        match self.candidacies[name].stage {
            Stage::Asking => {
                let term = Stamp::default();
                self.send_all(now, &Request::Release { name: name.to_owned(), term });
            }
            Stage::Requesting(term, ..) | Stage::Held(term) => {
                (0..self.voters.len()).for_each(|at| self.give_back(now, at, name, term));
            }
        }
    }

    fn give_back(&mut self, now: Duration, at: usize, name: &str, term: Stamp) {
        if self.voters[at].run.is_some() {
            let owed = self.releases.entry((at, name.to_owned())).or_default();
            // The release of a later term also releases all terms before it, and the later one may not have arrived
            // yet.
            let term = owed.0.max(term);
            *owed = (term, now + self.lease * 2);
            self.send(now, at, Request::Release { name: name.to_owned(), term });
            self.deadline = self.deadline.min(self.repeat_at);
        }
    }

    // Time.

    /// Carries out what is due for one candidacy. `repeats` is how many grant requests may be repeated to each voter
    /// now.
    pub(super) fn candidacy_deadline(&mut self, now: Time, name: &str, repeats: &mut [usize]) {
        let candidacy = self.candidacies.get_mut(name).expect("just listed");
        match candidacy.stage {
            Stage::Asking => {
                let is_one = candidacy.first().attempts == Attempts::One;
                let over = is_one.then_some(candidacy.begun + self.lease);
                if over.is_some_and(|over| over <= now.mono) {
                    let (reached, needed) = self.quorum.tally(|at| candidacy.statements[at].is_some());
                    return self.end(now, name, LeaseEnd::NoMajority { reached, needed });
                }
                if candidacy.act_at <= now.mono {
                    self.ask_voters(now.mono, name);
                }
                self.deadline =
                    self.deadline.min(self.candidacies[name].act_at).min(over.unwrap_or(Duration::MAX));
            }
            Stage::Requesting(term, _, until) => {
                if until <= now.mono {
                    return self.retreat(now, name);
                }
                if candidacy.act_at <= now.mono {
                    self.request_grants_again(now.mono, name, term);
                }
                self.deadline = self.deadline.min(self.candidacies[name].act_at).min(until);
            }
            Stage::Held(term) => {
                let valid_until = candidacy.valid_until(&self.quorum, &self.voters);
                if valid_until <= now.mono {
                    return self.end(now, name, LeaseEnd::Lost);
                }
                self.deadline = self.deadline.min(valid_until);
                self.refresh_grants(now.mono, name, term, repeats);
            }
        }
    }

    /// Requests grants again from voters that have not granted a held lease or do not know its present value.
    fn refresh_grants(&mut self, now: Duration, name: &str, term: Stamp, repeats: &mut [usize]) {
        for (at, claims) in repeats.iter_mut().enumerate() {
            let candidacy = &self.candidacies[name];
            let voter = &mut self.voters[at];
            voter.is_used |= candidacy.is_granted(at, voter);
            let is_current =
                candidacy.grant(at, voter).is_some_and(|granted| granted.number >= candidacy.proclaimed);
            self.needs_repeat |= !is_current && voter.run.is_some();
            if !is_current && *claims > 0 {
                *claims -= 1;
                voter.unanswered = true;
                let (name, value) = (name.to_owned(), candidacy.first().value.clone());
                self.send(now, at, Request::Grant { name, term, kind: GrantKind::Held, value });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::VoterAnswer;
    use super::super::{ElectionEffect, ElectionMessage, Living, VoterMemo};
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::id::RunId;

    const NOW: Time = Time { mono: Duration::from_secs(60), wall: Duration::from_secs(1_000_000) };

    /// A node that is no voter. The voters' runs are 1 to 3.
    fn election() -> Elections {
        let mut config = Config::lan();
        config.voters = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut election =
            Elections::new("n", RunId::new(9), &config, Controls::default(), true, VoterMemo::default());
        election.seat_voters(|name| Living::One(RunId::new(u64::from(name.as_bytes()[0] - b'a') + 1)));
        election
    }

    #[test]
    fn late_grant_does_not_cancel_a_newer_release() {
        let mut election = election();
        let term = |clock| Stamp { clock, origin: RunId::new(9) };
        let (name, number) = ("lease".to_owned(), election.next_request_id(NOW.mono));
        election.give_back(NOW.mono, 0, &name, term(2));
        let granted = VoterAnswer::Granted { name: name.clone(), term: term(1), session: 5 };
        election.message(NOW, RunId::new(1), ElectionMessage::Answer(Some(number), granted));
        election.message(
            NOW,
            RunId::new(1),
            ElectionMessage::Answer(
                Some(number),
                VoterAnswer::Released { name: name.clone(), term: term(1) },
            ),
        );
        assert_eq!(election.releases.get(&(0, name.clone())).map(|(term, _)| *term), Some(term(2)));
        election.message(
            NOW,
            RunId::new(1),
            ElectionMessage::Answer(Some(number), VoterAnswer::Released { name, term: term(2) }),
        );
        assert!(election.releases.is_empty());
    }

    #[test]
    fn difference_that_is_over_refuses_no_change() {
        for is_over in [true, false] {
            let mut election = election();
            election.set_voters(NOW, &["a", "b"].map(str::to_owned)).unwrap();
            election.wake(NOW);
            // The voter has got an answer out before this node had adopted the voter's list.
            let mut theirs = election.rules();
            if !is_over {
                theirs.clock_skew_max *= 2;
            }
            let differs = ElectionMessage::Answer(Some(1), VoterAnswer::Differs(theirs));
            election.message(NOW, RunId::new(1), differs);
            let is_refused = |effect: &ElectionEffect| matches!(effect, ElectionEffect::AskEnded(_, Err(_)));
            assert_eq!(election.effects.iter().any(is_refused), !is_over);
            assert_eq!(election.voters[0].differs_until.is_zero(), is_over);
        }
    }

    #[test]
    fn duplicate_voter_name_counts_for_neither() {
        let mut election = election();
        for voter in &mut election.voters {
            voter.session = Some(7);
        }
        let living = |name: &str| match name {
            "a" => Living::Several,
            "b" => Living::Nobody,
            _ => Living::One(RunId::new(3)),
        };
        election.seat_voters(living);
        let voters: Vec<_> = election.voters.iter().map(|voter| (voter.run, voter.session)).collect();
        assert_eq!(voters, [(None, None), (Some(RunId::new(2)), Some(7)), (Some(RunId::new(3)), Some(7))]);
    }
}
