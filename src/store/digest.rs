//! The Merkle digest: a tree of sums over keyed hashes, which is the hash index at the same time.
//!
//! A row's place is a keyed hash of its key. A tree node at depth `d` stands for all places with the same `d` low bits
//! and holds the count and the wrapping 128-bit sum of the hashes of their rows. So a node depends on the set of rows
//! alone, never on history, and an update costs one subtraction and one addition per level. The leaves are the buckets
//! of a linear hash table, of about 16 rows each: it grows and shrinks by one bucket at a time, so that no write ever
//! pays for rebuilding the whole.
//!
//! The sums are kept apart from the entries that they sum up. That makes them the integrity check: after an entry was
//! lost, or changed by anything but a write, its leaf does not add up. So sums must only be changed by the hashes of
//! what a write replaces. They must never be recomputed from the rows, except for a new hash key after a check of all
//! leaves.
//!
//! The tree knows rows only by their row ids; the store passes closures that look at the rows.

use std::num::NonZeroU64;

use siphasher::{sip, sip128};

use crate::id::{RowId, RunId};
use crate::time::{Lifetime, Stamp};

/// Levels of the tree take this many bits of the place each.
pub(crate) const FAN_BITS: u32 = 4;
pub(crate) const FAN: usize = 1 << FAN_BITS;

/// No range is divided further than this: in practice no two keys share so many bits of their place.
pub(crate) const DEPTH_MAX: u32 = 60;

/// Mean rows per leaf above which the table grows.
const LEAF_ROWS_GROW: usize = 16;
/// Mean rows per leaf below which the table shrinks.
const LEAF_ROWS_SHRINK: usize = 6;
/// Rows of a leaf that are kept inline, where a search finds them without another memory access. More go to the
/// overflow.
const LEAF_ROWS_INLINE: usize = 18;
/// Rows by which the overflow of a leaf grows.
const DIGEST_LEAF_STEP: usize = 4;

/// The checksum of a value, which goes into the hash of its dot. It must never change.
pub(crate) fn checksum(value: &[u8]) -> u32 {
    sip::SipHasher13::new_with_keys(0, 0).hash(value) as u32
}

/// The hash of an entry of a vector. It is the same on all nodes and disks and must never change.
pub(crate) fn clock_hash(origin: u64, clock: u64) -> u128 {
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&clock.to_le_bytes());
    entry[8..].copy_from_slice(&origin.to_le_bytes());
    let (low, high) = HashKey::from_words(0x7469_6469_6e67_7332, 0).keyed_hash(&entry);
    u128::from(high) << 64 | u128::from(low)
}

/// A short keyed hash for comparisons on the wire.
pub(crate) fn fingerprint(salt: u64, bytes: &[u8]) -> u64 {
    sip::SipHasher13::new_with_keys(salt, 0x7469_6469_6e67_7321).hash(bytes)
}

/// The secret key of all hashes in the digest, shared by the cluster. Without it, sums could be forged by choosing
/// keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HashKey {
    words: (u64, u64),
}

impl HashKey {
    pub(crate) fn from_words(a: u64, b: u64) -> Self {
        Self { words: (a, b) }
    }

    pub(crate) fn words(self) -> (u64, u64) {
        self.words
    }

    pub(crate) fn place(self, key: &[u8]) -> Place {
        let (low, high) = self.keyed_hash(key);
        Place { low, high }
    }

    /// The hash of one dot: place, stamp, expiry and checksum. Peers compare it, so the layout must never change.
    pub(crate) fn hash_dot(self, place: Place, stamp: Stamp, lifetime: Lifetime, checksum: u32) -> u128 {
        let mut bytes = [0; 52];
        bytes[..8].copy_from_slice(&place.low.to_le_bytes());
        bytes[8..16].copy_from_slice(&place.high.to_le_bytes());
        bytes[16..24].copy_from_slice(&stamp.clock.to_le_bytes());
        bytes[24..32].copy_from_slice(&stamp.origin.number().to_le_bytes());
        bytes[32..40].copy_from_slice(&lifetime.expires.map_or(0, NonZeroU64::get).to_le_bytes());
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
        bytes[44..].copy_from_slice(&lifetime.run.map_or(0, RunId::number).to_le_bytes());
        // Disks of earlier versions have no runs here.
        let len = if lifetime.run.is_some() { bytes.len() } else { 44 };
        let (low, high) = self.keyed_hash(&bytes[..len]);
        u128::from(low) | (u128::from(high) << 64)
    }

