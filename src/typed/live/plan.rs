//! How a live value is made of the store and the layers: whole, or not at all.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::last_good::{self, LastGood};
use super::layer::{AnyLayer, LayerRead, guarded};
use super::pieces::{Piece, Tree, ambiguous, piece_of};
use crate::error::{BoxedError, Cause, LiveSource, Rejected, Writer};
use crate::id::RunId;
use crate::store::entry::Entry;
use crate::store::watch::WatchOptions;
use crate::typed::{Store, writer};

/// The most rejections that are kept of one attempt.
const REJECTED_MAX: usize = 64;

/// A check of the user.
pub(super) type Check<T> = Box<dyn Fn(&T) -> Result<(), BoxedError> + Send + Sync>;

/// What the user has asked for.
pub(super) struct Plan<T, S> {
    pub(super) store: S,
    /// The key, or what the keys begin with.
    pub(super) of: String,
    /// `of` is one key, which holds the whole value.
    pub(super) is_exact: bool,
    pub(super) under: Arc<Vec<AnyLayer>>,
    pub(super) over: Arc<Vec<AnyLayer>>,
    pub(super) checks: Vec<Check<T>>,
    pub(super) debounce: Duration,
    pub(super) joined_timeout: Duration,
    pub(super) last_good: Option<Arc<dyn LastGood>>,
}

/// What stands between the layers.
pub(super) enum Base {
    /// The keys of the store.
    Store,
    /// The keys that an earlier run has kept, with what this node has written itself since its start.
    Kept(Vec<Piece>),
}

/// A value that is acceptable, and what it was made of.
pub(super) struct Made<T> {
    /// `None`: the same as before.
    pub(super) value: Option<Arc<T>>,
    pub(super) tree: Tree,
    /// The keys among its pieces, as they are kept for the next start.
    pub(super) kept: Vec<u8>,
}

/// The layers under and over the store, as they were read.
type LayersRead = [Vec<LayerRead>; 2];

