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
use crate::seen::Context;
use crate::store::Store;
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
    /// The one on its way: its number, its bytes, and how many of them have been sent.
    current: Option<(u64, Vec<u8>, usize)>,
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
            writer.row(&held, None);
            self.current = Some((number, writer.into_plain(), 0));
        }
        let (number, bytes, sent) = self.current.as_mut().expect("just made sure");
        let piece = &bytes[*sent..bytes.len().min(*sent + LARGE_BYTES)];
        let mut writer = Writer::new(Kind::Piece);
        *sent += piece.len();
        if *sent == bytes.len() {
            writer.byte(LAST);
            writer.number(*number);
        } else {
            writer.byte(MORE);
        }
        writer.rest(piece);
        if *sent == bytes.len() {
            self.current = None;
        }
        Some(writer.finish())
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

/// The context of a large row, and a reader that stands before it.
pub(super) fn read(bytes: &[u8]) -> Result<(Arc<Context>, Reader<'_>), WireError> {
    let mut reader = Reader::plain(bytes);
    let mut context = Arc::new(Context::new());
    reader.join(&mut context)?;
    Ok((context, reader))
}
