//! What a live value does not apply: which part of its input, who wrote it, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Cause;
use crate::id::RunId;
use crate::text::Escaped;
use crate::time::Stamp;

/// Who wrote a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Author {
    /// The run (one start of a process) that the value's stamp names.
    pub run: RunId,
    /// The name of the member that is or was this run, if the node knows it.
    pub name: Option<String>,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}", Escaped(name)),
            None => write!(f, "run {:016x}", self.run),
        }
    }
}

/// Where a part of a live value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LiveSource {
    /// A layer under or over the store.
    Layer {
        /// Its name.
        name: String,
    },
    /// A key of the store.
    Key {
        /// The key, with the prefix.
        key: String,
        /// The stamp of the write.
        stamp: Stamp,
        /// Who wrote it.
        writer: Author,
    },
    /// What was kept of an earlier run.
    LastGood {
        /// The path of the file.
        path: String,
    },
}

impl fmt::Display for LiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer { name } => write!(f, "the layer \"{}\"", Escaped(name)),
            Self::Key { key, stamp, writer } => {
                write!(f, "the key \"{}\" (written by {writer}, stamp {stamp})", Escaped(key))
            }
            Self::LastGood { path } => write!(f, "the file {} of the last good values", Escaped(path)),
        }
    }
}

/// Shows a source if there is one, and a path if it is not empty, each with what separates it from what follows.
struct SourcePlace<'a>(Option<&'a LiveSource>, &'a str);

impl fmt::Display for SourcePlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = self.0 {
            write!(f, "{source}: ")?;
        }
        if !self.1.is_empty() {
            write!(f, "in {}: ", Escaped(self.1))?;
        }
        Ok(())
    }
}

/// Something that a live value does not apply. The last good value stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{}{}", SourcePlace(from.as_ref(), path), Escaped(&error.to_string()))]
#[non_exhaustive]
pub struct Rejected {
    /// Where it comes from; `None` if no key and no layer can be named, as where a value is missing everywhere. If a
    /// check of the whole value fails, everything that has changed since the last good value is named, each by itself.
    pub from: Option<LiveSource>,
    /// The field, as `db.pool`; empty if the error concerns the whole value.
    pub path: String,
    /// Why it is not applied.
    #[source]
    pub error: Cause,
}

/// Why a live value did not start. Nothing follows the store, and nothing was written but the schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// What the store and the layers hold is not acceptable, and there is no last good value.
    #[error("no acceptable value and no last good one: {}; correct it and start again", Listed(.0))]
    Rejected(Vec<Rejected>),
    /// The node has not caught up with any peer in time. There is no last good value, and what this node holds itself is
    /// not acceptable.
    #[error(
        "the node has not caught up with a peer in time, and holds no acceptable value itself: {}; start again when a \
         peer can be reached",
        Listed(.0)
    )]
    Alone(Vec<Rejected>),
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Several rejections in one sentence.
struct Listed<'a>(&'a [Rejected]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rejected) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{rejected}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_names_key_writer_stamp_field_and_error() {
        let stamp = Stamp { clock: 1, origin: RunId::new(2) };
        let writer = Author { run: RunId::new(2), name: Some("n1".to_owned()) };
        let from = Some(LiveSource::Key { key: "app/db".to_owned(), stamp, writer });
        let rejected = Rejected { from, path: "db".to_owned(), error: Cause::new("too\nlarge") };
        assert_eq!(
            rejected.to_string(),
            "the key \"app/db\" (written by n1, stamp 0000000000000001-0000000000000002): in db: too\\nlarge"
        );
        let unknown = Author { run: RunId::new(2), name: None };
        assert_eq!(unknown.to_string(), "run 0000000000000002");
        let rejected = Rejected { from: None, path: String::new(), error: Cause::new("missing") };
        assert!(
            LiveError::Rejected(vec![rejected.clone(), rejected]).to_string().contains("missing; missing")
        );
    }
}
