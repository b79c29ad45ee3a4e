//! Whether this node's wall clock can be believed.
//!
//! Stamps and expiries use the wall clock, and a wrong one spoils the data of others: a row that a node drops as
//! expired is covered and not held, which a repair spreads as a delete. So the wall clock is compared with the
//! monotonic clock at every input, and with the clocks that peers put into replies to checks. All clocks are stored as
//! *offsets*: a wall clock minus this node's monotonic clock, in milliseconds. An offset stays the same as long as
//! nobody sets a clock.
//!
//! The clock comes *into doubt*
//! - by a step: its own offset moves by more than half of `clock_skew_max` (at least [`STEP_MS_MIN`]); or
//! - by contradiction: a majority of the linked nodes, this one included, differ by more than `clock_skew_max`. So a
//!   single peer never brings a clock into doubt, and of two nodes that disagree neither doubts because of the other.
//!
//! The doubt ends when
//! - the offset is what it was before the step; or
//! - most peers agree with it, in replies to checks sent since the doubt began; or
//! - the clock has run for [`ACCEPT_TIME`] and no majority of peers contradicted, as when a clock is set after boot on
//!   a node without peers ([`ALONE_TIME`] if peers contradicted and are gone).
//!
//! A node in doubt must not send its time to peers, so that two wrong clocks do not confirm each other. A machine that
//! was suspended makes no step where the monotonic clock counts the suspension, as on Linux; elsewhere resuming is a
//! step.
//!
//! Dropping expired values is final, so it requires more: peers must have confirmed the clock since the start or the
//! last accepted step, or enough time has passed without that: [`ACCEPT_TIME`] where this store knows of no peer,
//! [`ALONE_TIME`] otherwise.
//!
//! Not detected: steps below the limit that are repeated while no peers contradict; a majority of peers that are wrong
//! in the same way; and a clock that is wrong for more than [`ALONE_TIME`] on a node that is cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BreakReason, Output, Replica, ReplicaEvent};
use crate::controls::{Control, Controls};
use crate::id::LinkId;
use crate::replication::claims::ForwardedClaims;
use crate::time::Time;

/// Smaller differences are no step, whatever `clock_skew_max` is: the two clocks are not read at the same instant.
const STEP_MS_MIN: i64 = 1_000;
/// A step that no majority of peers contradicts is accepted after this time. A store that knows of no peer drops
/// expired values after it.
const ACCEPT_TIME: Duration = Duration::from_secs(60);
/// The same where peers contradicted the step, or for a store that knows of peers of which none confirmed the clock.
const ALONE_TIME: Duration = Duration::from_secs(24 * 3_600);

/// A peer's clock, from a reply to a check.
#[derive(Clone, Copy, Debug)]
struct Statement {
    offset: i64,
    /// When the check was sent.
    asked_at: Duration,
}

/// How many peers agree with the own clock, and how many do not.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    agree: usize,
    differ: usize,
}

impl Votes {
    /// A majority of the linked nodes, this one included, differ.
    fn is_outvoted(self) -> bool {
        self.differ > self.agree + 1
    }

    fn is_agreed(self) -> bool {
        self.agree > self.differ
    }
}

/// How the trust in the clock has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockChange {
    /// The first comparison: from now on steps are noticed.
    Begun,
    Doubted,
    Trusted,
}

/// Whether the wall clock is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Trusted,
    Doubted {
        /// The offset before the step that began the doubt. `None` if peers began it.
        before: Option<i64>,
    },
}

#[derive(Debug)]
pub(crate) struct WallClock {
    step_ms_max: i64,
    skew_ms_max: i64,
    /// As of the last comparison.
    offset: i64,
    trust: Trust,
    /// When the clock was first read, made its last step, or came into doubt. `None` before the first reading.
    since: Option<Duration>,
    /// Most peers differed when one of them was last heard.
    is_contradicted: bool,
    /// Peers agreed since the start or the last accepted step.
    is_confirmed: bool,
    /// How long after `since` expired values may be dropped although no peer confirmed the clock: longer if other nodes
    /// hold or held what this store holds.
    drop_patience: Duration,
    statements: BTreeMap<LinkId, Statement>,
    has_news: bool,
    controls: Controls,
}