    fn keyed_hash(self, bytes: &[u8]) -> (u64, u64) {
        sip128::SipHasher13::new_with_keys(self.words.0, self.words.1).hash(bytes).as_u64()
    }
}

/// Where a key lies in hash space: 128 bits of its keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Place {
    /// The position of the place on a line on which every [`HashRange`] is one interval.
    pub(crate) fn line_position(self) -> u64 {
        self.low.reverse_bits()
    }

    /// The bits that a leaf keeps: enough to tell its rows apart, and to choose between the halves when a leaf splits.
    fn tag(self) -> u32 {
        self.low as u32
    }
}

/// All places with the same `depth` low bits, which are `index`: one node of the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HashRange {
    pub(crate) depth: u32,
    pub(crate) index: u64,
}

impl HashRange {
    pub(crate) const ALL: Self = Self { depth: 0, index: 0 };

    /// The range of this depth in which a position lies.
    pub(crate) fn at(position: u64, depth: u32) -> Self {
        Self { depth, index: position.reverse_bits() & mask(depth) }
    }

    pub(crate) fn is_well_formed(self) -> bool {
        self.depth <= DEPTH_MAX && self.depth.is_multiple_of(FAN_BITS) && self.index & !mask(self.depth) == 0
    }

    pub(crate) fn child(self, i: usize) -> Self {
        Self { depth: self.depth + FAN_BITS, index: self.index | (i as u64) << self.depth }
    }

    pub(crate) fn contains(self, place: Place) -> bool {
        place.low & mask(self.depth) == self.index
    }

    /// The first position.
    pub(crate) fn first(self) -> u64 {
        self.index.reverse_bits()
    }

    /// The last position.
    pub(crate) fn last(self) -> u64 {
        self.first() | (u64::MAX >> self.depth)
    }
}

fn mask(depth: u32) -> u64 {
    (1 << depth) - 1
}

/// Count and sum of a set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DigestNode {
    sum: [u64; 2],
    pub(crate) rows: u64,
}

impl DigestNode {
    pub(crate) fn sum(self) -> u128 {
        u128::from(self.sum[0]) | (u128::from(self.sum[1]) << 64)
    }

    fn set_sum(&mut self, sum: u128) {
        self.sum = [sum as u64, (sum >> 64) as u64];
    }

    /// Replaces one row's hash by another. The hash of an empty row is zero.
    pub(crate) fn change(&mut self, old: u128, new: u128) {
        self.set_sum(self.sum().wrapping_sub(old).wrapping_add(new));
        match (old == 0, new == 0) {
            (true, false) => self.rows += 1,
            (false, true) => self.rows = self.rows.wrapping_sub(1),
            _ => {}
        }
    }

    fn add(&mut self, other: Self) {
        self.set_sum(self.sum().wrapping_add(other.sum()));
        self.rows += other.rows;
    }

    pub(crate) fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.sum[0].to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sum[1].to_le_bytes());
        bytes[16..].copy_from_slice(&self.rows.to_le_bytes());
        bytes
    }
}

#[derive(Clone, Debug, Default)]
struct DigestLeaf {
    node: DigestNode,
    rows: LeafRows,
}

/// A row in a leaf: some bits of its place to tell it from others, and its row id.
#[derive(Clone, Copy, Debug)]
struct LeafRow {
    tag: u32,
    id: RowId,
}

/// What stands in the unused places of [`LeafRows`], where nothing reads it.
const UNUSED: LeafRow = LeafRow { tag: 0, id: RowId::FIRST };

/// The rows of a leaf in any order: the first ones inline, the others in the overflow.
#[derive(Clone, Debug)]
struct LeafRows {
    len: usize,
    inline: [LeafRow; LEAF_ROWS_INLINE],
    overflow: Box<[LeafRow]>,
}

impl Default for LeafRows {
    fn default() -> Self {
        Self { len: 0, inline: [UNUSED; LEAF_ROWS_INLINE], overflow: Box::default() }
    }
}

impl LeafRows {
    fn iter(&self) -> impl Iterator<Item = &LeafRow> {
        self.inline.iter().chain(&self.overflow).take(self.len)
    }

