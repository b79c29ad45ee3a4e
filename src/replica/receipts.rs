//! Who has what this node wrote: the answers that receipts (`seen_by`) wait for.
//!
//! A peer that is sent everything by this node itself acknowledges positions of this node's log. For members that get
//! it through a delegate, the delegate is asked how many of its group cover an event. It asks its mates, each of which
//! answers once it covers the event. The delegate answers when more than half of its group does, when all do, and once
//! in a sync interval what has changed.

use std::collections::{BTreeMap, BTreeSet};

use super::Replica;
use crate::id::LinkId;
use crate::replication::questions::{CoverageQuestions, OpenQuestion};
use crate::store::change_log::LogFilter;
use crate::store::entry::Revision;
use crate::time::Stamp;
use crate::wire::Seen;

/// Which counts are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CoverageAnswers {
    /// Those that have just reached all members or more than half of them: at any time.
    Decisive,
    /// All that have grown since the last answer: once in a sync interval.
    Grown,
}

impl Replica {
    /// Asks all peers, and through delegates their groups, to say when they have this write.
    pub fn request_acks(&mut self, revision: Revision) {
        for link in self.links.values_mut().filter(|link| link.route.feeds) {
            if link.acks.acked() < revision.number || link.route.is_other_group {
                link.acks.ask(revision.number);
            }
        }
    }

    /// How many nodes are known to have a write of this node's own, itself included.
    pub fn count_acked(&self, revision: Revision, stamp: Option<Stamp>) -> usize {
        let stamp = self.latest_own(stamp);
        let (mut count, mut groups) = (1, BTreeMap::<u64, u64>::new());
        for link in self.links.values() {
            let has = u64::from(link.acks.acked() >= revision.number);
            match (&self.members, link.run) {
                (Some(members), Some(run)) if link.route.is_other_group => {
                    let group = members.group(run);
                    // Whatever a delegate says, it speaks for no more than its group.
                    let most = members.group_len(group) as u64;
                    let best = groups.entry(group).or_default();
                    *best = link.coverage_questions.count(stamp).min(most).max(has).max(*best);
                }
                _ => count += has,
            }
        }
        count as usize + groups.values().sum::<u64>() as usize
    }

    /// The write's stamp, or else that of this node's last write: one that did nothing has none.
    fn latest_own(&self, stamp: Option<Stamp>) -> Stamp {
        let run = self.store.run;
        stamp.unwrap_or(Stamp { clock: self.store.coverage.vector().get(run), origin: run })
    }

    /// A peer wants to know who covers these events, which are merged here.
    pub(super) fn on_asked(&mut self, id: LinkId, asked: Vec<Stamp>) {
        let Some(link) = self.links.get_mut(id).filter(|_| !asked.is_empty()) else { return };
        let mut is_passed_on = false;
        for stamp in asked {
            let is_own = link.peer.is_some_and(|(_, run)| run == stamp.origin);
            if is_own {
                link.acks.owe_now();
            }
            if link.route.is_other_group && is_own {
                self.forwarded_claims.ask(stamp.origin, stamp.clock);
                is_passed_on = true;
            }
            if link.route.is_other_group || !is_own {
                link.coverage_questions.on_ask(stamp);
                self.coverage_questions.insert(id);
            }
        }
        if is_passed_on {
            self.links.mark_all_dirty();
        }
    }

    /// A peer answers who covers what. That may complete the count that another peer waits for.
    pub(super) fn on_seen(&mut self, id: LinkId, seen: &[Seen]) {
        let questions = &mut self.links.get_mut(id).expect("the caller looked").coverage_questions;
        seen.iter().for_each(|answer| questions.on_answer(*answer));
        let asks = |questions: &CoverageQuestions| {
            seen.iter().any(|answer| questions.asks_about(answer.stamp.origin))
        };
        let asking = self.links.iter().filter(|(_, link)| link.coverage_questions.has_open());
        let asking = asking.filter(|(_, link)| asks(&link.coverage_questions)).map(|(id, _)| id);
        self.coverage_questions.extend(asking);
    }

    /// Sends the answers to questions of peers that are due.
    pub(super) fn answer_coverage(&mut self, due: CoverageAnswers) {
        let ids: BTreeSet<LinkId> = std::mem::take(&mut self.coverage_questions);
        for id in ids {
            let Some(link) = self.links.get(id) else { continue };
            let is_for_group = link.route.is_other_group;
            for OpenQuestion { stamp, answered } in link.coverage_questions.open() {
                let own = u64::from(self.store.coverage.vector().covers(stamp));
                let (count, all) = if is_for_group { self.count_group(stamp, own) } else { (own, 1) };
                let is_half = answered == 0 && 2 * count > all;
                let questions = &mut self.links.get_mut(id).expect("looked above").coverage_questions;
                if count > answered && (count == all || due == CoverageAnswers::Grown || is_half) {
                    questions.answer(Seen { stamp, count });
                }
                if count == all {
                    questions.close(stamp.origin);
                    if is_for_group {
                        self.forwarded_claims.close_ask(stamp.origin);
                    }
                }
            }
            if self.links.get(id).is_some_and(|link| link.coverage_questions.has_open()) {
                self.coverage_questions.insert(id);
            }
        }
    }

    /// How many of this node's group cover an event, and how many there are.
    fn count_group(&self, stamp: Stamp, own: u64) -> (u64, u64) {
        let mates = self.links.values().filter(|link| link.route.filter == LogFilter::Forwarded);
        // Each mate answers for itself alone.
        let counts = mates.map(|link| link.coverage_questions.count(stamp).min(1));
        let all = self.members.as_ref().map_or(0, crate::membership::Members::mates);
        (own + counts.sum::<u64>(), 1 + all as u64)
    }
}
