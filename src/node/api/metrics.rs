//! Metrics through the facade of the `metrics` crate (feature `metrics`).
//!
//! Install a recorder before the first node starts. The driver records everything about once a second, while it does
//! not hold the lock, except for the two waits, which are recorded when they end. Without a recorder the cost is
//! negligible.
//!
//! Every metric has the label `node`, the node's name.
//!
//! | Name | Kind | Further labels | Meaning |
//! |---|---|---|---|
//! | `tidings_entries` | gauge | | entries held, those of sets and counters included |
//! | `tidings_bytes` | gauge | | bytes of their keys and values |
//! | `tidings_members` | gauge | `state` | other members by state: `alive`, `suspect`, `down`, `left` |
//! | `tidings_links` | gauge | | links to peers |
//! | `tidings_peer_lag_changes` | gauge | `peer` | changes not sent to the peer yet (1) |
//! | `tidings_peer_lag_bytes` | gauge | `peer` | about how many bytes these changes are (1) |
//! | `tidings_peer_lag_seconds` | gauge | `peer` | how long the peer has owed an acknowledgement (1) |
//! | `tidings_peer_rtt_seconds` | gauge | `peer` | the smoothed round trip to the peer (1) |
//! | `tidings_origins` | gauge | | process starts that ever wrote |
//! | `tidings_invalid_values` | gauge | | keys whose value a check of this node finds invalid |
//! | `tidings_extra_contexts` | gauge | | contexts kept beyond the vector; 0 in a cluster at rest |
//! | `tidings_removals` | gauge | | removals that the change log remembers |
//! | `tidings_busy` | gauge | | 1 while writes are refused because the cluster is too far behind |
//! | `tidings_joining` | gauge | | 1 until the node is ready (`Node::ready`) |
//! | `tidings_disk_failed` | gauge | | 1 while the disk accepts no transaction |
//! | `tidings_clock_in_doubt` | gauge | | 1 while writes are refused because the wall clock is in doubt |
//! | `tidings_writes_total` | counter | | accepted local writes; a batch counts as one |
//! | `tidings_writes_refused_total` | counter | `reason` | refused local writes (2) |
//! | `tidings_sent_frames_total` | counter | `lane` | frames sent: `live`, `bulk`, `datagram` |
//! | `tidings_sent_bytes_total` | counter | `lane` | bytes of these frames |
//! | `tidings_received_chunks_total` | counter | `lane` | chunks received; a frame arrives in one or several |
//! | `tidings_received_bytes_total` | counter | `lane` | bytes of these chunks |
//! | `tidings_rows_merged_total` | counter | | rows of live replication that were new here |
//! | `tidings_repairs_begun_total` | counter | | repair sessions begun, joining included |
//! | `tidings_repairs_total` | counter | `outcome` | repair sessions that ended: `complete`, `incomplete` |
//! | `tidings_repair_rows_total` | counter | | rows of ended repair sessions, both directions |
//! | `tidings_repair_bytes_total` | counter | | bytes of ended repair sessions, both directions |
//! | `tidings_links_made_total` | counter | | links made |
//! | `tidings_links_lost_total` | counter | | links that went down |
//! | `tidings_events_total` | counter | `kind` | events of the `node`, and of the membership (`member`) |
//! | `tidings_live_rejected` | gauge | `live` | what a live value does not apply now (4) |
//! | `tidings_arrival_seconds` | histogram | `origin` | how long writes of another node took to arrive (3) |
//! | `tidings_durable_wait_seconds` | histogram | | how long successful calls of `Receipt::durable` took |
//! | `tidings_seen_by_wait_seconds` | histogram | | how long successful calls of `Receipt::seen_by` took |
//!
//! 1. 0 when the link to the peer is down.
//! 2. By reason: `busy`, `disk`, `clock`, `condition`, `closed`, `invalid`.
//! 3. The difference between the wall clocks of the two nodes is part of the value. The label is the writer's
//!    name, or its run in hexadecimal if the name is not known.
//! 4. By the key or prefix of the live value, recorded when it changes. Above 0 the last good value is in force.

#![expect(clippy::cast_precision_loss, reason = "gauges are floats")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::membership::MemberState;
use crate::node::api::status::NodeStatus;
use crate::node::runtime::meter::{LANES, REASONS};
use crate::node::runtime::shared::Shared;

/// The interval at which everything is recorded.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);

const STATES: [(MemberState, &str); 4] = [
    (MemberState::Alive, "alive"),
    (MemberState::Suspect, "suspect"),
    (MemberState::Down, "down"),
    (MemberState::Left, "left"),
];

/// The beginning of a wait for a receipt.
pub(in crate::node) struct Wait(Instant);

impl Wait {
    pub(in crate::node) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(in crate::node) fn is_durable(&self, shared: &Shared) {
        histogram!("tidings_durable_wait_seconds", "node" => shared.name.clone()).record(self.0.elapsed());
    }

    pub(in crate::node) fn is_seen(&self, shared: &Shared) {
        histogram!("tidings_seen_by_wait_seconds", "node" => shared.name.clone()).record(self.0.elapsed());
    }
}

