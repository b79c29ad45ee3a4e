//! What an evaluation tells beside the value.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::FlagError;
use super::datum::as_float;
use super::value::FlagValue;

/// An evaluation with everything that is known of it; [`Snapshot::details`](super::Snapshot::details) gives it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Details<T> {
    /// The value: that of the variant, or the program's default.
    pub value: T,
    /// The name of the variant. `None`: the program's default counts.
    #[serde(serialize_with = "write_name")]
    pub variant: Option<Arc<str>>,
    /// Why it is this value.
    pub reason: Reason,
    /// The metadata of the flag's set with that of the flag. Where a rule uses `fractional`, the field `fractional` is
    /// the version of it, 2 or 3.
    pub metadata: Metadata,
    /// Why the default counts, if it should not.
    pub error: Option<FlagError>,
}

/// Why an evaluation gives its value, in the words of `OpenFeature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The flag has no rule.
    Static,
    /// The flag's rule chose nothing, so that its default variant counts, or the flag has no default variant.
    Default,
    /// The flag's rule chose the variant.
    TargetingMatch,
    /// The flag is disabled, so that the program's default counts.
    Disabled,
    /// Something is wrong: see [`Details::error`].
    Error,
}

impl Reason {
    /// The name that `OpenFeature` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "STATIC",
            Self::Default => "DEFAULT",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Disabled => "DISABLED",
            Self::Error => "ERROR",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The metadata of an evaluation: a map of texts, numbers and booleans. Cloning it copies nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(Option<Arc<BTreeMap<Arc<str>, FlagValue>>>);

static NO_METADATA: BTreeMap<Arc<str>, FlagValue> = BTreeMap::new();

impl Metadata {
    pub(super) fn new(map: BTreeMap<Arc<str>, FlagValue>) -> Self {
        Self((!map.is_empty()).then(|| Arc::new(map)))
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, value)| (&**name, value)))
    }
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn write_name<S: Serializer>(name: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_deref().serialize(serializer)
}

impl Deref for Metadata {
    type Target = BTreeMap<Arc<str>, FlagValue>;

    fn deref(&self) -> &Self::Target {
        self.0.as_deref().unwrap_or(&NO_METADATA)
    }
}

/// A type that flags can have: `bool`, `Arc<str>` and `String`, `i64`, `f64`, [`FlagValue`] for objects and lists, and
/// `Option<FlagValue>` for whatever type the flag has.
pub trait FlagType: Sized {
    /// What people call it.
    const NAME: &'static str;

    /// The value, if it has this type.
    fn from_value(value: &FlagValue) -> Option<Self>;
}

impl FlagType for bool {
    const NAME: &'static str = "a boolean";

    fn from_value(value: &FlagValue) -> Option<Self> {
        match value {
            FlagValue::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

impl FlagType for Arc<str> {
    const NAME: &'static str = "a text";

    fn from_value(value: &FlagValue) -> Option<Self> {
        match value {
            FlagValue::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FlagType for String {
    const NAME: &'static str = "a text";

    fn from_value(value: &FlagValue) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl FlagType for i64 {
    const NAME: &'static str = "an integer";

    fn from_value(value: &FlagValue) -> Option<Self> {
        match value {
            FlagValue::Int(value) => Some(*value),
            _ => None,
        }
    }
}

impl FlagType for f64 {
    const NAME: &'static str = "a number";

    fn from_value(value: &FlagValue) -> Option<Self> {
        match value {
            FlagValue::Int(value) => Some(as_float(*value)),
            FlagValue::Float(value) => Some(*value),
            _ => None,
        }
    }
}

impl FlagType for FlagValue {
    const NAME: &'static str = "an object";

    fn from_value(value: &FlagValue) -> Option<Self> {
        matches!(value, Self::Object(_) | Self::List(_)).then(|| value.clone())
    }
}

impl FlagType for Option<FlagValue> {
    const NAME: &'static str = "a value";

    fn from_value(value: &FlagValue) -> Option<Self> {
        Some(Some(value.clone()))
    }
}
