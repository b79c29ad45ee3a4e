//! Who may ask for what, decided by the head of a request.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::Query;
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;

use super::ofrep::Origins;
use super::{ApiError, flag_sets, flagd, ofrep};

/// Paths that tell nothing but that the process lives. A reserve of connections answers them when all others are in
/// use.
pub(super) const PROBE_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// The dashboard, which holds no data.
const PAGE_PATH: &str = "/";

/// Below these paths nothing is written, although what is asked about is the body of the request, which therefore is no
/// GET: values that are compared with schemas, changes of flags that are checked, and whom flags are evaluated for.
const READING_PATHS: [&str; 4] = ["/v1/check/", "/v1/flag-checks/", ofrep::PATH, flagd::PATH];
/// Where clients of OFREP that have a key instead of a token put it.
pub(super) const API_KEY: &str = "x-api-key";
/// What tickets are signed for, so that they are of use for nothing else.
const TICKET_USE: &str = "events of flags\n";
/// Evaluates feature flags for the context in the body of the request. Not a whole folder: flags are put beside it.
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

impl Tokens {
    /// What opens the stream of events of a set of flags, and nothing else, for a client that can send no header. It
    /// follows from the token alone, so that it is the same on all nodes, and ends with the token. Of two tokens it is
    /// the one that only reads: a client that is given a ticket has that one anyway, and nobody can find the other one
    /// out with it.
    fn ticket(&self, set: &str) -> Option<String> {
        let token = self.read_only.as_ref().or(self.full.as_ref())?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
        let tag = hmac::sign(&key, format!("{TICKET_USE}{set}").as_bytes());
        Some(BASE64_URL_SAFE_NO_PAD.encode(tag))
    }
}

/// Who may ask. With a token: anybody who has it. Without one, on this machine alone: anybody who is on it, but no page
/// of another site in this machine's browser, nobody who had a foreign host name resolve to this machine, and nobody
/// for whom a proxy on this machine speaks.
#[derive(Clone, Default)]
pub(crate) struct Guard {
    tokens: Arc<RwLock<Tokens>>,
    /// The sites whose pages may ask for flags.
    origins: Origins,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    pub(crate) fn new(tokens: Tokens, origins: Origins) -> Self {
        Self { tokens: Arc::new(RwLock::new(tokens)), origins }
    }

    /// From now on these tokens count. Streams that are open go on.
    pub(crate) fn replace(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// A refusal as it goes out: clients of OFREP get it in the form of their protocol, and a page that may ask for
    /// flags sees why it was refused.
    pub(super) fn refuse(&self, refusal: ApiError, uri: &Uri, headers: &HeaderMap) -> Response {
        if uri.path().starts_with(ofrep::PATH) {
            self.origins.show(headers, ofrep::Refusal::from(refusal).into_response())
        } else {
            refusal.into_response()
        }
    }

    pub(super) fn ticket(&self, set: &str) -> Option<String> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).ticket(set)
    }

    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Access, ApiError> {
        let asked = Head { method, uri, headers };
        let path = uri.path();
        let is_of_ofrep = path.starts_with(ofrep::PATH);
        let is_permitted_page = is_of_ofrep && self.origins.has(headers);
        let is_write = asked.is_write();
        let host = asked.host();
        let is_own = |origin: &str| origin.split_once("://").is_some_and(|(_, from)| from == host);
        if !is_permitted_page && asked.text(ORIGIN.as_str()).is_some_and(|origin| !is_own(origin)) {
            return Err(ApiError::foreign_page());
        }
        // Browsers say from where a page has them ask, and pages cannot change that. `none` is the user.
        let site = asked.text("sec-fetch-site").filter(|_| is_write && !is_permitted_page);
        if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
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
        // A browser asks without a token whether its page may ask with one.
        let is_preflight = is_permitted_page && *method == Method::OPTIONS;
        if path == PAGE_PATH || PROBE_PATHS.contains(&path) || is_preflight {
            return Ok(Access::All);
        }
        let given = asked.text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let given = given.or_else(|| asked.text(API_KEY).filter(|_| is_of_ofrep));
        let given = given.unwrap_or_default().trim().as_bytes();
        if is_same(full.as_bytes(), given) {
            return Ok(Access::All);
        }
        if asked.has_ticket(&tokens) {
            return Ok(Access::ReadOnly);
        }
        let may_read_only = !is_write
            || path == EVALUATE_PATH
            || READING_PATHS.iter().any(|reading| path.starts_with(reading));
        match &tokens.read_only {
            Some(read_only) if is_same(read_only.as_bytes(), given) && !may_read_only => {
                Err(ApiError::read_only())
            }
            Some(read_only) if is_same(read_only.as_bytes(), given) => Ok(Access::ReadOnly),
            _ => Err(ApiError::unauthorized()),
        }
    }
}

/// What the address of a stream says of it.
#[derive(serde::Deserialize)]
struct Ticket {
    set: Option<String>,
    ticket: String,
}