    fn at_mut(&mut self, at: usize) -> &mut LeafRow {
        if at < LEAF_ROWS_INLINE { &mut self.inline[at] } else { &mut self.overflow[at - LEAF_ROWS_INLINE] }
    }

    fn push(&mut self, row: LeafRow) {
        if self.len == LEAF_ROWS_INLINE + self.overflow.len() {
            self.resize_overflow(self.overflow.len() + DIGEST_LEAF_STEP);
        }
        self.len += 1;
        *self.at_mut(self.len - 1) = row;
    }

    fn retain(&mut self, stays: impl Fn(&LeafRow) -> bool) {
        let mut kept = 0;
        for at in 0..self.len {
            let row = *self.at_mut(at);
            if stays(&row) {
                *self.at_mut(kept) = row;
                kept += 1;
            }
        }
        self.len = kept;
        let far = kept.saturating_sub(LEAF_ROWS_INLINE).next_multiple_of(DIGEST_LEAF_STEP);
        if far < self.overflow.len() {
            self.resize_overflow(far);
        }
    }

    fn resize_overflow(&mut self, len: usize) {
        let mut far = Vec::with_capacity(len);
        far.extend(self.overflow.iter().take(len));
        far.resize(len, UNUSED);
        self.overflow = far.into();
    }

    /// The row id with this tag for which `is_it` holds.
    fn find(&self, tag: u32, is_it: impl Fn(RowId) -> bool) -> Option<RowId> {
        // Without a branch per row: which row matches cannot be predicted.
        let bit = |(at, row): (usize, &LeafRow)| u32::from(row.tag == tag) << at;
        let hits = self.inline.iter().enumerate().map(bit).fold(0, |hits, bit| hits | bit);
        let mut hits = hits & (1_u32 << self.len.min(LEAF_ROWS_INLINE)).wrapping_sub(1);
        while hits != 0 {
            let id = self.inline[hits.trailing_zeros() as usize].id;
            if is_it(id) {
                return Some(id);
            }
            hits &= hits - 1;
        }
        let far = self.overflow.iter().take(self.len.saturating_sub(LEAF_ROWS_INLINE));
        far.filter(|row| row.tag == tag).map(|row| row.id).find(|id| is_it(*id))
    }
}

/// The Merkle tree and hash index of all rows. `levels[j]` holds the nodes of depth `4 j`, as far as all leaves are at
/// least that deep.
#[derive(Clone, Debug)]
pub(crate) struct Digest {
    levels: Vec<Vec<DigestNode>>,
    leaves: Vec<DigestLeaf>,
    rows: usize,
}

impl Digest {
    pub(crate) fn new() -> Self {
        Self { levels: vec![vec![DigestNode::default()]], leaves: vec![DigestLeaf::default()], rows: 0 }
    }

    /// The digest of `count` rows at once: place, row id and hash of each.
    pub(crate) fn of(count: usize, rows: impl Iterator<Item = (Place, RowId, u128)>) -> Self {
        let leaves = count.div_ceil(LEAF_ROWS_GROW).max(1);
        let depth = leaves.ilog2() / FAN_BITS * FAN_BITS;
        let mut digest =
            Self { levels: Vec::new(), leaves: vec![DigestLeaf::default(); leaves], rows: count };
        for (place, id, hash) in rows {
            let at = digest.leaf_at(place.low);
            let leaf = &mut digest.leaves[at];
            leaf.rows.push(LeafRow { tag: place.tag(), id });
            leaf.node.change(0, hash);
        }
        let mut nodes: Vec<DigestNode> = digest.leaves.iter().map(|leaf| leaf.node).collect();
        for depth in (0..=depth).rev().step_by(FAN_BITS as usize) {
            let mut level = vec![DigestNode::default(); 1 << depth];
            nodes.iter().enumerate().for_each(|(at, node)| level[at & mask(depth) as usize].add(*node));
            digest.levels.insert(0, level.clone());
            nodes = level;
        }
        digest
    }

    pub(crate) fn root(&self) -> DigestNode {
        self.levels[0][0]
    }

    /// The row id at this place for which `is_it` holds.
    pub(crate) fn find(&self, place: Place, is_it: impl Fn(RowId) -> bool) -> Option<RowId> {
        self.leaves[self.leaf_at(place.low)].rows.find(place.tag(), is_it)
    }

