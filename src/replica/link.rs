//! One link to a peer, as the replica sees it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::VALUE_BYTES_CEILING;
use crate::membership::Reach;
use crate::replica::Lane;
use crate::replica::receipts::Answers;
use crate::replication::claims::Chains;
use crate::replication::repair::Session;
use crate::replication::tail::large::{Hint, Partial};
use crate::replication::tail::{Incoming, Outgoing, Sender};
use crate::store::Store;
use crate::store::change_log::Scope;
use crate::time::Time;
use crate::wire::{Assembler, Kind, Writer};

#[derive(Debug, Default)]
pub(super) struct Link {
    /// The peer's log and run, once it said hello.
    pub(super) peer: Option<(u64, u64)>,
    /// Which run is at the other end, where members are kept.
    pub(super) run: Option<u64>,
    /// What the link is for.
    pub(super) reach: Reach,
    /// Frames about members.
    messages: VecDeque<Vec<u8>>,
    pub(super) answers: Answers,
    pub(super) has_greeted: bool,
    /// The position to state, when it is time to.
    pub(super) states_position: bool,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) session: Option<Session>,
    pub(super) wants_session: bool,
    pub(super) live: Assembler,
    pub(super) bulk: Assembler,
    pub(super) in_flight: [usize; 2],
    pub(super) flush: bool,
    /// Whose turn it is to fill the bulk lane.
    pub(super) bulk_turn: usize,
    /// What is here of a large row of the peer whose transfer was broken off, and whether the peer is to be told. It is
    /// not replaced before the peer has made use of it: then both know of the same.
    pub(super) partial: Option<Partial>,
    pub(super) tells_partial: bool,
    /// The same of a large row of ours, as the peer told.
    pub(super) hint: Option<Hint>,
    pub(super) checks: VecDeque<Vec<u8>>,
    /// How often in a row the peer's digest differed, and when to look again.
    pub(super) differs: u32,
    pub(super) check_at: Option<Duration>,
    /// When the first check was sent that no answer has followed.
    pub(super) asked_at: Option<Duration>,
    /// Since when differences do not count, because the tail is about to remove them.
    pub(super) excused_since: Option<Duration>,
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
    pub(super) asks: Option<u64>,
    /// Up to where the peer said that it has everything.
    pub(super) acknowledged: u64,
    /// The session was given up for now: the peer is to be told, and what it sent before it knew is ignored.
    pub(super) says_later: bool,
    pub(super) is_put_off: bool,
    /// How often either side has put the other one off. A start tells how many of them its sender knew of: an older
    /// one belongs to a session that is void, and so does everything up to the next one.
    pub(super) laters_sent: u64,
    pub(super) laters_received: u64,
    /// How often the peer has stalled as a donor.
    pub(super) stalls: u32,
    /// This replica has compared everything with the peer, or knew that it need not.
    pub(super) is_synced: bool,
    /// The flushes that were sent and are not confirmed, and since when rows are being sent that no `done` has followed.
    dues: VecDeque<Due>,
    flushing_since: Option<Duration>,
    /// How long confirmations have taken lately, the slowest of them.
    confirm_time: Duration,
    /// The confirmation did not come in time.
    is_late: bool,
    /// Rows came that are not confirmed, and when to do so.
    pub(super) owes: bool,
    pub(super) confirm_at: Option<Duration>,
    /// When it has to be seen to, while it rests.
    pub(super) rests_until: Option<Duration>,
}

/// A flush that was sent.
#[derive(Debug)]
struct Due {
    /// The peer has it all when it says that it has everything up to here.
    revision: u64,
    /// When its first row was sent, and when its end.
    since: Duration,
    ended: Duration,
}

/// Frames about members that may wait for a peer that does not read when one more answer is added.
const MESSAGES_MAX: usize = 1_024;

/// Flushes whose times are kept apart. Of more, the latest count as one.
const DUES_MAX: usize = 64;

/// A peer whose confirmation is overdue for this part of a sync interval is late; or, over a link on which they take
/// longer, for so many times that, up to so many intervals. Who is late has its work done by another as well: where
/// that is due to links that are full, it would fill them further, and they would never be empty again.
const PATIENCE_PART: u32 = 2;
const PATIENCE_TIMES: u32 = 2;
const PATIENCE_INTERVALS_MAX: u32 = 16;

