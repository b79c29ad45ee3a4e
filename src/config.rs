//! Every tunable, with presets and one check.

use std::time::Duration;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;

/// The largest value that any node accepts from a peer, and the ceiling of [`Config::value_bytes_max`].
pub const VALUE_BYTES_CEILING: usize = 16 << 20;

/// The greatest [`Config::lease_time_max`] that is permitted.
pub const LEASE_TIME_MAX: Duration = Duration::from_secs(10);

/// The longest list of voters.
pub const VOTERS_MAX: usize = 31;

/// The largest batch.
pub const BATCH_WRITES_MAX: usize = 65_536;

/// Leases that a voter knows of at a time; it refuses others. Also those that one node campaigns for or observes.
pub const ELECTIONS_MAX: usize = 16_384;

/// When a node's disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// As soon as something has changed. What changes while the disk is busy goes in the next transaction. If nobody
    /// waits for it, the disk rests first, for as long as the last transaction took, up to 50 ms.
    Immediate,
    /// At most once in this time, and at once when somebody waits for `Receipt::durable`. A key that is written many
    /// times meanwhile goes to the disk once. 1 ms to 1 hour.
    Interval(Duration),
}

/// What a node does when it finds its directory damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCorruption {
    /// It does not start, and says which file is damaged. Nothing is changed.
    Refuse,
    /// It moves what it found aside, into the folder `damaged` of its directory, starts with nothing (or with the
    /// snapshot that its builder names), and fetches everything from its peers.
    Rejoin,
}

/// A field of [`Config`](crate::Config) is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config field {field} is {value}, permitted: {range}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field's name.
    pub field: &'static str,
    /// What stood there.
    pub value: String,
    /// What may stand there.
    pub range: &'static str,
}

/// How a node behaves. Start from a preset and change single fields:
///
/// ```
/// let mut config = tidings::Config::lan();
/// config.value_bytes_max = 4 << 20;
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// How often a node compares digests with a random peer. 10 ms to 1 hour.
    pub sync_interval: Duration,
    /// The largest value that this node writes, in bytes. 1 to 16 MiB. Values of peers are accepted up to 16 MiB
    /// whatever stands here.
    pub value_bytes_max: usize,
    /// How far clocks of members may be apart. 1 ms to 1 hour.
    ///
    /// Writes that are stamped further ahead are refused. A node's clock is in doubt if it is set by more than half of this,
    /// or if most of the linked nodes say that it is off by more than this; in both cases by at least a second. Local writes
    /// are then refused with [`WriteError::Clock`](crate::WriteError::Clock).
    ///
    /// An expired value is dropped twice this time after its expiry, by a node whose clock is not in doubt and was confirmed
    /// by a peer since the start. Without peers a node waits a minute after its start; a day, if it knows that there are
    /// others. Where a clock is wrong by less than these limits, or most nodes are wrong in the same way, a value may be
    /// dropped before its time, which deletes it everywhere.
    pub clock_skew_max: Duration,
    /// How many removals the change log remembers for followers that resume. Older ones are forgotten, and a
    /// follower behind them compares digests (a peer) or starts over with the current values (a watch). 0 to
    /// 16,777,216.
    pub removals_max: usize,
    /// Whether this node passes on the writes of others as they arrive, for clusters in which not every node is
    /// connected to every other. Where all are, passing on would only repeat what everybody receives anyway.
    pub relay: bool,
    /// Up to so many members, everybody sends its writes to everybody. Above that they are sent over two hops: to the
    /// members of the own group, and to one member of every other, who passes them on. The same on all nodes; where it
    /// differs, writes arrive twice or late. 0 to 512.
    pub mesh_members_max: usize,
    /// A repair session of which no bytes move for this long in either direction, while nothing else moves on the link
    /// either, breaks the link. One that moves is never broken, however slow the link is, down to 64 bytes a second.
    /// 100 ms to 1 hour.
    pub sync_timeout: Duration,
    /// A node refuses writes of its own as busy while the middle one of its peers is this many bytes behind. 64 KiB
    /// to 1 TiB.
    pub lag_bytes_max: usize,
    /// How often a node asks another member whether it lives. 20 ms to 10 minutes.
    pub probe_interval: Duration,
    /// How long the answer may take before others are asked to ask too; a good deal more than a round trip, and less
    /// than half of [`probe_interval`](Self::probe_interval). 5 ms to 5 minutes.
    pub probe_timeout: Duration,
    /// How long a member that did not answer has to say that it lives before it counts as down; stretched in large
    /// clusters. 50 ms to 1 hour.
    pub suspicion_time: Duration,
    /// The time in which the background check recomputes the whole digest once. 1 s to 30 days.
    pub scrub_interval: Duration,
    /// When the disk is written, if there is one.
    pub durability: Durability,
    /// What to do with a damaged directory.
    pub on_corruption: OnCorruption,
    /// The names of the nodes whose majority grants leases: see [`Node::election`](crate::Node::election). The same on
    /// every node, in any order; nodes with different lists refuse each other's elections. An odd number is best. At
    /// most 31, each once. Without any there are no elections.
    pub voters: Vec<String>,
    /// How long a lease lasts that is not renewed. Renewals go out three times as often. It may differ between nodes.
    /// 100 ms to [`lease_time_max`](Self::lease_time_max).
    pub lease_time: Duration,
    /// The longest lease that a voter grants. After every start a voter grants nothing for this time and
    /// [`clock_skew_max`](Self::clock_skew_max) together, and a ninth more, until whatever it has promised before is over.
    /// This and `clock_skew_max` must be the same on all nodes that take part in elections; a node where one of them
    /// differs has no part in the elections of the others. It is lowered like a list of voters is changed: by stopping
    /// all nodes first. 100 ms to 10 s.
    pub lease_time_max: Duration,
}

