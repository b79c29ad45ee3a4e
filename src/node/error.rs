//! What can go wrong with a node, one small enum per area. Each variant says what became of the state.

use crate::config::ConfigError;
use crate::error::{ElectionError, WriteError};

/// Why a node did not start. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A field of [`Config`](crate::Config) is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's name cannot stand in a certificate.
    #[error(
        "the name {name:?} is not permitted: 1 to 63 lower-case letters, digits, '-', '.', '_', beginning and \
         ending with a letter or digit, and not ending in a part of digits alone"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The cluster's name is empty or too long.
    #[error("the cluster's name must have 1 to 255 bytes")]
    Cluster,
    /// The metadata is too large to travel in every greeting.
    #[error("metadata of {bytes} bytes is over the limit of {limit}")]
    Meta {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The metadata has too many entries.
    #[error("metadata of {entries} entries is over the limit of {limit}")]
    MetaEntries {
        /// How many there are.
        entries: usize,
        /// The limit.
        limit: usize,
    },
    /// A seed is not an address or a host name with a port.
    #[error("the seed {seed:?} is not of the form address:port or host:port")]
    Seed {
        /// The seed.
        seed: String,
    },
    /// Nothing says who may connect.
    #[error("no security: give Builder::security a Security::secret or Security::ca")]
    NoSecurity,
    /// The node's certificate cannot be used.
    #[error("the node's certificate cannot be used: {reason}")]
    Certificate {
        /// Why.
        reason: String,
    },
    /// The address cannot be bound.
    #[error("{addr} cannot be bound: {reason}")]
    Bind {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system says.
        reason: String,
    },
    /// The directory cannot be used.
    #[error("{path} cannot be used: {reason}")]
    DataDir {
        /// The directory.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// Another node, of this process or another, is using the directory.
    #[error("{path} is in use by another node")]
    DataDirInUse {
        /// The directory.
        path: String,
    },
    /// The directory does not hold what was written to it. Nothing of it was used or sent to anybody.
    #[error("{path} is damaged: {reason}; Config::on_corruption can have the node rejoin without it")]
    Damaged {
        /// The damaged file, or the directory if the damage cannot be told to be in one file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The directory was written by a later version of this library.
    #[error("{path} was written by a later version of this library ({version})")]
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
        reason: String,
    },
    /// The system has no randomness to give.
    #[error("the system gives no randomness: {reason}")]
    Randomness {
        /// What the system says.
        reason: String,
    },
}

/// Why a wait ended without what it waited for. The writes that it was about stand all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
    /// The time is over.
    #[error("the time is over: {seen} of {needed} nodes have the write")]
    TimedOut {
        /// How many nodes are known to have it.
        seen: usize,
        /// How many should.
        needed: usize,
    },
    /// The replica found damage in itself and began anew; what was asked about has no place in the new log.
    #[error("the replica began anew after damage; it is not known who has the write")]
    Restarted,
    /// The disk has failed or is full. It is not known whether a restart would find the write.
    #[error("the disk failed: {reason}; the write is in memory and on its way to the peers")]
    DiskFailed {
        /// What the system says.
        reason: String,
    },
    /// The node keeps nothing on a disk.
    #[error("this node has no disk; the write is in memory and on its way to the peers")]
    NoDisk,
}

/// Why a [`Security`](crate::Security) was not made or changed. What was in force stays so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityError {
    /// The secret is easy to guess.
    #[error("the secret {reason}; Security::generate_secret() makes a good one")]
    Weak {
        /// Why.
        reason: &'static str,
    },
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no files to read again: this is a shared secret.
    #[error("a shared secret has no files to read again")]
    NoFiles,
    /// Secrets cannot be changed where certificates come from files.
    #[error("the certificates come from files; there is no secret to change")]
    NoSecret,
    /// The secret to remove is the one that is presented.
    #[error("this secret is in use; present another one first")]
    InUse,
    /// The secret to remove is not accepted.
    #[error("this secret is not accepted anyway")]
    NotAccepted,
    /// A key or certificate could not be made.
    #[error("a key or certificate could not be made: {reason}")]
    Crypto {
        /// What happened.
        reason: String,
    },
}

/// Why a snapshot was not taken. What stood at its path before stands there still.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file cannot be written.
    #[error("{path} cannot be written: {reason}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// The node is closed after a panic: its state is not to be trusted.
    #[error("the node has failed; no snapshot was taken")]
    Failed,
}

/// A value is not what a typed view takes it for. It stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value of {key:?} is not of the expected form: {reason}")]
#[non_exhaustive]
pub struct DecodeError {
    /// The key.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// Any error of this library, for callers that do not tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Starting failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A write was not accepted.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A wait ended early.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A snapshot was not taken.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no lease.
    #[error(transparent)]
    Election(#[from] ElectionError),
    /// Security could not be made or changed.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// A value is not of the expected form.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
