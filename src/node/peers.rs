//! Who is linked to this node, and who was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::security::TlsRefusal;
use crate::replica::{Event, LinkId};
use crate::wire::{Answer, Greeting};

/// Members remembered after they are gone.
const MEMBERS_MAX: usize = 4_096;
/// Addresses learned from others that are dialled at a time.
pub(super) const LEARNED_MAX: usize = 1_024;

/// What is known of a member's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It is linked to this node, or is this node.
    Alive,
    /// The link to it is gone, and it did not say that it leaves.
    Down,
    /// It said that it leaves.
    Left,
}

impl MemberState {
    /// Whether the member is there.
    pub fn is_alive(self) -> bool {
        self == Self::Alive
    }
}

/// A node of the cluster, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: String,
    /// One start of its process.
    pub run: u64,
    /// Where it can be reached.
    pub addr: SocketAddr,
    /// Whether it is there.
    pub state: MemberState,
    /// The version of the application, as its builder was told.
    pub app_version: String,
    /// What its builder was told about it.
    pub meta: BTreeMap<String, String>,
}

/// A member came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// A member is there, for the first time or again.
    Up(Member),
    /// The link to a member is gone.
    Down(Member),
    /// A member said that it leaves.
    Left(Member),
}

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
    /// What came was not a greeting of this protocol, or did not come in time.
    #[error("no greeting that can be understood came in time")]
    Greeting,
}

/// Something that whoever runs a node should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// The replica reports: rows refused, damage found.
    Store(Event),
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

impl From<Event> for NodeEvent {
    fn from(event: Event) -> Self {
        Self::Store(event)
    }
}

/// What this node is to others.
pub(super) struct Identity {
    pub(super) cluster: String,
    pub(super) app_version: String,
    pub(super) accepts_version: Box<dyn Fn(&str) -> bool + Send + Sync>,
    pub(super) advertised: Option<SocketAddr>,
    pub(super) clock_skew_max: Duration,
    pub(super) hint_interval: Duration,
}

impl fmt::Debug for Identity {
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
pub(super) enum Place {
    /// It stays; the link that it replaces, if any, goes.
    Stays(Option<LinkId>),
    /// There is a better one already.
    Goes,
}

#[derive(Debug)]
pub(super) struct Peers {
    links: BTreeMap<LinkId, Peer>,
    members: BTreeMap<String, Member>,
    /// Who answered at the addresses that were dialled: at most as many as there are seeds and learned ones.
    dialled: BTreeMap<SocketAddr, u64>,
    /// Learned addresses that are being dialled.
    learned: BTreeSet<SocketAddr>,
    own: Member,
}

impl Peers {
    pub(super) fn new(own: Member) -> Self {
        Self {
            links: BTreeMap::new(),
            members: BTreeMap::new(),
            dialled: BTreeMap::new(),
            learned: BTreeSet::new(),
            own,
        }
    }

    /// Takes in a link, unless there is a better one to the same node.
    pub(super) fn up(&mut self, id: LinkId, greeting: &Greeting, addr: SocketAddr, dialled: bool) -> Place {
        let is_preferred = dialled == (self.own.run < greeting.run);
        let old = self.links.iter().find(|(_, peer)| peer.run == greeting.run);
        let old = old.map(|(id, peer)| (*id, peer.is_preferred));
        if old.is_some_and(|(_, preferred)| preferred && !is_preferred) {
            return Place::Goes;
        }
        if let Some((old, _)) = old {
            self.links.remove(&old);
        }
        let (name, run) = (greeting.name.clone(), greeting.run);
        self.links.insert(id, Peer { name, run, addr, is_preferred });
        Place::Stays(old.map(|(id, _)| id))
    }

