//! Candidates and holders: one bid for each lease that this node campaigns for or holds.
//!
//! A holder counts a voter's promise from before it asked for it, and shortened ([`Election::counted_time`]); the lease is its
//! own as long as a majority's promises cover now. It ends before any of them can. Campaigns of one node for one lease
//! stand in a queue of its own, so that two tasks of one process exclude each other too.

use std::collections::VecDeque;
use std::time::Duration;

use super::messages::{Request, Standing, VoterStatement};
use super::{
    ASK_TIME_MIN, ElectionEffect, Elections, LeaseEnd, LeaseId, LeaseState, PeerVoter, TERM_AHEAD_MAX,
    check_election_name, check_leader_value,
};
use crate::config::ELECTIONS_MAX;
use crate::controls::Control;
use crate::error::ElectionError;
use crate::time::{HybridClock, Stamp, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Candidacy {
    /// The first one campaigns or holds; the others wait for it.
    queue: VecDeque<Campaign>,
    stage: Stage,
    begun: Duration,
    /// The same, as voters compare it with that of others.
    since: u64,
    /// When to ask or claim again.
    act_at: Duration,
    tries: u32,
    /// What voters think of it, by seat, since it last asked or claimed.
    statements: Vec<Option<VoterStatement>>,
    /// What voters have granted, by seat.
    grants: Vec<Granted>,
    /// The first request that carries the present value.
    proclaimed: u64,
}

#[derive(Debug)]
struct Campaign {
    id: LeaseId,
    value: Vec<u8>,
    is_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    /// Claims went out, the first of them with this number, and are over by this time.
    Requesting(Stamp, u64, Duration),
    Held(Stamp),
}

/// Under which session a voter granted it, and with which request that was last confirmed.
#[derive(Clone, Copy, Debug, Default)]
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
            grants: vec![Granted::default(); voters],
            proclaimed: 0,
        }
    }

    /// The next campaign in the queue begins, or the same one once more.
    fn restart(&mut self, act_at: Duration) {
        self.stage = Stage::Asking;
        (self.act_at, self.tries) = (act_at, 0);
        self.statements.fill(None);
        self.grants.fill(Granted::default());
    }

    fn begin(&mut self, now: Time) {
        self.restart(now.mono);
        (self.begun, self.since) = (now.mono, now.wall.as_micros() as u64);
    }

    fn first(&self) -> &Campaign {
        self.queue.front().expect("a bid without campaigns is dropped")
    }

    /// Whether a voter's promise under its present session covers this.
    fn is_granted(&self, at: usize, voter: &PeerVoter) -> bool {
        voter.session != 0 && self.grants[at].session == voter.session
    }

    /// Until when a majority's promises cover it.
    fn valid_until(&self, voters: &[PeerVoter]) -> Duration {
        let granted = voters.iter().enumerate().filter(|(at, voter)| self.is_granted(*at, voter));
        let mut counted: Vec<Duration> = granted.map(|(_, voter)| voter.counted_until).collect();
        counted.sort_unstable_by(|a, b| b.cmp(a));
        counted.get(voters.len() / 2).copied().unwrap_or_default()
    }

    fn count(&self, standing: impl Fn(Standing) -> bool) -> usize {
        self.statements.iter().flatten().filter(|told| standing(told.standing)).count()
    }
}

impl Elections {
    // What the user does.

