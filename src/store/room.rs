//! The size of the store, and the limit that local writes must not let it exceed.
//!
//! The size follows from two sums that are kept with every change: the bytes of keys and values, and the number of keys.
//! What other nodes wrote must never be refused here: replicas would differ for ever.

use std::collections::BTreeMap;

use super::LocalStore;
use crate::config::ENTRY_BYTES;
use crate::controls::Control;
use crate::error::WriteError;

impl LocalStore {
    /// The size that [`Config::store_bytes_max`](crate::Config::store_bytes_max) limits.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.bytes + self.len() as u64 * ENTRY_BYTES
    }

    pub(crate) fn store_bytes_max(&self) -> u64 {
        self.store_bytes_max
    }

    /// Refuses local writes that would let the store grow beyond its limit. `writes` are stored keys with the size of the
    /// value that each is to hold afterwards, `None` for nothing; of several writes of a key the last one counts.
    pub(crate) fn check_room<'a>(
        &self,
        writes: impl Iterator<Item = (&'a [u8], Option<usize>)> + Clone,
    ) -> Result<(), WriteError> {
        let (bytes, limit) = (self.size_bytes(), self.store_bytes_max);
        let entry_bytes = |(key, value): (&[u8], Option<usize>)| {
            value.map_or(0, |value| ENTRY_BYTES + (key.len() + value) as u64)
        };
        if bytes + writes.clone().map(entry_bytes).sum::<u64>() <= limit
            || self.controls.has(Control::GrowthUnchecked)
        {
            return Ok(());
        }
        let last: BTreeMap<&[u8], Option<usize>> = writes.collect();
        let held = |key| self.dot_set(key).map_or(0, |(dot_set, _)| ENTRY_BYTES + dot_set.bytes());
        let gone: u64 = last.keys().map(|key| held(*key)).sum();
        let needed = bytes - gone + last.into_iter().map(entry_bytes).sum::<u64>();
        if needed <= limit.max(bytes) { Ok(()) } else { Err(WriteError::Full { bytes, needed, limit }) }
    }
}
