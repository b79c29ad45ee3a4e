//! The definitions that are in force: what was compiled, and of what, so that a change compiles only what it concerns.
//!
//! Each definition stands by itself. One that is malformed keeps the last one under the same name that was not, and is
//! reported with its source until it is replaced or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::SharedRules;
use super::definition::{DefinitionError, Flag, SetSettings};
use super::sets::{FlagEntry, FlagSet, FlagSets};
use super::source::{FlagName, FlagSource, NO_FLAG, SET_METADATA, SHARED_RULES};
use super::value::FlagValue;
use crate::error::{Cause, LiveSource, Rejected};

/// The most malformed definitions that are reported at a time.
const REJECTED_MAX: usize = 64;

/// Everything that is known of the definitions of all sets.
#[derive(Debug, Default)]
pub(super) struct FlagBook {
    sets: BTreeMap<Arc<str>, SetBook>,
    /// What has a key that names no flag.
    unnamed: BTreeMap<String, FlagSource>,
    compiled: Arc<FlagSets>,
}

#[derive(Debug, Default)]
struct SetBook {
    shared: Part<()>,
    settings: Part<SetSettings>,
    rules: SharedRules,
    flags: BTreeMap<Arc<str>, Part<Flag>>,
    /// The flags whose last definition is malformed.
    rejected: BTreeSet<Arc<str>>,
    compiled: Arc<FlagSet>,
}

/// One definition: what was seen last, and what was good last.
#[derive(Debug)]
struct Part<T> {
    seen: Option<FlagSource>,
    rejected: Option<Cause>,
    good: Option<(Arc<T>, LiveSource, FlagValue)>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { seen: None, rejected: None, good: None }
    }
}

impl<T> Part<T> {
    /// Whether a source is what was seen last.
    fn is_seen(&self, source: Option<&FlagSource>) -> bool {
        match (&self.seen, source) {
            (None, None) => true,
            (Some(seen), Some(source)) => match (seen.stamp(), source.stamp()) {
                (None, None) => seen.from == source.from,
                (a, b) => a == b,
            },
            _ => false,
        }
    }

    fn set(&mut self, source: FlagSource, read: impl FnOnce(&FlagValue) -> Result<T, DefinitionError>) {
        let read = source.parse().and_then(|value| Ok((Arc::new(read(&value)?), source.from.clone(), value)));
        self.rejected = match read {
            Ok(good) => {
                self.good = Some(good);
                None
            }
            Err(error) => Some(Cause::new(error)),
        };
        self.seen = Some(source);
    }

    fn rejected(&self) -> Option<Rejected> {
        let (error, source) = (self.rejected.clone()?, self.seen.as_ref()?);
        Some(Rejected { from: Some(source.from.clone()), path: String::new(), error })
    }

    fn kept(&self) -> Option<(&LiveSource, &FlagValue)> {
        self.good.as_ref().map(|(_, from, value)| (from, value))
    }
}

impl FlagBook {
    /// Takes over a state of all definitions; a later one of two with one name counts.
    pub(super) fn replace(&mut self, sources: Vec<FlagSource>) {
        let mut changes: BTreeMap<FlagName, Option<FlagSource>> =
            self.names().into_iter().map(|name| (name, None)).collect();
        changes.extend(sources.into_iter().map(|source| (source.name.clone(), Some(source))));
        self.apply(changes);
    }

    fn names(&self) -> Vec<FlagName> {
        let unnamed = self.unnamed.keys().cloned().map(FlagName::None);
        let of_set = |(set, book): (&Arc<str>, &SetBook)| {
            book.names().map(|flag| FlagName::Flag(set.clone(), flag)).collect::<Vec<_>>()
        };
        unnamed.chain(self.sets.iter().flat_map(of_set)).collect()
    }

    /// Takes over new definitions, and that others are gone.
    pub(super) fn apply(&mut self, changes: BTreeMap<FlagName, Option<FlagSource>>) {
        let mut of_sets: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Option<FlagSource>>> = BTreeMap::new();
        for (name, source) in changes {
            match (name, source) {
                (FlagName::Flag(set, flag), source) => {
                    of_sets.entry(set).or_default().insert(flag, source);
                }
                (FlagName::None(key), Some(source)) => _ = self.unnamed.insert(key, source),
                (FlagName::None(key), None) => _ = self.unnamed.remove(&key),
            }
        }
        for (name, changes) in of_sets {
            let set = self.sets.entry(name.clone()).or_default();
            if !set.apply(changes) {
                continue;
            }
            // Readers have the map of before.
            let compiled = Arc::make_mut(&mut self.compiled);
            if set.is_empty() {
                compiled.remove(&name);
                self.sets.remove(&name);
            } else {
                compiled.insert(name, set.compiled.clone());
            }
        }
    }

    /// What is malformed, at most [`REJECTED_MAX`].
    pub(super) fn rejected(&self) -> Vec<Rejected> {
        let unnamed = self.unnamed.values().map(|source| source.rejected(NO_FLAG));
        unnamed.chain(self.sets.values().flat_map(SetBook::rejected)).take(REJECTED_MAX).collect()
    }

    /// The compiled flags. The same pointer as before if nothing has changed.
    pub(super) fn sets(&self) -> Arc<FlagSets> {
        self.compiled.clone()
    }

