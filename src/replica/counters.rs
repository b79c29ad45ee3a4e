//! Counters: a share for each run that changed them, and tables of past shares.
//!
//! A share is a row of its own, which only its run writes: the sum of what that run has added. The counter's value is
//! the sum over all runs. A run that has ended leaves its share behind, at about 150 bytes.
//!
//! Compaction moves shares into tables, at 24 bytes each, in two steps. *Folding* writes (run, clock, share) into a
//! table. From then on a run may be known several times, by its share and by tables; what was written at the greatest
//! clock counts, and the others do not. So it does not matter who folds, how many do at the same time, or whether the
//! run lives and goes on counting. *Dropping* deletes the shares that were folded.
//!
//! What must hold:
//! * A share must not be dropped before every member has the table. A node that merges the removal and not the table
//!   counts nothing for the run, and if those that have the table are lost, that is so for ever.
//! * What was put into a table stays in that table. To move it to another one would be such a removal too.
//! * A run adds to the share that it remembers, never to the one that is stored. Another node may have folded and
//!   dropped it, because it did not know that the run lives.

use std::collections::{BTreeMap, BTreeSet};

use super::Replica;
use crate::controls::Control;
use crate::error::WriteError;
use crate::id::RunId;
use crate::store::entry::DotSet;
use crate::store::key::{self, CounterPart};
use crate::time::{Lifetime, Stamp, Time};

/// No share is added to a table that has so many.
const TABLE_SHARES_MAX: usize = 4_096;
/// Shares that one step folds: bounds the work under the lock.
const FOLDED_MAX: usize = 1_024;
const PAST_SHARE_BYTES: usize = 24;
/// The size of the value of a share.
pub(super) const SHARE_BYTES: usize = size_of::<i64>();

/// What a run had added to a counter at a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PastShare {
    run: RunId,
    clock: u64,
    sum: i64,
}

impl PastShare {
    fn of_row(run: RunId, dot_set: &DotSet) -> Option<Self> {
        let dot = dot_set.dots().last()?;
        let sum = i64::from_le_bytes(dot.value().try_into().ok()?);
        Some(Self { run, clock: dot.stamp().clock, sum })
    }

    fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes") };
        let run = RunId::new(u64::from_le_bytes(word(0)));
        Self { run, clock: u64::from_le_bytes(word(8)), sum: i64::from_le_bytes(word(16)) }
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.run.number().to_le_bytes());
        out.extend_from_slice(&self.clock.to_le_bytes());
        out.extend_from_slice(&self.sum.to_le_bytes());
    }
}

/// A table of past shares: for each run what it had added at the greatest clock that is known.
#[derive(Debug, Default)]
struct ShareTable(BTreeMap<RunId, PastShare>);

impl ShareTable {
    fn add(&mut self, share: PastShare) {
        let known = self.0.entry(share.run).or_insert(share);
        *known = share.max(*known);
    }

    /// Concurrent values of one table are joined: all of them count. A peer may have sent any bytes, but a share from
    /// after the table was written cannot be true: it would hide what its run adds from now on.
    fn add_row(&mut self, dot_set: &DotSet) {
        for dot in dot_set.dots() {
            let shares = dot.value().chunks_exact(PAST_SHARE_BYTES).map(PastShare::read);
            shares.filter(|share| share.clock <= dot.stamp().clock).for_each(|share| self.add(share));
        }
    }

    fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAST_SHARE_BYTES * self.0.len());
        self.0.values().for_each(|share| share.write(&mut bytes));
        bytes
    }
}

/// Shares of a counter that are in its tables, and that may be dropped once every member has these tables.
#[derive(Clone, Debug, Default)]
pub struct FoldedShares {
    /// Stored key of each table that was written, with the stamp of the write.
    pub(crate) tables: Vec<(Vec<u8>, Stamp)>,
    /// Stored key of each share, with the stamps that were folded.
    pub(crate) shares: Vec<(Vec<u8>, Vec<Stamp>)>,
}

impl FoldedShares {
    /// The stamp of the last write of the tables. `None`: there was nothing to fold.
    pub fn stamp(&self) -> Option<Stamp> {
        self.tables.last().map(|(_, stamp)| *stamp)
    }
}

