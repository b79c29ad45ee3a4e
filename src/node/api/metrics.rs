//! Metrics through the facade of the `metrics` crate (feature `metrics`).
//!
//! Install a recorder before the first node starts. The driver records everything about once a second, while it does
//! not hold the lock, except for times of local writes and waits, which are recorded when these end. Without a recorder the cost is
//! negligible.
//!
//! `docs/metrics.md` lists all metrics with their labels and meanings; a test compares it with this file. Every label has
//! few values: names of nodes and of live values, and names of kinds.

#![expect(clippy::cast_precision_loss, reason = "gauges are floats")]

#[cfg(feature = "json")]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::membership::MemberState;
use crate::node::api::status::NodeStatus;
use crate::node::runtime::meter::{CAMPAIGNS, LANES, LEASE_ENDS, LINK_ENDS, REASONS, REFUSALS, ROW_REFUSALS};
use crate::node::runtime::shared::Shared;
use crate::replica::Readiness;

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

/// Records everything once per [`RECORD_INTERVAL`]. It belongs to the driver.
#[derive(Default)]
pub(in crate::node) struct Recorder {
    next: Duration,
    has_described: bool,
    /// The peers whose lag was recorded last. It is set to 0 when their link is gone.
    peers: BTreeSet<String>,
    /// The live values of which something was recorded as not applied. It is set to 0 when all is applied again, or when
    /// they have ended.
    #[cfg(feature = "json")]
    lives: BTreeSet<String>,
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
        #[cfg(feature = "json")]
        self.record_rejected(&status);
        record_counts(&status, shared);
    }

    #[cfg(feature = "json")]
    fn record_rejected(&mut self, status: &NodeStatus) {
        let gone = std::mem::take(&mut self.lives).into_iter().map(|live| (live, 0));
        let now = status.rejected.iter().map(|(live, rejected)| (live.clone(), rejected.len()));
        let counts: BTreeMap<String, usize> = gone.chain(now).collect();
        for (live, count) in counts {
            let labels = [("node", status.name.clone()), ("live", live.clone())];
            gauge!("tidings_live_rejected", &labels).set(count as f64);
            if count > 0 {
                self.lives.insert(live);
            }
        }
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
            gauge!("tidings_peer_link_sent_bytes", &labels).set(peer.sent_bytes as f64);
            self.peers.insert(peer.name.clone());
        }
        for name in gone {
            let labels = [("node", node.clone()), ("peer", name)];
            for metric in [
                "tidings_peer_lag_changes",
                "tidings_peer_lag_bytes",
                "tidings_peer_lag_seconds",
                "tidings_peer_rtt_seconds",
                "tidings_peer_link_sent_bytes",
            ] {
                gauge!(metric, &labels).set(0.0);
            }
        }
    }
}

/// Records that a node is closed: nothing else of it is recorded from then on.
pub(in crate::node) fn record_closed(node: &str) {
    gauge!("tidings_closed", "node" => node.to_owned()).set(1.0);
    gauge!("tidings_ready", "node" => node.to_owned()).set(0.0);
}

fn record_store(status: &NodeStatus, shared: &Shared) {
    let node = &status.name;
    let set = |metric: &'static str, value: f64| gauge!(metric, "node" => node.clone()).set(value);
    let flag = |metric, is_set| set(metric, f64::from(u8::from(is_set)));
    flag("tidings_busy", status.is_busy);
    flag("tidings_ready", status.readiness.is_ready());
    flag("tidings_alone", status.readiness == Readiness::Alone);
    flag("tidings_closed", status.is_closed);
    let Some(core) = shared.lock_closed() else { return };
    set("tidings_leases_held", core.elections.held() as f64);
    let mut counts = [0_u32; STATES.len()];
    for member in core.replica.members() {
        let at = STATES.iter().position(|(state, _)| *state == member.state);
        counts[at.expect("all states are listed")] += 1;
    }
    drop(core);
    for ((_, state), count) in STATES.iter().zip(counts) {
        gauge!("tidings_members", "node" => node.clone(), "state" => *state).set(count);
    }
    let Some(store) = &status.store else { return };
    set("tidings_entries", store.entries as f64);
    set("tidings_bytes", store.bytes as f64);
    set("tidings_size_bytes", store.size_bytes as f64);
    set("tidings_size_bytes_max", store.size_bytes_max as f64);
    set("tidings_links", store.links as f64);
    set("tidings_repair_sessions", store.sessions as f64);
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
    tell("tidings_links_made_total", read(&meter.links_made));
    let tell_all = |metric, label, names: &[&'static str], counts: &[AtomicU64]| {
        names.iter().zip(counts).for_each(|(name, count)| tell_of(metric, label, name, read(count)));
    };
    tell_all("tidings_links_ended_total", "end", &LINK_ENDS, &meter.links_ended);
    tell_all("tidings_rows_refused_total", "reason", &ROW_REFUSALS, &meter.rows_refused);
    tell_all("tidings_campaigns_total", "outcome", &CAMPAIGNS, &meter.campaigns);
    tell_all("tidings_leases_ended_total", "end", &LEASE_ENDS, &meter.leases_ended);
    for (by, counts) in ["us", "peer"].into_iter().zip(&meter.peers_refused) {
        for (reason, count) in REFUSALS.into_iter().zip(counts) {
            let labels = [("node", node.clone()), ("by", by.to_owned()), ("reason", reason.to_owned())];
            counter!("tidings_peers_refused_total", &labels).absolute(read(count));
        }
    }
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
        let name = name.unwrap_or_else(|| "unknown".to_owned());
        let arrivals = histogram!("tidings_arrival_seconds", "node" => node.clone(), "origin" => name);
        arrivals.record_many(took, times);
    }
}

