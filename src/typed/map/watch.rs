//! Watches of typed maps.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, Json};
use super::reader::MapReader;
use crate::error::DecodeError;
use crate::form;
use crate::store::watch::WatchEvent;
use crate::typed::schema::is_schema;
use crate::typed::{self, Store};

/// A watch of a [`Map`](crate::Map); [`Map::watch`](crate::Map::watch) makes one.
pub struct MapWatch<
    T,
    #[cfg(feature = "node")] S: Store = crate::Node,
    #[cfg(not(feature = "node"))] S: Store,
    C = Json,
> {
    pub(super) watch: S::Watch,
    pub(super) prefix_bytes: usize,
    pub(super) reader: MapReader<T, C>,
}

impl<T, S: Store<Watch: std::fmt::Debug>, C> std::fmt::Debug for MapWatch<T, S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MapWatch").field(&self.watch).finish()
    }
}

/// An event of a [`MapWatch`]. Keys are without the map's prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", bound = "T: Serialize")]
pub enum MapEvent<T> {
    /// A key has this value now.
    Put(String, #[serde(serialize_with = "form::write_shared")] Arc<T>),
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

impl<T: DeserializeOwned, S: Store, C: Codec> MapWatch<T, S, C> {
    /// Waits for the next event. `None` once the node is closed. A `next` that is dropped while it waits loses no event.
    pub async fn next(&mut self) -> Option<MapEvent<T>> {
        typed::next(self).await
    }

    fn translate(&self, event: &WatchEvent) -> MapEvent<T> {
        let key = event.key().map(|key| key[self.prefix_bytes..].to_owned());
        match (event, key) {
            (WatchEvent::Put(entry), Some(key)) => match self.reader.value(entry) {
                Ok(value) => MapEvent::Put(key, value),
                Err(error) => MapEvent::Invalid(error),
            },
            (_, Some(key)) => MapEvent::Delete(key),
            (WatchEvent::Current, None) => MapEvent::Current,
            (_, None) => MapEvent::Resync,
        }
    }
}

impl<T: DeserializeOwned, S: Store, C: Codec> Stream for MapWatch<T, S, C> {
    type Item = MapEvent<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MapEvent<T>>> {
        loop {
            let event = ready!(Pin::new(&mut self.watch).poll_next(cx));
            if !event.as_ref().and_then(WatchEvent::key).is_some_and(is_schema) {
                return Poll::Ready(event.map(|event| self.translate(&event)));
            }
        }
    }
}
