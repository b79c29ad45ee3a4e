//! The sending half of a repair session: its start, asks, replies and rows.
//!
//! Every row, hash and context is read from the store in the instant in which it is cut into a frame. The vector must
//! not change while a frame is written, because the frame begins with the vector under which its rows are read.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ANSWER, ANSWER_ROWS_MAX, CONFIRM, DIGEST, EXTRA_REGIONS_PER_RANGE_MAX, FINISHED, LARGE, LARGES_AHEAD_MAX,
    LIST, LIST_ROWS_MAX, ListingSent, OPEN_ASKS_MAX, OpenAsk, Phase, QueuedRow, REPAIR_ROW, RepairSession,
    SAME, STREAM_BYTES, STREAM_ROWS_MAX, STREAM_ROWS_MIN, SessionTask, VERDICT, WANTED, children, listed,
    salted_row_hash, strong_hash, weak_hash,
};
use crate::controls::Control;
use crate::id::RowId;
use crate::replication::large::{self, ResumeOffer, Size};
use crate::replication::rows::context_of;
use crate::replication::vectors::OldParts;
use crate::store::coverage::Vector;
use crate::store::digest::{DEPTH_MAX, FAN, FAN_BITS, HashRange};
use crate::store::entry::{DotSet, Removal};
use crate::store::{LocalStore, PeerCoverage, PeerRow};
use crate::time::Time;
use crate::wire::{FRAME_BYTES_MAX, Kind, LargeRowStream, Writer};

/// How many rows of average size make a piece of a stream.
fn stream_rows(store: &LocalStore) -> u64 {
    let row_bytes = store.bytes() / store.len().max(1) as u64;
    (STREAM_BYTES / (row_bytes + 1)).clamp(STREAM_ROWS_MIN, STREAM_ROWS_MAX)
}

/// Whether a range holds a large row beside others and can be divided, so that these need not wait for it.
fn has_large_among_others(store: &LocalStore, range: HashRange) -> bool {
    if range.depth >= DEPTH_MAX || store.node(range).rows < 2 {
        return false;
    }
    store.rows_in(range).into_iter().any(|id| large::size(&store.row(id).dot_set) != Size::Small)
}

impl RepairSession {
    /// The next frame, if there is something to send.
    pub(crate) fn next_frame(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        old_parts: &OldParts,
    ) -> Option<Vec<u8>> {
        if self.phase == Phase::New {
            return Some(self.start_frame(store, old_parts));
        }
        let mut writer = Writer::new(Kind::Items);
        writer.session(self.id);
        let vector = store.coverage.vector().clone();
        writer.vector_news(&old_parts.news(store, &self.sent_vector));
        if store.controls.has(Control::EndHead) {
            writer.varint(store.log.head());
        }
        let empty = writer.len();
        while writer.has_room() && !store.is_damaged && self.large_sender.len() < LARGES_AHEAD_MAX {
            if let Some(queued) = self.queued_rows.pop_front() {
                if !self.emit(store, &mut writer, queued) {
                    break;
                }
            } else if let Some(task) = self.tasks.pop_front() {
                self.reply(store, now, &mut writer, task);
            } else if self.open_asks.len() < OPEN_ASKS_MAX
                && let Some(range) = self.ranges_to_ask.pop()
            {
                self.ask_range(store, &mut writer, range);
            } else {
                break;
            }
        }
        debug_assert!(
            vector.is_shared_with(store.coverage.vector()),
            "the peer is told the vector under which the rows were cut"
        );
        let is_idle = self.tasks.is_empty() && self.queued_rows.is_empty() && self.open_asks.is_empty();
        if self.phase == Phase::Claimed
            && is_idle
            && self.ranges_to_ask.is_empty()
            && self.listings_sent.is_empty()
            && self.large_sender.is_empty()
        {
            writer.range(FINISHED, HashRange::ALL);
            self.phase = Phase::Finished;
        }
        if writer.len() == empty || store.is_damaged {
            return None;
        }
        self.sent_vector = vector;
        Some(writer.finish())
    }

