//! Memory of the stored rows: a slab that grows without moving them, and the key index, which keeps the keys in order.
//!
//! A row is named by the [`RowId`] that [`Slab::insert`] returned. The id is valid until the row is removed;
//! then another row may get it. So a row must be taken out of the digest, the change log, the key index and the expiry
//! schedule before it is removed from the slab.

use std::cmp::Ordering;
use std::num::NonZeroU32;

use crate::id::RowId;
use crate::store::digest::HashKey;
use crate::store::entry::DotSet;

const SLAB_ROWS: usize = 4_096;

/// A row: what the store keeps per key.
#[derive(Clone, Debug)]
pub(crate) struct StoredRow {
    pub(crate) dot_set: DotSet,
    /// The revision at which the key stands in the change log.
    pub(crate) revision: u64,
    /// One more than the number of revisions from the key's last local event to `revision`. `None`: there was no such
    /// event. A number that is too great for the field is kept as the greatest: then a row is sent that need not be.
    own_age: Option<NonZeroU32>,
    /// The same for the last event that this node sends on: a local one, or one that it forwards.
    forwarded_age: Option<NonZeroU32>,
}

/// Where a change of a key comes from, which decides to which peers the tail sends the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeOrigin {
    /// A local event.
    Own,
    /// Received from the tail of a peer in another group: this node forwards it in its own group.
    Forwarded,
    /// Learned in any other way and not forwarded: other nodes receive it from its writer, or by repair.
    Learned,
}

impl StoredRow {
    pub(crate) fn new(dot_set: DotSet) -> Self {
        Self { dot_set, revision: 0, own_age: None, forwarded_age: None }
    }

    /// Moves the row to the end of the log.
    pub(crate) fn move_to(&mut self, revision: u64, source: ChangeOrigin) {
        let by = u32::try_from(revision - self.revision).unwrap_or(u32::MAX);
        let older = |age: Option<NonZeroU32>| age.map(|age| age.saturating_add(by));
        let new = Some(NonZeroU32::MIN);
        self.own_age = if source == ChangeOrigin::Own { new } else { older(self.own_age) };
        self.forwarded_age = if source == ChangeOrigin::Learned { older(self.forwarded_age) } else { new };
        self.revision = revision;
    }

    /// The revision of the last local event; 0 if there is none.
    pub(crate) fn own_revision(&self) -> u64 {
        self.before(self.own_age)
    }

    /// The revision of the last event that is local or forwarded; 0 if there is none.
    pub(crate) fn forwarded_revision(&self) -> u64 {
        self.before(self.forwarded_age)
    }

    fn before(&self, age: Option<NonZeroU32>) -> u64 {
        age.map_or(0, |age| self.revision + 1 - u64::from(age.get()))
    }

    /// The row's share of the digest.
    pub(crate) fn digest_share(&self, hash_key: HashKey) -> u128 {
        self.dot_set.digest_share(hash_key, hash_key.place(self.dot_set.key()))
    }
}

/// Rows by row id. It grows by whole segments, so that no write waits for a copy of all rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slab {
    segments: Vec<Vec<Option<StoredRow>>>,
    free: Vec<RowId>,
}

impl Slab {
    pub(crate) fn insert(&mut self, row: StoredRow) -> RowId {
        if let Some(id) = self.free.pop() {
            *self.place(id) = Some(row);
            return id;
        }
        if self.segments.last().is_none_or(|segment| segment.len() == SLAB_ROWS) {
            self.segments.push(Vec::with_capacity(SLAB_ROWS));
        }
        let full = (self.segments.len() - 1) * SLAB_ROWS;
        let segment = self.segments.last_mut().expect("just made sure");
        segment.push(Some(row));
        RowId::of_index(full + segment.len() - 1)
    }

    pub(crate) fn remove(&mut self, id: RowId) {
        *self.place(id) = None;
        self.free.push(id);
    }

    pub(crate) fn at(&self, id: RowId) -> &StoredRow {
        let index = id.index();
        self.segments[index / SLAB_ROWS][index % SLAB_ROWS].as_ref().expect("the row is in use")
    }

    /// Many rows. All are read once before the first is used, so that their cache misses overlap instead of following
    /// one another.
    pub(crate) fn many(&self, ids: impl IntoIterator<Item = RowId>) -> Vec<&StoredRow> {
        let rows: Vec<&StoredRow> = ids.into_iter().map(|id| self.at(id)).collect();
        std::hint::black_box(rows.iter().map(|row| row.dot_set.key().len()).sum::<usize>());
        rows
    }

    pub(crate) fn at_mut(&mut self, id: RowId) -> &mut StoredRow {
        self.place(id).as_mut().expect("the row is in use")
    }

    fn place(&mut self, id: RowId) -> &mut Option<StoredRow> {
        let index = id.index();
        &mut self.segments[index / SLAB_ROWS][index % SLAB_ROWS]
    }
}

