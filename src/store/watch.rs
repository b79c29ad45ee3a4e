//! Watches: the followers of the change log inside the process.
//!
//! A watch has a cursor in the change log and no queue. When it asks for events they are read from the log, with the
//! values of that moment. So a slow watch sees fewer intermediate values, never a wrong last one, and costs no memory.
//! The initial values come in the order of the log too, so that the revision of *every* event is a position to resume
//! from.
//!
//! All watches together are one more follower. It looks at each change once, finds the watches that it concerns by the
//! prefixes of the changed key, and notes for each the revision of its first unread change. A watch whose prefix has no
//! changes costs nothing and never falls behind.
//!
//! A watch must never read on below the floor of the log without saying so: deletes may be missing there. It reports
//! [`WatchEvent::Resync`] and starts over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::controls::Control;
use crate::id::{LogId, RowId};
use crate::store::LocalStore;
use crate::store::entry::{Entry, Removal, Revision};
use crate::store::key::readable_key;
use crate::time::{Stamp, Time};

/// An event of a watch.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum WatchEvent {
    /// A key has this value now.
    Put(Entry),
    /// A key was deleted. It may never have been reported before: a slow watch can miss that it was there.
    Delete {
        /// The key.
        key: String,
        /// Where to resume from, after this event.
        revision: Revision,
        /// The stamp of the delete. `None` if this node was told only that the value is gone: by a repair, after it
        /// was cut off, say, or while it joined. Of several concurrent deletes this is one. It is what the node that
        /// sent the row said, and is not proven.
        stamp: Option<Stamp>,
        /// The name of the member that deleted it. `None` if the stamp is not known, or the member that wrote it is
        /// not known here: it was forgotten, or a new run took its place before this node was started.
        writer: Option<String>,
    },
    /// The last value of a key expired, or is hidden because this node does not believe the run alive to whose life it
    /// is bound ([`PutOptions::ephemeral`](crate::PutOptions::ephemeral)).
    Expired {
        /// The key.
        key: String,
        /// Where to resume from, after this event.
        revision: Revision,
    },
    /// All values that were there when the watch began have been reported.
    Current,
    /// Some deletes may have been missed: forget everything that was reported. All current values follow, then
    /// [`WatchEvent::Current`].
    Resync,
}

impl WatchEvent {
    /// The key that the event is about, if any.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Put(entry) => Some(entry.key()),
            Self::Delete { key, .. } | Self::Expired { key, .. } => Some(key),
            Self::Current | Self::Resync => None,
        }
    }

    /// Where to resume from after this event, if it is about a key.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Put(entry) => Some(entry.revision()),
            Self::Delete { revision, .. } | Self::Expired { revision, .. } => Some(*revision),
            Self::Current | Self::Resync => None,
        }
    }
}

/// What a watch reports and where it begins. Default: all keys with the prefix, first their current values.
///
/// ```
/// use tidings::{Config, WatchEvent, WatchOptions};
/// use tidings::sim::Sim;
///
/// let sim = Sim::new(1).config(Config::lan()).nodes(1);
/// sim.node(0).put("limit", "100")?;
/// let options = WatchOptions::new().exact().without_current();
/// let mut watch = sim.node(0).watch_with("limit", options);
/// sim.node(0).put("limits", "another key")?;
/// sim.node(0).delete("limit")?;
/// assert!(matches!(watch.try_next(), Some(WatchEvent::Delete { key, .. }) if key == "limit"));
/// # Ok::<(), tidings::WriteError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WatchOptions {
    is_exact: bool,
    from: Option<Revision>,
    skips_current: bool,
}

impl WatchOptions {
    /// Default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches only the key that is given, not all keys that begin with it.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.is_exact = true;
        self
    }

    /// Continues after an event of an earlier watch, instead of beginning with the current values. The changes that
    /// were made meanwhile come first, then [`WatchEvent::Current`]. If that is not possible, the watch begins with
    /// [`WatchEvent::Resync`] and all current values.
    #[must_use]
    pub fn resume_from(mut self, revision: Revision) -> Self {
        self.from = Some(revision);
        self
    }

    /// Omits the current values, and the [`WatchEvent::Current`] that marks their end. It has no effect together with
    /// [`resume_from`](Self::resume_from), which reports no current values unless it has to.
    #[must_use]
    pub fn without_current(mut self) -> Self {
        self.skips_current = true;
        self
    }

    /// The same options without [`exact`](Self::exact), for views in which there is no single key to watch.
    pub(crate) fn inexact(mut self) -> Self {
        self.is_exact = false;
        self
    }
}

pub(crate) type WatchId = u64;

