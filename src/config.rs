//! The limits and intervals of a node: [`Config`], its presets, and one check of all ranges.

mod serial;
mod shared;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use shared::ClusterSettings;
pub(crate) use shared::LeaseTimes;

use crate::form;
use crate::text::Span;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;

/// The largest value that any node accepts from a peer, and the ceiling of [`Config::value_bytes_max`].
pub const VALUE_BYTES_CEILING: usize = 16 << 20;

/// The least [`Config::lease_time_max`].
pub(crate) const LEASE_TIME_MIN: Duration = Duration::from_millis(100);

/// The ceiling of [`Config::lease_time_max`].
pub const LEASE_TIME_MAX: Duration = Duration::from_secs(10);

/// The least and the greatest [`Config::clock_skew_max`].
pub(crate) const CLOCK_SKEW_MIN: Duration = Duration::from_millis(1);
pub(crate) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3_600);

/// The most names in the list of voters.
pub const VOTERS_MAX: usize = 31;

/// What an entry counts for [`Config::store_bytes_max`] beside its key and its values: about what its row, its place in the
/// change log, the digest and the indexes take in memory.
pub const ENTRY_BYTES: u64 = 200;

/// The most writes in a batch.
pub const BATCH_WRITES_MAX: usize = 65_536;

/// Leases that a voter keeps at a time; it refuses further ones. Also the most campaigns and held leases of one node,
/// and the most leases that one node observes.
pub const ELECTIONS_MAX: usize = 16_384;

/// When a node's disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// As soon as something has changed. What changes while the disk is busy goes into the next transaction. While no
    /// `Receipt::durable` is waiting, the next transaction begins only after a pause as long as the last one took, at
    /// most 50 ms.
    Immediate,
    /// At most once in this time, and at once when a `Receipt::durable` is waiting. A key that is written many times
    /// meanwhile goes to the disk once. 1 ms to 1 hour.
    Interval(#[serde(with = "form::span")] Duration),
}

/// What a node does if it finds its directory damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum OnCorruption {
    /// It does not start, and the error names the damaged file. Nothing is changed.
    Refuse,
    /// It moves what it found into the folder `damaged` of its directory, starts with nothing (or with the snapshot
    /// that its builder names), and fetches everything from its peers.
    Rejoin,
}

/// A field of [`Config`](crate::Config) is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("config field {field} is {value}, permitted: {range}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field's name.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// The values that are permitted.
    pub range: &'static str,
}

