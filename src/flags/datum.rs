//! Values within an evaluation. They borrow from the context and from the rule, so that most evaluations allocate
//! nothing; and the conversions between types, which follow JavaScript as `JsonLogic` does.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::context::AttributeValue;
use super::value::{Field, FlagValue};

/// So many bytes of a text are read, hashed or written in about the time of a step.
const TEXT_BYTES_PER_STEP: usize = 16;
/// So many names are compared in about the time of a step.
pub(super) const NAMES_PER_STEP: usize = 16;

/// What it costs in steps to read a text.
pub(super) fn text_extent(text: &str) -> usize {
    1 + text.len() / TEXT_BYTES_PER_STEP
}

fn extent_of(value: &FlagValue, most: usize) -> usize {
    Datum::from(value).extent(most)
}

fn field_extent((name, value): &Field, most: usize) -> usize {
    text_extent(name) + extent_of(value, most)
}

/// The sum of extents, each of which is told what is left of `most`.
fn sum_until(most: usize, extents: impl Iterator<Item = impl FnOnce(usize) -> usize>) -> usize {
    let mut sum = 1;
    for extent in extents {
        if sum > most {
            break;
        }
        sum += extent(most - sum);
    }
    sum
}

/// A value within an evaluation.
#[derive(Clone, Debug)]
pub(super) enum Datum<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    List(&'a [FlagValue]),
    Object(&'a [Field]),
    /// A list that the evaluation has made.
    NewList(Vec<Datum<'a>>),
    /// An object that the evaluation has made: the whole context, or what `reduce` gives to its rule.
    NewObject(Vec<(Cow<'a, str>, Datum<'a>)>),
}

impl<'a> From<&'a FlagValue> for Datum<'a> {
    fn from(value: &'a FlagValue) -> Self {
        match value {
            FlagValue::Null => Self::Null,
            FlagValue::Bool(value) => Self::Bool(*value),
            FlagValue::Int(value) => Self::Int(*value),
            FlagValue::Float(value) => Self::Float(*value),
            FlagValue::Text(value) => Self::Text(Cow::Borrowed(value)),
            FlagValue::List(items) => Self::List(items),
            FlagValue::Object(fields) => Self::Object(fields),
        }
    }
}

impl<'a> From<&'a AttributeValue<'_>> for Datum<'a> {
    fn from(value: &'a AttributeValue<'_>) -> Self {
        match value {
            AttributeValue::Text(text) => Self::Text(Cow::Borrowed(text)),
            AttributeValue::Other(value) => value.into(),
        }
    }
}

impl<'a> Datum<'a> {
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    pub(super) fn text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0 && !value.is_nan(),
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::NewList(items) => !items.is_empty(),
            Self::Object(_) | Self::NewObject(_) => true,
        }
    }

    /// The number of items of a list. `None`: it is no list.
    pub(super) fn items_len(&self) -> Option<usize> {
        match self {
            Self::List(items) => Some(items.len()),
            Self::NewList(items) => Some(items.len()),
            _ => None,
        }
    }

    /// An item of a list. One that the evaluation has made is borrowed, because a clone of it may take long.
    pub(super) fn item(&self, at: usize) -> Option<Cow<'_, Datum<'a>>> {
        match self {
            Self::List(items) => items.get(at).map(|item| Cow::Owned(item.into())),
            Self::NewList(items) => items.get(at).map(Cow::Borrowed),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> impl Iterator<Item = Cow<'_, Datum<'a>>> {
        (0..self.items_len().unwrap_or(0)).map_while(|at| self.item(at))
    }

    /// What it costs in steps to read all of it: one for each value in it, and one for each few bytes of its texts. The
    /// count goes on until it is over `most`, so that it costs no more than what it allows.
    pub(super) fn extent(&self, most: usize) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 1,
            Self::Text(text) => text_extent(text),
            Self::List(items) => sum_until(most, items.iter().map(|item| |rest| extent_of(item, rest))),
            Self::Object(fields) => {
                sum_until(most, fields.iter().map(|field| |rest| field_extent(field, rest)))
            }
            Self::NewList(items) => sum_until(most, items.iter().map(|item| |rest| item.extent(rest))),
            Self::NewObject(fields) => sum_until(
                most,
                fields.iter().map(|(name, value)| |rest| text_extent(name) + value.extent(rest)),
            ),
        }
    }

    /// What it costs in steps to look for a part of it.
    pub(super) fn search_extent(&self) -> usize {
        match self {
            Self::Text(text) => text_extent(text),
            Self::NewObject(fields) => fields.len() / NAMES_PER_STEP,
            _ => 0,
        }
    }

    /// What a cloned value costs in steps.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Text(Cow::Owned(text)) => 1 + text.len(),
            Self::NewList(items) => 1 + items.iter().map(Self::weight).sum::<usize>(),
            Self::NewObject(fields) => 1 + fields.iter().map(|(_, value)| value.weight()).sum::<usize>(),
            _ => 1,
        }
    }

    /// A part of it: a field of an object, an item of a list, a character of a text. One that the evaluation has made
    /// is borrowed, because a clone of it may take long.
    #[inline]
    pub(super) fn part(&self, name: &str) -> Option<Cow<'_, Datum<'a>>> {
        match self {
            Self::Object(fields) => super::value::field(fields, name).map(|value| Cow::Owned(value.into())),
            Self::NewObject(fields) => {
                fields.iter().rev().find(|(own, _)| own == name).map(|(_, value)| Cow::Borrowed(value))
            }
            Self::List(_) | Self::NewList(_) if name == "length" => {
                self.items_len().map(|len| Cow::Owned(count(len)))
            }
            Self::List(_) | Self::NewList(_) => index(name).and_then(|at| self.item(at)),
            Self::Text(text) if name == "length" => Some(Cow::Owned(count(text.chars().count()))),
            Self::Text(text) => {
                let character = index(name).and_then(|at| text.chars().nth(at));
                character.map(|c| Cow::Owned(Self::Text(Cow::Owned(c.to_string()))))
            }
            _ => None,
        }
    }

    pub(super) fn number(&self) -> f64 {
        match self {
            Self::Null => 0.0,
            Self::Bool(value) => f64::from(u8::from(*value)),
            Self::Int(value) => as_float(*value),
            Self::Float(value) => *value,
            Self::Text(text) => number_of(text),
            Self::List(_) | Self::NewList(_) => match self.items_len() {
                Some(0) => 0.0,
                Some(1) => self.item(0).map_or(f64::NAN, |item| item.number()),
                _ => f64::NAN,
            },
            Self::Object(_) | Self::NewObject(_) => f64::NAN,
        }
    }

    /// Its text, as JavaScript has it.
    pub(super) fn to_text(&self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text.clone(),
            Self::Null => Cow::Borrowed("null"),
            Self::Bool(true) => Cow::Borrowed("true"),
            Self::Bool(false) => Cow::Borrowed("false"),
            Self::Int(value) => Cow::Owned(value.to_string()),
            Self::Float(value) => Cow::Owned(text_of(*value)),
            Self::Object(_) | Self::NewObject(_) => Cow::Borrowed("[object Object]"),
            Self::List(_) | Self::NewList(_) => {
                let mut text = String::new();
                self.push_text(&mut text);
                Cow::Owned(text)
            }
        }
    }

    /// Appends its text. The texts of nested lists are written once, not once for each level.
    fn push_text(&self, text: &mut String) {
        match self {
            Self::Text(own) => text.push_str(own),
            Self::List(_) | Self::NewList(_) => {
                for (at, item) in self.items().enumerate() {
                    if at > 0 {
                        text.push(',');
                    }
                    item.push_text(text);
                }
            }
            other => text.push_str(&other.to_text()),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int(_) | Self::Float(_))
    }

    /// Whether two values are equal and of one type. Lists and objects are equal if they have equal parts.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Object(a), Self::Object(b)) => a == b,
            (a, b) if a.is_number() && b.is_number() => a.order(b) == Some(Ordering::Equal),
            (a, b) => {
                a.items_len().is_some()
                    && a.items_len() == b.items_len()
                    && a.items().zip(b.items()).all(|(a, b)| a.is_same(&b))
            }
        }
    }

    /// Whether two values are equal once they have one type.
    pub(super) fn is_equal(&self, other: &Self) -> bool {
        match (self, other) {
            // As the implementations of flagd have it; in JavaScript it is not so.
            (Self::Null, Self::Bool(_) | Self::Int(_) | Self::Float(_)) => other.number() == 0.0,
            (Self::Bool(_) | Self::Int(_) | Self::Float(_), Self::Null) => self.number() == 0.0,
            (Self::Null, _) | (_, Self::Null) => self.is_null() && other.is_null(),
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Text(text), list) | (list, Self::Text(text)) if list.is_compound() => {
                *text == list.to_text()
            }
            (a, b) if a.is_compound() && b.is_compound() => a.is_same(b),
            (a, b) => a.order(b) == Some(Ordering::Equal),
        }
    }

    fn is_compound(&self) -> bool {
        matches!(self, Self::List(_) | Self::NewList(_) | Self::Object(_) | Self::NewObject(_))
    }

    /// The order of two values: of texts by their characters, of all others as numbers. `None` if one is no number.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (a, b) => a.number().partial_cmp(&b.number()),
        }
    }
}

