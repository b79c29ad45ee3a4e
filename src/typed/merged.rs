//! Values with a merge of their own: any type that implements `CvRDT`.

use std::sync::Arc;

use crdts::CvRDT;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Store;
use super::map::{Codec, Json, Map, MapWatch};
use crate::error::Error;

/// One value of a type with a merge of its own, kept under one key: any type of the crate `crdts`, or one of yours that
/// implements its trait [`CvRDT`]. Feature `crdts`.
///
/// Nodes may change it at the same time. The concurrent versions are joined with [`CvRDT::merge`] when it is read, and the
/// next [`update`](Self::update) writes the result in their place. So nothing that was written is lost, however late it
/// arrives, as long as the type keeps the laws of such a merge: it is commutative, associative and idempotent.
///
/// Where the type tells its writers apart by *actors*, as a `GCounter` does, each start of a process must be an actor of
/// its own, for example by a random number: a process that comes back with an older disk would count anew under what
/// others have counted already.
///
/// ```
/// use crdts::{CmRDT, GSet};
///
/// let mut sim = tidings::sim::Sim::new(1).nodes(2);
/// let (here, there) = (sim.node(0).merged::<GSet<u32>>("primes"), sim.node(1).merged::<GSet<u32>>("primes"));
/// here.update(|set| set.insert(2))?; // both before the other one has arrived
/// there.update(|set| set.insert(3))?;
/// sim.assert_converged();
/// assert_eq!(here.get()?.read(), [2, 3].into());
/// assert_eq!(here.get()?, there.get()?);
/// # Ok::<(), tidings::Error>(())
/// ```
pub struct Merged<T, #[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S, C = Json> {
    /// A map in which this key is the only one.
    map: Map<T, S, C>,
    key: String,
}

impl<T, S: Store, C> Clone for Merged<T, S, C> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone(), key: self.key.clone() }
    }
}

impl<T, S, C> std::fmt::Debug for Merged<T, S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merged").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<T: CvRDT + Clone, S: Store> Merged<T, S> {
    pub(crate) fn new(store: S, key: String) -> Self {
        let map = Map::new(store, String::new()).resolve_with(|versions: &[Arc<T>]| {
            let (first, others) = versions.split_first().expect("a key that holds something has a value");
            let mut joined = T::clone(first);
            others.iter().for_each(|version| joined.merge(T::clone(version)));
            joined
        });
        Self { map, key }
    }
}

impl<T, S: Store, C: Codec> Merged<T, S, C> {
    /// The same value in another format. JSON has only strings as keys of maps, so some types need one.
    #[must_use]
    pub fn with_codec<D: Codec>(self) -> Merged<T, S, D> {
        Merged { map: self.map.with_codec(), key: self.key }
    }
}

impl<T: CvRDT + Clone + Default + Serialize + DeserializeOwned, S: Store, C: Codec> Merged<T, S, C> {
    /// The value: all versions that this node has, joined; the default of the type if there are none. It never waits.
    ///
    /// # Errors
    /// [`Error::Decode`] if a stored version is not of type `T`; it names the key.
    pub fn get(&self) -> Result<T, Error> {
        Ok(self.map.get(&self.key)?.map(|value| T::clone(&value)).unwrap_or_default())
    }

    /// Changes the value. `change` is given all versions that this node has, joined, and is called again if the key
    /// changes meanwhile on this node, up to 32 times.
    ///
    /// # Errors
    /// As for [`Map::update`]; nothing is written then.
    pub fn update(&self, mut change: impl FnMut(&mut T)) -> Result<S::Receipt, Error> {
        self.map.update(&self.key, |old| {
            let mut value = old.cloned().unwrap_or_default();
            change(&mut value);
            value
        })
    }

    /// Watches the value: the present one first, if there is one, then each later one.
    pub fn watch(&self) -> MapWatch<T, S, C> {
        self.map.watch_key(&self.key)
    }
}
