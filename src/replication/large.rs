//! Large rows: rows that do not share a frame with others. They travel in pieces on the bulk lane, so that they do not
//! delay the rows of the live lane.
//!
//! The sender only queues a large row, under the next number, and goes on. Rows are cut into pieces one after another.
//! Each is sent as it is when its turn comes, with its context of that instant, even if it was changed or removed since
//! it was queued. A claim beyond the row carries its number, and the receiver keeps the claim until all rows up to that
//! number have arrived. The tail and a session each have queues and numbers of their own; the mechanism is the same.
//!
//! After a lost link the transfer resumes. The receiver keeps the values that arrived as a [`PartialRow`], offers it to
//! the sender over the next link, and drops it when it was used. The sender begins at that byte if it still holds
//! exactly this row, identified by its stamps, expiries, lengths and checksums.
//!
//! # Invariants
//!
//! - A row and its context are of one instant. So the context must always be sent anew, also when a transfer resumes.
//! - A row that was assembled from two transfers must not be merged before its checksums were verified.
//! - Nothing beyond a queued row is claimed before the row has arrived.

use std::collections::BTreeMap;

use super::rows::{self, context_of};
use super::vectors::OldParts;
use crate::store::coverage::{ClaimBounds, Clocks, Coverage, Vector, VectorNews};
use crate::store::digest::fingerprint;
use crate::store::entry::{DOTS_MAX, Dot, DotSet, Removal};
use crate::store::key::STORED_KEY_BYTES_MAX;
use crate::store::{LocalStore, PeerRow, Refusal};
use crate::time::{Lifetime, Stamp};
use crate::wire::{FRAME_BYTES_MAX, Kind, LargeRowStream, Piece, Reader, WireError, Writer};

/// A row whose values together exceed this is large. Also the size of a piece.
const LARGE_BYTES: usize = 64 << 10;

/// Room in a frame for everything other than the values.
const CONTEXT_BYTES_MAX: usize = 1 << 20;

/// The most keys of large rows that one link keeps before the rows arrive.
pub(crate) const EXPECTED_MAX: usize = 1_024;

/// Salts the fingerprint that names a row's values.
const VALUES_SALT: u64 = 0x6c61_7267_6520_726f;

/// How a row travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
    /// Not sent at all. Nothing beyond it is claimed.
    TooLarge,
}

pub(crate) fn size(dot_set: &DotSet) -> Size {
    match values_bytes(dot_set) {
        bytes if bytes <= LARGE_BYTES => Size::Small,
        bytes if bytes + CONTEXT_BYTES_MAX <= FRAME_BYTES_MAX => Size::Large,
        _ => Size::TooLarge,
    }
}

fn values_bytes(dot_set: &DotSet) -> usize {
    dot_set.dots().iter().map(|dot| dot.value().len()).sum()
}

/// The queue of large rows to be sent to a peer.
#[derive(Debug, Default)]
pub(crate) struct LargeRowSender {
    /// How many were queued so far: the number of the last one.
    pub(crate) queued: u64,
    by_number: BTreeMap<u64, Vec<u8>>,
    by_key: BTreeMap<Vec<u8>, u64>,
    current: Option<LargeRowTransfer>,
}

/// The row that is being sent. Its values are not copied before they are sent: a row may be on its way to all members
/// at the same time.
#[derive(Debug)]
struct LargeRowTransfer {
    large_id: u64,
    dot_set: DotSet,
    /// Everything other than the values.
    header: Vec<u8>,
    /// Bytes of the values that the peer has already.
    from: usize,
    /// Bytes sent of the header and of the values behind `from`.
    sent: usize,
}

impl LargeRowTransfer {
    /// The row as it is in this instant, for a peer that was sent `sent_vector`.
    fn new(
        store: &LocalStore,
        number: u64,
        dot_set: DotSet,
        (old_parts, sent_vector): (&OldParts, &Vector),
        hint: &mut Option<ResumeOffer>,
    ) -> Self {
        let mut writer = Writer::plain();
        writer.vector_news(&old_parts.news(store, sent_vector));
        writer.clocks(context_of(store, &dot_set).as_ref());
        writer.bytes(dot_set.key());
        let values: Vec<ValueHeader> = dot_set.dots().iter().map(ValueHeader::of).collect();
        writer.varint(values.len() as u64);
        values.iter().for_each(|value| value.write(&mut writer));
        let is_same = |hint: &mut ResumeOffer| {
            hint.key == dot_set.key() && hint.fingerprint == values_fingerprint(&values)
        };
        let from = hint.take_if(is_same).map_or(0, |hint| hint.bytes.min(values_bytes(&dot_set)));
        Self { large_id: number, dot_set, header: writer.into_plain(), from, sent: 0 }
    }

