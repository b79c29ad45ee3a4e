//! The voter: its promises to runs, and how long each lasts. The safety of elections rests on this file and on how
//! holders count its answers ([`super::candidate`]).
//!
//! A holder's run has one session with a voter. Every lease that the voter has granted to the run lasts as long as the
//! session. A renewal prolongs the session and with it all these leases. The id of a session that has ended is never
//! used again, so that a holder notices that its leases are gone.
//!
//! A free lease is *offered* to one waiting candidate at a time, the one that has waited longest, so that a release
//! does not start all candidates at once. An offer is no promise: the lease is granted to the candidate that requests
//! it first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::messages::{Call, GrantKind, Request, Standing, VoterAnswer, VoterStatement};
use super::voter_list::{VoterList, credible_max};
use super::{
    CLOCK_STEP_MAX, Delivery, HANDOVER_SHARE, Promised, TERM_AHEAD_MAX, VoterRules, WAITING_MAX,
    WATCHERS_MAX, quarantine,
};
use crate::config::{ClusterSettings, Config, ELECTIONS_MAX};
use crate::controls::{Control, Controls};
use crate::id::RunId;
use crate::time::{HybridClock, Stamp, Time};

/// A lease without holder, candidate or observer is forgotten after this time. Until then the voter knows which terms
/// were released, in case a grant request arrives late.
const FORGET_TIME: Duration = Duration::from_secs(30);

/// The promises of this node as a voter, and what it needs to judge requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Voter {
    /// When the quarantine after the start, or after a forced list, ends. `None`: the voter has not seen a clock yet.
    quarantine_until: Option<Duration>,
    /// The disk has failed, so the voter can promise nothing new.
    pub(super) has_disk_failed: bool,
    /// What it has promised before its start stands on its disk and cannot be read. It promises nothing, until it is
    /// started by a program that can.
    pub(super) is_memo_unread: bool,
    quarantine: Duration,
    rules: VoterRules,
    pub(super) handover: Duration,
    /// Every term up to this one may have been granted, for any lease: before the last start, or for a lease that was
    /// since forgotten.
    term_floor: u64,
    /// The greatest term granted so far. It becomes the term floor of the next run, if the disk has it by then.
    granted_term_max: u64,
    sessions: BTreeMap<RunId, PromiseSession>,
    next_session: u64,
    leases: BTreeMap<String, LeaseRecord>,
    /// When offers end, by time and name of the lease.
    offers: BTreeSet<(Duration, String)>,
    forget_at: Duration,
    controls: Controls,
    pub(super) answers: VecDeque<OutgoingAnswer>,
}

/// An answer that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OutgoingAnswer {
    pub(crate) to: RunId,
    pub(crate) request_id: Option<u64>,
    pub(crate) answer: VoterAnswer,
    pub(crate) delivery: Delivery,
}

/// Everything that is promised to one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PromiseSession {
    session_id: u64,
    until: Duration,
    leases: BTreeSet<String>,
}

/// What the voter keeps of one lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct LeaseRecord {
    /// The greatest term that was granted or released here; and the greatest that was released.
    lease_term_max: Stamp,
    released: Option<Stamp>,
    grant: Option<Grant>,
    /// Waiting candidates by (since when, run), each with the time until which it is believed to wait. All voters see
    /// the same order.
    waiting: BTreeMap<(u64, RunId), Duration>,
    offered: Option<(RunId, Duration)>,
    watchers: BTreeMap<RunId, Duration>,
    used: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    term: Stamp,
    run: RunId,
    value: Vec<u8>,
    /// The id of the request that carried the value.
    number: u64,
}