    /// Remembers who is at the other end of a link.
    pub(super) fn remember(&mut self, greeting: &Greeting, addr: SocketAddr) -> Option<MemberEvent> {
        let member = Member {
            name: greeting.name.clone(),
            run: greeting.run,
            addr,
            state: MemberState::Alive,
            app_version: greeting.app_version.clone(),
            meta: greeting.meta.clone(),
        };
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&member.name) {
            let gone = self.members.iter().find(|(_, member)| !member.state.is_alive());
            let gone = gone.map(|(name, _)| name.clone());
            gone.map(|name| self.members.remove(&name));
        }
        let known = self.members.insert(member.name.clone(), member.clone());
        let is_news = known.is_none_or(|known| known.run != member.run || !known.state.is_alive());
        is_news.then_some(MemberEvent::Up(member))
    }

    /// A link is gone.
    pub(super) fn down(&mut self, id: LinkId, has_left: bool) -> Option<MemberEvent> {
        let peer = self.links.remove(&id)?;
        if self.links.values().any(|other| other.name == peer.name) {
            return None;
        }
        let member = self.members.get_mut(&peer.name).filter(|member| member.run == peer.run)?;
        member.state = if has_left { MemberState::Left } else { MemberState::Down };
        let member = member.clone();
        Some(if has_left { MemberEvent::Left(member) } else { MemberEvent::Down(member) })
    }

    /// The link to a live node of this name that is another run.
    pub(super) fn holder(&self, name: &str, run: u64) -> Option<LinkId> {
        self.links.iter().find(|(_, peer)| peer.name == name && peer.run != run).map(|(id, _)| *id)
    }

    /// Remembers which run answered at a dialled address: a node may be reached at several.
    pub(super) fn answered(&mut self, addr: SocketAddr, run: u64) {
        self.dialled.insert(addr, run);
    }

    pub(super) fn is_linked(&self, addr: SocketAddr) -> bool {
        let run = self.dialled.get(&addr);
        self.links.values().any(|peer| peer.addr == addr || Some(&peer.run) == run)
    }

    pub(super) fn links(&self) -> impl Iterator<Item = (LinkId, &str, SocketAddr)> {
        self.links.iter().map(|(id, peer)| (*id, peer.name.as_str(), peer.addr))
    }

    pub(super) fn addrs(&self) -> Vec<SocketAddr> {
        self.links.values().map(|peer| peer.addr).collect()
    }

    /// Whether a learned address is to be dialled now.
    pub(super) fn learn(&mut self, addr: SocketAddr) -> bool {
        addr != self.own.addr
            && !self.is_linked(addr)
            && self.learned.len() < LEARNED_MAX
            && self.learned.insert(addr)
    }

    /// Whether the node at this address said that it leaves.
    pub(super) fn has_left(&self, addr: SocketAddr) -> bool {
        self.members.values().any(|member| member.addr == addr && member.state == MemberState::Left)
    }

    pub(super) fn unlearn(&mut self, addr: SocketAddr) {
        self.learned.remove(&addr);
        self.dialled.remove(&addr);
    }

    /// Everybody known, this node first.
    pub(super) fn members(&self) -> Vec<Member> {
        std::iter::once(&self.own).chain(self.members.values()).cloned().collect()
    }

    /// How many members there are that have not left, this node included.
    pub(super) fn present(&self) -> usize {
        1 + self.members.values().filter(|member| member.state != MemberState::Left).count()
    }

    pub(super) fn own(&self) -> &Member {
        &self.own
    }
}

/// What an answer other than a welcome says.
pub(super) fn refusal_of(answer: Answer) -> PeerRefusal {
    match answer {
        Answer::Cluster(theirs) => PeerRefusal::Cluster { theirs },
        Answer::AppVersion(theirs) => PeerRefusal::AppVersion { theirs },
        Answer::Clock(ms) => PeerRefusal::Clock { apart: Duration::from_millis(ms) },
        Answer::NameTaken => PeerRefusal::NameTaken,
        Answer::NotTheCertificates => PeerRefusal::NotTheCertificates,
        Answer::Welcome(_) | Answer::Itself => PeerRefusal::Greeting,
    }
}
