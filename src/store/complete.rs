//! Which keys are complete. A key is not complete while a batch of another node that changed it may still be arriving.

use super::{Dot, DotSet, LocalStore};

impl LocalStore {
    /// Whether the vector covers everything that is merged at this stored key. It covers what this replica wrote at once,
    /// and what another node wrote as soon as its claim has arrived. The claim comes behind everything that the node
    /// wrote up to there. So if one key of a batch is complete, the batch has arrived as a whole, or was overwritten.
    pub(crate) fn is_complete(&self, stored_key: &[u8]) -> bool {
        match self.dot_set(stored_key) {
            Some((dot_set, _)) => self.is_complete_row(dot_set),
            None => self.are_complete(stored_key, &[]),
        }
    }

    /// The same of a key that is at hand with what it holds.
    pub(crate) fn is_complete_row(&self, dot_set: &DotSet) -> bool {
        self.are_complete(dot_set.key(), dot_set.dots())
    }

    fn are_complete(&self, stored_key: &[u8], held: &[Dot]) -> bool {
        let (coverage, vector) = (&self.coverage, self.coverage.vector());
        // Nearly always, and no key need be looked at then.
        coverage.is_vector_only()
            || (held.iter().all(|dot| vector.covers(dot.stamp()))
                && coverage
                    .context(stored_key, self.hash_key.place(stored_key))
                    .is_none_or(|context| vector.covers_all(&context)))
    }
}
