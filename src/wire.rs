//! Messages: how they are laid out, and the bounds that decoding keeps.
//!
//! A stream carries frames: four bytes of length, one of version, one of kind, then the body. Everything a frame
//! holds is read in place; nothing is allocated on the word of a length that the frame itself does not bear out.
//! `bincode` lays out the single numbers and byte strings; the order of the fields is ours and is fixed per version.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::coverage::{
    ClaimBounds, Clocks, HashIntervals, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, PeerRegions, RegionCoverage,
    raise_clock,
};
use crate::store::digest::{FAN, HashKey, HashRange};
use crate::store::entry::{DOTS_MAX, Dot, DotSet};
use crate::store::{PeerRow, Refusal};
use crate::time::Stamp;

/// The version of everything on the wire.
pub(crate) const WIRE_VERSION: u8 = 1;

/// The largest frame that is accepted: a row with several values of the greatest size.
pub const FRAME_BYTES_MAX: usize = 68 << 20;

/// Frames are cut at about this size. To merge one takes a receiver about a tenth of a millisecond, in which nothing else
/// gets on: with 64 KiB, round trips under load took nearly twice as long, and the writers were no faster.
pub(crate) const FRAME_BYTES_TARGET: usize = 16 << 10;

/// What most frames have room in.
const USUAL_BYTES: usize = 256;

/// Length, version, kind.
const FRAME_HEADER_BYTES: usize = 6;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
> = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// What is wrong with bytes that came from a peer. The link they came over is broken; nothing of the frame is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The frame does not have the form of its kind.
    #[error("malformed frame")]
    Form,
    /// The frame is of a version that this library does not speak.
    #[error("unknown wire version {0}")]
    Version(u8),
    /// A frame of this kind has no place here.
    #[error("unexpected frame of kind {0}")]
    Kind(u8),
    /// The frame is larger than [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes is over the limit")]
    TooLarge(usize),
    /// The peer sent more of something than a named limit permits.
    #[error("more items than the limit permits")]
    TooMany,
    /// The peer claims writes that it cannot know of: further in the future than clocks may differ, or of this
    /// replica's own run and beyond what it has written.
    #[error("a claim beyond what the peer can know")]
    Claim,
}

/// Declares [`Kind`] and its reading from a byte in one place, so that no kind can be missing in either.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $byte:literal,)+) => {
        /// What a frame is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Kind {
            $($(#[$doc])* $kind = $byte,)+
        }

        impl Kind {
            fn from_byte(byte: u8) -> Result<Self, WireError> {
                match byte {
                    $($byte => Ok(Self::$kind),)+
                    _ => Err(WireError::Kind(byte)),
                }
            }
        }
    };
}

kinds! {
    Hello = 1,
    Ack = 2,
    Tail = 3,
    Start = 4,
    Items = 5,
    Check = 6,
    /// Asks the peer to state its position, once it has everything before this on the stream.
    AckRequest = 7,
    /// A datagram of the failure detector.
    Swim = 8,
    /// Who is believed to live, in part or as hashes.
    Roster = 9,
    /// Asks who covers an event, or answers that.
    Covers = 10,
    /// A piece of a row too large for a frame among others.
    Piece = 11,
    /// A datagram between a voter and a node that campaigns, leads or observes.
    Election = 12,
    /// The session is given up for now; its sender will begin a new one.
    Deferred = 13,
    /// How much of a large row its receiver kept when the transfer was broken off.
    Partial = 14,
}

/// From this size on a frame gets the room of a full one.
const FRAME_GROWS_BYTES: usize = 2 << 10;
/// One that has reached [`FRAME_BYTES_TARGET`], with the row that did it.
const FULL_BYTES: usize = FRAME_BYTES_TARGET + (1 << 10);

/// How a context is told: by places under the session's hash key, under others as well, or as one told before. Or not at
/// all, where there are more than a session tells: then nothing may be concluded for the range from what is told.
const HERE: u8 = 0;
const LEFTOVER: u8 = 1;
const AGAIN: u8 = 2;
const UNTOLD: u8 = 3;

