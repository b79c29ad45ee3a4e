//! Time as an input, stamps, and the hybrid clock that makes them.
//!
//! Nothing in the core reads a clock: every call brings a [`Time`] along. A [`Stamp`] names one event for
//! ever: it is greater than every stamp that its node had seen, and no other event has it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A moment, as the caller of the core sees it: both of its clocks.
///
/// Timers run by [`mono`](Self::mono), which never jumps. Stamps and expiries use [`wall`](Self::wall), which
/// may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Time since some fixed moment of this process; never goes back.
    pub mono: Duration,
    /// Wall-clock time since the Unix epoch.
    pub wall: Duration,
}

impl Time {
    /// The moment `later` after this one, on both clocks.
    #[must_use]
    pub fn later_by(self, later: Duration) -> Self {
        Self { mono: self.mono.saturating_add(later), wall: self.wall.saturating_add(later) }
    }

    pub(crate) fn wall_ms(self) -> u64 {
        self.wall.as_millis() as u64
    }
}

const COUNTER_BITS: u32 = 16;

/// The name of one event: 48 bits of wall-clock milliseconds, 16 bits of counter, and the origin that made it.
///
/// Stamps are totally ordered; the greater one wins where a single value is asked for.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub(crate) clock: u64,
    pub(crate) origin: u64,
}

impl Stamp {
    /// The wall-clock time of the event in milliseconds since the Unix epoch, as its writer's hybrid clock had it.
    pub fn wall_ms(self) -> u64 {
        self.clock >> COUNTER_BITS
    }

    /// The run (one start of a process) that made the event.
    pub fn origin(self) -> u64 {
        self.origin
    }

    /// The stamp as one number, in the same order: for resources that compare fencing tokens. As text, too, stamps are
    /// in their order.
    pub fn as_u128(self) -> u128 {
        u128::from(self.clock) << 64 | u128::from(self.origin)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.clock, self.origin)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = (1 << COUNTER_BITS) - 1;
        write!(f, "{}.{}@{:04x}", self.wall_ms(), self.clock & low, self.origin >> 48)
    }
}

/// A text that is not a [`Stamp`] or a [`Revision`](crate::Revision).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <16 hex digits>-<16 hex digits>")]
pub struct ParseError;

/// Both stamps and revisions are written as two fixed-width hexadecimal numbers.
pub(crate) fn parse_pair(text: &str) -> Result<(u64, u64), ParseError> {
    let (a, b) = text.split_once('-').ok_or(ParseError)?;
    let half = |part: &str| {
        let form = part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if form { u64::from_str_radix(part, 16).map_err(|_| ParseError) } else { Err(ParseError) }
    };
    Ok((half(a)?, half(b)?))
}

impl FromStr for Stamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_pair(text).map(|(clock, origin)| Self { clock, origin })
    }
}

/// The hybrid logical clock: wall time where it moves, a counter where it does not, never backwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct HybridClock {
    last: u64,
    /// The greatest clock value that a disk brought, until the first event of this run.
    recalled: u64,
}

impl HybridClock {
    /// Of a clock, the bits that count events within a millisecond.
    pub(crate) const COUNTER_BITS: u32 = COUNTER_BITS;

    /// The clock value of a new local event, above everything seen. The caller has asked [`HybridClock::ahead`].
    pub(crate) fn next_clock(&mut self, now: Time) -> u64 {
        self.last = (now.wall_ms() << COUNTER_BITS).max(self.last.saturating_add(1));
        self.last
    }

    /// Takes note of an accepted remote stamp.
    pub(crate) fn advance_to(&mut self, clock: u64) {
        self.last = self.last.max(clock);
    }

    /// Takes note of a clock value that a disk holds: of a dot, or of the last event of an earlier run.
    pub(crate) fn load(&mut self, clock: u64) {
        self.recalled = self.recalled.max(clock);
    }

    /// How far the next event would be stamped ahead of what every peer accepts, if it would be.
    ///
    /// What a disk brought does not count where it lies in the future: an earlier run wrote it while its clock was
    /// wrong. This run is another origin, so no stamp is given twice, and a write removes the dots that it observed
    /// whatever their stamps are. Only where two writes are concurrent does the order of stamps decide, and there the
    /// dot from the future wins until it is replaced.
    pub(crate) fn ahead(&mut self, now: Time, skew_max: Duration) -> Option<Duration> {
        let recalled = std::mem::take(&mut self.recalled);
        if recalled <= Self::limit(now, skew_max) {
            self.advance_to(recalled);
        }
        // One millisecond more than what is accepted of others: whoever stamps at the limit stops nobody from writing.
        let limit = Self::limit(now, skew_max.saturating_add(Duration::from_millis(1)));
        let next_ms = self.last.saturating_add(1) >> COUNTER_BITS;
        (self.last >= limit).then(|| Duration::from_millis(next_ms).saturating_sub(now.wall))
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.max(self.recalled)
    }

    /// The greatest clock value that is not refused as coming from the future.
    pub(crate) fn limit(now: Time, skew_max: Duration) -> u64 {
        let wall = now.wall.saturating_add(skew_max).as_millis() as u64;
        (wall << COUNTER_BITS) | ((1 << COUNTER_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: u64) -> Time {
        Time { mono: Duration::ZERO, wall: Duration::from_millis(wall_ms) }
    }

    #[test]
    fn clock_never_goes_back_when_the_wall_clock_does() {
        let mut clock = HybridClock::default();
        let first = clock.next_clock(at(1_000));
        let second = clock.next_clock(at(10));
        assert!(second > first);
        clock.advance_to(5_000 << COUNTER_BITS);
        assert!(clock.next_clock(at(20)) > 5_000 << COUNTER_BITS);
    }

    #[test]
    fn counter_overflow_carries_into_the_milliseconds() {
        let mut clock = HybridClock::default();
        clock.advance_to((1_000 << COUNTER_BITS) | 0xffff);
        assert_eq!(clock.next_clock(at(1_000)) >> COUNTER_BITS, 1_001);
    }

    #[test]
    fn stored_clock_of_the_far_future_does_not_count() {
        let (skew, hour_ms) = (Duration::from_secs(5), 3_600_000);
        let mut clock = HybridClock::default();
        clock.load((hour_ms + 4_000) << COUNTER_BITS);
        assert_eq!(clock.ahead(at(hour_ms), skew), None);
        assert!(clock.next_clock(at(hour_ms)) > (hour_ms + 4_000) << COUNTER_BITS);
        let mut clock = HybridClock::default();
        clock.load(u64::MAX);
        assert_eq!((clock.last(), clock.ahead(at(hour_ms), skew)), (u64::MAX, None));
        assert_eq!(clock.next_clock(at(hour_ms)), hour_ms << COUNTER_BITS);
        // Within a run there is no way back.
        assert_eq!(clock.ahead(at(1_000), skew), Some(Duration::from_millis(hour_ms - 1_000)));
    }

    #[test]
    fn stamp_text_round_trips() {
        let stamp = Stamp { clock: 0x12_3456, origin: u64::MAX };
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
        assert_eq!("12-34".parse::<Stamp>(), Err(ParseError));
        assert_eq!("+123456789abcdef-0000000000000000".parse::<Stamp>(), Err(ParseError));
    }
}