/// Limits and intervals of a node. Start from a preset and change single fields:
///
/// ```
/// let mut config = tidings::Config::lan();
/// config.value_bytes_max = 4 << 20;
/// assert!(config.check().is_ok());
/// ```
///
/// It can be read from any format of serde. Fields have the names that they have here; those that are missing are as in
/// [`Config::lan`]. Durations are text. A field that does not exist is an error, and every error names the field. Ranges
/// are not checked when it is read, but by [`check`](Self::check), and when a node starts.
///
/// ```
/// # #[cfg(feature = "json")] {
/// let text = r#"{ "probe_interval": "2s", "durability": { "interval": "1s 500ms" }, "voters": ["a", "b", "c"] }"#;
/// let config: tidings::Config = serde_json::from_str(text).expect("it has the right form");
/// assert_eq!(config.probe_interval, std::time::Duration::from_secs(2));
/// assert_eq!(config.sync_interval, tidings::Config::lan().sync_interval);
/// let error = serde_json::from_str::<tidings::Config>(r#"{ "probe_interval": "soon" }"#).unwrap_err();
/// assert!(error.to_string().starts_with("probe_interval: "));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// How often a node compares digests with a random peer. 10 ms to 1 hour.
    pub sync_interval: Duration,
    /// The largest value that this node writes, in bytes. 1 byte to 16 MiB. Values from peers are accepted up to 16 MiB
    /// regardless of this limit.
    pub value_bytes_max: usize,
    /// The greatest permitted difference between the wall clocks of members. 1 ms to 1 hour.
    ///
    /// Writes from peers that are stamped further ahead are refused. A node's clock is in doubt if it is set by more
    /// than half of this, or if most of the linked nodes say that it is off by more than this; in both cases by at
    /// least a second. Local writes are then refused with [`WriteError::Clock`](crate::WriteError::Clock).
    ///
    /// An expired value is dropped twice this time after its expiry, by a node whose clock is not in doubt and was
    /// confirmed by peers since the start. Without peers a node waits one minute after its start, or one day if it
    /// knows that there are others. If a clock is wrong by less than these limits, or most nodes are wrong in the same
    /// way, a value may be dropped before its expiry, which deletes it everywhere.
    ///
    /// It must be the same on all nodes, see [`ClusterSettings`](crate::settings::ClusterSettings).
    pub clock_skew_max: Duration,
    /// How many removals the change log keeps for followers that resume. Older ones are forgotten, and a follower whose
    /// cursor is before them repairs (a peer) or starts over with the current values (a watch). 0 to 16,777,216.
    pub removals_max: usize,
    /// Up to this many members, each node sends its writes to all others. Above, writes take two hops: to the members
    /// of the writer's group, and to one delegate in every other group, which forwards them there. It must be the same
    /// on all nodes, see [`ClusterSettings`](crate::settings::ClusterSettings). 0 to 512.
    pub mesh_members_max: usize,
    /// A repair session breaks its link if none of its bytes moved for this long in either direction, and nothing else
    /// moved on the link either. A session that moves is never broken, however slow the link is, down to 64 bytes a
    /// second. 100 ms to 1 hour.
    pub sync_timeout: Duration,
    /// Local writes are refused as busy while the median peer is more than this many bytes behind. 64 KiB to 1 TiB.
    pub lag_bytes_max: usize,
    /// The size of the store above which this node refuses local writes that let it grow, with
    /// [`WriteError::Full`](crate::WriteError::Full). The size is the bytes of all keys and values held, plus
    /// [`ENTRY_BYTES`](crate::limits::ENTRY_BYTES) for each entry; [`Status::size_bytes`](crate::Status::size_bytes) tells
    /// it. Sets, counters and values that have expired and are not dropped yet are part of it. 64 KiB to 1 TiB.
    ///
    /// Deletes and writes that do not let the store grow are always accepted. So is what other nodes wrote: a node that
    /// refused it would hold something else than they do. So this bounds the memory of a node only if all nodes have the
    /// same limit, and even then it may be exceeded by what nodes write at the same time.
    /// [`ReplicaEvent::StoreFilling`](crate::ReplicaEvent::StoreFilling) comes at 80 % of it.
    pub store_bytes_max: usize,
    /// How often a node probes another member. 20 ms to 10 minutes.
    pub probe_interval: Duration,
    /// How long the answer to a probe may take before other members are asked to probe too. Choose it well above a
    /// round trip; at most half of [`probe_interval`](Self::probe_interval). 5 ms to 5 minutes.
    pub probe_timeout: Duration,
    /// How long a member that did not answer has to say that it lives before it counts as down. It is longer in large
    /// clusters. 50 ms to 1 hour.
    pub suspicion_time: Duration,
    /// A member that has been down, or has left, for this long is forgotten: it counts in no
    /// [`Quorum`](crate::Quorum) any more and is not listed. If it comes back, it joins as a new one. 1 s to 365 days.
    pub forget_after: Duration,
    /// A node that had caught up in an earlier run and has its data on its disk is ready with that once it has been linked
    /// with nobody for this long, or up to one [`sync_interval`](Self::sync_interval) longer: [`Readiness::Alone`](crate::status::Readiness::Alone). So the last node that is left after an
    /// outage of all others serves again. A node without a disk, and one that has never caught up, waits for a peer. Choose
    /// it longer than it takes to reach the others after a restart. 1 s to 365 days.
    pub alone_after: Duration,
    /// The time in which the background check recomputes the whole digest once. 1 s to 30 days.
    pub scrub_interval: Duration,
    /// When the disk is written, if there is a disk.
    pub durability: Durability,
    /// What to do with a damaged directory.
    pub on_corruption: OnCorruption,
    /// The names of the nodes of which a majority grants leases at first, see [`Node::election`](crate::Node::election).
    /// It must be the same list on every node, in any order: nodes with different lists refuse each other's elections.
    /// An odd number is best. At most 31 names, each once. Without any there are no elections. Once the list was changed
    /// by [`Node::set_voters`](crate::Node::set_voters), that one counts.
    pub voters: Vec<String>,
    /// How long a lease lasts without renewal. It is renewed three times in this time. It may differ between nodes.
    /// 100 ms to [`lease_time_max`](Self::lease_time_max).
    pub lease_time: Duration,
    /// The longest lease that a voter grants. After every start a voter grants nothing for (`lease_time_max` +
    /// [`clock_skew_max`](Self::clock_skew_max)) × 10/9, until everything that it promised before is over. It must
    /// be the same on all nodes, see [`ClusterSettings`](crate::settings::ClusterSettings). 100 ms to 10 s.
    pub lease_time_max: Duration,
    pub(crate) vector: VectorSettings,
}

