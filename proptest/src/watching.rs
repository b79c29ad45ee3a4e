//! A checking consumer of watches. It builds the state from the events alone and compares it with what the node holds,
//! so that a missed, repeated or reordered event is found. Its negative control is `Control::WatchPastFloor` in
//! `tests/watches.rs`.

use std::collections::BTreeMap;

use tidings::sim::{SimNode, SimWatch};
use tidings::{Revision, WatchEvent, WatchOptions};

/// State built from the events: values by key.
type State = BTreeMap<String, Vec<u8>>;

/// Earlier states that are kept to resume from.
const BOOKMARKS_MAX: usize = 32;

/// A watch of one prefix on one node, and the state built from its events.
#[derive(Debug)]
pub struct Watcher {
    node: SimNode,
    prefix: String,
    watch: SimWatch,
    state: State,
    /// Greatest revision received. Each following event must have a greater one.
    last: Option<Revision>,
    /// Whether `Current` was received since the start or the last resync.
    is_current: bool,
    bookmarks: Vec<(Revision, State)>,
}

impl Watcher {
    /// Watches all keys with a prefix.
    pub fn new(node: SimNode, prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            watch: node.watch(prefix),
            node,
            state: State::new(),
            last: None,
            is_current: false,
            bookmarks: Vec::new(),
        }
    }

    /// Goes back to an earlier revision, with the state of that revision, and resumes the watch from there.
    pub fn resume(&mut self, pick: usize) {
        if self.bookmarks.is_empty() {
            return;
        }
        let (revision, state) = self.bookmarks[pick % self.bookmarks.len()].clone();
        // A program that keeps a revision between two runs stores its text.
        let revision = revision.to_string().parse().expect("a revision's own text");
        self.watch = self.node.watch_with(&self.prefix, WatchOptions::new().resume_from(revision));
        (self.state, self.last, self.is_current) = (state, Some(revision), false);
        self.bookmarks.clear();
    }

    /// Reads at most `limit` events into the state.
    ///
    /// # Panics
    /// If an event is out of order or repeated.
    pub fn read(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(event) = self.watch.try_next() else { return };
            if let (Some(last), Some(revision)) = (self.last, event.revision()) {
                // Revisions of one run are ordered like their texts.
                assert!(
                    last.to_string() < revision.to_string(),
                    "event out of order: {last} before {event:?}"
                );
            }
            match &event {
                WatchEvent::Put(entry) => {
                    self.state.insert(entry.key().to_owned(), entry.value().to_vec());
                }
                WatchEvent::Delete { key, .. } | WatchEvent::Expired { key, .. } => {
                    self.state.remove(key);
                }
                WatchEvent::Current => self.is_current = true,
                WatchEvent::Resync => {
                    self.state.clear();
                    self.bookmarks.clear();
                    (self.last, self.is_current) = (None, false);
                }
                _ => unreachable!("there is no other kind of event"),
            }
            self.last = event.revision().or(self.last);
            if let Some(revision) = event.revision() {
                self.bookmarks.push((revision, self.state.clone()));
                let surplus = self.bookmarks.len().saturating_sub(BOOKMARKS_MAX);
                self.bookmarks.drain(..surplus);
            }
        }
    }

    /// Whether the node has stopped since the watch began.
    pub fn is_over(&self) -> bool {
        self.watch.is_over()
    }

    /// Reads all pending events and compares the state with what the node holds, for the keys that `compares` accepts.
    /// Keys with an expiry are left out in the middle of a history: reads hide a value at its time, while the watch
    /// reports it when the node wakes next.
    ///
    /// # Panics
    /// If the last value of a key was missed, or the initial values did not end with `Current`.
    pub fn check(&mut self, compares: impl Fn(&str) -> bool) {
        self.read(usize::MAX);
        assert!(self.is_current, "no `Current` event after the initial values");
        let held = self.node.scan(&self.prefix);
        let held = held.iter().map(|entry| (entry.key().to_owned(), entry.value().to_vec()));
        let held: State = held.filter(|(key, _)| compares(key)).collect();
        let told: State = self.state.clone().into_iter().filter(|(key, _)| compares(key)).collect();
        assert_eq!(
            told,
            held,
            "the events of the watch of {:?} on node {} do not give its state",
            self.prefix,
            self.node.name()
        );
    }
}
