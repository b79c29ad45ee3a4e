//! What `serve` is told, by flags, by the environment, or by a file, in this order of precedence.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use tidings::{Config, Durability, OnCorruption, Security, SecurityError};

use crate::api::{ConnectionLimits, Origins, Tokens};
use crate::exit::Failure;
use crate::files;

/// Connections that are served at a time, unless told otherwise.
const CONNECTIONS_MAX: usize = 1_024;
/// The most that may be asked for, of connections and of event streams.
const CONNECTIONS_LIMIT: usize = 65_536;
/// The same from one address.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// Event streams that are served at a time, unless told otherwise.
const WATCHERS_MAX: usize = 256;

/// What stands before the keys of feature flags, unless told otherwise.
pub(crate) const FLAGS_PREFIX: &str = "flags/";

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
    /// Where others can reach this node, if that is not where they see it come from; a name is resolved at the start
    #[arg(long, env = "TIDINGS_ADVERTISE", value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// Where other nodes may be, also srv+NAME for the hosts of SRV records; names are resolved anew each time. The
    /// port is 7400 where none is given
    #[arg(long = "seed", env = "TIDINGS_SEEDS", value_name = "HOST[:PORT]", value_delimiter = ',')]
    #[serde(default)]
    pub(crate) seeds: Vec<String>,
    /// The DNS servers to ask for the hosts of srv+NAME [default: those of the system]
    #[arg(
        long = "name-server",
        env = "TIDINGS_NAME_SERVERS",
        value_name = "ADDRESS:PORT",
        value_delimiter = ','
    )]
    #[serde(default)]
    pub(crate) name_servers: Vec<SocketAddr>,
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
    /// Instead of a secret: the file with the authorities (PEM) whose certificates are accepted from other nodes
    #[arg(long, env = "TIDINGS_CLUSTER_CA_FILE", value_name = "FILE")]
    pub(crate) cluster_ca_file: Option<PathBuf>,
    /// The file with this node's certificate for other nodes (PEM), in its name
    #[arg(long, env = "TIDINGS_CLUSTER_CERTIFICATE_FILE", value_name = "FILE")]
    pub(crate) cluster_certificate_file: Option<PathBuf>,
    /// The file with the key of that certificate (PEM)
    #[arg(long, env = "TIDINGS_CLUSTER_KEY_FILE", value_name = "FILE")]
    pub(crate) cluster_key_file: Option<PathBuf>,
    /// The file with revocation lists (PEM), one at least of each authority that issues certificates of nodes
    #[arg(long, env = "TIDINGS_CLUSTER_REVOCATION_FILE", value_name = "FILE")]
    pub(crate) cluster_revocation_file: Option<PathBuf>,
    /// The file with the names of the nodes that may connect, one a line, where certificates come from files
    #[arg(long, env = "TIDINGS_CLUSTER_NAMES_FILE", value_name = "FILE")]
    pub(crate) cluster_names_file: Option<PathBuf>,
    /// The file with the bearer token of the HTTP API. Needed where it is not bound to this machine alone
    #[arg(long, env = "TIDINGS_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The file with a second token, which permits to read, to watch and to collect metrics, and nothing else
    #[arg(long, env = "TIDINGS_READ_TOKEN_FILE", value_name = "FILE")]
    pub(crate) read_token_file: Option<PathBuf>,
    /// Serve the HTTP API over TLS, with the certificates in this file (PEM)
    #[arg(long, env = "TIDINGS_HTTP_CERTIFICATE_FILE", value_name = "FILE")]
    pub(crate) http_certificate_file: Option<PathBuf>,
    /// The file with the key of that certificate (PEM)
    #[arg(long, env = "TIDINGS_HTTP_KEY_FILE", value_name = "FILE")]
    pub(crate) http_key_file: Option<PathBuf>,
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
    /// How long a lease lasts without renewal, and so how long there is no leader after a crash; at most
    /// --lease-time-max [default: 3s; 1s with the profile local]
    #[arg(long, env = "TIDINGS_LEASE_TIME", value_name = "TIME")]
    pub(crate) lease_time: Option<String>,
    /// The longest lease that a voter grants, the same on every node. Voters wait about that long after a start
    /// [default: 10s; 1s with the profile local]
    #[arg(long, env = "TIDINGS_LEASE_TIME_MAX", value_name = "TIME")]
    pub(crate) lease_time_max: Option<String>,
    /// How long a member stays known that is down or has left [default: 1d]
    #[arg(long, env = "TIDINGS_FORGET_AFTER", value_name = "TIME")]
    pub(crate) forget_after: Option<String>,
    /// How long a node with data on its disk waits for the others after a start, before it is ready alone [default:
    /// 30s; 60s with the profile wan, 5s with local]
    #[arg(long, env = "TIDINGS_ALONE_AFTER", value_name = "TIME")]
    pub(crate) alone_after: Option<String>,
    /// Elections that the dashboard shows, besides those that this node is asked about
    #[arg(long = "election", env = "TIDINGS_ELECTIONS", value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    pub(crate) elections: Vec<String>,
    /// The prefix of the keys of feature flags; it must end with a slash [default: flags/]
    #[arg(long, env = "TIDINGS_FLAGS_PREFIX", value_name = "PREFIX")]
    pub(crate) flags_prefix: Option<String>,
    /// A site whose pages may ask for flags by OFREP, such as `https://shop.example`; without any, no page of another
    /// site may
    #[arg(
        long = "ofrep-origin",
        env = "TIDINGS_OFREP_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    #[serde(default)]
    pub(crate) ofrep_origins: Vec<String>,
    /// Where to serve sets of flags to programs that evaluate them themselves, by flagd.sync.v1 over gRPC [default:
    /// nowhere]
    #[arg(long, env = "TIDINGS_FLAGD_SYNC", value_name = "ADDRESS:PORT")]
    pub(crate) flagd_sync: Option<SocketAddr>,
    /// The largest value, in bytes, up to 16777216 [default: 1048576]
    #[arg(long, env = "TIDINGS_VALUE_BYTES_MAX", value_name = "BYTES")]
    pub(crate) value_bytes_max: Option<usize>,
    /// The size of the store above which writes that let it grow are refused, from 65536 to 1099511627776; every key
    /// counts 200 bytes beside its own and its value's [default: 2147483648]
    #[arg(long, env = "TIDINGS_STORE_BYTES_MAX", value_name = "BYTES")]
    pub(crate) store_bytes_max: Option<usize>,
    /// Any interval or limit that `tidings reconfigure` shows, such as `sync_interval=2s`; in a file they are the
    /// fields of the table [config]
    #[arg(
        long = "set",
        env = "TIDINGS_SET",
        value_name = "FIELD=VALUE",
        value_delimiter = ',',
        value_parser = field
    )]
    #[serde(default, rename = "config", deserialize_with = "fields_of_table")]
    pub(crate) fields: Vec<(String, Value)>,
    /// HTTP connections at a time; on further ones only probes are answered [default: 1024]
    #[arg(long, env = "TIDINGS_CONNECTIONS_MAX", value_name = "COUNT")]
    pub(crate) connections_max: Option<usize>,
    /// The same from one address; raise it behind a proxy [default: 256, or --connections-max if that is less]
    #[arg(long, env = "TIDINGS_CONNECTIONS_PER_ADDRESS_MAX", value_name = "COUNT")]
    pub(crate) connections_per_address_max: Option<usize>,
    /// Event streams (watches, dashboards and flags) at a time; further ones are refused [default: 256]
    #[arg(long, env = "TIDINGS_WATCHERS_MAX", value_name = "COUNT")]
    pub(crate) watchers_max: Option<usize>,
    /// The secret itself. No flag: other users of the machine can read those.
    #[arg(skip)]
    pub(crate) secret: Option<Hidden>,
    /// The tokens themselves; no flags either.
    #[arg(skip)]
    pub(crate) token: Option<Hidden>,
    #[arg(skip)]
    pub(crate) read_token: Option<Hidden>,
}