impl Config {
    /// For nodes in one data centre.
    pub fn lan() -> Self {
        Self {
            sync_interval: Duration::from_secs(1),
            value_bytes_max: 1 << 20,
            clock_skew_max: Duration::from_secs(5),
            removals_max: 4_096,
            relay: false,
            mesh_members_max: 30,
            sync_timeout: Duration::from_secs(10),
            lag_bytes_max: 64 << 20,
            probe_interval: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(200),
            suspicion_time: Duration::from_millis(2_500),
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
            lease_time: Duration::from_secs(10),
            ..Self::lan()
        }
    }

    /// For tests and demonstrations on one machine, whose nodes share a clock: a first leader stands within 2 s of the
    /// start.
    pub fn local() -> Self {
        Self {
            sync_interval: Duration::from_millis(100),
            clock_skew_max: Duration::from_millis(400),
            lease_time: Duration::from_secs(1),
            lease_time_max: Duration::from_secs(1),
            ..Self::lan()
        }
    }

    /// Checks every field against its permitted range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field out of range, and the range.
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
            ("clock_skew_max", self.clock_skew_max, Duration::from_millis(1), hour, "1 ms to 1 h"),
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
            ("suspicion_time", self.suspicion_time, second / 20, hour, "50 ms to 1 h"),
            ("lease_time_max", self.lease_time_max, second / 10, LEASE_TIME_MAX, "100 ms to 10 s"),
            ("lease_time", self.lease_time, second / 10, self.lease_time_max, "100 ms to lease_time_max"),
        ];
        for (field, value, least, most, range) in times {
            if !(least..=most).contains(&value) {
                return Err(ConfigError { field, value: format!("{value:?}"), range });
            }
        }
        self.check_voters()?;
        let sizes = [
            ("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_CEILING, "1 to 16777216"),
            ("lag_bytes_max", self.lag_bytes_max, 64 << 10, 1 << 40, "65536 to 1099511627776"),
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
        let wrong = twice.or_else(|| names.iter().find(|name| name.is_empty()).map(|_| String::new()));
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
        assert!(text.contains("lease_time is 3s") && text.contains("lease_time_max"), "{text}");
        let voters = ["a", "b", "a"].map(str::to_owned).to_vec();
        let text = Config { voters, ..Config::lan() }.check().unwrap_err().to_string();
        assert!(text.contains("voters") && text.contains("is a,") && text.contains("each once"), "{text}");
    }
}
