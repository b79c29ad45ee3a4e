//! `tidings demo`: five nodes in one process, on real sockets, with somebody at work, and a dashboard to watch them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use clap::Args;
use serde_json::{Value, json};
use tidings::{Config, Node, PutOptions, Security};
use tokio::net::TcpListener;

use crate::api::{self, ApiError, App, AppState, ConnectionLimits, Guard, Protocol};
use crate::exit::{Exit, Failure};
use crate::flags;
use crate::relay::{Relay, Rule};
use crate::settings::FLAGS_PREFIX;
use crate::signals::End;
use crate::span;

const NODES: usize = 5;
const ZONES: [&str; 3] = ["eu-1", "eu-2", "us-1"];
/// Ports that are tried for the dashboard, from the one that was asked for.
const PORTS_TRIED: u16 = 20;
const CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits { max: 256, per_address_max: 256 };
const WATCHERS_MAX: usize = 64;
/// The nodes' last words, and those of the API.
const END_TIME_MAX: Duration = Duration::from_millis(1_500);
/// Each node writes this often.
const WORK_INTERVAL: Duration = Duration::from_millis(700);
/// The life of what the nodes write as sessions.
const SESSION_TTL: Duration = Duration::from_secs(20);
/// A key that both sides of a cut write, and nobody else: what is left when it heals.
const DISPUTED_KEY: &str = "config/theme";
/// Feature flags, for the dashboard's page of them.
const FLAGS: [(&str, &str); 2] = [
    (
        "new-search",
        r#"{"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.com"]}, "on",
                                 {"fractional": [["on", 10], ["off", 90]]}]}}"#,
    ),
    (
        "dark-launch",
        r#"{"state": "DISABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off"}"#,
    ),
];

/// What the nodes lead in turn.
const ELECTION: &str = "scheduler";
/// All clocks of one machine are one clock; and the less they may differ, the sooner voters vote after their start.
const CLOCK_SKEW_MAX: Duration = Duration::from_millis(100);
/// How often the leader does its work.
const LEADER_INTERVAL: Duration = Duration::from_secs(2);

/// Run five nodes in one process, with a dashboard to watch them
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// The first port to try for the dashboard
    #[arg(long, default_value_t = 8_080)]
    port: u16,
    /// End by itself after this time
    #[arg(long = "for", value_name = "TIME", value_parser = span::parse)]
    time: Option<Duration>,
    /// Fill the store with so many keys first
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    keys: usize,
}

/// Which nodes are cut off.
#[derive(Debug)]
pub(crate) struct Switchboard {
    names: Vec<String>,
    state: Mutex<Switches>,
}

#[derive(Debug)]
struct Switches {
    is_cut: Vec<bool>,
    /// Where each node sends from.
    senders: BTreeMap<SocketAddr, usize>,
}

impl Switchboard {
    fn new(names: Vec<String>) -> Self {
        let is_cut = vec![false; names.len()];
        Self { names, state: Mutex::new(Switches { is_cut, senders: BTreeMap::new() }) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Switches> {
        self.state.lock().expect("nothing panics with it")
    }

    /// The names of the nodes that are cut off.
    pub(crate) fn cut_off(&self) -> Vec<&str> {
        let is_cut = self.lock().is_cut.clone();
        self.names.iter().zip(is_cut).filter(|(_, is_cut)| *is_cut).map(|(name, _)| name.as_str()).collect()
    }

    fn is_cut(&self, node: usize) -> bool {
        self.lock().is_cut[node]
    }

    /// Whether this changed anything; none if there is no such node.
    fn set(&self, name: &str, is_cut: bool) -> Option<bool> {
        let at = self.names.iter().position(|known| known == name)?;
        Some(std::mem::replace(&mut self.lock().is_cut[at], is_cut) != is_cut)
    }
}

impl Rule for Switchboard {
    fn passes(&self, from: SocketAddr, to: usize) -> bool {
        let state = self.lock();
        let from_is_cut = state.senders.get(&from).is_some_and(|from| state.is_cut[*from]);
        !state.is_cut[to] && !from_is_cut
    }
}

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/demo/cut/{node}", post(cut)).route("/v1/demo/heal/{node}", post(heal))
}

async fn cut(app: AppState, node: Path<String>) -> Result<Json<Value>, ApiError> {
    let reply = switch(&app, &node, true)?;
    // Both sides go on writing; this key shows it when they meet again.
    let is_it = |local: &&Node| local.name() == node.as_str();
    if let Some(alone) = app.locals.iter().find(is_it) {
        _ = alone.put(DISPUTED_KEY, format!("dark, says {} alone", alone.name()));
    }
    if let Some(other) = app.locals.iter().find(|local| !is_it(local)) {
        _ = other.put(DISPUTED_KEY, format!("light, says {} with the others", other.name()));
    }
    Ok(reply)
}

async fn heal(app: AppState, node: Path<String>) -> Result<Json<Value>, ApiError> {
    switch(&app, &node, false)
}

fn switch(State(app): &AppState, Path(node): &Path<String>, is_cut: bool) -> Result<Json<Value>, ApiError> {
    let board = app.demo.as_ref().expect("these routes are the demo's");
    let changed = board.set(node, is_cut);
    let is_changed =
        changed.ok_or_else(|| ApiError::not_found(format!("no node \"{node}\" in this demo")))?;
    if is_changed {
        app.monitor.tell("demo", format!("{node} {}", if is_cut { "was cut off" } else { "was healed" }));
    }
    Ok(Json(json!({ "cut": board.cut_off() })))
}

impl Demo {
    pub(crate) fn run(self) -> Result<(), Failure> {
        crate::block_on(self.serve())
    }

