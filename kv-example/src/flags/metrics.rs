//! Metrics that plans watch: the keys `flags-metrics/METRIC/SOURCE`, each with a number.
//!
//! Any application writes them, through the library or over HTTP, ephemeral at best, so that they vanish with whoever
//! reported them. Each node of this program reports those of its own `/metrics` that a running plan names, under its
//! name. A metric that nobody reports stops no plan.
//!
//! Rates are made by the runner, of two readings of one source: sources report counters as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings::{PutOptions, Store, WriteError};

use super::condition::{Measure, Threshold};
use super::plan::Plan;
use super::{Names, now_ms};

/// Sources that are looked at, of each metric.
pub(crate) const SOURCES_MAX: usize = 1_000;
/// The least time between two readings that make a rate. Nodes report once a second, so that in a shorter time a counter
/// that grows evenly would seem to stand still and to leap.
pub(crate) const RATE_MS_MIN: u64 = 5_000;

/// What a counter was when it was read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    value: f64,
    at_ms: u64,
}

impl Reading {
    /// By how much the counter has grown in a second since another reading. One that went down was started anew, and
    /// has counted from zero since.
    fn rate_since(self, before: Self) -> f64 {
        let grown = if self.value < before.value { self.value } else { self.value - before.value };
        grown / Duration::from_millis(self.at_ms - before.at_ms).as_secs_f64()
    }
}

/// The last readings of the counters whose rates plans watch, by the key of the plan. They are the runner's own: the next
/// holder of its lease begins anew, and so does each plan, so that a rate never stops a plan at the first reading.
#[derive(Debug, Default)]
pub(crate) struct Readings(BTreeMap<String, OfPlan>);

#[derive(Debug, Default)]
struct OfPlan {
    /// Of which plan of the flag.
    id: String,
    by_source: BTreeMap<String, Reading>,
}

impl Readings {
    /// What is over the threshold of a plan, if something is.
    pub(crate) fn crossed(
        &mut self,
        store: &impl Store,
        names: Names<'_>,
        plan_key: &str,
        plan: &Plan,
    ) -> Option<String> {
        let threshold = plan.stop_if.as_ref()?;
        let prefix = names.metric(&threshold.metric);
        let rows = store.scan_page(&prefix, None, SOURCES_MAX);
        let values = rows.iter().filter_map(|entry| {
            let value: f64 = serde_json::from_slice(entry.value()).ok()?;
            Some((&entry.key()[prefix.len()..], value))
        });
        let over = |source: &str, value: f64| {
            let Threshold { above, .. } = threshold;
            let told =
                || format!("{} is {value} at \"{source}\", and the limit is {above}", threshold.measured());
            (value > *above).then(told)
        };
        if threshold.measure == Measure::Value {
            return values.into_iter().find_map(|(source, value)| over(source, value));
        }
        let before = self.0.remove(plan_key).filter(|before| before.id == plan.id).unwrap_or_default();
        // Sources that are gone are forgotten.
        let mut kept = OfPlan { id: plan.id.clone(), by_source: BTreeMap::new() };
        let (at_ms, mut crossed) = (now_ms(store), None);
        for (source, value) in values {
            let mut reading = Reading { value, at_ms };
            if let Some(before) = before.by_source.get(source) {
                if at_ms < before.at_ms.saturating_add(RATE_MS_MIN) {
                    reading = *before;
                } else {
                    crossed = crossed.or_else(|| over(source, reading.rate_since(*before)));
                }
            }
            kept.by_source.insert(source.to_owned(), reading);
        }
        self.0.insert(plan_key.to_owned(), kept);
        crossed
    }

    /// Forgets the readings for plans that are not among these any more.
    pub(crate) fn retain(&mut self, plan_keys: &[String]) {
        self.0.retain(|key, _| plan_keys.binary_search(key).is_ok());
    }
}

/// Whether anybody reports a metric.
pub(crate) fn is_reported(store: &impl Store, names: Names<'_>, metric: &str) -> bool {
    !store.scan_page(&names.metric(metric), None, 1).is_empty()
}

/// What a metric is, if the text form of Prometheus says it: `counter`, `gauge`, `histogram` or `summary`.
pub(crate) fn kind<'t>(text: &'t str, metric: &str) -> Option<&'t str> {
    let kind = |line: &'t str| line.strip_prefix("# TYPE ")?.strip_prefix(metric)?.strip_prefix(' ');
    text.lines().find_map(kind)
}

/// The value of a metric in the text form of Prometheus: of a counter the sum, of anything else the greatest among all
/// its labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(metric)?;
        let value = match rest.strip_prefix('{') {
            // Values of labels may hold braces; the number stands behind the last one.
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    };
    let is_counter = kind(text, metric) == Some("counter");
    text.lines().filter_map(value).reduce(|a, b| if is_counter { a + b } else { a.max(b) })
}

/// What one node reports of its own metrics.
#[derive(Debug, Default)]
pub(crate) struct Reports(BTreeSet<String>);

impl Reports {
    /// Reports the metrics that running plans watch now, and takes away the others. `render` gives the text of `/metrics`.
    pub(crate) fn refresh<S: Store>(
        &mut self,
        store: &S,
        names: Names<'_>,
        watched: BTreeSet<String>,
        render: impl FnOnce() -> String,
    ) -> Result<(), WriteError> {
        let key = |metric: &str| format!("{}{}", names.metric(metric), store.name());
        for metric in std::mem::take(&mut self.0).difference(&watched) {
            store.delete(&key(metric))?;
        }
        if watched.is_empty() {
            return Ok(());
        }
        let text = render();
        for metric in watched {
            let Some(value) = value(&text, &metric) else { continue };
            let (key, value) = (key(&metric), value.to_string());
            if store.get(&key).is_none_or(|entry| entry.value() != value.as_bytes()) {
                store.put_with(&key, value.as_bytes(), PutOptions::new().ephemeral())?;
            }
            self.0.insert(metric);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up_and_of_gauges_the_greatest_counts() {
        let text = "# TYPE errors counter\nerrors{code=\"5}\"} 3\nerrors{code=\"4\"} 7\nerrors_total 9\n\
                    # TYPE load gauge\nload{core=\"0\"} 0.5\nload{core=\"1\"} 0.25\nodd NaN\n";
        assert_eq!((value(text, "errors"), kind(text, "errors")), (Some(10.0), Some("counter")));
        assert_eq!((value(text, "errors_total"), kind(text, "errors_total")), (Some(9.0), None));
        assert_eq!((value(text, "load"), kind(text, "load")), (Some(0.5), Some("gauge")));
        assert_eq!((value(text, "odd"), value(text, "err"), value(text, "")), (None, None, None));
    }
}
