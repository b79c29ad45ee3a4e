//! Keys: `/v1/kv`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Query, RawPathParams, Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{OnlyIf, PutOptions, Quorum, Receipt, Stamp};

use super::{ApiError, App, AppState, Ask, At, WAIT_TIME, WAIT_TIME_MAX, page_limit, page_of, view};
use crate::span;

const STAMP: HeaderName = HeaderName::from_static("x-tidings-stamp");
const ORIGIN: HeaderName = HeaderName::from_static("x-tidings-origin");
const EXPIRES_MS: HeaderName = HeaderName::from_static("x-tidings-expires-ms");
const EPHEMERAL: HeaderName = HeaderName::from_static("x-tidings-ephemeral");
const CONFLICTS: HeaderName = HeaderName::from_static("x-tidings-conflicts");
const IF_REVISION: HeaderName = HeaderName::from_static("x-tidings-if-revision");

/// A page with values ends with the row that makes it as large as this.
pub(super) const PAGE_BYTES_TARGET: usize = 4 << 20;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/kv", get(list)).route("/v1/kv/{*key}", get(read).put(write).delete(delete))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(default)]
    meta: bool,
}

/// The value as it is, or with `?meta=true` everything about it as JSON.
///
/// This is what clients do most: the request is looked at as it is, nothing is copied but the value.
async fn read(
    State(app): AppState,
    path: RawPathParams,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let key = path.iter().next().map_or("", |(_, key)| key);
    let entry = app.node.get(key).ok_or_else(|| ApiError::not_found(format!("no key \"{key}\"")))?;
    if request.uri().query().is_some() {
        let ask = Query::<Read>::try_from_uri(request.uri());
        if ask.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?.meta {
            return Ok(Json(view::entry_whole(&app, &entry)).into_response());
        }
    }
    // A stamp is written as its clock and its origin.
    let etag = format!("\"{}\"", entry.stamp());
    let stamp = &etag[1..etag.len() - 1];
    let origin = stamp.split_once('-').map_or(stamp, |(_, origin)| origin);
    let known = request.headers().get(IF_NONE_MATCH);
    let mut response = if known.is_some_and(|known| known == etag.as_str() || known == "*") {
        let mut unchanged = Response::new(Body::empty());
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        Response::new(Body::from(Bytes::copy_from_slice(entry.value())))
    };
    let headers = response.headers_mut();
    let text = |text: &str| HeaderValue::from_str(text).expect("digits and letters");
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ETAG, text(&etag));
    headers.insert(STAMP, text(stamp));
    headers.insert(ORIGIN, text(origin));
    if let Some(at) = entry.expires_at() {
        headers.insert(EXPIRES_MS, HeaderValue::from(view::ms(at)));
    }
    if entry.is_ephemeral() {
        headers.insert(EPHEMERAL, HeaderValue::from_static("true"));
    }
    let conflicts = entry.conflicts().count();
    if conflicts > 0 {
        headers.insert(CONFLICTS, HeaderValue::from(conflicts));
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    values: bool,
}

/// Entries in key order, page by page: `next` of one page is `after` of the following.
async fn list(State(app): AppState, Ask(ask): Ask<List>) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(ask.limit)?;
    let rows = app.node.scan_page(&ask.prefix, ask.after.as_deref(), limit + 1);
    // An answer is built in memory, and has to arrive in a time.
    let limit = if ask.values {
        limit.min(rows_of_values(rows.iter().map(|entry| entry.value().len())))
    } else {
        limit
    };
    let (rows, next) = page_of(rows, limit, |entry| entry.key().to_owned());
    let entries: Vec<Value> = rows.iter().map(|entry| view::entry(&app, entry, ask.values)).collect();
    Ok(Json(json!({ "entries": entries, "next": next })))
}

/// How many rows make a page with values of these sizes: one at least.
pub(super) fn rows_of_values(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |size: &usize| {
        let fits = bytes < PAGE_BYTES_TARGET;
        bytes += size;
        fits
    };
    sizes.take_while(fits).count().max(1)
}

/// What a write asks for beyond itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wants {
    ttl: Option<String>,
    /// Instead of a time to live: when the value expires, in milliseconds since 1970, as a read told it.
    expires_ms: Option<u64>,
    #[serde(default)]
    ephemeral: bool,
    wait: Option<String>,
    #[serde(default)]
    durable: bool,
    timeout: Option<String>,
    /// Writes what does not satisfy its schema, and malformed definitions of flags.
    #[serde(default)]
    pub(super) force: bool,
    /// For counters alone.
    pub(super) by: Option<i64>,
}

/// What a write waits for, checked before it is done.
pub(super) struct Wait {
    quorum: Option<Quorum>,
    is_durable: bool,
    time: Duration,
}

impl Wants {
    pub(super) fn wait(&self) -> Result<Wait, ApiError> {
        let quorum = match self.wait.as_deref() {
            None => None,
            Some("majority") => Some(Quorum::Majority),
            Some("all") => Some(Quorum::All),
            Some(text) => {
                let form = |_: std::num::ParseIntError| {
                    format!("wait is \"{text}\", permitted: majority, all, or a number of nodes")
                };
                Some(Quorum::Count(text.parse().map_err(form).map_err(ApiError::bad_request)?))
            }
        };
        let time = self.timeout.as_deref().map(span::parse).transpose().map_err(ApiError::bad_request)?;
        let time = time.unwrap_or(WAIT_TIME);
        if time > WAIT_TIME_MAX {
            let error =
                format!("timeout is {}, permitted: up to {}", span::show(time), span::show(WAIT_TIME_MAX));
            return Err(ApiError::bad_request(error));
        }
        Ok(Wait { quorum, is_durable: self.durable, time })
    }

