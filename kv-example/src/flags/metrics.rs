//! Metrics that plans watch: the keys `flags-metrics/METRIC/SOURCE`, each with a number.
//!
//! Any application writes them, through the library or over HTTP, ephemeral at best, so that they vanish with the
//! process that reported them. Each node of this program reports those of its own `/metrics` that a running plan names,
//! under its name. A metric that nobody reports stops a plan only if the plan says so ([`MISSING_MS_MIN`]).
//!
//! Rates are made by the runner, of two reports of one source and the times of their stamps: sources report counters as
//! they are. Until a source reports again nothing is known of its rate, so that one whose counter stands still has to
//! report it again. Sources report as often as they like, but for plans that stop where a metric is missing: for these
//! a source that has put nothing anew for [`MISSING_MS_MIN`] is missing, though its value is there. So it is noticed
//! that a program hangs whose value is kept by a node that lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings::{PutOptions, Stamp, Store, WriteError};

use super::condition::Measure;
use super::plan::Plan;
use super::{Names, now_ms};

/// Sources that are looked at, of each metric.
pub(crate) const SOURCES_MAX: usize = 1_000;
/// The least time between two reports that make a rate: in a shorter one a counter that grows evenly may leap. A node
/// reports a value that stands still again after this time.
pub(crate) const RATE_MS_MIN: u64 = 5_000;

/// A metric, or one of its sources, is missing once nobody has put it anew for so long: twice the time after which a
/// node reports a value that stands still. Failure of a node is noticed within seconds, and so is that it was not one.
/// The flag of a plan is missing as late.
pub(crate) const MISSING_MS_MIN: u64 = 10_000;

/// Why a plan that has not begun stops without its flag: the next flag of that name is another one.
const FLAG_DELETED: &str = "the flag was deleted";

/// What a source has reported.
#[derive(Clone, Copy, Debug)]
struct Reading {
    value: f64,
    /// Of the report. Another report has another one.
    stamp: Stamp,
}

impl Reading {
    /// When it was reported, by the clock of its source.
    fn at_ms(self) -> u64 {
        self.stamp.wall_ms()
    }

    /// By how much the counter has grown in a second since an earlier reading. One that went down was started anew, and
    /// has counted from zero since.
    fn rate_since(self, before: Self) -> f64 {
        let grown = if self.value < before.value { self.value } else { self.value - before.value };
        grown / Duration::from_millis(self.at_ms() - before.at_ms()).as_secs_f64()
    }
}

/// What was read of the metrics that plans watch, by the key of the plan. It is the runner's own: the next holder of
/// its lease begins anew, and so does each plan, so that neither a rate nor a missing source stops a plan at the first
/// reading. It also begins anew when the node's clock was set back: nothing would be late otherwise until the clock
/// shows the time of the last reading again.
#[derive(Debug, Default)]
pub(crate) struct Readings(BTreeMap<String, OfPlan>);

#[derive(Debug, Default)]
struct OfPlan {
    /// Of which plan of the flag.
    id: String,
    /// When this was read last.
    at_ms: u64,
    /// When its flag was there last; or when this began.
    flag_ms: u64,
    by_source: BTreeMap<String, Reading>,
    /// The last report of each source; under `None` when this began. Of a bounded number of sources.
    last: BTreeMap<Option<String>, LastReport>,
}

/// The last report of a source.
#[derive(Clone, Copy, Debug)]
struct LastReport {
    stamp: Option<Stamp>,
    /// When it was read first, by the clock of the runner: that of the source may be behind.
    at_ms: u64,
}

impl OfPlan {
    /// The rates since the readings before, of sources that have one. Sources that are gone are forgotten.
    fn rates(&mut self, values: &[(String, Reading)]) -> Vec<(String, f64)> {
        let before = std::mem::take(&mut self.by_source);
        let mut rates = Vec::new();
        for (source, reading) in values {
            let kept = match before.get(source) {
                Some(before) if reading.at_ms() >= before.at_ms().saturating_add(RATE_MS_MIN) => {
                    rates.push((source.clone(), reading.rate_since(*before)));
                    reading
                }
                Some(before) if reading.at_ms() >= before.at_ms() => before,
                // It is new, or reported by another clock, which is behind.
                _ => reading,
            };
            self.by_source.insert(source.clone(), *kept);
        }
        rates
    }

