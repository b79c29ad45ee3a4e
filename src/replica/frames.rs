//! What comes over a link's streams, and where it goes.

use super::link::{Closing, ClosingCause};
use super::{Lane, LinkId, Output, REFUSALS_BACKOFF_MAX, REFUSALS_MAX, Replica, ReplicaEvent};
use crate::controls::Control;
use crate::replication::tail::large::ResumeOffer;
use crate::replication::tail::{News, RefusedRow, TailOutcome};
use crate::wire::{Kind, Reader, WireError};

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
            let reader = reader.within(Some(self.store.claim_bounds(self.now)));
            match lane {
                Lane::Live => self.handle_live_frame(id, kind, reader)?,
                Lane::Bulk => self.bulk_frame(id, kind, reader)?,
            }
            if self.store.is_damaged || !self.links.contains(id) {
                return Ok(());
            }
        }
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        link.lanes.assemblers[lane as usize] = assembler;
        Ok(())
    }

    fn handle_live_frame(&mut self, id: LinkId, kind: Kind, mut reader: Reader<'_>) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        match (kind, link.peer) {
            (Kind::Covers, Some(_)) => self.covers_frame(id, reader)?,
            (Kind::Roster, _) => {
                let Some(members) = &mut self.members else { return Err(WireError::Kind(kind as u8)) };
                link.push_messages(members.roster(self.now, reader)?);
            }
            (Kind::Hello, None) => {
                let peer = (reader.u64_le()?, reader.u64_le()?);
                let seen = reader.u64_le()?;
                reader.end()?;
                let (log, run) = peer;
                let is_own = run == store.run || log == store.log.id;
                // A link speaks for the run that its handshake proved. After damage a node writes under a new run, which
                // nobody is known by.
                let is_others = link.run.is_some_and(|proved| proved != run)
                    && self.members.as_ref().is_some_and(|members| members.contact(run).is_some());
                if is_own || is_others {
                    return Err(WireError::Claim);
                }
                link.peer = Some(peer);
                link.tail_receiver.since_ms = self.now.wall_ms();
                link.keep_partial(self.partials.take(link.run.unwrap_or(peer.1)));
                // A replica that followed this log before, or has seen as much, goes on from there.
                let follows = store.completed(peer.0) > 0 || seen == store.coverage.vector_hash();
                if follows {
                    link.acks.owe_now();
                }
                link.repair.is_wanted |= !follows;
                if let Some(kept) = self.stale_cursors.get(&peer.0) {
                    link.tail_sender.cursor = *kept;
                }
            }
            (Kind::Ack, Some(_)) => {
                let (log, complete) = (reader.u64_le()?, reader.varint()?);
                reader.end()?;
                if log == store.log.id && complete > store.log.head() {
                    return Err(WireError::Claim);
                }
                link.repair.is_wanted |= !link.tail_sender.resume(store, log, complete);
                if log == store.log.id {
                    link.acks.on_ack(self.now.mono, complete);
                    if let (Some(members), Some(run)) = (&mut self.members, link.run) {
                        members.note_ack(run, true);
                    }
                }
            }
            (Kind::Partial, Some(_)) => link.resume.offer = Some(ResumeOffer::read(reader)?),
            (Kind::AckRequest, Some(_)) => {
                reader.end()?;
                link.acks.owe_now();
                link.tail_receiver.note_ack_wanted();
            }
            (Kind::Tail, Some((log, run))) => {
                let sender = link.tail_peer(log, run);
                let mut news =
                    News { forwarded_claims: &mut self.forwarded_claims, arrived: &mut self.arrived };
                let before = store.completed(log);
                let merged = link.tail_receiver.handle_frame(store, &mut news, self.now, sender, reader)?;
                let delay = link.ack_delay(self.config.sync_interval);
                link.acks.on_frame(self.now.mono, delay, merged.rows, store.completed(log) > before);
                self.count_merged(id, merged);
            }
            _ => return Err(WireError::Kind(kind as u8)),
        }
        Ok(())
    }

    /// A piece of a large row of the tail.
    pub(super) fn handle_piece(&mut self, id: LinkId, piece: (bool, Reader<'_>)) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let (log, run) = link.peer.ok_or(WireError::Kind(Kind::Piece as u8))?;
        link.lanes.received_at = self.now.mono;
        let sender = link.tail_peer(log, run);
        let mut news = News { forwarded_claims: &mut self.forwarded_claims, arrived: &mut self.arrived };
        let before = store.completed(log);
        let merged = link.tail_receiver.handle_piece(
            store,
            &mut news,
            self.now,
            sender,
            piece,
            &mut link.resume.kept,
        )?;
        let delay = link.ack_delay(self.config.sync_interval);
        link.acks.on_frame(self.now.mono, delay, merged.rows, store.completed(log) > before);
        self.count_merged(id, merged);
        Ok(())
    }

    /// A tail has brought something.
    fn count_merged(&mut self, id: LinkId, merged: TailOutcome) {
        if let Some(link) = self.links.get_mut(id)
            && std::mem::take(&mut link.tail_receiver.ack_wanted)
        {
            link.acks.owe_now();
        }
        self.tail_rows.0 += merged.rows as u64;
        self.tail_rows.1 += merged.new as u64;
        self.on_refused_rows(id, merged.refusals);
    }

    pub(super) fn on_refused_rows(&mut self, id: LinkId, refusals: Vec<RefusedRow>) {
        if refusals.is_empty() {
            return;
        }
        for (key, reason) in refusals {
            self.outputs.push_back(Output::Event(ReplicaEvent::Refused { link: id, key, reason }));
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
        let log = link.peer.map_or(0, |(log, _)| log);
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

    /// A peer claims what it cannot know. Nothing more that it sends is merged, and the link ends after a while, the
    /// longer, the more often that happens: a new one at once would only bring the same.
    pub(super) fn distrust(&mut self, id: LinkId) {
        self.abort_session(id);
        let Some(link) = self.links.get_mut(id) else { return };
        link.repair.is_wanted = false;
        self.outputs.push_back(Output::Event(ReplicaEvent::ClaimRefused { link: id }));
        self.break_later(id, ClosingCause::ClaimRefused);
    }
}