/// After the end of a flush, how long until the receiver confirms it, unless it has something else to send before: a
/// delegate soon, since others depend on it, and everybody else in so large a part of a sync interval. What comes
/// meanwhile is confirmed with it.
const CONFIRM_DELAY_FAR: Duration = Duration::from_millis(20);
const CONFIRM_PART: u32 = 2;

/// Bytes that are kept of one large row.
pub(super) const PARTIAL_BYTES_MAX: usize = VALUE_BYTES_CEILING;

/// For so many times its time a session may make no progress while live writes do.
const STALLED_TIMES_MAX: u32 = 12;

impl Link {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }

    /// The next frame of the live stream.
    pub(super) fn live_frame(
        &mut self,
        store: &mut Store,
        chains: &mut Chains,
        now: Duration,
    ) -> Option<Vec<u8>> {
        if !self.has_greeted {
            self.has_greeted = true;
            let mut writer = Writer::new(Kind::Hello);
            writer.word(store.log.id);
            writer.word(store.run);
            writer.word(store.seen.hash());
            return Some(writer.finish());
        }
        if let Some(frame) = self.messages.pop_front().or_else(|| self.answers.message()) {
            return Some(frame);
        }
        let (log, _) = self.peer?;
        if std::mem::take(&mut self.tells_partial)
            && let Some(partial) = &self.partial
        {
            return Some(partial.frame());
        }
        if std::mem::take(&mut self.states_position) {
            self.is_synced = true;
            self.confirm_at = None;
            let mut writer = Writer::new(Kind::Position);
            writer.word(log);
            writer.number(store.completed(log));
            return Some(writer.finish());
        }
        if !self.reach.feeds && self.asks.is_none() {
            return None;
        }
        let flush = std::mem::take(&mut self.flush);
        let (rows, told) = (self.outgoing.rows, self.outgoing.told());
        let frame = self.outgoing.frame(store, chains, self.reach.scope, flush, &mut self.asks);
        if self.outgoing.rows > rows {
            self.flushing_since.get_or_insert(now);
        }
        if self.outgoing.told() > told
            && let Some(since) = self.flushing_since.take()
        {
            self.is_due(Due { revision: self.outgoing.told(), since, ended: now });
        }
        if frame.is_some() {
            // In the same packet.
            self.states_position |= self.confirm_at.is_some();
            return frame;
        }
        self.asks.take_if(|revision| *revision <= self.outgoing.told())?;
        Some(Writer::new(Kind::Ask).finish())
    }

    /// Whose rows come over this link.
    pub(super) fn sender(&self, log: u64, run: u64) -> Sender {
        let passes_on = self.run.is_none() || self.reach.scope == Scope::PassedOn;
        Sender { log, run, is_far: self.reach.is_far, passes_on }
    }

    /// Sends frames about members, unless too many wait already: rosters are compared again with the next checks.
    pub(super) fn message(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        if self.messages.len() < MESSAGES_MAX {
            self.messages.extend(frames);
        }
    }

    pub(super) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    fn is_due(&mut self, due: Due) {
        let is_full = self.dues.len() == DUES_MAX;
        match self.dues.back_mut().filter(|_| is_full) {
            Some(last) => *last = Due { since: last.since, ..due },
            None => self.dues.push_back(due),
        }
    }

    /// Since when the peer has not confirmed something that it was sent.
    pub(super) fn due_since(&self) -> Option<Duration> {
        self.dues.front().map(|due| due.since).or(self.flushing_since)
    }

    /// How long a confirmation is delayed over this link.
    pub(super) fn confirm_delay(&self, interval: Duration) -> Duration {
        let usual = interval / CONFIRM_PART;
        if self.reach.is_far { usual.min(CONFIRM_DELAY_FAR) } else { usual }
    }

    /// When the peer will be late with its confirmation. One that is in the middle of a long flush is not, as long as it
    /// takes what it is sent.
    fn late_at(&self, interval: Duration) -> Option<Duration> {
        let due = self.dues.front().map(|due| due.ended).or(self.flushing_since.map(|_| self.sent_at))?;
        let usual = (self.confirm_time * PATIENCE_TIMES).min(interval * PATIENCE_INTERVALS_MAX);
        let patience = usual.max(interval / PATIENCE_PART);
        Some(due + self.confirm_delay(interval) + patience).filter(|_| !self.is_late)
    }

    /// Whether it has just become late.
    pub(super) fn becomes_late(&mut self, now: Duration, interval: Duration) -> bool {
        let is_late = self.late_at(interval).is_some_and(|at| at <= now);
        self.is_late |= is_late;
        is_late
    }

    /// The peer has confirmed everything up to some revision.
    pub(super) fn confirmed(&mut self, now: Duration, up_to: u64) {
        self.acknowledged = self.acknowledged.max(up_to);
        self.is_late = false;
        while let Some(due) = self.dues.front().filter(|due| due.revision <= up_to) {
            self.confirm_time = now.saturating_sub(due.ended).max(self.confirm_time * 7 / 8);
            self.dues.pop_front();
        }
    }

    /// A frame has come. Confirms it soon if it was the end of a flush that brought something.
    pub(super) fn received(&mut self, now: Duration, interval: Duration, rows: usize, is_end: bool) {
        self.owes |= rows > 0;
        if is_end && std::mem::take(&mut self.owes) {
            let at = now + self.confirm_delay(interval);
            self.confirm_at.get_or_insert(at);
        }
    }

    pub(super) fn take_reach(&mut self, reach: Reach) {
        self.reach = reach;
        if !reach.feeds {
            self.dues.clear();
            self.flushing_since = None;
        }
    }

    /// How many changes the peer is behind.
    pub(super) fn lag(&self, store: &Store) -> u64 {
        self.outgoing.lag(store, self.reach.scope)
    }

    /// Whether what it has to do may depend on more than what comes over it.
    pub(super) fn is_restless(&self) -> bool {
        self.session.is_some() || self.wants_session || self.outgoing.is_restless()
    }

    /// When this link has to be seen to again.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        [self.check_at, self.break_at, self.confirm_at, self.late_at(interval)].into_iter().flatten().min()
    }

    /// Whether the tail has something left to bring to the peer, and got on with it lately.
    pub(super) fn sends(&self, store: &Store, since: Duration) -> bool {
        let is_due = self.reach.feeds && (self.lag(store) > 0 || self.outgoing.has_larges());
        (is_due || self.in_flight[Lane::Live as usize] > 0) && self.sent_at >= since
    }

    /// Whether the peer is in the middle of a flush, and got on with it lately.
    pub(super) fn receives(&self, since: Duration) -> bool {
        self.incoming.is_amid() && self.received_at >= since
    }

    /// Whether the session makes no progress, and nothing else moves on this link either: repair waits for as long as live
    /// writes fill the link, if not for ever. To break a link that is full would only have it carry the same again.
    pub(super) fn is_stalled(&self, now: Duration, timeout: Duration) -> bool {
        let Some(session) = &self.session else { return false };
        let progress = session.last_progress;
        let moved = progress.max(self.sent_at).max(self.received_at);
        now > moved + timeout || now > progress + timeout * STALLED_TIMES_MAX
    }

    /// One who joins does not ask before the peer has answered: it may turn out that another one did so first.
    pub(super) fn begin(&mut self, store: &Store, now: Time, salt: u64, joins: bool) {
        self.wants_session = false;
        self.excused_since = None;
        let mut session = Session::new(store, now, salt, self.laters_received);
        session.is_far = self.reach.is_far;
        if !joins && self.peer.is_some_and(|(log, _)| store.log.id < log) {
            session.lead();
        }
        self.session = Some(session);
    }

    /// A session is over before its end. What there is of a large row is kept for the next one.
    pub(super) fn keep_partial(&mut self, partial: Option<Partial>) {
        if self.partial.is_none() {
            self.partial = partial.filter(|partial| partial.len() <= PARTIAL_BYTES_MAX);
        }
        self.tells_partial = self.partial.is_some();
    }

    /// Claims what a finished comparison allows. From then on the tail serves this link.
    pub(super) fn claim(&mut self, store: &mut Store) {
        self.states_position |= self.session.as_mut().is_some_and(|session| session.claim(store));
    }

    /// Drops a session that is over, and puts the next one off if this one taught nothing.
    pub(super) fn finish(&mut self, now: Time, interval: Duration) -> Option<Session> {
        let session = self.session.take_if(|session| session.is_over())?;
        let useless = session.rows == 0 || session.refused_rows();
        self.backoff = if useless { (self.backoff + 1).min(6) } else { 0 };
        if self.backoff > 1 {
            self.no_session_before = now.mono + interval * (1 << self.backoff);
        }
        Some(session)
    }
}