    /// The next piece, and whether it is the last one.
    fn next_piece(&mut self, queue: LargeRowStream) -> (Vec<u8>, bool) {
        let all = self.header.len() + values_bytes(&self.dot_set) - self.from;
        let to = all.min(self.sent + LARGE_BYTES);
        let mut writer = queue.begin_piece(self.sent == 0);
        if self.sent == 0 {
            writer.varint(self.large_id);
            writer.varint(self.header.len() as u64);
            writer.varint(self.from as u64);
        }
        let head = self.header.len();
        writer.rest(&self.header[self.sent.min(head)..to.min(head)]);
        // The part of the values between two positions in the row.
        let (first, last) = (self.from + self.sent.saturating_sub(head), self.from + to.saturating_sub(head));
        let mut at = 0;
        for dot in self.dot_set.dots() {
            let value = dot.value();
            let place = |place: usize| place.clamp(at, at + value.len()) - at;
            writer.rest(&value[place(first)..place(last)]);
            at += value.len();
        }
        self.sent = to;
        (writer.finish(), to == all)
    }
}

impl LargeRowSender {
    /// Queues a row and returns its number. A row that is queued already keeps its number: it is sent as it is when its
    /// turn comes.
    pub(crate) fn enqueue(&mut self, key: &[u8]) -> u64 {
        if let Some(number) = self.by_key.get(key) {
            return *number;
        }
        self.queued += 1;
        self.by_key.insert(key.to_vec(), self.queued);
        self.by_number.insert(self.queued, key.to_vec());
        self.queued
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_number.is_empty() && self.current.is_none()
    }

    /// How many rows wait for their turn.
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Whether the next piece is the first one of a row.
    pub(crate) fn is_between_rows(&self) -> bool {
        self.current.is_none()
    }

    /// The next piece. `None` if no row waits, or if the leaf of a row's key does not add up. `told` is the
    /// vector that the peer was sent on the same stream, and the old part that it has offered.
    pub(crate) fn next_piece(
        &mut self,
        store: &mut LocalStore,
        queue: LargeRowStream,
        told: (&OldParts, &Vector),
        hint: &mut Option<ResumeOffer>,
    ) -> Option<Vec<u8>> {
        if self.current.is_none() {
            let (number, key) = self.by_number.pop_first()?;
            self.by_key.remove(&key);
            let dot_set = store.dot_set_or_empty(&key);
            if dot_set.is_empty() && !store.key_adds_up(&key) {
                store.is_damaged = true;
                return None;
            }
            // The row has grown too large: the peer is sent a form that it refuses, so that it claims nothing.
            let is_too_large = size(&dot_set) == Size::TooLarge;
            let dot_set = if is_too_large { DotSet::empty(&[], Removal::Unknown) } else { dot_set };
            self.current = Some(LargeRowTransfer::new(store, number, dot_set, told, hint));
        }
        let (piece, is_last) = self.current.as_mut().expect("just made sure").next_piece(queue);
        if is_last {
            self.current = None;
        }
        Some(piece)
    }
}

/// The description of one value of a large row. All of them are sent before the values.
#[derive(Clone, Debug, PartialEq)]
struct ValueHeader {
    stamp: Stamp,
    lifetime: Lifetime,
    checksum: u32,
    len: usize,
}

/// The smallest encoding of a [`ValueHeader`], in bytes.
const VALUE_BYTES_LEAST: usize = 19;

impl ValueHeader {
    fn of(dot: &Dot) -> Self {
        let (stamp, lifetime) = (dot.stamp(), dot.lifetime());
        Self { stamp, lifetime, checksum: dot.checksum(), len: dot.value().len() }
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64_le(self.stamp.clock);
        writer.run(self.stamp.origin);
        writer.lifetime(self.lifetime);
        writer.varint(u64::from(self.checksum));
        writer.varint(self.len as u64);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let stamp = Stamp { clock: reader.u64_le()?, origin: reader.run()? };
        let lifetime = reader.lifetime()?;
        let checksum = u32::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
        let len = usize::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
        Ok(Self { stamp, lifetime, checksum, len })
    }
}

