//! Where definitions come from: keys of the store, a file in flagd's format, or what was kept of an earlier run.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definition::{self, DefinitionError};
use super::sets::DEFAULT_SET;
use super::value::FlagValue;
use crate::error::{BoxedError, Cause, LiveSource, Rejected};
use crate::store::entry::Entry;
use crate::time::Stamp;
use crate::typed::kept;

/// The last part of the key that holds the rules which the flags of a set share.
pub(super) const SHARED_RULES: &str = "$evaluators";
/// The last part of the key that holds the metadata of a set.
pub(super) const SET_METADATA: &str = "$metadata";

/// Why what is under a key that names no flag is rejected.
pub(super) const NO_FLAG: &str = "the key names no flag: behind the prefix stand a set, a slash and a flag";

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FlagName {
    /// The set and the flag.
    Flag(Arc<str>, Arc<str>),
    /// No flag; this is the key without the prefix of the flags.
    None(String),
}

impl FlagName {
    /// What a key names; `rest` is the key without the prefix of the flags.
    pub(super) fn of_key(rest: &str) -> Self {
        match rest.split_once('/') {
            Some((set, flag)) if !set.is_empty() && !flag.is_empty() => Self::Flag(set.into(), flag.into()),
            _ => Self::None(rest.to_owned()),
        }
    }
}

/// A definition, or something else that belongs to a set, with its source.
#[derive(Clone, Debug)]
pub(super) struct FlagSource {
    pub(super) name: FlagName,
    pub(super) from: LiveSource,
    /// Its value, which is parsed when it is new.
    pub(super) value: SourceValue,
}

#[derive(Clone, Debug)]
pub(super) enum SourceValue {
    Entry(Entry),
    Parsed(FlagValue),
}

impl FlagSource {
    /// The definition under a key; `rest` is the key without the prefix of the flags.
    pub(super) fn of_key(rest: &str, from: LiveSource, value: SourceValue) -> Self {
        let name = FlagName::of_key(rest);
        Self { name, from, value }
    }

    pub(super) fn parse(&self) -> Result<FlagValue, DefinitionError> {
        match &self.value {
            SourceValue::Entry(entry) => definition::parse(entry.value()),
            SourceValue::Parsed(value) => definition::within_depth(value.clone()),
        }
    }

    /// The stamp of the write that it comes from, if it comes from one.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        match &self.from {
            LiveSource::Key { stamp, .. } => Some(*stamp),
            _ => None,
        }
    }

    pub(super) fn rejected(&self, error: impl Into<BoxedError>) -> Rejected {
        Rejected { from: Some(self.from.clone()), path: String::new(), error: Cause::new(error) }
    }
}

/// The definitions of a file in flagd's format; they make the default set.
pub(super) fn of_file(json: &str, name: &str) -> Result<Vec<FlagSource>, BoxedError> {
    let file: FlagValue = json.parse()?;
    let Some(FlagValue::Object(flags)) = file.field("flags") else {
        return Err("it has no object called \"flags\"".into());
    };
    let shared = [(SHARED_RULES, "$evaluators"), (SET_METADATA, "metadata")];
    let shared = shared.into_iter().filter_map(|(key, field)| Some((key.into(), file.field(field)?.clone())));
    let source = |(key, value): (Arc<str>, FlagValue)| FlagSource {
        name: FlagName::Flag(DEFAULT_SET.into(), key),
        from: LiveSource::Layer { name: name.to_owned() },
        value: SourceValue::Parsed(value),
    };
    Ok(shared.chain(flags.iter().cloned()).map(source).collect())
}

/// What is kept of one key.
#[derive(Deserialize, Serialize)]
struct SavedDefinition {
    value: FlagValue,
}

/// Definitions as bytes. Only those that come from keys are kept.
pub(super) fn encode<'a>(
    prefix: &str,
    sources: impl Iterator<Item = (&'a LiveSource, &'a FlagValue)>,
) -> Vec<u8> {
    kept::encode(prefix, sources.map(|(from, value)| (from, SavedDefinition { value: value.clone() })))
}

/// The definitions that were kept.
pub(super) fn decode(prefix: &str, bytes: &[u8]) -> Result<Vec<FlagSource>, BoxedError> {
    let source = |(from, saved): (LiveSource, SavedDefinition)| -> Result<FlagSource, BoxedError> {
        let rest = match &from {
            LiveSource::Key { key, .. } => key.strip_prefix(prefix),
            _ => None,
        };
        let rest = rest.ok_or("it has a key without the prefix of the flags")?.to_owned();
        Ok(FlagSource::of_key(&rest, from, SourceValue::Parsed(saved.value)))
    };
    kept::decode(prefix, bytes)?.into_iter().map(source).collect()
}
