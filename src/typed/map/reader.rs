//! How a map makes values of entries: decoded, and resolved where several were written concurrently.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::codec::Codec;
use super::decoded::DecodedValues;
use crate::error::{Cause, DecodeError};
use crate::store::entry::Entry;
use crate::typed::Store;

/// Makes one value of several, the one with the greatest stamp first.
pub(super) type Resolver<T> = Arc<dyn Fn(&[Arc<T>]) -> T + Send + Sync>;

/// What a map and its watches share.
pub(super) struct MapReader<T, C> {
    decoded: Arc<DecodedValues<T>>,
    resolver: Option<Resolver<T>>,
    codec: PhantomData<fn() -> C>,
}

impl<T, C> Clone for MapReader<T, C> {
    fn clone(&self) -> Self {
        Self { decoded: self.decoded.clone(), resolver: self.resolver.clone(), codec: PhantomData }
    }
}

impl<T, C> MapReader<T, C> {
    /// Nothing is decoded yet: what was decoded in one format need not be what another one gives.
    pub(super) fn new(prefix_bytes: usize, resolver: Option<Resolver<T>>) -> Self {
        Self { decoded: Arc::new(DecodedValues::new(prefix_bytes)), resolver, codec: PhantomData }
    }

    pub(super) fn resolver(&self) -> Option<Resolver<T>> {
        self.resolver.clone()
    }
}

impl<T: DeserializeOwned, C: Codec> MapReader<T, C> {
    /// The value of a key without the map's prefix, if it is decoded and the only one.
    pub(super) fn current(&self, key: &str, store: &impl Store) -> Option<Arc<T>> {
        self.decoded.current(key, store)
    }

    fn decode(entry: &Entry) -> Result<T, DecodeError> {
        let wrong = |error| DecodeError { key: entry.key().to_owned(), reason: Cause::new(error) };
        C::decode(entry.value()).map_err(wrong)
    }

    /// The value of the greatest stamp, whatever is beside it.
    pub(super) fn decoded(&self, entry: &Entry, store: Option<&impl Store>) -> Result<Arc<T>, DecodeError> {
        self.decoded.of(entry, store, Self::decode)
    }

    /// A value that lost. It is not kept, so that it does not take the place of the one that won.
    pub(super) fn conflict(conflict: &Entry) -> Result<Arc<T>, DecodeError> {
        Self::decode(conflict).map(Arc::new)
    }

    /// The value of a key: that of the greatest stamp, or what the resolver makes of all of them. The store, if it is at
    /// hand, tells which decoded values still count.
    pub(super) fn value(&self, entry: &Entry, store: Option<&impl Store>) -> Result<Arc<T>, DecodeError> {
        let winner = self.decoded(entry, store)?;
        let Some(resolver) = &self.resolver else { return Ok(winner) };
        let mut versions = vec![winner];
        for conflict in entry.conflicts() {
            versions.push(Self::conflict(&conflict)?);
        }
        if let [only] = &versions[..] {
            return Ok(only.clone());
        }
        Ok(Arc::new(resolver(&versions)))
    }
}