impl Voter {
    /// A voter that has just started. `promised` is what its disk kept; `salt` makes its session ids differ from those
    /// of all other runs.
    pub(crate) fn new(config: &Config, controls: Controls, promised: Promised, salt: u64) -> Self {
        let times = ClusterSettings::of(config).lease_times();
        let rules = VoterRules::new(times, &VoterList::configured(config.voters.clone()));
        let quarantine = match controls {
            controls if controls.has(Control::NoQuarantine) => Duration::ZERO,
            controls if controls.has(Control::LeaseMaxForgotten) => quarantine(rules, Duration::ZERO),
            _ => quarantine(rules, promised.lease),
        };
        let floor = promised.term;
        Self {
            quarantine_until: None,
            has_disk_failed: false,
            is_memo_unread: false,
            quarantine,
            rules,
            handover: config.lease_time / HANDOVER_SHARE,
            term_floor: floor,
            granted_term_max: floor,
            sessions: BTreeMap::new(),
            next_session: salt,
            leases: BTreeMap::new(),
            offers: BTreeSet::new(),
            forget_at: Duration::ZERO,
            controls,
            answers: VecDeque::new(),
        }
    }

    /// From now on the voter answers under these rules, and grants terms above `term_floor` alone. Its promises stay.
    /// `promised_max` is the longest lease that may have been promised under these rules or the ones before.
    ///
    /// A voter without a disk may have promised such a lease in its last run, under rules that it did not know when it
    /// started. So the quarantine after the start becomes as long as these rules need.
    pub(super) fn adopt(&mut self, rules: VoterRules, promised_max: Duration, term_floor: u64) {
        let needed = quarantine(rules, promised_max);
        if needed > self.quarantine
            && !self.controls.has(Control::NoQuarantine)
            && !self.controls.has(Control::QuarantineKept)
        {
            self.quarantine_until = self.quarantine_until.map(|until| until + (needed - self.quarantine));
            self.quarantine = needed;
        }
        self.rules = rules;
        self.term_floor = self.term_floor.max(term_floor);
        self.granted_term_max = self.granted_term_max.max(term_floor);
    }

    /// Nothing is granted before this time. Sessions go on: what they hold was granted here.
    pub(super) fn prolong_quarantine(&mut self, over: Duration) {
        // A voter that has not seen a clock yet begins with a longer quarantine.
        if !self.controls.has(Control::QuarantineKept) {
            self.quarantine_until = self.quarantine_until.map(|until| until.max(over));
        }
    }

    /// The greatest term that was granted, for any lease.
    pub(super) fn granted_term_max(&self) -> u64 {
        self.granted_term_max
    }

    /// Handles a request from a run.
    pub(crate) fn handle(&mut self, now: Time, run: RunId, call: Call) {
        self.expire(now);
        let Call { request_id: number, lease, request, .. } = call;
        if lease > self.rules.lease_time_max {
            // After a restart the quarantine would be too short for this lease time.
            return self.queue_answer(run, Some(number), VoterAnswer::Differs(self.rules));
        }
        match request {
            Request::Ask { name, since } => {
                let told = self.judge_candidate(now, run, &name, since);
                self.queue_answer(run, Some(number), VoterAnswer::Statement { name, told });
            }
            Request::Grant { name, term, kind, value } => {
                let claim = Grant { term, run, value, number };
                match self.grant_refusal(now, &name, &claim, kind) {
                    Some(told) => self.queue_answer(run, Some(number), VoterAnswer::Statement { name, told }),
                    None => self.grant(now.mono, name, claim, lease),
                }
            }
            Request::Renew { session } => {
                let own = self.sessions.get_mut(&run).filter(|own| own.session_id == session);
                let goes_on = own.is_some();
                if let Some(own) = own {
                    own.until = own.until.max(now.mono + lease);
                }
                self.queue_answer(run, Some(number), VoterAnswer::Renewed { session, goes_on });
            }
            Request::Release { name, term } => {
                self.release(now, run, &name, term);
                self.queue_answer(run, Some(number), VoterAnswer::Released { name, term });
            }
            // Ballots are not the business of leases.
            Request::Prepare { .. } | Request::Accept { .. } => {}
            Request::Watch { name } => {
                if let Some(record) = self.lease_record(now.mono, &name) {
                    if record.watchers.len() < WATCHERS_MAX || record.watchers.contains_key(&run) {
                        record.watchers.insert(run, now.mono + lease * 2);
                    }
                    let answer = record.holder_answer(&name);
                    self.queue_answer(run, Some(number), answer);
                }
            }
        }
    }

    /// Carries out everything whose time has come.
    pub(crate) fn wake(&mut self, now: Time) {
        self.expire(now);
    }

