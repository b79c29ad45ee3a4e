//! The links of a node and who is at their ends; the refusals and events that a node reports.
//!
//! At most one link to a run is kept. If both nodes dial each other, both must keep the same one: that which the node
//! with the smaller run dialled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::election::LeaseEnd;
#[cfg(feature = "json")]
use crate::error::Rejected;
use crate::error::SettingsDiffer;
use crate::form;
use crate::id::{LinkId, RunId};
use crate::membership::{Contact, MemberLimit, PeerExit};
use crate::node::net::greeting::{Greeting, GreetingAnswer, GreetingSettings};
use crate::node::net::security::TlsRefusal;
#[cfg(feature = "srv")]
use crate::node::net::srv::NameServers;
use crate::replica::links::LINKS_MAX;
use crate::replica::{BreakReason, RepairReport, ReplicaEvent};
use crate::text::{Escaped, Span};
use crate::time::Stamp;

/// Why two nodes did not become peers. They exchanged at most their greetings, and no data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum PeerRefusal {
    /// The TLS handshake failed.
    #[error("{0}")]
    Tls(TlsRefusal),
    /// The other node belongs to another cluster.
    #[error("the other node belongs to cluster \"{}\"", Escaped(theirs))]
    Cluster {
        /// The name of its cluster.
        theirs: String,
    },
    /// One side does not accept the other's application version.
    #[error("application version not accepted by one side; the other node has \"{}\"", Escaped(theirs))]
    AppVersion {
        /// The application version of the other node.
        theirs: String,
    },
    /// The wall clocks are further apart than [`Config::clock_skew_max`](crate::Config::clock_skew_max).
    #[error("the wall clocks are {} apart, more than clock_skew_max permits", Span(*apart))]
    Clock {
        /// The difference of the clocks.
        #[serde(with = "form::span")]
        apart: Duration,
    },
    /// One node has not joined yet, and is configured with other shared settings than the cluster of the other one.
    #[error(transparent)]
    Settings(SettingsDiffer),
    /// A live node has that name already.
    #[error("the name is taken by a live node")]
    NameTaken,
    /// The run that a node states is known under another name. A run stays with the name that proved it first.
    #[error("the stated run belongs to a node of another name")]
    RunTaken,
    /// One node has as many links as it may have.
    #[error("one side has as many links as it may have")]
    Full,
    /// The name that a node states is not in its certificate, or not among those that may connect
    /// ([`Security::allow_only`](crate::Security::allow_only)).
    #[error("the stated name is not in the certificate, or is not allowed to connect")]
    NotTheCertificates,
    /// The name or the metadata of one node exceeds a limit.
    #[error("it has {0}")]
    OverLimit(MemberLimit),
    /// The nodes speak different versions of the wire format: the version of one program is too old for the other.
    #[error(
        "the other node speaks version {theirs} of the wire format, this one {ours}; upgrade the older one"
    )]
    WireVersion {
        /// The version of the other node.
        theirs: u8,
        /// The version of this node.
        ours: u8,
    },
    /// The other side sent no greeting of this protocol, or not in time.
    #[error("no valid greeting arrived in time")]
    Greeting,
}

/// Why a link to a peer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LinkEnd {
    /// This node broke it.
    Broken(BreakReason),
    /// The peer's process has ended, or the peer has left the cluster.
    PeerExit(PeerExit),
    /// Another link to the same peer is kept instead, or the peer's name went to another node.
    Replaced,
    /// This node does not accept the peer's certificate any more.
    NotAccepted,
    /// This node closed it, because one of its streams had ended or the peer did not answer.
    Unusable,
    /// The peer broke it, or does not accept this node's certificate any more. The peer's log says why.
    ByPeer,
    /// The connection was lost.
    Lost {
        /// What the transport says.
        reason: String,
    },
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken(reason) => return reason.fmt(f),
            Self::PeerExit(PeerExit::Ends) => "the peer's process has ended",
            Self::PeerExit(PeerExit::Leaves) => "the peer has left the cluster",
            Self::Replaced => "another link is kept instead",
            Self::NotAccepted => "the peer's certificate is not accepted any more",
            Self::Unusable => "a stream had ended, or the peer did not answer",
            Self::ByPeer => "the peer closed it; its log says why",
            Self::Lost { reason } => return write!(f, "the connection was lost: {reason}"),
        })
    }
}

