//! Flow control: how fast a node may write while the cluster is behind.
//!
//! After van Renesse, Dumitriu, Gough and Thomas, "Efficient Reconciliation and Flow Control for Anti-Entropy
//! Protocols" (2008). A node has a *wanted* rate, at which its users write or try to, and while the cluster is behind
//! an *allowed* rate. The allowed rate falls by a factor while there is a backlog and grows by a step while there is
//! none. When it is [`SLACK`] times the wanted rate, the limit is removed. Two limited nodes that exchange checks share
//! the sum of their allowed rates: one may use what the other does not want.
//!
//! A backlog is measured at the writer: the median peer's lag is a good part of
//! [`Config::lag_bytes_max`](crate::Config::lag_bytes_max). Since the change log coalesces, a peer is never behind by
//! more than what has changed, and a node that writes the same few keys is never limited. In the paper all exchanges
//! have a byte budget; here that is the window of a link, and what does not fit waits in the log.
//!
//! Only local writes are limited. Replication must never be slowed down here: it is what reduces the backlog.

use std::time::Duration;

use crate::config::Config;
use crate::wire::Rates;

/// The part of [`Config::lag_bytes_max`] from which on there is a backlog.
const BACKLOG_DIVISOR: u64 = 4;
/// Smallest allowed rate, in bytes per second.
const RATE_MIN: u64 = 64 << 10;
/// Largest burst after a pause, as time at the allowed rate.
const BURST: Duration = Duration::from_millis(100);
/// Larger rates that a peer states count as this one, in bytes per second.
const RATE_MAX: u64 = 1 << 40;
/// The limit is removed when the allowed rate exceeds the wanted rate by this factor.
const SLACK: u64 = 4;

/// The rate limit of the local writes of one node.
#[derive(Debug, Default)]
pub(crate) struct WriteLimiter {
    /// The median peer's lag in bytes beyond which writes are slowed down.
    backlog_max: u64,
    /// Bytes written since the last adaptation.
    written: u64,
    /// Writes refused since the last adaptation.
    refused: u64,
    adapted_at: Duration,
    wanted: u64,
    /// `None`: no limit.
    allowed: Option<u64>,
    /// Bytes that may be written, as of `allowance_at`. Negative after a write that was larger.
    allowance: i64,
    allowance_at: Duration,
}

impl WriteLimiter {
    pub(crate) fn new(config: &Config) -> Self {
        let mut limiter = Self::default();
        limiter.reconfigure(config);
        limiter
    }

    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.backlog_max = config.lag_bytes_max as u64 / BACKLOG_DIVISOR;
    }

    /// Bytes that may be written now.
    fn allowance(&self, now: Duration, allowed: u64) -> i64 {
        let burst = (u128::from(allowed) * BURST.as_nanos() / 1_000_000_000) as i64;
        let since = now.saturating_sub(self.allowance_at).min(Duration::from_secs(3_600));
        let grown = (u128::from(allowed) * since.as_nanos() / 1_000_000_000) as i64;
        (self.allowance + grown).min(burst)
    }

    /// Whether a write is admitted.
    pub(crate) fn has_room(&self, now: Duration) -> bool {
        self.allowed.is_none_or(|allowed| self.allowance(now, allowed) >= 0)
    }

    /// While writes are refused: when one is admitted again.
    pub(crate) fn deadline(&self, now: Duration) -> Option<Duration> {
        let allowed = self.allowed.filter(|_| !self.has_room(now))?;
        let lacking = self.allowance(now, allowed).unsigned_abs();
        Some(now + Duration::from_micros(1 + lacking.saturating_mul(1_000_000) / allowed.max(1)))
    }

    /// A write was made.
    pub(crate) fn count_written(&mut self, now: Duration, bytes: u64) {
        self.written += bytes;
        if let Some(allowed) = self.allowed {
            self.allowance = self.allowance(now, allowed) - i64::try_from(bytes).unwrap_or(i64::MAX);
            self.allowance_at = now;
        }
    }

    /// A write of about the usual size was refused.
    pub(crate) fn count_refused(&mut self) {
        self.refused += 1;
    }

    /// Measures the wanted rate and adapts the allowed rate to the median peer's lag. Called once per interval.
    pub(crate) fn adapt(&mut self, now: Duration, median_lag: u64) {
        let has_backlog = median_lag > self.backlog_max;
        let passed = now.saturating_sub(self.adapted_at).max(Duration::from_millis(1));
        let per_second = |bytes: u64| (u128::from(bytes) * 1_000_000_000 / passed.as_nanos()) as u64;
        let written = per_second(self.written);
        // Refused writes are retried, so their number says only that more than the allowed rate is wanted, not how
        // much.
        let wanted = if self.refused > 0 { written.saturating_mul(2).max(RATE_MIN) } else { written };
        self.wanted = (self.wanted + wanted).div_ceil(2);
        let step = (self.allowed.unwrap_or(0) / 8).max(RATE_MIN);
        let allowed = match self.allowed {
            None if has_backlog => Some(written),
            Some(allowed) if has_backlog => Some(allowed - allowed / 4),
            Some(allowed) if allowed > SLACK * self.wanted.max(RATE_MIN) => None,
            allowed => allowed.map(|allowed| allowed + step),
        };
        self.allow(now, allowed);
        (self.written, self.refused, self.adapted_at) = (0, 0, now);
    }

    fn allow(&mut self, now: Duration, allowed: Option<u64>) {
        if let Some(old) = self.allowed {
            self.allowance = self.allowance(now, old);
        } else {
            self.allowance = 0;
        }
        self.allowance_at = now;
        self.allowed = allowed.map(|allowed| allowed.max(RATE_MIN));
    }

    /// The rates to send to a peer, while this node is limited.
    pub(crate) fn rates(&self) -> Option<Rates> {
        self.allowed.map(|allowed| Rates { wanted: self.wanted, allowed })
    }

    /// Shares the allowed rates with a peer that is limited too. Both ends compute the same division independently.
    pub(crate) fn share_rate(&mut self, now: Duration, theirs: Rates) {
        if let Some(own) = self.rates() {
            let theirs = Rates { wanted: theirs.wanted.min(RATE_MAX), allowed: theirs.allowed.min(RATE_MAX) };
            self.allow(now, Some(shared(own, theirs)));
        }
    }
}

