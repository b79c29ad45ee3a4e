//! Everything that a typed map knows of one value.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::error::{Author, DecodeError};
use crate::form;
use crate::time::Stamp;

/// A value of a [`Map`](crate::Map) with what is known of it; [`Map::entry`](crate::Map::entry) gives it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[serde(bound = "T: Serialize")]
pub struct MapEntry<T> {
    /// The key, without the map's prefix.
    pub key: String,
    /// The value.
    #[serde(serialize_with = "form::write_shared")]
    pub value: Arc<T>,
    /// The stamp of the write: for conditions ([`OnlyIf::Stamp`](crate::OnlyIf::Stamp)).
    pub stamp: Stamp,
    /// Who wrote it.
    pub writer: Author,
    /// When the value expires, if it does.
    #[serde(serialize_with = "form::write_moment")]
    pub expires_at: Option<SystemTime>,
    /// The concurrent writes with lesser stamps, greatest first. They stay until the next write of the key.
    pub conflicts: Vec<Result<Self, DecodeError>>,
}