    /// A process has said that it ends: its session ends, and with it all its leases.
    pub(crate) fn on_process_end(&mut self, now: Time, run: RunId) {
        if let Some(session) = self.sessions.get_mut(&run) {
            session.until = now.mono;
        }
        self.expire(now);
    }

    /// When [`Voter::wake`] has to be called next.
    pub(crate) fn deadline(&self) -> Duration {
        let sessions = self.sessions.values().map(|own| own.until);
        sessions.chain(self.offers.first().map(|(until, _)| *until)).min().unwrap_or(Duration::MAX)
    }

    /// Resets what makes no difference any more, so that a model checker sees equivalent voters as equal.
    #[cfg(feature = "__controls")]
    pub(super) fn normalize(&mut self, now: Time) {
        self.expire(now);
        self.quarantine_until =
            self.quarantine_until.filter(|until| *until > now.mono).or(Some(Duration::ZERO));
        self.forget_at = Duration::ZERO;
        self.leases.values_mut().for_each(|record| record.used = Duration::ZERO);
    }

    fn queue_answer(&mut self, to: RunId, request_id: Option<u64>, answer: VoterAnswer) {
        self.answers.push_back(OutgoingAnswer { to, request_id, answer, delivery: Delivery::AtOnce });
    }

    // Judging requests.

    fn judge_candidate(&mut self, now: Time, run: RunId, name: &str, since: Option<u64>) -> VoterStatement {
        let (handover, quarantine_ms) = (self.handover, self.quarantine_left_ms(now.mono));
        let lease_max = self.rules.lease_time_max;
        let clock = clock_now(now);
        let floor = self.term_floor;
        let left = self.time_left(now.mono, name);
        let Some(record) = self.lease_record(now.mono, name) else {
            return VoterStatement {
                clock,
                lease_term_max: floor,
                standing: Standing::Quarantined(millis(lease_max)),
            };
        };
        let top = floor.max(record.lease_term_max.clock);
        if let Some(since) = since {
            record.wait(since, run, now.mono + lease_max * 2);
        }
        let standing = match (&record.grant, record.offered) {
            _ if quarantine_ms > 0 => Standing::Quarantined(quarantine_ms),
            (Some(grant), _) if grant.run != run => Standing::Taken(millis(left)),
            (None, Some((other, until))) if other != run && !record.precedes(run, other) => {
                Standing::Taken(millis(until.saturating_sub(now.mono)))
            }
            (None, _) => {
                let until = now.mono + handover;
                record.offered = Some((run, until));
                self.offers.insert((until, name.to_owned()));
                Standing::Free
            }
            (Some(_), _) => Standing::Free,
        };
        VoterStatement { clock, lease_term_max: top, standing }
    }

    /// Why a grant request has to be refused. `None`: it can be granted.
    fn grant_refusal(
        &mut self,
        now: Time,
        name: &str,
        claim: &Grant,
        kind: GrantKind,
    ) -> Option<VoterStatement> {
        let (quarantine_ms, clock, floor) =
            (self.quarantine_left_ms(now.mono), clock_now(now), self.term_floor);
        let lease_max = self.rules.lease_time_max;
        let left = self.time_left(now.mono, name);
        let told = |top, standing| Some(VoterStatement { clock, lease_term_max: top, standing });
        let granted_max = self.granted_term_max;
        let ignores_terms = self.controls.has(Control::TermReused);
        let Some(record) = self.lease_record(now.mono, name) else {
            return told(floor, Standing::Quarantined(millis(lease_max)));
        };
        let top = floor.max(record.lease_term_max.clock);
        if quarantine_ms > 0 {
            return told(top, Standing::Quarantined(quarantine_ms));
        }
        if let Some(grant) = &record.grant {
            if grant.run != claim.run {
                return told(top, Standing::Taken(millis(left)));
            }
            if grant.term == claim.term {
                return None;
            }
        }
        let is_new = if kind == GrantKind::Held {
            // The sender holds this lease under this term, and only this voter does not know. Nobody else can hold it,
            // because it is free here.
            record.released != Some(claim.term)
        } else {
            claim.term.clock > top && claim.term.clock > clock
        };
        if (is_new && is_possible(now, claim.term.clock, granted_max)) || ignores_terms {
            None
        } else {
            told(top, Standing::Free)
        }
    }