    async fn serve(self) -> Result<(), Failure> {
        let mut end = End::new()?;
        let (listener, http) = bind(self.port).await?;
        let names: Vec<String> = (1..=NODES).map(|number| format!("n{number}")).collect();
        let board = Arc::new(Switchboard::new(names));
        let nodes = start(&board).await?;
        let (stopping, _) = tokio::sync::watch::channel(false);
        let mut stopped = stopping.subscribe();
        let stop = async move { _ = stopped.wait_for(|stopped| *stopped).await };
        let routes = routes_of_all(&nodes, &board).await;
        let serving = tokio::spawn(api::serve(
            listener,
            Protocol::Http1,
            None,
            Guard::default(),
            routes,
            CONNECTION_LIMITS,
            stop,
        ));
        explain(&nodes, http);
        let busy = async {
            fill(&nodes[0], self.keys).await;
            for (at, node) in nodes.iter().enumerate() {
                tokio::spawn(work(node.clone(), at, board.clone()));
                tokio::spawn(lead(node.clone()));
            }
            std::future::pending::<()>().await;
        };
        let over = async {
            match self.time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end.recv() => {}
            () = over => {}
            () = busy => {}
        }
        stopping.send_replace(true);
        let ending = async {
            futures_util::future::join_all(nodes.iter().map(Node::shutdown)).await;
            _ = serving.await;
        };
        _ = tokio::time::timeout(END_TIME_MAX, ending).await;
        println!("\nAll five nodes have ended.");
        Ok(())
    }
}

/// The first port that is free, from the one that was asked for.
async fn bind(port: u16) -> Result<(TcpListener, SocketAddr), Failure> {
    for candidate in port..=port.saturating_add(PORTS_TRIED) {
        let Ok(listener) = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, candidate)).await else {
            continue;
        };
        if candidate != port {
            println!("Port {port} is taken; the dashboard is at {candidate}.");
        }
        let addr = listener.local_addr()?;
        return Ok((listener, addr));
    }
    let message = format!("no port from {port} to {} is free", port.saturating_add(PORTS_TRIED));
    Err(Failure::new(Exit::Failed, message).hint("give another one with --port"))
}

/// Five nodes with one secret, each behind a relay.
async fn start(board: &Arc<Switchboard>) -> Result<Vec<Node>, Failure> {
    api::record_metrics();
    let security = Security::secret(&Security::generate_secret())?;
    let mut config = Config::local();
    config.voters.clone_from(&board.names);
    config.clock_skew_max = CLOCK_SKEW_MAX;
    let mut nodes: Vec<Node> = Vec::new();
    let mut seed = None;
    for (at, name) in board.names.iter().enumerate() {
        let relay = Relay::bind(at).await?;
        let mut builder =
            Node::builder(name).cluster("demo").security(security.clone()).config(config.clone());
        builder = builder
            .advertise(relay.addr()?.to_string())
            .meta("zone", ZONES[at % ZONES.len()])
            .app_version("1.0");
        builder = builder.seeds(seed.clone());
        seed = Some(seed.unwrap_or(relay.addr()?.to_string()));
        let node = builder.start().await?;
        relay.target.set(node.addr()).expect("set once");
        board.lock().senders.insert(node.addr(), at);
        tokio::spawn(relay.run(board.clone()));
        nodes.push(node);
    }
    Ok(nodes)
}

