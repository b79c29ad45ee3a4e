//! Spans of time as people write them: `500ms`, `5s`, `2m`, `1h`, `7d`.

use std::time::Duration;

/// Longer spans are slips of the pen.
const SPAN_SECONDS_MAX: u64 = 100 * 366 * 24 * 3_600;

/// Reads a span.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("\"{text}\" is not a time: write 500ms, 5s, 2m, 1h or 7d")),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    let ms = ms.filter(|ms| ms / 1_000 <= SPAN_SECONDS_MAX);
    ms.map(Duration::from_millis).ok_or_else(|| format!("\"{text}\" is not a time that can be counted"))
}

/// Writes a span with the precision that matters: `870 µs`, `3.2 ms`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn show(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_need_a_number_and_a_unit() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        for slip in ["", "5", "s", "-1s", "1.5s", "5 s", "99999999999999999999d", "40000d"] {
            assert!(parse(slip).is_err(), "{slip:?}");
        }
    }
}
