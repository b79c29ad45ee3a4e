//! The tail: live replication along the change log, one ordered stream per link and direction.
//!
//! The sender keeps a cursor and no queue. A frame's rows, their contexts and its claim are cut in one instant. A
//! tail claims its sender's own origin and nothing else, only with the frame that reaches the head, and only while
//! no row of the link was refused.

use std::sync::Arc;

use crate::arrivals::Arrivals;
use crate::controls::Control;
use crate::entry::{Held, name_of};
use crate::seen::{self, Context};
use crate::store::{Refusal, Row, Store};
use crate::time::{Stamp, Time};
use crate::wire::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET, Kind, Reader, WireError, Writer};

const END: u8 = 0;
const ROW: u8 = 1;
const DONE: u8 = 2;
/// The same, and the peer is asked to state its position.
const DONE_ASKING: u8 = 3;

/// Rows looked at for one frame, sent or not: bounds the work under the lock.
const FRAME_ROWS_MAX: usize = 16_384;

/// The sending half of a link.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    is_running: bool,
    pub(crate) cursor: u64,
    /// The last `done` sent on this link, or the stated position if that is later. The own filter counts from here.
    base: u64,
    /// The version of the vector that the peer has.
    version: u64,
    /// A row was too large to be sent: no claim until the link is new.
    withholds: bool,
    /// The floor passed the cursor: only a reconcile can help.
    pub(crate) is_stranded: bool,
}

impl Outgoing {
    /// The peer stated where it stands. Answers whether the tail can go on from there.
    pub(crate) fn resume(&mut self, store: &Store, log: u64, complete: u64) -> bool {
        let from = self.cursor.max(complete);
        let fits = log == store.log.id && complete <= store.log.head() && from >= store.log.floor();
        if fits {
            self.cursor = from;
            self.base = self.base.max(complete);
            self.is_stranded = false;
        }
        self.is_running = fits;
        fits
    }

    /// Up to where the peer has been told that it has everything.
    pub(crate) fn told(&self) -> u64 {
        if self.is_running { self.base } else { 0 }
    }

    /// How many changes the peer is behind. One that is being repaired, or waits for that, does not count: it lags
    /// for other reasons than the speed of the writers.
    pub(crate) fn lag(&self, store: &Store) -> u64 {
        if self.is_running { store.log.head() - self.cursor.min(store.log.head()) } else { 0 }
    }

    /// The next frame, if there is something to send. With `flush`, a claim alone is something.
    pub(crate) fn frame(
        &mut self,
        store: &mut Store,
        relay: bool,
        flush: bool,
        asks: &mut Option<u64>,
    ) -> Option<Vec<u8>> {
        if self.is_running && self.cursor < store.log.floor() && !store.controls.has(Control::FloorPassed) {
            self.is_running = false;
            self.is_stranded = true;
        }
        let head = store.log.head();
        if !self.is_running || (self.cursor == head && !(flush && self.base < head)) {
            return None;
        }
        let mut writer = Writer::new(Kind::Tail);
        writer.dots(store.seen.grown_since(self.version));
        let base = if store.controls.has(Control::OwnFromFrame) { self.cursor } else { self.base };
        let (mut rows, mut looked, mut cursor) = (0, 0, head);
        for (revision, slot) in store.log.after(self.cursor) {
            if writer.len() >= FRAME_BYTES_TARGET || looked == FRAME_ROWS_MAX {
                cursor = revision - 1;
                break;
            }
            looked += 1;
            let slot = store.slot(slot);
            if relay || slot.own > base {
                if slot.held.is_empty() && !store.key_adds_up(slot.held.key()) {
                    store.is_damaged = true;
                    return None;
                }
                rows += usize::from(self.row(store, &slot.held, &mut writer));
            }
        }
        self.cursor = cursor;
        if cursor < head || self.withholds {
            writer.byte(END);
        } else if rows > 0 || flush {
            let is_asking = asks.take_if(|revision| *revision <= head).is_some();
            writer.byte(if is_asking { DONE_ASKING } else { DONE });
            writer.number(head);
            writer.word(store.seen.vector().get(&store.run));
            self.base = head;
        }
        if store.controls.has(Control::RelayClaimsAll) {
            writer.byte(u8::from(relay));
        }
        if rows == 0 && self.base < head && cursor == head {
            return None;
        }
        self.version = store.seen.version();
        Some(writer.finish())
    }