/// A fingerprint of everything that distinguishes a row's values from others of its key.
fn values_fingerprint(values: &[ValueHeader]) -> u64 {
    let mut writer = Writer::plain();
    values.iter().for_each(|value| value.write(&mut writer));
    fingerprint(VALUES_SALT, &writer.into_plain())
}

/// How much of a large row of this node a peer has kept, so that its transfer can resume.
#[derive(Debug)]
pub(crate) struct ResumeOffer {
    key: Vec<u8>,
    fingerprint: u64,
    bytes: usize,
}

impl ResumeOffer {
    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, WireError> {
        let (key, name) = (reader.bytes()?.to_vec(), reader.u64_le()?);
        let bytes = usize::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
        reader.end()?;
        if key.len() > usize::from(u16::MAX) {
            Err(WireError::Form)
        } else {
            Ok(Self { key, fingerprint: name, bytes })
        }
    }
}

/// The part of a large row that arrived before its transfer was interrupted.
#[derive(Debug)]
pub(crate) struct PartialRow {
    key: Vec<u8>,
    values: Vec<ValueHeader>,
    bytes: Vec<u8>,
}

impl PartialRow {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message that offers the sender to resume from here.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Partial);
        writer.bytes(&self.key);
        writer.u64_le(values_fingerprint(&self.values));
        writer.varint(self.bytes.len() as u64);
        writer.finish()
    }
}

/// A large row that has arrived, or why it is refused.
#[derive(Debug)]
pub(crate) struct LargeRow {
    pub(crate) large_id: u64,
    pub(crate) row: Result<PeerRow, Refusal>,
    /// The sender's vector when it cut the row.
    pub(crate) vector: Vector,
}

/// Assembles large rows from pieces, one at a time.
#[derive(Debug, Default)]
pub(crate) struct LargeRowReceiver {
    current: Option<LargeRowBuffer>,
    /// All rows up to this number have arrived.
    pub(crate) arrived_up_to: u64,
    /// The stored keys of rows that have not arrived, by number, as far as the sender named them.
    expected: BTreeMap<u64, Vec<u8>>,
}

/// The row that is arriving.
#[derive(Debug)]
struct LargeRowBuffer {
    large_id: u64,
    header_len: usize,
    from: usize,
    /// The sender's vector: as sent before on the same stream, and with the header's news once that is complete.
    vector: Vector,
    header: Vec<u8>,
    announced: Option<LargeRowHeader>,
    bytes: Vec<u8>,
}

/// The decoded header of a large row.
#[derive(Debug)]
struct LargeRowHeader {
    /// What the sender's vector has beyond the one that was sent before on the same stream.
    news: VectorNews,
    /// What is covered at the key beyond the vector.
    context: Option<Clocks>,
    key: Vec<u8>,
    values: Vec<ValueHeader>,
    len: usize,
}

impl LargeRowHeader {
    fn read(head: &[u8], bounds: Option<ClaimBounds>) -> Result<Self, WireError> {
        let mut reader = Reader::plain(head).within(bounds);
        let (news, context) = (reader.vector_news()?, reader.clocks()?);
        let key = reader.bytes()?.to_vec();
        let count = reader.count(VALUE_BYTES_LEAST)?;
        let values = (0..count).map(|_| ValueHeader::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        let len = values.iter().fold(0_usize, |sum, value| sum.saturating_add(value.len));
        if len > FRAME_BYTES_MAX {
            Err(WireError::TooLarge(len))
        } else {
            Ok(Self { news, context, key, values, len })
        }
    }

    /// The row with these values, or why it is refused. If the first bytes came by an earlier transfer (`resumed`), the
    /// checksums are verified.
    fn row(
        self,
        vector: Vector,
        bytes: &[u8],
        resumed: usize,
    ) -> Result<Result<PeerRow, Refusal>, WireError> {
        if u16::try_from(self.key.len()).is_err() {
            return Ok(Err(Refusal::Key));
        }
        if self.values.len() > DOTS_MAX {
            return Ok(Err(Refusal::Dots));
        }
        let (mut dots, mut rest, mut room) = (Vec::new(), bytes, Vec::new());
        for value in &self.values {
            let (own, behind) = rest.split_at(value.len);
            rest = behind;
            let text = [&self.key[..], own].concat();
            let dot = Dot::new(value.stamp, value.lifetime, self.key.len(), &text, &mut room);
            if resumed > 0 && dot.checksum() != value.checksum {
                return Err(WireError::Form);
            }
            dots.push(dot);
        }
        let dot_set = DotSet::from_dots(&self.key, dots);
        Ok(Ok(PeerRow { dot_set, vector, context: self.context }))
    }
}

impl LargeRowReceiver {
    /// The sender has queued a row. Names beyond [`EXPECTED_MAX`] are not kept.
    pub(crate) fn expect(&mut self, number: u64, key: &[u8]) -> Result<(), WireError> {
        if key.len() > STORED_KEY_BYTES_MAX {
            return Err(WireError::Form);
        }
        if number > self.arrived_up_to && self.expected.len() < EXPECTED_MAX {
            self.expected.insert(number, key.to_vec());
        }
        Ok(())
    }

