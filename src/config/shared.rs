//! The settings that all nodes of a cluster share.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use crate::form;
use crate::text::Span;

/// Settings that are the same on all nodes of a cluster.
///
/// Each node begins with those of its [`Config`]. Nodes where they differ refuse each other
/// (`PeerRefusal::Settings`). `Node::set_cluster_settings` changes them on all nodes while these run; from then on they
/// are an entry of the store, and a node whose configuration has earlier ones takes over the present ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// [`Config::lease_time_max`](crate::Config::lease_time_max).
    #[serde(with = "form::span")]
    pub lease_time_max: Duration,
    /// [`Config::clock_skew_max`](crate::Config::clock_skew_max).
    #[serde(with = "form::span")]
    pub clock_skew_max: Duration,
    /// [`Config::mesh_members_max`](crate::Config::mesh_members_max).
    pub mesh_members_max: usize,
}

impl ClusterSettings {
    /// The shared settings of a configuration. Times are rounded up to whole milliseconds.
    pub fn of(config: &Config) -> Self {
        let whole = |time: Duration| {
            let ms = time.as_nanos().div_ceil(1_000_000);
            Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
        };
        Self {
            lease_time_max: whole(config.lease_time_max),
            clock_skew_max: whole(config.clock_skew_max),
            mesh_members_max: config.mesh_members_max,
        }
    }

    /// Checks every setting against the range that it has in [`Config`].
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut config = Config::lan();
        self.put_into(&mut config);
        config.lease_time = config.lease_time_max;
        config.check()
    }

    /// Makes these the shared settings of a configuration.
    pub(crate) fn put_into(self, config: &mut Config) {
        config.lease_time_max = self.lease_time_max;
        config.clock_skew_max = self.clock_skew_max;
        config.mesh_members_max = self.mesh_members_max;
    }

    pub(crate) fn lease_times(self) -> LeaseTimes {
        LeaseTimes { lease_time_max: self.lease_time_max, clock_skew_max: self.clock_skew_max }
    }
}

impl fmt::Display for ClusterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lease_time_max, clock_skew_max, mesh_members_max } = self;
        write!(
            f,
            "lease_time_max {}, clock_skew_max {}, mesh_members_max {mesh_members_max}",
            Span(*lease_time_max),
            Span(*clock_skew_max)
        )
    }
}

/// The times that all voters share. Whole milliseconds, because messages carry these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeaseTimes {
    /// [`Config::lease_time_max`](crate::Config::lease_time_max).
    pub(crate) lease_time_max: Duration,
    /// [`Config::clock_skew_max`](crate::Config::clock_skew_max).
    pub(crate) clock_skew_max: Duration,
}
