//! The keys of a live value.

use std::collections::BTreeMap;

use super::pieces::{LivePiece, ambiguous, piece_of};
use crate::error::{Author, LiveSource, Rejected};
use crate::id::RunId;
use crate::store::entry::Entry;
use crate::typed::schema::is_schema;
use crate::typed::whole::{NextLook, WholeView};
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

    /// The entries as they are now, at one instant, in the order of their keys.
    pub(super) fn entries(&self, store: &impl Store) -> Vec<Entry> {
        match self {
            Self::Prefix(prefix) => store.scan(prefix),
            Self::Exact(key) => store.get(key).into_iter().collect(),
        }
    }

    /// The same, of a prefix as a view of it shows them.
    pub(super) fn whole_entries(&self, store: &impl Store, view: &WholeView) -> Vec<Entry> {
        match self {
            Self::Prefix(_) => view.entries().cloned().collect(),
            Self::Exact(_) => self.entries(store),
        }
    }

    /// Looks for what `view` is to show next, and takes it. `Some(false)`: the rest of a batch is awaited. `None`: the
    /// node is closed.
    pub(super) fn seek(&self, store: &impl Store, view: &mut WholeView) -> Option<bool> {
        if matches!(self, Self::Exact(_)) {
            return Some(true);
        }
        let next = view.seek(store)?;
        let shows_more = matches!(next, NextLook::Show(_));
        if let NextLook::Show(look) = next {
            _ = view.take(look);
        }
        Some(shows_more)
    }

    /// The pieces of these entries; schemas among them are none.
    pub(super) fn pieces<'e>(
        &self,
        store: &impl Store,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> Vec<Result<LivePiece, Rejected>> {
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
        entries.filter(|entry| !is_schema(entry.key())).map(&mut piece).collect()
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
