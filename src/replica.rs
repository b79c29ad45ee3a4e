//! The replica: owns the store and the links, and routes between them and the outside.
//!
//! It follows the polling contract: [`Replica::handle`] takes what happened, [`Replica::poll`] gives what to do
//! until it has nothing more, [`Replica::deadline`] says when to wake it. Draining late only delays. It has no
//! policy of its own: what to send is decided by [`crate::tail`] and [`crate::reconcile`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::Config;
use crate::controls::{Control, Controls};
use crate::digest::{HashKey, Node};
use crate::entry::{self, Entry, Held, Revision};
use crate::error::WriteError;
use crate::reconcile::{Progress, Session};
use crate::seen::Pending;
use crate::store::{OnlyIf, Refusal, Store};
use crate::tail::{Incoming, Outgoing, Refused};
use crate::time::{Stamp, Time};
use crate::wire::{Assembler, Kind, Reader, WireError, Writer};

/// Names a link between two replicas; chosen by whoever drives them.
pub type LinkId = u64;

/// Which of a link's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Live writes.
    Live,
    /// Repair and joining, at lower priority.
    Bulk,
}

/// What happened outside.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A link to a peer is there: two ordered streams in each direction, and datagrams.
    LinkUp(LinkId),
    /// The link is gone, and everything that was under way on it.
    LinkDown(LinkId),
    /// A datagram arrived.
    Datagram(LinkId, &'a [u8]),
    /// The next bytes of a stream arrived.
    Stream(LinkId, Lane, &'a [u8]),
    /// A stream took this many bytes of what was given to it.
    Drained(LinkId, Lane, usize),
    /// The disk has everything up to and with this [`Persist`].
    Persisted(u64),
    /// The deadline has come.
    Wake,
}

/// What to do outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send a datagram; it may be lost.
    Datagram(LinkId, Vec<u8>),
    /// Put bytes on a stream.
    Stream(LinkId, Lane, Vec<u8>),
    /// Break the link; a new one may be made after a while.
    Break(LinkId, BreakReason),
    /// Write this to the disk, in one transaction, and answer with [`Input::Persisted`].
    Persist(Box<Persist>),
    /// Tell the user.
    Event(Event),
}

/// Why a link is to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakReason {
    /// The peer sent something that is not the protocol.
    Protocol(WireError),
    /// The peer's rows were refused; a new link tries them again.
    Refused,
    /// Two clusters met and this one gave way; sessions under the old hash key are void.
    Rekeyed,
    /// This replica found damage in itself and gave up its claims.
    Damaged,
    /// A session made no progress.
    TimedOut,
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A row of a peer was refused. It will come again; everything else was merged.
    Refused {
        /// Over which link it came.
        link: LinkId,
        /// Its key, as far as it is readable.
        key: String,
        /// Why.
        reason: Refusal,
    },
    /// The store no longer agreed with its digest: entries were lost or changed by something other than a write.
    /// The replica gave up its claims and fetches what it lacks from its peers.
    Damaged,
    /// A peer has merged the same events and yet holds something else; no leaf here is damaged.
    Disagreement {
        /// The link to the peer.
        link: LinkId,
    },
}

/// One transaction for the disk: rows and what is seen, of one instant.
#[derive(Clone, Debug)]
pub struct Persist {
    /// The log's head in that instant.
    pub(crate) head: u64,
    rows: Vec<Held>,
    seen: BTreeMap<u64, u64>,
    clouds: Vec<Pending>,
    positions: BTreeMap<u64, u64>,
    hash_key: HashKey,
    clock: u64,
    run: u64,
    root: Node,
    /// The rows replace everything stored before.
    is_whole: bool,
}

impl Persist {
    /// What to answer with once it is safe.
    pub fn head(&self) -> u64 {
        self.head
    }
}

/// What a disk holds: the sum of all [`Persist`]s.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    rows: BTreeMap<Vec<u8>, Held>,
    latest: Option<Box<Persist>>,
}

