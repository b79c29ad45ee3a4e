//! Keeps the round trips of a link short and measured, and the bytes in flight small.
//!
//! Bytes in flight delay everything that is written later on the link. So the send window follows the shortest round
//! trip of the connection and shrinks when round trips grow. A new link is probed, because QUIC's estimate of the round
//! trip begins with the handshake and is far too long when many links are made at once.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, VarInt};
use tokio::sync::Semaphore;

use crate::node::net::congestion::least_round_trip;

/// The assumed rate of a fast network, in bytes per microsecond.
const BYTES_PER_MICRO: u64 = 100;
/// The least send window. With less, a round trip would carry too little for the packets that it costs.
const SEND_WINDOW_MIN: u64 = 6 << 10;
/// The least upper limit of the send window, however short the round trip is.
const SEND_WINDOW_FAIR: u64 = 64 << 10;
/// The greatest send window, and the first one.
pub(in crate::node) const SEND_WINDOW_MAX: u64 = 2 << 20;
/// Bytes that a peer may send beyond those read here, until its round trip is known: one window that arrives, and one
/// that waits to be read.
pub(in crate::node) const RECEIVE_WINDOW_FIRST: u32 = 2 * SEND_WINDOW_FAIR as u32;
/// The send window shrinks when a round trip is longer than twice the shortest one and this time.
const QUEUE_TIME: Duration = Duration::from_millis(1);
/// The send window is adjusted whenever a lane has sent so many bytes.
pub(in crate::node) const FIT_BYTES: usize = 32 << 10;

/// Probes of a new link: at least the first number, so that a short round trip is seen; at most the second.
const RTT_PROBES: RangeInclusive<usize> = 8..=64;
/// The pause after a probe. Probes of all new links of a node take turns.
const RTT_PROBE_PAUSE: Duration = Duration::from_millis(4);
/// The pause between the two datagrams of a probe, so that they travel in two packets.
const PAIR_PAUSE: Duration = Duration::from_millis(1);
/// The round trip counts as known when its average is at most twice the shortest one and this time.
const UNCERTAINTY: Duration = Duration::from_millis(2);

/// The bytes of both lanes that may be in flight: what a fast network carries in the shortest round trip, and less
/// where round trips grow, because bytes in flight delay everything that is written later.
pub(in crate::node) struct SendWindow {
    pub(in crate::node) connection: Connection,
    bytes: AtomicU64,
}

impl SendWindow {
    pub(in crate::node) fn new(connection: Connection) -> Self {
        let window = Self { connection, bytes: AtomicU64::new(SEND_WINDOW_MAX) };
        window.fit();
        window
    }

    pub(in crate::node) fn fit(&self) {
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

/// What a fast network carries in the shortest round trip, at least [`SEND_WINDOW_FAIR`].
fn widest(least: Duration) -> u64 {
    micros(least).saturating_mul(BYTES_PER_MICRO).clamp(SEND_WINDOW_FAIR, SEND_WINDOW_MAX)
}

/// The next window after one of `old` bytes, from the shortest round trip and the present one. It changes by a factor
/// of 2 at most.
fn fitted(old: u64, least: Duration, now: Duration) -> u64 {
    let most = widest(least);
    let fair = old.saturating_mul(micros(least.saturating_mul(2).saturating_add(QUEUE_TIME))) / micros(now);
    fair.clamp(old / 2, old * 2).clamp(SEND_WINDOW_MIN, most)
}

/// Measures a new link's round trip, then sets its receive window accordingly.
///
/// A connection's average round trip begins with that of its handshake, which includes computing. With many handshakes
/// at once it is far too long, and each answer corrects it by an eighth only. Until then a lost packet would be
/// retransmitted after three such round trips.
///
/// The receive window is needed because QUIC acknowledges what has arrived even if it is not read yet: the peer's send
/// window does not bound what a busy node has to keep.
pub(in crate::node) async fn get_acquainted(connection: Connection, turns: Arc<Semaphore>) {
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
        // Empty datagrams are not handed to the replica, but they are acknowledged: a single one only after the peer's
        // acknowledgement delay, two packets at once.
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
