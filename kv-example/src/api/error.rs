//! Errors of the API: what went wrong, and what became of the state.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidings::settings::{ReconfigureError, SetSettingsError};
use tidings::voters::SetVotersError;
use tidings::{ElectionError, Receipt, WaitError, WriteError};

use crate::schema::{Fault, Verdict};

/// When to come back after a refusal that passes.
const RETRY_SECONDS: u64 = 1;

/// An error as it goes out: `{error, code, detail}`. `detail` says what became of the state.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    error: String,
    detail: String,
    /// The write that stands although something went wrong, or that stands in the way.
    stamp: Option<String>,
    /// What is wrong with a value, compared with its schema.
    verdict: Option<Box<Verdict>>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, error: impl Into<String>, detail: &str) -> Self {
        // The library's texts say it at their end, too.
        let mut error = error.into();
        if let Some(text) = error.strip_suffix(detail).and_then(|text| text.strip_suffix("; ")) {
            error.truncate(text.len());
        }
        Self { status, code, error, detail: detail.to_owned(), stamp: None, verdict: None }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong.
    pub(super) fn text(&self) -> &str {
        &self.error
    }

    pub(crate) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error, "nothing was written")
    }

    pub(crate) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error, "nothing was written")
    }

    pub(crate) fn conflict(code: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, error, "nothing was written")
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_path",
            "there is nothing at this path",
            "nothing was written",
        )
    }

    pub(crate) fn method() -> Self {
        let error = "this path does not take this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", error, "nothing was written")
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let error = format!("the value is over this node's limit of {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error, "nothing was written")
    }

    pub(crate) fn batch_too_large(bytes_max: usize) -> Self {
        let error = format!("the batch is over the limit of {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error, "nothing was written")
    }

    /// A value that does not satisfy its schema, or a schema that cannot be used.
    pub(crate) fn schema(key: &str, verdict: Verdict) -> Self {
        let error = match &verdict.schema {
            Some(schema) => format!("the value of \"{key}\" does not satisfy the schema \"{schema}\""),
            None => format!("the value of \"{key}\" is no schema that can be used"),
        };
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { verdict: Some(verdict.into()), ..Self::new(status, "schema", error, "nothing was written") }
    }

    /// Definitions of flags that are malformed, or that flagd's schema does not allow.
    pub(crate) fn definition(faults: Vec<Fault>) -> Self {
        let error = "the definition is not one that every implementation of flagd takes";
        let verdict = Verdict { schema: None, faults };
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self {
            verdict: Some(verdict.into()),
            ..Self::new(status, "definition", error, "nothing was written")
        }
    }

    /// A definition that is put as any value is, and that nothing could evaluate.
    pub(crate) fn malformed(key: &str, fault: Fault) -> Self {
        let error = format!("the value of \"{key}\" is no flag: {} (force writes it anyway)", fault.message);
        Self { error, ..Self::definition(vec![fault]) }
    }

    pub(crate) fn too_many_watchers(limit: usize) -> Self {
        let error = format!("this node already serves {limit} streams, its limit (--watchers-max)");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_watchers", error, "no stream was opened")
    }

    pub(crate) fn too_many_whole_watchers(limit: usize) -> Self {
        let error = format!("this node already serves {limit} watches of whole changes, its limit");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_watchers", error, "no stream was opened")
    }

    pub(crate) fn unauthorized() -> Self {
        let error = "a bearer token is required, and the request has none or a wrong one";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", error, "nothing was read or written")
    }

    pub(crate) fn foreign_page() -> Self {
        let error = "the request comes from another site, or to a host name that is not this machine";
        Self::new(StatusCode::FORBIDDEN, "foreign_page", error, "nothing was read or written")
    }

    pub(crate) fn forwarded() -> Self {
        let error = "the request comes through a proxy, and this node has no token (--token-file)";
        Self::new(StatusCode::FORBIDDEN, "forwarded", error, "nothing was read or written")
    }

    pub(crate) fn read_only() -> Self {
        let error = "this token is for reading alone (--read-token-file)";
        Self::new(StatusCode::FORBIDDEN, "read_only", error, "nothing was written")
    }

    pub(crate) fn too_many_connections() -> Self {
        let error = "this node serves as many connections as it may, in all (--connections-max) or from this address \
                     (--connections-per-address-max); only probes are answered";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            error,
            "nothing was read or written",
        )
    }

    pub(crate) fn unavailable(code: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error, "nothing was written")
    }

    pub(crate) fn failed(error: impl Into<String>, detail: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error, detail)
    }

    /// A wait that ended without what it waited for. The write itself stands.
    pub(crate) fn unconfirmed(error: &WaitError, receipt: &Receipt) -> Self {
        let status = match error {
            WaitError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::standing(status, error.to_string(), receipt)
    }

    /// The disk was not done in time.
    pub(crate) fn unconfirmed_disk(receipt: &Receipt) -> Self {
        Self::standing(
            StatusCode::GATEWAY_TIMEOUT,
            "timed out: the write is not synced to this node's disk yet".to_owned(),
            receipt,
        )
    }

    fn standing(status: StatusCode, error: String, receipt: &Receipt) -> Self {
        let detail =
            "the write is in force on this node and is being sent to the others; only the wait has ended";
        let stamp = receipt.stamp().map(|stamp| stamp.to_string());
        Self { stamp, ..Self::new(status, "unconfirmed", error, detail) }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let (status, code) = match error {
            WriteError::KeyEmpty | WriteError::KeyTooLong { .. } => (StatusCode::BAD_REQUEST, "key"),
            WriteError::ValueTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            WriteError::Condition { .. } | WriteError::Changed { .. } => {
                (StatusCode::PRECONDITION_FAILED, "condition")
            }
            WriteError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            WriteError::CounterOverflow => (StatusCode::CONFLICT, "overflow"),
            WriteError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            WriteError::Clock { .. } => (StatusCode::SERVICE_UNAVAILABLE, "clock"),
            WriteError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "full"),
            WriteError::Disk => (StatusCode::INSUFFICIENT_STORAGE, "disk"),
            WriteError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "refused"),
        };
        let stamp = match error {
            WriteError::Condition { current } => current.map(|stamp| stamp.to_string()),
            _ => None,
        };
        Self { stamp, ..Self::new(status, code, error.to_string(), "nothing was written") }
    }
}

