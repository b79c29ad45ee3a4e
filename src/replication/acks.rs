//! Acknowledgements over one link, in both directions.
//!
//! An acknowledgement says: "everything up to this position of your change log is merged here". The receiver of a flush
//! sends it after a delay, so that one is enough for many flushes, or together with the next rows of its own. The
//! sender keeps the flushes that are not acknowledged, measures how long acknowledgements take, and notices when one is
//! overdue.
//!
//! Only a position that was merged completely is ever acknowledged: receipts (`seen_by`) and the choice of delegates
//! rest on it.

use std::collections::VecDeque;
use std::time::Duration;

/// Unacknowledged flushes that are timed separately. A further one is joined with the latest.
const UNACKED_FLUSHES_MAX: usize = 64;

/// Ack timeout, counted from the end of a flush and beyond the delay of the receiver:
/// `max(interval / 2, min(2 × ack_rtt, 16 × interval))`. After it the acknowledgement is *overdue*, and rows for the
/// group of a delegate go to a second delegate too. Before that, once the receiver's delay is over, the peer merely
/// *owes* it ([`Replica::lag_time`](crate::core::Replica::lag_time)).
///
/// The bound follows `ack_rtt` on purpose. On a saturated link acknowledgements are slow for everybody; a fixed timeout
/// would double the traffic exactly there and keep the link saturated.
const ACK_PATIENCE_DIVISOR: u32 = 2;
const ACK_PATIENCE_FACTOR: u32 = 2;
const ACK_PATIENCE_INTERVALS_MAX: u32 = 16;

/// How long a receiver waits with its acknowledgement after the end of a flush: half a sync interval, but at most 20 ms
/// towards another group, where others wait for what the delegate acknowledges. Flushes that arrive meanwhile are
/// acknowledged together.
const ACK_DELAY_DIVISOR: u32 = 2;
const ACK_DELAY_OTHER_GROUP: Duration = Duration::from_millis(20);

/// How long an acknowledgement is delayed over a link within a group.
pub(crate) fn ack_delay(interval: Duration) -> Duration {
    interval / ACK_DELAY_DIVISOR
}

/// The same over a link between two groups.
pub(crate) fn ack_delay_between_groups(interval: Duration) -> Duration {
    ack_delay(interval).min(ACK_DELAY_OTHER_GROUP)
}

/// A flush that was sent completely.
#[derive(Debug)]
struct UnackedFlush {
    /// The flush is acknowledged with this position of the own log.
    revision: u64,
    /// When its first row was sent.
    began: Duration,
    /// When its end was sent.
    ended: Duration,
}

/// The acknowledgement that this replica owes the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OwedAck {
    #[default]
    None,
    /// Not before this time, unless something else is sent first.
    At(Duration),
    Now,
}

/// The acknowledgements of one link: those that the peer has not sent yet, and the one that this replica owes.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// The greatest position of the own log that the peer acknowledged.
    acked: u64,
    /// Complete flushes that are not acknowledged, oldest first.
    unacked: VecDeque<UnackedFlush>,
    /// When the first row of the open flush was sent: its end was not sent yet.
    flushing_since: Option<Duration>,
    /// Time from the end of a flush to its acknowledgement: the slowest lately. Decays by one eighth with each flush.
    ack_rtt: Duration,
    /// The ack timeout has passed since the last acknowledgement.
    is_overdue: bool,
    owed: OwedAck,
    /// Rows were merged that are not acknowledged, and no acknowledgement is scheduled for them.
    has_unacked_rows: bool,
    /// A receipt waits for the acknowledgement of this position: the next flush end at it or beyond asks for one.
    pub(crate) wanted: Option<u64>,
    /// The greatest position of which an acknowledgement was wanted.
    asked: u64,
}

impl Acks {
    /// The greatest position of the own log that the peer acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// Asks for the acknowledgement of a position, unless the peer was asked already.
    pub(crate) fn ask(&mut self, position: u64) {
        if position > self.asked {
            self.asked = position;
            self.wanted = Some(position);
        }
    }

    /// Since when the peer has not acknowledged something that it was sent.
    pub(crate) fn unacked_since(&self) -> Option<Duration> {
        self.unacked.front().map(|flush| flush.began).or(self.flushing_since)
    }