/// The part of both nodes' allowed rates that the first node gets.
fn shared(own: Rates, theirs: Rates) -> u64 {
    let both = own.allowed.saturating_add(theirs.allowed);
    let wanted = own.wanted.saturating_add(theirs.wanted);
    let half = both / 2;
    if wanted <= both {
        own.wanted + (both - wanted) / 2
    } else if own.wanted <= half {
        own.wanted
    } else if theirs.wanted <= half {
        both - theirs.wanted
    } else {
        half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(wanted: u64, allowed: u64) -> Rates {
        Rates { wanted, allowed }
    }

    #[test]
    fn two_limited_writers_share_their_rates_fairly() {
        for (a, b) in [(0, 0), (10, 0), (1_000, 10), (10, 1_000), (600, 600), (5_000, 5_000), (500, 500)] {
            for (x, y) in [(500, 500), (1_000, 0), (0, 1_000), (1, 999)] {
                let (p, q) = (rates(a, x), rates(b, y));
                let (mine, theirs) = (shared(p, q), shared(q, p));
                assert!(mine + theirs <= x + y && mine + theirs + 1 >= x + y, "{p:?} {q:?}: {mine} {theirs}");
                assert!(mine >= a.min(u64::midpoint(x, y)), "{p:?} {q:?}: {mine}");
            }
        }
    }

    /// Writes as much as is allowed for `time`, and returns how many bytes that was.
    fn write(
        flow: &mut WriteLimiter,
        from: Duration,
        time: Duration,
        bytes: u64,
        lag: impl Fn(u64) -> u64,
    ) -> u64 {
        let (mut written, mut now, mut tick) = (0, from, from);
        while now < from + time {
            if flow.has_room(now) {
                flow.count_written(now, bytes);
                written += bytes;
            } else {
                flow.count_refused();
            }
            now += Duration::from_millis(1);
            if now >= tick + Duration::from_secs(1) {
                flow.adapt(now, lag(written));
                tick = now;
            }
        }
        written
    }

    #[test]
    fn nobody_is_limited_while_nothing_is_behind() {
        let mut flow = WriteLimiter::default();
        assert_eq!(write(&mut flow, Duration::ZERO, Duration::from_secs(20), 1_000, |_| 0), 20_000_000);
        assert_eq!(flow.rates(), None);
    }

    #[test]
    fn limited_writer_settles_near_the_drain_rate() {
        let mut flow = WriteLimiter { backlog_max: 1_000_000, ..WriteLimiter::default() };
        let drain = 2_000_000;
        // Writes ten times the drain rate. A megabyte behind is a backlog.
        let mut total = 0;
        for second in 0..120_u64 {
            let behind = |written: u64| (total + written).saturating_sub(drain * (second + 1));
            total += write(&mut flow, Duration::from_secs(second), Duration::from_secs(1), 20_000, behind);
        }
        let rate = total / 120;
        assert!((drain * 7 / 10..=drain * 14 / 10).contains(&rate), "{rate} a second, {drain} are drained");
        for second in 120..160_u64 {
            write(&mut flow, Duration::from_secs(second), Duration::from_secs(1), 100, |_| 0);
        }
        assert_eq!(flow.rates(), None, "free again");
    }
}
