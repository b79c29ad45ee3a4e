//! How a live value puts the schema of its type into the store.
//!
//! A node that has just started may hold nothing yet, so that it does not see that the schema is there, and what it put
//! then would be concurrent with what every earlier run has put. So it puts the schema once it has caught up. What was
//! put concurrently all the same, by nodes that started together or while they were cut off, is replaced by the node
//! that put the value with the greatest stamp: by one of them, because the others would make concurrent values of it
//! again.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use super::plan::is_own;
use crate::error::{Cause, Rejected};
use crate::store::watch::WatchOptions;
use crate::typed::Store;

/// The pause before a schema that could not be put is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The schema that a live value puts.
pub(super) struct SchemaPut<S: Store> {
    key: String,
    schema: Vec<u8>,
    /// A watch of the key.
    watch: S::Watch,
    state: SchemaState,
    /// Why it is not put.
    fault: Option<Rejected>,
}

enum SchemaState {
    /// It has to be put unless it is there.
    Due,
    /// It could not be put, and is due after a pause.
    Pausing(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// This run has put it, or has seen that it is there.
    Put,
}

impl<S: Store> SchemaPut<S> {
    pub(super) fn new(store: &S, key: String, schema: Vec<u8>) -> Self {
        let options = WatchOptions::new().without_current().exact();
        let watch = store.watch_with(&key, options);
        Self { key, schema, watch, state: SchemaState::Due, fault: None }
    }

    pub(super) fn fault(&self) -> Option<&Rejected> {
        self.fault.as_ref()
    }

    /// Puts the schema if it is due, or if concurrent values have come to stand beside the one that this run has put.
    /// Ready when there is something else to say about it than before. It is called once the node has caught up.
    pub(super) fn poll(&mut self, store: &S, cx: &mut Context<'_>) -> Poll<()> {
        let mut has_news = false;
        while let Poll::Ready(Some(_)) = Pin::new(&mut self.watch).poll_next(cx) {
            has_news = true;
        }
        let is_due = match &mut self.state {
            SchemaState::Due => true,
            SchemaState::Pausing(pause) => pause.as_mut().poll(cx).is_ready(),
            SchemaState::Put => has_news && self.stands_beside_others(store),
        };
        if !is_due {
            return Poll::Pending;
        }
        let fault = store.put_if_changed(&self.key, &self.schema).err().map(|error| Rejected {
            from: None,
            path: String::new(),
            error: Cause::new(format!("the schema \"{}\" could not be put: {error}", self.key)),
        });
        self.state = if fault.is_some() {
            let mut pause: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(store.sleep(RETRY_PAUSE));
            _ = pause.as_mut().poll(cx);
            SchemaState::Pausing(pause)
        } else {
            SchemaState::Put
        };
        if fault == self.fault {
            return Poll::Pending;
        }
        self.fault = fault;
        Poll::Ready(())
    }

    /// Whether the value that counts is one that this run has put, and there are concurrent ones.
    fn stands_beside_others(&self, store: &S) -> bool {
        store.get(&self.key).is_some_and(|entry| entry.conflicts().next().is_some() && is_own(store, &entry))
    }
}
