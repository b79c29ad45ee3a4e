//! Streams of what happens: watches of keys, and events of the node.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use super::shared::Shared;
use crate::entry::Revision;
use crate::watch::{WatchEvent, WatchId, WatchStart};

/// A watch of keys: first what is there, then [`WatchEvent::Current`], then what changes, for as long as the node
/// lives. Nothing is lost when a waiting `next` is dropped. It begins where it is made.
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

/// Events of a node. Whoever reads too slowly misses the oldest.
#[derive(Debug)]
pub struct Events<T> {
    shared: Arc<Shared>,
    events: broadcast::Receiver<T>,
}

impl<T: Clone> Events<T> {
    pub(super) fn new(shared: &Arc<Shared>, events: broadcast::Receiver<T>) -> Self {
        Self { shared: shared.clone(), events }
    }

    /// The next event. None once the node is closed and everything was told.
    pub async fn next(&mut self) -> Option<T> {
        loop {
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Ok(event) => return Some(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = shared.wait_for(|shared| shared.is_closed().then_some(())) => return self.rest(),
            }
        }
    }

    fn rest(&mut self) -> Option<T> {
        loop {
            match self.events.try_recv() {
                Ok(event) => return Some(event),
                Err(TryRecvError::Lagged(_)) => {}
                Err(_) => return None,
            }
        }
    }
}
