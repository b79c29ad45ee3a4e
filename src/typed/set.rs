//! Sets.

use super::Store;
use crate::error::WriteError;
use crate::replica::PutOptions;
use crate::store::entry::Entry;
use crate::store::watch::WatchOptions;

/// A set of strings. If an element is added and removed concurrently, it stays in the set.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// let banned = node.set("banned");
/// banned.add("mallory")?;
/// assert!(banned.contains("mallory"));
/// banned.remove("mallory")?;
/// assert_eq!(banned.iter().count(), 0);
/// # Ok::<(), tidings::WriteError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Set<#[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    store: S,
    name: String,
}

impl<S: Store> Set<S> {
    pub(crate) fn new(store: S, name: String) -> Self {
        Self { store, name }
    }

    /// Adds an element.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&self, element: impl AsRef<str>) -> Result<S::Receipt, WriteError> {
        self.add_with(element, PutOptions::new())
    }

    /// Adds an element with a time to live, bound to the life of this process, or under a condition: with
    /// [`OnlyIf::Absent`](crate::OnlyIf::Absent) only if this node does not hold it. Adding it again replaces what was
    /// asked for before.
    ///
    /// ```
    /// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
    /// use std::time::Duration;
    /// use tidings::PutOptions;
    ///
    /// let online = node.set("online");
    /// online.add_with("alice", PutOptions::new().ttl(Duration::from_secs(30)))?; // again with each sign of life
    /// assert!(online.contains("alice"));
    /// # Ok::<(), tidings::WriteError>(())
    /// ```
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add_with(&self, element: impl AsRef<str>, options: PutOptions) -> Result<S::Receipt, WriteError> {
        self.store.set_add_with(&self.name, element.as_ref(), options)
    }

    /// Removes an element. Concurrent additions that this node has not received yet survive.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn remove(&self, element: impl AsRef<str>) -> Result<S::Receipt, WriteError> {
        self.store.set_remove(&self.name, element.as_ref())
    }

    /// Whether an element is in the set. It never waits.
    pub fn contains(&self, element: impl AsRef<str>) -> bool {
        self.store.set_contains(&self.name, element.as_ref())
    }

    /// The stamp and the expiry of an element. Its value is empty. `None` if it is not in the set.
    pub fn entry(&self, element: impl AsRef<str>) -> Option<Entry> {
        self.store.set_entry(&self.name, element.as_ref())
    }

    /// All elements in order, as they were at one instant.
    pub fn iter(&self) -> impl Iterator<Item = String> + use<S> {
        self.store.set_iter(&self.name)
    }

    /// One page of the elements: the first `rows` (at most 1,024) behind `after` in order, as they were at one instant.
    /// [`Store::scan_page`] does the same for keys.
    pub fn page(&self, after: Option<&str>, rows: usize) -> Vec<String> {
        self.entries(after, rows).iter().map(|element| element.key().to_owned()).collect()
    }

    /// The same as [`page`](Self::page), with the stamp and the expiry of each element. Their values are empty.
    pub fn entries(&self, after: Option<&str>, rows: usize) -> Vec<Entry> {
        self.store.set_entries(&self.name, after, rows)
    }

    /// The number of elements. It walks over all of them.
    pub fn len(&self) -> usize {
        self.store.set_len(&self.name)
    }

    /// Whether the set has no elements.
    pub fn is_empty(&self) -> bool {
        self.page(None, 1).is_empty()
    }

    /// Watches the elements: [`WatchEvent::Put`](crate::WatchEvent::Put) where one is added,
    /// [`WatchEvent::Delete`](crate::WatchEvent::Delete) where one is removed,
    /// [`WatchEvent::Expired`](crate::WatchEvent::Expired) where one ends by itself.
    pub fn watch(&self) -> S::Watch {
        self.watch_with(WatchOptions::new())
    }

    /// Watches the elements with options. [`WatchOptions::exact`] has no effect: a watch of a set has all elements.
    pub fn watch_with(&self, options: WatchOptions) -> S::Watch {
        self.store.set_watch(&self.name, options)
    }
}
