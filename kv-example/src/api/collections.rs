//! Sets and counters: `/v1/sets`, `/v1/counters`.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::Entry;

use super::kv::Wants;
use super::{ApiError, App, AppState, Ask, At, page_limit, page_of, view};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/sets", get(sets))
        .route("/v1/sets/{name}", get(elements))
        .route("/v1/sets/{name}/{*element}", get(contains).put(add).delete(remove))
        .route("/v1/counters", get(counters))
        .route("/v1/counters/{name}", get(value).post(step))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

impl Names {
    /// One page of all names in order, and where the next one begins.
    fn page(&self, mut names: Vec<String>) -> Result<(Vec<String>, Option<String>), ApiError> {
        let limit = page_limit(self.limit)?;
        if let Some(after) = &self.after {
            names.retain(|name| name > after);
        }
        Ok(page_of(names, limit, Clone::clone))
    }
}

/// The names of sets in order, page by page.
async fn sets(State(app): AppState, Ask(ask): Ask<Names>) -> Result<Json<Value>, ApiError> {
    let (names, next) = ask.page(app.node.sets(&ask.prefix))?;
    Ok(Json(json!({ "sets": names, "next": next })))
}

/// The counters by name, with their values, page by page.
async fn counters(State(app): AppState, Ask(ask): Ask<Names>) -> Result<Json<Value>, ApiError> {
    let (names, next) = ask.page(app.node.counters(&ask.prefix))?;
    let counter = |name: &String| json!({ "name": name, "value": app.node.counter(name).value() });
    let counters: Vec<Value> = names.iter().map(counter).collect();
    Ok(Json(json!({ "counters": counters, "next": next })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<String>,
    limit: Option<usize>,
    /// Everything about each element, not its name alone.
    #[serde(default)]
    meta: bool,
}

/// The elements in order, page by page. A set that nobody added to is an empty set.
async fn elements(
    State(app): AppState,
    At(name): At<String>,
    Ask(ask): Ask<Page>,
) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(ask.limit)?;
    let rows = app.node.set(name).entries(ask.after.as_deref(), limit + 1);
    let (rows, next) = page_of(rows, limit, |element| element.key().to_owned());
    let element = |element: &Entry| {
        if ask.meta { view::entry(&app, element, false) } else { element.key().into() }
    };
    let elements: Vec<Value> = rows.iter().map(element).collect();
    Ok(Json(json!({ "elements": elements, "next": next })))
}

async fn contains(
    State(app): AppState,
    At((name, element)): At<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let Some(entry) = app.node.set(&name).entry(&element) else {
        return Err(ApiError::not_found(format!("\"{element}\" is not in the set \"{name}\"")));
    };
    let mut view = view::entry(&app, &entry, false);
    view["contains"] = true.into();
    Ok(Json(view))
}

async fn add(
    State(app): AppState,
    At((name, element)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
) -> Result<Json<Value>, ApiError> {
    wants.without_by()?;
    wants.without_force()?;
    let wait = wants.wait()?;
    let receipt = app.node.set(name).add_with(element, wants.options()?)?;
    wait.done(&receipt).await
}

async fn remove(
    State(app): AppState,
    At((name, element)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
) -> Result<Json<Value>, ApiError> {
    wants.without_ttl()?;
    wants.without_by()?;
    wants.without_force()?;
    let wait = wants.wait()?;
    let receipt = app.node.set(&name).remove(&element)?;
    if receipt.stamp().is_none() {
        return Err(ApiError::not_found(format!("\"{element}\" is not in the set \"{name}\"")));
    }
    wait.done(&receipt).await
}

/// A counter that nobody stepped stands at 0.
async fn value(State(app): AppState, At(name): At<String>) -> Json<Value> {
    Json(json!({ "value": app.node.counter(name).value() }))
}

async fn step(
    State(app): AppState,
    At(name): At<String>,
    Ask(wants): Ask<Wants>,
) -> Result<Json<Value>, ApiError> {
    wants.without_ttl()?;
    wants.without_force()?;
    let wait = wants.wait()?;
    let counter = app.node.counter(name);
    let receipt = counter.add(wants.by.unwrap_or(1))?;
    let Json(mut body) = wait.done(&receipt).await?;
    body["value"] = counter.value().into();
    Ok(Json(body))
}
