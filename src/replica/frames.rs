//! What comes over a link's streams, and where it goes.

use super::{Event, Lane, LinkId, Output, REFUSALS_BACKOFF_MAX, REFUSALS_MAX, Replica};
use crate::controls::Control;
use crate::replication::tail::large::Hint;
use crate::replication::tail::{Merged, News, Refused};
use crate::wire::{Kind, Reader, WireError};

impl Replica {
    pub(super) fn stream(&mut self, id: LinkId, lane: Lane, bytes: &[u8]) -> Result<(), WireError> {
        let Some(link) = self.links.get_mut(id).filter(|link| !link.is_distrusted) else { return Ok(()) };
        if lane == Lane::Live {
            link.received_at = self.now.mono;
        }
        let mut assembler = std::mem::take(match lane {
            Lane::Live => &mut link.live,
            Lane::Bulk => &mut link.bulk,
        });
        if let (Lane::Bulk, Some(session)) = (lane, &mut link.session)
            && !self.store.controls.has(Control::WholeFramesCount)
        {
            session.moved(self.now, bytes.len());
        }
        assembler.feed(bytes);
        while let Some(frame) = assembler.next()? {
            let (kind, reader) = Reader::new(frame)?;
            let reader = reader.within(Some(self.store.claim_bounds(self.now)));
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
                link.message(members.roster(self.now, reader)?);
            }
            (Kind::Hello, None) => {
                let peer = (reader.word()?, reader.word()?);
                let seen = reader.word()?;
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
                link.incoming.since_ms = self.now.wall_ms();
                link.keep_partial(self.partials.take(link.run.unwrap_or(peer.1)));
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
                if log == store.log.id && complete > store.log.head() {
                    return Err(WireError::Claim);
                }
                link.wants_session |= !link.outgoing.resume(store, log, complete);
                if log == store.log.id {
                    link.confirmed(self.now.mono, complete);
                    if let (Some(members), Some(run)) = (&mut self.members, link.run) {
                        members.confirmed(run, true);
                    }
                }
            }
            (Kind::Partial, Some(_)) => link.hint = Some(Hint::read(reader)?),
            (Kind::Ask, Some(_)) => {
                reader.end()?;
                link.states_position = true;
                link.incoming.asked();
            }
            (Kind::Tail, Some((log, run))) => {
                let sender = link.sender(log, run);
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

    /// A piece of a large row of the tail.
    pub(super) fn piece(&mut self, id: LinkId, piece: (bool, Reader<'_>)) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let (log, run) = link.peer.ok_or(WireError::Kind(Kind::Piece as u8))?;
        link.received_at = self.now.mono;
        let sender = link.sender(log, run);
        let mut news = News { chains: &mut self.chains, arrivals: &mut self.arrivals };
        let before = store.completed(log);
        let merged = link.incoming.piece(store, &mut news, self.now, sender, piece, &mut link.partial)?;
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
        self.break_later(id);
    }

    /// Ends a link with backoff.
    fn break_later(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(id) else { return };
        if link.break_at.is_none() {
            let log = link.peer.map_or(0, |(log, _)| log);
            let times = self.refusals.entry(log).or_default();
            *times = (*times + 1).min(REFUSALS_BACKOFF_MAX);
            link.break_at = Some(self.now.mono + self.config.sync_interval * (1 << *times));
            if self.refusals.len() > REFUSALS_MAX
                && let Some(other) = self.refusals.keys().copied().find(|other| *other != log)
            {
                self.refusals.remove(&other);
            }
        }
    }

    /// A peer claims what it cannot know. Nothing more that it sends is merged, and the link ends after a while, the
    /// longer, the more often that happens: a new one at once would only bring the same.
    pub(super) fn distrust(&mut self, id: LinkId) {
        self.give_up(id);
        let Some(link) = self.links.get_mut(id) else { return };
        link.is_distrusted = true;
        link.wants_session = false;
        self.outputs.push_back(Output::Event(Event::ClaimRefused { link: id }));
        self.break_later(id);
    }
}