/// The first node's API at the root, those of all nodes under their names.
async fn routes_of_all(nodes: &[Node], board: &Arc<Switchboard>) -> Router {
    let mut apps: Vec<Arc<App>> = Vec::new();
    for node in nodes {
        let mut app = App::new(node, "demo", FLAGS_PREFIX, None, WATCHERS_MAX).await;
        app.locals = nodes.to_vec();
        app.demo = Some(board.clone());
        app.elections.show(node, &app.monitor, ELECTION);
        let app = Arc::new(app);
        flags::runner::start(&app);
        apps.push(app);
    }
    let root = api::router(apps[0].clone());
    apps.into_iter().fold(root, |root, app| {
        let path = format!("/{}", app.node.name());
        root.nest(&path, api::router(app))
    })
}

fn explain(nodes: &[Node], http: SocketAddr) {
    println!("Five nodes, linked by QUIC with mutual TLS, one store:");
    for node in nodes {
        println!("  {}  {}", node.name(), node.addr());
    }
    let root = format!("http://{http}");
    let node = if http.port() == 8_080 { String::new() } else { format!(" --node {root}") };
    println!(
        "
Dashboard:  {root}      through n3's eyes: {root}/n3

Try, in another terminal (tidings is target/debug/tidings):
  tidings put greeting hello{node}
  tidings get greeting --node {root}/n3
  tidings watch limits/{node}
  tidings members{node}
  curl -X POST {root}/v1/demo/cut/n3        # cut n3 off: both sides go on
  curl -X POST {root}/v1/demo/heal/n3       # they agree again
  tidings get {DISPUTED_KEY} --conflicts{node}    # what both sides wrote meanwhile

Ctrl-C ends it."
    );
}

/// Many keys, for a look at a full store.
async fn fill(node: &Node, keys: usize) {
    for number in 0..keys {
        if number % 1_000 == 0 {
            tokio::task::yield_now().await;
        }
        let key = format!("catalogue/{:02}/item-{number:06}", number % 100);
        while node.put(&key, format!("{{\"price\":{},\"stock\":{}}}", number * 7 % 991, number % 23)).is_err()
        {
            if node.writable().await.is_err() {
                return;
            }
        }
    }
}

/// What each node does all day: it changes settings now and then, counts, and keeps sessions that expire.
async fn work(node: Node, at: usize, board: Arc<Switchboard>) {
    let mut ticks = tokio::time::interval(WORK_INTERVAL);
    let settings = ["limits/requests", "limits/uploads", "limits/searches", "limits/mails", "routes/api"];
    if at == 0 {
        _ = node.put(DISPUTED_KEY, "light");
        _ = node.put("config/banner", "welcome");
        for (flag, definition) in FLAGS {
            _ = node.put(format!("flags/default/{flag}"), definition);
        }
    }
    _ = node.set("services").add(format!("search@{}", node.name()));
    for turn in 0_usize.. {
        ticks.tick().await;
        if node.is_closed() {
            return;
        }
        let name = node.name();
        let write = match (turn + at) % 4 {
            0 => node.put(format!("load/{name}"), format!("{} %", 20 + (turn * 13 + at * 29) % 60)),
            1 => node
                .put(settings[(turn / 4 + at) % settings.len()], format!("{}", (turn * 31 + at * 17) % 500)),
            2 => {
                let session = format!("sessions/{name}-{:03}", turn / 4 % 1_000);
                let user = format!("user-{}", (turn * 7 + at) % 97);
                node.put_with(session, user, PutOptions::new().ttl(SESSION_TTL))
            }
            _ => node.counter("requests").add(1 + i64::from(turn as u32 % 9)),
        };
        // A node that is cut off may be told to wait; the demo goes on.
        if write.is_err() && board.is_cut(at) {
            _ = node.writable().await;
        }
    }
}

/// Each node wants to lead. The leader writes what it does, and under which token.
async fn lead(node: Node) {
    while let Ok(lead) = node.election(ELECTION).campaign(node.name()).await {
        for round in 1.. {
            let work = format!("round {round} by {} under token {}", node.name(), lead.token());
            _ = node.put("scheduler/last-round", work);
            tokio::select! {
                () = lead.lost() => break,
                () = tokio::time::sleep(LEADER_INTERVAL) => {}
            }
        }
    }
}
