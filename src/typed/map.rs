//! Typed maps: the keys below a prefix, with values in a serde format.

mod codec;
mod decoded;
mod entry;
mod reader;
mod watch;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use codec::{Codec, Json};
pub use entry::MapEntry;
use reader::MapReader;
pub use watch::{MapEvent, MapWatch};

use super::{Store, schema, writer};
use crate::error::{Cause, DecodeError, Error, WriteError};
use crate::replica::PutOptions;
use crate::store::OnlyIf;
use crate::store::entry::Entry;
use crate::store::watch::WatchOptions;

/// How often [`Map::update`] reads and writes before it gives up.
const UPDATE_TRIES_MAX: usize = 32;

/// The keys that begin with a prefix, as a map of values of type `T`, stored as JSON or in another format
/// ([`with_codec`](Self::with_codec)). Keys are given without the prefix. Keys that end in `$schema` hold JSON Schemas
/// ([`SCHEMA_SUFFIX`](crate::map::SCHEMA_SUFFIX)) and are no part of the map.
///
/// A value is decoded when it is first read. Up to about 65,000 stay decoded, and all clones of a map share them: so keep
/// a map instead of making one for each read.
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
    reader: MapReader<T, C>,
}

impl<T, S: Store, C> Clone for Map<T, S, C> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), prefix: self.prefix.clone(), reader: self.reader.clone() }
    }
}

impl<T, S, C> std::fmt::Debug for Map<T, S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<T, S: Store> Map<T, S> {
    pub(crate) fn new(store: S, prefix: String) -> Self {
        Self { reader: MapReader::new(prefix.len(), None), store, prefix }
    }
}

impl<T, S: Store, C: Codec> Map<T, S, C> {
    /// The same map with values in another format.
    #[must_use]
    pub fn with_codec<D: Codec>(self) -> Map<T, S, D> {
        let reader = MapReader::new(self.prefix.len(), self.reader.resolver());
        Map { store: self.store, prefix: self.prefix, reader }
    }

    /// The same map, in which the values that were written to a key concurrently are made one by `resolve`, instead of
    /// the one with the greatest stamp standing for all. It is given at least two values, that of the greatest stamp
    /// first. Reads, watches and [`update`](Self::update) have the result; it is written with the next write of the
    /// key, and until then [`entry`](Self::entry) shows the values themselves.
    ///
    /// All nodes that hold the same values give them in the same order. So they come to the same result, if `resolve`
    /// is the same on all of them and depends on nothing else.
    ///
    /// ```
    /// use std::collections::BTreeSet;
    ///
    /// let mut sim = tidings::sim::Sim::new(1).nodes(2);
    /// let tags = |i| {
    ///     let tags = sim.node(i).map::<BTreeSet<String>>("tags/");
    ///     tags.resolve_with(|versions| versions.iter().flat_map(|tags| tags.iter().cloned()).collect())
    /// };
    /// let (here, there) = (tags(0), tags(1));
    /// here.put("page", &BTreeSet::from(["new".to_owned()]))?; // both before the other one has arrived
    /// there.put("page", &BTreeSet::from(["draft".to_owned()]))?;
    /// sim.assert_converged();
    /// assert_eq!(here.get("page")?.unwrap().len(), 2);
    /// assert_eq!(here.get("page")?, there.get("page")?);
    /// # Ok::<(), tidings::Error>(())
    /// ```
    #[must_use]
    pub fn resolve_with(self, resolve: impl Fn(&[Arc<T>]) -> T + Send + Sync + 'static) -> Self {
        Self { reader: MapReader::new(self.prefix.len(), Some(Arc::new(resolve))), ..self }
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

    /// The entries of the map, without the schemas among them.
    fn entries(&self) -> impl Iterator<Item = Entry> + use<T, S, C> {
        self.store.scan(&self.prefix).into_iter().filter(|entry| !schema::is_schema(entry.key()))
    }

    /// The keys in order, as they were at one instant, also those whose value is not of type `T`.
    pub fn keys(&self) -> impl Iterator<Item = String> + use<T, S, C> {
        let prefix_bytes = self.prefix.len();
        self.entries().map(move |entry| entry.key()[prefix_bytes..].to_owned())
    }
}

#[cfg(feature = "schemars")]
impl<T: schemars::JsonSchema, S: Store> Map<T, S> {
    /// Puts the JSON Schema of `T` under the key `<prefix>$schema` ([`SCHEMA_SUFFIX`](crate::map::SCHEMA_SUFFIX)), for the
    /// tools of other people: `tidings put` and the HTTP interface refuse a value that does not satisfy it, and `tidings
    /// check` lists those that are there. Writes of this library are not compared with it, because what they write is of
    /// type `T`; what is read is decoded in any case.
    ///
    /// Call it at each start, once the node has caught up: after `Node::ready` or [`Store::joined`]. A node that has
    /// just started does not see that the schema is there, and what it writes then is a concurrent value beside those
    /// of all earlier starts. `None` if the key holds this schema already, and nothing was written. A call that finds
    /// concurrent values replaces all of them.
    ///
    /// ```
    /// # let node = tidings::sim::Sim::new(1).nodes(1).node(0);
    /// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    /// struct Limits { max: u32 }
    ///
    /// let limits = node.map::<Limits>("limits/");
    /// assert!(limits.put_schema()?.is_some());
    /// assert!(limits.put_schema()?.is_none());
    /// assert!(node.get("limits/$schema").is_some() && limits.keys().count() == 0);
    /// # Ok::<(), tidings::WriteError>(())
    /// ```
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_schema(&self) -> Result<Option<S::Receipt>, WriteError> {
        self.store.put_if_changed(&schema::key(&self.prefix), &schema::bytes(schema::of_values::<T>()))
    }
}

impl<T: DeserializeOwned, S: Store, C: Codec> Map<T, S, C> {
    /// The value of a key, `None` if it holds none. It never waits.
    ///
    /// # Errors
    /// [`Error::Decode`] if the stored value is not of type `T`; it names the key.
    pub fn get(&self, key: impl AsRef<str>) -> Result<Option<Arc<T>>, Error> {
        let key = key.as_ref();
        if let Some(value) = self.reader.current(key, &self.store) {
            return Ok(Some(value));
        }
        match self.raw(key) {
            Some(entry) => Ok(Some(self.reader.value(&entry, Some(&self.store))?)),
            None => Ok(None),
        }
    }

