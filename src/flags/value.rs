//! The values of flags, attributes and literals: JSON trees that are cheap to clone.
//!
//! Objects are sorted by their keys, and of several equal keys the last one counts, as in JSON parsers. Texts, lists and
//! objects are shared, so that an evaluation hands out a value without copying it.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

/// A field of an object.
pub(super) type Field = (Arc<str>, FlagValue);

/// A JSON value: what a variant of a flag, an attribute of a context or an entry of metadata is. Cloning it copies no
/// text and no list.
///
/// Integers beyond 64 bits with a sign are kept as the nearest floating-point number.
///
/// ```
/// use tidings::flags::FlagValue;
///
/// let theme: FlagValue = r#"{"color": "red", "size": 3}"#.parse()?;
/// assert_eq!(theme.to_string(), r#"{"color":"red","size":3}"#);
/// #[derive(serde::Deserialize)]
/// struct Theme { color: String, size: u32 }
/// let theme: Theme = theme.decode()?;
/// assert_eq!((theme.color.as_str(), theme.size), ("red", 3));
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum FlagValue {
    /// No value.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A number that was written without a fraction and an exponent.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// A list.
    List(Arc<[FlagValue]>),
    /// An object: its fields in the order of their keys, each key once.
    Object(Arc<[(Arc<str>, FlagValue)]>),
}

impl FlagValue {
    /// Reads the value as a type of the program.
    ///
    /// # Errors
    /// What serde says if the value does not fit the type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
        Ok(serde_json::from_str(&self.to_string())?)
    }

    /// The field of an object.
    pub fn field(&self, key: &str) -> Option<&FlagValue> {
        match self {
            Self::Object(fields) => field(fields, key),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What people call its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The bytes of its texts, and one for each value in it.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 1,
            Self::Text(text) => 1 + text.len(),
            Self::List(items) => items.iter().map(Self::weight).sum::<usize>() + 1,
            Self::Object(fields) => {
                fields.iter().map(|(key, value)| key.len() + value.weight()).sum::<usize>() + 1
            }
        }
    }

    /// Whether lists and objects are nested in it deeper than so many levels.
    pub(super) fn is_deeper_than(&self, levels: usize) -> bool {
        let Some(inner) = levels.checked_sub(1) else {
            return matches!(self, Self::List(_) | Self::Object(_));
        };
        match self {
            Self::List(items) => items.iter().any(|item| item.is_deeper_than(inner)),
            Self::Object(fields) => fields.iter().any(|(_, value)| value.is_deeper_than(inner)),
            _ => false,
        }
    }

    /// An object of fields in any order.
    pub(super) fn object(mut fields: Vec<Field>) -> Self {
        // The sort is stable, so that the last of several equal keys is the last one of its run.
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        fields.reverse();
        fields.dedup_by(|(a, _), (b, _)| a == b);
        fields.reverse();
        Self::Object(fields.into())
    }
}

/// The field of an object, whose fields are sorted.
pub(super) fn field<'a>(fields: &'a [Field], key: &str) -> Option<&'a FlagValue> {
    // Most objects are small, and comparing lengths first makes a short walk cheaper than a search.
    if fields.len() <= 8 {
        return fields.iter().find(|(own, _)| **own == *key).map(|(_, value)| value);
    }
    fields.binary_search_by(|(own, _)| (**own).cmp(key)).ok().map(|at| &fields[at].1)
}

impl std::str::FromStr for FlagValue {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    /// Reads JSON, nested at most 127 deep.
    fn from_str(json: &str) -> Result<Self, Self::Err> {
        Ok(serde_json::from_str(json)?)
    }
}

impl fmt::Display for FlagValue {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl From<bool> for FlagValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for FlagValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for FlagValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for FlagValue {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl Serialize for FlagValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(&**key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for FlagValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlagValueVisitor)
    }
}

struct FlagValueVisitor;

impl<'de> Visitor<'de> for FlagValueVisitor {
    type Value = FlagValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<FlagValue, E> {
        Ok(FlagValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<FlagValue, E> {
        Ok(FlagValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<FlagValue, E> {
        Ok(FlagValue::Int(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "the nearest number is what is promised")]
    fn visit_u64<E>(self, value: u64) -> Result<FlagValue, E> {
        Ok(i64::try_from(value).map_or(FlagValue::Float(value as f64), FlagValue::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<FlagValue, E> {
        Ok(FlagValue::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<FlagValue, E> {
        Ok(FlagValue::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FlagValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(FlagValue::List(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FlagValue, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, FlagValue>()? {
            fields.push((Arc::from(key), value));
        }
        Ok(FlagValue::object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_of_equal_keys_counts() {
        let value: FlagValue = r#"{"b": 1, "a": 2, "b": {"c": null}, "a": []}"#.parse().unwrap();
        assert_eq!(value.to_string(), r#"{"a":[],"b":{"c":null}}"#);
        assert_eq!(value.field("a"), Some(&FlagValue::List(Arc::default())));
        let many: Vec<_> = (0..50).map(|i| format!("\"k{i}\":{i}")).collect();
        let many: FlagValue = format!("{{{}}}", many.join(",")).parse().unwrap();
        (0..50).for_each(|i| assert_eq!(many.field(&format!("k{i}")), Some(&FlagValue::Int(i))));
        assert_eq!(many.field("k50"), None);
    }

    #[test]
    fn numbers_keep_their_form() {
        for (json, value) in [
            ("1", FlagValue::Int(1)),
            ("1.0", FlagValue::Float(1.0)),
            ("-9223372036854775808", FlagValue::Int(i64::MIN)),
            ("9223372036854775808", FlagValue::Float(9_223_372_036_854_775_808.0)),
            ("1e2", FlagValue::Float(100.0)),
        ] {
            assert_eq!(json.parse::<FlagValue>().unwrap(), value);
        }
        assert!("1e999".parse::<FlagValue>().is_err());
        assert!("[".repeat(10_000).parse::<FlagValue>().is_err());
    }
}