impl Saved {
    /// Takes in one transaction.
    pub fn apply(&mut self, mut persist: Persist) {
        if persist.is_whole {
            self.rows.clear();
        }
        for held in persist.rows.drain(..) {
            if held.is_empty() {
                self.rows.remove(held.key());
            } else {
                self.rows.insert(held.key().to_vec(), held);
            }
        }
        self.latest = Some(Box::new(persist));
    }

    /// Takes in only what a transaction says is seen, without its rows.
    #[cfg(feature = "__controls")]
    pub(crate) fn apply_seen(&mut self, mut persist: Persist) {
        persist.rows.clear();
        self.latest = Some(Box::new(persist));
    }
}

/// How to make a [`Replica`].
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its limits and intervals.
    pub config: Config,
    /// Seeds all its randomness; must never repeat outside of simulations.
    pub seed: u64,
    /// What a disk of an earlier run holds.
    pub saved: Option<Saved>,
    /// Whether there is a disk to follow the change log.
    pub has_disk: bool,
    pub(crate) controls: Controls,
}

impl Setup {
    /// A replica in memory.
    pub fn new(config: Config, seed: u64) -> Self {
        Self { config, seed, saved: None, has_disk: false, controls: Controls::default() }
    }
}

/// Bytes in flight on a stream before the next frame is cut.
const WINDOW_BYTES: usize = 256 << 10;

/// Expiries worked off at a time.
const EXPIRE_STEPS: usize = 1_024;

#[derive(Debug, Default)]
struct Link {
    /// The peer's log and run, once it said hello.
    peer: Option<(u64, u64)>,
    has_greeted: bool,
    /// The position to state, when it is time to.
    states_position: bool,
    outgoing: Outgoing,
    incoming: Incoming,
    session: Option<Session>,
    wants_session: bool,
    live: Assembler,
    bulk: Assembler,
    in_flight: [usize; 2],
    flush: bool,
    checks: VecDeque<Vec<u8>>,
    /// How often in a row the peer's digest differed, and when to look again.
    differs: u32,
    check_at: Option<Duration>,
    /// Repairs that taught nothing put the next one off.
    backoff: u32,
    no_session_before: Duration,
    break_at: Option<Duration>,
}

/// One replica of the store, without clock, network or disk. See the module.
#[derive(Debug)]
pub struct Replica {
    pub(crate) store: Store,
    config: Config,
    random: ChaCha8Rng,
    links: BTreeMap<LinkId, Link>,
    outputs: VecDeque<Output>,
    now: Time,
    next_sync: Duration,
    has_disk: bool,
    persisting: bool,
    persisted: (u64, u64, usize),
    persist_whole: bool,
    scrub_at: usize,
    next_link: LinkId,
    refusals: BTreeMap<u64, u32>,
    kept: BTreeMap<u64, u64>,
    /// What reconciles moved so far, for reports: rows, their bytes, all other bytes.
    traffic: SyncTraffic,
}

/// What repair sessions moved, both directions, as counted at this end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncTraffic {
    /// Bytes of sent rows.
    pub rows_bytes: u64,
    /// All sent bytes of sessions and checks, the rows included.
    pub bytes: u64,
    /// Frames sent.
    pub frames: u64,
}

impl Replica {
    /// A replica, blank or with what its disk holds.
    pub fn new(setup: Setup) -> Self {
        let Setup { config, seed, saved, has_disk, controls } = setup;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let hash_key = HashKey::from_words(random.next_u64(), random.next_u64());
        let mut store = Store::new(&config, random.next_u64(), random.next_u64(), hash_key, controls);
        if has_disk {
            store.disk = Some(0);
        }
        let mut replica = Self {
            store,
            random,
            links: BTreeMap::new(),
            outputs: VecDeque::new(),
            now: Time::default(),
            next_sync: Duration::ZERO,
            has_disk,
            persisting: false,
            persisted: (0, 0, 0),
            persist_whole: true,
            scrub_at: 0,
            next_link: 0,
            refusals: BTreeMap::new(),
            kept: BTreeMap::new(),
            traffic: SyncTraffic::default(),
            config,
        };
        if let Some(saved) = saved {
            replica.load(saved);
        }
        replica
    }

