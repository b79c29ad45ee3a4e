//! Checks of definitions before they are written: whether they are taken, and whether flagd's schema allows them.

use super::compile::SharedRules;
use super::definition::{self, Flag, SetSettings};
use super::source::{SET_METADATA, SHARED_RULES};
use super::value::FlagValue;
use crate::error::{BoxedError, Cause};

/// What is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{}{error}", place(flag))]
#[non_exhaustive]
pub struct FlagFault {
    /// The flag, `$evaluators` or `$metadata`; empty if it is the whole file.
    pub flag: String,
    /// What it is.
    #[source]
    pub error: Cause,
    /// The definition is not taken. Otherwise it is, but flagd's schema does not allow it.
    pub is_malformed: bool,
}

fn place(flag: &str) -> String {
    if flag.is_empty() { String::new() } else { format!("the flag \"{}\": ", crate::text::Escaped(flag)) }
}

/// Refuses definitions that are malformed, for `Builder::validate`: no node that checks so writes one. References from
/// flags to shared rules are not followed, because a check sees one value alone.
///
/// # Errors
/// What is wrong with the value.
///
/// ```
/// # use tidings::flags;
/// assert!(flags::check("flags/default/a", br#"{"state": "ENABLED", "variants": {"on": true}}"#).is_ok());
/// assert!(flags::check("flags/default/a", br#"{"state": "ENABLED", "variants": {}}"#).is_err());
/// assert!(flags::check("flags/default/$metadata", br#"{"fractional": 4}"#).is_err());
/// assert!(flags::check("flags/default/$evaluators", br#"{"staff": {"unheard_of": []}}"#).is_err());
/// ```
pub fn check(key: &str, value: &[u8]) -> Result<(), FlagFault> {
    let name = key.rsplit('/').next().unwrap_or_default();
    let fault =
        |error: BoxedError| FlagFault { flag: name.to_owned(), error: Cause::new(error), is_malformed: true };
    let value = definition::parse(value).map_err(|error| fault(error.into()))?;
    match (name, value) {
        (SHARED_RULES, FlagValue::Object(rules)) => match SharedRules::new(rules).errors().pop() {
            Some(error) => Err(fault(error.into())),
            None => Ok(()),
        },
        (SHARED_RULES, _) => Err(fault("shared rules are an object".into())),
        (SET_METADATA, value) => SetSettings::parse(&value).map(|_| ()).map_err(|error| fault(error.into())),
        (_, value) => {
            let mut rules = SharedRules::permissive();
            let compiled = Flag::compile(name.into(), &value, &mut rules, &SetSettings::default());
            compiled.map(|_| ()).map_err(|error| fault(error.into()))
        }
    }
}

/// Everything that is wrong with a file in flagd's format: what is malformed, and what flagd's schema does not allow.
pub fn check_file(json: &str) -> Vec<FlagFault> {
    let mut faults = Vec::new();
    let mut note = |flag: &str, error: BoxedError, is_malformed| {
        faults.push(FlagFault { flag: flag.to_owned(), error: Cause::new(error), is_malformed });
    };
    let file: FlagValue = match json.parse() {
        Ok(file) => file,
        Err(error) => {
            note("", error, true);
            return faults;
        }
    };
    let Some(FlagValue::Object(flags)) = file.field("flags") else {
        note("", "it has no object called \"flags\"".into(), true);
        return faults;
    };
    let mut rules = match file.field("$evaluators").cloned().map(definition::within_depth) {
        Some(Ok(FlagValue::Object(fields))) => SharedRules::new(fields),
        None => SharedRules::default(),
        Some(Ok(_)) => {
            note(SHARED_RULES, "shared rules are an object".into(), true);
            SharedRules::default()
        }
        Some(Err(error)) => {
            note(SHARED_RULES, error.into(), true);
            SharedRules::default()
        }
    };
    rules.errors().into_iter().for_each(|error| note(SHARED_RULES, error.into(), true));
    let settings = match file.field("metadata").map(SetSettings::parse) {
        Some(Ok(settings)) => settings,
        None => SetSettings::default(),
        Some(Err(error)) => {
            note(SET_METADATA, error.into(), true);
            SetSettings::default()
        }
    };
    for (key, value) in flags.iter() {
        let compiled = definition::within_depth(value.clone())
            .and_then(|value| Flag::compile(key.clone(), &value, &mut rules, &settings));
        match compiled {
            Ok((_, findings)) => findings.into_iter().for_each(|finding| note(key, finding.into(), false)),
            Err(error) => note(key, error.into(), true),
        }
    }
    faults
}
