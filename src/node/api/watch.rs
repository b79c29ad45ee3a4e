//! The streams of a node: watches of keys, and its events.
//!
//! A watch keeps a cursor in the change log and no queue: `events` holds only what one call of the replica returned.
//! The events of a node are kept in a bounded log, in which every reader has a cursor of its own. No callback of the
//! user is ever called, and a waker only after the lock is released.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::node::runtime::event_log::{EventCursor, EventLog};
use crate::node::runtime::shared::Shared;
use crate::node::runtime::waiter::Waiter;
use crate::store::watch::{WatchEvent, WatchId, WatchOptions};
use crate::typed;

/// A watch of keys: first the current values, then [`WatchEvent::Current`], then every change until the node is closed.
///
/// It begins when it is made, not at the first `next`. A `next` that is dropped while it waits loses no event. A slow
/// watch sees fewer intermediate values, but always the last one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// use tidings::{WatchEvent, WatchOptions};
///
/// node.put("limits/max", "100")?;
/// let mut watch = node.watch("limits/");
/// let Some(WatchEvent::Put(entry)) = watch.next().await else { panic!("the key exists") };
/// assert_eq!(watch.next().await, Some(WatchEvent::Current));
///
/// // Later, or in another part of the program: continue after the event of that revision.
/// node.delete("limits/max")?;
/// let options = WatchOptions::new().resume_from(entry.revision());
/// let mut resumed = node.watch_with("limits/", options);
/// assert!(matches!(resumed.next().await, Some(WatchEvent::Delete { key, .. }) if key == "limits/max"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// `None`: the node was closed when the watch was made.
    id: Option<WatchId>,
    events: VecDeque<WatchEvent>,
}

impl Watch {
    /// Begins a watch of a prefix of stored keys.
    pub(in crate::node) fn new(shared: &Arc<Shared>, prefix: Vec<u8>, options: WatchOptions) -> Self {
        let id = shared.lock().map(|mut core| core.replica.watch(prefix, options));
        Self { shared: shared.clone(), id, events: VecDeque::new() }
    }

    /// Waits for the next event. `None` once the node is closed.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        typed::next(self).await
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        let watch = self.get_mut();
        if let Some(event) = watch.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        let Some(id) = watch.id else { return Poll::Ready(None) };
        let Some(mut core) = watch.shared.lock() else { return Poll::Ready(None) };
        let (events, is_done) = core.replica.watched(watch.shared.now(), id);
        watch.events.extend(events);
        if let Some(event) = watch.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if is_done {
            core.wakers.insert(id, cx.waker().clone());
        } else {
            // A part of the log that does not concern this watch was looked through: other tasks run before the next part.
            drop(core);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && let Some(mut core) = self.shared.lock_closed()
        {
            core.replica.unwatch(id);
            core.wakers.remove(&id);
        }
    }
}

/// A stream of events of a node: first the past ones that are kept, then new ones. The latest 1,024 of each kind are
/// kept. A reader that is further behind misses the oldest ones, and [`missed`](Self::missed) counts them; state that
/// it derives from events, such as the list of members, must then be read again. A `next` that is dropped while it
/// waits loses no event.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let mut events = node.events();
/// tokio::spawn(async move {
///     let mut missed = 0;
///     while let Some(event) = events.next().await {
///         if events.missed() > missed {
///             eprintln!("{} events were missed", events.missed() - missed);
///             missed = events.missed();
///         }
///         eprintln!("{event}");
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events<T: 'static> {
    shared: Arc<Shared>,
    log: fn(&Shared) -> &EventLog<T>,
    pub(in crate::node) cursor: EventCursor,
    waiter: Waiter,
}

impl<T: Clone> Events<T> {
    pub(in crate::node) fn new(shared: &Arc<Shared>, log: fn(&Shared) -> &EventLog<T>) -> Self {
        let (cursor, waiter) = (log(shared).cursor(), Waiter::new(log(shared).notify.clone()));
        Self { shared: shared.clone(), log, cursor, waiter }
    }

    /// Waits for the next event. `None` once the node is closed and all kept events were read.
    pub async fn next(&mut self) -> Option<T> {
        typed::next(self).await
    }

    /// The number of events that this reader has missed since it was made: they were dropped before it had read them.
    /// It grows while the reader does not read.
    pub fn missed(&self) -> u64 {
        (self.log)(&self.shared).missed(self.cursor)
    }
}

impl<T: Clone> Stream for Events<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let Self { shared, log, cursor, waiter } = self.get_mut();
        waiter.poll(cx, || {
            let is_closed = shared.is_closed();
            let event = log(shared).read(cursor);
            (is_closed || event.is_some()).then_some(event)
        })
    }
}
