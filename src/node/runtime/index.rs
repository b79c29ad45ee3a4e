//! The read index: the concurrent map that `get` reads without waiting for a lock of a writer.
//!
//! It is a follower of the change log. It is brought up to the head under the lock in which the log changed, so that a
//! writer reads its own write at once, and what is acknowledged to a peer can be read here.

use std::hash::{Hash, Hasher};

use papaya::{Equivalent, Guard, HashSet};

use crate::id::LogId;
use crate::node::runtime::change_counts::{ChangeCounts, ShardSet};
use crate::store::LocalStore;
use crate::store::entry::{Dot, DotSet, Entry, Revision};
use crate::time::Time;

/// Rows that were removed from the map are freed in batches, when no reader can see them any more. The map counts rows,
/// and a batch of large rows could be as large as a node's memory. So a batch is freed early after so many bytes.
const RETIRED_BYTES_MAX: u64 = 128 << 10;

/// One row of the index, found by its key.
#[derive(Debug)]
struct Cell {
    dot_set: DotSet,
    revision: u64,
}

impl Cell {
    /// The wall clock, if it is needed. Most values never expire; then it need not be read.
    fn wall_ms(&self, wall_ms: impl Fn() -> u64) -> u64 {
        let expires = |dot: &Dot| dot.lifetime().expires.is_some();
        if self.dot_set.dots().iter().any(expires) { wall_ms() } else { 0 }
    }
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

/// A stored key in two parts, so that looking up a name needs no copy.
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
pub(in crate::node) struct Index {
    cells: HashSet<Cell, foldhash::fast::RandomState>,
    changes: ChangeCounts,
}

/// The index's position in the change log. It is kept beside the replica, under its lock.
#[derive(Debug, Default)]
pub(in crate::node) struct IndexCursor {
    log: LogId,
    at: u64,
    /// Bytes of keys and values in the store at that position.
    bytes: u64,
    /// Bytes of rows that were removed from the index and may wait to be freed.
    retired: u64,
}

impl Index {
    pub(in crate::node) fn new() -> Self {
        Self {
            cells: HashSet::with_hasher(foldhash::fast::RandomState::default()),
            changes: ChangeCounts::new(),
        }
    }

    /// A number that every change of a register changes. `None`: it may be changing now.
    #[cfg(feature = "json")]
    #[inline]
    pub(in crate::node) fn changes(&self, entry: &Entry) -> Option<u64> {
        self.changes.of(entry.name())
    }

    /// Follows the log to its head.
    pub(in crate::node) fn follow(&self, cursor: &mut IndexCursor, store: &LocalStore, now: Time) {
        if cursor.log == store.log.id && cursor.at == store.log.head() {
            return;
        }
        let changing = if cursor.log == store.log.id {
            let rows = store.log.rows_after(cursor.at);
            ShardSet::of(rows.map(|(_, id)| &store.row(id).dot_set.key()[1..]))
        } else {
            ShardSet::all()
        };
        self.changes.begin(&changing);
        self.follow_changes(cursor, store, now);
        self.changes.end(&changing);
    }

    fn follow_changes(&self, cursor: &mut IndexCursor, store: &LocalStore, now: Time) {
        let guard = self.cells.guard();
        if cursor.log != store.log.id {
            // The replica began a new log after damage: what it has lost must not be read any more.
            self.cells.retain(|cell| store.dot_set(cell.dot_set.key()).is_some(), &guard);
            *cursor = IndexCursor { log: store.log.id, retired: RETIRED_BYTES_MAX, ..IndexCursor::default() };
        }
        let mut come = 0;
        for (revision, id) in store.log.rows_after(cursor.at) {
            let dot_set = &store.row(id).dot_set;
            come += dot_set.bytes();
            let is_hidden = |dot: &Dot| store.is_hidden(now, dot);
            if dot_set.winner(is_hidden).is_some() {
                // A row moves to the end of the log whenever one of its dots is hidden or shown.
                let dot_set = if dot_set.dots().iter().any(is_hidden) {
                    let visible = dot_set.dots().iter().filter(|dot| !is_hidden(dot));
                    DotSet::from_dots(dot_set.key(), visible.cloned().collect())
                } else {
                    dot_set.clone()
                };
                self.cells.insert(Cell { dot_set, revision }, &guard);
            } else {
                let (space, name) = dot_set.key().split_first().expect("stored keys begin with their space");
                self.cells.remove(&StoredKey { space: *space, name }, &guard);
            }
        }
        cursor.at = store.log.head();
        // Bytes that came and did not make the store larger have replaced others.
        cursor.retired += (cursor.bytes + come).saturating_sub(store.bytes());
        cursor.bytes = store.bytes();
        if cursor.retired >= RETIRED_BYTES_MAX {
            guard.flush();
            cursor.retired = 0;
        }
    }

    /// The entry of a register.
    pub(in crate::node) fn register(
        &self,
        log: LogId,
        name: &str,
        wall_ms: impl Fn() -> u64,
    ) -> Option<Entry> {
        let cells = self.cells.pin();
        let cell = cells.get(&StoredKey { space: 0, name: name.as_bytes() })?;
        let wall_ms = cell.wall_ms(wall_ms);
        Entry::new(&cell.dot_set, Revision { log, number: cell.revision }, |dot| dot.has_expired(wall_ms))
    }

    /// Whether a register holds the very write of an entry and nothing else.
    #[cfg(feature = "json")]
    pub(in crate::node) fn is_current(&self, entry: &Entry, wall_ms: impl Fn() -> u64) -> bool {
        let cells = self.cells.pin();
        let cell = cells.get(&StoredKey { space: 0, name: entry.name() });
        cell.is_some_and(|cell| {
            let wall_ms = cell.wall_ms(wall_ms);
            entry.is_only_of(&cell.dot_set, |dot| dot.has_expired(wall_ms))
        })
    }

    /// Whether a stored key has a value.
    pub(in crate::node) fn has(&self, stored: &[u8], wall_ms: impl Fn() -> u64) -> bool {
        let Some((space, name)) = stored.split_first() else { return false };
        let cells = self.cells.pin();
        let cell = cells.get(&StoredKey { space: *space, name });
        cell.is_some_and(|cell| {
            let wall_ms = cell.wall_ms(wall_ms);
            cell.dot_set.winner(|dot| dot.has_expired(wall_ms)).is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::replica::{Replica, Setup};

    /// The number of overwritten or deleted values that are still in memory after each write.
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
        // The control: small values are kept until a batch is full.
        assert!(kept(&[0; 10]).into_iter().max() > Some(10));
    }
}