/// Records what a live value does not apply.
#[cfg(feature = "json")]
pub(in crate::node) fn record_rejected(node: &str, live: &str, count: usize) {
    let labels = [("node", node.to_owned()), ("live", live.to_owned())];
    gauge!("tidings_live_rejected", &labels).set(count as f64);
}

/// Records everything once per [`RECORD_INTERVAL`]. It belongs to the driver.
#[derive(Default)]
pub(in crate::node) struct Recorder {
    next: Duration,
    has_described: bool,
    /// The peers whose lag was recorded last. It is set to 0 when their link is gone.
    peers: BTreeSet<String>,
}

impl Recorder {
    /// How long the driver may wait until the next recording.
    pub(in crate::node) fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// Records everything if the interval has passed. The caller must not hold the lock.
    pub(in crate::node) fn record(&mut self, shared: &Shared) {
        let now = shared.now().mono;
        if now < self.next {
            return;
        }
        self.next = now + RECORD_INTERVAL;
        if !std::mem::replace(&mut self.has_described, true) {
            describe();
        }
        let status = NodeStatus::of(shared);
        record_store(&status, shared);
        self.record_peers(&status);
        record_counts(&status, shared);
    }

    fn record_peers(&mut self, status: &NodeStatus) {
        let node = &status.name;
        let mut gone = std::mem::take(&mut self.peers);
        for peer in &status.peers {
            gone.remove(&peer.name);
            let (node, name) = (node.clone(), peer.name.clone());
            let labels = [("node", node), ("peer", name)];
            gauge!("tidings_peer_lag_changes", &labels).set(peer.lag_changes as f64);
            gauge!("tidings_peer_lag_bytes", &labels).set(peer.lag_bytes as f64);
            gauge!("tidings_peer_lag_seconds", &labels).set(peer.lag_time.as_secs_f64());
            gauge!("tidings_peer_rtt_seconds", &labels).set(peer.rtt.as_secs_f64());
            self.peers.insert(peer.name.clone());
        }
        for name in gone {
            let labels = [("node", node.clone()), ("peer", name)];
            for metric in [
                "tidings_peer_lag_changes",
                "tidings_peer_lag_bytes",
                "tidings_peer_lag_seconds",
                "tidings_peer_rtt_seconds",
            ] {
                gauge!(metric, &labels).set(0.0);
            }
        }
    }
}

fn record_store(status: &NodeStatus, shared: &Shared) {
    let node = &status.name;
    let set = |metric: &'static str, value: f64| gauge!(metric, "node" => node.clone()).set(value);
    let flag = |metric, is_set| set(metric, f64::from(u8::from(is_set)));
    flag("tidings_busy", status.is_busy);
    let Some(core) = shared.lock_closed() else { return };
    let is_joining = !shared.join_board.has_joined(&core.replica);
    let mut counts = [0_u32; STATES.len()];
    for member in core.replica.members() {
        let at = STATES.iter().position(|(state, _)| *state == member.state);
        counts[at.expect("all states are listed")] += 1;
    }
    drop(core);
    flag("tidings_joining", is_joining);
    for ((_, state), count) in STATES.iter().zip(counts) {
        gauge!("tidings_members", "node" => node.clone(), "state" => *state).set(count);
    }
    let Some(store) = &status.store else { return };
    set("tidings_entries", store.entries as f64);
    set("tidings_bytes", store.bytes as f64);
    set("tidings_links", store.links as f64);
    set("tidings_origins", store.origins as f64);
    set("tidings_invalid_values", store.invalid_values as f64);
    set("tidings_extra_contexts", store.extra_contexts as f64);
    set("tidings_removals", store.removals as f64);
    flag("tidings_disk_failed", store.has_disk_failed);
    flag("tidings_clock_in_doubt", store.clock_off.is_some());
}

