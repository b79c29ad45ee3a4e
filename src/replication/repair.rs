//! Repair: two replicas compare their digests, descend only where they differ, and exchange what differs.
//!
//! Both sides run the same code; each *asks* about ranges and *replies* to what the other asks. For a range of many
//! rows an ask is a digest: 16 weak hashes of two bytes, one per child. The other side answers which children look
//! equal, with one strong hash of 64 bits over all of these together. The asker compares that with its own digest **in
//! this instant**, settles the children, and confirms with its own strong hash, by which the other side settles in
//! turn. So each side judges for itself with 64 bits and never relies on a verdict about a digest that has changed
//! since, and a level of the tree costs 50 bytes instead of 128. A side that finds a strong hash that does not match
//! asks about the children one by one: a level deeper each time, so the descent ends. The children that differ are
//! asked about by the side that found the difference: the descent takes half a round trip per level.
//!
//! For a range of few rows an ask is a list of their hashes. The other side answers which it has too, sends the
//! rows that the list lacks and gets those it lacks itself. A list always settles, because rows can be merged
//! whatever has changed meanwhile: each side merges the other's *full listing as of one instant*. An empty replica
//! lists nothing for everything, and is streamed the whole state.
//!
//! A large row is only named in its listing, with a number, and travels in pieces beside the frames (see
//! [`crate::replication::large`]). The rows around it are merged at once, one by one; the range is settled, and
//! so the vector claimed, when the large rows of its listing have arrived. A side that streams its whole state puts
//! each large row in a range of its own.
//!
//! # Invariants
//!
//! - A settled range is covered by the context that came with it, at once and permanently ([`crate::store::coverage`]).
//! - The vector is raised once everything is settled and no row was refused, to what the peer announced at its start.
//!   It must never be raised to a later vector of the peer.
//! - There are no queues of frames. Replies are tasks, evaluated in the instant in which they are cut into a frame; a
//!   reply must never be computed ahead of that.
//! - Progress counts in bytes, in both directions: on a slow link one frame may take longer than every timeout.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::id::{LogId, RowId, SessionId};
use crate::replication::large::{LargeRowReceiver, LargeRowSender, PartialRow};
use crate::replication::rows::RefusedRow;
use crate::store::coverage::{HashIntervals, Vector};
use crate::store::digest::{FAN, HashKey, HashRange, fingerprint};
use crate::store::entry::DotSet;
use crate::store::slab::ChangeOrigin;
use crate::store::{LocalStore, PeerCoverage, PeerRow};
use crate::time::Time;
use crate::wire::FRAME_BYTES_MAX;
use crate::wire::LeftoverTable;

mod receive;
mod send;

/// A range of at most this many rows is listed.
const LIST_ROWS_MAX: u64 = 32;
/// A list is not answered with more rows than this at once: the range is divided instead.
const ANSWER_ROWS_MAX: usize = 1_024;
/// An empty list is answered in pieces of about this many rows and bytes. A piece is settled when it is complete.
const STREAM_ROWS_MAX: u64 = 512;
const STREAM_ROWS_MIN: u64 = 32;
const STREAM_BYTES: u64 = 256 << 10;
/// Asks of a side that may be unanswered at a time.
const OPEN_ASKS_MAX: usize = 4_096;
/// Limits of the work that a peer may cause. More replies than the open asks of both sides call for, or more asks than
/// those can lead to, are a protocol error.
pub(crate) const TASKS_MAX: usize = 4 * OPEN_ASKS_MAX;
/// Rows of one list. A correct writer divides a range with more, except at the greatest depth.
const LISTED_ROWS_MAX: usize = 1_024;
/// Bytes on the wire of the lists that wait for their answers: as many as one frame may have.
pub(crate) const LIST_BYTES_MAX: usize = FRAME_BYTES_MAX;
const RANGES_TO_ASK_MAX: usize = 2 * FAN * TASKS_MAX;
/// At most this many rows of a session are forwarded to the own group: enough for a few rows that were lost with a
/// delegate, but not everything that this node missed while it was away.
const FORWARDED_ROWS_MAX: u64 = 128;
/// Contexts that are sent with one range. If there are more, the range is divided.
const EXTRA_REGIONS_PER_RANGE_MAX: usize = 256;
/// Large rows that a side has named and not sent. At this number it sends no other items until some are sent.
const LARGES_AHEAD_MAX: usize = 4_096;
/// Large rows that a side waits for. The excess over `LARGES_AHEAD_MAX` allows for rows that are on their way.
const LARGES_AWAITED_MAX: usize = 2 * LARGES_AHEAD_MAX;
/// Bytes per second below which a session makes no progress. Each byte of an unfinished frame, sent or received,
/// extends the timeout by the time that it takes at this rate, so a peer cannot keep a session alive with a byte now
/// and then.
const PROGRESS_RATE_MIN: u64 = 64;

