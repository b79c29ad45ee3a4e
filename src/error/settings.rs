//! Errors of settings: the shared ones of a cluster, and those of one running node.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{SetVotersError, WriteError};
use crate::config::{ClusterSettings, ConfigError};
use crate::text::Escaped;

/// A node was configured with other shared settings than those of its cluster, now or before; or it belongs to another
/// cluster, which began with other ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingsDiffer {
    /// What the node that was refused is configured with; with which its cluster began if `is_beginning`.
    pub theirs: ClusterSettings,
    /// What is in force in the cluster of the node that refuses; with which it began if `is_beginning`.
    pub ours: ClusterSettings,
    /// Both nodes belong to clusters whose settings were changed, and these clusters began with different ones.
    pub is_beginning: bool,
}

impl fmt::Display for SettingsDiffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { theirs, ours, is_beginning } = self;
        if *is_beginning {
            write!(
                f,
                "these are nodes of two clusters, which began with other shared settings: that of the node that wants to \
                 join with {theirs}, the other with {ours}. They stay apart"
            )
        } else {
            write!(
                f,
                "the shared settings differ: the node that wants to join has {theirs}; the cluster has {ours}. Configure \
                 the node like the cluster, or change the cluster's settings while it runs"
            )
        }
    }
}

/// Why the shared settings were not changed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetSettingsError {
    /// A setting is out of its range.
    #[error("{_0}; the settings were not changed")]
    Range(#[from] ConfigError),
    /// The lease times are changed by the voters, and they did not. Their error speaks of the list of voters: the lease
    /// times are part of it.
    #[error("the voters did not take the new lease times: {_0}")]
    Voters(#[source] SetVotersError),
    /// The program of a living member does not follow changed settings, as far as its greeting says; or a voter was never
    /// linked with this node.
    #[error(
        "the program of the node {} does not follow settings that are changed at run time; they were not changed. \
         Replace the program, or stop the node",
        Escaped(name)
    )]
    OldProgram {
        /// The node.
        name: String,
    },
    /// A later call asked for other settings. The cluster changes to those.
    #[error("a later call asked for other settings: {by}")]
    Superseded {
        /// What the later call asked for.
        by: ClusterSettings,
    },
    /// There are no earlier settings to go back to.
    #[error("the settings were never changed, so there are no earlier ones")]
    NoEarlier,
    /// The settings could not be written into the store.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The node is closed. A change that has begun goes on without it.
    #[error("the node is closed; a change that has begun goes on")]
    Closed,
}

impl From<SetVotersError> for SetSettingsError {
    fn from(error: SetVotersError) -> Self {
        match error {
            SetVotersError::Write(error) => Self::Write(error),
            SetVotersError::Closed => Self::Closed,
            SetVotersError::OldProgram { name } => Self::OldProgram { name },
            error => Self::Voters(error),
        }
    }
}

/// Why the configuration of a running node was not changed. It is the same as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReconfigureError {
    /// A field is out of its range.
    #[error("{_0}; nothing was changed")]
    Range(#[from] ConfigError),
    /// A field cannot be changed for one running node.
    #[error("{field} cannot be changed for one running node: use {instead}; nothing was changed")]
    Fixed {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// What changes it.
        instead: &'static str,
    },
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}
