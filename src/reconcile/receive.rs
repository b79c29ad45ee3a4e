//! What a session takes in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    ANSWER, ANSWER_ROWS_MAX, Awaiting, CONFIRM, Collecting, DIGEST, FINISHED, LIST, Progress, Query, ROW,
    Reply, SAME, Session, Start, VERDICT, WANTED, children, listed, measure, strong_hash,
};
use crate::controls::Control;
use crate::digest::{DEPTH_MAX, FAN_BITS, Range};
use crate::entry::Held;
use crate::seen::{self, Context, Pending};
use crate::store::{Base, Row, Store};
use crate::tail::refused;
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError};

/// How many rows of a listing follow: no range is answered with more at once.
fn rows_to_come(reader: &mut Reader<'_>) -> Result<usize, WireError> {
    match usize::try_from(reader.number()?) {
        Ok(rows) if rows <= ANSWER_ROWS_MAX => Ok(rows),
        _ => Err(WireError::TooMany),
    }
}

impl Session {
    /// The peer's announcement. The side with the greater hash key gives way, a blank one always.
    pub(crate) fn start(
        &mut self,
        store: &mut Store,
        now: Time,
        salt: u64,
        mut reader: Reader<'_>,
    ) -> Result<Progress, WireError> {
        let mut progress = Progress::default();
        let hash_key = reader.hash_key()?;
        let is_blank = reader.byte()? == 1;
        let start = Start {
            salt: reader.word()?,
            log: reader.word()?,
            head: reader.number()?,
            entries: reader.number()?,
            bytes: reader.number()?,
            vector: Arc::default(),
        };
        let mut vector = Arc::new(Context::new());
        reader.join(&mut vector)?;
        reader.end()?;
        if self.peer.is_some() {
            return Err(WireError::Kind(Kind::Start as u8));
        }
        self.last_progress = now;
        if hash_key != self.hash_key {
            let gives_way = if self.is_blank == is_blank { hash_key < self.hash_key } else { self.is_blank };
            if !gives_way {
                return Ok(progress);
            }
            // Counting anew would forget what no longer adds up.
            let leaves = store.leaves();
            store.scrub(0, leaves);
            if store.is_damaged {
                return Ok(progress);
            }
            store.rekey(hash_key);
            let (is_blank, is_far) = (self.is_blank, self.is_far);
            *self = Self::new(store, now, salt, self.laters);
            (self.is_blank, self.is_far) = (is_blank, is_far);
            progress.has_rekeyed = true;
        }
        if store.log.id < start.log && !self.is_leader {
            self.is_leader = true;
            if self.has_started {
                self.asks.push(Range::ALL);
            }
        }
        self.vector = vector.clone();
        self.peer = Some(Start { vector, ..start });
        Ok(progress)
    }

    /// A frame of asks and replies.
    pub(crate) fn items(
        &mut self,
        store: &mut Store,
        now: Time,
        mut reader: Reader<'_>,
    ) -> Result<Progress, WireError> {
        let mut progress = Progress::default();
        if self.peer.is_none() {
            // The peer has not given way to this hash key yet; it will start again.
            return Ok(progress);
        }
        self.last_progress = now;
        reader.join(&mut self.vector)?;
        if store.controls.has(Control::EndHead) {
            self.peer.as_mut().expect("looked above").head = reader.number()?;
        }
        while !reader.is_at_end() {
            self.item(store, now, &mut reader, &mut progress)?;
        }
        Ok(progress)
    }

