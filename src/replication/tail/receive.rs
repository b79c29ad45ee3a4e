//! The receiving half of a link's tail.

use std::collections::VecDeque;

use super::contexts::RowContexts;
use super::{DONE, END, LARGE_ROW, TAIL_ROW};
use crate::controls::{Control, Controls};
use crate::id::{LogId, RunId};
use crate::replication::arrived::{ARRIVED_MAX, Arrived};
use crate::replication::claims::{self, Claim, ForwardedClaims};
use crate::replication::large::{LargeRowReceiver, PartialRow};
use crate::replication::rows::{self, RefusedRow, refused_row};
use crate::store::coverage::{BeyondOwn, Clocks, Vector};
use crate::store::slab::ChangeOrigin;
use crate::store::{LocalStore, PeerRow};
use crate::time::{Stamp, Time};
use crate::wire::{Piece, Reader, WireError};

/// Claims of one link that wait for large rows.
const WAITING_CLAIMS_MAX: usize = 4_096;

/// The receiving half of a link's tail.
#[derive(Debug, Default)]
pub(crate) struct TailReceiver {
    /// The sender's vector as of its latest frame.
    vector: Vector,
    /// The sender's vector as of its latest large row.
    vector_of_larges: Vector,
    /// The part of `vector` beyond this replica's own vector, as of the latest frame.
    beyond_own: BeyondOwn,
    /// A row was refused. No flush end of this link is claimed any more.
    pub(crate) has_refused: bool,
    /// The latest frame did not end a flush: more is on its way.
    in_flux: bool,
    open_flush: OpenFlush,
    contexts: RowContexts,
    larges: LargeRowReceiver,
    /// Pieces of large rows received so far.
    pub(crate) pieces: u64,
    /// Flush ends that wait for large rows: at most the oldest and the latest.
    ends_waiting: VecDeque<FlushEnd>,
    /// Wall clock time at which the link was established. Older writes are not counted as arrivals.
    pub(crate) since_ms: u64,
}

/// Whether the rows since the last claimed flush end can extend the interval that is claimed of the sender's origin.
#[derive(Debug, Default)]
struct OpenFlush {
    /// A row changed nothing here, or is not to be forwarded. So this node does not forward the whole flush.
    has_gap: bool,
    /// [`ForwardedClaims::routes_epoch`] when the first row arrived.
    routes_epoch: Option<u64>,
}

/// The end of a flush, with what it claims.
#[derive(Debug)]
struct FlushEnd {
    /// The claims hold once all large rows up to this number have arrived.
    larges: u64,
    head: u64,
    /// The last one is the sender's own.
    claims: Vec<Claim>,
}

/// The sender of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailPeer {
    pub(crate) log: LogId,
    pub(crate) run: RunId,
    /// The sender belongs to another group: its rows are forwarded in this node's group.
    pub(crate) is_other_group: bool,
    /// The sender is in this node's group and forwards the writes of other groups, so it may claim these. Forwarded
    /// claims of other senders are ignored: two nodes may disagree for a moment about who is in which group.
    pub(crate) forwards: bool,
}

impl TailPeer {
    fn may_claim(self, controls: Controls, origin: RunId) -> bool {
        self.forwards || origin == self.run || controls.has(Control::ForwardedFromAnybody)
    }
}

/// The result of merging a frame or a piece.
#[derive(Debug, Default)]
pub(crate) struct TailOutcome {
    pub(crate) refusals: Vec<RefusedRow>,
    /// Rows that were merged, and how many of them changed something.
    pub(crate) rows: usize,
    pub(crate) new: usize,
    /// The sender wants acknowledgements of these events, which were claimed.
    pub(crate) asked: Vec<Stamp>,
}

/// State outside the store and the link that merging a frame changes.
#[derive(Debug)]
pub(crate) struct News<'a> {
    pub(crate) forwarded_claims: &'a mut ForwardedClaims,
    pub(crate) arrived: &'a mut Vec<Arrived>,
}

