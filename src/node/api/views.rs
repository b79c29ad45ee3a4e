//! Views of the store: scans, sets, counters and typed maps. A view holds [`Shared`] and no [`Node`](crate::Node), so
//! that it does not keep the node alive.
//!
//! A scan shows one instant without holding the lock throughout. It reads the rows in pieces, notes where the change
//! log stood before the first one, and reads at the end, together with the last piece, the rows that changed since
//! then. The instant is that of the last piece. If the log forgot removals meanwhile, the scan must start over: a
//! deleted entry would stay in the result.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::WriteError;
use crate::node::api::receipt::Receipt;
use crate::node::api::watch::Watch;
use crate::node::runtime::shared::Shared;
use crate::store::entry::{self, Entry, Revision};
use crate::store::watch::WatchOptions;

/// Entries that a scan reads under one lock, and the longest page.
const SCAN_ROWS: usize = 1_024;
/// The last of so many attempts of a scan holds the lock throughout, so that it cannot fail.
const SCAN_TRIES: usize = 3;

/// All registers whose name begins with `prefix`, as of the instant of the last piece.
pub(in crate::node) fn scan(shared: &Shared, prefix: &str) -> Vec<Entry> {
    let mut stored = Vec::new();
    entry::register_key(prefix, &mut stored);
    scan_stored(shared, &stored)
}

fn scan_stored(shared: &Shared, prefix: &[u8]) -> Vec<Entry> {
    for attempt in 1.. {
        let rows = if attempt < SCAN_TRIES { SCAN_ROWS } else { usize::MAX };
        if let Some(entries) = try_scan(shared, prefix, rows) {
            return entries;
        }
    }
    unreachable!("the log forgets nothing during a scan in one piece")
}

/// One attempt, reading `rows` rows at a time. `None` if the log was replaced or forgot removals meanwhile.
fn try_scan(shared: &Shared, prefix: &[u8], rows: usize) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut next = prefix.to_vec();
    let mut cursor: Option<Revision> = None;
    loop {
        let Some(core) = shared.lock_closed() else { return Some(entries) };
        let (store, now) = (&core.replica.store, shared.now());
        let revision = |number| Revision { log: store.log.id, number };
        let since = *cursor.get_or_insert(revision(store.log.head()));
        let mut read = 0;
        let mut last = None;
        for (dot_set, number) in
            store.iter_from(&next).take_while(|(dot_set, _)| dot_set.key().starts_with(prefix)).take(rows)
        {
            read += 1;
            last = Some(dot_set.key());
            entries.extend(Entry::new(dot_set, revision(number), now.wall_ms()));
        }
        if let Some(last) = last.filter(|_| read == rows) {
            next = [last, &[0]].concat();
            continue;
        }
        if since.log != store.log.id || since.number < store.log.floor() {
            return None;
        }
        let changed = store.log.rows_after(since.number).map(|(number, id)| (number, &store.row(id).dot_set));
        let mut changed = changed.filter(|(_, dot_set)| dot_set.key().starts_with(prefix)).peekable();
        if changed.peek().is_none() {
            return Some(entries);
        }
        let mut latest: BTreeMap<String, Option<Entry>> = BTreeMap::new();
        for (number, dot_set) in changed {
            let key = entry::readable_key(dot_set.key()).to_owned();
            latest.insert(key, Entry::new(dot_set, revision(number), now.wall_ms()));
        }
        drop(core);
        entries.retain(|entry| !latest.contains_key(entry.key()));
        entries.extend(latest.into_values().flatten());
        entries.sort_by(|a, b| a.key().cmp(b.key()));
        return Some(entries);
    }
}

/// At most `rows` registers whose name begins with `prefix` and comes behind `after`, as of one instant.
pub(in crate::node) fn page(shared: &Shared, prefix: &str, after: Option<&str>, rows: usize) -> Vec<Entry> {
    let mut stored = Vec::new();
    entry::register_key(prefix, &mut stored);
    let after = after.map(|after| {
        let mut stored = Vec::new();
        entry::register_key(after, &mut stored);
        stored
    });
    page_stored(shared, &stored, after, rows)
}