/// Something that the operator of a node should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum NodeEvent {
    /// An event of the replica, for example a refused row or damage.
    Store(ReplicaEvent),
    /// This node refused another one, or was refused by it. The same refusal is reported at most once in 30 s.
    PeerRefused {
        /// The other node's address.
        addr: SocketAddr,
        /// `true`: this node refused the other one. `false`: the other node refused this one.
        by_us: bool,
        /// Why.
        refusal: PeerRefusal,
    },
    /// A link to a peer was made.
    LinkMade {
        /// The peer's name.
        peer: String,
        /// The address at which others can reach it.
        addr: SocketAddr,
    },
    /// A link to a peer has ended. It is made again if the peer can be reached.
    LinkEnded {
        /// The peer's name.
        peer: String,
        /// The address at which others can reach it.
        addr: SocketAddr,
        /// Why.
        end: LinkEnd,
    },
    /// A session in which this node and a peer repaired each other is over.
    RepairEnded {
        /// The peer's name.
        peer: String,
        /// What it moved, and how long it took.
        repair: RepairReport,
    },
    /// This node holds a lease now.
    LeaseWon {
        /// The name of the election or lock.
        name: String,
        /// The fencing token.
        token: Stamp,
    },
    /// This node does not hold a lease any more: it gave it up, or could not renew it in time.
    LeaseEnded {
        /// The name of the election or lock.
        name: String,
        /// The fencing token.
        token: Stamp,
        /// Why.
        end: LeaseEnd,
    },
    /// The disk accepts no transaction. This node refuses local writes and reports none as durable; reads and
    /// replication go on.
    DiskFailed {
        /// The error of the operating system or of the storage engine.
        reason: String,
        /// `true`: it is tried again until it works, for example until a full disk has room. `false`: a restart is
        /// needed.
        may_pass: bool,
    },
    /// The disk works again, and all changes are synced to it.
    DiskBack,
    /// The node's directory was damaged. Its data was moved aside, and the node joins its cluster without it.
    DiskDamaged {
        /// The damaged file, or the directory of the store if the damage cannot be narrowed down to one file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A live value ([`Live`](crate::Live)) does not apply something that the store or a layer holds. The last good
    /// value stays in force.
    #[cfg(feature = "json")]
    Rejected {
        /// The key or the prefix of the live value.
        live: String,
        /// What is not applied, and why.
        rejected: Rejected,
    },
    /// A seed could not be resolved or reached. It is tried for ever, and reported at most once in 30 s.
    Unreachable {
        /// The seed, as it was given.
        target: String,
        /// What failed.
        reason: String,
    },
}

impl fmt::Display for NodeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(event) => event.fmt(f),
            Self::PeerRefused { addr, by_us: true, refusal } => {
                write!(f, "this node refused {addr}: {refusal}")
            }
            Self::PeerRefused { addr, by_us: false, refusal } => {
                write!(f, "{addr} refused this node: {refusal}")
            }
            Self::LinkMade { peer, addr } => write!(f, "a link to {} at {addr} was made", Escaped(peer)),
            Self::LinkEnded { peer, addr, end } => {
                write!(f, "the link to {} at {addr} has ended: {end}", Escaped(peer))
            }
            Self::RepairEnded { peer, repair } => {
                let RepairReport { is_complete, rows, bytes, took } = repair;
                let ended = if *is_complete { "is complete" } else { "has ended early" };
                write!(
                    f,
                    "a repair with {} {ended}: {rows} rows, {bytes} bytes, {}",
                    Escaped(peer),
                    Span(*took)
                )
            }
            Self::LeaseWon { name, token } => {
                write!(f, "this node holds the lease {} with token {token}", Escaped(name))
            }
            Self::LeaseEnded { name, end: LeaseEnd::Resigned, .. } => {
                write!(f, "this node gave up the lease {}", Escaped(name))
            }
            Self::LeaseEnded { name, .. } => {
                write!(f, "this node lost the lease {}: it could not be renewed in time", Escaped(name))
            }
            Self::DiskFailed { reason, may_pass } => {
                let until = if *may_pass { "it works again" } else { "the node is restarted" };
                write!(f, "the disk failed: {reason}; writes are refused until {until}")
            }
            Self::DiskBack => f.write_str("the disk works again, and all changes are synced to it"),
            Self::DiskDamaged { path, reason } => {
                write!(
                    f,
                    "{path} was damaged: {reason}; it was moved aside, and the node fetches its data from its peers"
                )
            }
            #[cfg(feature = "json")]
            Self::Rejected { live, rejected } => {
                write!(f, "the live value {} keeps its last good value: {rejected}", Escaped(live))
            }
            Self::Unreachable { target, reason } => {
                write!(f, "the seed {} is out of reach: {reason}; it is tried again", Escaped(target))
            }
        }
    }
}

