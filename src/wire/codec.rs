//! Encoding and decoding of the parts of messages, for frames and for the disk.
//!
//! Everything is read in place. Nothing may be allocated because of a stated length or count before the rest of the
//! frame is known to be at least that long. Claims are checked where they are decoded, against what this replica
//! accepts from a peer ([`LocalStore::claim_bounds`](crate::store::LocalStore::claim_bounds)).

use std::num::NonZeroU64;

use super::frame::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET, Kind, USUAL_BYTES, WIRE_VERSION, WireError};
use crate::id::{LogId, RunId, SessionId};
use crate::store::coverage::{
    BUCKETS, BucketMask, ClaimBounds, Clocks, ClocksSum, NamedOld, Vector, VectorNews,
};
use crate::store::digest::{FAN, HashKey, HashRange};
use crate::store::entry::{DOTS_MAX, Dot, DotSet, Removal};
use crate::store::{PeerRow, Refusal};
use crate::time::{Lifetime, Stamp};

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
> = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// From this size on a frame gets the capacity of a full one.
const FRAME_GROWS_BYTES: usize = 2 << 10;
/// Capacity of a full frame: [`FRAME_BYTES_TARGET`] and the row that exceeds it.
const FULL_BYTES: usize = FRAME_BYTES_TARGET + (1 << 10);

/// How the news of a vector name an old part: all of it, or some of its buckets.
const NAMES_ALL: u64 = 1;
const NAMES_BUCKETS: u64 = 2;

/// In the place of an expiry: a run follows, to whose life the value is bound, and then the expiry. No value expires at
/// that time: see [`EXPIRY_MS_MIN`](crate::store::entry::EXPIRY_MS_MIN).
const BOUND: u64 = 1;

/// Why a key has no dots.
const REMOVAL_UNKNOWN: u8 = 0;
const REMOVAL_DELETED: u8 = 1;
const REMOVAL_EXPIRED: u8 = 2;

