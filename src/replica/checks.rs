//! Checks: peers compare their digests; and the work of each sync interval.

use std::time::Duration;

use rand_core::Rng;

use super::link::{ClosingCause, Link};
use super::receipts::CoverageAnswers;
use super::{
    BreakReason, EXPIRE_STEPS, MEMBERS_MEMO, Output, Replica, ReplicaEvent, SUPPRESSED_INTERVALS_MAX,
};
use crate::controls::Control;
use crate::id::LinkId;
use crate::membership::{AckState, Members};
use crate::replica::wall_clock::ClockChange;
use crate::replication::claims::ForwardedClaims;
use crate::time::Time;
use crate::wire::{Check, Message, Reader, WireError};

impl Replica {
    /// What this node's side of a comparison with a peer is, as a question.
    fn check(&mut self, id: LinkId) -> Check {
        Check {
            is_reply: false,
            in_flux: self.in_flux_towards(id),
            is_comparable: self.is_comparable(),
            root: self.store.root().sum(),
            vector_hash: self.store.coverage.vector_hash(),
            roster_hash: self.members.as_mut().map(Members::roster_hash),
            rates: self.write_limiter.rates(),
            wall_ms: None,
        }
    }

    /// The same as the reply to a question.
    fn check_reply(&mut self, id: LinkId) -> Check {
        let wall_ms = (!self.wall_clock.is_doubted()).then(|| self.now.wall_ms());
        Check { is_reply: true, wall_ms, ..self.check(id) }
    }

    /// Whether the vector alone says what is held here: nothing is merged beyond it, and nothing expires, which some
    /// nodes would drop sooner than others.
    fn is_comparable(&self) -> bool {
        self.store.coverage.is_vector_only() && self.store.expiries() == 0
    }

    /// Whether a difference towards this peer is about to vanish by itself: this replica's tail has something left
    /// for it, or a flush is arriving here, from whomever. A tail that no longer gets on does not count.
    pub(super) fn in_flux_towards(&self, id: LinkId) -> bool {
        let since = match self.store.controls {
            controls if controls.has(Control::FluxForEver) => Duration::ZERO,
            _ => self.now.mono.saturating_sub(self.config.sync_timeout),
        };
        self.links.get(id).is_some_and(|link| link.sends(&self.store, since))
            || self.links.values().any(|link| link.receives(since))
    }

    /// Whether a mismatch is suppressed, because one of both sides is in flux, and has not been for longer than
    /// [`SUPPRESSED_INTERVALS_MAX`] sync intervals.
    fn is_mismatch_suppressed(&mut self, id: LinkId, theirs: Check) -> bool {
        let in_flux = theirs.in_flux || self.in_flux_towards(id);
        let Some(link) = self.links.get_mut(id).filter(|_| in_flux) else { return false };
        let since = *link.checks.suppressed_since.get_or_insert(self.now.mono);
        let in_time = self.now.mono < since + self.config.sync_interval * SUPPRESSED_INTERVALS_MAX;
        (in_time || self.store.controls.has(Control::FluxForEver))
            && !self.store.controls.has(Control::FluxCounts)
    }

    pub(super) fn handle_datagram(&mut self, id: LinkId, bytes: &[u8]) -> Result<(), WireError> {
        let (kind, reader) = Reader::new(bytes)?;
        let run = self.links.get(id).and_then(|link| link.run);
        match (Message::read(kind, reader)?, &mut self.members) {
            (Message::Check(reader), members) => {
                let check = Check::read(reader, members.is_some())?;
                self.on_check(id, check);
                Ok(())
            }
            (Message::Swim(reader), Some(members)) => {
                run.map_or(Ok(()), |run| members.handle_packet(self.now, run, reader))
            }
            (Message::Election(reader), _) => run.map_or(Ok(()), |run| self.election_message(run, reader)),
            _ => Err(WireError::Kind(kind as u8)),
        }
    }

    /// The peer compares digests, or answers such a question.
    fn on_check(&mut self, id: LinkId, check: Check) {
        self.compare_rosters(id, check);
        if check.is_reply {
            self.hear_clock(id, check.wall_ms);
        }
        let is_same_root = check.root == self.store.root().sum();
        let is_same_vector = check.vector_hash == self.store.coverage.vector_hash();
        let reply = (!check.is_reply).then(|| self.check_reply(id).datagram());
        if let Some(link) = self.links.get_mut(id).filter(|link| link.is_distrusted()) {
            // One of the two wall clocks may be wrong, and replies to checks are how they find out.
            link.checks.outbox.extend(reply);
            return;
        }
        if let Some(theirs) = check.rates {
            self.write_limiter.share_rate(self.now.mono, theirs);
        }
        let is_same = is_same_root && is_same_vector;
        let is_suppressed = !is_same && self.is_mismatch_suppressed(id, check);
        let is_comparable = check.is_comparable && self.is_comparable();
        let Some(link) = self.links.get_mut(id) else { return };
        link.checks.outbox.extend(reply);
        if is_same {
            link.repair.backoff = 0;
            link.checks.suppressed_since = None;
        }
        if is_same || is_suppressed {
            link.checks.mismatches = 0;
            return;
        }
        if link.repair.session.is_some() || self.now.mono < link.repair.not_before {
            return;
        }
        link.checks.mismatches += 1;
        if link.checks.mismatches < 2 {
            link.checks.again_at = Some(self.now.mono + self.config.sync_interval / 4);
            return;
        }
        link.checks.mismatches = 0;
        link.repair.is_wanted = true;
        if is_same_vector && is_comparable {
            let leaves = self.store.leaves();
            self.store.scrub(0, leaves);
            if !self.store.is_damaged {
                let peer = self.peer_name(id);
                self.outputs.push_back(Output::Event(ReplicaEvent::Disagreement { peer }));
            }
        }
    }

