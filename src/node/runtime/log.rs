//! What a node logs of its events: a fixed message, with the values as fields.
//!
//! An operator must act on WARN. ERROR says that a part of the node has ended until the process is restarted.
//!
//! A text that another node chose goes through [`Escaped`].

use std::net::SocketAddr;

use tracing::{debug, error, info, warn};

use crate::election::LeaseEnd;
use crate::membership::MemberEvent;
use crate::node::net::peers::{LinkEnd, NodeEvent};
use crate::replica::{BreakReason, JoinProgress, Readiness, RepairReport, ReplicaEvent};
use crate::text::{Escaped, Span};
#[cfg(feature = "json")]
use crate::typed::LateBatch;

/// Logs a change of a member.
pub(in crate::node) fn log_member(node: &str, event: &MemberEvent) {
    let (member, what) = (event.member(), event.predicate());
    let (name, addr) = (Escaped(&member.name), member.addr);
    match event {
        MemberEvent::Down(_) => warn!(%node, %name, %addr, "member {what}"),
        MemberEvent::Updated(_) => debug!(%node, %name, %addr, "member {what}"),
        _ => info!(%node, %name, %addr, "member {what}"),
    }
}

/// Logs who feeds a node that joins.
pub(in crate::node) fn log_joining(node: &str, progress: &JoinProgress) {
    let donor = Escaped(progress.donor.as_deref().unwrap_or("none"));
    let (entries, entries_expected) = (progress.entries_done, progress.entries_expected);
    info!(%node, %donor, entries, entries_expected, "joining the cluster");
}

/// Logs that a node is ready, or is not any more. That it waited for others in vain is an event.
pub(in crate::node) fn log_readiness(node: &str, readiness: Readiness, progress: &JoinProgress) {
    let (entries, bytes) = (progress.entries_done, progress.bytes_done);
    match readiness {
        Readiness::Joining => warn!(%node, entries, "joining the cluster again"),
        Readiness::Alone => info!(%node, entries, bytes, "ready without having caught up with another node"),
        Readiness::Joined => info!(%node, entries, bytes, "joined the cluster"),
    }
}

/// Logs an event of the node.
pub(in crate::node) fn log_event(node: &str, event: &NodeEvent) {
    match event {
        NodeEvent::Store(event) => log_replica_event(node, event),
        NodeEvent::PeerRefused { addr, by_us: true, refusal } => {
            warn!(%node, peer = %addr, reason = %refusal, "peer refused");
        }
        NodeEvent::PeerRefused { addr, by_us: false, refusal } => {
            warn!(%node, peer = %addr, reason = %refusal, "refused by peer");
        }
        NodeEvent::LinkMade { peer, addr } => info!(%node, peer = %Escaped(peer), %addr, "link made"),
        NodeEvent::LinkEnded { peer, addr, end } => log_link_end(node, peer, *addr, end),
        NodeEvent::RepairEnded { peer, repair } => {
            let RepairReport { is_complete, rows, bytes, took } = repair;
            let (peer, took) = (Escaped(peer), Span(*took));
            debug!(%node, %peer, is_complete, rows, bytes, %took, "repair ended");
        }
        NodeEvent::LeaseWon { name, token } => info!(%node, name = %Escaped(name), %token, "lease won"),
        NodeEvent::LeaseEnded { name, token, end: LeaseEnd::Resigned } => {
            info!(%node, name = %Escaped(name), %token, "lease given up");
        }
        NodeEvent::LeaseEnded { name, token, .. } => {
            warn!(%node, name = %Escaped(name), %token, "lease lost; it could not be renewed in time");
        }
        NodeEvent::DiskFailed { reason, may_pass: true } => {
            warn!(%node, %reason, "disk failed; writes are refused until it works again");
        }
        NodeEvent::DiskFailed { reason, may_pass: false } => {
            error!(%node, %reason, "disk failed; writes are refused until the node is restarted");
        }
        NodeEvent::DiskBack => info!(%node, "disk works again; all changes are synced to it"),
        NodeEvent::DiskDamaged { path, reason } => {
            warn!(%node, path, %reason, "data was damaged and moved aside; it is fetched from the peers");
        }
        #[cfg(feature = "json")]
        NodeEvent::Rejected { live, rejected } => {
            warn!(%node, live = %Escaped(live), reason = %rejected, "value not applied; the last good one stays");
        }
        NodeEvent::Unreachable { target, reason } => {
            warn!(%node, seed = %Escaped(target), %reason, "seed out of reach; it is tried again");
        }
    }
}

