//! Compaction of counters, which waits for the other members between its two steps.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::node::Node;
use crate::node::api::receipt::{Quorum, Receipt};
use crate::typed::Counter;

impl Counter<Node> {
    /// Moves the numbers of processes that have ended into tables, where each takes 24 bytes instead of about 150. The
    /// counter's value does not change. Returns how many were moved.
    ///
    /// Any node may do it at any time, and what is counted meanwhile is not lost. When several do it at once they do the
    /// same work; so let the holder of a lease do it now and then:
    ///
    /// ```no_run
    /// # async fn compact(node: tidings::Node) -> Result<(), tidings::Error> {
    /// let lease = node.election("compaction").campaign("").await?;
    /// node.counter("requests").compact(std::time::Duration::from_secs(60)).await?;
    /// lease.resign().await;
    /// # Ok(()) }
    /// ```
    ///
    /// It needs all members that have not left, those that are down included: a number is removed only when every member
    /// has it in a table. It waits for them for at most `within`.
    ///
    /// # Errors
    /// A [`WriteError`](crate::WriteError) or [`WaitError`](crate::WaitError). The counter's value is right then too;
    /// numbers that were not moved yet are moved by the next call.
    pub async fn compact(&self, within: Duration) -> Result<usize, Error> {
        let (shared, end) = (&self.store.shared, Instant::now() + within);
        let mut moved = 0;
        loop {
            let (folded, revision) = shared.write(|replica, now| replica.fold_counter(now, &self.name))?;
            let Some(stamp) = folded.stamp() else { return Ok(moved) };
            let receipt = Receipt::new(shared, Some(stamp), revision);
            receipt.seen_by(Quorum::All, end.saturating_duration_since(Instant::now())).await?;
            let (dropped, _) = shared.write(|replica, now| replica.drop_folded(now, &folded))?;
            let dropped = dropped.into_iter().flatten().count();
            if dropped == 0 {
                // The processes still count: this node only does not see them.
                return Ok(moved);
            }
            moved += dropped;
        }
    }
}