    /// Reads the memory of these places in advance, so that their cache misses overlap instead of following one
    /// another.
    pub(crate) fn look_at(&self, places: &[Place]) {
        let deepest = self.levels.len() - 1;
        let read = |place: &Place| {
            let rows = &self.leaves[self.leaf_at(place.low)].rows;
            let node = &self.levels[deepest][(place.low & mask(deepest as u32 * FAN_BITS)) as usize];
            rows.inline[0].tag ^ rows.inline[LEAF_ROWS_INLINE - 1].tag ^ node.sum[0] as u32
        };
        std::hint::black_box(places.iter().map(read).fold(0, |all, one| all ^ one));
    }

    /// Adds a row with the hash of what it holds. `look` returns the hashes of other rows.
    pub(crate) fn insert(
        &mut self,
        place: Place,
        id: RowId,
        hash: u128,
        look: impl Fn(&[RowId]) -> Vec<u128>,
    ) {
        let leaf = self.leaf_at(place.low);
        self.leaves[leaf].rows.push(LeafRow { tag: place.tag(), id });
        self.change(place, 0, hash);
        self.rows += 1;
        if self.rows > LEAF_ROWS_GROW * self.leaves.len() {
            self.split(look);
        }
    }

    /// Takes out a row that holds nothing any more.
    pub(crate) fn remove(&mut self, place: Place, id: RowId) {
        let leaf = self.leaf_at(place.low);
        let rows = &mut self.leaves[leaf].rows;
        let before = rows.len;
        rows.retain(|row| row.id != id);
        assert!(rows.len < before, "every id is in its leaf");
        self.rows -= 1;
        if self.leaves.len() > 1 && self.rows < LEAF_ROWS_SHRINK * self.leaves.len() {
            self.join();
        }
    }

    /// Replaces a row's hash on every level.
    pub(crate) fn change(&mut self, place: Place, old: u128, new: u128) {
        for (level, nodes) in self.levels.iter_mut().enumerate() {
            nodes[(place.low & mask(level as u32 * FAN_BITS)) as usize].change(old, new);
        }
        let leaf = self.leaf_at(place.low);
        self.leaves[leaf].node.change(old, new);
    }

    /// The node of a range, if the tree is that deep.
    pub(crate) fn node(&self, range: HashRange) -> Option<DigestNode> {
        let level = self.levels.get((range.depth / FAN_BITS) as usize)?;
        level.get(range.index as usize).copied()
    }

    /// The leaves that hold all rows of a range. For a range deeper than the leaves this is one leaf, which holds other
    /// rows as well.
    pub(crate) fn leaves_of(&self, range: HashRange) -> impl Iterator<Item = usize> + use<> {
        let step = 1_usize.checked_shl(range.depth).filter(|step| *step <= self.leaves.len());
        let from = if step.is_some() { range.index as usize } else { self.leaf_at(range.index) };
        (from..self.leaves.len()).step_by(step.unwrap_or(usize::MAX))
    }

    pub(crate) fn leaves(&self) -> usize {
        self.leaves.len()
    }

