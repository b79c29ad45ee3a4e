//! The condition on which a plan stops, as people write it and as plans keep it: `METRIC > NUMBER` compares the value of a
//! metric, `rate(METRIC) > NUMBER` by how much a counter grows in a second; `<` stands for what must not fall, such as a rate
//! of successes.
//!
//! A value is for what goes up and down, such as a queue's length or a share of errors. A counter only grows until its
//! process ends, so that its value says how long the process has run; its rate says what happens now.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A condition. The name of its metric is a part of a key, so that a longer one could name nothing.
const CONDITION_BYTES_MAX: usize = 1_024;

/// A metric, and the number above or below which a plan stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Threshold {
    pub(crate) metric: String,
    pub(crate) measure: Measure,
    pub(crate) bound: Bound,
    pub(crate) limit: f64,
}

/// On which side of the number a plan stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Above,
    Below,
}

/// What of a metric is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Value,
    /// The increase in a second.
    Rate,
}

impl Threshold {
    /// What is compared, as conditions name it.
    pub(crate) fn measured(&self) -> String {
        match self.measure {
            Measure::Value => self.metric.clone(),
            Measure::Rate => format!("rate({})", self.metric),
        }
    }

    pub(crate) fn is_crossed_by(&self, value: f64) -> bool {
        match self.bound {
            Bound::Above => value > self.limit,
            Bound::Below => value < self.limit,
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.bound == Bound::Above { '>' } else { '<' };
        write!(f, "{} {sign} {}", self.measured(), self.limit)
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> Self {
        threshold.to_string()
    }
}

impl TryFrom<String> for Threshold {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > CONDITION_BYTES_MAX {
            return Err(format!("the condition has {} bytes, permitted: {CONDITION_BYTES_MAX}", text.len()));
        }
        // `part` is a part of the text.
        let fault = |part: &str, reason: &str| {
            let at = part.as_ptr().addr() - text.as_ptr().addr();
            let place = text[..at].chars().count() + 1;
            Err(format!("the condition \"{text}\" is wrong at character {place}: {reason}"))
        };
        let end = &text[text.len()..];
        let Some(at) = text.find(['>', '<']) else {
            return fault(
                end,
                "\">\" or \"<\" and a number are missing, as in errors > 100 or rate(errors) > 0.5",
            );
        };
        let bound = if text[at..].starts_with('>') { Bound::Above } else { Bound::Below };
        let (left, right) = (text[..at].trim(), text[at + 1..].trim());
        let (measure, metric) = match left.split_once('(') {
            None => (Measure::Value, left),
            Some(("rate", inner)) => match inner.strip_suffix(')') {
                Some(metric) => (Measure::Rate, metric.trim()),
                None => return fault(&inner[inner.len()..], "\")\" is missing"),
            },
            Some(_) => return fault(left, "the only function is rate(METRIC)"),
        };
        if metric.is_empty() {
            return fault(metric, "the name of the metric is missing");
        }
        let is_wrong = |letter: char| letter.is_whitespace() || letter.is_control() || "/()".contains(letter);
        if let Some(at) = metric.find(is_wrong) {
            return fault(&metric[at..], "the name of a metric has no blank, slash or parenthesis");
        }
        match right.parse::<f64>() {
            Ok(limit) if limit.is_finite() => Ok(Self { metric: metric.to_owned(), measure, bound, limit }),
            _ => fault(right, "this is no number"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_written() {
        let of =
            |measure, limit| Threshold { metric: "errors".to_owned(), measure, bound: Bound::Above, limit };
        let below = |measure, limit| Threshold { bound: Bound::Below, ..of(measure, limit) };
        for (text, expected, written) in [
            ("errors>0.5", of(Measure::Value, 0.5), "errors > 0.5"),
            (" errors  >  1e2 ", of(Measure::Value, 100.0), "errors > 100"),
            ("rate(errors) > 0.5", of(Measure::Rate, 0.5), "rate(errors) > 0.5"),
            ("rate( errors )>2", of(Measure::Rate, 2.0), "rate(errors) > 2"),
            ("rate(errors)<2", below(Measure::Rate, 2.0), "rate(errors) < 2"),
            ("errors < -1", below(Measure::Value, -1.0), "errors < -1"),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), written);
            let json = serde_json::to_string(&expected).unwrap();
            assert_eq!(json, format!("\"{written}\""), "plans keep the text");
            assert_eq!(serde_json::from_str::<Threshold>(&json).unwrap(), expected);
        }
        assert!("rate > 1".parse::<Threshold>().is_ok_and(|it| it.metric == "rate"));
    }

    #[test]
    fn wrong_conditions_are_refused_with_place_and_reason() {
        for (text, place, reason) in [
            ("", 1, "\">\" or \"<\" and a number are missing"),
            ("errors", 7, "\">\" or \"<\" and a number are missing"),
            ("errors = 5", 11, "\">\" or \"<\" and a number are missing"),
            ("errors < > 5", 10, "this is no number"),
            (">1", 1, "the name of the metric is missing"),
            ("rate() > 1", 6, "the name of the metric is missing"),
            ("errors>", 8, "this is no number"),
            ("errors > many", 10, "this is no number"),
            ("errors > inf", 10, "this is no number"),
            ("errors >= 5", 9, "this is no number"),
            ("größe/x > 5", 6, "the name of a metric has no"),
            ("a b > 5", 2, "the name of a metric has no"),
            ("rate(rate(a)) > 5", 10, "the name of a metric has no"),
            ("  sum(a) > 5", 3, "the only function is rate(METRIC)"),
            ("rate(a > 5", 7, "\")\" is missing"),
        ] {
            let said = text.parse::<Threshold>().unwrap_err();
            assert!(said.contains(&format!("at character {place}: {reason}")), "{text}: {said}");
        }
        assert!(format!("{}>1", "x".repeat(CONDITION_BYTES_MAX)).parse::<Threshold>().is_err());
    }
}
