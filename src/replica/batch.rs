//! Batches: several writes of all kinds in one local step, all of them or none.
//!
//! Everything that can refuse a write is asked before the first one is applied, so that none has to be taken back.
//! Conditions are compared with what the node holds before the batch: a batch may well change what it names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::counters::SHARE_BYTES;
use super::{PutOptions, Replica};
use crate::config::BATCH_WRITES_MAX;
use crate::error::WriteError;
use crate::form;
use crate::id::RunId;
use crate::store::OnlyIf;
use crate::store::entry::Revision;
use crate::store::key::{self, CounterPart};
use crate::time::{Lifetime, Stamp, Time};

/// Several writes, applied in one local step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    pub(crate) writes: Vec<BatchWrite>,
    /// Prefixes below which nothing may have changed since a revision.
    #[serde(default)]
    unchanged: Vec<(String, Revision)>,
}

/// One write of a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchWrite {
    Put {
        key: String,
        #[serde(with = "form::bytes")]
        value: Vec<u8>,
        options: PutOptions,
    },
    Delete {
        key: String,
        only_if: Option<OnlyIf>,
    },
    Add {
        set: String,
        element: String,
        options: PutOptions,
    },
    Remove {
        set: String,
        element: String,
    },
    Count {
        counter: String,
        by: i64,
    },
}

impl BatchWrite {
    /// The stored key that it changes. `run` is the one that writes.
    pub(crate) fn stored(&self, run: RunId) -> Vec<u8> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key::register(key),
            Self::Add { set, element, .. } | Self::Remove { set, element } => key::element_key(set, element),
            Self::Count { counter, .. } => CounterPart::Share(run).key(counter),
        }
    }

    /// Whether the key holds something afterwards.
    pub(crate) fn is_put(&self) -> bool {
        !matches!(self, Self::Delete { .. } | Self::Remove { .. })
    }

    /// The lifetime of what it puts. `run` is that of the member that writes.
    pub(crate) fn lifetime(&self, now: Time, run: RunId) -> Lifetime {
        match self {
            Self::Put { options, .. } | Self::Add { options, .. } => options.lifetime(now, run),
            _ => Lifetime::default(),
        }
    }

    fn condition(&self) -> Option<OnlyIf> {
        match self {
            Self::Put { options, .. } | Self::Add { options, .. } => options.only_if,
            Self::Delete { only_if, .. } => *only_if,
            _ => None,
        }
    }

    /// The size of the value that the key holds afterwards; `None` if it holds nothing.
    fn value_bytes(&self) -> Option<usize> {
        match self {
            Self::Put { value, .. } => Some(value.len()),
            Self::Add { .. } => Some(0),
            Self::Count { .. } => Some(SHARE_BYTES),
            Self::Delete { .. } | Self::Remove { .. } => None,
        }
    }

    fn check_names(&self) -> Result<(), WriteError> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Count { counter: key, .. } => {
                key::check_key(key.as_bytes())
            }
            Self::Add { set, element, .. } | Self::Remove { set, element } => {
                key::check_key(set.as_bytes()).and_then(|()| key::check_key(element.as_bytes()))
            }
        }
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there is no write in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Makes it a condition of the whole batch that on this node no key that begins with `prefix` was written, deleted or
    /// dropped at the end of its time to live since the change log's head was at this revision
    /// ([`Status::head`](crate::Status::head)). Take the revision before you read. It does not hold either if the node was
    /// started since, or has made thousands of changes.
    #[must_use]
    pub fn unchanged_since(mut self, prefix: impl AsRef<str>, revision: Revision) -> Self {
        self.unchanged.push((prefix.as_ref().to_owned(), revision));
        self
    }

    fn with(mut self, write: BatchWrite) -> Self {
        self.writes.push(write);
        self
    }

    /// Adds a put.
    #[must_use]
    pub fn put(self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        self.put_with(key, value, PutOptions::new())
    }

    /// Adds a put under a condition, with a time to live, or both.
    #[must_use]
    pub fn put_with(self, key: impl AsRef<str>, value: impl AsRef<[u8]>, options: PutOptions) -> Self {
        let (key, value) = (key.as_ref().to_owned(), value.as_ref().to_owned());
        self.with(BatchWrite::Put { key, value, options })
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(self, key: impl AsRef<str>) -> Self {
        self.with(BatchWrite::Delete { key: key.as_ref().to_owned(), only_if: None })
    }

    /// Adds a delete under a condition.
    #[must_use]
    pub fn delete_if(self, key: impl AsRef<str>, only_if: OnlyIf) -> Self {
        self.with(BatchWrite::Delete { key: key.as_ref().to_owned(), only_if: Some(only_if) })
    }

    /// Adds an element to a set.
    #[must_use]
    pub fn set_add(self, set: impl AsRef<str>, element: impl AsRef<str>) -> Self {
        self.set_add_with(set, element, PutOptions::new())
    }

    /// Adds an element to a set under a condition, with a time to live, or bound to the life of this process.
    #[must_use]
    pub fn set_add_with(self, set: impl AsRef<str>, element: impl AsRef<str>, options: PutOptions) -> Self {
        let (set, element) = (set.as_ref().to_owned(), element.as_ref().to_owned());
        self.with(BatchWrite::Add { set, element, options })
    }

    /// Removes an element from a set.
    #[must_use]
    pub fn set_remove(self, set: impl AsRef<str>, element: impl AsRef<str>) -> Self {
        let (set, element) = (set.as_ref().to_owned(), element.as_ref().to_owned());
        self.with(BatchWrite::Remove { set, element })
    }

    /// Adds to a counter.
    #[must_use]
    pub fn counter_add(self, counter: impl AsRef<str>, by: i64) -> Self {
        self.with(BatchWrite::Count { counter: counter.as_ref().to_owned(), by })
    }
}

