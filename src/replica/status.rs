//! What a replica tells about itself.

use std::time::Duration;

use super::Replica;
use super::link::Link;
use crate::replication::arrived::Arrived;
use crate::store::entry::Revision;

impl Replica {
    /// The name of the linked member that writes under this origin.
    pub(crate) fn name_of_origin(&self, origin: u64) -> Option<String> {
        let writes = |link: &&Link| link.peer.is_some_and(|(_, of_peer)| of_peer == origin);
        let run = self.links.values().find(writes)?.run;
        self.members().find(|member| Some(member.run) == run).map(|member| member.name.clone())
    }

    /// What arrived by tails since the last call: at most [`ARRIVED_MAX`](crate::replication::arrived::ARRIVED_MAX) writes.
    pub(crate) fn take_arrived(&mut self) -> Vec<Arrived> {
        std::mem::take(&mut self.arrived)
    }

    /// What this replica holds and has seen, as fingerprints and counts.
    pub fn status(&self) -> Status {
        Status {
            root: self.store.root().sum(),
            seen: self.store.coverage.vector_hash(),
            entries: self.store.len(),
            bytes: self.store.bytes(),
            origins: self.store.coverage.vector().dots.len(),
            extra_contexts: self.store.coverage.extra_count(),
            removals: self.store.log.removals(),
            head: self.head(),
            durable: self.durable(),
            has_disk_failed: self.has_disk_failed(),
            clock_off: self.wall_clock.is_doubted().then(|| self.wall_clock.off()),
            links: self.links.len(),
            sessions: self.links.values().filter(|link| link.repair.session.is_some()).count(),
            traffic: self.traffic,
            rows_received: self.tail_rows.0,
            rows_new: self.tail_rows.1,
        }
    }
}

/// What a replica holds and has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The digest's root: equal states have equal roots under the same cluster hash key.
    pub root: u128,
    /// A fingerprint of everything merged here.
    pub seen: u64,
    /// Entries held, those of sets and counters included.
    pub entries: usize,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Process starts that ever wrote.
    pub origins: usize,
    /// Contexts kept beyond the vector; none when all is quiet.
    pub extra_contexts: usize,
    /// Removals that the change log still remembers.
    pub removals: usize,
    /// The change log's head.
    pub head: Revision,
    /// Up to where the disk has the change log, if there is a disk and it has anything.
    pub durable: Option<Revision>,
    /// The disk has failed, or is full, and is not back.
    pub has_disk_failed: bool,
    /// How far the wall clock is off, while it is in doubt: see [`WriteError::Clock`](crate::WriteError::Clock).
    pub clock_off: Option<Duration>,
    /// Links to peers.
    pub links: usize,
    /// Repair sessions under way.
    pub sessions: usize,
    /// What repair sessions have moved.
    pub traffic: RepairTraffic,
    /// Rows that peers sent as they were written, and those of them that were news here.
    pub rows_received: u64,
    /// See [`rows_received`](Self::rows_received).
    pub rows_new: u64,
}

/// What repair sessions moved, both directions, as counted at this end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairTraffic {
    /// Bytes of sent rows.
    pub rows_bytes: u64,
    /// All sent bytes of sessions and checks, the rows included.
    pub bytes: u64,
    /// Frames sent.
    pub frames: u64,
}