fn record_counts(status: &NodeStatus, shared: &Shared) {
    let (node, meter) = (&status.name, &shared.meter);
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let tell = |metric: &'static str, count: u64| counter!(metric, "node" => node.clone()).absolute(count);
    let tell_of = |metric: &'static str, label: &'static str, of: &'static str, count: u64| {
        counter!(metric, "node" => node.clone(), label => of).absolute(count);
    };
    tell("tidings_writes_total", read(&meter.writes));
    for (reason, count) in REASONS.into_iter().zip(&meter.refused) {
        tell_of("tidings_writes_refused_total", "reason", reason, read(count));
    }
    for (lane, (sent, received)) in LANES.into_iter().zip(meter.sent.iter().zip(&meter.received)) {
        tell_of("tidings_sent_frames_total", "lane", lane, read(&sent.pieces));
        tell_of("tidings_sent_bytes_total", "lane", lane, read(&sent.bytes));
        tell_of("tidings_received_chunks_total", "lane", lane, read(&received.pieces));
        tell_of("tidings_received_bytes_total", "lane", lane, read(&received.bytes));
    }
    let [incomplete, complete] = [&meter.repairs[0], &meter.repairs[1]].map(read);
    tell_of("tidings_repairs_total", "outcome", "incomplete", incomplete);
    tell_of("tidings_repairs_total", "outcome", "complete", complete);
    tell("tidings_repair_rows_total", read(&meter.repair_rows));
    tell("tidings_repair_bytes_total", read(&meter.repair_bytes));
    let links_made = read(&meter.links_made);
    tell("tidings_links_made_total", links_made);
    tell("tidings_links_lost_total", links_made.saturating_sub(status.peers.len() as u64));
    tell_of("tidings_events_total", "kind", "node", shared.events.end());
    tell_of("tidings_events_total", "kind", "member", shared.member_events.end());
    if let Some(store) = &status.store {
        tell("tidings_rows_merged_total", store.rows_new);
        tell("tidings_repairs_begun_total", incomplete + complete + store.sessions as u64);
    }
    let fresh = shared.lock_closed().map(|mut core| core.arrivals.take_fresh());
    for (origin, took, times) in fresh.into_iter().flatten() {
        let arrival = status.arrivals.iter().find(|arrival| arrival.origin == origin);
        let name = arrival.and_then(|arrival| arrival.name.clone());
        let name = name.unwrap_or_else(|| format!("{origin:016x}"));
        let arrivals = histogram!("tidings_arrival_seconds", "node" => node.clone(), "origin" => name);
        arrivals.record_many(took, times);
    }
}

fn describe() {
    let gauges = [
        ("tidings_entries", Unit::Count, "Entries held, those of sets and counters included"),
        ("tidings_bytes", Unit::Bytes, "Bytes of the keys and values held"),
        ("tidings_members", Unit::Count, "Other members by state"),
        ("tidings_links", Unit::Count, "Links to peers"),
        ("tidings_peer_lag_changes", Unit::Count, "Changes not sent to a peer yet"),
        ("tidings_peer_lag_bytes", Unit::Bytes, "About how many bytes were not sent to a peer yet"),
        (
            "tidings_peer_lag_seconds",
            Unit::Seconds,
            "How long a peer has owed an acknowledgement; 0 if it owes none",
        ),
        ("tidings_peer_rtt_seconds", Unit::Seconds, "The smoothed round trip to a peer"),
        ("tidings_origins", Unit::Count, "Process starts that ever wrote"),
        ("tidings_invalid_values", Unit::Count, "Keys whose value a check of this node finds invalid"),
        ("tidings_extra_contexts", Unit::Count, "Contexts kept beyond the vector; 0 in a cluster at rest"),
        ("tidings_removals", Unit::Count, "Removals that the change log remembers"),
        ("tidings_busy", Unit::Count, "1 while writes are refused because the cluster is too far behind"),
        ("tidings_joining", Unit::Count, "1 until the node is ready"),
        ("tidings_disk_failed", Unit::Count, "1 while the disk accepts no transaction"),
        ("tidings_live_rejected", Unit::Count, "What a live value does not apply now"),
        ("tidings_clock_in_doubt", Unit::Count, "1 while writes are refused because the clock is in doubt"),
    ];
    gauges.into_iter().for_each(|(name, unit, what)| describe_gauge!(name, unit, what));
    let counters = [
        ("tidings_writes_total", Unit::Count, "Accepted local writes; a batch counts as one"),
        ("tidings_writes_refused_total", Unit::Count, "Refused local writes by reason"),
        ("tidings_sent_frames_total", Unit::Count, "Frames sent"),
        ("tidings_sent_bytes_total", Unit::Bytes, "Bytes sent"),
        ("tidings_received_chunks_total", Unit::Count, "Chunks received; a frame is one or several"),
        ("tidings_received_bytes_total", Unit::Bytes, "Bytes received"),
        ("tidings_rows_merged_total", Unit::Count, "Rows of live replication that were new here"),
        ("tidings_repairs_begun_total", Unit::Count, "Repair sessions begun, joining included"),
        ("tidings_repairs_total", Unit::Count, "Repair sessions that ended, by outcome"),
        ("tidings_repair_rows_total", Unit::Count, "Rows of ended repair sessions, both directions"),
        ("tidings_repair_bytes_total", Unit::Bytes, "Bytes of ended repair sessions, both directions"),
        ("tidings_links_made_total", Unit::Count, "Links made"),
        ("tidings_links_lost_total", Unit::Count, "Links that went down"),
        ("tidings_events_total", Unit::Count, "Events of the node and of the membership"),
    ];
    counters.into_iter().for_each(|(name, unit, what)| describe_counter!(name, unit, what));
    let histograms = [
        (
            "tidings_arrival_seconds",
            "How long writes of another node took to arrive; the difference of the clocks is included",
        ),
        ("tidings_durable_wait_seconds", "How long successful waits for the sync of a write took"),
        ("tidings_seen_by_wait_seconds", "How long successful waits for enough nodes to have a write took"),
    ];
    histograms.into_iter().for_each(|(name, what)| describe_histogram!(name, Unit::Seconds, what));
}
