//! The tail: live replication along the change log, one ordered stream per link and direction.
//!
//! The sender keeps a cursor and no queue. The last frame of a flush carries its end, with the claims. Invariants:
//!
//! - A frame's rows, their contexts and its claims are of one instant. Nothing may be merged between writing them.
//! - A tail claims its sender's own origin, only in the frame that reaches the head, and only while every row of the
//!   link was sent and accepted. Under the same conditions it claims intervals of forwarded origins ([`claims`]).
//! - A claim that covers a large row waits for it ([`large`]). A cursor below the log's floor must never go on.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::controls::Control;
use crate::id::{LogId, RunId};
use crate::replication::arrived::{ARRIVED_MAX, Arrived};
use crate::replication::claims::{self, ForwardedClaims, SentClaims};
use crate::store::change_log::LogFilter;
use crate::store::coverage::{self, Clocks};
use crate::store::entry::{DotSet, readable_key};
use crate::store::slab::ChangeOrigin;
use crate::store::{PeerRow, Refusal, Store};
use crate::time::{Stamp, Time};
use crate::wire::{Kind, LargeRowStream, Piece, Reader, WireError, Writer};

mod contexts;
pub(crate) mod large;

use contexts::RowContexts;
use large::{LargeRowReceiver, LargeRowSender, PartialRow, ResumeOffer, Size};

const END: u8 = 0;
const TAIL_ROW: u8 = 1;
const DONE: u8 = 2;
/// The end of a flush that asks for an acknowledgement.
const DONE_ASKING: u8 = 3;

/// Forwarded intervals of one link that wait for large rows.
const WAITING_INTERVALS_MAX: usize = 4_096;

/// Log rows examined for one frame, sent or not. Bounds the work under the lock.
const FRAME_ROWS_MAX: usize = 16_384;

/// A flush end without rows is sent if it advances the peer's position over at least this many changes that the filter
/// excludes: after a new link, these need not be looked through or sent again.
const BARE_CLAIM_CHANGES: u64 = 1_024;

/// What this side may send on a link's live stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TailState {
    /// The peer has not stated its position in this log yet, or one from which the tail cannot go on.
    #[default]
    AwaitingPosition,
    /// Rows go out from the cursor on.
    Running,
    /// The log's floor passed the cursor, so that removals may be missing. Only a repair helps.
    Stranded,
}

/// The sending half of a link's tail.
#[derive(Debug, Default)]
pub(crate) struct TailSender {
    state: TailState,
    pub(crate) cursor: u64,
    /// The position of the last flush end that was sent on this link, or the position that the peer stated if that is
    /// greater. Filters count from here.
    claimed: u64,
    /// The version of the vector that the peer has.
    vector_version: u64,
    /// A row was too large to be sent: rows go on, claims wait for a new link.
    claims_suspended: bool,
    sent_claims: SentClaims,
    contexts: RowContexts,
    larges: LargeRowSender,
    /// Rows sent so far.
    pub(crate) rows: u64,
}

/// The rows written into a frame: how many, and how far the log was read.
struct WrittenRows {
    rows: u64,
    /// The last log position that was examined.
    cursor: u64,
}

/// What a link wants of the next frame of its tail.
#[derive(Debug)]
pub(crate) struct TailWants<'a> {
    /// Which rows the peer is sent.
    pub(crate) filter: LogFilter,
    /// A flush end without rows may be sent too.
    pub(crate) bare_claim: bool,
    /// The flush end that reaches this position asks for an acknowledgement.
    pub(crate) ack: &'a mut Option<u64>,
}

impl TailWants<'_> {
    fn allows_bare_claim(&self) -> bool {
        self.bare_claim || self.ack.is_some()
    }
}

