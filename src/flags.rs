//! Feature flags: definitions in the store, evaluated in this process.
//!
//! Every process holds all flags compiled (`book`), evaluates them without a lock (`evaluate`), and follows the store
//! (`follow`). Definitions have the format of flagd, so that other programs can read and evaluate the same ones.
//!
//! Invariants: evaluation needs a snapshot, a context and a time that is given from outside, and nothing else; it takes a
//! bounded number of steps. What a definition or a context holds can make its own evaluations fail, and no others. A
//! snapshot is made of one look at the store.
//!
//! Why the rules are not evaluated by a library: the ones that exist bound neither time nor memory, so that a rule of 200
//! bytes that doubles a text 30 times ends the process, and differ from flagd's implementations in how types are
//! converted. `docs/limits.md` has the bounds.

mod arithmetic;
mod book;
mod compile;
mod context;
mod count;
mod datum;
mod definition;
mod details;
mod error;
mod evaluate;
#[cfg(feature = "axum")]
mod extract;
mod follow;
mod fractional;
mod lint;
#[cfg(feature = "openfeature")]
mod provider;
mod rule;
mod sets;
mod shared;
mod snapshot;
mod source;
mod usage;
mod value;
mod version;

use std::sync::Arc;

pub use compile::RULE_DEPTH_MAX;
pub use context::{Attribute, CONTEXT_BYTES_MAX, Context};
pub use definition::DEFINITION_DEPTH_MAX;
pub use details::{Details, FlagType, Metadata, Reason};
pub use error::{FlagError, RuleFault};
pub use evaluate::EVALUATION_STEPS_MAX;
pub use follow::FlagsBuilder;
pub use lint::{FlagFault, check, check_file};
#[cfg(feature = "openfeature")]
pub use provider::FlagsProvider;
use sets::DEFAULT_SET;
use shared::FlagsShared;
pub use shared::{FlagsEvent, FlagsEvents};
use snapshot::FlagsView;
pub use snapshot::Snapshot;
pub use value::FlagValue;

use crate::error::Rejected;
use crate::typed::{LiveState, Store};

/// The feature flags that the store holds under a prefix.
///
/// The key `flags/SET/FLAG` holds the definition of one flag as JSON, in flagd's format. `flags/SET/$evaluators` holds
/// the rules that the flags of a set share, `flags/SET/$metadata` the metadata of the set. The set that is asked is
/// called `default` unless [`of_set`](Self::of_set) names another one.
///
/// ```
/// # let mut sim = tidings::sim::Sim::new(1).nodes(1);
/// # let node = sim.node(0);
/// use tidings::flags::{Context, Flags};
///
/// let flags = Flags::new(&node, "flags/");
/// node.put("flags/default/checkout", r#"{
///     "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
///     "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.com"]}, "on"]}
/// }"#)?;
/// # sim.run_for(std::time::Duration::from_millis(1));
///
/// let context = Context::new("user-17").with("email", "ann@example.com");
/// assert!(flags.bool("checkout", false, &context));
/// assert!(!flags.bool("checkout", false, &Context::anonymous()));
/// assert!(flags.bool("unheard-of", true, &context));
/// # Ok::<(), tidings::WriteError>(())
/// ```
///
/// # What is promised
///
/// * **Local.** An evaluation takes no lock and does not wait. It allocates nothing for a flag without a rule, nor for a
///   rule that makes no new texts or lists.
/// * **Whole.** A [`snapshot`](Self::snapshot) is made of one look at the store. A batch is in it as a whole or not at
///   all, also one of another node; the part that is there is taken only if the rest cannot be expected, see
///   [the guide](crate::guide::live#limits).
/// * **Never silently stale.** Every change under the prefix leads to a new state or is reported; [`state`](Self::state)
///   says whether the flags follow the store.
/// * **Alone in failing.** A malformed definition keeps the last good one that this node has seen. If there is none, its
///   evaluations give the program's default. Other flags are not affected. [`rejected`](Self::rejected) names it; a node
///   also logs it, reports `NodeEvent::Rejected` and records the metric `tidings_live_rejected`.
///
/// A `Flags` is cheap to clone. The task behind it ends when the last clone is dropped. It does not keep its node alive.
#[derive(Clone)]
pub struct Flags<#[cfg(feature = "node")] S = crate::Node, #[cfg(not(feature = "node"))] S> {
    store: S,
    shared: Arc<FlagsShared>,
    _life: Arc<FlagsGuard>,
    set: Arc<str>,
}

