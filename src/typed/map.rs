//! Typed maps: the keys below a prefix, with values kept as JSON.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Store;
use crate::error::{Cause, DecodeError, Error};
use crate::store::entry::Entry;
use crate::store::watch::WatchEvent;

/// The keys that begin with a prefix, as a map of values of type `T`, stored as JSON. Keys are given without the prefix.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
/// struct Limits { max: u32 }
///
/// let limits = node.map::<Limits>("limits/");
/// limits.put("api", &Limits { max: 100 })?;
/// assert_eq!(limits.get("api")?, Some(Limits { max: 100 }));
/// node.put("limits/web", "not JSON")?;
/// assert!(limits.get("web").unwrap_err().to_string().contains("limits/web"));
/// # Ok::<(), tidings::Error>(())
/// ```
pub struct Map<T, #[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    store: S,
    prefix: String,
    values: PhantomData<fn() -> T>,
}

impl<T, S: Store> Clone for Map<T, S> {
    fn clone(&self) -> Self {
        Self::new(self.store.clone(), self.prefix.clone())
    }
}

impl<T, S> std::fmt::Debug for Map<T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<T, S: Store> Map<T, S> {
    pub(crate) fn new(store: S, prefix: String) -> Self {
        Self { store, prefix, values: PhantomData }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Deletes a key, as [`Store::delete`] does.
    ///
    /// # Errors
    /// See [`WriteError`](crate::WriteError); nothing is written then.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<S::Receipt, Error> {
        Ok(self.store.delete(&self.key(key.as_ref()))?)
    }
}

impl<T: DeserializeOwned, S: Store> Map<T, S> {
    /// The value of a key, `None` if it holds none. It never waits.
    ///
    /// # Errors
    /// If the stored value is not of type `T`; the error names the key.
    pub fn get(&self, key: impl AsRef<str>) -> Result<Option<T>, Error> {
        let entry = self.store.get(&self.key(key.as_ref()));
        Ok(entry.as_ref().map(decode).transpose()?)
    }

    /// Watches all keys of the map: first the current values, then every change.
    pub fn watch(&self) -> MapWatch<T, S> {
        let watch = self.store.watch(&self.prefix);
        MapWatch { watch, prefix_bytes: self.prefix.len(), values: PhantomData }
    }
}

impl<T: Serialize, S: Store> Map<T, S> {
    /// Writes a value.
    ///
    /// # Errors
    /// If the value cannot be encoded as JSON, or see [`WriteError`](crate::WriteError); nothing is written then.
    pub fn put(&self, key: impl AsRef<str>, value: &T) -> Result<S::Receipt, Error> {
        let key = self.key(key.as_ref());
        match serde_json::to_vec(value) {
            Ok(text) => Ok(self.store.put(&key, &text)?),
            Err(error) => Err(DecodeError { key, reason: Cause::new(error) }.into()),
        }
    }
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, DecodeError> {
    serde_json::from_slice(entry.value())
        .map_err(|error| DecodeError { key: entry.key().to_owned(), reason: Cause::new(error) })
}

/// A watch of a [`Map`]; [`Map::watch`] makes one.
pub struct MapWatch<
    T,
    #[cfg(feature = "node")] S: Store = crate::Node,
    #[cfg(not(feature = "node"))] S: Store,
> {
    watch: S::Watch,
    prefix_bytes: usize,
    values: PhantomData<fn() -> T>,
}

impl<T, S: Store<Watch: std::fmt::Debug>> std::fmt::Debug for MapWatch<T, S> {
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
    /// The watch fell so far behind that deletes may have been missed: discard everything reported so far. All current
    /// values follow, then [`MapEvent::Current`].
    Resync,
}

impl<T: DeserializeOwned, S: Store> MapWatch<T, S> {
    /// Waits for the next event. `None` once the node is closed. A `next` that is dropped while it waits loses no event.
    pub async fn next(&mut self) -> Option<MapEvent<T>> {
        super::next(self).await
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

impl<T: DeserializeOwned, S: Store> Stream for MapWatch<T, S> {
    type Item = MapEvent<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MapEvent<T>>> {
        let event = ready!(Pin::new(&mut self.watch).poll_next(cx));
        Poll::Ready(event.map(|event| self.translate(&event)))
    }
}