    /// What is missing of a metric, if something is: all of it, or a source that has reported it.
    fn missing(&mut self, metric: &str, values: &[(String, Reading)], at_ms: u64) -> Option<String> {
        self.last.entry(None).or_insert(LastReport { stamp: None, at_ms });
        for (source, reading) in values {
            let (source, report) = (Some(source.clone()), LastReport { stamp: Some(reading.stamp), at_ms });
            let has_room = self.last.len() <= SOURCES_MAX;
            match self.last.get_mut(&source) {
                Some(last) if last.stamp != report.stamp => *last = report,
                None if has_room => _ = self.last.insert(source, report),
                _ => {}
            }
        }
        let is_late = |last: &LastReport| at_ms >= last.at_ms.saturating_add(MISSING_MS_MIN);
        let mut late = self.last.iter().filter(|(_, last)| is_late(last));
        let gone = late.find_map(|(source, _)| source.as_ref());
        match gone {
            Some(source) => Some(format!("\"{source}\" does not report {metric} any more")),
            None if values.is_empty() && self.last.values().all(is_late) => {
                Some(format!("nobody reports {metric}"))
            }
            None => None,
        }
    }
}

impl Readings {
    /// What stops a plan: what is over its threshold, or missing if that is to stop it, too; or that its flag was
    /// deleted before it began. Where the plan arrives before the flag, the latter may still come.
    pub(crate) fn crossed(
        &mut self,
        store: &impl Store,
        names: Names<'_>,
        set: &str,
        flag: &str,
        plan: &Plan,
    ) -> Option<String> {
        let at_ms = now_ms(store);
        let of_plan = self.0.entry(names.plan(set, flag)).or_default();
        if of_plan.id != plan.id || at_ms < of_plan.at_ms {
            *of_plan = OfPlan { id: plan.id.clone(), flag_ms: at_ms, ..OfPlan::default() };
        }
        of_plan.at_ms = at_ms;
        // Once it has begun, any other definition stops it.
        if plan.base.is_some() || store.get(&names.flag(set, flag)).is_some() {
            of_plan.flag_ms = at_ms;
        } else if at_ms >= of_plan.flag_ms.saturating_add(MISSING_MS_MIN) {
            return Some(FLAG_DELETED.to_owned());
        }
        let threshold = plan.stop_if.as_ref()?;
        let values = values_of(store, names, &threshold.metric);
        let measured = match threshold.measure {
            Measure::Value => values.iter().map(|(source, read)| (source.clone(), read.value)).collect(),
            Measure::Rate => of_plan.rates(&values),
        };
        let over = measured.iter().find(|(_, value)| threshold.is_crossed_by(*value));
        let told = over.map(|(source, value)| {
            let (measured, limit) = (threshold.measured(), threshold.limit);
            format!("{measured} is {value} at \"{source}\", and the limit is {limit}")
        });
        // Before the first step the plan has done nothing that could make a source go.
        let is_watched = plan.stop_if_missing && plan.base.is_some();
        told.or_else(|| is_watched.then(|| of_plan.missing(&threshold.metric, &values, at_ms))?)
    }

    /// Forgets the readings for plans that are not among these any more.
    pub(crate) fn retain(&mut self, plan_keys: &[String]) {
        self.0.retain(|key, _| plan_keys.binary_search(key).is_ok());
    }
}

