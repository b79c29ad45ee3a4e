//! Checks: two peers compare their digests, and what follows from the answer.

use std::time::Duration;

use super::{Output, Replica, ReplicaEvent, SUPPRESSED_INTERVALS_MAX};
use crate::controls::Control;
use crate::id::LinkId;
use crate::membership::Members;
use crate::wire::Check;

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
        self.store.coverage.is_vector_only() && self.store.limited_dots() == 0
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

    /// Whether a mismatch is suppressed: this side or the peer is in flux, for at most [`SUPPRESSED_INTERVALS_MAX`] sync
    /// intervals.
    fn is_mismatch_suppressed(&mut self, id: LinkId, theirs: Check) -> bool {
        let in_flux = theirs.in_flux || self.in_flux_towards(id);
        let Some(link) = self.links.get_mut(id).filter(|_| in_flux) else { return false };
        let since = *link.checks.suppressed_since.get_or_insert(self.now.mono);
        let in_time = self.now.mono < since + self.config.sync_interval * SUPPRESSED_INTERVALS_MAX;
        (in_time || self.store.controls.has(Control::FluxForEver))
            && !self.store.controls.has(Control::FluxCounts)
    }

    /// The peer compares digests, or answers such a question.
    pub(super) fn on_check(&mut self, id: LinkId, check: Check) {
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

    /// Queues a check of a peer.
    pub(super) fn push_check(&mut self, id: LinkId) {
        let check = self.check(id).datagram();
        let link = self.links.get_mut(id).expect("just listed");
        link.checks.unanswered_since.get_or_insert(self.now.mono);
        link.checks.outbox.push_back(check);
    }
}
