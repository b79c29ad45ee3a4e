//! How a live value is made of the store and the layers: whole, or not at all.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::keys::{LiveKeys, all_or_none};
use super::last_good;
use super::layer::{AnyLayer, LayerRead, guarded};
use super::pieces::{LivePiece, PieceTree};
use crate::error::{BoxedError, Cause, LiveSource, Rejected};
use crate::membership::Member;
use crate::store::entry::Entry;
use crate::store::watch::WatchOptions;
use crate::typed::whole::WholeView;
use crate::typed::{LastGood, Store, kept};

/// The most rejections that are kept of one attempt.
const REJECTED_MAX: usize = 64;

/// A check of the user.
pub(super) type LiveCheck<T> = Box<dyn Fn(&T) -> Result<(), BoxedError> + Send + Sync>;

/// What the user has asked for.
pub(super) struct LivePlan<T, S> {
    pub(super) store: S,
    pub(super) keys: LiveKeys,
    pub(super) under: Arc<Vec<AnyLayer>>,
    pub(super) over: Arc<Vec<AnyLayer>>,
    pub(super) checks: Vec<LiveCheck<T>>,
    pub(super) debounce: Duration,
    pub(super) joined_timeout: Duration,
    pub(super) last_good: Option<Arc<dyn LastGood>>,
}

/// What stands between the layers.
pub(super) enum LiveBase {
    /// The keys of the store.
    Store,
    /// The keys that an earlier run has kept, and what counts of the store beside them.
    Kept { pieces: Vec<LivePiece>, beside: KeptBeside },
}

/// What counts of the store beside the keys that an earlier run has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeptBeside {
    Nothing,
    /// What this node has written itself since its start, before what was kept.
    Own,
    /// Everything: the node has nobody to catch up with for now, and what its disk held is no part of something. What
    /// was kept counts only where the store does not know it: its last writes may be lost, and were kept.
    All,
}

/// A value that is acceptable, and what it was made of.
pub(super) struct Made<T> {
    /// `None`: the same as before.
    pub(super) value: Option<Arc<T>>,
    pub(super) tree: PieceTree,
    /// The keys among its pieces, as they are kept for the next start.
    pub(super) kept: Vec<u8>,
}

/// The layers under and over the store, as they were read.
type LayersRead = [Vec<LayerRead>; 2];

