//! One flag, from its JSON: what flagd's schema says of a flag, checked and compiled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::{self, CompiledRule, SharedRules, cut};
use super::context::Context;
use super::count::VariantCount;
use super::details::{Metadata, Reason};
use super::error::{CompileError, FlagError};
use super::evaluate::{EVALUATION_STEPS_MAX, Evaluation};
use super::fractional::FractionalVersion;
use super::rule::Expression;
use super::value::FlagValue;
use crate::error::Cause;
use crate::text::Escaped;

/// The deepest nesting of lists and objects in a definition, in the shared rules of a set and in its metadata.
///
/// JSON is read up to 127 levels. Files, what is kept for the next start, histories and answers hold definitions a few
/// levels deeper than their keys do, and have to be read as well.
pub const DEFINITION_DEPTH_MAX: usize = 100;

/// The metadata field that says which version of `fractional` a set uses: 2 or 3. Evaluations state it under the same
/// name.
pub(super) const FRACTIONAL_FIELD: &str = "fractional";

/// A flag that can be evaluated.
#[derive(Debug)]
pub(super) struct Flag {
    key: Arc<str>,
    is_enabled: bool,
    /// In the order of their names.
    variants: Box<[Variant]>,
    /// Evaluations that gave the program's default.
    pub(super) default_count: VariantCount,
    default: Option<usize>,
    rule: Option<Expression>,
    /// Whether its value can change while nothing is changed: its rule reads, or may read, the time.
    pub(super) may_read_time: bool,
    fractional: FractionalVersion,
    pub(super) metadata: Metadata,
    /// What it was compiled of.
    pub(super) definition: FlagValue,
}

/// One of the values that a flag can have.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) name: Arc<str>,
    pub(super) value: FlagValue,
    /// Evaluations that gave it.
    pub(super) count: VariantCount,
}

