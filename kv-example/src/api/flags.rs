//! Feature flags: `/v1/flags` lists them as they are stored, `/v1/flags/evaluate` evaluates them. Nothing is written here.
//!
//! The list is made of what the store holds, so that a malformed flag is in it, with what can be read of it. Evaluations
//! use the definitions in force, which for a malformed flag is the last good one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::Entry;
use tidings::flags::{CONTEXT_BYTES_MAX, Context, FlagError, FlagValue, Snapshot, check};
use tidings::live::{LiveSource, Rejected};

use super::flag_sets::DEFAULT_SET;
use super::guard::Access;
use super::kv::PAGE_BYTES_TARGET;
use super::{ApiError, App, AppState, Ask, PAGE_ROWS_MAX, PAGE_TIME_MAX, page_limit};
use crate::flags::change::definition_of;
use crate::flags::edit::shares;
use crate::flags::{SET_METADATA, SHARED_RULES, is_schema};

/// Keys that are looked at to find the names of sets, one for each set.
const SETS_MAX: usize = 1_000;
/// Bytes of the nodes' counts of evaluations that one listing adds up. Those of further nodes are left out.
const USAGE_BYTES_MAX: usize = 8 << 20;
/// A body is a context, written as JSON, and some names.
const EVALUATE_BYTES_MAX: usize = 2 * CONTEXT_BYTES_MAX;

pub(super) fn routes() -> Router<Arc<App>> {
    let evaluate = post(evaluate).layer(DefaultBodyLimit::max(EVALUATE_BYTES_MAX));
    Router::new().route("/v1/flags", get(list)).route("/v1/flags/evaluate", evaluate)
}

/// The flags in force. These evaluations are for people who look, and are not counted as usage.
fn snapshot(app: &App, set: &str) -> Snapshot {
    app.flags.of_set(set).snapshot().uncounted()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    set: Option<String>,
    /// Only this flag.
    flag: Option<String>,
    /// Only flags whose names contain this. Upper and lower case are the same.
    search: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn list(
    State(app): AppState,
    Extension(access): Extension<Access>,
    Ask(ask): Ask<List>,
) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(ask.limit)?;
    // It may take milliseconds, in which other tasks go on.
    let mut listed = tokio::task::block_in_place(|| listed(&app, &ask, limit));
    // So that the dashboard offers nothing that is refused.
    listed["may_write"] = (access == Access::All).into();
    Ok(Json(listed))
}

fn listed(app: &App, ask: &List, limit: usize) -> Value {
    let set = ask.set.as_deref().unwrap_or(DEFAULT_SET);
    let prefix = app.flag_names().set(set);
    let (rows, next) = match &ask.flag {
        Some(flag) if is_schema(flag) => (Vec::new(), None),
        Some(flag) => (app.node.get(format!("{prefix}{flag}")).into_iter().collect(), None),
        None => page(app, &prefix, ask, limit),
    };
    let rejected = app.flags.rejected();
    let errors = rejected.iter().filter_map(|one| Some((key_of(one)?, one.error.to_string()))).collect();
    let names = rows.iter().map(|entry| format!("{set}/{}", &entry.key()[prefix.len()..])).collect();
    let listing = Listing { app, set, errors, usage: usage(app, &names), snapshot: snapshot(app, set) };
    let flags: Vec<_> = rows.iter().map(|entry| listing.row(entry, &entry.key()[prefix.len()..])).collect();
    let wrong = |one: &Rejected| json!({ "key": key_of(one), "error": one.error.to_string() });
    json!({
        "prefix": app.flags_prefix,
        "state": app.flags.state(),
        "set": set,
        "sets": sets(app),
        "rejected": rejected.iter().map(wrong).collect::<Vec<_>>(),
        "flags": flags,
        "next": next,
    })
}

fn key_of(rejected: &Rejected) -> Option<&str> {
    match &rejected.from {
        Some(LiveSource::Key { key, .. }) => Some(key),
        _ => None,
    }
}

