//! What drives the replica: the shared state, the one task, and the read index.

pub(in crate::node) mod change_counts;
pub(in crate::node) mod clock;
pub(in crate::node) mod driver;
pub(in crate::node) mod event_log;
pub(in crate::node) mod index;
pub(in crate::node) mod join_board;
pub(in crate::node) mod listeners;
pub(in crate::node) mod log;
#[cfg(feature = "metrics")]
pub(in crate::node) mod meter;
#[cfg(feature = "json")]
pub(in crate::node) mod rejections;
pub(in crate::node) mod shared;
pub(in crate::node) mod spans;
pub(in crate::node) mod waiter;
