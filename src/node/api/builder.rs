//! The builder: collects what a node is made of, checks it, and starts the node's tasks.
//!
//! Everything that can be wrong with the arguments is checked before the port is bound and the directory is opened, so
//! that a [`StartError`] leaves nothing running.

use std::collections::BTreeMap;
use std::net::SocketAddr;
#[cfg(feature = "durable")]
use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::error::{Cause, StartError};
use crate::id::RunId;
use crate::membership::{META_BYTES_MAX, META_ENTRIES_MAX, Member};
use crate::node::Node;
#[cfg(feature = "durable")]
use crate::node::disk;
use crate::node::net::network::{Network, ShutdownGuard, bind};
use crate::node::net::peers::NodeIdentity;
use crate::node::net::security::{Security, check_node_name};
use crate::node::net::seeds::{DialTargets, Seeds, host_and_port};
#[cfg(feature = "srv")]
use crate::node::net::srv::NameServers;
use crate::node::runtime::driver;
use crate::node::runtime::join_board::JoinBoard;
use crate::node::runtime::shared::Shared;
#[cfg(not(feature = "durable"))]
use crate::replica::Replica;
use crate::replica::{Setup, Validators};

/// Events of all links that wait for the driver. When so many wait, links stop reading.
const LINK_EVENTS_MAX: usize = 256;

/// The configuration of a node that is not started yet. [`Node::builder`] makes one, [`Builder::start`] starts the
/// node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::{Config, Node, Security};
///
/// let node = Node::builder("orders-1")
///     .cluster("shop")
///     .listen("127.0.0.1:0".parse()?)
///     .seeds(["127.0.0.1:7400", "localhost:7401"])
///     .security(Security::secret(&Security::generate_secret())?)
///     .config(Config::lan())
///     .meta("zone", "eu-1")
///     .app_version("2.1")
///     .start()
///     .await?;
/// assert_eq!(node.members()[0].meta["zone"], "eu-1");
/// # Ok(()) }
/// ```
pub struct Builder {
    name: String,
    cluster: String,
    listen: SocketAddr,
    advertise: Option<String>,
    #[cfg(feature = "srv")]
    name_servers: NameServers,
    seeds: Vec<String>,
    security: Option<Security>,
    config: Config,
    meta: BTreeMap<String, String>,
    app_version: String,
    accepts_version: Box<dyn Fn(&str) -> bool + Send + Sync>,
    validators: Validators,
    #[cfg(feature = "durable")]
    data_dir: Option<PathBuf>,
    #[cfg(feature = "durable")]
    snapshot: Option<PathBuf>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(in crate::node) fn new(name: String) -> Self {
        Self {
            name,
            cluster: "tidings".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            #[cfg(feature = "srv")]
            name_servers: NameServers::default(),
            seeds: Vec::new(),
            security: None,
            config: Config::lan(),
            meta: BTreeMap::new(),
            app_version: String::new(),
            accepts_version: Box::new(|_| true),
            validators: Validators::default(),
            #[cfg(feature = "durable")]
            data_dir: None,
            #[cfg(feature = "durable")]
            snapshot: None,
        }
    }

    /// The cluster's name; nodes of other clusters are refused. Default: "tidings".
    #[must_use]
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// The address to listen on; port 0 takes any free port. Default: `127.0.0.1:0`, which only this machine can reach.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// The address that other nodes dial to reach this one. Default: the IP address that they see its packets come
    /// from, with the port of [`Builder::listen`]. Set it where that cannot be dialled, as behind a translation of
    /// addresses or ports: an address or a host name, with or without a port (default: that of [`Builder::listen`]). A
    /// name is resolved when the node starts, to an address of the family on which it listens.
    #[must_use]
    pub fn advertise(mut self, addr: impl Into<String>) -> Self {
        self.advertise = Some(addr.into());
        self
    }