/// Builds one frame.
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut out = Vec::with_capacity(USUAL_BYTES);
        out.extend_from_slice(&[0, 0, 0, 0, WIRE_VERSION, kind as u8]);
        Self { out }
    }

    /// Writes bytes without a frame header, for the disk.
    pub(crate) fn plain() -> Self {
        Self::plain_in(Vec::new())
    }

    /// Writes bytes without a frame header into a buffer whose content is no longer needed.
    pub(crate) fn plain_in(mut room: Vec<u8>) -> Self {
        room.clear();
        Self { out: room }
    }

    pub(crate) fn into_plain(self) -> Vec<u8> {
        self.out
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether more belongs in this frame. A frame that reaches [`FRAME_GROWS_BYTES`] gets its full capacity at once:
    /// growth by doubling would take up to twice the capacity that is needed, and fragment memory.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.out.len() >= FRAME_GROWS_BYTES && self.out.capacity() < FULL_BYTES {
            self.out.reserve_exact(FULL_BYTES - self.out.len());
        }
        self.out.len() < FRAME_BYTES_TARGET
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.out.truncate(len);
    }

    /// The frame for a stream.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = (self.out.len() - 4) as u32;
        self.out[..4].copy_from_slice(&len.to_le_bytes());
        if self.out.capacity() > 2 * self.out.len().max(USUAL_BYTES) {
            self.out.shrink_to_fit();
        }
        self.out
    }

    /// The frame for a datagram: without the length, which the datagram has already.
    pub(crate) fn finish_datagram(mut self) -> Vec<u8> {
        self.out.drain(..4);
        self.out
    }

    fn encode(&mut self, value: impl bincode::Encode) {
        bincode::encode_into_std_write(value, &mut self.out, CONFIG).expect("memory takes any value");
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    /// A number that is usually small.
    pub(crate) fn varint(&mut self, number: u64) {
        self.encode(number);
    }

    /// A number that is usually small, below 2^63, and a flag.
    pub(crate) fn flagged(&mut self, number: u64, flag: bool) {
        self.varint(number << 1 | u64::from(flag));
    }

    /// The run to whose life a value is bound, if it is, and when it expires in milliseconds, or 0.
    pub(crate) fn lifetime(&mut self, lifetime: Lifetime) {
        if let Some(run) = lifetime.run {
            self.varint(BOUND);
            self.run(run);
        }
        self.varint(lifetime.expires.map_or(0, NonZeroU64::get));
    }

    /// A number that looks random.
    pub(crate) fn u64_le(&mut self, word: u64) {
        self.out.extend_from_slice(&word.to_le_bytes());
    }

    pub(crate) fn u128_le(&mut self, word: u128) {
        self.out.extend_from_slice(&word.to_le_bytes());
    }

    pub(crate) fn run(&mut self, run: RunId) {
        self.u64_le(run.number());
    }

    pub(crate) fn log(&mut self, log: LogId) {
        self.u64_le(log.number());
    }

    pub(crate) fn session(&mut self, session: SessionId) {
        self.varint(session.number());
    }

    pub(crate) fn u16_le(&mut self, short: u16) {
        self.out.extend_from_slice(&short.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.encode(bytes);
    }

    /// Bytes up to the end of the frame.
    pub(crate) fn rest(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn hash_key(&mut self, hash_key: HashKey) {
        let (a, b) = hash_key.words();
        self.u64_le(a);
        self.u64_le(b);
    }

    /// Clocks, with their number. `None` is written as clocks without entries.
    pub(crate) fn clocks(&mut self, clocks: Option<&Clocks>) {
        self.varint(clocks.map_or(0, Clocks::len) as u64);
        clocks.into_iter().for_each(|clocks| self.entries(clocks));
    }

    fn entries(&mut self, clocks: &Clocks) {
        self.out.reserve(16 * clocks.len());
        for (origin, clock) in clocks.iter() {
            self.run(origin);
            self.u64_le(clock);
        }
    }

    pub(crate) fn clocks_sum(&mut self, sum: ClocksSum) {
        self.varint(sum.count);
        self.u128_le(sum.sum);
    }

    pub(crate) fn buckets(&mut self, buckets: BucketMask) {
        buckets.words().into_iter().for_each(|word| self.u64_le(word));
    }

    /// What begins a frame of a stream. The number of entries and the form of a named old part share a number.
    pub(crate) fn vector_news(&mut self, news: &VectorNews) {
        let form = match news.old {
            None => 0,
            Some(NamedOld { buckets: None, .. }) => NAMES_ALL,
            Some(NamedOld { buckets: Some(_), .. }) => NAMES_BUCKETS,
        };
        self.varint((news.entries.len() as u64) << 2 | form);
        if let Some(NamedOld { sum, buckets }) = news.old {
            self.clocks_sum(sum);
            buckets.into_iter().for_each(|buckets| self.buckets(buckets));
        }
        self.entries(&news.entries);
    }

    /// Depth and tag share a byte.
    pub(crate) fn range(&mut self, tag: u8, range: HashRange) {
        self.byte((tag << 4) | (range.depth / crate::store::digest::FAN_BITS) as u8);
        self.varint(range.index);
    }

    pub(crate) fn row(&mut self, dot_set: &DotSet, context: Option<&Clocks>) {
        self.dot_set(dot_set);
        self.clocks(context);
    }

    /// A key and its dots.
    pub(crate) fn dot_set(&mut self, dot_set: &DotSet) {
        self.bytes(dot_set.key());
        self.dots(dot_set);
    }

    /// The dots of a key, without the key. If there are none, why.
    pub(crate) fn dots(&mut self, dot_set: &DotSet) {
        self.varint(dot_set.dots().len() as u64);
        match dot_set.removal() {
            None => {}
            Some(Removal::Unknown) => self.byte(REMOVAL_UNKNOWN),
            Some(Removal::Deleted(stamp)) => {
                self.byte(REMOVAL_DELETED);
                self.u64_le(stamp.clock);
                self.run(stamp.origin);
            }
            Some(Removal::Expired) => self.byte(REMOVAL_EXPIRED),
        }
        for dot in dot_set.dots() {
            self.u64_le(dot.stamp().clock);
            self.run(dot.stamp().origin);
            self.lifetime(dot.lifetime());
            self.varint(dot.value().len() as u64);
            self.rest(dot.value());
        }
    }
}

/// Reads one frame in place.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// Bounds of what the sender may claim. `None` for this node's own disk, which is not limited.
    bounds: Option<ClaimBounds>,
    /// Scratch buffers for decoding rows.
    text: Vec<u8>,
    room: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// `frame` begins with the version.
    pub(crate) fn new(frame: &'a [u8]) -> Result<(Kind, Self), WireError> {
        match frame {
            [WIRE_VERSION, kind, rest @ ..] => Ok((Kind::from_byte(*kind)?, Self::plain(rest))),
            [version, _, ..] => Err(WireError::Version(*version)),
            _ => Err(WireError::Form),
        }
    }

    /// Reads bytes without a frame header.
    pub(crate) fn plain(rest: &'a [u8]) -> Self {
        Self { rest, bounds: None, text: Vec::new(), room: Vec::new() }
    }

    /// Checks every claim that is read from here on against these bounds.
    #[must_use]
    pub(crate) fn within(mut self, bounds: Option<ClaimBounds>) -> Self {
        self.bounds = bounds;
        self
    }

    pub(crate) fn bounds(&self) -> Option<ClaimBounds> {
        self.bounds
    }

    /// Returns the claim if it is within the bounds of [`Reader::within`]: what this replica accepts from a peer.
    pub(crate) fn check_claim(&self, stamp: Stamp) -> Result<Stamp, WireError> {
        match self.bounds {
            Some(bounds) if !bounds.permits(stamp) => {
                let is_own = stamp.origin == bounds.own_last.origin;
                Err(if is_own { WireError::OwnClaim(stamp.clock) } else { WireError::Claim })
            }
            _ => Ok(stamp),
        }
    }

    /// Number of bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.is_at_end() { Ok(()) } else { Err(WireError::Form) }
    }

    fn decode<T: bincode::BorrowDecode<'a, ()>>(&mut self) -> Result<T, WireError> {
        let (value, used) =
            bincode::borrow_decode_from_slice(self.rest, CONFIG).map_err(|_| WireError::Form)?;
        self.rest = &self.rest[used..];
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Form)?;
        self.rest = rest;
        Ok(*array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, WireError> {
        self.decode()
    }

    pub(crate) fn flagged(&mut self) -> Result<(u64, bool), WireError> {
        let number = self.varint()?;
        Ok((number >> 1, number & 1 == 1))
    }

    pub(crate) fn lifetime(&mut self) -> Result<Lifetime, WireError> {
        let (run, ms) = match self.varint()? {
            BOUND => (Some(self.run()?), self.varint()?),
            ms => (None, ms),
        };
        Ok(Lifetime { expires: NonZeroU64::new(ms), run })
    }

    pub(crate) fn u64_le(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128_le(&mut self) -> Result<u128, WireError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn run(&mut self) -> Result<RunId, WireError> {
        self.u64_le().map(RunId::new)
    }

    pub(crate) fn log(&mut self) -> Result<LogId, WireError> {
        self.u64_le().map(LogId::new)
    }

    pub(crate) fn session(&mut self) -> Result<SessionId, WireError> {
        self.varint().map(SessionId::new)
    }

    pub(crate) fn u16_le(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        self.decode()
    }

    /// A byte string that may be longer than [`FRAME_BYTES_MAX`], as on the disk.
    pub(crate) fn long_bytes(&mut self) -> Result<&'a [u8], WireError> {
        let count = self.count(1)?;
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(bytes)
    }

    /// Bytes up to the end of the frame.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// How many items follow, each of at least `least` bytes. Never more than the rest of the frame can hold.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, WireError> {
        let count = usize::try_from(self.varint()?).map_err(|_| WireError::Form)?;
        if count.saturating_mul(least) > self.rest.len() { Err(WireError::Form) } else { Ok(count) }
    }

    pub(crate) fn hash_key(&mut self) -> Result<HashKey, WireError> {
        Ok(HashKey::from_words(self.u64_le()?, self.u64_le()?))
    }

    pub(crate) fn clocks_sum(&mut self) -> Result<ClocksSum, WireError> {
        let count = self.varint()?;
        Ok(ClocksSum { count, sum: self.u128_le()? })
    }

    pub(crate) fn vector_news(&mut self) -> Result<VectorNews, WireError> {
        let number = self.varint()?;
        let old = match number & 3 {
            0 => None,
            NAMES_ALL => Some(NamedOld { sum: self.clocks_sum()?, buckets: None }),
            NAMES_BUCKETS => Some(NamedOld { sum: self.clocks_sum()?, buckets: Some(self.buckets()?) }),
            _ => return Err(WireError::Form),
        };
        let entries = self.entries((number >> 2).try_into().map_err(|_| WireError::Form)?)?;
        Ok(VectorNews { old, entries })
    }

    pub(crate) fn buckets(&mut self) -> Result<BucketMask, WireError> {
        let mut words = [0; BUCKETS / 64];
        for word in &mut words {
            *word = self.u64_le()?;
        }
        Ok(BucketMask::from_words(words))
    }

    pub(crate) fn clocks(&mut self) -> Result<Option<Clocks>, WireError> {
        let count = self.count(16)?;
        Ok(Some(self.entries(count)?).filter(|context| !context.is_empty()))
    }

    fn entries(&mut self, count: usize) -> Result<Clocks, WireError> {
        if count.saturating_mul(16) > self.rest.len() {
            return Err(WireError::Form);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let Stamp { origin, clock } = self.clock_entry()?;
            entries.extend((clock > 0).then_some((origin, clock)));
        }
        Ok(entries.into_iter().collect())
    }

    pub(crate) fn clock_entry(&mut self) -> Result<Stamp, WireError> {
        let (origin, clock) = (self.run()?, self.u64_le()?);
        self.check_claim(Stamp { clock, origin })
    }

    pub(crate) fn range(&mut self) -> Result<(u8, HashRange), WireError> {
        let byte = self.byte()?;
        let depth = u32::from(byte & 0x0f) * crate::store::digest::FAN_BITS;
        let range = HashRange { depth, index: self.varint()? };
        if range.is_well_formed() { Ok((byte >> 4, range)) } else { Err(WireError::Form) }
    }

    pub(crate) fn weak(&mut self) -> Result<[u16; FAN], WireError> {
        let mut weak = [0; FAN];
        for hash in &mut weak {
            *hash = self.u16_le()?;
        }
        Ok(weak)
    }

    /// A row, or why it is refused. After a refusal the frame can be read on behind the row.
    pub(crate) fn row(&mut self, vector: &Vector) -> Result<Result<PeerRow, Refusal>, WireError> {
        let dot_set = self.dot_set()?;
        let context = self.clocks()?;
        Ok(dot_set.map(|dot_set| PeerRow { dot_set, vector: vector.clone(), context }))
    }

    /// A key and its dots, or why they are refused. After a refusal the frame can be read on behind them.
    pub(crate) fn dot_set(&mut self) -> Result<Result<DotSet, Refusal>, WireError> {
        let key = self.bytes()?;
        self.dots(key, DOTS_MAX)
    }

    /// The dots of a key, or why they are refused: the key is too long, or there are more than `dots_max`.
    pub(crate) fn dots(&mut self, key: &[u8], dots_max: usize) -> Result<Result<DotSet, Refusal>, WireError> {
        let key_fits = u16::try_from(key.len()).is_ok();
        let count = self.count(18)?;
        let is_kept = key_fits && count <= dots_max;
        let removal = if count == 0 { self.removal()? } else { Removal::Unknown };
        let (mut one, mut others) = (None, Vec::new());
        for _ in 0..count {
            let stamp = Stamp { clock: self.u64_le()?, origin: self.run()? };
            let lifetime = self.lifetime()?;
            let value = self.bytes()?;
            if is_kept {
                self.text.clear();
                self.text.extend_from_slice(key);
                self.text.extend_from_slice(value);
                let dot = Dot::new(stamp, lifetime, key.len(), &self.text, &mut self.room);
                others.extend(one.replace(dot));
            }
        }
        if !key_fits {
            return Ok(Err(Refusal::Key));
        }
        if count > dots_max {
            return Ok(Err(Refusal::Dots));
        }
        Ok(Ok(match one {
            Some(one) if others.is_empty() => DotSet::One(one),
            None => DotSet::empty(key, removal),
            one => DotSet::from_dots(key, others.into_iter().chain(one).collect()),
        }))
    }

    fn removal(&mut self) -> Result<Removal, WireError> {
        match self.byte()? {
            REMOVAL_UNKNOWN => Ok(Removal::Unknown),
            REMOVAL_DELETED => Ok(Removal::Deleted(Stamp { clock: self.u64_le()?, origin: self.run()? })),
            REMOVAL_EXPIRED => Ok(Removal::Expired),
            _ => Err(WireError::Form),
        }
    }
}
