//! The network: connections, who may make them, and how they become links.

pub(in crate::node) mod admission;
pub(in crate::node) mod certificates;
pub(in crate::node) mod congestion;
pub(in crate::node) mod greeting;
pub(in crate::node) mod link;
pub(in crate::node) mod network;
pub(in crate::node) mod peers;
pub(in crate::node) mod round_trip;
pub(in crate::node) mod secret;
pub(in crate::node) mod security;
pub(in crate::node) mod seeds;
pub(in crate::node) mod sender;
#[cfg(feature = "srv")]
pub(in crate::node) mod srv;