/// The most initial values that are looked up by their prefix. For more, the log is read from its beginning.
const LISTED_MAX: usize = 4_096;
/// Rows looked at in one call: bounds the work under the lock.
const LOOKS_MAX: usize = 4_096;
/// Events returned by one call: bounds the work under the lock.
const EVENTS_MAX: usize = 256;

/// One watch: its cursor in the change log, and what it owes its reader.
#[derive(Debug)]
struct WatchCursor {
    prefix: Vec<u8>,
    is_exact: bool,
    /// The log to which the cursor belongs.
    log: LogId,
    cursor: u64,
    /// Revision of the first change after the cursor that concerns this watch. Known once it has caught up for the
    /// first time.
    first_unread: Option<u64>,
    /// The revision at which `Current` is due.
    until: Option<u64>,
    /// The initial values are being read: keys that are gone were never reported, so their deletes are not either.
    is_fresh: bool,
    /// Revisions of the initial values that are still to be read, if they are few.
    listed: Option<VecDeque<u64>>,
    owes_resync: bool,
}

impl WatchCursor {
    /// A watch of a prefix of stored keys, or with `is_exact` of one whole stored key.
    fn new(store: &LocalStore, prefix: Vec<u8>, options: WatchOptions) -> Self {
        let WatchOptions { is_exact, from, skips_current } = options;
        let mut watch = Self {
            prefix,
            is_exact,
            log: store.log.id,
            cursor: store.log.head(),
            first_unread: None,
            until: None,
            is_fresh: false,
            listed: None,
            owes_resync: false,
        };
        match from {
            Some(Revision { log, number }) => {
                let fits = log == watch.log && (store.log.floor()..=watch.cursor).contains(&number);
                if fits {
                    watch.until = Some(watch.cursor);
                    watch.cursor = number;
                } else {
                    watch.owes_resync = true;
                    watch.start_over(store);
                }
            }
            None if skips_current => {}
            None => watch.start_over(store),
        }
        watch
    }

    /// Starts again with the current values.
    fn start_over(&mut self, store: &LocalStore) {
        self.log = store.log.id;
        self.cursor = 0;
        self.first_unread = None;
        self.until = Some(store.log.head());
        self.is_fresh = true;
        let rows = store.with_prefix(&self.prefix).take_while(|(dot_set, _)| self.concerns(dot_set.key()));
        let mut listed: Vec<u64> = rows.take(LISTED_MAX + 1).map(|(_, revision)| revision).collect();
        listed.sort_unstable();
        self.listed = (listed.len() <= LISTED_MAX).then(|| listed.into());
    }

    fn concerns(&self, key: &[u8]) -> bool {
        if self.is_exact { key == self.prefix } else { key.starts_with(&self.prefix) }
    }

    /// The next events, and whether these were all.
    fn next(&mut self, now: Time, store: &LocalStore) -> (Vec<WatchEvent>, bool) {
        let mut events = Vec::new();
        if self.until.is_none() {
            // Nothing before the first unread change concerns this watch.
            self.cursor = self.first_unread.map_or(store.log.head(), |due| self.cursor.max(due - 1));
        }
        let is_behind = |at: u64| at < store.log.floor() && !store.controls.has(Control::WatchPastFloor);
        if self.log != store.log.id || (is_behind(self.cursor) && !self.is_fresh) {
            self.start_over(store);
            self.owes_resync = true;
        }
        if std::mem::take(&mut self.owes_resync) {
            events.push(WatchEvent::Resync);
        }
        if let Some(mut listed) = self.listed.take() {
            while events.len() < EVENTS_MAX
                && let Some(revision) = listed.pop_front()
            {
                // A key that changed since is at a later revision.
                let id = store.log.row_at(revision);
                events.extend(id.and_then(|id| self.event_of(now, store, id, revision)));
            }
            if !listed.is_empty() {
                self.listed = Some(listed);
                return (events, false);
            }
            self.cursor = self.until.expect("the initial values have an end");
        }
        let (mut rows, mut looks) = (store.log.rows_after(self.cursor).peekable(), 0);
        let is_done = loop {
            if self.until.is_some_and(|until| self.cursor >= until) {
                if is_behind(self.cursor) {
                    // Some of the values that were reported first may have been deleted by now.
                    self.start_over(store);
                    self.owes_resync = true;
                    return (events, false);
                }
                self.until = None;
                self.is_fresh = false;
                events.push(WatchEvent::Current);
            }
            if events.len() >= EVENTS_MAX || looks == LOOKS_MAX {
                break false;
            }
            // There need not be a row at the revision where the initial values end.
            let until = self.until.unwrap_or(u64::MAX);
            if let Some((revision, id)) = rows.next_if(|(revision, _)| *revision <= until) {
                looks += 1;
                self.cursor = revision;
                events.extend(self.event_of(now, store, id, revision));
            } else if self.until.is_some() {
                self.cursor = until;
            } else {
                self.cursor = store.log.head();
                break true;
            }
        };
        self.first_unread = if is_done { None } else { Some(self.cursor + 1) };
        (events, is_done)
    }

