//! Questions between two peers about who covers an event. Receipts wait for the answers where rows travel through
//! delegates.
//!
//! A question is about an origin: "do you, or how many of your group, cover its events up to this clock?" Each side
//! keeps one question and one answer per origin and direction; a later one replaces an earlier one. So a peer that does
//! not read makes nothing grow, and a lost link costs only asking again.

use std::collections::BTreeMap;

use crate::id::RunId;
use crate::time::Stamp;
use crate::wire::{AskedOf, Covers};

/// Origins about which one peer may be asking at a time.
pub(crate) const QUESTIONS_MAX: usize = 4_096;

/// A question of the peer that is not answered completely.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenQuestion {
    pub(crate) stamp: Stamp,
    pub(crate) of: AskedOf,
    /// The count that was answered last.
    pub(crate) answered: u64,
}

/// The questions of one link, in both directions.
#[derive(Debug, Default)]
pub(crate) struct CoverageQuestions {
    /// Questions of the peer, by origin.
    open: BTreeMap<RunId, OpenQuestion>,
    /// By origin: the greatest clock that the peer was asked about.
    asked: BTreeMap<RunId, u64>,
    /// By origin: the best answer, as the clock and how many members cover it.
    answers: BTreeMap<RunId, (u64, u64)>,
    /// Messages to be sent, by origin.
    to_ask: BTreeMap<RunId, (Stamp, AskedOf)>,
    to_answer: BTreeMap<RunId, (Stamp, u64)>,
}

impl CoverageQuestions {
    /// The next message for the peer.
    pub(crate) fn next_frame(&mut self) -> Option<Vec<u8>> {
        if let Some((_, (stamp, of))) = self.to_ask.pop_first() {
            return Some(Covers::Ask(stamp, of).frame());
        }
        let (_, (stamp, count)) = self.to_answer.pop_first()?;
        Some(Covers::Answer(stamp, count).frame())
    }

    /// Asks the peer, unless it was asked already.
    pub(crate) fn ask(&mut self, stamp: Stamp, of: AskedOf) {
        let asked = self.asked.entry(stamp.origin).or_default();
        if *asked >= stamp.clock {
            return;
        }
        *asked = stamp.clock;
        self.to_ask.insert(stamp.origin, (stamp, of));
        limit(&mut self.asked, stamp.origin);
        limit(&mut self.answers, stamp.origin);
        limit(&mut self.to_ask, stamp.origin);
    }

    /// Takes an answer, if it answers a question that was asked.
    pub(crate) fn on_answer(&mut self, stamp: Stamp, count: u64) {
        if self.asked.get(&stamp.origin).is_none_or(|asked| *asked < stamp.clock) {
            return;
        }
        let best = self.answers.entry(stamp.origin).or_default();
        *best = (stamp.clock, count).max(*best);
    }

    /// How many members the peer said cover this event.
    pub(crate) fn count(&self, stamp: Stamp) -> u64 {
        let answer = self.answers.get(&stamp.origin).filter(|(clock, _)| *clock >= stamp.clock);
        answer.map_or(0, |(_, count)| *count)
    }

    /// Takes a question of the peer.
    pub(crate) fn on_ask(&mut self, stamp: Stamp, of: AskedOf) {
        self.open.insert(stamp.origin, OpenQuestion { stamp, of, answered: 0 });
        limit(&mut self.open, stamp.origin);
    }

    /// The length of the longest of the lists.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept(&self) -> usize {
        let lens =
            [self.open.len(), self.asked.len(), self.answers.len(), self.to_ask.len(), self.to_answer.len()];
        lens.into_iter().max().unwrap_or(0)
    }

    /// The questions of the peer that are not answered completely.
    pub(crate) fn open(&self) -> Vec<OpenQuestion> {
        self.open.values().copied().collect()
    }

    pub(crate) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether the peer asks for the group's count of an origin.
    pub(crate) fn asks_for_group(&self, origin: RunId) -> bool {
        self.open.get(&origin).is_some_and(|question| question.of == AskedOf::Group)
    }

    /// Answers a question of the peer with a count. It stays open for a greater one.
    pub(crate) fn answer(&mut self, stamp: Stamp, count: u64) {
        self.to_answer.insert(stamp.origin, (stamp, count));
        limit(&mut self.to_answer, stamp.origin);
        if let Some(question) = self.open.get_mut(&stamp.origin) {
            question.answered = count;
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