/// The values of a metric by their sources. What is no number is left out.
fn values_of(store: &impl Store, names: Names<'_>, metric: &str) -> Vec<(String, Reading)> {
    let prefix = names.metric(metric);
    let rows = store.scan_page(&prefix, None, SOURCES_MAX);
    let value = |entry: &tidings::Entry| {
        let value = serde_json::from_slice(entry.value()).ok()?;
        let reading = Reading { value, stamp: entry.stamp() };
        Some((entry.key()[prefix.len()..].to_owned(), reading))
    };
    rows.iter().filter_map(value).collect()
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

/// What one node reports of its own metrics: those that it has put, and whose keys it has not deleted since.
#[derive(Debug, Default)]
pub(crate) struct Reports(BTreeSet<String>);

impl Reports {
    /// Reports the metrics that running plans watch now, and takes away the others, and those that have no value any
    /// more. `render` gives the text of `/metrics`. What a refused write leaves undone is done by a later call.
    pub(crate) fn refresh<S: Store>(
        &mut self,
        store: &S,
        names: Names<'_>,
        watched: &BTreeSet<String>,
        render: impl FnOnce() -> String,
    ) -> Result<(), WriteError> {
        let text = if watched.is_empty() { String::new() } else { render() };
        let all: Vec<String> = self.0.union(watched).cloned().collect();
        for metric in all {
            let key = format!("{}{}", names.metric(&metric), store.name());
            match value(&text, &metric).filter(|_| watched.contains(&metric)) {
                Some(value) => {
                    report(store, &key, &value.to_string())?;
                    self.0.insert(metric);
                }
                None if self.0.contains(&metric) => {
                    store.delete(&key)?;
                    self.0.remove(&metric);
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Puts a value that is another one, or that was put a while ago.
fn report<S: Store>(store: &S, key: &str, value: &str) -> Result<(), WriteError> {
    let is_due = |entry: tidings::Entry| {
        let is_old = now_ms(store).abs_diff(entry.stamp().wall_ms()) >= RATE_MS_MIN;
        is_old || entry.value() != value.as_bytes()
    };
    if store.get(key).is_none_or(is_due) {
        store.put_with(key, value.as_bytes(), PutOptions::new().ephemeral())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidings::sim::Sim;

    use super::*;

    #[test]
    fn value_that_stands_still_is_reported_every_5_s() {
        let mut sim = Sim::new(1).nodes(1);
        let (node, mut reports) = (sim.node(0), Reports::default());
        let mut stamps = std::collections::BTreeSet::new();
        for _ in 0..60 {
            refresh(&mut reports, &node, &["errors"], "errors 7\n").unwrap();
            stamps.insert(node.get(format!("flags-metrics/errors/{}", node.name())).unwrap().stamp());
            sim.run_for(Duration::from_secs(1));
        }
        assert_eq!(stamps.len(), 60 / 5);
    }

    fn refresh(
        reports: &mut Reports,
        node: &impl Store,
        watched: &[&str],
        text: &str,
    ) -> Result<(), WriteError> {
        let watched = watched.iter().map(|metric| (*metric).to_owned()).collect();
        reports.refresh(node, Names("flags/"), &watched, || text.to_owned())
    }

    #[test]
    fn report_whose_delete_was_refused_is_deleted_later() {
        let mut sim = Sim::new(1).nodes(3);
        let mut reports = Reports::default();
        let key = format!("flags-metrics/errors/{}", sim.node(0).name());
        sim.run_for(Duration::from_secs(10));
        refresh(&mut reports, &sim.node(0), &["errors"], "errors 7\n").unwrap();
        sim.skew(0, -3_600_000);
        sim.run_for(Duration::from_secs(10));
        let refused = refresh(&mut reports, &sim.node(0), &[], "");
        assert!(matches!(refused, Err(WriteError::Clock { .. })), "{refused:?}");
        assert!(sim.node(0).get(&key).is_some());
        sim.skew(0, 0);
        sim.run_for(Duration::from_secs(10));
        refresh(&mut reports, &sim.node(0), &[], "").unwrap();
        assert!(sim.node(0).get(&key).is_none());
    }

    #[test]
    fn metric_without_a_value_is_not_reported_any_more() {
        let sim = Sim::new(1).nodes(1);
        let (node, mut reports) = (sim.node(0), Reports::default());
        let key = |metric: &str| format!("flags-metrics/{metric}/{}", node.name());
        refresh(&mut reports, &node, &["errors", "load"], "errors 7\nload 1\n").unwrap();
        refresh(&mut reports, &node, &["errors", "load"], "load 1\n").unwrap();
        assert!(node.get(key("errors")).is_none());
        assert!(node.get(key("load")).is_some(), "the control");
    }

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
