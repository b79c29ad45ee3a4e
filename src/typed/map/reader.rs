//! How a map makes values of entries: decoded, and resolved where several were written concurrently.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::codec::Codec;
use super::decoded::DecodedValues;
use crate::error::{Cause, DecodeError};
use crate::store::entry::Entry;

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
    pub(super) fn new(resolver: Option<Resolver<T>>) -> Self {
        Self { decoded: Arc::default(), resolver, codec: PhantomData }
    }

    pub(super) fn resolver(&self) -> Option<Resolver<T>> {
        self.resolver.clone()
    }
}

impl<T: DeserializeOwned, C: Codec> MapReader<T, C> {
    /// The value of one write, whatever is beside it.
    pub(super) fn decoded(&self, entry: &Entry) -> Result<Arc<T>, DecodeError> {
        let wrong = |error| DecodeError { key: entry.key().to_owned(), reason: Cause::new(error) };
        self.decoded.of(entry, |entry| C::decode(entry.value()).map_err(wrong))
    }

    /// The value of a key: that of the greatest stamp, or what the resolver makes of all of them.
    pub(super) fn value(&self, entry: &Entry) -> Result<Arc<T>, DecodeError> {
        let winner = self.decoded(entry)?;
        let Some(resolver) = &self.resolver else { return Ok(winner) };
        let mut versions = vec![winner];
        for conflict in entry.conflicts() {
            versions.push(self.decoded(&conflict)?);
        }
        if let [only] = &versions[..] {
            return Ok(only.clone());
        }
        Ok(Arc::new(resolver(&versions)))
    }
}