impl From<ReplicaEvent> for NodeEvent {
    fn from(event: ReplicaEvent) -> Self {
        Self::Store(event)
    }
}

/// What the core wants dialled: one member, one that a datagram was for, or all seeds.
#[derive(Clone, Copy, Debug)]
pub(in crate::node) enum DialRequest {
    Member(Contact),
    Datagram(Contact),
    Seeds,
}

/// What this node tells others in its greeting, and what it demands of theirs.
pub(in crate::node) struct NodeIdentity {
    pub(in crate::node) cluster: String,
    pub(in crate::node) app_version: String,
    pub(in crate::node) accepts_version: Box<dyn Fn(&str) -> bool + Send + Sync>,
    pub(in crate::node) advertised: Option<SocketAddr>,
    #[cfg(feature = "srv")]
    pub(in crate::node) name_servers: NameServers,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Peer {
    name: String,
    run: RunId,
    addr: SocketAddr,
    /// Dialled by the node with the smaller run: of two links between the same nodes this one is kept.
    is_preferred: bool,
}

/// What becomes of a new link.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::node) enum LinkVerdict {
    /// It is kept, and replaces this older link to the same run, if there is one: its name and address.
    Stays(Option<(LinkId, String, SocketAddr)>),
    /// It is closed, because the existing link is the preferred one.
    Goes,
}

/// Which side dialled a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum DialledBy {
    Us,
    Peer,
}

/// The links, and who is at their ends.
#[derive(Debug, Default)]
pub(in crate::node) struct Peers {
    links: BTreeMap<LinkId, Peer>,
    runs: BTreeMap<RunId, LinkId>,
    /// Which linked run is at an address: it answered there when that was dialled, or its packets come from there. What
    /// a peer says of its address is not in it: it could name that of another node, which then would not be dialled.
    places: BTreeMap<SocketAddr, RunId>,
    /// Addresses that are being dialled.
    pub(in crate::node) dialling: BTreeSet<SocketAddr>,
}

/// A node with this many links to runs of one name accepts no further ones under it. A name has one live run, or two
/// after a partition or a restart; more are made up by a node that holds its certificate.
const LINKS_PER_NAME_MAX: usize = 4;

impl Peers {
    /// Whether another node's link is refused, because there are too many, or too many under its name.
    pub(in crate::node) fn is_full_for(&self, name: &str) -> bool {
        self.links.len() >= LINKS_MAX
            || self.links.values().filter(|peer| peer.name == name).count() >= LINKS_PER_NAME_MAX
    }

    /// Adds a link, unless the existing one to the same run is preferred.
    pub(in crate::node) fn add_link(
        &mut self,
        id: LinkId,
        own_run: RunId,
        theirs: &Greeting,
        addr: SocketAddr,
        dialled: DialledBy,
    ) -> LinkVerdict {
        let is_preferred = (dialled == DialledBy::Us) == (own_run < theirs.run);
        let old = self.runs.get(&theirs.run).copied();
        if old.is_some_and(|old| self.links[&old].is_preferred && !is_preferred) {
            return LinkVerdict::Goes;
        }
        let old = old.and_then(|old| {
            let peer = self.links.remove(&old)?;
            Some((old, peer.name, peer.addr))
        });
        self.runs.insert(theirs.run, id);
        let (name, run) = (theirs.name.clone(), theirs.run);
        self.links.insert(id, Peer { name, run, addr, is_preferred });
        LinkVerdict::Stays(old)
    }

