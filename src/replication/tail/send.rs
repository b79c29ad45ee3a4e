//! The sending half of a link's tail.

use super::contexts::RowContexts;
use super::{DONE, END, LARGE_ROW, TAIL_ROW};
use crate::controls::Control;
use crate::id::LogId;
use crate::replication::claims::{Claim, ForwardedClaims, SentClaims};
use crate::replication::large::{self, LargeRowSender, ResumeOffer, Size};
use crate::replication::rows::context_of;
use crate::replication::vectors::OldParts;
use crate::store::LocalStore;
use crate::store::change_log::LogFilter;
use crate::store::coverage::Vector;
use crate::time::Stamp;
use crate::wire::{Kind, LargeRowStream, Writer};

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
    /// The vector as the peer was last sent it.
    sent_vector: Vector,
    /// The same for large rows, which travel on another lane.
    sent_with_larges: Vector,
    /// A row was too large to be sent: rows go on, claims wait for a new link.
    claims_suspended: bool,
    sent_claims: SentClaims,
    contexts: RowContexts,
    larges: LargeRowSender,
    /// Rows sent so far.
    pub(crate) rows: u64,
    /// Rows were sent, and their flush end was not.
    is_flush_open: bool,
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
    pub(crate) old_parts: &'a OldParts,
    /// The peer reads which large rows travel beside the tail.
    pub(crate) names_large_rows: bool,
}

impl TailSender {
    /// The peer stated its position. Returns whether the tail can go on from there.
    pub(crate) fn resume(&mut self, store: &LocalStore, log: LogId, position: u64) -> bool {
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
    pub(crate) fn lag(&self, store: &LocalStore, filter: LogFilter) -> u64 {
        if self.has_all(store, filter) {
            return 0;
        }
        // Each key stands in the log once, however often it changed.
        let most = (store.len() + store.log.removals()) as u64;
        let behind = store.log.head() - self.cursor.min(store.log.head());
        if self.is_running() { behind.min(most) } else { 0 }
    }

    /// Whether nothing that passes the filter changed since the last flush end. Then the cursor does not matter.
    fn has_all(&self, store: &LocalStore, filter: LogFilter) -> bool {
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
        store: &mut LocalStore,
        old_parts: &OldParts,
        hint: &mut Option<ResumeOffer>,
    ) -> Option<Vec<u8>> {
        let is_first = self.larges.is_between_rows();
        let told = (old_parts, &self.sent_with_larges);
        let piece = self.larges.next_piece(store, LargeRowStream::Tail, told, hint)?;
        if is_first {
            self.sent_with_larges = store.coverage.vector().clone();
        }
        Some(piece)
    }

    /// The next frame, if there is something to send.
    pub(crate) fn next_frame(
        &mut self,
        store: &mut LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        wanted: &mut TailWants<'_>,
    ) -> Option<Vec<u8>> {
        let head = store.log.head();
        let filter = wanted.filter;
        self.begin_claims(forwarded_claims, filter);
        let is_asking = self.has_asks(head, forwarded_claims, wanted);
        if !self.has_frame(store, forwarded_claims, wanted, is_asking) {
            return None;
        }
        self.contexts.begin();
        let mut writer = Writer::new(Kind::Tail);
        let vector = store.coverage.vector().clone();
        writer.vector_news(&wanted.old_parts.news(store, &self.sent_vector));
        let WrittenRows { rows, cursor } = self.write_rows(store, wanted, &mut writer)?;
        self.cursor = cursor;
        self.rows += rows;
        self.is_flush_open |= rows > 0;
        if cursor < head || self.claims_suspended {
            writer.byte(END);
        } else if self.is_flush_open || wanted.bare_claim || is_asking {
            self.is_flush_open = false;
            let asks_own = wanted.ack.take_if(|revision| *revision <= head).is_some();
            writer.byte(DONE);
            writer.varint(head);
            writer.varint(self.larges.queued);
            let last = Stamp { clock: store.coverage.vector().get(store.run), origin: store.run };
            self.sent_claims.write(forwarded_claims, Claim::own(last, asks_own), &mut writer);
            self.claimed = head;
        }
        if store.controls.has(Control::ForwarderClaimsAll) {
            writer.byte(u8::from(filter == LogFilter::Forwarded));
        }
        if rows == 0 && self.claimed < head && cursor == head {
            return None;
        }
        self.sent_vector = vector;
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

    /// Whether a claim that asks for an acknowledgement waits to be sent.
    fn has_asks(&self, head: u64, forwarded_claims: &ForwardedClaims, wanted: &TailWants<'_>) -> bool {
        let is_own = wanted.ack.is_some_and(|revision| revision <= head);
        !self.claims_suspended && (is_own || self.sent_claims.lacks_asks(forwarded_claims))
    }

    /// Whether there are rows or claims to be sent.
    fn has_frame(
        &mut self,
        store: &LocalStore,
        forwarded_claims: &ForwardedClaims,
        wanted: &TailWants<'_>,
        is_asking: bool,
    ) -> bool {
        let (head, floor, filter) = (store.log.head(), store.log.floor(), wanted.filter);
        if self.is_running() && self.has_all(store, filter) {
            let is_worth_it = head - self.claimed >= BARE_CLAIM_CHANGES
                || self.claimed < floor
                || (filter == LogFilter::Forwarded && self.sent_claims.is_behind(forwarded_claims));
            if !(is_asking || (wanted.bare_claim && is_worth_it)) {
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
        self.cursor != head || is_asking || (wanted.bare_claim && self.claimed < head)
    }

    /// Writes the rows from the cursor on, as many as one frame takes. `None`: the store is damaged, nothing may be
    /// sent.
    fn write_rows(
        &mut self,
        store: &mut LocalStore,
        wanted: &TailWants<'_>,
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
            let passes_filter = match wanted.filter {
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
                    let number = self.larges.enqueue(row.dot_set.key());
                    if wanted.names_large_rows {
                        writer.byte(LARGE_ROW);
                        writer.varint(number);
                        writer.bytes(row.dot_set.key());
                    }
                    written.rows += 1;
                }
                Size::TooLarge => self.claims_suspended = true,
            }
        }
        Some(written)
    }
}