    fn load(&mut self, saved: Saved) {
        let Saved { rows, latest: Some(latest) } = saved else { return };
        let store = &mut self.store;
        store.rekey(latest.hash_key);
        store.clock.observe(latest.clock);
        if store.controls.has(Control::OldOrigin) {
            store.run = latest.run;
        }
        store.refill(rows.into_values());
        store.seen.restore(latest.seen, &latest.clouds);
        store.positions = latest.positions;
        store.log.raise_floor(store.log.head().max(1));
        if store.root() != latest.root {
            store.is_damaged = !store.controls.has(Control::SeenAhead);
        }
        self.recover();
    }

    // Local verbs.

    /// Puts a value.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put(&mut self, now: Time, key: &str, value: &[u8]) -> Result<Stamp, WriteError> {
        self.put_with(now, key, value, &PutOptions::new())
    }

    /// Puts a value under a condition or for a time.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn put_with(
        &mut self,
        now: Time,
        key: &str,
        value: &[u8],
        options: &PutOptions,
    ) -> Result<Stamp, WriteError> {
        entry::check_name(key.as_bytes())?;
        self.store.check_value(value.len())?;
        let mut stored = Vec::with_capacity(1 + key.len());
        entry::register_key(key, &mut stored);
        if let Some(only_if) = options.only_if {
            self.store.check_condition(now, &stored, only_if)?;
        }
        Ok(self.store.put(now, &stored, value, options.expires(now)).0)
    }

    /// Deletes a key: what it holds here is removed everywhere, for ever. `None` if it holds nothing.
    ///
    /// # Errors
    /// If the key is not a key.
    pub fn delete(&mut self, now: Time, key: &str) -> Result<Option<Stamp>, WriteError> {
        entry::check_name(key.as_bytes())?;
        let mut stored = Vec::with_capacity(1 + key.len());
        entry::register_key(key, &mut stored);
        Ok(self.store.delete(now, &stored).map(|(stamp, _)| stamp))
    }

    /// The value of a key.
    pub fn get(&self, now: Time, key: &str) -> Option<Entry> {
        let mut stored = Vec::with_capacity(1 + key.len());
        entry::register_key(key, &mut stored);
        let (held, revision) = self.store.held(&stored)?;
        self.entry(now, held, revision)
    }

    /// All entries whose key begins like this, in key order.
    pub fn scan(&self, now: Time, prefix: &str) -> Vec<Entry> {
        let mut stored = Vec::new();
        entry::register_key(prefix, &mut stored);
        self.store
            .with_prefix(&stored)
            .filter_map(|(held, revision)| self.entry(now, held, revision))
            .collect()
    }

    fn entry(&self, now: Time, held: &Held, number: u64) -> Option<Entry> {
        Entry::new(held, Revision { log: self.store.log.id, number }, now.wall_ms())
    }

    /// How many entries are held, those of sets and counters included.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies several writes in one step: all of them or, if one is not acceptable, none. Answers their stamps.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(&mut self, now: Time, batch: &Batch) -> Result<Vec<Option<Stamp>>, WriteError> {
        if batch.writes.len() > BATCH_WRITES_MAX {
            return Err(WriteError::BatchTooLarge { writes: batch.writes.len() });
        }
        for (key, value) in &batch.writes {
            entry::check_name(key.as_bytes())?;
            self.store.check_value(value.as_ref().map_or(0, Vec::len))?;
        }
        let write = |(key, value): &(String, Option<Vec<u8>>)| {
            let mut stored = Vec::with_capacity(1 + key.len());
            entry::register_key(key, &mut stored);
            match value {
                Some(value) => Some(self.store.put(now, &stored, value, 0).0),
                None => self.store.delete(now, &stored).map(|(stamp, _)| stamp),
            }
        };
        Ok(batch.writes.iter().map(write).collect())
    }

    fn element(set: &str, element: &str) -> Result<Vec<u8>, WriteError> {
        entry::check_name(set.as_bytes())?;
        entry::check_name(element.as_bytes())?;
        let mut stored = Vec::with_capacity(3 + set.len() + element.len());
        entry::set_prefix(set, &mut stored);
        stored.extend_from_slice(element.as_bytes());
        Ok(stored)
    }

    /// Adds an element to a set. Wins over a concurrent removal.
    ///
    /// # Errors
    /// If a name is not acceptable.
    pub fn set_add(&mut self, now: Time, set: &str, element: &str) -> Result<Stamp, WriteError> {
        let stored = Self::element(set, element)?;
        Ok(self.store.put(now, &stored, &[], 0).0)
    }

    /// Removes an element from a set, as far as this node has seen it added.
    ///
    /// # Errors
    /// If a name is not acceptable.
    pub fn set_remove(&mut self, now: Time, set: &str, element: &str) -> Result<Option<Stamp>, WriteError> {
        let stored = Self::element(set, element)?;
        Ok(self.store.delete(now, &stored).map(|(stamp, _)| stamp))
    }

    /// Whether an element is in a set.
    pub fn set_contains(&self, set: &str, element: &str) -> bool {
        Self::element(set, element).is_ok_and(|stored| self.store.held(&stored).is_some())
    }

    /// The elements of a set, in order.
    pub fn set_iter(&self, set: &str) -> impl Iterator<Item = String> {
        let mut prefix = Vec::new();
        entry::set_prefix(set, &mut prefix);
        let elements = self.store.with_prefix(&prefix).map(|(held, _)| entry::name_of(held.key()).to_owned());
        elements.collect::<Vec<_>>().into_iter()
    }

    /// Adds to a counter, or subtracts from it.
    ///
    /// # Errors
    /// If the name is not acceptable or this process's share would overflow.
    pub fn counter_add(&mut self, now: Time, counter: &str, by: i64) -> Result<Stamp, WriteError> {
        entry::check_name(counter.as_bytes())?;
        let mut stored = Vec::new();
        entry::counter_prefix(counter, &mut stored);
        stored.extend_from_slice(&self.store.run.to_be_bytes());
        let share = self.store.held(&stored).map_or(0, |(held, _)| share_of(held));
        let share = share.checked_add(by).ok_or(WriteError::CounterOverflow)?;
        Ok(self.store.put(now, &stored, &share.to_le_bytes(), 0).0)
    }

    /// The value of a counter: the sum of all shares, held within the range of `i64`.
    pub fn counter_value(&self, counter: &str) -> i64 {
        let mut prefix = Vec::new();
        entry::counter_prefix(counter, &mut prefix);
        let sum: i128 = self.store.with_prefix(&prefix).map(|(held, _)| i128::from(share_of(held))).sum();
        sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// From now on passes on the writes of others, or not: see [`Config::relay`].
    pub fn relay(&mut self, on: bool) {
        self.config.relay = on;
    }

    /// Compares everything with a peer as soon as it has said hello, whatever the checks say.
    pub fn compare(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.wants_session = true;
        }
    }

    /// What this replica holds and has seen, as fingerprints and counts.
    pub fn status(&self) -> Status {
        Status {
            root: self.store.root().sum(),
            seen: self.store.seen.hash(),
            entries: self.store.len(),
            bytes: self.store.bytes(),
            origins: self.store.seen.vector().dots.len(),
            cloud: self.store.seen.spans(),
            removals: self.store.log.removals(),
            head: Revision { log: self.store.log.id, number: self.store.log.head() },
            links: self.links.len(),
            sessions: self.links.values().filter(|link| link.session.is_some()).count(),
            traffic: self.traffic,
        }
    }

    // The contract.

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input<'_>) {
        self.now = now;
        match input {
            Input::LinkUp(id) => _ = self.links.insert(id, Link::default()),
            Input::LinkDown(id) => self.link_down(id),
            Input::Drained(id, lane, bytes) => {
                if let Some(link) = self.links.get_mut(&id) {
                    let in_flight = &mut link.in_flight[lane as usize];
                    *in_flight = in_flight.saturating_sub(bytes);
                }
            }
            Input::Persisted(head) => {
                self.persisting = false;
                self.store.persisted(head);
            }
            Input::Wake => self.wake(),
            Input::Datagram(id, bytes) => {
                if let Err(error) = self.datagram(id, bytes) {
                    self.break_link(id, BreakReason::Protocol(error));
                }
            }
            Input::Stream(id, lane, bytes) => {
                if let Err(error) = self.stream(id, lane, bytes) {
                    self.break_link(id, BreakReason::Protocol(error));
                }
            }
        }
        self.recover();
    }

    /// When to wake it next.
    pub fn deadline(&self) -> Time {
        let mut at = self.next_sync;
        for link in self.links.values() {
            at = [link.check_at, link.break_at].into_iter().flatten().fold(at, Duration::min);
        }
        if let Some(ms) = self.store.next_expiry() {
            let left = Duration::from_millis(ms).saturating_sub(self.now.wall);
            at = at.min(self.now.mono + left);
        }
        self.now.after(at.saturating_sub(self.now.mono))
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if let Some(persist) = self.persist() {
            return Some(Output::Persist(Box::new(persist)));
        }
        let from = self.next_link;
        let ids: Vec<LinkId> =
            self.links.range(from..).chain(self.links.range(..from)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(output) = self.poll_link(id) {
                self.next_link = id + 1;
                return Some(output);
            }
            if !self.outputs.is_empty() {
                return self.outputs.pop_front();
            }
        }
        None
    }

    fn poll_link(&mut self, id: LinkId) -> Option<Output> {
        let (store, link) = (&mut self.store, self.links.get_mut(&id)?);
        if let Some(bytes) = link.checks.pop_front() {
            self.traffic.bytes += bytes.len() as u64;
            return Some(Output::Datagram(id, bytes));
        }
        if link.in_flight[Lane::Live as usize] < WINDOW_BYTES
            && let Some(bytes) = link.live_frame(store, self.config.relay)
        {
            link.in_flight[Lane::Live as usize] += bytes.len();
            return Some(Output::Stream(id, Lane::Live, bytes));
        }
        let stranded = std::mem::take(&mut link.outgoing.is_stranded);
        if (link.wants_session || stranded) && link.peer.is_some() && link.session.is_none() {
            link.begin(store, self.now, self.random.next_u64());
        }
        // What the last frame settled may finish the comparison.
        link.claim(store);
        if link.in_flight[Lane::Bulk as usize] < WINDOW_BYTES
            && let Some(session) = &mut link.session
        {
            let rows_before = session.rows_bytes;
            let frame = session.frame(store, self.now);
            if let Some(bytes) = frame {
                self.traffic.rows_bytes += session.rows_bytes - rows_before;
                self.traffic.bytes += bytes.len() as u64;
                self.traffic.frames += 1;
                link.in_flight[Lane::Bulk as usize] += bytes.len();
                link.finish(self.now, self.config.sync_interval);
                return Some(Output::Stream(id, Lane::Bulk, bytes));
            }
        }
        self.recover();
        None
    }

    // Links.

    fn link_down(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        if self.store.controls.has(Control::CursorKept)
            && let Some((log, _)) = link.peer
        {
            self.kept.insert(log, link.outgoing.cursor);
        }
    }

    fn break_link(&mut self, id: LinkId, reason: BreakReason) {
        if self.links.contains_key(&id) {
            self.link_down(id);
            self.outputs.push_back(Output::Break(id, reason));
        }
    }

    fn break_others(&mut self, except: LinkId, reason: BreakReason) {
        let ids: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.session.is_some()).map(|(id, _)| *id).collect();
        ids.into_iter().filter(|id| *id != except).for_each(|id| self.break_link(id, reason));
    }

    /// After damage: gives up what this replica claims, and breaks every link before anything is sent.
    fn recover(&mut self) {
        if !self.store.is_damaged {
            return;
        }
        if !self.store.controls.has(Control::LinksKept) {
            let ids: Vec<LinkId> = self.links.keys().copied().collect();
            ids.into_iter().for_each(|id| self.break_link(id, BreakReason::Damaged));
        }
        let (run, log) = (self.random.next_u64(), self.random.next_u64());
        self.store.give_up_claims(run, log);
        self.persist_whole = true;
        self.outputs.push_back(Output::Event(Event::Damaged));
    }

    fn stream(&mut self, id: LinkId, lane: Lane, bytes: &[u8]) -> Result<(), WireError> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let mut assembler = std::mem::take(match lane {
            Lane::Live => &mut link.live,
            Lane::Bulk => &mut link.bulk,
        });
        assembler.feed(bytes);
        while let Some(frame) = assembler.next()? {
            let (kind, reader) = Reader::new(frame)?;
            match lane {
                Lane::Live => self.live_frame(id, kind, reader)?,
                Lane::Bulk => self.bulk_frame(id, kind, reader)?,
            }
            if self.store.is_damaged || !self.links.contains_key(&id) {
                return Ok(());
            }
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        match lane {
            Lane::Live => link.live = assembler,
            Lane::Bulk => link.bulk = assembler,
        }
        Ok(())
    }

    fn live_frame(&mut self, id: LinkId, kind: Kind, mut reader: Reader<'_>) -> Result<(), WireError> {
        let (store, link) = (&mut self.store, self.links.get_mut(&id).expect("the caller looked"));
        match (kind, link.peer) {
            (Kind::Hello, None) => {
                let peer = (reader.word()?, reader.word()?);
                let seen = reader.word()?;
                reader.end()?;
                link.peer = Some(peer);
                // A replica that followed this log before, or has seen as much, goes on from there.
                let follows = store.completed(peer.0) > 0 || seen == store.seen.hash();
                link.states_position = follows;
                link.wants_session |= !follows;
                if let Some(kept) = self.kept.get(&peer.0) {
                    link.outgoing.cursor = *kept;
                }
            }
            (Kind::Position, Some(_)) => {
                let (log, complete) = (reader.word()?, reader.number()?);
                reader.end()?;
                if !link.outgoing.resume(store, log, complete) {
                    link.wants_session = true;
                }
            }
            (Kind::Tail, Some(peer)) => {
                let (refusals, _) = link.incoming.frame(store, self.now, peer, reader)?;
                self.refused(id, refusals);
            }
            _ => return Err(WireError::Kind(kind as u8)),
        }
        Ok(())
    }

    fn bulk_frame(&mut self, id: LinkId, kind: Kind, reader: Reader<'_>) -> Result<(), WireError> {
        let salt = self.random.next_u64();
        let (store, link) = (&mut self.store, self.links.get_mut(&id).expect("the caller looked"));
        let progress = match kind {
            Kind::Start => {
                if link.session.is_none() {
                    link.begin(store, self.now, salt);
                }
                let session = link.session.as_mut().expect("just begun");
                session.start(store, self.now, salt, reader)?
            }
            Kind::Items => {
                let session = link.session.as_mut().ok_or(WireError::Kind(kind as u8))?;
                session.items(store, self.now, reader)?
            }
            _ => return Err(WireError::Kind(kind as u8)),
        };
        let Progress { refusals, has_rekeyed } = progress;
        link.claim(store);
        link.finish(self.now, self.config.sync_interval);
        self.refused(id, refusals);
        if has_rekeyed {
            self.break_others(id, BreakReason::Rekeyed);
        }
        Ok(())
    }

    fn refused(&mut self, id: LinkId, refusals: Vec<Refused>) {
        if refusals.is_empty() {
            return;
        }
        for (key, reason) in refusals {
            self.outputs.push_back(Output::Event(Event::Refused { link: id, key, reason }));
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.break_at.is_none() {
            let log = link.peer.map_or(0, |(log, _)| log);
            let times = self.refusals.entry(log).or_default();
            *times = (*times + 1).min(6);
            link.break_at = Some(self.now.mono + self.config.sync_interval * (1 << *times));
        }
    }

    // Checks.

    fn check(&self, is_reply: bool) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Check);
        writer.byte(u8::from(is_reply));
        let root = self.store.root().sum();
        writer.word(root as u64);
        writer.word((root >> 64) as u64);
        writer.word(self.store.seen.hash());
        writer.finish_datagram()
    }

    fn datagram(&mut self, id: LinkId, bytes: &[u8]) -> Result<(), WireError> {
        let (kind, mut reader) = Reader::new(bytes)?;
        if kind != Kind::Check {
            return Err(WireError::Kind(kind as u8));
        }
        let is_reply = reader.byte()? == 1;
        let root = u128::from(reader.word()?) | (u128::from(reader.word()?) << 64);
        let seen = reader.word()?;
        reader.end()?;
        let same_root = root == self.store.root().sum();
        let same_seen = seen == self.store.seen.hash();
        let reply = (!is_reply).then(|| self.check(true));
        let settled = self.store.seen.spans() == 0 && self.store.expiries() == 0;
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.checks.extend(reply);
        if same_root && same_seen {
            link.differs = 0;
            link.backoff = 0;
            return Ok(());
        }
        if link.session.is_some() || self.now.mono < link.no_session_before {
            return Ok(());
        }
        link.differs += 1;
        if link.differs < 2 {
            link.check_at = Some(self.now.mono + self.config.sync_interval / 4);
            return Ok(());
        }
        link.differs = 0;
        link.wants_session = true;
        if same_seen && settled {
            let leaves = self.store.leaves();
            self.store.scrub(0, leaves);
            if !self.store.is_damaged {
                self.outputs.push_back(Output::Event(Event::Disagreement { link: id }));
            }
        }
        Ok(())
    }

    // Time.

    fn wake(&mut self) {
        let now = self.now;
        self.store.expire(now, EXPIRE_STEPS);
        let check = self.check(false);
        let mut breaks = Vec::new();
        for (id, link) in &mut self.links {
            if link.check_at.is_some_and(|at| at <= now.mono) {
                link.check_at = None;
                link.checks.push_back(check.clone());
            }
            if link.break_at.is_some_and(|at| at <= now.mono) {
                breaks.push((*id, BreakReason::Refused));
            }
            let waits = |session: &Session| now.mono > session.last_progress.mono + self.config.sync_timeout;
            if link.session.as_ref().is_some_and(waits) {
                breaks.push((*id, BreakReason::TimedOut));
            }
        }
        breaks.into_iter().for_each(|(id, reason)| self.break_link(id, reason));
        if self.next_sync <= now.mono {
            self.sync(check);
        }
    }

    /// Once an interval: compare with a random peer, settle accounts with all, look after the house.
    fn sync(&mut self, check: Vec<u8>) {
        // Spread over the interval, so that clusters started together do not act together.
        let interval = self.config.sync_interval;
        let jitter = interval / 8 * (self.random.next_u32() % 3);
        self.next_sync = self.now.mono + interval - interval / 8 + jitter;
        let ready: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.peer.is_some()).map(|(id, _)| *id).collect();
        if !ready.is_empty() {
            let id = ready[self.random.next_u64() as usize % ready.len()];
            self.links.get_mut(&id).expect("just listed").checks.push_back(check);
        }
        self.links.values_mut().for_each(|link| link.flush = true);
        self.store.seen.sweep();
        let rounds = (self.config.scrub_interval.as_millis() / interval.as_millis().max(1)).max(1) as usize;
        let leaves = self.store.leaves().div_ceil(rounds);
        self.scrub_at = self.store.scrub(self.scrub_at, leaves);
        if self.scrub_at >= self.store.leaves() {
            self.scrub_at = 0;
        }
    }

    fn persist(&mut self) -> Option<Persist> {
        let store = &mut self.store;
        let mark = (store.log.head(), store.seen.version(), store.seen.spans());
        if !self.has_disk || self.persisting || (mark == self.persisted && !self.persist_whole) {
            return None;
        }
        let since = if self.persist_whole { 0 } else { self.persisted.0 };
        let is_whole = std::mem::take(&mut self.persist_whole);
        self.persisting = true;
        self.persisted = mark;
        let mut rows: Vec<Held> =
            store.log.after(since).map(|(_, slot)| store.slot(slot).held.clone()).collect();
        let nothing = |key: &[u8]| Held::Nothing(entry::Record::bare(key));
        let dropped = std::mem::take(&mut store.dropped);
        rows.extend(
            dropped.iter().map(|key| store.held(key).map_or_else(|| nothing(key), |(h, _)| h.clone())),
        );
        Some(Persist {
            head: mark.0,
            rows,
            seen: store.seen.vector().dots.clone(),
            clouds: store.seen.clouds(),
            positions: store.positions.clone(),
            hash_key: store.hash_key,
            clock: store.clock.last(),
            run: store.run,
            root: store.root(),
            is_whole,
        })
    }
}

