//! What this node knows of the past of keys: `/v1/history`.
//!
//! A store keeps no earlier values: the next write replaces what it has seen. What is left is the present value of each
//! key, the concurrent ones beside it, and the deletes that the change log remembers. Nothing more is told here.

use std::cmp::Reverse;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Entry, Revision, Stamp, Watch, WatchEvent, WatchOptions};

use super::kv::rows_of_values;
use super::{ApiError, App, AppState, Ask, PAGE_ROWS_MAX, PAGE_TIME_MAX, page_limit, view};

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

/// An event before it is told. Values are copied for those alone that are.
enum Event {
    Put(Entry),
    Lost(Entry),
    /// A delete or an expiry, as it is told.
    Gone(Value),
}

impl Event {
    fn time_ms(&self) -> Option<u64> {
        match self {
            Self::Put(entry) | Self::Lost(entry) => Some(entry.stamp().wall_ms()),
            Self::Gone(told) => told["time_ms"].as_u64(),
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Self::Put(entry) | Self::Lost(entry) => entry.value().len(),
            Self::Gone(_) => 0,
        }
    }

    fn told(self, app: &App) -> Value {
        let (entry, name) = match self {
            Self::Put(entry) => (entry, "put"),
            Self::Lost(entry) => (entry, "lost"),
            Self::Gone(told) => return told,
        };
        let mut told = view::entry(app, &entry, true);
        told["event"] = name.into();
        told
    }
}

/// The latest events, the last one first. `floor` is where the change log begins: deletes before it are forgotten, and
/// there were none if it is the beginning of this node's run with an empty store. `is_cut`: there are more events than fit
/// the answer, or the time for it was over before all keys were looked at.
async fn history(State(app): AppState, Ask(what): Ask<What>) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(what.limit)?;
    let Some(floor) = app.node.status().store.map(|store| store.floor) else {
        return Err(ApiError::unavailable("closed", "the node is closed"));
    };
    let _permit = app.watcher()?;
    let started = Instant::now();
    let is_late = || started.elapsed() > PAGE_TIME_MAX;
    let mut events = deletes(&app, &what.prefix, floor, is_late).await;
    let mut after: Option<String> = None;
    let is_whole = loop {
        let rows = app.node.scan_page(&what.prefix, after.as_deref(), PAGE_ROWS_MAX);
        for entry in &rows {
            events.push(Event::Put(entry.clone()));
            events.extend(entry.conflicts().map(Event::Lost));
        }
        // What is not among the latest is not kept while the rest is read.
        events.sort_by_key(|event| Reverse(event.time_ms()));
        events.truncate(limit + 1);
        match rows.last() {
            Some(_) if rows.len() == PAGE_ROWS_MAX && is_late() => break false,
            Some(last) if rows.len() == PAGE_ROWS_MAX => after = Some(last.key().to_owned()),
            _ => break true,
        }
        tokio::task::yield_now().await;
    };
    let fitting = limit.min(rows_of_values(events.iter().map(Event::value_bytes)));
    let is_cut = !is_whole || events.len() > fitting;
    let events: Vec<Value> = events.into_iter().take(fitting).map(|event| event.told(&app)).collect();
    Ok(Json(json!({ "events": events, "is_cut": is_cut, "floor": floor })))
}

/// The deletes and expiries that the change log remembers.
async fn deletes(app: &App, prefix: &str, floor: Revision, is_late: impl Fn() -> bool) -> Vec<Event> {
    let mut watch = app.node.watch_with(prefix, WatchOptions::new().resume_from(floor));
    let mut deletes = Vec::new();
    while !is_late()
        && let Some(event) = ready(&mut watch).await
    {
        match event {
            WatchEvent::Delete { key, revision, stamp, writer } => {
                let time_ms = stamp.map(Stamp::wall_ms);
                let stamp = stamp.map(|stamp| stamp.to_string());
                deletes.push(json!({ "event": "delete", "key": key, "revision": revision, "stamp": stamp,
                                     "time_ms": time_ms, "writer": writer }));
            }
            WatchEvent::Expired { key, revision } => {
                deletes.push(json!({ "event": "expired", "key": key, "revision": revision }));
            }
            _ => {}
        }
    }
    deletes.into_iter().map(Event::Gone).collect()
}

/// The next event, if it is there already.
async fn ready(watch: &mut Watch) -> Option<WatchEvent> {
    std::future::poll_fn(|cx| match Pin::new(&mut *watch).poll_next(cx) {
        Poll::Ready(event) => Poll::Ready(event),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