pub(crate) const DIGEST: u8 = 1;
pub(crate) const VERDICT: u8 = 2;
pub(crate) const CONFIRM: u8 = 3;
pub(crate) const LIST: u8 = 4;
pub(crate) const ANSWER: u8 = 5;
pub(crate) const WANTED: u8 = 6;
const REPAIR_ROW: u8 = 7;
const SAME: u8 = 8;
pub(crate) const FINISHED: u8 = 9;
/// Instead of a [`REPAIR_ROW`]: its key, and the number under which it is sent in pieces.
const LARGE: u8 = 10;

/// An ask of this side that is not answered completely.
#[derive(Debug)]
enum OpenAsk {
    Digest,
    /// The listed rows with their hashes, and how much of the range was answered (an empty list is answered in pieces).
    List {
        rows: Vec<(u64, DotSet)>,
        answered: u128,
    },
}

/// A reply that this side owes the peer. Evaluated when there is room in a frame.
#[derive(Debug)]
enum SessionTask {
    Judge {
        range: HashRange,
        weak: [u16; FAN],
    },
    /// A mask of zero: the children are not settled, and the peer drops its verdict.
    Confirm {
        range: HashRange,
        mask: u16,
    },
    Answer {
        range: HashRange,
        hashes: Vec<u64>,
        peer_coverage: PeerCoverage,
        /// The size of the list on the wire.
        list_bytes: usize,
    },
    Stream {
        range: HashRange,
        next: u64,
        peer_coverage: PeerCoverage,
    },
    /// The keys of a listing that the peer asked for, and the rows that the peer holds, as far as they are known.
    Wanted {
        range: HashRange,
        keys: Vec<Vec<u8>>,
        sent: BTreeMap<Vec<u8>, DotSet>,
    },
}

/// A row to be cut into a frame, and what the peer is known to hold at its key.
#[derive(Debug)]
struct QueuedRow {
    range: HashRange,
    key: Vec<u8>,
    peer_has: Option<DotSet>,
}

/// A range whose list this side has answered, and which waits for the rows that only the peer has.
#[derive(Debug)]
struct ListingSent {
    /// What this side held when it answered; for rows that it sent, what it sent.
    mine: BTreeMap<Vec<u8>, DotSet>,
    /// The keys among them whose rows are equal on both sides.
    same: BTreeSet<Vec<u8>>,
    peer_coverage: PeerCoverage,
}

/// A listing that is arriving.
#[derive(Debug)]
struct ListingArriving {
    range: HashRange,
    peer_coverage: PeerCoverage,
    rows: Vec<PeerRow>,
    left: usize,
    has_refused: bool,
    /// Keys that the peer lacks. Their rows are sent next.
    wanted: Vec<Vec<u8>>,
    /// What this side sent of the range, for [`SAME`].
    mine: BTreeMap<Vec<u8>, DotSet>,
    /// The keys of large rows, by the numbers under which they are sent.
    larges: BTreeMap<u64, Vec<u8>>,
}

