//! The transport's usual congestion control (CUBIC), wrapped for two purposes.
//!
//! 1. The shortest round trip of a connection: the controller is told of it, and quinn gives no other access to it.
//! 2. Closing a connection so that the peer learns of it. quinn holds the close packet back while the congestion
//!    window is full, and on a closed connection no acknowledgement makes room any more. The peer then never received
//!    it, and took a node that had left for a failed one. So the window of a connection that is being closed is
//!    unlimited. This part can be removed when a release of quinn has the fix:
//!    <https://github.com/quinn-rs/quinn/issues/2785>.
//!
//! A link must be closed with [`close`] from here, never with quinn's own method.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn::{Connection, VarInt};
use quinn_proto::RttEstimator;

/// Closes a connection with a code for the peer, which is sent even if the congestion window is full.
pub(in crate::node) fn close(connection: &Connection, code: u32) {
    noted(connection).is_closing.store(true, Ordering::Relaxed);
    connection.close(VarInt::from_u32(code), b"");
}

/// The shortest round trip on the connection's present path; very long before the first acknowledgement.
pub(in crate::node) fn least_round_trip(connection: &Connection) -> Duration {
    Duration::from_micros(noted(connection).least_micros.load(Ordering::Relaxed))
}

fn noted(connection: &Connection) -> Arc<Noted> {
    let window = connection.congestion_state().into_any().downcast::<CongestionWindow>();
    window.expect("all connections have this one").noted
}

/// Makes the congestion controllers of new connections.
#[derive(Debug, Default)]
pub(in crate::node) struct CongestionWindows(Arc<CubicConfig>);

impl ControllerFactory for CongestionWindows {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let noted = Noted { is_closing: AtomicBool::new(false), least_micros: AtomicU64::new(u64::MAX) };
        Box::new(CongestionWindow { usual: self.0.clone().build(now, mtu), noted: Arc::new(noted) })
    }
}

/// What all copies of a connection's controller share.
struct Noted {
    is_closing: AtomicBool,
    least_micros: AtomicU64,
}

/// CUBIC, with an unlimited window while the connection is being closed.
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

    // Everything else is forwarded unchanged.

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
