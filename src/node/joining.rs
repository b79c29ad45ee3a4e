//! The progress of joining a cluster, as a stream.
//!
//! The driver posts the latest progress on a board beside the lock, and wakes the readers. There is no queue: a slow
//! reader sees only the latest step.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;

use super::shared::{Core, Shared};
use crate::replica::JoinProgress;
use crate::time::Time;

/// Progress is posted at most once in this time; the last step is always posted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The latest progress, and the wakers of those who wait for the next.
#[derive(Debug, Default)]
pub(super) struct JoinBoard {
    posted: Mutex<Posted>,
}

#[derive(Debug, Default)]
struct Posted {
    progress: Option<JoinProgress>,
    at: Duration,
    waiting: Vec<Waker>,
}

impl JoinBoard {
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts the progress if it has changed and is due. Returns the wakers to wake once the core's lock is released.
    pub(super) fn follow(&self, node: &str, core: &Core, now: Time) -> Vec<Waker> {
        let is_over = core.is_alone || core.replica.is_ready();
        let mut posted = self.lock();
        let is_early = now.mono < posted.at + PROGRESS_INTERVAL;
        if posted.progress.as_ref().is_some_and(|last| last.is_ready == is_over && (is_over || is_early)) {
            return Vec::new();
        }
        let progress = JoinProgress { is_ready: is_over, ..core.replica.join_progress() };
        let (is_same, donor) = match &posted.progress {
            Some(last) => (progress == *last, last.donor.as_ref()),
            None => (false, None),
        };
        if is_same {
            return Vec::new();
        }
        if is_over || progress.donor.as_ref() != donor {
            tracing::info!(node, ?progress, "join progress");
        }
        posted.progress = Some(progress);
        posted.at = now.mono;
        std::mem::take(&mut posted.waiting)
    }

    /// Wakes everybody who waits, to look again.
    pub(super) fn wake(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A stream of a node's progress in joining its cluster; [`Node::joining`](crate::Node::joining) makes it. It begins
/// with the present progress and ends when the node is ready or closed. A slow reader sees fewer steps, but always the
/// last one. A `next` that is dropped while it waits loses nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let mut joining = node.joining();
/// while let Some(step) = joining.next().await {
///     let donor = step.donor.as_deref().unwrap_or("nobody");
///     eprintln!("{} of {} entries, donor: {donor}", step.entries_done, step.entries_expected);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Joining {
    shared: Arc<Shared>,
    told: Option<JoinProgress>,
}

impl Joining {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), told: None }
    }

    /// Waits for the next step. `None` after the step in which the node is ready, or once the node is closed.
    pub async fn next(&mut self) -> Option<JoinProgress> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<JoinProgress>> {
        if self.told.as_ref().is_some_and(|told| told.is_ready) {
            return Poll::Ready(None);
        }
        let mut posted = self.shared.join_board.lock();
        if self.told != posted.progress {
            self.told.clone_from(&posted.progress);
            return Poll::Ready(self.told.clone());
        }
        // `Shared::close` sets the flag before it wakes those who wait, and the board is locked here: no wake-up is
        // lost.
        if self.shared.is_closed() {
            return Poll::Ready(None);
        }
        if !posted.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            posted.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Stream for Joining {
    type Item = JoinProgress;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<JoinProgress>> {
        self.get_mut().poll(cx)
    }
}
