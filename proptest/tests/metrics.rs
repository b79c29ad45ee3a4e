//! Metrics of two real nodes, as a recorder of the `metrics` crate sees them: each metric reaches the value that the
//! actions of the test give it. A metric that is missing or wrong keeps the test waiting until its time limit.

#![expect(clippy::cast_precision_loss, reason = "gauges are floats")]

use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tidings::{Live, Quorum, WriteError};
use tidings_proptest::nodes::{GUARD, builder, guarded};

/// The latest snapshot: name, labels and value of each metric.
struct Seen(Vec<(String, Labels, DebugValue)>);

type Labels = Vec<(String, String)>;

impl Seen {
    fn of(snapshotter: &Snapshotter) -> Self {
        let all = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
            let labels = key.key().labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
            (key.key().name().to_owned(), labels.collect(), value)
        });
        Self(all.collect())
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&DebugValue> {
        let has = |all: &[(String, String)], (key, value): &(&str, &str)| {
            all.iter().any(|(own_key, own_value)| own_key == key && own_value == value)
        };
        let found =
            self.0.iter().find(|(own, all, _)| own == name && labels.iter().all(|label| has(all, label)));
        found.map(|(_, _, value)| value)
    }

    /// The value of a gauge or counter, or the number of values of a histogram. -1: not recorded.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.find(name, labels) {
            Some(DebugValue::Gauge(value)) => value.into_inner(),
            Some(DebugValue::Counter(count)) => *count as f64,
            Some(DebugValue::Histogram(values)) => values.len() as f64,
            None => -1.0,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_recorder_sees_what_two_nodes_do() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let a = builder("a", &[]).start().await.unwrap();
    for i in 0..500 {
        a.put(format!("k{i}"), "v").unwrap();
    }
    let b = builder("b", &[&a]).start().await.unwrap();
    let mut joining = b.joining();
    let mut last = None;
    while let Some(step) = guarded(joining.next()).await {
        last = Some(step);
    }
    let last = last.expect("there is a last step");
    assert!(last.is_ready && last.entries_done == 500 && last.entries_expected == 500, "{last:?}");
    assert_eq!(joining.next().await, None);
    let live = Live::<Option<u32>>::builder(&a, "live").exact().start().await.unwrap();
    a.put("live", "no number").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    assert_eq!(b.put("", "v").unwrap_err(), WriteError::KeyEmpty);
    let all_recorded = guarded(async {
        // A snapshot resets what it returns, so that each value is looked for in every snapshot.
        let (mut arrivals, mut found) = (0.0, [false; 17]);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let seen = Seen::of(&snapshotter);
            arrivals += seen.value("tidings_arrival_seconds", &[("node", "b"), ("origin", "a")]).max(0.0);
            let is_there = |name, labels: &[_], value: f64| (seen.value(name, labels) - value).abs() < 0.5;
            let on = |node| ("node", node);
            let all = [
                is_there("tidings_entries", &[on("a")], 501.0),
                is_there("tidings_entries", &[on("b")], 501.0),
                is_there("tidings_members", &[on("b"), ("state", "alive")], 1.0),
                is_there("tidings_links", &[on("a")], 1.0),
                is_there("tidings_peer_lag_changes", &[on("a"), ("peer", "b")], 0.0),
                is_there("tidings_joining", &[on("b")], 0.0),
                is_there("tidings_busy", &[on("a")], 0.0),
                is_there("tidings_writes_total", &[on("a")], 501.0),
                is_there("tidings_writes_refused_total", &[on("b"), ("reason", "invalid")], 1.0),
                is_there("tidings_links_made_total", &[on("b")], 1.0),
                is_there("tidings_rows_merged_total", &[on("b")], 1.0),
                seen.value("tidings_repairs_total", &[on("b"), ("outcome", "complete")]) > 0.5,
                seen.value("tidings_repair_rows_total", &[on("b")]) > 499.5,
                seen.value("tidings_received_bytes_total", &[on("b"), ("lane", "bulk")]) > 500.0,
                seen.value("tidings_sent_frames_total", &[on("a"), ("lane", "live")]) > 0.5,
                is_there("tidings_live_rejected", &[on("a"), ("live", "live")], 1.0),
                arrivals > 0.5,
            ];
            found.iter_mut().zip(all).for_each(|(found, holds)| *found |= holds);
            println!("{found:?}");
            if found.iter().all(|found| *found) {
                return;
            }
        }
    });
    all_recorded.await;
    assert_eq!((*live.load(), live.rejected().len()), (None, 1));
    let arrivals = b.status().arrivals;
    assert_eq!((arrivals.len(), arrivals[0].name.as_deref(), arrivals[0].count), (1, Some("a"), 1));
    tokio::join!(a.shutdown(), b.shutdown());
}
