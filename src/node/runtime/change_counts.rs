//! Counts of changes, by shards of the keys: a reader that holds the value of a key can tell by one atomic load that
//! the key has not changed since.
//!
//! A count is raised by one before the first row of its shard changes and by one after the last one, so it is odd in
//! between. A reader that has seen a changed row also sees that its count has changed. Other keys of the same shard
//! change it as well; that costs a look at the row and is never wrong.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;

/// Shards of 64 counts. With fewer shards more writes of other keys count.
const WORDS: usize = 16;
const SHARDS: usize = WORDS * 64;

/// The count of each shard.
#[derive(Debug)]
pub(in crate::node) struct ChangeCounts(Box<[AtomicU64]>);

/// Shards that are being changed.
pub(in crate::node) struct ShardSet([u64; WORDS]);

fn shard_of(name: &[u8]) -> usize {
    FixedState::default().hash_one(name) as usize % SHARDS
}

impl ShardSet {
    /// The shards of these keys, which are given without their space.
    pub(in crate::node) fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut shards = Self([0; WORDS]);
        for shard in names.map(shard_of) {
            shards.0[shard / 64] |= 1 << (shard % 64);
        }
        shards
    }

    pub(in crate::node) fn all() -> Self {
        Self([u64::MAX; WORDS])
    }
}

impl ChangeCounts {
    pub(in crate::node) fn new() -> Self {
        Self((0..SHARDS).map(|_| AtomicU64::new(0)).collect())
    }

    /// The count of the shard of a key. `None`: rows of it are being changed now.
    #[cfg(feature = "json")]
    #[inline]
    pub(in crate::node) fn of(&self, name: &[u8]) -> Option<u64> {
        Some(self.0[shard_of(name)].load(Ordering::Acquire)).filter(|count| count % 2 == 0)
    }

    /// The rows of these shards are about to change.
    pub(in crate::node) fn begin(&self, shards: &ShardSet) {
        self.raise(shards, Ordering::Relaxed);
    }

    /// They have changed.
    pub(in crate::node) fn end(&self, shards: &ShardSet) {
        self.raise(shards, Ordering::Release);
    }

    fn raise(&self, shards: &ShardSet, order: Ordering) {
        for (word, mut bits) in shards.0.into_iter().enumerate() {
            while bits != 0 {
                self.0[word * 64 + bits.trailing_zeros() as usize].fetch_add(1, order);
                bits &= bits - 1;
            }
        }
    }
}

#[cfg(all(test, feature = "json"))]
mod tests {
    use super::*;

    #[test]
    fn change_of_a_key_changes_the_count_of_few_others() {
        let counts = ChangeCounts::new();
        let names: Vec<Vec<u8>> = (0..1_000).map(|i| format!("key/{i}").into_bytes()).collect();
        let all = || names.iter().map(|name| counts.of(name)).collect::<Vec<_>>();
        let before = all();
        // A shard that has several of the rows is counted once.
        let changing = ShardSet::of([&names[7][..], &names[7], &names[8]].into_iter());
        counts.begin(&changing);
        assert_eq!((counts.of(&names[7]), counts.of(&names[8])), (None, None));
        counts.end(&changing);
        let others = all().iter().zip(&before).filter(|(now, before)| now != before).count();
        assert!(counts.of(&names[7]) != before[7] && (2..20).contains(&others), "{others}");
        counts.begin(&ShardSet::all());
        assert!(all().iter().all(Option::is_none));
        counts.end(&ShardSet::all());
        assert!(all().iter().zip(&before).all(|(now, before)| now.is_some() && now != before));
    }
}
