//! What an evaluation is about: the subject, and what is known of it.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::FlagError;
use super::value::FlagValue;

/// The most bytes of a context: names, texts, and one for each value. A larger one is refused by each evaluation.
pub const CONTEXT_BYTES_MAX: usize = 1024 * 1024;

/// The name under which rules see the targeting key.
pub(super) const TARGETING_KEY: &str = "targetingKey";

/// Whom a flag is evaluated for: a targeting key and attributes. It is built once per request, borrows what it is
/// given, and serves any number of evaluations.
///
/// ```
/// use tidings::flags::Context;
///
/// let (user, plan) = ("user-17", String::from("premium"));
/// let context = Context::new(user).with("plan", plan.as_str()).with("age", 42);
/// # assert!(format!("{context:?}").contains("premium"));
/// ```
///
/// Rules see the targeting key as `targetingKey`, and each attribute by its name. The last of several attributes with
/// one name counts.
#[derive(Clone, Debug, Default)]
pub struct Context<'a> {
    targeting_key: Option<Cow<'a, str>>,
    /// Apart from the others, so that a context with one attribute needs no allocation.
    first: Option<NamedAttribute<'a>>,
    more: Vec<NamedAttribute<'a>>,
    bytes: usize,
    time: Option<SystemTime>,
}

type NamedAttribute<'a> = (Cow<'a, str>, Attribute<'a>);

/// A value in a [`Context`]. It is made of booleans, numbers, texts and [`FlagValue`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute<'a>(pub(super) AttributeValue<'a>);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum AttributeValue<'a> {
    Text(Cow<'a, str>),
    Other(FlagValue),
}

impl Attribute<'_> {
    fn weight(&self) -> usize {
        match &self.0 {
            AttributeValue::Text(text) => 1 + text.len(),
            AttributeValue::Other(value) => value.weight(),
        }
    }
}

impl<'a> Context<'a> {
    /// A context with a targeting key: what identifies the subject, such as the id of a user.
    pub fn new(targeting_key: impl Into<Cow<'a, str>>) -> Self {
        Self::default().with_targeting_key(targeting_key)
    }

    /// A context without a targeting key.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A context of the fields of a JSON object. A text called `targetingKey` is the targeting key.
    ///
    /// # Errors
    /// If the text is not JSON, is no object, or is nested deeper than 127.
    pub fn from_json(json: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let FlagValue::Object(fields) = json.parse()? else {
            return Err("a context is a JSON object".into());
        };
        Ok(fields
            .iter()
            .fold(Self::default(), |context, (name, value)| context.with(name.to_string(), value.clone())))
    }

    /// Sets the targeting key.
    #[must_use]
    pub fn with_targeting_key(mut self, targeting_key: impl Into<Cow<'a, str>>) -> Self {
        let key = targeting_key.into();
        self.bytes += key.len();
        self.targeting_key = Some(key);
        self
    }

    /// Adds an attribute. A text called `targetingKey` is the targeting key.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Attribute<'a>>) -> Self {
        let (name, value) = (name.into(), value.into());
        if let (TARGETING_KEY, Attribute(AttributeValue::Text(key))) = (&*name, &value) {
            return self.with_targeting_key(key.clone());
        }
        self.bytes += name.len() + value.weight();
        if self.bytes <= CONTEXT_BYTES_MAX {
            match &mut self.first {
                None => self.first = Some((name, value)),
                Some(_) => self.more.push((name, value)),
            }
        }
        self
    }

    /// Adds the attributes of another context, which count before those of this one, as does its targeting key.
    #[must_use]
    pub fn merged(mut self, other: &Context<'a>) -> Self {
        if let Some(key) = &other.targeting_key {
            self = self.with_targeting_key(key.clone());
        }
        other.named().fold(self, |context, (name, value)| context.with(name.clone(), value.clone()))
    }

    /// Sets the time that rules see as `$flagd.timestamp`. Without it they see the time of the snapshot.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.time = Some(time);
        self
    }

    pub(super) fn check(&self) -> Result<(), FlagError> {
        if self.bytes > CONTEXT_BYTES_MAX { Err(FlagError::ContextTooLarge) } else { Ok(()) }
    }

    pub(super) fn targeting_key(&self) -> Option<&str> {
        self.targeting_key.as_deref()
    }

    pub(super) fn time(&self) -> Option<SystemTime> {
        self.time
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&AttributeValue<'a>> {
        self.named().rev().find(|(own, _)| own == name).map(|(_, value)| &value.0)
    }

    /// The number of attributes.
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn named(&self) -> impl DoubleEndedIterator<Item = &NamedAttribute<'a>> {
        self.first.iter().chain(&self.more)
    }

    pub(super) fn attributes(&self) -> impl Iterator<Item = (&str, &AttributeValue<'a>)> {
        self.named().map(|(name, value)| (&**name, &value.0))
    }
}

