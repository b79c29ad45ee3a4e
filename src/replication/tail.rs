//! The tail: live replication along the change log, one ordered stream per link and direction.
//!
//! The sender keeps a cursor and no queue. A frame's rows, their contexts and its claim are cut in one instant. A
//! tail claims its sender's own origin, only with the frame that reaches the head, and only while no row of the link
//! was refused; what it passes on for others is claimed as [`crate::replication::claims`] says, under the same conditions.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::controls::Control;
use crate::replication::arrivals::Arrivals;
use crate::replication::claims::{self, Chains, Told};
use crate::store::change_log::Scope;
use crate::store::coverage::{self, Context};
use crate::store::entry::{Held, name_of};
use crate::store::slab::Source;
use crate::store::{Refusal, Row, Store};
use crate::time::{Stamp, Time};
use crate::wire::{Kind, Reader, WireError, Writer};

mod contexts;
pub(crate) mod large;

use contexts::Contexts;
use large::{Arriving, Departing, Hint, Partial, Queue, Size};

const END: u8 = 0;
const ROW: u8 = 1;
const DONE: u8 = 2;
/// The same, and the peer is asked to state its position.
const DONE_ASKING: u8 = 3;

/// Forwarded intervals that wait for a large row before them, of one link.
const WAITING_INTERVALS_MAX: usize = 4_096;

/// Rows looked at for one frame, sent or not: bounds the work under the lock.
const FRAME_ROWS_MAX: usize = 16_384;

