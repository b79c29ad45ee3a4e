//! The latest progress of joining, and who waits for the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::replica::{JoinProgress, Replica};
use crate::time::Time;

/// Progress is posted at most once in this time; the last step is always posted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The latest progress, and the wakers of those who wait for the next.
#[derive(Debug, Default)]
pub(in crate::node) struct JoinBoard {
    /// The node has no seeds, so there is nobody to catch up with.
    is_alone: bool,
    posted: Mutex<Posted>,
}

#[derive(Debug, Default)]
pub(in crate::node) struct Posted {
    pub(in crate::node) progress: Option<JoinProgress>,
    at: Duration,
    pub(in crate::node) waiting: Vec<Waker>,
}

impl JoinBoard {
    /// The board of a node without seeds.
    pub(in crate::node) fn alone() -> Self {
        Self { is_alone: true, ..Self::default() }
    }

    /// Whether the node has caught up with its cluster.
    pub(in crate::node) fn has_joined(&self, replica: &Replica) -> bool {
        self.is_alone || replica.is_ready()
    }

    pub(in crate::node) fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts the progress if it has changed and is due. Returns the wakers to wake once the core's lock is released.
    pub(in crate::node) fn follow(&self, node: &str, replica: &Replica, now: Time) -> Vec<Waker> {
        let is_ready = self.has_joined(replica);
        let mut posted = self.lock();
        let is_early = now.mono < posted.at + PROGRESS_INTERVAL;
        if posted.progress.as_ref().is_some_and(|last| last.is_ready == is_ready && (is_ready || is_early)) {
            return Vec::new();
        }
        let progress = JoinProgress { is_ready, ..replica.join_progress() };
        let (is_same, donor) = match &posted.progress {
            Some(last) => (progress == *last, last.donor.as_ref()),
            None => (false, None),
        };
        if is_same {
            return Vec::new();
        }
        if is_ready || progress.donor.as_ref() != donor {
            tracing::info!(node, ?progress, "join progress");
        }
        posted.progress = Some(progress);
        posted.at = now.mono;
        std::mem::take(&mut posted.waiting)
    }

    /// Wakes everybody who waits, to look again.
    pub(in crate::node) fn wake(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}