    /// All definitions that are in force, with their sources.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&LiveSource, &FlagValue)> {
        self.sets.values().flat_map(|set| {
            let shared = set.shared.kept().into_iter().chain(set.settings.kept());
            shared.chain(set.flags.values().filter_map(Part::kept))
        })
    }
}

impl SetBook {
    fn names(&self) -> impl Iterator<Item = Arc<str>> {
        let shared = self.shared.seen.as_ref().map(|_| SHARED_RULES.into());
        let settings = self.settings.seen.as_ref().map(|_| SET_METADATA.into());
        shared.into_iter().chain(settings).chain(self.flags.keys().cloned())
    }

    fn is_empty(&self) -> bool {
        self.shared.seen.is_none() && self.settings.seen.is_none() && self.flags.is_empty()
    }

    /// Returns whether something has changed.
    fn apply(&mut self, mut changes: BTreeMap<Arc<str>, Option<FlagSource>>) -> bool {
        let mut is_all_new = false;
        if let Some(source) = changes.remove(SHARED_RULES)
            && !self.shared.is_seen(source.as_ref())
        {
            self.set_shared(source);
            is_all_new = true;
        }
        if let Some(source) = changes.remove(SET_METADATA)
            && !self.settings.is_seen(source.as_ref())
        {
            self.set_settings(source);
            is_all_new = true;
        }
        if is_all_new {
            for (flag, part) in &self.flags {
                changes.entry(flag.clone()).or_insert_with(|| part.seen.clone());
            }
        }
        changes.retain(|flag, source| {
            let seen = self.flags.get(flag).map(|part| part.is_seen(source.as_ref()));
            is_all_new || !seen.unwrap_or(source.is_none())
        });
        let has_changed = is_all_new || !changes.is_empty();
        if has_changed {
            let mut compiled = FlagSet::clone(&self.compiled);
            if is_all_new {
                let shared = self.shared.kept().map(|(_, rules)| ("$evaluators".into(), rules.clone()));
                let settings =
                    self.settings.kept().map(|(_, metadata)| ("metadata".into(), metadata.clone()));
                compiled.set_common(shared.into_iter().chain(settings).collect());
            }
            for (flag, source) in changes {
                let entry = self.set_flag(&flag, source, is_all_new);
                compiled.set(&flag, entry);
            }
            self.compiled = Arc::new(compiled);
        }
        has_changed
    }

    /// Takes over a definition, or that it is gone. Returns what is in force then. `is_common_new`: the shared rules or
    /// the metadata are others than when the flag was compiled last.
    fn set_flag(
        &mut self,
        flag: &Arc<str>,
        source: Option<FlagSource>,
        is_common_new: bool,
    ) -> Option<FlagEntry> {
        self.rejected.remove(flag);
        let Some(source) = source else {
            self.flags.remove(flag);
            return None;
        };
        let none = SetSettings::default();
        let settings = self.settings.good.as_ref().map_or(&none, |(settings, ..)| settings);
        let part = self.flags.entry(flag.clone()).or_default();
        let rules = &mut self.rules;
        let before = part.good.as_ref().map(|(flag, ..)| flag.clone());
        part.set(source, |value| {
            let (mut flag, _) = Flag::compile(flag.clone(), value, rules, settings)?;
            if let Some(before) = before {
                flag.count_on(&before);
            }
            Ok(flag)
        });
        if part.rejected.is_some() {
            self.rejected.insert(flag.clone());
        }
        match (&mut part.good, &part.rejected) {
            (Some((compiled, ..)), None) => Some(FlagEntry::Ready(compiled.clone())),
            (Some((compiled, _, value)), Some(_)) => {
                // The last good definition goes with the shared rules and the metadata of now, as it does in files.
                let Ok((mut fit, _)) = Flag::compile(flag.clone(), value, rules, settings) else {
                    return Some(FlagEntry::Unfit(compiled.clone()));
                };
                if is_common_new {
                    fit.count_on(compiled);
                    *compiled = Arc::new(fit);
                }
                Some(FlagEntry::Ready(compiled.clone()))
            }
            (None, Some(error)) => Some(FlagEntry::Malformed(error.clone())),
            (None, None) => None,
        }
    }

    fn set_settings(&mut self, source: Option<FlagSource>) {
        match source {
            None => self.settings = Part::default(),
            Some(source) => self.settings.set(source, SetSettings::parse),
        }
    }

    fn set_shared(&mut self, source: Option<FlagSource>) {
        match source {
            None => self.shared = Part::default(),
            Some(source) => {
                let has_good = self.shared.good.is_some();
                self.shared.set(source, |value| match value {
                    FlagValue::Object(fields) => match SharedRules::new(fields.clone()).errors().pop() {
                        Some(error) if has_good => Err(error.into()),
                        // Where there are none of before, those of them that are good are better than none.
                        _ => Ok(()),
                    },
                    other => Err(DefinitionError::NoObject(other.kind())),
                });
            }
        }
        self.rules = match &self.shared.good {
            Some((_, _, FlagValue::Object(fields))) => SharedRules::new(fields.clone()),
            _ => SharedRules::default(),
        };
        if let (None, Some(error)) = (&self.shared.rejected, self.rules.errors().into_iter().next()) {
            self.shared.rejected = Some(Cause::new(error));
        }
    }

    fn rejected(&self) -> impl Iterator<Item = Rejected> {
        let shared = self.shared.rejected().into_iter().chain(self.settings.rejected());
        shared.chain(self.rejected.iter().filter_map(|flag| self.flags.get(flag)?.rejected()))
    }
}
