//! Batches: several writes in one local step.

use super::Store;
use crate::error::WriteError;
use crate::replica::{Batch, PutOptions};
use crate::store::OnlyIf;
use crate::store::entry::Revision;

/// Several writes that a node applies in one local step, all or none. It is not a transaction across nodes: peers may
/// see the writes one after another.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// node.put("old", "v")?;
/// node.batch().put("a", "1").put("b", "2").delete("old").commit()?;
/// assert_eq!(node.len(), 2);
///
/// use tidings::OnlyIf;
/// let moved = node.batch().set_remove("waiting", "job").set_add("done", "job").counter_add("jobs", 1);
/// assert!(moved.clone().delete_if("a", OnlyIf::Absent).commit().is_err()); // and nothing of it was written
/// moved.commit()?;
/// assert_eq!((node.counter("jobs").value(), node.set("done").contains("job")), (1, true));
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

    /// Adds a put under a condition, with a time to live, or both.
    #[must_use]
    pub fn put_with(mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>, options: PutOptions) -> Self {
        self.batch = self.batch.put_with(key, value, options);
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<str>) -> Self {
        self.batch = self.batch.delete(key);
        self
    }

    /// Adds a delete under a condition.
    #[must_use]
    pub fn delete_if(mut self, key: impl AsRef<str>, only_if: OnlyIf) -> Self {
        self.batch = self.batch.delete_if(key, only_if);
        self
    }

    /// Adds an element to a set.
    #[must_use]
    pub fn set_add(mut self, set: impl AsRef<str>, element: impl AsRef<str>) -> Self {
        self.batch = self.batch.set_add(set, element);
        self
    }

    /// Adds an element to a set under a condition, with a time to live, or bound to the life of this process.
    #[must_use]
    pub fn set_add_with(
        mut self,
        set: impl AsRef<str>,
        element: impl AsRef<str>,
        options: PutOptions,
    ) -> Self {
        self.batch = self.batch.set_add_with(set, element, options);
        self
    }

    /// Removes an element from a set.
    #[must_use]
    pub fn set_remove(mut self, set: impl AsRef<str>, element: impl AsRef<str>) -> Self {
        self.batch = self.batch.set_remove(set, element);
        self
    }

    /// Adds to a counter.
    #[must_use]
    pub fn counter_add(mut self, counter: impl AsRef<str>, by: i64) -> Self {
        self.batch = self.batch.counter_add(counter, by);
        self
    }

    /// Makes it a condition of the whole batch that on this node no key that begins with `prefix` was written, deleted or
    /// dropped at the end of its time to live since the change log's head was at this revision
    /// ([`Status::head`](crate::Status::head)). Take the revision before you read.
    #[must_use]
    pub fn unchanged_since(mut self, prefix: impl AsRef<str>, revision: Revision) -> Self {
        self.batch = self.batch.unchanged_since(prefix, revision);
        self
    }

    /// The number of writes.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether there is no write in it.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Applies all writes, or none if one is not acceptable. Conditions are compared with what this node holds before
    /// the batch. The receipt covers all writes.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(self) -> Result<S::Receipt, WriteError> {
        self.store.commit(&self.batch)
    }
}
