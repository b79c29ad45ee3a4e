//! A fingerprint of a set of clocks that is kept up to date with it.

use super::clocks::{BUCKETS, bucket_of};
use crate::id::RunId;
use crate::store::digest::{clock_hash, fingerprint};

/// A set of entries, by their number and the wrapping sum of their hashes. Sets with equal sums have equal entries. A
/// change costs two hashes however many entries there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClocksSum {
    pub(crate) count: u64,
    pub(crate) sum: u128,
}

impl ClocksSum {
    pub(crate) fn of(entries: impl IntoIterator<Item = (RunId, u64)>) -> Self {
        let mut sum = Self::default();
        entries.into_iter().for_each(|(origin, clock)| _ = sum.add(origin, clock));
        sum
    }

    /// Adds an entry. Returns its hash.
    pub(super) fn add(&mut self, origin: RunId, clock: u64) -> u128 {
        let hash = clock_hash(origin.number(), clock);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash);
        hash
    }

    /// Takes an entry out. Returns its hash.
    pub(super) fn subtract(&mut self, origin: RunId, clock: u64) -> u128 {
        let hash = clock_hash(origin.number(), clock);
        self.count -= 1;
        self.sum = self.sum.wrapping_sub(hash);
        hash
    }

    /// The sum of two sets that have no origin in common.
    pub(super) fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, sum: self.sum.wrapping_add(other.sum) }
    }

    /// A short fingerprint that depends on the salt even if there are no entries.
    pub(crate) fn fingerprint(self, salt: u64) -> u64 {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_le_bytes());
        fingerprint(salt, &bytes)
    }
}

/// The sum of a set of clocks, and those of its buckets, in 64 bits each.
#[derive(Clone, Debug)]
pub(super) struct BucketSums {
    pub(super) all: ClocksSum,
    pub(super) buckets: Box<[u64; BUCKETS]>,
}

impl BucketSums {
    pub(super) fn add(&mut self, origin: RunId, clock: u64) {
        let hash = self.all.add(origin, clock) as u64;
        let bucket = &mut self.buckets[bucket_of(origin)];
        *bucket = bucket.wrapping_add(hash);
    }

    pub(super) fn subtract(&mut self, origin: RunId, clock: u64) {
        let hash = self.all.subtract(origin, clock) as u64;
        let bucket = &mut self.buckets[bucket_of(origin)];
        *bucket = bucket.wrapping_sub(hash);
    }
}

impl Default for BucketSums {
    fn default() -> Self {
        Self { all: ClocksSum::default(), buckets: Box::new([0; BUCKETS]) }
    }
}