/// A field of a node's configuration with its value: what is JSON as that, everything else as text.
pub(crate) fn field(argument: &str) -> Result<(String, Value), String> {
    let (name, value) = argument.split_once('=').ok_or("expected FIELD=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

fn fields_of_table<'de, D: Deserializer<'de>>(table: D) -> Result<Vec<(String, Value)>, D::Error> {
    Ok(Map::deserialize(table)?.into_iter().collect())
}

/// The secret or the token: from its own variable, its file, or the settings' file.
const SECRET_VARIABLE: &str = "TIDINGS_SECRET";
const TOKEN_VARIABLE: &str = "TIDINGS_TOKEN";
const READ_TOKEN_VARIABLE: &str = "TIDINGS_READ_TOKEN";

impl Settings {
    /// Fills what flags and environment leave open from a file.
    pub(crate) fn or_file(self, path: &Path) -> Result<Self, Failure> {
        let text = files::regular_text(path, files::SETTINGS_BYTES_MAX)?;
        let file: Self = toml::from_str(&text).map_err(|error| not_understood(path, &text, &error))?;
        if file.secret.is_some() || file.token.is_some() || file.read_token.is_some() {
            check_private(path)?;
        }
        // Each by itself: a field that is given twice is an error, and one that the file gives as well is not.
        let mut fields = file.config_fields()?;
        fields.extend(self.config_fields()?);
        Ok(Self {
            name: self.name.or(file.name),
            cluster: self.cluster.or(file.cluster),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            seeds: if self.seeds.is_empty() { file.seeds } else { self.seeds },
            name_servers: if self.name_servers.is_empty() { file.name_servers } else { self.name_servers },
            http: self.http.or(file.http),
            data_dir: self.data_dir.or(file.data_dir),
            restore: self.restore.or(file.restore),
            expect_return: self.expect_return || file.expect_return,
            secret_file: self.secret_file.or(file.secret_file),
            cluster_ca_file: self.cluster_ca_file.or(file.cluster_ca_file),
            cluster_certificate_file: self.cluster_certificate_file.or(file.cluster_certificate_file),
            cluster_key_file: self.cluster_key_file.or(file.cluster_key_file),
            cluster_revocation_file: self.cluster_revocation_file.or(file.cluster_revocation_file),
            cluster_names_file: self.cluster_names_file.or(file.cluster_names_file),
            token_file: self.token_file.or(file.token_file),
            read_token_file: self.read_token_file.or(file.read_token_file),
            http_certificate_file: self.http_certificate_file.or(file.http_certificate_file),
            http_key_file: self.http_key_file.or(file.http_key_file),
            profile: self.profile.or(file.profile),
            meta: if self.meta.is_empty() { file.meta } else { self.meta },
            app_version: self.app_version.or(file.app_version),
            elections: if self.elections.is_empty() { file.elections } else { self.elections },
            flags_prefix: self.flags_prefix.or(file.flags_prefix),
            ofrep_origins: if self.ofrep_origins.is_empty() {
                file.ofrep_origins
            } else {
                self.ofrep_origins
            },
            flagd_sync: self.flagd_sync.or(file.flagd_sync),
            fields: fields.into_iter().collect(),
            connections_max: self.connections_max.or(file.connections_max),
            connections_per_address_max: self
                .connections_per_address_max
                .or(file.connections_per_address_max),
            watchers_max: self.watchers_max.or(file.watchers_max),
            secret: file.secret,
            token: file.token,
            read_token: file.read_token,
            // The settings that are fields of [`Config`] are all among `fields`.
            ..Self::default()
        })
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7_400)))
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8_080)))
    }

    pub(crate) fn flags_prefix(&self) -> Result<&str, Failure> {
        let prefix = self.flags_prefix.as_deref().unwrap_or(FLAGS_PREFIX);
        // The keys of other things follow from it as well: without the slash they would be flags.
        if prefix.len() < 2 || !prefix.ends_with('/') {
            return Err(Failure::usage(format!("flags_prefix is \"{prefix}\", and has to end with a slash")));
        }
        Ok(prefix)
    }

    pub(crate) fn ofrep_origins(&self) -> Result<Origins, Failure> {
        Origins::new(&self.ofrep_origins).map_err(|origin| {
            let message =
                format!("ofrep_origins has \"{origin}\", which is not of the form scheme://host[:port]");
            Failure::usage(message)
                .hint("give it as browsers do, such as https://shop.example, without a path")
        })
    }

    pub(crate) fn connection_limits(&self) -> Result<ConnectionLimits, Failure> {
        let max = self.connections_max.unwrap_or(CONNECTIONS_MAX);
        within("connections_max", max, CONNECTIONS_LIMIT)?;
        let per_address_max = self.connections_per_address_max;
        let per_address_max = per_address_max.unwrap_or(CONNECTIONS_PER_ADDRESS_MAX.min(max));
        within("connections_per_address_max", per_address_max, max)
            .map_err(|failure| failure.hint("one address cannot have more than connections_max, for all"))?;
        Ok(ConnectionLimits { max, per_address_max })
    }

    pub(crate) fn watchers_max(&self) -> Result<usize, Failure> {
        let max = self.watchers_max.unwrap_or(WATCHERS_MAX);
        within("watchers_max", max, CONNECTIONS_LIMIT)?;
        Ok(max)
    }

    /// All files that say who may connect.
    pub(crate) fn access_files(&self) -> Vec<PathBuf> {
        let files = [
            &self.secret_file,
            &self.cluster_ca_file,
            &self.cluster_certificate_file,
            &self.cluster_key_file,
            &self.cluster_revocation_file,
            &self.cluster_names_file,
            &self.token_file,
            &self.read_token_file,
            &self.http_certificate_file,
            &self.http_key_file,
        ];
        files.into_iter().flatten().cloned().collect()
    }

    /// The files of the API's certificate and its key, if it speaks TLS.
    pub(crate) fn http_files(&self) -> Result<Option<[&Path; 2]>, Failure> {
        all_or_none([
            ("http_certificate_file", self.http_certificate_file.as_deref()),
            ("http_key_file", self.http_key_file.as_deref()),
        ])
    }

    /// The files of the cluster's authorities, of this node's certificate and of its key, if there is no secret.
    pub(crate) fn cluster_files(&self) -> Result<Option<[&Path; 3]>, Failure> {
        let files = all_or_none([
            ("cluster_ca_file", self.cluster_ca_file.as_deref()),
            ("cluster_certificate_file", self.cluster_certificate_file.as_deref()),
            ("cluster_key_file", self.cluster_key_file.as_deref()),
        ])?;
        if let Some([_, _, key]) = files {
            if self.secret_file.is_some()
                || self.secret.is_some()
                || std::env::var_os(SECRET_VARIABLE).is_some()
            {
                let message = "there are a secret and certificates of the cluster";
                return Err(Failure::usage(message).hint("give secret_file or the three cluster_*_file"));
            }
            check_private(key)?;
        }
        Ok(files)
    }

    /// The names of the nodes that may connect, if they are limited.
    pub(crate) fn cluster_names(&self) -> Result<Option<Vec<String>>, Failure> {
        let Some(path) = &self.cluster_names_file else { return Ok(None) };
        let text = files::regular_text(path, files::SETTINGS_BYTES_MAX)?;
        let names: Vec<String> =
            text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        if names.is_empty() {
            let message = format!("{} holds no name, and so nobody could connect", path.display());
            return Err(Failure::usage(message));
        }
        Ok(Some(names))
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

    /// The tokens of the HTTP API, which may be missing only where nobody but this machine can connect.
    pub(crate) fn tokens(&self) -> Result<Tokens, Failure> {
        let full = token("token", TOKEN_VARIABLE, self.token_file.as_deref(), self.token.as_ref())?;
        let read_only = token(
            "read_token",
            READ_TOKEN_VARIABLE,
            self.read_token_file.as_deref(),
            self.read_token.as_ref(),
        )?;
        let open =
            [Some(self.http()), self.flagd_sync].into_iter().flatten().find(|addr| !addr.ip().is_loopback());
        if let (None, Some(addr)) = (&full, open) {
            let message = format!("{addr} can be reached from other machines, and there is no token");
            let hint = format!(
                "make one with `tidings secret --out token.txt` and give --token-file token.txt (or \
                 {TOKEN_VARIABLE}), or bind --http and --flagd-sync to 127.0.0.1"
            );
            return Err(Failure::usage(message).hint(hint));
        }
        if read_only.is_some() && full.is_none() {
            let message = "there is a read_token and no token: a client without a token could do everything";
            return Err(Failure::usage(message).hint("give --token-file as well"));
        }
        if read_only.is_some() && read_only == full {
            return Err(Failure::usage("read_token and token are the same"));
        }
        Ok(Tokens { full, read_only })
    }

    /// The fields of [`Config`] that are given here: by settings of their own, and by `fields`.
    fn config_fields(&self) -> Result<Map<String, Value>, Failure> {
        let durability = |interval: &String| json!({ "interval": interval });
        let settings = [
            ("value_bytes_max", "value_bytes_max", json!(self.value_bytes_max)),
            ("store_bytes_max", "store_bytes_max", json!(self.store_bytes_max)),
            ("disk_interval", "durability", json!(self.disk_interval.as_ref().map(durability))),
            (
                "rejoin_on_corruption",
                "on_corruption",
                json!(self.rejoin_on_corruption.then_some(OnCorruption::Rejoin)),
            ),
            ("voters", "voters", json!(Some(&self.voters).filter(|voters| !voters.is_empty()))),
            ("lease_time", "lease_time", json!(self.lease_time)),
            ("lease_time_max", "lease_time_max", json!(self.lease_time_max)),
            ("forget_after", "forget_after", json!(self.forget_after)),
            ("alone_after", "alone_after", json!(self.alone_after)),
        ];
        let mut fields = Map::new();
        for (field, value) in &self.fields {
            if fields.insert(field.clone(), value.clone()).is_some() {
                return Err(Failure::usage(format!("\"{field}\" is given twice")));
            }
        }
        for (setting, field, value) in settings.into_iter().filter(|(.., value)| !value.is_null()) {
            if fields.insert(field.to_owned(), value).is_some() {
                let message =
                    format!("\"{field}\" is given twice: as {setting}, and among the fields of config");
                return Err(Failure::usage(message).hint("give it in one of the two places"));
            }
        }
        Ok(fields)
    }

    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let base = match self.profile {
            None | Some(Profile::Lan) => Config::lan(),
            Some(Profile::Wan) => Config::wan(),
            Some(Profile::Local) => Config::local(),
        };
        let mut fields = serde_json::to_value(base).expect("it consists of numbers and texts");
        for (field, value) in self.config_fields()? {
            let Some(known) = fields.get_mut(&field) else {
                let message = format!("\"{field}\" is no field of a node's configuration");
                let hint = "`tidings reconfigure` lists all fields; in a file the table [config] comes last";
                return Err(Failure::usage(message).hint(hint));
            };
            *known = value;
        }
        let read = serde_json::from_value(fields);
        let mut config: Config = read.map_err(|error| Failure::usage(error.to_string()))?;
        if config.durability == Durability::Interval(Duration::ZERO) {
            config.durability = Durability::Immediate;
        }
        Ok(config)
    }
}