    /// Where other nodes may be: `host`, `host:port`, `[IPv6]:port`, or `srv+name` for the hosts and ports of the SRV
    /// records of a name (with the feature `srv`). The port is 7400 where none is given. Names are resolved again at
    /// every attempt, and all their addresses are dialled. Seeds are tried for ever. A node without seeds waits to be
    /// dialled, and is ready at once.
    #[must_use]
    pub fn seeds<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(seeds.into_iter().map(Into::into));
        self
    }

    /// The DNS servers that are asked for the SRV records of seeds, and for the hosts in them, in place of those of the
    /// system: for example the DNS interface of a service catalogue.
    #[cfg(feature = "srv")]
    #[must_use]
    pub fn name_servers(mut self, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.name_servers.add(servers);
        self
    }

    /// Who may connect. Required: a node does not start without it.
    #[must_use]
    pub fn security(mut self, security: Security) -> Self {
        self.security = Some(security);
        self
    }

    /// Limits and intervals. Default: [`Config::lan`].
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Adds an entry to this node's metadata, which all members see.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// The version of the application. Other members see it, and may refuse it ([`Builder::accepts_version`]).
    #[must_use]
    pub fn app_version(mut self, version: impl Into<String>) -> Self {
        self.app_version = version.into();
        self
    }

    /// Decides which application versions of other nodes are accepted. Default: all.
    #[must_use]
    pub fn accepts_version(mut self, accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.accepts_version = Box::new(accepts);
        self
    }

    /// Checks every value of the keys that begin with `prefix`, with this check and all others whose prefix fits.
    ///
    /// A local write whose value does not pass is refused with [`WriteError::Invalid`](crate::WriteError::Invalid), a
    /// batch as a whole. What other nodes have written, or an earlier run of this one, is never refused: nodes that judge
    /// differently, as while a new version of a program is rolled out, must still come to hold the same. It is read as
    /// any other value, counted ([`Status::invalid_values`](crate::Status::invalid_values), the metric
    /// `tidings_invalid_values`) and reported ([`ReplicaEvent::Invalid`](crate::ReplicaEvent::Invalid)). So give all nodes
    /// the same checks.
    ///
    /// The check is called while the store is locked, for local writes and for what arrives: it must be quick and must
    /// not use the node. One that panics finds the value invalid.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let security = tidings::Security::secret(&tidings::Security::generate_secret())?;
    /// use tidings::{Node, WriteError};
    ///
    /// let limit = |key: &str, value: &[u8]| match std::str::from_utf8(value).map(str::parse::<u32>) {
    ///     Ok(Ok(_)) => Ok(()),
    ///     _ => Err(format!("{key} must be a number")),
    /// };
    /// let node = Node::builder("a").security(security).validate("limits/", limit).start().await?;
    /// node.put("limits/max", "100")?;
    /// let refused = node.put("limits/max", "many").unwrap_err();
    /// assert!(matches!(refused, WriteError::Invalid { key, .. } if key == "limits/max"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn validate<E: std::fmt::Display>(
        mut self,
        prefix: impl Into<String>,
        check: impl Fn(&str, &[u8]) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validators.add(prefix.into(), check);
        self
    }

    /// Keeps everything in this directory as well, which is created if it does not exist. Without it the node keeps its
    /// data in memory alone, and the data lasts as long as one node of the cluster runs.
    ///
    /// An old copy of the directory does no harm to the data: what it lacks comes from the peers, and what was deleted
    /// since then stays deleted. A voter that starts with an old copy has forgotten the latest terms that it granted:
    /// if its wall clock is wrong as well, tokens may decrease (see [`Election`](crate::Election)).
    #[cfg(feature = "durable")]
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Starts with the content of a snapshot ([`Node::snapshot`]), if no data directory is given or it holds nothing
    /// yet.
    #[cfg(feature = "durable")]
    #[must_use]
    pub fn restore(mut self, path: impl Into<PathBuf>) -> Self {
        self.snapshot = Some(path.into());
        self
    }

    /// Starts the node, which from now on dials its seeds. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start(self) -> Result<Node, StartError> {
        // Boxed, because it moves whole replicas: the futures of callers stay small.
        Box::pin(self.make()).await
    }

    async fn make(self) -> Result<Node, StartError> {
        self.config.check()?;
        check_node_name(&self.name)?;
        if self.cluster.is_empty() || self.cluster.len() > 255 {
            return Err(StartError::Cluster);
        }
        let entries: usize = self.meta.iter().map(|(key, value)| key.len() + value.len()).sum();
        let meta_bytes = entries + self.app_version.len();
        if meta_bytes > META_BYTES_MAX {
            return Err(StartError::Meta { bytes: meta_bytes, limit: META_BYTES_MAX });
        }
        if self.meta.len() > META_ENTRIES_MAX {
            return Err(StartError::MetaEntries { entries: self.meta.len(), limit: META_ENTRIES_MAX });
        }
        let seeds = Seeds::new(self.seeds)?;
        let security = self.security.ok_or(StartError::NoSecurity)?;
        let server = derived(security.clone(), self.cluster.clone(), self.name.clone()).await?;
        let endpoint = bind(self.listen, server)?;
        let failed =
            |error: std::io::Error| StartError::Bind { addr: self.listen, reason: Cause::new(error) };
        let addr = endpoint.local_addr().map_err(failed)?;
        let advertised = advertised(self.advertise.as_deref(), addr).await?;
        let [seed, run] = random()?;
        let run = RunId::new(run);
        let mut own = Member::new(self.name.clone(), run, advertised.unwrap_or(addr));
        own.app_version.clone_from(&self.app_version);
        own.meta = self.meta;
        let identity = NodeIdentity {
            cluster: self.cluster,
            app_version: self.app_version,
            accepts_version: self.accepts_version,
            advertised,
            #[cfg(feature = "srv")]
            name_servers: self.name_servers,
        };
        if !self.config.voters.is_empty() && self.config.voters.len().is_multiple_of(2) {
            tracing::warn!(node = %self.name, "even number of voters: one voter less would tolerate as many failures");
        }
        let mut setup = Setup::new(self.config, seed);
        setup.member = Some(own);
        setup.validators = self.validators;
        setup.is_founder = seeds.is_empty();
        #[cfg(feature = "durable")]
        let (replica, opened) = {
            let (dir, snapshot) = (self.data_dir, self.snapshot);
            let opening = move || disk::open(setup, dir.as_deref(), snapshot.as_ref());
            tokio::task::spawn_blocking(opening).await.expect("opening does not panic")?
        };
        #[cfg(not(feature = "durable"))]
        let replica = Replica::new(setup);
        replica.judge_own_settings()?;
        let (dial_requests, asked) = mpsc::unbounded_channel();
        let join_board = if seeds.is_empty() { JoinBoard::alone() } else { JoinBoard::default() };
        let shared = Shared::new(
            self.name,
            run,
            addr,
            replica,
            DialTargets { requests: dial_requests, seeds },
            join_board,
        );
        // If the caller drops this future from here on, dropping the handle closes the node.
        let node = Node::new(shared.clone());
        #[cfg(feature = "durable")]
        {
            let shared = shared.clone();
            let attaching = move || disk::attach(&shared, opened);
            tokio::task::spawn_blocking(attaching).await.expect("attaching does not panic");
        }
        let (events, received) = mpsc::channel(LINK_EVENTS_MAX);
        let network = Network::new(shared.clone(), identity, security, endpoint, events);
        tokio::spawn(network.run(asked, ShutdownGuard(shared.clone())));
        tokio::spawn(driver::drive(shared, received));
        Ok(node)
    }
}

