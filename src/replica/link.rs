//! One link to a peer, as the replica sees it: its streams, the live tail in both directions, checks, and a repair.
//!
//! A link begins with `Hello` in both directions. Before it only rosters and `CaughtUp` are read, and a repair that the
//! peer begins on the bulk lane. Then the tail runs, or a repair first if the two have never been compared. All state
//! of a link ends with it, except what [`PartialRows`](super::repair) keeps of a large row.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::VALUE_BYTES_CEILING;
use crate::controls::{Control, Controls};
use crate::id::{LogId, RunId, SessionId};
use crate::membership::Route;
use crate::replica::Lane;
use crate::replication::acks::{Acks, ack_delay, ack_delay_between_groups};
use crate::replication::claims::ForwardedClaims;
use crate::replication::large::{PartialRow, ResumeOffer};
use crate::replication::questions::CoverageQuestions;
use crate::replication::repair::RepairSession;
use crate::replication::tail::{TailPeer, TailReceiver, TailSender, TailWants};
use crate::replication::vectors::OldParts;
use crate::store::LocalStore;
use crate::store::change_log::LogFilter;
use crate::store::slab::ChangeOrigin;
use crate::time::Time;
use crate::wire::{Abilities, Ack, Assembler, Hello, Kind, WireError, Writer};

#[derive(Debug, Default)]
pub(super) struct Link {
    /// The peer's log and run, as they follow from its handshake and its `Hello`. `None` until then.
    pub(super) peer: Option<(LogId, RunId)>,
    /// The run that the connection's handshake proved. `None` while membership has not identified it, or without
    /// members.
    pub(super) run: Option<RunId>,
    /// What the peer's program understands beyond the wire version.
    pub(super) abilities: Abilities,
    pub(super) has_sent_hello: bool,
    pub(super) old_parts: OldParts,
    /// Which rows the peer is sent, and whether it is in another group.
    pub(super) route: Route,
    pub(super) lanes: Lanes,
    /// Frames about members that wait for the live lane.
    messages: VecDeque<Vec<u8>>,
    pub(super) coverage_questions: CoverageQuestions,
    pub(super) tail_sender: TailSender,
    pub(super) tail_receiver: TailReceiver,
    /// The next frame of the tail may be a claim without rows.
    pub(super) wants_bare_claim: bool,
    pub(super) acks: Acks,
    pub(super) checks: Checks,
    pub(super) repair: RepairSlot,
    pub(super) resume: Resume,
    /// This replica has everything that the peer had when the link was made: it compared, or did not have to.
    pub(super) is_compared: bool,
    pub(super) peer_stage: PeerStage,
    pub(super) notice: CaughtUpNotice,
    pub(super) closing: Option<Closing>,
}

/// Whether the peer has caught up with its cluster: what it is worth to a replica that joins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PeerStage {
    /// It has not said that it has caught up.
    #[default]
    Joining,
    /// It has said so, or its program never does. Sessions from this one on bring all that it had then: an earlier one
    /// may lack what it got meanwhile.
    CaughtUp { from: SessionId },
    /// It has said so, and this replica has everything that it had then.
    Merged,
}

/// Whether the peer was told that this replica has caught up. It is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CaughtUpNotice {
    #[default]
    NotYet,
    Owed,
    Sent,
}

/// The two streams of a link, by [`Lane`].
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Frames that have arrived in part.
    pub(super) assemblers: [Assembler; 2],
    /// Bytes given to the connection that it has not taken yet.
    pub(super) in_flight: [usize; 2],
    /// When the connection last took something of the live lane, and when something last arrived on it.
    pub(super) sent_at: Duration,
    pub(super) received_at: Duration,
    /// Which of the three users of the bulk lane comes first: large rows of the tail, the repair, its large rows.
    pub(super) bulk_next: usize,
}

/// Comparisons of digests with the peer.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// Check datagrams to be sent.
    pub(super) outbox: VecDeque<Vec<u8>>,
    /// Consecutive checks in which the peer's root differed from ours. Repair starts at the second.
    pub(super) mismatches: u32,
    /// When to check again after a first mismatch.
    pub(super) again_at: Option<Duration>,
    /// When the first check was sent that was not answered.
    pub(super) unanswered_since: Option<Duration>,
    /// Since when mismatches are suppressed, because the tail is about to remove the difference.
    pub(super) suppressed_since: Option<Duration>,
}

