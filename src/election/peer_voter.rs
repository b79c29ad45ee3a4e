//! What a node knows of a voter.

use std::time::Duration;

use crate::id::RunId;

/// A voter, as this node knows it as a candidate or holder.
#[derive(Debug)]
pub(super) struct PeerVoter {
    pub(super) name: String,
    /// The run that lives under the name. `None` if none is known, or if several are.
    pub(super) run: Option<RunId>,
    /// The voter's session with this node.
    pub(super) session: Option<u64>,
    /// The id of the latest request that confirmed the session.
    pub(super) confirmed: u64,
    /// Until when this node relies on what was granted under the session.
    pub(super) counted_until: Duration,
    pub(super) renew_at: Duration,
    /// The latest renewal or repeated grant request is unanswered.
    pub(super) unanswered: bool,
    /// The voter is in quarantine until then.
    pub(super) quarantine_until: Duration,
    /// The voter is believed to have other rules until then.
    pub(super) differs_until: Duration,
    pub(super) is_used: bool,
}

/// Repeated grant requests or releases that one voter is sent at a time.
pub(super) const REQUESTS_MAX: usize = 64;

impl PeerVoter {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            run: None,
            session: None,
            confirmed: 0,
            counted_until: Duration::ZERO,
            renew_at: Duration::ZERO,
            unanswered: false,
            quarantine_until: Duration::ZERO,
            differs_until: Duration::ZERO,
            is_used: false,
        }
    }

    /// The voter has promised everything under its session for `lease`, counted from when it was asked.
    pub(super) fn confirm(&mut self, number: u64, asked: Duration, counted: Duration, lease: Duration) {
        self.confirmed = self.confirmed.max(number);
        self.counted_until = self.counted_until.max(asked + counted);
        self.renew_at = self.renew_at.max(asked + lease / 3);
        self.unanswered = false;
    }

    /// How many repeated grant requests to send to this voter at a time: none while it is in quarantine, and one while
    /// the last one is unanswered, to find out whether it answers at all.
    pub(super) fn requests_max(&self, now: Duration) -> usize {
        match (self.quarantine_until > now, self.unanswered) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => REQUESTS_MAX,
        }
    }
}
