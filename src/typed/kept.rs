//! What a view keeps for its next start: the keys that it was made of, with their stamps and writers. Where it is kept
//! is not decided here, because this module knows no files.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Author, BoxedError, Cause, LiveSource, Rejected};
use crate::time::Stamp;
use crate::typed::Store;

const FORMAT: u32 = 1;

/// Where a view keeps its last good values between two runs. Its methods may block.
pub(crate) trait LastGood: Send + Sync + 'static {
    /// How people find it.
    fn path(&self) -> String;

    /// What was written last, if anything.
    fn read(&self) -> Result<Option<Vec<u8>>, BoxedError>;

    /// Replaces what was written last, whole or not at all.
    fn write(&self, bytes: &[u8]) -> Result<(), BoxedError>;
}

/// The keys of a view, as they are kept.
#[derive(Debug, Deserialize, Serialize)]
struct SavedKeys<V> {
    format: u32,
    /// The key or prefix of the view.
    of: String,
    keys: BTreeMap<String, SavedKey<V>>,
}

#[derive(Debug, Deserialize, Serialize)]
struct SavedKey<V> {
    #[serde(flatten)]
    content: V,
    stamp: String,
    writer: Option<String>,
}

/// Keys with their content, as bytes. What comes from elsewhere than a key is left out.
pub(crate) fn encode<'a, V: Serialize>(
    of: &str,
    sources: impl Iterator<Item = (&'a LiveSource, V)>,
) -> Vec<u8> {
    let saved = |(from, content): (&LiveSource, V)| match from {
        LiveSource::Key { key, stamp, writer } => {
            let (stamp, writer) = (stamp.to_string(), writer.name.clone());
            Some((key.clone(), SavedKey { content, stamp, writer }))
        }
        _ => None,
    };
    let keys = SavedKeys { format: FORMAT, of: of.to_owned(), keys: sources.filter_map(saved).collect() };
    serde_json::to_vec_pretty(&keys).expect("texts and JSON values have a form as JSON")
}

/// The keys that were kept, with their content.
pub(crate) fn decode<V: DeserializeOwned>(
    of: &str,
    bytes: &[u8],
) -> Result<Vec<(LiveSource, V)>, BoxedError> {
    let saved: SavedKeys<V> = serde_json::from_slice(bytes)?;
    if saved.format != FORMAT {
        return Err(format!("it has format {}, and this release reads format {FORMAT}", saved.format).into());
    }
    if saved.of != of {
        return Err(format!("it belongs to \"{}\" and not to \"{of}\"", saved.of).into());
    }
    let source = |(key, saved): (String, SavedKey<V>)| -> Result<_, BoxedError> {
        let stamp: Stamp = saved.stamp.parse()?;
        let writer = Author { run: stamp.origin(), name: saved.writer };
        Ok((LiveSource::Key { key, stamp, writer }, saved.content))
    };
    saved.keys.into_iter().map(source).collect()
}

/// What an earlier run has kept. `None`: nothing.
pub(crate) async fn read<S: Store, T: Send + 'static>(
    store: S,
    last_good: Option<Arc<dyn LastGood>>,
    decode: impl FnOnce(&[u8]) -> Result<T, BoxedError> + Send + 'static,
) -> Result<Option<T>, Rejected> {
    let Some(last_good) = last_good else { return Ok(None) };
    let path = last_good.path();
    let read = move || last_good.read()?.map(|bytes| decode(&bytes)).transpose();
    done(path, store.blocking(read).await)
}

/// Keeps what is good for the next start.
pub(crate) async fn write<S: Store>(
    store: S,
    last_good: Option<Arc<dyn LastGood>>,
    bytes: Vec<u8>,
) -> Result<(), Rejected> {
    let Some(last_good) = last_good else { return Ok(()) };
    let path = last_good.path();
    done(path, store.blocking(move || last_good.write(&bytes)).await)
}

fn done<T>(path: String, outcome: Option<Result<T, BoxedError>>) -> Result<T, Rejected> {
    outcome.unwrap_or_else(|| Err("the runtime ends".into())).map_err(|error| Rejected {
        from: Some(LiveSource::LastGood { path }),
        path: String::new(),
        error: Cause::new(error),
    })
}
