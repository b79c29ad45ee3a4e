//! Tables and texts for people.
//!
//! What the cluster holds is written by others: on a terminal it must not move the cursor, change colours or titles, or
//! turn lines around. Everything for people goes through [`clean`].

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// A text on one line, without anything that a terminal obeys.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_obeyed(c) { '·' } else { c }).collect()
}

/// Control characters, and those that change the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of the standard output: clean on a terminal, as it is for a program that reads it.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { clean(text).into() } else { text.into() }
}

/// Prints rows under their headings, each column as wide as its widest cell. Numbers are given as text.
pub(crate) fn print(headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let clean_row = |row: &Vec<String>| row.iter().map(|cell| clean(cell)).collect();
    let rows: &[Vec<String>] = &rows.iter().map(clean_row).collect::<Vec<_>>();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = io::stdout().lock();
    let headings: Vec<String> = headings.iter().map(|heading| heading.to_uppercase()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    out.flush()
}

/// A size as people read it.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let steps = (bytes.max(1).ilog2() / 10).min(3);
    if steps == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * steps);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[steps as usize])
}

/// A text on one line, shortened.
pub(crate) fn short(text: &str, chars_max: usize) -> String {
    let line = clean(text);
    match line.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_texts_are_short() {
        let sizes: Vec<String> = [0, 1_023, 1_024, 1_536, 5 << 20, 3 << 40].map(bytes).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3072.0 GiB"]);
        assert_eq!(short("a\nbcdef", 4), "a·bc…");
        assert_eq!(clean("\u{1b}[2J\r\u{7f}\u{9b}\u{202e}key"), "·[2J····key");
    }
}