/// Repairs over this link: at most one session at a time.
#[derive(Debug, Default)]
pub(super) struct RepairSlot {
    pub(super) session: Option<RepairSession>,
    /// A session is to begin as soon as it may.
    pub(super) is_wanted: bool,
    /// The number of the session, or of the next one while there is none. It grows when a session ends, and when either
    /// side defers it. A frame with a smaller number is void: it was sent before its sender knew of that.
    pub(super) id: SessionId,
    /// This side has deferred the peer, which is not told yet.
    pub(super) owes_deferral: bool,
    /// Consecutive sessions that brought no row or refused one. From the second on the next one waits.
    pub(super) backoff: u32,
    pub(super) not_before: Duration,
    /// How often the peer was replaced as donor.
    pub(super) stalls: u32,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RepairPurpose {
    /// This replica joins. It does not ask first: another peer may turn out to have answered before this one.
    Join,
    /// Two replicas that have data compare it.
    Compare,
}

/// Large rows whose transfer was broken off, in both directions. See [`crate::replication::large`].
#[derive(Debug, Default)]
pub(super) struct Resume {
    /// What this side has of a large row. It is not replaced before the peer has made use of it: then both sides know
    /// of the same.
    pub(super) kept: Option<PartialRow>,
    /// The peer is to be told what was kept.
    pub(super) owes_offer: bool,
    /// What the peer has of a large row of this side.
    pub(super) offer: Option<ResumeOffer>,
}

/// The link is about to be broken by this side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    pub(super) at: Duration,
    pub(super) cause: ClosingCause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClosingCause {
    /// A row of the peer was refused. The link goes on until then.
    Refused,
    /// The peer claimed what it cannot know. What it sends on its streams is not read any more.
    ClaimRefused,
}

/// Frames about members that may wait for a peer that does not read when one more answer is added.
pub(super) const MESSAGES_MAX: usize = 1_024;

/// Bytes that are kept of one large row.
pub(super) const PARTIAL_BYTES_MAX: usize = VALUE_BYTES_CEILING;

/// Multiplies `sync_timeout` for a repair while the same link still carries live writes, which have priority.
const STALL_FACTOR_BUSY: u32 = 12;

/// A repair that was not useful delays the next one by `sync_interval << backoff`, at most this often doubled.
const REPAIR_BACKOFF_MAX: u32 = 6;

#[cfg(feature = "__controls")]
impl Lanes {
    pub(super) fn kept_bytes(&self) -> usize {
        self.assemblers.iter().map(Assembler::kept_bytes).sum()
    }
}

impl Link {
    pub(super) fn new(route: Route, abilities: Abilities) -> Self {
        let peer_stage = if abilities.says_caught_up() {
            PeerStage::Joining
        } else {
            PeerStage::CaughtUp { from: SessionId::default() }
        };
        Self { abilities, route, peer_stage, ..Self::default() }
    }

    /// The peer is to be told that this replica has caught up, if its program reads that and it was not told yet.
    pub(super) fn owe_notice(&mut self) {
        if self.abilities.says_caught_up() && self.notice == CaughtUpNotice::NotYet {
            self.notice = CaughtUpNotice::Owed;
        }
    }

    /// Whether this replica has everything that the peer had when the two were compared.
    pub(super) fn has_all_of_peer(&self) -> bool {
        self.is_compared || self.acks.owes_now()
    }

    /// A session has ended, or was not needed: this replica has everything that the peer had when it began.
    pub(super) fn on_compared(&mut self) {
        self.acks.owe_now();
        if matches!(self.peer_stage, PeerStage::CaughtUp { from } if self.repair.id >= from) {
            self.peer_stage = PeerStage::Merged;
        }
    }

