//! Replication: how rows and claims travel between two nodes.
//!
//! [`tail`] carries live writes along the change log, [`repair`] compares digests and exchanges what differs, [`claims`] says
//! what a delegate may claim of the writes that it forwards, and [`flow`] limits writers while the cluster is behind. All of
//! them are driven by [`crate::replica`], which owns the links; they know of no link but their own.

pub(crate) mod acks;
pub(crate) mod arrived;
pub(crate) mod claims;
pub(crate) mod flow;
pub(crate) mod questions;
pub(crate) mod repair;
pub(crate) mod tail;
