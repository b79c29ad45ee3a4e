//! What `serve` is told, by flags, by the environment, or by a file, in this order of precedence.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use tidings::{Config, Durability, OnCorruption};

use crate::exit::Failure;
use crate::span;

/// Connections that are served at a time, unless told otherwise.
const CONNECTIONS_MAX: usize = 1_024;
/// Event streams that are served at a time, unless told otherwise.
const WATCHERS_MAX: usize = 256;

/// Intervals to start from.
#[derive(Clone, Copy, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    /// Nodes in one data centre.
    Lan,
    /// Nodes far apart.
    Wan,
    /// Tests and demonstrations on one machine.
    Local,
}

/// A token shorter than this many bytes is refused where other machines can reach the API.
const TOKEN_BYTES_MIN: usize = 16;

/// A secret or a token as it stands in a settings file. It is never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Every setting of a node. A file has the same names with underscores instead of dashes, and may hold `secret` and
/// `token` themselves besides.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The node's name, unique in the cluster: lower-case letters, digits, '-', '.', '_'
    #[arg(long, env = "TIDINGS_NAME")]
    pub(crate) name: Option<String>,
    /// The cluster's name [default: tidings]
    #[arg(long, env = "TIDINGS_CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Where to listen for other nodes (UDP) [default: 127.0.0.1:7400]
    #[arg(long, env = "TIDINGS_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where others can reach this node, if that is not where they see it come from
    #[arg(long, env = "TIDINGS_ADVERTISE", value_name = "ADDRESS:PORT")]
    pub(crate) advertise: Option<SocketAddr>,
    /// Where other nodes may be; host names are resolved anew each time
    #[arg(long = "seed", env = "TIDINGS_SEEDS", value_name = "HOST:PORT", value_delimiter = ',')]
    #[serde(default)]
    pub(crate) seeds: Vec<String>,
    /// Where to serve the HTTP API and the dashboard [default: 127.0.0.1:8080]
    #[arg(long, env = "TIDINGS_HTTP", value_name = "ADDRESS:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Keep everything in this directory as well; without it the node lives in memory
    #[arg(long, env = "TIDINGS_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Begin with what this snapshot holds, if the data directory is new
    #[arg(long, env = "TIDINGS_RESTORE", value_name = "FILE")]
    pub(crate) restore: Option<PathBuf>,
    /// If the data directory is damaged, move it aside and fetch everything from the peers
    #[arg(long, env = "TIDINGS_REJOIN_ON_CORRUPTION")]
    #[serde(default)]
    pub(crate) rejoin_on_corruption: bool,
    /// On SIGTERM and Ctrl-C stay a member that is expected back, instead of leaving the cluster
    #[arg(long, env = "TIDINGS_EXPECT_RETURN")]
    #[serde(default)]
    pub(crate) expect_return: bool,
    /// Write the disk at most once in this time [default: 50ms]
    #[arg(long, env = "TIDINGS_DISK_INTERVAL", value_name = "TIME")]
    pub(crate) disk_interval: Option<String>,
    /// The file with the cluster's secret, one a line: the first is used, all are accepted. Read again on SIGHUP
    #[arg(long, env = "TIDINGS_SECRET_FILE", value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// The file with the bearer token of the HTTP API. Needed where it is not bound to this machine alone
    #[arg(long, env = "TIDINGS_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Intervals to start from [default: lan]
    #[arg(long, env = "TIDINGS_PROFILE")]
    pub(crate) profile: Option<Profile>,
    /// Tell others something about this node, such as zone=eu-1
    #[arg(skip)]
    #[serde(default)]
    pub(crate) meta: BTreeMap<String, String>,
    /// The version of the application, for others to see
    #[arg(long, env = "TIDINGS_APP_VERSION", value_name = "VERSION")]
    pub(crate) app_version: Option<String>,
    /// The nodes whose majority grants leases, the same on every node; an odd number of names
    #[arg(long = "voter", env = "TIDINGS_VOTERS", value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    pub(crate) voters: Vec<String>,
    /// How long a leader that dies stands in the way, up to --lease-time-max [default: 3s; 1s with the profile local]
    #[arg(long, env = "TIDINGS_LEASE_TIME", value_name = "TIME")]
    pub(crate) lease_time: Option<String>,
    /// The longest lease that a voter grants, the same on every node. Voters wait about that long after a start [default:
    /// 10s; 1s with the profile local]
    #[arg(long, env = "TIDINGS_LEASE_TIME_MAX", value_name = "TIME")]
    pub(crate) lease_time_max: Option<String>,
    /// Elections that the dashboard shows, besides those that this node is asked about
    #[arg(long = "election", env = "TIDINGS_ELECTIONS", value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    pub(crate) elections: Vec<String>,
    /// The largest value, in bytes, up to 16777216 [default: 1048576]
    #[arg(long, env = "TIDINGS_VALUE_BYTES_MAX", value_name = "BYTES")]
    pub(crate) value_bytes_max: Option<usize>,
    /// HTTP connections at a time; further ones wait [default: 1024]
    #[arg(long, env = "TIDINGS_CONNECTIONS_MAX", value_name = "COUNT")]
    pub(crate) connections_max: Option<usize>,
    /// Event streams (watches and dashboards) at a time; further ones are refused [default: 256]
    #[arg(long, env = "TIDINGS_WATCHERS_MAX", value_name = "COUNT")]
    pub(crate) watchers_max: Option<usize>,
    /// The secret itself. No flag: other users of the machine can read those.
    #[arg(skip)]
    pub(crate) secret: Option<Hidden>,
    /// The token itself; no flag either.
    #[arg(skip)]
    pub(crate) token: Option<Hidden>,
}

