//! What a view keeps for its next start: the keys that it was made of, with their stamps and writers. Where it is kept
//! is not decided here, because this module knows no files.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Author, BoxedError, Cause, LiveSource, Rejected};
use crate::time::Stamp;
use crate::typed::Store;

const FORMAT: u32 = 1;

/// The pause before what could not be written is tried again. It doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

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

/// Keeps bytes for the next start, beside the task that makes them: a disk that is slow or hangs holds back neither what
/// the task makes nor its end. Of what comes while something is being written, the last counts.
pub(crate) struct Keeper {
    last_good: Option<Arc<dyn LastGood>>,
    /// What came last.
    wanted: Arc<[u8]>,
    /// What was written last, or is being written. Empty: nothing, or it could not be kept.
    kept: Arc<[u8]>,
    state: KeeperState,
    /// How long to wait after the next failure.
    pause: Duration,
    fault: Option<Rejected>,
}

enum KeeperState {
    Idle,
    Writing(Pin<Box<dyn Future<Output = Result<(), Rejected>> + Send>>),
    /// It could not be written, and is tried again after a pause, or as soon as something else is to be kept.
    Pausing(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Keeper {
    /// `fault`: why what an earlier run has kept could not be read.
    pub(crate) fn new(last_good: Option<Arc<dyn LastGood>>, fault: Option<Rejected>) -> Self {
        let (state, pause) = (KeeperState::Idle, RETRY_PAUSE_MIN);
        Self { last_good, wanted: Arc::default(), kept: Arc::default(), state, pause, fault }
    }

    #[cfg(feature = "flags")]
    pub(crate) fn is_needed(&self) -> bool {
        self.last_good.is_some()
    }

    /// Why the last bytes could not be kept. They are tried again after a pause, and the next ones at once.
    pub(crate) fn fault(&self) -> Option<&Rejected> {
        self.fault.as_ref()
    }

    /// Has these bytes kept as soon as nothing else is being written.
    pub(crate) fn keep<S: Store>(&mut self, store: &S, bytes: Vec<u8>) {
        self.wanted = bytes.into();
        if !self.is_writing() && self.wanted != self.kept {
            self.begin(store);
        }
    }

    fn is_writing(&self) -> bool {
        matches!(self.state, KeeperState::Writing(_))
    }

    fn begin<S: Store>(&mut self, store: &S) {
        let Some(last_good) = self.last_good.clone() else { return };
        self.kept = self.wanted.clone();
        let (path, bytes) = (last_good.path(), self.kept.clone());
        let written = store.blocking(move || last_good.write(&bytes));
        self.state = KeeperState::Writing(Box::pin(async { done(path, written.await) }));
    }

    /// Goes on writing. Ready when there is something else to say about it than before.
    pub(crate) fn poll<S: Store>(&mut self, store: &S, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let fault = match &mut self.state {
                KeeperState::Idle => return Poll::Pending,
                KeeperState::Pausing(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.begin(store);
                    continue;
                }
                KeeperState::Writing(writing) => ready!(writing.as_mut().poll(cx)).err(),
            };
            self.state = KeeperState::Idle;
            if fault.is_none() {
                self.pause = RETRY_PAUSE_MIN;
            }
            if self.kept != self.wanted {
                self.begin(store);
            } else if fault.is_some() {
                self.kept = Arc::default();
                self.state = KeeperState::Pausing(Box::pin(store.sleep(self.pause)));
                self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
            }
            if fault != self.fault {
                self.fault = fault;
                return Poll::Ready(());
            }
        }
    }

    /// Waits until what came last is written, or could not be.
    pub(crate) async fn finish<S: Store>(mut self, store: &S) {
        while self.is_writing() {
            poll_fn(|cx| match self.poll(store, cx) {
                Poll::Pending if self.is_writing() => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
        }
    }
}

fn done<T>(path: String, outcome: Option<Result<T, BoxedError>>) -> Result<T, Rejected> {
    outcome.unwrap_or_else(|| Err("the runtime ends".into())).map_err(|error| Rejected {
        from: Some(LiveSource::LastGood { path }),
        path: String::new(),
        error: Cause::new(error),
    })
}