    /// How long the promise of a lease to its holder still lasts.
    fn time_left(&self, now: Duration, name: &str) -> Duration {
        let grant = self.leases.get(name).and_then(|record| record.grant.as_ref());
        let session = grant.and_then(|grant| self.sessions.get(&grant.run));
        session.map_or(Duration::ZERO, |session| session.until.saturating_sub(now))
    }

    pub(super) fn quarantine_left_ms(&self, now: Duration) -> u32 {
        let until = self.quarantine_until.expect("it has seen a clock");
        let left = until.saturating_sub(now);
        let is_silent = self.has_disk_failed || self.is_memo_unread;
        millis(if is_silent { left.max(self.rules.lease_time_max) } else { left })
    }

    // Changing.

    fn grant(&mut self, now: Duration, name: String, claim: Grant, lease: Duration) {
        let (run, term, number) = (claim.run, claim.term, claim.number);
        self.granted_term_max = self.granted_term_max.max(term.clock);
        let next = &mut self.next_session;
        let session = self.sessions.entry(run).or_insert_with(|| {
            *next = next.wrapping_add(1).max(1);
            PromiseSession { session_id: *next, until: now, leases: BTreeSet::new() }
        });
        session.until = session.until.max(now + lease);
        session.leases.insert(name.clone());
        let session = session.session_id;
        let record = self.leases.get_mut(&name).expect("the request was judged");
        (record.lease_term_max, record.offered) = (record.lease_term_max.max(term), None);
        record.waiting.retain(|(_, waiting), _| *waiting != run);
        let is_older = record.grant.as_ref().is_some_and(|old| old.term == term && old.number > number);
        if !is_older {
            record.grant = Some(claim);
        }
        self.tell_watchers(&name);
        let answer = VoterAnswer::Granted { name, term, session };
        let is_kept = !self.controls.has(Control::PromiseNotKept);
        let delivery = if is_kept { Delivery::AfterDisk } else { Delivery::AtOnce };
        self.answers.push_back(OutgoingAnswer { to: run, request_id: Some(number), answer, delivery });
    }

    fn release(&mut self, now: Time, run: RunId, name: &str, term: Stamp) {
        let granted_max = self.granted_term_max;
        let Some(record) = self.lease_record(now.mono, name) else { return };
        // A grant request under this term may still be on its way; it has to be refused then. A term too far ahead is
        // not kept: requests under it are refused anyway, and it would block the terms of all others.
        if term != Stamp::default() && is_possible(now, term.clock, granted_max) {
            (record.lease_term_max, record.released) =
                (record.lease_term_max.max(term), record.released.max(Some(term)));
        }
        record.waiting.retain(|(_, waiting), _| *waiting != run);
        record.offered = record.offered.filter(|(to, _)| *to != run);
        if record.grant.as_ref().is_some_and(|grant| grant.run == run && grant.term <= term) {
            record.grant = None;
            if let Some(session) = self.sessions.get_mut(&run) {
                session.leases.remove(name);
            }
            self.tell_watchers(name);
        }
        self.offer(now, name);
    }

    /// Ends sessions and offers whose time is over. The first call starts the quarantine.
    fn expire(&mut self, time: Time) {
        let now = time.mono;
        self.quarantine_until.get_or_insert(now + self.quarantine);
        let over = |(run, own): (&RunId, &PromiseSession)| (own.until <= now).then_some(*run);
        let over: Vec<RunId> = self.sessions.iter().filter_map(over).collect();
        for run in over {
            let session = self.sessions.remove(&run).expect("just listed");
            for name in session.leases {
                self.leases.get_mut(&name).expect("a granted lease has a record").grant = None;
                self.tell_watchers(&name);
                self.offer(time, &name);
            }
        }
        while self.offers.first().is_some_and(|(until, _)| *until <= now) {
            let (_, name) = self.offers.pop_first().expect("just seen");
            let Some(record) = self.leases.get_mut(&name) else { continue };
            if let Some((run, _)) = record.offered.take_if(|(_, until)| *until <= now) {
                // The candidate did not use the offer: it does not want the lease, or is gone. If it does want it, it
                // asks again.
                record.waiting.retain(|(_, waiting), _| *waiting != run);
                self.offer(time, &name);
            }
        }
        if self.forget_at <= now {
            self.forget_at = now + self.rules.lease_time_max;
            self.forget_unused(now);
        }
    }

