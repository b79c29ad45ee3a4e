//! What a peer may claim. Every claim from the wire passes through [`ClaimBounds::permits`], in the reader of frames.
//!
//! A claim moves this replica's coverage, and what is covered and not held is removed, for ever. So a claim that nobody
//! can have grounds for must never be merged: a single one with a clock near the greatest number would make every later
//! write of its origin vanish, here and wherever it spreads.

use crate::time::Stamp;

/// The greatest claims that are taken from a peer at one instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaimBounds {
    /// Of any origin: no clock beyond this one.
    pub(crate) clock_max: u64,
    /// Of this replica's own run: nothing beyond what it has written.
    pub(crate) own_last: Stamp,
}

impl ClaimBounds {
    pub(crate) fn permits(&self, stamp: Stamp) -> bool {
        let clock_max =
            if stamp.origin == self.own_last.origin { self.own_last.clock } else { self.clock_max };
        stamp.clock <= clock_max
    }
}
