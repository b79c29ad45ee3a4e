//! Elections: `/v1/elections`. A campaign is a stream: while it is open, the node holds the lease for its client, and
//! when it ends, the lease is given up.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Leader, LeaderEvent, Leadership, Node};
use tokio::sync::OwnedSemaphorePermit;

use super::watch::HEARTBEAT_INTERVAL;
use super::{ApiError, App, AppState, Ask, At, Monitor};

/// Elections that a node shows.
const ELECTIONS_MAX: usize = 16;
/// How often a client is told that its lease goes on.
const HELD_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/elections", get(list))
        .route("/v1/elections/{name}", get(leader))
        .route("/v1/elections/{name}/watch", get(watch))
        .route("/v1/elections/{name}/campaign", post(campaign))
}

/// The elections that this node was asked about, and who leads.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    known: Mutex<BTreeMap<String, Option<Leader>>>,
}

impl Elections {
    /// Shows an election from now on.
    pub(crate) fn show(self: &Arc<Self>, node: &Node, monitor: &Arc<Monitor>, name: &str) {
        let mut known = self.known.lock().expect("nothing panics with it");
        if known.len() == ELECTIONS_MAX || known.contains_key(name) {
            return;
        }
        let Ok(mut observer) = node.election(name).observe() else { return };
        known.insert(name.to_owned(), None);
        drop(known);
        let (elections, monitor, name) = (self.clone(), monitor.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Some(event) = observer.next().await {
                let leader = leader_of(event);
                monitor.tell(
                    "leader",
                    match &leader {
                        Some(leader) => format!("{} leads {name}", String::from_utf8_lossy(&leader.value)),
                        None => format!("nobody leads {name}"),
                    },
                );
                elections.known.lock().expect("nothing panics with it").insert(name.clone(), leader);
            }
        });
    }

    pub(super) fn view(&self, app: &App) -> Value {
        let known = self.known.lock().expect("nothing panics with it").clone();
        known.iter().map(|(name, leader)| view(app, name, leader.as_ref())).collect()
    }
}

fn leader_of(event: LeaderEvent) -> Option<Leader> {
    match event {
        LeaderEvent::Leads(leader) => Some(leader),
        LeaderEvent::Vacant => None,
    }
}

fn view(app: &App, name: &str, leader: Option<&Leader>) -> Value {
    json!({
        "name": name,
        "leader": leader.map(|leader| String::from_utf8_lossy(&leader.value)),
        "token": leader.map(|leader| leader.token.to_string()),
        "node": leader.and_then(|leader| app.monitor.writer(leader.token.origin())),
    })
}

async fn list(State(app): AppState) -> Json<Value> {
    Json(json!({ "elections": app.elections.view(&app) }))
}

/// Who leads, as a majority of the voters says now.
async fn leader(State(app): AppState, At(name): At<String>) -> Result<Json<Value>, ApiError> {
    let leader = app.node.election(&name).leader().await?;
    match leader {
        Some(leader) => Ok(Json(view(&app, &name, Some(&leader)))),
        None => Err(ApiError::not_found(format!("nobody leads \"{name}\""))),
    }
}

async fn watch(
    State(app): AppState,
    At(name): At<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let permit = app.watcher()?;
    let observer = app.node.election(&name).observe()?;
    app.elections.show(&app.node, &app.monitor, &name);
    let events =
        stream::unfold((app, name, observer, permit), |(app, name, mut observer, permit)| async move {
            let leader = leader_of(observer.next().await?);
            let event = if leader.is_some() { "leader" } else { "nobody" };
            let told = Event::default().event(event).data(view(&app, &name, leader.as_ref()).to_string());
            Some((Ok(told), (app, name, observer, permit)))
        });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT_INTERVAL)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bid {
    #[serde(default)]
    value: String,
    /// Do not wait for the holder of the lease.
    #[serde(default)]
    once: bool,
}

/// A client's campaign, and then its lease.
struct Campaign {
    app: Arc<App>,
    name: String,
    value: String,
    lead: Option<Leadership>,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

async fn campaign(
    State(app): AppState,
    At(name): At<String>,
    Ask(bid): Ask<Bid>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let permit = app.watcher()?;
    // So that what is wrong with it is told at once, and not by a stream.
    drop(app.node.election(&name).observe()?);
    let lead = if bid.once { Some(app.node.election(&name).try_campaign(&bid.value).await?) } else { None };
    app.elections.show(&app.node, &app.monitor, &name);
    let campaign = Campaign { app, name, value: bid.value, lead, is_over: false, _permit: permit };
    let events = stream::unfold((campaign, true), |(mut campaign, is_first)| async move {
        let event = campaign.next(is_first).await?;
        // Of a campaign that waits, the first event says so; the next one is its victory.
        let still_first = campaign.lead.is_none();
        Some((Ok(event), (campaign, still_first)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT_INTERVAL)))
}

impl Campaign {
    /// `elected`, then `held` again and again, then `lost`, and nothing more.
    async fn next(&mut self, is_first: bool) -> Option<Event> {
        if self.is_over {
            return None;
        }
        if self.lead.is_none() {
            let won = self.app.node.election(&self.name).campaign(&self.value).await;
            self.lead = Some(won.ok()?);
        }
        let lead = self.lead.as_ref().expect("just won");
        if !is_first {
            tokio::select! {
                () = lead.lost() => {}
                () = tokio::time::sleep(HELD_INTERVAL) => {}
            }
        }
        let left = lead.valid_until().saturating_duration_since(Instant::now());
        let name = match (lead.is_valid(), is_first) {
            (false, _) => "lost",
            (true, true) => "elected",
            (true, false) => "held",
        };
        self.is_over = name == "lost";
        let data = json!({ "token": lead.token().to_string(), "valid_ms": left.as_millis() as u64 });
        Some(Event::default().event(name).data(data.to_string()))
    }
}
