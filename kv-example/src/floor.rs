//! What the API costs: reading a key, beside a bare handler that answers with the same bytes, in one process and one
//! run, turn by turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use bytes::Bytes;
use tidings::{Config, Node, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{self, App, ConnectionLimits, Guard};
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
const REQUEST: &[u8] = b"GET /v1/kv/bench/key HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Measures, and prints a table.
pub(crate) fn run(value_bytes: usize) -> Result<(), Failure> {
    crate::block_on(measure(value_bytes))
}

async fn measure(value_bytes: usize) -> Result<(), Failure> {
    let value = vec![b'x'; value_bytes];
    let node =
        Node::builder("floor").security(Security::secret(&Security::generate_secret())?).start().await?;
    node.put("bench/key", &value).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let own = serve_node(&node).await?;
    let bare = serve_bare(Bytes::from(value)).await?;
    let mut rows = Vec::new();
    for depth in DEPTHS {
        let (mut of_own, mut of_bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..REPETITIONS {
            let (bare, own) = (load(bare, depth).await?, load(own, depth).await?);
            of_bare.push(bare);
            of_own.push(own);
            ratios.push(100.0 * own / bare);
        }
        for (what, mut values, unit) in [
            ("bare handler", of_bare, "/s"),
            ("GET /v1/kv", of_own, "/s"),
            ("share of the bare", ratios, " %"),
        ] {
            values.sort_by(f64::total_cmp);
            let cell = |at: usize| format!("{:.0}{unit}", values[at]);
            let cells = [cell(0), cell(REPETITIONS / 2), cell(REPETITIONS - 1)];
            rows.push([vec![what.to_owned(), depth.to_string()], cells.into()].concat());
        }
    }
    node.shutdown().await;
    Ok(table::print(&["what", "under way", "least", "median", "most"], &rows)?)
}

async fn serve_node(node: &Node) -> Result<SocketAddr, Failure> {
    let app = Arc::new(App::new(node, "floor", FLAGS_PREFIX, Config::lan().value_bytes_max, WATCHERS_MAX));
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let never = std::future::pending();
    let limits = ConnectionLimits { max: CONNECTIONS * 2, per_address_max: CONNECTIONS * 2 };
    tokio::spawn(api::serve(listener, None, Guard::default(), api::router(app), limits, never));
    Ok(addr)
}

async fn serve_bare(value: Bytes) -> Result<SocketAddr, Failure> {
    let routes = Router::new().route("/v1/kv/{*key}", get(async move || value.clone()));
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(addr)
}

/// Requests a second.
async fn load(addr: SocketAddr, depth: usize) -> Result<f64, Failure> {
    let (done, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let started = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(tokio::spawn(client(addr, depth, done.clone(), is_over.clone())));
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
    depth: usize,
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    stream.write_all(REQUEST).await?;
    let mut answer = vec![0; 64 << 10];
    let mut length = 0;
    let answer_bytes = loop {
        length += stream.read(&mut answer[length..]).await?;
        if let Some(whole) = whole(&answer[..length]).filter(|whole| *whole <= length) {
            break whole;
        }
    };
    if !answer.starts_with(b"HTTP/1.1 200") {
        return Err(Failure::new(Exit::Failed, "the server did not answer 200"));
    }
    let requests = REQUEST.repeat(depth);
    let mut answers = vec![0; answer_bytes * depth];
    while !is_over.load(Ordering::Relaxed) {
        stream.write_all(&requests).await?;
        stream.read_exact(&mut answers).await?;
        done.fetch_add(depth as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// The length of an answer, once its head is there.
fn whole(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).ok()?.to_ascii_lowercase();
    let length = text.split("content-length: ").nth(1)?.split('\r').next()?;
    Some(head + length.parse::<usize>().ok()?)
}
