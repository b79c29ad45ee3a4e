//! An embedded, eventually consistent key-value store that replicates itself.
//!
//! Every process that embeds it holds all data in memory, reads it in about 100 ns without waiting for the network or
//! for writers, and sees the writes of the other processes within milliseconds. There is no server. The [guide]
//! explains each part; the documentation of each type stands on its own.
//!
//! ```
//! # #[cfg(feature = "node")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tidings::{Node, Quorum, Security};
//!
//! let secret = Security::generate_secret(); // the same text on every node
//! let a = Node::builder("a").security(Security::secret(&secret)?).start().await?;
//! let seed = a.addr().to_string();
//! let b = Node::builder("b").seeds([seed]).security(Security::secret(&secret)?).start().await?;
//! b.ready().await?; // it has caught up with a peer
//!
//! let receipt = a.put("limits/max", "100")?; // visible on `a` now, on its way to `b`
//! receipt.seen_by(Quorum::All, Duration::from_secs(5)).await?;
//! assert_eq!(b.get("limits/max").unwrap().value(), b"100");
//!
//! b.shutdown().await; // leaves the cluster
//! # Ok(()) }
//! # #[cfg(not(feature = "node"))]
//! # fn main() {}
//! ```
//!
//! # The guide
//!
//! | page | what it answers |
//! |---|---|
//! | [starting nodes](guide::starting) | How do machines become one cluster? When is a node ready, and how does it leave? |
//! | [watching](guide::watching) | How do I follow changes, resume after a break, and keep a correct copy? |
//! | [typed values](guide::typed_values) | How do I keep values of my own types, and write several at once? |
//! | [live configuration](guide::live) | How do I hold settings that change while the program runs? |
//! | [feature flags](guide::flags) | How do I switch features for some users, and what happens in a partition? |
//! | [sets and counters](guide::sets_and_counters) | What becomes of concurrent writes? What is there besides values? |
//! | [elections](guide::elections) | How does one node become the leader, and what does a lease not protect from? |
//! | [security](guide::security) | Who may connect, how is a secret changed, and what can a member do? |
//! | [durability](guide::durability) | When is a write safe, and what do failures of a process or a disk do to it? |
//! | [metrics](guide::metrics) | Which metrics does a node record, and what do their labels mean? |
//! | [simulation](guide::simulation) | How do I test my own code under partitions, loss and crashes? |
//!
//! # Three layers
//!
//! * [`Node`], made by a [`Builder`] with a [`Config`]: the store on a real clock and network. Programs use this.
//! * [`sim::Sim`]: whole clusters in virtual time, with every fault. Tests use this.
//! * [`core::Replica`]: the pure core that both of them drive. It has no clock, network or disk; few programs need it.
//!
//! Code over the trait [`Store`] runs on a `Node` and in a simulation.
//!
//! # Errors
//!
//! Every error says what became of the state:
//!
//! | error | state |
//! |---|---|
//! | [`WriteError`] | Nothing was written; of a batch no part. |
//! | [`WaitError`] | The write stands. Only the wait for other nodes or for the disk has ended. |
//! | [`members::ForgetError`] | Nothing was written; the member is still known. |
//! | [`ElectionError`] | There is no lease; what voters granted on the way is given back. |
//! | [`StartError`] | No node runs, and nothing was changed. |
//! | [`members::SeedError`] | The seeds are the same as before. |
//! | [`SecurityError`] | What was in force stays in force. |
//! | [`SnapshotError`] | No snapshot was taken; a file that was at its path is still there. |
//! | [`DecodeError`] | The value is not of the expected type. It stays as it is. |
//! | [`live::LiveError`] | The live value did not start. Nothing was written. |
//! | [`flags::FlagError`] | The program's default was used. No other evaluation is affected. |
//! | [`live::Rejected`] | Something is not applied. The last good value stays in force. |
//!
//! [`Error`] is any of them. An error that was made from one of the operating system or of a library keeps that as its
//! [`source`](std::error::Error::source).
//!
//! # Observing a node
//!
//! * [`Node::status`] tells what a node holds, how far each peer is behind, and how long the writes of every other node
//!   take to arrive; the difference of the two wall clocks is part of that time.
//! * [`Node::joining`] tells how far a node is in catching up. Reads are answered meanwhile from what has arrived.
//! * [`Node::members`], [`Node::member_events`] and [`Node::events`] tell who is there, who comes and goes, and what
//!   the operator of the node should know.
//! * With the feature `metrics` a node records gauges, counters and histograms called `tidings_*`: see
//!   [`guide::metrics`].
//! * `tracing` events say when links are made and end, when repairs end and what they moved, and when a step holds the
//!   lock for long. Spans at the level `DEBUG` cover each `handshake`, `repair`, `join`, `campaign` and
//!   `disk_transaction`.
//!
//! # Serialization
//!
//! [`Config`] and the types that hold data implement serde's `Serialize` and, where a program can make them,
//! `Deserialize` ([`Entry`], [`WatchEvent`] and [`NodeEvent`] are only written). Fields are called as in Rust, variants
//! in snake case.
//!
//! | what | form |
//! |---|---|
//! | durations | text, as the crate `humantime` reads and writes it: `500ms`, `1h 30m` |
//! | moments | text of RFC 3339, in UTC |
//! | runs, stamps, revisions, fingerprints | hexadecimal text of fixed width; stamps and revisions as they are displayed |
//! | bytes | text of base64 in formats that people read, a sequence of numbers in others |
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `node` | yes | [`Node`]: the store over QUIC, in a tokio runtime; without it [`core`] and [`sim`] alone |
//! | `durable` | yes | a disk for nodes: [`Builder::data_dir`], [`Node::snapshot`], [`Builder::restore`] |
//! | `json` | yes | [`Map`] and [`Live`]: typed values, kept as JSON |
//! | `flags` | no | [`flags`]: feature flags in flagd's format, evaluated in this process |
//! | `openfeature` | no | `flags::FlagsProvider`: feature flags as a provider of `OpenFeature`'s SDK |
//! | `figment` | no | `live::StoreSource` as a `figment::Provider`, and providers as layers of a [`Live`] |
//! | `crdts` | no | `map::Merged`: values with a merge of their own, by the trait `CvRDT` of the crate `crdts` |
//! | `config` | no | `live::StoreSource` as a `config::Source` and a `config::AsyncSource` |
//! | `axum` | no | [`flags::Snapshot`] as an extractor of `axum`: one for each request |
//! | `schemars` | no | `Map::put_schema`, `LiveBuilder::put_schema`: JSON Schemas of Rust types, beside the values |
//! | `proptest` | no | `sim::faults`: a strategy of the crate `proptest` for the faults of a simulation |
//! | `srv` | no | seeds that are named by SRV records: `srv+name`, `Builder::name_servers` |
//! | `metrics` | no | what a node does, as gauges, counters and histograms for any recorder of the `metrics` crate |

