//! Sessions of the replica: what comes in on the bulk lane, and how they end.

use std::time::Duration;

use rand_core::Rng;

use super::{BreakReason, LinkId, Output, Replica};
use crate::controls::Control;
use crate::reconcile::{Progress, Session};
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError};

/// A session in which two replicas repaired each other, when it is over. As counted at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repair {
    /// It came to its end, and no row was refused. Otherwise what it brought stays, and another one brings the rest.
    pub is_complete: bool,
    /// Rows of both directions.
    pub rows: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Repair {
    pub(super) fn of(session: &Session, now: Time) -> Self {
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
        if kind == Kind::Piece {
            return self.piece(id, reader);
        }
        let (salt, joins) = (self.random.next_u64(), self.is_joining());
        if kind == Kind::Later {
            reader.end()?;
            self.is_told_later(id);
            return Ok(());
        }
        if kind == Kind::Start {
            let is_old = reader.number()? != self.links[id].laters_sent;
            if is_old && !self.store.controls.has(Control::OldStart) {
                return Ok(());
            }
            if self.is_fed_by_other(id) {
                self.put_off(id);
                return Ok(());
            }
        }
        let (store, link) = (&mut self.store, self.links.get_mut(id).expect("the caller looked"));
        let bytes = reader.left() as u64;
        let progress = match (kind, &mut link.session) {
            (Kind::Start, None) => {
                link.is_put_off = false;
                link.begin(store, self.now, salt, joins);
                let session = link.session.as_mut().expect("just begun");
                session.start(store, self.now, salt, reader)?
            }
            (Kind::Start, Some(session)) => {
                link.is_put_off = false;
                session.start(store, self.now, salt, reader)?
            }
            (Kind::Items, Some(session)) => session.items(store, self.now, reader)?,
            // Sent before the peer knew.
            (Kind::Items, None) if link.is_put_off => return Ok(()),
            _ => return Err(WireError::Kind(kind as u8)),
        };
        if let Some(session) = &mut link.session {
            session.bytes += bytes;
        }
        link.claim(store);
        if let Some(session) = link.finish(self.now, self.config.sync_interval) {
            self.outputs.push_back(Output::Repair(id, Repair::of(&session, self.now)));
        }
        let Progress { refusals, has_rekeyed } = progress;
        self.refused(id, refusals);
        if kind == Kind::Start {
            self.begun(id);
        }
        if has_rekeyed {
            self.break_others(id, BreakReason::Rekeyed);
        }
        Ok(())
    }

    fn break_others(&mut self, except: LinkId, reason: BreakReason) {
        let ids: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.session.is_some()).map(|(id, _)| id).collect();
        ids.into_iter().filter(|id| *id != except).for_each(|id| self.break_link(id, reason));
    }

    /// Ends a session before it is through.
    pub(super) fn give_up(&mut self, id: LinkId) {
        let session = self.links.get_mut(id).and_then(|link| link.session.take());
        if let Some(session) = session {
            self.outputs.push_back(Output::Repair(id, Repair::of(&session, self.now)));
        }
    }
}
