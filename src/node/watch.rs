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
    pub fn from(mut self, revision: Revision) -> Self {
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

    /// Where the next event will stand.
    pub(super) fn end(&self) -> u64 {
        let entries = self.lock();
        entries.0 + entries.1.len() as u64
    }

    fn read(&self, cursor: &mut u64) -> Option<T> {
        let entries = self.lock();
        let at = (*cursor).max(entries.0);
        let event = entries.1.get((at - entries.0) as usize)?.clone();
        *cursor = at + 1;
        Some(event)
    }
}

/// Events of a node. Whoever reads too slowly misses the oldest.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let mut events = node.events();
/// tokio::spawn(async move {
///     while let Some(event) = events.next().await {
///         eprintln!("{event:?}");
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events<T: 'static> {
    shared: Arc<Shared>,
    log: fn(&Shared) -> &EventLog<T>,
    cursor: u64,
}

impl<T: Clone> Events<T> {
    pub(super) fn new(shared: &Arc<Shared>, log: fn(&Shared) -> &EventLog<T>, cursor: u64) -> Self {
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
}
