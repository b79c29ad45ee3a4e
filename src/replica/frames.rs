//! What arrives over a link: bytes of its streams become frames here. Datagrams and frames of the live lane are handled
//! in this file, those of the bulk lane in `repair.rs`, except pieces of the tail's large rows.

use super::link::{Closing, ClosingCause};
use super::{Lane, Output, REFUSALS_BACKOFF_MAX, REFUSALS_MAX, Replica, ReplicaEvent};
use crate::controls::Control;
use crate::id::{LinkId, LogId};
use crate::membership::AckState;
use crate::replication::large::ResumeOffer;
use crate::replication::rows::RefusedRow;
use crate::replication::tail::{News, TailOutcome};
use crate::wire::{Ack, Check, Hello, Kind, Message, Piece, Reader, WireError};

/// Refused rows of one frame that are reported. A frame may hold millions of them.
const REFUSED_TOLD_MAX: usize = 64;

impl Replica {
    pub(super) fn handle_stream(&mut self, id: LinkId, lane: Lane, bytes: &[u8]) -> Result<(), WireError> {
        let Some(link) = self.links.get_mut(id).filter(|link| !link.is_distrusted()) else { return Ok(()) };
        if lane == Lane::Live {
            link.lanes.received_at = self.now.mono;
        }
        let mut assembler = std::mem::take(&mut link.lanes.assemblers[lane as usize]);
        if let (Lane::Bulk, Some(session)) = (lane, &mut link.repair.session)
            && !self.store.controls.has(Control::WholeFramesCount)
        {
            session.on_bytes_moved(self.now, bytes.len());
        }
        assembler.feed(bytes);
        while let Some(frame) = assembler.next()? {
            let (kind, reader) = Reader::new(frame)?;
            if kind.lane() != Some(lane) {
                return Err(WireError::Kind(kind as u8));
            }
            let reader = reader.within(Some(self.store.claim_bounds(self.now)));
            let message = Message::read(kind, reader)?;
            match lane {
                Lane::Live => self.handle_live(id, kind, message)?,
                Lane::Bulk => self.handle_bulk(id, kind, message)?,
            }
            if self.store.is_damaged || !self.links.contains(id) {
                return Ok(());
            }
        }
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        link.lanes.assemblers[lane as usize] = assembler;
        Ok(())
    }

    /// Takes a datagram of a peer.
    pub(super) fn handle_datagram(&mut self, id: LinkId, bytes: &[u8]) -> Result<(), WireError> {
        let (kind, reader) = Reader::new(bytes)?;
        let run = self.links.get(id).and_then(|link| link.run);
        match (Message::read(kind, reader)?, &mut self.members) {
            (Message::Check(reader), members) => {
                let check = Check::read(reader, members.is_some())?;
                self.on_check(id, check);
                Ok(())
            }
            (Message::Swim(reader), Some(members)) => {
                run.map_or(Ok(()), |run| members.handle_packet(self.now, run, reader))
            }
            (Message::Election(reader), _) => run.map_or(Ok(()), |run| self.election_message(run, reader)),
            _ => Err(WireError::Kind(kind as u8)),
        }
    }

    fn handle_live(&mut self, id: LinkId, kind: Kind, message: Message<'_>) -> Result<(), WireError> {
        let link = self.links.get_mut(id).expect("the caller looked");
        match (message, link.peer) {
            (Message::Roster(reader), _) => {
                let Some(members) = &mut self.members else { return Err(WireError::Kind(kind as u8)) };
                link.push_messages(members.roster(self.now, link.run, reader)?);
            }
            (Message::CaughtUp(vector_hash), _) => self.on_caught_up(id, vector_hash),
            (Message::Hello(reader), None) => {
                let hello = Hello::read(reader, self.members.is_some())?;
                self.on_hello(id, hello)?;
            }
            (Message::Ack(ack), Some(_)) => self.on_ack(id, ack)?,
            (Message::Tail(reader), Some((log, run))) => {
                let (store, sender) = (&mut self.store, link.tail_peer(log, run));
                let mut news =
                    News { forwarded_claims: &mut self.forwarded_claims, arrived: &mut self.arrived };
                let before = store.position_in(log);
                let outcome = link.tail_receiver.handle_frame(store, &mut news, self.now, sender, reader)?;
                self.on_tail_outcome(id, outcome, before);
            }
            (Message::OldPart(sum), Some(_)) => link.old_parts.on_offer(sum),
            (Message::OldPartSums(reader), Some(_)) => link.old_parts.on_sums(reader)?,
            (Message::OldPartShared(reader), Some(_)) => {
                link.old_parts.on_shared(self.store.controls, reader)?;
            }
            (Message::Partial(reader), Some(_)) => link.resume.offer = Some(ResumeOffer::read(reader)?),
            _ => return Err(WireError::Kind(kind as u8)),
        }
        Ok(())
    }

