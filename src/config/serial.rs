//! How a [`Config`] is serialized: with the names of its fields, and durations as text.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_path_to_error::Track;

use super::{Config, Durability, OnCorruption, VectorSettings};
use crate::form;

/// The fields of a [`Config`]. The compiler demands all of them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Config", default = "Config::lan", deny_unknown_fields)]
struct ConfigForm {
    #[serde(with = "form::span")]
    sync_interval: Duration,
    value_bytes_max: usize,
    #[serde(with = "form::span")]
    clock_skew_max: Duration,
    removals_max: usize,
    mesh_members_max: usize,
    #[serde(with = "form::span")]
    sync_timeout: Duration,
    lag_bytes_max: usize,
    store_bytes_max: usize,
    #[serde(with = "form::span")]
    probe_interval: Duration,
    #[serde(with = "form::span")]
    probe_timeout: Duration,
    #[serde(with = "form::span")]
    suspicion_time: Duration,
    #[serde(with = "form::span")]
    forget_after: Duration,
    #[serde(with = "form::span")]
    alone_after: Duration,
    #[serde(with = "form::span")]
    scrub_interval: Duration,
    durability: Durability,
    on_corruption: OnCorruption,
    voters: Vec<String>,
    #[serde(with = "form::span")]
    lease_time: Duration,
    #[serde(with = "form::span")]
    lease_time_max: Duration,
    #[serde(skip)]
    vector: VectorSettings,
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ConfigForm::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut track = Track::new();
        let read = ConfigForm::deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track));
        // Formats do not name the field of a wrong value.
        read.map_err(|error| D::Error::custom(format_args!("{}: {error}", track.path())))
    }
}