fn page_stored(shared: &Shared, prefix: &[u8], after: Option<Vec<u8>>, rows: usize) -> Vec<Entry> {
    let rows = rows.min(SCAN_ROWS);
    // The least key that is greater than `after`.
    let next = after.map_or_else(Vec::new, |after| [&after[..], &[0]].concat());
    let Some(core) = shared.lock_closed() else { return Vec::new() };
    let (store, wall_ms) = (&core.replica.store, shared.now().wall_ms());
    let revision = |number| Revision { log: store.log.id, number };
    let below = store
        .iter_from(next.as_slice().max(prefix))
        .take_while(|(dot_set, _)| dot_set.key().starts_with(prefix));
    below.filter_map(|(dot_set, number)| Entry::new(dot_set, revision(number), wall_ms)).take(rows).collect()
}

/// A set of strings. If an element is added and removed concurrently, it stays in the set.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let banned = node.set("banned");
/// banned.add("mallory")?;
/// assert!(banned.contains("mallory"));
/// banned.remove("mallory")?;
/// assert_eq!(banned.iter().count(), 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Set {
    shared: Arc<Shared>,
    name: String,
}

impl Set {
    pub(in crate::node) fn new(shared: &Arc<Shared>, name: String) -> Self {
        Self { shared: shared.clone(), name }
    }

    fn stored(&self, element: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        entry::set_prefix(&self.name, &mut stored);
        stored.extend_from_slice(element.as_bytes());
        stored
    }

    /// Adds an element.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&self, element: impl AsRef<str>) -> Result<Receipt, WriteError> {
        let write = self.shared.write(|replica, now| replica.set_add(now, &self.name, element.as_ref()));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, Some(stamp), revision))
    }

    /// Removes an element. Concurrent additions that this node has not received yet survive.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn remove(&self, element: impl AsRef<str>) -> Result<Receipt, WriteError> {
        let write = self.shared.write(|replica, now| replica.set_remove(now, &self.name, element.as_ref()));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, stamp, revision))
    }

    /// Whether an element is in the set. It never waits.
    pub fn contains(&self, element: impl AsRef<str>) -> bool {
        self.shared.index.has(&self.stored(element.as_ref()))
    }

    /// All elements in order, as they were at one instant.
    pub fn iter(&self) -> impl Iterator<Item = String> + use<> {
        scan_stored(&self.shared, &self.stored("")).into_iter().map(|entry| entry.key().to_owned())
    }

    /// One page of the elements: the first `rows` (at most 1,024) behind `after` in order, as they were at one instant.
    /// [`Node::scan_page`](crate::Node::scan_page) does the same for keys.
    pub fn page(&self, after: Option<&str>, rows: usize) -> Vec<String> {
        let after = after.map(|after| self.stored(after));
        let entries = page_stored(&self.shared, &self.stored(""), after, rows);
        entries.iter().map(|entry| entry.key().to_owned()).collect()
    }

    /// The number of elements. It walks over all of them.
    pub fn len(&self) -> usize {
        let prefix = self.stored("");
        self.shared.lock_closed().map_or(0, |core| core.replica.store.with_prefix(&prefix).count())
    }

    /// Whether the set has no elements.
    pub fn is_empty(&self) -> bool {
        let prefix = self.stored("");
        self.shared.lock_closed().is_none_or(|core| core.replica.store.with_prefix(&prefix).next().is_none())
    }

    /// Watches the elements: [`WatchEvent::Put`](crate::WatchEvent::Put) where one is added,
    /// [`WatchEvent::Delete`](crate::WatchEvent::Delete) where one is removed.
    pub fn watch(&self) -> Watch {
        self.watch_with(WatchOptions::new())
    }

    /// Watches the elements with options. [`WatchOptions::exact`] has no effect: a watch of a set has all elements.
    pub fn watch_with(&self, options: WatchOptions) -> Watch {
        Watch::new(&self.shared, self.stored(""), options.inexact())
    }
}

