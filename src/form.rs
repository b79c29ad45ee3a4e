//! How values stand in serialized data, wherever a public type implements serde's traits.
//!
//! * A duration is text as the crate `humantime` reads and writes it: `500ms`, `1h 30m`.
//! * A moment of the wall clock is text of RFC 3339, in UTC: `2026-01-31T12:00:00Z`.
//! * Runs, stamps, revisions and fingerprints are fixed-width hexadecimal text. As numbers they would lose digits in
//!   programs that know numbers only as 64-bit floats.
//! * Bytes are text of base64 in formats that are read by people, and a sequence of numbers in others.
//! * Names of variants are in snake case; fields are called as in Rust.
//!
//! None of this is used on the wire or on the disk.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A type that is serialized as text.
pub(crate) trait TextForm: Sized {
    /// What the text has to be, for errors.
    const EXPECTED: &'static str;

    fn read(text: &str) -> Option<Self>;
}

/// Reads a value from its text.
pub(crate) fn read_text<'de, T: TextForm, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct TextVisitor<T>(PhantomData<T>);

    impl<T: TextForm> Visitor<'_> for TextVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            T::read(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(TextVisitor(PhantomData))
}

/// Implements serde's traits for a type that has a text: its `Display` text if no other is given.
macro_rules! text_form {
    ($type:ty, $expected:literal, $read:expr, $text:expr) => {
        impl $crate::form::TextForm for $type {
            const EXPECTED: &'static str = $expected;

            fn read(text: &str) -> Option<Self> {
                let read: fn(&str) -> Option<Self> = $read;
                read(text)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text: fn(&Self) -> String = $text;
                serializer.serialize_str(&text(self))
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::form::read_text(deserializer)
            }
        }
    };
}
pub(crate) use text_form;

/// Fixed-width hexadecimal digits.
pub(crate) fn hex_digits(text: &str, width: usize) -> Option<u128> {
    let is_hex = text.len() == width && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// A duration as text.
struct SpanForm(Duration);

text_form!(
    SpanForm,
    "a duration such as \"500ms\", \"10s\" or \"1h 30m\"",
    |text| humantime::parse_duration(text).ok().map(SpanForm),
    |span| humantime::format_duration(span.0).to_string()
);

/// For `#[serde(with)]`: a duration.
pub(crate) mod span {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, SpanForm};

    pub(crate) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        SpanForm(*span).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        SpanForm::deserialize(deserializer).map(|span| span.0)
    }
}

/// For `#[serde(default, with)]`: a duration that may be missing.
pub(crate) mod span_option {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, SpanForm};

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(crate) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(SpanForm).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<SpanForm>::deserialize(deserializer)?.map(|span| span.0))
    }
}

/// A moment of the wall clock as text.
#[derive(Clone, Copy)]
struct MomentForm(SystemTime);

impl TextForm for MomentForm {
    const EXPECTED: &'static str = "a time such as \"2026-01-31T12:00:00Z\"";

    fn read(text: &str) -> Option<Self> {
        humantime::parse_rfc3339(text).ok().map(Self)
    }
}

impl Serialize for MomentForm {
    /// What lies before 1970 or after the year 9999 is written as the nearest moment in between.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let last = UNIX_EPOCH + Duration::from_secs(MOMENT_SECONDS_MAX);
        serializer.collect_str(&humantime::format_rfc3339(self.0.clamp(UNIX_EPOCH, last)))
    }
}

/// The seconds from 1970 to the last second of the year 9999.
const MOMENT_SECONDS_MAX: u64 = 253_402_300_799;

/// For `#[serde(with)]`: a moment of the wall clock.
pub(crate) mod moment {
    use super::{Deserializer, MomentForm, Serialize, Serializer, SystemTime, read_text};

    pub(crate) fn serialize<S: Serializer>(moment: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        MomentForm(*moment).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        read_text(deserializer).map(|moment: MomentForm| moment.0)
    }
}

/// For `#[serde(serialize_with)]`: a moment that may be missing.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
pub(crate) fn write_moment<S: Serializer>(
    moment: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    moment.map(MomentForm).serialize(serializer)
}

/// For `#[serde(serialize_with)]`: what several owners share is written as it is.
#[cfg(feature = "json")]
pub(crate) fn write_shared<T: Serialize + ?Sized, S: Serializer>(
    value: &std::sync::Arc<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    (**value).serialize(serializer)
}

/// Bytes as text.
struct BytesForm(Vec<u8>);

impl TextForm for BytesForm {
    const EXPECTED: &'static str = "bytes in base64";

    fn read(text: &str) -> Option<Self> {
        BASE64_STANDARD.decode(text).ok().map(Self)
    }
}

/// For `#[serde(with)]`: bytes.
pub(crate) mod bytes {
    use super::{
        BASE64_STANDARD, BytesForm, Deserialize, Deserializer, Engine, Serialize, Serializer, read_text,
    };

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(&BASE64_STANDARD.encode(bytes));
        }
        bytes.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        if deserializer.is_human_readable() {
            return read_text(deserializer).map(|bytes: BytesForm| bytes.0);
        }
        Vec::deserialize(deserializer)
    }
}

/// For `#[serde(with)]`: a fingerprint of 64 or 128 bits.
pub(crate) mod hash {
    use std::fmt::LowerHex;

    use super::{Deserializer, Display, Serializer, TextForm, fmt, hex_digits, read_text};

    /// All digits of a fingerprint.
    struct Digits<'a, T>(&'a T);

    impl<T: LowerHex> Display for Digits<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:0width$x}", self.0, width = 2 * size_of::<T>())
        }
    }

    impl TextForm for u64 {
        const EXPECTED: &'static str = "16 hexadecimal digits";

        fn read(text: &str) -> Option<Self> {
            hex_digits(text, 16).map(|number| number as Self)
        }
    }

    impl TextForm for u128 {
        const EXPECTED: &'static str = "32 hexadecimal digits";

        fn read(text: &str) -> Option<Self> {
            hex_digits(text, 32)
        }
    }

    pub(crate) fn serialize<T: LowerHex, S: Serializer>(hash: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Digits(hash))
    }

    pub(crate) fn deserialize<'de, T: TextForm, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        read_text(deserializer)
    }
}
