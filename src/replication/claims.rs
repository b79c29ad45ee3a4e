//! Claims: what a flush end lets its receiver count as merged, and how the writes of one group reach all members of
//! another.
//!
//! A claim is an interval (origin, from, to): "a node that has everything of this origin up to *from* now has
//! everything up to *to*". A flush end carries a list of them. The last one is the sender's own: its *from* is 0,
//! because the position that the receiver stated stands for everything before. The others are *forwarded claims*:
//!
//! Above `mesh_members_max` members a node sends its own writes to its own group and to one delegate in every other
//! group (see [`crate::membership`]). The delegate's tail forwards them to the rest of its group. So every node gets
//! every write once, after at most two hops. The delegate cannot claim all of a forwarded origin: it may have merged
//! events of it that left no row in its log, or rows that its mates were never sent.
//!
//! Each claim may *ask*: the receiver then acknowledges at once that it has everything up to *to*
//! ([`questions`](super::questions)). A delegate passes an ask on with its own claim of that origin.
//!
//! # Invariants
//!
//! - A delegate extends the claim of an origin by a flush only if *every* row of the flush changed something here. Only
//!   then does each of these rows stand in its log and is forwarded.
//! - A row that changed nothing, a link that was not there yet, or a change of the groups ends the interval. The next
//!   one begins behind it. What lies between is claimed by a finished repair.
//! - A receiver takes a claim only if it has everything up to *from*.

use std::collections::BTreeMap;

use crate::controls::Control;
use crate::id::RunId;
use crate::store::LocalStore;
use crate::time::Stamp;
use crate::wire::{Reader, WireError, Writer};

/// A node that has everything of an origin up to `from` now has everything up to `to`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) origin: RunId,
    from: u64,
    to: u64,
    /// An acknowledgement of everything up to `to` is wanted at once.
    pub(crate) is_asked: bool,
}

impl Claim {
    /// The claim of a sender of its own origin.
    pub(crate) fn own(stamp: Stamp, is_asked: bool) -> Self {
        Self { origin: stamp.origin, from: 0, to: stamp.clock, is_asked }
    }

    /// The last event that it covers.
    pub(crate) fn last(self) -> Stamp {
        Stamp { clock: self.to, origin: self.origin }
    }

    /// Takes it, if this replica has everything up to its beginning.
    pub(crate) fn take(self, store: &mut LocalStore) {
        let has_before = store.coverage.vector().get(self.origin) >= self.from;
        let has_room = store.coverage.has_room_for_origin(self.origin);
        if self.to > 0 && has_room && (has_before || store.controls.has(Control::ForwardedUnchecked)) {
            store.coverage.claim(self.last());
        }
    }
}

/// Origins with a forwarded claim. If there are more, the claim that was extended longest ago is dropped.
const FORWARDED_CLAIMS_MAX: usize = 4_096;

/// The interval of one origin that this node forwarded completely.
#[derive(Clone, Copy, Debug)]
struct ForwardedClaim {
    from: u64,
    to: u64,
    claims_version: u64,
    /// The version at which the origin asked last, while its ask is open.
    asked: Option<u64>,
}

/// The intervals, by origin, of which this node forwarded every write to the rest of its group.
#[derive(Debug, Default)]
pub(crate) struct ForwardedClaims {
    by_origin: BTreeMap<RunId, ForwardedClaim>,
    claims_version: u64,
    /// The version of the latest ask.
    asks_version: u64,
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

    /// The origin asks who has everything up to `clock`, which this node has: its mates are asked in turn.
    pub(crate) fn ask(&mut self, origin: RunId, clock: u64) {
        let claim = self.by_origin.get(&origin);
        let (from, to) = claim.map_or((clock, clock), |claim| (claim.from, claim.to));
        self.insert(origin, from, to);
        self.asks_version = self.claims_version;
        self.by_origin.entry(origin).and_modify(|claim| claim.asked = Some(claim.claims_version));
    }

    /// All mates have answered.
    pub(crate) fn close_ask(&mut self, origin: RunId) {
        self.by_origin.entry(origin).and_modify(|claim| claim.asked = None);
    }

    fn insert(&mut self, origin: RunId, from: u64, to: u64) {
        self.claims_version += 1;
        let asked = self.by_origin.get(&origin).and_then(|claim| claim.asked);
        let claim = ForwardedClaim { from, to, claims_version: self.claims_version, asked };
        self.by_origin.insert(origin, claim);
        if self.by_origin.len() > FORWARDED_CLAIMS_MAX {
            let oldest = self.by_origin.iter().min_by_key(|(_, claim)| claim.claims_version);
            let oldest = oldest.map(|(origin, _)| *origin);
            oldest.map(|origin| self.by_origin.remove(&origin));
        }
    }

    fn has_open_asks(&self) -> bool {
        self.by_origin.values().any(|claim| claim.asked.is_some())
    }
}

/// Which of the forwarded claims were sent to a peer.
#[derive(Debug, Default)]
pub(crate) struct SentClaims {
    /// The version of [`ForwardedClaims`] up to which claims were sent. `None`: the peer is not sent all forwarded
    /// rows.
    claims_version: Option<u64>,
    /// The version up to which asks were sent.
    asks_version: u64,
    /// By origin: the end of the last interval that was sent, or that ended before the peer was sent forwarded rows.
    ends: BTreeMap<RunId, u64>,
}

