//! Time as an input, stamps, and the hybrid clock that makes them.
//!
//! Nothing in the core reads a clock: every call that depends on time brings a [`Time`]. A [`Stamp`] names one event
//! for ever: no other event has it, and it is greater than the stamps of all dots that its run had merged before.
//! Nothing may ever be stamped under the origin of an earlier run.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use crate::form::text_form;
use crate::id::RunId;

/// A moment on both clocks of the caller, monotonic and wall.
///
/// Timers use [`mono`](Self::mono), which never jumps. Stamps and expiries use [`wall`](Self::wall), which may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Time since a fixed moment of this process; never goes back.
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

/// The unique name of one event: 48 bits of wall-clock milliseconds, 16 bits of counter, and the origin that made it.
///
/// Stamps are totally ordered. Where a single value is asked for, the one with the greatest stamp wins.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub(crate) clock: u64,
    pub(crate) origin: RunId,
}

impl Stamp {
    /// The time of the event in milliseconds since the Unix epoch, by its writer's hybrid clock.
    pub fn wall_ms(self) -> u64 {
        self.clock >> COUNTER_BITS
    }

    /// The run (one start of a process) that made the event.
    pub fn origin(self) -> RunId {
        self.origin
    }

    /// The stamp as one number in the same order, for resources that compare fencing tokens. Stamps as text sort in the
    /// same order too.
    pub fn as_u128(self) -> u128 {
        u128::from(self.clock) << 64 | u128::from(self.origin.number())
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
        write!(f, "{}.{}@{:04x}", self.wall_ms(), self.clock & low, self.origin.number() >> 48)
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

/// What ends a value by itself: it expires, or the run ends to whose life it is bound, or whichever comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lifetime {
    /// When it expires, in milliseconds since the Unix epoch.
    pub(crate) expires: Option<NonZeroU64>,
    /// The run of a member, as handshakes prove it, to whose life the value is bound.
    pub(crate) run: Option<RunId>,
}

impl Lifetime {
    pub(crate) fn is_limited(self) -> bool {
        self != Self::default()
    }
}

impl FromStr for Stamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_pair(text).map(|(clock, origin)| Self { clock, origin: RunId::new(origin) })
    }
}

text_form!(
    Stamp,
    "a stamp: two times 16 hexadecimal digits, with a hyphen between them",
    |text| text.parse().ok(),
    Stamp::to_string
);

/// The greatest clock value of a list of voters or a step to one that is read, and the greatest number of changes: that of
/// the year 4199. What comes after such a value can still be counted.
pub(crate) const CLOCK_VALUE_MAX: u64 = u64::MAX / 4;

/// The hybrid logical clock: wall-clock milliseconds while they grow, a counter while they do not. Never goes back.
#[derive(Clone, Debug, Default)]
pub(crate) struct HybridClock {
    /// The greatest clock value that was stamped or merged in this run.
    last: u64,
    /// The greatest clock value from the disk, until [`HybridClock::ahead`] judges it before the first event of this
    /// run.
    recalled: u64,
}

impl HybridClock {
    /// The low bits of a clock value, which count events within one millisecond.
    pub(crate) const COUNTER_BITS: u32 = COUNTER_BITS;

    /// The clock value of a new local event, above all that were merged. The caller has asked [`HybridClock::ahead`].
    pub(crate) fn next_clock(&mut self, now: Time) -> u64 {
        self.last = self.coming_clock(now);
        self.last
    }

    /// The clock value that an event would get now.
    pub(crate) fn coming_clock(&self, now: Time) -> u64 {
        (now.wall_ms() << COUNTER_BITS).max(self.last.saturating_add(1))
    }

    /// Advances to the clock value of an accepted remote stamp, if that is greater.
    pub(crate) fn advance_to(&mut self, clock: u64) {
        self.last = self.last.max(clock);
    }

    /// Notes a clock value from the disk: of a dot, or of the last event of an earlier run.
    pub(crate) fn load(&mut self, clock: u64) {
        self.recalled = self.recalled.max(clock);
    }

    /// How far ahead of the wall clock the next event would be stamped. `None` if every peer would accept it.
    ///
    /// A clock value from the disk is ignored if it lies in the future: an earlier run wrote it while its clock was
    /// wrong. That is safe: this run is another origin, so no stamp is given twice, and a write removes the dots that
    /// it observed whatever their stamps are. The order of stamps decides only between concurrent writes; there the dot
    /// from the future wins until it is replaced.
    pub(crate) fn ahead(&mut self, now: Time, skew_max: Duration) -> Option<Duration> {
        let recalled = std::mem::take(&mut self.recalled);
        if recalled <= Self::limit(now, skew_max) {
            self.advance_to(recalled);
        }
        // One millisecond more than is accepted from peers: a peer that stamps at its limit must not stop local writes.
        let limit = Self::limit(now, skew_max.saturating_add(Duration::from_millis(1)));
        let next_ms = self.last.saturating_add(1) >> COUNTER_BITS;
        (self.last >= limit).then(|| Duration::from_millis(next_ms).saturating_sub(now.wall))
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.max(self.recalled)
    }

    /// A duration in units of a clock value.
    pub(crate) fn units(time: Duration) -> u64 {
        (time.as_millis() as u64) << COUNTER_BITS
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
        // Within a run the clock never goes back.
        assert_eq!(clock.ahead(at(1_000), skew), Some(Duration::from_millis(hour_ms - 1_000)));
    }

    #[test]
    fn stamp_text_round_trips() {
        let stamp = Stamp { clock: 0x12_3456, origin: RunId::new(u64::MAX) };
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
        assert_eq!("12-34".parse::<Stamp>(), Err(ParseError));
        assert_eq!("+123456789abcdef-0000000000000000".parse::<Stamp>(), Err(ParseError));
    }
}
