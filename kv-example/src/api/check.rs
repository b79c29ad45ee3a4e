//! Values, their schemas and flags: `/v1/check`. Nothing is written here.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::kv::ValueBody;
use super::{ApiError, App, AppState, Ask, At, PAGE_TIME_MAX, page_limit, view};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/check", get(list)).route("/v1/check/{*key}", post(check))
}

/// What would be wrong with a value for a key: by its schema, and as a flag. The messages are those of a write.
async fn check(
    State(app): AppState,
    At(key): At<String>,
    ValueBody(value): ValueBody,
) -> Result<Json<Value>, ApiError> {
    let mut verdict = app.check(&key, &value);
    verdict.faults.extend(app.flag_fault(&key, &value));
    Ok(Json(verdict.view()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

/// The entries that are not valid, among so many that are looked at in key order; `next` is `after` of the next page.
async fn list(State(app): AppState, Ask(ask): Ask<Page>) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(ask.limit)?;
    let rows = app.node.scan_page(&ask.prefix, ask.after.as_deref(), limit + 1);
    let (started, mut invalid, mut checked) = (Instant::now(), Vec::new(), 0);
    for entry in rows.iter().take(limit) {
        let verdict = app.check(entry.key(), entry.value());
        if !verdict.is_good() {
            let mut row = view::entry(&app, entry, false);
            let view = verdict.view();
            (row["schema"], row["errors"]) = (view["schema"].clone(), view["errors"].clone());
            invalid.push(row);
        }
        checked += 1;
        if started.elapsed() > PAGE_TIME_MAX {
            break;
        }
    }
    let next = rows.get(checked).and(checked.checked_sub(1)).map(|last| rows[last].key());
    Ok(Json(json!({ "invalid": invalid, "checked": checked, "next": next })))
}
