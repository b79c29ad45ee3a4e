//! Settings that change while the node runs: `/v1/settings`, which all nodes share, and `/v1/config`, those of this node.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tidings::settings::SettingsRecord;
use tidings::{Config, Stamp};

use super::{ApiError, App, AppState, view};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/settings", get(settings).patch(change_settings))
        .route("/v1/settings/rollback", post(roll_back))
        .route("/v1/config", get(config).patch(change_config))
}

async fn settings(State(app): AppState) -> Json<Value> {
    Json(view(&app, &app.node.cluster_settings()))
}

/// The shared settings and earlier ones, each with who put them in force and when, if anybody did.
pub(super) fn view(app: &App, record: &SettingsRecord) -> Value {
    let written = |stamp: Option<Stamp>| {
        stamp.map(|stamp| {
            json!({
                "time_ms": stamp.wall_ms(),
                "origin": view::run(stamp.origin()),
                "writer": app.monitor.writer(stamp.origin()),
            })
        })
    };
    let mut view = json!(record);
    view["written"] = json!(written(record.written));
    for (i, earlier) in record.earlier.iter().enumerate() {
        view["earlier"][i]["written"] = json!(written(earlier.written));
    }
    view
}

/// Changes some of the settings that all nodes share, and answers when that is done.
async fn change_settings(State(app): AppState, fields: Bytes) -> Result<Json<Value>, ApiError> {
    let settings = changed(&app.node.cluster_settings().present, &fields)?;
    app.node.set_cluster_settings(settings).await?;
    Ok(self::settings(State(app)).await)
}

/// Puts the shared settings back to the ones before.
async fn roll_back(State(app): AppState) -> Result<Json<Value>, ApiError> {
    app.node.roll_back_cluster_settings().await?;
    Ok(settings(State(app)).await)
}

async fn config(State(app): AppState) -> Json<Config> {
    Json(app.node.config())
}

/// Changes some intervals and limits of this node.
async fn change_config(State(app): AppState, fields: Bytes) -> Result<Json<Config>, ApiError> {
    let config = changed(&app.node.config(), &fields)?;
    app.node.reconfigure(config)?;
    Ok(Json(app.node.config()))
}

/// The same settings with the fields of a JSON object. An error names the field.
fn changed<T: Serialize + DeserializeOwned>(present: &T, fields: &[u8]) -> Result<T, ApiError> {
    let fields: Map<String, Value> =
        serde_json::from_slice(fields).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let read = |all: &Value| serde_json::from_value(all.clone());
    let mut all = serde_json::to_value(present).expect("settings are an object");
    let mut changed = read(&all).expect("it was written so");
    for (name, value) in fields {
        let Some(field) = all.get_mut(&name) else {
            return Err(ApiError::bad_request(format!("there is no setting \"{name}\"")));
        };
        *field = value;
        changed = read(&all).map_err(|error| {
            let told = error.to_string();
            ApiError::bad_request(if told.starts_with(&name) { told } else { format!("{name}: {told}") })
        })?;
    }
    Ok(changed)
}
