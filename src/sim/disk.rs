//! A simulated disk: an engine with a journal, on a device that keeps only what was synced. In a crash it loses, tears
//! and reorders everything else. It can also fail to sync, or be full.

use std::collections::{BTreeMap, VecDeque};

use rand_core::Rng;

use super::{Sim, SimEvent, SimFault, World};
use crate::controls::Control;
use crate::election::VoterMemo;
use crate::replica::saved::{self, DiskChange, Saved, SavedError};
use crate::replica::{Input, Persist, VOTER_MEMO};
use crate::store::coverage::Clocks;

/// The number of transactions that are kept apart, so that older states can be restored.
const RECORDS_MAX: usize = 64;

/// A fault of a node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// Nothing more can be written. When the fault ends, the node's disk is back.
    Full,
    /// Syncing fails, and what was written is unknown. The node runs without its disk until it is restarted.
    SyncFails,
}

/// The disk of one node.
#[derive(Debug, Default)]
pub(super) struct SimDisk {
    /// The state before the oldest transaction that is kept apart.
    last_transaction: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The journal: one write per transaction.
    records: VecDeque<Vec<u8>>,
    /// How many of them are synced, so that no crash changes them.
    synced: usize,
    sequence: u64,
    staged: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    fault: Option<DiskFault>,
    has_failed: bool,
    /// A transaction was written and is waiting for its sync.
    is_pending: bool,
    /// What the latest transaction claims, and what was acknowledged as durable.
    claimed: Clocks,
    acknowledged_durable: Clocks,
    takes_torn: bool,
}

impl SimDisk {
    fn stage(&mut self, part: &Persist) {
        if part.begins() {
            self.staged.clear();
            if part.is_whole() {
                self.staged = self.read().into_keys().map(|key| (key, None)).collect();
            }
        }
        self.staged.extend(part.changes());
    }

    fn write(&mut self) {
        let changes: Vec<DiskChange> = std::mem::take(&mut self.staged).into_iter().collect();
        self.sequence += 1;
        self.records.push_back(saved::seal_changes(self.sequence, &changes));
    }

    fn sync(&mut self) {
        self.synced = self.records.len();
        while self.records.len() > RECORDS_MAX {
            let oldest = self.records.pop_front().expect("there are many");
            let (_, changes) = saved::unseal_changes(&oldest).expect("it was synced");
            apply(&mut self.last_transaction, changes);
            self.synced -= 1;
        }
    }

    /// Loses, tears or keeps each write that was not synced, independently of the others.
    fn crash(&mut self, random: &mut impl Rng) {
        for record in self.records.range_mut(self.synced..) {
            // Any pages of a write may be on the device, in whatever order they were written.
            let at = random.next_u32() as usize % record.len();
            let end = at + random.next_u32() as usize % (record.len() - at);
            match random.next_u32() % 5 {
                0 => record.fill(0),
                1 => record[at..].fill(0),
                2 => record[..at].fill(0),
                3 => record[at..end].fill(0),
                _ => {}
            }
        }
    }

    /// Opens the disk again, as an engine does: the journal ends before the first record that is damaged or out of
    /// sequence.
    fn open(&mut self) -> Result<Saved, SavedError> {
        let last = |records: &VecDeque<Vec<u8>>| records.front().and_then(|r| saved::unseal_changes(r));
        let mut expected = last(&self.records).map(|(sequence, _)| sequence);
        let mut sound = 0;
        for record in &self.records {
            let Some((sequence, _)) = saved::unseal_changes(record) else { break };
            if Some(sequence) != expected {
                break;
            }
            expected = Some(sequence + 1);
            sound += 1;
        }
        if !self.takes_torn {
            self.records.truncate(sound);
        }
        self.sequence = expected.map_or(self.sequence, |expected| expected - 1);
        self.synced = self.records.len();
        self.staged.clear();
        (self.has_failed, self.is_pending) = (false, false);
        Saved::read(self.read().into_iter().map(Ok::<_, SavedError>))
    }

    fn read(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut map = self.last_transaction.clone();
        for record in &self.records {
            match saved::unseal_changes(record) {
                Some((_, changes)) => apply(&mut map, changes),
                #[cfg(feature = "__controls")]
                None if self.takes_torn => apply(&mut map, saved::torn_changes(record)),
                None => {}
            }
        }
        map
    }
}

fn apply(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: Vec<DiskChange>) {
    for (key, value) in changes {
        match value {
            Some(value) => _ = map.insert(key, value),
            None => _ = map.remove(&key),
        }
    }
}

/// The state of its disk with which a crashed node comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disk {
    /// Nothing.
    Blank,
    /// What the disk kept in the crash.
    Latest,
    /// What the disk held this many transactions earlier: a restored backup.
    Older(usize),
}