    fn row(&mut self, store: &Store, held: &Held, writer: &mut Writer) -> bool {
        let before = writer.len();
        writer.byte(ROW);
        writer.row(held, context_of(store, held).as_deref());
        let fits = writer.len() + 64 <= FRAME_BYTES_MAX;
        if !fits {
            writer.cut(before);
            self.withholds = true;
        }
        fits
    }
}

/// What the store covers at a key beyond its vector.
pub(crate) fn context_of(store: &Store, held: &Held) -> Option<Arc<Context>> {
    if store.seen.spans() == 0 || store.controls.has(Control::NoContext) {
        return None;
    }
    let context = store.seen.context(held.key(), store.hash_key.place(held.key()))?;
    let context = seen::beyond(&context, store.seen.vector());
    (!context.dots.is_empty()).then(|| Arc::new(context))
}

/// A row that was refused: the readable key, and why.
pub(crate) type Refused = (String, Refusal);

pub(crate) fn refused(key: &[u8], why: Refusal) -> Refused {
    let readable = crate::entry::key_is_well_formed(key);
    (if readable { name_of(key).to_owned() } else { String::from_utf8_lossy(key).into_owned() }, why)
}

/// The receiving half of a link.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The sender's vector as of its latest frame.
    vector: Arc<Context>,
    /// A row was refused: no `done` of this link counts any more.
    pub(crate) has_refused: bool,
    /// The sender wants to know where this replica stands.
    pub(crate) is_asked: bool,
    /// The latest frame did not reach the sender's head: more is on its way.
    pub(crate) is_amid: bool,
    /// When the link was made: what was written before tells nothing about how long writes take.
    pub(crate) since_ms: u64,
}

impl Incoming {
    /// Merges a frame. `log` and `run` are the sender's. Answers the rows it refused, and how many it merged.
    pub(crate) fn frame(
        &mut self,
        store: &mut Store,
        arrivals: &mut Arrivals,
        now: Time,
        (log, run): (u64, u64),
        mut reader: Reader<'_>,
    ) -> Result<(Vec<Refused>, usize), WireError> {
        let mut vector = self.vector.clone();
        reader.join(&mut vector)?;
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        let done = loop {
            match reader.byte()? {
                ROW => match reader.row(&vector)? {
                    Ok(row) => rows.push(row),
                    Err(why) => refusals.push(refused(b"", why)),
                },
                END => break None,
                tag @ (DONE | DONE_ASKING) => {
                    self.is_asked |= tag == DONE_ASKING;
                    break Some((reader.number()?, Stamp { clock: reader.word()?, origin: run }));
                }
                _ => return Err(WireError::Form),
            }
        };
        let claims_all = store.controls.has(Control::RelayClaimsAll) && reader.byte()? == 1;
        reader.end()?;
        self.vector = vector;
        self.is_amid = done.is_none();
        rows.retain(|row| match store.check_row(now, &row.held) {
            Ok(()) => true,
            Err(why) => {
                refusals.push(refused(row.held.key(), why));
                false
            }
        });
        let mut merged = 0;
        for row in &rows {
            if store.merge_row(now, row) {
                merged += 1;
                arrivals.note(now, row, self.since_ms);
            }
        }
        let had_refused = self.has_refused;
        self.has_refused |= !refusals.is_empty();
        let withheld = match store.controls {
            controls if controls.has(Control::ClaimDespiteRefusal) => had_refused,
            controls if controls.has(Control::DoneAfterRefusal) => !refusals.is_empty(),
            _ => self.has_refused,
        };
        if let Some((head, stamp)) = done.filter(|_| !withheld) {
            store.claim_tail(stamp, &self.vector);
            if claims_all {
                store.seen.claim_all(&self.vector);
            }
            store.complete(log, head);
        }
        self.cover(store, run, &rows);
        Ok((refusals, merged))
    }

    /// Records what the rows cover beyond the vector. Where that is the sender's own events alone, a dot of its own
    /// implies all of it: the sender held it all the time, so no later event of its own is about that key.
    fn cover(&self, store: &mut Store, run: u64, rows: &[Row]) {
        let excess = Arc::new(seen::beyond(&self.vector, store.seen.vector()));
        let is_own = excess.dots.keys().all(|origin| *origin == run);
        for row in rows {
            let is_implied = is_own && row.held.dots().iter().any(|dot| dot.stamp().origin == run);
            if !is_implied || row.context.is_some() {
                store.cover_row(row, &excess);
            }
        }
    }
}