/// Why a definition is not taken.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum DefinitionError {
    #[error("it is not JSON: {0}")]
    NoJson(String),
    #[error("it is nested deeper than {}", DEFINITION_DEPTH_MAX)]
    TooDeep,
    #[error("it is {0}, and a flag is an object")]
    NoObject(&'static str),
    #[error("its state is neither ENABLED nor DISABLED")]
    State,
    #[error("it has no variants")]
    NoVariants,
    #[error("its default variant \"{0}\" is none of its variants")]
    DefaultVariant(String),
    #[error("its default variant is neither a text nor null")]
    DefaultVariantType,
    #[error("its metadata is {0}, and metadata is an object")]
    Metadata(&'static str),
    #[error("its metadata field \"{}\" is {}, and may be a text, a number or a boolean", Escaped(.0), .1)]
    MetadataField(String, &'static str),
    #[error("its field \"fractional\" is neither 2 nor 3")]
    Fractional,
    #[error(transparent)]
    Rule(#[from] CompileError),
}

/// What the flags of a set have in common.
#[derive(Debug, Default)]
pub(super) struct SetSettings {
    metadata: BTreeMap<Arc<str>, FlagValue>,
    fractional: FractionalVersion,
}

impl SetSettings {
    /// Reads the metadata of a set.
    pub(super) fn parse(value: &FlagValue) -> Result<Self, DefinitionError> {
        let metadata = metadata(Some(value))?;
        let fractional = match metadata.get(FRACTIONAL_FIELD) {
            None => FractionalVersion::default(),
            Some(FlagValue::Int(2)) => FractionalVersion::V2,
            Some(FlagValue::Int(3)) => FractionalVersion::V3,
            Some(_) => return Err(DefinitionError::Fractional),
        };
        Ok(Self { metadata, fractional })
    }
}

/// Reads a definition, the shared rules of a set or its metadata.
pub(super) fn parse(json: &[u8]) -> Result<FlagValue, DefinitionError> {
    let value = serde_json::from_slice(json).map_err(|error| DefinitionError::NoJson(error.to_string()))?;
    within_depth(value)
}

/// The same value, unless it is nested deeper than [`DEFINITION_DEPTH_MAX`].
pub(super) fn within_depth(value: FlagValue) -> Result<FlagValue, DefinitionError> {
    if value.is_deeper_than(DEFINITION_DEPTH_MAX) { Err(DefinitionError::TooDeep) } else { Ok(value) }
}

fn metadata(value: Option<&FlagValue>) -> Result<BTreeMap<Arc<str>, FlagValue>, DefinitionError> {
    let fields = match value {
        None | Some(FlagValue::Null) => return Ok(BTreeMap::new()),
        Some(FlagValue::Object(fields)) => fields,
        Some(other) => return Err(DefinitionError::Metadata(other.kind())),
    };
    let is_plain = |value: &FlagValue| {
        matches!(value, FlagValue::Bool(_) | FlagValue::Int(_) | FlagValue::Float(_) | FlagValue::Text(_))
    };
    if let Some((name, value)) = fields.iter().find(|(_, value)| !is_plain(value)) {
        return Err(DefinitionError::MetadataField(cut(name), value.kind()));
    }
    Ok(fields.iter().cloned().collect())
}

/// What an evaluation of a flag gives: a variant, or that there is none.
pub(super) enum Resolved<'a> {
    Variant(&'a Variant, Reason),
    /// The program's default counts.
    Default(Reason),
}

impl Flag {
    /// Compiles a definition. Returns what flagd's schema does not allow beside it.
    pub(super) fn compile(
        key: Arc<str>,
        definition: &FlagValue,
        shared: &mut SharedRules,
        settings: &SetSettings,
    ) -> Result<(Self, Vec<String>), DefinitionError> {
        let FlagValue::Object(_) = definition else {
            return Err(DefinitionError::NoObject(definition.kind()));
        };
        let is_enabled = match definition.field("state").and_then(FlagValue::as_str) {
            Some("ENABLED") => true,
            Some("DISABLED") => false,
            _ => return Err(DefinitionError::State),
        };
        let variants: Box<[_]> = match definition.field("variants") {
            Some(FlagValue::Object(fields)) if !fields.is_empty() => {
                let variant = |(name, value): &(Arc<str>, FlagValue)| {
                    let (name, value) = (name.clone(), value.clone());
                    Variant { name, value, count: VariantCount::default() }
                };
                fields.iter().map(variant).collect()
            }
            _ => return Err(DefinitionError::NoVariants),
        };
        let position = |name: &str| variants.binary_search_by(|own| (*own.name).cmp(name)).ok();
        let default = match definition.field("defaultVariant") {
            None | Some(FlagValue::Null) => None,
            Some(FlagValue::Text(name)) if name.is_empty() => None,
            Some(FlagValue::Text(name)) => {
                Some(position(name).ok_or_else(|| DefinitionError::DefaultVariant(cut(name)))?)
            }
            Some(_) => return Err(DefinitionError::DefaultVariantType),
        };
        let own = metadata(definition.field("metadata"))?;
        let rule = compile::compile(definition.field("targeting"), shared)?;
        let mut findings = rule.as_ref().map(|rule| rule.findings.clone()).unwrap_or_default();
        findings.extend(variants_finding(&variants));
        let metadata = merged_metadata(own, settings, rule.as_ref());
        let may_read_time = rule.as_ref().is_some_and(|rule| rule.may_read_time);
        let rule = rule.map(|rule| rule.expression);
        let fractional = settings.fractional;
        let default_count = VariantCount::default();
        let definition = definition.clone();
        let flag = Self {
            key,
            is_enabled,
            variants,
            default_count,
            default,
            rule,
            may_read_time,
            fractional,
            metadata,
            definition,
        };
        Ok((flag, findings))
    }

    /// The variant for a context.
    pub(super) fn resolve<'a>(
        &'a self,
        context: &'a Context<'a>,
        clock: &'a dyn Fn() -> i64,
    ) -> Result<Resolved<'a>, FlagError> {
        if !self.is_enabled {
            return Ok(Resolved::Default(Reason::Disabled));
        }
        let Some(rule) = &self.rule else { return Ok(self.default_variant(Reason::Static)) };
        context.check()?;
        let (flag, fractional, steps_left) = (&*self.key, self.fractional, EVALUATION_STEPS_MAX);
        let mut evaluation = Evaluation { flag, context, fractional, clock, steps_left };
        let name = evaluation
            .variant_name(rule)
            .map_err(|reason| FlagError::Rule { flag: self.key.to_string(), reason })?;
        let Some(name) = name else { return Ok(self.default_variant(Reason::Default)) };
        match self.variant(&name) {
            Some(variant) => Ok(Resolved::Variant(variant, Reason::TargetingMatch)),
            None => Err(FlagError::NoVariant { flag: self.key.to_string(), variant: cut(&name) }),
        }
    }

    fn default_variant(&self, reason: Reason) -> Resolved<'_> {
        match self.default.map(|at| &self.variants[at]) {
            Some(variant) => Resolved::Variant(variant, reason),
            None => Resolved::Default(Reason::Default),
        }
    }

    fn variant(&self, name: &str) -> Option<&Variant> {
        let at = self.variants.binary_search_by(|own| (*own.name).cmp(name)).ok()?;
        Some(&self.variants[at])
    }

    /// Goes on counting where the definition before it stopped.
    pub(super) fn count_on(&mut self, before: &Self) {
        self.default_count = before.default_count.clone();
        for variant in &mut self.variants {
            if let Some(before) = before.variant(&variant.name) {
                variant.count = before.count.clone();
            }
        }
    }

    /// The evaluations of each variant; under "" those that gave the program's default.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, &VariantCount)> {
        let variants = self.variants.iter().map(|variant| (&*variant.name, &variant.count));
        variants.chain([("", &self.default_count)])
    }

    pub(super) fn key(&self) -> &Arc<str> {
        &self.key
    }
}

/// The metadata of a flag's evaluations: that of the set, that of the flag over it, and the version of `fractional` where
/// it matters.
fn merged_metadata(
    own: BTreeMap<Arc<str>, FlagValue>,
    settings: &SetSettings,
    rule: Option<&CompiledRule>,
) -> Metadata {
    let mut merged = settings.metadata.clone();
    merged.extend(own);
    if rule.is_some_and(|rule| rule.has_fractional) {
        merged.insert(FRACTIONAL_FIELD.into(), FlagValue::Int(settings.fractional.number()));
    }
    Metadata::new(merged)
}

/// What flagd's schema says of the variants: that all have one type.
fn variants_finding(variants: &[Variant]) -> Option<String> {
    let kind = |value: &FlagValue| match value {
        FlagValue::Bool(_) => Some("boolean"),
        FlagValue::Int(_) | FlagValue::Float(_) => Some("number"),
        FlagValue::Text(_) => Some("text"),
        FlagValue::Object(_) => Some("object"),
        FlagValue::Null | FlagValue::List(_) => None,
    };
    let first = kind(&variants[0].value);
    let is_typed = first.is_some() && variants.iter().all(|variant| kind(&variant.value) == first);
    (!is_typed).then(|| "its variants are not all booleans, all texts, all numbers or all objects".to_owned())
}

/// The error of an evaluation of a flag that has no definition that can be used.
pub(super) fn malformed(flag: &str, error: &Cause) -> FlagError {
    FlagError::Malformed { flag: flag.to_owned(), error: error.clone() }
}