/// Logs that a view waits long for the rest of a batch, or shows a part of one.
#[cfg(feature = "json")]
pub(in crate::node) fn log_late_batch(node: &str, prefix: &str, batch: &LateBatch) {
    let LateBatch { writer, waited, is_part_shown } = batch;
    let (prefix, waited) = (Escaped(prefix), Span(*waited));
    if *is_part_shown {
        warn!(%node, %prefix, %writer, %waited, "the rest of a batch has not come; the part that is there is shown");
    } else {
        warn!(%node, %prefix, %writer, %waited, "the rest of a batch has not come yet; what was there before it stays");
    }
}

fn log_link_end(node: &str, peer: &str, addr: SocketAddr, end: &LinkEnd) {
    let peer = Escaped(peer);
    if matches!(end, LinkEnd::Broken(BreakReason::Protocol(_))) {
        warn!(%node, %peer, %addr, reason = %end, "link ended");
    } else {
        info!(%node, %peer, %addr, reason = %end, "link ended");
    }
}

fn log_replica_event(node: &str, event: &ReplicaEvent) {
    match event {
        ReplicaEvent::Refused { peer, key, reason } => {
            let (peer, key) = (Escaped(peer), Escaped(key));
            warn!(%node, %peer, %key, %reason, "entry refused; it will be sent again");
        }
        ReplicaEvent::NameTwice(member) => {
            let (name, addr) = (Escaped(&member.name), member.addr);
            warn!(%node, %name, %addr, "two live nodes have this name; rename one of them");
        }
        ReplicaEvent::AddressTwice(member) => {
            let (name, addr) = (Escaped(&member.name), member.addr);
            warn!(%node, %name, %addr, "two live nodes state this address; one of them cannot be reached there");
        }
        ReplicaEvent::VotersDiffer { member, ours, theirs } => {
            let (name, differences) = (Escaped(&member.name), ours.differences(theirs));
            warn!(%node, %name, %differences, "election settings differ; this member and this node refuse each other's elections until they are made the same");
        }
        ReplicaEvent::VoterSilent => warn!(%node, "{event}"),
        ReplicaEvent::ClaimRefused { peer } => {
            warn!(%node, peer = %Escaped(peer), "peer claims to have merged writes that cannot exist; the claim was not merged and the link ends");
        }
        ReplicaEvent::ClockInDoubt { off } => {
            warn!(%node, off = %Span(*off), "clock is off; writes are refused until it is right or confirmed");
        }
        ReplicaEvent::VotersChanged(_) | ReplicaEvent::SettingsChanged { .. } => info!(%node, "{event}"),
        ReplicaEvent::ReadyAlone { waited } => {
            let waited = Span(*waited);
            warn!(%node, %waited, "no other node could be reached; this one is ready with what its disk holds");
        }
        ReplicaEvent::StoreFilling { bytes, limit } => {
            warn!(%node, bytes, limit, "store is close to its limit, where writes that let it grow are refused");
        }
        ReplicaEvent::StoreHasRoom { bytes, limit } => info!(%node, bytes, limit, "store has room again"),
        ReplicaEvent::ClockTrusted => info!(%node, "clock is trusted again"),
        ReplicaEvent::Disagreement { peer } => {
            warn!(%node, peer = %Escaped(peer), "peer merged the same writes and holds something else; it is repaired");
        }
        ReplicaEvent::Invalid { key, writer, reason, .. } => {
            let (key, writer) = (Escaped(key), Escaped(writer.as_deref().unwrap_or("unknown")));
            warn!(%node, %key, %writer, reason = %Escaped(reason), "a value from another node fails a check of this node; it was merged unchanged");
        }
        ReplicaEvent::Damaged | ReplicaEvent::MembersFull => warn!(%node, "{event}"),
    }
}
