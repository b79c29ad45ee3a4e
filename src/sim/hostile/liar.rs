//! The liar: what it makes of the frames of its replica, and what it adds.
//!
//! The encoders here are written for their lies alone. Where a body is written by a private function elsewhere, its
//! layout is repeated (`docs/wire.md` has all of them), so a change of the layout must be repeated here.

use std::num::NonZeroU64;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use super::{Lie, Spared};
use crate::config::VALUE_BYTES_CEILING;
use crate::id::{LogId, RunId, SessionId};
use crate::membership::Member;
use crate::replica::Lane;
use crate::replication::repair::{ANSWER, CONFIRM, DIGEST, FINISHED, LIST, VERDICT, WANTED};
use crate::replication::tail;
use crate::store::coverage::{BUCKETS, BucketMask, Clocks, ClocksSum, NamedOld, VectorNews};
use crate::store::digest::{DEPTH_MAX, FAN, FAN_BITS, HashKey, HashRange};
use crate::store::key::STORED_KEY_BYTES_MAX;
use crate::time::{HybridClock, Lifetime, Stamp, Time};
use crate::wire::{Ack, Check, Hello, Kind, LargeRowStream, Rates, Reader, Seen, Writer};

/// A row has no context, one that is sent whole, or one that is a difference from the one before; why a row has no
/// dots; and records in a roster frame: see `docs/wire.md`.
const NO_CONTEXT: u8 = 0;
const WHOLE_CONTEXT: u8 = 1;
const CHANGED_CONTEXT: u8 = 2;
const REMOVAL_UNKNOWN: u8 = 0;
pub(super) const RECORDS: u8 = 0;

/// A frame for a lane, or a datagram.
pub(in crate::sim) type Told = (Option<Lane>, Vec<u8>);

/// What a liar knows of the peer at the other end of a link, and of the cluster.
pub(super) struct Truth {
    /// By the peer's clock.
    pub(super) now: Time,
    pub(super) skew_max: Duration,
    pub(super) own: (LogId, RunId),
    pub(super) peer: (LogId, RunId),
    pub(super) peer_head: u64,
    pub(super) peer_hash_key: HashKey,
    pub(super) peer_vector_hash: u64,
    pub(super) peer_old_sum: ClocksSum,
    pub(super) peer_root: u128,
    /// The session that is open at the peer, or its next one.
    pub(super) session: SessionId,
    pub(super) has_session: bool,
    /// The runs of all other nodes but the peer.
    pub(super) others: Vec<RunId>,
    pub(super) members: Vec<Member>,
    /// Some keys that the peer holds, in stored form.
    pub(super) keys: Vec<Vec<u8>>,
}

/// The liar between a replica and the network.
#[derive(Debug)]
pub(in crate::sim) struct Liar {
    pub(super) lies: Vec<Lie>,
    pub(super) share: f64,
    pub(super) spared: Spared,
    pub(super) random: ChaCha8Rng,
}