fn count<'a>(len: usize) -> Datum<'a> {
    Datum::Int(i64::try_from(len).unwrap_or(i64::MAX))
}

/// The index that a name is, written as JavaScript writes it.
fn index(name: &str) -> Option<usize> {
    let is_plain = name == "0" || (!name.starts_with('0') && name.bytes().all(|b| b.is_ascii_digit()));
    if is_plain { name.parse().ok() } else { None }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of JavaScript have 53 bits")]
pub(super) fn as_float(value: i64) -> f64 {
    value as f64
}

/// The number that a text is. Neither `inf` nor `nan` nor hexadecimal forms are numbers.
fn number_of(text: &str) -> f64 {
    let text = text.trim();
    if text.is_empty() {
        return 0.0;
    }
    let is_plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if is_plain { text.parse().unwrap_or(f64::NAN) } else { f64::NAN }
}

/// A number as JavaScript writes it: the shortest text that leads back to it, with an exponent where it is very large or
/// very small.
fn text_of(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs();
    if (1e-6..1e21).contains(&size) || !value.is_finite() {
        return match value {
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            _ => value.to_string(),
        };
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
        _ => text,
    }
}

/// The texts of a list, if it has nothing else, sorted.
pub(super) fn sorted_texts(items: &[FlagValue]) -> Option<Box<[Arc<str>]>> {
    let text = |item: &FlagValue| match item {
        FlagValue::Text(text) => Some(text.clone()),
        _ => None,
    };
    let mut texts = items.iter().map(text).collect::<Option<Vec<_>>>()?;
    texts.sort();
    Some(texts.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_javascript() {
        for (value, text) in [
            (1.0, "1"),
            (-0.0, "0"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (-1.5e300, "-1.5e+300"),
            (1e-7, "1e-7"),
            (0.000_001, "0.000001"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(text_of(value), text);
        }
    }

    #[test]
    fn texts_that_are_no_numbers_are_none() {
        for text in ["inf", "nan", "0x10", "1 2", "abc", "1_000", "--1", "Infinity"] {
            assert!(number_of(text).is_nan(), "{text}");
        }
        for (text, number) in [("", 0.0), (" 5 ", 5.0), ("-1e3", -1_000.0), (".5", 0.5), ("+1.", 1.0)] {
            assert_eq!(number_of(text).to_bits(), f64::to_bits(number), "{text}");
        }
    }
}