// The pages and the tables above name items of all features.
#![cfg_attr(
    not(all(feature = "node", feature = "durable", feature = "flags", feature = "metrics")),
    allow(rustdoc::broken_intra_doc_links)
)]

/// The guide: one page per subject, with an example, the promises and the limits. There is no code in it.
pub mod guide {
    #[cfg(feature = "durable")]
    #[doc = include_str!("guide/starting.md")]
    pub mod starting {}

    #[cfg(feature = "node")]
    #[doc = include_str!("guide/watching.md")]
    pub mod watching {}

    #[cfg(all(feature = "node", feature = "json"))]
    #[doc = include_str!("guide/typed_values.md")]
    #[doc = "\n# Whole programs\n\nA map of values:\n"]
    #[doc = concat!("```\n", include_str!("../examples/typed_values.rs"), "```")]
    #[doc = "\nWrites that belong together:\n"]
    #[doc = concat!("```\n", include_str!("../examples/writes.rs"), "```")]
    #[doc = "\nA struct of settings ([live configuration](crate::guide::live)):\n"]
    #[doc = concat!("```\n", include_str!("../examples/live_values.rs"), "```")]
    pub mod typed_values {}

    #[cfg(all(feature = "node", feature = "json"))]
    #[doc = include_str!("guide/live.md")]
    pub mod live {}

    #[cfg(all(feature = "node", feature = "flags"))]
    #[doc = include_str!("guide/flags.md")]
    pub mod flags {}

    #[cfg(feature = "node")]
    #[doc = include_str!("guide/sets_and_counters.md")]
    pub mod sets_and_counters {}

    #[cfg(feature = "node")]
    #[doc = include_str!("guide/elections.md")]
    pub mod elections {}

    #[cfg(feature = "node")]
    #[doc = include_str!("guide/security.md")]
    pub mod security {}

    #[cfg(feature = "durable")]
    #[doc = include_str!("guide/durability.md")]
    pub mod durability {}

    #[cfg(feature = "metrics")]
    #[doc = include_str!("../docs/metrics.md")]
    pub mod metrics {}

    #[doc = include_str!("guide/simulation.md")]
    pub mod simulation {}
}

/// Compiles and runs the programs of the README as doc tests.
#[cfg(all(doctest, feature = "node"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// What belongs to a [`Counter`].
pub mod counter {
    pub use crate::typed::CounterWatch;
}

/// What belongs to a [`Map`]: the formats of its values, its entries, and values with a merge of their own.
#[cfg(feature = "json")]
pub mod map {
    pub use crate::error::Author;
    #[cfg(feature = "crdts")]
    pub use crate::typed::Merged;
    pub use crate::typed::{Codec, Json, MapEntry, SCHEMA_SUFFIX};
}