impl Sim {
    /// Gives a node's disk a fault, or ends its fault.
    pub fn disk_fault(&mut self, i: usize, fault: Option<DiskFault>) {
        let world = &mut *self.world();
        let disk = &mut world.nodes[i].disk;
        let is_mended = disk.fault == Some(DiskFault::Full) && fault.is_none() && disk.has_failed;
        disk.fault = fault;
        if is_mended && world.is_up(i) {
            world.synced(i);
            if let Err(what) = world.nodes[i].disk.open() {
                world.fail(SimFault::DiskUnreadable(format!(
                    "node {i}: its disk cannot be opened again: {what}"
                )));
            }
            world.input(i, Input::DiskBack);
        }
    }

    /// Puts in the place of what a crashed node has promised as a voter something that only a later program can read.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn make_voter_memo_unreadable(&mut self, i: usize) {
        let disk = &mut self.world().nodes[i].disk;
        _ = disk.open();
        disk.staged.extend([saved::encode_memo(VOTER_MEMO, Some(b"later"))]);
        disk.write();
        disk.sync();
    }
}

impl World {
    /// Writes what a node has for its disk. The sync comes later.
    pub(super) fn write_disk(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let (Some(replica), disk) = (&mut node.replica, &mut node.disk) else { return };
        while let Some(part) = replica.persist() {
            #[cfg(feature = "__controls")]
            if part.ends() && self.controls.has(Control::SeenAhead) {
                let mut ahead = part.clone();
                ahead.forget_rows();
                disk.stage(&ahead);
                disk.write();
            }
            disk.stage(&part);
            if !part.ends() {
                continue;
            }
            disk.claimed = replica.store.coverage.vector_with_withheld();
            disk.is_pending = true;
            disk.write();
            if disk.fault == Some(DiskFault::Full) {
                // Only as much as there was room for.
                disk.has_failed = true;
                disk.records.back_mut().expect("just written").truncate(20);
            }
            let starts = self.nodes[i].starts;
            if self.controls.has(Control::EarlyPromise) {
                self.nodes[i].disk.acknowledged_durable = self.nodes[i].disk.claimed.clone();
            }
            let later = self.jitter(std::time::Duration::from_millis(4));
            self.schedule(later, SimEvent::Persisted(i, starts));
            return;
        }
    }

    /// What a node's voter keeps, or what the disk of a crashed one kept of it.
    pub(super) fn voter_memo(&self, i: usize) -> Option<VoterMemo> {
        if let Some(replica) = &self.nodes[i].replica {
            return replica.voter_memo();
        }
        let saved = Saved::read(self.nodes[i].disk.read().into_iter().map(Ok::<_, SavedError>)).ok()?;
        VoterMemo::read(saved.memos.get(VOTER_MEMO).map(Vec::as_slice)).ok()
    }

    /// The sync of a node's disk has returned.
    pub(super) fn synced(&mut self, i: usize) {
        let disk = &mut self.nodes[i].disk;
        if !std::mem::take(&mut disk.is_pending) {
            return;
        }
        if disk.fault.is_none() && !disk.has_failed {
            disk.sync();
            disk.acknowledged_durable = disk.claimed.clone();
            return self.input(i, Input::Persisted);
        }
        disk.has_failed = true;
        self.input(i, Input::PersistFailed);
    }

    pub(super) fn crash_disk(&mut self, i: usize) {
        self.nodes[i].disk.crash(&mut self.random);
    }

    /// Opens a node's disk in one of its states. `None` if the node has no disk.
    pub(super) fn open_disk(&mut self, i: usize, which: Disk) -> Option<Saved> {
        if !self.nodes[i].has_disk {
            return None;
        }
        let takes_torn = self.controls.has(Control::TornTaken);
        let disk = &mut self.nodes[i].disk;
        disk.takes_torn = takes_torn;
        match which {
            Disk::Blank => *disk = SimDisk { fault: disk.fault, ..SimDisk::default() },
            Disk::Latest => {}
            Disk::Older(by) => {
                disk.acknowledged_durable = Clocks::default();
                _ = disk.open();
                disk.records.truncate(disk.records.len().saturating_sub(by).max(1));
            }
        }
        match disk.open() {
            Ok(saved) => Some(saved),
            Err(what) => {
                self.fail(SimFault::DiskUnreadable(format!("node {i}: its disk cannot be opened: {what}")))
            }
        }
    }

    /// Fails if something that was acknowledged as durable is missing after a restart.
    pub(super) fn check_durability(&mut self, i: usize) {
        let node = &self.nodes[i];
        let Some(replica) = &node.replica else { return };
        let promised = &node.disk.acknowledged_durable;
        if self.checks && !saved_covers(&replica.store.coverage.vector_with_withheld(), promised) {
            let what = format!("node {i}: its disk lost what was acknowledged as durable");
            self.fail(SimFault::DurableLost(what));
        }
    }

    /// After damage the node claims less, and so does its disk: nothing counts as acknowledged as durable any more.
    pub(super) fn void_promises(&mut self, i: usize) {
        self.nodes[i].disk.acknowledged_durable = Clocks::default();
        self.nodes[i].disk.claimed = Clocks::default();
    }
}

fn saved_covers(vector: &Clocks, promised: &Clocks) -> bool {
    promised.is_covered_by(vector)
}
