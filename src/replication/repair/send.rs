//! What a session sends.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ANSWER, ANSWER_ROWS_MAX, Awaiting, CONFIRM, DIGEST, Emission, FINISHED, LARGE, LARGES_AHEAD_MAX, LIST,
    LIST_ROWS_MAX, PENDING_MAX, QUERIES_MAX, Query, ROW, Reply, SAME, STREAM_BYTES, STREAM_ROWS_MAX,
    STREAM_ROWS_MIN, Session, VERDICT, WANTED, children, listed, row_hash, strong_hash, weak_hash,
};
use crate::controls::Control;
use crate::replication::tail::context_of;
use crate::replication::tail::large::{self, Hint, Queue, Size};
use crate::store::coverage::{self, Pending};
use crate::store::digest::{DEPTH_MAX, FAN, FAN_BITS, Range};
use crate::store::entry::{Held, Record};
use crate::store::{Base, Row, Store};
use crate::time::Time;
use crate::wire::{FRAME_BYTES_MAX, Kind, Writer};

/// How many rows of usual size make a piece of a stream.
fn stream_rows(store: &Store) -> u64 {
    let row_bytes = store.bytes() / store.len().max(1) as u64;
    (STREAM_BYTES / (row_bytes + 1)).clamp(STREAM_ROWS_MIN, STREAM_ROWS_MAX)
}

/// Whether rows of a range would wait for a large one among them, and need not.
fn has_large_among_others(store: &Store, range: Range) -> bool {
    if range.depth >= DEPTH_MAX || store.node(range).rows < 2 {
        return false;
    }
    store.slots(range).into_iter().any(|slot| large::size(&store.slot(slot).held) != Size::Small)
}

impl Session {
    /// The next frame, if there is something to say.
    pub(crate) fn frame(&mut self, store: &mut Store, now: Time) -> Option<Vec<u8>> {
        if !self.has_started {
            return Some(self.start_frame(store));
        }
        let mut writer = Writer::new(Kind::Items);
        let version = store.seen.version();
        writer.dots(store.seen.grown_since(self.version));
        if store.controls.has(Control::EndHead) {
            writer.number(store.log.head());
        }
        let empty = writer.len();
        while writer.has_room() && !store.is_damaged && self.departing.len() < LARGES_AHEAD_MAX {
            if let Some(emission) = self.emissions.pop_front() {
                if !self.emit(store, &mut writer, emission) {
                    break;
                }
            } else if let Some(reply) = self.replies.pop_front() {
                self.reply(store, now, &mut writer, reply);
            } else if self.queries.len() < QUERIES_MAX
                && let Some(range) = self.asks.pop()
            {
                self.ask(store, &mut writer, range);
            } else {
                break;
            }
        }
        debug_assert_eq!(
            version,
            store.seen.version(),
            "the peer is told the vector under which the rows were cut"
        );
        let is_idle = self.replies.is_empty() && self.emissions.is_empty() && self.queries.is_empty();
        if self.is_settled
            && is_idle
            && self.asks.is_empty()
            && !self.has_finished
            && self.awaiting.is_empty()
            && self.departing.is_empty()
        {
            writer.range(FINISHED, Range::ALL);
            self.has_finished = true;
        }
        if writer.len() == empty || store.is_damaged {
            return None;
        }
        self.version = version;
        Some(writer.finish())
    }

