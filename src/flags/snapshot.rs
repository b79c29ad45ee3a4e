//! All flags as they were at one instant, ready to be evaluated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::FlagError;
use super::book::FlagBook;
use super::context::{Context, seconds_of};
use super::definition::{Flag, Resolved, Variant, malformed};
use super::details::{Details, FlagType, Metadata, Reason};
use super::sets::{DEFAULT_SET, FlagEntry, FlagSets, changed, file_of};
use super::value::FlagValue;
use crate::error::Rejected;

/// The flags of one set as they were at one instant. To evaluate several flags for one request, use one snapshot: it
/// never changes, and never mixes two states of the store.
///
/// ```
/// use tidings::flags::{Context, Snapshot};
///
/// let (flags, rejected) = Snapshot::from_json(r#"{"flags": {
///     "checkout": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
///                  "targeting": {"if": [{"in": [{"var": "country"}, ["de", "at"]]}, "on"]}},
///     "color": {"state": "NEITHER", "variants": {"red": "red"}}
/// }}"#)?;
/// let context = Context::new("user-17").with("country", "at");
/// assert!(flags.bool("checkout", false, &context));
/// assert_eq!(&*flags.string("color", "blue", &context), "blue"); // it is malformed
/// assert!(rejected[0].to_string().contains("ENABLED"));
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    sets: Arc<FlagSets>,
    set: Arc<str>,
    time: SystemTime,
    is_counted: bool,
}

impl Snapshot {
    pub(super) fn new(sets: Arc<FlagSets>, set: Arc<str>, time: SystemTime, is_counted: bool) -> Self {
        Self { sets, set, time, is_counted }
    }

    /// The flags of a file in flagd's format, without a store, and what in it is malformed. Its time is 1970 until
    /// [`at`](Self::at) sets it.
    ///
    /// # Errors
    /// If the text is not JSON, or its `flags` are no object.
    pub fn from_json(json: &str) -> Result<(Self, Vec<Rejected>), Box<dyn std::error::Error + Send + Sync>> {
        let mut book = FlagBook::default();
        book.replace(super::source::of_file(json, "the file")?);
        Ok((Self::new(book.sets(), DEFAULT_SET.into(), SystemTime::UNIX_EPOCH, false), book.rejected()))
    }

    /// The same flags at another time, which rules see as `$flagd.timestamp`.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.time = time;
        self
    }

    /// The same flags, whose evaluations do not count as use of them: for programs that list all flags, or try them.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        self.is_counted = false;
        self
    }

    /// Another set of the same instant.
    #[must_use]
    pub fn of_set(&self, set: &str) -> Self {
        let set = if *self.set == *set { self.set.clone() } else { set.into() };
        Self { set, ..self.clone() }
    }

    /// The flags of the set, in the order of their names.
    pub fn keys(&self) -> Vec<Arc<str>> {
        changed(None, self.sets.get(&self.set))
    }

    /// The set as a file in flagd's format, for programs that evaluate it themselves: the definitions in force, the
    /// shared rules and the metadata. A malformed definition is never in it: the last good one is, if there is one.
    ///
    /// The text is made once for each state of the set: as long as the set does not change, all snapshots give the
    /// same `Arc`.
    ///
    /// ```
    /// # use tidings::flags::Snapshot;
    /// let file = r#"{"flags":{"a":{"defaultVariant":"on","state":"ENABLED","variants":{"on":true}}}}"#;
    /// let (flags, _) = Snapshot::from_json(file)?;
    /// assert_eq!(&*flags.to_json(), file);
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// ```
    pub fn to_json(&self) -> Arc<str> {
        file_of(self.sets.get(&self.set))
    }

    /// The flags of the set that [`to_json`](Self::to_json) leaves out, each with the text that its answers follow
    /// from: the definition in force if that does not fit the shared rules any more, or else what is wrong with the
    /// malformed one.
    ///
    /// ```
    /// # use tidings::flags::Snapshot;
    /// let (flags, _) = Snapshot::from_json(r#"{"flags": {"a": {"state": "NEITHER"}}}"#)?;
    /// assert_eq!(&*flags.to_json(), r#"{"flags":{}}"#);
    /// assert!(flags.left_out()["a"].contains("ENABLED"));
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// ```
    pub fn left_out(&self) -> BTreeMap<Arc<str>, String> {
        let left_out = |(key, entry): (&Arc<str>, &FlagEntry)| match entry {
            FlagEntry::Ready(_) => None,
            FlagEntry::Unfit(flag) => Some((key.clone(), flag.definition.to_string())),
            FlagEntry::Malformed(error) => Some((key.clone(), error.to_string())),
        };
        self.sets.get(&self.set).into_iter().flat_map(|set| set.flags()).filter_map(left_out).collect()
    }

    /// Whether the rule of a flag in force reads the time, or may do so: values of the set can then change while it
    /// does not. Takes time in proportion to the number of flags.
    ///
    /// ```
    /// # use tidings::flags::Snapshot;
    /// let late = r#"{"if": [{">": [{"var": "$flagd.timestamp"}, 1800000000]}, "on"]}"#;
    /// let of_rule = |rule: &str| {
    ///     let flag = format!(r#"{{"state": "ENABLED", "variants": {{"on": true}}, "targeting": {rule}}}"#);
    ///     Snapshot::from_json(&format!(r#"{{"flags": {{"a": {flag}}}}}"#)).unwrap().0
    /// };
    /// assert!(of_rule(late).may_read_time() && !of_rule("{}").may_read_time());
    /// ```
    pub fn may_read_time(&self) -> bool {
        let set = self.sets.get(&self.set);
        set.is_some_and(|set| set.flags().any(|(_, entry)| entry.flag().is_ok_and(|flag| flag.may_read_time)))
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
        let clock = || seconds_of(self.time);
        ask(FlagsView { sets: &self.sets, set: &self.set, clock: &clock, is_counted: self.is_counted })
    }
}