/// The secret or the token: from its own variable, its file, or the settings' file.
const SECRET_VARIABLE: &str = "TIDINGS_SECRET";
const TOKEN_VARIABLE: &str = "TIDINGS_TOKEN";

impl Settings {
    /// Fills what flags and environment leave open from a file.
    pub(crate) fn or_file(self, path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
        let file: Self = toml::from_str(&text).map_err(|error| not_understood(path, &text, &error))?;
        if file.secret.is_some() || file.token.is_some() {
            check_private(path)?;
        }
        Ok(Self {
            name: self.name.or(file.name),
            cluster: self.cluster.or(file.cluster),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            seeds: if self.seeds.is_empty() { file.seeds } else { self.seeds },
            http: self.http.or(file.http),
            data_dir: self.data_dir.or(file.data_dir),
            restore: self.restore.or(file.restore),
            rejoin_on_corruption: self.rejoin_on_corruption || file.rejoin_on_corruption,
            expect_return: self.expect_return || file.expect_return,
            disk_interval: self.disk_interval.or(file.disk_interval),
            secret_file: self.secret_file.or(file.secret_file),
            token_file: self.token_file.or(file.token_file),
            profile: self.profile.or(file.profile),
            meta: if self.meta.is_empty() { file.meta } else { self.meta },
            app_version: self.app_version.or(file.app_version),
            voters: if self.voters.is_empty() { file.voters } else { self.voters },
            lease_time: self.lease_time.or(file.lease_time),
            lease_time_max: self.lease_time_max.or(file.lease_time_max),
            elections: if self.elections.is_empty() { file.elections } else { self.elections },
            value_bytes_max: self.value_bytes_max.or(file.value_bytes_max),
            connections_max: self.connections_max.or(file.connections_max),
            watchers_max: self.watchers_max.or(file.watchers_max),
            secret: file.secret,
            token: file.token,
        })
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7_400)))
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8_080)))
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max.unwrap_or(CONNECTIONS_MAX)
    }

    pub(crate) fn watchers_max(&self) -> usize {
        self.watchers_max.unwrap_or(WATCHERS_MAX)
    }

    /// The secrets of the cluster, the one in use first.
    pub(crate) fn secrets(&self) -> Result<Vec<String>, Failure> {
        let lines = match secret_text(SECRET_VARIABLE, self.secret_file.as_deref(), self.secret.as_ref())? {
            Some(text) => {
                text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
            }
            None => Vec::new(),
        };
        if lines.is_empty() {
            let message = "there is no secret, and without one nobody may connect".to_owned();
            let hint = format!(
                "make one with `tidings secret --out secret.txt`, copy it to every node, and give --secret-file \
                 secret.txt (or {SECRET_VARIABLE} in the environment, or `secret` in the settings' file)"
            );
            return Err(Failure::usage(message).hint(hint));
        }
        Ok(lines)
    }

    /// The token of the HTTP API, which may be missing only where nobody but this machine can connect.
    pub(crate) fn token(&self) -> Result<Option<String>, Failure> {
        let token = secret_text(TOKEN_VARIABLE, self.token_file.as_deref(), self.token.as_ref())?;
        let token = token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if token.is_none() && !self.http().ip().is_loopback() {
            let message =
                format!("{} can be reached from other machines, and there is no token", self.http());
            let hint = format!(
                "make one with `tidings secret --out token.txt` and give --token-file token.txt (or \
                 {TOKEN_VARIABLE}), or bind --http to 127.0.0.1"
            );
            return Err(Failure::usage(message).hint(hint));
        }
        let bytes = token.as_deref().map_or(TOKEN_BYTES_MIN, str::len);
        if bytes < TOKEN_BYTES_MIN && !self.http().ip().is_loopback() {
            let message = format!(
                "{} can be reached from other machines, and the token is easy to guess: it has {bytes} bytes, at \
                 least {TOKEN_BYTES_MIN} are needed",
                self.http()
            );
            return Err(Failure::usage(message).hint("make a good one with `tidings secret --out token.txt`"));
        }
        Ok(token)
    }

    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let mut config = match self.profile {
            None | Some(Profile::Lan) => Config::lan(),
            Some(Profile::Wan) => Config::wan(),
            Some(Profile::Local) => Config::local(),
        };
        if let Some(bytes) = self.value_bytes_max {
            config.value_bytes_max = bytes;
        }
        if let Some(interval) = &self.disk_interval {
            let interval = span::parse(interval).map_err(Failure::usage)?;
            let is_immediate = interval == Duration::ZERO;
            config.durability =
                if is_immediate { Durability::Immediate } else { Durability::Interval(interval) };
        }
        config.voters.clone_from(&self.voters);
        if let Some(time) = &self.lease_time {
            config.lease_time = span::parse(time).map_err(Failure::usage)?;
        }
        if let Some(time) = &self.lease_time_max {
            config.lease_time_max = span::parse(time).map_err(Failure::usage)?;
        }
        if self.rejoin_on_corruption {
            config.on_corruption = OnCorruption::Rejoin;
        }
        Ok(config)
    }
}