    /// The value of a key with its stamp, its writer and the values that conflict with it.
    ///
    /// # Errors
    /// [`Error::Decode`] if the stored value is not of type `T`; it names the key.
    pub fn entry(&self, key: impl AsRef<str>) -> Result<Option<MapEntry<T>>, Error> {
        let Some(entry) = self.raw(key.as_ref()) else { return Ok(None) };
        let conflict = |it: Entry| Ok(self.entry_of(&it, MapReader::<T, C>::conflict(&it)?));
        let conflicts = entry.conflicts().map(conflict).collect();
        Ok(Some(MapEntry {
            conflicts,
            ..self.entry_of(&entry, self.reader.decoded(&entry, Some(&self.store))?)
        }))
    }

    fn entry_of(&self, entry: &Entry, value: Arc<T>) -> MapEntry<T> {
        MapEntry {
            key: entry.key()[self.prefix.len()..].to_owned(),
            value,
            stamp: entry.stamp(),
            writer: writer(&self.store, entry.stamp()),
            expires_at: entry.expires_at(),
            conflicts: Vec::new(),
        }
    }

    /// All keys with their values in key order, as they were at one instant. A value that is not of type `T` is an error
    /// that names its key.
    pub fn iter(&self) -> impl Iterator<Item = Result<(String, Arc<T>), DecodeError>> {
        let key = |entry: &Entry| entry.key()[self.prefix.len()..].to_owned();
        self.entries().map(move |entry| Ok((key(&entry), self.reader.value(&entry, Some(&self.store))?)))
    }

    /// Watches all keys of the map: first the current values, then every change.
    pub fn watch(&self) -> MapWatch<T, S, C> {
        self.watch_with("", WatchOptions::new())
    }

    /// Watches one key alone.
    pub fn watch_key(&self, key: impl AsRef<str>) -> MapWatch<T, S, C> {
        self.watch_with(key, WatchOptions::new().exact())
    }

    /// Watches the keys of the map that begin with `prefix`, with options: one key alone, from an earlier position on, or
    /// changes only.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let sim = tidings::sim::Sim::new(1).nodes(1);
    /// # let node = sim.node(0);
    /// use tidings::{MapEvent, WatchOptions};
    ///
    /// let limits = node.map::<u32>("limits/");
    /// limits.put("api", &100)?;
    /// let mut watch = limits.watch();
    /// let position = watch.next().await.and_then(|event| event.revision()).expect("a value is there");
    /// limits.delete("api")?;
    /// let mut resumed = limits.watch_with("", WatchOptions::new().resume_from(position));
    /// assert!(matches!(resumed.next().await, Some(MapEvent::Delete { key, .. }) if key == "api"));
    /// # Ok(()) }
    /// ```
    pub fn watch_with(&self, prefix: impl AsRef<str>, options: WatchOptions) -> MapWatch<T, S, C> {
        let watch = self.store.watch_with(&self.key(prefix.as_ref()), options);
        MapWatch { watch, prefix_bytes: self.prefix.len(), reader: self.reader.clone() }
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
            let old = entry.as_ref().map(|entry| self.reader.value(entry, Some(&self.store))).transpose()?;
            let only_if = entry.map_or(OnlyIf::Absent, |entry| OnlyIf::Revision(entry.revision()));
            match self.put_if(key, &change(old.as_deref()), only_if) {
                Err(Error::Write(WriteError::Condition { .. })) if tries < UPDATE_TRIES_MAX => {}
                written => return written,
            }
        }
    }
}