impl TailReceiver {
    /// Merges a frame.
    pub(crate) fn handle_frame(
        &mut self,
        store: &mut LocalStore,
        news: &mut News<'_>,
        now: Time,
        sender: TailPeer,
        mut reader: Reader<'_>,
    ) -> Result<TailOutcome, WireError> {
        // Taken instead of copied: if the frame is malformed, the link is broken and the vector is not needed again.
        let mut vector = std::mem::take(&mut self.vector);
        let told_vector = reader.vector_news()?;
        rows::take_news(&store.coverage, &mut vector, &told_vector)?;
        self.contexts.begin();
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        let done = loop {
            match reader.byte()? {
                TAIL_ROW => {
                    let dot_set = reader.dot_set()?;
                    let context = self.contexts.read(store.controls, &mut reader)?;
                    match dot_set {
                        Ok(dot_set) => rows.push(PeerRow { dot_set, vector: vector.clone(), context }),
                        Err(why) => refusals.push(refused_row(b"", why)),
                    }
                }
                LARGE_ROW => {
                    let number = reader.varint()?;
                    self.larges.expect(number, reader.bytes()?)?;
                }
                END => break None,
                DONE => {
                    let (head, larges) = (reader.varint()?, reader.varint()?);
                    let claims = claims::read_claims(&mut reader, sender.run)?;
                    break Some(FlushEnd { larges, head, claims });
                }
                _ => return Err(WireError::Form),
            }
        };
        let claims_all = store.controls.has(Control::ForwarderClaimsAll) && reader.byte()? == 1;
        reader.end()?;
        self.vector = vector;
        self.in_flux = done.is_none();
        let had_refused = self.has_refused;
        let (rows, mut merged) = self.merge_acceptable(store, news, now, sender, rows, refusals);
        let withheld = match store.controls {
            controls if controls.has(Control::ClaimDespiteRefusal) => had_refused,
            controls if controls.has(Control::DoneAfterRefusal) => !merged.refusals.is_empty(),
            _ => self.has_refused,
        };
        if let Some(done) = done.filter(|_| !withheld) {
            if claims_all {
                store.coverage.claim_all(&self.vector);
            }
            merged.asked = self.on_flush_end(store, news.forwarded_claims, sender, done);
        }
        self.cover_rows(store, sender.run, &told_vector.entries, &rows);
        Ok(merged)
    }

    /// Takes a piece of a large row. Merges a complete row, and claims the flush ends that waited for it.
    pub(crate) fn handle_piece(
        &mut self,
        store: &mut LocalStore,
        news: &mut News<'_>,
        now: Time,
        sender: TailPeer,
        piece: Piece<'_>,
        partial: &mut Option<PartialRow>,
    ) -> Result<TailOutcome, WireError> {
        self.pieces += 1;
        let arrived = self.larges.handle_piece(&store.coverage, piece, &self.vector_of_larges, partial)?;
        let Some(arrived) = arrived else { return Ok(TailOutcome::default()) };
        self.vector_of_larges = arrived.vector;
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        match arrived.row {
            Ok(row) => rows.push(row),
            Err(why) => refusals.push(refused_row(b"", why)),
        }
        let (rows, mut merged) = self.merge_acceptable(store, news, now, sender, rows, refusals);
        if !self.has_refused {
            merged.asked = self.claim_waiting(store, news.forwarded_claims, sender);
        }
        for row in &rows {
            store.cover_row(row);
        }
        Ok(merged)
    }

    /// The part of an unfinished large row that has arrived, when the link ends.
    pub(crate) fn into_partial(self) -> Option<PartialRow> {
        self.larges.into_partial()
    }

    /// Merges the acceptable rows and returns them.
    fn merge_acceptable(
        &mut self,
        store: &mut LocalStore,
        news: &mut News<'_>,
        now: Time,
        sender: TailPeer,
        mut rows: Vec<PeerRow>,
        mut refusals: Vec<RefusedRow>,
    ) -> (Vec<PeerRow>, TailOutcome) {
        rows.retain(|row| match store.check_row(now, &row.dot_set) {
            Ok(()) => true,
            Err(why) => {
                refusals.push(refused_row(row.dot_set.key(), why));
                false
            }
        });
        let source = if sender.is_other_group { ChangeOrigin::Forwarded } else { ChangeOrigin::Learned };
        let mut new = 0;
        store.merge_rows(now, &rows, source, |row| {
            new += 1;
            if let Some(arrived) = Arrived::of(now, row, self.since_ms)
                && news.arrived.len() < ARRIVED_MAX
            {
                news.arrived.push(arrived);
            }
        });
        if !rows.is_empty() {
            self.open_flush.routes_epoch.get_or_insert(news.forwarded_claims.routes_epoch);
            self.open_flush.has_gap |= new < rows.len() || !sender.is_other_group;
        }
        self.has_refused |= !refusals.is_empty();
        let merged = TailOutcome { refusals, rows: rows.len(), new, asked: Vec::new() };
        (rows, merged)
    }

    /// Claims the end of a flush, or lets it wait for large rows.
    fn on_flush_end(
        &mut self,
        store: &mut LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        sender: TailPeer,
        mut done: FlushEnd,
    ) -> Vec<Stamp> {
        // Two are kept: the oldest, which can be claimed first, and the latest, which claims what those between would.
        if self.ends_waiting.len() == 2
            && let Some(passed) = self.ends_waiting.pop_back()
        {
            done.claims.splice(0..0, passed.claims);
            // Beyond the limit the oldest claims are not taken here; a repair takes them.
            done.claims.drain(..done.claims.len().saturating_sub(WAITING_CLAIMS_MAX));
        }
        self.ends_waiting.push_back(done);
        self.claim_waiting(store, forwarded_claims, sender)
    }

