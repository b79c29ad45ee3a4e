//! Reconcile: two replicas compare their digests, descend only where they differ, and swap what differs.
//!
//! Both sides run the same code; each *asks* about ranges and *replies* to what the other asks. For a range of many
//! rows an ask is a digest: 16 weak hashes of two bytes, one per child. The other side answers which children look
//! equal, with one strong hash of 64 bits over all of these together; the asker compares that with its own digest
//! **in this instant**, settles the children, and confirms with its own strong hash, by which the other side
//! settles in turn. So each side judges for itself with 64 bits and never relies on a verdict about a digest that
//! has changed since; and yet a level of the tree costs 50 bytes instead of 128. Whoever finds a hash that does not
//! match asks about the children one by one: a level deeper each time, so that it ends. The children that differ
//! are asked about by the side that found out: the descent takes half a round trip a level.
//!
//! For a range of few rows an ask is a list of their hashes. The other side answers which it has too, sends the
//! rows that the list lacks and gets those it lacks itself. A list always settles, because rows can be merged
//! whatever has changed meanwhile: each side merges the other's *full listing as of one instant*. An empty replica
//! lists nothing for everything, and is streamed the whole state.
//!
//! What is settled is covered by the context that came with it, at once and for good (see [`crate::seen`]). The
//! vector is raised once everything is settled, to what the peer announced at its start.
//!
//! There are no queues of frames: replies are tasks, evaluated in the instant in which they are cut into a frame.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::controls::Control;
use crate::digest::{DEPTH_MAX, FAN, FAN_BITS, HashKey, Range, fingerprint};
use crate::entry::{Held, Record};
use crate::seen::{self, Context, Pending};
use crate::store::{Base, Row, Store};
use crate::tail::{Refused, context_of, refused};
use crate::time::Time;
use crate::wire::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET, Kind, Reader, WireError, Writer};

/// A range of at most this many rows is listed.
const LIST_ROWS_MAX: u64 = 32;
/// A list is not answered with more rows than this at once: the range is divided instead.
const ANSWER_ROWS_MAX: usize = 1_024;
/// When an empty list is answered, in pieces of about this many rows.
const STREAM_ROWS: u64 = 128;
/// Asks that a side leaves open at a time.
const QUERIES_MAX: usize = 4_096;
/// Contexts that are told along with one range; if there are more, it is divided.
const PENDING_MAX: usize = 256;

const DIGEST: u8 = 1;
const VERDICT: u8 = 2;
const CONFIRM: u8 = 3;
const LIST: u8 = 4;
const ANSWER: u8 = 5;
const WANTED: u8 = 6;
const ROW: u8 = 7;
const SAME: u8 = 8;
const FINISHED: u8 = 9;

/// What this side has asked and not been answered.
#[derive(Debug)]
enum Query {
    Digest,
    /// The listed rows with their hashes, and how much of the range has been answered (an empty list is answered
    /// in pieces).
    List {
        rows: Vec<(u64, Held)>,
        answered: u128,
    },
}

/// What this side owes the peer; evaluated when there is room in a frame.
#[derive(Debug)]
enum Reply {
    Judge {
        range: Range,
        weak: [u16; FAN],
    },
    /// A mask of zero takes the question back.
    Confirm {
        range: Range,
        mask: u16,
    },
    Answer {
        range: Range,
        hashes: Vec<u64>,
        base: Base,
    },
    Stream {
        range: Range,
        next: u64,
        base: Base,
    },
    /// The rows that the peer lacks, by key, with those that it has just sent itself.
    Wanted {
        range: Range,
        keys: Vec<Vec<u8>>,
        sent: BTreeMap<Vec<u8>, Held>,
    },
}

/// A row to be cut into a frame, and what the peer is known to have of it.
#[derive(Debug)]
struct Emission {
    range: Range,
    key: Vec<u8>,
    peer_has: Option<Held>,
}

/// A listed range that waits for the rows only the peer has.
#[derive(Debug)]
struct Awaiting {
    /// What this side held when it answered, and for what it sent, what it sent.
    mine: BTreeMap<Vec<u8>, Held>,
    /// The keys among them that the peer has just so.
    same: BTreeSet<Vec<u8>>,
    base: Base,
}

/// A listing that is arriving.
#[derive(Debug)]
struct Collecting {
    range: Range,
    base: Base,
    rows: Vec<Row>,
    left: usize,
    has_refused: bool,
    /// What the peer lacks and gets next.
    wanted: Vec<Vec<u8>>,
    /// What this side sent of the range, for rows that came back the same.
    mine: BTreeMap<Vec<u8>, Held>,
}