    /// The next frame of the live stream.
    pub(super) fn next_live_frame(
        &mut self,
        store: &mut LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        now: Duration,
    ) -> Option<Vec<u8>> {
        // Before the `Hello`: then a peer that joins knows what the comparison that follows it is worth.
        if self.notice == CaughtUpNotice::Owed {
            self.notice = CaughtUpNotice::Sent;
            let mut writer = Writer::new(Kind::CaughtUp);
            writer.u64_le(store.coverage.vector_hash());
            return Some(writer.finish());
        }
        if !self.has_sent_hello {
            self.has_sent_hello = true;
            let hello = Hello {
                generation: store.generation,
                first_run: self.run.is_none().then_some(store.first_run),
                vector_hash: store.coverage.vector_hash(),
                old_sum: self.old_parts.offer(store),
            };
            return Some(hello.frame());
        }
        if let Some(frame) = self.old_parts.next_frame(store) {
            return Some(frame);
        }
        if let Some(frame) = self.messages.pop_front() {
            return Some(frame);
        }
        let (log, _) = self.peer?;
        if std::mem::take(&mut self.resume.owes_offer)
            && let Some(kept) = &self.resume.kept
        {
            return Some(kept.frame());
        }
        // An answer states the position too, so there is one only once the two have compared.
        let answers = self.is_compared && self.coverage_questions.has_due();
        if self.acks.take_owed() || answers {
            self.is_compared = true;
            let seen = self.coverage_questions.take_due();
            return Some(Ack { log, position: store.position_in(log), seen }.frame());
        }
        if (!self.route.feeds && self.acks.wanted.is_none()) || self.old_parts.is_asking() {
            return None;
        }
        let frame = self.next_tail_frame(store, forwarded_claims, now)?;
        self.acks.send_with_next();
        Some(frame)
    }

    fn next_tail_frame(
        &mut self,
        store: &mut LocalStore,
        forwarded_claims: &mut ForwardedClaims,
        now: Duration,
    ) -> Option<Vec<u8>> {
        let bare_claim = std::mem::take(&mut self.wants_bare_claim);
        let (rows, claimed) = (self.tail_sender.rows, self.tail_sender.claimed());
        let mut wanted = TailWants {
            filter: self.route.filter,
            bare_claim,
            ack: &mut self.acks.wanted,
            old_parts: &self.old_parts,
            names_large_rows: self.abilities.reads_large_row_names(),
        };
        let frame = self.tail_sender.next_frame(store, forwarded_claims, &mut wanted);
        if self.tail_sender.rows > rows {
            self.acks.on_rows_sent(now);
        }
        if self.tail_sender.claimed() > claimed {
            self.acks.on_flush_sent(now, self.tail_sender.claimed());
        }
        frame
    }

    /// Whose rows come over this link.
    pub(super) fn tail_peer(&self, log: LogId, run: RunId) -> TailPeer {
        let forwards = self.run.is_none() || self.route.filter == LogFilter::Forwarded;
        TailPeer { log, run, is_other_group: self.route.is_other_group, forwards }
    }

    /// Sends frames about members, unless too many wait already: rosters are compared again with the next checks.
    pub(super) fn push_messages(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        if self.messages.len() < MESSAGES_MAX {
            self.messages.extend(frames);
        }
    }