impl Replica {
    /// Applies several writes in one step: all of them or, if one is not acceptable, none. Conditions are compared with
    /// what this node holds before the batch. Returns the stamps of the writes.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(&mut self, now: Time, batch: &Batch) -> Result<Vec<Option<Stamp>>, WriteError> {
        self.check_writable(now)?;
        if batch.writes.len() > BATCH_WRITES_MAX {
            return Err(WriteError::BatchTooLarge { writes: batch.writes.len() });
        }
        self.check_batch_valid(batch)?;
        let has_changed =
            |(prefix, since): &&(String, Revision)| !self.store.is_unchanged(&key::register(prefix), *since);
        if let Some((prefix, _)) = batch.unchanged.iter().find(has_changed) {
            return Err(WriteError::Changed { prefix: prefix.clone() });
        }
        let mut keys = Vec::with_capacity(batch.writes.len());
        let mut shares = BTreeMap::new();
        for write in &batch.writes {
            write.check_names()?;
            self.store.check_value_bytes(write.value_bytes().unwrap_or(0))?;
            let stored = write.stored(self.store.run);
            if let Some(only_if) = write.condition() {
                self.store.check_condition(now, &stored, only_if)?;
            }
            if let BatchWrite::Count { by, .. } = write {
                let share = shares.get(&stored).copied().unwrap_or_else(|| self.own_share(&stored));
                shares.insert(stored.clone(), share.checked_add(*by).ok_or(WriteError::CounterOverflow)?);
            }
            keys.push(stored);
        }
        let sizes = keys.iter().map(Vec::as_slice).zip(batch.writes.iter().map(BatchWrite::value_bytes));
        self.store.check_room(sizes)?;
        let stamps =
            batch.writes.iter().zip(keys).map(|(write, stored)| self.apply(now, stored, write)).collect();
        self.judge_runs(now);
        self.follow();
        Ok(stamps)
    }

    /// Applies a write that is known to be acceptable to its stored key.
    fn apply(&mut self, now: Time, stored: Vec<u8>, write: &BatchWrite) -> Option<Stamp> {
        self.write_limiter.count_written(now.mono, (stored.len() + write.value_bytes().unwrap_or(0)) as u64);
        let lifetime = write.lifetime(now, self.store.first_run);
        match write {
            BatchWrite::Put { value, .. } => Some(self.store.put(now, &stored, value, lifetime).0),
            BatchWrite::Add { .. } => Some(self.store.put(now, &stored, &[], lifetime).0),
            BatchWrite::Count { by, .. } => {
                let share = self.own_share(&stored) + by;
                let (stamp, _) = self.store.put(now, &stored, &share.to_le_bytes(), lifetime);
                self.own_shares.insert(stored, share);
                Some(stamp)
            }
            BatchWrite::Delete { .. } | BatchWrite::Remove { .. } => {
                self.store.delete(now, &stored).map(|(stamp, _)| stamp)
            }
        }
    }
}
