//! The concurrent index that `get` reads: it waits for nobody.
//!
//! It is one more follower of the change log, brought up to date inside the critical section of every write.

use std::hash::{Hash, Hasher};

use papaya::{Equivalent, Guard, HashSet};

use crate::store::Store;
use crate::store::entry::{DotSet, Entry, Revision};
use crate::time::Time;

/// What readers may still look at is freed later, in batches of so many rows that they could be all of a node's memory.
/// So the rest of a batch is freed after so many bytes.
const RETIRED_BYTES_MAX: u64 = 128 << 10;

/// One row, found by its key.
#[derive(Debug)]
struct Cell {
    dot_set: DotSet,
    revision: u64,
}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (space, name) = self.dot_set.key().split_first().expect("stored keys begin with their space");
        StoredKey { space: *space, name }.hash(state);
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        self.dot_set.key() == other.dot_set.key()
    }
}

impl Eq for Cell {}

/// A stored key in two pieces, so that looking up a name copies nothing.
#[derive(Clone, Copy)]
struct StoredKey<'a> {
    space: u8,
    name: &'a [u8],
}

impl Hash for StoredKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name);
        state.write_u8(self.space);
    }
}

impl Equivalent<Cell> for StoredKey<'_> {
    fn equivalent(&self, cell: &Cell) -> bool {
        let key = cell.dot_set.key();
        key[0] == self.space && key[1..] == *self.name
    }
}

#[derive(Debug)]
pub(super) struct Index {
    cells: HashSet<Cell, foldhash::fast::RandomState>,
}

/// Up to where the index has followed. Kept with the replica, under its lock.
#[derive(Debug, Default)]
pub(super) struct IndexCursor {
    log: u64,
    at: u64,
    /// Of keys and values in the store, at that time.
    bytes: u64,
    /// Of rows that were taken out of the index, and may wait for being freed.
    retired: u64,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { cells: HashSet::with_hasher(foldhash::fast::RandomState::default()) }
    }

    /// Follows the log to its head.
    pub(super) fn follow(&self, cursor: &mut IndexCursor, store: &Store, now: Time) {
        let guard = self.cells.guard();
        if cursor.log != store.log.id {
            // The replica began anew, after damage: what it lost is not to be read any more.
            self.cells.retain(|cell| store.dot_set(cell.dot_set.key()).is_some(), &guard);
            *cursor = IndexCursor { log: store.log.id, retired: RETIRED_BYTES_MAX, ..IndexCursor::default() };
        }
        let mut come = 0;
        for (revision, slot) in store.log.rows_after(cursor.at) {
            let dot_set = &store.slot(slot).dot_set;
            come += dot_set.bytes();
            if dot_set.winner(now.wall_ms()).is_some() {
                self.cells.insert(Cell { dot_set: dot_set.clone(), revision }, &guard);
            } else {
                let (space, name) = dot_set.key().split_first().expect("stored keys begin with their space");
                self.cells.remove(&StoredKey { space: *space, name }, &guard);
            }
        }
        cursor.at = store.log.head();
        // What came and is not more than before has taken the place of something.
        cursor.retired += (cursor.bytes + come).saturating_sub(store.bytes());
        cursor.bytes = store.bytes();
        if cursor.retired >= RETIRED_BYTES_MAX {
            guard.flush();
            cursor.retired = 0;
        }
    }

    /// The entry of a register.
    pub(super) fn register(&self, log: u64, name: &str, wall_ms: impl Fn() -> u64) -> Option<Entry> {
        let cells = self.cells.pin();
        let cell = cells.get(&StoredKey { space: 0, name: name.as_bytes() })?;
        // Most values never expire; then nobody needs to know the time.
        let wall_ms = if cell.dot_set.dots().iter().any(|dot| dot.expires() != 0) { wall_ms() } else { 0 };
        Entry::new(&cell.dot_set, Revision { log, number: cell.revision }, wall_ms)
    }

    /// Whether a stored key holds something.
    pub(super) fn has(&self, stored: &[u8]) -> bool {
        let Some((space, name)) = stored.split_first() else { return false };
        self.cells.pin().contains(&StoredKey { space: *space, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::replica::{Replica, Setup};

    /// How many of the values that were overwritten or deleted are still in memory after each write.
    fn kept(value: &[u8]) -> Vec<usize> {
        let mut replica = Replica::new(Setup::new(Config::lan(), 1));
        let (index, mut cursor, now) = (Index::new(), IndexCursor::default(), Time::default());
        let mut old: Vec<DotSet> = Vec::new();
        let kept = (0..100).map(|i| {
            old.extend(replica.store.dot_set(b"\0key").map(|(dot_set, _)| dot_set.clone()));
            if i % 10 == 9 {
                replica.delete(now, "key").unwrap();
            } else {
                replica.put(now, "key", value).unwrap();
            }
            index.follow(&mut cursor, &replica.store, now);
            old.iter().filter(|dot_set| dot_set.owners() > 1).count()
        });
        kept.collect()
    }

    #[test]
    fn unreachable_large_values_are_freed_at_once() {
        assert_eq!(kept(&vec![0; 1 << 20]), [0; 100]);
        // The control: of small values a batch is kept.
        assert!(kept(&[0; 10]).into_iter().max() > Some(10));
    }
}