    #[cfg(feature = "__controls")]
    pub(super) fn kept_messages(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// How long this side delays an acknowledgement, and allows the peer to delay its own.
    pub(super) fn ack_delay(&self, interval: Duration) -> Duration {
        if self.route.is_other_group { ack_delay_between_groups(interval) } else { ack_delay(interval) }
    }

    fn ack_timeout_at(&self, interval: Duration) -> Option<Duration> {
        self.acks.timeout_at(self.ack_delay(interval), interval, self.lanes.sent_at)
    }

    /// Whether the acknowledgement of the peer has just become overdue.
    pub(super) fn ack_times_out(&mut self, now: Duration, interval: Duration) -> bool {
        let is_overdue = self.ack_timeout_at(interval).is_some_and(|at| at <= now);
        if is_overdue {
            self.acks.set_overdue();
        }
        is_overdue
    }

    pub(super) fn set_route(&mut self, route: Route) {
        self.route = route;
        if !route.feeds {
            self.acks.forget_flushes();
        }
    }

    /// How many changes the peer is behind.
    pub(super) fn lag(&self, store: &LocalStore) -> u64 {
        self.tail_sender.lag(store, self.route.filter)
    }

    /// Whether this link must be polled after every step: what it has to do may depend on the store as a whole.
    pub(super) fn always_poll(&self) -> bool {
        self.repair.session.is_some() || self.repair.is_wanted || self.tail_sender.always_poll()
    }

    /// The earliest time at which this link has something to do without input.
    pub(super) fn deadline(&self, interval: Duration) -> Option<Duration> {
        let closing_at = self.closing.map(|closing| closing.at);
        let times = [self.checks.again_at, closing_at, self.acks.owed_at(), self.ack_timeout_at(interval)];
        times.into_iter().flatten().min()
    }

    /// Whether the tail still has rows for the peer, and the connection took something since this time.
    pub(super) fn sends(&self, store: &LocalStore, since: Duration) -> bool {
        let has_more = self.route.feeds && (self.lag(store) > 0 || self.tail_sender.has_larges());
        (has_more || self.lanes.in_flight[Lane::Live as usize] > 0) && self.lanes.sent_at >= since
    }

    /// Whether the peer is in the middle of a flush, and something of it arrived since this time.
    pub(super) fn receives(&self, since: Duration) -> bool {
        self.tail_receiver.in_flux() && self.lanes.received_at >= since
    }

    /// Whether the repair makes no progress, and the live lane does not move either. While it moves, the repair has
    /// twelve times as long: live writes have priority, and breaking a link that is full would only have it carry the
    /// same again.
    pub(super) fn is_stalled(&self, now: Duration, timeout: Duration) -> bool {
        let Some(session) = &self.repair.session else { return false };
        let progress = session.last_progress;
        let moved = progress.max(self.lanes.sent_at).max(self.lanes.received_at);
        now > moved + timeout || now > progress + timeout * STALL_FACTOR_BUSY
    }

    /// Whether what the peer sends on its streams is not read any more.
    pub(super) fn is_distrusted(&self) -> bool {
        self.closing.is_some_and(|closing| closing.cause == ClosingCause::ClaimRefused)
    }

    pub(super) fn begin_session(&mut self, store: &LocalStore, now: Time, salt: u64, purpose: RepairPurpose) {
        self.repair.is_wanted = false;
        self.checks.suppressed_since = None;
        let origin = if self.route.is_other_group { ChangeOrigin::Forwarded } else { ChangeOrigin::Learned };
        let mut session = RepairSession::new(store, now, salt, self.repair.id, origin);
        if purpose == RepairPurpose::Compare && self.peer.is_some_and(|(log, _)| store.log.id < log) {
            session.lead();
        }
        self.repair.session = Some(session);
    }

    /// Keeps what a session that was aborted has of a large row, for the next session.
    pub(super) fn keep_partial(&mut self, partial: Option<PartialRow>) {
        let resume = &mut self.resume;
        if resume.kept.is_none() {
            resume.kept = partial.filter(|partial| partial.len() <= PARTIAL_BYTES_MAX);
        }
        resume.owes_offer = resume.kept.is_some();
    }

    /// Checks that the session's `Start` names the log of the link's `Hello`. The two travel on different lanes, so
    /// this is called when either arrives; [`Link::finish_claim`] waits for both.
    pub(super) fn check_session_log(&self, controls: Controls) -> Result<(), WireError> {
        let named = self.repair.session.as_ref().and_then(RepairSession::peer_log);
        let is_other = matches!((self.peer, named), (Some((log, _)), Some(named)) if named != log);
        if is_other && !controls.has(Control::StatedLog) { Err(WireError::Claim) } else { Ok(()) }
    }

    /// Claims what a finished comparison allows. From then on the tail serves this link.
    pub(super) fn finish_claim(&mut self, store: &mut LocalStore) {
        if self.peer.is_some()
            && self.repair.session.as_mut().is_some_and(|session| session.claim_start_vector(store))
        {
            // Before the acknowledgement, which makes the peer tell its vector.
            self.old_parts.may_offer = true;
            self.on_compared();
        }
    }
}

impl RepairSlot {
    /// Drops a session that both sides finished. One that brought no row, or refused one, delays the next.
    pub(super) fn finish(&mut self, now: Time, interval: Duration) -> Option<RepairSession> {
        let session = self.session.take_if(|session| session.is_finished())?;
        self.id = self.id.next();
        let useless = session.rows == 0 || session.refused_rows();
        self.backoff = if useless { (self.backoff + 1).min(REPAIR_BACKOFF_MAX) } else { 0 };
        if self.backoff > 1 {
            self.not_before = now.mono + interval * (1 << self.backoff);
        }
        Some(session)
    }

    /// Gives a session up for now. It begins again when the peer starts it, or this replica asks for it.
    pub(super) fn defer(&mut self) {
        self.is_wanted = true;
        self.owes_deferral = true;
        self.id = self.id.next();
    }
}