fn offset(wall_ms: u64, mono: Duration) -> i64 {
    let ms = |ms: u128| i64::try_from(ms).unwrap_or(i64::MAX);
    ms(wall_ms.into()).saturating_sub(ms(mono.as_millis()))
}

fn apart(a: i64, b: i64) -> i64 {
    a.saturating_sub(b).saturating_abs()
}

impl WallClock {
    pub(crate) fn new(skew_max: Duration, controls: Controls) -> Self {
        let mut clock = Self {
            step_ms_max: 0,
            skew_ms_max: 0,
            offset: 0,
            trust: Trust::Trusted,
            since: None,
            is_contradicted: false,
            is_confirmed: false,
            drop_patience: ACCEPT_TIME,
            statements: BTreeMap::new(),
            has_news: false,
            controls,
        };
        clock.set_skew_max(skew_max);
        clock
    }

    /// Changes how far wall clocks may differ.
    pub(crate) fn set_skew_max(&mut self, skew_max: Duration) {
        let skew = i64::try_from(skew_max.as_millis()).unwrap_or(i64::MAX);
        self.step_ms_max = (skew / 2).max(STEP_MS_MIN);
        self.skew_ms_max = skew.max(STEP_MS_MIN);
    }

    /// Notes that other nodes hold what this store holds, or will: dropping expired values now waits longer.
    pub(crate) fn note_others(&mut self) {
        self.drop_patience = ALONE_TIME;
    }

    /// Takes in a peer's clock, assumed to be read halfway through the round trip. `None`: the peer doubts its own
    /// clock.
    pub(crate) fn hear_clock(&mut self, now: Time, link: LinkId, wall_ms: Option<u64>, round_trip: Duration) {
        self.has_news = true;
        match wall_ms {
            None => _ = self.statements.remove(&link),
            // After a long round trip the reading is too imprecise.
            Some(_) if round_trip.as_millis() > self.skew_ms_max.unsigned_abs().into() => {}
            Some(wall_ms) => {
                let said = Statement {
                    offset: offset(wall_ms, now.mono.saturating_sub(round_trip / 2)),
                    asked_at: now.mono.saturating_sub(round_trip),
                };
                self.statements.insert(link, said);
            }
        }
    }