/// How vectors are sent to peers. Not public: only simulations, which are shorter and have fewer process starts, need
/// other values than the usual ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct VectorSettings {
    /// Entries that are older than one to two of these intervals are named by their sum.
    pub(crate) cut_interval: Duration,
    /// Two old parts that differ are compared in buckets if both have at least this many entries.
    pub(crate) buckets_min: u64,
}

impl Default for VectorSettings {
    fn default() -> Self {
        Self { cut_interval: Duration::from_secs(3_600), buckets_min: 512 }
    }
}

impl Config {
    /// For nodes in one data centre. All nodes of a cluster start from the same preset: presets differ in settings that
    /// a cluster shares ([`ClusterSettings`]), and a node whose values differ is refused.
    pub fn lan() -> Self {
        Self {
            sync_interval: Duration::from_secs(1),
            value_bytes_max: 1 << 20,
            clock_skew_max: Duration::from_secs(5),
            removals_max: 4_096,
            vector: VectorSettings::default(),
            mesh_members_max: 30,
            sync_timeout: Duration::from_secs(10),
            lag_bytes_max: 64 << 20,
            store_bytes_max: 2 << 30,
            probe_interval: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(200),
            suspicion_time: Duration::from_millis(2_500),
            forget_after: Duration::from_secs(24 * 3_600),
            alone_after: Duration::from_secs(30),
            scrub_interval: Duration::from_secs(600),
            durability: Durability::Interval(Duration::from_millis(50)),
            on_corruption: OnCorruption::Refuse,
            voters: Vec::new(),
            lease_time: Duration::from_secs(3),
            lease_time_max: LEASE_TIME_MAX,
        }
    }

    /// For nodes far apart.
    pub fn wan() -> Self {
        Self {
            sync_interval: Duration::from_secs(5),
            clock_skew_max: Duration::from_secs(30),
            sync_timeout: Duration::from_secs(30),
            probe_interval: Duration::from_secs(2),
            probe_timeout: Duration::from_millis(800),
            suspicion_time: Duration::from_secs(12),
            alone_after: Duration::from_secs(60),
            lease_time: Duration::from_secs(10),
            ..Self::lan()
        }
    }

    /// For tests and demonstrations on one machine, where all nodes share a clock. The first leader is elected within 2
    /// s of the start.
    pub fn local() -> Self {
        Self {
            sync_interval: Duration::from_millis(100),
            clock_skew_max: Duration::from_millis(400),
            alone_after: Duration::from_secs(5),
            lease_time: Duration::from_secs(1),
            lease_time_max: Duration::from_secs(1),
            ..Self::lan()
        }
    }

