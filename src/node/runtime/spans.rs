//! The spans of `tracing` that a node opens, all at the level `DEBUG`.
//!
//! | span | from | to | fields |
//! |---|---|---|---|
//! | `join` | start of the node | ready | `node`, `readiness`, `entries` |
//! | `handshake` | first packet, or dial | link or refusal | `node`, `addr` |
//! | `repair` | first message | last message or broken link | `node`, `peer`, `is_complete`, `rows`, `bytes` |
//! | `campaign` | call | lease or refusal | `node`, `name`, `token` |
//! | `disk_transaction` | write | sync | `node`, `rows` |
//!
//! Spans of `repair` and `join` are not entered: their work is spread over many steps of the driver.

use tracing::field::{Empty, display};
use tracing::{Span, debug_span};

use crate::replica::{Readiness, RepairReport};
use crate::text::Escaped;
use crate::time::Stamp;

pub(in crate::node) fn handshake_span(node: &str, addr: std::net::SocketAddr) -> Span {
    debug_span!("handshake", node, %addr)
}

pub(in crate::node) fn repair_span(node: &str, peer: &str) -> Span {
    debug_span!("repair", node, peer = %Escaped(peer), is_complete = Empty, rows = Empty, bytes = Empty)
}

pub(in crate::node) fn end_repair_span(span: &Span, repair: &RepairReport) {
    span.record("is_complete", repair.is_complete).record("rows", repair.rows).record("bytes", repair.bytes);
}

pub(in crate::node) fn join_span(node: &str) -> Span {
    debug_span!("join", node, readiness = Empty, entries = Empty)
}

pub(in crate::node) fn end_join_span(span: &Span, readiness: Readiness, entries: u64) {
    let readiness = match readiness {
        Readiness::Joining => "joining",
        Readiness::Alone => "alone",
        Readiness::Joined => "joined",
    };
    span.record("readiness", readiness).record("entries", entries);
}

pub(in crate::node) fn campaign_span(node: &str, name: &str) -> Span {
    debug_span!("campaign", node, name, token = Empty)
}

/// The campaign of this span has won.
pub(in crate::node) fn end_campaign_span(span: &Span, token: Stamp) {
    span.record("token", display(token));
}

#[cfg(feature = "durable")]
pub(in crate::node) fn disk_span(node: &str, rows: usize) -> Span {
    debug_span!("disk_transaction", node, rows)
}
