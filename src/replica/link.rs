//! One link to a peer, as the replica sees it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::VALUE_BYTES_CEILING;
use crate::membership::Route;
use crate::replica::Lane;
use crate::replica::receipts::CoverageQuestions;
use crate::replication::claims::ForwardedClaims;
use crate::replication::repair::RepairSession;
use crate::replication::tail::large::{PartialRow, ResumeOffer};
use crate::replication::tail::{TailPeer, TailReceiver, TailSender};
use crate::store::Store;
use crate::store::change_log::LogFilter;
use crate::time::Time;
use crate::wire::{Assembler, Kind, Writer};

#[derive(Debug, Default)]
pub(super) struct Link {
    /// The peer's log and run, once it said hello.
    pub(super) peer: Option<(u64, u64)>,
    /// Which run is at the other end, where members are kept.
    pub(super) run: Option<u64>,
    /// What the link is for.
    pub(super) route: Route,
    /// Frames about members.
    messages: VecDeque<Vec<u8>>,
    pub(super) coverage_questions: CoverageQuestions,
    pub(super) has_sent_hello: bool,
    /// The position to state, when it is time to.
    pub(super) owes_ack: bool,
    pub(super) tail_sender: TailSender,
    pub(super) tail_receiver: TailReceiver,
    pub(super) session: Option<RepairSession>,
    pub(super) wants_session: bool,
    pub(super) live: Assembler,
    pub(super) bulk: Assembler,
    pub(super) in_flight: [usize; 2],
    pub(super) wants_flush: bool,
    /// Whose turn it is to fill the bulk lane.
    pub(super) bulk_next: usize,
    /// What is here of a large row of the peer whose transfer was broken off, and whether the peer is to be told. It is
    /// not replaced before the peer has made use of it: then both know of the same.
    pub(super) partial: Option<PartialRow>,
    pub(super) tells_partial: bool,
    /// The same of a large row of ours, as the peer told.
    pub(super) resume_offer: Option<ResumeOffer>,
    pub(super) checks: VecDeque<Vec<u8>>,
    /// How often in a row the peer's digest differed, and when to look again.
    pub(super) mismatches: u32,
    pub(super) check_at: Option<Duration>,
    /// When the first check was sent that no answer has followed.
    pub(super) check_sent_at: Option<Duration>,
    /// Since when differences do not count, because the tail is about to remove them.
    pub(super) suppressed_since: Option<Duration>,
    /// When the live stream last took something, and when it last brought something.
    pub(super) sent_at: Duration,
    pub(super) received_at: Duration,
    /// Repairs that taught nothing put the next one off.
    pub(super) backoff: u32,
    pub(super) no_session_before: Duration,
    pub(super) break_at: Option<Duration>,
    /// The peer claimed what it cannot know: what it sends on its streams is not read any more.
    pub(super) is_distrusted: bool,
    /// Somebody waits until the peer has everything up to here.
    pub(super) ack_wanted: Option<u64>,
    /// Up to where the peer said that it has everything.
    pub(super) acked: u64,
    /// The session was given up for now: the peer is to be told, and what it sent before it knew is ignored.
    pub(super) owes_deferral: bool,
    pub(super) is_deferred: bool,
    /// How often either side has put the other one off. A start tells how many of them its sender knew of: an older
    /// one belongs to a session that is void, and so does everything up to the next one.
    pub(super) deferrals_sent: u64,
    pub(super) deferrals_received: u64,
    /// How often the peer has stalled as a donor.
    pub(super) stalls: u32,
    /// This replica has compared everything with the peer, or knew that it need not.
    pub(super) is_compared: bool,
    /// The flushes that were sent and are not confirmed, and since when rows are being sent that no `done` has followed.
    unacked: VecDeque<UnackedFlush>,
    flushing_since: Option<Duration>,
    /// How long confirmations have taken lately, the slowest of them.
    ack_rtt: Duration,
    /// The confirmation did not come in time.
    is_ack_overdue: bool,
    /// Rows came that are not confirmed, and when to do so.
    pub(super) has_unacked_rows: bool,
    pub(super) ack_at: Option<Duration>,
    /// When it has to be seen to, while it rests.
    pub(super) idle_deadline: Option<Duration>,
}

/// A flush that was sent.
#[derive(Debug)]
struct UnackedFlush {
    /// The peer has it all when it says that it has everything up to here.
    revision: u64,
    /// When its first row was sent, and when its end.
    since: Duration,
    ended: Duration,
}

/// Frames about members that may wait for a peer that does not read when one more answer is added.
const MESSAGES_MAX: usize = 1_024;

/// Flushes whose times are kept apart. Of more, the latest count as one.
const UNACKED_FLUSHES_MAX: usize = 64;

