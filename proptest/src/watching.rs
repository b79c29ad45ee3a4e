//! A consumer of watches that trusts nothing: it builds the state from events alone and compares it with the node's.

use std::collections::BTreeMap;

use tidings::{Revision, Sim, SimWatch, WatchEvent};

/// What the events say is there: values by key.
type State = BTreeMap<String, Vec<u8>>;

/// How many earlier states are kept to resume from.
const BOOKMARKS_MAX: usize = 32;

/// Follows one prefix on one node.
#[derive(Debug)]
pub struct Watcher {
    node: usize,
    prefix: String,
    watch: SimWatch,
    state: State,
    /// The latest revision that was told. Every later one is greater.
    last: Option<Revision>,
    /// After a resync everything is new until the next `Current`.
    is_current: bool,
    bookmarks: Vec<(Revision, State)>,
}

impl Watcher {
    /// Watches all keys that begin like this.
    pub fn new(sim: &mut Sim, node: usize, prefix: &str) -> Self {
        Self {
            node,
            prefix: prefix.to_owned(),
            watch: sim.node(node).watch(prefix),
            state: State::new(),
            last: None,
            is_current: false,
            bookmarks: Vec::new(),
        }
    }

    /// Goes back to an earlier point, with the state as it was, and watches on from there.
    pub fn resume(&mut self, sim: &mut Sim, pick: usize) {
        if self.bookmarks.is_empty() {
            return;
        }
        let (revision, state) = self.bookmarks[pick % self.bookmarks.len()].clone();
        // Text and back: that is how a revision is kept between two runs of a program.
        let revision = revision.to_string().parse().expect("a revision's own text");
        self.watch = sim.node(self.node).watch(&self.prefix).resume_from(revision);
        (self.state, self.last, self.is_current) = (state, Some(revision), false);
        self.bookmarks.clear();
    }

    /// Takes in at most `limit` events.
    ///
    /// # Panics
    /// If an event is out of order or told twice.
    pub fn read(&mut self, sim: &mut Sim, limit: usize) {
        for _ in 0..limit {
            let Some(event) = self.watch.next(sim) else { return };
            if let (Some(last), Some(revision)) = (self.last, event.revision()) {
                // Revisions of one run are ordered like their texts.
                assert!(
                    last.to_string() < revision.to_string(),
                    "told out of order: {last} before {event:?}"
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
                _ => unreachable!("no other event is known"),
            }
            self.last = event.revision().or(self.last);
            if let Some(revision) = event.revision() {
                self.bookmarks.push((revision, self.state.clone()));
                let surplus = self.bookmarks.len().saturating_sub(BOOKMARKS_MAX);
                self.bookmarks.drain(..surplus);
            }
        }
    }

    /// Whether the node has stopped since.
    pub fn is_over(&self, sim: &Sim) -> bool {
        self.watch.is_over(sim)
    }

    /// Reads everything there is and compares it with what the node holds, except for the keys that are not to be
    /// compared: a value is hidden at its time, and that is told when the node next wakes.
    ///
    /// # Panics
    /// If the last value of a key was missed, or the initial values had no end.
    pub fn check(&mut self, sim: &mut Sim, compares: impl Fn(&str) -> bool) {
        self.read(sim, usize::MAX);
        assert!(self.is_current, "the end of the initial values was not told");
        let held = sim.node(self.node).scan(&self.prefix);
        let held = held.iter().map(|entry| (entry.key().to_owned(), entry.value().to_vec()));
        let held: State = held.filter(|(key, _)| compares(key)).collect();
        let told: State = self.state.clone().into_iter().filter(|(key, _)| compares(key)).collect();
        assert_eq!(told, held, "a watch of {:?} on node {} went wrong", self.prefix, self.node);
    }
}
