//! A store as a source for the crates `figment` and `config`: for programs that read their settings once, or again when
//! they want to.

use serde_json::{Map, Value};

use super::keys::{LiveKeys, all_or_none};
use super::pieces::PieceTree;
use crate::typed::Store;

/// The keys with a prefix, for the crates `figment` (feature `figment`, as a `Provider`) and `config` (feature `config`,
/// as a `Source` and an `AsyncSource`). The parts of the keys between `/` are the fields, and their values are JSON, as in a
/// [`Live`](crate::Live). Each extraction reads the keys as they are at that instant. As an `AsyncSource` it first waits
/// until the node has caught up with a peer, so that a process that has just started does not read a store that is still
/// empty; after 5 s it fails.
///
/// It fails if a value is not JSON, or if a key is a value and at the same time the prefix of another one.
#[derive(Clone, Debug)]
pub struct StoreSource<S> {
    store: S,
    keys: LiveKeys,
}

impl<S: Store> StoreSource<S> {
    /// The keys of a store that begin with `prefix`.
    pub fn new(store: &S, prefix: impl Into<String>) -> Self {
        Self { store: store.view(), keys: LiveKeys::Prefix(prefix.into()) }
    }

    fn read(&self) -> Result<Map<String, Value>, String> {
        let pieces = all_or_none(self.keys.pieces(&self.store, self.keys.entries(&self.store).iter()));
        let texts =
            |rejected: Vec<_>| rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        match PieceTree::new(Value::Object(Map::new()), pieces.map_err(texts)?).merged {
            Value::Object(fields) => Ok(fields),
            _ => unreachable!("keys behind a prefix are fields"),
        }
    }

    fn name(&self) -> String {
        format!("store {}*", self.keys.name())
    }
}

#[cfg(feature = "figment")]
mod of_figment {
    use std::error::Error as StdError;

    use figment::value::{Dict, Map};
    use figment::{Error, Figment, Metadata, Profile, Provider};

    use super::{Store, StoreSource};
    use crate::typed::live::Layer;

    impl<S: Store> Provider for StoreSource<S> {
        fn metadata(&self) -> Metadata {
            Metadata::named(self.name())
        }

        fn data(&self) -> Result<Map<Profile, Dict>, Error> {
            let fields = self.read().map_err(Error::from)?;
            figment::providers::Serialized::defaults(fields).data()
        }
    }

    impl<P: Provider + Send + Sync + 'static> Layer for P {
        type Values = serde_json::Value;

        fn name(&self) -> String {
            // A `Figment` has the metadata of its providers and nothing to say of itself.
            let none = Metadata::default();
            let figment = Figment::from(self);
            let names = figment.metadata().filter(|metadata| metadata.name != none.name).map(|metadata| {
                let source = metadata.source.as_ref().map(|source| format!(" {source}"));
                format!("{}{}", metadata.name, source.unwrap_or_default())
            });
            names.collect::<Vec<_>>().join(", ")
        }

        fn values(&self) -> Result<serde_json::Value, Box<dyn StdError + Send + Sync>> {
            Ok(Figment::from(self).extract()?)
        }
    }
}

#[cfg(feature = "config")]
mod of_config {
    use config::{AsyncSource, ConfigError, Map, Source, Value, ValueKind};

    use super::{Store, StoreSource};
    use crate::typed::boxed;
    use crate::typed::live::builder::JOINED_TIMEOUT;
    use crate::typed::live::task::first_of;

    impl<S: Store + std::fmt::Debug> Source for StoreSource<S> {
        fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
            Box::new(self.clone())
        }

        fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
            let fields = self.read().map_err(ConfigError::Message)?;
            let name = self.name();
            Ok(fields.into_iter().map(|(field, value)| (field, value_of(&name, value))).collect())
        }
    }

    #[async_trait::async_trait]
    impl<S: Store + std::fmt::Debug> AsyncSource for StoreSource<S> {
        async fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
            let failed = |why| Err(ConfigError::Message(format!("{}: {why}", self.name())));
            match boxed(first_of(self.store.joined(), self.store.sleep(JOINED_TIMEOUT))).await {
                Some(true) => Source::collect(self),
                Some(false) => failed("the node is closed".to_owned()),
                None => {
                    let seconds = JOINED_TIMEOUT.as_secs();
                    failed(format!("the node has not caught up with a peer within {seconds} s"))
                }
            }
        }
    }

    fn value_of(name: &String, value: serde_json::Value) -> Value {
        use serde_json::Value as Json;
        let kind = match value {
            Json::Null => ValueKind::Nil,
            Json::Bool(flag) => ValueKind::Boolean(flag),
            Json::String(text) => ValueKind::String(text),
            Json::Number(number) => number_of(&number),
            Json::Array(values) => {
                ValueKind::Array(values.into_iter().map(|value| value_of(name, value)).collect())
            }
            Json::Object(fields) => {
                let field = |(field, value)| (field, value_of(name, value));
                ValueKind::Table(fields.into_iter().map(field).collect())
            }
        };
        Value::new(Some(name), kind)
    }

    fn number_of(number: &serde_json::Number) -> ValueKind {
        let whole = number.as_i64().map(ValueKind::I64).or_else(|| number.as_u64().map(ValueKind::U64));
        whole.unwrap_or_else(|| ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)))
    }
}