impl Liar {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.random.next_u32() as usize % limit
    }

    fn chance(&mut self, share: f64) -> bool {
        f64::from(self.random.next_u32()) < share * f64::from(u32::MAX)
    }

    pub(super) fn pick(&mut self) -> Option<Lie> {
        if self.lies.is_empty() || !self.chance(self.share) {
            return None;
        }
        let at = self.below(self.lies.len());
        Some(self.lies[at])
    }

    /// A clock: long past, of now, or at one of the edges, which it passes seldom.
    fn clock(&mut self, truth: &Truth) -> u64 {
        let ahead = |times| HybridClock::limit(truth.now, truth.skew_max * times);
        match self.below(16) {
            0 => 1,
            1..=4 => ahead(0),
            5..=9 => ahead(1),
            10..=13 => ahead(2),
            14 => ahead(2) + 1,
            _ => u64::MAX,
        }
    }

    /// A run: of an honest node, of the liar, or made up. Seldom that of the peer, which knows better.
    fn run(&mut self, truth: &Truth) -> RunId {
        match self.below(16) {
            0 => truth.peer.1,
            1 | 2 => truth.own.1,
            3 | 4 => RunId::new(self.random.next_u64()),
            _ if truth.others.is_empty() || self.spared == Spared::RowsAndRuns => truth.own.1,
            _ => truth.others[self.below(truth.others.len())],
        }
    }

    /// A count that is usually small and sometimes in the thousands.
    fn count(&mut self) -> usize {
        [1, 1, 3, 40, 3_000, 5_000][self.below(6)]
    }

    /// Clocks about some runs, or about thousands of made-up ones.
    fn clocks(&mut self, truth: &Truth) -> Clocks {
        let count = self.count();
        let mut entry = |_| match count {
            0..40 => (self.run(truth), self.clock(truth)),
            _ => (RunId::new(self.random.next_u64()), HybridClock::limit(truth.now, Duration::ZERO)),
        };
        (0..count).map(&mut entry).collect()
    }

    /// A stored key: one that the peer holds, or one of the liar's own.
    fn key(&mut self, truth: &Truth) -> Vec<u8> {
        match truth.keys.len() {
            keys if keys > 0 && self.spared == Spared::Nothing => truth.keys[self.below(keys)].clone(),
            _ => format!("\0lie {}", self.below(20)).into_bytes(),
        }
    }

    fn range(&mut self) -> HashRange {
        let depth = [0, 0, 0, 4, 8, DEPTH_MAX][self.below(6)] / FAN_BITS * FAN_BITS;
        HashRange::at(self.random.next_u64(), depth)
    }

    /// What goes out in the place of a frame, over the same lane.
    pub(super) fn instead_of(&mut self, frame: &[u8], truth: &Truth) -> Vec<u8> {
        let Some(lie) = self.pick() else { return frame.to_vec() };
        let is_greeting = frame[5] == Kind::Hello as u8;
        match lie {
            Lie::News => self.with_more_news(frame, truth).unwrap_or_else(|| frame.to_vec()),
            Lie::Listings if !is_greeting => frame.repeat(self.below(3)),
            Lie::Bent => self.bent(frame),
            Lie::Hellos if is_greeting => self.hello(truth),
            _ => frame.to_vec(),
        }
    }

    /// The frame with further entries in the vector at its beginning. `None` if it has none.
    fn with_more_news(&mut self, frame: &[u8], truth: &Truth) -> Option<Vec<u8>> {
        let (kind, mut reader) = Reader::new(&frame[4..]).ok()?;
        let body = reader.left();
        match kind {
            Kind::Tail => {}
            Kind::Items => _ = reader.session().ok()?,
            Kind::Start => {
                _ = (reader.session().ok()?, reader.hash_key().ok()?);
                _ = (reader.byte().ok()?, reader.u64_le().ok()?, reader.u64_le().ok()?);
                _ = (reader.varint().ok()?, reader.varint().ok()?, reader.varint().ok()?);
            }
            _ => return None,
        }
        let before = body - reader.left();
        let mut news = reader.vector_news().ok()?;
        for (origin, clock) in self.clocks(truth).iter() {
            news.entries.insert(origin, clock);
        }
        let mut writer = Writer::new(kind);
        writer.rest(&frame[6..6 + before]);
        writer.vector_news(&news);
        writer.rest(reader.rest());
        Some(writer.finish())
    }

    fn bent(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut bent = frame.to_vec();
        let at = 4 + self.below(frame.len() - 4);
        if self.chance(0.5) {
            bent[at] ^= 1 << self.below(8);
        } else {
            bent.truncate(at.max(6));
            let len = (bent.len() - 4) as u32;
            bent[..4].copy_from_slice(&len.to_le_bytes());
        }
        bent
    }

    /// The frames of a lie that needs no frame of the replica.
    pub(super) fn tell(&mut self, lie: Lie, truth: &Truth) -> Vec<Told> {
        let (fast, bulk) = (Some(Lane::Live), Some(Lane::Bulk));
        match lie {
            Lie::FlushEnds => vec![(fast, self.flush_end(truth))],
            Lie::News => vec![(fast, self.news(truth))],
            Lie::Contexts if self.chance(0.02) => vec![(fast, self.giant_contexts(truth))],
            Lie::Contexts => vec![(fast, self.row(truth, false))],
            Lie::EdgeClocks => vec![(fast, self.row(truth, true))],
            Lie::RefusedRows => vec![(fast, self.refused_rows())],
            Lie::Digests => vec![(bulk, self.digests(truth))],
            Lie::Listings => vec![(bulk, self.listings(truth))],
            Lie::Asks if !truth.has_session => vec![(bulk, self.true_start(truth))],
            Lie::Asks if self.chance(0.7) => Vec::new(),
            Lie::Asks => (0..20).map(|_| (bulk, self.asks(truth))).collect(),
            Lie::Starts => vec![(bulk, self.start(truth))],
            Lie::Acks => vec![(fast, self.ack(truth))],
            Lie::Hellos => Vec::new(),
            Lie::OldParts => vec![(fast, self.old_part(truth))],
            Lie::Buckets => vec![(fast, self.buckets(truth))],
            Lie::Rosters => vec![(fast, self.roster(truth))],
            Lie::Crowds => vec![(fast, self.crowd())],
            Lie::Checks => vec![(None, self.check(truth))],
            Lie::LargeRows => vec![(bulk, self.large_row(truth))],
            Lie::LargestRows => vec![(bulk, self.largest_row(truth))],
            Lie::LargeRowNames => vec![(fast, self.large_row_names())],
            Lie::CaughtUps => vec![(fast, self.caught_up(truth))],
            Lie::Bent => vec![(None, (0..self.below(60)).map(|_| self.random.next_u32() as u8).collect())],
        }
    }

    fn flush_end(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews::default());
        writer.byte(tail::DONE);
        writer.varint([0, 1, truth.peer_head, 1 << 40, u64::MAX][self.below(5)]);
        writer.varint([0, 0, 0, 9][self.below(4)]);
        let count = self.count();
        writer.flagged(count as u64, self.chance(0.5));
        for _ in 0..count {
            writer.run(self.run(truth));
            let (from, to) = ([0, self.clock(truth)][self.below(2)], self.clock(truth));
            writer.u64_le(from);
            writer.flagged(to.saturating_sub(from) & (u64::MAX >> 1), self.chance(0.5));
        }
        writer.u64_le(self.clock(truth));
        writer.finish()
    }

    fn news(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews { old: None, entries: self.clocks(truth) });
        writer.byte(tail::END);
        writer.finish()
    }

    /// A row of a key of the peer: with a context, or with a dot whose clock is at the edge.
    fn row(&mut self, truth: &Truth, has_dot: bool) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews::default());
        writer.byte(tail::TAIL_ROW);
        writer.bytes(&self.key(truth));
        writer.varint(u64::from(has_dot));
        if has_dot {
            writer.u64_le(self.clock(truth));
            writer.run([truth.own.1, RunId::new(self.random.next_u64())][self.below(2)]);
            writer.lifetime(Lifetime {
                expires: NonZeroU64::new([0, 9, u64::MAX][self.below(3)]),
                run: self.chance(0.3).then(|| self.run(truth)),
            });
            writer.bytes(b"lie");
        } else {
            writer.byte(REMOVAL_UNKNOWN);
        }
        writer.byte(WHOLE_CONTEXT);
        writer.clocks(Some(&self.clocks(truth)));
        writer.byte(tail::END);
        writer.finish()
    }

    /// Rows with contexts of thousands of made-up runs, each told as a difference from the one before. Seldom they are
    /// more than a reader takes from one frame.
    fn giant_contexts(&mut self, truth: &Truth) -> Vec<u8> {
        let rows = [30, 30, 400][self.below(3)];
        let clock = HybridClock::limit(truth.now, Duration::ZERO);
        let mut drawn = |count| (0..count).map(|_| (RunId::new(self.random.next_u64()), clock)).collect();
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews::default());
        for row in 0..rows {
            writer.byte(tail::TAIL_ROW);
            writer.bytes(format!("\0lie {}", row % 20).as_bytes());
            writer.varint(0);
            writer.byte(REMOVAL_UNKNOWN);
            if row == 0 {
                writer.byte(WHOLE_CONTEXT);
                writer.clocks(Some(&drawn(3_000)));
            } else {
                writer.byte(CHANGED_CONTEXT);
                writer.varint(0);
                writer.clocks(Some(&drawn(1)));
            }
        }
        writer.byte(tail::END);
        writer.finish()
    }

    /// Rows whose keys no store takes, up to more of them than one input may have outputs.
    fn refused_rows(&mut self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews::default());
        for _ in 0..[1, 40, 20_000][self.below(3)] {
            writer.byte(tail::TAIL_ROW);
            writer.bytes(b"");
            writer.varint(0);
            writer.byte(REMOVAL_UNKNOWN);
            writer.byte(NO_CONTEXT);
        }
        writer.byte(tail::END);
        writer.finish()
    }

    /// Names of large rows that never arrive, nearly always no longer than a key may be.
    fn large_row_names(&mut self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews::default());
        let (count, first) = (self.count(), [1, 1, u64::MAX - 9_999][self.below(3)]);
        let excess = usize::from(self.chance(0.1));
        for number in 0..count as u64 {
            writer.byte(tail::LARGE_ROW);
            writer.varint(first + number);
            let bytes = if number == 0 { STORED_KEY_BYTES_MAX + excess } else { 5 };
            writer.bytes(&vec![b'k'; bytes]);
        }
        writer.byte(tail::END);
        writer.finish()
    }

    /// The session of the peer; seldom one that is over, or has not begun.
    fn session(&mut self, truth: &Truth) -> SessionId {
        let odd = SessionId::new([0, 1, 2, u64::MAX][self.below(4)]);
        if self.chance(0.01) { odd } else { truth.session }
    }

    fn items(&mut self, truth: &Truth) -> Writer {
        let mut writer = Writer::new(Kind::Items);
        writer.session(self.session(truth));
        writer.vector_news(&VectorNews::default());
        writer
    }

    fn digests(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = self.items(truth);
        let tag = [DIGEST, VERDICT, CONFIRM, FINISHED][self.below(4)];
        let mask = [0, 1, u16::MAX][self.below(3)];
        writer.range(tag, self.range());
        match tag {
            DIGEST => (0..FAN).for_each(|_| writer.u16_le(self.random.next_u32() as u16)),
            VERDICT | CONFIRM => {
                writer.u16_le(mask);
                if mask != 0 {
                    writer.u64_le(self.random.next_u64());
                    writer.varint(0);
                }
            }
            _ => {}
        }
        writer.finish()
    }

    fn listings(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = self.items(truth);
        let tag = [LIST, ANSWER, WANTED][self.below(3)];
        writer.range(tag, self.range());
        match tag {
            LIST => {
                let count = self.count();
                writer.varint(count as u64);
                let same = self.random.next_u64();
                (0..count).for_each(|_| writer.u64_le([same, self.random.next_u64()][self.below(2)]));
                writer.varint(0);
            }
            ANSWER => {
                writer.bytes(&vec![0; self.below(5)]);
                writer.varint([0, 0, 1, 1_024, 1_025][self.below(5)]);
                writer.varint(0);
            }
            _ => writer.varint([0, 1, 1_024][self.below(3)]),
        }
        if self.chance(0.2) {
            writer.range(FINISHED, HashRange::ALL);
            writer.rest(&self.key(truth));
        }
        writer.finish()
    }

    /// A frame full of questions.
    fn asks(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = self.items(truth);
        for _ in 0..200 {
            let range = self.range();
            // An empty list says that the liar has removed all rows of a range.
            let lists = self.chance(0.05) && self.spared == Spared::Nothing;
            if range.depth < DEPTH_MAX && !lists {
                writer.range(DIGEST, range);
                (0..FAN).for_each(|_| writer.u16_le(0));
            } else if lists {
                writer.range(LIST, range);
                writer.varint(0);
                writer.varint(0);
            }
        }
        writer.finish()
    }

    /// The beginning of a session as an honest node would tell it that has written nothing.
    fn true_start(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Start);
        writer.session(truth.session);
        writer.hash_key(truth.peer_hash_key);
        writer.byte(0);
        writer.u64_le(self.random.next_u64());
        writer.log(truth.own.0);
        (0..3).for_each(|_| writer.varint(0));
        writer.vector_news(&VectorNews::default());
        writer.finish()
    }

    fn start(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Start);
        writer.session(self.session(truth));
        let other = HashKey::from_words(self.random.next_u64(), 1);
        writer.hash_key([truth.peer_hash_key, truth.peer_hash_key, other][self.below(3)]);
        writer.byte(self.below(3) as u8);
        writer.u64_le(self.random.next_u64());
        let logs = [truth.own.0, truth.own.0, LogId::of(self.run(truth))];
        writer.log(logs[self.below(3)]);
        for _ in 0..3 {
            writer.varint([0, 5, 1 << 40, u64::MAX][self.below(4)]);
        }
        writer.vector_news(&VectorNews { old: None, entries: self.clocks(truth) });
        writer.finish()
    }

    fn ack(&mut self, truth: &Truth) -> Vec<u8> {
        let head = truth.peer_head;
        let position = [0, head / 2, head, head + 1, u64::MAX][self.below(5)];
        let log = [truth.peer.0, truth.peer.0, LogId::new(self.random.next_u64())][self.below(3)];
        let count = if self.chance(0.5) { 0 } else { self.count() };
        let seen = (0..count).map(|_| Seen {
            stamp: Stamp { clock: self.clock(truth), origin: self.run(truth) },
            count: [1, 3, u64::MAX][self.below(3)],
        });
        Ack { log, position, seen: seen.collect() }.frame()
    }

    fn hello(&mut self, truth: &Truth) -> Vec<u8> {
        let generation = [0, 0, 1, u64::MAX][self.below(4)];
        let vector_hash = [truth.peer_vector_hash, self.random.next_u64()][self.below(2)];
        Hello { generation, first_run: None, vector_hash, old_sum: self.sum(truth) }.frame()
    }

    fn caught_up(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::CaughtUp);
        writer.u64_le([truth.peer_vector_hash, self.random.next_u64()][self.below(2)]);
        writer.finish()
    }

    /// The sum of an old part: the peer's own, or one that nobody has.
    fn sum(&mut self, truth: &Truth) -> ClocksSum {
        let odd = ClocksSum { count: self.random.next_u64() >> self.below(64), sum: 1 };
        [truth.peer_old_sum, odd][self.below(2)]
    }

    fn old_part(&mut self, truth: &Truth) -> Vec<u8> {
        let sum = self.sum(truth);
        if self.chance(0.5) {
            let mut writer = Writer::new(Kind::OldPart);
            writer.clocks_sum(sum);
            return writer.finish();
        }
        let buckets =
            self.chance(0.5).then(|| BucketMask::from_words([self.random.next_u64(); BUCKETS / 64]));
        let mut writer = Writer::new(Kind::Tail);
        writer.vector_news(&VectorNews { old: Some(NamedOld { sum, buckets }), entries: Clocks::default() });
        writer.byte(tail::END);
        writer.finish()
    }

    fn buckets(&mut self, truth: &Truth) -> Vec<u8> {
        if self.chance(0.7) {
            let mut writer = Writer::new(Kind::OldPartSums);
            (0..BUCKETS).for_each(|_| writer.u64_le(self.random.next_u64()));
            return writer.finish();
        }
        let mut writer = Writer::new(Kind::OldPartShared);
        writer.clocks_sum(self.sum(truth));
        writer.buckets(BucketMask::from_words([u64::MAX; BUCKETS / 64]));
        writer.finish()
    }

    fn roster(&mut self, truth: &Truth) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Roster);
        writer.byte(RECORDS);
        let most = if self.chance(0.02) { 4_200 } else { [1, 1, 3, 20][self.below(4)] };
        for _ in 0..most {
            let drawn = self.random.next_u64();
            let known = &truth.members[self.below(truth.members.len())];
            let is_known = self.chance(0.3);
            // An honest member under its own run, its name under another run, or nobody's run and name.
            writer.run(if is_known && self.chance(0.5) { known.run } else { RunId::new(drawn) });
            let made_up = format!("lie-{drawn:x}");
            writer.bytes(if is_known { known.name.as_bytes() } else { made_up.as_bytes() });
            writer.bytes(&[10, 200, drawn as u8, (drawn >> 8) as u8]);
            writer.u16_le(7_400);
            writer.u16_le([0, 1, 0x7fff, u16::MAX][self.below(4)]);
            writer.u16_le(self.below(4) as u16);
            writer.byte(u8::from(self.chance(0.2)));
            // Under the version that the member has now a lie lasts until the next change.
            let next = if is_known { known.meta_version.wrapping_add(1) } else { 1 };
            let meta_version = [0, next, u64::MAX][self.below(3)];
            writer.varint(meta_version);
            if meta_version > 0 {
                writer.bytes(b"lie");
                writer.varint(0);
            }
        }
        writer.finish()
    }

    fn check(&mut self, truth: &Truth) -> Vec<u8> {
        let rate = 1_u64.checked_shl(self.below(70) as u32).unwrap_or(0);
        let wall = [0, truth.now.wall_ms(), truth.now.wall_ms() + 3_600_000, u64::MAX][self.below(4)];
        let check = Check {
            is_reply: self.chance(0.5),
            in_flux: self.chance(0.2),
            is_comparable: self.chance(0.8),
            root: [truth.peer_root, u128::from(self.random.next_u64())][self.below(2)],
            vector_hash: [truth.peer_vector_hash, self.random.next_u64()][self.below(2)],
            roster_hash: Some(self.random.next_u64()),
            rates: self.chance(0.2).then_some(Rates { wanted: rate, allowed: rate / 2 }),
            wall_ms: self.chance(0.3).then_some(wall),
        };
        check.datagram()
    }

    fn large_row(&mut self, truth: &Truth) -> Vec<u8> {
        let stream = [LargeRowStream::Tail, LargeRowStream::Repair(self.session(truth))][self.below(2)];
        let is_first = self.chance(0.8);
        let mut writer = stream.begin_piece(is_first);
        if !is_first {
            writer.rest(&[0; 4_096]);
            return writer.finish();
        }
        let mut head = Writer::plain();
        head.vector_news(&VectorNews { old: None, entries: self.clocks(truth) });
        head.clocks(Some(&self.clocks(truth)));
        head.bytes(&self.key(truth));
        head.varint(1);
        head.u64_le(self.clock(truth));
        head.run(truth.own.1);
        (0..2).for_each(|_| head.varint(0));
        head.varint([1 << 16, 16 << 20, 67 << 20, u64::MAX][self.below(4)]);
        let head = head.into_plain();
        writer.varint([1, 1, 2, u64::MAX][self.below(4)]);
        writer.varint([head.len() as u64, 60 << 20, u64::MAX][self.below(3)]);
        writer.varint([0, 0, 7, u64::MAX][self.below(4)]);
        writer.rest(&head);
        writer.rest(&vec![7; self.below(2) << 15]);
        writer.finish()
    }

    /// A whole row of one value: seldom of the greatest size, or one byte over it.
    fn largest_row(&mut self, truth: &Truth) -> Vec<u8> {
        let excess = usize::from(self.chance(0.5));
        let bytes = if self.chance(0.05) { VALUE_BYTES_CEILING + excess } else { 100_000 };
        let mut head = Writer::plain();
        head.vector_news(&VectorNews::default());
        head.clocks(None);
        head.bytes(b"\0lie large");
        head.varint(1);
        head.u64_le(HybridClock::limit(truth.now, Duration::ZERO));
        head.run(truth.own.1);
        (0..2).for_each(|_| head.varint(0));
        head.varint(bytes as u64);
        let head = head.into_plain();
        let mut writer = LargeRowStream::Tail.begin_piece(true);
        writer.varint(1);
        writer.varint(head.len() as u64);
        writer.varint(0);
        writer.rest(&head);
        writer.rest(&vec![7; bytes]);
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;
    use crate::replication::claims::ForwardedClaims;
    use crate::replication::tail::{News, TailPeer, TailReceiver};
    use crate::store::LocalStore;
    use crate::wire::WireError;

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1_000_000) };

    fn truth(peer: &LocalStore) -> Truth {
        Truth {
            now: NOW,
            skew_max: Duration::from_secs(2),
            own: (LogId::new(9), RunId::new(9)),
            peer: (peer.log.id, peer.run),
            peer_head: 5,
            peer_hash_key: peer.hash_key,
            peer_vector_hash: 0,
            peer_old_sum: ClocksSum::default(),
            peer_root: 0,
            session: SessionId::default(),
            has_session: false,
            others: vec![RunId::new(2)],
            members: vec![Member::new("n2", RunId::new(2), ([10, 0, 0, 2], 7_400).into())],
            keys: vec![b"\0k".to_vec()],
        }
    }

    /// A frame that cannot be read tells nothing: it ends its link, whatever else it would have led to.
    #[test]
    fn most_lies_of_the_tail_can_be_read() {
        let lies =
            [Lie::FlushEnds, Lie::News, Lie::Contexts, Lie::EdgeClocks, Lie::RefusedRows, Lie::LargeRowNames];
        for lie in lies {
            let random = ChaCha8Rng::seed_from_u64(1);
            let mut liar = Liar { lies: vec![lie], share: 1.0, spared: Spared::Nothing, random };
            let mut unread = 0;
            for _ in 0..100 {
                let mut store = LocalStore::of_run(1);
                let sender = TailPeer {
                    log: LogId::new(9),
                    run: RunId::new(9),
                    is_other_group: false,
                    forwards: true,
                };
                let mut news =
                    News { forwarded_claims: &mut ForwardedClaims::default(), arrived: &mut Vec::new() };
                for (_, frame) in liar.tell(lie, &truth(&store)) {
                    let (_, reader) = Reader::new(&frame[4..]).unwrap();
                    let reader = reader.within(Some(store.claim_bounds(NOW)));
                    let mut tail = TailReceiver::default();
                    let outcome = tail.handle_frame(&mut store, &mut news, NOW, sender, reader);
                    unread += u32::from(matches!(outcome, Err(WireError::Form)));
                }
            }
            assert!(unread < 20, "{lie:?}: {unread} of 100 frames cannot be read");
        }
    }
}
