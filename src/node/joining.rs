//! How far a node is in joining its cluster, as a stream for those who wait for it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;

use super::shared::{Core, Shared};
use crate::replica::JoinProgress;
use crate::time::Time;

/// Progress is told at most this often, and always in the end.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The latest progress, and who waits for the next.
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

    /// Takes note of how far the node is, and answers whom to wake once the core's lock is released.
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
            tracing::info!(node, ?progress, "joining");
        }
        posted.progress = Some(progress);
        posted.at = now.mono;
        std::mem::take(&mut posted.waiting)
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// How far a node is in joining its cluster: where it stands, then every step, until it has caught up or is closed. A
/// slow reader sees fewer steps, never a wrong last one. Nothing is lost when a waiting `next` is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// let mut joining = node.joining();
/// while let Some(step) = joining.next().await {
///     let donor = step.donor.as_deref().unwrap_or("nobody");
///     eprintln!("{} of {} entries, fed by {donor}", step.entries_done, step.entries_expected);
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

    /// The next step. None once the node has caught up, which the last step says, or is closed.
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
        // Whoever closes the node looks for who waits afterwards.
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
