//! Batches: several writes of a node in one local step.

use std::sync::Arc;

use crate::error::WriteError;
use crate::node::api::receipt::Receipt;
use crate::node::runtime::shared::Shared;
use crate::replica::Batch;

/// Several writes that this node applies in one local step, all or none. It is not a transaction across nodes: peers
/// may see the writes one after another.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let security = tidings::Security::secret("a secret for examples")?;
/// # let node = tidings::Node::builder("a").security(security).start().await?;
/// node.put("old", "v")?;
/// node.batch().put("a", "1").put("b", "2").delete("old").commit()?;
/// assert_eq!(node.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct NodeBatch {
    shared: Arc<Shared>,
    batch: Batch,
}

impl NodeBatch {
    pub(in crate::node) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), batch: Batch::new() }
    }

    /// Adds a put.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<str>, value: impl AsRef<[u8]>) -> Self {
        self.batch = self.batch.put(key, value);
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<str>) -> Self {
        self.batch = self.batch.delete(key);
        self
    }

    /// Applies all writes, or none if one is not acceptable. The receipt covers all of them.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    pub fn commit(self) -> Result<Receipt, WriteError> {
        let write = self.shared.write(|replica, now| replica.commit(now, &self.batch));
        write.map(|(stamps, revision)| {
            Receipt::new(&self.shared, stamps.into_iter().rev().flatten().next(), revision)
        })
    }
}
