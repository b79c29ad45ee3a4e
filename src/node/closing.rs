//! Closing a connection so that the peer hears of it.
//!
//! The transport holds the last word of a connection back like data, and once it is closed no acknowledgement makes
//! room any more: if the congestion window was full, the peer was never told, and took a node that had left for a lost
//! one. (<https://github.com/quinn-rs/quinn/issues/2785>; when a release has the fix, this module goes.) So the window
//! of a connection that is being closed has no end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn::{Connection, VarInt};
use quinn_proto::RttEstimator;

/// Closes a connection, and tells the peer why.
pub(super) fn close(connection: &Connection, code: u32) {
    if let Ok(window) = connection.congestion_state().into_any().downcast::<Window>() {
        window.is_closing.store(true, Ordering::Relaxed);
    }
    connection.close(VarInt::from_u32(code), b"");
}

/// Makes the windows of new connections.
#[derive(Debug, Default)]
pub(super) struct Windows(Arc<CubicConfig>);

impl ControllerFactory for Windows {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Window { usual: self.0.clone().build(now, mtu), is_closing: Arc::default() })
    }
}

/// The transport's usual window until its connection is closed.
struct Window {
    usual: Box<dyn Controller>,
    is_closing: Arc<AtomicBool>,
}

impl Controller for Window {
    fn window(&self) -> u64 {
        if self.is_closing.load(Ordering::Relaxed) { u64::MAX } else { self.usual.window() }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { usual: self.usual.clone_box(), is_closing: self.is_closing.clone() })
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }

    // All else is the usual one's business.

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.usual.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.usual.on_ack(now, sent, bytes, app_limited, rtt);
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