    /// Begins to campaign, until the lease is won; or only once.
    pub(crate) fn campaign(
        &mut self,
        now: Time,
        name: &str,
        value: &[u8],
        is_once: bool,
    ) -> Result<LeaseId, ElectionError> {
        check_election_name(name)?;
        check_leader_value(value)?;
        if is_once && self.candidacies.contains_key(name) {
            return Err(ElectionError::Taken);
        }
        if self.names.len() >= ELECTIONS_MAX {
            return Err(ElectionError::TooMany);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.names.insert(id, name.to_owned());
        let candidacy =
            self.candidacies.entry(name.to_owned()).or_insert_with(|| Candidacy::new(self.voters.len()));
        candidacy.queue.push_back(Campaign { id, value: value.to_vec(), is_once });
        if candidacy.queue.len() == 1 {
            candidacy.begin(now);
            self.deadline = Duration::ZERO;
        }
        Ok(id)
    }

    /// Gives up a lease, or a campaign.
    pub(crate) fn resign(&mut self, now: Time, id: LeaseId) {
        let Some(name) = self.names.get(&id).cloned() else { return };
        let candidacy = self.candidacies.get_mut(&name).expect("named by it");
        if candidacy.first().id == id {
            self.end(now, &name, LeaseEnd::Resigned);
        } else {
            candidacy.queue.retain(|campaign| campaign.id != id);
            self.names.remove(&id);
            self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Ended(LeaseEnd::Resigned)));
        }
    }

    /// Gives up everything.
    pub(crate) fn resign_all(&mut self, now: Time) {
        let ids: Vec<LeaseId> = self.names.keys().rev().copied().collect();
        ids.into_iter().for_each(|id| self.resign(now, id));
    }

    /// Changes what a holder says about itself. Its term stays.
    pub(crate) fn proclaim(&mut self, now: Time, id: LeaseId, value: &[u8]) -> Result<(), ElectionError> {
        check_leader_value(value)?;
        let held = self.lease(id).filter(|(_, valid_until)| *valid_until > now.mono);
        let (Some((term, _)), Some(name)) = (held, self.names.get(&id).cloned()) else {
            return Err(ElectionError::Lost);
        };
        // A number of its own, above those of all claims before it.
        self.request_times
            .insert(self.request_times.last_key_value().map_or(0, |(number, _)| *number) + 1, now.mono);
        let number = self.next_request_id(now.mono);
        let candidacy = self.candidacies.get_mut(&name).expect("it is held");
        candidacy.proclaimed = number;
        value.clone_into(&mut candidacy.queue[0].value);
        self.send_all(now.mono, &Request::Grant { name, term, again: true, value: value.to_vec() });
        self.deadline = Duration::ZERO;
        Ok(())
    }

    /// The term of a lease that is held, and until when it is.
    pub(crate) fn lease(&self, id: LeaseId) -> Option<(Stamp, Duration)> {
        let candidacy = self.candidacies.get(self.names.get(&id)?)?;
        match candidacy.stage {
            Stage::Held(term) if candidacy.first().id == id => {
                Some((term, candidacy.valid_until(&self.voters)))
            }
            _ => None,
        }
    }

    /// The same, by its name.
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
        let since = (!candidacy.first().is_once).then_some(candidacy.since);
        self.send_all(now, &Request::Ask { name: name.to_owned(), since });
    }

    pub(super) fn on_statement(
        &mut self,
        now: Time,
        at: usize,
        number: u64,
        name: &str,
        told: VoterStatement,
    ) {
        self.voters[at].unanswered = false;
        if let Standing::Quarantined(ms) = told.standing {
            self.voters[at].mute_until = now.mono + Duration::from_millis(ms.into());
        }
        let (count, majority) = (self.voters.len(), self.majority());
        let Some(candidacy) = self.candidacies.get_mut(name) else {
            if told.standing == Standing::Free {
                // Nobody here wants it any more: the next one need not wait.
                self.send(now.mono, at, Request::Release { name: name.to_owned(), term: Stamp::default() });
            }
            return;
        };
        // Whose clock is that far off has no say in how far terms go.
        let is_sane = told.clock.max(told.lease_term_max) <= HybridClock::limit(now, TERM_AHEAD_MAX);
        match candidacy.stage {
            Stage::Asking if is_sane => {
                candidacy.statements[at] = Some(told);
                self.consider(now, name);
            }
            Stage::Requesting(_, first, _) if number >= first => {
                candidacy.statements[at] = Some(told);
                if candidacy.count(|_| true) > count - majority {
                    self.retreat(now, name);
                }
            }
            _ => {}
        }
    }

    /// Claims the lease if a majority would grant it, or else waits.
    fn consider(&mut self, now: Time, name: &str) {
        let (count, majority, lease) = (self.voters.len(), self.majority(), self.lease);
        let jitter = self.jitter(lease / 8);
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        // Another list of voters may have another majority.
        let is_one_list = self.voters.iter().all(|voter| voter.differs_until <= now.mono);
        if is_one_list && candidacy.count(|standing| standing == Standing::Free) >= majority {
            // Nor is that known before all have answered who seem to be there; or have let the first question pass.
            let is_silent =
                |(voter, told): (&PeerVoter, &Option<VoterStatement>)| voter.run.is_some() && told.is_none();
            let waits = candidacy.tries < 2 && self.voters.iter().zip(&candidacy.statements).any(is_silent);
            if !waits {
                self.request_grants(now.mono, name);
            }
            return;
        }
        if candidacy.first().is_once
            && candidacy.count(|standing| matches!(standing, Standing::Taken(_))) > count - majority
        {
            return self.end(now, name, LeaseEnd::Taken);
        }
        if candidacy.count(|_| true) >= majority {
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
        let majority = self.majority();
        let candidacy = self.candidacies.get_mut(name).expect("it asks");
        let mut clocks: Vec<u64> = candidacy.statements.iter().flatten().map(|told| told.clock).collect();
        clocks.sort_unstable();
        // Whose clock is days ahead of a majority's has no say either: nobody else would grant such a term.
        let limit = clocks[majority - 1].saturating_add(clock_time(TERM_AHEAD_MAX));
        let counted =
            candidacy.statements.iter().flatten().filter(|told| told.clock.max(told.lease_term_max) <= limit);
        let clock = counted.clone().map(|told| told.clock).max().unwrap_or(0);
        let top = counted.map(|told| told.lease_term_max).max().unwrap_or(0);
        // Above the clocks also when the claims arrive. Later ones would come too late for the lease.
        let clock = clock.saturating_add(clock_time(self.lease));
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
        self.send_all(now, &Request::Grant { name: name.to_owned(), term, again: false, value });
    }

    /// Claims again where no answer came.
    fn request_grants_again(&mut self, now: Duration, name: &str, term: Stamp) {
        let candidacy = self.candidacies.get_mut(name).expect("it claims");
        candidacy.act_at = now + self.lease / 8;
        let silent = |at: &usize| candidacy.statements[*at].is_none() && candidacy.grants[*at].session == 0;
        let silent: Vec<usize> = (0..candidacy.statements.len()).filter(silent).collect();
        let value = candidacy.first().value.clone();
        for at in silent {
            let (name, value) = (name.to_owned(), value.clone());
            self.send(now, at, Request::Grant { name, term, again: false, value });
        }
    }

    /// Gives back what was granted, since it is not enough, and tries again a little later.
    fn retreat(&mut self, now: Time, name: &str) {
        let later = self.lease / 64 + self.jitter(self.lease / 16);
        self.release(now.mono, name);
        let candidacy = self.candidacies.get_mut(name).expect("it claims");
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
        let Some(asked) = self.request_times.get(&number).copied().filter(|_| session != 0) else { return };
        let (counted, lease) = (self.counted_time(), self.lease);
        let candidacy = self.candidacies.get_mut(name);
        let wanted = candidacy.filter(|candidacy| match candidacy.stage {
            Stage::Requesting(wanted, ..) | Stage::Held(wanted) => wanted == term,
            Stage::Asking => false,
        });
        let Some(candidacy) = wanted else {
            // It came too late.
            return self.give_back(now.mono, at, name, term);
        };
        let voter = &mut self.voters[at];
        if voter.session != session {
            if number < voter.confirmed {
                return;
            }
            (voter.session, voter.counted_until) = (session, Duration::ZERO);
        }
        voter.confirm(number, asked, counted, lease);
        let number = number.max(candidacy.grants[at].number);
        candidacy.grants[at] = Granted { session, number };
        let valid_until = candidacy.valid_until(&self.voters);
        self.deadline = self.deadline.min(self.voters[at].renew_at).min(valid_until);
        if matches!(candidacy.stage, Stage::Requesting(..)) && valid_until > now.mono {
            candidacy.stage = Stage::Held(term);
            let id = candidacy.first().id;
            self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Held(term)));
            self.deadline = Duration::ZERO;
        }
    }

    // The end.

    /// The first campaign of a bid is over; the next one begins.
    fn end(&mut self, now: Time, name: &str, end: LeaseEnd) {
        self.release(now.mono, name);
        let candidacy = self.candidacies.get_mut(name).expect("it ends");
        let id = candidacy.queue.pop_front().expect("a bid without campaigns is dropped").id;
        self.names.remove(&id);
        self.effects.push_back(ElectionEffect::Lease(id, LeaseState::Ended(end)));
        if candidacy.queue.is_empty() {
            self.candidacies.remove(name);
        } else {
            candidacy.begin(now);
            self.deadline = Duration::ZERO;
        }
    }

    /// Tells all voters that this node does not hold, claim or wait for a lease any more.
    fn release(&mut self, now: Duration, name: &str) {
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
            // A later one, which may not have arrived yet, stands for all before it.
            let term = owed.0.max(term);
            *owed = (term, now + self.lease * 2);
            self.send(now, at, Request::Release { name: name.to_owned(), term });
            self.deadline = self.deadline.min(self.repair_at);
        }
    }

    // Time.

    /// Does what is due for one bid. `repairs` says how many claims each voter is to have, where it is time for them.
    pub(super) fn candidacy_deadline(&mut self, now: Time, name: &str, repairs: &mut [usize]) {
        let candidacy = self.candidacies.get_mut(name).expect("just listed");
        match candidacy.stage {
            Stage::Asking => {
                let over = candidacy.first().is_once.then_some(candidacy.begun + self.lease);
                if over.is_some_and(|over| over <= now.mono) {
                    let (reached, needed) = (candidacy.count(|_| true), self.majority());
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
                let valid_until = candidacy.valid_until(&self.voters);
                if valid_until <= now.mono {
                    return self.end(now, name, LeaseEnd::Lost);
                }
                self.deadline = self.deadline.min(valid_until);
                self.refresh_grants(now.mono, name, term, repairs);
            }
        }
    }

    /// Sees that all voters have granted what is held, and know its value.
    fn refresh_grants(&mut self, now: Duration, name: &str, term: Stamp, repairs: &mut [usize]) {
        for (at, claims) in repairs.iter_mut().enumerate() {
            let candidacy = &self.candidacies[name];
            let voter = &mut self.voters[at];
            voter.is_used |= candidacy.is_granted(at, voter);
            let is_current =
                candidacy.is_granted(at, voter) && candidacy.grants[at].number >= candidacy.proclaimed;
            self.needs_repair |= !is_current && voter.run.is_some();
            if !is_current && *claims > 0 {
                *claims -= 1;
                voter.unanswered = true;
                let (name, value) = (name.to_owned(), candidacy.first().value.clone());
                self.send(now, at, Request::Grant { name, term, again: true, value });
            }
        }
    }
}