impl TailSender {
    /// The peer stated its position. Returns whether the tail can go on from there.
    pub(crate) fn resume(&mut self, store: &Store, log: LogId, position: u64) -> bool {
        let from = self.cursor.max(position);
        let fits = log == store.log.id && position <= store.log.head() && from >= store.log.floor();
        if fits {
            self.cursor = from;
            self.claimed = self.claimed.max(position);
            self.state = TailState::Running;
        } else if self.is_running() {
            self.state = TailState::AwaitingPosition;
        }
        fits
    }

    /// Whether the peer has stated its position, so that new writes are sent to it at once.
    pub(crate) fn is_running(&self) -> bool {
        self.state == TailState::Running
    }

    /// Whether the floor has passed the cursor since the last call, so that a repair is needed.
    pub(crate) fn take_stranded(&mut self) -> bool {
        let is_stranded = self.state == TailState::Stranded;
        if is_stranded {
            self.state = TailState::AwaitingPosition;
        }
        is_stranded
    }

    /// The position up to which the peer was sent everything, flush end included. 0 while the tail is not running.
    pub(crate) fn claimed(&self) -> u64 {
        if self.is_running() { self.claimed } else { 0 }
    }

    /// How many changes the peer is behind. 0 for a peer that is being repaired or waits for a repair: its lag does not
    /// come from the speed of the writers.
    pub(crate) fn lag(&self, store: &Store, filter: LogFilter) -> u64 {
        if self.has_all(store, filter) {
            return 0;
        }
        // Each key stands in the log once, however often it changed.
        let most = (store.len() + store.log.removals()) as u64;
        let behind = store.log.head() - self.cursor.min(store.log.head());
        if self.is_running() { behind.min(most) } else { 0 }
    }

    /// Whether nothing that passes the filter changed since the last flush end. Then the cursor does not matter.
    fn has_all(&self, store: &Store, filter: LogFilter) -> bool {
        store.log.latest(filter) <= self.claimed && !store.controls.has(Control::OwnFromFrame)
    }

    /// Whether large rows wait to be sent or are being sent.
    pub(crate) fn has_larges(&self) -> bool {
        !self.larges.is_empty()
    }

    /// Whether the link must be polled after every step, not only when it was woken. While claims are suspended, an own
    /// event may be sent again after any change of its key, by any origin.
    pub(crate) fn always_poll(&self) -> bool {
        self.has_larges() || self.claims_suspended
    }

    /// The next piece of a large row, for the bulk lane.
    pub(crate) fn next_piece(
        &mut self,
        store: &mut Store,
        hint: &mut Option<ResumeOffer>,
    ) -> Option<Vec<u8>> {
        self.larges.next_piece(store, LargeRowStream::Tail, 0, hint)
    }

    /// The next frame, if there is something to send.
    pub(crate) fn next_frame(
        &mut self,
        store: &mut Store,
        forwarded_claims: &mut ForwardedClaims,
        wanted: TailWants<'_>,
    ) -> Option<Vec<u8>> {
        let head = store.log.head();
        let filter = wanted.filter;
        self.begin_claims(forwarded_claims, filter);
        if !self.has_frame(store, forwarded_claims, &wanted) {
            return None;
        }
        self.contexts.begin();
        let mut writer = Writer::new(Kind::Tail);
        writer.clock_entries(store.coverage.grown_since(self.vector_version));
        let WrittenRows { rows, cursor } = self.write_rows(store, filter, &mut writer)?;
        self.cursor = cursor;
        self.rows += rows;
        if cursor < head || self.claims_suspended {
            writer.byte(END);
        } else if rows > 0 || wanted.allows_bare_claim() {
            let is_asking = wanted.ack.take_if(|revision| *revision <= head).is_some();
            writer.byte(if is_asking { DONE_ASKING } else { DONE });
            writer.varint(head);
            writer.u64_le(store.coverage.vector().get(&store.run));
            writer.varint(self.larges.queued);
            self.sent_claims.write(forwarded_claims, &mut writer);
            self.claimed = head;
        }
        if store.controls.has(Control::ForwarderClaimsAll) {
            writer.byte(u8::from(filter == LogFilter::Forwarded));
        }
        if rows == 0 && self.claimed < head && cursor == head {
            return None;
        }
        self.vector_version = store.coverage.vector_version();
        Some(writer.finish())
    }

