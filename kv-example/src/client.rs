//! A client of the API, for the command line.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::api::tls;
use crate::exit::{Exit, Failure};
use crate::{files, span, table};

/// The largest answer that is read in one go; a page of a listing with large values is the largest there is.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// A stream that says nothing for so long is dead: the node sends a comment every ten seconds.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(30);
/// An idle connection is not used again after this time: the node closes it after ten seconds.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);
/// Events that were read and not looked at yet; beyond them the node has to wait.
const EVENTS_MAX: usize = 64;

/// Which node to ask.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Which node")]
pub(crate) struct Target {
    /// The node's API, with https:// where it speaks TLS
    #[arg(long, env = "TIDINGS_NODE", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub(crate) node: String,
    /// The file with the API's bearer token; or `TIDINGS_TOKEN` in the environment
    #[arg(long, env = "TIDINGS_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The file with the authority (PEM) that issued the API's certificate, for https
    #[arg(long, env = "TIDINGS_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = span::parse)]
    pub(crate) timeout: Duration,
    /// Answer in JSON, for scripts
    #[arg(long)]
    pub(crate) json: bool,
}

/// A client of one node. Clones share its connections.
#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    base: String,
    token: Arc<Token>,
    timeout: Duration,
}

/// The bearer token. It is replaced while commands run: when a node refuses it, its file is read again.
struct Token {
    file: Option<PathBuf>,
    now: Mutex<Option<String>>,
}

impl Token {
    fn new(file: Option<PathBuf>, text: Option<&str>) -> Self {
        Self { file, now: Mutex::new(text.and_then(Self::of)) }
    }

    fn of(text: &str) -> Option<String> {
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    }

    fn now(&self) -> Option<String> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The token that is in the file now, if it is not the one that was refused.
    fn read_again(&self, refused: Option<&str>) -> Option<String> {
        let text = files::any_text(self.file.as_ref()?, files::SETTINGS_BYTES_MAX).ok()?;
        let token = Self::of(&text).filter(|token| Some(&**token) != refused)?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Some(token)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// The answer to a request that was understood.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::new(Exit::Failed, format!("the answer is not understood: {error}")))
    }

    pub(crate) fn is_found(&self) -> bool {
        self.status != 404
    }
}

/// One server-sent event.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// A stream of them. It is read on a thread of its own, so that silence is noticed.
pub(crate) struct Stream {
    /// Nothing stands for a sign of life.
    told: Receiver<Option<Told>>,
}

impl Target {
    /// A client of a node that has caught up. One that has just started may lack what its cluster holds: what is read
    /// there is not all, and what is written on the ground of that may be wrong.
    pub(crate) fn ready_client(&self) -> Result<Client, Failure> {
        let client = self.client()?;
        client.ready()?;
        Ok(client)
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let token = match &self.token_file {
            Some(path) => Some(files::any_text(path, files::SETTINGS_BYTES_MAX)?),
            None => std::env::var("TIDINGS_TOKEN").ok(),
        };
        let base = self.node.trim_end_matches('/');
        let is_whole = ["http://", "https://"].iter().any(|scheme| base.starts_with(scheme));
        let base = if is_whole { base.to_owned() } else { format!("http://{base}") };
        let config = Agent::config_builder().http_status_as_error(false).user_agent("tidings");
        let config = config.timeout_connect(Some(self.timeout)).timeout_recv_response(Some(self.timeout));
        let config = config.max_idle_age(IDLE_TIME_MAX);
        let config = if base.starts_with("https://") { config.tls_config(self.tls()?) } else { config };
        let token = Token::new(self.token_file.clone(), token.as_deref()).into();
        Ok(Client { agent: config.build().into(), base, token, timeout: self.timeout })
    }
}

impl Target {
    /// Trusts the given authority alone.
    fn tls(&self) -> Result<TlsConfig, Failure> {
        let Some(path) = &self.ca_file else {
            let message = "https needs the authority that issued the node's certificate";
            return Err(Failure::usage(message).hint("give --ca-file, or set TIDINGS_CA_FILE"));
        };
        let authorities = tls::certificates(path)?;
        let authorities: Vec<_> =
            authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect();
        let config = TlsConfig::builder().unversioned_rustls_crypto_provider(tls::provider());
        Ok(config.root_certs(RootCerts::from(authorities)).build())
    }
}

