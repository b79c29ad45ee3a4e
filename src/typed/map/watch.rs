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
use crate::store::entry::Revision;
use crate::store::watch::WatchEvent;
use crate::time::Stamp;
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

/// An event of a [`MapWatch`]: a [`WatchEvent`] with a typed value. Keys are without the map's prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", bound = "T: Serialize")]
pub enum MapEvent<T> {
    /// A key has this value now.
    Put {
        /// The key.
        key: String,
        /// The value.
        #[serde(serialize_with = "form::write_shared")]
        value: Arc<T>,
        /// The stamp of the write. [`Map::entry`](crate::Map::entry) gives everything that is known of the value.
        stamp: Stamp,
        /// Where to resume from, after this event.
        revision: Revision,
    },
    /// A key has a value now that is not of type `T`. Its earlier value is no longer current.
    Invalid {
        /// The key.
        key: String,
        /// What is wrong with the value.
        error: DecodeError,
        /// Where to resume from, after this event.
        revision: Revision,
    },
    /// A key was deleted. A slow watch may report it without having reported the value.
    Delete {
        /// The key.
        key: String,
        /// Where to resume from, after this event.
        revision: Revision,
        /// The stamp of the delete, as [`WatchEvent::Delete`] has it.
        stamp: Option<Stamp>,
        /// The name of the member that deleted it, as [`WatchEvent::Delete`] has it.
        writer: Option<String>,
    },
    /// The last value of a key expired, or ended with its process or is hidden, as [`WatchEvent::Expired`] says.
    Expired {
        /// The key.
        key: String,
        /// Where to resume from, after this event.
        revision: Revision,
    },
    /// All values that existed when the watch began, or at the last [`MapEvent::Resync`], were reported.
    Current,
    /// The watch fell so far behind that deletes may have been missed: discard everything reported so far. All current
    /// values follow, then [`MapEvent::Current`].
    Resync,
}

impl<T> MapEvent<T> {
    /// The key that the event is about, if any.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. }
            | Self::Invalid { key, .. }
            | Self::Delete { key, .. }
            | Self::Expired { key, .. } => Some(key),
            Self::Current | Self::Resync => None,
        }
    }

    /// Where to resume from after this event, if it is about a key: for
    /// [`WatchOptions::resume_from`](crate::WatchOptions::resume_from).
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Put { revision, .. }
            | Self::Invalid { revision, .. }
            | Self::Delete { revision, .. }
            | Self::Expired { revision, .. } => Some(*revision),
            Self::Current | Self::Resync => None,
        }
    }
}

impl<T: DeserializeOwned, S: Store, C: Codec> MapWatch<T, S, C> {
    /// Waits for the next event. `None` once the node is closed. A `next` that is dropped while it waits loses no event.
    pub async fn next(&mut self) -> Option<MapEvent<T>> {
        typed::next(self).await
    }

    fn translate(&self, event: WatchEvent) -> MapEvent<T> {
        let of_map = |key: &str| key[self.prefix_bytes..].to_owned();
        match event {
            WatchEvent::Put(entry) => {
                let (key, revision) = (of_map(entry.key()), entry.revision());
                match self.reader.value(&entry, None::<&S>) {
                    Ok(value) => MapEvent::Put { key, value, stamp: entry.stamp(), revision },
                    Err(error) => MapEvent::Invalid { key, error, revision },
                }
            }
            WatchEvent::Delete { key, revision, stamp, writer } => {
                MapEvent::Delete { key: of_map(&key), revision, stamp, writer }
            }
            WatchEvent::Expired { key, revision } => MapEvent::Expired { key: of_map(&key), revision },
            WatchEvent::Current => MapEvent::Current,
            WatchEvent::Resync => MapEvent::Resync,
        }
    }
}

impl<T: DeserializeOwned, S: Store, C: Codec> Stream for MapWatch<T, S, C> {
    type Item = MapEvent<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MapEvent<T>>> {
        loop {
            let event = ready!(Pin::new(&mut self.watch).poll_next(cx));
            if !event.as_ref().and_then(WatchEvent::key).is_some_and(is_schema) {
                return Poll::Ready(event.map(|event| self.translate(event)));
            }
        }
    }
}
