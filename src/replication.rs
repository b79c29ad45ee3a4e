//! Replication: how rows and claims travel between two nodes.
//!
//! [`tail`] carries live writes along the change log. [`repair`] compares digests and exchanges what differs.
//! [`claims`] decides what a delegate may claim of the writes that it forwards. [`acks`] and [`questions`] track what
//! the peer has merged. [`arrived`] hands out arrival times, and [`flow`] limits writers while the cluster is behind. [`vectors`] finds out
//! what need not be told of a vector.
//!
//! [`crate::replica`] owns the links and drives all of them. Code here works on one link and must not depend on
//! another.

pub(crate) mod acks;
pub(crate) mod arrived;
pub(crate) mod claims;
pub(crate) mod flow;
pub(crate) mod large;
pub(crate) mod questions;
pub(crate) mod repair;
pub(crate) mod rows;
pub(crate) mod tail;
pub(crate) mod vectors;
