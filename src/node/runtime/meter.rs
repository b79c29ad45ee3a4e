//! What is counted as it happens, for the recorder of metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::Histogram;

use crate::election::LeaseEnd;
use crate::error::{ElectionError, WriteError};
use crate::node::net::peers::{LinkEnd, NodeEvent, PeerRefusal};
use crate::node::net::sender::LinkEvent;
use crate::replica::{Output, RepairReport, ReplicaEvent};
use crate::store::Refusal;

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

/// Why two nodes did not become peers.
pub(in crate::node) const REFUSALS: [&str; 12] = [
    "tls",
    "cluster",
    "app_version",
    "clock",
    "name_taken",
    "run_taken",
    "full",
    "not_the_certificates",
    "over_limit",
    "greeting",
    "wire_version",
    "settings",
];

fn place_of_refusal(refusal: &PeerRefusal) -> usize {
    match refusal {
        PeerRefusal::Tls(_) => 0,
        PeerRefusal::Cluster { .. } => 1,
        PeerRefusal::AppVersion { .. } => 2,
        PeerRefusal::Clock { .. } => 3,
        PeerRefusal::NameTaken => 4,
        PeerRefusal::RunTaken => 5,
        PeerRefusal::Full => 6,
        PeerRefusal::NotTheCertificates => 7,
        PeerRefusal::OverLimit(_) => 8,
        PeerRefusal::Greeting => 9,
        PeerRefusal::WireVersion { .. } => 10,
        PeerRefusal::Settings(_) => 11,
    }
}

/// Why a row of a peer was refused.
pub(in crate::node) const ROW_REFUSALS: [&str; 4] = ["from_the_future", "key", "value", "dots"];

fn place_of_row_refusal(reason: Refusal) -> usize {
    match reason {
        Refusal::FromTheFuture => 0,
        Refusal::Key => 1,
        Refusal::Value => 2,
        Refusal::Dots => 3,
    }
}

/// Why links ended.
pub(in crate::node) const LINK_ENDS: [&str; 7] =
    ["broken", "peer_exit", "replaced", "not_accepted", "unusable", "by_peer", "lost"];

fn place_of_link_end(end: &LinkEnd) -> usize {
    match end {
        LinkEnd::Broken(_) => 0,
        LinkEnd::PeerExit(_) => 1,
        LinkEnd::Replaced => 2,
        LinkEnd::NotAccepted => 3,
        LinkEnd::Unusable => 4,
        LinkEnd::ByPeer => 5,
        LinkEnd::Lost { .. } => 6,
    }
}

/// How campaigns ended that had begun.
pub(in crate::node) const CAMPAIGNS: [&str; 3] = ["won", "taken", "no_majority"];

/// How leases ended.
pub(in crate::node) const LEASE_ENDS: [&str; 2] = ["resigned", "lost"];

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
#[derive(Debug)]
pub(in crate::node) struct Meter {
    pub(in crate::node) writes: AtomicU64,
    pub(in crate::node) refused: [AtomicU64; REASONS.len()],
    pub(in crate::node) sent: [Traffic; LANES.len()],
    pub(in crate::node) received: [Traffic; LANES.len()],
    pub(in crate::node) links_made: AtomicU64,
    pub(in crate::node) links_ended: [AtomicU64; LINK_ENDS.len()],
    /// By who refused: this node, the other one.
    pub(in crate::node) peers_refused: [[AtomicU64; REFUSALS.len()]; 2],
    pub(in crate::node) rows_refused: [AtomicU64; ROW_REFUSALS.len()],
    pub(in crate::node) campaigns: [AtomicU64; CAMPAIGNS.len()],
    pub(in crate::node) leases_ended: [AtomicU64; LEASE_ENDS.len()],
    /// How long local writes took, the wait for the lock included.
    write_times: Histogram,
    /// Ended repair sessions: incomplete ones, complete ones.
    pub(in crate::node) repairs: [AtomicU64; 2],
    pub(in crate::node) repair_rows: AtomicU64,
    pub(in crate::node) repair_bytes: AtomicU64,
}

impl Meter {
    pub(in crate::node) fn new(node: &str) -> Self {
        Self {
            writes: AtomicU64::default(),
            refused: Default::default(),
            sent: Default::default(),
            received: Default::default(),
            links_made: AtomicU64::default(),
            links_ended: Default::default(),
            peers_refused: Default::default(),
            rows_refused: Default::default(),
            campaigns: Default::default(),
            leases_ended: Default::default(),
            write_times: metrics::histogram!("tidings_write_seconds", "node" => node.to_owned()),
            repairs: Default::default(),
            repair_rows: AtomicU64::default(),
            repair_bytes: AtomicU64::default(),
        }
    }

    pub(in crate::node) fn count_refusal(&self, by_us: bool, refusal: &PeerRefusal) {
        let count = &self.peers_refused[usize::from(!by_us)][place_of_refusal(refusal)];
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_campaign<T>(&self, decided: &Result<T, ElectionError>) {
        let place = match decided {
            Ok(_) => 0,
            Err(ElectionError::Taken) => 1,
            Err(ElectionError::NoMajority { .. }) => 2,
            Err(_) => return,
        };
        self.campaigns[place].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_event(&self, event: &NodeEvent) {
        let count = match event {
            NodeEvent::LinkMade { .. } => &self.links_made,
            NodeEvent::LinkEnded { end, .. } => &self.links_ended[place_of_link_end(end)],
            NodeEvent::LeaseEnded { end, .. } => &self.leases_ended[usize::from(*end != LeaseEnd::Resigned)],
            NodeEvent::RepairEnded { repair, .. } => return self.count_repair(*repair),
            NodeEvent::Store(ReplicaEvent::Refused { reason, .. }) => {
                &self.rows_refused[place_of_row_refusal(*reason)]
            }
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_write<T>(&self, written: &Result<T, WriteError>, took: Duration) {
        self.write_times.record(took);
        let count = written.as_ref().err().map_or(&self.writes, |error| &self.refused[reason_of(error)]);
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::node) fn count_sent(&self, output: &Output) {
        match output {
            Output::Stream(_, lane, bytes) => self.sent[*lane as usize].count(bytes.len()),
            Output::Datagram(_, bytes) | Output::MemberDatagram(_, bytes) => {
                self.sent[DATAGRAM].count(bytes.len());
            }
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
