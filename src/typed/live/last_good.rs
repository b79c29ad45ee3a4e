//! What a live value keeps for its next start: the keys that its value was made of.
//!
//! The layers are not kept. They are read anew at the next start, under and over what was kept, so that a changed file
//! or variable counts.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pieces::LivePiece;
use crate::error::BoxedError;
use crate::typed::kept;

/// What is kept of one key.
#[derive(Debug, Deserialize, Serialize)]
struct SavedValue {
    path: Vec<String>,
    value: Value,
}

/// The keys among pieces, as bytes.
pub(super) fn encode(of: &str, pieces: &[LivePiece]) -> Vec<u8> {
    let saved = |piece: &LivePiece| SavedValue { path: piece.path.clone(), value: piece.value.clone() };
    kept::encode(of, pieces.iter().map(|piece| (&piece.from, saved(piece))))
}

/// The pieces that were kept.
pub(super) fn decode(of: &str, bytes: &[u8]) -> Result<Vec<LivePiece>, BoxedError> {
    let keys = kept::decode(of, bytes)?.into_iter();
    Ok(keys.map(|(from, SavedValue { path, value })| LivePiece { from, path, value }).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::{Author, LiveSource};
    use crate::id::RunId;
    use crate::time::Stamp;

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
