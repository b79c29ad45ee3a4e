//! Streams of what happens: watches of keys, and events of the node.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_core::Stream;

use super::shared::Shared;
use crate::store::entry::Revision;
use crate::store::watch::{WatchEvent, WatchId, WatchStart};

/// Events of each kind that are kept for those who come late or read slowly.
const EVENTS_KEPT: usize = 1_024;

/// A watch of keys: first what is there, then [`WatchEvent::Current`], then what changes, for as long as the node
/// lives. Nothing is lost when a waiting `next` is dropped. It begins where it is made.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// use tidings::WatchEvent;
///
/// node.put("limits/max", "100")?;
/// let mut watch = node.watch("limits/");
/// let Some(WatchEvent::Put(entry)) = watch.next().await else { panic!("it is there") };
/// assert_eq!(watch.next().await, Some(WatchEvent::Current));
///
/// // Later, or in another part of the program: go on where this one was.
/// node.delete("limits/max")?;
/// let mut resumed = node.watch("limits/").from(entry.revision());
/// assert!(matches!(resumed.next().await, Some(WatchEvent::Delete { key, .. }) if key == "limits/max"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    start: WatchStart,
    id: Option<WatchId>,
    events: VecDeque<WatchEvent>,
}

impl Watch {
    pub(super) fn new(shared: &Arc<Shared>, start: WatchStart) -> Self {
        let mut watch = Self { shared: shared.clone(), start, id: None, events: VecDeque::new() };
        watch.open();
        watch
    }

    /// It begins where it is made, so that nothing that happens afterwards is missed.
    fn open(&mut self) {
        self.close();
        if let Some(mut core) = self.shared.lock() {
            self.id = Some(core.replica.watch(self.start.clone()));
        }
    }

    fn close(&mut self) {
        if let Some(id) = self.id.take()
            && let Some(mut core) = self.shared.lock_closed()
        {
            core.replica.unwatch(id);
            core.wakers.remove(&id);
        }
    }

    /// Only the key that is named, not those that begin like it.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.start.is_exact = true;
        self.open();
        self
    }

    /// Goes on behind an event of an earlier watch, instead of beginning with the current values. If that is not
    /// possible the first event is [`WatchEvent::Resync`].
    #[must_use]
    pub fn resume_from(mut self, revision: Revision) -> Self {
        self.start.from = Some(revision);
        self.open();
        self
    }

    /// Leaves out the current values, and the [`WatchEvent::Current`] that marks their end.
    #[must_use]
    pub fn without_current(mut self) -> Self {
        self.start.skips_current = true;
        self.open();
        self
    }

    /// The next event. None once the node is closed.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(id) = self.id else { return Poll::Ready(None) };
            let Some(mut core) = self.shared.lock() else { return Poll::Ready(None) };
            let (events, is_done) = core.replica.watched(self.shared.now(), id);
            self.events.extend(events);
            if is_done && self.events.is_empty() {
                core.wakers.insert(id, cx.waker().clone());
                return Poll::Pending;
            }
        }
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.get_mut().poll(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.close();
    }
}

/// The latest events of one kind. Readers follow with cursors, as everywhere.
#[derive(Debug)]
pub(super) struct EventLog<T> {
    entries: Mutex<(u64, VecDeque<T>)>,
}