    /// Removes a link that is down. Returns the peer's name and address.
    pub(in crate::node) fn remove_link(&mut self, id: LinkId) -> Option<(String, SocketAddr)> {
        let peer = self.links.remove(&id)?;
        self.runs.remove(&peer.run);
        self.places.retain(|_, run| *run != peer.run);
        Some((peer.name, peer.addr))
    }

    /// The link to another run with this name.
    pub(in crate::node) fn name_holder(&self, name: &str, run: RunId) -> Option<LinkId> {
        self.links.iter().find(|(_, peer)| peer.name == name && peer.run != run).map(|(id, _)| *id)
    }

    /// Remembers that a run is at an address, if it is linked.
    pub(in crate::node) fn note_place(&mut self, addr: SocketAddr, run: RunId) {
        if self.runs.contains_key(&run) {
            self.places.insert(addr, run);
        }
    }

    /// Whether a linked run is at an address.
    pub(in crate::node) fn is_linked(&self, addr: SocketAddr) -> bool {
        self.places.contains_key(&addr)
    }

    /// The link to a run.
    pub(in crate::node) fn link(&self, run: RunId) -> Option<LinkId> {
        self.runs.get(&run).copied()
    }

    pub(in crate::node) fn name(&self, id: LinkId) -> Option<&str> {
        self.links.get(&id).map(|peer| peer.name.as_str())
    }

    pub(in crate::node) fn links(&self) -> impl Iterator<Item = (LinkId, &str, SocketAddr)> {
        self.links.iter().map(|(id, peer)| (*id, peer.name.as_str(), peer.addr))
    }
}

fn settings_differ(theirs: GreetingSettings, ours: GreetingSettings, is_beginning: bool) -> PeerRefusal {
    let (theirs, ours) = (theirs.settings(), ours.settings());
    PeerRefusal::Settings(SettingsDiffer { theirs, ours, is_beginning })
}

/// The refusal that an answer other than a welcome stands for.
pub(in crate::node) fn refusal_of(answer: GreetingAnswer) -> PeerRefusal {
    match answer {
        GreetingAnswer::Cluster(theirs) => PeerRefusal::Cluster { theirs },
        GreetingAnswer::AppVersion(theirs) => PeerRefusal::AppVersion { theirs },
        GreetingAnswer::Clock(ms) => PeerRefusal::Clock { apart: Duration::from_millis(ms) },
        GreetingAnswer::Settings { theirs, ours } => settings_differ(theirs, ours, false),
        GreetingAnswer::Beginning { theirs, ours } => settings_differ(theirs, ours, true),
        GreetingAnswer::NameTaken => PeerRefusal::NameTaken,
        GreetingAnswer::RunTaken => PeerRefusal::RunTaken,
        GreetingAnswer::Full => PeerRefusal::Full,
        GreetingAnswer::NotTheCertificates => PeerRefusal::NotTheCertificates,
        GreetingAnswer::OverLimit(limit) => PeerRefusal::OverLimit(limit),
        GreetingAnswer::Welcome(_) | GreetingAnswer::Itself => PeerRefusal::Greeting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_links_of_others_are_accepted() {
        let mut peers = Peers::default();
        let addr: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        for i in 1..=LINKS_MAX as u64 {
            let name = format!("peer-{}", i / LINKS_PER_NAME_MAX as u64);
            assert!(!peers.is_full_for(&name));
            let greeting = Greeting {
                cluster: String::new(),
                name: name.clone(),
                run: RunId::new(i),
                app_version: String::new(),
                wall_ms: 0,
                advertised: None,
                port: 1,
                meta: BTreeMap::new(),
                meta_version: 0,
                settings: crate::node::net::greeting::Later(None),
                abilities: crate::node::net::greeting::Later(None),
                beginning: crate::node::net::greeting::Later(None),
            };
            peers.add_link(LinkId::new(i), RunId::new(0), &greeting, addr, DialledBy::Peer);
            let is_name_full = i % LINKS_PER_NAME_MAX as u64 == LINKS_PER_NAME_MAX as u64 - 1;
            assert_eq!(peers.is_full_for(&name), i == LINKS_MAX as u64 || i > 3 && is_name_full);
        }
        assert!(peers.is_full_for("another"));
    }
}
