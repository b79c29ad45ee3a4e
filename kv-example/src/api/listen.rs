//! Accepting connections: who may come in, how many, and how long they may dawdle.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Request};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ApiError;

/// How long a connection may take to send the head of a request, idle time before it included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(60);
/// For how long a client may be silent and deaf, as when its machine lost its power: what it held is given to others then.
/// One that lives but reads nothing of what waits for it has to connect again after that time.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(30);
const PROBES: u32 = 4;
/// After an error of the listening socket, as when all file descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests under way may take when everything ends.
const FAREWELL_TIME_MAX: Duration = Duration::from_millis(300);

/// Paths that tell nothing but that the process lives, and the page, which holds no data.
const OPEN_PATHS: [&str; 3] = ["/", "/healthz", "/readyz"];

/// Who may ask. With a token: whoever has it. Without one, on this machine alone: whoever is on it, but no page of
/// another site in this machine's browser, and nobody who had a foreign host name resolve to this machine.
#[derive(Clone)]
pub(crate) struct Guard {
    token: Option<Arc<str>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("has_token", &self.token.is_some()).finish()
    }
}

impl Guard {
    pub(crate) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(Arc::from) }
    }

    fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST).unwrap_or_default();
        if text(ORIGIN).is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host)) {
            return Err(ApiError::foreign_page());
        }
        let Some(token) = &self.token else {
            return if is_this_machine(host) { Ok(()) } else { Err(ApiError::foreign_page()) };
        };
        let given = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if OPEN_PATHS.contains(&path) || is_same(token.as_bytes(), given.trim().as_bytes()) {
            return Ok(());
        }
        Err(ApiError::unauthorized())
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Compares without telling by the time it takes where the first difference stands.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

#[derive(Clone)]
struct Guarded {
    guard: Guard,
    routes: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for Guarded {
    type Response = Response;
    type Error = Infallible;
    type Future =
        Either<Ready<Result<Response, Infallible>>, TowerToHyperServiceFuture<Router, Request<Incoming>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match self.guard.check(request.uri().path(), request.headers()) {
            Ok(()) => Either::Right(self.routes.call(request)),
            Err(refusal) => Either::Left(ready(Ok(refusal.into_response()))),
        }
    }
}

/// Has the system notice a client that is gone without a word, whether it is owed something or not.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(SILENCE_TIME_MAX / 2);
    let probes = probes.with_interval(SILENCE_TIME_MAX / 2 / PROBES).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE_TIME_MAX))?;
    Ok(())
}

/// Serves until `stop` resolves, then a moment longer for requests that are under way.
pub(crate) async fn serve(
    listener: TcpListener,
    guard: Guard,
    routes: Router,
    connections_max: usize,
    stop: impl Future<Output = ()>,
) {
    let service = Guarded { guard, routes: TowerToHyperService::new(routes) };
    let permits = Arc::new(Semaphore::new(connections_max));
    let (ending, _) = tokio::sync::watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("it is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)): Result<(_, SocketAddr), _> = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A connection that takes none of this is served all the same.
        _ = prepare(&stream);
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let mut ended = ending.subscribe();
        connections.spawn(async move {
            tokio::pin!(connection);
            tokio::select! {
                // That a client hangs up is no news.
                _ = &mut connection => {}
                _ = ended.changed() => {
                    connection.as_mut().graceful_shutdown();
                    _ = connection.await;
                }
            }
            drop(permit);
        });
    }
    ending.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    _ = tokio::time::timeout(FAREWELL_TIME_MAX, all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(guard: &Guard, path: &str, pairs: &[(&'static str, &str)]) -> bool {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        guard.check(path, &pairs.collect()).is_ok()
    }

    #[tokio::test]
    async fn connections_of_silent_clients_time_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        prepare(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            let silence = socket.tcp_keepalive_time().unwrap()
                + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
            assert!(silence <= SILENCE_TIME_MAX, "{silence:?}");
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(SILENCE_TIME_MAX));
        }
    }

    #[test]
    fn without_a_token_only_local_requests_are_allowed() {
        let guard = Guard::new(None);
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1"] {
            assert!(asked(&guard, "/v1/kv", &[("host", host)]), "{host}");
        }
        for host in ["evil.example:8080", "10.0.0.1:8080", "", "localhost.evil.example"] {
            assert!(!asked(&guard, "/v1/kv", &[("host", host)]), "{host}");
        }
        let own = [("host", "localhost:8080"), ("origin", "http://localhost:8080")];
        assert!(asked(&guard, "/v1/kv", &own));
        for origin in ["http://evil.example", "null", "http://localhost:9999"] {
            assert!(!asked(&guard, "/v1/kv", &[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn data_requests_need_the_token() {
        let guard = Guard::new(Some("correct horse"));
        let host = ("host", "kv.example:8080");
        assert!(asked(&guard, "/v1/kv", &[host, ("authorization", "Bearer correct horse")]));
        for wrong in ["Bearer correct hors", "Bearer correct horse2", "Bearer ", "correct horse", ""] {
            assert!(!asked(&guard, "/v1/kv", &[host, ("authorization", wrong)]), "{wrong}");
        }
        assert!(asked(&guard, "/healthz", &[host]));
        assert!(!asked(&guard, "/metrics", &[host]));
    }
}
