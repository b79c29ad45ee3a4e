//! Which links must be polled: of a hundred links, most have nothing to do most of the time.
//!
//! # Invariant
//!
//! A link that is not polled has nothing to do; every debug build checks that after every step. A link is either
//! *dirty*, from a change until it has nothing more to do, or it *rests* until the earliest of
//!
//! - a change of the link, or rows that it is sent;
//! - its deadline;
//! - the next step of the replica, if what it does depends on the store as a whole.
//!
//! This module knows links by their ids alone. It never decides what a link has to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::LinkId;

/// The links that must be polled, and when the others must be.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    links: BTreeMap<LinkId, PollState>,
    /// The dirty links, those that are polled after every step, and the deadlines of all that rest.
    dirty: BTreeSet<LinkId>,
    every_step: BTreeSet<LinkId>,
    deadlines: BTreeSet<(Duration, LinkId)>,
    /// Where the turn of the dirty links goes on.
    next: LinkId,
}

#[derive(Clone, Copy, Debug)]
enum PollState {
    Dirty,
    Resting(Rest),
}

/// What ends the rest of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub(super) ends_with_step: bool,
    pub(super) deadline: Option<Duration>,
}

impl Schedule {
    /// A new link, which must be polled.
    pub(super) fn insert(&mut self, id: LinkId) {
        self.links.insert(id, PollState::Dirty);
        self.dirty.insert(id);
    }

    pub(super) fn remove(&mut self, id: LinkId) {
        self.mark_dirty(id);
        self.dirty.remove(&id);
        self.links.remove(&id);
    }

    /// The link must be polled.
    pub(super) fn mark_dirty(&mut self, id: LinkId) {
        let Some(state) = self.links.get_mut(&id) else { return };
        let PollState::Resting(rest) = std::mem::replace(state, PollState::Dirty) else { return };
        self.dirty.insert(id);
        if rest.ends_with_step {
            self.every_step.remove(&id);
        }
        rest.deadline.map(|at| self.deadlines.remove(&(at, id)));
    }

    /// The dirty link has nothing more to do.
    pub(super) fn rest(&mut self, id: LinkId, rest: Rest) {
        self.mark_dirty(id);
        self.dirty.remove(&id);
        self.links.insert(id, PollState::Resting(rest));
        if rest.ends_with_step {
            self.every_step.insert(id);
        }
        rest.deadline.map(|at| self.deadlines.insert((at, id)));
    }

    /// A step was made: ends the rest of the links that wait for it.
    pub(super) fn step(&mut self) {
        while let Some(id) = self.every_step.pop_first() {
            self.mark_dirty(id);
        }
    }

    /// The next dirty link, in turn.
    pub(super) fn next_dirty(&mut self) -> Option<LinkId> {
        let id = *self.dirty.range(self.next..).next().or_else(|| self.dirty.first())?;
        self.next = LinkId::new(id.number() + 1);
        Some(id)
    }

    pub(super) fn dirty(&self) -> impl Iterator<Item = LinkId> {
        self.dirty.iter().copied()
    }

    /// The earliest deadline of the resting links.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The links that are due at this time: the dirty ones, those whose deadline has come, and those that are polled
    /// after every step.
    pub(super) fn due(&self, now: Duration) -> BTreeSet<LinkId> {
        let late = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id);
        late.chain(&self.dirty).chain(&self.every_step).copied().collect()
    }
}
