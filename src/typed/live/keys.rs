//! The keys of a live value.

use std::collections::BTreeMap;

use super::pieces::{LivePiece, ambiguous, piece_of};
use crate::error::{Author, LiveSource, Rejected};
use crate::id::RunId;
use crate::store::entry::Entry;
use crate::typed::schema::is_schema;
use crate::typed::{Store, writer};

/// What keys a live value has.
#[derive(Clone, Debug)]
pub(super) enum LiveKeys {
    /// Those that begin with this. What follows it in a key are the fields.
    Prefix(String),
    /// This one, which holds the whole value.
    Exact(String),
}

impl LiveKeys {
    /// The key, or the prefix.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Prefix(name) | Self::Exact(name) => name,
        }
    }

    /// Reads the keys as they are at one instant, so that what is seen of a batch of this node is all of it. The result
    /// is in the order of the keys.
    pub(super) fn read(
        &self,
        store: &impl Store,
        is_read: impl Fn(&Entry) -> bool,
    ) -> Vec<Result<LivePiece, Rejected>> {
        let entries: Vec<Entry> = match self {
            Self::Prefix(prefix) => {
                let entries = store.scan(prefix).into_iter();
                entries.filter(|entry| !is_schema(entry.key())).collect()
            }
            Self::Exact(key) => store.get(key).into_iter().collect(),
        };
        let prefix = match self {
            Self::Prefix(prefix) => Some(prefix.as_str()),
            Self::Exact(_) => None,
        };
        let mut writers: BTreeMap<RunId, Author> = BTreeMap::new();
        let mut piece = |entry: &Entry| {
            let writer = writers.entry(entry.origin()).or_insert_with(|| writer(store, entry.stamp()));
            let (key, stamp, writer) = (entry.key().to_owned(), entry.stamp(), writer.clone());
            piece_of(entry, prefix, LiveSource::Key { key, stamp, writer })
        };
        entries.iter().filter(|entry| is_read(entry)).map(&mut piece).collect()
    }
}

/// The pieces of some keys, or everything that is wrong with them.
pub(super) fn all_or_none(keys: Vec<Result<LivePiece, Rejected>>) -> Result<Vec<LivePiece>, Vec<Rejected>> {
    let (mut pieces, mut rejected) = (Vec::new(), Vec::new());
    keys.into_iter().for_each(|key| match key {
        Ok(piece) => pieces.push(piece),
        Err(error) => rejected.push(error),
    });
    rejected.extend(ambiguous(&pieces));
    if rejected.is_empty() { Ok(pieces) } else { Err(rejected) }
}
