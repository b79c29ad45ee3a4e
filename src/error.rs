//! What can go wrong in the core, one small type per area. Each variant says what became of the state.

use crate::config::{BATCH_WRITES_MAX, ELECTIONS_MAX};
use crate::time::Stamp;

/// Why a write was not accepted. In every case nothing was written, of a batch no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The metadata has too many entries.
    #[error("metadata of {entries} entries is over the limit of {limit}; nothing was changed")]
    MetaEntries {
        /// How many there are.
        entries: usize,
        /// The limit.
        limit: usize,
    },
    /// The key, set name, element or counter name is empty.
    #[error("a key must not be empty; nothing was written")]
    KeyEmpty,
    /// The key, set name, element or counter name is longer than [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX).
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
    #[error("the condition does not hold here (current stamp: {current:?}); nothing was written")]
    Condition {
        /// The stamp of the value that stands there now, if one does.
        current: Option<Stamp>,
    },
    /// A counter's share of this process would leave the range of `i64`.
    #[error("the counter would overflow; nothing was written")]
    CounterOverflow,
    /// A batch is larger than [`BATCH_WRITES_MAX`](crate::BATCH_WRITES_MAX).
    #[error("a batch of {writes} writes is over the limit of {limit}; nothing was written", limit = BATCH_WRITES_MAX)]
    BatchTooLarge {
        /// How many writes it holds.
        writes: usize,
    },
    /// The cluster is too far behind this node's writes: see
    /// [`Config::lag_bytes_max`](crate::Config::lag_bytes_max). It catches up by itself.
    #[error("the cluster is too far behind; nothing was written")]
    Busy,
    /// The disk has failed or is full. Reading and replication go on; writes are taken again when it is back, if it
    /// ever is.
    #[error("the disk has failed or is full; nothing was written")]
    Disk,
    /// This node's wall clock is off, so that peers would refuse the write, or take its expiry for something else. It
    /// was set by more than half of [`Config::clock_skew_max`](crate::Config::clock_skew_max), or most of the linked nodes
    /// say otherwise; or earlier writes of this process were stamped ahead while its clock was wrong. Writes are taken
    /// again when the clock is right, is confirmed by peers, or has run on for a minute and no peer contradicts it; where
    /// earlier writes are ahead, after that time or a restart.
    #[error("this node's clock, or its last write, is {off:?} off; nothing was written")]
    Clock {
        /// How far it is off its peers or off what it showed before; or how far ahead the last write is.
        off: std::time::Duration,
    },
    /// The node is closed.
    #[error("the node is closed; nothing was written")]
    Closed,
}

/// Why there is no lease. What was granted on the way is given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// Nobody can vote.
    #[error("no voters: name the nodes that vote in Config::voters, the same on every node")]
    NoVoters,
    /// The name of the election or the lock is empty or too long.
    #[error("a name of {bytes} bytes; permitted are 1 to 256")]
    Name {
        /// Its length.
        bytes: usize,
    },
    /// The leader's value is too large.
    #[error("a value of {bytes} bytes is over the limit of 512")]
    Value {
        /// Its size.
        bytes: usize,
    },
    /// This node campaigns for, holds or observes too many leases.
    #[error("more than {limit} leases on one node", limit = ELECTIONS_MAX)]
    TooMany,
    /// Somebody else has the lease, or is about to have it.
    #[error("somebody else has it")]
    Taken,
    /// Too few voters can be reached, or those that can have started too short a time ago to vote.
    #[error("no majority of voters can vote: {reached} answered, {needed} are needed")]
    NoMajority {
        /// How many voters answered.
        reached: usize,
        /// How many votes are needed.
        needed: usize,
    },
    /// The lease is not held any more.
    #[error("the lease has ended")]
    Lost,
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}
