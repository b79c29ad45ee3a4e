//! Messages: how they are laid out, and the bounds that decoding keeps.
//!
//! A stream carries frames: four bytes of length, one of version, one of kind, then the body. Everything a frame
//! holds is read in place; nothing is allocated on the word of a length that the frame itself does not bear out.
//! `bincode` lays out the single numbers and byte strings; the order of the fields is ours and is fixed per version.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::coverage::{
    ClaimBounds, Context, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, Pending, Places, ToldPending, raise,
};
use crate::store::digest::{FAN, HashKey, Range};
use crate::store::entry::{DOTS_MAX, Held, Record};
use crate::store::{Refusal, Row};
use crate::time::Stamp;

/// The version of everything on the wire.
pub(crate) const VERSION: u8 = 1;

/// The largest frame that is accepted: a row with several values of the greatest size.
pub const FRAME_BYTES_MAX: usize = 68 << 20;

/// Frames are cut at about this size. To merge one takes a receiver about a tenth of a millisecond, in which nothing else
/// gets on: with 64 KiB, round trips under load took nearly twice as long, and the writers were no faster.
pub(crate) const FRAME_BYTES_TARGET: usize = 16 << 10;

/// What most frames have room in.
const USUAL_BYTES: usize = 256;

/// Length, version, kind.
const HEADER_BYTES: usize = 6;

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
    Position = 2,
    Tail = 3,
    Start = 4,
    Items = 5,
    Check = 6,
    /// Asks the peer to state its position, once it has everything before this on the stream.
    Ask = 7,
    /// A datagram of the failure detector.
    Packet = 8,
    /// Who is believed to live, in part or as hashes.
    Roster = 9,
    /// Asks who covers an event, or answers that.
    Covers = 10,
    /// A piece of a row too large for a frame among others.
    Piece = 11,
    /// A datagram between a voter and a node that campaigns, leads or observes.
    Election = 12,
    /// The session is given up for now; its sender will begin a new one.
    Later = 13,
    /// How much of a large row its receiver kept when the transfer was broken off.
    Partial = 14,
}

/// From this size on a frame gets the room of a full one.
const LARGE_BYTES: usize = 2 << 10;
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
    all: Vec<Pending>,
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
    fn note(&mut self, pending: &Pending) -> bool {
        let items = self.items + pending.items();
        let has_room = self.all.len() < LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_MAX;
        if has_room || self.is_unlimited {
            self.all.push(pending.clone());
            self.items = items;
            return true;
        }
        false
    }

    /// How a context is told next; `None` if it cannot be.
    fn telling(&mut self, pending: &Pending, hash_key: HashKey) -> Option<Telling> {
        if pending.regions.len() == 1 && pending.regions.contains_key(&hash_key) {
            return Some(Telling::Here);
        }
        let known = self.all.iter().position(|known| known == pending);
        known.map(Telling::Again).or_else(|| self.note(pending).then_some(Telling::New))
    }
}

