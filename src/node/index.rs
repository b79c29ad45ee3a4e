//! The concurrent index that `get` reads: it waits for nobody.
//!
//! It is one more follower of the change log, brought up to date inside the critical section of every write.

use std::hash::{Hash, Hasher};

use papaya::{Equivalent, HashSet};

use crate::entry::{Entry, Held, Revision};
use crate::store::Store;
use crate::time::Time;

/// One row, found by its key.
#[derive(Debug)]
struct Cell {
    held: Held,
    revision: u64,
}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (space, name) = self.held.key().split_first().expect("stored keys begin with their space");
        StoredKey { space: *space, name }.hash(state);
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        self.held.key() == other.held.key()
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
        let key = cell.held.key();
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
}

impl Index {
    pub(super) fn new() -> Self {
        Self { cells: HashSet::with_hasher(foldhash::fast::RandomState::default()) }
    }

    /// Follows the log to its head.
    pub(super) fn follow(&self, cursor: &mut IndexCursor, store: &Store, now: Time) {
        let cells = self.cells.pin();
        if cursor.log != store.log.id {
            // The replica began anew, after damage: what it lost is not to be read any more.
            cells.retain(|cell| store.held(cell.held.key()).is_some());
            *cursor = IndexCursor { log: store.log.id, at: 0 };
        }
        for (revision, slot) in store.log.after(cursor.at) {
            let held = &store.slot(slot).held;
            if held.winner(now.wall_ms()).is_some() {
                cells.insert(Cell { held: held.clone(), revision });
            } else {
                let (space, name) = held.key().split_first().expect("stored keys begin with their space");
                cells.remove(&StoredKey { space: *space, name });
            }
        }
        cursor.at = store.log.head();
    }

    /// The entry of a register.
    pub(super) fn register(&self, log: u64, name: &str, wall_ms: impl Fn() -> u64) -> Option<Entry> {
        let cells = self.cells.pin();
        let cell = cells.get(&StoredKey { space: 0, name: name.as_bytes() })?;
        // Most values never expire; then nobody needs to know the time.
        let wall_ms = if cell.held.dots().iter().any(|dot| dot.expires() != 0) { wall_ms() } else { 0 };
        Entry::new(&cell.held, Revision { log, number: cell.revision }, wall_ms)
    }

    /// Whether a stored key holds something.
    pub(super) fn has(&self, stored: &[u8]) -> bool {
        let Some((space, name)) = stored.split_first() else { return false };
        self.cells.pin().contains(&StoredKey { space: *space, name })
    }
}