impl<T: DeserializeOwned + Send + Sync + 'static, S: Store> LivePlan<T, S> {
    /// A watch of what the value is made of: a change means that it has to be made anew.
    pub(super) fn watch(&self) -> S::Watch {
        let options = WatchOptions::new().without_current();
        match &self.keys {
            LiveKeys::Prefix(prefix) => self.store.watch_with(prefix, options),
            LiveKeys::Exact(key) => self.store.watch_with(key, options.exact()),
        }
    }

    /// Makes the value from one look at the store: that of `view`, or one that may show a part of a batch. `good` is
    /// the tree of the present value, if there is one.
    pub(super) async fn make(
        &self,
        base: &LiveBase,
        good: Option<&PieceTree>,
        view: Option<&WholeView>,
    ) -> Result<Made<T>, Vec<Rejected>> {
        let layers = self.read_layers().await;
        let entries = match view {
            Some(view) => self.keys.whole_entries(&self.store, view),
            None => self.keys.entries(&self.store),
        };
        let made = self.pieces(base, layers, &entries).and_then(|pieces| self.value_of(pieces, good));
        made.map_err(|mut rejected| {
            rejected.truncate(REJECTED_MAX);
            rejected
        })
    }

    /// Makes the first value of what was kept: with what counts of the store if that is acceptable, and otherwise
    /// without. Returns what is wrong with the former as well.
    pub(super) async fn make_of_kept(
        &self,
        base: &LiveBase,
    ) -> Result<(Made<T>, Vec<Rejected>), Vec<Rejected>> {
        match (self.make(base, None, None).await, base) {
            (Err(wrong), LiveBase::Kept { pieces, beside }) if *beside != KeptBeside::Nothing => {
                let alone = LiveBase::Kept { pieces: pieces.clone(), beside: KeptBeside::Nothing };
                Ok((self.make(&alone, None, None).await?, wrong))
            }
            (made, _) => Ok((made?, Vec::new())),
        }
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
    fn pieces(
        &self,
        base: &LiveBase,
        [under, over]: LayersRead,
        entries: &[Entry],
    ) -> Result<Vec<LivePiece>, Vec<Rejected>> {
        let mut rejected = Vec::new();
        let mut layers = |layers: Vec<LayerRead>| -> Vec<LivePiece> {
            let piece = |(name, read)| {
                let from = LiveSource::Layer { name };
                match read {
                    Ok(value) => Some(LivePiece { from, path: Vec::new(), value }),
                    Err(error) => {
                        rejected.push(Rejected { from: Some(from), path: String::new(), error });
                        None
                    }
                }
            };
            layers.into_iter().filter_map(piece).collect()
        };
        let (mut pieces, over) = (layers(under), layers(over));
        match all_or_none(self.pieces_of_keys(base, entries)) {
            Ok(keys) => pieces.extend(keys),
            Err(wrong) => rejected.extend(wrong),
        }
        pieces.extend(over);
        if rejected.is_empty() { Ok(pieces) } else { Err(rejected) }
    }

    /// The keys of the store, or what was kept of them with what counts of the store beside it. `entries` are in the
    /// order of their keys.
    fn pieces_of_keys(&self, base: &LiveBase, entries: &[Entry]) -> Vec<Result<LivePiece, Rejected>> {
        let LiveBase::Kept { pieces: kept, beside } = base else {
            return self.keys.pieces(&self.store, entries.iter());
        };
        let counts = |entry: &&Entry| match beside {
            KeptBeside::Nothing => false,
            // What earlier runs of this node wrote does not count: the file of last good values is newer.
            KeptBeside::Own => is_own(&self.store, entry),
            KeptBeside::All => true,
        };
        let held: Vec<&Entry> = entries.iter().filter(counts).collect();
        let is_newest = |piece: &&LivePiece| {
            let LiveSource::Key { key, stamp, .. } = &piece.from else { unreachable!("keys alone are kept") };
            let at = held.binary_search_by(|entry| entry.key().cmp(key)).ok();
            match beside {
                KeptBeside::All => {
                    at.is_none_or(|at| held[at].stamp() < *stamp) && !self.store.has_merged(key, *stamp)
                }
                _ => at.is_none(),
            }
        };
        let key = |piece: &Result<LivePiece, Rejected>| match piece {
            Ok(LivePiece { from: LiveSource::Key { key, .. }, .. })
            | Err(Rejected { from: Some(LiveSource::Key { key, .. }), .. }) => key.clone(),
            _ => unreachable!("pieces of keys name them"),
        };
        let of_store = self.keys.pieces(&self.store, held.iter().copied());
        let all = of_store.into_iter().chain(kept.iter().filter(is_newest).cloned().map(Ok));
        let by_key: BTreeMap<String, Result<LivePiece, Rejected>> =
            all.map(|piece| (key(&piece), piece)).collect();
        by_key.into_values().collect()
    }

    fn value_of(&self, pieces: Vec<LivePiece>, good: Option<&PieceTree>) -> Result<Made<T>, Vec<Rejected>> {
        let kept = last_good::encode(self.keys.name(), &pieces);
        let (start, lacks_key) = match &self.keys {
            LiveKeys::Prefix(_) => (Value::Object(Map::new()), None),
            LiveKeys::Exact(key) => (Value::Null, Some(key).filter(|_| pieces.is_empty())),
        };
        let tree = PieceTree::new(start, pieces);
        if good.is_some_and(|good| good.merged == tree.merged) {
            return Ok(Made { value: None, tree, kept });
        }
        let none = PieceTree::default();
        let blame = |path: &[String], error| tree.blame(path, &error, good.unwrap_or(&none));
        // Decoding is code of the user as well, and a panic in it must not end the task.
        let decoded =
            catch_unwind(AssertUnwindSafe(|| serde_path_to_error::deserialize::<_, T>(&tree.merged)));
        let value = match decoded {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                return Err(blame(&fields_of(error.path()), cause_of(error.into_inner(), lacks_key)));
            }
            Err(_) => return Err(blame(&[], Cause::new("decoding it panicked"))),
        };
        let checked = self.checks.iter().try_for_each(|check| guarded(|| check(&value)));
        if let Err(error) = checked {
            return Err(blame(&[], Cause::new(error)));
        }
        Ok(Made { value: Some(Arc::new(value)), tree, kept })
    }

    /// What an earlier run has kept. `None` if there is nothing.
    pub(super) async fn read_kept(&self) -> Result<Option<Vec<LivePiece>>, Rejected> {
        let of = self.keys.name().to_owned();
        let decode = move |bytes: &[u8]| last_good::decode(&of, bytes);
        kept::read(self.store.view(), self.last_good.clone(), decode).await
    }
}

/// Whether this run of the node has written what counts at a key.
pub(super) fn is_own(store: &impl Store, entry: &Entry) -> bool {
    let is_own = |member: Member| member.state.is_alive() && member.name == store.name();
    store.member_of(entry.stamp()).is_some_and(is_own)
}

/// Why a value could not be decoded.
fn cause_of(error: serde_json::Error, lacks_key: Option<&String>) -> Cause {
    lacks_key.map_or_else(|| Cause::new(error), |key| Cause::new(format!("the key \"{key}\" holds no value")))
}

/// The fields of a path, up to the first list or variant in it.
fn fields_of(path: &Path) -> Vec<String> {
    let field = |segment: &Segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    };
    path.iter().map_while(field).collect()
}
