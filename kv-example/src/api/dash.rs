//! The dashboard's stream: `/v1/dash`. At most ten messages of each kind a second, whatever happens.
//!
//! Keys come as a watch tells them, in batches, resumable like any watch. What is said about the node is said whole
//! each time, and short histories follow with cursors. A page that reads slowly is told less, never wrong.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::FutureExt;
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Entry, Node, Stamp, Watch, WatchEvent, WatchOptions};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};

use super::monitor::{Viewed, Viewer};
use super::watch::{HEARTBEAT_INTERVAL, resume_from};
use super::{ApiError, App, AppState, Ask, cluster, settings, view, voters};

/// Between two batches.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);
/// What the node says of itself comes with every so manieth batch.
const STATUS_FRAMES: u64 = 5;
/// Keys in one batch.
const FRAME_KEYS_MAX: usize = 1_000;
/// Keys that a page shows; of a larger store it is told these, and to ask for a prefix.
const PAGE_KEYS_MAX: usize = 50_000;
/// Characters of a value that are shown in the list.
const PREVIEW_CHARS_MAX: usize = 120;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/dash", get(dash))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    #[serde(default)]
    prefix: String,
}

async fn dash(
    State(app): AppState,
    Ask(what): Ask<What>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let from = resume_from(&headers, None)?;
    let permit = app.watcher()?;
    let options = from.map_or_else(WatchOptions::new, |from| WatchOptions::new().resume_from(from));
    let watch = app.node.watch_with(&what.prefix, options);
    let view = Dashboard::new(app, watch, from.is_none(), permit);
    let events = stream::unfold(view, |mut view| async move {
        let event = view.next().await?;
        Some((Ok(event), view))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT_INTERVAL)))
}

/// One page that is open somewhere.
struct Dashboard {
    app: Arc<App>,
    watch: Watch,
    /// The current values are being told, so many of them so far.
    initial: Option<usize>,
    /// The page has to forget what it shows.
    is_reset: bool,
    viewed: Viewed,
    frames: Interval,
    frame: u64,
    /// There is more to be told at once.
    is_behind: bool,
    ready: VecDeque<Event>,
    _viewer: Viewer,
    _permit: OwnedSemaphorePermit,
}

impl Dashboard {
    fn new(app: Arc<App>, watch: Watch, is_new: bool, permit: OwnedSemaphorePermit) -> Self {
        let mut frames = tokio::time::interval(FRAME_INTERVAL);
        frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            watch,
            initial: is_new.then_some(0),
            is_reset: is_new,
            viewed: Viewed::default(),
            frames,
            frame: 0,
            is_behind: false,
            ready: VecDeque::new(),
            _viewer: app.monitor.view(),
            _permit: permit,
            app,
        }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if !self.is_behind {
                self.frames.tick().await;
            }
            if self.frame.is_multiple_of(STATUS_FRAMES) {
                self.push("status", &status(&self.app));
            }
            self.frame += 1;
            if let Some(news) = self.app.monitor.news(&mut self.viewed) {
                self.push("news", &news);
            }
            self.read_keys()?;
        }
    }

    fn push(&mut self, name: &str, data: &Value) {
        self.ready.push_back(Event::default().event(name).data(data.to_string()));
    }

    /// Reads what the watch has, up to one batch. None once the node is closed.
    fn read_keys(&mut self) -> Option<()> {
        let (mut rows, mut gone) = (Vec::new(), BTreeMap::new());
        let mut last = None;
        let (mut is_current, mut is_cut) = (false, false);
        self.is_behind = true;
        for _ in 0..FRAME_KEYS_MAX {
            let Some(event) = self.watch.next().now_or_never() else {
                self.is_behind = false;
                break;
            };
            let event = event?;
            last = event.revision().or(last);
            match event {
                WatchEvent::Put(entry) => {
                    // The page takes what is gone away last.
                    gone.remove(entry.key());
                    let told = self.initial.as_mut().map(|told| {
                        *told += 1;
                        *told
                    });
                    is_cut |= told.is_some_and(|told| told > PAGE_KEYS_MAX);
                    if !is_cut {
                        rows.push(row(&self.app, &entry));
                    }
                }
                WatchEvent::Delete { key, stamp, writer, .. } => {
                    let time = stamp.map(Stamp::wall_ms);
                    gone.insert(key, json!({ "t": time, "w": writer }));
                }
                WatchEvent::Expired { key, .. } => _ = gone.insert(key, json!({ "expired": true })),
                WatchEvent::Current => {
                    is_current = true;
                    self.initial = None;
                }
                WatchEvent::Resync => {
                    self.is_reset = true;
                    self.initial = Some(0);
                    rows.clear();
                    gone.clear();
                }
                _ => {}
            }
        }
        let is_reset = std::mem::take(&mut self.is_reset);
        if rows.is_empty() && gone.is_empty() && !is_current && !is_reset && !is_cut {
            return Some(());
        }
        let batch = json!({
            "reset": is_reset, "current": is_current, "cut": is_cut, "keys_max": PAGE_KEYS_MAX,
            "rows": rows, "gone": gone,
        });
        let event = Event::default().event("keys").data(batch.to_string());
        self.ready.push_back(match last {
            Some(revision) => event.id(revision.to_string()),
            None => event,
        });
        Some(())
    }
}

/// A key as the list shows it, with short names because there are many.
fn row(app: &App, entry: &Entry) -> Value {
    let mut row = cell(app, entry);
    row["k"] = entry.key().into();
    row["n"] = entry.value().len().into();
    if let Some(at) = entry.expires_at() {
        row["x"] = view::ms(at).into();
    }
    if entry.is_ephemeral() {
        row["e"] = true.into();
    }
    let losers: Vec<Value> = entry.conflicts().map(|loser| cell(app, &loser)).collect();
    if !losers.is_empty() {
        row["c"] = losers.into();
    }
    row
}

fn cell(app: &App, entry: &Entry) -> Value {
    let text = String::from_utf8_lossy(entry.value());
    let preview: String = text.chars().take(PREVIEW_CHARS_MAX).collect();
    let writer = app.monitor.writer(entry.origin());
    let writer = writer.unwrap_or_else(|| format!("run {:04x}…", entry.origin().number() >> 48));
    json!({ "v": preview, "t": entry.stamp().wall_ms(), "w": writer })
}

fn status(app: &App) -> Value {
    let mut status = cluster::status_view(app, &app.node.status());
    status["now_ms"] = view::ms(std::time::SystemTime::now()).into();
    status["members"] = view::members(app);
    status["links"] = app.locals.iter().flat_map(links).collect();
    status["locals"] = app.locals.iter().map(local).collect();
    status["voters"] = voters::view(&app.node.voters());
    status["settings"] = settings::view(app, &app.node.cluster_settings());
    status["forgotten"] = app.monitor.forgotten().into();
    status["elections"] = app.elections.view(app);
    if let Some(demo) = &app.demo {
        status["demo"] = json!({ "cut": demo.cut_off() });
    }
    status
}

fn links(node: &Node) -> Vec<Value> {
    let link = |peer: tidings::PeerStatus| {
        json!({
            "from": node.name(), "to": peer.name, "rtt_us": peer.rtt.as_micros() as u64,
            "lag_changes": peer.lag_changes, "lag_bytes": peer.lag_bytes,
        })
    };
    node.status().peers.into_iter().map(link).collect()
}

fn local(node: &Node) -> Value {
    let store = node.status().store;
    json!({
        "name": node.name(),
        "root": store.map(|store| format!("{:032x}", store.root)),
        "entries": store.map(|store| store.entries),
    })
}
