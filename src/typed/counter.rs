//! Counters.

use super::Store;
use crate::error::WriteError;

/// A counter that all nodes may increase and decrease concurrently.
///
/// It holds one number for each process start that has changed it, and reading it adds them up. The number of a process
/// that has ended takes about 150 bytes on every node, or 24 bytes once `compact` (on a `Node`) has moved it into a
/// table. It is never forgotten: see "Counters" in `docs/replication.md`. So a counter suits some ten thousand process
/// starts. Beyond, let one process count, for example the holder of a lease, and keep the sum in a register.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// let hits = node.counter("hits");
/// hits.add(3)?;
/// hits.add(-1)?;
/// assert_eq!(hits.value(), 2);
/// # Ok::<(), tidings::WriteError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Counter<#[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    pub(crate) store: S,
    pub(crate) name: String,
}

impl<S: Store> Counter<S> {
    pub(crate) fn new(store: S, name: String) -> Self {
        Self { store, name }
    }

    /// Adds `by`, which may be negative.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&self, by: i64) -> Result<S::Receipt, WriteError> {
        self.store.counter_add(&self.name, by)
    }

    /// The value: the sum of everything added on any node, as far as this node has received it.
    pub fn value(&self) -> i64 {
        self.store.counter_value(&self.name)
    }
}