    /// The peer's log is known from here on. The link speaks for the run that its handshake proved, or for what follows
    /// from it after damage: a `Hello` cannot name the run or the log of another node.
    fn on_hello(&mut self, id: LinkId, hello: Hello) -> Result<(), WireError> {
        let Hello { generation, first_run, vector_hash, old_sum } = hello;
        let is_joining = self.is_joining() && !self.store.controls.has(Control::KnownIsCaughtUp);
        let (store, link) = (&self.store, self.links.get_mut(id).expect("the caller looked"));
        let first = link.run.or(first_run).ok_or(WireError::Kind(Kind::Hello as u8))?;
        let run = first.after(generation);
        if run == store.run {
            return Err(WireError::Claim);
        }
        let log = LogId::of(run);
        link.peer = Some((log, run));
        link.check_session_log(store.controls)?;
        link.old_parts.on_hello(store, old_sum);
        link.tail_receiver.since_ms = self.now.wall_ms();
        link.keep_partial(self.partials.take(link.run.unwrap_or(run)));
        // A replica that has merged the same goes on from there, and so does one that followed this log before. But while
        // it joins, it lacks what came since its last run, of all origins: that is for one donor to send.
        let has_followed = store.position_in(log) > 0 && !is_joining;
        if has_followed || vector_hash == store.coverage.vector_hash() {
            link.on_compared();
        } else {
            // A session may have begun before this frame arrived on the other lane. Another one follows in any case.
            link.acks.owe_nothing();
            link.repair.is_wanted = true;
        }
        if let Some(cursor) = self.stale_cursors.get(&log) {
            link.tail_sender.cursor = *cursor;
        }
        self.keep_linked_positions();
        Ok(())
    }

    fn on_ack(&mut self, id: LinkId, ack: Ack) -> Result<(), WireError> {
        let Ack { log, position, seen } = ack;
        let (store, link) = (&self.store, self.links.get_mut(id).expect("the caller looked"));
        if log == store.log.id && position > store.log.head() {
            return Err(WireError::Claim);
        }
        link.repair.is_wanted |= !link.tail_sender.resume(store, log, position);
        if log == store.log.id {
            link.acks.on_ack(self.now.mono, position);
            if let (Some(members), Some(run)) = (&mut self.members, link.run) {
                members.note_ack(run, AckState::OnTime);
            }
        }
        self.on_seen(id, &seen);
        Ok(())
    }

    /// A piece of a large row of the tail.
    pub(super) fn handle_piece(&mut self, id: LinkId, piece: Piece<'_>) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let (log, run) = link.peer.ok_or(WireError::Kind(Kind::Piece as u8))?;
        link.lanes.received_at = self.now.mono;
        let sender = link.tail_peer(log, run);
        let mut news = News { forwarded_claims: &mut self.forwarded_claims, arrived: &mut self.arrived };
        let before = store.position_in(log);
        let kept = &mut link.resume.kept;
        let outcome = link.tail_receiver.handle_piece(store, &mut news, self.now, sender, piece, kept)?;
        self.on_tail_outcome(id, outcome, before);
        Ok(())
    }

    /// A frame or piece of the tail was merged: decides about the acknowledgement, counts rows, and reports refused
    /// ones. `before` is the position in the peer's log before that: if it has risen, a flush is complete.
    fn on_tail_outcome(&mut self, id: LinkId, outcome: TailOutcome, before: u64) {
        if let Some(link) = self.links.get_mut(id) {
            if outcome.rows > 0 {
                link.acks.on_rows();
            }
            if link.peer.is_some_and(|(log, _)| self.store.position_in(log) > before) {
                link.acks.on_flush_end(self.now.mono, link.ack_delay(self.config.sync_interval));
            }
        }
        self.on_asked(id, outcome.asked);
        self.tail_rows.0 += outcome.rows as u64;
        self.tail_rows.1 += outcome.new as u64;
        self.on_refused_rows(id, outcome.refusals);
    }

    pub(super) fn on_refused_rows(&mut self, id: LinkId, refusals: Vec<RefusedRow>) {
        if refusals.is_empty() {
            return;
        }
        let (peer, controls) = (self.peer_name(id), self.store.controls);
        let told_max = if controls.has(Control::RefusalsAllTold) { refusals.len() } else { REFUSED_TOLD_MAX };
        for (key, reason) in refusals.into_iter().take(told_max) {
            let refused = ReplicaEvent::Refused { peer: peer.clone(), key, reason };
            self.outputs.push_back(Output::Event(refused));
        }
        self.break_later(id, ClosingCause::Refused);
    }