impl Client {
    pub(crate) fn ready(&self) -> Result<(), Failure> {
        self.get("/readyz").map(drop)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", path, &[], &[])
    }

    /// Asks, and reads the whole answer. That something is not there is an answer, everything else that went wrong
    /// is a failure.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let mut response = self.send(method, path, headers, body, Some(self.timeout))?;
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = bytes.map_err(|error| self.failed(&error))?;
        if status < 400 || status == 404 && !is_wrong_path(&body) {
            return Ok(Answer { status, body });
        }
        Err(self.refused(status, &body))
    }

    /// Opens a stream of events.
    pub(crate) fn stream(&self, method: &str, path: &str, last: Option<&str>) -> Result<Stream, Failure> {
        let headers: Vec<(&str, String)> =
            last.iter().map(|id| ("last-event-id", (*id).to_owned())).collect();
        let mut response = self.send(method, path, &headers, &[], None)?;
        let status = response.status().as_u16();
        if status >= 400 {
            let body = response.body_mut().read_to_vec().unwrap_or_default();
            return Err(self.refused(status, &body));
        }
        let lines = BufReader::new(response.into_body().into_reader());
        let (sender, told) = mpsc::sync_channel(EVENTS_MAX);
        std::thread::spawn(move || read_events(lines, &sender));
        Ok(Stream { told })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &[u8],
        within: Option<Duration>,
    ) -> Result<Response<Body>, Failure> {
        let token = self.token.now();
        let response = self.send_with(token.as_deref(), method, path, headers, body, within)?;
        if response.status() != 401 {
            return Ok(response);
        }
        match self.token.read_again(token.as_deref()) {
            Some(token) => self.send_with(Some(&token), method, path, headers, body, within),
            None => Ok(response),
        }
    }

    fn send_with(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &[u8],
        within: Option<Duration>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let sent = match method {
            "GET" | "DELETE" => {
                let request = request.body(()).map_err(|error| self.malformed(&error))?;
                let silence = if within.is_none() { Some(SILENCE_TIME_MAX) } else { within };
                self.agent.run(
                    self.agent
                        .configure_request(request)
                        .timeout_recv_body(None)
                        .timeout_global(within)
                        .timeout_recv_response(silence)
                        .build(),
                )
            }
            _ => {
                let request = request.body(body).map_err(|error| self.malformed(&error))?;
                self.agent.run(self.agent.configure_request(request).timeout_global(within).build())
            }
        };
        sent.map_err(|error| self.failed(&error))
    }

    fn malformed(&self, error: &ureq::http::Error) -> Failure {
        let hint = "give --node as http://ADDRESS:PORT or https://HOST:PORT (or set TIDINGS_NODE)";
        Failure::usage(format!("\"{}\" is not the address of a node: {error}", self.base)).hint(hint)
    }

    fn failed(&self, error: &ureq::Error) -> Failure {
        let at = self.base.split_once("://").map_or(&*self.base, |(_, at)| at);
        let tls = match error {
            ureq::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        if let Some(error) = tls {
            let hint = "is --ca-file the authority of its certificate, and is this name or address in it?";
            return Failure::new(Exit::Unreachable, format!("no TLS with the node at {at}: {error}"))
                .hint(hint);
        }
        match error {
            ureq::Error::Timeout(_) => {
                let message = format!("the node at {at} did not answer in {}", span::show(self.timeout));
                Failure::new(Exit::TimedOut, message).hint("--timeout gives it longer")
            }
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                let hint = "is one running? start one with `tidings serve`, five with `tidings demo`, or name \
                            another with --node";
                Failure::new(Exit::Unreachable, format!("no node at {at} ({error})")).hint(hint)
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                let hint = "give --node as http://ADDRESS:PORT or https://HOST:PORT (or set TIDINGS_NODE)";
                Failure::usage(format!("\"{}\" is not the address of a node: {error}", self.base)).hint(hint)
            }
            ureq::Error::Protocol(_) => {
                let message = format!("what runs at {at} does not speak HTTP: {error}");
                Failure::new(Exit::Unreachable, message)
                    .hint("if it serves TLS: --node https://…, with --ca-file")
            }
            other => Failure::new(Exit::Failed, format!("{at}: {other}")),
        }
    }

    /// What the node said, and what became of the state.
    fn refused(&self, status: u16, body: &[u8]) -> Failure {
        let said: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |field: &str| table::clean(said[field].as_str().unwrap_or_default());
        let Some(code) = said["code"].as_str() else {
            let message = format!("what runs at {} is no node of tidings: it answered {status}", self.base);
            return Failure::new(Exit::Unreachable, message).hint("name another with --node");
        };
        if code == "no_such_path" {
            let message = format!("what runs at {} has no such path", self.base);
            return Failure::new(Exit::Unreachable, message)
                .hint("is --node right, and of this program's version?");
        }
        let exit = match code {
            "unconfirmed" => Exit::TimedOut,
            "bad_request" | "key" | "no_voters" => Exit::Usage,
            _ => Exit::Refused,
        };
        let current = said["stamp"].as_str().map(|stamp| format!(" (stamp {stamp})")).unwrap_or_default();
        let faults: String = said["errors"].as_array().into_iter().flatten().map(fault_line).collect();
        let failure = Failure::new(exit, format!("{}{current}; {}{faults}", text("error"), text("detail")));
        let failure = failure.refusal(code);
        match code {
            "unauthorized" => failure.hint("give --token-file, or set TIDINGS_TOKEN"),
            "no_voters" => {
                failure.hint("start the nodes with --voter NAME for each voter, the same on all of them")
            }
            "no_majority" => failure
                .hint("a voter grants nothing for about 17 s after its start (45 s with the profile wan)"),
            "busy" => failure.hint("it catches up by itself; try again"),
            "clock" => failure
                .hint("check the time synchronisation of that machine; restart the node once it is right"),
            _ => failure,
        }
    }
}

