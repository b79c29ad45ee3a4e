//! What is told when the task of a view ends.

use std::sync::Arc;

use crate::error::Rejected;
use crate::typed::Store;

/// Tells the handles of a view and the node when the view's task ends, also if the task is dropped with its runtime.
pub(crate) struct EndGuard<S: Store> {
    store: S,
    name: String,
    /// Ends the handles, and returns what was not applied last.
    end: Box<dyn Fn() -> Arc<[Rejected]> + Send + Sync>,
}

impl<S: Store> EndGuard<S> {
    pub(crate) fn new(
        store: S,
        name: impl Into<String>,
        end: impl Fn() -> Arc<[Rejected]> + Send + Sync + 'static,
    ) -> Self {
        Self { store, name: name.into(), end: Box::new(end) }
    }
}

impl<S: Store> Drop for EndGuard<S> {
    fn drop(&mut self) {
        let rejected = (self.end)();
        self.store.note_rejected(&self.name, &rejected, &[]);
    }
}