/// Builds one frame.
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut out = Vec::with_capacity(USUAL_BYTES);
        out.extend_from_slice(&[0, 0, 0, 0, VERSION, kind as u8]);
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
        if self.out.len() >= LARGE_BYTES && self.out.capacity() < FULL_BYTES {
            self.out.reserve_exact(FULL_BYTES - self.out.len());
        }
        self.out.len() < FRAME_BYTES_TARGET
    }

    pub(crate) fn cut(&mut self, len: usize) {
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
    pub(crate) fn number(&mut self, number: u64) {
        self.encode(number);
    }

    /// A number that looks random.
    pub(crate) fn word(&mut self, word: u64) {
        self.out.extend_from_slice(&word.to_le_bytes());
    }

    pub(crate) fn short(&mut self, short: u16) {
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
        self.word(a);
        self.word(b);
    }

    pub(crate) fn dots(&mut self, dots: impl Iterator<Item = (u64, u64)>) {
        let dots: Vec<(u64, u64)> = dots.collect();
        self.number(dots.len() as u64);
        self.out.reserve(16 * dots.len());
        for (origin, clock) in dots {
            self.word(origin);
            self.word(clock);
        }
    }

    pub(crate) fn context(&mut self, context: Option<&Context>) {
        self.dots(context.into_iter().flat_map(|context| context.dots.iter()).map(|(o, c)| (*o, *c)));
    }

    /// Depth and tag share a byte.
    pub(crate) fn range(&mut self, tag: u8, range: Range) {
        self.byte((tag << 4) | (range.depth / crate::store::digest::FAN_BITS) as u8);
        self.number(range.index);
    }

    /// Contexts by region. One that other hash keys restrict concerns many ranges: it is told once in a stream, and by
    /// its number after that. Where the table has no room for one, the reader learns that it was not told.
    pub(crate) fn pending(&mut self, pending: &[Pending], hash_key: HashKey, told: &mut LeftoverTable) {
        let telling = |pending| Some((pending, told.telling(pending, hash_key)?));
        let tellings: Vec<(&Pending, Telling)> = pending.iter().filter_map(telling).collect();
        let is_whole = tellings.len() == pending.len();
        self.number(tellings.len() as u64 + u64::from(!is_whole));
        for (pending, telling) in tellings {
            match telling {
                Telling::Here => {
                    self.byte(HERE);
                    self.places(&pending.regions[&hash_key]);
                    self.context(Some(&pending.context));
                }
                Telling::New => self.leftover(pending),
                Telling::Again(at) => {
                    self.byte(AGAIN);
                    self.number(at as u64);
                }
            }
        }
        if !is_whole {
            self.byte(UNTOLD);
        }
    }

    /// The same for the disk: each is told once, with every hash key.
    pub(crate) fn clouds(&mut self, pending: &[Pending]) {
        self.number(pending.len() as u64);
        pending.iter().for_each(|pending| self.leftover(pending));
    }

    fn leftover(&mut self, pending: &Pending) {
        self.byte(LEFTOVER);
        self.number(pending.regions.len() as u64);
        for (key, places) in &*pending.regions {
            self.hash_key(*key);
            self.places(places);
        }
        self.context(Some(&pending.context));
    }

    fn places(&mut self, places: &Places) {
        self.number(places.len() as u64);
        for (first, last) in places.iter() {
            self.word(first);
            self.number(last - first);
        }
    }

    pub(crate) fn row(&mut self, held: &Held, context: Option<&Context>) {
        self.entry(held);
        self.context(context);
    }

    /// A key and what it holds.
    pub(crate) fn entry(&mut self, held: &Held) {
        self.bytes(held.key());
        self.held(held);
    }

    /// What a key holds, without the key.
    pub(crate) fn held(&mut self, held: &Held) {
        self.number(held.dots().len() as u64);
        for dot in held.dots() {
            self.word(dot.stamp().clock);
            self.word(dot.stamp().origin);
            self.number(dot.expires());
            self.number(dot.value().len() as u64);
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
            [VERSION, kind, rest @ ..] => Ok((Kind::from_byte(*kind)?, Self::plain(rest))),
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
    pub(crate) fn claim(&self, stamp: Stamp) -> Result<Stamp, WireError> {
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

    pub(crate) fn number(&mut self) -> Result<u64, WireError> {
        self.decode()
    }

    pub(crate) fn word(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn short(&mut self) -> Result<u16, WireError> {
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
        let count = usize::try_from(self.number()?).map_err(|_| WireError::Form)?;
        if count.saturating_mul(least) > self.rest.len() { Err(WireError::Form) } else { Ok(count) }
    }

    pub(crate) fn hash_key(&mut self) -> Result<HashKey, WireError> {
        Ok(HashKey::from_words(self.word()?, self.word()?))
    }

    /// Joins a list of origins and clocks into a context.
    pub(crate) fn join(&mut self, into: &mut Arc<Context>) -> Result<Vec<Stamp>, WireError> {
        let count = self.count(16)?;
        let mut dots = Vec::with_capacity(count);
        for _ in 0..count {
            dots.push(self.dot()?);
        }
        if !dots.is_empty() {
            let into = Arc::make_mut(into);
            dots.iter().for_each(|dot| raise(into, *dot));
        }
        Ok(dots)
    }

    pub(crate) fn context(&mut self) -> Result<Option<Arc<Context>>, WireError> {
        // Nearly every row comes without one: nothing is allocated then.
        let mut context = None;
        for _ in 0..self.count(16)? {
            raise(context.get_or_insert_with(Context::new), self.dot()?);
        }
        Ok(context.filter(|context| !context.dots.is_empty()).map(Arc::new))
    }

    pub(crate) fn dot(&mut self) -> Result<Stamp, WireError> {
        let (origin, clock) = (self.word()?, self.word()?);
        self.claim(Stamp { clock, origin })
    }

    pub(crate) fn range(&mut self) -> Result<(u8, Range), WireError> {
        let byte = self.byte()?;
        let depth = u32::from(byte & 0x0f) * crate::store::digest::FAN_BITS;
        let range = Range { depth, index: self.number()? };
        if range.is_well_formed() { Ok((byte >> 4, range)) } else { Err(WireError::Form) }
    }

    pub(crate) fn weak(&mut self) -> Result<[u16; FAN], WireError> {
        let mut weak = [0; FAN];
        for hash in &mut weak {
            *hash = self.short()?;
        }
        Ok(weak)
    }

    pub(crate) fn pending(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<ToldPending, WireError> {
        let count = self.count(1)?;
        if count > LIST_MAX && !told.is_unlimited {
            return Err(WireError::TooMany);
        }
        let (mut pending, mut is_whole) = (Vec::new(), true);
        for _ in 0..count {
            let one = self.one_pending(hash_key, told)?;
            is_whole &= one.is_some();
            pending.extend(one);
        }
        Ok(ToldPending { pending, is_whole })
    }

    /// `None` stands for those that are not told.
    fn one_pending(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<Option<Pending>, WireError> {
        let tag = self.byte()?;
        let mut regions = BTreeMap::new();
        match tag {
            UNTOLD => return Ok(None),
            AGAIN => {
                let at = usize::try_from(self.number()?).map_err(|_| WireError::Form)?;
                return told.all.get(at).cloned().map(Some).ok_or(WireError::Form);
            }
            HERE => _ = regions.insert(hash_key, self.places()?),
            LEFTOVER => {
                for _ in 0..self.count(16)? {
                    regions.insert(self.hash_key()?, self.places()?);
                }
            }
            _ => return Err(WireError::Form),
        }
        let context = self.context()?.filter(|_| !regions.is_empty()).ok_or(WireError::Form)?;
        let pending = Pending { regions: Arc::new(regions), context };
        if tag == LEFTOVER && !told.note(&pending) {
            return Err(WireError::TooMany);
        }
        Ok(Some(pending))
    }

    fn places(&mut self) -> Result<Places, WireError> {
        let mut places = Places::default();
        for _ in 0..self.count(9)? {
            let first = self.word()?;
            let last = first.checked_add(self.number()?).ok_or(WireError::Form)?;
            places.add(first, last);
        }
        if places.is_empty() { Err(WireError::Form) } else { Ok(places) }
    }

    /// A row, or what is wrong with it if the frame can be read on behind it.
    pub(crate) fn row(&mut self, vector: &Arc<Context>) -> Result<Result<Row, Refusal>, WireError> {
        let held = self.entry()?;
        let context = self.context()?;
        Ok(held.map(|held| Row { held, vector: vector.clone(), context }))
    }

    /// A key and what it holds, or what is wrong with it if the frame can be read on behind it.
    pub(crate) fn entry(&mut self) -> Result<Result<Held, Refusal>, WireError> {
        let key = self.bytes()?;
        self.held(key, DOTS_MAX)
    }

    /// What a key holds, or what is wrong with it.
    pub(crate) fn held(&mut self, key: &[u8], dots_max: usize) -> Result<Result<Held, Refusal>, WireError> {
        let key_fits = u16::try_from(key.len()).is_ok();
        let count = self.count(18)?;
        let is_kept = key_fits && count <= dots_max;
        let (mut one, mut others) = (None, Vec::new());
        for _ in 0..count {
            let stamp = Stamp { clock: self.word()?, origin: self.word()? };
            let expires = self.number()?;
            let value = self.bytes()?;
            if is_kept {
                self.text.clear();
                self.text.extend_from_slice(key);
                self.text.extend_from_slice(value);
                let record = Record::new(stamp, expires, key.len(), &self.text, &mut self.room);
                others.extend(one.replace(record));
            }
        }
        if !key_fits {
            return Ok(Err(Refusal::Key));
        }
        if count > dots_max {
            return Ok(Err(Refusal::Dots));
        }
        Ok(Ok(match one {
            Some(one) if others.is_empty() => Held::One(one),
            one => Held::from_records(key, others.into_iter().chain(one).collect()),
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
        if rest.first().is_some_and(|version| *version != VERSION) {
            return Err(WireError::Version(rest[0]));
        }
        if len + 4 < HEADER_BYTES {
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
    fn a_length_over_the_limit_and_a_foreign_version_are_told_at_once() {
        let mut assembler = Assembler::default();
        assembler.feed(&u32::MAX.to_le_bytes());
        assert_eq!(assembler.next(), Err(WireError::TooLarge(u32::MAX as usize)));
        let mut assembler = Assembler::default();
        assembler.feed(&[200, 0, 0, 0, 9]);
        assert_eq!(assembler.next(), Err(WireError::Version(9)));
    }

    #[test]
    fn a_count_that_the_frame_does_not_bear_out_allocates_nothing() {
        let mut writer = Writer::new(Kind::Tail);
        writer.number(u64::MAX / 2);
        let frame = writer.finish();
        let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
        assert_eq!(reader.context(), Err(WireError::Form));
    }

    #[test]
    fn leftovers_without_room_in_table_are_told_as_untold() {
        let (here, old) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let leftover = |clock, places| {
            Pending::new(old, places, Arc::new(Context { dots: BTreeMap::from([(7, clock)]) }))
        };
        let small = |clock| leftover(clock, Places::between(clock, clock));
        let large = |clock: u64, intervals: usize| {
            let mut places = Places::default();
            (0..intervals as u64).for_each(|at| places.add(3 * at, 3 * at));
            leftover(clock, places)
        };
        let many: Vec<Pending> = (1..=LEFTOVERS_MAX as u64 + 9).map(small).collect();
        let long = [large(1, LEFTOVER_ITEMS_MAX - 1), large(2, 8), large(3, LEFTOVER_ITEMS_MAX)];
        for (all, told_max) in [(&many[..], LEFTOVERS_MAX), (&long[..], 1), (&long[2..], 0)] {
            let (mut told, mut heard) = (LeftoverTable::default(), LeftoverTable::default());
            for (first, last) in [(0, all.len()), (0, told_max), (all.len() - 1, all.len()), (0, all.len())] {
                let mut writer = Writer::new(Kind::Items);
                writer.pending(&all[first..last], here, &mut told);
                let frame = writer.finish();
                let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
                let list = reader.pending(here, &mut heard).expect("what is written honestly is read");
                assert!(reader.end().is_ok());
                assert_eq!(list.pending[..], all[first.min(told_max)..last.min(told_max)]);
                assert_eq!(list.is_whole, last <= told_max);
            }
        }
    }

    fn clocks() -> impl Strategy<Value = Context> {
        prop::collection::btree_map(any::<u64>(), 1..u64::MAX, 0..5).prop_map(|dots| Context { dots })
    }

    fn rows() -> impl Strategy<Value = Held> {
        let value = prop::collection::vec(any::<u8>(), 0..300);
        let dots = prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), value), 0..4);
        (prop::collection::vec(any::<u8>(), 0..40), dots).prop_map(|(key, dots)| {
            let record = |(clock, origin, expires, value): &(u64, u64, u64, Vec<u8>)| {
                let text = [&key[..], value].concat();
                let stamp = Stamp { clock: *clock, origin: *origin };
                Record::new(stamp, *expires, key.len(), &text, &mut Vec::new())
            };
            Held::from_records(&key, dots.iter().map(record).collect())
        })
    }

    fn pendings() -> impl Strategy<Value = Vec<Pending>> {
        let region = (0..3_u64, any::<u64>(), any::<u64>());
        let context = clocks().prop_filter("a pending says something", |context| !context.dots.is_empty());
        let pending = (prop::collection::vec(region, 1..4), context).prop_map(|(regions, context)| {
            let mut by_key: BTreeMap<HashKey, Places> = BTreeMap::new();
            for (key, a, b) in regions {
                by_key.entry(HashKey::from_words(key, key)).or_default().add(a.min(b), a.max(b));
            }
            Pending { regions: Arc::new(by_key), context: Arc::new(context) }
        });
        prop::collection::vec(pending, 0..4)
    }

    fn ranges() -> impl Strategy<Value = Range> {
        (any::<u64>(), 0..=DEPTH_MAX / FAN_BITS).prop_map(|(at, level)| Range::at(at, level * FAN_BITS))
    }

    /// One of everything that a frame may hold.
    type Content = (Held, Context, Vec<Pending>, (u8, Range));

    fn read(frame: &[u8]) -> Result<Content, WireError> {
        let (_, mut reader) = Reader::new(frame)?;
        let row = reader.row(&Arc::default())?.expect("a row that is fit to be read");
        let told = reader.pending(HashKey::from_words(1, 1), &mut LeftoverTable::default())?;
        assert!(told.is_whole);
        let range = reader.range()?;
        let mut context = Arc::new(Context::new());
        reader.join(&mut context)?;
        reader.end()?;
        assert_eq!(row.context.as_deref().cloned().unwrap_or_default(), *context);
        Ok((row.held, Context::clone(&context), told.pending, range))
    }

    /// Everything that makes two rows the same to a reader.
    fn told(held: &Held) -> Vec<(Stamp, u64, &[u8])> {
        held.dots().iter().map(|dot| (dot.stamp(), dot.expires(), dot.value())).collect()
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again_and_nothing_less_is_a_frame(
            held in rows(), context in clocks(), pending in pendings(), range in ranges(), tag in 0..16_u8,
        ) {
            let mut writer = Writer::new(Kind::Items);
            writer.row(&held, Some(&context));
            writer.pending(&pending, HashKey::from_words(1, 1), &mut LeftoverTable::default());
            writer.range(tag, range);
            writer.context(Some(&context));
            let frame = writer.finish();
            let (row, clocks, pendings, tagged) = read(&frame[4..]).unwrap();
            prop_assert_eq!(row.key(), held.key());
            prop_assert_eq!(told(&row), told(&held));
            prop_assert_eq!(clocks, context);
            prop_assert_eq!(pendings, pending);
            prop_assert_eq!(tagged, (tag, range));
            for end in 4..frame.len() {
                prop_assert!(read(&frame[4..end]).is_err(), "cut at {} of {}", end, frame.len());
            }
        }
    }
}