    /// How many names of rows are kept that have not arrived.
    #[cfg(any(feature = "__controls", test))]
    pub(crate) fn kept_names(&self) -> usize {
        self.expected.len()
    }

    /// Whether the keys of all rows up to this number that have not arrived are known and do not have this prefix.
    #[cfg(any(feature = "json", feature = "node", test))]
    pub(crate) fn are_elsewhere(&self, number: u64, prefix: &[u8]) -> bool {
        let expected = self.expected.range(..=number);
        let awaited = number.saturating_sub(self.arrived_up_to);
        expected.clone().count() as u64 == awaited
            && expected.into_iter().all(|(_, key)| !key.starts_with(prefix))
    }

    /// Takes a piece and returns the row when it is complete. A row that begins where the transfer of
    /// `partial` ended continues it. `vector` is the sender's, as sent before on the same stream.
    pub(crate) fn handle_piece(
        &mut self,
        coverage: &Coverage,
        piece: Piece<'_>,
        vector: &Vector,
        partial: &mut Option<PartialRow>,
    ) -> Result<Option<LargeRow>, WireError> {
        let Piece { is_first, body: mut reader, .. } = piece;
        if is_first == self.current.is_some() {
            return Err(WireError::Form);
        }
        if is_first {
            let number = reader.varint()?;
            let place = |number: u64| usize::try_from(number).map_err(|_| WireError::Form);
            let (head_len, from) = (place(reader.varint()?)?, place(reader.varint()?)?);
            if head_len > FRAME_BYTES_MAX {
                return Err(WireError::TooLarge(head_len));
            }
            let (head, bytes) = (Vec::new(), Vec::new());
            self.current = Some(LargeRowBuffer {
                large_id: number,
                header_len: head_len,
                from,
                vector: vector.clone(),
                header: head,
                announced: None,
                bytes,
            });
        }
        let current = self.current.as_mut().expect("just made sure");
        let bounds = reader.bounds();
        current.append(coverage, reader.rest(), bounds, partial)?;
        if current.announced.as_ref().is_none_or(|header| current.bytes.len() < header.len) {
            return Ok(None);
        }
        let LargeRowBuffer { large_id: number, from, vector, announced: header, bytes, .. } =
            self.current.take().expect("just looked at");
        let row = header.expect("just looked at").row(vector.clone(), &bytes, from)?;
        self.arrived_up_to = self.arrived_up_to.max(number);
        self.expected.retain(|expected, _| *expected > number);
        Ok(Some(LargeRow { large_id: number, row, vector }))
    }

