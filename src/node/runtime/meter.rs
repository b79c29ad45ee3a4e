//! What is counted as it happens, for the recorder of metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::WriteError;
use crate::node::net::sender::LinkEvent;
use crate::replica::{Output, RepairReport};

pub(in crate::node) const REASONS: [&str; 7] =
    ["busy", "disk", "condition", "closed", "invalid", "clock", "full"];

fn reason_of(error: &WriteError) -> usize {
    match error {
        WriteError::Busy => 0,
        WriteError::Disk => 1,
        WriteError::Condition { .. } => 2,
        WriteError::Closed => 3,
        WriteError::Clock { .. } => 5,
        WriteError::Full { .. } => 6,
        _ => 4,
    }
}

/// The lanes and, as the last one, datagrams.
pub(in crate::node) const LANES: [&str; 3] = ["live", "bulk", "datagram"];
pub(in crate::node) const DATAGRAM: usize = 2;

#[derive(Debug, Default)]
pub(in crate::node) struct Traffic {
    pub(in crate::node) pieces: AtomicU64,
    pub(in crate::node) bytes: AtomicU64,
}

impl Traffic {
    fn count(&self, bytes: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Counters that are increased as things happen, and recorded once a second.
#[derive(Debug, Default)]
pub(in crate::node) struct Meter {
    pub(in crate::node) writes: AtomicU64,
    pub(in crate::node) refused: [AtomicU64; REASONS.len()],
    pub(in crate::node) sent: [Traffic; LANES.len()],
    pub(in crate::node) received: [Traffic; LANES.len()],
    pub(in crate::node) links_made: AtomicU64,
    /// Ended repair sessions: incomplete ones, complete ones.
    pub(in crate::node) repairs: [AtomicU64; 2],
    pub(in crate::node) repair_rows: AtomicU64,
    pub(in crate::node) repair_bytes: AtomicU64,
}

impl Meter {
    pub(in crate::node) fn count_write<T>(&self, written: &Result<T, WriteError>) {
        let count = written.as_ref().err().map_or(&self.writes, |error| &self.refused[reason_of(error)]);
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_link(&self) {
        self.links_made.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_sent(&self, output: &Output) {
        match output {
            Output::Stream(_, lane, bytes) => self.sent[*lane as usize].count(bytes.len()),
            Output::Datagram(_, bytes) | Output::MemberDatagram(_, bytes) => {
                self.sent[DATAGRAM].count(bytes.len());
            }
            Output::Repair(_, repair) => self.count_repair(*repair),
            _ => {}
        }
    }

    fn count_repair(&self, repair: RepairReport) {
        self.repairs[usize::from(repair.is_complete)].fetch_add(1, Ordering::Relaxed);
        self.repair_rows.fetch_add(repair.rows, Ordering::Relaxed);
        self.repair_bytes.fetch_add(repair.bytes, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_received(&self, event: &LinkEvent) {
        match event {
            LinkEvent::Stream(_, lane, bytes, _) => self.received[*lane as usize].count(bytes.len()),
            LinkEvent::Datagram(_, bytes) => self.received[DATAGRAM].count(bytes.len()),
            LinkEvent::Down(..) => {}
        }
    }
}
