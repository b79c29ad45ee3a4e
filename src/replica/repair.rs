//! Sessions of the replica: what comes in on the bulk lane, and how they end.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_core::Rng;

use super::link::{Deferral, Link, PARTIAL_BYTES_MAX};
use super::{BreakReason, LinkId, Output, Replica};
use crate::controls::Control;
use crate::replication::repair::{RepairOutcome, RepairSession};
use crate::replication::tail::large::{self, LargeRowStream, PartialRow};
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError};

/// A session in which two replicas repaired each other, when it is over. As counted at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// It came to its end, and no row was refused. Otherwise what it brought stays, and another one brings the rest.
    pub is_complete: bool,
    /// Rows of both directions.
    pub rows: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Bytes of large rows that are kept after their links broke, of all peers together: those of one have room.
const PARTIALS_BYTES_MAX: usize = PARTIAL_BYTES_MAX;

/// What arrived of large rows before their links broke: at most one of a peer, for the next link to the same run of it.
/// None is used for another peer: what is put together of two peers' words could not be blamed on either.
#[derive(Debug, Default)]
pub(super) struct PartialRows {
    by_run: BTreeMap<u64, PartialRow>,
}

impl PartialRows {
    fn insert(&mut self, run: u64, partial: PartialRow) {
        if partial.len() > PARTIALS_BYTES_MAX {
            return;
        }
        self.by_run.insert(run, partial);
        while self.by_run.values().map(PartialRow::len).sum::<usize>() > PARTIALS_BYTES_MAX {
            let other = self.by_run.keys().copied().find(|other| *other != run);
            self.by_run.remove(&other.expect("the new one alone is within the limit"));
        }
    }

    pub(super) fn take(&mut self, run: u64) -> Option<PartialRow> {
        self.by_run.remove(&run)
    }
}

impl RepairReport {
    pub(super) fn of(session: &RepairSession, now: Time) -> Self {
        let (began, is_complete) = session.outcome();
        let took = now.mono.saturating_sub(began.mono);
        Self { is_complete, rows: session.rows, bytes: session.bytes, took }
    }
}

impl Replica {
    pub(super) fn bulk_frame(
        &mut self,
        id: LinkId,
        kind: Kind,
        mut reader: Reader<'_>,
    ) -> Result<(), WireError> {
        let mut is_first = false;
        if kind == Kind::Piece {
            let queue;
            (queue, is_first) = large::stream_of(&mut reader)?;
            if queue == LargeRowStream::Tail {
                return self.handle_piece(id, (is_first, reader));
            }
        }
        let (salt, joins) = (self.random.next_u64(), self.is_joining());
        if kind == Kind::Deferred {
            reader.end()?;
            self.is_deferring(id);
            return Ok(());
        }
        if kind == Kind::Start {
            let is_old = reader.varint()? != self.links[id].repair.deferrals_sent;
            if is_old && !self.store.controls.has(Control::OldStart) {
                return Ok(());
            }
            if self.is_fed_by_other(id) {
                self.on_deferred(id);
                return Ok(());
            }
        }
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let bytes = reader.left() as u64;
        let progress = match (kind, &mut link.repair.session) {
            (Kind::Start, None) => {
                link.repair.deferral = Deferral::None;
                link.begin_session(store, self.now, salt, joins);
                let session = link.repair.session.as_mut().expect("just begun");
                session.on_start(store, self.now, salt, reader)?
            }
            (Kind::Start, Some(session)) => {
                link.repair.deferral = Deferral::None;
                session.on_start(store, self.now, salt, reader)?
            }
            (Kind::Items, Some(session)) => session.items(store, self.now, reader)?,
            (Kind::Piece, Some(session)) => {
                session.handle_piece(store, self.now, (is_first, reader), &mut link.resume.kept)?
            }
            // Sent before the peer knew.
            (Kind::Items | Kind::Piece, None) if link.repair.deferral != Deferral::None => return Ok(()),
            _ => return Err(WireError::Kind(kind as u8)),
        };
        if let Some(session) = &mut link.repair.session {
            session.bytes += bytes;
        }
        link.finish_claim(store);
        if let Some(session) = link.repair.finish(self.now, self.config.sync_interval) {
            self.outputs.push_back(Output::Repair(id, RepairReport::of(&session, self.now)));
        }
        let RepairOutcome { refusals, has_rekeyed } = progress;
        self.on_refused_rows(id, refusals);
        if kind == Kind::Start {
            self.begun(id);
        }
        if has_rekeyed {
            self.break_others(id, BreakReason::Rekeyed);
        }
        Ok(())
    }

    /// A link is gone. Keeps what there is of a large row for the next one.
    pub(super) fn keep_partial(&mut self, link: Link) {
        let Some(run) = link.run.or(link.peer.map(|(_, run)| run)) else { return };
        let partials = [link.resume.kept, link.tail_receiver.into_partial()];
        if let Some(partial) = partials.into_iter().flatten().max_by_key(PartialRow::len) {
            self.partials.insert(run, partial);
        }
    }

    fn break_others(&mut self, except: LinkId, reason: BreakReason) {
        let ids: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.repair.session.is_some()).map(|(id, _)| id).collect();
        ids.into_iter().filter(|id| *id != except).for_each(|id| self.break_link(id, reason));
    }

    /// Ends a session before it is through.
    pub(super) fn abort_session(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(id) else { return };
        if let Some(session) = link.repair.session.take() {
            self.outputs.push_back(Output::Repair(id, RepairReport::of(&session, self.now)));
            link.keep_partial(session.into_partial());
        }
    }
}
