//! The progress of joining a cluster, as a stream.
//!
//! The driver posts the latest progress on a board beside the lock, and wakes the readers. There is no queue: a slow
//! reader sees only the latest step.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::node::runtime::shared::Shared;
use crate::node::runtime::waiter::Waiter;
use crate::replica::JoinProgress;
use crate::typed;

/// A stream of a node's progress in joining its cluster; [`Node::joining`](crate::Node::joining) makes it. It begins
/// with the present progress and ends when the node is ready or closed. A slow reader sees fewer steps, but always the
/// last one. A `next` that is dropped while it waits loses nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
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
    waiter: Waiter,
}

impl Joining {
    pub(in crate::node) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), told: None, waiter: Waiter::new(shared.join_board.notify.clone()) }
    }

    /// Waits for the next step. `None` after the step in which the node is ready, or once the node is closed.
    pub async fn next(&mut self) -> Option<JoinProgress> {
        typed::next(self).await
    }
}

impl Stream for Joining {
    type Item = JoinProgress;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<JoinProgress>> {
        let Self { shared, told, waiter } = self.get_mut();
        waiter.poll(cx, || {
            let is_over = shared.is_closed() || told.as_ref().is_some_and(|told| told.is_ready);
            let posted = shared.join_board.lock();
            if *told == posted.progress {
                return is_over.then_some(None);
            }
            told.clone_from(&posted.progress);
            Some(told.clone())
        })
    }
}
