//! The monotonic clock of a node.
//!
//! A lease runs on while the machine sleeps, so this clock must as well. Linux, Android and Apple's systems have such a
//! clock; elsewhere it is that of [`std::time::Instant`], which may stand still meanwhile.

use std::time::Duration;

/// Time since a moment that stays the same while the process runs: here one before its start.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(in crate::node) fn mono() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(target_vendor = "apple")]
    let clock = ClockId::Monotonic;
    let now = clock_gettime(clock);
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    Duration::new(part(now.tv_sec), part(now.tv_nsec) as u32)
}

/// Time since a moment that stays the same while the process runs: here the first call.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(in crate::node) fn mono() -> Duration {
    static STARTED: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    STARTED.elapsed()
}
