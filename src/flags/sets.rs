//! The compiled flags of all sets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::definition::Flag;
use crate::error::Cause;

/// The set that is asked unless another one is named.
pub(super) const DEFAULT_SET: &str = "default";

/// What is known of one flag.
#[derive(Clone, Debug)]
pub(super) enum FlagEntry {
    Ready(Arc<Flag>),
    /// There is no definition that can be used.
    Malformed(Cause),
}

impl FlagEntry {
    /// Whether it answers as another one does: it is the very same, or malformed as well.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready(a), Self::Ready(b)) => Arc::ptr_eq(a, b),
            (Self::Malformed(a), Self::Malformed(b)) => a.to_string() == b.to_string(),
            _ => false,
        }
    }
}

/// The flags of one set. Nothing depends on the order of the map, which is only asked for single keys and compared.
#[derive(Debug, Default)]
pub(super) struct FlagSet(pub(super) HashMap<Arc<str>, FlagEntry, FixedState>);

/// All sets by their names.
pub(super) type FlagSets = BTreeMap<Arc<str>, Arc<FlagSet>>;

/// The flags of a set that answer differently in another state of it, in the order of their names.
pub(super) fn changed(before: Option<&Arc<FlagSet>>, after: Option<&Arc<FlagSet>>) -> Vec<Arc<str>> {
    let none = FlagSet::default();
    if let (Some(before), Some(after)) = (before, after)
        && Arc::ptr_eq(before, after)
    {
        return Vec::new();
    }
    let (before, after) = (before.map_or(&none.0, |set| &set.0), after.map_or(&none.0, |set| &set.0));
    let is_other = |key: &Arc<str>| match (before.get(key), after.get(key)) {
        (Some(a), Some(b)) => !a.is_like(b),
        _ => true,
    };
    let mut keys: Vec<_> = before.keys().chain(after.keys()).filter(|key| is_other(key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}
