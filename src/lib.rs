#![cfg_attr(feature = "node", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "node"),
    doc = "The replica and its simulator, without the node: see the features."
)]

mod arrivals;
mod config;
mod controls;
mod election;
mod error;
mod membership;
#[cfg(feature = "node")]
mod node;
mod replica;
mod replication;
mod sim;
mod store;
mod time;
mod wire;

pub use arrivals::Arrival;
pub use config::{
    BATCH_WRITES_MAX, Config, ConfigError, Durability, ELECTIONS_MAX, KEY_BYTES_MAX, LEASE_TIME_MAX,
    OnCorruption, VALUE_BYTES_CEILING, VOTERS_MAX,
};
#[cfg(feature = "__controls")]
#[doc(hidden)]
pub use controls::Control;
#[cfg(feature = "__controls")]
#[doc(hidden)]
pub use election::model::{ModelAnswer, ModelRequest, ModelVoter};
pub use election::{
    ELECTION_NAME_BYTES_MAX, LEADER_VALUE_BYTES_MAX, Leader, LeaseEnd, LeaseId, LeaseState, VoterRules,
};
pub use error::{ElectionError, WriteError};
pub use membership::{
    Contact, MEMBERS_MAX, META_BYTES_MAX, META_ENTRIES_MAX, Member, MemberEvent, MemberLimit, MemberState,
};
#[cfg(feature = "node")]
pub use node::error::{DecodeError, Error, SecurityError, SnapshotError, StartError, WaitError};
#[cfg(feature = "node")]
pub use node::{
    Builder, Counter, Election, Events, Joining, LeaderStream, Leadership, Node, NodeBatch, NodeEvent,
    NodeStatus, PeerRefusal, PeerStatus, Quorum, Receipt, Security, Set, TlsRefusal, Watch,
};
#[cfg(feature = "json")]
pub use node::{Map, MapEvent, MapWatch};
pub use replica::saved::{DiskChange, Saved, SavedError};
pub use replica::{
    Batch, BreakReason, Input, JoinProgress, Lane, LinkId, Output, Persist, PutOptions, RepairReport,
    RepairTraffic, Replica, ReplicaEvent, Setup, Status,
};
pub use sim::{Disk, DiskFault, Sim, SimBatch, SimCounter, SimNode, SimSet, SimWatch};
pub use store::entry::{Entry, Revision};
pub use store::watch::WatchEvent;
pub use store::{OnlyIf, Refusal};
pub use time::{ParseError, Stamp, Time};
pub use wire::{FRAME_BYTES_MAX, WireError};
