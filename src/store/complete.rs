//! Which keys are complete: of others, more of what was written together with them may still be on its way.

use super::{DotSet, LocalStore};

impl LocalStore {
    /// Whether everything that is merged at this stored key is covered by the vector. It is for what this replica wrote.
    /// For what others wrote it is once their claim has arrived, which comes behind everything that they wrote up to
    /// there; so a batch of which one key is complete has arrived as a whole, or was overwritten.
    pub(crate) fn is_complete(&self, stored_key: &[u8]) -> bool {
        let vector = self.coverage.vector();
        let held = |dot_set: &DotSet| dot_set.dots().iter().all(|dot| vector.covers(dot.stamp()));
        let place = self.hash_key.place(stored_key);
        self.dot_set(stored_key).is_none_or(|(dot_set, _)| held(dot_set))
            && self.coverage.context(stored_key, place).is_none_or(|context| vector.covers_all(&context))
    }
}
