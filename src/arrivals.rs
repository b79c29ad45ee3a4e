//! Arrival times: how long the writes of every other node take until they are merged here.
//!
//! A row of a tail carries the stamp of its latest write, and with it the time of the writer's wall clock. The arrival
//! time is this replica's wall clock minus that, **so it includes the difference of the two clocks**. Its resolution is
//! a millisecond. Only writes made since the link was established count: rows of a repair, or of a tail that resumes at
//! an old position, may be hours old although nothing is slow. Deletes carry no stamp and are not counted.
//!
//! The core only hands out what arrived ([`Arrived`]); the caller of the core keeps the figures here. Nothing in the
//! core may depend on them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::form;
use crate::id::RunId;
use crate::replica::Replica;
use crate::replication::arrived::Arrived;
use crate::time::Time;

/// Origins whose times are kept. If there are more, the one whose last write is the oldest is dropped.
const ORIGINS_MAX: usize = 128;

/// Quantiles and the maximum cover the last one to two windows.
const WINDOW: Duration = Duration::from_secs(60);

/// The smoothed mean moves by one part in this many of each difference.
const SMOOTHING_PART: i64 = 16;

/// Times below this many milliseconds have a bucket each.
const EXACT_MS: u64 = 8;
/// Longer times have this many buckets per doubling. The last bucket takes everything beyond.
const DOUBLING_BUCKETS: u64 = 4;
const DOUBLINGS: u64 = 20;
const ARRIVAL_BUCKETS: usize = (EXACT_MS + DOUBLING_BUCKETS * DOUBLINGS) as usize;

fn bucket_of(ms: u64) -> usize {
    if ms < EXACT_MS {
        return ms as usize;
    }
    let doubling = u64::from((ms / EXACT_MS).ilog2());
    let part = (ms >> doubling) - EXACT_MS;
    let at = EXACT_MS + doubling * DOUBLING_BUCKETS + part * DOUBLING_BUCKETS / EXACT_MS;
    (at as usize).min(ARRIVAL_BUCKETS - 1)
}

/// The greatest number of milliseconds that falls into a bucket.
fn bucket_end_ms(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT_MS {
        return bucket;
    }
    let (doubling, part) = ((bucket - EXACT_MS) / DOUBLING_BUCKETS, (bucket - EXACT_MS) % DOUBLING_BUCKETS);
    ((EXACT_MS + (part + 1) * EXACT_MS / DOUBLING_BUCKETS) << doubling) - 1
}

/// How long the writes of one run take to arrive, including the difference of the two nodes' wall clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Arrival {
    /// The origin of the stamps: the run that wrote.
    pub origin: RunId,
    /// The name of its node, if the run is a known member.
    pub name: Option<String>,
    /// Writes counted so far.
    pub count: u64,
    /// Arrival time of the latest write.
    #[serde(with = "form::span")]
    pub latest: Duration,
    /// Smoothed mean of all writes.
    #[serde(with = "form::span")]
    pub mean: Duration,
    /// Median of the last one to two minutes. Quantiles are rounded up, by at most a quarter.
    #[serde(with = "form::span")]
    pub p50: Duration,
    /// 99th percentile of the last one to two minutes.
    #[serde(with = "form::span")]
    pub p99: Duration,
    /// Maximum of the last one to two minutes.
    #[serde(with = "form::span")]
    pub max: Duration,
}

#[derive(Clone, Debug)]
struct ArrivalWindow {
    buckets: [u32; ARRIVAL_BUCKETS],
    max_ms: u64,
}

impl Default for ArrivalWindow {
    fn default() -> Self {
        Self { buckets: [0; ARRIVAL_BUCKETS], max_ms: 0 }
    }
}

#[derive(Clone, Debug, Default)]
struct OriginArrivals {
    count: u64,
    latest_ms: u64,
    mean_micros: i64,
    last_at: Duration,
    /// Number of the current window. The other one of the two is the window before it.
    window: u64,
    windows: [ArrivalWindow; 2],
    /// Arrivals by bucket that were not taken by `take_fresh` yet.
    #[cfg(feature = "metrics")]
    fresh: BTreeMap<usize, usize>,
}

impl OriginArrivals {
    fn rotate(&mut self, now: Time) {
        let window = now.mono.as_secs() / WINDOW.as_secs();
        for gone in (self.window + 1..=window).rev().take(2) {
            self.windows[gone as usize % 2] = ArrivalWindow::default();
        }
        self.window = window;
    }

    fn record(&mut self, now: Time, ms: u64) {
        self.rotate(now);
        let micros = i64::try_from(ms.saturating_mul(1_000)).unwrap_or(i64::MAX / 2);
        let part = if self.count == 0 { 1 } else { SMOOTHING_PART };
        self.mean_micros += (micros - self.mean_micros) / part;
        self.count += 1;
        (self.latest_ms, self.last_at) = (ms, now.mono);
        let window = &mut self.windows[self.window as usize % 2];
        window.buckets[bucket_of(ms)] += 1;
        window.max_ms = window.max_ms.max(ms);
        #[cfg(feature = "metrics")]
        {
            *self.fresh.entry(bucket_of(ms)).or_default() += 1;
        }
    }