fn within(field: &str, value: usize, max: usize) -> Result<(), Failure> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Failure::usage(format!("{field} is {value}, permitted: 1 to {max}")))
}

/// Files that belong together.
fn all_or_none<'a, const N: usize>(
    files: [(&'static str, Option<&'a Path>); N],
) -> Result<Option<[&'a Path; N]>, Failure> {
    let missing = files.iter().find(|(_, path)| path.is_none());
    let given = files.iter().find(|(_, path)| path.is_some());
    match (missing, given) {
        (_, None) => Ok(None),
        (Some((missing, _)), Some((given, _))) => {
            Err(Failure::usage(format!("{given} is given, and {missing} is not: they belong together")))
        }
        (None, Some(_)) => Ok(Some(files.map(|(_, path)| path.expect("none is missing")))),
    }
}

/// A token, which has to be as strong as a secret.
fn token(
    field: &str,
    variable: &str,
    file: Option<&Path>,
    own: Option<&Hidden>,
) -> Result<Option<String>, Failure> {
    let token = secret_text(variable, file, own)?;
    let Some(token) = token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if let Err(SecurityError::Weak { bits, bits_min }) = Security::secret(&token) {
        let message = format!(
            "the {field} is too easy to guess: it is worth about {bits} bits, and at least {bits_min} are needed"
        );
        return Err(Failure::usage(message).hint("make a good one with `tidings secret --out token.txt`"));
    }
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        let message =
            format!("the {field} holds characters that a header of HTTP cannot: use ASCII without blanks");
        return Err(Failure::usage(message));
    }
    Ok(Some(token))
}

