//! The links of a replica. The code that changes one marks it dirty by taking it, so that it is polled: see
//! [`Schedule`](super::schedule::Schedule).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::time::Duration;

use super::link::Link;
use super::schedule::{Rest, Schedule};
use crate::id::LinkId;
use crate::membership::Route;
use crate::store::change_log::{ChangeLog, LogFilter};

/// A node with this many links accepts no further ones from others. It still dials: a node of the largest cluster needs
/// 512 links in a mesh, or about 200 with groups. Nodes enforce it; a replica takes the links that it is given.
#[cfg(any(feature = "node", feature = "__controls"))]
pub(crate) const LINKS_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
    schedule: Schedule,
    /// For each [`LogFilter`] the links that are sent such rows, and the log's position when they were last marked
    /// dirty.
    fed: [BTreeSet<LinkId>; 2],
    latest: [u64; 2],
}

impl Links {
    pub(super) fn insert(&mut self, id: LinkId, link: Link) {
        self.remove(id);
        let route = link.route;
        self.all.insert(id, link);
        self.schedule.insert(id);
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
        self.schedule.remove(id);
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
        let link = self.all.get_mut(&id)?;
        self.schedule.mark_dirty(id);
        Some(link)
    }

    /// For a change: marks all links dirty.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.mark_all_dirty();
        self.all.values_mut()
    }

    pub(super) fn mark_all_dirty(&mut self) {
        self.all.keys().for_each(|id| self.schedule.mark_dirty(*id));
    }

    /// A step was made: the links that wait for one must be polled.
    pub(super) fn step(&mut self) {
        self.schedule.step();
    }

    /// Marks the links dirty that are sent what was written since the last call.
    pub(super) fn follow(&mut self, log: &ChangeLog) {
        for filter in [LogFilter::Own, LogFilter::Forwarded] {
            let latest = log.latest(filter);
            if std::mem::replace(&mut self.latest[filter as usize], latest) != latest {
                self.fed[filter as usize].iter().for_each(|id| self.schedule.mark_dirty(*id));
            }
        }
    }

    /// The next link to be polled, in turn.
    pub(super) fn next_dirty(&mut self) -> Option<LinkId> {
        self.schedule.next_dirty()
    }

    /// The link has nothing more to do.
    pub(super) fn rest(&mut self, id: LinkId, interval: Duration) {
        if let Some(link) = self.all.get(&id) {
            let rest = Rest { ends_with_step: link.always_poll(), deadline: link.deadline(interval) };
            self.schedule.rest(id, rest);
        }
    }

    /// The earliest deadline of all links.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        let dirty = self.schedule.dirty().filter_map(|id| self.all[&id].deadline(interval));
        dirty.chain(self.schedule.deadline()).min()
    }

    /// The links that are due at this time.
    pub(super) fn due(&self, now: Duration) -> BTreeSet<LinkId> {
        self.schedule.due(now)
    }
}

impl Index<LinkId> for Links {
    type Output = Link;

    fn index(&self, id: LinkId) -> &Link {
        &self.all[&id]
    }
}
