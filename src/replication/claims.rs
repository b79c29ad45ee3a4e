//! Forwarded claims: how the writes of one group reach all members of another, and who may claim them.
//!
//! Above `mesh_members_max` members a node sends its own writes to its own group and to one delegate in every other
//! group (see [`crate::membership`]). The delegate's tail forwards them to the rest of its group. So every node gets
//! every write once, after at most two hops.
//!
//! A tail claims everything of its sender's own origin. It cannot claim forwarded origins in the same way: the sender
//! may have merged events of them that left no row in its log, or rows that its mates were never sent. What it can
//! claim is an interval (origin, from, to): "whoever has everything of this origin up to *from* now has everything up
//! to *to*". A flush end carries these intervals beside the sender's own claim.
//!
//! # Invariants
//!
//! - A delegate extends the interval of an origin by a flush only if *every* row of the flush changed something here.
//!   Only then does each of these rows stand in its log and is forwarded.
//! - A row that changed nothing, a link that was not there yet, or a change of the groups ends the interval. The next
//!   one begins behind it. What lies between is claimed by a finished repair.
//! - A receiver takes an interval only if it has everything up to *from*.

use std::collections::BTreeMap;

use crate::controls::Control;
use crate::id::RunId;
use crate::store::LocalStore;
use crate::time::Stamp;
use crate::wire::{Reader, WireError, Writer};

/// Origins with a forwarded claim. If there are more, the claim that was extended longest ago is dropped.
const FORWARDED_CLAIMS_MAX: usize = 4_096;

/// The interval of one origin that this node forwarded completely.
#[derive(Clone, Copy, Debug)]
struct ForwardedClaim {
    from: u64,
    to: u64,
    claims_version: u64,
}

/// The intervals, by origin, of which this node forwarded every write to the rest of its group.
#[derive(Debug, Default)]
pub(crate) struct ForwardedClaims {
    by_origin: BTreeMap<RunId, ForwardedClaim>,
    claims_version: u64,
    /// Incremented when a peer begins to be sent all forwarded rows. A flush that is arriving at that time extends no
    /// interval, because that peer may lack its first rows.
    pub(crate) routes_epoch: u64,
}

impl ForwardedClaims {
    /// A flush of an origin is complete, and every row of it is forwarded. It took what is merged of the origin from
    /// `before` to `after`.
    pub(crate) fn extend(&mut self, origin: RunId, before: u64, after: u64) {
        if before < after {
            let claim = self.by_origin.get(&origin).filter(|claim| claim.to == before);
            let from = claim.map_or(before, |claim| claim.from);
            self.insert(origin, from, after);
        }
    }

    /// The same for a flush of which not every row is forwarded: its interval ends, and the next one begins at `after`.
    pub(crate) fn interrupt(&mut self, origin: RunId, before: u64, after: u64) {
        if before < after {
            self.insert(origin, after, after);
        }
    }

    fn insert(&mut self, origin: RunId, from: u64, to: u64) {
        self.claims_version += 1;
        self.by_origin.insert(origin, ForwardedClaim { from, to, claims_version: self.claims_version });
        if self.by_origin.len() > FORWARDED_CLAIMS_MAX {
            let oldest = self.by_origin.iter().min_by_key(|(_, claim)| claim.claims_version);
            let oldest = oldest.map(|(origin, _)| *origin);
            oldest.map(|origin| self.by_origin.remove(&origin));
        }
    }
}

/// Which of the forwarded claims were sent to a peer.
#[derive(Debug, Default)]
pub(crate) struct SentClaims {
    /// The version of [`ForwardedClaims`] up to which claims were sent. `None`: the peer is not sent all forwarded
    /// rows.
    claims_version: Option<u64>,
    /// By origin: the end of the last interval that was sent, or that ended before the peer was sent forwarded rows.
    ends: BTreeMap<RunId, u64>,
}

impl SentClaims {
    /// Whether claims may have changed since they were last sent.
    pub(crate) fn is_behind(&self, forwarded_claims: &ForwardedClaims) -> bool {
        self.claims_version.is_none_or(|version| version < forwarded_claims.claims_version)
    }

    /// From now on the peer is sent all forwarded rows. Claims begin at the ends of the present intervals.
    pub(crate) fn begin(&mut self, forwarded_claims: &mut ForwardedClaims) {
        if self.claims_version.is_none() {
            forwarded_claims.routes_epoch += 1;
            self.ends =
                forwarded_claims.by_origin.iter().map(|(origin, claim)| (*origin, claim.to)).collect();
            self.claims_version = Some(forwarded_claims.claims_version);
        }
    }

    /// Writes the intervals that a flush end of this instant can claim beside the sender's own origin.
    pub(crate) fn write(&mut self, forwarded_claims: &ForwardedClaims, writer: &mut Writer) {
        let mut news = Vec::new();
        if let Some(version) = self.claims_version {
            for (origin, claim) in
                forwarded_claims.by_origin.iter().filter(|(_, claim)| claim.claims_version > version)
            {
                let sent = self.ends.insert(*origin, claim.to);
                let from = claim.from.max(sent.unwrap_or(0));
                if from < claim.to {
                    news.push((*origin, from, claim.to));
                }
            }
            if self.ends.len() > FORWARDED_CLAIMS_MAX {
                self.ends.retain(|origin, _| forwarded_claims.by_origin.contains_key(origin));
            }
            self.claims_version = Some(forwarded_claims.claims_version);
        }
        writer.varint(news.len() as u64);
        for (origin, from, to) in news {
            writer.run(origin);
            writer.u64_le(from);
            writer.u64_le(to);
        }
    }
}

/// Reads the intervals (origin, from, to) of a flush end.
pub(crate) fn read_intervals(reader: &mut Reader<'_>) -> Result<Vec<(RunId, u64, u64)>, WireError> {
    let count = reader.count(24)?;
    let one = |_| {
        let (origin, from, to) = (reader.run()?, reader.u64_le()?, reader.u64_le()?);
        reader.check_claim(Stamp { clock: to, origin })?;
        Ok((origin, from, to))
    };
    (0..count).map(one).collect()
}

/// Claims the intervals that a peer sent, if this replica has everything up to their beginning.
pub(crate) fn claim_intervals(store: &mut LocalStore, intervals: &[(RunId, u64, u64)]) {
    for (origin, from, to) in intervals {
        if store.coverage.vector().get(*origin) >= *from || store.controls.has(Control::ForwardedUnchecked) {
            store.coverage.claim(Stamp { clock: *to, origin: *origin });
        }
    }
}
