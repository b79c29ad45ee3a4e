//! What a replica reports about itself: status, arrivals and traffic counters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Replica;
use super::link::Link;
use crate::form;
use crate::id::{LinkId, RunId};
use crate::replication::arrived::Arrived;
use crate::store::entry::Revision;

impl Replica {
    /// The name of the member that writes under this origin. That is its run, or after damage another one, which is
    /// known as long as the member is linked.
    pub(crate) fn name_of_origin(&self, origin: RunId) -> Option<String> {
        self.name_of_run(self.run_of_origin(origin))
    }

    /// The run of the member that writes under this origin: usually the origin itself.
    pub(super) fn run_of_origin(&self, origin: RunId) -> RunId {
        if origin == self.store.run {
            return self.store.first_run;
        }
        let writes = |link: &&Link| link.peer.is_some_and(|(_, of_peer)| of_peer == origin);
        let linked = self.links.values().find(writes).and_then(|link| link.run);
        linked.unwrap_or(origin)
    }

    /// Who is at the other end of a link: the member's name, or without members the run that the peer has stated.
    pub(super) fn peer_name(&self, id: LinkId) -> String {
        let Some(link) = self.links.get(id) else { return "unknown".to_owned() };
        let run = link.run.or(link.peer.map(|(_, run)| run));
        let name = run.and_then(|run| self.name_of_run(run).or_else(|| Some(format!("{run:016x}"))));
        name.unwrap_or_else(|| "unknown".to_owned())
    }

    fn name_of_run(&self, run: RunId) -> Option<String> {
        self.members.as_ref()?.of_run(run).map(|member| member.name.clone())
    }

    /// The writes that arrived by tails since the last call, at most
    /// [`ARRIVED_MAX`](crate::replication::arrived::ARRIVED_MAX).
    pub(crate) fn take_arrived(&mut self) -> impl Iterator<Item = Arrived> {
        self.arrived.drain(..)
    }

    /// What this replica holds and has merged, as fingerprints and counts.
    pub fn status(&self) -> Status {
        Status {
            root: self.store.root().sum(),
            vector_hash: self.store.coverage.vector_hash(),
            entries: self.store.len(),
            bytes: self.store.bytes(),
            size_bytes: self.store.size_bytes(),
            size_bytes_max: self.store.store_bytes_max(),
            origins: self.store.coverage.vector().len(),
            extra_contexts: self.store.coverage.extra_count(),
            removals: self.store.log.removals(),
            head: self.head(),
            floor: Revision { log: self.store.log.id, number: self.store.log.floor() },
            durable: self.durable(),
            has_disk_failed: self.has_disk_failed(),
            clock_off: self.wall_clock.is_doubted().then(|| self.wall_clock.off()),
            links: self.links.len(),
            sessions: self.links.values().filter(|link| link.repair.session.is_some()).count(),
            traffic: self.traffic,
            rows_received: self.tail_rows.0,
            rows_new: self.tail_rows.1,
            invalid_values: self.validation.invalid_count(),
        }
    }
}

/// What a replica holds and has merged, as fingerprints and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The digest's root: equal states have equal roots under the same cluster hash key.
    #[serde(with = "form::hash")]
    pub root: u128,
    /// A fingerprint of everything merged here.
    #[serde(with = "form::hash")]
    pub vector_hash: u64,
    /// Entries held, those of sets and counters included.
    pub entries: usize,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// The size of the store as [`Config::store_bytes_max`](crate::Config::store_bytes_max) counts it: `bytes`, and
    /// [`ENTRY_BYTES`](crate::limits::ENTRY_BYTES) for each entry.
    pub size_bytes: u64,
    /// The limit of `size_bytes` for local writes.
    pub size_bytes_max: u64,
    /// Origins in the vector: process starts that have ever written.
    pub origins: usize,
    /// Contexts stored beyond the vector; none when the cluster is at rest.
    pub extra_contexts: usize,
    /// Removals that the change log still holds.
    pub removals: usize,
    /// The change log's head.
    pub head: Revision,
    /// The change log's floor: a watch that resumes here misses no delete, and one that resumes before it starts over.
    pub floor: Revision,
    /// The revision up to which the disk has the change log. `None` without a disk, or before its first transaction.
    pub durable: Option<Revision>,
    /// The disk has failed, or is full, and is not back.
    pub has_disk_failed: bool,
    /// How far the wall clock is off, while it is in doubt: see [`WriteError::Clock`](crate::WriteError::Clock).
    #[serde(default, with = "form::span_option")]
    pub clock_off: Option<Duration>,
    /// Links to peers.
    pub links: usize,
    /// Repair sessions under way.
    pub sessions: usize,
    /// What repair sessions have sent.
    pub traffic: RepairTraffic,
    /// Rows received by the tails of peers.
    pub rows_received: u64,
    /// Those of [`rows_received`](Self::rows_received) that were new here.
    pub rows_new: u64,
    /// Keys that hold a value which a check of this node finds invalid.
    pub invalid_values: usize,
}

/// What this replica has sent in repair sessions and checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RepairTraffic {
    /// Bytes of sent rows.
    pub rows_bytes: u64,
    /// All sent bytes of sessions and checks, the rows included.
    pub bytes: u64,
    /// Frames sent.
    pub frames: u64,
}