/// What the peer announced.
#[derive(Debug)]
struct Start {
    salt: u64,
    log: u64,
    head: u64,
    vector: Arc<Context>,
}

/// The ranges settled so far, as pieces of the line.
#[derive(Debug, Default)]
struct Settled {
    pieces: BTreeMap<u64, u64>,
}

impl Settled {
    fn add(&mut self, range: Range) {
        let (mut first, mut last) = (range.first(), range.last());
        while let Some((start, end)) = self.pieces.range(..=last).next_back().map(|(s, e)| (*s, *e)) {
            if end.checked_add(1).is_some_and(|next| next < first) {
                break;
            }
            self.pieces.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.pieces.insert(first, last);
        // A neighbour that begins right behind.
        if let Some(next) = last.checked_add(1)
            && let Some(end) = self.pieces.remove(&next)
        {
            self.pieces.insert(first, end);
        }
    }

    fn is_all(&self) -> bool {
        self.pieces.get(&0) == Some(&u64::MAX)
    }
}

/// What a frame led to.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) refusals: Vec<Refused>,
    /// This replica gave way to the peer's hash key: sessions with others are void.
    pub(crate) has_rekeyed: bool,
}

/// One session with one peer.
#[derive(Debug)]
pub(crate) struct Session {
    hash_key: HashKey,
    is_blank: bool,
    salt: u64,
    has_started: bool,
    is_leader: bool,
    peer: Option<Start>,
    /// The version of the vector that the peer has.
    version: u64,
    /// The peer's vector as of its latest frame.
    vector: Arc<Context>,
    replies: VecDeque<Reply>,
    emissions: VecDeque<Emission>,
    asks: Vec<Range>,
    queries: BTreeMap<Range, Query>,
    /// Children that this side judged equal and the asker has not confirmed.
    unconfirmed: BTreeMap<Range, u16>,
    awaiting: BTreeMap<Range, Awaiting>,
    collecting: Option<Collecting>,
    settled: Settled,
    has_refused: bool,
    is_settled: bool,
    has_finished: bool,
    peer_has_finished: bool,
    pub(crate) last_progress: Time,
    /// Rows of both directions, and bytes of those sent.
    pub(crate) rows: u64,
    pub(crate) rows_bytes: u64,
}

impl Session {
    pub(crate) fn new(store: &Store, now: Time, salt: u64) -> Self {
        Self {
            hash_key: store.hash_key,
            is_blank: store.len() == 0,
            salt,
            has_started: false,
            is_leader: false,
            peer: None,
            version: 0,
            vector: Arc::default(),
            replies: VecDeque::new(),
            emissions: VecDeque::new(),
            asks: Vec::new(),
            queries: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            collecting: None,
            settled: Settled::default(),
            has_refused: false,
            is_settled: false,
            has_finished: false,
            peer_has_finished: false,
            last_progress: now,
            rows: 0,
            rows_bytes: 0,
        }
    }

