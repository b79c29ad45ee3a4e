//! What this node knows of the past of keys: `/v1/history`.
//!
//! A store keeps no earlier values: the next write replaces what it has seen. What is left is the present value of each
//! key, the concurrent ones beside it, and the deletes that the change log remembers. Nothing more is told here.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Entry, Revision, Stamp, WatchEvent, WatchOptions};
use tokio::time::{Instant, timeout_at};

use super::kv::rows_of_values;
use super::{ApiError, App, AppState, Ask, PAGE_ROWS_MAX, PAGE_TIME_MAX, page_limit, view};

/// Events of the change log that are read before other tasks run.
const EVENTS_PER_TURN: usize = 256;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/history", get(history))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    #[serde(default)]
    prefix: String,
    /// The prefix is a field: its key and those below it count, `app/db` and `app/db/pool`, and not `app/db2`.
    #[serde(default)]
    field: bool,
    limit: Option<usize>,
}

impl What {
    fn has(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| !self.field || rest.is_empty() || rest.starts_with('/'))
    }
}

/// An event before it is told. Values are copied for those alone that are.
enum Event {
    Put(Entry),
    Lost(Entry),
    /// A delete or an expiry, as it is told.
    Gone {
        told: Value,
        /// Its stamp. An expiry has none, nor has a delete of which only a repair told: then this is the greatest one
        /// among the changes that came before it.
        since: Option<Stamp>,
        /// How many changes came before it.
        place: usize,
    },
}

impl Event {
    /// Orders events by their stamps; what has none comes behind the changes before it, in the order of the change log.
    fn order(&self) -> (Option<Stamp>, usize) {
        match self {
            Self::Put(entry) | Self::Lost(entry) => (Some(entry.stamp()), 0),
            Self::Gone { since, place, .. } => (*since, place + 1),
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Self::Put(entry) | Self::Lost(entry) => entry.value().len(),
            Self::Gone { .. } => 0,
        }
    }

    fn told(self, app: &App) -> Value {
        let (entry, name) = match self {
            Self::Put(entry) => (entry, "put"),
            Self::Lost(entry) => (entry, "lost"),
            Self::Gone { told, .. } => return told,
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
    let _permit = app.watcher()?;
    let until = Instant::now() + PAGE_TIME_MAX;
    let is_late = || Instant::now() > until;
    let Some(Deletes { floor, mut events, has_all }) = deletes(&app, &what, until).await else {
        return Err(ApiError::unavailable("closed", "the node is closed"));
    };
    let mut after: Option<String> = None;
    let is_whole = loop {
        let rows = app.node.scan_page(&what.prefix, after.as_deref(), PAGE_ROWS_MAX);
        for entry in rows.iter().filter(|entry| what.has(entry.key())) {
            events.push(Event::Put(entry.clone()));
            events.extend(entry.conflicts().map(Event::Lost));
        }
        // What is not among the latest is not kept while the rest is read.
        events.sort_by_key(|event| Reverse(event.order()));
        events.truncate(limit + 1);
        match rows.last() {
            Some(_) if rows.len() == PAGE_ROWS_MAX && is_late() => break false,
            Some(last) if rows.len() == PAGE_ROWS_MAX => after = Some(last.key().to_owned()),
            _ => break true,
        }
        tokio::task::yield_now().await;
    };
    let fitting = limit.min(rows_of_values(events.iter().map(Event::value_bytes)));
    let is_cut = !has_all || !is_whole || events.len() > fitting;
    let events: Vec<Value> = events.into_iter().take(fitting).map(|event| event.told(&app)).collect();
    Ok(Json(json!({ "events": events, "is_cut": is_cut, "floor": floor })))
}

/// The deletes and expiries that the change log remembers.
struct Deletes {
    /// Where the log began when they were read.
    floor: Revision,
    events: Vec<Event>,
    /// `false`: the time was over before.
    has_all: bool,
}

/// Reads until the time is over. `None`: the node is closed.
async fn deletes(app: &App, what: &What, until: Instant) -> Option<Deletes> {
    loop {
        let floor = app.node.status().store?.floor;
        let mut watch = app.node.watch_with(&what.prefix, WatchOptions::new().resume_from(floor));
        let mut events = Vec::new();
        let (mut read, mut latest) = (0, None);
        let has_all = loop {
            let Ok(event) = timeout_at(until, watch.next()).await else { break Some(false) };
            let gone = match event? {
                WatchEvent::Put(entry) => {
                    latest = latest.max(Some(entry.stamp()));
                    None
                }
                WatchEvent::Delete { key, revision, stamp, writer } => {
                    latest = latest.max(stamp);
                    let told = json!({
                        "event": "delete", "key": &key, "revision": revision,
                        "stamp": stamp.map(|stamp| stamp.to_string()), "time_ms": stamp.map(Stamp::wall_ms),
                        "writer": writer,
                    });
                    Some((key, told, stamp))
                }
                WatchEvent::Expired { key, revision } => {
                    let told = json!({ "event": "expired", "key": &key, "revision": revision });
                    Some((key, told, None))
                }
                WatchEvent::Current => break Some(true),
                // The log has forgotten deletes behind this floor.
                WatchEvent::Resync => break None,
                _ => None,
            };
            if let Some((key, told, stamp)) = gone
                && what.has(&key)
            {
                events.push(Event::Gone { told, since: stamp.or(latest), place: read });
            }
            read += 1;
            if read % EVENTS_PER_TURN == 0 {
                tokio::task::yield_now().await;
                if Instant::now() > until {
                    break Some(false);
                }
            }
        };
        let is_late = Instant::now() > until;
        if let Some(has_all) = has_all.or_else(|| is_late.then_some(false)) {
            return Some(Deletes { floor, events, has_all });
        }
    }
}