impl Replica {
    /// Adds to a counter, or subtracts from it.
    ///
    /// # Errors
    /// If the name is not acceptable, this process's share would overflow, or the disk has failed.
    pub fn counter_add(&mut self, now: Time, counter: &str, by: i64) -> Result<Stamp, WriteError> {
        self.check_writable(now)?;
        key::check_key(counter.as_bytes())?;
        let stored = CounterPart::Share(self.store.run).key(counter);
        let share = self.own_share(&stored).checked_add(by).ok_or(WriteError::CounterOverflow)?;
        self.check_room(&stored, SHARE_BYTES)?;
        let stamp = self.write_put(now, &stored, &share.to_le_bytes(), Lifetime::default());
        self.own_shares.insert(stored, share);
        Ok(stamp)
    }

    /// What this run has added to the counter of this stored share so far.
    pub(super) fn own_share(&self, stored: &[u8]) -> i64 {
        if !self.store.controls.has(Control::ShareReadBack) {
            return self.own_shares.get(stored).copied().unwrap_or(0);
        }
        let row = self.store.dot_set(stored);
        row.and_then(|(dot_set, _)| PastShare::of_row(self.store.run, dot_set)).map_or(0, |past| past.sum)
    }

    /// The value of a counter: the sum over all runs, held within the range of `i64`.
    pub fn counter_value(&self, counter: &str) -> i64 {
        let mut shares = ShareTable::default();
        for (dot_set, _) in self.store.with_prefix(&key::counter_prefix(counter)) {
            match CounterPart::of_key(dot_set.key()) {
                CounterPart::Share(run) => {
                    PastShare::of_row(run, dot_set).into_iter().for_each(|past| shares.add(past));
                }
                CounterPart::Table(_) => shares.add_row(dot_set),
            }
        }
        let sum: i128 = shares.0.values().map(|past| i128::from(past.sum)).sum();
        sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// The first half of a counter's compaction: writes shares of runs that are not known to be alive into the counter's
    /// tables, at most 1,024 of them. The counter's value does not change.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn fold_counter(&mut self, now: Time, counter: &str) -> Result<FoldedShares, WriteError> {
        self.check_writable(now)?;
        key::check_key(counter.as_bytes())?;
        let mut tables: BTreeMap<u16, ShareTable> = BTreeMap::new();
        let mut folded = FoldedShares::default();
        let mut past = Vec::new();
        for (dot_set, _) in self.store.with_prefix(&key::counter_prefix(counter)) {
            match CounterPart::of_key(dot_set.key()) {
                CounterPart::Table(number) => tables.entry(number).or_default().add_row(dot_set),
                CounterPart::Share(run) if past.len() < FOLDED_MAX && !self.may_count(run) => {
                    past.extend(PastShare::of_row(run, dot_set));
                    folded.shares.push((dot_set.key().to_owned(), dot_set.stamps().collect()));
                }
                CounterPart::Share(_) => {}
            }
        }
        let mut changed = BTreeSet::new();
        for share in past {
            let has_run = tables.iter().find(|(_, table)| table.0.contains_key(&share.run));
            let has_room = || tables.iter().find(|(_, table)| table.0.len() < TABLE_SHARES_MAX);
            let number = has_run.or_else(has_room).map(|(number, _)| *number);
            let number = number.unwrap_or(tables.len() as u16);
            tables.entry(number).or_default().add(share);
            changed.insert(number);
        }
        for number in changed {
            let stored = CounterPart::Table(number).key(counter);
            let stamp = self.write_put(now, &stored, &tables[&number].encoded(), Lifetime::default());
            folded.tables.push((stored, stamp));
        }
        Ok(folded)
    }

    /// Whether a run may go on counting, as far as this node knows.
    fn may_count(&self, run: RunId) -> bool {
        run == self.store.run || self.is_living(run) || self.links.values().any(|link| link.run == Some(run))
    }

    /// The second half: deletes the shares that were folded, as far as they did not change since. It must not be called
    /// before every member has the last write of the tables: otherwise shares can be lost. Returns the stamp of each
    /// deletion, `None` for a share that has changed.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn drop_folded(
        &mut self,
        now: Time,
        folded: &FoldedShares,
    ) -> Result<Vec<Option<Stamp>>, WriteError> {
        self.check_writable(now)?;
        let delete = |(stored, stamps): &(Vec<u8>, Vec<Stamp>)| {
            let is_same = self
                .store
                .dot_set(stored)
                .is_some_and(|(dot_set, _)| dot_set.stamps().eq(stamps.iter().copied()));
            is_same.then(|| self.write_delete(now, stored)).flatten()
        };
        Ok(folded.shares.iter().map(delete).collect())
    }
}