    fn item(
        &mut self,
        store: &mut Store,
        now: Time,
        reader: &mut Reader<'_>,
        progress: &mut Progress,
    ) -> Result<(), WireError> {
        let (tag, range) = reader.range()?;
        if self.collecting.is_some() && !matches!(tag, ROW | SAME) {
            return Err(WireError::Form);
        }
        match tag {
            DIGEST if range.depth < DEPTH_MAX => {
                let weak = reader.weak()?;
                // A list that was too much to answer comes back as a digest.
                self.queries.remove(&range);
                self.replies.push_back(Reply::Judge { range, weak });
            }
            VERDICT => self.verdict(store, range, reader)?,
            CONFIRM => self.confirmed(store, range, reader)?,
            LIST => {
                let count = reader.count(8)?;
                let hashes = (0..count).map(|_| reader.word()).collect::<Result<_, _>>()?;
                let base = Base {
                    vector: self.vector.clone(),
                    pending: reader.pending(self.hash_key, &mut self.heard)?,
                };
                self.replies.push_back(Reply::Answer { range, hashes, base });
            }
            ANSWER => self.answered(range, reader)?,
            WANTED => {
                let left = rows_to_come(reader)?;
                let Awaiting { mine, same, base } = self.awaiting.remove(&range).ok_or(WireError::Form)?;
                let known = mine.iter().filter(|(key, _)| same.contains(*key));
                let rows = known.map(|(_, held)| listed(held.clone(), &base)).collect();
                let wanted = Vec::new();
                self.collecting =
                    Some(Collecting { range, base, rows, left, has_refused: false, wanted, mine });
            }
            ROW | SAME => self.row(store, now, tag, reader, progress)?,
            FINISHED => self.peer_has_finished = true,
            _ => return Err(WireError::Form),
        }
        if self.collecting.as_ref().is_some_and(|collecting| collecting.left == 0) {
            self.collected(store, now);
        }
        if self.is_overfull() { Err(WireError::TooMany) } else { Ok(()) }
    }

    /// The peer says which children of an asked range look equal.
    pub(super) fn verdict(
        &mut self,
        store: &mut Store,
        range: Range,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let mask = reader.short()?;
        if !matches!(self.queries.remove(&range), Some(Query::Digest)) {
            return Err(WireError::Form);
        }
        if mask != 0 {
            let strong = reader.word()?;
            let pending = reader.pending(self.hash_key, &mut self.heard)?;
            let is_equal = self.judge(store, self.salt, range, mask, strong, pending);
            self.replies.push_back(Reply::Confirm { range, mask: if is_equal { mask } else { 0 } });
        }
        Ok(())
    }

    /// The asker says that the children judged equal still are.
    pub(super) fn confirmed(
        &mut self,
        store: &mut Store,
        range: Range,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let mask = reader.short()?;
        let expected = self.unconfirmed.remove(&range).ok_or(WireError::Form)?;
        if mask != 0 {
            let strong = reader.word()?;
            let pending = reader.pending(self.hash_key, &mut self.heard)?;
            let salt = self.peer.as_ref().expect("items follow the start").salt;
            if mask != expected {
                return Err(WireError::Form);
            }
            self.judge(store, salt, range, mask, strong, pending);
        }
        Ok(())
    }

    /// Settles children whose strong hash is equal in this instant; asks about them one by one if it is not.
    fn judge(
        &mut self,
        store: &mut Store,
        salt: u64,
        range: Range,
        mask: u16,
        strong: u64,
        pending: Vec<Pending>,
    ) -> bool {
        let is_equal =
            strong == strong_hash(store, salt, range, mask) || store.controls.has(Control::OldDigest);
        let base = Base { vector: self.vector.clone(), pending };
        for child in children(range, mask) {
            if is_equal {
                if store.seen.has_room(&base.pending) {
                    store.cover_range(child, &base);
                } else {
                    self.has_refused = true;
                }
                self.settled.add(child.first(), child.last());
            } else {
                self.asks.push(child);
            }
        }
        is_equal
    }

    /// The peer says which of the listed rows it has too, and how many rows of its own follow.
    pub(super) fn answered(&mut self, range: Range, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let has = reader.bytes()?;
        let left = rows_to_come(reader)?;
        let base =
            Base { vector: self.vector.clone(), pending: reader.pending(self.hash_key, &mut self.heard)? };
        let listing = self.listing(range).ok_or(WireError::Form)?;
        if has.len() != listing.len().div_ceil(8) {
            return Err(WireError::Form);
        }
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        for (i, (_, held)) in listing.into_iter().enumerate() {
            if has[i / 8] >> (i % 8) & 1 == 1 {
                rows.push(listed(held, &base));
            } else {
                wanted.push(held.key().to_vec());
            }
        }
        let mine = BTreeMap::new();
        self.collecting = Some(Collecting { range, base, rows, left, has_refused: false, wanted, mine });
        Ok(())
    }