impl ListingArriving {
    /// With `rows` that this side has already, and so many more to come.
    fn new(range: HashRange, peer_coverage: PeerCoverage, rows: Vec<PeerRow>, left: usize) -> Self {
        let (wanted, mine, larges) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { range, peer_coverage, rows, left, has_refused: false, wanted, mine, larges }
    }
}

/// A listing that has arrived except for large rows.
#[derive(Debug)]
struct ListingAwaitsLarge {
    range: HashRange,
    peer_coverage: PeerCoverage,
    rows: Vec<PeerRow>,
    /// Large rows that are missing.
    left: usize,
    has_refused: bool,
}

/// A large row that was named and has not arrived.
#[derive(Debug)]
struct LargeRowAwaited {
    key: Vec<u8>,
    /// The listings that wait for it.
    parked: Vec<u64>,
}

/// The peer's side of a session: what its start said, and whether it has finished.
#[derive(Debug)]
struct PeerSide {
    salt: u64,
    log: LogId,
    head: u64,
    /// Entries that it held, and their bytes.
    entries: u64,
    bytes: u64,
    vector: Vector,
    /// This side followed that log before the session.
    was_followed: bool,
    /// The peer has sent everything.
    has_finished: bool,
}

/// The result of handling a frame or a piece.
#[derive(Debug, Default)]
pub(crate) struct RepairOutcome {
    pub(crate) refusals: Vec<RefusedRow>,
    /// This replica has adopted the peer's hash key. Sessions with other peers are void.
    pub(crate) has_rekeyed: bool,
}

/// The progress of this side of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The start was not sent yet.
    New,
    Exchanging,
    /// Everything is settled. The peer's announced vector was claimed, unless a row was refused.
    Claimed,
    /// The peer was sent [`FINISHED`].
    Finished,
}

/// One session with one peer.
#[derive(Debug)]
pub(crate) struct RepairSession {
    id: SessionId,
    hash_key: HashKey,
    /// This side held nothing when the session began.
    is_blank: bool,
    salt: u64,
    phase: Phase,
    asks_first: bool,
    peer: Option<PeerSide>,
    /// This side's vector as the peer was last sent it.
    sent_vector: Vector,
    /// The peer's vector as of its latest frame.
    vector: Vector,
    tasks: VecDeque<SessionTask>,
    /// The size on the wire of all lists that wait for their answers.
    list_bytes: usize,
    queued_rows: VecDeque<QueuedRow>,
    ranges_to_ask: Vec<HashRange>,
    open_asks: BTreeMap<HashRange, OpenAsk>,
    /// Children that this side found equal and the asker has not confirmed.
    unconfirmed: BTreeMap<HashRange, u16>,
    listings_sent: BTreeMap<HashRange, ListingSent>,
    listing_arriving: Option<ListingArriving>,
    /// The intervals of the hash space that are settled.
    settled: HashIntervals,
    /// The leftovers sent so far, for each direction.
    leftovers_sent: LeftoverTable,
    leftovers_received: LeftoverTable,
    /// Listings that wait for large rows, in the order of their arrival.
    listings_awaiting_large: BTreeMap<u64, ListingAwaitsLarge>,
    parked_count: u64,
    large_rows_awaited: BTreeMap<u64, LargeRowAwaited>,
    large_sender: LargeRowSender,
    large_receiver: LargeRowReceiver,
    has_refused: bool,
    /// The change origin of the first [`FORWARDED_ROWS_MAX`] rows. If the peer is in another group and only a few rows
    /// differ, this node's own group lacks them as well, and they are forwarded to it.
    change_origin: ChangeOrigin,
    began: Time,
    /// Entries that this side held when the session began.
    entries: u64,
    pub(crate) last_progress: Duration,
    /// Rows of both directions.
    pub(crate) rows: u64,
    /// Bytes of the rows that were sent.
    pub(crate) rows_bytes: u64,
    /// Bytes of all frames of both directions.
    pub(crate) bytes: u64,
}

