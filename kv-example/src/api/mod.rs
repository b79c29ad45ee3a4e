//! The HTTP API of one node, through the library's public interface alone.

mod batch;
mod check;
mod cluster;
mod collections;
mod dash;
mod elections;
mod error;
mod flag_changes;
mod flag_edits;
mod flag_plans;
mod flag_sets;
mod flagd;
mod flags;
mod guard;
mod history;
mod kv;
mod listen;
mod metrics;
mod monitor;
mod ofrep;
mod page;
mod places;
mod settings;
pub(crate) mod tls;
mod view;
mod voters;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::routing::get;
use serde::de::DeserializeOwned;
use tidings::Node;
use tidings::flags::Flags;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub(crate) use elections::Elections;
pub(crate) use error::ApiError;
pub(crate) use flagd::routes as flagd_routes;
pub(crate) use guard::{Guard, Tokens};
pub(crate) use listen::{Protocol, serve};
pub(crate) use metrics::record as record_metrics;
pub(crate) use monitor::Monitor;
pub(crate) use ofrep::{Ofrep, Origins};
pub(crate) use places::ConnectionLimits;
pub(crate) use tls::Tls;
pub(crate) use view::ms;

use crate::schema::{Schemas, Verdict};

/// The longest that a request may ask to wait for others, or for the disk.
const WAIT_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it waits when it does not say.
const WAIT_TIME: Duration = Duration::from_secs(5);
/// Entries, elements or keys on one page of a listing, at most and unless the request says less.
pub(crate) const PAGE_ROWS_MAX: usize = 1_000;
/// Watches of whole changes at a time: each remembers all keys below its prefix.
const WHOLE_WATCHERS_MAX: usize = 16;
/// A page whose rows are computed, by checks or evaluations, ends after this time, however few rows it has.
const PAGE_TIME_MAX: Duration = Duration::from_secs(2);

/// What the API serves.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) node: Node,
    pub(crate) cluster: String,
    /// All nodes of this process: one, except in the demo.
    pub(crate) locals: Vec<Node>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) elections: Arc<Elections>,
    pub(crate) schemas: Schemas,
    pub(crate) flags: Flags,
    /// What stands before the keys of the flags.
    pub(crate) flags_prefix: String,
    pub(crate) ofrep: Ofrep,
    requests: metrics::Requests,
    /// Who may ask.
    pub(crate) guard: Guard,
    pub(crate) watchers_max: usize,
    pub(crate) watchers: Arc<Semaphore>,
    /// Those of them that are watches of whole changes.
    whole_watchers: Arc<Semaphore>,
    /// Where snapshots go; none without a disk.
    pub(crate) snapshots: Option<PathBuf>,
    /// Somebody asked this node to leave for good.
    pub(crate) leaving: Arc<Notify>,
    pub(crate) started: Instant,
    /// The demo's switchboard.
    pub(crate) demo: Option<Arc<crate::demo::Switchboard>>,
}

pub(crate) type AppState = axum::extract::State<Arc<App>>;

impl App {
    /// Serves a node alone. The prefix of the flags ends with a slash. With a data directory, a malformed flag keeps its
    /// last good definition over a restart.
    pub(crate) async fn new(
        node: &Node,
        cluster: &str,
        flags_prefix: &str,
        data_dir: Option<&std::path::Path>,
        watchers_max: usize,
    ) -> Self {
        let flags = Flags::builder(node, flags_prefix).report_usage();
        let flags = match data_dir {
            Some(dir) => flags.last_good(dir.join("flags.json")).start().await,
            None => flags.start().await,
        };
        let flags = flags.expect("usage has keys beside such a prefix");
        Self {
            monitor: Monitor::start(node),
            elections: Arc::default(),
            schemas: Schemas::default(),
            ofrep: Ofrep::new(&flags),
            flags,
            flags_prefix: flags_prefix.to_owned(),
            requests: metrics::Requests::default(),
            guard: Guard::default(),
            locals: vec![node.clone()],
            node: node.clone(),
            cluster: cluster.to_owned(),
            watchers_max,
            watchers: Arc::new(Semaphore::new(watchers_max)),
            whole_watchers: Arc::new(Semaphore::new(WHOLE_WATCHERS_MAX)),
            snapshots: data_dir.map(|dir| dir.join("snapshots")),
            leaving: Arc::new(Notify::new()),
            started: Instant::now(),
            demo: None,
        }
    }

    /// Compares a value with the schema that is for its key. Without one it costs some look-ups; with one it may take a
    /// while, in which other tasks go on.
    fn check(&self, key: &str, value: &[u8]) -> Verdict {
        tokio::task::block_in_place(|| self.schemas.check(&self.node, key, value))
    }

    /// Refuses a value that does not satisfy its schema, or is a malformed definition of a flag.
    fn check_value(&self, key: &str, value: &[u8]) -> Result<(), ApiError> {
        let verdict = self.check(key, value);
        if !verdict.is_good() {
            return Err(ApiError::schema(key, verdict));
        }
        self.check_put(key, value)
    }

    /// A place for one more stream.
    fn watcher(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = self.watchers.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::too_many_watchers(self.watchers_max))
    }

    /// A place for one more watch of whole changes.
    fn whole_watcher(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = self.whole_watchers.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::too_many_whole_watchers(WHOLE_WATCHERS_MAX))
    }
}

/// The routes of one node.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/", get(page::page))
        .merge(kv::routes())
        .merge(check::routes())
        .merge(batch::routes())
        .merge(history::routes())
        .merge(collections::routes())
        .merge(watch::routes())
        .merge(cluster::routes())
        .merge(elections::routes())
        .merge(voters::routes())
        .merge(settings::routes())
        .merge(flag_changes::routes())
        .merge(flag_edits::routes())
        .merge(flag_plans::routes())
        .merge(flags::routes())
        .merge(dash::routes())
        .merge(ofrep::routes(app.guard.origins()))
        .merge(metrics::routes());
    let routes = if app.demo.is_some() { routes.merge(crate::demo::routes()) } else { routes };
    routes
        .fallback(async || ApiError::no_such_path())
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(axum::middleware::from_fn_with_state(app.clone(), metrics::measure))
        .with_state(app)
}

/// The query of a request; a field that is not known is an error that names it.
struct Ask<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Ask<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// The variable parts of a path.
struct At<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// The rows of a page, of which one more than fits was read to learn whether there is another.
fn page_of<T>(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let is_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| is_more).map(key);
    (rows, next)
}

fn page_limit(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit {
        None => Ok(PAGE_ROWS_MAX),
        Some(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(ApiError::bad_request(format!("limit is {limit}, permitted: 1 to {PAGE_ROWS_MAX}")))
        }
    }
}