impl<T: DeserializeOwned + Send + Sync + 'static, S: Store> Plan<T, S> {
    /// A watch of what the value is made of: a change means that it has to be made anew.
    pub(super) fn watch(&self) -> S::Watch {
        let options = WatchOptions::new().without_current();
        self.store.watch_with(&self.of, if self.is_exact { options.exact() } else { options })
    }

    /// Makes the value from one snapshot of the store. `good` is the tree of the present value, if there is one.
    pub(super) async fn make(&self, base: &Base, good: Option<&Tree>) -> Result<Made<T>, Vec<Rejected>> {
        let layers = self.read_layers().await;
        let made = self.pieces(base, layers).and_then(|pieces| self.value_of(pieces, good));
        made.map_err(|mut rejected| {
            rejected.truncate(REJECTED_MAX);
            rejected
        })
    }

    async fn read_layers(&self) -> LayersRead {
        if self.under.is_empty() && self.over.is_empty() {
            return LayersRead::default();
        }
        let (under, over) = (self.under.clone(), self.over.clone());
        let read = move || [under, over].map(|layers| layers.iter().map(|layer| layer()).collect());
        let ended = || [vec![("all".to_owned(), Err(Cause::new("the runtime ends")))], Vec::new()];
        self.store.blocking(read).await.unwrap_or_else(ended)
    }

    /// All pieces, the least one first, or everything that is wrong with one of them.
    fn pieces(&self, base: &Base, [under, over]: LayersRead) -> Result<Vec<Piece>, Vec<Rejected>> {
        let (mut pieces, mut rejected) = (Vec::new(), Vec::new());
        let layer = |(name, read): LayerRead| {
            let from = LiveSource::Layer { name };
            match read {
                Ok(value) => Ok(Piece { from, path: Vec::new(), value }),
                Err(error) => Err(Rejected { from: Some(from), path: String::new(), error }),
            }
        };
        let keys = self.keys(base);
        let keys_alone: Vec<Piece> = keys.iter().filter_map(|key| key.as_ref().ok().cloned()).collect();
        let all = under.into_iter().map(layer).chain(keys).chain(over.into_iter().map(layer));
        all.for_each(|piece| match piece {
            Ok(piece) => pieces.push(piece),
            Err(error) => rejected.push(error),
        });
        rejected.extend(ambiguous(&keys_alone));
        if rejected.is_empty() { Ok(pieces) } else { Err(rejected) }
    }

    /// The pieces of the keys, in the order of the keys.
    fn keys(&self, base: &Base) -> Vec<Result<Piece, Rejected>> {
        // One look at one instant: what is seen of a batch of this node is all of it.
        let entries = if self.is_exact {
            self.store.get(&self.of).into_iter().collect()
        } else {
            self.store.scan(&self.of)
        };
        let mut writers: BTreeMap<RunId, Writer> = BTreeMap::new();
        let mut writer_of = |run| writers.entry(run).or_insert_with(|| writer(&self.store, run)).clone();
        let mut from = |entry: &Entry| LiveSource::Key {
            key: entry.key().to_owned(),
            stamp: entry.stamp(),
            writer: writer_of(entry.origin()),
        };
        let prefix = (!self.is_exact).then_some(self.of.as_str());
        let mut piece = |entry: &Entry| piece_of(entry, prefix, from(entry));
        match base {
            Base::Store => entries.iter().map(piece).collect(),
            Base::Kept(kept) => {
                let key = |piece: &Piece| match &piece.from {
                    LiveSource::Key { key, .. } => key.clone(),
                    other => other.to_string(),
                };
                let mut keys: BTreeMap<String, Result<Piece, Rejected>> =
                    kept.iter().map(|piece| (key(piece), Ok(piece.clone()))).collect();
                let is_own = |entry: &&Entry| {
                    self.store.member_name(entry.origin()).is_some_and(|name| name == self.store.name())
                };
                let own = entries.iter().filter(is_own);
                keys.extend(own.map(|entry| (entry.key().to_owned(), piece(entry))));
                keys.into_values().collect()
            }
        }
    }

    fn value_of(&self, pieces: Vec<Piece>, good: Option<&Tree>) -> Result<Made<T>, Vec<Rejected>> {
        let kept = last_good::encode(&self.of, &pieces);
        let has_none = pieces.is_empty();
        let start = if self.is_exact { Value::Null } else { Value::Object(Map::new()) };
        let tree = Tree::new(start, pieces);
        if good.is_some_and(|good| good.merged == tree.merged) {
            return Ok(Made { value: None, tree, kept });
        }
        let none = Tree::default();
        let blame = |path: &[String], error| tree.blame(path, &error, good.unwrap_or(&none));
        // Decoding is code of the user as well, and a panic in it must not end the task.
        let decoded =
            catch_unwind(AssertUnwindSafe(|| serde_path_to_error::deserialize::<_, T>(&tree.merged)));
        let value = match decoded {
            Ok(Ok(value)) => value,
            Ok(Err(_)) if self.is_exact && has_none => {
                return Err(blame(&[], Cause::new(format!("the key \"{}\" holds no value", self.of))));
            }
            Ok(Err(error)) => return Err(blame(&fields_of(error.path()), Cause::new(error.into_inner()))),
            Err(_) => return Err(blame(&[], Cause::new("decoding it panicked"))),
        };
        let checked = self.checks.iter().try_for_each(|check| guarded(|| check(&value)));
        if let Err(error) = checked {
            return Err(blame(&[], Cause::new(error)));
        }
        Ok(Made { value: Some(Arc::new(value)), tree, kept })
    }

    /// What an earlier run has kept. `None` if there is nothing.
    pub(super) async fn read_kept(&self) -> Result<Option<Vec<Piece>>, Rejected> {
        let Some(last_good) = self.last_good.clone() else { return Ok(None) };
        let path = last_good.path();
        let of = self.of.clone();
        let read = move || -> Result<_, BoxedError> {
            last_good.read()?.map(|bytes| last_good::decode(&of, &bytes)).transpose()
        };
        let read = self.store.blocking(read).await;
        read.unwrap_or_else(|| Err("the runtime ends".into())).map_err(|error| kept_wrong(path, error))
    }

    /// Keeps the keys of a good value for the next start.
    pub(super) async fn write_kept(&self, bytes: Vec<u8>) -> Result<(), Rejected> {
        let Some(last_good) = self.last_good.clone() else { return Ok(()) };
        let path = last_good.path();
        let written = self.store.blocking(move || last_good.write(&bytes)).await;
        written.unwrap_or_else(|| Err("the runtime ends".into())).map_err(|error| kept_wrong(path, error))
    }
}

fn kept_wrong(path: String, error: BoxedError) -> Rejected {
    Rejected { from: Some(LiveSource::LastGood { path }), path: String::new(), error: Cause::new(error) }
}

/// The fields of a path, up to the first list or variant in it.
fn fields_of(path: &Path) -> Vec<String> {
    let field = |segment: &Segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    };
    path.iter().map_while(field).collect()
}