    fn start_frame(&mut self, store: &LocalStore, old_parts: &OldParts) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Start);
        writer.session(self.id);
        writer.hash_key(self.hash_key);
        writer.byte(u8::from(self.is_blank));
        writer.u64_le(self.salt);
        writer.log(store.log.id);
        writer.varint(store.log.head());
        writer.varint(store.len() as u64);
        writer.varint(store.bytes());
        writer.vector_news(&old_parts.news(store, &Vector::default()));
        self.sent_vector = store.coverage.vector().clone();
        self.phase = Phase::Exchanging;
        if self.asks_first {
            self.ranges_to_ask.push(HashRange::ALL);
        }
        writer.finish()
    }

    /// Makes this side the one that asks first. Both sides agree on which one that is.
    pub(crate) fn lead(&mut self) {
        self.asks_first = true;
    }

    pub(super) fn ask_range(&mut self, store: &mut LocalStore, writer: &mut Writer, range: HashRange) {
        let few = store.node(range).rows <= LIST_ROWS_MAX
            && !store.coverage.is_crowded(range, EXTRA_REGIONS_PER_RANGE_MAX);
        if !few && range.depth < DEPTH_MAX {
            self.ask_digest(store, writer, range);
            return;
        }
        if !store.verify(range) {
            return;
        }
        let ids = store.rows_in(range);
        let rows: Vec<(u64, DotSet)> = ids
            .into_iter()
            .map(|id| (salted_row_hash(store, self.salt, id), store.row(id).dot_set.clone()))
            .collect();
        writer.range(LIST, range);
        writer.varint(rows.len() as u64);
        rows.iter().for_each(|(hash, _)| writer.u64_le(*hash));
        writer.regions(&store.coverage.extra_in(range), self.hash_key, &mut self.leftovers_sent);
        self.open_asks.insert(range, OpenAsk::List { rows, answered: 0 });
    }

    fn ask_digest(&mut self, store: &LocalStore, writer: &mut Writer, range: HashRange) {
        writer.range(DIGEST, range);
        (0..FAN).for_each(|i| writer.u16_le(weak_hash(store, self.salt, range.child(i))));
        self.open_asks.insert(range, OpenAsk::Digest);
    }

    fn reply(&mut self, store: &mut LocalStore, now: Time, writer: &mut Writer, task: SessionTask) {
        match task {
            SessionTask::Judge { range, weak } => self.reply_verdict(store, writer, range, &weak),
            SessionTask::Confirm { range, mask } => {
                let is_crowded = children(range, mask)
                    .any(|child| store.coverage.is_crowded(child, EXTRA_REGIONS_PER_RANGE_MAX));
                if is_crowded {
                    self.ranges_to_ask.extend(children(range, mask));
                }
                writer.range(CONFIRM, range);
                self.write_mask(store, writer, self.salt, range, if is_crowded { 0 } else { mask });
            }
            SessionTask::Answer { range, hashes, peer_coverage, list_bytes } => {
                self.list_bytes -= list_bytes;
                self.reply_answer(store, now, writer, range, &hashes, peer_coverage);
            }
            SessionTask::Stream { range, next, peer_coverage } => {
                self.reply_stream(store, now, writer, range, next, peer_coverage);
            }
            SessionTask::Wanted { range, keys, mut sent } => {
                writer.range(WANTED, range);
                writer.varint(keys.len() as u64);
                for key in keys {
                    let peer_has = sent.remove(&key);
                    self.queued_rows.push_back(QueuedRow { range, key, peer_has });
                }
            }
        }
    }

    fn reply_verdict(
        &mut self,
        store: &LocalStore,
        writer: &mut Writer,
        range: HashRange,
        weak: &[u16; FAN],
    ) {
        let salt = self.peer.as_ref().expect("items follow the start").salt;
        let mut mask = 0;
        for (i, weak) in weak.iter().enumerate() {
            let child = range.child(i);
            if weak_hash(store, salt, child) == *weak
                && !store.coverage.is_crowded(child, EXTRA_REGIONS_PER_RANGE_MAX)
            {
                mask |= 1 << i;
            }
        }
        writer.range(VERDICT, range);
        self.write_mask(store, writer, salt, range, mask);
        if mask != 0 {
            self.unconfirmed.insert(range, mask);
        }
        self.ranges_to_ask.extend(children(range, !mask));
    }

    fn write_mask(
        &mut self,
        store: &LocalStore,
        writer: &mut Writer,
        salt: u64,
        range: HashRange,
        mask: u16,
    ) {
        writer.u16_le(mask);
        if mask != 0 {
            writer.u64_le(strong_hash(store, salt, range, mask));
            let none = store.coverage.extra_count() == 0;
            let ranges: Vec<HashRange> = children(range, if none { 0 } else { mask }).collect();
            let mut regions = store.coverage.extra_in_all(&ranges);
            // Where both hold the same, contexts within the peer's vector say nothing new. (In a listing they do: there
            // they decide which of the peer's own dots were removed.)
            regions.retain(|region| !self.vector.covers_all(&region.clocks));
            writer.regions(&regions, self.hash_key, &mut self.leftovers_sent);
        }
    }

    /// Answers a list: states which of its rows this side has too, queues those that the list lacks, and waits for
    /// those that only the peer has.
    fn reply_answer(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        writer: &mut Writer,
        range: HashRange,
        hashes: &[u64],
        peer_coverage: PeerCoverage,
    ) {
        let rows = store.node(range).rows as usize;
        let is_divided = rows as u64 > stream_rows(store) || has_large_among_others(store, range);
        if hashes.is_empty() && is_divided {
            self.tasks.push_front(SessionTask::Stream { range, next: range.first(), peer_coverage });
            return;
        }
        if rows > ANSWER_ROWS_MAX && range.depth < DEPTH_MAX {
            self.ask_digest(store, writer, range);
            return;
        }
        if !store.verify(range) {
            return;
        }
        if hashes.is_empty() {
            self.reply_all(store, now, writer, range, &peer_coverage);
            return;
        }
        let salt = self.peer.as_ref().expect("items follow the start").salt;
        let own: BTreeMap<u64, RowId> =
            store.rows_in(range).into_iter().map(|id| (salted_row_hash(store, salt, id), id)).collect();
        let mut has = vec![0_u8; hashes.len().div_ceil(8)];
        let (mut same, mut missing) = (BTreeSet::new(), false);
        for (i, hash) in hashes.iter().enumerate() {
            if let Some(id) = own.get(hash) {
                has[i / 8] |= 1 << (i % 8);
                same.insert(store.row(*id).dot_set.key().to_vec());
            } else {
                missing = true;
            }
        }
        let dot_set = own.values().map(|id| store.row(*id).dot_set.clone());
        let mine: BTreeMap<Vec<u8>, DotSet> =
            dot_set.map(|dot_set| (dot_set.key().to_vec(), dot_set)).collect();
        writer.range(ANSWER, range);
        writer.bytes(&has);
        writer.varint((mine.len() - same.len()) as u64);
        writer.regions(&store.coverage.extra_in(range), self.hash_key, &mut self.leftovers_sent);
        for key in mine.keys().filter(|key| !same.contains(*key)) {
            self.queued_rows.push_back(QueuedRow { range, key: key.clone(), peer_has: None });
        }
        if missing {
            self.listings_sent.insert(range, ListingSent { mine, same, peer_coverage });
        } else {
            let known = mine.into_iter().filter(|(key, _)| same.contains(key));
            let rows: Vec<PeerRow> =
                known.filter_map(|(_, dot_set)| listed(dot_set, &peer_coverage)).collect();
            self.settle(store, now, range, &rows, Some(&peer_coverage));
        }
    }

    /// Answers an empty list with all rows of the range.
    fn reply_all(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        writer: &mut Writer,
        range: HashRange,
        peer_coverage: &PeerCoverage,
    ) {
        let ids = store.rows_in(range);
        writer.range(ANSWER, range);
        writer.bytes(&[]);
        writer.varint(ids.len() as u64);
        writer.regions(&store.coverage.extra_in(range), self.hash_key, &mut self.leftovers_sent);
        let keys = ids.into_iter().map(|id| store.row(id).dot_set.key().to_vec());
        self.queued_rows.extend(keys.map(|key| QueuedRow { range, key, peer_has: None }));
        self.settle(store, now, range, &[], Some(peer_coverage));
    }

    /// Answers the next piece of an empty list that is too large to be answered at once.
    fn reply_stream(
        &mut self,
        store: &mut LocalStore,
        now: Time,
        writer: &mut Writer,
        range: HashRange,
        next: u64,
        peer_coverage: PeerCoverage,
    ) {
        let mut piece = HashRange::at(next, range.depth);
        let rows = stream_rows(store);
        while piece.depth < DEPTH_MAX
            && (piece.first() != next
                || store.node(piece).rows > rows
                || has_large_among_others(store, piece))
        {
            piece = HashRange::at(next, piece.depth + FAN_BITS);
        }
        if piece.last() < range.last() {
            self.tasks.push_front(SessionTask::Stream {
                range,
                next: piece.last() + 1,
                peer_coverage: peer_coverage.clone(),
            });
        }
        self.reply_answer(store, now, writer, piece, &[], peer_coverage);
    }

    /// Cuts a row into the frame as it is in this instant. Returns whether the frame may go on; `false` if the store is
    /// damaged.
    fn emit(&mut self, store: &mut LocalStore, writer: &mut Writer, queued: QueuedRow) -> bool {
        let QueuedRow { range, key, peer_has } = queued;
        let dot_set = store.dot_set_or_empty(&key);
        if dot_set.is_empty() && !store.key_adds_up(&key) {
            store.is_damaged = true;
            return false;
        }
        let context = context_of(store, &dot_set);
        let before = writer.len();
        let size = large::size(&dot_set);
        if peer_has.is_some_and(|had| had == dot_set) {
            writer.range(SAME, range);
            writer.bytes(&key);
            writer.clocks(context.as_ref());
        } else if size == Size::Large {
            writer.range(LARGE, range);
            writer.bytes(&key);
            writer.varint(self.large_sender.enqueue(&key));
            self.rows += 1;
            return true;
        } else if size == Size::Small {
            writer.range(REPAIR_ROW, range);
            writer.row(&dot_set, context.as_ref());
        }
        if writer.len() == before || writer.len() + 64 > FRAME_BYTES_MAX {
            // Too large for any frame: the peer is sent a form that it refuses, so that it claims nothing.
            writer.truncate(before);
            writer.range(REPAIR_ROW, range);
            writer.row(&DotSet::empty(&[], Removal::Unknown), None);
        } else if let Some(awaiting) = self.listings_sent.get_mut(&range) {
            awaiting.mine.insert(key, dot_set);
        }
        self.rows += 1;
        self.rows_bytes += (writer.len() - before) as u64;
        true
    }

    /// The next piece of a large row.
    pub(crate) fn large_piece(
        &mut self,
        store: &mut LocalStore,
        old_parts: &OldParts,
        hint: &mut Option<ResumeOffer>,
    ) -> Option<Vec<u8>> {
        let told = (old_parts, &self.sent_vector);
        let bytes = self.large_sender.next_piece(store, LargeRowStream::Repair(self.id), told, hint)?;
        self.rows_bytes += bytes.len() as u64;
        Some(bytes)
    }
}