/// Contexts that are told along with one range, or with one more for the children of a digest. Writers keep within that:
/// they divide a range that has more than a few contexts of its own, and tell each leftover once for each child.
const LIST_MAX: usize = 2 * FAN * LEFTOVERS_MAX;

/// The leftovers that one direction of a session has told, in their order. Both ends keep the same.
#[derive(Debug, Default)]
pub(crate) struct LeftoverTable {
    all: Vec<RegionCoverage>,
    items: usize,
    is_unlimited: bool,
}

/// How a writer tells one context.
enum Telling {
    Here,
    New,
    Again(usize),
}

impl LeftoverTable {
    /// For a disk, which names every hash key: there all contexts beyond the vector look like leftovers.
    pub(crate) fn unlimited() -> Self {
        Self { is_unlimited: true, ..Self::default() }
    }

    /// False if it has no room: more than [`LEFTOVERS_MAX`] with [`LEFTOVER_ITEMS_MAX`] items are neither told nor taken.
    fn remember(&mut self, region: &RegionCoverage) -> bool {
        let items = self.items + region.items();
        let has_room = self.all.len() < LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_MAX;
        if has_room || self.is_unlimited {
            self.all.push(region.clone());
            self.items = items;
            return true;
        }
        false
    }

    /// How a context is told next; `None` if it cannot be.
    fn telling(&mut self, region: &RegionCoverage, hash_key: HashKey) -> Option<Telling> {
        if region.regions.len() == 1 && region.regions.contains_key(&hash_key) {
            return Some(Telling::Here);
        }
        let known = self.all.iter().position(|known| known == region);
        known.map(Telling::Again).or_else(|| self.remember(region).then_some(Telling::New))
    }
}

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

    /// Bytes that are no frame, for the disk.
    pub(crate) fn plain() -> Self {
        Self::plain_in(Vec::new())
    }

    /// The same, in the room of something that is no longer needed.
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

    /// Whether more belongs in this frame. One that becomes a large one gets all its room at once: what grows by doubling
    /// has up to twice the room it needs, and leaves holes behind.
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

    /// The frame for a datagram, which knows its own length.
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

    /// A number that looks random.
    pub(crate) fn u64_le(&mut self, word: u64) {
        self.out.extend_from_slice(&word.to_le_bytes());
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

    pub(crate) fn clock_entries(&mut self, dots: impl Iterator<Item = (u64, u64)>) {
        let dots: Vec<(u64, u64)> = dots.collect();
        self.varint(dots.len() as u64);
        self.out.reserve(16 * dots.len());
        for (origin, clock) in dots {
            self.u64_le(origin);
            self.u64_le(clock);
        }
    }

    pub(crate) fn clocks(&mut self, context: Option<&Clocks>) {
        self.clock_entries(
            context.into_iter().flat_map(|context| context.dots.iter()).map(|(o, c)| (*o, *c)),
        );
    }

    /// Depth and tag share a byte.
    pub(crate) fn range(&mut self, tag: u8, range: HashRange) {
        self.byte((tag << 4) | (range.depth / crate::store::digest::FAN_BITS) as u8);
        self.varint(range.index);
    }

    /// Contexts by region. One that other hash keys restrict concerns many ranges: it is told once in a stream, and by
    /// its number after that. Where the table has no room for one, the reader learns that it was not told.
    pub(crate) fn regions(
        &mut self,
        regions: &[RegionCoverage],
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) {
        let telling = |region| Some((region, told.telling(region, hash_key)?));
        let tellings: Vec<(&RegionCoverage, Telling)> = regions.iter().filter_map(telling).collect();
        let is_whole = tellings.len() == regions.len();
        self.varint(tellings.len() as u64 + u64::from(!is_whole));
        for (region, telling) in tellings {
            match telling {
                Telling::Here => {
                    self.byte(HERE);
                    self.intervals(&region.regions[&hash_key]);
                    self.clocks(Some(&region.clocks));
                }
                Telling::New => self.leftover(region),
                Telling::Again(at) => {
                    self.byte(AGAIN);
                    self.varint(at as u64);
                }
            }
        }
        if !is_whole {
            self.byte(UNTOLD);
        }
    }

    /// The same for the disk: each is told once, with every hash key.
    pub(crate) fn extra_regions(&mut self, regions: &[RegionCoverage]) {
        self.varint(regions.len() as u64);
        regions.iter().for_each(|region| self.leftover(region));
    }

    fn leftover(&mut self, region: &RegionCoverage) {
        self.byte(LEFTOVER);
        self.varint(region.regions.len() as u64);
        for (key, intervals) in &*region.regions {
            self.hash_key(*key);
            self.intervals(intervals);
        }
        self.clocks(Some(&region.clocks));
    }

    fn intervals(&mut self, intervals: &HashIntervals) {
        self.varint(intervals.len() as u64);
        for (first, last) in intervals.iter() {
            self.u64_le(first);
            self.varint(last - first);
        }
    }

    pub(crate) fn row(&mut self, dot_set: &DotSet, context: Option<&Clocks>) {
        self.dot_set(dot_set);
        self.clocks(context);
    }

    /// A key and what it holds.
    pub(crate) fn dot_set(&mut self, dot_set: &DotSet) {
        self.bytes(dot_set.key());
        self.dots(dot_set);
    }

    /// What a key holds, without the key.
    pub(crate) fn dots(&mut self, dot_set: &DotSet) {
        self.varint(dot_set.dots().len() as u64);
        for dot in dot_set.dots() {
            self.u64_le(dot.stamp().clock);
            self.u64_le(dot.stamp().origin);
            self.varint(dot.expires());
            self.varint(dot.value().len() as u64);
            self.rest(dot.value());
        }
    }
}