/// The seconds since 1970 of a time, as rules see them.
pub(super) fn seconds_of(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl From<bool> for Attribute<'_> {
    fn from(value: bool) -> Self {
        Self(AttributeValue::Other(FlagValue::Bool(value)))
    }
}

impl From<i32> for Attribute<'_> {
    fn from(value: i32) -> Self {
        Self(AttributeValue::Other(FlagValue::Int(i64::from(value))))
    }
}

impl From<i64> for Attribute<'_> {
    fn from(value: i64) -> Self {
        Self(AttributeValue::Other(FlagValue::Int(value)))
    }
}

impl From<f64> for Attribute<'_> {
    fn from(value: f64) -> Self {
        Self(AttributeValue::Other(FlagValue::Float(value)))
    }
}

impl<'a> From<&'a str> for Attribute<'a> {
    fn from(value: &'a str) -> Self {
        Self(AttributeValue::Text(Cow::Borrowed(value)))
    }
}

impl From<String> for Attribute<'_> {
    fn from(value: String) -> Self {
        Self(AttributeValue::Text(Cow::Owned(value)))
    }
}

impl From<FlagValue> for Attribute<'_> {
    fn from(value: FlagValue) -> Self {
        match value {
            FlagValue::Text(text) => Self(AttributeValue::Text(Cow::Owned(text.to_string()))),
            other => Self(AttributeValue::Other(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_attribute_and_the_other_context_count() {
        let defaults = Context::new("nobody").with("a", 1).with("b", 1).with("a", 2);
        let merged = defaults.merged(&Context::new("me").with("b", "x"));
        assert_eq!(merged.targeting_key(), Some("me"));
        assert_eq!(merged.attribute("a"), Some(&AttributeValue::Other(FlagValue::Int(2))));
        assert_eq!(merged.attribute("b"), Some(&AttributeValue::Text("x".into())));
        assert_eq!(merged.attribute("c"), None);
    }

    #[test]
    fn json_that_is_no_context_is_refused() {
        let context = Context::from_json(r#"{"targetingKey": "me", "user": {"name": "x"}}"#).unwrap();
        assert_eq!(context.targeting_key(), Some("me"));
        let deep = format!("{{\"a\":{}", "[".repeat(10_000));
        for wrong in ["", "[]", "1", "{", &deep] {
            assert!(Context::from_json(wrong).is_err());
        }
        assert!(Context::from_json(r#"{"targetingKey": 5}"#).unwrap().targeting_key().is_none());
    }

    #[test]
    fn context_over_its_bound_is_refused_and_not_kept() {
        let context = Context::new("me").with("large", "x".repeat(CONTEXT_BYTES_MAX)).with("small", 1);
        assert_eq!(context.check(), Err(FlagError::ContextTooLarge));
        assert_eq!(context.attribute("large"), None);
        assert_eq!(Context::new("me").with("small", 1).check(), Ok(()));
    }
}