/// A metric: its name, its unit, and its meaning.
type Described = (&'static str, Unit, &'static str);

const GAUGES: [Described; 24] = [
    ("tidings_entries", Unit::Count, "Entries held, those of sets and counters included"),
    ("tidings_bytes", Unit::Bytes, "Bytes of the keys and values held"),
    ("tidings_size_bytes", Unit::Bytes, "The size of the store as its limit counts it"),
    ("tidings_size_bytes_max", Unit::Bytes, "The size above which writes that let it grow are refused"),
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
    ("tidings_peer_link_sent_bytes", Unit::Bytes, "Sent to a peer since its link was made"),
    ("tidings_origins", Unit::Count, "Process starts that ever wrote"),
    ("tidings_invalid_values", Unit::Count, "Keys whose value a check of this node finds invalid"),
    ("tidings_extra_contexts", Unit::Count, "Contexts kept beyond the vector; 0 in a cluster at rest"),
    ("tidings_removals", Unit::Count, "Removals that the change log remembers"),
    ("tidings_repair_sessions", Unit::Count, "Repair sessions under way"),
    ("tidings_leases_held", Unit::Count, "Leases that this node holds"),
    ("tidings_ready", Unit::Count, "1 once the node is ready"),
    ("tidings_alone", Unit::Count, "1 while the node is ready without having caught up since its start"),
    ("tidings_closed", Unit::Count, "1 once the node is closed"),
    ("tidings_busy", Unit::Count, "1 while writes are refused because the cluster is too far behind"),
    ("tidings_disk_failed", Unit::Count, "1 while the disk accepts no transaction"),
    ("tidings_clock_in_doubt", Unit::Count, "1 while writes are refused because the clock is in doubt"),
    ("tidings_live_rejected", Unit::Count, "What a live value does not apply now"),
];

const COUNTERS: [Described; 18] = [
    ("tidings_writes_total", Unit::Count, "Accepted local writes; a batch counts as one"),
    ("tidings_writes_refused_total", Unit::Count, "Refused local writes by reason"),
    ("tidings_sent_frames_total", Unit::Count, "Frames sent"),
    ("tidings_sent_bytes_total", Unit::Bytes, "Bytes sent"),
    ("tidings_received_chunks_total", Unit::Count, "Chunks received; a frame is one or several"),
    ("tidings_received_bytes_total", Unit::Bytes, "Bytes received"),
    ("tidings_rows_merged_total", Unit::Count, "Rows of live replication that were new here"),
    ("tidings_rows_refused_total", Unit::Count, "Rows of peers that were refused, by reason"),
    ("tidings_repairs_begun_total", Unit::Count, "Repair sessions begun, joining included"),
    ("tidings_repairs_total", Unit::Count, "Repair sessions that ended, by outcome"),
    ("tidings_repair_rows_total", Unit::Count, "Rows of ended repair sessions, both directions"),
    ("tidings_repair_bytes_total", Unit::Bytes, "Bytes of ended repair sessions, both directions"),
    ("tidings_links_made_total", Unit::Count, "Links made"),
    ("tidings_links_ended_total", Unit::Count, "Links that ended, by why"),
    ("tidings_peers_refused_total", Unit::Count, "Nodes that did not become peers, by who refused and why"),
    ("tidings_campaigns_total", Unit::Count, "Campaigns for leases that were decided, by outcome"),
    ("tidings_leases_ended_total", Unit::Count, "Leases of this node that ended, by how"),
    ("tidings_events_total", Unit::Count, "Events of the node and of the membership"),
];

const HISTOGRAMS: [Described; 4] = [
    (
        "tidings_arrival_seconds",
        Unit::Seconds,
        "How long writes of another node took to arrive; the difference of the clocks is included",
    ),
    ("tidings_write_seconds", Unit::Seconds, "How long local writes took, refused ones included"),
    ("tidings_durable_wait_seconds", Unit::Seconds, "How long successful waits for the sync of a write took"),
    ("tidings_seen_by_wait_seconds", Unit::Seconds, "How long successful waits for enough nodes took"),
];

fn describe() {
    GAUGES.into_iter().for_each(|(name, unit, what)| describe_gauge!(name, unit, what));
    COUNTERS.into_iter().for_each(|(name, unit, what)| describe_counter!(name, unit, what));
    HISTOGRAMS.into_iter().for_each(|(name, unit, what)| describe_histogram!(name, unit, what));
}