    /// Claims forwarded intervals from the time on at which all forwarded rows are sent over this link.
    fn begin_claims(&mut self, forwarded_claims: &mut ForwardedClaims, filter: LogFilter) {
        if filter != LogFilter::Forwarded {
            // The peer may lack forwarded rows from now on.
            self.sent_claims = SentClaims::default();
        } else if self.is_running() {
            // Before there is anything to send. Otherwise the first flush could not be claimed and would need a repair.
            self.sent_claims.begin(forwarded_claims);
        }
    }

    /// Whether there are rows or claims to be sent.
    fn has_frame(
        &mut self,
        store: &Store,
        forwarded_claims: &ForwardedClaims,
        wanted: &TailWants<'_>,
    ) -> bool {
        let (head, floor, filter) = (store.log.head(), store.log.floor(), wanted.filter);
        if self.is_running() && self.has_all(store, filter) {
            let is_worth_it = head - self.claimed >= BARE_CLAIM_CHANGES
                || self.claimed < floor
                || (filter == LogFilter::Forwarded && self.sent_claims.is_behind(forwarded_claims));
            if !(wanted.ack.is_some() || (wanted.bare_claim && is_worth_it)) {
                return false;
            }
            self.cursor = head;
        }
        if self.is_running() && self.cursor < floor && !store.controls.has(Control::FloorPassed) {
            self.state = TailState::Stranded;
        }
        if !self.is_running() {
            return false;
        }
        self.cursor != head || (wanted.allows_bare_claim() && self.claimed < head)
    }

    /// Writes the rows from the cursor on, as many as one frame takes. `None`: the store is damaged, nothing may be
    /// sent.
    fn write_rows(
        &mut self,
        store: &mut Store,
        filter: LogFilter,
        writer: &mut Writer,
    ) -> Option<WrittenRows> {
        let since = if store.controls.has(Control::OwnFromFrame) { self.cursor } else { self.claimed };
        let mut written = WrittenRows { rows: 0, cursor: store.log.head() };
        for (looked_at, (revision, row_id)) in store.log.rows_after(self.cursor).enumerate() {
            let is_full = !writer.has_room() || self.contexts.is_full();
            if is_full || looked_at == FRAME_ROWS_MAX {
                written.cursor = revision - 1;
                break;
            }
            let row = store.row(row_id);
            let passes_filter = match filter {
                LogFilter::Own => row.own_revision() > since,
                LogFilter::Forwarded => row.forwarded_revision() > since,
            };
            if !passes_filter {
                continue;
            }
            if row.dot_set.is_empty() && !store.key_adds_up(row.dot_set.key()) {
                store.is_damaged = true;
                return None;
            }
            match large::size(&row.dot_set) {
                Size::Small => {
                    writer.byte(TAIL_ROW);
                    writer.dot_set(&row.dot_set);
                    self.contexts.write(writer, context_of(store, &row.dot_set));
                    written.rows += 1;
                }
                Size::Large => {
                    _ = self.larges.enqueue(row.dot_set.key());
                    written.rows += 1;
                }
                Size::TooLarge => self.claims_suspended = true,
            }
        }
        Some(written)
    }
}

/// What the store covers at a key beyond its vector, as far as peers are sent it. `None` if that is nothing.
pub(crate) fn context_of(store: &Store, dot_set: &DotSet) -> Option<Arc<Clocks>> {
    if store.coverage.extra_count() == 0 || store.controls.has(Control::NoContext) {
        return None;
    }
    let context = store.coverage.context(dot_set.key(), store.hash_key.place(dot_set.key()))?;
    let context = store.coverage.told_to_peers(&context);
    (!context.dots.is_empty()).then(|| Arc::new(context))
}

/// A row that was refused: its readable key and the reason.
pub(crate) type RefusedRow = (String, Refusal);

