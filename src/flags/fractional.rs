//! `fractional`: the assignment of subjects to buckets by a hash, in its two versions.
//!
//! | version | what is hashed | weights |
//! |---|---|---|
//! | 2 | the first argument, if it is a text; else the flag's key followed by the targeting key | whole numbers |
//! | 3 | the first argument in deterministic CBOR, unless it is a list; else the list of the flag's key and the targeting key | whole numbers that were written as such |
//!
//! Both hash with `MurmurHash3` (32 bits, seed 0) and take the bucket at `hash × total weight / 2^32`. A rule that cannot
//! be computed gives null, so that the default variant counts: that is what other implementations do.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use smallvec::SmallVec;

use super::datum::Datum;

/// The greatest sum of the weights of one `fractional`.
pub(super) const WEIGHTS_MAX: u64 = i32::MAX as u64;

/// How `fractional` assigns a subject to a bucket. The two versions give different answers for the same rule, so all
/// nodes and all other programs that evaluate a set of flags have to use the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FractionalVersion {
    /// The hash of a text. Most implementations of flagd use it.
    #[default]
    V2,
    /// The hash of any value in deterministic CBOR.
    V3,
}

impl FractionalVersion {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// The hash that chooses the bucket.
fn hash(mut subject: impl Read) -> u32 {
    murmur3::murmur3_32(&mut subject, 0).expect("memory can be read")
}

/// The hash of a value in CBOR.
fn hash_of_cbor(value: &impl Serialize) -> u32 {
    let mut bytes = CborBytes::default();
    ciborium::into_writer(value, &mut bytes).expect("memory can be written");
    hash(&bytes.0[..])
}

/// What is hashed by version 3. Values of usual length stay on the stack.
#[derive(Default)]
struct CborBytes(SmallVec<[u8; 128]>);

impl Write for CborBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the first argument says of the subject.
pub(super) enum Subject {
    /// The hash of the subject. Whether the first argument is what was hashed, and so no bucket.
    Hash(u32, bool),
    /// There is no subject.
    None,
}

/// The subject of a rule, by its first argument. `None`: that is a bucket.
pub(super) fn subject(
    version: FractionalVersion,
    first: Option<&Datum<'_>>,
    flag: &str,
    targeting_key: Option<&str>,
) -> Subject {
    match (version, first) {
        (FractionalVersion::V2, Some(Datum::Text(text))) => {
            return Subject::Hash(hash(text.as_bytes()), true);
        }
        (FractionalVersion::V3, Some(Datum::Null)) => return Subject::None,
        (FractionalVersion::V3, Some(own)) if own.items_len().is_none() => {
            return Subject::Hash(hash_of_cbor(&Canonical(own)), true);
        }
        _ => {}
    }
    let Some(key) = targeting_key.filter(|key| !key.is_empty()) else { return Subject::None };
    let hash = match version {
        FractionalVersion::V2 => hash(flag.as_bytes().chain(key.as_bytes())),
        FractionalVersion::V3 => hash_of_cbor(&[flag, key]),
    };
    Subject::Hash(hash, false)
}

/// One bucket: its variant and its weight. `None`: it is malformed.
pub(super) fn bucket<'a>(version: FractionalVersion, bucket: &Datum<'a>) -> Option<(Datum<'a>, u64)> {
    let 1..=2 = bucket.items_len()? else { return None };
    let variant = bucket.item(0)?.into_owned();
    let is_scalar =
        !matches!(variant, Datum::Object(_) | Datum::NewObject(_)) && variant.items_len().is_none();
    if version == FractionalVersion::V2 && !is_scalar {
        return None;
    }
    let weight = bucket.item(1).map_or(Some(1), |own| weight(version, &own))?;
    Some((variant, weight))
}

