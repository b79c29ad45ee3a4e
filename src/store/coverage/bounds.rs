//! Bounds on what a peer may claim. The reader of frames checks every claim from the wire with
//! [`ClaimBounds::permits`].
//!
//! A claim moves this replica's coverage, and what is covered and not held is removed, for ever. So a claim that no
//! honest node can make must never be merged: a single one with a clock near the greatest number would remove every
//! later write of its origin, here and wherever it spreads.

use crate::time::Stamp;

/// The greatest claims that are accepted from a peer at one instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaimBounds {
    /// The greatest clock, for any origin but this replica's own run.
    pub(crate) clock_max: u64,
    /// This replica's run and the last clock that it stamped: nobody can know of later writes of it.
    pub(crate) own_last: Stamp,
}

impl ClaimBounds {
    pub(crate) fn permits(&self, stamp: Stamp) -> bool {
        let clock_max =
            if stamp.origin == self.own_last.origin { self.own_last.clock } else { self.clock_max };
        stamp.clock <= clock_max
    }
}
