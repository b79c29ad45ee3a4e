//! The wait of a view for the rest of batches of which it has seen a part.
//!
//! Time is the sum of the pauses between looks: a view knows no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::RunId;
use crate::store::{MissingOrigin, RestFrom};

/// How long a view waits for the rest of a batch without knowing of anything that brings it. A writer that has died in
/// the middle of a batch must not keep a view from all later changes. A wait of this length is *late*: it is told.
pub(super) const WHOLE_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a view waits for an origin that is believed alive while nothing of it arrives: its rows may be refused
/// here. The time of a repair that will claim the origin does not count.
pub(super) const AWAITED_TIME_MAX: Duration = Duration::from_secs(60);

/// The first pause before the store is looked at again. It doubles up to [`PAUSE_MAX`]: what is awaited usually comes
/// with the same packets.
const PAUSE_MIN: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// A wait that has not ended.
#[derive(Debug)]
pub(super) struct BatchWait {
    /// How long it had lasted at the last look.
    pub(super) lasted: Duration,
    /// The time until the next look.
    pub(super) pause: Duration,
    /// Those that the last look lacked.
    origins: BTreeMap<RunId, OriginWait>,
    /// It was told that it is late.
    pub(super) is_told: bool,
}

/// How long one origin has been awaited.
#[derive(Clone, Copy, Debug)]
struct OriginWait {
    /// What had arrived of it at the last look.
    reached: u64,
    pieces: u64,
    /// The time since any of that has grown, without the time of repairs.
    unmoved: Duration,
    /// The time since anything was known that brings the rest.
    unexpected: Duration,
}

impl OriginWait {
    fn begin(missing: &MissingOrigin) -> Self {
        let MissingOrigin { reached, pieces, .. } = *missing;
        Self { reached, pieces, unmoved: Duration::ZERO, unexpected: Duration::ZERO }
    }

    /// The same after one more pause.
    fn after(self, pause: Duration, missing: &MissingOrigin) -> Self {
        let has_moved = (self.reached, self.pieces) != (missing.reached, missing.pieces);
        let unmoved = match missing.rest {
            _ if has_moved => Duration::ZERO,
            RestFrom::Repair => self.unmoved,
            RestFrom::Nobody | RestFrom::Tail => self.unmoved + pause,
        };
        let unexpected = match missing.rest {
            RestFrom::Nobody => self.unexpected + pause,
            RestFrom::Tail | RestFrom::Repair => Duration::ZERO,
        };
        Self { unmoved, unexpected, ..Self::begin(missing) }
    }

    fn is_in_vain(&self) -> bool {
        self.unexpected >= WHOLE_TIME_MAX || self.unmoved >= AWAITED_TIME_MAX
    }
}

impl BatchWait {
    pub(super) fn new() -> Self {
        let (lasted, pause) = (Duration::ZERO, Duration::ZERO);
        Self { lasted, pause, origins: BTreeMap::new(), is_told: false }
    }

    /// Notes what a look lacks. Returns whether all of it is awaited in vain.
    pub(super) fn note(&mut self, missing: &[MissingOrigin]) -> bool {
        let pause = self.pause;
        let note = |missing: &MissingOrigin| {
            let wait = self.origins.get(&missing.origin).map(|wait| wait.after(pause, missing));
            (missing.origin, wait.unwrap_or_else(|| OriginWait::begin(missing)))
        };
        self.origins = missing.iter().map(note).collect();
        self.lasted += pause;
        self.pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.origins.values().all(OriginWait::is_in_vain)
    }

    pub(super) fn is_late(&self) -> bool {
        self.lasted >= WHOLE_TIME_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(origin: u64, reached: u64, rest: RestFrom) -> MissingOrigin {
        MissingOrigin { origin: RunId::new(origin), reached, pieces: 0, rest }
    }

    /// Looks until the wait is in vain. Returns how long that took, and at most two minutes.
    fn time_in_vain(look: impl Fn(Duration) -> Vec<MissingOrigin>) -> Duration {
        let mut wait = BatchWait::new();
        while !wait.note(&look(wait.lasted + wait.pause)) && wait.lasted < Duration::from_secs(120) {}
        wait.lasted
    }

    /// The pause within which something changes counts as a whole for one side or the other.
    fn is_about(time: Duration, expected: Duration) -> bool {
        time.abs_diff(expected) <= PAUSE_MAX
    }

    #[test]
    fn rest_that_nothing_brings_is_awaited_for_the_short_time() {
        let gone = |_| vec![missing(1, 5, RestFrom::Nobody)];
        assert!(is_about(time_in_vain(gone), WHOLE_TIME_MAX));
        // As long as something may bring it, that time does not begin.
        let dies = |at| {
            let is_alive = at < Duration::from_secs(8);
            vec![missing(1, 5, if is_alive { RestFrom::Tail } else { RestFrom::Nobody })]
        };
        assert!(is_about(time_in_vain(dies), Duration::from_secs(8) + WHOLE_TIME_MAX));
    }

    #[test]
    fn living_origin_of_which_nothing_comes_is_given_up() {
        assert!(is_about(time_in_vain(|_| vec![missing(1, 5, RestFrom::Tail)]), AWAITED_TIME_MAX));
        // Each advance begins the time anew, and another origin's advances do not.
        let advances = |at: Duration| missing(2, at.as_secs() / 10, RestFrom::Tail);
        assert!(time_in_vain(|at| vec![advances(at)]) >= Duration::from_secs(120));
        let beside = |at: Duration| {
            let both = [missing(1, 5, RestFrom::Tail), advances(at)];
            both.into_iter().take(if at < Duration::from_secs(70) { 2 } else { 1 }).collect()
        };
        assert!(is_about(time_in_vain(beside), Duration::from_secs(70)));
    }

    #[test]
    fn time_of_a_repair_does_not_count() {
        let repaired = |at| {
            let is_repaired = at < Duration::from_secs(40);
            vec![missing(1, 5, if is_repaired { RestFrom::Repair } else { RestFrom::Tail })]
        };
        let time = time_in_vain(repaired);
        assert!(is_about(time, Duration::from_secs(40) + AWAITED_TIME_MAX), "{time:?}");
    }
}
