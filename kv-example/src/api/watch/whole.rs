//! `/v1/watch?prefix=…&whole=true`: all that each batch has changed, at once.
//!
//! The first item is everything below the prefix, the event `state`. Each later one, `change`, has everything that has
//! changed since the one before, as it was at one instant. An item whose values are large comes as several events, all
//! but the last of which say `more`: the reader applies them together. `waiting` says that the next item waits long for
//! the rest of a batch, once per item; a reader that does not know it may ignore it.
//!
//! Such a stream cannot be resumed, and its events have no ids: a further one begins with `state` again.

use std::convert::Infallible;
use std::iter;
use std::sync::Arc;
use std::time::Duration;
use std::vec::IntoIter;

use axum::response::sse::Event;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tidings::live::WholeLook;
use tokio::time::timeout;

use super::What;
use crate::api::kv::PAGE_BYTES_TARGET;
use crate::api::{ApiError, App, view};

/// How often a stream that has nothing to tell looks whether its watch waits for the rest of a batch.
const LATE_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes of JSON around a value, about.
const ENTRY_BYTES: usize = 400;

pub(super) fn events(
    app: Arc<App>,
    what: What,
) -> Result<BoxStream<'static, Result<Event, Infallible>>, ApiError> {
    let What { prefix: Some(prefix), key: None, set: None, from: None, current: None, whole: _ } = what
    else {
        return Err(ApiError::bad_request("whole=true takes a prefix, and nothing else"));
    };
    let permits = (app.watcher()?, app.whole_watcher()?);
    let watch = app.node.watch_whole(prefix);
    let items = stream::unfold((watch, "state", false), async |(mut watch, name, is_told)| {
        loop {
            match timeout(LATE_INTERVAL, watch.next()).await {
                Ok(look) => return Some((Some((name, look?)), (watch, "change", false))),
                Err(_) if watch.is_late() && !is_told => return Some((None, (watch, name, true))),
                Err(_) => {}
            }
        }
    });
    let events = items.flat_map(move |item| {
        _ = &permits;
        let Some((name, look)) = item else {
            return stream::iter(vec![Ok(Event::default().event("waiting").data("{}"))]).boxed();
        };
        stream::iter(parts(app.clone(), name, look).map(Ok)).boxed()
    });
    Ok(events.boxed())
}

/// The events of an item, each made when the one before has been taken.
fn parts(app: Arc<App>, name: &'static str, look: WholeLook) -> impl Iterator<Item = Event> {
    let WholeLook { entries, gone, revision, is_whole, .. } = look;
    let (mut entries, mut gone, mut is_over) = (entries.into_iter(), gone.into_iter(), false);
    iter::from_fn(move || {
        if is_over {
            return None;
        }
        let mut bytes = 0;
        let part = chunk(&mut entries, &mut bytes, |entry| entry.value().len() + ENTRY_BYTES);
        let part: Vec<Value> = part.iter().map(|entry| view::entry(&app, entry, true)).collect();
        let of_gone = chunk(&mut gone, &mut bytes, String::len);
        is_over = entries.len() + gone.len() == 0;
        let data = json!({
            "entries": part, "gone": of_gone, "revision": revision, "whole": is_whole, "more": !is_over,
        });
        Some(Event::default().event(name).data(data.to_string()))
    })
}

/// The next ones, until all of an event have as many bytes as a page of values.
fn chunk<T>(rest: &mut IntoIter<T>, bytes: &mut usize, size: impl Fn(&T) -> usize) -> Vec<T> {
    let fits = |one: &&T| {
        let fits = *bytes < PAGE_BYTES_TARGET;
        *bytes += size(one);
        fits
    };
    let count = rest.as_slice().iter().take_while(fits).count();
    rest.take(count).collect()
}
