//! Typed maps: the keys below a prefix, with values in a serde format.

mod codec;
mod decoded;
mod entry;
mod watch;

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use codec::{Codec, Json};
use decoded::DecodedValues;
pub use entry::MapEntry;
use watch::decode;
pub use watch::{MapEvent, MapWatch};

use super::{Store, writer};
use crate::error::{Cause, DecodeError, Error, WriteError};
use crate::replica::PutOptions;
use crate::store::OnlyIf;
use crate::store::entry::Entry;

/// How often [`Map::update`] reads and writes before it gives up.
const UPDATE_TRIES_MAX: usize = 32;

/// The keys that begin with a prefix, as a map of values of type `T`, stored as JSON or in another format
/// ([`with_codec`](Self::with_codec)). Keys are given without the prefix.
///
/// A value is decoded when it is first read. The latest 4,096 or so stay decoded, and all clones of a map share them: so
/// keep a map instead of making one for each read.
///
/// ```
/// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
/// #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
/// struct Limits { max: u32 }
///
/// let limits = node.map::<Limits>("limits/");
/// limits.put("api", &Limits { max: 100 })?;
/// assert_eq!(limits.get("api")?.as_deref(), Some(&Limits { max: 100 }));
/// limits.update("api", |old| Limits { max: old.map_or(1, |old| old.max * 2) })?;
/// assert_eq!(limits.get("api")?.unwrap().max, 200);
/// node.put("limits/web", "not JSON")?;
/// assert!(limits.get("web").unwrap_err().to_string().contains("limits/web"));
/// # Ok::<(), tidings::Error>(())
/// ```
pub struct Map<T, #[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S, C = Json> {
    store: S,
    prefix: String,
    decoded: Arc<DecodedValues<T>>,
    codec: PhantomData<fn() -> C>,
}

impl<T, S: Store, C> Clone for Map<T, S, C> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            decoded: self.decoded.clone(),
            codec: PhantomData,
        }
    }
}

impl<T, S, C> std::fmt::Debug for Map<T, S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<T, S: Store> Map<T, S> {
    pub(crate) fn new(store: S, prefix: String) -> Self {
        Self { store, prefix, decoded: Arc::default(), codec: PhantomData }
    }
}

impl<T, S: Store, C: Codec> Map<T, S, C> {
    /// The same map with values in another format.
    #[must_use]
    pub fn with_codec<D: Codec>(self) -> Map<T, S, D> {
        // What was decoded in one format need not be what another one gives.
        Map { store: self.store, prefix: self.prefix, decoded: Arc::default(), codec: PhantomData }
    }

    fn key(&self, key: &str) -> String {
        let mut whole = String::with_capacity(self.prefix.len() + key.len());
        whole.push_str(&self.prefix);
        whole.push_str(key);
        whole
    }

    fn raw(&self, key: &str) -> Option<Entry> {
        self.store.get(&self.key(key))
    }

    /// Deletes a key, as [`Store::delete`] does.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<S::Receipt, Error> {
        Ok(self.store.delete(&self.key(key.as_ref()))?)
    }

    /// Deletes a key under a condition, as [`Store::delete_if`] does.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn delete_if(&self, key: impl AsRef<str>, only_if: OnlyIf) -> Result<S::Receipt, Error> {
        Ok(self.store.delete_if(&self.key(key.as_ref()), only_if)?)
    }

    /// The keys in order, as they were at one instant, also those whose value is not of type `T`.
    pub fn keys(&self) -> impl Iterator<Item = String> + use<T, S, C> {
        let prefix_bytes = self.prefix.len();
        self.store.scan(&self.prefix).into_iter().map(move |entry| entry.key()[prefix_bytes..].to_owned())
    }
}

impl<T: DeserializeOwned, S: Store, C: Codec> Map<T, S, C> {
    fn decode(&self, entry: &Entry) -> Result<Arc<T>, DecodeError> {
        self.decoded.of(entry, decode::<T, C>)
    }

    /// The value of a key, `None` if it holds none. It never waits.
    ///
    /// # Errors
    /// [`Error::Decode`] if the stored value is not of type `T`; it names the key.
    pub fn get(&self, key: impl AsRef<str>) -> Result<Option<Arc<T>>, Error> {
        match self.raw(key.as_ref()) {
            Some(entry) => Ok(Some(self.decode(&entry)?)),
            None => Ok(None),
        }
    }

