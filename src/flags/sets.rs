//! The compiled flags of all sets.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, OnceLock};

use foldhash::fast::FixedState;

use super::definition::Flag;
use super::value::FlagValue;
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
pub(super) struct FlagSet {
    pub(super) flags: HashMap<Arc<str>, FlagEntry, FixedState>,
    /// The shared rules and the metadata, under the names that they have in a file.
    common: Vec<(Arc<str>, FlagValue)>,
    /// Flags whose definitions in force do not fit the shared rules any more: a file cannot hold them.
    unfit: Vec<Arc<str>>,
    file: OnceLock<Arc<str>>,
}

static NO_FLAGS: LazyLock<Arc<str>> = LazyLock::new(|| FlagSet::default().file());

impl FlagSet {
    pub(super) fn new(
        flags: HashMap<Arc<str>, FlagEntry, FixedState>,
        common: Vec<(Arc<str>, FlagValue)>,
        unfit: Vec<Arc<str>>,
    ) -> Self {
        Self { flags, common, unfit, file: OnceLock::new() }
    }

    /// The definitions in force as a file in flagd's format. It is made when it is first asked for.
    fn file(&self) -> Arc<str> {
        let make = || {
            let ready = self.flags.iter().filter_map(|(key, entry)| match entry {
                FlagEntry::Ready(flag) if !self.unfit.contains(key) => {
                    Some((key.clone(), flag.definition.clone()))
                }
                _ => None,
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
    set.map_or_else(|| NO_FLAGS.clone(), |set| set.file())
}

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
    let (before, after) =
        (before.map_or(&none.flags, |set| &set.flags), after.map_or(&none.flags, |set| &set.flags));
    let is_other = |key: &Arc<str>| match (before.get(key), after.get(key)) {
        (Some(a), Some(b)) => !a.is_like(b),
        _ => true,
    };
    let mut keys: Vec<_> = before.keys().chain(after.keys()).filter(|key| is_other(key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}
