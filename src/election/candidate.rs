//! Candidates and holders: one bid for each lease that this node campaigns for or holds.
//!
//! A holder counts a voter's promise from before it asked for it, and shortened ([`Election::counted`]); the lease is its
//! own as long as a majority's promises cover now. It ends before any of them can. Campaigns of one node for one lease
//! stand in a queue of its own, so that two tasks of one process exclude each other too.

use std::collections::VecDeque;
use std::time::Duration;

use super::messages::{Request, Standing, Told};
use super::{
    ASK_TIME_MIN, Effect, Election, LeaseEnd, LeaseId, LeaseState, Seat, TERM_AHEAD_MAX, check_name,
    check_value,
};
use crate::config::ELECTIONS_MAX;
use crate::controls::Control;
use crate::error::ElectionError;
use crate::time::{HybridClock, Stamp, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Bid {
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
    told: Vec<Option<Told>>,
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
    Claiming(Stamp, u64, Duration),
    Held(Stamp),
}

/// Under which session a voter granted it, and with which request that was last confirmed.
#[derive(Clone, Copy, Debug, Default)]
struct Granted {
    session: u64,
    number: u64,
}

impl Bid {
    fn new(seats: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            stage: Stage::Asking,
            begun: Duration::ZERO,
            since: 0,
            act_at: Duration::ZERO,
            tries: 0,
            told: vec![None; seats],
            grants: vec![Granted::default(); seats],
            proclaimed: 0,
        }
    }

    /// The next campaign in the queue begins, or the same one once more.
    fn restart(&mut self, act_at: Duration) {
        self.stage = Stage::Asking;
        (self.act_at, self.tries) = (act_at, 0);
        self.told.fill(None);
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
    fn is_granted(&self, at: usize, seat: &Seat) -> bool {
        seat.session != 0 && self.grants[at].session == seat.session
    }

    /// Until when a majority's promises cover it.
    fn valid_until(&self, seats: &[Seat]) -> Duration {
        let granted = seats.iter().enumerate().filter(|(at, seat)| self.is_granted(*at, seat));
        let mut counted: Vec<Duration> = granted.map(|(_, seat)| seat.counted).collect();
        counted.sort_unstable_by(|a, b| b.cmp(a));
        counted.get(seats.len() / 2).copied().unwrap_or_default()
    }

    fn count(&self, standing: impl Fn(Standing) -> bool) -> usize {
        self.told.iter().flatten().filter(|told| standing(told.standing)).count()
    }
}

impl Election {
    // What the user does.

    /// Begins to campaign, until the lease is won; or only once.
    pub(crate) fn campaign(
        &mut self,
        now: Time,
        name: &str,
        value: &[u8],
        is_once: bool,
    ) -> Result<LeaseId, ElectionError> {
        check_name(name)?;
        check_value(value)?;
        if is_once && self.bids.contains_key(name) {
            return Err(ElectionError::Taken);
        }
        if self.names.len() >= ELECTIONS_MAX {
            return Err(ElectionError::TooMany);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.names.insert(id, name.to_owned());
        let bid = self.bids.entry(name.to_owned()).or_insert_with(|| Bid::new(self.seats.len()));
        bid.queue.push_back(Campaign { id, value: value.to_vec(), is_once });
        if bid.queue.len() == 1 {
            bid.begin(now);
            self.due = Duration::ZERO;
        }
        Ok(id)
    }

    /// Gives up a lease, or a campaign.
    pub(crate) fn resign(&mut self, now: Time, id: LeaseId) {
        let Some(name) = self.names.get(&id).cloned() else { return };
        let bid = self.bids.get_mut(&name).expect("named by it");
        if bid.first().id == id {
            self.end(now, &name, LeaseEnd::Resigned);
        } else {
            bid.queue.retain(|campaign| campaign.id != id);
            self.names.remove(&id);
            self.effects.push_back(Effect::Lease(id, LeaseState::Ended(LeaseEnd::Resigned)));
        }
    }

    /// Gives up everything.
    pub(crate) fn resign_all(&mut self, now: Time) {
        let ids: Vec<LeaseId> = self.names.keys().rev().copied().collect();
        ids.into_iter().for_each(|id| self.resign(now, id));
    }

    /// Changes what a holder says about itself. Its term stays.
    pub(crate) fn proclaim(&mut self, now: Time, id: LeaseId, value: &[u8]) -> Result<(), ElectionError> {
        check_value(value)?;
        let held = self.lease(id).filter(|(_, valid_until)| *valid_until > now.mono);
        let (Some((term, _)), Some(name)) = (held, self.names.get(&id).cloned()) else {
            return Err(ElectionError::Lost);
        };
        // A number of its own, above those of all claims before it.
        self.asked.insert(self.asked.last_key_value().map_or(0, |(number, _)| *number) + 1, now.mono);
        let number = self.number(now.mono);
        let bid = self.bids.get_mut(&name).expect("it is held");
        bid.proclaimed = number;
        value.clone_into(&mut bid.queue[0].value);
        self.send_all(now.mono, &Request::Claim { name, term, again: true, value: value.to_vec() });
        self.due = Duration::ZERO;
        Ok(())
    }

    /// The term of a lease that is held, and until when it is.
    pub(crate) fn lease(&self, id: LeaseId) -> Option<(Stamp, Duration)> {
        let bid = self.bids.get(self.names.get(&id)?)?;
        match bid.stage {
            Stage::Held(term) if bid.first().id == id => Some((term, bid.valid_until(&self.seats))),
            _ => None,
        }
    }

    /// The same, by its name.
    pub(crate) fn holds(&self, name: &str) -> Option<(Stamp, Duration)> {
        self.bids.get(name).and_then(|bid| self.lease(bid.first().id))
    }

    // Candidates.

    fn ask(&mut self, now: Duration, name: &str) {
        let jitter = self.jitter(self.lease / 16);
        let bid = self.bids.get_mut(name).expect("it asks");
        bid.told.fill(None);
        bid.act_at = now + (ASK_TIME_MIN * (1 << bid.tries.min(8))).min(self.lease / 4) + jitter;
        bid.tries += 1;
        let since = (!bid.first().is_once).then_some(bid.since);
        self.send_all(now, &Request::Ask { name: name.to_owned(), since });
    }

    pub(super) fn told(&mut self, now: Time, at: usize, number: u64, name: &str, told: Told) {
        self.seats[at].unanswered = false;
        if let Standing::Mute(ms) = told.standing {
            self.seats[at].mute_until = now.mono + Duration::from_millis(ms.into());
        }
        let (count, majority) = (self.seats.len(), self.majority());
        let Some(bid) = self.bids.get_mut(name) else {
            if told.standing == Standing::Free {
                // Nobody here wants it any more: the next one need not wait.
                self.send(now.mono, at, Request::Release { name: name.to_owned(), term: Stamp::default() });
            }
            return;
        };
        // Whose clock is that far off has no say in how far terms go.
        let is_sane = told.clock.max(told.top) <= HybridClock::limit(now, TERM_AHEAD_MAX);
        match bid.stage {
            Stage::Asking if is_sane => {
                bid.told[at] = Some(told);
                self.consider(now, name);
            }
            Stage::Claiming(_, first, _) if number >= first => {
                bid.told[at] = Some(told);
                if bid.count(|_| true) > count - majority {
                    self.retreat(now, name);
                }
            }
            _ => {}
        }
    }

    /// Claims the lease if a majority would grant it, or else waits.
    fn consider(&mut self, now: Time, name: &str) {
        let (count, majority, lease) = (self.seats.len(), self.majority(), self.lease);
        let jitter = self.jitter(lease / 8);
        let bid = self.bids.get_mut(name).expect("it asks");
        // Another list of voters may have another majority.
        let is_one_list = self.seats.iter().all(|seat| seat.differs_until <= now.mono);
        if is_one_list && bid.count(|standing| standing == Standing::Free) >= majority {
            // Nor is that known before all have answered who seem to be there; or have let the first question pass.
            let is_silent = |(seat, told): (&Seat, &Option<Told>)| seat.run.is_some() && told.is_none();
            let waits = bid.tries < 2 && self.seats.iter().zip(&bid.told).any(is_silent);
            if !waits {
                self.claim(now.mono, name);
            }
            return;
        }
        if bid.first().is_once
            && bid.count(|standing| matches!(standing, Standing::Taken(_))) > count - majority
        {
            return self.end(now, name, LeaseEnd::Taken);
        }
        if bid.count(|_| true) >= majority {
            let left = |told: &Told| match told.standing {
                Standing::Free => None,
                Standing::Taken(ms) | Standing::Mute(ms) => Some(Duration::from_millis(ms.into())),
            };
            let left = bid.told.iter().flatten().filter_map(left).min().unwrap_or_default();
            bid.act_at = now.mono + left.clamp(lease / 16, lease) + jitter;
            self.due = self.due.min(bid.act_at);
        }
    }

    fn claim(&mut self, now: Duration, name: &str) {
        let majority = self.majority();
        let bid = self.bids.get_mut(name).expect("it asks");
        let mut clocks: Vec<u64> = bid.told.iter().flatten().map(|told| told.clock).collect();
        clocks.sort_unstable();
        // Whose clock is days ahead of a majority's has no say either: nobody else would grant such a term.
        let limit = clocks[majority - 1].saturating_add(clock_time(TERM_AHEAD_MAX));
        let counted = bid.told.iter().flatten().filter(|told| told.clock.max(told.top) <= limit);
        let clock = counted.clone().map(|told| told.clock).max().unwrap_or(0);
        let top = counted.map(|told| told.top).max().unwrap_or(0);
        // Above the clocks also when the claims arrive. Later ones would come too late for the lease.
        let clock = clock.saturating_add(clock_time(self.lease));
        let clock = clock.max(top.saturating_add(1)).max(self.last_term + 1);
        let reuses = self.controls.has(Control::TermReused) && self.last_term > 0;
        self.last_term = if reuses { self.last_term } else { clock };
        let term = Stamp { clock: self.last_term, origin: self.own };
        bid.told.fill(None);
        let number = self.number(now);
        let bid = self.bids.get_mut(name).expect("it asks");
        bid.stage = Stage::Claiming(term, number, now + self.lease / 2);
        bid.proclaimed = number;
        bid.act_at = now + self.lease / 8;
        self.due = self.due.min(bid.act_at);
        let value = bid.first().value.clone();
        self.send_all(now, &Request::Claim { name: name.to_owned(), term, again: false, value });
    }

    /// Claims again where no answer came.
    fn claim_again(&mut self, now: Duration, name: &str, term: Stamp) {
        let bid = self.bids.get_mut(name).expect("it claims");
        bid.act_at = now + self.lease / 8;
        let silent = |at: &usize| bid.told[*at].is_none() && bid.grants[*at].session == 0;
        let silent: Vec<usize> = (0..bid.told.len()).filter(silent).collect();
        let value = bid.first().value.clone();
        for at in silent {
            let (name, value) = (name.to_owned(), value.clone());
            self.send(now, at, Request::Claim { name, term, again: false, value });
        }
    }

    /// Gives back what was granted, since it is not enough, and tries again a little later.
    fn retreat(&mut self, now: Time, name: &str) {
        let later = self.lease / 64 + self.jitter(self.lease / 16);
        self.release(now.mono, name);
        let bid = self.bids.get_mut(name).expect("it claims");
        bid.restart(now.mono + later);
        self.due = self.due.min(bid.act_at);
    }

    pub(super) fn granted(
        &mut self,
        now: Time,
        at: usize,
        number: u64,
        name: &str,
        term: Stamp,
        session: u64,
    ) {
        let Some(asked) = self.asked.get(&number).copied().filter(|_| session != 0) else { return };
        let (counted, lease) = (self.counted(), self.lease);
        let bid = self.bids.get_mut(name);
        let wanted = bid.filter(|bid| match bid.stage {
            Stage::Claiming(wanted, ..) | Stage::Held(wanted) => wanted == term,
            Stage::Asking => false,
        });
        let Some(bid) = wanted else {
            // It came too late.
            return self.give_back(now.mono, at, name, term);
        };
        let seat = &mut self.seats[at];
        if seat.session != session {
            if number < seat.confirmed {
                return;
            }
            (seat.session, seat.counted) = (session, Duration::ZERO);
        }
        seat.confirm(number, asked, counted, lease);
        let number = number.max(bid.grants[at].number);
        bid.grants[at] = Granted { session, number };
        let valid_until = bid.valid_until(&self.seats);
        self.due = self.due.min(self.seats[at].renew_at).min(valid_until);
        if matches!(bid.stage, Stage::Claiming(..)) && valid_until > now.mono {
            bid.stage = Stage::Held(term);
            let id = bid.first().id;
            self.effects.push_back(Effect::Lease(id, LeaseState::Held(term)));
            self.due = Duration::ZERO;
        }
    }

    // The end.

    /// The first campaign of a bid is over; the next one begins.
    fn end(&mut self, now: Time, name: &str, end: LeaseEnd) {
        self.release(now.mono, name);
        let bid = self.bids.get_mut(name).expect("it ends");
        let id = bid.queue.pop_front().expect("a bid without campaigns is dropped").id;
        self.names.remove(&id);
        self.effects.push_back(Effect::Lease(id, LeaseState::Ended(end)));
        if bid.queue.is_empty() {
            self.bids.remove(name);
        } else {
            bid.begin(now);
            self.due = Duration::ZERO;
        }
    }

    /// Tells all voters that this node does not hold, claim or wait for a lease any more.
    fn release(&mut self, now: Duration, name: &str) {
        match self.bids[name].stage {
            Stage::Asking => {
                let term = Stamp::default();
                self.send_all(now, &Request::Release { name: name.to_owned(), term });
            }
            Stage::Claiming(term, ..) | Stage::Held(term) => {
                (0..self.seats.len()).for_each(|at| self.give_back(now, at, name, term));
            }
        }
    }

    fn give_back(&mut self, now: Duration, at: usize, name: &str, term: Stamp) {
        if self.seats[at].run.is_some() {
            let owed = self.releases.entry((at, name.to_owned())).or_default();
            // A later one, which may not have arrived yet, stands for all before it.
            let term = owed.0.max(term);
            *owed = (term, now + self.lease * 2);
            self.send(now, at, Request::Release { name: name.to_owned(), term });
            self.due = self.due.min(self.repair_at);
        }
    }

    // Time.

    /// Does what is due for one bid. `repairs` says how many claims each voter is to have, where it is time for them.
    pub(super) fn bid_due(&mut self, now: Time, name: &str, repairs: &mut [usize]) {
        let bid = self.bids.get_mut(name).expect("just listed");
        match bid.stage {
            Stage::Asking => {
                let over = bid.first().is_once.then_some(bid.begun + self.lease);
                if over.is_some_and(|over| over <= now.mono) {
                    let (reached, needed) = (bid.count(|_| true), self.majority());
                    return self.end(now, name, LeaseEnd::NoMajority { reached, needed });
                }
                if bid.act_at <= now.mono {
                    self.ask(now.mono, name);
                }
                self.due = self.due.min(self.bids[name].act_at).min(over.unwrap_or(Duration::MAX));
            }
            Stage::Claiming(term, _, until) => {
                if until <= now.mono {
                    return self.retreat(now, name);
                }
                if bid.act_at <= now.mono {
                    self.claim_again(now.mono, name, term);
                }
                self.due = self.due.min(self.bids[name].act_at).min(until);
            }
            Stage::Held(term) => {
                let valid_until = bid.valid_until(&self.seats);
                if valid_until <= now.mono {
                    return self.end(now, name, LeaseEnd::Lost);
                }
                self.due = self.due.min(valid_until);
                self.tend(now.mono, name, term, repairs);
            }
        }
    }

    /// Sees that all voters have granted what is held, and know its value.
    fn tend(&mut self, now: Duration, name: &str, term: Stamp, repairs: &mut [usize]) {
        for (at, claims) in repairs.iter_mut().enumerate() {
            let bid = &self.bids[name];
            let seat = &mut self.seats[at];
            seat.is_used |= bid.is_granted(at, seat);
            let is_current = bid.is_granted(at, seat) && bid.grants[at].number >= bid.proclaimed;
            self.needs_repair |= !is_current && seat.run.is_some();
            if !is_current && *claims > 0 {
                *claims -= 1;
                seat.unanswered = true;
                let (name, value) = (name.to_owned(), bid.first().value.clone());
                self.send(now, at, Request::Claim { name, term, again: true, value });
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
    use super::super::messages::Answer;
    use super::super::{Living, Message, Promised};
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;

    const NOW: Time = Time { mono: Duration::from_secs(60), wall: Duration::from_secs(1_000_000) };

    /// One that is no voter. The voters' runs are 1 to 3.
    fn election() -> Election {
        let mut config = Config::lan();
        config.voters = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut election = Election::new("n", 9, &config, Controls::default(), Promised::default()).unwrap();
        election.seat(|name| Living::One(u64::from(name.as_bytes()[0] - b'a') + 1));
        election
    }

    #[test]
    fn a_grant_that_comes_late_does_not_hide_that_a_later_one_is_to_be_given_back() {
        let mut election = election();
        let term = |clock| Stamp { clock, origin: 9 };
        let (name, number) = ("lease".to_owned(), election.number(NOW.mono));
        election.give_back(NOW.mono, 0, &name, term(2));
        let granted = Answer::Granted { name: name.clone(), term: term(1), session: 5 };
        election.message(NOW, 1, Message::Answer(number, granted));
        election.message(
            NOW,
            1,
            Message::Answer(number, Answer::Released { name: name.clone(), term: term(1) }),
        );
        assert_eq!(election.releases.get(&(0, name.clone())).map(|(term, _)| *term), Some(term(2)));
        election.message(NOW, 1, Message::Answer(number, Answer::Released { name, term: term(2) }));
        assert!(election.releases.is_empty());
    }

    #[test]
    fn of_two_that_live_under_the_name_of_a_voter_neither_counts_and_of_one_that_is_missed_the_last() {
        let mut election = election();
        for seat in &mut election.seats {
            seat.session = 7;
        }
        let living = |name: &str| match name {
            "a" => Living::Several,
            "b" => Living::Nobody,
            _ => Living::One(3),
        };
        election.seat(living);
        let seats: Vec<_> = election.seats.iter().map(|seat| (seat.run, seat.session)).collect();
        assert_eq!(seats, [(None, 0), (Some(2), 7), (Some(3), 7)]);
    }
}