    /// Tells the peer of this node's roster if a reply shows that the two differ. The one that asked hears the
    /// difference too; one comparison repairs both.
    fn compare_rosters(&mut self, id: LinkId, check: Check) {
        let (Some(members), Some(theirs)) = (&mut self.members, check.roster_hash) else { return };
        if theirs != members.roster_hash()
            && check.is_reply
            && let Some(link) = self.links.get_mut(id).filter(|link| !link.has_messages())
        {
            link.push_messages([members.compare_rosters()]);
        }
    }

    // Time.

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
    /// were sent such claims are broken: they are no basis to go on from.
    fn withhold_future(&mut self) {
        if self.store.withhold_future(self.now) {
            self.forwarded_claims = ForwardedClaims::default();
            self.links.ids().into_iter().for_each(|id| self.break_link(id, BreakReason::Clock));
        }
    }

    /// A peer has answered a check. If answers are missing, the round trip is taken as longer than it was.
    fn hear_clock(&mut self, id: LinkId, wall_ms: Option<u64>) {
        let asked_at = self.links.get_mut(id).and_then(|link| link.checks.unanswered_since.take());
        if let Some(asked_at) = asked_at {
            self.wall_clock.hear_clock(self.now, id, wall_ms, self.now.mono.saturating_sub(asked_at));
            self.look_at_clock(self.now);
        }
    }

    pub(super) fn wake(&mut self) {
        let now = self.now;
        let has_disk = self.has_disk();
        if let Some(members) = &mut self.members {
            members.wake(now);
            if has_disk && let Some(memo) = members.memo() {
                self.set_memo(MEMBERS_MEMO, Some(&memo));
            }
        }
        self.wake_elections();
        self.store.expire(now, EXPIRE_STEPS);
        self.replace_donor();
        let (mut checks, mut breaks, interval) = (Vec::new(), Vec::new(), self.config.sync_interval);
        for id in self.links.due(now.mono) {
            let link = self.links.get_mut(id).expect("just listed");
            if link.checks.again_at.take_if(|at| *at <= now.mono).is_some() {
                checks.push(id);
            }
            link.acks.send_if_due(now.mono);
            if link.ack_times_out(now.mono, interval)
                && let (Some(members), Some(run)) = (&mut self.members, link.run)
            {
                members.note_ack(run, AckState::Overdue);
            }
            if let Some(closing) = link.closing.filter(|closing| closing.at <= now.mono) {
                let reason = match closing.cause {
                    ClosingCause::ClaimRefused => BreakReason::Protocol(WireError::Claim),
                    ClosingCause::Refused => BreakReason::Refused,
                };
                breaks.push((id, reason));
            }
            if link.is_stalled(now.mono, self.config.sync_timeout) {
                breaks.push((id, BreakReason::TimedOut));
            }
        }
        checks.into_iter().for_each(|id| self.push_check(id));
        breaks.into_iter().for_each(|(id, reason)| self.break_link(id, reason));
        if self.next_tick <= now.mono {
            self.tick();
        }
    }

    fn push_check(&mut self, id: LinkId) {
        let check = self.check(id).datagram();
        let link = self.links.get_mut(id).expect("just listed");
        link.checks.unanswered_since.get_or_insert(self.now.mono);
        link.checks.outbox.push_back(check);
    }

    /// The work of each sync interval: checks one random peer, lets all tails claim and answer, adapts the write rate,
    /// and recomputes a part of the digest.
    pub(super) fn tick(&mut self) {
        // Spread over the interval, so that nodes that started together do not act together.
        let interval = self.config.sync_interval;
        let jitter = interval / 8 * (self.random.next_u32() % 3);
        self.next_tick = self.now.mono + interval - interval / 8 + jitter;
        let is_ready = |link: &Link| link.peer.is_some() && link.route.feeds;
        let ready: Vec<LinkId> = self.links.iter().filter(|(_, l)| is_ready(l)).map(|(id, _)| id).collect();
        if self.wall_clock.is_doubted() {
            ready.iter().for_each(|id| self.push_check(*id));
        } else if !ready.is_empty() {
            let id = ready[self.random.next_u64() as usize % ready.len()];
            self.push_check(id);
        }
        self.links.values_mut().for_each(|link| link.wants_bare_claim = true);
        self.answer_coverage(CoverageAnswers::Grown);
        self.write_limiter.adapt(self.now.mono, self.median_lag());
        self.store.coverage.sweep();
        if self.store.coverage.withholds_future() {
            self.withhold_future();
        }
        let rounds = (self.config.scrub_interval.as_millis() / interval.as_millis().max(1)).max(1) as usize;
        let leaves = self.store.leaves().div_ceil(rounds);
        self.scrub_at = self.store.scrub(self.scrub_at, leaves);
        if self.scrub_at >= self.store.leaves() {
            self.scrub_at = 0;
        }
    }
}