#[expect(clippy::cast_sign_loss, reason = "negative weights are zero")]
fn weight(version: FractionalVersion, weight: &Datum<'_>) -> Option<u64> {
    match (version, weight) {
        (_, Datum::Int(weight)) => Some(u64::try_from(*weight).unwrap_or(0)),
        // What is beyond the limit need not be exact.
        (FractionalVersion::V2, Datum::Float(weight)) if weight.fract() == 0.0 => {
            Some(weight.max(0.0) as u64)
        }
        _ => None,
    }
}

/// A value in the deterministic CBOR of RFC 7049: shortest numbers, and keys by their length and bytes. Numbers without
/// a fraction are integers, so that 1 and 1.0 are the same subject.
struct Canonical<'a, 'd>(&'d Datum<'a>);

impl Serialize for Canonical<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Datum::Null => serializer.serialize_unit(),
            Datum::Bool(value) => serializer.serialize_bool(*value),
            Datum::Int(value) => serializer.serialize_i64(*value),
            Datum::Float(value) => serialize_number(*value, serializer),
            Datum::Text(text) => serializer.serialize_str(text),
            Datum::List(_) | Datum::NewList(_) => {
                let mut list = serializer.serialize_seq(self.0.items_len())?;
                self.0.items().try_for_each(|item| list.serialize_element(&Canonical(&item)))?;
                list.end()
            }
            Datum::Object(fields) => serialize_fields(
                fields.iter().map(|(key, value)| (&**key, Cow::Owned(value.into()))).collect(),
                serializer,
            ),
            Datum::NewObject(fields) => serialize_fields(
                fields.iter().map(|(key, value)| (&**key, Cow::Borrowed(value))).collect(),
                serializer,
            ),
        }
    }
}

fn serialize_fields<S: Serializer>(
    mut fields: Vec<(&str, Cow<'_, Datum<'_>>)>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    fields.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
    let mut map = serializer.serialize_map(Some(fields.len()))?;
    fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, &Canonical(value)))?;
    map.end()
}

#[expect(clippy::cast_sign_loss, reason = "the ranges are checked")]
fn serialize_number<S: Serializer>(value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    const BEYOND_U64: f64 = 18_446_744_073_709_551_616.0;
    const BEYOND_I64: f64 = 9_223_372_036_854_775_808.0;
    match value {
        value if value.fract() != 0.0 || !(-BEYOND_I64..BEYOND_U64).contains(&value) => {
            serializer.serialize_f64(value)
        }
        value if value < BEYOND_I64 => serializer.serialize_i64(value as i64),
        value => serializer.serialize_u64(value as u64),
    }
}

/// The buckets of one `fractional`: each variant with the sum of the weights up to it.
#[derive(Debug)]
pub(super) struct Buckets<V>(SmallVec<[(V, u64); 4]>);

impl<V> Default for Buckets<V> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<V> Buckets<V> {
    pub(super) fn push(&mut self, variant: V, weight: u64) {
        let end = self.total().saturating_add(weight);
        self.0.push((variant, end));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn total(&self) -> u64 {
        self.0.last().map_or(0, |(_, end)| *end)
    }

    /// The variant in whose bucket a hash falls. `None`: there is none, as the weights are all zero or their sum is over
    /// the limit.
    pub(super) fn choose(&self, hash: u32) -> Option<&V> {
        let total = self.total();
        if total > WEIGHTS_MAX {
            return None;
        }
        let at = (u64::from(hash) * total) >> 32;
        self.0.iter().find(|(_, end)| at < *end).map(|(variant, _)| variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(version: FractionalVersion, text: &str) -> u32 {
        match subject(version, Some(&Datum::text(text)), "", None) {
            Subject::Hash(hash, _) => hash,
            Subject::None => unreachable!("a text is a subject"),
        }
    }

    #[test]
    fn hashes_are_those_of_the_reference() {
        assert_eq!(hash_of(FractionalVersion::V2, ""), 0);
        assert_eq!(hash_of(FractionalVersion::V2, "hello"), 0x248b_fa47);
        assert_eq!(hash_of(FractionalVersion::V2, "ejOoVL"), 0);
        assert_eq!(hash_of(FractionalVersion::V2, "ceQdGm"), u32::MAX);
    }
}
