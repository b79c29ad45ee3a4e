//! The receiving half of a repair session: starts, asks, replies, rows and pieces of the peer.
//!
//! Everything here comes from a peer, so a message that does not fit the state of the session is a [`WireError`], never
//! a panic. Nothing may be kept without a bound, and a range may be settled only by a complete listing of one instant
//! or by a strong hash that is equal in this instant.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ANSWER, ANSWER_ROWS_MAX, CONFIRM, DIGEST, FINISHED, LARGE, LARGES_AWAITED_MAX, LIST, LISTED_ROWS_MAX,
    LargeRowAwaited, ListingArriving, ListingAwaitsLarge, ListingSent, OpenAsk, PeerSide, Phase, REPAIR_ROW,
    RepairOutcome, RepairSession, SAME, SessionTask, VERDICT, WANTED, children, listed, measure, strong_hash,
};
use crate::controls::Control;
use crate::replication::large::PartialRow;
use crate::replication::rows::{self, refused_row};
use crate::store::coverage::Vector;
use crate::store::digest::{DEPTH_MAX, FAN_BITS, HashRange};
use crate::store::entry::{DotSet, Removal};
use crate::store::slab::ChangeOrigin;
use crate::store::{LocalStore, PeerCoverage, PeerRow};
use crate::time::Time;
use crate::wire::{Kind, Piece, Reader, WireError};

/// How many rows of a listing follow. More than [`ANSWER_ROWS_MAX`] are a protocol error.
fn rows_to_come(reader: &mut Reader<'_>) -> Result<usize, WireError> {
    match usize::try_from(reader.varint()?) {
        Ok(rows) if rows <= ANSWER_ROWS_MAX => Ok(rows),
        _ => Err(WireError::TooMany),
    }
}

impl RepairSession {
    /// Takes the start of the peer. If the hash keys differ, a side that began empty adopts the other's key; if both or
    /// neither did, the side with the greater key adopts the smaller one.
    pub(crate) fn on_start(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        salt: u64,
        mut reader: Reader<'_>,
    ) -> Result<RepairOutcome, WireError> {
        let mut progress = RepairOutcome::default();
        let hash_key = reader.hash_key()?;
        let is_blank = reader.byte()? == 1;
        let mut start = PeerSide {
            salt: reader.u64_le()?,
            log: reader.log()?,
            head: reader.varint()?,
            entries: reader.varint()?,
            bytes: reader.varint()?,
            vector: Vector::default(),
            was_followed: false,
            has_finished: false,
        };
        start.was_followed = store.position_in(start.log) > 0;
        rows::take_news(&store.coverage, &mut start.vector, &reader.vector_news()?)?;
        reader.end()?;
        if self.peer.is_some() {
            return Err(WireError::Kind(Kind::Start as u8));
        }
        self.last_progress = now.mono;
        if hash_key != self.hash_key {
            let gives_way = if self.is_blank == is_blank { hash_key < self.hash_key } else { self.is_blank };
            if !gives_way {
                return Ok(progress);
            }
            // The digests are computed anew for the new key, which would hide leaves that no longer add up.
            let leaves = store.leaves();
            store.scrub(0, leaves);
            if store.is_damaged {
                return Ok(progress);
            }
            store.rekey(hash_key);
            let is_blank = self.is_blank;
            *self = Self::new(store, now, salt, self.id, self.change_origin);
            self.is_blank = is_blank;
            progress.has_rekeyed = true;
        }
        if store.log.id < start.log && !self.asks_first {
            self.asks_first = true;
            if self.phase != Phase::New {
                self.ranges_to_ask.push(HashRange::ALL);
            }
        }
        self.vector = start.vector.clone();
        self.peer = Some(start);
        Ok(progress)
    }