impl RepairSession {
    pub(crate) fn new(
        store: &LocalStore,
        now: Time,
        salt: u64,
        id: SessionId,
        change_origin: ChangeOrigin,
    ) -> Self {
        Self {
            id,
            hash_key: store.hash_key,
            is_blank: store.len() == 0,
            salt,
            phase: Phase::New,
            asks_first: false,
            peer: None,
            sent_vector: Vector::default(),
            vector: Vector::default(),
            tasks: VecDeque::new(),
            list_bytes: 0,
            queued_rows: VecDeque::new(),
            ranges_to_ask: Vec::new(),
            open_asks: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            listings_sent: BTreeMap::new(),
            listing_arriving: None,
            settled: HashIntervals::default(),
            leftovers_sent: LeftoverTable::default(),
            leftovers_received: LeftoverTable::default(),
            listings_awaiting_large: BTreeMap::new(),
            parked_count: 0,
            large_rows_awaited: BTreeMap::new(),
            large_sender: LargeRowSender::default(),
            large_receiver: LargeRowReceiver::default(),
            has_refused: false,
            change_origin,
            began: now,
            entries: store.len() as u64,
            last_progress: now.mono,
            rows: 0,
            rows_bytes: 0,
            bytes: 0,
        }
    }

    /// The change origin of the rows that are merged next: decides whether they are forwarded.
    fn source(&self) -> ChangeOrigin {
        if self.is_blank || self.rows > FORWARDED_ROWS_MAX {
            ChangeOrigin::Learned
        } else {
            self.change_origin
        }
    }

    /// Whether both sides have sent everything.
    pub(crate) fn is_finished(&self) -> bool {
        self.phase == Phase::Finished && self.peer.as_ref().is_some_and(|peer| peer.has_finished)
    }

    /// Whether the peer makes this side keep more than a correct session needs.
    fn is_overfull(&self) -> bool {
        self.tasks.len() > TASKS_MAX
            || self.listings_sent.len() > TASKS_MAX
            || self.unconfirmed.len() > TASKS_MAX
            || self.list_bytes > LIST_BYTES_MAX
            || self.ranges_to_ask.len() > RANGES_TO_ASK_MAX
    }

    /// The length of the longest list that [`TASKS_MAX`] bounds.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept_tasks(&self) -> usize {
        self.tasks.len().max(self.listings_sent.len()).max(self.unconfirmed.len())
    }

    /// The size on the wire of the lists that wait for their answers.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept_list_bytes(&self) -> usize {
        self.list_bytes
    }

    /// The link has sent or received `bytes` of the session, in complete or unfinished frames.
    pub(crate) fn on_bytes_moved(&mut self, now: Time, bytes: usize) {
        let paid = Duration::from_micros((bytes as u64).saturating_mul(1_000_000 / PROGRESS_RATE_MIN));
        self.last_progress = self.last_progress.saturating_add(paid).min(now.mono);
    }

    /// The part of an unfinished large row that has arrived, when the session is given up.
    pub(crate) fn into_partial(self) -> Option<PartialRow> {
        self.large_receiver.into_partial()
    }

    /// The log whose position a finished session raises, once the peer's start has arrived.
    pub(crate) fn peer_log(&self) -> Option<LogId> {
        self.peer.as_ref().map(|peer| peer.log)
    }

    /// The entries that the peer holds and their bytes, once its start has arrived.
    pub(crate) fn peer_totals(&self) -> Option<(u64, u64)> {
        self.peer.as_ref().map(|peer| (peer.entries, peer.bytes))
    }

    /// Whether the peer may send most of what this side lacks: its start states more entries than this side held, or
    /// this side followed its log in an earlier run, and may hold as many old ones.
    pub(crate) fn feeds(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.entries > self.entries || peer.was_followed)
    }

    /// Up to where the end of this session claims an origin; 0 if it does not, or is not known to.
    #[cfg(any(feature = "json", feature = "node"))]
    pub(crate) fn will_claim(&self, origin: crate::id::RunId) -> u64 {
        let peer = self.peer.as_ref().filter(|_| !self.has_refused && self.phase < Phase::Claimed);
        peer.map_or(0, |peer| peer.vector.get(origin))
    }

    /// When the session began, and whether it is finished with no row refused.
    pub(crate) fn outcome(&self) -> (Time, bool) {
        (self.began, self.is_finished() && !self.has_refused)
    }

    pub(crate) fn refused_rows(&self) -> bool {
        self.has_refused
    }
}

