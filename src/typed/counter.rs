//! Counters.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::Store;
use crate::error::WriteError;

/// The most changes that a watch takes before it reads the value: while others add without a pause, there is always
/// another one.
const EVENTS_MAX: usize = 1_024;

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

    /// Watches the value: first the present one, then each later one. A slow reader sees fewer of them, never a wrong
    /// last one. It ends when the node is closed, or in a simulation stopped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
    /// let hits = node.counter("hits");
    /// let mut values = hits.watch();
    /// assert_eq!(values.next().await, Some(0));
    /// hits.add(3).unwrap();
    /// hits.add(1).unwrap();
    /// assert_eq!(values.next().await, Some(4));
    /// # }
    /// ```
    pub fn watch(&self) -> CounterWatch<S> {
        let changes = self.store.counter_changes(&self.name);
        CounterWatch { counter: self.clone(), changes, last: None, has_changed: false }
    }
}

/// A watch of a counter's value, from [`Counter::watch`].
#[derive(Debug)]
pub struct CounterWatch<
    #[cfg(feature = "node")] S: Store = crate::Node,
    #[cfg(not(feature = "node"))] S: Store,
> {
    counter: Counter<S>,
    changes: S::Watch,
    /// The value that was told last.
    last: Option<i64>,
    has_changed: bool,
}

impl<S: Store> CounterWatch<S> {
    /// Waits until the value is another one than before. `None` once the node is closed. A `next` that is dropped while
    /// it waits misses nothing.
    pub async fn next(&mut self) -> Option<i64> {
        super::next(self).await
    }
}

/// Nothing in it is pinned.
impl<S: Store> Unpin for CounterWatch<S> {}

impl<S: Store> Stream for CounterWatch<S> {
    type Item = i64;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<i64>> {
        let watch = self.get_mut();
        let mut has_more = true;
        for _ in 0..EVENTS_MAX {
            match Pin::new(&mut watch.changes).poll_next(cx) {
                Poll::Ready(Some(_)) => watch.has_changed = true,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    has_more = false;
                    break;
                }
            }
        }
        if std::mem::take(&mut watch.has_changed) {
            let value = watch.counter.value();
            if watch.last.replace(value) != Some(value) {
                return Poll::Ready(Some(value));
            }
        }
        if has_more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
