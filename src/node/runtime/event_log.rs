//! The latest events of a node, and where its readers stand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// Events of each kind that are kept for readers that begin late or read slowly.
const EVENTS_KEPT: usize = 1_024;

/// The latest events of one kind, at most [`EVENTS_KEPT`]. Each reader has an [`EventCursor`].
#[derive(Debug)]
pub(in crate::node) struct EventLog<T> {
    entries: Mutex<(u64, VecDeque<T>)>,
    /// Notified after an event was added, and when the node is closed.
    pub(in crate::node) notify: Arc<Notify>,
}

impl<T: Clone> EventLog<T> {
    pub(in crate::node) fn new() -> Self {
        Self { entries: Mutex::new((0, VecDeque::new())), notify: Arc::default() }
    }

    /// The number of the oldest kept event, and the kept events.
    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<T>)> {
        self.entries.lock().expect("nothing panics while it changes")
    }

    /// Adds an event and wakes the readers.
    pub(in crate::node) fn push(&self, event: T) {
        self.add(event).notify_waiters();
    }

    /// Adds an event. The caller notifies the readers once it has released the lock of the core.
    pub(in crate::node) fn add(&self, event: T) -> Arc<Notify> {
        let mut entries = self.lock();
        entries.1.push_back(event);
        if entries.1.len() > EVENTS_KEPT {
            entries.1.pop_front();
            entries.0 += 1;
        }
        self.notify.clone()
    }

    /// The number of events so far.
    #[cfg(feature = "metrics")]
    pub(in crate::node) fn end(&self) -> u64 {
        let entries = self.lock();
        entries.0 + entries.1.len() as u64
    }

    /// A cursor for a reader of all kept events and of new ones.
    pub(in crate::node) fn cursor(&self) -> EventCursor {
        EventCursor { next: self.lock().0, missed: 0 }
    }

    pub(in crate::node) fn read(&self, cursor: &mut EventCursor) -> Option<T> {
        let entries = self.lock();
        cursor.skip_to(entries.0);
        let event = entries.1.get((cursor.next - entries.0) as usize)?.clone();
        cursor.next += 1;
        Some(event)
    }

    /// How many events a reader has missed: they were dropped before it had read them. Those that were dropped since
    /// its last read count as well.
    pub(in crate::node) fn missed(&self, mut cursor: EventCursor) -> u64 {
        cursor.skip_to(self.lock().0);
        cursor.missed
    }
}

/// The position of a reader in an [`EventLog`].
#[derive(Clone, Copy, Debug)]
pub(in crate::node) struct EventCursor {
    /// The number of the event to read next.
    next: u64,
    /// Events that were dropped before the reader had read them.
    missed: u64,
}

impl EventCursor {
    /// Skips the events before `oldest`, which have been dropped, and counts them as missed.
    fn skip_to(&mut self, oldest: u64) {
        let missed = oldest.saturating_sub(self.next);
        self.missed += missed;
        self.next += missed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, NodeEvent, Security};

    #[test]
    fn slow_reader_of_events_is_told_how_many_it_missed() {
        let log = EventLog::new();
        let push = |events: std::ops::Range<usize>| events.for_each(|event| log.push(event));
        let mut cursor = log.cursor();
        push(0..EVENTS_KEPT);
        assert_eq!((log.read(&mut cursor), log.missed(cursor)), (Some(0), 0));
        push(EVENTS_KEPT..EVENTS_KEPT + 1);
        assert_eq!(log.missed(cursor), 0, "the dropped event had been read");
        push(EVENTS_KEPT + 1..EVENTS_KEPT + 4);
        assert_eq!(log.missed(cursor), 3, "counted before the next read");
        assert_eq!((log.read(&mut cursor), log.missed(cursor)), (Some(4), 3));
        while log.read(&mut cursor).is_some() {}
        assert_eq!(log.missed(cursor), 3);
        push(0..2 * EVENTS_KEPT);
        assert_eq!(log.missed(cursor), 3 + EVENTS_KEPT as u64);
        assert_eq!(log.missed(log.cursor()), 0, "events dropped before the cursor was made are not missed");
    }

    #[tokio::test]
    async fn events_of_node_count_those_missed() {
        let security = Security::secret(&Security::generate_secret()).expect("it is strong");
        let builder = Node::builder("a").listen("127.0.0.1:0".parse().expect("an address"));
        let node = builder.security(security).start().await.expect("it starts");
        let (mut events, mut at_once) = (node.events(), node.events());
        while node.shared.events.read(&mut at_once.cursor).is_some() {}
        for _ in 0..EVENTS_KEPT {
            node.shared.events.push(NodeEvent::Store(crate::ReplicaEvent::Damaged));
        }
        assert_eq!(at_once.missed(), 0);
        node.shared.events.push(NodeEvent::Store(crate::ReplicaEvent::Damaged));
        assert_eq!(at_once.missed(), 1);
        assert!(events.next().await.is_some() && events.missed() >= 1);
    }
}
