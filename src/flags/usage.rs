//! What is reported of the use of flags, for people who look for flags that nobody asks for, or who watch a rollout.
//!
//! Evaluations are counted in this process (`count`). A task writes what has been counted into the store, beside the
//! definitions: for `flags/`, the key `flags-usage/day/SET/FLAG` holds the day of the last evaluation on any node, and
//! `flags-usage/node/NODE` what one node has counted since its start, for as long as it lives.
//!
//! Reports must stay cheap however many flags and nodes there are. A day is written once per flag by the node that
//! comes first, and in small portions; the larger a node's counts are, the less often they are written.
//!
//! With the feature `metrics` the counts of this process are metrics as well, of a bounded number of variants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::sets::FlagSets;
use super::shared::FlagsShared;
use crate::replica::PutOptions;
use crate::typed::{LiveState, Store};

/// How often evaluations are looked at, and the shortest time between two reports of a node.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// The bytes that the reports of one node take in a second, on average.
const REPORT_BYTES_PER_SECOND: u64 = 512;
/// The largest report of a node. The flags with the most evaluations are in it.
const REPORT_BYTES_MAX: usize = 64 * 1024;
/// The most days that are written at one look.
const DAYS_MAX: usize = 64;

/// The variants whose evaluations one process records as metrics: those that were evaluated first.
#[cfg(feature = "metrics")]
const SERIES_MAX: usize = 1_000;
/// The longest name of a set, flag or variant that is recorded as a label.
#[cfg(feature = "metrics")]
const LABEL_BYTES_MAX: usize = 256;

/// Evaluations by variant; under "" those that gave the program's default.
type FlagCounts<'a> = BTreeMap<&'a str, u64>;

/// Writes the use of flags into the store.
pub(super) struct UsageReport<S> {
    store: S,
    /// What stands before the keys of usage.
    prefix: String,
    shared: Arc<FlagsShared>,
    /// Evaluations of each flag, as they were at the last look.
    seen: BTreeMap<String, u64>,
    /// Flags that were evaluated, and whose day is not known to be written.
    due: BTreeSet<String>,
    /// The day that was last known to be written.
    days: BTreeMap<String, String>,
    /// The report that was written last.
    report: Vec<u8>,
    next_report: SystemTime,
    #[cfg(feature = "metrics")]
    recorded: Recorded,
}

impl<S: Store> UsageReport<S> {
    /// `flags_prefix` ends with a slash.
    pub(super) fn new(store: S, flags_prefix: &str, shared: Arc<FlagsShared>) -> Self {
        Self {
            prefix: format!("{}-usage/", flags_prefix.trim_end_matches('/')),
            shared,
            seen: BTreeMap::new(),
            due: BTreeSet::new(),
            days: BTreeMap::new(),
            // Without evaluations there is nothing to write.
            report: report_of(&BTreeMap::new()),
            next_report: store.now(),
            #[cfg(feature = "metrics")]
            recorded: Recorded::default(),
            store,
        }
    }

    /// Reports until the node is closed or no handle is left.
    pub(super) async fn run(mut self) {
        loop {
            self.store.sleep(REPORT_INTERVAL).await;
            if self.shared.state() == LiveState::Ended || self.shared.has_no_handle() {
                return;
            }
            let sets = self.shared.sets();
            let counts = counts_of(&sets);
            #[cfg(feature = "metrics")]
            self.recorded.record(self.store.name(), &counts);
            self.note_evaluated(&counts);
            self.write_days();
            self.write_report(&counts);
        }
    }

    fn note_evaluated(&mut self, counts: &BTreeMap<String, FlagCounts<'_>>) {
        for (flag, counts) in counts {
            let total = counts.values().sum();
            if self.seen.insert(flag.clone(), total) != Some(total) {
                self.due.insert(flag.clone());
            }
        }
        // Of flags that are gone nothing need be known.
        self.seen.retain(|flag, _| counts.contains_key(flag));
        self.due.retain(|flag| counts.contains_key(flag));
        self.days.retain(|flag, _| counts.contains_key(flag));
    }

    fn write_days(&mut self) {
        let day = format!("\"{}\"", day_of(self.store.now()));
        // Each node begins elsewhere, so that not all write the same ones.
        let start =
            self.store.name().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
        let mut due: Vec<String> = std::mem::take(&mut self.due).into_iter().collect();
        let start = start % due.len().max(1);
        due.rotate_left(start);
        let mut written = 0;
        for flag in due {
            if self.days.get(&flag) == Some(&day) {
                continue;
            }
            let key = format!("{}day/{flag}", self.prefix);
            let is_there = self.store.get(&key).is_some_and(|entry| entry.value() == day.as_bytes());
            if !is_there {
                if written == DAYS_MAX || self.store.put(&key, day.as_bytes()).is_err() {
                    self.due.insert(flag);
                    continue;
                }
                written += 1;
            }
            self.days.insert(flag, day.clone());
        }
    }

