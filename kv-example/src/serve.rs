//! `tidings serve`: one node, its API and its dashboard.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tidings::{Node, Security};
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;
use tracing_subscriber::filter::LevelFilter;

use crate::access::Access;
use crate::api::{self, App, Protocol};
use crate::exit::{Exit, Failure};
use crate::flags;
use crate::process;
use crate::settings::Settings;
use crate::signals::{End, Reload};

/// How often the files that say who may connect are looked at. A change counts at the second look.
const FILES_INTERVAL: Duration = Duration::from_secs(2);

/// The node's last writes are given a moment, and the API's last answers; after this the process ends anyway.
const END_TIME_MAX: Duration = Duration::from_millis(2_500);

const EXAMPLES: &str = "\
Examples:
  tidings secret --out secret.txt
  tidings serve --name a --secret-file secret.txt
  tidings serve --name b --secret-file secret.txt --seed 127.0.0.1:7400 --listen 127.0.0.1:0 --http 127.0.0.1:8081

A settings' file has the same names with underscores:
  name = \"a\"
  seeds = [\"10.0.0.7:7400\", \"tidings.internal:7400\"]
  secret_file = \"/etc/tidings/secret\"
  meta = { zone = \"eu-1\" }
  [config]
  sync_interval = \"2s\"

Secrets and tokens never stand on the command line. A file is best (mode 600); TIDINGS_SECRET, TIDINGS_TOKEN and
TIDINGS_READ_TOKEN in the environment, or `secret`, `token` and `read_token` in the settings' file, work as well. All
files with secrets, tokens, certificates, revocation lists and names are read again some seconds after they were
replaced, and at once on SIGHUP.";

/// Run a node, with its HTTP API and its dashboard
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// A TOML file with settings; flags and environment go before it
    #[arg(long, env = "TIDINGS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tell others something about this node
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// What to log on the standard error: off, error, warn, info, debug
    #[arg(long, env = "TIDINGS_LOG", default_value = "info")]
    log: LevelFilter,
    #[command(flatten)]
    settings: Settings,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("\"{text}\" is not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Serve {
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        self.settings.meta.extend(self.meta);
        let settings = match &self.config {
            Some(path) => self.settings.or_file(path)?,
            None => self.settings,
        };
        let colours = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_max_level(self.log).with_ansi(colours);
        log.with_writer(std::io::stderr).init();
        crate::block_on(serve(settings))
    }
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    // Before any secret is in memory.
    process::guard();
    let Some(name) = settings.name.clone() else {
        return Err(Failure::usage("the node has no name").hint("give --name, unique in the cluster"));
    };
    let limits = settings.connection_limits()?;
    let watchers_max = settings.watchers_max()?;
    let flags_prefix = settings.flags_prefix()?;
    let mut access = Access::new(&settings)?;
    let listener = bind(settings.http(), "API", "--http").await?;
    let flagd_listener = match settings.flagd_sync {
        Some(addr) => Some(bind(addr, "service of flags", "--flagd-sync").await?),
        None => None,
    };
    let (mut end, mut reload) = (End::new()?, Reload::new()?);
    let config = settings.config()?;
    api::record_metrics();
    let node = tokio::select! {
        started = start(&settings, name, &access.security, config) => started?,
        () = end.recv() => return Ok(()),
    };
    let cluster = settings.cluster.as_deref().unwrap_or("tidings");
    let data_dir = settings.data_dir.as_deref();
    let mut app = App::new(&node, cluster, flags_prefix, data_dir, watchers_max).await;
    app.guard = access.guard.clone();
    for election in &settings.elections {
        app.elections.show(&node, &app.monitor, election);
    }
    let leaving = app.leaving.clone();
    let app = Arc::new(app);
    flags::runner::start(&app);
    let http = listener.local_addr()?;
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    let flagd = flagd_listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let flagd = flagd.map(|addr| format!(", flags for flagd at {addr}")).unwrap_or_default();
    println!("node {} at {}, API and dashboard at {scheme}://{http}{flagd}", node.name(), node.addr());
    let (stopping, stopped) = tokio::sync::watch::channel(false);
    let serve = |listener, protocol, routes| {
        let (tls, guard, mut stopped) = (access.tls.clone(), access.guard.clone(), stopped.clone());
        let stop = async move { _ = stopped.wait_for(|stopped| *stopped).await };
        tokio::spawn(api::serve(listener, protocol, tls, guard, routes, limits, stop))
    };
    let mut serving = vec![serve(listener, Protocol::Http1, api::router(app.clone()))];
    serving.extend(flagd_listener.map(|it| serve(it, Protocol::Http2, api::flagd_routes(app))));
    let mut look = tokio::time::interval(FILES_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A process that ends in order leaves, unless its operator has said that it will be back.
    let leaves = loop {
        tokio::select! {
            () = end.recv() => break !settings.expect_return,
            () = leaving.notified() => break true,
            // Keys are derived and files read: other tasks go on meanwhile.
            () = reload.recv() => tokio::task::block_in_place(|| access.reload()),
            _ = look.tick() => tokio::task::block_in_place(|| access.follow_files()),
        }
    };
    stopping.send_replace(true);
    let ending = async {
        if leaves {
            node.shutdown().await;
        } else {
            node.shutdown_expecting_return().await;
        }
        for serving in serving {
            _ = serving.await;
        }
    };
    if tokio::time::timeout(END_TIME_MAX, ending).await.is_err() {
        eprintln!("tidings: the shutdown took longer than 2.5 s; what was still running is aborted");
    }
    Ok(())
}

/// Binds a port for clients.
pub(crate) async fn bind(
    addr: std::net::SocketAddr,
    what: &str,
    setting: &str,
) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| {
        let failure = Failure::new(Exit::Failed, format!("the {what} cannot be bound to {addr}: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failure.hint(format!("something runs there already; give {setting} another port"))
            }
            _ => failure,
        }
    })
}

async fn start(
    settings: &Settings,
    name: String,
    security: &Security,
    config: tidings::Config,
) -> Result<Node, Failure> {
    let mut builder = Node::builder(name).listen(settings.listen()).seeds(&settings.seeds);
    builder = builder.security(security.clone()).config(config);
    if let Some(cluster) = &settings.cluster {
        builder = builder.cluster(cluster);
    }
    builder = builder.name_servers(settings.name_servers.iter().copied());
    if let Some(addr) = &settings.advertise {
        builder = builder.advertise(addr.as_str());
    }
    if let Some(dir) = &settings.data_dir {
        builder = builder.data_dir(dir.join("node"));
    }
    if let Some(snapshot) = &settings.restore {
        builder = builder.restore(snapshot);
    }
    if let Some(version) = &settings.app_version {
        builder = builder.app_version(version);
    }
    for (key, value) in &settings.meta {
        builder = builder.meta(key, value);
    }
    Ok(builder.start().await?)
}
