//! How often the variants of a flag were the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often one variant of a flag was the answer since the process started. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct VariantCount(Arc<AtomicU64>);

impl VariantCount {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