/// The head of a request.
struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn is_write(&self) -> bool {
        !matches!(*self.method, Method::GET | Method::HEAD)
    }

    fn has_ticket(&self, tokens: &Tokens) -> bool {
        if self.is_write() || self.uri.path() != ofrep::EVENTS_PATH {
            return false;
        }
        let Ok(Query(query)) = Query::<Ticket>::try_from_uri(self.uri) else { return false };
        let Ok(set) = flag_sets::asked(self.headers, query.set.as_deref()) else { return false };
        tokens.ticket(set).is_some_and(|ticket| is_same(ticket.as_bytes(), query.ticket.as_bytes()))
    }

    /// Whom the client believes to ask. HTTP/2 has it in the address.
    fn host(&self) -> &'a str {
        let of_address = || self.uri.authority().map(axum::http::uri::Authority::as_str);
        self.text(HOST.as_str()).or_else(of_address).unwrap_or_default()
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
        guard.check(method, &path.parse().unwrap(), &pairs.collect()).is_ok()
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
        Guard::new(Tokens { full, read_only }, Origins::new(&["https://shop.example".to_owned()]).unwrap())
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
            (Method::POST, "/v1/flag-sets/s"),
        ] {
            assert!(!may(method.clone(), path, "Bearer battery staple"), "{path}");
            assert!(may(method, path, "Bearer correct horse"), "{path}");
        }
        assert!(may(Method::POST, "/v1/check/k", "Bearer battery staple"), "it writes nothing");
        for path in ["/v1/flags/evaluate", "/v1/flag-checks/s"] {
            assert!(may(Method::POST, path, "Bearer battery staple"), "it writes nothing: {path}");
        }
    }

    #[test]
    fn a_ticket_opens_one_stream_and_nothing_else() {
        let guard = guard();
        let host = ("host", "kv.example");
        let ticket = guard.ticket("mobile").unwrap();
        let of = |set: &str| format!("/ofrep/v1/events?set={set}&ticket={ticket}");
        assert!(read(&guard, &of("mobile"), &[host]) && read(&guard, &of("flagSetId=mobile"), &[host]));
        assert!(!read(&guard, &of("default"), &[host]), "it is of another set");
        assert!(!read(&guard, &of("mobile"), &[host, ("flagd-selector", "default")]), "the header counts");
        for path in ["/ofrep/v1/events?set=mobile", "/ofrep/v1/events?set=mobile&ticket=", "/v1/watch"] {
            assert!(!read(&guard, path, &[host]), "{path}");
        }
        assert!(!read(&guard, &format!("/v1/watch?set=mobile&ticket={ticket}"), &[host]));
        assert!(!asked(&guard, &Method::POST, &of("mobile"), &[host]));
        let as_token = format!("Bearer {ticket}");
        assert!(!read(&guard, "/v1/kv", &[host, ("authorization", &as_token)]));
        // It is that of the token that only reads, is the same on other nodes, and ends with the token.
        let [full, read_only] = ["another", "battery staple"].map(|text| Some(text.to_owned()));
        guard.replace(Tokens { full, read_only });
        assert_eq!(guard.ticket("mobile"), Some(ticket.clone()));
        guard.replace(Tokens { full: Some("another".to_owned()), read_only: None });
        assert!(!read(&guard, &of("mobile"), &[host]));
        assert_eq!(Guard::default().ticket("mobile"), None);
    }

    #[test]
    fn a_key_counts_for_flags_alone() {
        let guard = guard();
        let may =
            |path, key| asked(&guard, &Method::POST, path, &[("host", "kv.example"), ("x-api-key", key)]);
        for path in ["/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/checkout"] {
            assert!(may(path, "battery staple") && may(path, "correct horse"), "{path}");
            assert!(!may(path, "wrong") && !may(path, ""), "{path}");
        }
        assert!(!may("/v1/check/k", "battery staple"));
        assert!(!read(&guard, "/v1/kv", &[("host", "kv.example"), ("x-api-key", "correct horse")]));
    }

    #[test]
    fn pages_of_permitted_sites_may_ask_for_flags_alone() {
        let guard = guard();
        let page =
            [("host", "kv.example"), ("origin", "https://shop.example"), ("sec-fetch-site", "cross-site")];
        let other =
            [("host", "kv.example"), ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        let token = ("authorization", "Bearer battery staple");
        let flags = "/ofrep/v1/evaluate/flags";
        assert!(asked(&guard, &Method::OPTIONS, flags, &page), "before it asks");
        assert!(asked(&guard, &Method::POST, flags, &[page.as_slice(), &[token]].concat()));
        assert!(!asked(&guard, &Method::POST, flags, &page), "without a token");
        assert!(!asked(&guard, &Method::OPTIONS, flags, &other));
        assert!(!asked(&guard, &Method::POST, flags, &[other.as_slice(), &[token]].concat()));
        for path in ["/v1/kv/k", "/v1/check/k", "/flagd.sync.v1.FlagSyncService/SyncFlags"] {
            assert!(!asked(&guard, &Method::OPTIONS, path, &page), "{path}");
            assert!(!asked(&guard, &Method::POST, path, &[page.as_slice(), &[token]].concat()), "{path}");
        }
    }

    #[test]
    fn flags_for_flagd_need_a_token_that_may_only_read() {
        let guard = guard();
        let sync = "http://kv.example/flagd.sync.v1.FlagSyncService/SyncFlags";
        assert!(asked(&guard, &Method::POST, sync, &[("authorization", "Bearer battery staple")]));
        assert!(!asked(&guard, &Method::POST, sync, &[]));
        // Without a token the address has to be of this machine.
        let open = Guard::default();
        let local = "http://127.0.0.1:8015/flagd.sync.v1.FlagSyncService/SyncFlags";
        assert!(asked(&open, &Method::POST, local, &[]) && !asked(&open, &Method::POST, sync, &[]));
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
