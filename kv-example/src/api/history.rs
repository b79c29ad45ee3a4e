//! What this node knows of the past of keys: `/v1/history`.
//!
//! A store keeps no earlier values: the next write replaces what it has seen. What is left is the present value of each
//! key, the concurrent ones beside it, and the deletes that the change log remembers. Nothing more is told here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Entry, Stamp, Watch, WatchEvent, WatchOptions};

use super::{ApiError, App, AppState, Ask, PAGE_ROWS_MAX, page_limit, view};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/history", get(history))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
}

/// The latest events, the last one first. `floor` is where the change log begins: deletes before it are forgotten, and
/// there were none if it is the beginning of this node's run with an empty store.
async fn history(State(app): AppState, Ask(what): Ask<What>) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(what.limit)?;
    let Some(floor) = app.node.status().store.map(|store| store.floor) else {
        return Err(ApiError::unavailable("closed", "the node is closed"));
    };
    let _permit = app.watcher()?;
    let mut deletes = app.node.watch_with(what.prefix.as_str(), WatchOptions::new().resume_from(floor));
    let mut events = Vec::new();
    while let Some(event) = ready(&mut deletes).await {
        match event {
            WatchEvent::Delete { key, revision, stamp, writer } => {
                let time_ms = stamp.map(Stamp::wall_ms);
                let stamp = stamp.map(|stamp| stamp.to_string());
                events.push(json!({ "event": "delete", "key": key, "revision": revision, "stamp": stamp,
                                    "time_ms": time_ms, "writer": writer }));
            }
            WatchEvent::Expired { key, revision } => {
                events.push(json!({ "event": "expired", "key": key, "revision": revision }));
            }
            _ => {}
        }
    }
    let mut after: Option<String> = None;
    loop {
        let rows = app.node.scan_page(&what.prefix, after.as_deref(), PAGE_ROWS_MAX);
        for entry in &rows {
            let mut put = |entry: &Entry, event: &str| {
                let mut row = view::entry(&app, entry, true);
                row["event"] = json!(event);
                events.push(row);
            };
            put(entry, "put");
            entry.conflicts().for_each(|loser| put(&loser, "lost"));
        }
        // What is not among the latest is not kept while the rest is read.
        events.sort_by_key(|event| std::cmp::Reverse(event["time_ms"].as_u64()));
        events.truncate(limit + 1);
        match rows.last() {
            Some(last) if rows.len() == PAGE_ROWS_MAX => after = Some(last.key().to_owned()),
            _ => break,
        }
    }
    let is_cut = events.len() > limit;
    events.truncate(limit);
    Ok(Json(json!({ "events": events, "is_cut": is_cut, "floor": floor })))
}

/// The next event, if it is there already.
async fn ready(watch: &mut Watch) -> Option<WatchEvent> {
    std::future::poll_fn(|cx| match Pin::new(&mut *watch).poll_next(cx) {
        Poll::Ready(event) => Poll::Ready(event),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
