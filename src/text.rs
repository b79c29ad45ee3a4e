//! How values stand in errors, events and logs: what people read never has the form of Rust's debug output.

use std::fmt::{Display, Formatter, Result, Write};
use std::time::Duration;

/// A text that may come from another node or a user. Control characters are escaped, so that it can neither begin a new
/// line of a log nor change the state of a terminal.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

/// A time with its unit: `1.5 s`, or `20 ms` below one second. It is cut to milliseconds, below one second to
/// microseconds.
pub(crate) struct Span(pub(crate) Duration);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let micros = self.0.subsec_micros();
        let (whole, thousandths, unit) = match self.0.as_secs() {
            0 => (u64::from(micros / 1_000), micros % 1_000, "ms"),
            seconds => (seconds, micros / 1_000, "s"),
        };
        let fraction = format!(".{thousandths:03}");
        write!(f, "{whole}{} {unit}", fraction.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(Escaped("a \"b\" \\ é").to_string(), "a \"b\" \\ é");
        assert_eq!(Escaped("a\nb\u{1b}[2J").to_string(), "a\\nb\\u{1b}[2J");
    }

    #[test]
    fn times_are_shown_with_their_unit() {
        let shown =
            [(0, "0 ms"), (20_000, "20 ms"), (1_050, "1.05 ms"), (3_000_000, "3 s"), (90_500_000, "90.5 s")];
        for (micros, text) in shown {
            assert_eq!(Span(Duration::from_micros(micros)).to_string(), text);
        }
    }
}