    /// Forgets the clock of a link that is gone, but not that its peer contradicted.
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        self.statements.remove(&link);
    }

    /// Compares both clocks. Must be called at every input, before the time is used.
    pub(crate) fn look(&mut self, now: Time) -> Option<ClockChange> {
        let offset = offset(now.wall_ms(), now.mono);
        let before = std::mem::replace(&mut self.offset, offset);
        let has_stepped = self.since.is_some() && apart(offset, before) > self.step_ms_max;
        if self.since.is_none() {
            self.since = Some(now.mono);
            return Some(ClockChange::Begun);
        }
        if has_stepped {
            self.since = Some(now.mono);
        }
        let has_news = std::mem::take(&mut self.has_news);
        if !self.is_doubted() && !has_stepped && !has_news {
            return None;
        }
        let votes = self.votes();
        if has_news {
            self.is_contradicted = votes.differ > votes.agree;
        }
        if let Trust::Doubted { before } = self.trust {
            return self.reconsider(now, votes, before);
        }
        if has_stepped || votes.is_outvoted() {
            self.trust = Trust::Doubted { before: has_stepped.then_some(before) };
            self.since = Some(now.mono);
            return Some(ClockChange::Doubted);
        }
        self.is_confirmed |= votes.is_agreed();
        None
    }

    /// Ends the doubt if its conditions hold.
    fn reconsider(&mut self, now: Time, votes: Votes, before: Option<i64>) -> Option<ClockChange> {
        let has_returned = before.is_some_and(|before| apart(self.offset, before) <= self.step_ms_max);
        let patience = if self.is_contradicted { ALONE_TIME } else { ACCEPT_TIME };
        let is_accepted =
            votes.differ <= votes.agree && self.since.is_some_and(|since| now.mono >= since + patience);
        if votes.is_outvoted() || !(has_returned || votes.is_agreed() || is_accepted) {
            return None;
        }
        self.is_confirmed = votes.is_agreed() || (has_returned && self.is_confirmed);
        (self.trust, self.is_contradicted) = (Trust::Trusted, false);
        Some(ClockChange::Trusted)
    }

    /// Counts a peer as agreeing only by a reply to a check sent since the start or the last step. It counts as
    /// differing also by an earlier reply, until a new one comes. So the first reply after a step, which may come from
    /// another wrong clock, decides nothing by itself.
    fn votes(&self) -> Votes {
        let mut votes = Votes::default();
        for said in self.statements.values() {
            if apart(said.offset, self.offset) > self.skew_ms_max {
                votes.differ += 1;
            } else if Some(said.asked_at) >= self.since {
                votes.agree += 1;
            }
        }
        votes
    }

    pub(crate) fn is_doubted(&self) -> bool {
        matches!(self.trust, Trust::Doubted { .. })
    }

    fn is_read(&self) -> bool {
        self.since.is_some()
    }

    /// Whether expired values may be dropped for good.
    pub(crate) fn may_drop(&self, now: Time) -> bool {
        let has_waited = self.since.is_some_and(|since| now.mono >= since + self.drop_patience);
        (!self.is_doubted() && (self.is_confirmed || has_waited)) || self.controls.has(Control::DropsInDoubt)
    }

    /// How far the clock is off: from the median peer's clock, or without peers from what it showed before its step.
    pub(crate) fn off(&self) -> Duration {
        let mut said: Vec<i64> = self.statements.values().map(|said| said.offset).collect();
        said.sort_unstable();
        let before = match self.trust {
            Trust::Trusted => None,
            Trust::Doubted { before } => before,
        };
        let expected = said.get(said.len() / 2).copied().or(before);
        let off = expected.map_or(0, |expected| apart(self.offset, expected));
        Duration::from_millis(off.unsigned_abs())
    }
}

impl Replica {
    /// Compares the wall clock with the monotonic one, and with what peers said of theirs.
    pub(super) fn look_at_clock(&mut self, now: Time) {
        let turn = self.wall_clock.look(now);
        self.store.may_drop = self.wall_clock.may_drop(now);
        self.store.set_sendable_max(now);
        if turn.is_some() {
            self.withhold_future();
        }
        let event = match turn {
            None | Some(ClockChange::Begun) => return,
            Some(ClockChange::Doubted) => ReplicaEvent::ClockInDoubt { off: self.wall_clock.off() },
            Some(ClockChange::Trusted) => ReplicaEvent::ClockTrusted,
        };
        // While in doubt, all peers are asked at once, and again in each interval.
        self.next_tick = self.next_tick.min(now.mono);
        self.outputs.push_back(Output::Event(event));
    }

    /// Withholds from peers, until their time, the claims that were made or taken while the clock was ahead. Links that
    /// were sent such claims are broken: they are no basis to go on from. Before the clock was first read it is not
    /// known what is in the future; the first reading comes back here.
    pub(super) fn withhold_future(&mut self) {
        if self.wall_clock.is_read() && self.store.withhold_future(self.now) {
            self.forwarded_claims = ForwardedClaims::default();
            self.links.ids().into_iter().for_each(|id| self.break_link(id, BreakReason::Clock));
        }
    }

