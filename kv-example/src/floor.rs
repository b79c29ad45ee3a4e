//! What the API costs: reading a key, or evaluating all flags, beside a bare handler that answers with the same bytes, in
//! one process and one run, turn by turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use tidings::{Node, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{self, App, ConnectionLimits, Guard, Protocol};
use crate::exit::{Exit, Failure};
use crate::settings::FLAGS_PREFIX;
use crate::table;

const REPETITIONS: usize = 5;
const REPETITION_TIME: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 32;
/// Requests under way on a connection. With several, the cost of the client and of the system's calls goes down, and
/// that of the server stands out.
const DEPTHS: [usize; 2] = [1, 16];
const WATCHERS_MAX: usize = 16;
/// Evaluations of all flags that are made one after the other, each on a connection of its own.
const REQUESTS_ALONE: usize = 200;
const EVALUATION: &str = "/ofrep/v1/evaluate/flags";

/// What was measured, in the order of its repetitions.
#[derive(Serialize)]
struct Figures {
    what: String,
    /// Requests under way on each connection.
    under_way: usize,
    unit: &'static str,
    all: Vec<f64>,
}

impl Figures {
    /// The row of a table: least, median and most.
    fn row(&self) -> Vec<String> {
        let mut all = self.all.clone();
        all.sort_by(f64::total_cmp);
        let decimals = if self.unit == "ms" { 2 } else { 0 };
        let cell = |at: usize| format!("{:.decimals$} {}", all[at], self.unit);
        let cells = [cell(0), cell(all.len() / 2), cell(all.len() - 1)];
        [vec![self.what.clone(), self.under_way.to_string()], cells.into()].concat()
    }
}

/// Measures, and prints a table, or JSON. With `flags`: their evaluation, and otherwise reading a key.
pub(crate) fn run(value_bytes: usize, flags: Option<usize>, is_json: bool) -> Result<(), Failure> {
    crate::block_on(async {
        // As in a node that serves.
        api::record_metrics();
        let security = Security::secret(&Security::generate_secret())?;
        let node = Node::builder("floor").security(security).start().await?;
        let figures = match flags {
            None => measure_key(&node, value_bytes).await?,
            Some(count) => measure_flags(&node, count).await?,
        };
        node.shutdown().await;
        if is_json {
            println!("{}", json!(figures));
            return Ok(());
        }
        let rows: Vec<_> = figures.iter().map(Figures::row).collect();
        Ok(table::print(&["what", "under way", "least", "median", "most"], &rows)?)
    })
}

