//! Observers: who leads, as a majority of voters says. Voters tell those who asked lately of every change; asking again
//! now and then mends what was lost on the way.
//!
//! An observer is told the truth of a moment that is over. Only the token, checked where the work is done, protects.

use std::time::Duration;

use super::messages::Request;
use super::{ASK_TIME_MIN, ElectionEffect, Elections, Leader, Sighting, check_election_name};
use crate::config::ELECTIONS_MAX;
use crate::error::ElectionError;
use crate::time::{Stamp, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct LeaderView {
    /// What voters have said, by seat, and until when that counts.
    reports: Vec<Option<Report>>,
    begun: Duration,
    act_at: Duration,
    tries: u32,
    /// What was told the user.
    known_to_user: Sighting,
    users: usize,
}

/// To whom a voter has granted the lease, if it has.
type Report = (Option<(Stamp, Vec<u8>)>, Duration);

impl Elections {
    /// Begins to observe a lease, for one more user.
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

    /// One user less; answers whether it was the last.
    pub(crate) fn unobserve(&mut self, name: &str) -> bool {
        let Some(view) = self.views.get_mut(name) else { return true };
        view.users -= 1;
        let is_last = view.users == 0;
        if is_last {
            self.views.remove(name);
        }
        is_last
    }

    /// Who leads, if that is observed and known.
    pub(crate) fn leader(&self, name: &str) -> Option<&Option<Leader>> {
        match &self.views.get(name)?.known_to_user {
            Sighting::Unknown => None,
            Sighting::Known(leader) => Some(leader),
        }
    }

    /// How many voters have said whom they have granted it, and how many are needed.
    #[cfg(feature = "node")]
    pub(crate) fn answered_count(&self, name: &str) -> (usize, usize) {
        let heard = self.views.get(name).map_or(0, |view| view.reports.iter().flatten().count());
        (heard, self.majority())
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
        let majority = self.majority();
        let jitter = self.jitter(self.lease / 8);
        let view = self.views.get_mut(name).expect("just listed");
        if view.act_at <= now {
            let is_known = view.reports.iter().flatten().count() >= majority;
            view.tries = if is_known { 0 } else { view.tries + 1 };
            let patience = (ASK_TIME_MIN * (1 << view.tries.min(8))).min(self.lease / 4);
            view.act_at = now + if is_known { self.lease / 2 } else { patience } + jitter;
            self.send_all(now, &Request::Watch { name: name.to_owned() });
        }
        let view = &self.views[name];
        let over = view.reports.iter().flatten().map(|(_, until)| *until);
        self.deadline = over.chain([view.act_at, self.deadline]).min().expect("there are two");
    }

    /// Counts what voters have said, and tells the user if that is something new.
    fn count_reports(&mut self, now: Duration, name: &str) {
        let (majority, lease) = (self.majority(), self.lease);
        let view = self.views.get_mut(name).expect("it is observed");
        view.reports.iter_mut().for_each(|report| _ = report.take_if(|(_, until)| *until <= now));
        let reports = || view.reports.iter().flatten();
        let grants = || reports().filter_map(|(grant, _)| grant.as_ref());
        let is_elected = |term: &Stamp| grants().filter(|(other, _)| other == term).count() >= majority;
        let latest = grants().rfind(|(term, _)| is_elected(term));
        let leader = latest.map(|(term, value)| Leader { token: *term, value: value.clone() });
        // Those that have not been heard of may have granted it; before long they count as if they had not.
        let silent = if view.begun + lease > now { view.reports.len() - reports().count() } else { 0 };
        let may_be = |term: &Stamp| grants().filter(|(other, _)| other == term).count() + silent >= majority;
        let is_none = silent < majority && !grants().any(|(term, _)| may_be(term));
        let is_known = leader.is_some() || (reports().count() >= majority && is_none);
        let sighting = Sighting::Known(leader.clone());
        if (is_known || view.known_to_user != Sighting::Unknown) && view.known_to_user != sighting {
            view.known_to_user = sighting;
            self.effects.push_back(ElectionEffect::Leader(name.to_owned(), leader));
        }
    }
}