/// What is wrong with a value, on a line of its own.
fn fault_line(fault: &Value) -> String {
    let text = |field: &str| table::clean(fault[field].as_str().unwrap_or_default());
    match text("path") {
        path if path.is_empty() => format!("\n  {}", text("message")),
        path => format!("\n  {path}: {}", text("message")),
    }
}

fn is_wrong_path(body: &[u8]) -> bool {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    said.is_none_or(|said| said["code"] != "not_found")
}

impl Stream {
    /// The next event; none when the node has ended the stream, or the connection is gone.
    pub(crate) fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.told.recv_timeout(SILENCE_TIME_MAX).ok()? {
                return Some(told);
            }
        }
    }

    /// An event that is here already.
    pub(crate) fn ready(&mut self) -> Option<Told> {
        self.told.try_iter().flatten().next()
    }
}

/// Reads events until the stream ends, or nobody wants them any more.
fn read_events(mut lines: impl BufRead, sender: &SyncSender<Option<Told>>) {
    let (mut told, mut line) = (Told::default(), String::new());
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        match line.trim_end_matches(['\n', '\r']).split_once(':') {
            Some(("event", name)) => name.trim().clone_into(&mut told.name),
            Some(("id", id)) => told.id = Some(id.trim().to_owned()),
            Some(("data", data)) => told.data = serde_json::from_str(data).unwrap_or_default(),
            _ => {
                let is_whole = !told.name.is_empty() || !told.data.is_null();
                let news = is_whole.then(|| std::mem::take(&mut told));
                if sender.send(news).is_err() {
                    return;
                }
            }
        }
        line.clear();
    }
}

/// Writes a key, a name or an element as part of a path or a query.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => quoted.push(byte as char),
            _ => {
                use std::fmt::Write;
                _ = write!(quoted, "%{byte:02X}");
            }
        }
    }
    quoted
}