/// Ends the task when the last handle is dropped.
struct FlagsGuard(Arc<FlagsShared>);

impl Drop for FlagsGuard {
    fn drop(&mut self) {
        self.0.request_end();
    }
}

impl<S> std::fmt::Debug for Flags<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Flags").field("set", &self.set).field("state", &state).finish_non_exhaustive()
    }
}

impl<S: Store> Flags<S> {
    /// Follows the flags under a prefix, and takes over at once what this node holds. Its state is
    /// [`LiveState::Stale`] until the node has caught up with a peer.
    pub fn new(store: &S, prefix: impl Into<String>) -> Self {
        Self::builder(store, prefix).begin(Vec::new(), None)
    }

    /// Flags that can be evaluated before the node has reached its cluster: from a file of an earlier run, or from
    /// definitions that the program brings with it.
    pub fn builder(store: &S, prefix: impl Into<String>) -> FlagsBuilder<S> {
        FlagsBuilder::new(store.view(), prefix.into())
    }

    fn with_parts(store: S, shared: Arc<FlagsShared>) -> Self {
        let life = Arc::new(FlagsGuard(shared.clone()));
        Self { store, shared, _life: life, set: DEFAULT_SET.into() }
    }

    /// The flags of another set.
    #[must_use]
    pub fn of_set(&self, set: &str) -> Self {
        Self { set: set.into(), ..self.clone() }
    }

    /// All flags of the set as they are now, for everything that belongs to one request.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.shared.sets(), self.set.clone(), self.store.now(), self.shared.is_counted())
    }

    /// The value of a boolean flag, or the default if there is none.
    pub fn bool(&self, flag: &str, default: bool, context: &Context<'_>) -> bool {
        self.view(|view| view.value(flag, context)).unwrap_or(default)
    }

    /// The value of a text flag, or the default if there is none.
    pub fn string(&self, flag: &str, default: impl Into<Arc<str>>, context: &Context<'_>) -> Arc<str> {
        self.view(|view| view.value(flag, context)).unwrap_or_else(|| default.into())
    }

    /// The value of a flag of integers, or the default if there is none.
    pub fn int(&self, flag: &str, default: i64, context: &Context<'_>) -> i64 {
        self.view(|view| view.value(flag, context)).unwrap_or(default)
    }

    /// The value of a flag of numbers, or the default if there is none.
    pub fn float(&self, flag: &str, default: f64, context: &Context<'_>) -> f64 {
        self.view(|view| view.value(flag, context)).unwrap_or(default)
    }

    /// The value of a flag of objects or lists, or the default if there is none. [`FlagValue::decode`] makes a type of
    /// the program of it.
    pub fn object(&self, flag: &str, default: FlagValue, context: &Context<'_>) -> FlagValue {
        self.view(|view| view.value(flag, context)).unwrap_or(default)
    }

    /// The value with the variant, the reason, the metadata, and the error if there is one.
    pub fn details<T: FlagType>(&self, flag: &str, default: T, context: &Context<'_>) -> Details<T> {
        self.view(|view| view.details(flag, default, context))
    }

    fn view<R>(&self, ask: impl FnOnce(FlagsView<'_>) -> R) -> R {
        let clock = || context::seconds_of(self.store.now());
        let is_counted = self.shared.is_counted();
        ask(FlagsView { sets: &self.shared.current().load(), set: &self.set, clock: &clock, is_counted })
    }

    /// Whether the flags follow the store. [`LiveState::Rejected`]: they do, and some definition is malformed.
    pub fn state(&self) -> LiveState {
        self.shared.state()
    }

    /// The definitions that are malformed now, each with its key, its writer, its stamp and what is wrong; at most 64.
    /// Empty while all is well.
    pub fn rejected(&self) -> Arc<[Rejected]> {
        self.shared.rejected()
    }

    /// What changes from now on, beginning with the present state. A slow reader sees fewer steps, and never misses the
    /// last one.
    pub fn events(&self) -> FlagsEvents {
        FlagsEvents::new(self.shared.clone(), self.set.clone())
    }
}