/// The most rows in a leaf of the key index.
const LEAF_ROWS: usize = 128;
/// Rows by which the memory of a leaf grows.
const KEY_LEAF_STEP: usize = LEAF_ROWS / 4;
/// The most leaves in a branch.
const BRANCH_LEAVES: usize = 256;

/// The keys that hold something, in order: a tree of two levels of wide nodes. Branches and leaves keep a *prefix*
/// beside each child: the four bytes of its key that follow the common beginning of all of them. So a search seldom has
/// to read a key itself.
#[derive(Clone, Debug)]
pub(crate) struct KeyIndex {
    branches: Vec<KeyBranch>,
    rows: usize,
}

/// Leaves in key order. All keys before the second leaf belong to the first one, so only the others are searched.
#[derive(Clone, Debug, Default)]
struct KeyBranch {
    /// Length of the common beginning of the first keys of all leaves but the first one.
    shared: usize,
    prefixes: Vec<u32>,
    leaves: Vec<KeyLeaf>,
}

#[derive(Clone, Debug, Default)]
struct KeyLeaf {
    /// No key of the leaf is less than this one.
    first: Box<[u8]>,
    /// Length of the common beginning of all keys of the leaf and `first`.
    shared: usize,
    rows: Vec<KeyIndexRow>,
}

#[derive(Clone, Copy, Debug)]
struct KeyIndexRow {
    prefix: u32,
    id: RowId,
}

fn key_of(slab: &Slab, row: KeyIndexRow) -> &[u8] {
    slab.at(row.id).dot_set.key()
}