    /// Rows were sent: begins a flush if none is open.
    pub(crate) fn on_rows_sent(&mut self, now: Duration) {
        self.flushing_since.get_or_insert(now);
    }

    /// The end of a flush was sent. Only flushes with rows are waited for.
    pub(crate) fn on_flush_sent(&mut self, now: Duration, revision: u64) {
        let Some(began) = self.flushing_since.take() else { return };
        let flush = UnackedFlush { revision, began, ended: now };
        let is_full = self.unacked.len() == UNACKED_FLUSHES_MAX;
        match self.unacked.back_mut().filter(|_| is_full) {
            Some(last) => *last = UnackedFlush { began: last.began, ..flush },
            None => self.unacked.push_back(flush),
        }
    }

    /// Forgets the flushes that are not acknowledged: the peer is not sent rows any more.
    pub(crate) fn forget_flushes(&mut self) {
        self.unacked.clear();
        self.flushing_since = None;
    }

    /// The peer acknowledged everything up to this position.
    pub(crate) fn on_ack(&mut self, now: Duration, up_to: u64) {
        self.acked = self.acked.max(up_to);
        self.is_overdue = false;
        while let Some(flush) = self.unacked.front().filter(|flush| flush.revision <= up_to) {
            self.ack_rtt = now.saturating_sub(flush.ended).max(self.ack_rtt * 7 / 8);
            self.unacked.pop_front();
        }
    }

    /// When the acknowledgement of the peer becomes overdue; `delay` is the time that the peer may wait with it. In the
    /// middle of a long flush it does not, as long as the peer takes what it is sent (`sent_at`).
    pub(crate) fn timeout_at(
        &self,
        delay: Duration,
        interval: Duration,
        sent_at: Duration,
    ) -> Option<Duration> {
        let in_flush = self.flushing_since.map(|_| sent_at);
        let since = self.unacked.front().map(|flush| flush.ended).or(in_flush)?;
        let by_rtt = (self.ack_rtt * ACK_PATIENCE_FACTOR).min(interval * ACK_PATIENCE_INTERVALS_MAX);
        let patience = by_rtt.max(interval / ACK_PATIENCE_DIVISOR);
        Some(since + delay + patience).filter(|_| !self.is_overdue)
    }

    /// Marks the peer as overdue, until its next acknowledgement.
    pub(crate) fn set_overdue(&mut self) {
        self.is_overdue = true;
    }

    /// Rows of the peer's tail were merged.
    pub(crate) fn on_rows(&mut self) {
        self.has_unacked_rows = true;
    }

    /// A flush of the peer's tail is complete. Schedules an acknowledgement if it brought rows.
    pub(crate) fn on_flush_end(&mut self, now: Duration, delay: Duration) {
        if std::mem::take(&mut self.has_unacked_rows) && self.owed == OwedAck::None {
            self.owed = OwedAck::At(now + delay);
        }
    }

    /// An acknowledgement is to be sent now.
    pub(crate) fn owe_now(&mut self) {
        self.owed = OwedAck::Now;
    }

    /// No acknowledgement is owed any more.
    pub(crate) fn owe_nothing(&mut self) {
        self.owed = OwedAck::None;
    }

    /// An acknowledgement that is scheduled goes out now, in the packet of something else.
    pub(crate) fn send_with_next(&mut self) {
        if self.owed != OwedAck::None {
            self.owed = OwedAck::Now;
        }
    }

    /// Sends the scheduled acknowledgement now, if its time has come.
    pub(crate) fn send_if_due(&mut self, now: Duration) {
        if matches!(self.owed, OwedAck::At(at) if at <= now) {
            self.owed = OwedAck::Now;
        }
    }

    /// Whether an acknowledgement is to be sent now. It is no longer owed then.
    pub(crate) fn take_owed(&mut self) -> bool {
        let is_owed = self.owes_now();
        if is_owed {
            self.owed = OwedAck::None;
        }
        is_owed
    }

    /// Whether an acknowledgement is to be sent now.
    pub(crate) fn owes_now(&self) -> bool {
        self.owed == OwedAck::Now
    }

    /// When the scheduled acknowledgement goes out.
    pub(crate) fn owed_at(&self) -> Option<Duration> {
        match self.owed {
            OwedAck::At(at) => Some(at),
            OwedAck::None | OwedAck::Now => None,
        }
    }
}
