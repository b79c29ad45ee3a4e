//! What a live value keeps for its next start: the keys that its value was made of.
//!
//! The layers are not kept. They are read anew at the next start, under and over what was kept, so that a changed file
//! or variable counts. Where it is kept is not decided here, because this module knows no files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pieces::LivePiece;
use crate::error::{Author, BoxedError, LiveSource};
use crate::time::Stamp;

const FORMAT: u32 = 1;

/// Where a live value keeps its last good values between two runs. Its methods may block.
pub(crate) trait LastGood: Send + Sync + 'static {
    /// How people find it.
    fn path(&self) -> String;

    /// What was written last, if anything.
    fn read(&self) -> Result<Option<Vec<u8>>, BoxedError>;

    /// Replaces what was written last, whole or not at all.
    fn write(&self, bytes: &[u8]) -> Result<(), BoxedError>;
}

/// The keys of a live value, as they are kept.
#[derive(Debug, Deserialize, Serialize)]
struct SavedKeys {
    format: u32,
    /// The key or prefix of the live value.
    of: String,
    keys: BTreeMap<String, SavedValue>,
}

#[derive(Debug, Deserialize, Serialize)]
struct SavedValue {
    path: Vec<String>,
    value: Value,
    stamp: String,
    writer: Option<String>,
}

/// The keys among pieces, as bytes.
pub(super) fn encode(of: &str, pieces: &[LivePiece]) -> Vec<u8> {
    let saved = |piece: &LivePiece| match &piece.from {
        LiveSource::Key { key, stamp, writer } => Some((
            key.clone(),
            SavedValue {
                path: piece.path.clone(),
                value: piece.value.clone(),
                stamp: stamp.to_string(),
                writer: writer.name.clone(),
            },
        )),
        _ => None,
    };
    let keys =
        SavedKeys { format: FORMAT, of: of.to_owned(), keys: pieces.iter().filter_map(saved).collect() };
    serde_json::to_vec_pretty(&keys).expect("texts and JSON values have a form as JSON")
}

/// The pieces that were kept.
pub(super) fn decode(of: &str, bytes: &[u8]) -> Result<Vec<LivePiece>, BoxedError> {
    let saved: SavedKeys = serde_json::from_slice(bytes)?;
    if saved.format != FORMAT {
        return Err(format!("it has format {}, and this release reads format {FORMAT}", saved.format).into());
    }
    if saved.of != of {
        return Err(format!("it belongs to \"{}\" and not to \"{of}\"", saved.of).into());
    }
    let piece = |(key, saved): (String, SavedValue)| -> Result<LivePiece, BoxedError> {
        let stamp: Stamp = saved.stamp.parse()?;
        let writer = Author { run: stamp.origin(), name: saved.writer };
        Ok(LivePiece { from: LiveSource::Key { key, stamp, writer }, path: saved.path, value: saved.value })
    };
    saved.keys.into_iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::RunId;

    #[test]
    fn kept_keys_come_back_and_layers_do_not() {
        let stamp = Stamp { clock: 7, origin: RunId::new(9) };
        let writer = Author { run: RunId::new(9), name: Some("n1".to_owned()) };
        let from = LiveSource::Key { key: "app/a/b".to_owned(), stamp, writer };
        let key =
            LivePiece { from, path: vec!["a".to_owned(), "b".to_owned()], value: json!({"x": [1, null]}) };
        let layer = LivePiece {
            from: LiveSource::Layer { name: "file".to_owned() },
            path: Vec::new(),
            value: json!({"secret": 1}),
        };
        let bytes = encode("app/", &[layer, key.clone()]);
        assert_eq!(decode("app/", &bytes).unwrap(), [key]);
        assert!(!String::from_utf8(bytes.clone()).unwrap().contains("secret"));
        assert!(decode("other/", &bytes).unwrap_err().to_string().contains("belongs to"));
        assert!(decode("app/", &bytes[..bytes.len() / 2]).is_err());
        assert!(decode("app/", b"").is_err());
    }
}
