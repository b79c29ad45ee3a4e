//! The links, and which of them must be polled: of a hundred links, most have nothing to do most of the time.
//!
//! # Invariant
//!
//! A link that is not polled has nothing to do; every debug build checks that after every step. A link is polled
//!
//! - after it was changed, until it has nothing more to do (*dirty*);
//! - after every step, while what it does depends on the store as a whole ([`Link::always_poll`]);
//! - when rows that it sends were written ([`Links::follow`]);
//! - at its deadline ([`Link::deadline`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::time::Duration;

use super::link::Link;
use crate::id::LinkId;
use crate::membership::Route;
use crate::store::change_log::ChangeLog;
use crate::store::change_log::LogFilter;

#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
    /// Links that must be polled.
    dirty: BTreeSet<LinkId>,
    /// Of the others: those that must be polled after every step, and the deadlines of all.
    always_poll: BTreeSet<LinkId>,
    deadlines: BTreeSet<(Duration, LinkId)>,
    /// For each [`LogFilter`] the links that are sent such rows, and the log's position when they were last marked
    /// dirty.
    fed: [BTreeSet<LinkId>; 3],
    latest: [u64; 3],
    next: LinkId,
}

impl Links {
    pub(super) fn insert(&mut self, id: LinkId, link: Link) {
        self.remove(id);
        let route = link.route;
        self.all.insert(id, link);
        self.set_route(id, route);
    }

    /// What the link is for from now on.
    pub(super) fn set_route(&mut self, id: LinkId, route: Route) {
        let Some(link) = self.get_mut(id) else { return };
        link.set_route(route);
        self.fed.iter_mut().for_each(|fed| _ = fed.remove(&id));
        if route.feeds {
            self.fed[route.filter as usize].insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.mark_dirty(id);
        self.dirty.remove(&id);
        self.fed.iter_mut().for_each(|fed| _ = fed.remove(&id));
        self.all.remove(&id)
    }

    pub(super) fn contains(&self, id: LinkId) -> bool {
        self.all.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.all.keys().copied().collect()
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.all.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.all.iter().map(|(id, link)| (*id, link))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Link> {
        self.all.values()
    }

    /// For a change: marks the link dirty.
    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.mark_dirty(id);
        self.all.get_mut(&id)
    }

    /// For a change: marks all links dirty.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.mark_all_dirty();
        self.all.values_mut()
    }

    pub(super) fn mark_all_dirty(&mut self) {
        self.ids().into_iter().for_each(|id| self.mark_dirty(id));
    }

    /// The link must be polled.
    pub(super) fn mark_dirty(&mut self, id: LinkId) {
        let Some(link) = self.all.get_mut(&id) else { return };
        if self.dirty.insert(id) {
            self.always_poll.remove(&id);
            link.idle_deadline.take().map(|at| self.deadlines.remove(&(at, id)));
        }
    }

    /// Marks the links dirty that must be polled after every step.
    pub(super) fn wake(&mut self) {
        let restless = std::mem::take(&mut self.always_poll);
        restless.into_iter().for_each(|id| self.mark_dirty(id));
    }

    /// Marks the links dirty that are sent what was written since the last call.
    pub(super) fn follow(&mut self, log: &ChangeLog) {
        for filter in [LogFilter::Own, LogFilter::Forwarded, LogFilter::All] {
            let latest = log.latest(filter);
            if std::mem::replace(&mut self.latest[filter as usize], latest) != latest {
                let fed = std::mem::take(&mut self.fed[filter as usize]);
                fed.iter().for_each(|id| self.mark_dirty(*id));
                self.fed[filter as usize] = fed;
            }
        }
    }

    /// The next link to be polled, in turn.
    pub(super) fn next_dirty(&mut self) -> Option<LinkId> {
        let id = *self.dirty.range(self.next..).next().or_else(|| self.dirty.first())?;
        self.next = LinkId::new(id.number() + 1);
        Some(id)
    }

    /// The link has nothing more to do.
    pub(super) fn idle(&mut self, id: LinkId, interval: Duration) {
        self.mark_dirty(id);
        self.dirty.remove(&id);
        let Some(link) = self.all.get_mut(&id) else { return };
        if link.always_poll() {
            self.always_poll.insert(id);
        }
        link.idle_deadline = link.deadline(interval);
        link.idle_deadline.map(|at| self.deadlines.insert((at, id)));
    }

    /// The earliest deadline of all links.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        let touched = self.dirty.iter().filter_map(|id| self.all[id].deadline(interval));
        touched.chain(self.deadlines.first().map(|(at, _)| *at)).min()
    }

    /// The links whose deadline has come, the dirty ones, and those that are polled after every step.
    pub(super) fn links_to_poll(&self, now: Duration) -> Vec<LinkId> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id);
        due.chain(&self.dirty)
            .chain(&self.always_poll)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }
}

impl Index<LinkId> for Links {
    type Output = Link;

    fn index(&self, id: LinkId) -> &Link {
        &self.all[&id]
    }
}
