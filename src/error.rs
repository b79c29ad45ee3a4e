//! Errors, one small type per area. The text of each says what happened and what became of the state.
//!
//! `kv-example` cuts `; nothing was written` off the end of a [`WriteError`], so a text must keep that ending.

#[cfg(feature = "json")]
mod live;
#[cfg(feature = "node")]
mod node;
mod settings;

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

#[cfg(feature = "json")]
pub use live::{Author, LiveError, LiveSource, Rejected};
#[cfg(feature = "node")]
pub use node::{SecurityError, SeedError, SnapshotError, StartError, WaitError};

pub use settings::{ReconfigureError, SetSettingsError, SettingsDiffer};

use crate::config::{BATCH_WRITES_MAX, ConfigError, ELECTIONS_MAX};
use crate::text::{Escaped, Span};
use crate::time::Stamp;

/// What a key holds, as a message says it.
fn present(current: Option<Stamp>) -> String {
    current.map_or_else(
        || "the key has no value".to_owned(),
        |stamp| format!("the key now has the stamp {stamp}"),
    )
}

/// Why a write was not accepted. In every case nothing was written, not even a part of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The metadata has too many entries.
    #[error("metadata of {entries} entries is over the limit of {limit}; nothing was written")]
    MetaEntries {
        /// How many there are.
        entries: usize,
        /// The limit.
        limit: usize,
    },
    /// The key, set name, element or counter name is empty.
    #[error("a key must not be empty; nothing was written")]
    KeyEmpty,
    /// The key, set name, element or counter name is longer than [`KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
    #[error("a key of {bytes} bytes is over the limit of 1024; nothing was written")]
    KeyTooLong {
        /// The key's length.
        bytes: usize,
    },
    /// The value is larger than [`Config::value_bytes_max`](crate::Config::value_bytes_max).
    #[error("a value of {bytes} bytes is over the limit of {limit}; nothing was written")]
    ValueTooLarge {
        /// The value's size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The condition of [`PutOptions::only_if`](crate::PutOptions::only_if) does not hold on this node.
    #[error("the condition does not hold: {}; nothing was written", present(*current))]
    Condition {
        /// The stamp of the key's present value, if it has one.
        current: Option<Stamp>,
    },
    /// The condition of [`Batch::unchanged_since`](crate::core::Batch::unchanged_since) does not hold on this node.
    #[error(
        "keys that begin with \"{}\" were changed since they were read; nothing was written",
        Escaped(prefix)
    )]
    Changed {
        /// What the keys begin with.
        prefix: String,
    },
    /// A check of this node (`Builder::validate`) finds the value invalid.
    #[error("the value of \"{}\" is not valid: {reason}; nothing was written", Escaped(key))]
    Invalid {
        /// The key.
        key: String,
        /// What the check said.
        reason: String,
    },
    /// This process's share of the counter would leave the range of `i64`.
    #[error("this process's share of the counter would overflow; nothing was written")]
    CounterOverflow,
    /// A batch is larger than [`BATCH_WRITES_MAX`](crate::limits::BATCH_WRITES_MAX).
    #[error("a batch of {writes} writes is over the limit of {limit}; nothing was written", limit = BATCH_WRITES_MAX)]
    BatchTooLarge {
        /// How many writes it holds.
        writes: usize,
    },
    /// The cluster is too far behind this node's writes, see
    /// [`Config::lag_bytes_max`](crate::Config::lag_bytes_max). It catches up by itself: retry later.
    #[error("the cluster is too far behind this node's writes, retry later; nothing was written")]
    Busy,
    /// The write would let the store grow beyond [`Config::store_bytes_max`](crate::Config::store_bytes_max). Deletes and
    /// writes that do not let it grow are still accepted.
    #[error(
        "the store has {bytes} bytes, and with this write {needed}, over the limit of {limit}; nothing was written"
    )]
    Full {
        /// The size of the store.
        bytes: u64,
        /// The size that it would have after the write.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk has failed or is full. Reads and replication go on; writes are accepted again once the disk is back.
    #[error("the disk has failed or is full; nothing was written")]
    Disk,
    /// This node's wall clock is wrong, so that peers would refuse the write or read its expiry as another time. The
    /// clock was set by more than half of [`Config::clock_skew_max`](crate::Config::clock_skew_max), or most of the
    /// linked nodes contradict it; or earlier writes of this process were stamped ahead while its clock was wrong.
    ///
    /// Writes are accepted again when the clock shows the right time, when peers confirm it, or when it has run on for
    /// a minute and no majority of peers contradicts it. If earlier writes are stamped ahead, writes are accepted again
    /// when that time has come, or after a restart.
    #[error("this node's clock is off by {}, or its last write is that far ahead; nothing was written", Span(*off))]
    Clock {
        /// How far the clock is off its peers or off its time before the step; or how far ahead the last write is.
        off: std::time::Duration,
    },
    /// The node is closed.
    #[error("the node is closed; nothing was written")]
    Closed,
}