    /// Offers a free lease to the candidate that has waited longest.
    fn offer(&mut self, now: Time, name: &str) {
        let (floor, until) = (self.term_floor, now.mono + self.handover);
        let Some(record) = self.leases.get_mut(name) else { return };
        record.waiting.retain(|_, until| *until > now.mono);
        if record.grant.is_some() || record.offered.is_some() {
            return;
        }
        let Some(((_, run), _)) = record.waiting.first_key_value() else { return };
        let run = *run;
        record.offered = Some((run, until));
        let told = VoterStatement {
            clock: clock_now(now),
            lease_term_max: floor.max(record.lease_term_max.clock),
            standing: Standing::Free,
        };
        self.offers.insert((until, name.to_owned()));
        self.queue_answer(run, None, VoterAnswer::Statement { name: name.to_owned(), told });
    }

    fn tell_watchers(&mut self, name: &str) {
        let record = &self.leases[name];
        let report = record.holder_answer(name);
        let tell = |run: &RunId| OutgoingAnswer {
            to: *run,
            request_id: None,
            answer: report.clone(),
            delivery: Delivery::AtOnce,
        };
        self.answers.extend(record.watchers.keys().map(tell));
    }

    /// The record of a lease. It is created if it is new; `None` if there are too many.
    fn lease_record(&mut self, now: Duration, name: &str) -> Option<&mut LeaseRecord> {
        if self.leases.len() >= ELECTIONS_MAX && !self.leases.contains_key(name) {
            return None;
        }
        let record = self.leases.entry(name.to_owned()).or_default();
        record.used = now;
        Some(record)
    }

    /// Forgets leases without holder, candidate or observer. Their greatest term goes into the term floor.
    fn forget_unused(&mut self, now: Duration) {
        let floor = &mut self.term_floor;
        self.leases.retain(|_, record| {
            record.watchers.retain(|_, until| *until > now);
            let is_used = record.grant.is_some()
                || !record.watchers.is_empty()
                || !record.waiting.is_empty()
                || record.used + FORGET_TIME > now;
            if !is_used {
                *floor = (*floor).max(record.lease_term_max.clock);
            }
            is_used
        });
    }
}

impl LeaseRecord {
    fn wait(&mut self, since: u64, run: RunId, until: Duration) {
        self.waiting.retain(|(_, waiting), _| *waiting != run);
        self.waiting.insert((since, run), until);
        if self.waiting.len() > WAITING_MAX {
            self.waiting.pop_last();
        }
    }

    /// Whether a run waits, and has waited longer than another.
    fn precedes(&self, run: RunId, other: RunId) -> bool {
        let since = |run| self.waiting.keys().find(|(_, waiting)| *waiting == run);
        since(run).is_some_and(|own| since(other).is_none_or(|other| own < other))
    }

    fn holder_answer(&self, name: &str) -> VoterAnswer {
        let grant = self.grant.as_ref().map(|grant| (grant.term, grant.value.clone()));
        VoterAnswer::Reported { name: name.to_owned(), grant }
    }
}

/// The wall clock in units of a stamp's clock, at the end of its millisecond.
pub(super) fn clock_now(now: Time) -> u64 {
    HybridClock::limit(now, Duration::ZERO)
}