/// The address that stands for what is advertised. Of several addresses of a name it is the first of the family of
/// `listening`.
async fn advertised(name: Option<&str>, listening: SocketAddr) -> Result<Option<SocketAddr>, StartError> {
    let Some(name) = name else { return Ok(None) };
    let failed = |reason: Cause| StartError::Advertise { name: name.to_owned(), reason };
    let Some((host, port)) = host_and_port(name, listening.port()) else {
        return Err(failed(Cause::new("it is none of host, host:port and [IPv6]:port")));
    };
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| failed(Cause::new(error)))?;
    let usable = |addr: &SocketAddr| addr.is_ipv4() || !listening.is_ipv4();
    let (same, other): (Vec<_>, Vec<_>) =
        found.filter(usable).partition(|addr| addr.is_ipv4() == listening.is_ipv4());
    let addr = same.into_iter().chain(other).next();
    addr.map(Some)
        .ok_or_else(|| failed(Cause::new("the name has no address of the family on which the node listens")))
}

/// The configuration of the endpoint. Deriving a key from a secret takes some tenths of a second.
async fn derived(
    security: Security,
    cluster: String,
    name: String,
) -> Result<quinn::ServerConfig, StartError> {
    let deriving = tokio::task::spawn_blocking(move || security.server(&cluster, &name));
    deriving.await.expect("deriving does not panic")
}

fn random() -> Result<[u64; 2], StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StartError::Randomness { reason: Cause::new(error) })?;
    let words = u128::from_le_bytes(bytes);
    Ok([words as u64, (words >> 64) as u64])
}