/// Reads one frame in place.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// What its sender may claim; nothing limits what this node's own disk says.
    bounds: Option<ClaimBounds>,
    /// Scratch for the rows.
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

    /// Reads bytes that are no frame.
    pub(crate) fn plain(rest: &'a [u8]) -> Self {
        Self { rest, bounds: None, text: Vec::new(), room: Vec::new() }
    }

    /// From here on every claim has to keep within these bounds.
    #[must_use]
    pub(crate) fn within(mut self, bounds: Option<ClaimBounds>) -> Self {
        self.bounds = bounds;
        self
    }

    pub(crate) fn bounds(&self) -> Option<ClaimBounds> {
        self.bounds
    }

    /// Takes a claim, if its sender may make it.
    pub(crate) fn check_claim(&self, stamp: Stamp) -> Result<Stamp, WireError> {
        let is_permitted = self.bounds.is_none_or(|bounds| bounds.permits(stamp));
        if is_permitted { Ok(stamp) } else { Err(WireError::Claim) }
    }

    /// Bytes that are left.
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

    pub(crate) fn u64_le(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u16_le(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        self.decode()
    }

    /// The same, however many they are.
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

    /// How many items follow, each of at least `least` bytes: never more than the frame can hold.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, WireError> {
        let count = usize::try_from(self.varint()?).map_err(|_| WireError::Form)?;
        if count.saturating_mul(least) > self.rest.len() { Err(WireError::Form) } else { Ok(count) }
    }

    pub(crate) fn hash_key(&mut self) -> Result<HashKey, WireError> {
        Ok(HashKey::from_words(self.u64_le()?, self.u64_le()?))
    }

    /// Joins a list of origins and clocks into a context.
    pub(crate) fn join_clocks(&mut self, into: &mut Arc<Clocks>) -> Result<Vec<Stamp>, WireError> {
        let count = self.count(16)?;
        let mut dots = Vec::with_capacity(count);
        for _ in 0..count {
            dots.push(self.clock_entry()?);
        }
        if !dots.is_empty() {
            let into = Arc::make_mut(into);
            dots.iter().for_each(|dot| raise_clock(into, *dot));
        }
        Ok(dots)
    }

    pub(crate) fn clocks(&mut self) -> Result<Option<Arc<Clocks>>, WireError> {
        // Nearly every row comes without one: nothing is allocated then.
        let mut context = None;
        for _ in 0..self.count(16)? {
            raise_clock(context.get_or_insert_with(Clocks::new), self.clock_entry()?);
        }
        Ok(context.filter(|context| !context.dots.is_empty()).map(Arc::new))
    }

    pub(crate) fn clock_entry(&mut self) -> Result<Stamp, WireError> {
        let (origin, clock) = (self.u64_le()?, self.u64_le()?);
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

    pub(crate) fn regions(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<PeerRegions, WireError> {
        let count = self.count(1)?;
        if count > LIST_MAX && !told.is_unlimited {
            return Err(WireError::TooMany);
        }
        let (mut regions, mut is_whole) = (Vec::new(), true);
        for _ in 0..count {
            let one = self.region(hash_key, told)?;
            is_whole &= one.is_some();
            regions.extend(one);
        }
        Ok(PeerRegions { regions, is_whole })
    }

    /// `None` stands for those that are not told.
    fn region(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<Option<RegionCoverage>, WireError> {
        let tag = self.byte()?;
        let mut regions = BTreeMap::new();
        match tag {
            UNTOLD => return Ok(None),
            AGAIN => {
                let at = usize::try_from(self.varint()?).map_err(|_| WireError::Form)?;
                return told.all.get(at).cloned().map(Some).ok_or(WireError::Form);
            }
            HERE => _ = regions.insert(hash_key, self.intervals()?),
            LEFTOVER => {
                for _ in 0..self.count(16)? {
                    regions.insert(self.hash_key()?, self.intervals()?);
                }
            }
            _ => return Err(WireError::Form),
        }
        let context = self.clocks()?.filter(|_| !regions.is_empty()).ok_or(WireError::Form)?;
        let region = RegionCoverage { regions: Arc::new(regions), clocks: context };
        if tag == LEFTOVER && !told.remember(&region) {
            return Err(WireError::TooMany);
        }
        Ok(Some(region))
    }

    fn intervals(&mut self) -> Result<HashIntervals, WireError> {
        let mut intervals = HashIntervals::default();
        for _ in 0..self.count(9)? {
            let first = self.u64_le()?;
            let last = first.checked_add(self.varint()?).ok_or(WireError::Form)?;
            intervals.add(first, last);
        }
        if intervals.is_empty() { Err(WireError::Form) } else { Ok(intervals) }
    }

    /// A row, or what is wrong with it if the frame can be read on behind it.
    pub(crate) fn row(&mut self, vector: &Arc<Clocks>) -> Result<Result<PeerRow, Refusal>, WireError> {
        let dot_set = self.dot_set()?;
        let context = self.clocks()?;
        Ok(dot_set.map(|dot_set| PeerRow { dot_set, vector: vector.clone(), context }))
    }

    /// A key and what it holds, or what is wrong with it if the frame can be read on behind it.
    pub(crate) fn dot_set(&mut self) -> Result<Result<DotSet, Refusal>, WireError> {
        let key = self.bytes()?;
        self.dots(key, DOTS_MAX)
    }

    /// What a key holds, or what is wrong with it.
    pub(crate) fn dots(&mut self, key: &[u8], dots_max: usize) -> Result<Result<DotSet, Refusal>, WireError> {
        let key_fits = u16::try_from(key.len()).is_ok();
        let count = self.count(18)?;
        let is_kept = key_fits && count <= dots_max;
        let (mut one, mut others) = (None, Vec::new());
        for _ in 0..count {
            let stamp = Stamp { clock: self.u64_le()?, origin: self.u64_le()? };
            let expires = self.varint()?;
            let value = self.bytes()?;
            if is_kept {
                self.text.clear();
                self.text.extend_from_slice(key);
                self.text.extend_from_slice(value);
                let dot = Dot::new(stamp, expires, key.len(), &self.text, &mut self.room);
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
            one => DotSet::from_dots(key, others.into_iter().chain(one).collect()),
        }))
    }
}

/// Puts the bytes of a stream together into frames.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    buffer: Vec<u8>,
    read: usize,
}