/// A peer whose confirmation is overdue for this part of a sync interval is late; or, over a link on which they take
/// longer, for so many times that, up to so many intervals. Who is late has its work done by another as well: where
/// that is due to links that are full, it would fill them further, and they would never be empty again.
const ACK_PATIENCE_DIVISOR: u32 = 2;
const ACK_PATIENCE_FACTOR: u32 = 2;
const ACK_PATIENCE_INTERVALS_MAX: u32 = 16;

/// After the end of a flush, how long until the receiver confirms it, unless it has something else to send before: a
/// delegate soon, since others depend on it, and everybody else in so large a part of a sync interval. What comes
/// meanwhile is confirmed with it.
const ACK_DELAY_OTHER_GROUP: Duration = Duration::from_millis(20);
const ACK_DELAY_DIVISOR: u32 = 2;

/// Bytes that are kept of one large row.
pub(super) const PARTIAL_BYTES_MAX: usize = VALUE_BYTES_CEILING;

/// For so many times its time a session may make no progress while live writes do.
const STALL_FACTOR_BUSY: u32 = 12;

impl Link {
    pub(super) fn new(route: Route) -> Self {
        Self { route, ..Self::default() }
    }

    /// The next frame of the live stream.
    pub(super) fn next_live_frame(
        &mut self,
        store: &mut Store,
        forwarded_claims: &mut ForwardedClaims,
        now: Duration,
    ) -> Option<Vec<u8>> {
        if !self.has_sent_hello {
            self.has_sent_hello = true;
            let mut writer = Writer::new(Kind::Hello);
            writer.u64_le(store.log.id);
            writer.u64_le(store.run);
            writer.u64_le(store.coverage.vector_hash());
            return Some(writer.finish());
        }
        if let Some(frame) = self.messages.pop_front().or_else(|| self.coverage_questions.next_message()) {
            return Some(frame);
        }
        let (log, _) = self.peer?;
        if std::mem::take(&mut self.tells_partial)
            && let Some(partial) = &self.partial
        {
            return Some(partial.frame());
        }
        if std::mem::take(&mut self.owes_ack) {
            self.is_compared = true;
            self.ack_at = None;
            let mut writer = Writer::new(Kind::Ack);
            writer.u64_le(log);
            writer.varint(store.completed(log));
            return Some(writer.finish());
        }
        if !self.route.feeds && self.ack_wanted.is_none() {
            return None;
        }
        let flush = std::mem::take(&mut self.wants_flush);
        let (rows, told) = (self.tail_sender.rows, self.tail_sender.claimed());
        let frame = self.tail_sender.next_frame(
            store,
            forwarded_claims,
            self.route.filter,
            flush,
            &mut self.ack_wanted,
        );
        if self.tail_sender.rows > rows {
            self.flushing_since.get_or_insert(now);
        }
        if self.tail_sender.claimed() > told
            && let Some(since) = self.flushing_since.take()
        {
            self.push_unacked(UnackedFlush { revision: self.tail_sender.claimed(), since, ended: now });
        }
        if frame.is_some() {
            // In the same packet.
            self.owes_ack |= self.ack_at.is_some();
            return frame;
        }
        self.ack_wanted.take_if(|revision| *revision <= self.tail_sender.claimed())?;
        Some(Writer::new(Kind::AckRequest).finish())
    }

    /// Whose rows come over this link.
    pub(super) fn tail_peer(&self, log: u64, run: u64) -> TailPeer {
        let passes_on = self.run.is_none() || self.route.filter == LogFilter::Forwarded;
        TailPeer { log, run, is_other_group: self.route.is_other_group, forwards: passes_on }
    }

    /// Sends frames about members, unless too many wait already: rosters are compared again with the next checks.
    pub(super) fn push_messages(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        if self.messages.len() < MESSAGES_MAX {
            self.messages.extend(frames);
        }
    }

    pub(super) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    fn push_unacked(&mut self, due: UnackedFlush) {
        let is_full = self.unacked.len() == UNACKED_FLUSHES_MAX;
        match self.unacked.back_mut().filter(|_| is_full) {
            Some(last) => *last = UnackedFlush { since: last.since, ..due },
            None => self.unacked.push_back(due),
        }
    }

    /// Since when the peer has not confirmed something that it was sent.
    pub(super) fn unacked_since(&self) -> Option<Duration> {
        self.unacked.front().map(|due| due.since).or(self.flushing_since)
    }

    /// How long a confirmation is delayed over this link.
    pub(super) fn ack_delay(&self, interval: Duration) -> Duration {
        let usual = interval / ACK_DELAY_DIVISOR;
        if self.route.is_other_group { usual.min(ACK_DELAY_OTHER_GROUP) } else { usual }
    }

    /// When the peer will be late with its confirmation. One that is in the middle of a long flush is not, as long as it
    /// takes what it is sent.
    fn ack_timeout_at(&self, interval: Duration) -> Option<Duration> {
        let due = self.unacked.front().map(|due| due.ended).or(self.flushing_since.map(|_| self.sent_at))?;
        let usual = (self.ack_rtt * ACK_PATIENCE_FACTOR).min(interval * ACK_PATIENCE_INTERVALS_MAX);
        let patience = usual.max(interval / ACK_PATIENCE_DIVISOR);
        Some(due + self.ack_delay(interval) + patience).filter(|_| !self.is_ack_overdue)
    }