    /// The value of a key with its stamp, its writer and the values that conflict with it.
    ///
    /// # Errors
    /// [`Error::Decode`] if the stored value is not of type `T`; it names the key.
    pub fn entry(&self, key: impl AsRef<str>) -> Result<Option<MapEntry<T>>, Error> {
        Ok(self.raw(key.as_ref()).map(|entry| self.entry_of(&entry)).transpose()?)
    }

    fn entry_of(&self, entry: &Entry) -> Result<MapEntry<T>, DecodeError> {
        Ok(MapEntry {
            key: entry.key()[self.prefix.len()..].to_owned(),
            value: self.decode(entry)?,
            stamp: entry.stamp(),
            writer: writer(&self.store, entry.stamp()),
            expires_at: entry.expires_at(),
            conflicts: entry.conflicts().map(|conflict| self.entry_of(&conflict)).collect(),
        })
    }

    /// All keys with their values in key order, as they were at one instant. A value that is not of type `T` is an error
    /// that names its key.
    pub fn iter(&self) -> impl Iterator<Item = Result<(String, Arc<T>), DecodeError>> {
        let key = |entry: &Entry| entry.key()[self.prefix.len()..].to_owned();
        let entries = self.store.scan(&self.prefix).into_iter();
        entries.map(move |entry| Ok((key(&entry), self.decode(&entry)?)))
    }

    /// Watches all keys of the map: first the current values, then every change.
    pub fn watch(&self) -> MapWatch<T, S, C> {
        let watch = self.store.watch(&self.prefix);
        let decoded = self.decoded.clone();
        MapWatch { watch, prefix_bytes: self.prefix.len(), decoded, codec: PhantomData }
    }
}

impl<T: Serialize, S: Store, C: Codec> Map<T, S, C> {
    /// Writes a value.
    ///
    /// # Errors
    /// [`Error::Decode`] if the format cannot express the value, or see [`WriteError`]; nothing is written then.
    pub fn put(&self, key: impl AsRef<str>, value: &T) -> Result<S::Receipt, Error> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Writes a value under a condition, with a time to live, or both.
    ///
    /// # Errors
    /// [`Error::Decode`] if the format cannot express the value, or see [`WriteError`]; nothing is written then.
    pub fn put_with(
        &self,
        key: impl AsRef<str>,
        value: &T,
        options: PutOptions,
    ) -> Result<S::Receipt, Error> {
        let key = self.key(key.as_ref());
        match C::encode(value) {
            Ok(bytes) => Ok(self.store.put_with(&key, &bytes, options)?),
            Err(error) => Err(DecodeError { key, reason: Cause::new(error) }.into()),
        }
    }

    /// Writes a value under a condition, which is compared with what this node holds.
    ///
    /// # Errors
    /// [`WriteError::Condition`] if it does not hold; otherwise as [`put`](Self::put). Nothing is written then.
    pub fn put_if(&self, key: impl AsRef<str>, value: &T, only_if: OnlyIf) -> Result<S::Receipt, Error> {
        self.put_with(key, value, PutOptions::new().only_if(only_if))
    }
}

impl<T: Serialize + DeserializeOwned, S: Store, C: Codec> Map<T, S, C> {
    /// Replaces a value by one that is computed from it, if nothing else has changed the key on this node meanwhile;
    /// otherwise computes it again from the new value, up to 32 times. A concurrent write on another node is not
    /// noticed: it stays as a conflict, as with any other write. The new value does not expire.
    ///
    /// # Errors
    /// [`WriteError::Condition`] if the key changed each time; [`Error::Decode`] if the present value is not of type
    /// `T`; otherwise as [`put`](Self::put). Nothing is written then.
    pub fn update(
        &self,
        key: impl AsRef<str>,
        mut change: impl FnMut(Option<&T>) -> T,
    ) -> Result<S::Receipt, Error> {
        let (key, mut tries) = (key.as_ref(), 0);
        loop {
            tries += 1;
            let entry = self.raw(key);
            let old = entry.as_ref().map(|entry| self.decode(entry)).transpose()?;
            let only_if = entry.map_or(OnlyIf::Absent, |entry| OnlyIf::Stamp(entry.stamp()));
            match self.put_if(key, &change(old.as_deref()), only_if) {
                Err(Error::Write(WriteError::Condition { .. })) if tries < UPDATE_TRIES_MAX => {}
                written => return written,
            }
        }
    }
}