impl Assembler {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        // The room of a frame much larger than usual is not kept.
        if self.buffer.is_empty() && self.buffer.capacity() > 16 * FRAME_BYTES_TARGET {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, from its version on.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, WireError> {
        let Some((len, rest)) = self.buffer[self.read..].split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(WireError::TooLarge(len));
        }
        // A foreign version is told at once: its lengths may mean something else.
        if rest.first().is_some_and(|version| *version != WIRE_VERSION) {
            return Err(WireError::Version(rest[0]));
        }
        if len + 4 < FRAME_HEADER_BYTES {
            return Err(WireError::Form);
        }
        if rest.len() < len {
            return Ok(None);
        }
        let from = self.read + 4;
        self.read = from + len;
        Ok(Some(&self.buffer[from..from + len]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::digest::{DEPTH_MAX, FAN_BITS};

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let mut writer = Writer::new(Kind::Tail);
        writer.bytes(b"hello");
        let frame = writer.finish();
        let stream = frame.repeat(3);
        for size in 1..stream.len() {
            let mut assembler = Assembler::default();
            let mut frames = 0;
            for piece in stream.chunks(size) {
                assembler.feed(piece);
                while let Some(got) = assembler.next().unwrap() {
                    assert_eq!(got, &frame[4..]);
                    frames += 1;
                }
            }
            assert_eq!(frames, 3);
        }
    }

    #[test]
    fn oversized_frame_and_foreign_version_are_refused_at_once() {
        let mut assembler = Assembler::default();
        assembler.feed(&u32::MAX.to_le_bytes());
        assert_eq!(assembler.next(), Err(WireError::TooLarge(u32::MAX as usize)));
        let mut assembler = Assembler::default();
        assembler.feed(&[200, 0, 0, 0, 9]);
        assert_eq!(assembler.next(), Err(WireError::Version(9)));
    }

    #[test]
    fn count_larger_than_its_frame_allocates_nothing() {
        let mut writer = Writer::new(Kind::Tail);
        writer.varint(u64::MAX / 2);
        let frame = writer.finish();
        let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
        assert_eq!(reader.clocks(), Err(WireError::Form));
    }

    #[test]
    fn leftovers_beyond_the_table_are_reported_as_left_out() {
        let (here, old) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let leftover = |clock, intervals| {
            RegionCoverage::new(old, intervals, Arc::new(Clocks { dots: BTreeMap::from([(7, clock)]) }))
        };
        let small = |clock| leftover(clock, HashIntervals::between(clock, clock));
        let large = |clock: u64, count: usize| {
            let mut intervals = HashIntervals::default();
            (0..count as u64).for_each(|at| intervals.add(3 * at, 3 * at));
            leftover(clock, intervals)
        };
        let many: Vec<RegionCoverage> = (1..=LEFTOVERS_MAX as u64 + 9).map(small).collect();
        let long = [large(1, LEFTOVER_ITEMS_MAX - 1), large(2, 8), large(3, LEFTOVER_ITEMS_MAX)];
        for (all, told_max) in [(&many[..], LEFTOVERS_MAX), (&long[..], 1), (&long[2..], 0)] {
            let (mut told, mut heard) = (LeftoverTable::default(), LeftoverTable::default());
            for (first, last) in [(0, all.len()), (0, told_max), (all.len() - 1, all.len()), (0, all.len())] {
                let mut writer = Writer::new(Kind::Items);
                writer.regions(&all[first..last], here, &mut told);
                let frame = writer.finish();
                let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
                let list = reader.regions(here, &mut heard).expect("what is written honestly is read");
                assert!(reader.end().is_ok());
                assert_eq!(list.regions[..], all[first.min(told_max)..last.min(told_max)]);
                assert_eq!(list.is_whole, last <= told_max);
            }
        }
    }

    fn clocks() -> impl Strategy<Value = Clocks> {
        prop::collection::btree_map(any::<u64>(), 1..u64::MAX, 0..5).prop_map(|dots| Clocks { dots })
    }

    fn rows() -> impl Strategy<Value = DotSet> {
        let value = prop::collection::vec(any::<u8>(), 0..300);
        let dots = prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), value), 0..4);
        (prop::collection::vec(any::<u8>(), 0..40), dots).prop_map(|(key, dots)| {
            let dot = |(clock, origin, expires, value): &(u64, u64, u64, Vec<u8>)| {
                let text = [&key[..], value].concat();
                let stamp = Stamp { clock: *clock, origin: *origin };
                Dot::new(stamp, *expires, key.len(), &text, &mut Vec::new())
            };
            DotSet::from_dots(&key, dots.iter().map(dot).collect())
        })
    }

    fn pendings() -> impl Strategy<Value = Vec<RegionCoverage>> {
        let region = (0..3_u64, any::<u64>(), any::<u64>());
        let context = clocks().prop_filter("a pending says something", |context| !context.dots.is_empty());
        let region = (prop::collection::vec(region, 1..4), context).prop_map(|(regions, context)| {
            let mut by_key: BTreeMap<HashKey, HashIntervals> = BTreeMap::new();
            for (key, a, b) in regions {
                by_key.entry(HashKey::from_words(key, key)).or_default().add(a.min(b), a.max(b));
            }
            RegionCoverage { regions: Arc::new(by_key), clocks: Arc::new(context) }
        });
        prop::collection::vec(region, 0..4)
    }

    fn ranges() -> impl Strategy<Value = HashRange> {
        (any::<u64>(), 0..=DEPTH_MAX / FAN_BITS).prop_map(|(at, level)| HashRange::at(at, level * FAN_BITS))
    }

    /// One of everything that a frame may hold.
    type Content = (DotSet, Clocks, Vec<RegionCoverage>, (u8, HashRange));

    fn read(frame: &[u8]) -> Result<Content, WireError> {
        let (_, mut reader) = Reader::new(frame)?;
        let row = reader.row(&Arc::default())?.expect("a row that is fit to be read");
        let told = reader.regions(HashKey::from_words(1, 1), &mut LeftoverTable::default())?;
        assert!(told.is_whole);
        let range = reader.range()?;
        let mut context = Arc::new(Clocks::new());
        reader.join_clocks(&mut context)?;
        reader.end()?;
        assert_eq!(row.context.as_deref().cloned().unwrap_or_default(), *context);
        Ok((row.dot_set, Clocks::clone(&context), told.regions, range))
    }

    /// Everything that makes two rows the same to a reader.
    fn told(dot_set: &DotSet) -> Vec<(Stamp, u64, &[u8])> {
        dot_set.dots().iter().map(|dot| (dot.stamp(), dot.expires(), dot.value())).collect()
    }

    proptest! {
        #[test]
        fn written_frames_are_read_back_and_cut_ones_are_refused(
            dot_set in rows(), context in clocks(), region in pendings(), range in ranges(), tag in 0..16_u8,
        ) {
            let mut writer = Writer::new(Kind::Items);
            writer.row(&dot_set, Some(&context));
            writer.regions(&region, HashKey::from_words(1, 1), &mut LeftoverTable::default());
            writer.range(tag, range);
            writer.clocks(Some(&context));
            let frame = writer.finish();
            let (row, clocks, pendings, tagged) = read(&frame[4..]).unwrap();
            prop_assert_eq!(row.key(), dot_set.key());
            prop_assert_eq!(told(&row), told(&dot_set));
            prop_assert_eq!(clocks, context);
            prop_assert_eq!(pendings, region);
            prop_assert_eq!(tagged, (tag, range));
            for end in 4..frame.len() {
                prop_assert!(read(&frame[4..end]).is_err(), "cut at {} of {}", end, frame.len());
            }
        }
    }
}
