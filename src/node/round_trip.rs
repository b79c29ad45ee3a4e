//! What keeps a link's round trips short, and known, and what it holds on the way small.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, VarInt};
use tokio::sync::Semaphore;

use super::congestion::least_round_trip;

/// What a fast network takes in a microsecond.
const BYTES_PER_MICRO: u64 = 100;
/// Below, a round trip would carry too little to be worth its packets.
const SEND_WINDOW_MIN: u64 = 6 << 10;
/// What every network may have on its way, however near the peer is.
const SEND_WINDOW_FAIR: u64 = 64 << 10;
pub(super) const SEND_WINDOW_MAX: u64 = 2 << 20;
/// What a peer may send beyond what is read here, while it is not known how far away it is: a window that comes, and one
/// that is waiting to be read.
pub(super) const RECEIVE_WINDOW_FIRST: u32 = 2 * SEND_WINDOW_FAIR as u32;
/// How much longer than twice the shortest a round trip may be before less is sent at a time.
const QUEUE_TIME: Duration = Duration::from_millis(1);
/// The window is fitted whenever a lane has sent so much.
pub(super) const FIT_BYTES: usize = 32 << 10;

/// So many questions show how short a round trip can be; no more are asked than so many.
const RTT_PROBES: RangeInclusive<usize> = 8..=64;
/// One question in this time, of all new links of a node.
const RTT_PROBE_PAUSE: Duration = Duration::from_millis(4);
/// So that what is sent before and after it goes in two packets.
const PAIR_PAUSE: Duration = Duration::from_millis(1);
/// How much longer than twice the shortest the average may be when a link is known.
const UNCERTAINTY: Duration = Duration::from_millis(2);

/// How much of both lanes may be on its way: what a fast network takes in the shortest round trip, and less where that
/// makes round trips long. What waits on the way delays all that is written later.
pub(super) struct SendWindow {
    pub(super) connection: Connection,
    bytes: AtomicU64,
}

impl SendWindow {
    pub(super) fn new(connection: Connection) -> Self {
        let window = Self { connection, bytes: AtomicU64::new(SEND_WINDOW_MAX) };
        window.fit();
        window
    }

    pub(super) fn fit(&self) {
        let old = self.bytes.load(Ordering::Relaxed);
        let new = fitted(old, least_round_trip(&self.connection), self.connection.rtt());
        if new != old {
            self.bytes.store(new, Ordering::Relaxed);
            self.connection.set_send_window(new);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// What a fast network takes in the shortest round trip.
fn widest(least: Duration) -> u64 {
    micros(least).saturating_mul(BYTES_PER_MICRO).clamp(SEND_WINDOW_FAIR, SEND_WINDOW_MAX)
}

/// The window after one of `old` bytes, with the shortest round trip and that of now.
fn fitted(old: u64, least: Duration, now: Duration) -> u64 {
    let most = widest(least);
    let fair = old.saturating_mul(micros(least.saturating_mul(2).saturating_add(QUEUE_TIME))) / micros(now);
    fair.clamp(old / 2, old * 2).clamp(SEND_WINDOW_MIN, most)
}

/// Makes a new link's round trip known. A connection's idea of it begins with its handshake, which is work, and with
/// many at once everybody seems to be far away; each answer takes an eighth of that back. Until then it would wait for
/// three such round trips before it sends a lost packet again. Then the peer may send as much as fits its distance: what
/// has arrived and is not read yet is acknowledged, so that no send window bounds what a busy node would have to keep.
pub(super) async fn get_acquainted(connection: Connection, turns: Arc<Semaphore>) {
    ask_until_known(&connection, &turns).await;
    let window = u32::try_from(2 * widest(least_round_trip(&connection))).expect("a few MiB");
    connection.set_receive_window(VarInt::from_u32(window));
}

async fn ask_until_known(connection: &Connection, turns: &Semaphore) {
    let is_known =
        || connection.rtt() <= least_round_trip(connection).saturating_mul(2).saturating_add(UNCERTAINTY);
    for asked in 0..*RTT_PROBES.end() {
        if asked >= *RTT_PROBES.start() && is_known() {
            return;
        }
        let _turn = turns.acquire().await.expect("it is never closed");
        // Empty datagrams are no messages, but they are acknowledged: a lone one when its time is up, two at once.
        for pause in [PAIR_PAUSE, RTT_PROBE_PAUSE] {
            if connection.send_datagram(Bytes::new()).is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Duration = Duration::from_micros(300);

    fn after_many(mut window: u64, least: Duration, now: impl Fn(u64) -> Duration) -> u64 {
        for _ in 0..100 {
            window = fitted(window, least, now(window));
        }
        window
    }

    #[test]
    fn send_window_settles_at_a_short_queue_and_grows_back() {
        // A link of 8 bytes a microsecond: all that is on its way waits for it.
        let full = |window: u64| NEAR + Duration::from_micros(window / 8);
        let window = after_many(SEND_WINDOW_FAIR, NEAR, full);
        let bearable = 2 * NEAR + QUEUE_TIME;
        assert!(full(window) <= bearable && full(window) > bearable / 2, "{window}: {:?}", full(window));
        assert_eq!(after_many(window, NEAR, |_| NEAR), SEND_WINDOW_FAIR);
    }

    #[test]
    fn send_window_of_a_far_peer_fits_its_round_trip() {
        let far = Duration::from_millis(10);
        assert_eq!(after_many(SEND_WINDOW_MIN, far, |_| far), 1_000_000);
        let farther = Duration::from_millis(200);
        assert_eq!(after_many(SEND_WINDOW_MIN, farther, |_| farther), SEND_WINDOW_MAX);
        assert_eq!(after_many(SEND_WINDOW_MAX, NEAR, |_| NEAR), SEND_WINDOW_FAIR);
    }

    #[test]
    fn send_window_stays_within_its_bounds() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(after_many(SEND_WINDOW_MAX, Duration::ZERO, |_| hour), SEND_WINDOW_MIN);
        assert_eq!(after_many(SEND_WINDOW_MAX, Duration::MAX, |_| Duration::ZERO), SEND_WINDOW_MAX);
    }
}
