//! Changes of feature flags: `/v1/flags/SET/FLAG` and `/v1/flag-sets/SET`; and `/v1/flag-checks/SET`, where nothing is
//! written.
//!
//! Everything that is put here was checked with the rules that the library and flagd's schema have for definitions, and
//! leaves an item in the history of its flag. `$evaluators` and `$metadata`, which the flags of a set share, are put in
//! the same way.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidings::{OnlyIf, Receipt, Stamp, WriteError};

use super::flag_sets::is_unknown;
use super::kv::ValueBody;
use super::{ApiError, App, AppState, Ask, At, view};
use crate::flags::change::{self, Author, Change, Past};
use crate::flags::{Names, SET_METADATA, SHARED_RULES, check_names, is_schema};
use crate::schema::{Fault, Verdict};

/// The largest body with the changes of a set.
const CHANGES_BYTES_MAX: usize = 32 << 20;

pub(super) fn routes() -> Router<Arc<App>> {
    let all = get(read_set).post(change_set).layer(DefaultBodyLimit::max(CHANGES_BYTES_MAX));
    Router::new()
        .route("/v1/flags/{set}/{flag}", get(read).put(put).delete(delete))
        .route("/v1/flags/{set}/{flag}/history", get(history))
        .route("/v1/flag-sets/{set}", all)
        .route("/v1/flag-sets/{set}/file", get(file))
        .route("/v1/flag-checks/{set}", post(check_set).layer(DefaultBodyLimit::max(CHANGES_BYTES_MAX)))
}

/// What a change of flags asks for beyond itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wants {
    /// `absent`, or the stamp of the definition that this node has to hold, or `revision-` and its revision, which
    /// concurrent versions change as well.
    #[serde(rename = "if")]
    pub(super) only_if: Option<String>,
    #[serde(default)]
    pub(super) note: String,
    pub(super) by: Option<String>,
}

pub(super) fn condition(text: Option<&str>) -> Result<Option<OnlyIf>, ApiError> {
    match text {
        None => Ok(None),
        Some("absent") => Ok(Some(OnlyIf::Absent)),
        Some(text) => {
            let revision = text.strip_prefix("revision-").and_then(|text| text.parse().ok());
            let condition = revision.map(OnlyIf::Revision);
            let condition = condition.or_else(|| text.parse::<Stamp>().ok().map(OnlyIf::Stamp));
            let form =
                || format!("if is \"{text}\", permitted: absent, a stamp, or revision- and a revision");
            condition.map(Some).ok_or_else(|| ApiError::bad_request(form()))
        }
    }
}

/// One definition as it is, with what a change of it needs.
async fn read(State(app): AppState, At((set, flag)): At<(String, String)>) -> Result<Json<Value>, ApiError> {
    check_names(&set, &flag).map_err(ApiError::bad_request)?;
    let key = app.flag_names().flag(&set, &flag);
    let entry = app.node.get(&key).ok_or_else(|| no_flag(&set, &flag))?;
    let mut found = view::entry(&app, &entry, false);
    (found["set"], found["flag"]) = (set.into(), flag.into());
    found["definition"] = change::definition_of(&entry).unwrap_or_default();
    Ok(Json(found))
}

pub(super) fn no_flag(set: &str, flag: &str) -> ApiError {
    ApiError::not_found(format!("the set \"{set}\" has no flag \"{flag}\""))
}