    /// A peer has answered a check. If answers are missing, the round trip is taken as longer than it was.
    pub(super) fn hear_clock(&mut self, id: LinkId, wall_ms: Option<u64>) {
        let asked_at = self.links.get_mut(id).and_then(|link| link.checks.unanswered_since.take());
        if let Some(asked_at) = asked_at {
            self.wall_clock.hear_clock(self.now, id, wall_ms, self.now.mono.saturating_sub(asked_at));
            self.look_at_clock(self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn at(seconds: u64, ahead_ms: u64) -> Time {
        let mono = Duration::from_secs(seconds);
        Time { mono, wall: mono + Duration::from_millis(1_000 * HOUR + ahead_ms) }
    }

    fn clock() -> WallClock {
        let mut clock = WallClock::new(Duration::from_secs(5), Controls::default());
        assert_eq!(clock.look(at(0, 0)), Some(ClockChange::Begun));
        clock
    }

    /// A peer answers at this time with a clock that is so far ahead.
    fn hear(clock: &mut WallClock, link: u64, seconds: u64, ahead_ms: u64) {
        let now = at(seconds, ahead_ms);
        clock.hear_clock(now, LinkId::new(link), Some(now.wall_ms()), Duration::ZERO);
    }

    #[test]
    fn a_step_is_doubted_until_the_clock_returns() {
        let mut clock = clock();
        assert!(clock.look(at(1, 2_000)).is_none(), "half of the skew is no step");
        for ahead in [2 * HOUR, 0] {
            assert_eq!(clock.look(at(2, ahead + 6_000)), Some(ClockChange::Doubted));
            assert!(!clock.may_drop(at(2, ahead)) && clock.off() >= Duration::from_secs(4));
            assert_eq!(clock.look(at(3, ahead + 6_000)), None);
            assert_eq!(clock.look(at(14, 2_000)), Some(ClockChange::Trusted));
            assert!(clock.may_drop(at(75, 2_000)));
        }
    }

    #[test]
    fn clock_step_is_accepted_if_confirmed_or_uncontradicted() {
        let mut alone = clock();
        assert_eq!(alone.look(at(1, HOUR)), Some(ClockChange::Doubted));
        assert_eq!(alone.look(at(60, HOUR)), None);
        assert_eq!(alone.look(at(61, HOUR)), Some(ClockChange::Trusted));

        let mut clock = clock();
        clock.note_others();
        hear(&mut clock, 1, 0, HOUR);
        assert_eq!(clock.look(at(1, HOUR)), Some(ClockChange::Doubted));
        assert_eq!(clock.look(at(2, HOUR)), None, "what was said before the step confirms nothing");
        hear(&mut clock, 1, 2, HOUR);
        assert_eq!(clock.look(at(2, HOUR)), Some(ClockChange::Trusted));
        assert!(clock.may_drop(at(2, HOUR)));
    }

    #[test]
    fn a_contradicted_step_is_not_accepted_though_the_peer_goes() {
        let mut clock = clock();
        clock.note_others();
        assert_eq!(clock.look(at(1, HOUR)), Some(ClockChange::Doubted));
        hear(&mut clock, 1, 2, 0);
        assert_eq!(clock.look(at(2, HOUR)), None);
        clock.forget_link(LinkId::new(1));
        assert_eq!(clock.look(at(3_600, HOUR)), None);
        assert_eq!(clock.look(at(3 * 24 * 3_600, HOUR)), Some(ClockChange::Trusted));
    }

    #[test]
    fn one_peer_alone_brings_no_clock_into_doubt() {
        for honest in [0, 1, 2] {
            let mut clock = clock();
            hear(&mut clock, 9, 1, HOUR);
            (0..honest).for_each(|link| hear(&mut clock, link, 1, 0));
            assert_eq!(clock.look(at(1, 0)), None);
        }
        let mut clock = clock();
        (0..2).for_each(|link| hear(&mut clock, link, 1, HOUR));
        assert_eq!(clock.look(at(1, 0)), Some(ClockChange::Doubted), "two of three say otherwise");
        (0..2).for_each(|link| hear(&mut clock, link, 2, 0));
        assert_eq!(clock.look(at(2, 0)), Some(ClockChange::Trusted));
    }

    #[test]
    fn nothing_is_dropped_before_a_peer_confirms_the_clock() {
        let mut clock = clock();
        assert!(!clock.may_drop(at(59, 0)) && clock.may_drop(at(60, 0)));
        clock.note_others();
        assert!(!clock.may_drop(at(3_600, 0)) && clock.may_drop(at(24 * 3_600, 0)));
        clock.hear_clock(at(1, 0), LinkId::new(1), Some(at(1, 0).wall_ms()), Duration::from_secs(6));
        clock.look(at(1, 0));
        assert!(!clock.may_drop(at(1, 0)), "an answer that took longer than the skew says nothing");
        hear(&mut clock, 1, 2, 0);
        clock.look(at(2, 0));
        assert!(clock.may_drop(at(2, 0)));
    }
}