/// What an evaluation is made with.
pub(super) struct FlagsView<'v> {
    pub(super) sets: &'v FlagSets,
    pub(super) set: &'v str,
    pub(super) clock: &'v dyn Fn() -> i64,
    pub(super) is_counted: bool,
}

impl FlagsView<'_> {
    fn entry(&self, flag: &str) -> Result<&FlagEntry, FlagError> {
        let found = self.sets.get(self.set).and_then(|set| set.flag(flag));
        found.ok_or_else(|| FlagError::NotFound { set: self.set.to_owned(), flag: flag.to_owned() })
    }

    /// Counts an evaluation that gave a variant, or the program's default.
    fn count(&self, flag: &Flag, variant: Option<&Variant>) {
        if self.is_counted {
            variant.map_or(&flag.default_count, |variant| &variant.count).add();
        }
    }

    /// The value of the flag, if it has one of this type.
    pub(super) fn value<T: FlagType>(&self, flag: &str, context: &Context<'_>) -> Option<T> {
        let flag = self.sets.get(self.set)?.flag(flag)?.flag().ok()?;
        let resolved = flag.resolve(context, self.clock);
        let found = match &resolved {
            Ok(Resolved::Variant(variant, _)) => T::from_value(&variant.value).map(|value| (*variant, value)),
            Ok(Resolved::Default(_)) | Err(_) => None,
        };
        self.count(flag, found.as_ref().map(|(variant, _)| *variant));
        found.map(|(_, value)| value)
    }

    pub(super) fn details<T: FlagType>(&self, flag: &str, default: T, context: &Context<'_>) -> Details<T> {
        let failed = |value, metadata, error| Details {
            value,
            variant: None,
            reason: Reason::Error,
            metadata,
            error: Some(error),
        };
        let found = self.entry(flag).and_then(|entry| entry.flag().map_err(|error| malformed(flag, error)));
        let flag = match found {
            Ok(flag) => flag,
            Err(error) => return failed(default, Metadata::default(), error),
        };
        let metadata = flag.metadata.clone();
        let resolved = flag.resolve(context, self.clock);
        if let Ok(Resolved::Variant(variant, reason)) = &resolved
            && let Some(value) = T::from_value(&variant.value)
        {
            self.count(flag, Some(variant));
            let (variant, reason) = (Some(variant.name.clone()), *reason);
            return Details { value, variant, reason, metadata, error: None };
        }
        self.count(flag, None);
        match resolved {
            Ok(Resolved::Variant(variant, _)) => {
                let (flag, expected, found) = (flag.key().to_string(), T::NAME, variant.value.kind());
                failed(default, metadata, FlagError::TypeMismatch { flag, expected, found })
            }
            Ok(Resolved::Default(reason)) => {
                Details { value: default, variant: None, reason, metadata, error: None }
            }
            Err(error) => failed(default, metadata, error),
        }
    }
}