    /// Handles a frame of asks, replies and rows.
    pub(crate) fn items(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        mut reader: Reader<'_>,
    ) -> Result<RepairOutcome, WireError> {
        let mut progress = RepairOutcome::default();
        if self.peer.is_none() {
            // The peer has not adopted this hash key yet; it will send its start again.
            return Ok(progress);
        }
        self.last_progress = now.mono;
        rows::take_news(&store.coverage, &mut self.vector, &reader.vector_news()?)?;
        if store.controls.has(Control::EndHead) {
            self.peer.as_mut().expect("looked above").head = reader.varint()?;
        }
        while !reader.is_at_end() {
            self.item(store, now, &mut reader, &mut progress)?;
        }
        Ok(progress)
    }

    fn item(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        reader: &mut Reader<'_>,
        progress: &mut RepairOutcome,
    ) -> Result<(), WireError> {
        let (tag, range) = reader.range()?;
        if self.listing_arriving.is_some() && !matches!(tag, REPAIR_ROW | SAME | LARGE) {
            return Err(WireError::Form);
        }
        match tag {
            DIGEST if range.depth < DEPTH_MAX => {
                let weak = reader.weak()?;
                // A list with too many rows to answer is answered with a digest.
                self.open_asks.remove(&range);
                self.tasks.push_back(SessionTask::Judge { range, weak });
            }
            VERDICT => self.verdict(store, range, reader)?,
            CONFIRM => self.on_confirm(store, range, reader)?,
            LIST => {
                let before = reader.left();
                let count = reader.count(8)?;
                if count > LISTED_ROWS_MAX {
                    return Err(WireError::TooMany);
                }
                let hashes = (0..count).map(|_| reader.u64_le()).collect::<Result<_, _>>()?;
                let peer_coverage = self.read_coverage(reader)?;
                let list_bytes = before - reader.left();
                self.list_bytes += list_bytes;
                self.tasks.push_back(SessionTask::Answer { range, hashes, peer_coverage, list_bytes });
            }
            ANSWER => self.on_list_answer(range, reader)?,
            WANTED => {
                let left = rows_to_come(reader)?;
                let ListingSent { mine, same, peer_coverage } =
                    self.listings_sent.remove(&range).ok_or(WireError::Form)?;
                let known = mine.iter().filter(|(key, _)| same.contains(*key));
                let rows = known.filter_map(|(_, dot_set)| listed(dot_set.clone(), &peer_coverage)).collect();
                let listing =
                    ListingArriving { mine, ..ListingArriving::new(range, peer_coverage, rows, left) };
                self.listing_arriving = Some(listing);
            }
            REPAIR_ROW | SAME => self.row(store, now, tag, reader, progress)?,
            LARGE => self.large(store, reader)?,
            FINISHED => self.peer.as_mut().expect("items follow the start").has_finished = true,
            _ => return Err(WireError::Form),
        }
        if self.listing_arriving.as_ref().is_some_and(|collecting| collecting.left == 0) {
            self.on_listing_complete(store, now);
        }
        let is_overfull = self.is_overfull() && !store.controls.has(Control::TasksUnlimited);
        if is_overfull { Err(WireError::TooMany) } else { Ok(()) }
    }

    /// What the peer covers in a range: its vector as of this frame, and the contexts that follow here.
    fn read_coverage(&mut self, reader: &mut Reader<'_>) -> Result<PeerCoverage, WireError> {
        let regions = reader.regions(self.hash_key, &mut self.leftovers_received)?;
        Ok(PeerCoverage::new(self.vector.clone(), regions))
    }

    /// Takes the verdict of the peer: which children of an asked range look equal.
    pub(super) fn verdict(
        &mut self,
        store: &mut LocalStore,
        range: HashRange,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let mask = reader.u16_le()?;
        if !matches!(self.open_asks.remove(&range), Some(OpenAsk::Digest)) {
            return Err(WireError::Form);
        }
        if mask != 0 {
            let strong = reader.u64_le()?;
            let peer_coverage = self.read_coverage(reader)?;
            let is_equal = self.settle_children(store, self.salt, range, mask, strong, &peer_coverage);
            self.tasks.push_back(SessionTask::Confirm { range, mask: if is_equal { mask } else { 0 } });
        }
        Ok(())
    }

