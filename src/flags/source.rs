//! Where definitions come from: keys of the store, a file in flagd's format, or what was kept of an earlier run.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definition::{self, DefinitionError};
use super::sets::DEFAULT_SET;
use super::value::FlagValue;
use crate::error::{Author, BoxedError, Cause, LiveSource, Rejected};
use crate::store::entry::Entry;
use crate::time::Stamp;

/// The last part of the key that holds the rules which the flags of a set share.
pub(super) const SHARED_RULES: &str = "$evaluators";
/// The last part of the key that holds the metadata of a set.
pub(super) const SET_METADATA: &str = "$metadata";

/// A definition, or something else that belongs to a set, with its source.
#[derive(Clone, Debug)]
pub(super) struct FlagSource {
    /// The set and the flag. An error: the key names none.
    pub(super) name: Result<(Arc<str>, Arc<str>), String>,
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
        let name = match rest.split_once('/') {
            Some((set, flag)) if !set.is_empty() && !flag.is_empty() => Ok((set.into(), flag.into())),
            _ => Err("the key names no flag: behind the prefix stand a set, a slash and a flag".to_owned()),
        };
        Self { name, from, value }
    }

    pub(super) fn parse(&self) -> Result<FlagValue, DefinitionError> {
        match &self.value {
            SourceValue::Entry(entry) => definition::parse(entry.value()),
            SourceValue::Parsed(value) => Ok(value.clone()),
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
        name: Ok((DEFAULT_SET.into(), key)),
        from: LiveSource::Layer { name: name.to_owned() },
        value: SourceValue::Parsed(value),
    };
    Ok(shared.chain(flags.iter().cloned()).map(source).collect())
}

const FORMAT: u32 = 1;

/// The definitions as they are kept for the next start.
#[derive(Deserialize, Serialize)]
struct SavedFlags {
    format: u32,
    /// The prefix of the flags.
    of: String,
    keys: BTreeMap<String, SavedDefinition>,
}

#[derive(Deserialize, Serialize)]
struct SavedDefinition {
    value: FlagValue,
    stamp: String,
    writer: Option<String>,
}

/// Definitions as bytes. Only those that come from keys are kept.
pub(super) fn encode<'a>(
    prefix: &str,
    sources: impl Iterator<Item = (&'a LiveSource, &'a FlagValue)>,
) -> Vec<u8> {
    let saved = |(from, value): (&LiveSource, &FlagValue)| match from {
        LiveSource::Key { key, stamp, writer } => Some((
            key.clone(),
            SavedDefinition { value: value.clone(), stamp: stamp.to_string(), writer: writer.name.clone() },
        )),
        _ => None,
    };
    let flags =
        SavedFlags { format: FORMAT, of: prefix.to_owned(), keys: sources.filter_map(saved).collect() };
    serde_json::to_vec_pretty(&flags).expect("texts and JSON values have a form as JSON")
}

/// The definitions that were kept.
pub(super) fn decode(prefix: &str, bytes: &[u8]) -> Result<Vec<FlagSource>, BoxedError> {
    let saved: SavedFlags = serde_json::from_slice(bytes)?;
    if saved.format != FORMAT {
        return Err(format!("it has format {}, and this release reads format {FORMAT}", saved.format).into());
    }
    if saved.of != prefix {
        return Err(format!("it belongs to \"{}\" and not to \"{prefix}\"", saved.of).into());
    }
    let source = |(key, saved): (String, SavedDefinition)| -> Result<FlagSource, BoxedError> {
        let stamp: Stamp = saved.stamp.parse()?;
        let writer = Author { run: stamp.origin(), name: saved.writer };
        let rest = key.strip_prefix(prefix).ok_or("it has a key without the prefix of the flags")?.to_owned();
        let from = LiveSource::Key { key, stamp, writer };
        Ok(FlagSource::of_key(&rest, from, SourceValue::Parsed(saved.value)))
    };
    saved.keys.into_iter().map(source).collect()
}