    /// Refuses what makes sense for values of keys alone.
    pub(super) fn without_force(&self) -> Result<(), ApiError> {
        if self.force {
            return Err(ApiError::bad_request("force is for values of keys that are put"));
        }
        Ok(())
    }

    /// Refuses what makes sense for what is put alone.
    pub(super) fn without_ttl(&self) -> Result<(), ApiError> {
        if self.ttl.is_none() && self.expires_ms.is_none() && !self.ephemeral {
            return Ok(());
        }
        let error = "ttl, expires_ms and ephemeral are for keys and for elements of sets that are put";
        Err(ApiError::bad_request(error))
    }

    /// How the node puts a value.
    pub(super) fn options(&self) -> Result<PutOptions, ApiError> {
        let mut options = PutOptions::new();
        match (&self.ttl, self.expires_ms) {
            (None, None) => {}
            (Some(ttl), None) => options = options.ttl(span::parse(ttl).map_err(ApiError::bad_request)?),
            (None, Some(at)) => {
                let left = at.saturating_sub(view::ms(SystemTime::now()));
                if left == 0 {
                    return Err(ApiError::conflict("expired", "the value would have expired already"));
                }
                options = options.ttl(Duration::from_millis(left));
            }
            (Some(_), Some(_)) => return Err(ApiError::bad_request("give ttl or expires_ms, not both")),
        }
        Ok(if self.ephemeral { options.ephemeral() } else { options })
    }

    pub(super) fn without_by(&self) -> Result<(), ApiError> {
        match self.by {
            None => Ok(()),
            Some(_) => Err(ApiError::bad_request("by is for counters")),
        }
    }
}

impl Wait {
    /// Waits as asked, and tells what is known of the write then.
    pub(super) async fn done(&self, receipt: &Receipt) -> Result<Json<Value>, ApiError> {
        let started = Instant::now();
        if self.is_durable {
            let waited = tokio::time::timeout(self.time, receipt.durable()).await;
            let late = |_| ApiError::unconfirmed_disk(receipt);
            waited.map_err(late)?.map_err(|error| ApiError::unconfirmed(&error, receipt))?;
        }
        if let Some(quorum) = self.quorum {
            let left = self.time.saturating_sub(started.elapsed());
            let seen = receipt.seen_by(quorum, left).await;
            seen.map_err(|error| ApiError::unconfirmed(&error, receipt))?;
        }
        Ok(Json(json!({
            "stamp": receipt.stamp().map(|stamp| stamp.to_string()),
            "revision": receipt.revision(),
            "durable": self.is_durable,
        })))
    }
}

/// What `If-Match`, `If-None-Match` and `X-Tidings-If-Revision` say. The comparison is made on this node, against what it
/// holds: it is no agreement of the whole cluster.
fn condition(headers: &HeaderMap) -> Result<Option<OnlyIf>, ApiError> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    match (text(IF_MATCH), text(IF_NONE_MATCH), text(IF_REVISION)) {
        (None, None, None) => Ok(None),
        (None, Some("*"), None) => Ok(Some(OnlyIf::Absent)),
        (Some(etag), None, None) => {
            let stamp = etag.trim().trim_matches('"').parse::<Stamp>();
            let form = || ApiError::bad_request("If-Match takes the ETag of a read: \"<stamp>\"");
            stamp.map(|stamp| Some(OnlyIf::Stamp(stamp))).map_err(|_| form())
        }
        (None, None, Some(revision)) => {
            let form = || ApiError::bad_request("X-Tidings-If-Revision takes the revision of a read");
            revision.trim().parse().map(|revision| Some(OnlyIf::Revision(revision))).map_err(|_| form())
        }
        _ => {
            let error =
                "give one of If-Match: \"<stamp>\", If-None-Match: * and X-Tidings-If-Revision: <revision>";
            Err(ApiError::bad_request(error))
        }
    }
}

/// The value in the body of a request, at most as large as the node takes now: the limit changes while it runs.
pub(super) struct ValueBody(pub(super) Bytes);

impl FromRequest<Arc<App>> for ValueBody {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let bytes_max = app.node.config().value_bytes_max;
        DefaultBodyLimit::max(bytes_max).apply(&mut request);
        match Bytes::from_request(request, app).await {
            Ok(value) => Ok(Self(value)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large(bytes_max))
            }
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

async fn write(
    State(app): AppState,
    At(key): At<String>,
    Ask(wants): Ask<Wants>,
    headers: HeaderMap,
    ValueBody(value): ValueBody,
) -> Result<impl IntoResponse, ApiError> {
    wants.without_by()?;
    let wait = wants.wait()?;
    if !wants.force {
        app.check_value(&key, &value)?;
    }
    let mut options = wants.options()?;
    if let Some(only_if) = condition(&headers)? {
        options = options.only_if(only_if);
    }
    let receipt = app.node.put_with(&key, &value, options)?;
    let body = wait.done(&receipt).await?;
    let etag = receipt.stamp().map(|stamp| format!("\"{stamp}\"")).unwrap_or_default();
    Ok(([(ETAG, etag)], body))
}

async fn delete(
    State(app): AppState,
    At(key): At<String>,
    Ask(wants): Ask<Wants>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    wants.without_ttl()?;
    wants.without_by()?;
    wants.without_force()?;
    let wait = wants.wait()?;
    let receipt = match condition(&headers)? {
        None => app.node.delete(&key)?,
        Some(OnlyIf::Absent) => {
            return Err(ApiError::bad_request(
                "a key without a value cannot be deleted; give If-Match: \"<stamp>\"",
            ));
        }
        Some(only_if) => app.node.delete_if(&key, only_if)?,
    };
    if receipt.stamp().is_none() {
        return Err(ApiError::not_found(format!("no key \"{key}\"")));
    }
    wait.done(&receipt).await
}