    /// Takes the confirmation of the asker: the children judged equal still are.
    pub(super) fn on_confirm(
        &mut self,
        store: &mut LocalStore,
        range: HashRange,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let mask = reader.u16_le()?;
        let expected = self.unconfirmed.remove(&range).ok_or(WireError::Form)?;
        if mask != 0 {
            let strong = reader.u64_le()?;
            let peer_coverage = self.read_coverage(reader)?;
            let salt = self.peer.as_ref().expect("items follow the start").salt;
            if mask != expected {
                return Err(WireError::Form);
            }
            self.settle_children(store, salt, range, mask, strong, &peer_coverage);
        }
        Ok(())
    }

    /// Settles the children if their strong hash is equal in this instant; otherwise asks about them one by one.
    /// Returns whether it is equal.
    fn settle_children(
        &mut self,
        store: &mut LocalStore,
        salt: u64,
        range: HashRange,
        mask: u16,
        strong: u64,
        peer_coverage: &PeerCoverage,
    ) -> bool {
        let is_equal =
            strong == strong_hash(store, salt, range, mask) || store.controls.has(Control::OldDigest);
        let ranges: Vec<HashRange> = children(range, mask).collect();
        if !is_equal {
            self.ranges_to_ask.extend(ranges);
            return false;
        }
        if store.may_settle(peer_coverage) {
            store.cover_ranges(&ranges, peer_coverage);
        } else {
            self.has_refused = true;
        }
        ranges.iter().for_each(|child| self.settled.add(child.first(), child.last()));
        true
    }

    /// Takes the answer to a list: which of the listed rows the peer has too, and how many of its own rows follow.
    pub(super) fn on_list_answer(
        &mut self,
        range: HashRange,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let has = reader.bytes()?;
        let left = rows_to_come(reader)?;
        let peer_coverage = self.read_coverage(reader)?;
        let listing = self.listing(range).ok_or(WireError::Form)?;
        if has.len() != listing.len().div_ceil(8) {
            return Err(WireError::Form);
        }
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        for (i, (_, dot_set)) in listing.into_iter().enumerate() {
            if has[i / 8] >> (i % 8) & 1 == 1 {
                rows.extend(listed(dot_set, &peer_coverage));
            } else {
                wanted.push(dot_set.key().to_vec());
            }
        }
        let listing = ListingArriving { wanted, ..ListingArriving::new(range, peer_coverage, rows, left) };
        self.listing_arriving = Some(listing);
        Ok(())
    }

    /// The list that this answer for `range` belongs to: that of the range itself, or an empty list of a range that
    /// contains it.
    pub(super) fn listing(&mut self, range: HashRange) -> Option<Vec<(u64, DotSet)>> {
        for depth in (0..=range.depth).rev().step_by(FAN_BITS as usize) {
            let above = HashRange::at(range.first(), depth);
            let Some(OpenAsk::List { rows, answered }) = self.open_asks.get_mut(&above) else { continue };
            if above != range && !rows.is_empty() {
                return None;
            }
            *answered += measure(range);
            let rows = std::mem::take(rows);
            if *answered >= measure(above) {
                self.open_asks.remove(&above);
            }
            return Some(rows);
        }
        None
    }