/// A claim without rows is worth a frame if it takes the peer's position over so many changes that are not for it: after
/// a new link this is what has to be looked through, and what is not brought again.
const BARE_CLAIM_CHANGES: u64 = 1_024;

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
    told: Told,
    contexts: Contexts,
    larges: Departing,
    /// Rows sent so far.
    pub(crate) rows: u64,
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

    /// Whether the peer has stated where it stands, so that what is written goes to it at once.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Up to where the peer has been told that it has everything.
    pub(crate) fn told(&self) -> u64 {
        if self.is_running { self.base } else { 0 }
    }

    /// How many changes the peer is behind. One that is being repaired, or waits for that, does not count: it lags
    /// for other reasons than the speed of the writers.
    pub(crate) fn lag(&self, store: &Store, scope: Scope) -> u64 {
        if self.has_all(store, scope) {
            return 0;
        }
        // Each key stands in the log once, however often it changed.
        let most = (store.len() + store.log.removals()) as u64;
        let behind = store.log.head() - self.cursor.min(store.log.head());
        if self.is_running { behind.min(most) } else { 0 }
    }

    /// Whether nothing has happened since the last `done` that the peer is to be sent. Then it does not matter how far
    /// the cursor is.
    fn has_all(&self, store: &Store, scope: Scope) -> bool {
        store.log.latest(scope) <= self.base && !store.controls.has(Control::OwnFromFrame)
    }

    /// Whether large rows are on their way.
    pub(crate) fn has_larges(&self) -> bool {
        !self.larges.is_empty()
    }

    /// Whether what it has to do may depend on more than what it is touched for: where no claim is made, an own event may
    /// be sent once more, whoever changed its key since.
    pub(crate) fn is_restless(&self) -> bool {
        self.has_larges() || self.withholds
    }

    /// The next piece of a large row, for the stream of bulk work.
    pub(crate) fn piece(&mut self, store: &mut Store, hint: &mut Option<Hint>) -> Option<Vec<u8>> {
        self.larges.piece(store, Queue::Tail, 0, hint)
    }

    /// The next frame, if there is something to send. With `flush`, a claim alone is something.
    pub(crate) fn frame(
        &mut self,
        store: &mut Store,
        chains: &mut Chains,
        scope: Scope,
        flush: bool,
        asks: &mut Option<u64>,
    ) -> Option<Vec<u8>> {
        let head = store.log.head();
        let flush = flush || asks.is_some();
        if scope != Scope::PassedOn {
            // From here on it may lack what is passed on.
            self.told = Told::default();
        } else if self.is_running {
            // Before there is anything to send: so the first flush can be told, and nobody has to compare because of it.
            self.told.begin(chains);
        }
        if self.is_running && self.has_all(store, scope) {
            let is_worth_it = head - self.base >= BARE_CLAIM_CHANGES
                || self.base < store.log.floor()
                || (scope == Scope::PassedOn && self.told.is_behind(chains));
            if asks.is_none() && !(flush && is_worth_it) {
                return None;
            }
            self.cursor = head;
        }
        if self.is_running && self.cursor < store.log.floor() && !store.controls.has(Control::FloorPassed) {
            self.is_running = false;
            self.is_stranded = true;
        }
        if !self.is_running || (self.cursor == head && !(flush && self.base < head)) {
            return None;
        }
        self.contexts.begin();
        let mut writer = Writer::new(Kind::Tail);
        writer.dots(store.seen.grown_since(self.version));
        let base = if store.controls.has(Control::OwnFromFrame) { self.cursor } else { self.base };
        let (mut rows, mut looked, mut cursor) = (0_u64, 0, head);
        for (revision, slot) in store.log.after(self.cursor) {
            let is_full = !writer.has_room() || self.contexts.is_full();
            if is_full || looked == FRAME_ROWS_MAX {
                cursor = revision - 1;
                break;
            }
            looked += 1;
            let slot = store.slot(slot);
            let is_due = match scope {
                Scope::Own => slot.own() > base,
                Scope::PassedOn => slot.passed() > base,
                Scope::All => true,
            };
            if is_due {
                if slot.held.is_empty() && !store.key_adds_up(slot.held.key()) {
                    store.is_damaged = true;
                    return None;
                }
                match large::size(&slot.held) {
                    Size::Small => {
                        writer.byte(ROW);
                        writer.entry(&slot.held);
                        self.contexts.write(&mut writer, context_of(store, &slot.held));
                        rows += 1;
                    }
                    Size::Large => {
                        _ = self.larges.note(slot.held.key());
                        rows += 1;
                    }
                    Size::TooLarge => self.withholds = true,
                }
            }
        }
        self.cursor = cursor;
        self.rows += rows;
        if cursor < head || self.withholds {
            writer.byte(END);
        } else if rows > 0 || flush {
            let is_asking = asks.take_if(|revision| *revision <= head).is_some();
            writer.byte(if is_asking { DONE_ASKING } else { DONE });
            writer.number(head);
            writer.word(store.seen.vector().get(&store.run));
            writer.number(self.larges.noted);
            self.told.write(chains, &mut writer);
            self.base = head;
        }
        if store.controls.has(Control::RelayClaimsAll) {
            writer.byte(u8::from(scope == Scope::All));
        }
        if rows == 0 && self.base < head && cursor == head {
            return None;
        }
        self.version = store.seen.version();
        Some(writer.finish())
    }
}

/// What the store covers at a key beyond its vector.
pub(crate) fn context_of(store: &Store, held: &Held) -> Option<Arc<Context>> {
    if store.seen.spans() == 0 || store.controls.has(Control::NoContext) {
        return None;
    }
    let context = store.seen.context(held.key(), store.hash_key.place(held.key()))?;
    let context = store.seen.told(&context);
    (!context.dots.is_empty()).then(|| Arc::new(context))
}

/// A row that was refused: the readable key, and why.
pub(crate) type Refused = (String, Refusal);

pub(crate) fn refused(key: &[u8], why: Refusal) -> Refused {
    let readable = crate::store::entry::key_is_well_formed(key);
    (if readable { name_of(key).to_owned() } else { String::from_utf8_lossy(key).into_owned() }, why)
}