impl Link {
    /// The next frame of the live stream.
    fn live_frame(&mut self, store: &mut Store, relay: bool) -> Option<Vec<u8>> {
        if !self.has_greeted {
            self.has_greeted = true;
            let mut writer = Writer::new(Kind::Hello);
            writer.word(store.log.id);
            writer.word(store.run);
            writer.word(store.seen.hash());
            return Some(writer.finish());
        }
        let (log, _) = self.peer?;
        if std::mem::take(&mut self.states_position) {
            let mut writer = Writer::new(Kind::Position);
            writer.word(log);
            writer.number(store.completed(log));
            return Some(writer.finish());
        }
        let flush = std::mem::take(&mut self.flush);
        self.outgoing.frame(store, relay, flush)
    }

    fn begin(&mut self, store: &Store, now: Time, salt: u64) {
        self.wants_session = false;
        let mut session = Session::new(store, now, salt);
        if self.peer.is_some_and(|(log, _)| store.log.id < log) {
            session.lead();
        }
        self.session = Some(session);
    }

    /// Claims what a finished comparison allows. From then on the tail serves this link.
    fn claim(&mut self, store: &mut Store) {
        self.states_position |= self.session.as_mut().is_some_and(|session| session.claim(store));
    }

    /// Drops a session that is over, and puts the next one off if this one taught nothing.
    fn finish(&mut self, now: Time, interval: Duration) {
        let Some(session) = self.session.take_if(|session| session.is_over()) else { return };
        let useless = session.rows == 0 || session.refused_rows();
        self.backoff = if useless { (self.backoff + 1).min(6) } else { 0 };
        if self.backoff > 1 {
            self.no_session_before = now.mono + interval * (1 << self.backoff);
        }
    }
}