    /// Whether it has just become late.
    pub(super) fn times_out(&mut self, now: Duration, interval: Duration) -> bool {
        let is_late = self.ack_timeout_at(interval).is_some_and(|at| at <= now);
        self.is_ack_overdue |= is_late;
        is_late
    }

    /// The peer has confirmed everything up to some revision.
    pub(super) fn ack_received(&mut self, now: Duration, up_to: u64) {
        self.acked = self.acked.max(up_to);
        self.is_ack_overdue = false;
        while let Some(due) = self.unacked.front().filter(|due| due.revision <= up_to) {
            self.ack_rtt = now.saturating_sub(due.ended).max(self.ack_rtt * 7 / 8);
            self.unacked.pop_front();
        }
    }

    /// A frame has come. Confirms it soon if it was the end of a flush that brought something.
    pub(super) fn note_frame(&mut self, now: Duration, interval: Duration, rows: usize, is_end: bool) {
        self.has_unacked_rows |= rows > 0;
        if is_end && std::mem::take(&mut self.has_unacked_rows) {
            let at = now + self.ack_delay(interval);
            self.ack_at.get_or_insert(at);
        }
    }

    pub(super) fn set_route(&mut self, route: Route) {
        self.route = route;
        if !route.feeds {
            self.unacked.clear();
            self.flushing_since = None;
        }
    }

    /// How many changes the peer is behind.
    pub(super) fn lag(&self, store: &Store) -> u64 {
        self.tail_sender.lag(store, self.route.filter)
    }

    /// Whether what it has to do may depend on more than what comes over it.
    pub(super) fn always_poll(&self) -> bool {
        self.session.is_some() || self.wants_session || self.tail_sender.always_poll()
    }

    /// When this link has to be seen to again.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        [self.check_at, self.break_at, self.ack_at, self.ack_timeout_at(interval)].into_iter().flatten().min()
    }

    /// Whether the tail has something left to bring to the peer, and got on with it lately.
    pub(super) fn sends(&self, store: &Store, since: Duration) -> bool {
        let is_due = self.route.feeds && (self.lag(store) > 0 || self.tail_sender.has_larges());
        (is_due || self.in_flight[Lane::Live as usize] > 0) && self.sent_at >= since
    }

    /// Whether the peer is in the middle of a flush, and got on with it lately.
    pub(super) fn receives(&self, since: Duration) -> bool {
        self.tail_receiver.in_flux() && self.received_at >= since
    }

    /// Whether the session makes no progress, and nothing else moves on this link either: repair waits for as long as live
    /// writes fill the link, if not for ever. To break a link that is full would only have it carry the same again.
    pub(super) fn is_stalled(&self, now: Duration, timeout: Duration) -> bool {
        let Some(session) = &self.session else { return false };
        let progress = session.last_progress;
        let moved = progress.max(self.sent_at).max(self.received_at);
        now > moved + timeout || now > progress + timeout * STALL_FACTOR_BUSY
    }

    /// One who joins does not ask before the peer has answered: it may turn out that another one did so first.
    pub(super) fn begin_session(&mut self, store: &Store, now: Time, salt: u64, joins: bool) {
        self.wants_session = false;
        self.suppressed_since = None;
        let mut session = RepairSession::new(store, now, salt, self.deferrals_received);
        session.is_other_group = self.route.is_other_group;
        if !joins && self.peer.is_some_and(|(log, _)| store.log.id < log) {
            session.lead();
        }
        self.session = Some(session);
    }

    /// A session is over before its end. What there is of a large row is kept for the next one.
    pub(super) fn keep_partial(&mut self, partial: Option<PartialRow>) {
        if self.partial.is_none() {
            self.partial = partial.filter(|partial| partial.len() <= PARTIAL_BYTES_MAX);
        }
        self.tells_partial = self.partial.is_some();
    }

    /// Claims what a finished comparison allows. From then on the tail serves this link.
    pub(super) fn finish_claim(&mut self, store: &mut Store) {
        self.owes_ack |= self.session.as_mut().is_some_and(|session| session.claim_start_vector(store));
    }

    /// Drops a session that is over, and puts the next one off if this one taught nothing.
    pub(super) fn finish_session(&mut self, now: Time, interval: Duration) -> Option<RepairSession> {
        let session = self.session.take_if(|session| session.is_finished())?;
        let useless = session.rows == 0 || session.refused_rows();
        self.backoff = if useless { (self.backoff + 1).min(6) } else { 0 };
        if self.backoff > 1 {
            self.no_session_before = now.mono + interval * (1 << self.backoff);
        }
        Some(session)
    }
}