/// Whether a clock value, of a term or a ballot, is close enough to the voter's clock, or to the greatest one that it
/// has promised: that may be far ahead if the clock was wrong then.
pub(super) fn is_possible(now: Time, clock: u64, promised: u64) -> bool {
    let limit = HybridClock::limit(now, TERM_AHEAD_MAX).max(promised.saturating_add(CLOCK_STEP_MAX));
    clock <= limit.min(credible_max(clock_now(now)))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::VoterMemo;
    use super::*;

    #[test]
    fn a_lease_over_the_bound_is_not_promised() {
        let config = Config::local();
        let at = |ms| Time { mono: Duration::from_millis(ms), wall: Duration::from_secs(1_000_000) };
        let mut voter = Voter::new(&config, Controls::default(), Promised::default(), 1);
        voter.wake(at(0));
        let claim = |lease| {
            let term = Stamp { clock: clock_now(at(0)) + 1, origin: RunId::new(7) };
            let request =
                Request::Grant { name: "lease".to_owned(), term, kind: GrantKind::New, value: Vec::new() };
            Call { hash: 0, request_id: 1, lease, request }
        };
        let over = config.lease_time_max + Duration::from_millis(1);
        voter.handle(at(60_000), RunId::new(7), claim(over));
        let answer = voter.answers.pop_front().expect("it answers").answer;
        assert_eq!(answer, VoterAnswer::Differs(voter.rules));
        voter.handle(at(60_000), RunId::new(7), claim(config.lease_time_max));
        let answer = voter.answers.pop_front().expect("it answers").answer;
        assert!(matches!(answer, VoterAnswer::Granted { .. }), "{answer:?}");
    }

    #[test]
    fn longer_promised_lease_extends_the_quarantine() {
        let config = Config::local();
        let quarantine = |memo: Option<&[u8]>| {
            let mut voter =
                Voter::new(&config, Controls::default(), VoterMemo::read(memo).unwrap().promised, 1);
            voter.wake(Time::default());
            voter.quarantine_until.expect("it has seen the clock")
        };
        let memo = |seconds| {
            let promised = Promised { term: 9, lease: Duration::from_secs(seconds) };
            VoterMemo { promised, ..VoterMemo::default() }.write()
        };
        let kept = Promised { term: 9, lease: Duration::from_secs(4) };
        assert_eq!(VoterMemo::read(Some(&memo(4))).unwrap().promised, kept);
        let bound = (Duration::from_secs(4) + config.clock_skew_max) * 10 / 9;
        assert_eq!(quarantine(Some(&memo(4))), bound);
        assert_eq!(quarantine(Some(&memo(0))), quarantine(None));
        // The memo of earlier versions, which did not contain the lease.
        let bound = (crate::config::LEASE_TIME_MAX + config.clock_skew_max) * 10 / 9;
        assert_eq!(quarantine(Some(&9_u64.to_le_bytes())), bound);
    }

    #[test]
    fn released_ungrantable_term_blocks_no_candidate() {
        let mut config = Config::lan();
        config.lease_time = Duration::from_secs(3);
        let at = |seconds| Time {
            mono: Duration::from_secs(seconds),
            wall: Duration::from_secs(1_000_000 + seconds),
        };
        let mut voter = Voter::new(&config, Controls::default(), Promised::default(), 1);
        voter.wake(at(0));
        let mut ask = |run, request| {
            let call = Call { hash: 0, request_id: 1, lease: config.lease_time, request };
            voter.handle(at(60), run, call);
            voter.answers.drain(..).find(|reply| reply.to == run).expect("it answers").answer
        };
        let name = || "lease".to_owned();
        let ahead = clock_now(Time { wall: at(60).wall + TERM_AHEAD_MAX * 2, ..at(60) });
        let term = Stamp { clock: ahead, origin: RunId::new(7) };
        let refused = ask(
            RunId::new(7),
            Request::Grant { name: name(), term, kind: GrantKind::New, value: Vec::new() },
        );
        assert!(matches!(refused, VoterAnswer::Statement { .. }), "{refused:?}");
        ask(RunId::new(7), Request::Release { name: name(), term });
        let VoterAnswer::Statement { told, .. } =
            ask(RunId::new(8), Request::Ask { name: name(), since: None })
        else {
            panic!()
        };
        assert!(told.standing == Standing::Free && told.lease_term_max < ahead);
        let term = Stamp { clock: told.clock + 1, origin: RunId::new(8) };
        let granted = ask(
            RunId::new(8),
            Request::Grant { name: name(), term, kind: GrantKind::New, value: Vec::new() },
        );
        assert!(matches!(granted, VoterAnswer::Granted { .. }), "{granted:?}");
    }
}
