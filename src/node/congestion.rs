//! The transport's usual congestion control, and two things that only it can do for us.
//!
//! It is shown the shortest round trip, which a connection does not tell otherwise. And it lets a connection be closed so
//! that the peer hears of it: the transport holds the last word back like data, and once a connection is closed no
//! acknowledgement makes room any more. If the window was full, the peer was never told, and took a node that had left for
//! a lost one. (<https://github.com/quinn-rs/quinn/issues/2785>; when a release has the fix, that part goes.) So the
//! window of a connection that is being closed has no end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn::{Connection, VarInt};
use quinn_proto::RttEstimator;

/// Closes a connection, and tells the peer why.
pub(super) fn close(connection: &Connection, code: u32) {
    noted(connection).is_closing.store(true, Ordering::Relaxed);
    connection.close(VarInt::from_u32(code), b"");
}

/// The shortest round trip on the connection's present path.
pub(super) fn least_round_trip(connection: &Connection) -> Duration {
    Duration::from_micros(noted(connection).least_micros.load(Ordering::Relaxed))
}

fn noted(connection: &Connection) -> Arc<Noted> {
    let window = connection.congestion_state().into_any().downcast::<CongestionWindow>();
    window.expect("all connections have this one").noted
}

/// Makes the windows of new connections.
#[derive(Debug, Default)]
pub(super) struct CongestionWindows(Arc<CubicConfig>);

impl ControllerFactory for CongestionWindows {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let noted = Noted { is_closing: AtomicBool::new(false), least_micros: AtomicU64::new(u64::MAX) };
        Box::new(CongestionWindow { usual: self.0.clone().build(now, mtu), noted: Arc::new(noted) })
    }
}

/// What the connection and its copies of the controller share.
struct Noted {
    is_closing: AtomicBool,
    least_micros: AtomicU64,
}

/// The transport's usual window until its connection is closed.
struct CongestionWindow {
    usual: Box<dyn Controller>,
    noted: Arc<Noted>,
}

impl Controller for CongestionWindow {
    fn window(&self) -> u64 {
        if self.noted.is_closing.load(Ordering::Relaxed) { u64::MAX } else { self.usual.window() }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { usual: self.usual.clone_box(), noted: self.noted.clone() })
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.noted.least_micros.store(rtt.min().as_micros() as u64, Ordering::Relaxed);
        self.usual.on_ack(now, sent, bytes, app_limited, rtt);
    }

    // All else is the usual one's business.

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.usual.on_sent(now, bytes, last_packet_number);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.usual.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.usual.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.usual.on_mtu_update(mtu);
    }

    fn metrics(&self) -> ControllerMetrics {
        self.usual.metrics()
    }

    fn initial_window(&self) -> u64 {
        self.usual.initial_window()
    }
}
