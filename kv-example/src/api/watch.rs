//! Changes as they happen: `/v1/watch`, as server-sent events.
//!
//! With `whole=true` an event has all that a batch has changed ([`whole`]). Otherwise it has one key, and each event
//! but `current` and `resync` has an id, from which the next stream goes on: `put`, `delete`, `expired`, and `begun`,
//! with which a stream without the current values begins.
//!
//! The stream is a follower of the change log like any other: it has no queue. A client that reads slowly makes the
//! socket full, the stream is not asked any more, and the watch skips what was overwritten meanwhile.

mod whole;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, KeepAliveStream, Sse};
use axum::routing::get;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tidings::{Revision, WatchEvent, WatchOptions};

use super::{ApiError, App, AppState, Ask, view};

/// A comment this often tells both sides that the other is there.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/watch", get(watch))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    prefix: Option<String>,
    key: Option<String>,
    set: Option<String>,
    from: Option<String>,
    current: Option<bool>,
    #[serde(default)]
    whole: bool,
}

/// A stream of events until the client has gone.
type Events = Sse<KeepAliveStream<BoxStream<'static, Result<Event, Infallible>>>>;

fn kept_alive(events: BoxStream<'static, Result<Event, Infallible>>) -> Events {
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT_INTERVAL))
}

/// Where a client wants to go on: what its browser remembers, or what it says.
pub(super) fn resume_from(headers: &HeaderMap, from: Option<&str>) -> Result<Option<Revision>, ApiError> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).filter(|id| !id.is_empty());
    let parse = |text: &str| {
        text.parse().map_err(|_| ApiError::bad_request(format!("\"{text}\" is not the id of an event")))
    };
    last.or(from).map(parse).transpose()
}

async fn watch(State(app): AppState, Ask(what): Ask<What>, headers: HeaderMap) -> Result<Events, ApiError> {
    if what.whole {
        return Ok(kept_alive(whole::events(app, what)?));
    }
    let from = resume_from(&headers, what.from.as_deref())?;
    let permit = app.watcher()?;
    // Before the watch begins: what is told of the time between is told twice, never not at all.
    let head = app.node.status().store.map(|store| store.head);
    let skips_current = what.current == Some(false);
    let mut options = WatchOptions::new();
    if skips_current {
        options = options.without_current();
    }
    if let Some(from) = from {
        options = options.resume_from(from);
    }
    let watch = match (what.prefix, what.key, what.set) {
        (prefix, None, None) => app.node.watch_with(prefix.unwrap_or_default(), options),
        (None, Some(key), None) => app.node.watch_with(key, options.exact()),
        (None, None, Some(set)) => app.node.set(set).watch_with(options),
        _ => return Err(ApiError::bad_request("give one of prefix, key and set")),
    };
    // Otherwise a client that loses such a stream before its first change would not know where to go on.
    let begun = head.filter(|_| skips_current && from.is_none());
    let begun = begun.map(|head| Ok(Event::default().event("begun").data("{}").id(head.to_string())));
    let events = stream::unfold((app, watch, permit), |(app, mut watch, permit)| async move {
        let event = watch.next().await?;
        let told = told(&app, &event);
        Some((Ok(told), (app, watch, permit)))
    });
    Ok(kept_alive(stream::iter(begun).chain(events).boxed()))
}

fn told(app: &App, event: &WatchEvent) -> Event {
    let (name, data) = match event {
        WatchEvent::Put(entry) => ("put", view::entry(app, entry, true)),
        WatchEvent::Delete { key, revision, stamp, writer } => (
            "delete",
            json!({ "key": key, "revision": revision, "stamp": stamp.map(|stamp| stamp.to_string()), "writer": writer }),
        ),
        WatchEvent::Expired { key, revision } => ("expired", json!({ "key": key, "revision": revision })),
        WatchEvent::Current => ("current", json!({})),
        WatchEvent::Resync => ("resync", json!({})),
        _ => ("unknown", json!({})),
    };
    let told = Event::default().event(name).data(data.to_string());
    match event.revision() {
        Some(revision) => told.id(revision.to_string()),
        None => told,
    }
}
