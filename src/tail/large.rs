//! Rows too large for a frame among others: they travel in pieces, on the stream of bulk work, so that they delay nobody.
//!
//! A large row that is due is only noted, under a number that counts, and the tail goes on. Rows are cut into pieces one
//! after another, each as it is when its turn comes, and whatever has become of it by then. A `done` names how many were
//! noted before it, and the receiver lets it wait until all of these have arrived.

use std::collections::BTreeMap;
use std::sync::Arc;

use crdts::CvRDT;

use super::context_of;
use crate::entry::{Held, Record};
use crate::seen::{ClaimBounds, Context};
use crate::store::{Refusal, Row, Store};
use crate::wire::{FRAME_BYTES_MAX, Kind, Reader, WireError, Writer};

/// A row whose values are larger together is large, and travels in pieces of this size.
const LARGE_BYTES: usize = 64 << 10;

/// Room for everything beside the values.
const CONTEXT_BYTES_MAX: usize = 1 << 20;

const MORE: u8 = 0;
const LAST: u8 = 1;

/// How a row travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
    /// Not at all: nothing behind it is claimed.
    TooLarge,
}

pub(super) fn size(held: &Held) -> Size {
    match held.dots().iter().map(|dot| dot.value().len()).sum::<usize>() {
        bytes if bytes <= LARGE_BYTES => Size::Small,
        bytes if bytes + CONTEXT_BYTES_MAX <= FRAME_BYTES_MAX => Size::Large,
        _ => Size::TooLarge,
    }
}

/// The large rows that a peer is to be sent.
#[derive(Debug, Default)]
pub(super) struct Departing {
    /// How many were noted so far.
    pub(super) noted: u64,
    by_number: BTreeMap<u64, Vec<u8>>,
    by_key: BTreeMap<Vec<u8>, u64>,
    current: Option<Cut>,
}

/// The row on its way. Its last value, usually all of it, is not copied before it is sent: a row may be on its way to all
/// members at once.
#[derive(Debug)]
struct Cut {
    number: u64,
    held: Held,
    /// Everything before the last value.
    head: Vec<u8>,
    /// Of both.
    sent: usize,
}

impl Cut {
    /// The next piece, and whether it is the last one.
    fn piece(&mut self) -> (Vec<u8>, bool) {
        let value = self.held.last_value();
        let (from, head) = (self.sent, self.head.len());
        let to = (head + value.len()).min(from + LARGE_BYTES);
        let is_last = to == head + value.len();
        let mut writer = Writer::new(Kind::Piece);
        if is_last {
            writer.byte(LAST);
            writer.number(self.number);
        } else {
            writer.byte(MORE);
        }
        writer.rest(&self.head[from.min(head)..to.min(head)]);
        writer.rest(&value[from.saturating_sub(head)..to.saturating_sub(head)]);
        self.sent = to;
        (writer.finish(), is_last)
    }
}

impl Departing {
    /// Notes a row. One that waits already keeps its place: it is sent as it is then.
    pub(super) fn note(&mut self, key: &[u8]) {
        if !self.by_key.contains_key(key) {
            self.noted += 1;
            self.by_key.insert(key.to_vec(), self.noted);
            self.by_number.insert(self.noted, key.to_vec());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty() && self.current.is_none()
    }

    /// The next piece. Nothing if there is none, or if a leaf does not add up.
    pub(super) fn piece(&mut self, store: &mut Store) -> Option<Vec<u8>> {
        if self.current.is_none() {
            let (number, key) = self.by_number.pop_first()?;
            self.by_key.remove(&key);
            let held = store.held(&key).map_or_else(|| Held::Nothing(Record::bare(&key)), |it| it.0.clone());
            if held.is_empty() && !store.key_adds_up(&key) {
                store.is_damaged = true;
                return None;
            }
            let mut context = store.seen.vector().clone();
            if let Some(beyond) = context_of(store, &held) {
                context.merge(Context::clone(&beyond));
            }
            let mut writer = Writer::plain();
            writer.context(Some(&context));
            writer.entry_but_last_value(&held);
            self.current = Some(Cut { number, held, head: writer.into_plain(), sent: 0 });
        }
        let (piece, is_last) = self.current.as_mut().expect("just made sure").piece();
        if is_last {
            self.current = None;
        }
        Some(piece)
    }
}

/// A large row that is arriving.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    bytes: Vec<u8>,
    /// Up to which number all have arrived.
    pub(super) settled: u64,
}

impl Arriving {
    /// Takes a piece in. Answers the bytes of a row that is whole.
    pub(super) fn piece(&mut self, mut reader: Reader<'_>) -> Result<Option<Vec<u8>>, WireError> {
        let number = match reader.byte()? {
            MORE => None,
            LAST => Some(reader.number()?),
            _ => return Err(WireError::Form),
        };
        let piece = reader.rest();
        if self.bytes.len() + piece.len() > FRAME_BYTES_MAX {
            return Err(WireError::TooLarge(self.bytes.len() + piece.len()));
        }
        self.bytes.extend_from_slice(piece);
        let Some(number) = number else { return Ok(None) };
        self.settled = self.settled.max(number);
        Ok(Some(std::mem::take(&mut self.bytes)))
    }
}

/// A large row, or what is wrong with it.
pub(super) fn read(bytes: &[u8], bounds: ClaimBounds) -> Result<Result<Row, Refusal>, WireError> {
    let mut reader = Reader::plain(bytes).within(bounds);
    let mut vector = Arc::new(Context::new());
    reader.join(&mut vector)?;
    let held = reader.entry()?;
    reader.end()?;
    Ok(held.map(|held| Row { held, vector, context: None }))
}
