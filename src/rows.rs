//! Where the rows lie: a slab that grows without moving, and the order of the keys.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::digest::HashKey;
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

impl Slot {
    /// The row's share in the digest.
    pub(crate) fn hash(&self, hash_key: HashKey) -> u128 {
        self.held.hash(hash_key, hash_key.place(self.held.key()))
    }
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

/// Rows in a leaf of the order, at most.
const LEAF_ROWS: usize = 128;

/// The keys that hold something, in order: a B-tree of two levels. Beside each slot its leaf keeps the four bytes
/// of the key that follow what all keys of the leaf begin with, so that a search seldom has to look a key up.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    leaves: BTreeMap<Box<[u8]>, Leaf>,
    rows: usize,
}

#[derive(Clone, Debug, Default)]
struct Leaf {
    /// How many bytes all keys of the leaf begin with, as its own first key in the tree does.
    shared: usize,
    rows: Vec<Ordered>,
}

#[derive(Clone, Copy, Debug)]
struct Ordered {
    text: u32,
    slot: u32,
}

fn key_of(slab: &Slab, row: Ordered) -> &[u8] {
    slab.at(row.slot).held.key()
}

/// Four bytes of a key as a number that is ordered like them. What is shorter is filled up with zeros.
fn text_of(key: &[u8], from: usize) -> u32 {
    let rest = key.get(from..).unwrap_or_default();
    if let Some(text) = rest.first_chunk() {
        return u32::from_be_bytes(*text);
    }
    let mut text = [0; 4];
    text[..rest.len()].copy_from_slice(rest);
    u32::from_be_bytes(text)
}

fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Leaf {
    /// A leaf that stands under `first` in the tree. No key of it is less.
    fn of(first: &[u8], rows: Vec<Ordered>, slab: &Slab) -> Self {
        let mut leaf = Self { shared: first.len(), rows };
        if let Some(last) = leaf.rows.last() {
            leaf.share(shared_bytes(first, key_of(slab, *last)), slab);
        }
        leaf
    }

    fn share(&mut self, shared: usize, slab: &Slab) {
        self.shared = shared;
        self.rows.iter_mut().for_each(|row| row.text = text_of(key_of(slab, *row), shared));
    }

    /// Where a key is or belongs.
    fn position(&self, first: &[u8], key: &[u8], slab: &Slab) -> usize {
        if shared_bytes(first, key) < self.shared {
            return self.rows.len();
        }
        let text = text_of(key, self.shared);
        self.rows.partition_point(|row| match row.text.cmp(&text) {
            std::cmp::Ordering::Equal => key_of(slab, *row) < key,
            unequal => unequal.is_lt(),
        })
    }

    fn insert(&mut self, at: usize, first: &[u8], key: &[u8], slot: u32, slab: &Slab) {
        let shared = shared_bytes(first, key);
        if shared < self.shared {
            self.share(shared, slab);
        }
        self.rows.insert(at, Ordered { text: text_of(key, self.shared), slot });
    }
}

impl Order {
    pub(crate) fn new() -> Self {
        Self { leaves: BTreeMap::from([(Box::default(), Leaf::default())]), rows: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Adds a slot that holds something now.
    pub(crate) fn insert(&mut self, slot: u32, slab: &Slab) {
        let key = slab.at(slot).held.key();
        let (first, leaf) = self.leaf_mut(key);
        let at = leaf.position(first, key, slab);
        leaf.insert(at, first, key, slot, slab);
        if leaf.rows.len() > LEAF_ROWS {
            // Keys often come in order; then the old leaf stays nearly full and the new one begins small.
            let keep = if at == LEAF_ROWS { LEAF_ROWS - 8 } else { LEAF_ROWS / 2 };
            let mut rest = Vec::with_capacity(LEAF_ROWS * 3 / 4);
            rest.extend(leaf.rows.drain(keep..));
            if keep == LEAF_ROWS / 2 {
                leaf.rows.shrink_to(LEAF_ROWS * 3 / 4);
            }
            *leaf = Leaf::of(first, std::mem::take(&mut leaf.rows), slab);
            let first = key_of(slab, rest[0]);
            self.leaves.insert(first.into(), Leaf::of(first, rest, slab));
        }
        self.rows += 1;
    }

    pub(crate) fn remove(&mut self, key: &[u8], slab: &Slab) {
        let (first, leaf) = self.leaf_mut(key);
        let at = leaf.position(first, key, slab);
        leaf.rows.remove(at);
        if leaf.rows.is_empty() {
            let first: Box<[u8]> = first.into();
            if !first.is_empty() {
                self.leaves.remove(&first);
            }
        }
        self.rows -= 1;
    }

    /// The slots of all keys from `key` on, in order.
    pub(crate) fn from<'a>(&'a self, key: &'a [u8], slab: &'a Slab) -> impl Iterator<Item = u32> + 'a {
        let (first, leaf) =
            self.leaves.range::<[u8], _>(up_to(key)).next_back().expect("there is a first leaf");
        let later = self.leaves.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded));
        let here = leaf.rows[leaf.position(first, key, slab)..].iter();
        here.chain(later.flat_map(|(_, leaf)| leaf.rows.iter())).map(|row| row.slot)
    }

    fn leaf_mut(&mut self, key: &[u8]) -> (&[u8], &mut Leaf) {
        let last = self.leaves.range_mut::<[u8], _>(up_to(key)).next_back();
        let (first, leaf) = last.expect("there is a first leaf");
        (first, leaf)
    }
}

fn up_to(key: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, Bound::Included(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Record;

    #[test]
    fn keys_stay_in_order_whatever_they_begin_with() {
        let (mut slab, mut order) = (Slab::default(), Order::new());
        let mut plain: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let mut random = 1_u64;
        for step in 0..30_000_u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (random >> 40) % 4_000;
            let key = match number % 4 {
                0 => format!("{number}"),
                1 => format!("a/long/way/that/many/share/{number:06}"),
                2 => format!("a/long/way\0\0{}", "\0".repeat(number as usize % 5)),
                _ => "a/long/way/".repeat(number as usize % 30),
            }
            .into_bytes();
            if let Some(slot) = plain.remove(&key) {
                order.remove(&key, &slab);
                slab.remove(slot);
            } else {
                let held = crate::entry::Held::Nothing(Record::bare(&key));
                let slot = slab.insert(Slot { held, revision: 0, own: 0 });
                order.insert(slot, &slab);
                plain.insert(key.clone(), slot);
            }
            assert_eq!(order.len(), plain.len());
            if step % 1_999 == 0 {
                let ours: Vec<u32> = order.from(&key, &slab).collect();
                assert_eq!(ours, plain.range(key..).map(|(_, slot)| *slot).collect::<Vec<_>>());
            }
        }
    }
}
