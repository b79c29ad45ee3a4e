//! Batches: several writes in one local step.

use super::Store;
use crate::error::WriteError;
use crate::replica::Batch;

/// Several writes that a node applies in one local step, all or none. It is not a transaction across nodes: peers may
/// see the writes one after another.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// node.put("old", "v")?;
/// node.batch().put("a", "1").put("b", "2").delete("old").commit()?;
/// assert_eq!(node.len(), 2);
/// # Ok::<(), tidings::WriteError>(())
/// ```
#[derive(Clone, Debug)]
pub struct WriteBatch<#[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    store: S,
    batch: Batch,
}

impl<S: Store> WriteBatch<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, batch: Batch::new() }
    }

    /// Adds a put.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        self.batch = self.batch.put(key, value);
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<str>) -> Self {
        self.batch = self.batch.delete(key);
        self
    }

    /// Applies all writes, or none if one is not acceptable. The receipt covers all of them.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(self) -> Result<S::Receipt, WriteError> {
        self.store.commit(&self.batch)
    }
}
