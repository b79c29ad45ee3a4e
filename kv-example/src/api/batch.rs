//! Several writes in one step of this node, all or none: `/v1/batch`.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tidings::{OnlyIf, PutOptions, Revision, Stamp};

use super::kv::Wants;
use super::{ApiError, App, AppState, Ask};

/// The largest body of a batch.
const BATCH_BYTES_MAX: usize = 32 << 20;

pub(super) fn routes() -> Router<Arc<App>> {
    let batch = post(write).layer(DefaultBodyLimit::max(BATCH_BYTES_MAX));
    Router::new().route("/v1/batch", batch)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    writes: Vec<Write>,
    unchanged: Option<Unchanged>,
}

/// Nothing below the prefix may have changed since this node's head was at the revision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchanged {
    prefix: String,
    since: Revision,
}

/// A put of a value, or a delete.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    put: Option<String>,
    delete: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    /// `absent`, or the stamp of the value that this node has to hold.
    only_if: Option<String>,
}

enum Parsed {
    Put(String, Vec<u8>, PutOptions),
    Delete(String, Option<OnlyIf>),
}

impl Write {
    fn parse(self) -> Result<Parsed, String> {
        let only_if = match self.only_if.as_deref() {
            None => None,
            Some("absent") => Some(OnlyIf::Absent),
            Some(text) => {
                let form = |_| format!("only_if is \"{text}\", permitted: absent, or a stamp");
                Some(OnlyIf::Stamp(text.parse::<Stamp>().map_err(form)?))
            }
        };
        match (self.put, self.delete, self.value, self.value_base64) {
            (Some(key), None, value, encoded) if value.is_some() != encoded.is_some() => {
                let decoded = encoded.map(|text| BASE64_STANDARD.decode(text)).transpose();
                let decoded = decoded.map_err(|error| format!("the value of \"{key}\": {error}"))?;
                let value = value.map(String::into_bytes).or(decoded).unwrap_or_default();
                let options = PutOptions::new();
                let options = if let Some(only_if) = only_if { options.only_if(only_if) } else { options };
                Ok(Parsed::Put(key, value, options))
            }
            (None, Some(key), None, None) => Ok(Parsed::Delete(key, only_if)),
            _ => Err("a write has put with value or value_base64, or delete".to_owned()),
        }
    }
}

/// Values are compared with the schemas as they stand before the batch.
async fn write(
    State(app): AppState,
    Ask(wants): Ask<Wants>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    wants.without_ttl()?;
    wants.without_by()?;
    let wait = wants.wait()?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::batch_too_large(BATCH_BYTES_MAX),
        _ => ApiError::bad_request(rejection.body_text()),
    })?;
    let batch: Batch = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("this is no batch: {error}")))?;
    let mut writes = app.node.batch();
    if let Some(Unchanged { prefix, since }) = batch.unchanged {
        writes = writes.unchanged_since(prefix, since);
    }
    for write in batch.writes {
        writes = match write.parse().map_err(ApiError::bad_request)? {
            Parsed::Delete(key, None) => writes.delete(key),
            Parsed::Delete(key, Some(only_if)) => writes.delete_if(key, only_if),
            Parsed::Put(key, value, options) => {
                if !wants.force {
                    app.check_value(&key, &value)?;
                }
                writes.put_with(key, value, options)
            }
        };
    }
    wait.done(&writes.commit()?).await
}
