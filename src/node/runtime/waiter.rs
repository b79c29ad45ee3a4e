//! How the streams of a node wait for what they yield next.
//!
//! The code that adds something notifies a [`Notify`] afterwards, and never under the lock of the core, because a waker
//! is code of the user. No notification may be lost: a waiter is registered *before* it looks for something to yield. A
//! waiter that is dropped is registered nowhere.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// One stream among those that wait for the same notifications.
#[derive(Debug)]
pub(in crate::node) struct Waiter {
    notify: Arc<Notify>,
    notified: Option<Pin<Box<OwnedNotified>>>,
}

impl Waiter {
    pub(in crate::node) fn new(notify: Arc<Notify>) -> Self {
        Self { notify, notified: None }
    }

    /// Looks with `look`, and again after every notification, until it returns `Some`.
    pub(in crate::node) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut look: impl FnMut() -> Option<T>,
    ) -> Poll<T> {
        loop {
            let notify = &self.notify;
            let notified = self.notified.get_or_insert_with(|| Box::pin(notify.clone().notified_owned()));
            notified.as_mut().enable();
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            ready!(notified.as_mut().poll(cx));
            self.notified = None;
        }
    }
}
