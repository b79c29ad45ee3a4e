//! What comes over a link's streams, and where it goes.

use super::{Event, Lane, LinkId, Output, Replica};
use crate::tail::{Merged, News, Refused, Sender};
use crate::wire::{Kind, Reader, WireError};

impl Replica {
    pub(super) fn stream(&mut self, id: LinkId, lane: Lane, bytes: &[u8]) -> Result<(), WireError> {
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        if lane == Lane::Live {
            link.received_at = self.now.mono;
        }
        let mut assembler = std::mem::take(match lane {
            Lane::Live => &mut link.live,
            Lane::Bulk => &mut link.bulk,
        });
        assembler.feed(bytes);
        while let Some(frame) = assembler.next()? {
            let (kind, reader) = Reader::new(frame)?;
            match lane {
                Lane::Live => self.live_frame(id, kind, reader)?,
                Lane::Bulk => self.bulk_frame(id, kind, reader)?,
            }
            if self.store.is_damaged || !self.links.contains(id) {
                return Ok(());
            }
        }
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        match lane {
            Lane::Live => link.live = assembler,
            Lane::Bulk => link.bulk = assembler,
        }
        Ok(())
    }

    fn live_frame(&mut self, id: LinkId, kind: Kind, mut reader: Reader<'_>) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        match (kind, link.peer) {
            (Kind::Covers, Some(_)) => self.covers_frame(id, reader)?,
            (Kind::Roster, _) => {
                let Some(members) = &mut self.members else { return Err(WireError::Kind(kind as u8)) };
                link.messages.extend(members.roster(self.now, reader)?);
            }
            (Kind::Hello, None) => {
                let peer = (reader.word()?, reader.word()?);
                let seen = reader.word()?;
                reader.end()?;
                link.peer = Some(peer);
                link.incoming.since_ms = self.now.wall_ms();
                // A replica that followed this log before, or has seen as much, goes on from there.
                let follows = store.completed(peer.0) > 0 || seen == store.seen.hash();
                link.states_position = follows;
                link.wants_session |= !follows;
                if let Some(kept) = self.kept.get(&peer.0) {
                    link.outgoing.cursor = *kept;
                }
            }
            (Kind::Position, Some(_)) => {
                let (log, complete) = (reader.word()?, reader.number()?);
                reader.end()?;
                link.wants_session |= !link.outgoing.resume(store, log, complete);
                if log == store.log.id {
                    link.confirmed(self.now.mono, complete);
                    if let (Some(members), Some(run)) = (&mut self.members, link.run) {
                        members.confirmed(run, true);
                    }
                }
            }
            (Kind::Ask, Some(_)) => {
                reader.end()?;
                link.states_position = true;
                link.incoming.asked();
            }
            (Kind::Tail, Some((log, run))) => {
                let sender = Sender { log, run, is_far: link.reach.is_far };
                let mut news = News { chains: &mut self.chains, arrivals: &mut self.arrivals };
                let before = store.completed(log);
                let merged = link.incoming.frame(store, &mut news, self.now, sender, reader)?;
                link.received(
                    self.now.mono,
                    self.config.sync_interval,
                    merged.rows,
                    store.completed(log) > before,
                );
                self.merged(id, merged);
            }
            _ => return Err(WireError::Kind(kind as u8)),
        }
        Ok(())
    }

    pub(super) fn piece(&mut self, id: LinkId, reader: Reader<'_>) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let (log, run) = link.peer.ok_or(WireError::Kind(Kind::Piece as u8))?;
        link.received_at = self.now.mono;
        let sender = Sender { log, run, is_far: link.reach.is_far };
        let mut news = News { chains: &mut self.chains, arrivals: &mut self.arrivals };
        let before = store.completed(log);
        let merged = link.incoming.piece(store, &mut news, self.now, sender, reader)?;
        link.received(self.now.mono, self.config.sync_interval, merged.rows, store.completed(log) > before);
        self.merged(id, merged);
        Ok(())
    }

    /// A tail has brought something.
    fn merged(&mut self, id: LinkId, merged: Merged) {
        if let Some(link) = self.links.get_mut(id) {
            link.states_position |= std::mem::take(&mut link.incoming.is_asked);
        }
        self.tail_rows.0 += merged.rows as u64;
        self.tail_rows.1 += merged.new as u64;
        self.refused(id, merged.refusals);
    }

    pub(super) fn refused(&mut self, id: LinkId, refusals: Vec<Refused>) {
        if refusals.is_empty() {
            return;
        }
        for (key, reason) in refusals {
            self.outputs.push_back(Output::Event(Event::Refused { link: id, key, reason }));
        }
        let Some(link) = self.links.get_mut(id) else { return };
        if link.break_at.is_none() {
            let log = link.peer.map_or(0, |(log, _)| log);
            let times = self.refusals.entry(log).or_default();
            *times = (*times + 1).min(6);
            link.break_at = Some(self.now.mono + self.config.sync_interval * (1 << *times));
        }
    }
}