async fn put(
    State(app): AppState,
    At((set, flag)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
    ValueBody(body): ValueBody,
) -> Result<Json<Value>, ApiError> {
    let read = serde_json::from_slice(&body);
    let no_json = |error| {
        ApiError::definition(vec![Fault { path: String::new(), message: format!("it is not JSON: {error}") }])
    };
    let definition: Value = read.map_err(no_json)?;
    let change = Change { flag, definition: Some(definition), only_if: condition(wants.only_if.as_deref())? };
    Ok(written(&apply(&app, &set, &[change], &wants)?))
}

async fn delete(
    State(app): AppState,
    At((set, flag)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
) -> Result<Json<Value>, ApiError> {
    check_names(&set, &flag).map_err(ApiError::bad_request)?;
    if app.node.get(app.flag_names().flag(&set, &flag)).is_none() {
        return Err(no_flag(&set, &flag));
    }
    let change = Change { flag, definition: None, only_if: condition(wants.only_if.as_deref())? };
    Ok(written(&apply(&app, &set, &[change], &wants)?))
}

pub(super) fn written(receipt: &Receipt) -> Json<Value> {
    let stamp = receipt.stamp().map(|stamp| stamp.to_string());
    Json(json!({ "stamp": stamp, "revision": receipt.revision() }))
}

async fn history(
    State(app): AppState,
    At((set, flag)): At<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    check_names(&set, &flag).map_err(ApiError::bad_request)?;
    let names = app.flag_names();
    let entry = app.node.get(names.history(&set, &flag));
    if entry.is_none() && app.node.get(names.flag(&set, &flag)).is_none() {
        return Err(no_flag(&set, &flag));
    }
    let item = |past: Past| {
        let mut item = json!(past);
        // A browser rounds the numbers of the definition; what it puts again is this.
        item["text"] =
            if past.definition.is_null() { Value::Null } else { past.definition.to_string().into() };
        item
    };
    let history: Vec<Value> = change::history(entry.as_ref()).into_iter().map(item).collect();
    Ok(Json(json!({ "set": set, "flag": flag, "history": history })))
}

/// All definitions of a set with their stamps; null where one is not JSON.
async fn read_set(State(app): AppState, At(set): At<String>) -> Json<Value> {
    let prefix = app.flag_names().set(&set);
    let row = |entry: &tidings::Entry| {
        let name = entry.key()[prefix.len()..].to_owned();
        (name, json!({ "stamp": entry.stamp().to_string(), "definition": change::definition_of(entry) }))
    };
    let entries = app.node.scan(&prefix);
    let entries: Map<String, Value> =
        entries.iter().filter(|entry| !is_schema(entry.key())).map(row).collect();
    Json(json!({ "prefix": app.flags_prefix, "set": set, "entries": entries }))
}

/// The definitions of a set that are in force, as a file in flagd's format.
async fn file(State(app): AppState, At(set): At<String>) -> Result<impl IntoResponse, ApiError> {
    let state = app.set_state(&set).await;
    if is_unknown(&app, &state) {
        let error = "this node has not caught up with its cluster and knows no flag of the set yet";
        return Err(ApiError::unavailable("not_ready", error));
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(CONTENT_TYPE, json)], state.file.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    changes: Vec<Asked>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    flag: String,
    /// Null deletes it.
    definition: Value,
    #[serde(rename = "if")]
    only_if: Option<String>,
}

/// Changes of a set in one batch, all or none.
async fn change_set(
    State(app): AppState,
    At(set): At<String>,
    Ask(wants): Ask<Wants>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    if wants.only_if.is_some() {
        return Err(ApiError::bad_request("each change of a set has a condition of its own"));
    }
    Ok(written(&apply(&app, &set, &changes_of(body)?, &wants)?))
}

/// Whether changes of a set would be refused, as they would be, for all that is known before they are written.
async fn check_set(
    State(app): AppState,
    At(set): At<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let changes = changes_of(body)?;
    check(&app, &set, &changes)?;
    for change in &changes {
        let entry = app.node.get(app.flag_names().flag(&set, &change.flag));
        if !change::holds(change.only_if, entry.as_ref()) {
            return Err(WriteError::Condition { current: entry.map(|entry| entry.stamp()) }.into());
        }
    }
    Ok(Json(json!({})))
}

fn changes_of(body: Result<Bytes, BytesRejection>) -> Result<Vec<Change>, ApiError> {
    let body = body.map_err(|_| ApiError::batch_too_large(CHANGES_BYTES_MAX))?;
    let asked: Changes = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("these are no changes of flags: {error}")))?;
    let change = |asked: Asked| {
        let definition = Some(asked.definition).filter(|definition| !definition.is_null());
        Ok(Change { flag: asked.flag, definition, only_if: condition(asked.only_if.as_deref())? })
    };
    let changes = asked.changes.into_iter().map(change).collect::<Result<Vec<_>, ApiError>>()?;
    if changes.is_empty() {
        return Err(ApiError::bad_request("there is no change"));
    }
    Ok(changes)
}

/// Checks changes of a set, and writes them with their histories in one batch.
pub(super) fn apply(app: &App, set: &str, changes: &[Change], wants: &Wants) -> Result<Receipt, ApiError> {
    check(app, set, changes)?;
    let author = app.author(wants.by.as_deref(), &wants.note);
    Ok(change::commit(&app.node, app.flag_names(), set, changes, &author, None)?)
}