/// The receiving half of a link.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The sender's vector as of its latest frame.
    vector: Arc<Context>,
    /// Its part beyond this replica's own, as of then.
    excess: Context,
    /// A row was refused: no `done` of this link counts any more.
    pub(crate) has_refused: bool,
    /// The sender wants to know where this replica stands.
    pub(crate) is_asked: bool,
    /// The latest frame did not reach the sender's head: more is on its way.
    is_amid: bool,
    /// A row since a `done` behind which nothing else had come changed nothing here, or is not to be passed on.
    has_gap: bool,
    /// When the first row since then came, as [`Chains`] count.
    epoch: Option<u64>,
    contexts: Contexts,
    larges: Arriving,
    /// Those that wait for large rows: the oldest, and the latest.
    waiting: VecDeque<Done>,
    /// When the link was made: what was written before tells nothing about how long writes take.
    pub(crate) since_ms: u64,
}

/// The end of a flush.
#[derive(Debug)]
struct Done {
    /// How many large rows must have arrived.
    larges: u64,
    head: u64,
    stamp: Stamp,
    told: Vec<(u64, u64, u64)>,
    is_asking: bool,
}

/// Whose frame it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) log: u64,
    pub(crate) run: u64,
    /// It belongs to another group: what it sends is to be passed on in this one.
    pub(crate) is_far: bool,
    /// It is in this node's group and passes the writes of other groups on, so that it can claim them. Claims of
    /// others are left alone: two nodes may disagree for a moment about who is in which group.
    pub(crate) passes_on: bool,
}

/// What a frame led to.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) refusals: Vec<Refused>,
    /// Rows that were merged, and how many of them changed something.
    pub(crate) rows: usize,
    pub(crate) new: usize,
}

/// Who is to know of what a frame brings.
#[derive(Debug)]
pub(crate) struct News<'a> {
    pub(crate) chains: &'a mut Chains,
    pub(crate) arrivals: &'a mut Arrivals,
}

impl Incoming {
    /// Merges a frame.
    pub(crate) fn frame(
        &mut self,
        store: &mut Store,
        news: &mut News<'_>,
        now: Time,
        sender: Sender,
        mut reader: Reader<'_>,
    ) -> Result<Merged, WireError> {
        // Not copied: where the frame is not well formed the link is broken.
        let mut vector = std::mem::take(&mut self.vector);
        let dots = reader.join(&mut vector)?;
        self.contexts.begin();
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        let done = loop {
            match reader.byte()? {
                ROW => {
                    let held = reader.entry()?;
                    let context = self.contexts.read(store.controls, &mut reader)?;
                    match held {
                        Ok(held) => rows.push(Row { held, vector: vector.clone(), context }),
                        Err(why) => refusals.push(refused(b"", why)),
                    }
                }
                END => break None,
                tag @ (DONE | DONE_ASKING) => {
                    let (head, clock, larges) = (reader.number()?, reader.word()?, reader.number()?);
                    let stamp = reader.claim(Stamp { clock, origin: sender.run })?;
                    let told = claims::read(&mut reader)?;
                    break Some(Done { larges, head, stamp, told, is_asking: tag == DONE_ASKING });
                }
                _ => return Err(WireError::Form),
            }
        };
        let claims_all = store.controls.has(Control::RelayClaimsAll) && reader.byte()? == 1;
        reader.end()?;
        self.vector = vector;
        self.is_amid = done.is_none();
        let had_refused = self.has_refused;
        let (rows, merged) = self.merge(store, news, now, sender, rows, refusals);
        let withheld = match store.controls {
            controls if controls.has(Control::ClaimDespiteRefusal) => had_refused,
            controls if controls.has(Control::DoneAfterRefusal) => !merged.refusals.is_empty(),
            _ => self.has_refused,
        };
        if let Some(done) = done.filter(|_| !withheld) {
            if claims_all {
                store.seen.claim_all(&self.vector);
            }
            self.arrange(store, news.chains, sender, done);
        }
        self.cover(store, sender.run, &dots, &rows);
        Ok(merged)
    }

