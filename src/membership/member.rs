//! A member of the cluster, and what is reported of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{META_BYTES_MAX, META_ENTRIES_MAX, NAME_BYTES_MAX};
use crate::form;
use crate::id::RunId;
use crate::text::Escaped;

/// The state of a member, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// It answers probes.
    Alive,
    /// It did not answer somebody's probe. It counts as down unless it says within the suspicion time that it lives.
    Suspect,
    /// It answers nobody, or its process has ended without leaving. This node tries to reach it for as long as it knows
    /// it.
    Down,
    /// It said that it leaves.
    Left,
}

impl MemberState {
    /// Whether the member is believed to live: alive, or only suspected.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        })
    }
}

/// A limit that a member exceeds. Such a member is not linked, not kept, and not made known to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[cfg_attr(feature = "node", derive(bincode::Encode, bincode::Decode))]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum MemberLimit {
    /// Its name is empty or longer than 63 bytes.
    #[error("a name that is empty or longer than {NAME_BYTES_MAX} bytes")]
    NameBytes,
    /// Its application version and its metadata have more than [`META_BYTES_MAX`] bytes together.
    #[error("an application version and metadata of more than {META_BYTES_MAX} bytes together")]
    MetaBytes,
    /// Its metadata has more than [`META_ENTRIES_MAX`] entries.
    #[error("metadata of more than {META_ENTRIES_MAX} entries")]
    MetaEntries,
}

/// A node of the cluster, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Identifies one start of its process.
    pub run: RunId,
    /// The address at which it can be reached.
    pub addr: SocketAddr,
    /// Whether it is alive, suspected, down, or has left.
    pub state: MemberState,
    /// When it entered that state, by this node's clock.
    #[serde(with = "form::moment")]
    pub since: SystemTime,
    /// The application version that was given to its builder.
    pub app_version: String,
    /// The metadata that it publishes about itself.
    pub meta: BTreeMap<String, String>,
    /// Counts the changes of `meta`. 0 until its metadata has arrived here.
    pub meta_version: u64,
    /// The smoothed round trip time of this node's own probes. In a large cluster this node probes each member rarely.
    #[serde(default, with = "form::span_option")]
    pub rtt: Option<Duration>,
}

impl Member {
    /// A member that is alive and of which nothing else is known yet.
    pub fn new(name: impl Into<String>, run: RunId, addr: SocketAddr) -> Self {
        Self {
            name: name.into(),
            run,
            addr,
            state: MemberState::Alive,
            since: SystemTime::UNIX_EPOCH,
            app_version: String::new(),
            meta: BTreeMap::new(),
            meta_version: 0,
            rtt: None,
        }
    }

    /// Its run and address.
    pub fn contact(&self) -> Contact {
        Contact { run: self.run, addr: self.addr }
    }

    /// The size of its metadata and application version: at most [`META_BYTES_MAX`].
    pub(crate) fn meta_bytes(&self) -> usize {
        self.app_version.len() + self.meta.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
    }

    /// The first limit that it exceeds, if any.
    pub(crate) fn over_limit(&self) -> Option<MemberLimit> {
        let limits = [
            ((1..=NAME_BYTES_MAX).contains(&self.name.len()), MemberLimit::NameBytes),
            (self.meta_bytes() <= META_BYTES_MAX, MemberLimit::MetaBytes),
            (self.meta.len() <= META_ENTRIES_MAX, MemberLimit::MetaEntries),
        ];
        limits.into_iter().find(|(is_kept, _)| !is_kept).map(|(_, limit)| limit)
    }
}

/// A run and the address at which to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Identifies one start of a process.
    pub run: RunId,
    /// Its address, as far as is known.
    pub addr: SocketAddr,
}

/// A change of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum MemberEvent {
    /// It is alive, and was not reported before under this run.
    Joined(Member),
    /// Its metadata changed.
    Updated(Member),
    /// It did not answer somebody's probe.
    Suspect(Member),
    /// It is gone without having said that it leaves.
    Down(Member),
    /// It is alive after all, or again: after a suspicion, a long pause or a partition.
    Recovered(Member),
    /// It said that it leaves.
    Left(Member),
    /// It was gone for longer than [`Config::forget_after`](crate::Config::forget_after), or somebody asked to forget it.
    Forgotten(Member),
}

impl MemberEvent {
    /// The member as it is after the change.
    pub fn member(&self) -> &Member {
        match self {
            Self::Joined(member)
            | Self::Updated(member)
            | Self::Suspect(member)
            | Self::Down(member)
            | Self::Recovered(member)
            | Self::Left(member)
            | Self::Forgotten(member) => member,
        }
    }

    /// What the member did, to be written after its name.
    pub(crate) fn predicate(&self) -> &'static str {
        match self {
            Self::Joined(_) => "joined",
            Self::Updated(_) => "changed its metadata",
            Self::Suspect(_) => "does not answer",
            Self::Down(_) => "is down",
            Self::Recovered(_) => "is back",
            Self::Left(_) => "has left",
            Self::Forgotten(_) => "is forgotten",
        }
    }
}

impl fmt::Display for MemberEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Escaped(&self.member().name), self.predicate())
    }
}

/// How a peer's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerExit {
    /// It ends, and may come back: its member counts as down.
    Ends,
    /// It leaves the cluster: its member counts nowhere any more.
    Leaves,
}
