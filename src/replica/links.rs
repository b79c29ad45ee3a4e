//! The links, and which of them may have something to do: with a hundred of them, most rest most of the time.
//!
//! A link that is changed is looked at until it has nothing more to do; so are, after every step, those whose business
//! depends on more than themselves. All others rest until something that they are to send is written, or until their
//! deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::time::Duration;

use super::LinkId;
use super::link::Link;
use crate::membership::Reach;
use crate::store::change_log::ChangeLog;
use crate::store::change_log::Scope;

#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
    /// Those that may have something to do.
    touched: BTreeSet<LinkId>,
    /// Of those that rest: who is to be looked at after every step, and when the others have to be seen to.
    restless: BTreeSet<LinkId>,
    deadlines: BTreeSet<(Duration, LinkId)>,
    /// Those that are sent what is written, for each [`Scope`], and what had been written when they were touched last.
    fed: [BTreeSet<LinkId>; 3],
    latest: [u64; 3],
    next: LinkId,
}

impl Links {
    pub(super) fn insert(&mut self, id: LinkId, link: Link) {
        self.remove(id);
        let reach = link.reach;
        self.all.insert(id, link);
        self.take_reach(id, reach);
    }

    /// What the link is for from now on.
    pub(super) fn take_reach(&mut self, id: LinkId, reach: Reach) {
        let Some(link) = self.get_mut(id) else { return };
        link.take_reach(reach);
        self.fed.iter_mut().for_each(|fed| _ = fed.remove(&id));
        if reach.feeds {
            self.fed[reach.scope as usize].insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.touch(id);
        self.touched.remove(&id);
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

    /// To be changed, and therefore to be looked at.
    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.touch(id);
        self.all.get_mut(&id)
    }

    /// To be changed, and therefore to be looked at.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.touch_all();
        self.all.values_mut()
    }

    pub(super) fn touch_all(&mut self) {
        self.ids().into_iter().for_each(|id| self.touch(id));
    }

    /// Has it looked at.
    pub(super) fn touch(&mut self, id: LinkId) {
        let Some(link) = self.all.get_mut(&id) else { return };
        if self.touched.insert(id) {
            self.restless.remove(&id);
            link.rests_until.take().map(|at| self.deadlines.remove(&(at, id)));
        }
    }

    /// Has those looked at that cannot rest.
    pub(super) fn stir(&mut self) {
        let restless = std::mem::take(&mut self.restless);
        restless.into_iter().for_each(|id| self.touch(id));
    }

    /// Has those looked at that are to be sent what was written.
    pub(super) fn follow(&mut self, log: &ChangeLog) {
        for scope in [Scope::Own, Scope::PassedOn, Scope::All] {
            let latest = log.latest(scope);
            if std::mem::replace(&mut self.latest[scope as usize], latest) != latest {
                let fed = std::mem::take(&mut self.fed[scope as usize]);
                fed.iter().for_each(|id| self.touch(*id));
                self.fed[scope as usize] = fed;
            }
        }
    }

    /// The next one to be looked at, all in turn.
    pub(super) fn next_touched(&mut self) -> Option<LinkId> {
        let id = *self.touched.range(self.next..).next().or_else(|| self.touched.first())?;
        self.next = id + 1;
        Some(id)
    }

    /// It has nothing more to do.
    pub(super) fn rest(&mut self, id: LinkId, interval: Duration) {
        self.touch(id);
        self.touched.remove(&id);
        let Some(link) = self.all.get_mut(&id) else { return };
        if link.is_restless() {
            self.restless.insert(id);
        }
        link.rests_until = link.deadline(interval);
        link.rests_until.map(|at| self.deadlines.insert((at, id)));
    }

    /// When one of them has to be seen to.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        let touched = self.touched.iter().filter_map(|id| self.all[id].deadline(interval));
        touched.chain(self.deadlines.first().map(|(at, _)| *at)).min()
    }

    /// Those whose deadline has come, and those that somebody changed or that cannot rest.
    pub(super) fn due(&self, now: Duration) -> Vec<LinkId> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id);
        due.chain(&self.touched).chain(&self.restless).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Index<LinkId> for Links {
    type Output = Link;

    fn index(&self, id: LinkId) -> &Link {
        &self.all[&id]
    }
}