/// The flags of a set that are asked for, in order; `next` is `after` of the next page.
fn page(app: &App, prefix: &str, ask: &List, limit: usize) -> (Vec<Entry>, Option<String>) {
    let search = ask.search.as_deref().unwrap_or_default().to_lowercase();
    let is_asked = |flag: &str| {
        ![SHARED_RULES, SET_METADATA].contains(&flag)
            && !is_schema(flag)
            && flag.to_lowercase().contains(search.as_str())
    };
    let mut after = ask.after.as_ref().map(|flag| format!("{prefix}{flag}"));
    let (mut rows, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
    loop {
        let scanned = app.node.scan_page(prefix, after.as_deref(), PAGE_ROWS_MAX);
        let is_last = scanned.len() < PAGE_ROWS_MAX;
        after = scanned.last().map(|entry| entry.key().to_owned());
        for entry in scanned.into_iter().filter(|entry| is_asked(&entry.key()[prefix.len()..])) {
            if rows.len() == limit || bytes >= PAGE_BYTES_TARGET {
                let next = rows.last().map(|last| last.key()[prefix.len()..].to_owned());
                return (rows, next);
            }
            bytes += entry.value().len();
            rows.push(entry);
        }
        if is_last {
            return (rows, None);
        }
    }
}

/// The names of the sets.
fn sets(app: &App) -> Vec<String> {
    let prefix = &app.flags_prefix;
    let (mut sets, mut after): (Vec<String>, Option<String>) = (Vec::new(), None);
    for _ in 0..SETS_MAX {
        let Some(entry) = app.node.scan_page(prefix, after.as_deref(), 1).pop() else { break };
        after = match entry.key()[prefix.len()..].split_once('/') {
            Some((set, _)) => {
                sets.extend((!set.is_empty()).then(|| set.to_owned()));
                // Behind all keys of the set: 0 follows the slash.
                Some(format!("{prefix}{set}0"))
            }
            None => Some(entry.key().to_owned()),
        };
    }
    sets
}

/// How often a variant of a flag was given.
type Counts = BTreeMap<String, u64>;

/// The evaluations of some flags since the start of each node, all nodes together. Members write these counts: what is
/// not in their form is left out.
fn usage(app: &App, flags: &BTreeSet<String>) -> BTreeMap<String, Counts> {
    let mut sums: BTreeMap<String, Counts> = BTreeMap::new();
    let mut bytes = 0;
    for entry in app.node.scan_page(app.flag_names().usage_by_node(), None, PAGE_ROWS_MAX) {
        bytes += entry.value().len();
        if bytes > USAGE_BYTES_MAX {
            break;
        }
        let Ok(counts) = serde_json::from_slice::<BTreeMap<String, Counts>>(entry.value()) else { continue };
        for (flag, variants) in counts.into_iter().filter(|(flag, _)| flags.contains(flag)) {
            let sum = sums.entry(flag).or_default();
            for (variant, count) in variants {
                let all = sum.entry(variant).or_default();
                *all = all.saturating_add(count);
            }
        }
    }
    sums
}

/// What the rows of one listing have in common.
struct Listing<'a> {
    app: &'a App,
    set: &'a str,
    /// What is wrong, by key. The node reports a bounded number.
    errors: BTreeMap<&'a str, String>,
    usage: BTreeMap<String, Counts>,
    snapshot: Snapshot,
}

