//! The answers of the protocol, in its forms.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use tidings::flags::{Details, FlagValue, Metadata};

use crate::api::ApiError;
use crate::api::error::with_headers;

/// What the protocol says of one flag.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer<'a> {
    key: &'a str,
    #[serde(flatten)]
    found: Found<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Fields<'a>>,
}

#[derive(Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum Found<'a> {
    Value {
        /// None: the default of the program counts.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<&'a FlagValue>,
        reason: &'a str,
        /// Empty where the default of the program counts: there are clients that cannot do without the field.
        variant: &'a str,
    },
    Failure {
        error_code: &'static str,
        error_details: String,
    },
}

impl<'a> Answer<'a> {
    pub(super) fn new(key: &'a str, details: &'a Details<Option<FlagValue>>) -> Self {
        let found = match &details.error {
            Some(error) => Found::Failure { error_code: error.code(), error_details: error.to_string() },
            None => Found::Value {
                value: details.value.as_ref(),
                reason: details.reason.name(),
                variant: details.variant.as_deref().unwrap_or_default(),
            },
        };
        Self { key, found, metadata: (!details.metadata.is_empty()).then_some(Fields(&details.metadata)) }
    }
}

/// Metadata as an object.
struct Fields<'a>(&'a Metadata);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (&**name, value)))
    }
}

impl IntoResponse for Answer<'_> {
    fn into_response(self) -> Response {
        let status = match &self.found {
            Found::Value { .. } => StatusCode::OK,
            Found::Failure { error_code, .. } => status_of(error_code),
        };
        (status, Json(self)).into_response()
    }
}

fn status_of(code: &str) -> StatusCode {
    match code {
        "FLAG_NOT_FOUND" => StatusCode::NOT_FOUND,
        "PARSE_ERROR" | "INVALID_CONTEXT" => StatusCode::BAD_REQUEST,
        "PROVIDER_NOT_READY" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Why a question is not answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct Refusal {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    error_code: &'static str,
    error_details: String,
    #[serde(skip)]
    status: StatusCode,
}

impl Refusal {
    fn new(error_code: &'static str, error_details: impl Into<String>) -> Self {
        Self { key: None, error_code, error_details: error_details.into(), status: status_of(error_code) }
    }

    pub(super) fn context(details: impl Into<String>) -> Self {
        Self::new("INVALID_CONTEXT", details)
    }

    pub(super) fn selector(details: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, ..Self::new("GENERAL", details) }
    }

    pub(super) fn general(details: String) -> Self {
        Self::new("GENERAL", details)
    }

    pub(super) fn busy() -> Self {
        let details = "this node evaluates as many flags at a time as it can; ask again later";
        Self { status: StatusCode::TOO_MANY_REQUESTS, ..Self::new("GENERAL", details) }
    }

    pub(super) fn not_ready() -> Self {
        let details =
            "this node has not caught up with its cluster and knows no flag of the set yet; ask again later";
        Self::new("PROVIDER_NOT_READY", details)
    }

    pub(super) fn of_flag(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        with_headers((self.status, Json(&self)).into_response())
    }
}

/// A refusal that is not of the protocol, in its form: of the guard, or of what streams share with the rest of the API.
impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: error.status(), ..Self::new("GENERAL", error.text()) }
    }
}
