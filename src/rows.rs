//! Where the rows lie: a slab that grows without moving, and the order of the keys.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::entry::Held;

const SLAB_ROWS: usize = 4_096;

/// What the store keeps per key.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) held: Held,
    /// Where the key stands in the change log.
    pub(crate) revision: u64,
    /// The revision of the last event of this node's own.
    pub(crate) own: u64,
}

/// Rows by number. Grows by whole pieces, so that no write waits for a copy of everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slab {
    pieces: Vec<Vec<Option<Slot>>>,
    free: Vec<u32>,
}

impl Slab {
    pub(crate) fn insert(&mut self, slot: Slot) -> u32 {
        if let Some(at) = self.free.pop() {
            self.pieces[at as usize / SLAB_ROWS][at as usize % SLAB_ROWS] = Some(slot);
            return at;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == SLAB_ROWS) {
            self.pieces.push(Vec::with_capacity(SLAB_ROWS));
        }
        let piece = self.pieces.last_mut().expect("just made sure");
        piece.push(Some(slot));
        let at = (self.pieces.len() - 1) * SLAB_ROWS + self.pieces.last().map_or(0, Vec::len) - 1;
        u32::try_from(at).expect("fewer than four thousand million keys")
    }

    pub(crate) fn remove(&mut self, at: u32) {
        self.pieces[at as usize / SLAB_ROWS][at as usize % SLAB_ROWS] = None;
        self.free.push(at);
    }

    pub(crate) fn at(&self, at: u32) -> &Slot {
        self.pieces[at as usize / SLAB_ROWS][at as usize % SLAB_ROWS].as_ref().expect("the slot is in use")
    }

    pub(crate) fn at_mut(&mut self, at: u32) -> &mut Slot {
        self.pieces[at as usize / SLAB_ROWS][at as usize % SLAB_ROWS].as_mut().expect("the slot is in use")
    }
}

const ORDER_ROWS: usize = 128;

/// The keys that hold something, in order: a B-tree of two levels whose leaves are plain slot numbers.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    leaves: BTreeMap<Box<[u8]>, Vec<u32>>,
    rows: usize,
}

impl Order {
    pub(crate) fn new() -> Self {
        Self { leaves: BTreeMap::from([(Box::default(), Vec::new())]), rows: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn insert(&mut self, key: &[u8], slot: u32, slab: &Slab) {
        let leaf = self.leaf_mut(key);
        let at = leaf.partition_point(|other| slab.at(*other).held.key() < key);
        leaf.insert(at, slot);
        if leaf.len() > ORDER_ROWS {
            // Keys often come in order; then the old leaf stays nearly full and the new one begins small.
            let keep = if at == ORDER_ROWS { ORDER_ROWS - 8 } else { ORDER_ROWS / 2 };
            let mut rest = Vec::with_capacity(ORDER_ROWS + 1);
            rest.extend(leaf.drain(keep..));
            if keep == ORDER_ROWS / 2 {
                leaf.shrink_to(ORDER_ROWS * 3 / 4);
                rest.shrink_to(ORDER_ROWS * 3 / 4);
            }
            let first = slab.at(rest[0]).held.key().into();
            self.leaves.insert(first, rest);
        }
        self.rows += 1;
    }

    pub(crate) fn remove(&mut self, key: &[u8], slab: &Slab) {
        let leaf = self.leaf_mut(key);
        let at = leaf.partition_point(|other| slab.at(*other).held.key() < key);
        leaf.remove(at);
        if leaf.is_empty() {
            let range = (Bound::Unbounded, Bound::Included(key));
            let first = self.leaves.range::<[u8], _>(range).next_back().map(|(first, _)| first.clone());
            if let Some(first) = first.filter(|first| !first.is_empty()) {
                self.leaves.remove(&first);
            }
        }
        self.rows -= 1;
    }

    /// The slots of all keys from `key` on, in order.
    pub(crate) fn from<'a>(&'a self, key: &'a [u8], slab: &'a Slab) -> impl Iterator<Item = u32> + 'a {
        let range = (Bound::Unbounded, Bound::Included(key));
        let (_, leaf) = self.leaves.range::<[u8], _>(range).next_back().expect("there is a first leaf");
        let at = leaf.partition_point(|other| slab.at(*other).held.key() < key);
        let later = self.leaves.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded));
        leaf[at..].iter().copied().chain(later.flat_map(|(_, leaf)| leaf.iter().copied()))
    }

    fn leaf_mut(&mut self, key: &[u8]) -> &mut Vec<u32> {
        let range = (Bound::Unbounded, Bound::Included(key));
        self.leaves.range_mut::<[u8], _>(range).next_back().expect("there is a first leaf").1
    }
}
