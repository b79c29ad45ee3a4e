//! Accepting connections, with limits on their number and on the time that a client may take.
//!
//! Nothing here waits for a client. A connection takes a place ([`Places`]), or comes into the reserve, where probes are
//! answered and everything else is refused. The reserve is small and has short times; when it is full, its oldest
//! connection makes room.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::header::{CONNECTION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Request};
use axum::response::Response;
use futures_util::TryFutureExt;
use futures_util::future::{Either, MapOk};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::guard::{Access, PROBE_PATHS};
use super::places::{Place, Places};
use super::{ApiError, ConnectionLimits, Guard, Tls, metrics};

/// How long a connection may take for the TLS handshake, and to send the head of a request, idle time before it
/// included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Connections beyond the limits that are served at a time, for probes alone. Beyond it the oldest one is closed.
const RESERVE_MAX: usize = 32;
/// How long a connection of the reserve may live.
const RESERVE_TIME_MAX: Duration = Duration::from_secs(2);
/// For how long a client may be silent and deaf, as when its machine lost its power: what it held is given to others then.
/// One that lives but reads nothing of what waits for it has to connect again after that time.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(30);
const PROBES: u32 = 4;
/// After an error of the listening socket, as when all file descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests under way on one connection of HTTP/2, streams included.
const STREAMS_PER_CONNECTION_MAX: u32 = 16;
/// The size of the head of a request of HTTP/2.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// How long requests under way may take when everything ends.
const FAREWELL_TIME_MAX: Duration = Duration::from_millis(300);

/// What clients speak on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// Without HTTP/1 before it, as gRPC uses it.
    Http2,
}

/// What a connection may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    All,
    /// One probe.
    Reserve,
}

#[derive(Clone)]
struct Guarded {
    guard: Guard,
    routes: TowerToHyperService<Router>,
    lane: Lane,
    /// Whether the connection has had a request.
    is_asked: Arc<AtomicBool>,
}

impl Guarded {
    fn check(&self, request: &Request<Incoming>) -> Result<Access, ApiError> {
        let path = request.uri().path();
        if self.lane == Lane::Reserve && !PROBE_PATHS.contains(&path) {
            return Err(ApiError::too_many_connections());
        }
        self.guard.check(request.method(), request.uri(), request.headers())
    }
}

type Answering =
    Either<Ready<Result<Response, Infallible>>, TowerToHyperServiceFuture<Router, Request<Incoming>>>;

impl Service<Request<Incoming>> for Guarded {
    type Response = Response;
    type Error = Infallible;
    type Future = MapOk<Answering, fn(Response) -> Response>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.is_asked.store(true, Ordering::Relaxed);
        let answering = match self.check(&request) {
            Ok(access) => {
                request.extensions_mut().insert(access);
                Either::Right(self.routes.call(request))
            }
            Err(refusal) => {
                metrics::count_refused(refusal.code());
                let refusal = self.guard.refuse(refusal, request.uri(), request.headers());
                Either::Left(ready(Ok(refusal)))
            }
        };
        answering.map_ok(if self.lane == Lane::Reserve { as_last } else { as_it_says })
    }
}

/// No browser takes an answer for something else than it says it is.
fn as_it_says(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn as_last(response: Response) -> Response {
    let mut response = as_it_says(response);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
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

/// What serves a connection.
#[derive(Clone)]
struct Server {
    service: Guarded,
    tls: Option<Arc<Tls>>,
    protocol: Protocol,
    ending: watch::Receiver<bool>,
}

impl Server {
    async fn serve(self, stream: TcpStream, place: Option<Place>) {
        // A connection that takes none of this is served all the same.
        _ = prepare(&stream);
        match self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.config(self.protocol))) {
            None => self.answer(stream).await,
            Some(acceptor) => {
                if let Ok(Ok(stream)) = timeout(HEAD_TIME_MAX, acceptor.accept(stream)).await {
                    self.answer(stream).await;
                }
            }
        }
        drop(place);
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        match self.protocol {
            Protocol::Http1 => self.answer_http1(stream).await,
            Protocol::Http2 => self.answer_http2(stream).await,
        }
    }

    /// A client that has asked once may be idle as long as it answers, as those of gRPC are.
    async fn answer_http2(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let is_asked = self.service.is_asked.clone();
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_PER_CONNECTION_MAX);
        http.keep_alive_interval(SILENCE_TIME_MAX / 2).keep_alive_timeout(SILENCE_TIME_MAX / 2);
        http.max_header_list_size(HEAD_BYTES_MAX);
        let connection = http.serve_connection(TokioIo::new(stream), self.service);
        tokio::pin!(connection);
        let silent = async move {
            tokio::time::sleep(HEAD_TIME_MAX).await;
            if is_asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = &mut connection => {}
            () = silent => {}
            _ = self.ending.changed() => {
                connection.as_mut().graceful_shutdown();
                _ = connection.await;
            }
        }
    }

    async fn answer_http1(mut self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
        http.keep_alive(self.service.lane == Lane::All);
        let connection = http.serve_connection(TokioIo::new(stream), self.service);
        tokio::pin!(connection);
        tokio::select! {
            // That a client hangs up is no news.
            _ = &mut connection => {}
            _ = self.ending.changed() => {
                connection.as_mut().graceful_shutdown();
                _ = connection.await;
            }
        }
    }
}

/// Serves until `stop` resolves, then a moment longer for requests that are under way.
pub(crate) async fn serve(
    listener: TcpListener,
    protocol: Protocol,
    tls: Option<Arc<Tls>>,
    guard: Guard,
    routes: Router,
    limits: ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let (ended, ending) = watch::channel(false);
    let routes = TowerToHyperService::new(routes);
    let service = Guarded { guard, routes, lane: Lane::All, is_asked: Arc::default() };
    let server = Server { service, tls, protocol, ending };
    let places = Places::new(limits);
    let mut connections = JoinSet::new();
    let mut reserve: VecDeque<AbortHandle> = VecDeque::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, addr)): Result<(_, SocketAddr), _> = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let mut server = server.clone();
        server.service.is_asked = Arc::default();
        if let Some(place) = places.take(addr.ip()) {
            connections.spawn(server.serve(stream, Some(place)));
            continue;
        }
        reserve.retain(|connection| !connection.is_finished());
        if reserve.len() >= RESERVE_MAX
            && let Some(oldest) = reserve.pop_front()
        {
            oldest.abort();
        }
        server.service.lane = Lane::Reserve;
        let serving = async move { _ = timeout(RESERVE_TIME_MAX, server.serve(stream, None)).await };
        reserve.push_back(connections.spawn(serving));
    }
    ended.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    _ = timeout(FAREWELL_TIME_MAX, all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
