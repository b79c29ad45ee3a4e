//! `tidings serve`: one node, its API and its dashboard.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tidings::{Node, Security, SecurityError};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

use crate::api::{self, App, Guard};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::signals::{End, Reload};

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

Secrets and tokens never stand on the command line. A file is best (mode 600); TIDINGS_SECRET and TIDINGS_TOKEN in the
environment, or `secret` and `token` in the settings' file, work as well. SIGHUP reads the secret file again.";

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
    let Some(name) = settings.name.clone() else {
        return Err(Failure::usage("the node has no name").hint("give --name, unique in the cluster"));
    };
    let token = settings.token()?;
    let secrets = settings.secrets()?;
    let security = Security::secret(&secrets[0])?;
    for secret in &secrets[1..] {
        security.accept(secret)?;
    }
    let listener = bind(settings.http()).await?;
    let (mut end, mut reload) = (End::new()?, Reload::new()?);
    let config = settings.config()?;
    let value_bytes_max = config.value_bytes_max;
    let node = tokio::select! {
        started = start(&settings, name, &security, config) => started?,
        () = end.recv() => return Ok(()),
    };
    let cluster = settings.cluster.as_deref().unwrap_or("tidings");
    let mut app = App::new(&node, cluster, value_bytes_max, settings.watchers_max());
    app.snapshots = settings.data_dir.as_ref().map(|dir| dir.join("snapshots"));
    for election in &settings.elections {
        app.elections.show(&node, &app.monitor, election);
    }
    let leaving = app.leaving.clone();
    let app = Arc::new(app);
    let http = listener.local_addr()?;
    println!("node {} at {}, API and dashboard at http://{http}", node.name(), node.addr());
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let stop = async move { _ = stopped.wait_for(|stopped| *stopped).await };
    let guard = Guard::new(token.as_deref());
    let serving =
        tokio::spawn(api::serve(listener, guard, api::router(app), settings.connections_max(), stop));
    let mut accepted = secrets;
    // A process that ends in order leaves, unless whoever runs it has said that it will be back.
    let leaves = loop {
        tokio::select! {
            () = end.recv() => break !settings.expect_return,
            () = leaving.notified() => break true,
            () = reload.recv() => rotate(&settings, &security, &mut accepted),
        }
    };
    stopping.send_replace(true);
    let ending = async {
        if leaves {
            node.shutdown().await;
        } else {
            node.shutdown_expecting_return().await;
        }
        _ = serving.await;
    };
    if tokio::time::timeout(END_TIME_MAX, ending).await.is_err() {
        eprintln!("tidings: not everything came to its end in time");
    }
    Ok(())
}

/// Binds the port of the API.
pub(crate) async fn bind(addr: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| {
        let failure = Failure::new(Exit::Failed, format!("the API cannot be bound to {addr}: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failure.hint("something runs there already; give --http another port")
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
    if let Some(addr) = settings.advertise {
        builder = builder.advertise(addr);
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

/// Follows the secret file: what is new in it is accepted, its first line is presented, what is gone from it is
/// refused. If one of them cannot be used, that is logged, and what was in force stays so.
fn rotate(settings: &Settings, security: &Security, accepted: &mut Vec<String>) {
    let secrets = match settings.secrets() {
        Ok(secrets) => secrets,
        Err(failure) => return eprintln!("tidings: the secrets stay as they are: {failure}"),
    };
    let not_used = |at: usize, error: SecurityError| {
        eprintln!(
            "tidings: the secrets stay as they are: the one in line {} cannot be used: {error}",
            at + 1
        );
    };
    for (at, secret) in secrets.iter().enumerate() {
        if let Err(error) = Security::secret(secret) {
            return not_used(at, error);
        }
    }
    for (at, secret) in secrets.iter().enumerate() {
        let done = if at == 0 { security.present(secret) } else { security.accept(secret) };
        if let Err(error) = done {
            return not_used(at, error);
        }
        if !accepted.contains(secret) {
            accepted.push(secret.clone());
        }
    }
    accepted.retain(|old| {
        let is_removed = !secrets.contains(old) && security.remove(old).is_ok();
        !is_removed
    });
    let accepted = accepted.len();
    eprintln!("tidings: read the secrets again: {accepted} accepted, the first is used");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_secrets_follow_the_file_or_stay_unchanged() {
        let folder = std::env::temp_dir().join(format!("tidings-rotate-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("secrets");
        let settings = Settings { secret_file: Some(file.clone()), ..Settings::default() };
        let [old, new, last] = ["the secret of this year", "the secret of the next", "that of the one after"];
        let (security, mut accepted) = (Security::secret(old).unwrap(), vec![old.to_owned()]);
        let mut read = |lines: &[&str]| {
            std::fs::write(&file, lines.join("\n")).unwrap();
            #[cfg(unix)]
            {
                let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                std::fs::set_permissions(&file, private).unwrap();
            }
            rotate(&settings, &security, &mut accepted);
            accepted.clone()
        };
        assert_eq!(read(&[new, "short"]), [old]);
        assert_eq!(security.remove(new), Err(SecurityError::NotAccepted));
        assert_eq!(security.remove(old), Err(SecurityError::InUse));
        assert_eq!(read(&[new, old]), [old, new]);
        assert_eq!(read(&[last]), [last]);
        for gone in [old, new] {
            assert_eq!(security.remove(gone), Err(SecurityError::NotAccepted));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
