//! Errors of the core, one small type per area. The text of each says what happened and what became of the state.
//!
//! `kv-example` cuts `; nothing was written` off the end of a [`WriteError`], so a text must keep that ending.

use crate::config::{BATCH_WRITES_MAX, ELECTIONS_MAX};
use crate::text::Span;
use crate::time::Stamp;

/// What a key holds, as a message says it.
fn present(current: Option<Stamp>) -> String {
    current.map_or_else(
        || "the key has no value".to_owned(),
        |stamp| format!("the key now has the stamp {stamp}"),
    )
}

/// Why a write was not accepted. In every case nothing was written, not even a part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
