//! What goes into a replica and what comes out of it: the contract between the core and those who run it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ClusterSettings, Config};
use crate::controls::Controls;
use crate::election::{Leader, LeaseState, VoterList, VoterRules};
use crate::error::{SetSettingsError, SetVotersError};
use crate::form;
use crate::id::{LeaseId, LinkId};
use crate::membership::{Contact, MEMBERS_MAX, Member, MemberEvent, PeerExit};
use crate::replica::saved::Saved;
use crate::replica::{RepairReport, Validators};
use crate::store::Refusal;
use crate::text::{Escaped, Span};
use crate::time::Stamp;
use crate::wire::{Abilities, Lane, WireError};

/// What happened outside.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A link to a peer with these abilities is there: two ordered streams in each direction, and datagrams.
    LinkUp(LinkId, Abilities),
    /// The link is gone, and everything that was under way on it.
    LinkDown(LinkId),
    /// A datagram arrived.
    Datagram(LinkId, &'a [u8]),
    /// The next bytes of a stream arrived.
    Stream(LinkId, Lane, &'a [u8]),
    /// A stream took this many bytes of what was given to it.
    Drained(LinkId, Lane, usize),
    /// A link has shown who is at its other end, and how large a datagram it takes. Only where this replica is a
    /// member itself: see [`Setup::member`].
    LinkIdentified(LinkId, &'a Member, usize),
    /// What [`Output::MemberDatagram`] sent arrived from a member that is not linked.
    MemberDatagram(&'a Member, &'a [u8]),
    /// The peer's process ends, and the link with it.
    PeerClosing {
        /// The link to it.
        link: LinkId,
        /// What the peer said of its return.
        exit: PeerExit,
    },
    /// The disk has the last transaction: see [`Replica::persist`](crate::core::Replica::persist).
    Persisted,
    /// The disk does not take the last transaction, or none at all.
    PersistFailed,
    /// A disk that had failed takes transactions again.
    DiskBack,
    /// The deadline has come.
    Wake,
}

/// What to do outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send a datagram; it may be lost.
    Datagram(LinkId, Vec<u8>),
    /// Put bytes on a stream.
    Stream(LinkId, Lane, Vec<u8>),
    /// Break the link; a new one may be made after a while.
    Break(LinkId, BreakReason),
    /// Send a datagram to a member, over a link or however it can be reached; it may be lost.
    MemberDatagram(Contact, Vec<u8>),
    /// Try to make a link with a member. It is asked for again as long as there is none.
    Dial(Contact),
    /// Try to make a link with every seed that none is linked with.
    Seek,
    /// A session in which two replicas repair each other has begun; nothing is to be done.
    RepairBegun(LinkId),
    /// Such a session is over; nothing is to be done.
    Repair(LinkId, RepairReport),
    /// Tell the user of a member.
    Member(MemberEvent),
    /// Tell the candidate what has become of it.
    Lease(LeaseId, LeaseState),
    /// Tell the observer of a lease who has it now.
    Leader(String, Option<Leader>),
    /// Tell the caller that asked for other voters what has become of it, see
    /// [`Replica::set_voters`](super::Replica::set_voters).
    VotersSet(Result<(), SetVotersError>),
    /// Tell the caller that asked for other shared settings what has become of it, see
    /// [`Replica::set_cluster_settings`](super::Replica::set_cluster_settings).
    SettingsSet(Result<(), SetSettingsError>),
    /// Tell the user.
    Event(ReplicaEvent),
}

/// Why a link is to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum BreakReason {
    /// The peer sent something that is not the protocol.
    Protocol(WireError),
    /// The peer's rows were refused; a new link tries them again.
    Refused,
    /// Two clusters met and this one gave way; sessions under the old hash key are void.
    Rekeyed,
    /// This replica found damage in itself and gave up its claims.
    Damaged,
    /// A session made no progress.
    TimedOut,
    /// The member at the other end is gone.
    MemberGone,
    /// The member at the other end says that its run is one which this replica knows under another name. A run stays
    /// with the name that proved it first.
    RunTaken,
    /// This replica's clock had been ahead; until their time it tells no more of the claims that it made or took then.
    Clock,
}

