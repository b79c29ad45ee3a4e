//! Managing feature flags: what is written beside a definition, how definitions are edited, and plans.
//!
//! The library evaluates flags; this module changes them. A change is one batch of the definition, the list of its
//! earlier versions and, if a plan made it, the state of the plan, so that none of the three is ever without the others.
//! Nothing here asks a clock or the network: times are given, and stores are those of the trait `Store`, so that the
//! simulator can run all of it.

pub(crate) mod change;
pub(crate) mod condition;
pub(crate) mod edit;
pub(crate) mod metrics;
pub(crate) mod plan;
pub(crate) mod runner;

use tidings::Store;
use tidings::map::SCHEMA_SUFFIX;

/// The last parts of the keys that are no flags: the rules and the metadata of a set.
pub(crate) const SHARED_RULES: &str = "$evaluators";
pub(crate) const SET_METADATA: &str = "$metadata";

/// The keys of flags and of what stands beside them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a>(
    /// What stands before the keys of flags, with its slash.
    pub(crate) &'a str,
);

impl Names<'_> {
    fn beside(self, what: &str, set: &str, flag: &str) -> String {
        format!("{}-{what}/{set}/{flag}", self.0.trim_end_matches('/'))
    }

    /// The keys of a set begin like this.
    pub(crate) fn set(self, set: &str) -> String {
        format!("{}{set}/", self.0)
    }

    pub(crate) fn flag(self, set: &str, flag: &str) -> String {
        format!("{}{set}/{flag}", self.0)
    }

    /// The earlier versions of a definition.
    pub(crate) fn history(self, set: &str, flag: &str) -> String {
        self.beside("history", set, flag)
    }

    /// What is to be done with a flag later.
    pub(crate) fn plan(self, set: &str, flag: &str) -> String {
        self.beside("plans", set, flag)
    }

    /// The keys of all plans begin like this.
    pub(crate) fn plans(self) -> String {
        format!("{}-plans/", self.0.trim_end_matches('/'))
    }

    /// The day of a flag's last evaluation.
    pub(crate) fn usage_day(self, set: &str, flag: &str) -> String {
        self.beside("usage/day", set, flag)
    }

    /// The evaluations of each node: the keys begin like this.
    pub(crate) fn usage_by_node(self) -> String {
        format!("{}-usage/node/", self.0.trim_end_matches('/'))
    }

    /// The values that are reported of a metric: the keys begin like this, and end with who reports it.
    pub(crate) fn metric(self, metric: &str) -> String {
        format!("{}-metrics/{metric}/", self.0.trim_end_matches('/'))
    }
}

/// Whether what stands behind the name of a set in a key is no flag, but a JSON Schema of those whose names begin with
/// what stands before its end. The library does not take it for a flag either.
pub(crate) fn is_schema(flag: &str) -> bool {
    flag.ends_with(SCHEMA_SUFFIX)
}

/// Whether a set and a flag can have these names: the set is the part of a key before the first slash.
pub(crate) fn check_names(set: &str, flag: &str) -> Result<(), String> {
    if set.is_empty() || set.contains('/') {
        return Err(format!("\"{set}\" is no name of a set: it is empty or has a slash"));
    }
    if is_schema(flag) {
        return Err(format!(
            "\"{flag}\" is no name of a flag: keys that end in {SCHEMA_SUFFIX} hold schemas"
        ));
    }
    if flag.is_empty() { Err("the name of the flag is empty".to_owned()) } else { Ok(()) }
}

/// The time of a store, in milliseconds since 1970.
pub(crate) fn now_ms(store: &impl Store) -> u64 {
    crate::api::ms(store.now())
}