impl<T: Clone> EventLog<T> {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::new((0, VecDeque::new())) }
    }

    /// The number of the oldest entry, and all entries.
    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<T>)> {
        self.entries.lock().expect("nothing panics while it changes")
    }

    /// Adds an event. Those who wait learn of it with the node's next progress.
    pub(super) fn push(&self, event: T) {
        let mut entries = self.lock();
        entries.1.push_back(event);
        if entries.1.len() > EVENTS_KEPT {
            entries.1.pop_front();
            entries.0 += 1;
        }
    }

    /// How many events there have been.
    pub(super) fn end(&self) -> u64 {
        let entries = self.lock();
        entries.0 + entries.1.len() as u64
    }

    /// A reader of everything that is kept, and of what comes.
    pub(super) fn cursor_at_oldest(&self) -> EventCursor {
        EventCursor { next: self.lock().0, missed: 0 }
    }

    /// A reader of what comes.
    pub(super) fn cursor_at_end(&self) -> EventCursor {
        EventCursor { next: self.end(), missed: 0 }
    }

    fn read(&self, cursor: &mut EventCursor) -> Option<T> {
        let entries = self.lock();
        cursor.skip_to(entries.0);
        let event = entries.1.get((cursor.next - entries.0) as usize)?.clone();
        cursor.next += 1;
        Some(event)
    }

    /// Events that a reader has missed so far, those included that it has yet to find missing.
    fn missed(&self, mut cursor: EventCursor) -> u64 {
        cursor.skip_to(self.lock().0);
        cursor.missed
    }
}

/// Where a reader of an [`EventLog`] stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventCursor {
    /// The number of the event that it reads next.
    next: u64,
    /// Events that were dropped before it had read them.
    missed: u64,
}

impl EventCursor {
    /// What is older than this has been dropped.
    fn skip_to(&mut self, oldest: u64) {
        let missed = oldest.saturating_sub(self.next);
        self.missed += missed;
        self.next += missed;
    }
}

/// Events of a node. The latest 1,024 of each kind are kept: a reader that is further behind misses the oldest, and
/// [`missed`](Self::missed) says how many. What it derives from events (who is there, say) has to be read anew then.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let mut events = node.events();
/// tokio::spawn(async move {
///     let mut missed = 0;
///     while let Some(event) = events.next().await {
///         if events.missed() > missed {
///             eprintln!("{} events were missed", events.missed() - missed);
///             missed = events.missed();
///         }
///         eprintln!("{event:?}");
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events<T: 'static> {
    shared: Arc<Shared>,
    log: fn(&Shared) -> &EventLog<T>,
    cursor: EventCursor,
}

impl<T: Clone> Events<T> {
    pub(super) fn new(shared: &Arc<Shared>, log: fn(&Shared) -> &EventLog<T>, cursor: EventCursor) -> Self {
        Self { shared: shared.clone(), log, cursor }
    }

    /// The next event. None once the node is closed and everything was told.
    pub async fn next(&mut self) -> Option<T> {
        let (log, cursor) = (self.log, &mut self.cursor);
        let read = |shared: &Shared| {
            let event = log(shared).read(cursor);
            if event.is_none() && !shared.is_closed() { None } else { Some(event) }
        };
        self.shared.wait_for(read).await
    }

    /// How many events this reader has missed since it was made, because it was too slow: they were dropped before it
    /// had read them. It grows while nobody reads.
    pub fn missed(&self) -> u64 {
        (self.log)(&self.shared).missed(self.cursor)
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
        let mut cursor = log.cursor_at_oldest();
        push(0..EVENTS_KEPT);
        assert_eq!((log.read(&mut cursor), log.missed(cursor)), (Some(0), 0));
        push(EVENTS_KEPT..EVENTS_KEPT + 1);
        assert_eq!(log.missed(cursor), 0, "it had read the one that was dropped");
        push(EVENTS_KEPT + 1..EVENTS_KEPT + 4);
        assert_eq!(log.missed(cursor), 3, "before it reads on");
        assert_eq!((log.read(&mut cursor), log.missed(cursor)), (Some(4), 3));
        while log.read(&mut cursor).is_some() {}
        assert_eq!(log.missed(cursor), 3);
        push(0..2 * EVENTS_KEPT);
        assert_eq!(log.missed(cursor), 3 + EVENTS_KEPT as u64);
        assert_eq!(
            log.missed(log.cursor_at_oldest()),
            0,
            "what was dropped before it was made is not missed"
        );
        assert_eq!(log.missed(log.cursor_at_end()), 0);
    }

    #[tokio::test]
    async fn events_of_node_count_those_missed() {
        let security = Security::secret("a secret for tests").expect("long enough");
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