    fn write_report(&mut self, counts: &BTreeMap<String, FlagCounts<'_>>) {
        let now = self.store.now();
        let report = report_of(counts);
        if report == self.report || now < self.next_report {
            return;
        }
        let key = format!("{}node/{}", self.prefix, self.store.name());
        if self.store.put_with(&key, &report, PutOptions::new().ephemeral()).is_ok() {
            let pause = Duration::from_secs(report.len() as u64 / REPORT_BYTES_PER_SECOND);
            self.next_report = now + pause;
            self.report = report;
        }
    }
}

/// What was recorded as metrics: by flag and variant the counter, and the count that it has taken in.
#[cfg(feature = "metrics")]
#[derive(Default)]
struct Recorded(BTreeMap<(String, String), (metrics::Counter, u64)>);

#[cfg(feature = "metrics")]
impl Recorded {
    fn record(&mut self, node: &str, counts: &BTreeMap<String, FlagCounts<'_>>) {
        let variants = counts.iter().flat_map(|(name, counts)| {
            let (set, flag) = name.split_once('/').unwrap_or(("", name));
            counts.iter().map(move |(variant, count)| (name, [set, flag, variant], *count))
        });
        for (name, [set, flag, variant], count) in variants {
            let series = (name.clone(), variant.to_owned());
            if !self.0.contains_key(&series) {
                let is_long = [set, flag, variant].iter().any(|label| label.len() > LABEL_BYTES_MAX);
                if is_long || self.0.len() >= SERIES_MAX {
                    continue;
                }
                let labels = [("node", node), ("set", set), ("flag", flag), ("variant", variant)];
                let labels = labels.map(|(label, value)| (label, value.to_owned()));
                let counter = metrics::counter!("tidings_flag_variant_evaluations_total", &labels);
                self.0.insert(series.clone(), (counter, 0));
            }
            let Some((counter, taken_in)) = self.0.get_mut(&series) else { continue };
            // A flag that was deleted and put again is counted anew.
            counter.increment(if count < *taken_in { count } else { count - *taken_in });
            *taken_in = count;
        }
    }
}

/// The flags that were evaluated, by set and name.
fn counts_of(sets: &FlagSets) -> BTreeMap<String, FlagCounts<'_>> {
    let mut all = BTreeMap::new();
    for (set, flags) in sets {
        for (name, entry) in flags.flags() {
            let Ok(flag) = entry.flag() else { continue };
            let counts = flag.counts().map(|(variant, count)| (variant, count.count()));
            let counts: FlagCounts<'_> = counts.filter(|(_, count)| *count > 0).collect();
            if !counts.is_empty() {
                all.insert(format!("{set}/{name}"), counts);
            }
        }
    }
    all
}

/// The counts as JSON. What would be too much is left out, the flags with the fewest evaluations first.
fn report_of(counts: &BTreeMap<String, FlagCounts<'_>>) -> Vec<u8> {
    let mut by_use: Vec<_> = counts.iter().collect();
    by_use.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.values().sum::<u64>()));
    let mut bytes = 0;
    let report: BTreeMap<_, _> = by_use
        .into_iter()
        .take_while(|(flag, counts)| {
            // Quotes, colons, commas, and a count of 20 digits.
            bytes += flag.len() + 8 + counts.keys().map(|variant| variant.len() + 24).sum::<usize>();
            bytes <= REPORT_BYTES_MAX
        })
        .collect();
    serde_json::to_vec(&report).expect("texts and numbers are JSON")
}

fn day_of(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    #[test]
    fn series_of_metrics_are_bounded_in_number_and_length() {
        let names: Vec<String> = (0..SERIES_MAX).map(|flag| format!("default/{flag}")).collect();
        let of = |name: &str, count| (name.to_owned(), FlagCounts::from([("on", count)]));
        let mut recorded = Recorded::default();
        recorded.record("a", &[of(&"x".repeat(LABEL_BYTES_MAX + 1), 1)].into());
        assert!(recorded.0.is_empty());
        recorded.record("a", &names.iter().map(|name| of(name, 7)).collect());
        recorded.record("a", &[of("default/0", 9), of("default/late", 1)].into());
        assert_eq!(recorded.0.len(), SERIES_MAX);
        let taken_in = |flag: &str| recorded.0.get(&(flag.to_owned(), "on".to_owned())).map(|it| it.1);
        assert_eq!((taken_in("default/0"), taken_in("default/1")), (Some(9), Some(7)));
        assert_eq!(taken_in("default/late"), None);
    }
}
