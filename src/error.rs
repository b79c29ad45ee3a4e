//! What can go wrong, one small enum per area. Each variant says what became of the state.

use crate::time::Stamp;

/// Why a node did not start. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A field of [`Config`](crate::Config) is out of its range.
    #[error("config field {field} is {value}, permitted: {range}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// What stood there.
        value: String,
        /// What may stand there.
        range: &'static str,
    },
}

/// Why a write was not accepted. In every case nothing was written, of a batch no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
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
    #[error("a batch of {writes} writes is over the limit of {limit}; nothing was written", limit = crate::BATCH_WRITES_MAX)]
    BatchTooLarge {
        /// How many writes it holds.
        writes: usize,
    },
    /// The node is closed.
    #[error("the node is closed; nothing was written")]
    Closed,
}

/// Any error of this library, for callers that do not tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Starting failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A write was not accepted.
    #[error(transparent)]
    Write(#[from] WriteError),
}
