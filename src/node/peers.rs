//! Who is linked to this node, and who was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::greeting::{Greeting, GreetingAnswer};
use super::security::TlsRefusal;
use crate::membership::MemberLimit;
use crate::replica::{LinkId, ReplicaEvent};

/// Why two nodes did not become peers. Nothing was exchanged but who they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefusal {
    /// The encrypted connection could not be made.
    #[error("{0}")]
    Tls(TlsRefusal),
    /// The other node belongs to another cluster.
    #[error("the other node belongs to cluster {theirs:?}")]
    Cluster {
        /// Its name.
        theirs: String,
    },
    /// One side does not accept the other's application version.
    #[error("application version {theirs:?} is not accepted")]
    AppVersion {
        /// The version on the other side.
        theirs: String,
    },
    /// The clocks are further apart than [`Config::clock_skew_max`](crate::Config::clock_skew_max).
    #[error("the clocks are {apart:?} apart")]
    Clock {
        /// How far.
        apart: Duration,
    },
    /// A live node of that name is there already.
    #[error("the name is taken by a live node")]
    NameTaken,
    /// The name that a node gave is not the one in its certificate.
    #[error("the name is not the one in the certificate")]
    NotTheCertificates,
    /// What one node tells about itself exceeds a limit.
    #[error("it has {0}")]
    OverLimit(MemberLimit),
    /// What came was not a greeting of this protocol, or did not come in time.
    #[error("no greeting that can be understood came in time")]
    Greeting,
}

/// Something that whoever runs a node should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// The replica reports: rows refused, damage found.
    Store(ReplicaEvent),
    /// A node was refused, or refused this one. Told once in a while, however often it tries.
    PeerRefused {
        /// The other node's address.
        addr: SocketAddr,
        /// Whether this node refused, or was refused.
        by_us: bool,
        /// Why.
        refusal: PeerRefusal,
    },
    /// The disk takes nothing any more. This node refuses writes and acknowledges none as durable; reads and
    /// replication go on.
    DiskFailed {
        /// What the system says.
        reason: String,
        /// It is tried again until it works, as when a full disk has room again. Otherwise a restart is needed.
        may_pass: bool,
    },
    /// The disk works again, and has everything.
    DiskBack,
    /// The node's directory was damaged. What it held was moved aside, and the node began anew.
    DiskDamaged {
        /// The damaged file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A seed could not be resolved or reached. It is tried for ever; told once in a while.
    Unreachable {
        /// The seed, as it was given.
        target: String,
        /// What happened.
        reason: String,
    },
}

impl From<ReplicaEvent> for NodeEvent {
    fn from(event: ReplicaEvent) -> Self {
        Self::Store(event)
    }
}

/// What this node is to others.
pub(super) struct NodeIdentity {
    pub(super) cluster: String,
    pub(super) app_version: String,
    pub(super) accepts_version: Box<dyn Fn(&str) -> bool + Send + Sync>,
    pub(super) advertised: Option<SocketAddr>,
    pub(super) clock_skew_max: Duration,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Peer {
    name: String,
    run: u64,
    addr: SocketAddr,
    /// Made by the node with the smaller run: of two links between the same nodes this one stays.
    is_preferred: bool,
}

/// What becomes of a new link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkVerdict {
    /// It stays; the link that it replaces, if any, goes.
    Stays(Option<LinkId>),
    /// There is a better one already.
    Goes,
}

/// The links, and who is at their ends.
#[derive(Debug, Default)]
pub(super) struct Peers {
    links: BTreeMap<LinkId, Peer>,
    runs: BTreeMap<u64, LinkId>,
    /// Who answered at the addresses that were dialled, as long as it is linked: a node may be reached at several.
    dialled: BTreeMap<SocketAddr, u64>,
    /// Addresses that are being dialled.
    pub(super) dialling: BTreeSet<SocketAddr>,
}

impl Peers {
    /// Takes in a link, unless there is a better one to the same node.
    pub(super) fn add_link(
        &mut self,
        id: LinkId,
        own_run: u64,
        theirs: &Greeting,
        addr: SocketAddr,
        dialled: bool,
    ) -> LinkVerdict {
        let is_preferred = dialled == (own_run < theirs.run);
        let old = self.runs.get(&theirs.run).copied();
        if old.is_some_and(|old| self.links[&old].is_preferred && !is_preferred) {
            return LinkVerdict::Goes;
        }
        if let Some(old) = old {
            self.links.remove(&old);
        }
        self.runs.insert(theirs.run, id);
        let (name, run) = (theirs.name.clone(), theirs.run);
        self.links.insert(id, Peer { name, run, addr, is_preferred });
        LinkVerdict::Stays(old)
    }

    /// A link is gone.
    pub(super) fn remove_link(&mut self, id: LinkId) {
        if let Some(peer) = self.links.remove(&id) {
            self.runs.remove(&peer.run);
            self.dialled.retain(|_, run| *run != peer.run);
        }
    }

    /// The link to a live node of this name that is another run.
    pub(super) fn name_holder(&self, name: &str, run: u64) -> Option<LinkId> {
        self.links.iter().find(|(_, peer)| peer.name == name && peer.run != run).map(|(id, _)| *id)
    }

    /// Remembers which run answered at a dialled address.
    pub(super) fn note_dialled(&mut self, addr: SocketAddr, run: u64) {
        if self.runs.contains_key(&run) {
            self.dialled.insert(addr, run);
        }
    }

    pub(super) fn is_linked(&self, addr: SocketAddr) -> bool {
        self.dialled.contains_key(&addr) || self.links.values().any(|peer| peer.addr == addr)
    }

    /// The link to a run.
    pub(super) fn link(&self, run: u64) -> Option<LinkId> {
        self.runs.get(&run).copied()
    }

    pub(super) fn name(&self, id: LinkId) -> Option<&str> {
        self.links.get(&id).map(|peer| peer.name.as_str())
    }

    pub(super) fn links(&self) -> impl Iterator<Item = (LinkId, &str, SocketAddr)> {
        self.links.iter().map(|(id, peer)| (*id, peer.name.as_str(), peer.addr))
    }
}

/// What an answer other than a welcome says.
pub(super) fn refusal_of(answer: GreetingAnswer) -> PeerRefusal {
    match answer {
        GreetingAnswer::Cluster(theirs) => PeerRefusal::Cluster { theirs },
        GreetingAnswer::AppVersion(theirs) => PeerRefusal::AppVersion { theirs },
        GreetingAnswer::Clock(ms) => PeerRefusal::Clock { apart: Duration::from_millis(ms) },
        GreetingAnswer::NameTaken => PeerRefusal::NameTaken,
        GreetingAnswer::NotTheCertificates => PeerRefusal::NotTheCertificates,
        GreetingAnswer::OverLimit(limit) => PeerRefusal::OverLimit(limit),
        GreetingAnswer::Welcome(_) | GreetingAnswer::Itself => PeerRefusal::Greeting,
    }
}
