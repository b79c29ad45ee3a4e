//! What a peer sends of the store: rows, what it covers, and why a row may be refused.

use std::fmt;

use crdts::CvRDT;
use serde::{Deserialize, Serialize};

use super::coverage::{Clocks, PeerRegions, RegionCoverage, Vector};
use super::entry::DotSet;
use crate::time::Stamp;

/// Why a row from a peer is not merged. It is skipped as a whole; the rows after it are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A stamp lies further in the future than the permitted clock skew.
    FromTheFuture,
    /// The key does not have a form that this library writes.
    Key,
    /// A value is too large, or does not have the form of its keyspace.
    Value,
    /// More concurrent dots than any key may hold.
    Dots,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromTheFuture => "a stamp lies further in the future than clock_skew_max permits",
            Self::Key => "the key does not have a form that this library writes",
            Self::Value => "a value is too large, or does not have the form of its kind of entry",
            Self::Dots => "it has more concurrent values than one key may hold",
        })
    }
}

/// A row from a peer: the dots of a key, and what the sender covers at that key.
#[derive(Clone, Debug)]
pub(crate) struct PeerRow {
    pub(crate) dot_set: DotSet,
    /// The sender's vector at the instant in which it cut the row.
    pub(crate) vector: Vector,
    /// What the sender covers at this key beyond its vector.
    pub(crate) context: Option<Clocks>,
}

impl PeerRow {
    pub(super) fn covers(&self, stamp: Stamp) -> bool {
        self.vector.covers(stamp)
            || self.context.as_ref().is_some_and(|c| c.covers(stamp))
            || self.dot_set.covers_by_held(stamp)
    }
}

/// What a peer covers in a range: its vector at one instant, and its extra coverage there.
#[derive(Clone, Debug)]
pub(crate) struct PeerCoverage {
    pub(crate) vector: Vector,
    pub(crate) regions: Vec<RegionCoverage>,
    /// The peer sent all of its extra coverage there. If not, the vector alone would show dots as removed without the
    /// events that removed them: no range may be settled, and no row merged, with this coverage.
    pub(crate) is_whole: bool,
}

impl PeerCoverage {
    pub(crate) fn new(vector: Vector, told_regions: PeerRegions) -> Self {
        Self { vector, regions: told_regions.regions, is_whole: told_regions.is_whole }
    }

    /// What the peer covers at one key beyond its vector.
    pub(crate) fn context(&self, key: &[u8]) -> Option<Clocks> {
        let mut place = None;
        let mut here = self.regions.iter().filter(|region| region.is_for(key, &mut place));
        let mut all = here.next()?.clocks.clone();
        here.for_each(|region| all.merge(region.clocks.clone()));
        Some(all)
    }

    pub(super) fn covers(&self, key: &[u8], stamp: Stamp) -> bool {
        self.vector.covers(stamp) || self.regions.iter().any(|region| region.covers(key, stamp))
    }
}