impl fmt::Display for BreakReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol(error) => return write!(f, "the peer broke the protocol: {error}"),
            Self::Refused => "rows of the peer were refused; a new link tries them again",
            Self::Rekeyed => "two clusters met, and this node took over the hash key of the other one",
            Self::Damaged => "this node found damage in its store and fetches its data again",
            Self::TimedOut => "the link made no progress",
            Self::MemberGone => "the member at the other end is gone",
            Self::RunTaken => "the run at the other end belongs to a member of another name",
            Self::Clock => "this node's clock was ahead; a new link claims less",
        })
    }
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum ReplicaEvent {
    /// A row of a peer was refused. It will come again; everything else was merged.
    Refused {
        /// Who sent it: the peer's name, or its run as text where this replica is no member.
        peer: String,
        /// Its key, as far as it is readable.
        key: String,
        /// Why.
        reason: Refusal,
    },
    /// The store no longer agreed with its digest: entries were lost or changed by something other than a write.
    /// The replica gave up its claims and fetches what it lacks from its peers.
    Damaged,
    /// Two live nodes have one name: both were inside when a partition healed. Both stay; one should be renamed.
    NameTwice(Box<Member>),
    /// Two live nodes say that they are to be found at one address. One of them cannot be reached there.
    AddressTwice(Box<Member>),
    /// A node has another list of voters. It has no part in this node's elections, nor this node in its.
    VotersDiffer {
        /// The node.
        member: Box<Member>,
        /// What stands here.
        ours: VoterRules,
        /// What stands there.
        theirs: VoterRules,
    },
    /// What this node has promised as a voter stands on its disk in a form that this program cannot read. As long as
    /// this run lasts, the node grants no lease and takes no part in changes of the voters.
    VoterSilent,
    /// Another list of voters is in force: a change has begun, or has ended.
    VotersChanged(Box<VoterList>),
    /// The cluster's shared settings were changed, and are in force here. Lease times are in force in elections once
    /// the voters have taken them.
    SettingsChanged {
        /// The new settings.
        settings: ClusterSettings,
    },
    /// There are more members than [`MEMBERS_MAX`](crate::limits::MEMBERS_MAX), and none could be forgotten for a
    /// newcomer, which is ignored. Reported once.
    MembersFull,
    /// A peer claims writes that it cannot know of: further in the future than clocks may differ, of a log that is not
    /// its own, or of this node's own run and beyond what it has written. Nothing of it was merged, nothing more is
    /// read from that link, and it ends.
    ClaimRefused {
        /// The peer's name, or its run as text where this replica is no member.
        peer: String,
    },
    /// This node's wall clock cannot be believed: it was set, or most of the linked nodes say otherwise. While that
    /// lasts local writes are refused, and nothing that expires is dropped.
    ClockInDoubt {
        /// How far it is off its peers, or off what it showed before.
        #[serde(with = "form::span")]
        off: Duration,
    },
    /// The wall clock is believed again: it is as before, or was confirmed.
    ClockTrusted,
    /// This node was linked with nobody since its start. It is ready with what its disk holds, which may be old: see
    /// [`Config::alone_after`]. Once it reaches a peer, it catches up.
    ReadyAlone {
        /// How long it has waited.
        #[serde(with = "form::span")]
        waited: Duration,
    },
    /// The store has grown to 80 % of [`Config::store_bytes_max`]. Above the limit local writes that let it grow are
    /// refused with [`WriteError::Full`](crate::WriteError::Full).
    StoreFilling {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The store, which was at 80 % of its limit or more, has shrunk below 70 %.
    StoreHasRoom {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A peer has merged the same events and yet holds something else; no leaf here is damaged.
    Disagreement {
        /// The peer's name, or its run as text where this replica is no member.
        peer: String,
    },
    /// A key holds a value that a check of this node (`Builder::validate`) finds invalid. Another node has written it,
    /// or an earlier run of this one. It stays.
    Invalid {
        /// The key.
        key: String,
        /// The stamp of the write.
        stamp: Stamp,
        /// The name of the member that wrote it, if it is known.
        writer: Option<String>,
        /// What the check said.
        reason: String,
    },
}

impl fmt::Display for ReplicaEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { peer, key, reason } => write!(
                f,
                "the entry {} from {} was refused: {reason}; it will be sent again, and everything else was merged",
                Escaped(key),
                Escaped(peer)
            ),
            Self::Damaged => f.write_str("the store was damaged; the node fetches its data from its peers"),
            Self::NameTwice(member) => {
                write!(f, "two live nodes are called {}; rename one of them", Escaped(&member.name))
            }
            Self::AddressTwice(member) => write!(
                f,
                "{} says that it is at {}, and so does another live node; one of them cannot be reached there",
                Escaped(&member.name),
                member.addr
            ),
            Self::VotersDiffer { member, ours, theirs } => write!(
                f,
                "{} has other election settings ({}); neither takes part in the other's elections; make them the same",
                Escaped(&member.name),
                ours.differences(theirs)
            ),
            Self::VoterSilent => f.write_str(
                "what this node has promised as a voter was written by a later program and cannot be read; it does not \
                 vote. Start the later program again, or take this node off the list of voters",
            ),
            Self::VotersChanged(list) => match &list.next {
                None => write!(f, "the voters are {}", Escaped(&list.voters.join(", "))),
                Some(next) if *next == list.voters => {
                    write!(f, "the voters {} are taking other lease times", Escaped(&list.voters.join(", ")))
                }
                Some(next) => write!(
                    f,
                    "the voters {} are being replaced by {}",
                    Escaped(&list.voters.join(", ")),
                    Escaped(&next.join(", "))
                ),
            },
            Self::SettingsChanged { settings } => write!(f, "the shared settings are now {settings}"),
            Self::MembersFull => {
                write!(f, "there are more than {MEMBERS_MAX} members; this node ignores the others")
            }
            Self::ClaimRefused { peer } => write!(
                f,
                "{} claims writes that it cannot know of; nothing of it was merged, and its link ends",
                Escaped(peer)
            ),
            Self::ClockInDoubt { off } => write!(
                f,
                "this node's clock is off by {}; writes are refused until it is right or confirmed",
                Span(*off)
            ),
            Self::ClockTrusted => f.write_str("this node's clock is trusted again"),
            Self::ReadyAlone { waited } => write!(
                f,
                "no other node could be reached for {}; this node is ready with what its disk holds",
                Span(*waited)
            ),
            Self::StoreFilling { bytes, limit } => write!(
                f,
                "the store has {bytes} of {limit} bytes; at the limit, writes that let it grow are refused"
            ),
            Self::StoreHasRoom { bytes, limit } => {
                write!(f, "the store has room again: {bytes} of {limit} bytes")
            }
            Self::Disagreement { peer } => write!(
                f,
                "{} has merged the same writes and holds something else; what differs is repaired",
                Escaped(peer)
            ),
            Self::Invalid { key, stamp, writer, reason } => {
                let writer = writer.clone().unwrap_or_else(|| format!("run {:016x}", stamp.origin));
                let (key, writer, reason) = (Escaped(key), Escaped(&writer), Escaped(reason));
                write!(f, "the value of {key}, written by {writer}, is not valid: {reason}; it stays")
            }
        }
    }
}

/// How to make a [`Replica`](crate::core::Replica).
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its limits and intervals.
    pub config: Config,
    /// Seeds all its randomness; must never repeat outside of simulations.
    pub seed: u64,
    /// What a disk of an earlier run holds.
    pub saved: Option<Saved>,
    /// Whether there is a disk to follow the change log.
    pub has_disk: bool,
    /// Whether it has no seeds, and so begins a cluster unless its disk knows of members.
    pub is_founder: bool,
    /// What it is to others. Without it there are no members, and its driver makes its links.
    pub member: Option<Member>,
    pub(crate) validators: Validators,
    pub(crate) controls: Controls,
}

impl Setup {
    /// A replica in memory.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            seed,
            saved: None,
            has_disk: false,
            is_founder: false,
            member: None,
            validators: Validators::default(),
            controls: Controls::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_entry_is_told_in_one_line() {
        let (peer, key) = ("b".to_owned(), "limits/\nmax".to_owned());
        let text = ReplicaEvent::Refused { peer, key, reason: Refusal::Dots }.to_string();
        assert!(text.starts_with("the entry limits/\\nmax from b was refused: it has more"), "{text}");
    }
}