    /// The part of an unfinished row that has arrived.
    pub(crate) fn into_partial(self) -> Option<PartialRow> {
        let LargeRowBuffer { announced: header, bytes, .. } = self.current?;
        let LargeRowHeader { key, values, .. } = header.filter(|_| !bytes.is_empty())?;
        Some(PartialRow { key, values, bytes })
    }
}

impl LargeRowBuffer {
    fn append(
        &mut self,
        coverage: &Coverage,
        piece: &[u8],
        bounds: Option<ClaimBounds>,
        partial: &mut Option<PartialRow>,
    ) -> Result<(), WireError> {
        let (head, values) = piece.split_at(piece.len().min(self.header_len - self.header.len()));
        self.header.extend_from_slice(head);
        if self.announced.is_none() && self.header.len() == self.header_len {
            let header = LargeRowHeader::read(&std::mem::take(&mut self.header), bounds)?;
            rows::take_news(coverage, &mut self.vector, &header.news)?;
            self.header_len = 0;
            if self.from > 0 {
                // The peer was offered exactly this part, over this link.
                let is_its = |part: &mut PartialRow| part.key == header.key && part.values == header.values;
                let part = partial.take_if(is_its).filter(|part| part.len() >= self.from);
                self.bytes = part.ok_or(WireError::Form)?.bytes;
                self.bytes.truncate(self.from);
            }
            self.announced = Some(header);
        }
        let room = self.announced.as_ref().map_or(0, |header| header.len.saturating_sub(self.bytes.len()));
        if values.len() > room {
            return Err(WireError::Form);
        }
        self.bytes.extend_from_slice(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::{RunId, SessionId};
    use crate::time::Time;
    use crate::wire::Assembler;

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };
    const BYTES: usize = 5 * LARGE_BYTES + 7;

    fn value(seed: usize) -> Vec<u8> {
        (0..BYTES).map(|i| (i * 31 + i / 255 + seed) as u8).collect()
    }

    fn key() -> Vec<u8> {
        let mut stored = Vec::new();
        crate::store::key::register_key("large", &mut stored);
        stored
    }

    /// A store with two concurrent values of one key.
    fn sender() -> LocalStore {
        let (mut one, mut other) = (LocalStore::of_run(1), LocalStore::of_run(2));
        one.put(NOW, &key(), &value(1), Lifetime::default());
        other.put(
            NOW,
            &key(),
            &value(2),
            Lifetime { expires: std::num::NonZeroU64::new(77_000), run: Some(RunId::new(5)) },
        );
        let dot_set = other.dot_set(&key()).expect("just put").0.clone();
        let rows = [PeerRow { dot_set, vector: Vector::default(), context: None }];
        one.merge_rows(NOW, &rows, crate::store::slab::ChangeOrigin::Learned, |_| ());
        one
    }

    fn pieces(store: &mut LocalStore, hint: Option<ResumeOffer>) -> Vec<Vec<u8>> {
        let (mut departing, mut hint) = (LargeRowSender::default(), hint);
        let none = (&OldParts::default(), &Vector::default());
        _ = departing.enqueue(&key());
        std::iter::from_fn(|| {
            departing.next_piece(store, LargeRowStream::Repair(SessionId::default()), none, &mut hint)
        })
        .collect()
    }

    fn hand(
        arriving: &mut LargeRowReceiver,
        bytes: &[u8],
        partial: &mut Option<PartialRow>,
    ) -> Result<Option<LargeRow>, WireError> {
        let mut assembler = Assembler::default();
        assembler.feed(bytes);
        let (kind, body) = Reader::new(assembler.next()?.expect("a whole frame"))?;
        assert_eq!(kind, Kind::Piece);
        let piece = Piece::read(body)?;
        assert_eq!(piece.stream, LargeRowStream::Repair(SessionId::default()));
        arriving.handle_piece(&LocalStore::of_run(9).coverage, piece, &Vector::default(), partial)
    }

    fn hand_all(pieces: &[Vec<u8>], mut partial: Option<PartialRow>) -> Result<Option<LargeRow>, WireError> {
        let mut arriving = LargeRowReceiver::default();
        pieces.iter().try_fold(None, |_, piece| hand(&mut arriving, piece, &mut partial))
    }

    /// What has arrived after these pieces, and the offer that the sender gets.
    fn broken_off(pieces: &[Vec<u8>]) -> (PartialRow, ResumeOffer) {
        let mut arriving = LargeRowReceiver::default();
        pieces.iter().for_each(|piece| assert!(hand(&mut arriving, piece, &mut None).unwrap().is_none()));
        let partial = arriving.into_partial().expect("some of it is here");
        let frame = partial.frame();
        let (_, reader) = Reader::new(&frame[4..]).unwrap();
        (partial, ResumeOffer::read(reader).unwrap())
    }

    fn same(arrived: Option<LargeRow>, store: &LocalStore) {
        let row = arrived.expect("it is whole").row.expect("it is acceptable");
        let dot_set = store.dot_set(&key()).expect("it is held").0;
        let header = |dot_set: &DotSet| -> Vec<(Stamp, Lifetime, Vec<u8>)> {
            dot_set.dots().iter().map(|dot| (dot.stamp(), dot.lifetime(), dot.value().to_vec())).collect()
        };
        assert_eq!(header(&row.dot_set), header(dot_set));
        assert!(store.coverage.vector().beyond(&row.vector).is_empty(), "{:?}", row.vector);
    }

    #[test]
    fn row_goes_on_where_its_transfer_was_broken_off() {
        let mut store = sender();
        let all = pieces(&mut store, None);
        same(hand_all(&all, None).unwrap(), &store);
        for arrived in 1..all.len() {
            let (partial, hint) = broken_off(&all[..arrived]);
            let rest = pieces(&mut store, Some(hint));
            assert!(rest.len() <= all.len() - arrived + 1, "{} after {arrived}", rest.len());
            same(hand_all(&rest, Some(partial)).unwrap(), &store);
        }
    }

    #[test]
    fn row_that_has_changed_is_sent_from_its_beginning() {
        let mut store = sender();
        let (partial, hint) = broken_off(&pieces(&mut store, None)[..3]);
        store.put(NOW, &key(), &value(3), Lifetime::default());
        let anew = pieces(&mut store, Some(hint));
        same(hand_all(&anew, Some(partial)).unwrap(), &store);
    }

    #[test]
    fn pieces_that_do_not_fit_together_are_refused() {
        let mut store = sender();
        let all = pieces(&mut store, None);
        let (partial, hint) = broken_off(&all[..3]);
        let rest = pieces(&mut store, Some(hint));
        // It goes on behind what is not here.
        assert!(matches!(hand_all(&rest, None), Err(WireError::Form)));
        // What is here is not what the sender says it is.
        let mut wrong = partial;
        wrong.bytes[9] ^= 1;
        assert!(matches!(hand_all(&rest, Some(wrong)), Err(WireError::Form)));
        // A row begins within another, continues before it began, or is longer than its header says.
        for order in [&[0, 0][..], &[1], &[0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] {
            let wrong: Vec<Vec<u8>> = order.iter().map(|at| all[*at].clone()).collect();
            assert!(matches!(hand_all(&wrong, None), Err(WireError::Form)), "{order:?}");
        }
    }

    #[test]
    fn views_wait_for_all_large_rows_beyond_the_names_kept() {
        let mut arriving = LargeRowReceiver::default();
        let most = EXPECTED_MAX as u64;
        (1..=most + 1).for_each(|number| arriving.expect(number, &key()).unwrap());
        assert_eq!(arriving.kept_names(), EXPECTED_MAX);
        assert!(arriving.are_elsewhere(most, b"\0other"), "each row that is awaited has a name");
        assert!(!arriving.are_elsewhere(most + 1, b"\0other"), "the last one may be anywhere");
        assert!(matches!(arriving.expect(1, &[b'k'; STORED_KEY_BYTES_MAX + 1]), Err(WireError::Form)));
    }

    #[test]
    fn lengths_that_a_peer_claims_are_bounded() {
        let piece = |head_len: u64, head: &[u8]| {
            let mut writer = LargeRowStream::Repair(SessionId::default()).begin_piece(true);
            [1, head_len, 0].into_iter().for_each(|number| writer.varint(number));
            writer.rest(head);
            writer.finish()
        };
        assert!(matches!(hand_all(&[piece(u64::MAX, b"")], None), Err(WireError::TooLarge(_))));
        let mut writer = Writer::plain();
        writer.vector_news(&VectorNews::default());
        writer.clocks(None);
        writer.bytes(&key());
        writer.varint(2);
        let value = ValueHeader {
            stamp: Stamp { clock: 1, origin: RunId::new(1) },
            lifetime: Lifetime::default(),
            checksum: 0,
            len: usize::MAX / 2 + 1,
        };
        (0..2).for_each(|_| value.write(&mut writer));
        let head = writer.into_plain();
        assert!(matches!(hand_all(&[piece(head.len() as u64, &head)], None), Err(WireError::TooLarge(_))));
    }
}