fn children(range: HashRange, mask: u16) -> impl Iterator<Item = HashRange> {
    (0..FAN).filter(move |i| mask >> i & 1 == 1).map(move |i| range.child(i))
}

/// How many places of the hash space a range has.
fn measure(range: HashRange) -> u128 {
    1 << (64 - range.depth)
}

fn weak_hash(store: &LocalStore, salt: u64, range: HashRange) -> u16 {
    fingerprint(salt, &store.node(range).bytes()) as u16
}

fn strong_hash(store: &LocalStore, salt: u64, range: HashRange, mask: u16) -> u64 {
    let bytes: Vec<u8> = children(range, mask).flat_map(|child| store.node(child).bytes()).collect();
    fingerprint(salt, &bytes)
}

fn salted_row_hash(store: &LocalStore, salt: u64, row: RowId) -> u64 {
    fingerprint(salt, &store.row_digest(row).to_le_bytes())
}

/// A row that both sides hold, as part of the peer's listing. `None` if the peer has not sent all of its coverage
/// there: the row is known already, and what the peer covers at its key is not.
fn listed(dot_set: DotSet, peer_coverage: &PeerCoverage) -> Option<PeerRow> {
    peer_coverage.is_whole.then(|| PeerRow {
        context: peer_coverage.context(dot_set.key()),
        dot_set,
        vector: peer_coverage.vector.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::id::RunId;
    use crate::replication::vectors::OldParts;
    use crate::store::coverage::{Clocks, LEFTOVERS_MAX, RegionCoverage, VectorNews};
    use crate::store::digest::DEPTH_MAX;
    use crate::time::{Lifetime, Stamp};
    use crate::wire::{Assembler, Kind, Reader, WireError, Writer};

    /// Hands a frame of items to a session that has seen its peer's start. Without `answers` no reply is sent.
    fn hand(items: &[&dyn Fn(&mut Writer)], answers: bool) -> Result<(), WireError> {
        let (mut ours, mut theirs) = (LocalStore::of_run(1), LocalStore::of_run(2));
        let mut session = RepairSession::new(&ours, NOW, 1, SessionId::default(), ChangeOrigin::Learned);
        let start = RepairSession::new(&theirs, NOW, 2, SessionId::default(), ChangeOrigin::Learned)
            .next_frame(&mut theirs, NOW, &OldParts::default())
            .expect("a session begins");
        let frames = items.iter().map(|item| {
            let mut writer = Writer::new(Kind::Items);
            writer.session(SessionId::default());
            writer.vector_news(&VectorNews::default());
            item(&mut writer);
            writer.finish()
        });
        for bytes in std::iter::once(start).chain(frames) {
            let mut assembler = Assembler::default();
            assembler.feed(&bytes);
            let (kind, mut reader) = Reader::new(assembler.next()?.expect("a whole frame"))?;
            reader.session()?;
            if kind == Kind::Start {
                session.on_start(&mut ours, NOW, 1, reader)?;
            } else {
                session.items(&mut ours, NOW, reader)?;
            }
            while answers && session.next_frame(&mut ours, NOW, &OldParts::default()).is_some() {}
        }
        Ok(())
    }

    #[test]
    fn digest_of_the_children_of_a_deepest_range_is_refused() {
        for depth in [0, DEPTH_MAX - 4, DEPTH_MAX] {
            let digest = |writer: &mut Writer| {
                writer.range(DIGEST, HashRange::at(7, depth));
                (0..FAN).for_each(|_| writer.u16_le(9));
            };
            let taken = hand(&[&digest], true);
            assert_eq!(taken.is_err(), depth == DEPTH_MAX, "{taken:?} at {depth}");
        }
    }

    #[test]
    fn lists_that_wait_for_answers_are_bounded() {
        let list = |rows: usize, contexts: u64, writer: &mut Writer| {
            writer.range(LIST, HashRange::at(7, 8));
            writer.varint(rows as u64);
            (0..rows).for_each(|row| writer.u64_le(row as u64));
            let context = |i: u64| {
                let clocks: Clocks = (0..1_000).map(|origin| (RunId::new(origin), i)).collect();
                RegionCoverage::new(HashKey::default(), HashIntervals::between(i, i), clocks)
            };
            let contexts: Vec<_> = (1..=contexts).map(context).collect();
            writer.regions(&contexts, HashKey::default(), &mut LeftoverTable::default());
        };
        for (rows, taken) in [(LISTED_ROWS_MAX, Ok(())), (LISTED_ROWS_MAX + 1, Err(WireError::TooMany))] {
            assert_eq!(hand(&[&|writer: &mut Writer| list(rows, 0, writer)], true), taken);
        }
        let large = |writer: &mut Writer| list(1, 1_000, writer);
        let many: [&dyn Fn(&mut Writer); 8] = [&large; 8];
        assert_eq!(hand(&many, true), Ok(()));
        assert_eq!(hand(&many, false), Err(WireError::TooMany));
    }

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };

    /// A session that has ended.
    struct Ended {
        /// Whether each side claimed.
        claimed: [bool; 2],
        /// The bytes that each side sent.
        bytes: [usize; 2],
    }

    /// Runs a session to its end.
    fn run(stores: &mut [LocalStore; 2]) -> Ended {
        let mut sessions = [
            RepairSession::new(&stores[0], NOW, 1, SessionId::default(), ChangeOrigin::Learned),
            RepairSession::new(&stores[1], NOW, 2, SessionId::default(), ChangeOrigin::Learned),
        ];
        sessions[0].lead();
        let (mut claimed, mut bytes_sent, mut is_moving) = ([false; 2], [0; 2], true);
        while std::mem::take(&mut is_moving) {
            for from in 0..2 {
                claimed[from] |= sessions[from].claim_start_vector(&mut stores[from]);
                while let Some(bytes) =
                    sessions[from].next_frame(&mut stores[from], NOW, &OldParts::default())
                {
                    is_moving = true;
                    bytes_sent[from] += bytes.len();
                    let mut assembler = Assembler::default();
                    assembler.feed(&bytes);
                    let (kind, mut reader) = Reader::new(assembler.next().unwrap().unwrap()).unwrap();
                    let to = 1 - from;
                    reader.session().unwrap();
                    if kind == Kind::Start {
                        sessions[to].on_start(&mut stores[to], NOW, 9, reader).unwrap();
                    } else {
                        sessions[to].items(&mut stores[to], NOW, reader).unwrap();
                    }
                    claimed[to] |= sessions[to].claim_start_vector(&mut stores[to]);
                }
            }
        }
        assert!(sessions.iter().all(RepairSession::is_finished));
        Ended { claimed, bytes: bytes_sent }
    }

    fn key(i: u64) -> Vec<u8> {
        let mut key = Vec::new();
        crate::store::key::register_key(&format!("k{i}"), &mut key);
        key
    }

    /// Two stores with the same 1,000 values. The second one has leftovers, each of its own origin.
    fn nearly_equal(leftovers: u64) -> [LocalStore; 2] {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let store =
            |run, hash_key| LocalStore::new(&Config::lan(), RunId::new(run), hash_key, Controls::default());
        let (mut hearer, mut teller) = (store(2, new), store(1, old));
        for i in 0..1_000 {
            hearer.put(NOW, &key(1_000_000 + i), b"v", Lifetime::default());
            let dot_set = hearer.dot_set_or_empty(&key(1_000_000 + i));
            let row = PeerRow { dot_set, vector: Vector::default(), context: None };
            teller.merge_rows(NOW, &[row], ChangeOrigin::Learned, |_| ());
        }
        teller.coverage.claim_all(hearer.coverage.vector());
        for i in 0..leftovers {
            let context = Clocks::from_iter([(RunId::new(100 + i), 5)]);
            teller.coverage.cover_key(&key(i), old.place(&key(i)), &context);
        }
        teller.rekey(new);
        [hearer, teller]
    }

    /// Bytes of a leftover with one interval and one clock, and of its number, at most.
    const LEFTOVER_BYTES: u64 = 48;
    const NUMBER_BYTES: u64 = 3;

    #[test]
    fn leftovers_of_nearly_equal_stores_are_sent_once() {
        for leftovers in [300, 1_000, 4_000] {
            let mut stores = nearly_equal(leftovers);
            // From the second session on both have them.
            for round in 0..3 {
                for (store, i) in stores.iter_mut().zip(0..) {
                    store.put(NOW, &key(2_000_000 + 2 * round + i), b"v", Lifetime::default());
                }
                let ended = run(&mut stores);
                assert_eq!(ended.claimed, [true; 2], "{leftovers} leftovers");
                // Both differences lie below at most two children of the root: so many lists name leftovers.
                let most = leftovers * (LEFTOVER_BYTES + 12 * NUMBER_BYTES) + 4_096;
                assert!(ended.bytes.iter().all(|bytes| *bytes as u64 <= most), "{:?} > {most}", ended.bytes);
                for store in &stores {
                    // Besides the leftovers, one context at a place may remain.
                    let kept = store.coverage.extra_count() as u64;
                    assert!((leftovers..=leftovers + 1).contains(&kept), "{kept} of {leftovers}");
                    let covered = |i| Stamp { clock: 5, origin: RunId::new(100 + i) };
                    assert!((0..leftovers).all(|i| store.covers(&key(i), covered(i))));
                }
            }
        }
    }

    #[test]
    fn session_with_too_many_leftovers_to_tell_claims_nothing() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        for (leftovers, others) in
            [(10, 0), (10, 100), (LEFTOVERS_MAX as u64 + 10, 0), (LEFTOVERS_MAX as u64 + 10, 100)]
        {
            let store = |run, hash_key| {
                LocalStore::new(&Config::lan(), RunId::new(run), hash_key, Controls::default())
            };
            let (mut teller, mut hearer) = (store(1, old), store(2, new));
            // The sender has merged the last key's value by a session, and its delete, of another origin, by a row.
            let (put, delete) = (
                hearer.put(NOW, &key(leftovers), b"v", Lifetime::default()).0,
                Stamp { clock: 5, origin: RunId::new(3) },
            );
            (0..others).for_each(|i| _ = hearer.put(NOW, &key(1_000_000 + i), b"v", Lifetime::default()));
            teller.coverage.claim(put);
            for i in 1..=leftovers {
                let origin = if i == leftovers { delete.origin } else { RunId::new(100 + i) };
                let context = Clocks::from_iter([(origin, delete.clock)]);
                teller.coverage.cover_key(&key(i), old.place(&key(i)), &context);
            }
            teller.rekey(new);
            teller.put(NOW, &key(0), b"v", Lifetime::default());
            let is_told = leftovers <= LEFTOVERS_MAX as u64;
            let mut stores = [hearer, teller];
            let claimed = run(&mut stores).claimed;
            let [hearer, _] = stores;
            assert_eq!(claimed, [is_told, true], "{leftovers} leftovers");
            assert_eq!(hearer.dot_set(&key(leftovers)).is_none(), is_told);
            assert_eq!(hearer.covers(&key(leftovers), delete), is_told);
            assert_eq!(hearer.coverage.vector().get(RunId::new(1)) > 0, is_told);
            assert!(hearer.dot_set(&key(0)).is_some(), "rows are merged all the same");
        }
    }
}