    /// Ends a link after a time that grows with the number of refusals.
    fn break_later(&mut self, id: LinkId, cause: ClosingCause) {
        let Some(link) = self.links.get_mut(id) else { return };
        if let Some(closing) = &mut link.closing {
            if cause == ClosingCause::ClaimRefused {
                closing.cause = cause;
            }
            return;
        }
        let log = link.peer.map(|(log, _)| log);
        let times = self.refusals.entry(log).or_default();
        *times = (*times + 1).min(REFUSALS_BACKOFF_MAX);
        let at = self.now.mono + self.config.sync_interval * (1 << *times);
        link.closing = Some(Closing { at, cause });
        if self.refusals.len() > REFUSALS_MAX
            && let Some(other) = self.refusals.keys().copied().find(|other| *other != log)
        {
            self.refusals.remove(&other);
        }
    }

    /// A peer claims what it cannot know. Nothing more that it sends on its streams is merged, and the link ends after
    /// a backoff that grows with each refusal: a new link at once would only bring the same.
    ///
    /// The peer may be honest and have believed another one that lied about this replica's run. It would claim the same
    /// over every link, so such a claim is made true here where that is permitted, and the next link is accepted.
    pub(super) fn distrust(&mut self, id: LinkId, error: WireError) {
        if let WireError::OwnClaim(clock) = error
            && !self.wall_clock.is_doubted()
        {
            self.store.fulfil_own_claim(self.now, clock);
        }
        self.abort_session(id);
        let Some(link) = self.links.get_mut(id) else { return };
        link.repair.is_wanted = false;
        let peer = self.peer_name(id);
        self.outputs.push_back(Output::Event(ReplicaEvent::ClaimRefused { peer }));
        self.break_later(id, ClosingCause::ClaimRefused);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::{BreakReason, Input, Setup};
    use super::*;
    use crate::config::Config;
    use crate::id::RunId;
    use crate::membership::Member;
    use crate::membership::tests::member;
    use crate::store::{POSITIONS_MAX, PeerPositions};
    use crate::time::Time;
    use crate::wire::Abilities;

    const LINK: LinkId = LinkId::new(1);

    fn replica(run: u64) -> Replica {
        Replica::new(Setup { member: Some(member(run)), ..Setup::new(Config::lan(), run) })
    }

    fn link(replica: &mut Replica, who: &Member) {
        replica.handle(Time::default(), Input::LinkUp(LINK, Abilities::OURS));
        replica.handle(Time::default(), Input::LinkIdentified(LINK, who, 0));
    }

    fn polled(replica: &mut Replica) -> Vec<Output> {
        std::iter::from_fn(|| replica.poll()).collect()
    }

    /// What a replica sends over one lane.
    fn stream(outputs: &[Output], lane: Lane) -> Vec<u8> {
        let of_lane = |output: &Output| match output {
            Output::Stream(_, sent, bytes) if *sent == lane => bytes.clone(),
            _ => Vec::new(),
        };
        outputs.iter().flat_map(of_lane).collect()
    }

    /// A reader, linked with a peer whose run is 2, and what that peer sends at first on its live and bulk lanes.
    fn pair(prepare: impl FnOnce(&mut Replica)) -> (Replica, Vec<u8>, Vec<u8>) {
        let (mut own, mut peer) = (replica(1), replica(2));
        own.store.rekey(peer.store.hash_key);
        prepare(&mut peer);
        link(&mut own, &member(2));
        link(&mut peer, &member(1));
        peer.want_repair(LINK);
        let hello = stream(&polled(&mut own), Lane::Live);
        let live = stream(&polled(&mut peer), Lane::Live);
        peer.handle(Time::default(), Input::Stream(LINK, Lane::Live, &hello));
        let outputs = polled(&mut peer);
        (own, [live, stream(&outputs, Lane::Live)].concat(), stream(&outputs, Lane::Bulk))
    }

    /// Carries what a replica and its peers send each other until they are silent. The link to a peer has its number.
    fn exchange(now: Time, own: &mut Replica, peers: &mut BTreeMap<LinkId, Replica>) {
        for _ in 0..64 {
            let mut is_silent = true;
            for output in polled(own) {
                if let Output::Stream(id, lane, bytes) = output {
                    is_silent = false;
                    own.handle(now, Input::Drained(id, lane, bytes.len()));
                    peers.get_mut(&id).unwrap().handle(now, Input::Stream(LINK, lane, &bytes));
                }
            }
            for (id, peer) in &mut *peers {
                for output in polled(peer) {
                    if let Output::Stream(_, lane, bytes) = output {
                        is_silent = false;
                        peer.handle(now, Input::Drained(LINK, lane, bytes.len()));
                        own.handle(now, Input::Stream(*id, lane, &bytes));
                    }
                }
            }
            if is_silent {
                return;
            }
        }
        panic!("they go on for ever");
    }

    #[test]
    fn positions_of_dead_logs_displace_none_of_linked_peers() {
        let mut own = replica(1);
        // Logs of processes that have ended, all of them with greater ids than those of the peers.
        let dead = (0..POSITIONS_MAX as u64).map(|i| (LogId::new(u64::MAX - i), 1)).collect();
        own.store.peer_positions = PeerPositions::loaded(dead);
        let mut peers: BTreeMap<LinkId, Replica> =
            [2, 3].map(|run| (LinkId::new(run), replica(run))).into_iter().collect();
        for (id, peer) in &mut peers {
            peer.store.rekey(own.store.hash_key);
            link(peer, &member(1));
            own.handle(Time::default(), Input::LinkUp(*id, Abilities::OURS));
            own.handle(Time::default(), Input::LinkIdentified(*id, &member(id.number()), 0));
        }
        exchange(Time::default(), &mut own, &mut peers);
        // All begin at once, so none has caught up before this time.
        let begun = Time::default().later_by(Config::lan().probe_interval);
        own.handle(begun, Input::Wake);
        exchange(begun, &mut own, &mut peers);
        for round in 1..3 {
            let at = Time::default().later_by(Duration::from_millis(700 * round));
            for peer in peers.values_mut() {
                peer.put(at, "k", b"v").unwrap();
            }
            exchange(at, &mut own, &mut peers);
            let later = at.later_by(Config::lan().sync_interval / 2);
            own.handle(later, Input::Wake);
            exchange(later, &mut own, &mut peers);
            for (id, peer) in &peers {
                assert_eq!(peer.links[LINK].acks.acked(), peer.store.log.head(), "link {id}, round {round}");
            }
        }
        assert_eq!(own.store.peer_positions.len(), POSITIONS_MAX);
    }

    fn refuses(own: &mut Replica) -> bool {
        let refused = |output: &Output| matches!(output, Output::Event(ReplicaEvent::ClaimRefused { .. }));
        polled(own).iter().any(refused)
    }

    #[test]
    fn hello_speaks_for_the_run_that_the_handshake_proved() {
        let (mut own, live, _) = pair(|_| {});
        own.handle(Time::default(), Input::Stream(LINK, Lane::Live, &live));
        let run = RunId::new(2);
        assert_eq!(own.links[LINK].peer, Some((LogId::of(run), run)));
        // After damage it is the run that follows from it.
        let (mut own, live, _) = pair(|peer| {
            peer.store.is_damaged = true;
            peer.handle(Time::default(), Input::Wake);
        });
        own.handle(Time::default(), Input::Stream(LINK, Lane::Live, &live));
        assert_eq!(own.links[LINK].peer, Some((LogId::of(run.after(1)), run.after(1))));
    }

    #[test]
    fn start_that_names_another_log_is_a_false_claim() {
        for is_true in [true, false] {
            for lanes in [[Lane::Live, Lane::Bulk], [Lane::Bulk, Lane::Live]] {
                let (mut own, live, bulk) = pair(|peer| {
                    let log = if is_true { peer.store.log.id } else { LogId::of(RunId::new(3)) };
                    peer.store.log.id = log;
                });
                assert!(!bulk.is_empty(), "it begins a session");
                for lane in lanes {
                    let bytes = if lane == Lane::Live { &live } else { &bulk };
                    own.handle(Time::default(), Input::Stream(LINK, lane, bytes));
                }
                assert_eq!(refuses(&mut own), !is_true, "{lanes:?}");
                assert_eq!(own.store.position_in(LogId::of(RunId::new(3))), 0);
            }
        }
    }

    #[test]
    fn hello_before_the_handshake_is_known_breaks_the_link() {
        let (_, live, _) = pair(|_| {});
        let mut own = replica(1);
        own.handle(Time::default(), Input::LinkUp(LINK, Abilities::OURS));
        own.handle(Time::default(), Input::Stream(LINK, Lane::Live, &live));
        let broken = |output: &Output| matches!(output, Output::Break(LINK, BreakReason::Protocol(_)));
        assert!(polled(&mut own).iter().any(broken));
    }
}