    /// A percentile of the arrival times in both windows, in milliseconds.
    fn quantile_ms(&self, hundredths: u64) -> u64 {
        let at =
            |bucket: usize| self.windows.iter().map(|window| u64::from(window.buckets[bucket])).sum::<u64>();
        let all: u64 = (0..ARRIVAL_BUCKETS).map(at).sum();
        let mut left = (all * hundredths).div_ceil(100);
        let reached = (0..ARRIVAL_BUCKETS).find(|bucket| {
            left = left.saturating_sub(at(*bucket));
            left == 0
        });
        let max_ms = self.windows[0].max_ms.max(self.windows[1].max_ms);
        reached.map_or(0, bucket_end_ms).min(max_ms)
    }

    fn figures(&self, origin: RunId, now: Time) -> Arrival {
        let mut origin_now = self.clone();
        origin_now.rotate(now);
        let [a, b] = &origin_now.windows;
        Arrival {
            origin,
            name: None,
            count: self.count,
            latest: Duration::from_millis(self.latest_ms),
            mean: Duration::from_micros(self.mean_micros.unsigned_abs()),
            p50: Duration::from_millis(origin_now.quantile_ms(50)),
            p99: Duration::from_millis(origin_now.quantile_ms(99)),
            max: Duration::from_millis(a.max_ms.max(b.max_ms)),
        }
    }
}

/// The arrival times of all origins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrivals {
    origins: BTreeMap<RunId, OriginArrivals>,
}

impl Arrivals {
    /// Takes the arrivals since the last call from a replica.
    pub(crate) fn follow(&mut self, now: Time, replica: &mut Replica) {
        for Arrived { origin, took_ms } in replica.take_arrived() {
            if !self.origins.contains_key(&origin) && self.origins.len() == ORIGINS_MAX {
                let quietest =
                    self.origins.iter().min_by_key(|(_, origin)| origin.last_at).map(|(id, _)| *id);
                quietest.and_then(|id| self.origins.remove(&id));
            }
            self.origins.entry(origin).or_default().record(now, took_ms);
        }
    }

    /// The figures of all origins, with the names of those that are known members.
    pub(crate) fn figures(&self, now: Time, replica: &Replica) -> Vec<Arrival> {
        let figures = |(id, origin): (&RunId, &OriginArrivals)| Arrival {
            name: replica.name_of_origin(*id),
            ..origin.figures(*id, now)
        };
        self.origins.iter().map(figures).collect()
    }

    /// Arrivals since the last call: origin, arrival time, and how many writes had that time.
    #[cfg(feature = "metrics")]
    pub(crate) fn take_fresh(&mut self) -> Vec<(RunId, Duration, usize)> {
        let fresh = |(id, origin): (&RunId, &mut OriginArrivals)| {
            let (id, fresh) = (*id, std::mem::take(&mut origin.fresh));
            fresh
                .into_iter()
                .map(move |(bucket, count)| (id, Duration::from_millis(bucket_end_ms(bucket)), count))
        };
        self.origins.iter_mut().flat_map(fresh).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrival_buckets_have_no_gaps() {
        let mut last = 0;
        for ms in 0..200_000 {
            let bucket = bucket_of(ms);
            assert!(bucket == last || bucket == last + 1, "{ms}");
            assert!(bucket_end_ms(bucket) >= ms && bucket_end_ms(bucket) - ms <= ms / 4, "{ms}");
            assert_eq!(bucket_of(bucket_end_ms(bucket)), bucket);
            last = bucket;
        }
        assert_eq!(bucket_of(u64::MAX), ARRIVAL_BUCKETS - 1);
    }

    #[test]
    fn quantiles_forget_what_is_two_windows_old() {
        let at = |secs: u64| Time { mono: Duration::from_secs(secs), wall: Duration::from_secs(secs) };
        let mut origin = OriginArrivals::default();
        (0..100).for_each(|i| origin.record(at(10), if i < 99 { 5 } else { 5_000 }));
        let report = origin.figures(RunId::new(1), at(70));
        assert_eq!((report.p50, report.p99), (Duration::from_millis(5), Duration::from_millis(5)));
        assert_eq!((report.max, report.count), (Duration::from_secs(5), 100));
        let report = origin.figures(RunId::new(1), at(130));
        assert_eq!((report.max, report.p99, report.count), (Duration::ZERO, Duration::ZERO, 100));
        origin.record(at(600), 7);
        let report = origin.figures(RunId::new(1), at(600));
        assert_eq!((report.latest, report.max), (Duration::from_millis(7), Duration::from_millis(7)));
    }
}
