//! The compiled flags of all sets.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock, OnceLock};

use foldhash::fast::FixedState;

use super::definition::Flag;
use super::value::FlagValue;
use crate::error::Cause;

/// The set that is asked unless another one is named.
pub(super) const DEFAULT_SET: &str = "default";

/// Parts of a set. A change of one flag copies one part, so that it costs little in a set of thousands of flags.
const PARTS: usize = 64;

/// What is known of one flag.
#[derive(Clone, Debug)]
pub(super) enum FlagEntry {
    Ready(Arc<Flag>),
    /// It is in force and does not fit the shared rules any more, so that a file cannot hold it.
    Unfit(Arc<Flag>),
    /// There is no definition that can be used.
    Malformed(Cause),
}

impl FlagEntry {
    pub(super) fn flag(&self) -> Result<&Arc<Flag>, &Cause> {
        match self {
            Self::Ready(flag) | Self::Unfit(flag) => Ok(flag),
            Self::Malformed(error) => Err(error),
        }
    }

    /// Whether it answers as another one does, and is in files as that one is: it is the very same, or malformed as well.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready(a), Self::Ready(b)) | (Self::Unfit(a), Self::Unfit(b)) => Arc::ptr_eq(a, b),
            (Self::Malformed(a), Self::Malformed(b)) => a.to_string() == b.to_string(),
            _ => false,
        }
    }
}

/// Nothing depends on the order of the map, which is only asked for single keys and compared.
type SetPart = HashMap<Arc<str>, FlagEntry, FixedState>;

/// The flags of one set, each in the part that the hash of its name says. A clone shares all parts.
#[derive(Clone, Debug)]
pub(super) struct FlagSet {
    parts: [Arc<SetPart>; PARTS],
    /// The shared rules and the metadata, under the names that they have in a file.
    common: Vec<(Arc<str>, FlagValue)>,
    file: OnceLock<Arc<str>>,
}

impl Default for FlagSet {
    fn default() -> Self {
        let part = Arc::<SetPart>::default();
        Self { parts: std::array::from_fn(|_| part.clone()), common: Vec::new(), file: OnceLock::new() }
    }
}

/// What a set is that there is not.
static NO_FLAGS: LazyLock<Arc<FlagSet>> = LazyLock::new(Arc::default);

impl FlagSet {
    fn part_of(flag: &str) -> usize {
        // With another seed than that of the map, so that the flags of one part are spread over its map.
        (FixedState::with_seed(1).hash_one(flag) % PARTS as u64) as usize
    }

    pub(super) fn flag(&self, flag: &str) -> Option<&FlagEntry> {
        self.parts[Self::part_of(flag)].get(flag)
    }

    /// All flags, in no order.
    pub(super) fn flags(&self) -> impl Iterator<Item = (&Arc<str>, &FlagEntry)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Replaces a flag, or takes it out.
    pub(super) fn set(&mut self, flag: &Arc<str>, entry: Option<FlagEntry>) {
        let part = Arc::make_mut(&mut self.parts[Self::part_of(flag)]);
        match entry {
            Some(entry) => _ = part.insert(flag.clone(), entry),
            None => _ = part.remove(flag),
        }
        self.file = OnceLock::new();
    }

    /// Replaces what the flags share, under the names that it has in a file.
    pub(super) fn set_common(&mut self, common: Vec<(Arc<str>, FlagValue)>) {
        self.common = common;
        self.file = OnceLock::new();
    }

    /// The definitions in force as a file in flagd's format. It is made when it is first asked for.
    fn file(&self) -> Arc<str> {
        let make = || {
            let ready = self.flags().filter_map(|(key, entry)| match entry {
                FlagEntry::Ready(flag) => Some((key.clone(), flag.definition.clone())),
                FlagEntry::Unfit(_) | FlagEntry::Malformed(_) => None,
            });
            let flags = FlagValue::object(ready.collect());
            let fields = self.common.iter().cloned().chain([("flags".into(), flags)]);
            FlagValue::object(fields.collect()).to_string().into()
        };
        self.file.get_or_init(make).clone()
    }
}

/// A set as a file in flagd's format; the same pointer for the same state.
pub(super) fn file_of(set: Option<&Arc<FlagSet>>) -> Arc<str> {
    set.unwrap_or(&NO_FLAGS).file()
}

/// All sets by their names.
pub(super) type FlagSets = BTreeMap<Arc<str>, Arc<FlagSet>>;

/// Whether what the flags of a set share, or what it says of itself, differs in another state of it.
pub(super) fn is_common_changed(before: Option<&Arc<FlagSet>>, after: Option<&Arc<FlagSet>>) -> bool {
    before.unwrap_or(&NO_FLAGS).common != after.unwrap_or(&NO_FLAGS).common
}

/// The flags of a set that are not alike in another state of it, in the order of their names.
pub(super) fn changed(before: Option<&Arc<FlagSet>>, after: Option<&Arc<FlagSet>>) -> Vec<Arc<str>> {
    let (before, after) = (before.unwrap_or(&NO_FLAGS), after.unwrap_or(&NO_FLAGS));
    let mut keys = Vec::new();
    for (before, after) in
        before.parts.iter().zip(&after.parts).filter(|(before, after)| !Arc::ptr_eq(before, after))
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
