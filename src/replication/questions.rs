//! Who covers an event: what one peer asks of this side, and what it answered. Receipts wait for the answers where rows
//! travel through delegates.
//!
//! A peer asks with a claim ([`claims`](super::claims)), and the answer travels in an acknowledgement: so many members
//! cover this origin up to this clock. A delegate answers for its group, everybody else for itself. A later question or
//! answer about an origin replaces an earlier one. So a peer that does not read makes nothing grow, and a lost link
//! costs only asking again.

use std::collections::BTreeMap;

use crate::id::RunId;
use crate::time::Stamp;
use crate::wire::Seen;

/// Origins about which one peer may be asking at a time.
pub(crate) const QUESTIONS_MAX: usize = 4_096;

/// A question of the peer that is not answered completely.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenQuestion {
    pub(crate) stamp: Stamp,
    /// The count that was answered last.
    pub(crate) answered: u64,
}

/// The questions of one link, in both directions.
#[derive(Debug, Default)]
pub(crate) struct CoverageQuestions {
    /// Questions of the peer, by origin.
    open: BTreeMap<RunId, OpenQuestion>,
    /// The best answer of the peer by origin.
    answers: BTreeMap<RunId, Seen>,
    /// Answers to be sent, by origin.
    due: BTreeMap<RunId, Seen>,
}

impl CoverageQuestions {
    /// The answers to be sent now.
    pub(crate) fn take_due(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.due).into_values().collect()
    }

    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Takes an answer of the peer.
    pub(crate) fn on_answer(&mut self, answer: Seen) {
        let best = self.answers.entry(answer.stamp.origin).or_insert(answer);
        *best = answer.max(*best);
        limit(&mut self.answers, answer.stamp.origin);
    }

    /// How many members the peer said cover this event.
    pub(crate) fn count(&self, stamp: Stamp) -> u64 {
        let answer = self.answers.get(&stamp.origin).filter(|answer| answer.stamp.clock >= stamp.clock);
        answer.map_or(0, |answer| answer.count)
    }

    /// Takes a question of the peer.
    pub(crate) fn on_ask(&mut self, stamp: Stamp) {
        self.open.insert(stamp.origin, OpenQuestion { stamp, answered: 0 });
        limit(&mut self.open, stamp.origin);
    }

    /// The length of the longest of the lists.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept(&self) -> usize {
        self.open.len().max(self.answers.len()).max(self.due.len())
    }

    /// The questions of the peer that are not answered completely.
    pub(crate) fn open(&self) -> Vec<OpenQuestion> {
        self.open.values().copied().collect()
    }

    pub(crate) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(crate) fn asks_about(&self, origin: RunId) -> bool {
        self.open.contains_key(&origin)
    }

    /// Answers a question of the peer with a count. It stays open for a greater one.
    pub(crate) fn answer(&mut self, answer: Seen) {
        let origin = answer.stamp.origin;
        self.due.insert(origin, answer);
        limit(&mut self.due, origin);
        if let Some(question) = self.open.get_mut(&origin) {
            question.answered = answer.count;
        }
    }

    /// There is no greater count to be answered.
    pub(crate) fn close(&mut self, origin: RunId) {
        self.open.remove(&origin);
    }
}

/// Drops one entry other than that of `except` if there are too many. A receipt that needed it waits until its timeout,
/// or until a new link asks again.
fn limit<T>(map: &mut BTreeMap<RunId, T>, except: RunId) {
    if map.len() > QUESTIONS_MAX
        && let Some(other) = map.keys().copied().find(|other| *other != except)
    {
        map.remove(&other);
    }
}