pub(crate) fn refused_row(key: &[u8], why: Refusal) -> RefusedRow {
    let readable = crate::store::entry::key_is_well_formed(key);
    (if readable { readable_key(key).to_owned() } else { String::from_utf8_lossy(key).into_owned() }, why)
}

/// The receiving half of a link's tail.
#[derive(Debug, Default)]
pub(crate) struct TailReceiver {
    /// The sender's vector as of its latest frame.
    vector: Arc<Clocks>,
    /// The part of `vector` beyond this replica's own vector, as of the latest frame.
    beyond_own: Clocks,
    /// A row was refused. No flush end of this link is claimed any more.
    pub(crate) has_refused: bool,
    /// The sender asked for an acknowledgement.
    pub(crate) ack_wanted: bool,
    /// The latest frame did not end a flush: more is on its way.
    in_flux: bool,
    open_flush: OpenFlush,
    contexts: RowContexts,
    larges: LargeRowReceiver,
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
    stamp: Stamp,
    intervals: Vec<(RunId, u64, u64)>,
    ack_wanted: bool,
}

/// The sender of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailPeer {
    pub(crate) log: LogId,
    pub(crate) run: RunId,
    /// The sender belongs to another group: its rows are forwarded in this node's group.
    pub(crate) is_other_group: bool,
    /// The sender is in this node's group and forwards the writes of other groups, so it may claim their intervals.
    /// Intervals of other senders are ignored: two nodes may disagree for a moment about who is in which group.
    pub(crate) forwards: bool,
}

