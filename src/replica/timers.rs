//! What a replica does when time has passed: at the deadlines of links, and once in each sync interval.

use rand_core::Rng;

use super::link::{ClosingCause, Link};
use super::receipts::CoverageAnswers;
use super::{BreakReason, EXPIRE_STEPS, MEMBERS_MEMO, Replica};
use crate::id::LinkId;
use crate::membership::AckState;
use crate::wire::WireError;

impl Replica {
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

    /// Moves the cut between the old and the recent part of the vector to where the wall clock says.
    pub(super) fn advance_cut(&mut self) {
        if !self.wall_clock.is_doubted() && self.store.advance_cut(self.now) {
            self.links.values_mut().for_each(|link| link.old_parts.may_offer = true);
        }
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
        self.forget_members(self.now);
        self.advance_cut();
        self.answer_coverage(CoverageAnswers::Grown);
        self.write_limiter.adapt(self.now.mono, self.median_lag());
        self.store.coverage.sweep();
        self.validation.sweep(&self.store);
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
