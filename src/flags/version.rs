//! `sem_ver`: comparison of versions. A leading `v` is left out, a version of one or two numbers is completed with zeros,
//! and build metadata counts for nothing.

use std::cmp::Ordering;

use semver::Version;

use super::datum::Datum;

/// What versions are compared by.
pub(super) const COMPARISONS: [&str; 8] = ["=", "!=", "<", "<=", ">", ">=", "^", "~"];

/// The result of `sem_ver`; null where the arguments are not acceptable, as in other implementations.
pub(super) fn compare<'a>(arguments: &[Datum<'a>]) -> Datum<'a> {
    let [left, Datum::Text(comparison), right] = arguments else { return Datum::Null };
    let (Some(left), Some(right)) = (parse(left), parse(right)) else { return Datum::Null };
    let order = left.cmp_precedence(&right);
    let is_major_equal = left.major == right.major;
    Datum::Bool(match &**comparison {
        "=" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        ">=" => order != Ordering::Less,
        "^" => is_major_equal,
        "~" => is_major_equal && left.minor == right.minor,
        _ => return Datum::Null,
    })
}

fn parse(value: &Datum<'_>) -> Option<Version> {
    if !matches!(value, Datum::Text(_) | Datum::Int(_) | Datum::Float(_)) {
        return None;
    }
    let text = value.to_text();
    let text = text.strip_prefix(['v', 'V']).unwrap_or(&text);
    let number = |text: &str| -> Option<u64> {
        let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if is_plain { text.parse().ok() } else { None }
    };
    match text.split_once('.') {
        None => Some(Version::new(number(text)?, 0, 0)),
        Some((major, minor)) if !minor.contains('.') => Some(Version::new(number(major)?, number(minor)?, 0)),
        Some(_) => Version::parse(text).ok(),
    }
}