    fn event_of(&self, now: Time, store: &LocalStore, id: RowId, number: u64) -> Option<WatchEvent> {
        let dot_set = &store.row(id).dot_set;
        if !self.concerns(dot_set.key()) {
            return None;
        }
        // What had expired before is no initial value, also while its row has not moved: after a start none has.
        let is_over = self.is_fresh && !store.is_visible(now, dot_set);
        if let Some(entry) = store.logged_entry(id, number).filter(|_| !is_over) {
            return Some(WatchEvent::Put(entry));
        }
        let revision = Revision { log: self.log, number };
        let key = || readable_key(dot_set.key()).to_owned();
        let stamp = match dot_set.removal() {
            _ if self.is_fresh => return None,
            None | Some(Removal::Expired) => return Some(WatchEvent::Expired { key: key(), revision }),
            Some(Removal::Unknown) => None,
            Some(Removal::Deleted(stamp)) => Some(stamp),
        };
        // Members are known to the replica, which adds the name.
        Some(WatchEvent::Delete { key: key(), revision, stamp, writer: None })
    }
}

/// All watches of a replica.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    cursor: u64,
    log: LogId,
    next_id: WatchId,
    open: BTreeMap<WatchId, WatchCursor>,
    by_prefix: BTreeMap<Vec<u8>, BTreeSet<WatchId>>,
    /// For each length, how many different watched prefixes have it.
    lengths: BTreeMap<usize, usize>,
    ready: BTreeSet<WatchId>,
}

impl Watches {
    pub(crate) fn open(&mut self, store: &LocalStore, prefix: Vec<u8>, options: WatchOptions) -> WatchId {
        self.advance(store);
        self.next_id += 1;
        let watch = WatchCursor::new(store, prefix, options);
        let ids = self.by_prefix.entry(watch.prefix.clone()).or_default();
        if ids.is_empty() {
            *self.lengths.entry(watch.prefix.len()).or_default() += 1;
        }
        ids.insert(self.next_id);
        self.open.insert(self.next_id, watch);
        self.next_id
    }

    pub(crate) fn close(&mut self, id: WatchId) {
        let Some(watch) = self.open.remove(&id) else { return };
        self.ready.remove(&id);
        let ids = self.by_prefix.get_mut(&watch.prefix).expect("every watch is listed by its prefix");
        ids.remove(&id);
        if ids.is_empty() {
            self.by_prefix.remove(&watch.prefix);
            let count = self.lengths.get_mut(&watch.prefix.len()).expect("and counted");
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&watch.prefix.len());
            }
        }
    }

    /// Follows the log to its head, and notes which watches have something to read.
    pub(crate) fn advance(&mut self, store: &LocalStore) {
        let head = store.log.head();
        let starts_over = self.log != store.log.id || self.cursor < store.log.floor();
        if self.open.is_empty() || starts_over {
            self.ready.extend(self.open.keys());
            // Each watch finds out by itself whether it missed something.
            self.open.values_mut().for_each(|watch| watch.first_unread = Some(watch.cursor + 1));
            (self.log, self.cursor) = (store.log.id, head);
            return;
        }
        for (revision, id) in store.log.rows_after(self.cursor) {
            let key = store.row(id).dot_set.key();
            for length in self.lengths.range(..=key.len()).map(|(length, _)| *length) {
                for id in self.by_prefix.get(&key[..length]).into_iter().flatten() {
                    let watch = self.open.get_mut(id).expect("listed watches are there");
                    if watch.concerns(key) {
                        watch.first_unread.get_or_insert(revision);
                        self.ready.insert(*id);
                    }
                }
            }
        }
        self.cursor = head;
    }

    /// The watches that got something to read since the last call.
    pub(crate) fn take_ready(&mut self) -> BTreeSet<WatchId> {
        std::mem::take(&mut self.ready)
    }

    /// The next events of a watch, and whether these were all.
    pub(crate) fn next(&mut self, id: WatchId, now: Time, store: &LocalStore) -> (Vec<WatchEvent>, bool) {
        self.advance(store);
        self.open.get_mut(&id).map_or((Vec::new(), true), |watch| watch.next(now, store))
    }
}
