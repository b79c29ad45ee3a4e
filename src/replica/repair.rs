//! Repairs of a replica: messages of the bulk lane, and how sessions end.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use rand_core::Rng;
use serde::{Deserialize, Serialize};

use super::link::{Link, PARTIAL_BYTES_MAX, RepairPurpose};
use super::{BreakReason, Output, Replica};
use crate::controls::Control;
use crate::form;
use crate::id::{LinkId, RunId};
use crate::replication::large::PartialRow;
use crate::replication::repair::{RepairOutcome, RepairSession};
use crate::time::Time;
use crate::wire::{Kind, LargeRowStream, Message, Piece, Reader, WireError};

/// A session in which two replicas repaired each other, when it is over. As counted at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// It came to its end, and no row was refused. Otherwise what it brought stays, and another one brings the rest.
    pub is_complete: bool,
    /// Rows of both directions.
    pub rows: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// How long it took.
    #[serde(with = "form::span")]
    pub took: Duration,
}

/// Bytes of large rows that are kept after their links broke, of all peers together: those of one have room.
const PARTIALS_BYTES_MAX: usize = PARTIAL_BYTES_MAX;

/// What arrived of large rows before their links broke: at most one per peer, for the next link to the same run. It is
/// never used for another peer: if a row made of two peers' bytes is wrong, neither can be held responsible.
#[derive(Debug, Default)]
pub(super) struct PartialRows {
    by_run: BTreeMap<RunId, PartialRow>,
}

impl PartialRows {
    fn insert(&mut self, run: RunId, partial: PartialRow) {
        if partial.len() > PARTIALS_BYTES_MAX {
            return;
        }
        self.by_run.insert(run, partial);
        while self.by_run.values().map(PartialRow::len).sum::<usize>() > PARTIALS_BYTES_MAX {
            let other = self.by_run.keys().copied().find(|other| *other != run);
            self.by_run.remove(&other.expect("the new one alone is within the limit"));
        }
    }

    pub(super) fn take(&mut self, run: RunId) -> Option<PartialRow> {
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
    pub(super) fn handle_bulk(
        &mut self,
        id: LinkId,
        kind: Kind,
        message: Message<'_>,
    ) -> Result<(), WireError> {
        if let Message::Piece(piece @ Piece { stream: LargeRowStream::Tail, .. }) = message {
            return self.handle_piece(id, piece);
        }
        let (salt, purpose) = (self.random.next_u64(), self.repair_purpose());
        if self.is_void(id, &message)? {
            return Ok(());
        }
        let link = self.links.get_mut(id).expect("the caller looked");
        let (bytes, outcome) = match (message, &mut link.repair.session) {
            (Message::Deferred(_), _) => {
                self.on_deferred(id);
                return Ok(());
            }
            (Message::Piece(piece), Some(session)) => {
                let (bytes, kept) = (piece.body.left() as u64, &mut link.resume.kept);
                (bytes, session.handle_piece(&mut self.store, self.now, piece, kept)?)
            }
            (Message::Start { body, .. }, _) => {
                let Some(outcome) = self.on_session_start(id, salt, purpose, body)? else {
                    return Ok(());
                };
                outcome
            }
            (Message::Items { body, .. }, Some(session)) => {
                (body.left() as u64, session.items(&mut self.store, self.now, body)?)
            }
            _ => return Err(WireError::Kind(kind as u8)),
        };
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        if let Some(session) = &mut link.repair.session {
            session.bytes += bytes;
        }
        link.finish_claim(store);
        if let Some(session) = link.repair.finish(self.now, self.config.sync_interval) {
            self.outputs.push_back(Output::Repair(id, RepairReport::of(&session, self.now)));
        }
        let RepairOutcome { refusals, has_rekeyed } = outcome;
        self.on_refused_rows(id, refusals);
        if kind == Kind::Start {
            self.begun(id);
        }
        if has_rekeyed {
            self.break_others(id, BreakReason::Rekeyed);
        }
        Ok(())
    }

    /// Whether a frame belongs to a session that was void before the peer knew of it. The peer cannot be further than
    /// the next session: this side has heard why the session before it ended.
    fn is_void(&self, id: LinkId, message: &Message<'_>) -> Result<bool, WireError> {
        let current = self.links[id].repair.id;
        let (session, expected) = match message {
            Message::Start { session, .. }
            | Message::Items { session, .. }
            | Message::Piece(Piece { stream: LargeRowStream::Repair(session), .. }) => (*session, current),
            Message::Deferred(next) => (*next, current.next()),
            _ => return Ok(false),
        };
        match session.cmp(&expected) {
            Ordering::Less => Ok(!self.store.controls.has(Control::OldStart)),
            Ordering::Equal => Ok(false),
            Ordering::Greater => Err(WireError::Form),
        }
    }

    /// What a session that begins now is for.
    pub(super) fn repair_purpose(&self) -> RepairPurpose {
        if self.is_joining() { RepairPurpose::Join } else { RepairPurpose::Compare }
    }

    /// The peer begins a session, or answers the start of this side. `None` if it is deferred.
    fn on_session_start(
        &mut self,
        id: LinkId,
        salt: u64,
        purpose: RepairPurpose,
        body: Reader<'_>,
    ) -> Result<Option<(u64, RepairOutcome)>, WireError> {
        if self.is_fed_by_other(id) {
            self.defer_session(id);
            return Ok(None);
        }
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        if link.repair.session.is_none() {
            link.begin_session(store, self.now, salt, purpose);
            self.outputs.push_back(Output::RepairBegun(id));
        }
        let session = link.repair.session.as_mut().expect("just begun");
        let bytes = body.left() as u64;
        let outcome = session.on_start(store, self.now, salt, body)?;
        link.check_session_log(store.controls)?;
        Ok(Some((bytes, outcome)))
    }

    /// A link is gone. Keeps what arrived of a large row for the next link to the same run.
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

    /// Aborts a session.
    pub(super) fn abort_session(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(id) else { return };
        if let Some(session) = link.repair.session.take() {
            self.outputs.push_back(Output::Repair(id, RepairReport::of(&session, self.now)));
            link.keep_partial(session.into_partial());
        }
    }
}
