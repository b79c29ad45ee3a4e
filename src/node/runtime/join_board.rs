//! What [`Node::joining`](crate::Node::joining) reads: the latest progress of joining, kept outside the core's lock.
//!
//! It is posted at most every 50 ms, but its last step at once, and the readers are notified after that lock is
//! released.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::node::runtime::log::{log_joining, log_readiness};
use crate::node::runtime::spans::{end_join_span, join_span};
use crate::replica::{JoinProgress, Readiness, Replica};
use crate::time::Time;

/// Progress is posted at most once in this time; the last step is always posted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The latest progress of joining. It has a lock of its own, so that readers never wait for the core.
#[derive(Debug, Default)]
pub(in crate::node) struct JoinBoard {
    /// The node has no seeds, so there is nobody to catch up with.
    is_alone: bool,
    posted: Mutex<Posted>,
    /// Notified after progress was posted, and when the node is closed.
    pub(in crate::node) notify: Arc<Notify>,
}

#[derive(Debug, Default)]
pub(in crate::node) struct Posted {
    pub(in crate::node) progress: Option<JoinProgress>,
    at: Duration,
    /// What the log says of the readiness.
    logged: Readiness,
    /// While the node joins.
    span: Option<tracing::Span>,
}

impl JoinBoard {
    /// The board of a node without seeds.
    pub(in crate::node) fn alone() -> Self {
        Self { is_alone: true, ..Self::default() }
    }

    /// Whether the node is ready, alone or with others.
    pub(in crate::node) fn has_joined(&self, replica: &Replica) -> bool {
        self.readiness(replica).is_ready()
    }

    /// Whether the node has caught up with a peer, or has nobody to catch up with.
    pub(in crate::node) fn has_caught_up(&self, replica: &Replica) -> bool {
        self.is_alone || replica.readiness() == Readiness::Joined
    }

    /// Whether the node is ready, and whether it has caught up.
    pub(in crate::node) fn readiness(&self, replica: &Replica) -> Readiness {
        match replica.readiness() {
            Readiness::Joining if self.is_alone => Readiness::Alone,
            readiness => readiness,
        }
    }

    pub(in crate::node) fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts the progress if it has changed and is due. Then it returns the [`Notify`] of the readers, which the caller
    /// must trigger once it has released the lock of the core.
    pub(in crate::node) fn follow(&self, node: &str, replica: &Replica, now: Time) -> Option<Arc<Notify>> {
        let readiness = self.readiness(replica);
        let is_ready = readiness.is_ready();
        let mut posted = self.lock();
        if std::mem::replace(&mut posted.logged, readiness) != readiness {
            log_readiness(node, readiness, &replica.join_progress());
        }
        if !is_ready {
            posted.span.get_or_insert_with(|| join_span(node));
        } else if let Some(span) = posted.span.take() {
            end_join_span(&span, readiness, replica.len() as u64);
        }
        let is_early = now.mono < posted.at + PROGRESS_INTERVAL;
        if posted.progress.as_ref().is_some_and(|last| last.is_ready == is_ready && (is_ready || is_early)) {
            return None;
        }
        let progress = JoinProgress { is_ready, ..replica.join_progress() };
        let (is_same, donor) = match &posted.progress {
            Some(last) => (progress == *last, last.donor.as_ref()),
            None => (false, None),
        };
        if is_same {
            return None;
        }
        if !is_ready && progress.donor.as_ref() != donor {
            log_joining(node, &progress);
        }
        posted.progress = Some(progress);
        posted.at = now.mono;
        Some(self.notify.clone())
    }
}
