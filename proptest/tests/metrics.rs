//! Metrics of two real nodes, as a recorder of the `metrics` crate sees them: each metric reaches the value that the
//! actions of the test give it. A metric that is missing or wrong keeps the test waiting until its time limit.

#![expect(clippy::cast_precision_loss, reason = "gauges are floats")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use open_feature::EvaluationContext;
use open_feature::provider::FeatureProvider;
use tidings::flags::{Context, Flags, FlagsProvider};
use tidings::{Config, Live, Node, Quorum, WriteError};
use tidings_proptest::Folder;
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

/// The metrics that `docs/metrics.md` lists: by name, the kind and the labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.trim_matches('`').to_owned()).chain(["node".to_owned()]);
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels.collect()))
    };
    rows.map(row).collect()
}

/// Asserts that the page lists everything that was recorded, with the kind and the labels that it has. Returns the names.
fn check_against_page(seen: &Seen) -> BTreeSet<String> {
    let page = documented();
    for (name, labels, value) in &seen.0 {
        let (kind, documented) = page.get(name).unwrap_or_else(|| panic!("{name} is not on the page"));
        let recorded = match value {
            DebugValue::Gauge(_) => "gauge",
            DebugValue::Counter(_) => "counter",
            DebugValue::Histogram(_) => "histogram",
        };
        let labels: BTreeSet<String> = labels.iter().map(|(label, _)| label.clone()).collect();
        assert_eq!((recorded, &labels), (kind.as_str(), documented), "{name} is documented otherwise");
    }
    seen.0.iter().map(|(name, ..)| name.clone()).collect()
}

/// Evaluates a flag, and waits until its count is recorded: that is when it is written into the store.
async fn record_a_flag(a: &Node, snapshotter: &Snapshotter, names: &mut BTreeSet<String>) {
    let on = r#"{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}"#;
    a.put("flags/default/known", on).unwrap();
    let counted = Flags::builder(a, "flags/").report_usage().start().await.unwrap();
    assert!(counted.bool("known", false, &Context::anonymous()));
    let labels = [("node", "a"), ("set", "default"), ("flag", "known"), ("variant", "on")];
    guarded(async {
        while !names.contains("tidings_flag_variant_evaluations_total") {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let seen = Seen::of(snapshotter);
            names.extend(check_against_page(&seen));
            let count = seen.value("tidings_flag_variant_evaluations_total", &labels);
            assert!(count < 1.5, "it is counted {count} times");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_recorder_sees_what_two_nodes_do() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let folder = Folder::new();
    let mut config = Config::local();
    config.voters = vec!["a".to_owned()];
    let a = builder("a", &[]).config(config.clone()).data_dir(folder.at("a")).start().await.unwrap();
    for i in 0..500 {
        a.put(format!("k{i}"), "v").unwrap();
    }
    let b = builder("b", &[&a]).config(config).start().await.unwrap();
    let mut joining = b.joining();
    let mut last = None;
    while let Some(step) = guarded(joining.next()).await {
        last = Some(step);
    }
    let last = last.expect("there is a last step");
    assert!(last.is_ready && last.entries_done == 500 && last.entries_expected == 500, "{last:?}");
    assert_eq!(joining.next().await, None);
    let live = Live::<Option<u32>>::builder(&a, "live").exact().start().await.unwrap();
    let receipt = a.put("live", "no number").unwrap();
    receipt.seen_by(Quorum::All, GUARD).await.unwrap();
    receipt.durable().await.unwrap();
    assert_eq!(b.put("", "v").unwrap_err(), WriteError::KeyEmpty);
    // One that there is not is counted as well.
    let provider = FlagsProvider::new(Flags::new(&a, "flags/"));
    provider.resolve_bool_value("checkout", &EvaluationContext::default()).await.unwrap_err();
    let lead = guarded(a.election("cron").campaign("a")).await.unwrap();
    lead.resign().await;
    let mut names = BTreeSet::new();
    let all_recorded = guarded(async {
        // A snapshot resets what it returns, so that each value is looked for in every snapshot.
        let (mut arrivals, mut found) = (0.0, [false; 22]);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let seen = Seen::of(&snapshotter);
            names.extend(check_against_page(&seen));
            arrivals += seen.value("tidings_arrival_seconds", &[("node", "b"), ("origin", "a")]).max(0.0);
            let is_there = |name, labels: &[_], value: f64| (seen.value(name, labels) - value).abs() < 0.5;
            let on = |node| ("node", node);
            let all = [
                is_there("tidings_entries", &[on("a")], 501.0),
                is_there("tidings_entries", &[on("b")], 501.0),
                is_there("tidings_members", &[on("b"), ("state", "alive")], 1.0),
                is_there("tidings_links", &[on("a")], 1.0),
                is_there("tidings_peer_lag_changes", &[on("a"), ("peer", "b")], 0.0),
                is_there("tidings_ready", &[on("b")], 1.0),
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
                is_there("tidings_campaigns_total", &[on("a"), ("outcome", "won")], 1.0),
                is_there("tidings_leases_ended_total", &[on("a"), ("end", "resigned")], 1.0),
                is_there("tidings_leases_held", &[on("a")], 0.0),
                seen.value("tidings_write_seconds", &[on("a")]) > 0.5,
                is_there("tidings_size_bytes_max", &[on("a")], f64::from(2_u32 << 30)),
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
    let rejected = |seen: &Seen| seen.value("tidings_live_rejected", &[("node", "a"), ("live", "live")]);
    // What has ended rejects nothing.
    drop(live);
    guarded(async {
        while rejected(&Seen::of(&snapshotter)).abs() > 0.5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let arrivals = b.status().arrivals;
    assert_eq!((arrivals.len(), arrivals[0].name.as_deref(), arrivals[0].count), (1, Some("a"), 1));
    record_a_flag(&a, &snapshotter, &mut names).await;
    let of_library = documented().into_keys().filter(|name| !name.contains("_http_"));
    let of_library =
        of_library.filter(|name| !["tidings_info", "tidings_uptime_seconds"].contains(&name.as_str()));
    let missing: Vec<String> = of_library.filter(|name| !names.contains(name)).collect();
    assert_eq!(missing, Vec::<String>::new(), "documented and not recorded");
    tokio::join!(a.shutdown(), b.shutdown());
}
