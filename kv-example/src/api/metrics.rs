//! `/metrics`: what the library and this program record, in the text form that Prometheus reads.
//!
//! Both record through the facade of the `metrics` crate, under the names that `docs/metrics.md` lists.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::{App, AppState, view};

/// The bounds of the buckets of all histograms, in seconds: from a local write to a wait that nearly fails.
const BUCKETS_SECONDS: [f64; 14] =
    [1e-6, 5e-6, 2e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Gauges that were not recorded for so long are forgotten: those of peers that are gone.
const IDLE_TIME_MAX: Duration = Duration::from_secs(600);
/// How often the recorder makes room in its histograms.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A metric: its name, its unit, and its meaning.
type Described = (&'static str, Unit, &'static str);

const GAUGES: [Described; 3] = [
    ("tidings_info", Unit::Count, "Who this is; always 1"),
    ("tidings_uptime_seconds", Unit::Seconds, "Since the start of the process"),
    ("tidings_http_streams", Unit::Count, "Event streams being served"),
];

const COUNTERS: [Described; 2] = [
    ("tidings_http_requests_total", Unit::Count, "Requests answered, by route and status"),
    (
        "tidings_http_refused_total",
        Unit::Count,
        "Requests refused before they had a route, by the error's code",
    ),
];

const HISTOGRAMS: [Described; 1] =
    [("tidings_http_request_seconds", Unit::Seconds, "How long answers took until their first byte")];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Records metrics from now on, in all nodes of this process that start later.
pub(crate) fn record() -> PrometheusHandle {
    let install = || {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS_SECONDS).expect("there are buckets");
        let builder = builder.idle_timeout(MetricKindMask::GAUGE, Some(IDLE_TIME_MAX));
        let handle = builder.install_recorder().expect("this process has no other recorder");
        GAUGES.into_iter().for_each(|(name, unit, what)| describe_gauge!(name, unit, what));
        COUNTERS.into_iter().for_each(|(name, unit, what)| describe_counter!(name, unit, what));
        HISTOGRAMS.into_iter().for_each(|(name, unit, what)| describe_histogram!(name, unit, what));
        tokio::spawn(upkeep(handle.clone()));
        handle
    };
    RECORDER.get_or_init(install).clone()
}

impl App {
    /// What this process has recorded until now, as text, and what this program says of itself at this moment.
    pub(crate) fn metrics_text(&self) -> String {
        record_program(self);
        record().render()
    }
}

async fn upkeep(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): AppState) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics_text())
}

fn record_program(app: &App) {
    let node = app.node.name().to_owned();
    let info = [
        ("node", node.clone()),
        ("cluster", app.cluster.clone()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("run", view::run(app.node.status().run)),
    ];
    gauge!("tidings_info", &info).set(1.0);
    gauge!("tidings_uptime_seconds", "node" => node.clone()).set(app.started.elapsed().as_secs_f64());
    let streams = app.watchers_max - app.watchers.available_permits();
    gauge!("tidings_http_streams", "node" => node).set(u32::try_from(streams).unwrap_or(u32::MAX));
}

/// What is recorded of the requests of one route.
#[derive(Debug)]
struct OfRoute {
    seconds: Histogram,
    by_answer: Vec<(&'static str, StatusCode, Counter)>,
}

/// The counters of requests, by route: looking one up by its labels costs more than a request that changes nothing. There
/// are as many as the API has routes, methods and statuses.
#[derive(Debug, Default)]
pub(crate) struct Requests(RwLock<BTreeMap<String, OfRoute>>);

impl Requests {
    fn note(&self, node: &str, route: &str, method: &'static str, status: StatusCode, took: Duration) {
        let count = |of_route: &OfRoute| {
            let mut counters = of_route.by_answer.iter();
            let (.., counter) = counters.find(|(own, of, _)| (*own, *of) == (method, status))?;
            counter.increment(1);
            of_route.seconds.record(took);
            Some(())
        };
        if self.0.read().unwrap_or_else(PoisonError::into_inner).get(route).and_then(count).is_some() {
            return;
        }
        let (name, path) = (|| node.to_owned(), || route.to_owned());
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let of_route = routes.entry(path()).or_insert_with(|| {
            let seconds = histogram!("tidings_http_request_seconds", "node" => name(), "route" => path());
            OfRoute { seconds, by_answer: Vec::new() }
        });
        let labels = [
            ("node", name()),
            ("method", method.to_owned()),
            ("route", path()),
            ("status", status.as_str().to_owned()),
        ];
        // Another request may have made it meanwhile.
        if count(of_route).is_none() {
            of_route.by_answer.push((method, status, counter!("tidings_http_requests_total", &labels)));
            count(of_route);
        }
    }
}

/// Measures one request. Streams count until their first byte.
pub(super) async fn measure(State(app): AppState, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = method_of(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    app.requests.note(app.node.name(), route, method, response.status(), began.elapsed());
    response
}

/// Counts a request that was refused by its head alone.
pub(super) fn count_refused(code: &'static str) {
    counter!("tidings_http_refused_total", "code" => code).increment(1);
}

/// The method, of those that the API takes: a client may send any word.
fn method_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