    /// Merges a piece of a large row, and what waited for it.
    pub(crate) fn piece(
        &mut self,
        store: &mut Store,
        news: &mut News<'_>,
        now: Time,
        sender: Sender,
        (is_first, reader): (bool, Reader<'_>),
        partial: &mut Option<Partial>,
    ) -> Result<Merged, WireError> {
        let Some(arrived) = self.larges.piece(is_first, reader, &Arc::default(), partial)? else {
            return Ok(Merged::default());
        };
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        match arrived.row {
            Ok(row) => rows.push(row),
            Err(why) => refusals.push(refused(b"", why)),
        }
        let (rows, merged) = self.merge(store, news, now, sender, rows, refusals);
        if !self.has_refused {
            self.settle_waiting(store, news.chains, sender);
        }
        for row in &rows {
            store.cover_row(row);
        }
        Ok(merged)
    }

    /// What there is of a large row that will not come to its end on this link.
    pub(crate) fn into_partial(self) -> Option<Partial> {
        self.larges.into_partial()
    }

    /// Merges those rows that are acceptable, and answers them.
    fn merge(
        &mut self,
        store: &mut Store,
        news: &mut News<'_>,
        now: Time,
        sender: Sender,
        mut rows: Vec<Row>,
        mut refusals: Vec<Refused>,
    ) -> (Vec<Row>, Merged) {
        rows.retain(|row| match store.check_row(now, &row.held) {
            Ok(()) => true,
            Err(why) => {
                refusals.push(refused(row.held.key(), why));
                false
            }
        });
        let source = if sender.is_far { Source::ToPassOn } else { Source::Elsewhere };
        let mut new = 0;
        store.merge_rows(now, &rows, source, |row| {
            new += 1;
            news.arrivals.note(now, row, self.since_ms);
        });
        if !rows.is_empty() {
            self.epoch.get_or_insert(news.chains.epoch);
            self.has_gap |= new < rows.len() || !sender.is_far;
        }
        self.has_refused |= !refusals.is_empty();
        let merged = Merged { refusals, rows: rows.len(), new };
        (rows, merged)
    }

    /// Claims the end of a flush, or lets it wait for large rows.
    fn arrange(&mut self, store: &mut Store, chains: &mut Chains, sender: Sender, mut done: Done) {
        // Of those that wait the latest is enough, beside the oldest, which is the first that can be claimed.
        if self.waiting.len() == 2
            && let Some(passed) = self.waiting.pop_back()
        {
            done.is_asking |= passed.is_asking;
            done.told.splice(0..0, passed.told);
            // Of more, the oldest are not claimed: a comparison does it.
            done.told.drain(..done.told.len().saturating_sub(WAITING_INTERVALS_MAX));
        }
        self.waiting.push_back(done);
        self.settle_waiting(store, chains, sender);
    }

    fn settle_waiting(&mut self, store: &mut Store, chains: &mut Chains, sender: Sender) {
        let (settled, unawaited) = (self.larges.settled, store.controls.has(Control::LargesUnawaited));
        while self.waiting.front().is_some_and(|done| done.larges <= settled || unawaited)
            && let Some(done) = self.waiting.pop_front()
        {
            self.extend(store, chains, sender, &done);
            store.claim_tail(done.stamp, &self.vector);
            if sender.passes_on {
                claims::claim(store, &done.told);
            }
            store.complete(sender.log, done.head);
            self.is_asked |= done.is_asking;
        }
    }

    /// Whether more of what the sender has told to be under way is to come.
    pub(crate) fn is_amid(&self) -> bool {
        self.is_amid || !self.waiting.is_empty()
    }

    /// The peer wants to know where this replica stands: now, and when what waits has been claimed.
    pub(crate) fn asked(&mut self) {
        self.is_asked = true;
        if let Some(done) = self.waiting.back_mut() {
            done.is_asking = true;
        }
    }

    /// A flush is complete: whether it continues the sender's chain. Rows of later ones may have come before its large
    /// rows did, or large rows of later ones before its end: what is noted stands for these as well then.
    fn extend(&mut self, store: &Store, chains: &mut Chains, sender: Sender, done: &Done) {
        let has_gap = self.has_gap && !store.controls.has(Control::ChainDespiteGap);
        if sender.is_far {
            let is_whole = !has_gap && self.epoch.is_none_or(|epoch| epoch == chains.epoch);
            chains.extend(sender.run, store.seen.vector().get(&sender.run), done.stamp.clock, is_whole);
        }
        if !self.is_amid() && self.larges.settled <= done.larges {
            (self.has_gap, self.epoch) = (false, None);
        }
    }

    /// Records what the rows cover beyond the vector. Where that is the sender's own events alone, a dot of its own
    /// implies all of it: the sender held it all the time, so no later event of its own is about that key.
    fn cover(&mut self, store: &mut Store, run: u64, dots: &[Stamp], rows: &[Row]) {
        // What is covered here stays so: only what the frame told can have come to lie beyond.
        let known = store.seen.vector();
        self.excess.dots.retain(|origin, clock| known.get(origin) < *clock);
        let new = dots.iter().filter(|dot| !coverage::covers(known, **dot));
        new.for_each(|dot| coverage::raise(&mut self.excess, *dot));
        let is_own = self.excess.dots.keys().all(|origin| *origin == run);
        let mut excess = None;
        for row in rows {
            let is_implied = is_own && row.held.dots().iter().any(|dot| dot.stamp().origin == run);
            if !is_implied || row.context.is_some() {
                store.cover_row_beyond(row, excess.get_or_insert_with(|| Arc::new(self.excess.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::store::digest::HashKey;

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };

    fn store(run: u64) -> Store {
        Store::new(&Config::lan(), run, run * 10, HashKey::default(), Controls::default())
    }

    fn key(name: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        crate::store::entry::register_key(name, &mut stored);
        stored
    }

    /// Both ends of a link on which one feeds the other.
    struct Tail {
        outgoing: Outgoing,
        incoming: Incoming,
        sender: Sender,
        scope: Scope,
        /// Of the sender.
        chains: Chains,
    }

    impl Tail {
        fn new(from: &Store, scope: Scope) -> Self {
            let mut outgoing = Outgoing::default();
            assert!(outgoing.resume(from, from.log.id, 0));
            let (is_far, passes_on) = (scope == Scope::Own, scope == Scope::PassedOn);
            let sender = Sender { log: from.log.id, run: from.run, is_far, passes_on };
            Self { outgoing, incoming: Incoming::default(), sender, scope, chains: Chains::default() }
        }

        fn frame(&mut self, from: &mut Store) -> Vec<u8> {
            let frame = self.outgoing.frame(from, &mut self.chains, self.scope, true, &mut None);
            frame.expect("there is something to send")
        }

        fn pieces(&mut self, from: &mut Store) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.outgoing.piece(from, &mut None)).collect()
        }

        /// Hands frames and pieces to the other end, which passes on what it gets by `chains`.
        fn hand(&mut self, to: &mut Store, chains: &mut Chains, sent: &[Vec<u8>]) {
            for bytes in sent {
                let mut news = News { chains: &mut *chains, arrivals: &mut Arrivals::default() };
                let mut assembler = crate::wire::Assembler::default();
                assembler.feed(bytes);
                let (kind, mut reader) = Reader::new(assembler.next().unwrap().unwrap()).unwrap();
                let merged = match kind {
                    Kind::Piece => {
                        let (_, is_first) = large::queue_of(&mut reader).unwrap();
                        let piece = (is_first, reader);
                        self.incoming.piece(to, &mut news, NOW, self.sender, piece, &mut None)
                    }
                    _ => self.incoming.frame(to, &mut news, NOW, self.sender, reader),
                };
                merged.unwrap();
            }
        }
    }

    #[test]
    fn what_a_delegate_knew_breaks_its_chain_whatever_large_rows_were_on_their_way() {
        let large = vec![b'x'; 70_000];
        for is_ahead in [false, true] {
            let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
            let mut far = Tail::new(&writer, Scope::Own);
            let mut near = Tail::new(&delegate, Scope::PassedOn);
            writer.put(NOW, &key("first"), b"v", 0);
            let first = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.chains, &[first]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut Chains::default(), &[passed]);
            // The mate compares with the writer, and is fed by the delegate.
            let row = |key: &[u8], from: &Store| {
                let held = from.held(key).expect("it is held").0.clone();
                Row { held, vector: Arc::default(), context: None }
            };
            writer.put(NOW, &key("large"), &large, 0);
            mate.merge_rows(NOW, &[row(&key("large"), &writer)], Source::Elsewhere, |_| ());
            mate.seen.claim_all(writer.seen.vector());
            let mut live = vec![far.frame(&mut writer)];
            // The delegate has this from somebody else, and passes it on to nobody.
            let known = writer.put(NOW, &key("known"), if is_ahead { &large } else { b"small" }, 0).0;
            delegate.merge_rows(NOW, &[row(&key("known"), &writer)], Source::Elsewhere, |_| ());
            live.push(far.frame(&mut writer));
            let pieces = far.pieces(&mut writer);
            if is_ahead {
                far.hand(&mut delegate, &mut near.chains, &pieces);
            }
            far.hand(&mut delegate, &mut near.chains, &live);
            if !is_ahead {
                far.hand(&mut delegate, &mut near.chains, &pieces);
            }
            assert!(delegate.seen.vector().get(&1) >= known.clock);

            let mut passed = vec![near.frame(&mut delegate)];
            passed.extend(near.pieces(&mut delegate));
            near.hand(&mut mate, &mut Chains::default(), &passed);
            assert!(mate.held(&key("large")).is_some() && mate.held(&key("known")).is_none());
            assert!(!mate.covers(&key("known"), known), "it claims what it was not sent (ahead: {is_ahead})");

            // Once nothing is on its way, the chain begins anew: whoever compares then needs no more of that.
            mate.seen.claim_all(delegate.seen.vector());
            let later = writer.put(NOW, &key("later"), b"v", 0).0;
            let frame = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.chains, &[frame]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut Chains::default(), &[passed]);
            assert!(mate.held(&key("later")).is_some() && mate.seen.vector().get(&1) >= later.clock);
        }
    }

    #[test]
    fn the_first_flush_over_a_link_that_had_nothing_to_send_needs_no_comparison() {
        let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
        let mut far = Tail::new(&writer, Scope::Own);
        let mut near = Tail::new(&delegate, Scope::PassedOn);
        let idle = near.outgoing.frame(&mut delegate, &mut near.chains, near.scope, false, &mut None);
        assert!(idle.is_none());
        let first = writer.put(NOW, &key("first"), b"v", 0).0;
        let frame = far.frame(&mut writer);
        far.hand(&mut delegate, &mut near.chains, &[frame]);
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut Chains::default(), &[passed]);
        assert_eq!(mate.seen.vector().get(&1), first.clock);
    }

    #[test]
    fn who_was_not_sent_for_a_moment_what_is_passed_on_is_told_of_no_chain_through_it() {
        let (mut writer, mut delegate, mut mate) = (store(1), store(2), store(3));
        let mut far = Tail::new(&writer, Scope::Own);
        let mut near = Tail::new(&delegate, Scope::PassedOn);
        let pass = |far: &mut Tail, near: &mut Tail, writer: &mut Store, delegate: &mut Store, name| {
            let stamp = writer.put(NOW, &key(name), b"v", 0).0;
            let frame = far.frame(writer);
            far.hand(delegate, &mut near.chains, &[frame]);
            stamp
        };
        pass(&mut far, &mut near, &mut writer, &mut delegate, "first");
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut Chains::default(), &[passed]);
        mate.seen.claim_all(delegate.seen.vector());

        near.scope = Scope::Own;
        let missed = pass(&mut far, &mut near, &mut writer, &mut delegate, "missed");
        (0..200).for_each(|i| _ = delegate.put(NOW, &key(&format!("own {i}")), &[b'x'; 1_000], 0));
        let part = near.frame(&mut delegate);
        near.hand(&mut mate, &mut Chains::default(), &[part]);
        near.scope = Scope::PassedOn;
        while near.outgoing.cursor < delegate.log.head() {
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut Chains::default(), &[passed]);
        }
        assert!(mate.held(&key("own 199")).is_some() && mate.held(&key("missed")).is_none());
        assert!(!mate.covers(&key("missed"), missed), "it claims what it was not sent");
    }
}