/// A time as it counts in the clock of a stamp.
fn clock_time(time: Duration) -> u64 {
    (time.as_millis() as u64) << HybridClock::COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use super::super::messages::VoterAnswer;
    use super::super::{Living, Message, Promised};
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;

    const NOW: Time = Time { mono: Duration::from_secs(60), wall: Duration::from_secs(1_000_000) };

    /// One that is no voter. The voters' runs are 1 to 3.
    fn election() -> Elections {
        let mut config = Config::lan();
        config.voters = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut election = Elections::new("n", 9, &config, Controls::default(), Promised::default()).unwrap();
        election.seat_voters(|name| Living::One(u64::from(name.as_bytes()[0] - b'a') + 1));
        election
    }

    #[test]
    fn late_grant_does_not_cancel_a_newer_release() {
        let mut election = election();
        let term = |clock| Stamp { clock, origin: 9 };
        let (name, number) = ("lease".to_owned(), election.next_request_id(NOW.mono));
        election.give_back(NOW.mono, 0, &name, term(2));
        let granted = VoterAnswer::Granted { name: name.clone(), term: term(1), session: 5 };
        election.message(NOW, 1, Message::Answer(number, granted));
        election.message(
            NOW,
            1,
            Message::Answer(number, VoterAnswer::Released { name: name.clone(), term: term(1) }),
        );
        assert_eq!(election.releases.get(&(0, name.clone())).map(|(term, _)| *term), Some(term(2)));
        election.message(NOW, 1, Message::Answer(number, VoterAnswer::Released { name, term: term(2) }));
        assert!(election.releases.is_empty());
    }

    #[test]
    fn duplicate_voter_name_counts_for_neither() {
        let mut election = election();
        for voter in &mut election.voters {
            voter.session = 7;
        }
        let living = |name: &str| match name {
            "a" => Living::Several,
            "b" => Living::Nobody,
            _ => Living::One(3),
        };
        election.seat_voters(living);
        let voters: Vec<_> = election.voters.iter().map(|voter| (voter.run, voter.session)).collect();
        assert_eq!(voters, [(None, 0), (Some(2), 7), (Some(3), 7)]);
    }
}