impl Listing<'_> {
    fn row(&self, entry: &Entry, flag: &str) -> Value {
        let name = format!("{}/{flag}", self.set);
        let definition = definition_of(entry).unwrap_or_default();
        let names = self.app.flag_names();
        let stored =
            |key: &str| -> Option<Value> { serde_json::from_slice(self.app.node.get(key)?.value()).ok() };
        let share = |(variant, percent)| json!({ "variant": variant, "percent": percent });
        let shares: Vec<Value> = shares(&definition).into_iter().map(share).collect();
        let rejected = self.errors.get(entry.key()).cloned();
        let rejected =
            rejected.or_else(|| check(entry.key(), entry.value()).err().map(|fault| fault.error.to_string()));
        json!({
            "flag": flag,
            "key": entry.key(),
            "state": definition["state"],
            "type": type_of(&definition["variants"]),
            "variants": definition["variants"],
            "defaultVariant": definition["defaultVariant"],
            "targeting": definition["targeting"],
            "shares": shares,
            "metadata": definition["metadata"],
            "stamp": entry.stamp().to_string(),
            "time_ms": entry.stamp().wall_ms(),
            "writer": self.app.monitor.writer(entry.origin()),
            "has_last_good": rejected.is_some() && self.has_good(flag),
            "rejected": rejected,
            "conflict": entry.conflicts().next().is_some(),
            "lastEvaluated": stored(&names.usage_day(self.set, flag)),
            "evaluations": self.usage.get(&name).cloned().unwrap_or_default(),
            "plan": stored(&names.plan(self.set, flag)),
        })
    }

    /// Whether there is a definition of the flag that can be evaluated.
    fn has_good(&self, flag: &str) -> bool {
        let details = self.snapshot.details(flag, None::<FlagValue>, &Context::anonymous());
        !matches!(details.error, Some(FlagError::Malformed { .. } | FlagError::NotFound { .. }))
    }
}

/// The type that all variants have, if it is one.
fn type_of(variants: &Value) -> Option<&'static str> {
    let type_of = |value: &Value| match value {
        Value::Null => None,
        Value::Bool(_) => Some("boolean"),
        Value::Number(_) => Some("number"),
        Value::String(_) => Some("string"),
        Value::Array(_) | Value::Object(_) => Some("object"),
    };
    let mut types = variants.as_object()?.values().map(type_of);
    let first = types.next()??;
    types.all(|other| other == Some(first)).then_some(first)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluate {
    set: Option<String>,
    /// Absent: all flags of the set, page by page.
    flag: Option<String>,
    #[serde(default)]
    context: BTreeMap<String, FlagValue>,
    after: Option<String>,
    limit: Option<usize>,
}

/// What flags give for a context; of all flags in the order of their names, page by page.
async fn evaluate(
    State(app): AppState,
    asked: Result<Json<Evaluate>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(asked) = asked.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(EVALUATE_BYTES_MAX),
        _ => ApiError::bad_request(rejection.body_text()),
    })?;
    let limit = page_limit(asked.limit)?;
    Ok(Json(tokio::task::block_in_place(|| evaluated(&app, asked, limit))))
}

fn evaluated(app: &App, asked: Evaluate, limit: usize) -> Value {
    let snapshot = snapshot(app, asked.set.as_deref().unwrap_or(DEFAULT_SET));
    let context = asked.context.into_iter();
    let context = context.fold(Context::anonymous(), |context, (name, value)| context.with(name, value));
    let result = |flag: &str| {
        let details = snapshot.details(flag, None::<FlagValue>, &context);
        let error = details.error.as_ref();
        let metadata: BTreeMap<_, _> =
            details.metadata.iter().map(|(name, value)| (&**name, value)).collect();
        json!({
            "flag": flag,
            "value": details.value,
            "variant": details.variant.as_deref(),
            "reason": details.reason.name(),
            "metadata": metadata,
            "error": error.map(|error| json!({ "code": error.code(), "message": error.to_string() })),
        })
    };
    if let Some(flag) = &asked.flag {
        return json!({ "results": [result(flag)], "next": null });
    }
    let after = asked.after.as_deref();
    let keys = snapshot.keys();
    let keys = &keys[after.map_or(0, |after| keys.partition_point(|key| &**key <= after))..];
    let (started, mut results) = (Instant::now(), Vec::new());
    for flag in keys.iter().take(limit) {
        results.push(result(flag));
        if started.elapsed() > PAGE_TIME_MAX {
            break;
        }
    }
    let next = keys.get(results.len()).and(results.len().checked_sub(1)).map(|last| keys[last].clone());
    json!({ "results": results, "next": next.as_deref() })
}