    /// Takes the claims that wait for no large row any more. Returns the events whose acknowledgement is wanted.
    fn claim_waiting(
        &mut self,
        store: &mut LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        sender: TailPeer,
    ) -> Vec<Stamp> {
        let mut asked = Vec::new();
        let (arrived_up_to, unawaited) =
            (self.larges.arrived_up_to, store.controls.has(Control::LargesUnawaited));
        while self.ends_waiting.front().is_some_and(|done| done.larges <= arrived_up_to || unawaited)
            && let Some(done) = self.ends_waiting.pop_front()
        {
            self.extend_forwarded(store, forwarded_claims, sender, &done);
            if store.controls.has(Control::TailClaimsAll) {
                store.coverage.claim_all(&self.vector);
            }
            let controls = store.controls;
            for claim in done.claims.iter().filter(|claim| sender.may_claim(controls, claim.origin)) {
                claim.take(store);
                asked.extend(claim.is_asked.then_some(claim.last()));
            }
            store.raise_position(sender.log, done.head);
        }
        asked
    }

    /// The sender's own claim, if it waits only for large rows whose keys do not have this prefix. At keys with the prefix
    /// everything that the sender wrote up to the claim has arrived. `None` also if the key of an awaited row is unknown.
    #[cfg(any(feature = "json", feature = "node", test))]
    pub(crate) fn claim_below(&self, controls: Controls, prefix: &[u8]) -> Option<Stamp> {
        let done = self.ends_waiting.back().filter(|_| !self.has_refused)?;
        let is_elsewhere =
            self.larges.are_elsewhere(done.larges, prefix) || controls.has(Control::LargesElsewhere);
        is_elsewhere.then(|| done.claims.last().expect("a flush end has the sender's own claim").last())
    }

    /// The origins of the claims that wait only for large rows. One may be given several times.
    #[cfg(any(feature = "json", feature = "node"))]
    pub(crate) fn awaited_origins(
        &self,
        controls: Controls,
        sender: TailPeer,
    ) -> impl Iterator<Item = RunId> + '_ {
        let claims = self.ends_waiting.iter().filter(|_| !self.has_refused).flat_map(|done| &done.claims);
        claims.map(|claim| claim.origin).filter(move |origin| sender.may_claim(controls, *origin))
    }

    /// How many names of large rows are kept that have not arrived.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept_names(&self) -> usize {
        self.larges.kept_names()
    }

    /// Whether more is on its way: a flush has not ended, or a flush end waits for large rows.
    pub(crate) fn in_flux(&self) -> bool {
        self.in_flux || !self.ends_waiting.is_empty()
    }

    /// Extends the interval of the sender's origin by a complete flush if all of it is forwarded; otherwise ends it.
    ///
    /// `open_flush` may already describe rows of later flushes too: their small rows may arrive before the large rows
    /// of this flush, and their large rows before its end. So it is reset only when no row of a later flush has
    /// arrived. Until then a gap in one flush also ends the intervals of those after it, which costs a repair but loses
    /// no write.
    fn extend_forwarded(
        &mut self,
        store: &LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        sender: TailPeer,
        done: &FlushEnd,
    ) {
        let has_gap = self.open_flush.has_gap && !store.controls.has(Control::ForwardedDespiteGap);
        if sender.is_other_group {
            let is_same_epoch = |epoch| epoch == forwarded_claims.routes_epoch;
            let own = done.claims.last().expect("a flush end has the sender's own claim");
            let (before, after) = (store.coverage.vector().get(sender.run), own.last().clock);
            if !has_gap && self.open_flush.routes_epoch.is_none_or(is_same_epoch) {
                forwarded_claims.extend(sender.run, before, after);
            } else {
                forwarded_claims.interrupt(sender.run, before, after);
            }
        }
        if !self.in_flux() && self.larges.arrived_up_to <= done.larges {
            self.open_flush = OpenFlush::default();
        }
    }

    /// Records what the rows cover beyond the vector. Nothing is recorded for a row that is covered by a held dot: one
    /// of the sender's origin, where its vector is beyond this replica's for that origin only. While the sender holds
    /// it, none of its later events is about that key, so the held dot itself says what is covered.
    fn cover_rows(&mut self, store: &mut LocalStore, run: RunId, told: &Clocks, rows: &[PeerRow]) {
        // Coverage here only grows, so only the entries of this frame can have come to lie beyond it.
        let beyond = self.beyond_own.update(told, store.coverage.vector()).clone();
        let is_own = beyond.iter().all(|(origin, _)| origin == run);
        for row in rows {
            let mut dots = row.dot_set.dots().iter();
            let is_covered_by_held = is_own && dots.any(|dot| dot.stamp().origin == run);
            if !is_covered_by_held || row.context.is_some() {
                store.cover_row_beyond(row, &beyond);
            }
        }
    }
}