/// What is wrong with a settings file: the line and the name of the setting. Neither the line itself nor a value is
/// shown, because it may be the secret; the messages of the parser show both.
fn not_understood(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count();
    let place = format!("{}, line {}", path.display(), line + 1);
    let unknown = error.message().strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let key = |line: usize| text.lines().nth(line)?.split_once('=').map(|(key, _)| key.trim());
    let message = match (unknown, toml::from_str::<toml::Table>(text)) {
        (_, Err(error)) if error.message().starts_with("duplicate key") => {
            format!("{place}: \"{}\" is given twice", key(line).unwrap_or("a table"))
        }
        (_, Err(_)) => format!("{place}: this is not TOML"),
        (Some((key, _)), Ok(_)) => format!("{place}: there is no setting \"{key}\""),
        (None, Ok(settings)) => match key(line).filter(|key| settings.contains_key(*key)) {
            Some(key) => format!("{place}: the value of \"{key}\" is not of the form that it needs"),
            None => format!("{place}: a value is not of the form that its setting needs"),
        },
    };
    Failure::usage(message).hint("`tidings serve --help` explains every setting")
}

fn secret_text(variable: &str, file: Option<&Path>, own: Option<&Hidden>) -> Result<Option<String>, Failure> {
    // A file can be read again on SIGHUP and is not inherited by child processes: it goes first.
    if let Some(path) = file {
        check_private(path)?;
        return files::regular_text(path, files::SETTINGS_BYTES_MAX).map(Some);
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
pub(crate) fn check_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_err(|error| Failure::file(path, &error))?.permissions().mode();
    if mode & 0o027 != 0 {
        let message =
            format!("{} can be read or changed by others (mode {:03o})", path.display(), mode & 0o777);
        return Err(Failure::usage(message).hint(format!("chmod 600 {}", path.display())));
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the same call as where files have modes")]
pub(crate) fn check_private(_: &Path) -> Result<(), Failure> {
    Ok(())
}