impl SentClaims {
    /// Whether claims may have changed since they were last sent.
    pub(crate) fn is_behind(&self, forwarded_claims: &ForwardedClaims) -> bool {
        self.claims_version.is_none_or(|version| version < forwarded_claims.claims_version)
    }

    /// Whether an ask was not sent yet.
    pub(crate) fn lacks_asks(&self, forwarded_claims: &ForwardedClaims) -> bool {
        self.claims_version.is_some() && self.asks_version < forwarded_claims.asks_version
    }

    /// From now on the peer is sent all forwarded rows. Claims begin at the ends of the present intervals.
    pub(crate) fn begin(&mut self, forwarded_claims: &mut ForwardedClaims) {
        if self.claims_version.is_none() {
            forwarded_claims.routes_epoch += 1;
            self.ends =
                forwarded_claims.by_origin.iter().map(|(origin, claim)| (*origin, claim.to)).collect();
            self.claims_version = Some(forwarded_claims.claims_version);
            self.asks_version =
                if forwarded_claims.has_open_asks() { 0 } else { forwarded_claims.asks_version };
        }
    }

    /// Writes the claims of a flush end of this instant: forwarded ones, and last the sender's own.
    pub(crate) fn write(&mut self, forwarded_claims: &ForwardedClaims, own: Claim, writer: &mut Writer) {
        let mut forwarded = Vec::new();
        if let Some(version) = self.claims_version {
            for (origin, claim) in &forwarded_claims.by_origin {
                let is_asked = claim.asked.is_some_and(|asked| asked > self.asks_version);
                if claim.claims_version <= version && !is_asked {
                    continue;
                }
                let sent = self.ends.insert(*origin, claim.to);
                let from = claim.from.max(sent.unwrap_or(0));
                if from < claim.to || is_asked {
                    forwarded.push(Claim {
                        origin: *origin,
                        from: from.min(claim.to),
                        to: claim.to,
                        is_asked,
                    });
                }
            }
            if self.ends.len() > FORWARDED_CLAIMS_MAX {
                self.ends.retain(|origin, _| forwarded_claims.by_origin.contains_key(origin));
            }
            self.claims_version = Some(forwarded_claims.claims_version);
            self.asks_version = forwarded_claims.asks_version;
        }
        writer.flagged(forwarded.len() as u64, own.is_asked);
        for claim in forwarded {
            writer.run(claim.origin);
            writer.u64_le(claim.from);
            writer.flagged(claim.to - claim.from, claim.is_asked);
        }
        writer.u64_le(own.to);
    }
}

/// Reads the claims of a flush end. The last one is the sender's own.
pub(crate) fn read_claims(reader: &mut Reader<'_>, sender: RunId) -> Result<Vec<Claim>, WireError> {
    let (count, own_is_asked) = reader.flagged()?;
    if count > FORWARDED_CLAIMS_MAX as u64 {
        return Err(WireError::TooMany);
    }
    let mut claims = Vec::new();
    for _ in 0..count {
        let (origin, from) = (reader.run()?, reader.u64_le()?);
        let (len, is_asked) = reader.flagged()?;
        let to = from.checked_add(len).ok_or(WireError::Form)?;
        claims.push(Claim { origin, from, to, is_asked });
    }
    claims.push(Claim::own(Stamp { clock: reader.u64_le()?, origin: sender }, own_is_asked));
    claims.iter().try_for_each(|claim| reader.check_claim(claim.last()).map(drop))?;
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    #[test]
    fn origin_silent_for_longest_begins_its_interval_anew() {
        let mut claims = ForwardedClaims::default();
        let most = FORWARDED_CLAIMS_MAX as u64;
        (0..most).for_each(|origin| claims.extend(RunId::new(origin), 1, 2));
        // The first one is not silent any more, so that the second one is.
        claims.extend(RunId::new(0), 2, 3);
        claims.extend(RunId::new(most), 1, 2);
        assert_eq!(claims.by_origin.len(), FORWARDED_CLAIMS_MAX);
        assert!(!claims.by_origin.contains_key(&RunId::new(1)));
        [0, 1].into_iter().for_each(|origin| claims.extend(RunId::new(origin), 3, 4));
        let from = |origin| claims.by_origin[&RunId::new(origin)].from;
        assert_eq!((from(0), from(1)), (1, 3), "what the second one wrote before is left to a repair");
    }

    #[test]
    fn flush_end_with_more_claims_than_are_kept_is_refused() {
        let read = |count: u64| {
            let mut writer = Writer::new(Kind::Tail);
            writer.flagged(count, false);
            for origin in 0..count {
                writer.run(RunId::new(origin));
                writer.u64_le(1);
                writer.flagged(1, false);
            }
            writer.u64_le(9);
            let frame = writer.finish();
            let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
            read_claims(&mut reader, RunId::new(7)).map(|claims| claims.len())
        };
        assert_eq!(read(FORWARDED_CLAIMS_MAX as u64), Ok(FORWARDED_CLAIMS_MAX + 1), "and the sender's own");
        assert_eq!(read(FORWARDED_CLAIMS_MAX as u64 + 1), Err(WireError::TooMany));
    }
}
