//! Metrics that plans watch: the keys `flags-metrics/METRIC/SOURCE`, each with a number.
//!
//! Any application writes them, through the library or over HTTP, ephemeral at best, so that they vanish with whoever
//! reported them. Each node of this program reports those of its own `/metrics` that a running plan names, under its
//! name. A metric that nobody reports stops no plan.

use std::collections::BTreeSet;

use tidings::{PutOptions, Store, WriteError};

use super::Names;
use super::plan::Threshold;

/// Sources that are looked at, of each metric.
pub(crate) const SOURCES_MAX: usize = 1_000;

/// What is over a threshold, if something is.
pub(crate) fn crossed(store: &impl Store, names: Names<'_>, threshold: &Threshold) -> Option<String> {
    let prefix = names.metric(&threshold.metric);
    let rows = store.scan_page(&prefix, None, SOURCES_MAX);
    rows.iter().find_map(|entry| {
        let value: f64 = serde_json::from_slice(entry.value()).ok()?;
        let Threshold { metric, above } = threshold;
        let source = &entry.key()[prefix.len()..];
        (value > *above).then(|| format!("{metric} is {value} at \"{source}\", and the limit is {above}"))
    })
}

/// Whether anybody reports a metric.
pub(crate) fn is_reported(store: &impl Store, names: Names<'_>, metric: &str) -> bool {
    !store.scan_page(&names.metric(metric), None, 1).is_empty()
}

/// The greatest value of a metric among all its labels, in the text form of Prometheus.
fn greatest(text: &str, metric: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(metric)?;
        let value = match rest.strip_prefix('{') {
            // Values of labels may hold braces; the number stands behind the last one.
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    };
    text.lines().filter_map(value).reduce(f64::max)
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
            let Some(value) = greatest(&text, &metric) else { continue };
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
    fn greatest_value_of_a_metric_is_found() {
        let text = "# TYPE errors counter\nerrors{code=\"5}\"} 3\nerrors{code=\"4\"} 7\nerrors_total 9\nload 0.5\nodd NaN\n";
        assert_eq!(greatest(text, "errors"), Some(7.0));
        assert_eq!(greatest(text, "errors_total"), Some(9.0));
        assert_eq!(greatest(text, "load"), Some(0.5));
        assert_eq!((greatest(text, "odd"), greatest(text, "err"), greatest(text, "")), (None, None, None));
    }
}
