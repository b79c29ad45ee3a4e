//! The voters: `/v1/voters`.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::voters::VoterList;

use super::{ApiError, App, AppState, Ask};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/voters", get(list).put(change))
}

async fn list(State(app): AppState) -> Json<Value> {
    Json(view(&app.node.voters()))
}

pub(super) fn view(list: &VoterList) -> Value {
    json!({ "epoch": list.epoch, "voters": list.voters, "next": list.next })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The names, with commas between them.
    names: String,
    /// Does not ask the present voters, because a majority of them is lost.
    #[serde(default)]
    force: bool,
}

/// Changes the voters, and answers when that is done.
async fn change(State(app): AppState, Ask(ask): Ask<Wanted>) -> Result<Json<Value>, ApiError> {
    let names = ask.names.split(',').map(str::trim).filter(|name| !name.is_empty());
    if ask.force {
        app.node.force_voters(names)?;
    } else {
        app.node.set_voters(names).await?;
    }
    Ok(list(State(app)).await)
}
