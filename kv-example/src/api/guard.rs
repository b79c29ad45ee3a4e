//! Who may ask for what, decided by the head of a request.

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, Method};

use super::ApiError;

/// Paths that tell nothing but that the process lives. A reserve of connections answers them when all others are in use.
pub(super) const PROBE_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// The dashboard, which holds no data.
const PAGE_PATH: &str = "/";

/// Below it, values are compared with schemas. They are the body of the request, which therefore is no GET; but nothing
/// is written.
const CHECK_PATH: &str = "/v1/check/";
/// Evaluates feature flags for the context in the body of the request, and writes nothing.
const EVALUATE_PATH: &str = "/v1/flags/evaluate";

/// What the token of a request permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    All,
    ReadOnly,
}

/// The bearer tokens of the API. Without a token that permits everything there is no other.
#[derive(Clone, Default)]
pub(crate) struct Tokens {
    pub(crate) full: Option<String>,
    pub(crate) read_only: Option<String>,
}

/// Who may ask. With a token: whoever has it. Without one, on this machine alone: whoever is on it, but no page of
/// another site in this machine's browser, nobody who had a foreign host name resolve to this machine, and nobody for
/// whom a proxy on this machine speaks.
#[derive(Clone, Default)]
pub(crate) struct Guard {
    tokens: Arc<RwLock<Tokens>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { tokens: Arc::new(RwLock::new(tokens)) }
    }

    /// From now on these tokens count. Streams that are open go on.
    pub(crate) fn replace(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    pub(super) fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Access, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let is_write = !matches!(*method, Method::GET | Method::HEAD);
        let host = text(HOST.as_str()).unwrap_or_default();
        let is_own = |origin: &str| origin.split_once("://").is_some_and(|(_, from)| from == host);
        if text(ORIGIN.as_str()).is_some_and(|origin| !is_own(origin)) {
            return Err(ApiError::foreign_page());
        }
        // Browsers say from where a page has them ask, and pages cannot change that. `none` is the user.
        if is_write && text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(ApiError::foreign_page());
        }
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let Some(full) = &tokens.full else {
            return if is_forwarded(headers) {
                Err(ApiError::forwarded())
            } else if is_this_machine(host) {
                Ok(Access::All)
            } else {
                Err(ApiError::foreign_page())
            };
        };
        if path == PAGE_PATH || PROBE_PATHS.contains(&path) {
            return Ok(Access::All);
        }
        let given = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let given = given.unwrap_or_default().trim().as_bytes();
        if is_same(full.as_bytes(), given) {
            return Ok(Access::All);
        }
        let may_read_only = !is_write || path.starts_with(CHECK_PATH) || path == EVALUATE_PATH;
        match &tokens.read_only {
            Some(read_only) if is_same(read_only.as_bytes(), given) && !may_read_only => {
                Err(ApiError::read_only())
            }
            Some(read_only) if is_same(read_only.as_bytes(), given) => Ok(Access::ReadOnly),
            _ => Err(ApiError::unauthorized()),
        }
    }
}

/// Whether a proxy passed the request on for somebody else.
fn is_forwarded(headers: &HeaderMap) -> bool {
    let is_of_proxy = |name: &str| name == FORWARDED.as_str() || name.starts_with("x-forwarded-");
    headers.keys().any(|name| is_of_proxy(name.as_str()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(guard: &Guard, method: &Method, path: &str, pairs: &[(&'static str, &str)]) -> bool {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        guard.check(method, path, &pairs.collect()).is_ok()
    }

    fn read(guard: &Guard, path: &str, pairs: &[(&'static str, &str)]) -> bool {
        asked(guard, &Method::GET, path, pairs)
    }

    #[test]
    fn without_a_token_only_local_requests_are_allowed() {
        let guard = Guard::default();
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1"] {
            assert!(read(&guard, "/v1/kv", &[("host", host)]), "{host}");
        }
        for host in ["evil.example:8080", "10.0.0.1:8080", "", "localhost.evil.example"] {
            assert!(!read(&guard, "/v1/kv", &[("host", host)]), "{host}");
        }
        let own = [("host", "localhost:8080"), ("origin", "http://localhost:8080")];
        assert!(read(&guard, "/v1/kv", &own));
        for origin in ["http://evil.example", "null", "http://localhost:9999"] {
            assert!(!read(&guard, "/v1/kv", &[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn without_a_token_forwarded_requests_are_refused() {
        let (open, closed) = (Guard::default(), guard());
        for header in ["forwarded", "x-forwarded-for", "x-forwarded-proto"] {
            let headers = [("host", "127.0.0.1"), (header, "for=192.0.2.1")];
            assert!(!read(&open, "/v1/kv", &headers) && !read(&open, "/", &headers), "{header}");
            let headers = [("host", "kv.example"), (header, "x"), ("authorization", "Bearer correct horse")];
            assert!(read(&closed, "/v1/kv", &headers), "{header}");
        }
    }

    fn guard() -> Guard {
        let [full, read_only] = ["correct horse", "battery staple"].map(|text| Some(text.to_owned()));
        Guard::new(Tokens { full, read_only })
    }

    #[test]
    fn data_requests_need_the_token() {
        let guard = guard();
        let host = ("host", "kv.example:8080");
        assert!(read(&guard, "/v1/kv", &[host, ("authorization", "Bearer correct horse")]));
        for wrong in ["Bearer correct hors", "Bearer correct horse2", "Bearer ", "correct horse", ""] {
            assert!(!read(&guard, "/v1/kv", &[host, ("authorization", wrong)]), "{wrong}");
        }
        assert!(read(&guard, "/healthz", &[host]) && read(&guard, "/", &[host]));
        assert!(!read(&guard, "/metrics", &[host]));
        guard.replace(Tokens { full: Some("another".to_owned()), read_only: None });
        for old in ["Bearer correct horse", "Bearer battery staple"] {
            assert!(!read(&guard, "/v1/kv", &[host, ("authorization", old)]));
        }
    }

    #[test]
    fn read_only_token_permits_no_write() {
        let guard = guard();
        let may = |method: Method, path, token| {
            asked(&guard, &method, path, &[("host", "kv.example"), ("authorization", token)])
        };
        for path in ["/v1/kv/k", "/v1/watch", "/metrics", "/v1/dash"] {
            assert!(may(Method::GET, path, "Bearer battery staple"), "{path}");
        }
        for (method, path) in [
            (Method::PUT, "/v1/kv/k"),
            (Method::DELETE, "/v1/kv/k"),
            (Method::POST, "/v1/snapshot"),
            (Method::POST, "/v1/leave"),
            (Method::POST, "/v1/elections/e/campaign"),
            (Method::POST, "/v1/checks"),
            (Method::POST, "/v1/flags/evaluate/x"),
        ] {
            assert!(!may(method.clone(), path, "Bearer battery staple"), "{path}");
            assert!(may(method, path, "Bearer correct horse"), "{path}");
        }
        assert!(may(Method::POST, "/v1/check/k", "Bearer battery staple"), "it writes nothing");
        assert!(may(Method::POST, "/v1/flags/evaluate", "Bearer battery staple"), "it writes nothing");
    }

    #[test]
    fn pages_of_other_sites_cannot_write() {
        let guard = Guard::default();
        for (site, may_write) in
            [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false), ("x", false)]
        {
            let headers = [("host", "localhost:8080"), ("sec-fetch-site", site)];
            assert_eq!(asked(&guard, &Method::POST, "/v1/leave", &headers), may_write, "{site}");
            assert!(read(&guard, "/", &headers), "a link to the dashboard works: {site}");
        }
    }
}