/// The result of merging a frame or a piece.
#[derive(Debug, Default)]
pub(crate) struct TailOutcome {
    pub(crate) refusals: Vec<RefusedRow>,
    /// Rows that were merged, and how many of them changed something.
    pub(crate) rows: usize,
    pub(crate) new: usize,
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
        store: &mut Store,
        news: &mut News<'_>,
        now: Time,
        sender: TailPeer,
        mut reader: Reader<'_>,
    ) -> Result<TailOutcome, WireError> {
        // Taken instead of copied: if the frame is malformed, the link is broken and the vector is not needed again.
        let mut vector = std::mem::take(&mut self.vector);
        let dots = reader.join_clocks(&mut vector)?;
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
                END => break None,
                tag @ (DONE | DONE_ASKING) => {
                    let (head, clock, larges) = (reader.varint()?, reader.u64_le()?, reader.varint()?);
                    let stamp = reader.check_claim(Stamp { clock, origin: sender.run })?;
                    let told = claims::read_intervals(&mut reader)?;
                    break Some(FlushEnd {
                        larges,
                        head,
                        stamp,
                        intervals: told,
                        ack_wanted: tag == DONE_ASKING,
                    });
                }
                _ => return Err(WireError::Form),
            }
        };
        let claims_all = store.controls.has(Control::ForwarderClaimsAll) && reader.byte()? == 1;
        reader.end()?;
        self.vector = vector;
        self.in_flux = done.is_none();
        let had_refused = self.has_refused;
        let (rows, merged) = self.merge_acceptable(store, news, now, sender, rows, refusals);
        let withheld = match store.controls {
            controls if controls.has(Control::ClaimDespiteRefusal) => had_refused,
            controls if controls.has(Control::DoneAfterRefusal) => !merged.refusals.is_empty(),
            _ => self.has_refused,
        };
        if let Some(done) = done.filter(|_| !withheld) {
            if claims_all {
                store.coverage.claim_all(&self.vector);
            }
            self.on_flush_end(store, news.forwarded_claims, sender, done);
        }
        self.cover_rows(store, sender.run, &dots, &rows);
        Ok(merged)
    }

    /// Takes a piece of a large row. Merges a complete row, and claims the flush ends that waited for it.
    pub(crate) fn handle_piece(
        &mut self,
        store: &mut Store,
        news: &mut News<'_>,
        now: Time,
        sender: TailPeer,
        piece: Piece<'_>,
        partial: &mut Option<PartialRow>,
    ) -> Result<TailOutcome, WireError> {
        let Some(arrived) = self.larges.handle_piece(piece, &Arc::default(), partial)? else {
            return Ok(TailOutcome::default());
        };
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        match arrived.row {
            Ok(row) => rows.push(row),
            Err(why) => refusals.push(refused_row(b"", why)),
        }
        let (rows, merged) = self.merge_acceptable(store, news, now, sender, rows, refusals);
        if !self.has_refused {
            self.claim_waiting(store, news.forwarded_claims, sender);
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
        store: &mut Store,
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
        let merged = TailOutcome { refusals, rows: rows.len(), new };
        (rows, merged)
    }

    /// Claims the end of a flush, or lets it wait for large rows.
    fn on_flush_end(
        &mut self,
        store: &mut Store,
        forwarded_claims: &mut ForwardedClaims,
        sender: TailPeer,
        mut done: FlushEnd,
    ) {
        // Two are kept: the oldest, which can be claimed first, and the latest, which claims what those between would.
        if self.ends_waiting.len() == 2
            && let Some(passed) = self.ends_waiting.pop_back()
        {
            done.ack_wanted |= passed.ack_wanted;
            done.intervals.splice(0..0, passed.intervals);
            // Beyond the limit the oldest intervals are not claimed here; a repair claims them.
            done.intervals.drain(..done.intervals.len().saturating_sub(WAITING_INTERVALS_MAX));
        }
        self.ends_waiting.push_back(done);
        self.claim_waiting(store, forwarded_claims, sender);
    }

    fn claim_waiting(&mut self, store: &mut Store, forwarded_claims: &mut ForwardedClaims, sender: TailPeer) {
        let (arrived_up_to, unawaited) =
            (self.larges.arrived_up_to, store.controls.has(Control::LargesUnawaited));
        while self.ends_waiting.front().is_some_and(|done| done.larges <= arrived_up_to || unawaited)
            && let Some(done) = self.ends_waiting.pop_front()
        {
            self.extend_forwarded(store, forwarded_claims, sender, &done);
            store.claim_tail(done.stamp, &self.vector);
            if sender.forwards {
                claims::claim_intervals(store, &done.intervals);
            }
            store.raise_position(sender.log, done.head);
            self.ack_wanted |= done.ack_wanted;
        }
    }

    /// Whether more is on its way: a flush has not ended, or a flush end waits for large rows.
    pub(crate) fn in_flux(&self) -> bool {
        self.in_flux || !self.ends_waiting.is_empty()
    }

    /// The peer asks for an acknowledgement: now, and again when the waiting flush ends have been claimed.
    pub(crate) fn note_ack_wanted(&mut self) {
        self.ack_wanted = true;
        if let Some(done) = self.ends_waiting.back_mut() {
            done.ack_wanted = true;
        }
    }

    /// Extends the interval of the sender's origin by a complete flush if all of it is forwarded; otherwise ends it.
    /// Rows of later flushes may have arrived before the large rows of this one, and large rows of later flushes before
    /// its end. `open_flush` describes these as well, so it is reset only when nothing is in flux.
    fn extend_forwarded(
        &mut self,
        store: &Store,
        forwarded_claims: &mut ForwardedClaims,
        sender: TailPeer,
        done: &FlushEnd,
    ) {
        let has_gap = self.open_flush.has_gap && !store.controls.has(Control::ForwardedDespiteGap);
        if sender.is_other_group {
            let is_same_epoch = |epoch| epoch == forwarded_claims.routes_epoch;
            let (before, after) = (store.coverage.vector().get(&sender.run), done.stamp.clock);
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
    fn cover_rows(&mut self, store: &mut Store, run: RunId, dots: &[Stamp], rows: &[PeerRow]) {
        // Coverage here only grows, so only the entries of this frame can have come to lie beyond it.
        let known = store.coverage.vector();
        self.beyond_own.dots.retain(|origin, clock| known.get(origin) < *clock);
        let new = dots.iter().filter(|dot| !coverage::covers(known, **dot));
        new.for_each(|dot| coverage::raise_clock(&mut self.beyond_own, *dot));
        let is_own = self.beyond_own.dots.keys().all(|origin| *origin == run);
        let mut beyond = None;
        for row in rows {
            let is_covered_by_held = is_own && row.dot_set.dots().iter().any(|dot| dot.stamp().origin == run);
            if !is_covered_by_held || row.context.is_some() {
                store.cover_row_beyond(row, beyond.get_or_insert_with(|| Arc::new(self.beyond_own.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::store::digest::HashKey;

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };

    fn store(run: u64) -> Store {
        Store::new(
            &Config::lan(),
            RunId::new(run),
            LogId::new(run * 10),
            HashKey::default(),
            Controls::default(),
        )
    }

    fn key(name: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        crate::store::entry::register_key(name, &mut stored);
        stored
    }

    /// Both ends of a link, for one direction.
    struct Tail {
        outgoing: TailSender,
        incoming: TailReceiver,
        sender: TailPeer,
        filter: LogFilter,
        /// Of the sender.
        forwarded_claims: ForwardedClaims,
    }

    impl Tail {
        fn new(from: &Store, filter: LogFilter) -> Self {
            let mut outgoing = TailSender::default();
            assert!(outgoing.resume(from, from.log.id, 0));
            let (is_far, passes_on) = (filter == LogFilter::Own, filter == LogFilter::Forwarded);
            let sender =
                TailPeer { log: from.log.id, run: from.run, is_other_group: is_far, forwards: passes_on };
            Self {
                outgoing,
                incoming: TailReceiver::default(),
                sender,
                filter,
                forwarded_claims: ForwardedClaims::default(),
            }
        }

        fn frame(&mut self, from: &mut Store) -> Vec<u8> {
            let wanted = TailWants { filter: self.filter, bare_claim: true, ack: &mut None };
            let frame = self.outgoing.next_frame(from, &mut self.forwarded_claims, wanted);
            frame.expect("there is something to send")
        }

        fn pieces(&mut self, from: &mut Store) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.outgoing.next_piece(from, &mut None)).collect()
        }

        /// Hands frames and pieces to the other end, which records in `forwarded_claims` what it may claim.
        fn hand(&mut self, to: &mut Store, forwarded_claims: &mut ForwardedClaims, sent: &[Vec<u8>]) {
            for bytes in sent {
                let mut news = News { forwarded_claims: &mut *forwarded_claims, arrived: &mut Vec::new() };
                let mut assembler = crate::wire::Assembler::default();
                assembler.feed(bytes);
                let (kind, reader) = Reader::new(assembler.next().unwrap().unwrap()).unwrap();
                let merged = match kind {
                    Kind::Piece => {
                        let piece = Piece::read(reader).unwrap();
                        self.incoming.handle_piece(to, &mut news, NOW, self.sender, piece, &mut None)
                    }
                    _ => self.incoming.handle_frame(to, &mut news, NOW, self.sender, reader),
                };
                merged.unwrap();
            }
        }
    }

    #[test]
    fn row_known_to_a_delegate_ends_its_forwarded_claim() {
        let large = vec![b'x'; 70_000];
        for is_ahead in [false, true] {
            let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
            let mut far = Tail::new(&writer, LogFilter::Own);
            let mut near = Tail::new(&delegate, LogFilter::Forwarded);
            writer.put(NOW, &key("first"), b"v", 0);
            let first = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.forwarded_claims, &[first]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
            // The mate has repaired with the writer, and is sent forwarded rows by the delegate.
            let row = |key: &[u8], from: &Store| {
                let dot_set = from.dot_set(key).expect("it is held").0.clone();
                PeerRow { dot_set, vector: Arc::default(), context: None }
            };
            writer.put(NOW, &key("large"), &large, 0);
            mate.merge_rows(NOW, &[row(&key("large"), &writer)], ChangeOrigin::Learned, |_| ());
            mate.coverage.claim_all(writer.coverage.vector());
            let mut live = vec![far.frame(&mut writer)];
            // The delegate learned this row from another peer and does not forward it.
            let known = writer.put(NOW, &key("known"), if is_ahead { &large } else { b"small" }, 0).0;
            delegate.merge_rows(NOW, &[row(&key("known"), &writer)], ChangeOrigin::Learned, |_| ());
            live.push(far.frame(&mut writer));
            let pieces = far.pieces(&mut writer);
            if is_ahead {
                far.hand(&mut delegate, &mut near.forwarded_claims, &pieces);
            }
            far.hand(&mut delegate, &mut near.forwarded_claims, &live);
            if !is_ahead {
                far.hand(&mut delegate, &mut near.forwarded_claims, &pieces);
            }
            assert!(delegate.coverage.vector().get(&RunId::new(1)) >= known.clock);

            let mut passed = vec![near.frame(&mut delegate)];
            passed.extend(near.pieces(&mut delegate));
            near.hand(&mut mate, &mut ForwardedClaims::default(), &passed);
            assert!(mate.dot_set(&key("large")).is_some() && mate.dot_set(&key("known")).is_none());
            assert!(!mate.covers(&key("known"), known), "it claims what it was not sent (ahead: {is_ahead})");

            // Once nothing is on its way, a new interval begins. A mate that has repaired then can take it.
            mate.coverage.claim_all(delegate.coverage.vector());
            let later = writer.put(NOW, &key("later"), b"v", 0).0;
            let frame = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.forwarded_claims, &[frame]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
            assert!(
                mate.dot_set(&key("later")).is_some()
                    && mate.coverage.vector().get(&RunId::new(1)) >= later.clock
            );
        }
    }

    #[test]
    fn first_flush_of_an_idle_link_needs_no_repair() {
        let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
        let mut far = Tail::new(&writer, LogFilter::Own);
        let mut near = Tail::new(&delegate, LogFilter::Forwarded);
        let wanted = TailWants { filter: near.filter, bare_claim: false, ack: &mut None };
        let idle = near.outgoing.next_frame(&mut delegate, &mut near.forwarded_claims, wanted);
        assert!(idle.is_none());
        let first = writer.put(NOW, &key("first"), b"v", 0).0;
        let frame = far.frame(&mut writer);
        far.hand(&mut delegate, &mut near.forwarded_claims, &[frame]);
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        assert_eq!(mate.coverage.vector().get(&RunId::new(1)), first.clock);
    }

    #[test]
    fn peer_that_missed_forwarded_rows_gets_no_claim_of_them() {
        let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
        let mut far = Tail::new(&writer, LogFilter::Own);
        let mut near = Tail::new(&delegate, LogFilter::Forwarded);
        let pass = |far: &mut Tail, near: &mut Tail, writer: &mut Store, delegate: &mut Store, name| {
            let stamp = writer.put(NOW, &key(name), b"v", 0).0;
            let frame = far.frame(writer);
            far.hand(delegate, &mut near.forwarded_claims, &[frame]);
            stamp
        };
        pass(&mut far, &mut near, &mut writer, &mut delegate, "first");
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        mate.coverage.claim_all(delegate.coverage.vector());

        near.filter = LogFilter::Own;
        let missed = pass(&mut far, &mut near, &mut writer, &mut delegate, "missed");
        (0..200).for_each(|i| _ = delegate.put(NOW, &key(&format!("own {i}")), &[b'x'; 1_000], 0));
        let part = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[part]);
        near.filter = LogFilter::Forwarded;
        while near.outgoing.cursor < delegate.log.head() {
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        }
        assert!(mate.dot_set(&key("own 199")).is_some() && mate.dot_set(&key("missed")).is_none());
        assert!(!mate.covers(&key("missed"), missed), "it claims what it was not sent");
    }
}