/// The four bytes of a key from `from` on, as a number in the same order. Missing bytes are zeros.
fn key_prefix(key: &[u8], from: usize) -> u32 {
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

impl KeyLeaf {
    fn rebuild_prefixes(&mut self, shared: usize, slab: &Slab) {
        self.shared = shared;
        self.rows.iter_mut().for_each(|row| row.prefix = key_prefix(key_of(slab, *row), shared));
    }

    /// Recomputes the prefixes if the common beginning of the keys is longer than `shared` by enough to be worth it.
    fn narrow(&mut self, slab: &Slab) {
        let Some(last) = self.rows.last() else { return };
        let shared = shared_bytes(&self.first, key_of(slab, *last));
        if shared > self.shared + 1 {
            self.rebuild_prefixes(shared, slab);
        }
    }

    /// The index of the row at which a key is or belongs.
    fn index_of(&self, key: &[u8], slab: &Slab) -> usize {
        if !key.starts_with(&self.first[..self.shared]) {
            return self.rows.len();
        }
        let text = key_prefix(key, self.shared);
        self.rows.partition_point(|row| match row.prefix.cmp(&text) {
            Ordering::Equal => key_of(slab, *row) < key,
            unequal => unequal.is_lt(),
        })
    }

    fn insert(&mut self, at: usize, key: &[u8], id: RowId, slab: &Slab) {
        if !key.starts_with(&self.first[..self.shared]) {
            self.rebuild_prefixes(shared_bytes(&self.first, key), slab);
        }
        if self.rows.len() == self.rows.capacity() {
            // Doubling would waste several bytes per key.
            self.rows.reserve_exact(KEY_LEAF_STEP);
        }
        self.rows.insert(at, KeyIndexRow { prefix: key_prefix(key, self.shared), id });
    }

    /// Splits off the greater half of a full leaf. `at` is the index at which the last row was inserted.
    fn split(&mut self, at: usize, slab: &Slab) -> Self {
        // Keys often arrive in order. Then the old leaf stays nearly full and the new one begins small.
        let keep = if at == LEAF_ROWS { LEAF_ROWS - 8 } else { LEAF_ROWS / 2 };
        let mut rows = Vec::with_capacity(LEAF_ROWS + 1 - keep + KEY_LEAF_STEP);
        rows.extend(self.rows.drain(keep..));
        self.rows.shrink_to(keep + if keep == LEAF_ROWS / 2 { KEY_LEAF_STEP } else { 0 });
        let mut rest = Self { first: key_of(slab, rows[0]).into(), shared: self.shared, rows };
        self.narrow(slab);
        rest.narrow(slab);
        rest
    }
}

impl KeyBranch {
    fn of(leaves: Vec<KeyLeaf>) -> Self {
        let mut branch = Self { shared: 0, prefixes: Vec::new(), leaves };
        if let (Some(second), Some(last)) = (branch.leaves.get(1), branch.leaves.last()) {
            branch.rebuild_prefixes(shared_bytes(&second.first, &last.first));
        } else {
            branch.rebuild_prefixes(usize::MAX);
        }
        branch
    }

    fn rebuild_prefixes(&mut self, shared: usize) {
        self.shared = shared;
        self.prefixes.clear();
        self.prefixes.extend(self.leaves.iter().map(|leaf| key_prefix(&leaf.first, shared)));
    }

    /// The index of the leaf in which a key is or belongs.
    fn index_of(&self, key: &[u8]) -> usize {
        let Some(second) = self.leaves.get(1) else { return 0 };
        if !key.starts_with(&second.first[..self.shared]) {
            return if key < &*second.first { 0 } else { self.leaves.len() - 1 };
        }
        let text = key_prefix(key, self.shared);
        let texts = &self.prefixes[1..];
        let from = texts.partition_point(|other| *other < text);
        let equal = texts[from..].partition_point(|other| *other == text);
        from + self.leaves[from + 1..=from + equal].partition_point(|leaf| &*leaf.first <= key)
    }

    fn insert(&mut self, at: usize, leaf: KeyLeaf) {
        let shared =
            self.leaves.get(1).map_or(leaf.first.len(), |second| shared_bytes(&second.first, &leaf.first));
        self.leaves.insert(at, leaf);
        if shared < self.shared {
            self.rebuild_prefixes(shared);
        } else {
            self.prefixes.insert(at, key_prefix(&self.leaves[at].first, self.shared));
        }
    }
}

impl KeyIndex {
    pub(crate) fn new() -> Self {
        Self { branches: vec![KeyBranch::of(vec![KeyLeaf::default()])], rows: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Adds a row that holds something now.
    pub(crate) fn insert(&mut self, id: RowId, slab: &Slab) {
        let key = slab.at(id).dot_set.key();
        let (branch, at) = self.index_of(key);
        let leaf = &mut self.branches[branch].leaves[at];
        let row = leaf.index_of(key, slab);
        leaf.insert(row, key, id, slab);
        self.rows += 1;
        if leaf.rows.len() <= LEAF_ROWS {
            return;
        }
        let rest = leaf.split(row, slab);
        let full = &mut self.branches[branch];
        full.insert(at + 1, rest);
        if full.leaves.len() > BRANCH_LEAVES {
            let keep = if at + 2 == full.leaves.len() { BRANCH_LEAVES - 8 } else { BRANCH_LEAVES / 2 };
            let mut rest = Vec::with_capacity(BRANCH_LEAVES + 1);
            rest.extend(full.leaves.drain(keep..));
            full.leaves.shrink_to(BRANCH_LEAVES + 1);
            *full = KeyBranch::of(std::mem::take(&mut full.leaves));
            self.branches.insert(branch + 1, KeyBranch::of(rest));
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8], slab: &Slab) {
        let (branch, at) = self.index_of(key);
        let leaf = &mut self.branches[branch].leaves[at];
        let row = leaf.index_of(key, slab);
        leaf.rows.remove(row);
        self.rows -= 1;
        // The very first leaf stays even if empty, so that every key belongs to a leaf.
        if leaf.rows.is_empty() && !leaf.first.is_empty() {
            self.branches[branch].leaves.remove(at);
            self.branches[branch].prefixes.remove(at);
            if self.branches[branch].leaves.is_empty() {
                self.branches.remove(branch);
            }
        }
    }

    /// The row ids of all keys from `key` on, in order.
    pub(crate) fn iter_from<'a>(&'a self, key: &'a [u8], slab: &'a Slab) -> impl Iterator<Item = RowId> + 'a {
        let (branch, at) = self.index_of(key);
        let leaves = &self.branches[branch].leaves[at..];
        let here = leaves[0].rows[leaves[0].index_of(key, slab)..].iter();
        let later = self.branches[branch + 1..].iter().flat_map(|branch| &branch.leaves);
        let later = leaves[1..].iter().chain(later).flat_map(|leaf| &leaf.rows);
        here.chain(later).map(|row| row.id)
    }

    /// The indices of the branch and the leaf in which a key is or belongs.
    fn index_of(&self, key: &[u8]) -> (usize, usize) {
        let after = |branch: &KeyBranch| &*branch.leaves[0].first <= key;
        let branch = self.branches.partition_point(after) - 1;
        (branch, self.branches[branch].index_of(key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::entry::Removal;

    #[test]
    fn keys_stay_in_order_whatever_they_begin_with() {
        let (mut slab, mut order) = (Slab::default(), KeyIndex::new());
        let mut plain: BTreeMap<Vec<u8>, RowId> = BTreeMap::new();
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
            if let Some(id) = plain.remove(&key) {
                order.remove(&key, &slab);
                slab.remove(id);
            } else {
                let dot_set = DotSet::empty(&key, Removal::Unknown);
                let id = slab.insert(StoredRow::new(dot_set));
                order.insert(id, &slab);
                plain.insert(key.clone(), id);
            }
            assert_eq!(order.len(), plain.len());
            if step % 1_999 == 0 {
                let ours: Vec<RowId> = order.iter_from(&key, &slab).collect();
                assert_eq!(ours, plain.range(key..).map(|(_, id)| *id).collect::<Vec<_>>());
            }
        }
    }
}