    /// Both sides are through; nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.has_finished && self.peer_has_finished
    }

    pub(crate) fn refused_rows(&self) -> bool {
        self.has_refused
    }

    // Receiving.

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
            let is_blank = self.is_blank;
            *self = Self::new(store, now, salt);
            self.is_blank = is_blank;
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
            DIGEST => {
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
                let base = Base { vector: self.vector.clone(), pending: reader.pending(self.hash_key)? };
                self.replies.push_back(Reply::Answer { range, hashes, base });
            }
            ANSWER => self.answered(range, reader)?,
            WANTED => {
                let left = reader.count(0)?;
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
        Ok(())
    }

    /// The peer says which children of an asked range look equal.
    fn verdict(&mut self, store: &mut Store, range: Range, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let mask = reader.short()?;
        if !matches!(self.queries.remove(&range), Some(Query::Digest)) {
            return Err(WireError::Form);
        }
        if mask != 0 {
            let strong = reader.word()?;
            let pending = reader.pending(self.hash_key)?;
            let is_equal = self.judge(store, self.salt, range, mask, strong, pending);
            self.replies.push_back(Reply::Confirm { range, mask: if is_equal { mask } else { 0 } });
        }
        Ok(())
    }

    /// The asker says that the children judged equal still are.
    fn confirmed(
        &mut self,
        store: &mut Store,
        range: Range,
        reader: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let mask = reader.short()?;
        let expected = self.unconfirmed.remove(&range).ok_or(WireError::Form)?;
        if mask != 0 {
            let strong = reader.word()?;
            let pending = reader.pending(self.hash_key)?;
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
                store.cover_range(child, &base);
                self.settled.add(child);
            } else {
                self.asks.push(child);
            }
        }
        is_equal
    }

    /// The peer says which of the listed rows it has too, and how many rows of its own follow.
    fn answered(&mut self, range: Range, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let has = reader.bytes()?;
        let left = usize::try_from(reader.number()?).map_err(|_| WireError::Form)?;
        let base = Base { vector: self.vector.clone(), pending: reader.pending(self.hash_key)? };
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
    fn listing(&mut self, range: Range) -> Option<Vec<(u64, Held)>> {
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

    fn row(
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
        if has_refused {
            for row in &rows {
                store.merge_row(now, row);
                store.cover_row(row, &Arc::new(seen::beyond(&row.vector, store.seen.vector())));
            }
        } else {
            store.settle(now, range, &rows, &base);
        }
        if !wanted.is_empty() {
            let sent = rows.into_iter().map(|row| (row.held.key().to_vec(), row.held)).collect();
            self.replies.push_back(Reply::Wanted { range, keys: wanted, sent });
        }
        self.settled.add(range);
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

    // Sending.

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
        while writer.len() < FRAME_BYTES_TARGET && !store.is_damaged {
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
        writer.hash_key(self.hash_key);
        writer.byte(u8::from(self.is_blank));
        writer.word(self.salt);
        writer.word(store.log.id);
        writer.number(store.log.head());
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

    fn ask(&mut self, store: &mut Store, writer: &mut Writer, range: Range) {
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
        writer.pending(&store.seen.pending(range), self.hash_key);
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
                let crowded = children(range, mask).any(|child| store.seen.is_crowded(child, PENDING_MAX));
                let mask = if crowded { 0 } else { mask };
                if crowded {
                    self.asks.extend(children(range, u16::MAX));
                }
                writer.range(CONFIRM, range);
                self.write_mask(store, writer, self.salt, range, mask);
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

    fn write_mask(&self, store: &Store, writer: &mut Writer, salt: u64, range: Range, mask: u16) {
        writer.short(mask);
        if mask != 0 {
            writer.word(strong_hash(store, salt, range, mask));
            let none = store.seen.spans() == 0;
            let ranges = children(range, if none { 0 } else { mask });
            let mut pending: Vec<Pending> = ranges.flat_map(|child| store.seen.pending(child)).collect();
            // Where both hold the same, what the peer's vector has anyway says nothing new. (In a listing it does:
            // there it decides which of the peer's own dots were removed.)
            pending.retain(|pending| !seen::beyond(&pending.context, &self.vector).dots.is_empty());
            writer.pending(&pending, self.hash_key);
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
        if hashes.is_empty() && rows > STREAM_ROWS as usize {
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
        writer.pending(&store.seen.pending(range), self.hash_key);
        for key in mine.keys().filter(|key| !same.contains(*key)) {
            self.emissions.push_back(Emission { range, key: key.clone(), peer_has: None });
        }
        if missing {
            self.awaiting.insert(range, Awaiting { mine, same, base });
        } else {
            let known = mine.into_iter().filter(|(key, _)| same.contains(key));
            let rows: Vec<Row> = known.map(|(_, held)| listed(held, &base)).collect();
            store.settle(now, range, &rows, &base);
            self.settled.add(range);
        }
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
        while piece.depth < DEPTH_MAX && (piece.first() != next || store.node(piece).rows > STREAM_ROWS) {
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
        if peer_has.is_some_and(|had| had == held) {
            writer.range(SAME, range);
            writer.bytes(&key);
            writer.context(context.as_deref());
        } else {
            writer.range(ROW, range);
            writer.row(&held, context.as_deref());
        }
        if writer.len() + 64 > FRAME_BYTES_MAX {
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
}

fn children(range: Range, mask: u16) -> impl Iterator<Item = Range> {
    (0..FAN).filter(move |i| mask >> i & 1 == 1).map(move |i| range.child(i))
}

/// How much of the line a range is.
fn measure(range: Range) -> u128 {
    1 << (64 - range.depth)
}

fn weak_hash(store: &Store, salt: u64, range: Range) -> u16 {
    fingerprint(salt, &store.node(range).bytes()) as u16
}

fn strong_hash(store: &Store, salt: u64, range: Range, mask: u16) -> u64 {
    let bytes: Vec<u8> = children(range, mask).flat_map(|child| store.node(child).bytes()).collect();
    fingerprint(salt, &bytes)
}

fn row_hash(store: &Store, salt: u64, slot: u32) -> u64 {
    fingerprint(salt, &store.row_hash(slot).to_le_bytes())
}

/// A row that both sides hold, as part of the peer's listing.
fn listed(held: Held, base: &Base) -> Row {
    Row { context: base.context(held.key()), held, vector: base.vector.clone() }
}
