//! The errors of a node, one small enum per area. Each variant says what happened and what became of the state.

use super::{Cause, SettingsDiffer};
use crate::config::ConfigError;
use crate::text::Escaped;

/// Why an address was not added to the seeds of a node. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// It has none of the forms that [`Builder::seeds`](crate::Builder::seeds) lists.
    #[error(
        "the seed \"{}\" has none of the forms host, host:port, [IPv6]:port and srv+name (with the feature `srv`)",
        Escaped(seed)
    )]
    Form {
        /// The seed.
        seed: String,
    },
    /// The node has as many seeds as it may have.
    #[error("the seed \"{}\" was not added: a node has at most {limit} seeds", Escaped(seed))]
    TooMany {
        /// The seed that would be one too many.
        seed: String,
        /// The limit.
        limit: usize,
    },
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why a node did not start. Nothing runs, and nothing was sent to anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A field of [`Config`](crate::Config) is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory holds the record of the cluster's shared settings, and the node is configured with others that
    /// were never in force.
    #[error(transparent)]
    Settings(#[from] SettingsDiffer),
    /// The node's name cannot be used in a certificate.
    #[error(
        "the node name \"{}\" is not permitted: use 1 to 63 lower-case letters, digits, '-', '.' and '_', with a \
         letter or digit at both ends, and a last part that is not digits alone",
        Escaped(name)
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The cluster's name is empty or too long.
    #[error("the cluster's name must have 1 to 255 bytes; set another one with Builder::cluster")]
    Cluster,
    /// The metadata and the application version together are too large to travel in every greeting.
    #[error(
        "the metadata has {bytes} bytes, over the limit of {limit} that it shares with the application version"
    )]
    Meta {
        /// The size of the metadata in bytes, without the application version.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The metadata has too many entries.
    #[error("the metadata has {entries} entries, over the limit of {limit}")]
    MetaEntries {
        /// The number of entries.
        entries: usize,
        /// The limit.
        limit: usize,
    },
    /// A seed is not an address or a host name with a port, or there are too many.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// No [`Security`](crate::Security) was given.
    #[error("no security was given: pass Security::secret or Security::ca to Builder::security")]
    NoSecurity,
    /// The node's certificate cannot be used.
    #[error("the node's certificate cannot be used: {reason}")]
    Certificate {
        /// What is wrong with it.
        #[source]
        reason: Cause,
    },
    /// The address cannot be bound.
    #[error("the address {addr} cannot be bound: {reason}")]
    Bind {
        /// The address.
        addr: std::net::SocketAddr,
        /// The operating system's error.
        #[source]
        reason: Cause,
    },
    /// The address to advertise cannot be resolved.
    #[error("\"{}\" cannot be advertised: {reason}", Escaped(name))]
    Advertise {
        /// What was given to [`Builder::advertise`](crate::Builder::advertise).
        name: String,
        /// Why not.
        #[source]
        reason: Cause,
    },
    /// The directory cannot be used.
    #[error("the data directory {path} cannot be used: {reason}")]
    DataDir {
        /// The directory.
        path: String,
        /// The operating system's error.
        #[source]
        reason: Cause,
    },
    /// Another node, of this process or another, is using the directory.
    #[error("the data directory {path} is in use by another node; give each node its own")]
    DataDirInUse {
        /// The directory.
        path: String,
    },
    /// The directory does not hold what was written to it. Nothing of it was used or sent to anybody.
    #[error(
        "{path} is damaged: {reason}; it was left as it is. With Config::on_corruption = OnCorruption::Rejoin the node \
         moves its data aside and fetches everything from its peers"
    )]
    Damaged {
        /// The damaged file, or the directory if the damage cannot be narrowed down to one file.
        path: String,
        /// What is wrong.
        #[source]
        reason: Cause,
    },
    /// The directory was written by a later version of this library.
    #[error(
        "the data directory {path} has layout version {version} of a later release of this library; it was left as it \
         is. Start the node with that release"
    )]
    DataDirVersion {
        /// The directory.
        path: String,
        /// The version of its layout.
        version: u8,
    },
    /// A snapshot cannot be read, or is damaged.
    #[error("the snapshot {path} cannot be used: {reason}")]
    Snapshot {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        reason: Cause,
    },
    /// The operating system provides no random numbers.
    #[error("the operating system provides no random numbers: {reason}")]
    Randomness {
        /// The operating system's error.
        #[source]
        reason: Cause,
    },
}

/// Why a wait ended early. The writes that it was about stay in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The node is closed.
    #[error("the wait ended because the node is closed")]
    Closed,
    /// The timeout has passed.
    #[error("timed out: {seen} of {needed} nodes are known to have the write; it stays in force")]
    TimedOut {
        /// How many nodes are known to have the write.
        seen: usize,
        /// How many were waited for.
        needed: usize,
    },
    /// The replica found damage in itself and began a new change log, in which the write has no position.
    #[error(
        "the replica found damage and began a new change log; it is not known which nodes have the write"
    )]
    Restarted,
    /// The disk has failed or is full. It is not known whether a restart would find the write.
    #[error("the disk failed: {reason}; the write is in memory and is being sent to the peers")]
    DiskFailed {
        /// The operating system's error.
        #[source]
        reason: Cause,
    },
    /// The node has no data directory.
    #[error("this node has no data directory; the write is in memory and is being sent to the peers")]
    NoDisk,
}

/// Why a [`Security`](crate::Security) was not made or changed. An existing one stays in force unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityError {
    /// The secret is easy to guess.
    #[error(
        "the secret is too easy to guess: it is worth about {bits} bits, and at least {bits_min} are needed; make a new \
         one with Security::generate_secret"
    )]
    Weak {
        /// How many bits the secret is worth, as [`Security::secret`](crate::Security::secret) estimates it.
        bits: u32,
        /// The least that is permitted.
        bits_min: u32,
    },
    /// The secret has blanks at one end, which is probably a mistake.
    #[error("the secret begins or ends with a blank, which is probably a mistake; remove it")]
    Blank,
    /// A name that no node can have was to be allowed.
    #[error(
        "no node can have the name \"{}\", so nothing was changed: names have 1 to 63 lower-case letters, digits, '-', \
         '.' and '_'",
        Escaped(name)
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A file of certificates or keys cannot be read, or has the wrong content.
    #[error("{path} cannot be used: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        reason: Cause,
    },
    /// This takes certificates from files, and the security is a shared secret.
    #[error("there are no certificate files: this security is a shared secret; nothing was changed")]
    NoFiles,
    /// Secrets cannot be changed where certificates come from files.
    #[error("there is no secret to change: the certificates come from files; nothing was changed")]
    NoSecret,
    /// The secret to remove is the one that is presented.
    #[error("the secret is the one that is presented and was not removed; present another one first")]
    InUse,
    /// The secret to remove is not accepted.
    #[error("the secret was not accepted before; nothing was changed")]
    NotAccepted,
    /// A key or certificate could not be made.
    #[error("a key or certificate could not be made: {reason}")]
    Crypto {
        /// What failed.
        #[source]
        reason: Cause,
    },
}

/// Why a snapshot was not taken. A file that was at its path before is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file cannot be written.
    #[error("the snapshot {path} cannot be written: {reason}")]
    File {
        /// The file.
        path: String,
        /// The operating system's error.
        #[source]
        reason: Cause,
    },
    /// The node was closed by a panic, so that its state cannot be trusted.
    #[error("no snapshot was taken: the node was closed by a panic, and its state cannot be trusted")]
    Failed,
}