fn share_of(held: &Held) -> i64 {
    let bytes = held.dots().last().map_or(&[][..], entry::Record::value);
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

/// The largest batch.
pub const BATCH_WRITES_MAX: usize = 65_536;

/// Several writes, applied in one local step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    writes: Vec<(String, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.writes.iter().map(|(key, _)| key.as_str())
    }

    /// Each key, and whether it is put.
    pub(crate) fn writes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.writes.iter().map(|(key, value)| (key.as_str(), value.is_some()))
    }

    /// Adds a put.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        self.writes.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<str>) -> Self {
        self.writes.push((key.as_ref().to_owned(), None));
        self
    }
}

/// How to put a value.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions {
    ttl: Option<Duration>,
    only_if: Option<OnlyIf>,
}

impl PutOptions {
    /// For ever, unconditionally.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value vanishes after this time, everywhere.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Only under this condition, as this node sees it.
    #[must_use]
    pub fn only_if(mut self, only_if: OnlyIf) -> Self {
        self.only_if = Some(only_if);
        self
    }

    pub(crate) fn has_ttl(&self) -> bool {
        self.ttl.is_some()
    }

    fn expires(&self, now: Time) -> u64 {
        let at = self.ttl.map(|ttl| now.wall.saturating_add(ttl).as_millis());
        at.map_or(0, |ms| u64::try_from(ms).unwrap_or(u64::MAX).max(1))
    }
}

/// What a replica holds and has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The digest's root: equal states have equal roots under the same cluster hash key.
    pub root: u128,
    /// A fingerprint of everything merged here.
    pub seen: u64,
    /// Entries held, those of sets and counters included.
    pub entries: usize,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Process starts that ever wrote.
    pub origins: usize,
    /// Contexts kept beyond the vector; none when all is quiet.
    pub cloud: usize,
    /// Removals that the change log still remembers.
    pub removals: usize,
    /// The change log's head.
    pub head: Revision,
    /// Links to peers.
    pub links: usize,
    /// Repair sessions under way.
    pub sessions: usize,
    /// What repair sessions have moved.
    pub traffic: SyncTraffic,
}
