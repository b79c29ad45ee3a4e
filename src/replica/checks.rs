//! Checks: what peers tell each other of their digests, and what is done when it is time.

use std::time::Duration;

use rand_core::Rng;

use super::link::{ClosingCause, Link};
use super::{
    BACKLOG_DIVISOR, BreakReason, CHECK_CLOCK, CHECK_IN_FLUX, CHECK_INCOMPARABLE, CHECK_RATES, CHECK_REPLY,
    EXPIRE_STEPS, LinkId, MEMBERS_MEMO, Output, Replica, ReplicaEvent, SUPPRESSED_INTERVALS_MAX,
};
use crate::controls::Control;
use crate::replica::wall_clock::ClockChange;
use crate::replication::claims::ForwardedClaims;
use crate::replication::flow::Rates;
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError, Writer};

impl Replica {
    pub(super) fn check_frame(&mut self, id: LinkId, is_reply: bool) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Check);
        let reply = if is_reply { CHECK_REPLY } else { 0 };
        let rates = self.write_limiter.rates();
        let amid = if self.in_flux_towards(id) { CHECK_IN_FLUX } else { 0 };
        let clock = if is_reply && !self.wall_clock.is_doubted() { CHECK_CLOCK } else { 0 };
        let limited = if rates.is_some() { CHECK_RATES } else { 0 };
        let incomparable = if self.is_comparable() { 0 } else { CHECK_INCOMPARABLE };
        writer.byte(reply | amid | clock | limited | incomparable);
        let root = self.store.root().sum();
        writer.u64_le(root as u64);
        writer.u64_le((root >> 64) as u64);
        writer.u64_le(self.store.coverage.vector_hash());
        if let Some(members) = &mut self.members {
            writer.u64_le(members.roster_hash());
        }
        if let Some(rates) = rates {
            writer.varint(rates.wanted);
            writer.varint(rates.allowed);
        }
        if clock != 0 {
            writer.u64_le(self.now.wall_ms());
        }
        writer.finish_datagram()
    }

    /// Whether the vector alone says what is held here: there is nothing merged beyond it, and nothing that some nodes
    /// drop sooner than others.
    fn is_comparable(&self) -> bool {
        self.store.coverage.is_vector_only() && self.store.expiries() == 0
    }

    /// Whether a difference towards this peer is about to vanish by itself: this replica's tail has something left
    /// for it, or a flush is arriving here, from whomever. A tail that no longer gets on does not count.
    pub(super) fn in_flux_towards(&self, id: LinkId) -> bool {
        let since = match self.store.controls {
            controls if controls.has(Control::AmidForEver) => Duration::ZERO,
            _ => self.now.mono.saturating_sub(self.config.sync_timeout),
        };
        self.links.get(id).is_some_and(|link| link.sends(&self.store, since))
            || self.links.values().any(|link| link.receives(since))
    }

    /// Whether a difference does not count, because one of both sides is in the middle of something, and has not
    /// been for too long.
    fn is_mismatch_suppressed(&mut self, id: LinkId, peer_is_amid: bool) -> bool {
        let is_amid = peer_is_amid || self.in_flux_towards(id);
        let Some(link) = self.links.get_mut(id).filter(|_| is_amid) else { return false };
        let since = *link.checks.suppressed_since.get_or_insert(self.now.mono);
        let in_time = self.now.mono < since + self.config.sync_interval * SUPPRESSED_INTERVALS_MAX;
        (in_time || self.store.controls.has(Control::AmidForEver))
            && !self.store.controls.has(Control::AmidCounts)
    }

    pub(super) fn handle_datagram(&mut self, id: LinkId, bytes: &[u8]) -> Result<(), WireError> {
        let (kind, mut reader) = Reader::new(bytes)?;
        if let (Kind::Swim, Some(members)) = (kind, &mut self.members) {
            let run = self.links.get(id).and_then(|link| link.run);
            return run.map_or(Ok(()), |run| members.handle_packet(self.now, run, reader));
        }
        if kind == Kind::Election {
            let run = self.links.get(id).and_then(|link| link.run);
            return run.map_or(Ok(()), |run| self.election_message(run, reader));
        }
        if kind != Kind::Check {
            return Err(WireError::Kind(kind as u8));
        }
        let flags = reader.byte()?;
        let root = u128::from(reader.u64_le()?) | (u128::from(reader.u64_le()?) << 64);
        let seen = reader.u64_le()?;
        if let Some(members) = &mut self.members {
            let is_same = reader.u64_le()? == members.roster_hash();
            // The one that asked hears the difference too; one comparison mends both.
            if !is_same
                && flags & CHECK_REPLY != 0
                && let Some(link) = self.links.get_mut(id).filter(|link| !link.has_messages())
            {
                link.push_messages([members.compare_rosters()]);
            }
        }
        let theirs = match flags & CHECK_RATES {
            0 => None,
            _ => Some(Rates { wanted: reader.varint()?, allowed: reader.varint()? }),
        };
        let wall_ms = (flags & CHECK_CLOCK != 0).then(|| reader.u64_le()).transpose()?;
        reader.end()?;
        if flags & CHECK_REPLY != 0 {
            self.hear_clock(id, wall_ms);
        }
        let same_root = root == self.store.root().sum();
        let same_seen = seen == self.store.coverage.vector_hash();
        let reply = (flags & CHECK_REPLY == 0).then(|| self.check_frame(id, true));
        if let Some(link) = self.links.get_mut(id).filter(|link| link.is_distrusted()) {
            // It may be the clock of one of both that is wrong, and this is how they find out.
            link.checks.outbox.extend(reply);
            return Ok(());
        }
        if let Some(theirs) = theirs {
            self.write_limiter.share_rate(self.now.mono, theirs);
        }
        let is_same = same_root && same_seen;
        let is_excused = !is_same && self.is_mismatch_suppressed(id, flags & CHECK_IN_FLUX != 0);
        let is_comparable = flags & CHECK_INCOMPARABLE == 0 && self.is_comparable();
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        link.checks.outbox.extend(reply);
        if is_same {
            link.repair.backoff = 0;
            link.checks.suppressed_since = None;
        }
        if is_same || is_excused {
            link.checks.mismatches = 0;
            return Ok(());
        }
        if link.repair.session.is_some() || self.now.mono < link.repair.not_before {
            return Ok(());
        }
        link.checks.mismatches += 1;
        if link.checks.mismatches < 2 {
            link.checks.again_at = Some(self.now.mono + self.config.sync_interval / 4);
            return Ok(());
        }
        link.checks.mismatches = 0;
        link.repair.is_wanted = true;
        if same_seen && is_comparable {
            let leaves = self.store.leaves();
            self.store.scrub(0, leaves);
            if !self.store.is_damaged {
                self.outputs.push_back(Output::Event(ReplicaEvent::Disagreement { link: id }));
            }
        }
        Ok(())
    }

    // Time.

    /// Compares the wall clock with the monotonic one, and with what peers said of theirs.
    pub(super) fn look_at_clock(&mut self, now: Time) {
        let turn = self.wall_clock.look(now);
        self.store.may_drop = self.wall_clock.may_drop(now);
        self.store.set_told_max(now);
        if turn.is_some() {
            self.withhold_future();
        }
        let event = match turn {
            None | Some(ClockChange::Begun) => return,
            Some(ClockChange::Doubted) => ReplicaEvent::ClockInDoubt { off: self.wall_clock.off() },
            Some(ClockChange::Trusted) => ReplicaEvent::ClockTrusted,
        };
        // Whoever doubts asks all peers at once, and again in each interval.
        self.next_tick = self.next_tick.min(now.mono);
        self.outputs.push_back(Output::Event(event));
    }

    /// Tells no more, until their time, the claims that were made or taken while the clock was ahead. What links have
    /// been told of them is no ground to go on from.
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
        if let Some(members) = &mut self.members {
            members.wake(now);
            if self.disk.is_there()
                && let Some(memo) = members.memo()
            {
                self.set_memo(MEMBERS_MEMO, Some(&memo));
            }
        }
        self.wake_elections();
        self.store.expire(now, EXPIRE_STEPS);
        self.replace_donor();
        let (mut checks, mut breaks, interval) = (Vec::new(), Vec::new(), self.config.sync_interval);
        for id in self.links.links_to_poll(now.mono) {
            let link = self.links.get_mut(id).expect("just listed");
            if link.checks.again_at.take_if(|at| *at <= now.mono).is_some() {
                checks.push(id);
            }
            link.acks.hasten_if_due(now.mono);
            if link.ack_times_out(now.mono, interval)
                && let (Some(members), Some(run)) = (&mut self.members, link.run)
            {
                members.note_ack(run, false);
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
        let check = self.check_frame(id, false);
        let link = self.links.get_mut(id).expect("just listed");
        link.checks.unanswered_since.get_or_insert(self.now.mono);
        link.checks.outbox.push_back(check);
    }

    /// Once an interval: compare with a random peer, settle accounts with all, look after the house.
    pub(super) fn tick(&mut self) {
        // Spread over the interval, so that clusters started together do not act together.
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
        self.links.values_mut().for_each(|link| link.wants_flush = true);
        self.answer_coverage(true);
        let backlog = self.config.lag_bytes_max as u64 / BACKLOG_DIVISOR;
        self.write_limiter.adapt(self.now.mono, self.median_lag() > backlog);
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