fn put(node: &Node, key: &str, value: impl AsRef<[u8]>) -> Result<(), Failure> {
    let put = node.put(key, value.as_ref());
    put.map(drop).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

async fn measure_key(node: &Node, value_bytes: usize) -> Result<Vec<Figures>, Failure> {
    let value = vec![b'x'; value_bytes];
    put(node, "bench/key", &value)?;
    let app = App::new(node, "floor", FLAGS_PREFIX, None, WATCHERS_MAX).await;
    let own = serve_node(app).await?;
    let value = Bytes::from(value);
    let bare = serve_bare(Router::new().route("/v1/kv/{*key}", get(async move || value.clone()))).await?;
    let request = b"GET /v1/kv/bench/key HTTP/1.1\r\nhost: localhost\r\n\r\n";
    compare("GET /v1/kv", request, own, bare).await
}

async fn measure_flags(node: &Node, count: usize) -> Result<Vec<Figures>, Failure> {
    let mut rule = json!({ "fractional": [["on", 10], ["off", 90]] });
    for number in 0..count {
        let flag = json!({
            "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off", "targeting": rule,
        });
        put(node, &format!("{FLAGS_PREFIX}default/flag-{number:05}"), flag.to_string())?;
        rule = match number % 3 {
            0 => json!({ "if": [{ "in": [{ "var": "country" }, ["de", "at", "ch"]] }, "on"] }),
            1 => json!({}),
            _ => json!({ "fractional": [["on", 10], ["off", 90]] }),
        };
    }
    let app = App::new(node, "floor", FLAGS_PREFIX, None, WATCHERS_MAX).await;
    let own = serve_node(app).await?;
    let request = |more: &str| {
        let body = json!({ "context": { "targetingKey": "user-17", "country": "at", "plan": "premium" } })
            .to_string();
        let length = body.len();
        let head = "content-type: application/json";
        format!(
            "POST {EVALUATION} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n{more}content-length: {length}\r\n\r\n{body}"
        )
    };
    let first = ask_once(own, request("").as_bytes()).await?;
    let text = String::from_utf8_lossy(&first).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let etag = head.split("etag: ").nth(1).and_then(|rest| rest.split('\r').next()).unwrap_or_default();
    let bare = serve_bare(bare_evaluation(etag.to_owned(), Bytes::from(body.to_owned()))).await?;
    let known = request(&format!("if-none-match: {etag}\r\n"));
    let mut figures = compare("with 304", known.as_bytes(), own, bare).await?;
    figures.extend(compare("without 304", request("").as_bytes(), own, bare).await?);
    let mut all = Vec::new();
    for _ in 0..REQUESTS_ALONE {
        let began = Instant::now();
        ask_once(own, request("").as_bytes()).await?;
        all.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    figures.push(Figures { what: "one alone".to_owned(), under_way: 1, unit: "ms", all });
    Ok(figures)
}

/// What answers with these bytes, or that they are known, without looking at who asks.
fn bare_evaluation(etag: String, body: Bytes) -> Router {
    let answer = async move |headers: HeaderMap, _question: Bytes| {
        if headers.get(IF_NONE_MATCH).is_some_and(|known| *known == etag) {
            return (StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response();
        }
        ([(CONTENT_TYPE, "application/json"), (ETAG, etag.as_str())], body).into_response()
    };
    Router::new().route(EVALUATION, post(answer))
}

/// The rates of both, turn by turn, and the share of the one in the other.
async fn compare(
    what: &str,
    request: &[u8],
    own: SocketAddr,
    bare: SocketAddr,
) -> Result<Vec<Figures>, Failure> {
    let mut figures = Vec::new();
    for under_way in DEPTHS {
        let (mut of_own, mut of_bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..REPETITIONS {
            let (bare, own) = (load(bare, request, under_way).await?, load(own, request, under_way).await?);
            of_bare.push(bare);
            of_own.push(own);
            ratios.push(100.0 * own / bare);
        }
        let of = |what: String, unit, all| Figures { what, under_way, unit, all };
        figures.push(of(format!("{what}, bare handler"), "/s", of_bare));
        figures.push(of(what.to_owned(), "/s", of_own));
        figures.push(of(format!("{what}, share of the bare"), "%", ratios));
    }
    Ok(figures)
}

async fn serve_node(app: App) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let never = std::future::pending();
    let limits = ConnectionLimits { max: CONNECTIONS * 2, per_address_max: CONNECTIONS * 2 };
    let routes = api::router(Arc::new(app));
    tokio::spawn(api::serve(listener, Protocol::Http1, None, Guard::default(), routes, limits, never));
    Ok(addr)
}

async fn serve_bare(routes: Router) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(addr)
}

/// Requests a second.
async fn load(addr: SocketAddr, request: &[u8], depth: usize) -> Result<f64, Failure> {
    let (done, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let started = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(tokio::spawn(client(addr, request.to_vec(), depth, done.clone(), is_over.clone())));
    }
    tokio::time::sleep(REPETITION_TIME).await;
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client does not panic")?;
    }
    let done = u32::try_from(done.load(Ordering::Relaxed)).expect("nobody answers so fast");
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// Answers are told apart by their length, which the first one shows.
async fn client(
    addr: SocketAddr,
    request: Vec<u8>,
    depth: usize,
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> Result<(), Failure> {
    let mut stream = connect(addr).await?;
    let answer_bytes = answer(&mut stream, &request).await?.len();
    let requests = request.repeat(depth);
    let mut answers = vec![0; answer_bytes * depth];
    while !is_over.load(Ordering::Relaxed) {
        stream.write_all(&requests).await?;
        stream.read_exact(&mut answers).await?;
        done.fetch_add(depth as u64, Ordering::Relaxed);
    }
    Ok(())
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn ask_once(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>, Failure> {
    answer(&mut connect(addr).await?, request).await
}

async fn answer(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>, Failure> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(64 << 10);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(Failure::new(Exit::Failed, "the server has hung up"));
        }
        if whole(&answer).is_some_and(|whole| whole <= answer.len()) {
            break;
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.1 304") {
        return Err(Failure::new(Exit::Failed, "the server answered neither 200 nor 304"));
    }
    Ok(answer)
}

/// The length of an answer, once its head is there.
fn whole(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).ok()?.to_ascii_lowercase();
    if text.starts_with("http/1.1 304") {
        return Some(head);
    }
    let length = text.split("content-length: ").nth(1)?.split('\r').next()?;
    Some(head + length.parse::<usize>().ok()?)
}
