//! The node and its cluster: `/v1/members`, `/v1/status`, `/healthz`, `/readyz`, and what an operator does to them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::members::ForgetError;
use tidings::{NodeStatus, PeerStatus};

use super::{ApiError, App, AppState, Ask, view};
use crate::commands::whole::remove_unlocked;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/members", get(members))
        .route("/v1/members/{name}", delete(forget))
        .route("/v1/seeds", post(join))
        .route("/v1/status", get(status))
        .route("/v1/snapshot", post(snapshot))
        .route("/v1/leave", post(leave))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
}

async fn members(State(app): AppState) -> Json<Value> {
    Json(json!({ "members": view::members(&app) }))
}

/// Forgets a member that is gone, on all nodes.
async fn forget(State(app): AppState, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    match app.node.forget(&name) {
        Ok(_) => Ok(Json(json!({ "forgotten": name }))),
        Err(ForgetError::Write(error)) => Err(error.into()),
        Err(error) => Err(ApiError::conflict("not_forgotten", error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seed {
    addr: String,
}

/// Adds a seed to the node, which dials it from now on.
async fn join(State(app): AppState, Ask(ask): Ask<Seed>) -> Result<Json<Value>, ApiError> {
    app.node.join(&ask.addr).map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(Json(json!({ "seed": ask.addr })))
}

async fn status(State(app): AppState) -> Json<Value> {
    Json(status_view(&app, &app.node.status()))
}

/// What the node says of itself, without its members.
pub(super) fn status_view(app: &App, status: &NodeStatus) -> Value {
    let mut view = json!({
        "name": status.name,
        "run": view::run(status.run),
        "addr": status.addr,
        "cluster": app.cluster,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_ms": app.started.elapsed().as_millis() as u64,
        "ready": app.monitor.is_ready(),
        "readiness": status.readiness,
        "busy": status.is_busy,
        "closed": status.is_closed,
        "peers": status.peers.iter().map(peer).collect::<Value>(),
        "rejected": rejected(status),
    });
    if let Some(store) = &status.store {
        view["store"] = json!({
            "root": format!("{:032x}", store.root),
            "vector_hash": format!("{:016x}", store.vector_hash),
            "entries": store.entries,
            "bytes": store.bytes,
            "size_bytes": store.size_bytes,
            "size_bytes_max": store.size_bytes_max,
            "origins": store.origins,
            "contexts": store.extra_contexts,
            "removals": store.removals,
            "sessions": store.sessions,
            "sync_bytes": store.traffic.bytes,
            "head": store.head,
            "durable": store.durable,
            "disk": disk(app, store.has_disk_failed),
            "clock_off_ms": store.clock_off.map(|off| u64::try_from(off.as_millis()).unwrap_or(u64::MAX)),
        });
    }
    view
}

/// What is not applied, each with its live value and its reason.
fn rejected(status: &NodeStatus) -> Value {
    let each = status.rejected.iter().flat_map(|(live, rejected)| rejected.iter().map(move |it| (live, it)));
    each.map(|(live, rejected)| json!({ "live": live, "reason": rejected.to_string() })).collect()
}

fn disk(app: &App, has_failed: bool) -> &'static str {
    match (&app.snapshots, has_failed) {
        (None, _) => "none",
        (Some(_), false) => "works",
        (Some(_), true) => "failed",
    }
}

fn peer(peer: &PeerStatus) -> Value {
    json!({
        "name": peer.name,
        "addr": peer.addr,
        "rtt_us": peer.rtt.as_micros() as u64,
        "lag_changes": peer.lag_changes,
        "lag_bytes": peer.lag_bytes,
        "sent_bytes": peer.sent_bytes,
    })
}

/// The process answers. A load balancer asks `/readyz` instead.
async fn health(State(app): AppState) -> Result<&'static str, ApiError> {
    if app.node.is_closed() {
        return Err(ApiError::unavailable("closed", "the node is closed"));
    }
    Ok("alive\n")
}

/// The node has caught up with its cluster, or is ready alone. It stays so when the cluster is lost: reads and writes go
/// on.
async fn ready(State(app): AppState) -> Result<&'static str, ApiError> {
    health(State(app.clone())).await?;
    if !app.monitor.is_ready() {
        return Err(ApiError::unavailable("not_ready", "this node has not synced with its cluster yet"));
    }
    Ok("ready\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotName {
    name: String,
}

/// Writes a snapshot into the folder `snapshots` of the data directory. Only its name is the client's to choose.
async fn snapshot(State(app): AppState, Ask(ask): Ask<SnapshotName>) -> Result<Json<Value>, ApiError> {
    let Some(folder) = &app.snapshots else {
        return Err(ApiError::bad_request("this node has no data directory, and so no place for snapshots"));
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    // Parts of snapshots have the names of temporary files.
    let is_reserved = ask.name.starts_with('.') || ask.name.strip_suffix(".tmp").is_some();
    if ask.name.is_empty() || is_reserved || !ask.name.chars().all(is_plain) {
        let error = "a snapshot's name is of letters, digits, '-', '_' and '.', does not begin with '.' and does not \
                     end with '.tmp'";
        return Err(ApiError::bad_request(error));
    }
    let nothing = "no snapshot was taken";
    let failed = |error: &dyn std::fmt::Display| ApiError::failed(error.to_string(), nothing);
    let mut folders = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folders, 0o700);
    folders.recursive(true).create(folder).map_err(|error| failed(&error))?;
    // Nobody else uses this folder: on a shared disk the locks of other machines might not be seen.
    remove_unlocked(folder, |name| name.as_encoded_bytes().ends_with(b".tmp"));
    let path = folder.join(&ask.name);
    app.node.snapshot(&path).await.map_err(|error| failed(&error))?;
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    Ok(Json(json!({ "path": path, "bytes": bytes })))
}

/// The node says good-bye for good, and its process ends.
async fn leave(State(app): AppState) -> Json<Value> {
    app.leaving.notify_one();
    Json(json!({ "leaving": app.node.name() }))
}