    pub(crate) fn leaf_rows(&self, leaf: usize) -> impl Iterator<Item = RowId> + '_ {
        self.leaves[leaf].rows.iter().map(|row| row.id)
    }

    pub(crate) fn leaf_node(&self, leaf: usize) -> DigestNode {
        self.leaves[leaf].node
    }

    /// The leaf in which a place lies.
    pub(crate) fn leaf_of(&self, place: Place) -> usize {
        self.leaf_at(place.low)
    }

    /// The leaf for these low bits of a place. Leaves are numbered by the low bits; those that have been split already,
    /// and their other halves, by one bit more than the others.
    fn leaf_at(&self, low: u64) -> usize {
        let whole = 1 << self.leaves.len().ilog2();
        let short = low as usize & (whole - 1);
        let long = low as usize & (2 * whole - 1);
        if long < self.leaves.len() { long } else { short }
    }

    fn split(&mut self, look: impl Fn(&[RowId]) -> Vec<u128>) {
        let new = self.leaves.len();
        let bit = 1 << new.ilog2();
        let old = &mut self.leaves[new - bit];
        let moves = |row: &LeafRow| row.tag as usize & bit != 0;
        let mut leaf = DigestLeaf::default();
        old.rows.iter().filter(|row| moves(row)).for_each(|row| leaf.rows.push(*row));
        old.rows.retain(|row| !moves(row));
        let ids: Vec<RowId> = leaf.rows.iter().map(|row| row.id).collect();
        for hash in look(&ids) {
            old.node.change(hash, 0);
            leaf.node.change(0, hash);
        }
        self.leaves.push(leaf);
        if self.leaves.len() == 1 << (FAN_BITS * self.levels.len() as u32) {
            self.levels.push(self.leaves.iter().map(|leaf| leaf.node).collect());
        }
    }

    fn join(&mut self) {
        if self.leaves.len() == 1 << (FAN_BITS * (self.levels.len() as u32 - 1)) {
            self.levels.pop();
        }
        let leaf = self.leaves.pop().expect("there is always a leaf");
        let at = self.leaves.len();
        let into = &mut self.leaves[at - (1 << at.ilog2())];
        into.node.add(leaf.node);
        leaf.rows.iter().for_each(|row| into.rows.push(*row));
    }

    /// Makes a leaf forget a row without changing the sums, so that the integrity check can find it.
    #[cfg(feature = "__controls")]
    pub(crate) fn lose(&mut self, place: Place, id: RowId) {
        let leaf = self.leaf_at(place.low);
        self.leaves[leaf].rows.retain(|row| row.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    /// Rows are added and removed; the tree is compared with plain sums over all places.
    #[test]
    fn digest_sums_depend_on_the_set_of_rows_alone() {
        let hash_key = HashKey::from_words(1, 2);
        let row = |id: RowId| {
            let number = id.index();
            let place = hash_key.place(&number.to_le_bytes());
            (
                place,
                hash_key.hash_dot(
                    place,
                    Stamp { clock: number as u64, origin: RunId::new(1) },
                    Lifetime::default(),
                    0,
                ),
            )
        };
        let mut digest = Digest::new();
        let check = |digest: &Digest, ids: &[RowId]| {
            for depth in [0, 4, 8, 12] {
                for index in [0_u64, 3, 9] {
                    let range = HashRange { depth, index: index & mask(depth) };
                    let Some(node) = digest.node(range) else { continue };
                    let mut plain = DigestNode::default();
                    let inside = ids.iter().map(|id| row(*id)).filter(|(place, _)| range.contains(*place));
                    inside.for_each(|(_, hash)| plain.change(0, hash));
                    assert_eq!(node, plain, "{range:?} of {}", ids.len());
                    let mut found = 0;
                    for leaf in digest.leaves_of(range) {
                        found += digest.leaf_rows(leaf).filter(|id| range.contains(row(*id).0)).count();
                    }
                    assert_eq!(found as u64, plain.rows);
                }
            }
        };
        let ids: Vec<RowId> = (0..20_000).map(RowId::of_index).collect();
        for id in &ids {
            let (place, hash) = row(*id);
            digest.insert(place, *id, hash, |ids| ids.iter().map(|id| row(*id).1).collect());
            if id.index() % 3_331 == 0 {
                check(&digest, &ids[..=id.index()]);
            }
        }
        assert_eq!(digest.leaves(), 20_000 / 16);
        let at_once = Digest::of(ids.len(), ids.iter().map(|id| (row(*id).0, *id, row(*id).1)));
        check(&at_once, &ids);
        assert_eq!((at_once.leaves(), at_once.levels.len()), (digest.leaves(), digest.levels.len()));
        for id in ids.iter().rev() {
            assert_eq!(digest.find(row(*id).0, |other| other == *id), Some(*id));
            digest.change(row(*id).0, row(*id).1, 0);
            digest.remove(row(*id).0, *id);
            if id.index() % 3_331 == 0 {
                check(&digest, &ids[..id.index()]);
            }
        }
        assert_eq!((digest.root(), digest.leaves(), digest.levels.len()), (DigestNode::default(), 1, 1));
    }

    #[test]
    fn hash_ranges_are_intervals_of_the_line() {
        let range = HashRange::ALL.child(5).child(11);
        let place = Place { low: (11 << 4) | 5, high: 0 };
        assert!(range.contains(place));
        assert!((range.first()..=range.last()).contains(&place.line_position()));
        assert_eq!(HashRange::at(range.first(), 8), range);
        assert_eq!((HashRange::ALL.first(), HashRange::ALL.last()), (0, u64::MAX));
    }
}