/// A counter that all nodes may increase and decrease concurrently.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let hits = node.counter("hits");
/// hits.add(3)?;
/// hits.add(-1)?;
/// assert_eq!(hits.value(), 2);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Counter {
    shared: Arc<Shared>,
    name: String,
}

impl Counter {
    pub(in crate::node) fn new(shared: &Arc<Shared>, name: String) -> Self {
        Self { shared: shared.clone(), name }
    }

    /// Adds `by`, which may be negative.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn add(&self, by: i64) -> Result<Receipt, WriteError> {
        let write = self.shared.write(|replica, now| replica.counter_add(now, &self.name, by));
        write.map(|(stamp, revision)| Receipt::new(&self.shared, Some(stamp), revision))
    }

    /// The value: the sum of everything added on any node, as far as this node has received it.
    pub fn value(&self) -> i64 {
        self.shared.lock_closed().map_or(0, |core| core.replica.counter_value(&self.name))
    }
}

#[cfg(feature = "json")]
pub use json::{Map, MapEvent, MapWatch};

#[cfg(feature = "json")]
mod json {
    use std::marker::PhantomData;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, ready};

    use futures_core::Stream;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use crate::node::api::receipt::Receipt;
    use crate::node::api::watch::Watch;
    use crate::node::error::{Cause, DecodeError, Error};
    use crate::node::runtime::shared::{Shared, wall};
    use crate::node::runtime::waiter;
    use crate::replica::PutOptions;
    use crate::store::entry::{Entry, register_key};
    use crate::store::watch::{WatchEvent, WatchOptions};

    /// The keys that begin with a prefix, as a map of values of type `T`, stored as JSON. Keys are given without the
    /// prefix.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret("a secret for examples")?;
    /// # let node = tidings::Node::builder("a").security(security).start().await?;
    /// #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    /// struct Limits { max: u32 }
    ///
    /// let limits = node.map::<Limits>("limits/");
    /// limits.put("api", &Limits { max: 100 })?;
    /// assert_eq!(limits.get("api")?, Some(Limits { max: 100 }));
    /// node.put("limits/web", "not JSON")?;
    /// assert!(limits.get("web").unwrap_err().to_string().contains("limits/web"));
    /// # Ok(()) }
    /// ```
    pub struct Map<T> {
        shared: Arc<Shared>,
        prefix: String,
        values: PhantomData<fn() -> T>,
    }

    impl<T> Clone for Map<T> {
        fn clone(&self) -> Self {
            Self::new(&self.shared, self.prefix.clone())
        }
    }

    impl<T> std::fmt::Debug for Map<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Map").field("prefix", &self.prefix).finish_non_exhaustive()
        }
    }

    impl<T> Map<T> {
        pub(in crate::node) fn new(shared: &Arc<Shared>, prefix: String) -> Self {
            Self { shared: shared.clone(), prefix, values: PhantomData }
        }

        /// Deletes a key, as [`Node::delete`](crate::Node::delete) does.
        ///
        /// # Errors
        /// See [`WriteError`](crate::WriteError); nothing is written then.
        pub fn delete(&self, key: impl AsRef<str>) -> Result<Receipt, Error> {
            let key = format!("{}{}", self.prefix, key.as_ref());
            let write = self.shared.write(|replica, now| replica.delete(now, &key));
            let (stamp, revision) = write?;
            Ok(Receipt::new(&self.shared, stamp, revision))
        }
    }

    impl<T: DeserializeOwned> Map<T> {
        /// The value of a key, `None` if it holds none. It never waits.
        ///
        /// # Errors
        /// If the stored value is not of type `T`; the error names the key.
        pub fn get(&self, key: impl AsRef<str>) -> Result<Option<T>, Error> {
            let key = format!("{}{}", self.prefix, key.as_ref());
            let entry = self.shared.index.register(self.shared.log(), &key, || wall().as_millis() as u64);
            Ok(entry.as_ref().map(decode).transpose()?)
        }

        /// Watches all keys of the map: first the current values, then every change.
        pub fn watch(&self) -> MapWatch<T> {
            let mut stored = Vec::new();
            register_key(&self.prefix, &mut stored);
            let watch = Watch::new(&self.shared, stored, WatchOptions::new());
            MapWatch { watch, prefix_bytes: self.prefix.len(), values: PhantomData }
        }
    }

    impl<T: Serialize> Map<T> {
        /// Writes a value.
        ///
        /// # Errors
        /// If the value cannot be encoded as JSON, or see [`WriteError`](crate::WriteError); nothing is written then.
        pub fn put(&self, key: impl AsRef<str>, value: &T) -> Result<Receipt, Error> {
            let key = format!("{}{}", self.prefix, key.as_ref());
            let text = serde_json::to_vec(value)
                .map_err(|error| DecodeError { key: key.clone(), reason: Cause::new(error) })?;
            let options = PutOptions::new();
            let (stamp, revision) =
                self.shared.write(|replica, now| replica.put_with(now, &key, &text, &options))?;
            Ok(Receipt::new(&self.shared, Some(stamp), revision))
        }
    }

    fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, DecodeError> {
        serde_json::from_slice(entry.value())
            .map_err(|error| DecodeError { key: entry.key().to_owned(), reason: Cause::new(error) })
    }

    /// A watch of a [`Map`]; [`Map::watch`] makes one.
    pub struct MapWatch<T> {
        watch: Watch,
        prefix_bytes: usize,
        values: PhantomData<fn() -> T>,
    }

    impl<T> std::fmt::Debug for MapWatch<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("MapWatch").field(&self.watch).finish()
        }
    }

    /// An event of a [`MapWatch`]. Keys are without the map's prefix.
    #[derive(Clone, Debug, PartialEq)]
    #[non_exhaustive]
    pub enum MapEvent<T> {
        /// A key has this value now.
        Put(String, T),
        /// A key has a value now that is not of type `T`. Its earlier value is no longer current.
        Invalid(DecodeError),
        /// A key was deleted, or its value expired. A slow watch may report it without having reported the value.
        Delete(String),
        /// All values that existed when the watch began, or at the last [`MapEvent::Resync`], were reported.
        Current,
        /// The watch fell so far behind that deletes may have been missed: discard everything reported so far. All
        /// current values follow, then [`MapEvent::Current`].
        Resync,
    }

    impl<T: DeserializeOwned> MapWatch<T> {
        /// Waits for the next event. `None` once the node is closed. A `next` that is dropped while it waits loses no
        /// event.
        pub async fn next(&mut self) -> Option<MapEvent<T>> {
            waiter::next(self).await
        }

        fn translate(&self, event: &WatchEvent) -> MapEvent<T> {
            let key = event.key().map(|key| key[self.prefix_bytes..].to_owned());
            match (event, key) {
                (WatchEvent::Put(entry), Some(key)) => match decode(entry) {
                    Ok(value) => MapEvent::Put(key, value),
                    Err(error) => MapEvent::Invalid(error),
                },
                (_, Some(key)) => MapEvent::Delete(key),
                (WatchEvent::Current, None) => MapEvent::Current,
                (_, None) => MapEvent::Resync,
            }
        }
    }

    impl<T: DeserializeOwned> Stream for MapWatch<T> {
        type Item = MapEvent<T>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MapEvent<T>>> {
            let event = ready!(Pin::new(&mut self.watch).poll_next(cx));
            Poll::Ready(event.map(|event| self.translate(&event)))
        }
    }
}
