//! Receipts: what a write returns, and the waits for its durability and its replication.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::WaitError;
use crate::membership::MemberState;
use crate::node::runtime::shared::{Core, Shared};
use crate::store::entry::Revision;
use crate::time::Stamp;

/// The number of nodes that must have a write before [`Receipt::seen_by`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quorum {
    /// This many, the writer included.
    Count(usize),
    /// More than half of the members that this node knows and that have not left, the writer included. Members that are
    /// down count.
    Majority,
    /// All members that this node knows and that have not left, the writer included. Members that are down count.
    All,
}

/// Proof that a write was accepted on this node, and the means to wait until it is on disk or on other nodes. Dropping
/// it undoes nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// use std::time::Duration;
/// use tidings::{Quorum, WaitError};
///
/// let receipt = node.put("k", "v")?;
/// receipt.seen_by(Quorum::Majority, Duration::from_secs(1)).await?;
/// // Alone in its cluster, the node waits for a second one until the timeout; the write stays in force.
/// let waited = receipt.seen_by(Quorum::Count(2), Duration::from_millis(10)).await;
/// assert_eq!(waited, Err(WaitError::TimedOut { seen: 1, needed: 2 }));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Receipt {
    shared: Arc<Shared>,
    stamp: Option<Stamp>,
    revision: Revision,
}

impl Receipt {
    pub(in crate::node) fn new(shared: &Arc<Shared>, stamp: Option<Stamp>, revision: Revision) -> Self {
        Self { shared: shared.clone(), stamp, revision }
    }

    /// The write's stamp. `None` if there was nothing to do, as when a key is deleted that holds nothing.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// The position of the write in this node's change log.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Waits until the write is synced to this node's disk: a restart finds it even if the process or the machine
    /// crashes now. All waiting receipts share one sync.
    ///
    /// # Errors
    /// [`WaitError::NoDisk`]: the write is in memory and is being sent to the peers. [`WaitError::DiskFailed`],
    /// [`WaitError::Restarted`] and [`WaitError::Closed`]: it is not known whether a restart would find it.
    pub async fn durable(&self) -> Result<(), WaitError> {
        if !self.shared.disk.is_there() {
            return Err(WaitError::NoDisk);
        }
        #[cfg(feature = "metrics")]
        let wait = crate::node::api::metrics::Wait::begin();
        let is_durable = |shared: &Shared| {
            let Some(core) = shared.lock_closed() else { return Some(Err(WaitError::Closed)) };
            let safe = core.replica.durable();
            let head = core.replica.head();
            drop(core);
            if safe.is_some_and(|safe| safe.log == self.revision.log && safe.number >= self.revision.number) {
                return Some(Ok(()));
            }
            if head.log != self.revision.log {
                return Some(Err(WaitError::Restarted));
            }
            if let Some(reason) = shared.disk.failure() {
                return Some(Err(WaitError::DiskFailed { reason }));
            }
            if shared.disk.has_ended() {
                return Some(Err(WaitError::Closed));
            }
            shared.disk.request_sync();
            None
        };
        let waited = self.shared.wait_for(is_durable).await;
        #[cfg(feature = "metrics")]
        if waited.is_ok() {
            wait.is_durable(&self.shared);
        }
        waited
    }

    /// Waits until the number of nodes given by `quorum` have the write, for at most `within`. Peers are asked for an
    /// acknowledgement at once; members that receive it through a delegate are asked through the delegate.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`], [`WaitError::Closed`], or [`WaitError::Restarted`] after damage. The write stays in
    /// force.
    pub async fn seen_by(&self, quorum: Quorum, within: Duration) -> Result<(), WaitError> {
        let mut last = (0, 0);
        #[cfg(feature = "metrics")]
        let wait = crate::node::api::metrics::Wait::begin();
        let is_seen = |shared: &Shared| {
            let Some(mut core) = shared.lock() else { return Some(Err(WaitError::Closed)) };
            if core.replica.head().log != self.revision.log {
                return Some(Err(WaitError::Restarted));
            }
            last = self.count(&core, quorum);
            if last.0 >= last.1 {
                return Some(Ok(()));
            }
            core.replica.request_acks(self.revision);
            drop(core);
            shared.wake_driver.notify_one();
            None
        };
        let seen = tokio::time::timeout(within, self.shared.wait_for(is_seen)).await;
        #[cfg(feature = "metrics")]
        if seen == Ok(Ok(())) {
            wait.is_seen(&self.shared);
        }
        seen.unwrap_or(Err(WaitError::TimedOut { seen: last.0, needed: last.1 }))
    }

    /// How many nodes are known to have the write, and how many are needed.
    fn count(&self, core: &Core, quorum: Quorum) -> (usize, usize) {
        let seen = core.replica.count_acked(self.revision, self.stamp);
        let needed = match quorum {
            Quorum::Count(count) => count,
            Quorum::Majority => present(core) / 2 + 1,
            Quorum::All => present(core),
        };
        (seen, needed)
    }
}

/// The number of members that have not left, this node included.
fn present(core: &Core) -> usize {
    1 + core.replica.members().filter(|member| member.state != MemberState::Left).count()
}