    fn start_frame(&mut self, store: &Store) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Start);
        writer.number(self.laters);
        writer.hash_key(self.hash_key);
        writer.byte(u8::from(self.is_blank));
        writer.word(self.salt);
        writer.word(store.log.id);
        writer.number(store.log.head());
        writer.number(store.len() as u64);
        writer.number(store.bytes());
        writer.context(Some(store.seen.vector()));
        self.version = store.seen.version();
        self.has_started = true;
        if self.is_leader {
            self.asks.push(Range::ALL);
        }
        writer.finish()
    }

    /// Makes this side the one that asks first. Both sides know which one that is.
    pub(crate) fn lead(&mut self) {
        self.is_leader = true;
    }

    pub(super) fn ask(&mut self, store: &mut Store, writer: &mut Writer, range: Range) {
        let few = store.node(range).rows <= LIST_ROWS_MAX && !store.seen.is_crowded(range, PENDING_MAX);
        if !few && range.depth < DEPTH_MAX {
            self.ask_digest(store, writer, range);
            return;
        }
        if !store.controls.has(Control::NoVerify) && !store.verify(range) {
            return;
        }
        let slots = store.slots(range);
        let rows: Vec<(u64, Held)> = slots
            .into_iter()
            .map(|slot| (row_hash(store, self.salt, slot), store.slot(slot).held.clone()))
            .collect();
        writer.range(LIST, range);
        writer.number(rows.len() as u64);
        rows.iter().for_each(|(hash, _)| writer.word(*hash));
        writer.pending(&store.seen.pending(range), self.hash_key, &mut self.told);
        self.queries.insert(range, Query::List { rows, answered: 0 });
    }

    fn ask_digest(&mut self, store: &Store, writer: &mut Writer, range: Range) {
        writer.range(DIGEST, range);
        (0..FAN).for_each(|i| writer.short(weak_hash(store, self.salt, range.child(i))));
        self.queries.insert(range, Query::Digest);
    }

    fn reply(&mut self, store: &mut Store, now: Time, writer: &mut Writer, reply: Reply) {
        match reply {
            Reply::Judge { range, weak } => self.reply_verdict(store, writer, range, &weak),
            Reply::Confirm { range, mask } => {
                let is_crowded = children(range, mask).any(|child| store.seen.is_crowded(child, PENDING_MAX));
                if is_crowded {
                    self.asks.extend(children(range, mask));
                }
                writer.range(CONFIRM, range);
                self.write_mask(store, writer, self.salt, range, if is_crowded { 0 } else { mask });
            }
            Reply::Answer { range, hashes, base } => {
                self.reply_answer(store, now, writer, range, &hashes, base);
            }
            Reply::Stream { range, next, base } => self.reply_stream(store, now, writer, range, next, base),
            Reply::Wanted { range, keys, mut sent } => {
                writer.range(WANTED, range);
                writer.number(keys.len() as u64);
                for key in keys {
                    let peer_has = sent.remove(&key);
                    self.emissions.push_back(Emission { range, key, peer_has });
                }
            }
        }
    }

    fn reply_verdict(&mut self, store: &Store, writer: &mut Writer, range: Range, weak: &[u16; FAN]) {
        let salt = self.peer.as_ref().expect("items follow the start").salt;
        let mut mask = 0;
        for (i, weak) in weak.iter().enumerate() {
            let child = range.child(i);
            if weak_hash(store, salt, child) == *weak && !store.seen.is_crowded(child, PENDING_MAX) {
                mask |= 1 << i;
            }
        }
        writer.range(VERDICT, range);
        self.write_mask(store, writer, salt, range, mask);
        if mask != 0 {
            self.unconfirmed.insert(range, mask);
        }
        self.asks.extend(children(range, !mask));
    }

    fn write_mask(&mut self, store: &Store, writer: &mut Writer, salt: u64, range: Range, mask: u16) {
        writer.short(mask);
        if mask != 0 {
            writer.word(strong_hash(store, salt, range, mask));
            let none = store.seen.spans() == 0;
            let ranges = children(range, if none { 0 } else { mask });
            let mut pending: Vec<Pending> = ranges.flat_map(|child| store.seen.pending(child)).collect();
            // Where both hold the same, what the peer's vector has anyway says nothing new. (In a listing it does:
            // there it decides which of the peer's own dots were removed.)
            pending.retain(|pending| !coverage::beyond(&pending.context, &self.vector).dots.is_empty());
            writer.pending(&pending, self.hash_key, &mut self.told);
        }
    }

    /// Says which rows of a list this side has too, sends those that the list lacks, and waits for those only the
    /// list has.
    fn reply_answer(
        &mut self,
        store: &mut Store,
        now: Time,
        writer: &mut Writer,
        range: Range,
        hashes: &[u64],
        base: Base,
    ) {
        let rows = store.node(range).rows as usize;
        let is_divided = rows as u64 > stream_rows(store) || has_large_among_others(store, range);
        if hashes.is_empty() && is_divided {
            self.replies.push_front(Reply::Stream { range, next: range.first(), base });
            return;
        }
        if rows > ANSWER_ROWS_MAX && range.depth < DEPTH_MAX {
            self.ask_digest(store, writer, range);
            return;
        }
        if !store.controls.has(Control::NoVerify) && !store.verify(range) {
            return;
        }
        if hashes.is_empty() {
            self.reply_all(store, now, writer, range, &base);
            return;
        }
        let salt = self.peer.as_ref().expect("items follow the start").salt;
        let own: BTreeMap<u64, u32> =
            store.slots(range).into_iter().map(|slot| (row_hash(store, salt, slot), slot)).collect();
        let mut has = vec![0_u8; hashes.len().div_ceil(8)];
        let (mut same, mut missing) = (BTreeSet::new(), false);
        for (i, hash) in hashes.iter().enumerate() {
            if let Some(slot) = own.get(hash) {
                has[i / 8] |= 1 << (i % 8);
                same.insert(store.slot(*slot).held.key().to_vec());
            } else {
                missing = true;
            }
        }
        let held = own.values().map(|slot| store.slot(*slot).held.clone());
        let mine: BTreeMap<Vec<u8>, Held> = held.map(|held| (held.key().to_vec(), held)).collect();
        writer.range(ANSWER, range);
        writer.bytes(&has);
        writer.number((mine.len() - same.len()) as u64);
        writer.pending(&store.seen.pending(range), self.hash_key, &mut self.told);
        for key in mine.keys().filter(|key| !same.contains(*key)) {
            self.emissions.push_back(Emission { range, key: key.clone(), peer_has: None });
        }
        if missing {
            self.awaiting.insert(range, Awaiting { mine, same, base });
        } else {
            let known = mine.into_iter().filter(|(key, _)| same.contains(key));
            let rows: Vec<Row> = known.filter_map(|(_, held)| listed(held, &base)).collect();
            self.settle(store, now, range, &rows, Some(&base));
        }
    }

    /// Answers a list that is empty: all rows are missing there.
    fn reply_all(&mut self, store: &mut Store, now: Time, writer: &mut Writer, range: Range, base: &Base) {
        let slots = store.slots(range);
        writer.range(ANSWER, range);
        writer.bytes(&[]);
        writer.number(slots.len() as u64);
        writer.pending(&store.seen.pending(range), self.hash_key, &mut self.told);
        let keys = slots.into_iter().map(|slot| store.slot(slot).held.key().to_vec());
        self.emissions.extend(keys.map(|key| Emission { range, key, peer_has: None }));
        self.settle(store, now, range, &[], Some(base));
    }

    /// The next piece of what an empty list lacks.
    fn reply_stream(
        &mut self,
        store: &mut Store,
        now: Time,
        writer: &mut Writer,
        range: Range,
        next: u64,
        base: Base,
    ) {
        let mut piece = Range::at(next, range.depth);
        let rows = stream_rows(store);
        while piece.depth < DEPTH_MAX
            && (piece.first() != next
                || store.node(piece).rows > rows
                || has_large_among_others(store, piece))
        {
            piece = Range::at(next, piece.depth + FAN_BITS);
        }
        if piece.last() < range.last() {
            self.replies.push_front(Reply::Stream { range, next: piece.last() + 1, base: base.clone() });
        }
        self.reply_answer(store, now, writer, piece, &[], base);
    }

    /// Cuts a row into the frame as it is in this instant. Answers whether the frame can take more.
    fn emit(&mut self, store: &mut Store, writer: &mut Writer, emission: Emission) -> bool {
        let Emission { range, key, peer_has } = emission;
        let held =
            store.held(&key).map_or_else(|| Held::Nothing(Record::bare(&key)), |(held, _)| held.clone());
        if held.is_empty() && !store.controls.has(Control::NoVerify) && !store.key_adds_up(&key) {
            store.is_damaged = true;
            return false;
        }
        let context = context_of(store, &held);
        let before = writer.len();
        let size = large::size(&held);
        if peer_has.is_some_and(|had| had == held) {
            writer.range(SAME, range);
            writer.bytes(&key);
            writer.context(context.as_deref());
        } else if size == Size::Large {
            writer.range(LARGE, range);
            writer.bytes(&key);
            writer.number(self.departing.note(&key));
            self.rows += 1;
            return true;
        } else if size == Size::Small {
            writer.range(ROW, range);
            writer.row(&held, context.as_deref());
        }
        if writer.len() == before || writer.len() + 64 > FRAME_BYTES_MAX {
            // Too large for any frame: the peer gets a form it refuses, so that it claims nothing.
            writer.cut(before);
            writer.range(ROW, range);
            writer.row(&Held::Nothing(Record::bare(&[])), None);
        } else if let Some(awaiting) = self.awaiting.get_mut(&range) {
            awaiting.mine.insert(key, held);
        }
        self.rows += 1;
        self.rows_bytes += (writer.len() - before) as u64;
        true
    }

    /// The next piece of a large row.
    pub(crate) fn large_piece(&mut self, store: &mut Store, hint: &mut Option<Hint>) -> Option<Vec<u8>> {
        let bytes = self.departing.piece(store, Queue::Repair, self.version, hint)?;
        self.rows_bytes += bytes.len() as u64;
        Some(bytes)
    }
}