    /// Checks every field against its permitted range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is out of its range, and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let second = Duration::from_secs(1);
        let hour = second * 3_600;
        let durability = match self.durability {
            Durability::Immediate => Duration::from_millis(1),
            Durability::Interval(interval) => interval,
        };
        let times = [
            ("durability", durability, Duration::from_millis(1), hour, "1 ms to 1 h"),
            ("sync_interval", self.sync_interval, Duration::from_millis(10), hour, "10 ms to 1 h"),
            ("clock_skew_max", self.clock_skew_max, CLOCK_SKEW_MIN, CLOCK_SKEW_MAX, "1 ms to 1 h"),
            ("sync_timeout", self.sync_timeout, Duration::from_millis(100), hour, "100 ms to 1 h"),
            ("scrub_interval", self.scrub_interval, second, hour * 24 * 30, "1 s to 30 days"),
            ("probe_interval", self.probe_interval, second / 50, second * 600, "20 ms to 10 minutes"),
            (
                "probe_timeout",
                self.probe_timeout,
                second / 200,
                self.probe_interval / 2,
                "5 ms to half of probe_interval",
            ),
            ("forget_after", self.forget_after, second, hour * 24 * 365, "1 s to 365 days"),
            ("alone_after", self.alone_after, second, hour * 24 * 365, "1 s to 365 days"),
            ("suspicion_time", self.suspicion_time, second / 20, hour, "50 ms to 1 h"),
            ("lease_time_max", self.lease_time_max, LEASE_TIME_MIN, LEASE_TIME_MAX, "100 ms to 10 s"),
            ("lease_time", self.lease_time, LEASE_TIME_MIN, self.lease_time_max, "100 ms to lease_time_max"),
        ];
        for (field, value, least, most, range) in times {
            if !(least..=most).contains(&value) {
                return Err(ConfigError { field, value: Span(value).to_string(), range });
            }
        }
        self.check_voters()?;
        let sizes = [
            ("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_CEILING, "1 to 16777216"),
            ("lag_bytes_max", self.lag_bytes_max, 64 << 10, 1 << 40, "65536 to 1099511627776"),
            ("store_bytes_max", self.store_bytes_max, 64 << 10, 1 << 40, "65536 to 1099511627776"),
            ("removals_max", self.removals_max, 0, 1 << 24, "0 to 16777216"),
            ("mesh_members_max", self.mesh_members_max, 0, 512, "0 to 512"),
        ];
        for (field, value, least, most, range) in sizes {
            if !(least..=most).contains(&value) {
                return Err(ConfigError { field, value: value.to_string(), range });
            }
        }
        Ok(())
    }

    fn check_voters(&self) -> Result<(), ConfigError> {
        let mut names: Vec<&String> = self.voters.iter().collect();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone());
        let wrong =
            twice.or_else(|| names.iter().find(|name| name.is_empty()).map(|_| "an empty name".to_owned()));
        let wrong = wrong.or_else(|| (names.len() > VOTERS_MAX).then(|| format!("{} names", names.len())));
        let range = "at most 31 names of nodes, each once";
        wrong.map_or(Ok(()), |value| Err(ConfigError { field: "voters", value, range }))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::lan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_pass_their_own_check() {
        for config in [Config::lan(), Config::wan(), Config::local()] {
            config.check().unwrap();
        }
    }

    #[test]
    fn an_invalid_field_is_named_with_its_range() {
        let config = Config { value_bytes_max: 0, ..Config::lan() };
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("value_bytes_max") && text.contains("1 to 16777216"), "{text}");
        let config = Config { sync_interval: Duration::ZERO, ..Config::lan() };
        assert!(config.check().unwrap_err().to_string().contains("sync_interval"));
        let config = Config { lease_time: Duration::from_secs(3), ..Config::local() };
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("lease_time is 3 s") && text.contains("lease_time_max"), "{text}");
        let voters = ["a", "b", "a"].map(str::to_owned).to_vec();
        let text = Config { voters, ..Config::lan() }.check().unwrap_err().to_string();
        assert!(text.contains("voters") && text.contains("is a,") && text.contains("each once"), "{text}");
        let text = Config { voters: vec![String::new()], ..Config::lan() }.check().unwrap_err().to_string();
        assert!(text.contains("voters is an empty name"), "{text}");
    }
}
