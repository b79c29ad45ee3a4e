//! The compiled flags of all sets.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

use foldhash::fast::FixedState;

use super::definition::Flag;
use crate::error::Cause;

/// The set that is asked unless another one is named.
pub(super) const DEFAULT_SET: &str = "default";

/// Parts of a set. A change of one flag copies one part, so that it costs little in a set of thousands of flags.
const PARTS: usize = 64;

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

/// Nothing depends on the order of the map, which is only asked for single keys and compared.
type SetPart = HashMap<Arc<str>, FlagEntry, FixedState>;

/// The flags of one set, each in the part that the hash of its name says. A clone shares all parts.
#[derive(Clone, Debug)]
pub(super) struct FlagSet([Arc<SetPart>; PARTS]);

impl Default for FlagSet {
    fn default() -> Self {
        let part = Arc::<SetPart>::default();
        Self(std::array::from_fn(|_| part.clone()))
    }
}

impl FlagSet {
    fn part_of(flag: &str) -> usize {
        // Other bits than those by which the map of a part places its flags.
        (FixedState::with_seed(1).hash_one(flag) % PARTS as u64) as usize
    }

    pub(super) fn flag(&self, flag: &str) -> Option<&FlagEntry> {
        self.0[Self::part_of(flag)].get(flag)
    }

    /// All flags, in no order.
    pub(super) fn flags(&self) -> impl Iterator<Item = (&Arc<str>, &FlagEntry)> {
        self.0.iter().flat_map(|part| part.iter())
    }

    /// Replaces a flag, or takes it out.
    pub(super) fn set(&mut self, flag: &Arc<str>, entry: Option<FlagEntry>) {
        let part = Arc::make_mut(&mut self.0[Self::part_of(flag)]);
        match entry {
            Some(entry) => _ = part.insert(flag.clone(), entry),
            None => _ = part.remove(flag),
        }
    }
}

/// All sets by their names.
pub(super) type FlagSets = BTreeMap<Arc<str>, Arc<FlagSet>>;

/// The flags of a set that answer differently in another state of it, in the order of their names.
pub(super) fn changed(before: Option<&Arc<FlagSet>>, after: Option<&Arc<FlagSet>>) -> Vec<Arc<str>> {
    static NONE: LazyLock<Arc<FlagSet>> = LazyLock::new(Arc::default);
    let (before, after) = (before.unwrap_or(&NONE), after.unwrap_or(&NONE));
    let mut keys = Vec::new();
    for (before, after) in before.0.iter().zip(&after.0).filter(|(before, after)| !Arc::ptr_eq(before, after))
    {
        let is_other = |key: &Arc<str>| match (before.get(key), after.get(key)) {
            (Some(a), Some(b)) => !a.is_like(b),
            _ => true,
        };
        keys.extend(before.keys().chain(after.keys()).filter(|key| is_other(key)).cloned());
    }
    keys.sort();
    keys.dedup();
    keys
}