/// What is wrong with a settings file: the line and the name of the setting. Neither the line itself nor a value is
/// shown, because it may be the secret; the messages of the parser show both.
fn not_understood(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count();
    let place = format!("{}, line {}", path.display(), line + 1);
    let unknown = error.message().strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let message = match (unknown, toml::from_str::<toml::Table>(text)) {
        (_, Err(_)) => format!("{place}: this is not TOML"),
        (Some((key, _)), Ok(_)) => format!("{place}: there is no setting \"{key}\""),
        (None, Ok(settings)) => {
            let key = text.lines().nth(line).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
            match key.filter(|key| settings.contains_key(*key)) {
                Some(key) => format!("{place}: the value of \"{key}\" is not of the form that it needs"),
                None => format!("{place}: a value is not of the form that its setting needs"),
            }
        }
    };
    Failure::usage(message).hint("`tidings serve --help` explains every setting")
}

fn secret_text(variable: &str, file: Option<&Path>, own: Option<&Hidden>) -> Result<Option<String>, Failure> {
    // A file can be read again on SIGHUP and is not inherited by child processes: it goes first.
    if let Some(path) = file {
        check_private(path)?;
        return fs::read_to_string(path).map(Some).map_err(|error| Failure::file(path, &error));
    }
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(own.map(|Hidden(text)| text.clone())),
        // The error itself would show the value.
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!("{variable} is not UTF-8"))),
    }
}

/// Refuses a file with a secret that others may read, or anybody else may change. Its group may read it: that is how
/// secrets are mounted into containers.
#[cfg(unix)]
fn check_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map_err(|error| Failure::file(path, &error))?.permissions().mode();
    if mode & 0o027 != 0 {
        let message =
            format!("{} can be read or changed by others (mode {:03o})", path.display(), mode & 0o777);
        return Err(Failure::usage(message).hint(format!("chmod 600 {}", path.display())));
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the same call as where files have modes")]
fn check_private(_: &Path) -> Result<(), Failure> {
    Ok(())
}
