//! How a live value is asked for.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Live;
use super::keys::LiveKeys;
use super::layer::{AnyLayer, Layer, any_layer};
use super::plan::{LiveCheck, LivePlan};
use super::schema_put::SchemaPut;
use super::task::LiveTask;
use crate::error::LiveError;
#[cfg(feature = "schemars")]
use crate::typed::schema;
use crate::typed::{LastGood, Store, boxed};

/// How long [`LiveBuilder::start`] waits by default for the node to catch up with a peer.
pub(super) const JOINED_TIMEOUT: Duration = Duration::from_secs(5);

/// What a [`Live`] is to be; [`Live::builder`] makes it.
#[must_use = "a live value begins with `start`"]
pub struct LiveBuilder<T, S> {
    store: S,
    keys: LiveKeys,
    under: Vec<AnyLayer>,
    over: Vec<AnyLayer>,
    checks: Vec<LiveCheck<T>>,
    debounce: Duration,
    joined_timeout: Duration,
    last_good: Option<Arc<dyn LastGood>>,
    /// The schema to put, under this key.
    schema: Option<(String, Vec<u8>)>,
}

impl<T, S> std::fmt::Debug for LiveBuilder<T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveBuilder").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<T, S: Store> LiveBuilder<T, S> {
    pub(super) fn new(store: S, prefix: String) -> Self {
        Self {
            store,
            keys: LiveKeys::Prefix(prefix),
            under: Vec::new(),
            over: Vec::new(),
            checks: Vec::new(),
            debounce: Duration::ZERO,
            joined_timeout: JOINED_TIMEOUT,
            last_good: None,
            schema: None,
        }
    }

    /// Takes one key, which holds the whole value, instead of the keys with a prefix.
    pub fn exact(mut self) -> Self {
        self.keys = LiveKeys::Exact(self.keys.name().to_owned());
        self
    }

    /// Adds a layer under the store, over those that were added before: its values count where the store has none.
    pub fn under(mut self, layer: impl Layer) -> Self {
        self.under.push(any_layer(layer));
        self
    }

    /// Adds a layer over the store and over those that were added before: its values count before those of the store.
    pub fn over(mut self, layer: impl Layer) -> Self {
        self.over.push(any_layer(layer));
        self
    }

    /// Puts the JSON Schema of `T` under the key `<prefix>$schema` ([`SCHEMA_SUFFIX`](crate::map::SCHEMA_SUFFIX)), once
    /// the node has caught up with a peer and unless the key holds it then. Tools of other people check what they write
    /// with it, as [`Map::put_schema`](crate::Map::put_schema) tells. If it cannot be written,
    /// [`Live::rejected`](crate::Live::rejected) says so, and it is tried again every 10 s.
    ///
    /// It is the schema of the whole value. What stands under one key is compared with the part of it that it gives:
    /// nothing is required, since other keys and layers give the rest ([`SCHEMA_OF_FIELDS`](crate::live::SCHEMA_OF_FIELDS)).
    /// With [`exact`](Self::exact) before this call the one key is compared with all of it.
    #[cfg(feature = "schemars")]
    pub fn put_schema(mut self) -> Self
    where
        T: schemars::JsonSchema,
    {
        let schema = match &self.keys {
            LiveKeys::Prefix(_) => schema::of_fields::<T>(),
            LiveKeys::Exact(_) => schema::of_values::<T>(),
        };
        let key = schema::key(self.keys.name());
        self.schema = Some((key, schema::bytes(schema)));
        self
    }

    /// Adds a check. A value that it refuses is not applied. A check that panics refuses.
    pub fn validate<E>(mut self, check: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.checks.push(Box::new(move |value| check(value).map_err(Into::into)));
        self
    }

    /// Waits for this time after a change, and takes all changes that come meanwhile together. Default: none. It is for
    /// writers that change one key after the other; a batch is taken as a whole without it, also one of another node.
    pub fn debounce(mut self, time: Duration) -> Self {
        self.debounce = time;
        self
    }

    /// How long [`start`](Self::start) waits for the node to catch up with a peer, before it goes on with the last good
    /// value. Default: 5 s. A node without seeds has nobody to wait for.
    pub fn joined_timeout(mut self, time: Duration) -> Self {
        self.joined_timeout = time;
        self
    }

    /// Keeps the last good values for the next start.
    #[cfg_attr(not(feature = "node"), expect(dead_code, reason = "without a node there are no files"))]
    pub(crate) fn keep_in(mut self, last_good: impl LastGood) -> Self {
        self.last_good = Some(Arc::new(last_good));
        self
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static, S: Store> LiveBuilder<T, S> {
    /// Makes the first value, and begins to follow the store.
    ///
    /// It waits until the node has caught up with a peer, so that the value is not one of a store that is still empty.
    /// If that takes longer than [`joined_timeout`](Self::joined_timeout), or if what the store holds is not acceptable,
    /// the last good value of an earlier run counts.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub async fn start(self) -> Result<Live<T>, LiveError> {
        let schema = self.schema.map(|(key, schema)| SchemaPut::new(&self.store, key, schema));
        let plan = LivePlan {
            store: self.store,
            keys: self.keys,
            under: Arc::new(self.under),
            over: Arc::new(self.over),
            checks: self.checks,
            debounce: self.debounce,
            joined_timeout: self.joined_timeout,
            last_good: self.last_good,
        };
        let store = plan.store.clone();
        let task = boxed(LiveTask::begin(plan, schema)).await?;
        let live = Live::new(task.shared().clone());
        store.spawn(task.run());
        Ok(live)
    }
}