    /// What was listed for a range that is answered now: the very range, or a piece of one listed as empty.
    pub(super) fn listing(&mut self, range: Range) -> Option<Vec<(u64, Held)>> {
        for depth in (0..=range.depth).rev().step_by(FAN_BITS as usize) {
            let above = Range::at(range.first(), depth);
            let Some(Query::List { rows, answered }) = self.queries.get_mut(&above) else { continue };
            if above != range && !rows.is_empty() {
                return None;
            }
            *answered += measure(range);
            let rows = std::mem::take(rows);
            if *answered >= measure(above) {
                self.queries.remove(&above);
            }
            return Some(rows);
        }
        None
    }

    pub(super) fn row(
        &mut self,
        store: &Store,
        now: Time,
        tag: u8,
        reader: &mut Reader<'_>,
        progress: &mut Progress,
    ) -> Result<(), WireError> {
        let collecting = self.collecting.as_mut().ok_or(WireError::Form)?;
        collecting.left = collecting.left.checked_sub(1).ok_or(WireError::Form)?;
        self.rows += 1;
        let row = if tag == SAME {
            let key = reader.bytes()?;
            let context = reader.context()?;
            let held = collecting.mine.get(key).ok_or(WireError::Form)?.clone();
            Ok(Row { held, vector: self.vector.clone(), context })
        } else {
            reader.row(&self.vector)?
        };
        let checked = match row {
            Ok(row) => {
                store.check_row(now, &row.held).map_err(|why| refused(row.held.key(), why)).map(|()| row)
            }
            Err(why) => Err(refused(b"", why)),
        };
        match checked {
            Ok(row) if collecting.range.contains(store.hash_key.place(row.held.key())) => {
                collecting.rows.push(row);
            }
            Ok(_) => return Err(WireError::Form),
            Err(refusal) => {
                collecting.has_refused = true;
                self.has_refused = true;
                progress.refusals.push(refusal);
            }
        }
        Ok(())
    }

    /// A listing is complete: merge it. If a row of it was refused, the others are merged, each for itself, and
    /// the range is only counted as dealt with.
    fn collected(&mut self, store: &mut Store, now: Time) {
        let Collecting { range, base, rows, has_refused, wanted, .. } =
            self.collecting.take().expect("called when there is one");
        self.settle(store, now, range, &rows, (!has_refused).then_some(&base));
        if !wanted.is_empty() {
            let sent = rows.into_iter().map(|row| (row.held.key().to_vec(), row.held)).collect();
            self.replies.push_back(Reply::Wanted { range, keys: wanted, sent });
        }
    }

    /// Deals with a range. With a base, `rows` are all that the peer holds there, and the range is covered by the base
    /// from then on. Without one, or with more leftovers in it than there is room for, each row is merged for itself.
    pub(super) fn settle(
        &mut self,
        store: &mut Store,
        now: Time,
        range: Range,
        rows: &[Row],
        base: Option<&Base>,
    ) {
        let source = self.source();
        if let Some(base) = base.filter(|base| store.seen.has_room(&base.pending)) {
            store.settle(now, range, rows, base, source);
        } else {
            self.has_refused = true;
            for row in rows {
                store.merge_rows(now, std::slice::from_ref(row), source, |_| ());
                store.cover_row(row, &Arc::new(seen::beyond(&row.vector, store.seen.vector())));
            }
        }
        self.settled.add(range.first(), range.last());
    }

    /// Once everything is settled and nothing was refused: claims what the peer announced at its start, and answers
    /// whether it just did. Called between frames, because a frame tells the vector as of its beginning.
    pub(crate) fn claim(&mut self, store: &mut Store) -> bool {
        if self.is_settled || !self.settled.is_all() {
            return false;
        }
        self.is_settled = true;
        if self.has_refused {
            return false;
        }
        let start = self.peer.as_ref().expect("nothing settles before the start");
        let end = store.controls.has(Control::EndVector);
        store.seen.claim_all(if end { &self.vector } else { &start.vector });
        store.complete(start.log, start.head);
        true
    }
}