    pub(super) fn row(
        &mut self,
        store: &LocalStore,
        now: Time,
        tag: u8,
        reader: &mut Reader<'_>,
        progress: &mut RepairOutcome,
    ) -> Result<(), WireError> {
        let collecting = self.listing_arriving.as_mut().ok_or(WireError::Form)?;
        collecting.left = collecting.left.checked_sub(1).ok_or(WireError::Form)?;
        self.rows += 1;
        let row = if tag == SAME {
            let key = reader.bytes()?;
            let context = reader.clocks()?;
            let dot_set = collecting.mine.get(key).ok_or(WireError::Form)?.clone();
            Ok(PeerRow { dot_set, vector: self.vector.clone(), context })
        } else {
            reader.row(&self.vector)?
        };
        let checked = match row {
            Ok(row) => store
                .check_row(now, &row.dot_set)
                .map_err(|why| refused_row(row.dot_set.key(), why))
                .map(|()| row),
            Err(why) => Err(refused_row(b"", why)),
        };
        match checked {
            Ok(row) if collecting.range.contains(store.hash_key.place(row.dot_set.key())) => {
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

    /// A row of the listing is sent in pieces.
    fn large(&mut self, store: &LocalStore, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let collecting = self.listing_arriving.as_mut().ok_or(WireError::Form)?;
        collecting.left = collecting.left.checked_sub(1).ok_or(WireError::Form)?;
        self.rows += 1;
        let (key, number) = (reader.bytes()?, reader.varint()?);
        if number <= self.large_receiver.arrived_up_to
            || !collecting.range.contains(store.hash_key.place(key))
        {
            return Err(WireError::Form);
        }
        let count = self.large_rows_awaited.len() + collecting.larges.len();
        if count >= LARGES_AWAITED_MAX {
            return Err(WireError::TooMany);
        }
        collecting.larges.insert(number, key.to_vec());
        Ok(())
    }

    /// A listing has arrived except for its large rows. Settles its range, or lets it wait for the large rows.
    fn on_listing_complete(&mut self, store: &mut LocalStore, now: Time) {
        let ListingArriving { range, peer_coverage, rows, has_refused, wanted, larges, .. } =
            self.listing_arriving.take().expect("called when there is one");
        if !wanted.is_empty() {
            let sent = rows.iter().map(|row| (row.dot_set.key().to_vec(), row.dot_set.clone())).collect();
            self.tasks.push_back(SessionTask::Wanted { range, keys: wanted, sent });
        }
        let parked = ListingAwaitsLarge { range, peer_coverage, rows, left: larges.len(), has_refused };
        if larges.is_empty() || store.controls.has(Control::RepairUnawaited) {
            self.settle_listing(store, now, parked);
            return;
        }
        self.merge_listing_without_larges(store, now, &parked, &larges);
        self.parked_count += 1;
        for (number, key) in larges {
            let awaited = self
                .large_rows_awaited
                .entry(number)
                .or_insert_with(|| LargeRowAwaited { key, parked: Vec::new() });
            awaited.parked.push(self.parked_count);
        }
        self.listings_awaiting_large.insert(self.parked_count, parked);
    }

    /// Settles the range of a listing whose large rows have arrived. If a row was refused, the rows are merged one by
    /// one.
    fn settle_listing(&mut self, store: &mut LocalStore, now: Time, parked: ListingAwaitsLarge) {
        let ListingAwaitsLarge { range, peer_coverage, rows, has_refused, .. } = parked;
        self.settle(store, now, range, &rows, (!has_refused).then_some(&peer_coverage));
    }

    /// Merges what the peer holds in a range, after which nothing more is to come for it.
    ///
    /// With `peer_coverage`, `rows` are everything that the peer holds there, and the range is covered by it from then
    /// on. Without, or where the peer has more leftovers than can be sent or kept, the rows are merged one by one and
    /// the session claims nothing.
    pub(super) fn settle(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        range: HashRange,
        rows: &[PeerRow],
        peer_coverage: Option<&PeerCoverage>,
    ) {
        let source = self.source();
        if let Some(peer_coverage) = peer_coverage.filter(|peer_coverage| store.may_settle(peer_coverage)) {
            store.settle_range(now, range, rows, peer_coverage, source);
        } else {
            self.has_refused = true;
            merge_each(store, now, rows, source);
        }
        self.settled.add(range.first(), range.last());
    }

    /// Merges a listing without its large rows, key by key, so that only the claim waits for these. The range is
    /// settled later, by the same rows.
    fn merge_listing_without_larges(
        &self,
        store: &mut LocalStore,
        now: Time,
        parked: &ListingAwaitsLarge,
        larges: &BTreeMap<u64, Vec<u8>>,
    ) {
        let mut rows = parked.rows.clone();
        if !parked.has_refused {
            let mut listed: BTreeSet<&[u8]> = rows.iter().map(|row| row.dot_set.key()).collect();
            listed.extend(larges.values().map(Vec::as_slice));
            let dot_set = store.rows_in(parked.range).into_iter().map(|id| store.row(id).dot_set.key());
            let removed: Vec<DotSet> = dot_set
                .filter(|key| !listed.contains(key))
                .map(|key| DotSet::empty(key, Removal::Unknown))
                .collect();
            rows.extend(
                removed.into_iter().filter_map(|dot_set| super::listed(dot_set, &parked.peer_coverage)),
            );
        }
        merge_each(store, now, &rows, self.source());
    }

    /// Takes a piece of a large row. When the row is complete, it goes to the listings that wait for it.
    pub(crate) fn handle_piece(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        piece: Piece<'_>,
        partial: &mut Option<PartialRow>,
    ) -> Result<RepairOutcome, WireError> {
        let mut progress = RepairOutcome::default();
        if self.peer.is_none() {
            // The piece belongs to an earlier session.
            return Ok(progress);
        }
        self.last_progress = now.mono;
        let arrived = self.large_receiver.handle_piece(&store.coverage, piece, &self.vector, partial)?;
        let Some(arrived) = arrived else { return Ok(progress) };
        let LargeRowAwaited { key, parked } =
            self.large_rows_awaited.remove(&arrived.large_id).ok_or(WireError::Form)?;
        let checked = match arrived.row {
            Ok(row) => match store.check_row(now, &row.dot_set) {
                Ok(()) if row.dot_set.key() != key => return Err(WireError::Form),
                checked => checked.map(|()| row),
            },
            Err(why) => Err(why),
        };
        let row = checked.map_err(|why| {
            self.has_refused = true;
            progress.refusals.push(refused_row(&key, why));
        });
        for id in parked {
            self.on_large_arrived(store, now, id, row.as_ref().ok());
        }
        Ok(progress)
    }

    /// A large row that a listing waits for has arrived, or was refused (`None`). Settles the range with the last one.
    fn on_large_arrived(&mut self, store: &mut LocalStore, now: Time, id: u64, row: Option<&PeerRow>) {
        let Some(parked) = self.listings_awaiting_large.get_mut(&id) else { return };
        parked.left -= 1;
        parked.has_refused |= row.is_none();
        parked.rows.extend(row.cloned());
        if parked.left > 0 {
            let source = self.source();
            merge_each(store, now, row.map(std::slice::from_ref).unwrap_or_default(), source);
        } else if let Some(parked) = self.listings_awaiting_large.remove(&id) {
            self.settle_listing(store, now, parked);
        }
    }

    /// Once everything is settled and nothing was refused: claims the vector that the peer announced at its start.
    /// Returns whether it was claimed by this call. Called between frames, because a frame carries the vector as of its
    /// beginning.
    pub(crate) fn claim_start_vector(&mut self, store: &mut LocalStore) -> bool {
        if self.phase >= Phase::Claimed || !self.settled.is_all() || !self.listings_awaiting_large.is_empty()
        {
            return false;
        }
        self.phase = Phase::Claimed;
        if self.has_refused {
            return false;
        }
        let start = self.peer.as_ref().expect("nothing settles before the start");
        if !store.coverage.has_room_for(&start.vector) {
            self.has_refused = true;
            return false;
        }
        let end = store.controls.has(Control::EndVector);
        store.coverage.claim_all(if end { &self.vector } else { &start.vector });
        store.raise_position(start.log, start.head);
        true
    }
}

/// Merges rows one by one. Only their keys are covered, not the range.
fn merge_each(store: &mut LocalStore, now: Time, rows: &[PeerRow], source: ChangeOrigin) {
    for row in rows {
        store.merge_rows(now, std::slice::from_ref(row), source, |_| ());
        store.cover_row(row);
    }
}