impl From<ElectionError> for ApiError {
    fn from(error: ElectionError) -> Self {
        let (status, code) = match error {
            ElectionError::NoVoters => (StatusCode::BAD_REQUEST, "no_voters"),
            ElectionError::Name { .. } | ElectionError::Value { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            ElectionError::Taken => (StatusCode::CONFLICT, "taken"),
            ElectionError::NoMajority { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_majority"),
            ElectionError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too_many_elections"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
        };
        Self::new(status, code, error.to_string(), "nothing is held")
    }
}

impl From<SetVotersError> for ApiError {
    fn from(error: SetVotersError) -> Self {
        let (status, code) = match error {
            SetVotersError::Write(error) => return error.into(),
            SetVotersError::Names(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            SetVotersError::NoVoters => (StatusCode::BAD_REQUEST, "no_voters"),
            SetVotersError::NoMajority { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_majority"),
            SetVotersError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            _ => (StatusCode::CONFLICT, "not_changed"),
        };
        Self::new(status, code, error.to_string(), "see `tidings voters` for the present list")
    }
}

impl From<SetSettingsError> for ApiError {
    fn from(error: SetSettingsError) -> Self {
        let (status, code) = match error {
            SetSettingsError::Write(error) => return error.into(),
            SetSettingsError::Range(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            SetSettingsError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            _ => (StatusCode::CONFLICT, "not_changed"),
        };
        Self::new(status, code, error.to_string(), "see `tidings settings` for the present settings")
    }
}

impl From<ReconfigureError> for ApiError {
    fn from(error: ReconfigureError) -> Self {
        let (status, code) = match error {
            ReconfigureError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            _ => (StatusCode::BAD_REQUEST, "bad_request"),
        };
        let told = match error {
            // The commands instead of the library's functions.
            ReconfigureError::Fixed { field, .. } => {
                let instead = match field {
                    "voters" => "`tidings voters`",
                    "on_corruption" => "a restart",
                    _ => "`tidings settings --set`",
                };
                format!("{field} cannot be changed for one running node: use {instead}; nothing was changed")
            }
            error => error.to_string(),
        };
        Self::new(status, code, told, "see `tidings reconfigure` for the present values")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.error, "code": self.code, "detail": self.detail });
        if let Some(stamp) = self.stamp {
            body["stamp"] = stamp.into();
        }
        if let Some(verdict) = &self.verdict {
            let view = verdict.view();
            (body["schema"], body["errors"]) = (view["schema"].clone(), view["errors"].clone());
        }
        with_headers((self.status, Json(body)).into_response())
    }
}

/// Adds what the status of a refusal calls for.
pub(super) fn with_headers(mut response: Response) -> Response {
    let (status, headers) = (response.status(), response.headers_mut());
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
