//! What users hold: handles, streams, and what a node reports of itself.

pub(in crate::node) mod builder;
mod counter;
pub(in crate::node) mod election;
pub(in crate::node) mod joining;
#[cfg(feature = "json")]
mod last_good;
#[cfg(feature = "metrics")]
pub(in crate::node) mod metrics;
pub(in crate::node) mod receipt;
pub(in crate::node) mod scan;
mod settings;
pub(in crate::node) mod status;
mod store;
mod voters;
pub(in crate::node) mod watch;
