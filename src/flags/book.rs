//! The definitions that are in force: what was compiled, and of what, so that a change compiles only what it concerns.
//!
//! Each definition stands by itself. One that is malformed keeps the last one under the same name that was not, and is
//! reported with its source until it is replaced or deleted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::compile::SharedRules;
use super::definition::{DefinitionError, Flag, SetSettings};
use super::sets::{FlagEntry, FlagSet, FlagSets};
use super::source::{FlagSource, SET_METADATA, SHARED_RULES};
use super::value::FlagValue;
use crate::error::{Cause, LiveSource, Rejected};

/// The most malformed definitions that are reported at a time.
const REJECTED_MAX: usize = 64;

/// Everything that is known of the definitions of all sets.
#[derive(Debug, Default)]
pub(super) struct FlagBook {
    sets: BTreeMap<Arc<str>, SetBook>,
    compiled: Arc<FlagSets>,
}

#[derive(Debug, Default)]
struct SetBook {
    shared: Part<()>,
    settings: Part<SetSettings>,
    rules: SharedRules,
    flags: BTreeMap<Arc<str>, Part<Flag>>,
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
    /// Takes over a state of all definitions; a later one of two with one name counts. Returns what is malformed in it.
    pub(super) fn update(&mut self, sources: Vec<FlagSource>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut named: BTreeMap<Arc<str>, BTreeMap<Arc<str>, FlagSource>> = BTreeMap::new();
        for source in sources {
            match source.name.clone() {
                Ok((set, flag)) => _ = named.entry(set).or_default().insert(flag, source),
                Err(wrong) => rejected.push(source.rejected(wrong)),
            }
        }
        let before = self.sets.len();
        self.sets.retain(|set, _| named.contains_key(set));
        let mut has_changed = self.sets.len() != before;
        let mut compiled = FlagSets::new();
        for (name, sources) in named {
            let set = self.sets.entry(name.clone()).or_default();
            let is_same = !set.update(sources);
            rejected.extend(set.rejected());
            let known = self.compiled.get(&name).filter(|_| is_same).cloned();
            has_changed |= known.is_none();
            compiled.insert(name, known.unwrap_or_else(|| Arc::new(set.compiled())));
        }
        if has_changed {
            self.compiled = Arc::new(compiled);
        }
        rejected.truncate(REJECTED_MAX);
        rejected
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
    /// Returns whether something has changed.
    fn update(&mut self, mut sources: BTreeMap<Arc<str>, FlagSource>) -> bool {
        let (shared, settings) = (sources.remove(SHARED_RULES), sources.remove(SET_METADATA));
        let is_all_new = !self.shared.is_seen(shared.as_ref()) || !self.settings.is_seen(settings.as_ref());
        if is_all_new {
            self.update_common(shared, settings);
        }
        let before = self.flags.len();
        self.flags.retain(|flag, _| sources.contains_key(flag));
        let mut has_changed = is_all_new || self.flags.len() != before;
        let none = SetSettings::default();
        let settings = self.settings.good.as_ref().map_or(&none, |(settings, ..)| settings);
        for (key, source) in sources {
            let part = self.flags.entry(key.clone()).or_default();
            if is_all_new || !part.is_seen(Some(&source)) {
                has_changed = true;
                part.set(source, |value| {
                    Flag::compile(key, value, &mut self.rules, settings).map(|(flag, _)| flag)
                });
            }
        }
        has_changed
    }

    fn update_common(&mut self, shared: Option<FlagSource>, settings: Option<FlagSource>) {
        match shared {
            None => self.shared = Part::default(),
            Some(source) => self.shared.set(source, |value| match value {
                FlagValue::Object(_) => Ok(()),
                other => Err(DefinitionError::NoObject(other.kind())),
            }),
        }
        match settings {
            None => self.settings = Part::default(),
            Some(source) => self.settings.set(source, SetSettings::parse),
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
        shared.chain(self.flags.values().filter_map(Part::rejected))
    }

    fn compiled(&mut self) -> FlagSet {
        let none = SetSettings::default();
        let settings = self.settings.good.as_ref().map_or(&none, |(settings, ..)| settings);
        let (mut flags, mut unfit) = (HashMap::default(), Vec::new());
        for (key, part) in &self.flags {
            let entry = match (&part.good, &part.rejected) {
                (Some((flag, _, definition)), rejected) => {
                    // Definitions that are not malformed were compiled with these very rules.
                    if rejected.is_some()
                        && Flag::compile(key.clone(), definition, &mut self.rules, settings).is_err()
                    {
                        unfit.push(key.clone());
                    }
                    FlagEntry::Ready(flag.clone())
                }
                (None, Some(error)) => FlagEntry::Malformed(error.clone()),
                (None, None) => continue,
            };
            flags.insert(key.clone(), entry);
        }
        let shared = self.shared.kept().map(|(_, rules)| ("$evaluators".into(), rules.clone()));
        let settings = self.settings.kept().map(|(_, metadata)| ("metadata".into(), metadata.clone()));
        FlagSet::new(flags, shared.into_iter().chain(settings).collect(), unfit)
    }
}