/// Why a member was not forgotten. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// This node knows no member of that name.
    #[error("no member is called \"{}\"; nothing was written", Escaped(name))]
    Unknown {
        /// The name.
        name: String,
    },
    /// The member is alive, suspected or linked.
    #[error(
        "the member \"{}\" is not gone: only one that is down or has left can be forgotten; nothing was written",
        Escaped(name)
    )]
    NotGone {
        /// Its name.
        name: String,
    },
    /// The request could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why this node has no lease. Votes that it was granted for it are given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// The list of voters is empty.
    #[error("there are no voters: list them in Config::voters, the same on every node")]
    NoVoters,
    /// The name of the election or the lock is empty or too long.
    #[error("an election or lock name of {bytes} bytes is not permitted: 1 to 256 bytes")]
    Name {
        /// Its length.
        bytes: usize,
    },
    /// The leader's value is too large.
    #[error("a leader's value of {bytes} bytes is over the limit of 512")]
    Value {
        /// Its size.
        bytes: usize,
    },
    /// This node campaigns for, holds or observes too many leases.
    #[error("this node would take part in more than {limit} leases", limit = ELECTIONS_MAX)]
    TooMany,
    /// Another candidate has the lease, or is about to get it.
    #[error("another candidate has the lease, or is about to get it")]
    Taken,
    /// Too few voters can be reached, or too many of those reached have started too recently to vote.
    #[error("no majority of voters can vote: {reached} answered, {needed} are needed")]
    NoMajority {
        /// How many voters answered.
        reached: usize,
        /// How many votes are needed.
        needed: usize,
    },
    /// The lease is no longer held.
    #[error("the lease has ended")]
    Lost,
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why the list of voters was not changed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetVotersError {
    /// The names cannot be a list of voters.
    #[error("{_0}; the list of voters was not changed")]
    Names(#[source] ConfigError),
    /// The configured list of voters is empty, so there is nobody to decide on another one.
    #[error(
        "there are no voters to decide: list the first ones in Config::voters, the same on every node, and start all \
         nodes again; or force a first list, once, on one node"
    )]
    NoVoters,
    /// This node changes the list already, or other nodes were faster again and again.
    #[error("the list of voters is being changed by another call; try again")]
    Busy,
    /// A node of the new list does not answer.
    #[error(
        "the node {} did not answer, so it cannot become a voter; the list of voters was not changed",
        Escaped(name)
    )]
    NoAnswer {
        /// Its name.
        name: String,
    },
    /// A node of the new list, or too many of the old one, have no data directory.
    #[error(
        "the node {} has no data directory, which a voter needs for a change at run time; the list of voters was not changed",
        Escaped(name)
    )]
    NoDisk {
        /// The node.
        name: String,
    },
    /// A node of the new list has other settings that voters must share.
    #[error(
        "the node {} has other election settings ({differences}); the list of voters was not changed",
        Escaped(name)
    )]
    Differs {
        /// Its name.
        name: String,
        /// The settings, with both values.
        differences: String,
    },
    /// The program of a node does not know lease times that change at run time, as far as its greeting says.
    #[error(
        "the program of the node {} does not take part where lease times were changed at run time; the list of voters was \
         not changed. Replace the program first",
        Escaped(name)
    )]
    OldProgram {
        /// The node.
        name: String,
    },
    /// Too few of the present voters answer.
    #[error(
        "no majority of the present voters answered: {reached} did, {needed} are needed; their list was not changed"
    )]
    NoMajority {
        /// How many answered.
        reached: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A forced list would not count yet, because the present list or a granted term is too far ahead of this node's
    /// clock: this clock is behind, or a member has lied. Behind the list of a member that has lied, a list can be
    /// forced when [`clock_skew_max`](crate::Config::clock_skew_max) has passed.
    #[error(
        "the present list of voters or a term is too far ahead of this node's clock; the list of voters was not \
         changed. Set the clock if it is behind, or try again later"
    )]
    Ahead,
    /// A later call asked for other voters. The cluster changes to those.
    #[error("a later call asked for other voters: {}", Escaped(&by.join(", ")))]
    Superseded {
        /// The voters that the later call asked for.
        by: Vec<String>,
    },
    /// The request could not be written into the store.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The node is closed. A change that has begun goes on without it.
    #[error("the node is closed; a change that has begun goes on")]
    Closed,
}

/// Any error, as the standard library boxes it.
#[cfg(any(feature = "node", feature = "json"))]
pub(crate) type BoxedError = Box<dyn StdError + Send + Sync>;

/// The error of the operating system or of a library that an error of this library was made from. It is shared, so that
/// errors can be cloned. Two of them are equal if their texts are, because such errors cannot be compared.
#[derive(Clone)]
pub struct Cause(Arc<dyn StdError + Send + Sync>);

#[cfg(any(feature = "node", feature = "json"))]
impl Cause {
    /// Keeps an error, or a text where there is no error.
    pub(crate) fn new(error: impl Into<BoxedError>) -> Self {
        Self(error.into().into())
    }
}

// It implements no `Error`: so `source()` yields the original error and not this wrapper.
impl Deref for Cause {
    type Target = dyn StdError + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl serde::Serialize for Cause {
    /// Its text.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(any(feature = "node", feature = "json"))]
impl<'de> serde::Deserialize<'de> for Cause {
    /// An error of which the text alone is left.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl Eq for Cause {}

/// A value does not have the type that a typed view expects, or could not be encoded. The stored value is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error(
    "the value of \"{}\" cannot be decoded or encoded: {reason}; the stored value is unchanged",
    Escaped(key)
)]
#[non_exhaustive]
pub struct DecodeError {
    /// The key.
    pub key: String,
    /// What is wrong with the value.
    #[source]
    pub reason: Cause,
}

/// Any error of this library, for callers that handle all of them alike.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node did not start.
    #[cfg(feature = "node")]
    #[error(transparent)]
    Start(#[from] StartError),
    /// A seed was not added.
    #[cfg(feature = "node")]
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A write was not accepted.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A wait ended early.
    #[cfg(feature = "node")]
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A snapshot was not taken.
    #[cfg(feature = "node")]
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A member was not forgotten.
    #[error(transparent)]
    Forget(#[from] ForgetError),
    /// A lease was not granted, or has ended.
    #[error(transparent)]
    Election(#[from] ElectionError),
    /// Security could not be made or changed.
    #[cfg(feature = "node")]
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// A value does not have the expected type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A live value did not start.
    #[cfg(feature = "json")]
    #[error(transparent)]
    Live(#[from] LiveError),
}
