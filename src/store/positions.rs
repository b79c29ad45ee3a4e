//! Up to which revision the log of each peer is merged here. An acknowledgement states it, and a new link goes on from
//! it.
//!
//! Each process start has a new log, so most of these logs will never grow again, and nothing tells which. Positions of
//! at most [`POSITIONS_MAX`] logs are kept: beyond that the one that was raised longest ago is forgotten. It must never
//! be that of a linked peer: its acknowledgements would say 0, and the peer would wait for them.

use std::collections::{BTreeMap, BTreeSet};

use super::{DiskFollower, LocalStore};
use crate::id::LogId;

/// Logs of peers whose position is kept. A peer whose position is not known is repaired with.
pub(crate) const POSITIONS_MAX: usize = 4_096;

/// For each log of a peer, the revision up to which it is merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerPositions {
    by_log: BTreeMap<LogId, PeerPosition>,
    /// How often a position was raised.
    raises: u64,
    /// The logs of linked peers.
    linked: BTreeSet<LogId>,
    /// Logs whose position changed since the last transaction for the disk.
    changed: BTreeSet<LogId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerPosition {
    revision: u64,
    /// [`PeerPositions::raises`] when it was raised last. What a disk has brought counts as older than everything since.
    raised: u64,
}

impl PeerPositions {
    /// What a disk holds.
    pub(crate) fn loaded(positions: BTreeMap<LogId, u64>) -> Self {
        let position = |(log, revision)| (log, PeerPosition { revision, raised: 0 });
        Self { by_log: positions.into_iter().map(position).collect(), ..Self::default() }
    }

    /// The revision up to which a log is merged. 0 if that is not known.
    pub(crate) fn revision(&self, log: LogId) -> u64 {
        self.known(log).unwrap_or(0)
    }

    pub(crate) fn known(&self, log: LogId) -> Option<u64> {
        self.by_log.get(&log).map(|position| position.revision)
    }

    pub(crate) fn logs(&self) -> impl Iterator<Item = LogId> {
        self.by_log.keys().copied()
    }

    #[cfg(any(feature = "__controls", test))]
    pub(crate) fn len(&self) -> usize {
        self.by_log.len()
    }

    /// Everything up to this revision of a log is merged here.
    fn raise(&mut self, log: LogId, revision: u64) {
        self.raises += 1;
        let position = self.by_log.entry(log).or_default();
        position.revision = revision.max(position.revision);
        position.raised = self.raises;
        self.changed.insert(log);
        if self.by_log.len() > POSITIONS_MAX {
            let others =
                self.by_log.iter().filter(|(other, _)| **other != log && !self.linked.contains(other));
            let oldest = others.min_by_key(|(_, position)| position.raised).map(|(other, _)| *other);
            if let Some(other) = oldest {
                self.by_log.remove(&other);
                self.changed.insert(other);
            }
        }
    }

    /// The logs of the peers that are linked from now on.
    pub(crate) fn set_linked(&mut self, logs: impl Iterator<Item = LogId>) {
        self.linked = logs.collect();
    }

    /// Logs whose position changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<LogId> {
        std::mem::take(&mut self.changed)
    }

    /// The same without taking them.
    pub(crate) fn changed(&self) -> &BTreeSet<LogId> {
        &self.changed
    }

    /// The disk did not take these changes.
    pub(crate) fn put_changed_back(&mut self, logs: BTreeSet<LogId>) {
        self.changed.extend(logs);
    }

    /// Forgets all positions.
    pub(crate) fn clear(&mut self) {
        self.by_log.clear();
    }
}

impl LocalStore {
    /// Everything up to this revision of a peer's log is merged here.
    pub(crate) fn raise_position(&mut self, log: LogId, revision: u64) {
        self.peer_positions.raise(log, revision);
        if self.disk == DiskFollower::NoDisk {
            // No transaction will take them.
            self.peer_positions.take_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    #[test]
    fn changed_positions_are_noted_for_a_disk_only() {
        for (disk, expected) in [(DiskFollower::NoDisk, 0), (DiskFollower::At(0), 2 * POSITIONS_MAX)] {
            let mut store = LocalStore::of_run(1);
            store.disk = disk;
            for run in 0..2 * POSITIONS_MAX as u64 {
                store.raise_position(LogId::of(RunId::new(run)), 1);
            }
            assert_eq!(store.peer_positions.len(), POSITIONS_MAX);
            assert_eq!(store.peer_positions.changed().len(), expected);
        }
    }
}