/// Refuses changes of a set whose names or definitions are wrong, or that would break other flags of it.
fn check(app: &App, set: &str, changes: &[Change]) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    let names = app.flag_names();
    let shared = shared_rules(app, set, changes);
    for change in changes {
        check_names(set, &change.flag).map_err(ApiError::bad_request)?;
        let Some(definition) = &change.definition else { continue };
        let key = names.flag(set, &change.flag);
        let (found, verdict) = app.check_flag(&key, &change.flag, definition, shared.as_ref());
        let place = if changes.len() == 1 { String::new() } else { format!("/{}", change.flag) };
        faults
            .extend(found.into_iter().map(|fault| Fault { path: format!("{place}{}", fault.path), ..fault }));
        if !verdict.is_good() {
            return Err(ApiError::schema(&key, verdict));
        }
    }
    if changes.iter().any(|change| change.flag == SHARED_RULES) {
        faults.extend(broken_by_rules(app, set, changes, shared.as_ref()));
    }
    if faults.is_empty() { Ok(()) } else { Err(ApiError::definition(faults)) }
}

/// The flags that are not changed, and that the new shared rules would break.
fn broken_by_rules(app: &App, set: &str, changes: &[Change], rules: Option<&Value>) -> Vec<Fault> {
    let names = app.flag_names();
    let prefix = names.set(set);
    let is_other = |flag: &str| {
        !matches!(flag, SHARED_RULES | SET_METADATA)
            && !is_schema(flag)
            && changes.iter().all(|change| change.flag != flag)
    };
    // Other tasks go on meanwhile.
    tokio::task::block_in_place(|| {
        let entries = app.node.scan(&prefix);
        let others = entries.iter().filter_map(|entry| {
            let flag = &entry.key()[prefix.len()..];
            Some((flag.to_owned(), change::definition_of(entry).filter(|_| is_other(flag))?))
        });
        let before = app.node.get(names.flag(set, SHARED_RULES)).as_ref().and_then(change::definition_of);
        change::broken(&others.collect(), before.as_ref(), rules)
    })
}

/// The rules that the flags of a set share once the changes are written.
pub(super) fn shared_rules(app: &App, set: &str, changes: &[Change]) -> Option<Value> {
    match changes.iter().find(|change| change.flag == SHARED_RULES) {
        Some(change) => change.definition.clone(),
        None => {
            app.node.get(app.flag_names().flag(set, SHARED_RULES)).as_ref().and_then(change::definition_of)
        }
    }
}

impl App {
    /// The keys of flags and of what stands beside them.
    pub(super) fn flag_names(&self) -> Names<'_> {
        Names(&self.flags_prefix)
    }

    /// Who makes a change, as the history has it.
    pub(super) fn author(&self, by: Option<&str>, note: &str) -> Author {
        let client = || format!("a client of {}", self.node.name());
        Author::new(&by.map_or_else(client, str::to_owned), note)
    }

    /// Refuses a malformed definition that is put under its key, as any other value is. What is evaluated although flagd's
    /// schema does not allow it is taken.
    pub(super) fn check_put(&self, key: &str, value: &[u8]) -> Result<(), ApiError> {
        self.flag_fault(key, value).map_or(Ok(()), |fault| Err(ApiError::malformed(key, fault)))
    }

    /// Why a value that is put under this key is a malformed definition. `None`: it is none, or not under a key of flags.
    pub(super) fn flag_fault(&self, key: &str, value: &[u8]) -> Option<Fault> {
        let is_flag = |rest: &str| rest.contains('/') && !is_schema(rest);
        key.strip_prefix(&self.flags_prefix).filter(|rest| is_flag(rest))?;
        let fault = tokio::task::block_in_place(|| tidings::flags::check(key, value)).err()?;
        Some(Fault { path: String::new(), message: fault.error.to_string() })
    }

    /// What is wrong with a definition as a flag, and by the schema that is for its key.
    pub(super) fn check_flag(
        &self,
        key: &str,
        flag: &str,
        definition: &Value,
        shared_rules: Option<&Value>,
    ) -> (Vec<Fault>, Verdict) {
        // Other tasks go on meanwhile.
        let faults = tokio::task::block_in_place(|| change::faults(flag, definition, shared_rules));
        (faults, self.check(key, definition.to_string().as_bytes()))
    }
}
