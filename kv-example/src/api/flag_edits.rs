//! Edits of feature flags: `/v1/flags/SET/FLAG/edit`. An edit changes one thing of a definition, and leaves everything
//! else in it as it is.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;
use tidings::OnlyIf;

use super::flag_changes::{Wants, apply, condition, no_flag, written};
use super::{ApiError, App, AppState, Ask, At};
use crate::flags::change::{self, Change};
use crate::flags::check_names;
use crate::flags::edit::Edit;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/flags/{set}/{flag}/edit", post(edit))
}

/// Edits the definition that this node holds.
async fn edit(
    State(app): AppState,
    At((set, flag)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
    body: Result<Json<Edit>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    check_names(&set, &flag).map_err(ApiError::bad_request)?;
    let Json(edit) =
        body.map_err(|error| ApiError::bad_request(format!("this is no edit: {}", error.body_text())))?;
    let key = app.flag_names().flag(&set, &flag);
    let entry = app.node.get(&key).ok_or_else(|| no_flag(&set, &flag))?;
    let definition = change::definition_of(&entry).filter(Value::is_object);
    let malformed = || ApiError::conflict("edit", format!("the definition of \"{flag}\" is no JSON object"));
    let edited = edit.apply(&definition.ok_or_else(malformed)?);
    let edited = edited.map_err(|error| ApiError::conflict("edit", error))?;
    // In any case only what was read here is replaced.
    let only_if = condition(wants.only_if.as_deref())?.or(Some(OnlyIf::Revision(entry.revision())));
    let change = Change { flag, definition: Some(edited), only_if };
    Ok(written(&apply(&app, &set, &[change], &wants)?))
}