/// What belongs to a [`Live`]: its builder and layers, and what it says of itself.
#[cfg(feature = "json")]
pub mod live {
    pub use crate::error::{Author, LiveError, LiveSource, Rejected};
    pub use crate::store::WholeLook;
    #[cfg(any(feature = "config", feature = "figment"))]
    pub use crate::typed::StoreSource;
    pub use crate::typed::{
        LateBatch, Layer, LiveBuilder, LivePart, LiveState, Loaded, SCHEMA_OF_FIELDS, Values, WholeWatch,
    };
}

mod arrivals;
mod config;
mod controls;
mod election;
mod error;
#[cfg(feature = "flags")]
pub mod flags;
mod form;
mod id;
mod membership;
#[cfg(feature = "node")]
mod node;
mod replica;
mod replication;
mod settings_record;
pub mod sim;
mod store;
mod text;
mod time;
mod typed;
mod wire;

/// The pure replica that nodes and simulations drive: the store with its replication, membership and elections, without
/// clock, network, disk or thread.
///
/// The driver of a [`Replica`](core::Replica) tells it what happened with [`Replica::handle`](core::Replica::handle),
/// carries out what [`Replica::poll`](core::Replica::poll) returns, and wakes it at
/// [`Replica::deadline`](core::Replica::deadline). Few programs need this.
pub mod core {
    pub use crate::election::{Attempts, LeaseEnd, LeaseState};
    pub use crate::id::{LeaseId, LinkId};
    pub use crate::membership::{Contact, PeerExit};
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub use crate::replica::Kept;
    pub use crate::replica::saved::{DiskChange, Saved, SavedError};
    pub use crate::replica::{
        Batch, BreakReason, FoldedShares, Input, Lane, Output, Persist, RepairReport, Replica, Setup,
    };
    pub use crate::time::Time;
    pub use crate::wire::{Abilities, WireError};
}

/// Why a change of the membership was refused.
pub mod members {
    pub use crate::error::ForgetError;
    #[cfg(feature = "node")]
    pub use crate::error::SeedError;
}

/// The list of voters, and why it was not changed.
pub mod voters {
    pub use crate::election::VoterList;
    pub use crate::error::SetVotersError;
}

/// The settings that all nodes of a cluster share, and why settings were not changed.
pub mod settings {
    pub use crate::config::ClusterSettings;
    pub use crate::error::{ReconfigureError, SetSettingsError, SettingsDiffer};
    pub use crate::settings_record::{EarlierSettings, SettingsRecord};
}

/// What belongs to the events of a node ([`NodeEvent`]).
#[cfg(feature = "node")]
pub mod events {
    pub use crate::node::LinkEnd;
}

/// What belongs to the status of a node ([`NodeStatus`]).
pub mod status {
    pub use crate::replica::Readiness;
}

/// Limits that are the same in every cluster. Those that can be set are fields of [`Config`].
pub mod limits {
    pub use crate::config::{
        BATCH_WRITES_MAX, ELECTIONS_MAX, ENTRY_BYTES, KEY_BYTES_MAX, LEASE_TIME_MAX, VALUE_BYTES_CEILING,
        VOTERS_MAX,
    };
    pub use crate::election::{ELECTION_NAME_BYTES_MAX, LEADER_VALUE_BYTES_MAX, VOTERS_BYTES_MAX};
    pub use crate::membership::{MEMBERS_MAX, META_BYTES_MAX, META_ENTRIES_MAX};
    pub use crate::wire::FRAME_BYTES_MAX;
}

pub use arrivals::Arrival;
pub use config::{Config, ConfigError, Durability, OnCorruption};
#[cfg(feature = "__controls")]
#[doc(hidden)]
pub use controls::Control;
#[cfg(feature = "__controls")]
#[doc(hidden)]
pub use election::model::{ModelAnswer, ModelRequest, ModelVoter};
pub use election::{Leader, VoterRules};
pub use error::{Cause, DecodeError, ElectionError, Error, WriteError};
#[cfg(feature = "node")]
pub use error::{SecurityError, SnapshotError, StartError, WaitError};
pub use id::RunId;
pub use membership::{Member, MemberEvent, MemberLimit, MemberState};
#[cfg(feature = "node")]
pub use node::{
    Builder, Election, Events, Joining, LeaderEvent, Leadership, Node, NodeEvent, NodeStatus, Observer,
    PeerRefusal, PeerStatus, Quorum, Receipt, Security, TlsRefusal, Watch,
};
pub use replica::{JoinProgress, PutOptions, RepairTraffic, ReplicaEvent, Status};
pub use store::entry::{Entry, Revision};
pub use store::watch::{WatchEvent, WatchOptions};
pub use store::{OnlyIf, Refusal};
pub use time::{ParseError, Stamp};
pub use typed::{Counter, Set, Store, WriteBatch, WriteReceipt};
#[cfg(feature = "json")]
pub use typed::{Live, Map, MapEvent, MapWatch};
