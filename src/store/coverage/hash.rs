//! A fingerprint of a vector that is kept up to date with it. It is a sum of hashes of the entries, so that a change
//! costs two hashes however many origins there are.

use super::Clocks;
use crate::id::RunId;
use crate::store::digest::fingerprint;

/// Salt of the checksums of claims on the disk.
pub(crate) const SEAL: u64 = 0x7469_6469_6e67_7332;

/// The wrapping sum of the salted hashes of a vector's entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct VectorHash {
    salt: u64,
    sum: u64,
}

impl VectorHash {
    /// The hash of an empty vector.
    pub(super) fn new(salt: u64) -> Self {
        Self { salt, sum: 0 }
    }

    /// The hash of a vector, computed from all its entries.
    pub(crate) fn of(salt: u64, vector: &Clocks) -> Self {
        let mut hash = Self::new(salt);
        vector.iter().for_each(|(origin, clock)| hash.change(origin, None, clock));
        hash
    }

    /// Adds an entry with the clock `after`. It replaces the one with the clock `before`, if there was one.
    pub(super) fn change(&mut self, origin: RunId, before: Option<u64>, after: u64) {
        let before = before.map_or(0, |before| self.entry(origin, before));
        self.sum = self.sum.wrapping_sub(before).wrapping_add(self.entry(origin, after));
    }

    fn entry(&self, origin: RunId, clock: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&origin.number().to_le_bytes());
        bytes[8..].copy_from_slice(&clock.to_le_bytes());
        fingerprint(self.salt, &bytes)
    }

    /// The plain sum. For an empty vector it is zero under every salt.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    /// A fingerprint that depends on the salt even if the vector is empty.
    pub(super) fn salted(&self) -> u64 {
        fingerprint(self.salt, &self.sum.to_le_bytes())
    }
}
