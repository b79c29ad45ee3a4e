//! Observers of leases: who leads, as a majority of voters reports it. Voters inform everybody who asked recently of
//! every change. Observers ask again from time to time, which makes up for messages that were lost.
//!
//! An observer's answer may be out of date. Never use it for mutual exclusion; only a token that the resource checks
//! gives that.

use std::time::Duration;

use super::messages::Request;
use super::{ASK_TIME_MIN, ElectionEffect, Elections, Leader, Sighting, check_election_name};
use crate::config::ELECTIONS_MAX;
use crate::error::ElectionError;
use crate::time::{Stamp, Time};

/// What this node knows of one lease that its users observe.
#[derive(Debug)]
pub(super) struct LeaderView {
    /// The voters' latest reports, by index of the voter, each with the time at which it becomes void.
    reports: Vec<Option<Report>>,
    begun: Duration,
    act_at: Duration,
    tries: u32,
    /// What the users were informed of last.
    known_to_user: Sighting,
    users: usize,
}

/// The term and value of the grant that a voter reported, if it has granted the lease; and when the report becomes
/// void.
type Report = (Option<(Stamp, Vec<u8>)>, Duration);

impl LeaderView {
    /// The seats of the voters change: by new seat, the seat that the voter had. New voters are asked at once, and may
    /// have granted the lease until they report.
    pub(super) fn reseat(&mut self, now: Duration, old_seats: &[Option<usize>]) {
        self.reports = old_seats.iter().map(|old| self.reports[(*old)?].clone()).collect();
        (self.begun, self.act_at) = (now, now);
    }
}

impl Elections {
    /// Begins to observe a lease for one more user.
    pub(crate) fn observe(&mut self, now: Time, name: &str) -> Result<(), ElectionError> {
        check_election_name(name)?;
        if self.views.len() >= ELECTIONS_MAX && !self.views.contains_key(name) {
            return Err(ElectionError::TooMany);
        }
        let new = || LeaderView {
            reports: vec![None; self.voters.len()],
            begun: now.mono,
            act_at: now.mono,
            tries: 0,
            known_to_user: Sighting::Unknown,
            users: 0,
        };
        self.views.entry(name.to_owned()).or_insert_with(new).users += 1;
        self.deadline = Duration::ZERO;
        Ok(())
    }

    /// Ends one [`Elections::observe`]. True if no user of the lease is left.
    pub(crate) fn unobserve(&mut self, name: &str) -> bool {
        let Some(view) = self.views.get_mut(name) else { return true };
        view.users -= 1;
        let is_last = view.users == 0;
        if is_last {
            self.views.remove(name);
        }
        is_last
    }

    /// The leader of a lease, if the lease is observed and its leader is known.
    pub(crate) fn leader(&self, name: &str) -> Option<&Option<Leader>> {
        match &self.views.get(name)?.known_to_user {
            Sighting::Unknown => None,
            Sighting::Known(leader) => Some(leader),
        }
    }

    /// How many voters have reported on the lease, whether they have granted it or not, and how many reports are
    /// needed.
    #[cfg(feature = "node")]
    pub(crate) fn answered_count(&self, name: &str) -> (usize, usize) {
        let heard = self.views.get(name).map_or(0, |view| view.reports.iter().flatten().count());
        (heard, self.quorum.tally(|_| false).1)
    }

    pub(super) fn on_report(&mut self, now: Time, at: usize, name: &str, grant: Option<(Stamp, Vec<u8>)>) {
        let until = now.mono + self.lease * 5 / 4;
        if let Some(view) = self.views.get_mut(name) {
            view.reports[at] = Some((grant, until));
            self.deadline = self.deadline.min(until);
            self.count_reports(now.mono, name);
        }
    }

    pub(super) fn view_deadline(&mut self, now: Duration, name: &str) {
        self.count_reports(now, name);
        let jitter = self.jitter(self.lease / 8);
        let view = self.views.get_mut(name).expect("just listed");
        if view.act_at <= now {
            let is_known = self.quorum.is_met(|at| view.reports[at].is_some());
            view.tries = if is_known { 0 } else { view.tries + 1 };
            let patience = (ASK_TIME_MIN * (1 << view.tries.min(8))).min(self.lease / 4);
            view.act_at = now + if is_known { self.lease / 2 } else { patience } + jitter;
            self.send_all(now, &Request::Watch { name: name.to_owned() });
        }
        let view = &self.views[name];
        let over = view.reports.iter().flatten().map(|(_, until)| *until);
        self.deadline = over.chain([view.act_at, self.deadline]).min().expect("it is not empty");
    }

    /// Counts the reports that are still valid, and informs the users if the result is new.
    fn count_reports(&mut self, now: Duration, name: &str) {
        let (quorum, lease) = (&self.quorum, self.lease);
        let view = self.views.get_mut(name).expect("it is observed");
        view.reports.iter_mut().for_each(|report| _ = report.take_if(|(_, until)| *until <= now));
        let grants = || view.reports.iter().flatten().filter_map(|(grant, _)| grant.as_ref());
        let has_granted = |at: usize, term: &Stamp| {
            let grant = view.reports[at].as_ref().and_then(|(grant, _)| grant.as_ref());
            grant.is_some_and(|(other, _)| other == term)
        };
        let is_elected = |term: &Stamp| quorum.is_met(|at| has_granted(at, term));
        let latest = grants().rfind(|(term, _)| is_elected(term));
        let leader = latest.map(|(term, value)| Leader { token: *term, value: value.clone() });
        // A voter without a report may have granted the lease, so it counts for every term until the view is one lease
        // time old. After that it counts for none: otherwise users would wait for ever for a voter that is down. If it
        // has granted the lease after all, users are told that nobody leads until it reports. That is acceptable,
        // because an observer's answer protects nothing.
        let is_silent = |at: usize| view.begun + lease > now && view.reports[at].is_none();
        let may_be = |term: &Stamp| quorum.is_met(|at| is_silent(at) || has_granted(at, term));
        let is_none = !quorum.is_met(is_silent) && !grants().any(|(term, _)| may_be(term));
        let is_known = leader.is_some() || (quorum.is_met(|at| view.reports[at].is_some()) && is_none);
        let sighting = Sighting::Known(leader.clone());
        if (is_known || view.known_to_user != Sighting::Unknown) && view.known_to_user != sighting {
            view.known_to_user = sighting;
            self.effects.push_back(ElectionEffect::Leader(name.to_owned(), leader));
        }
    }
}
