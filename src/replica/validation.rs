//! Checks of values that the user gives: they refuse local writes, and count what others have written.
//!
//! A value of another node is never refused: it is merged and read as any other, because nodes that judge differently,
//! as while a new version is rolled out, must still come to hold the same. It is counted and reported. The judge is one
//! more follower of the change log, so that a value is looked at once, however it has come.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::batch::{Batch, BatchWrite};
use super::{Output, Replica, ReplicaEvent};
use crate::error::WriteError;
use crate::id::LogId;
use crate::store::LocalStore;
use crate::store::entry::Dot;
use crate::store::key::{self, Space};
use crate::time::Stamp;

/// Invalid values of others that are reported in one step. All of them are counted.
const INVALID_TOLD_MAX: usize = 64;

type ValueCheck = Arc<dyn Fn(&str, &[u8]) -> Result<(), String> + Send + Sync>;

/// The checks of a node, by the beginning of the keys whose values they judge.
#[derive(Clone, Default)]
pub(crate) struct Validators(Vec<(String, ValueCheck)>);

impl std::fmt::Debug for Validators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(prefix, _)| prefix)).finish()
    }
}

impl Validators {
    pub(crate) fn add<E: std::fmt::Display>(
        &mut self,
        prefix: String,
        check: impl Fn(&str, &[u8]) -> Result<(), E> + Send + Sync + 'static,
    ) {
        let check = move |key: &str, value: &[u8]| check(key, value).map_err(|error| error.to_string());
        self.0.push((prefix, Arc::new(check)));
    }

    /// What is wrong with a value, if anything. A check that panics finds the value wrong: it must not take the node
    /// with it.
    fn fault(&self, key: &str, value: &[u8]) -> Option<String> {
        let checks = self.0.iter().filter(|(prefix, _)| key.starts_with(prefix.as_str()));
        let mut results = checks.map(|(_, check)| {
            let checked = catch_unwind(AssertUnwindSafe(|| check(key, value)));
            checked.unwrap_or_else(|_| Err("its check panicked".to_owned()))
        });
        results.find_map(Result::err)
    }
}

/// The checks, how far the change log was judged, and what was found invalid.
#[derive(Debug, Default)]
pub(super) struct Validation {
    validators: Validators,
    log: LogId,
    cursor: u64,
    /// Stored keys that hold an invalid value, with its stamp.
    invalid: BTreeMap<Vec<u8>, Stamp>,
}

impl Validation {
    pub(super) fn new(validators: Validators) -> Self {
        Self { validators, ..Self::default() }
    }

    /// Checks a value that is about to be written.
    fn check(&self, key: &str, value: &[u8]) -> Result<(), WriteError> {
        match self.validators.fault(key, value) {
            None => Ok(()),
            Some(reason) => Err(WriteError::Invalid { key: key.to_owned(), reason }),
        }
    }

    /// How many keys hold an invalid value.
    pub(super) fn invalid_count(&self) -> usize {
        self.invalid.len()
    }

    /// Forgets what is not held any more: a value that expired is dropped without a change in the log.
    pub(super) fn sweep(&mut self, store: &LocalStore) {
        self.invalid
            .retain(|key, stamp| store.dot_set(key).is_some_and(|(dot_set, _)| dot_set.holds(*stamp)));
    }

    /// Judges what has changed since the last call. Returns what is invalid and was not before: key, stamp, reason.
    fn follow(&mut self, store: &LocalStore) -> Vec<(String, Stamp, String)> {
        let mut news = Vec::new();
        if self.validators.0.is_empty() {
            return news;
        }
        if self.log != store.log.id {
            (self.log, self.cursor) = (store.log.id, 0);
            self.invalid.clear();
        }
        for (_, id) in store.log.rows_after(self.cursor) {
            let dot_set = &store.row(id).dot_set;
            if key::space_of(dot_set.key()) != Some(Space::Register) {
                continue;
            }
            let key = key::readable_key(dot_set.key());
            let fault = |dot: &Dot| Some((dot.stamp(), self.validators.fault(key, dot.value())?));
            match dot_set.dots().iter().rev().find_map(fault) {
                None => _ = self.invalid.remove(dot_set.key()),
                Some((stamp, reason)) => {
                    if self.invalid.insert(dot_set.key().to_vec(), stamp) != Some(stamp) {
                        news.push((key.to_owned(), stamp, reason));
                    }
                }
            }
        }
        self.cursor = store.log.head();
        news
    }
}

impl Replica {
    /// Checks a value that is about to be written under a key.
    pub(super) fn check_valid(&self, key: &str, value: &[u8]) -> Result<(), WriteError> {
        self.validation.check(key, value)
    }

    /// Checks the values that a batch is about to write.
    pub(super) fn check_batch_valid(&self, batch: &Batch) -> Result<(), WriteError> {
        batch.writes.iter().try_for_each(|write| match write {
            BatchWrite::Put { key, value, .. } => self.check_valid(key, value),
            _ => Ok(()),
        })
    }

    /// Judges what has changed, and reports what is invalid.
    pub(super) fn follow_validation(&mut self) {
        for (key, stamp, reason) in self.validation.follow(&self.store).into_iter().take(INVALID_TOLD_MAX) {
            let writer = self.name_of_origin(stamp.origin);
            self.outputs.push_back(Output::Event(ReplicaEvent::Invalid { key, stamp, writer, reason }));
        }
    }
}
