//! What a live value is made of: pieces from layers and keys, and the tree that they give together.
//!
//! Each piece has a place in the tree and a source. Pieces are ordered: a later one replaces what it shares with an
//! earlier one, field by field. So the sources of a field are the pieces that have it, the last one first.

use std::collections::BTreeSet;
use std::ops::Bound;

use serde_json::{Map, Value};

use crate::error::{Cause, LiveSource, Rejected};
use crate::store::entry::Entry;

/// The deepest nesting of lists and objects in the value of a key.
///
/// JSON is read up to 127 levels. The file for the next start holds values a few levels deeper than their keys do, and
/// has to be read as well.
const PIECE_DEPTH_MAX: usize = 100;

/// A part of the input of a live value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LivePiece {
    pub(super) from: LiveSource,
    /// The fields that lead to it; empty for the whole value.
    pub(super) path: Vec<String>,
    pub(super) value: Value,
}

impl LivePiece {
    /// Whether it sets a field, or something within it.
    fn has(&self, path: &[&str]) -> bool {
        let shared = self.path.len().min(path.len());
        let is_same_way = self.path.iter().zip(path).all(|(own, asked)| own == asked);
        is_same_way && path[shared..].iter().try_fold(&self.value, |value, field| value.get(field)).is_some()
    }
}

/// Pieces and the value that they give together.
#[derive(Clone, Debug, Default)]
pub(super) struct PieceTree {
    pieces: Vec<LivePiece>,
    pub(super) merged: Value,
}

impl PieceTree {
    /// Merges pieces over a value, the least one first.
    pub(super) fn new(start: Value, pieces: Vec<LivePiece>) -> Self {
        let mut merged = start;
        for piece in &pieces {
            merge(place(&mut merged, &piece.path), &piece.value);
        }
        Self { pieces, merged }
    }

    /// The sources that set a field or something within it, the one in force first.
    pub(super) fn why(&self, path: &str) -> Vec<LiveSource> {
        let path: Vec<&str> = path.split('.').filter(|field| !field.is_empty()).collect();
        if path.iter().try_fold(&self.merged, |value, field| value.get(field)).is_none() {
            return Vec::new();
        }
        self.pieces.iter().rev().filter(|piece| piece.has(&path)).map(|piece| piece.from.clone()).collect()
    }

    /// What is not applied if a field is not acceptable: the piece that gives the field or, if no piece does, as where
    /// it is missing, each one that has changed since a tree that was good.
    pub(super) fn blame(&self, path: &[String], error: &Cause, good: &Self) -> Vec<Rejected> {
        let rejected = |from: Option<&LivePiece>| Rejected {
            from: from.map(|piece| piece.from.clone()),
            path: path.join("."),
            error: error.clone(),
        };
        let fields: Vec<&str> = path.iter().map(String::as_str).collect();
        let gives = |piece: &&LivePiece| fields.len() >= piece.path.len().max(1) && piece.has(&fields);
        if let Some(piece) = self.pieces.iter().rev().find(gives) {
            return vec![rejected(Some(piece))];
        }
        let changed: Vec<Rejected> = self
            .pieces
            .iter()
            .filter(|piece| !good.pieces.contains(piece))
            .map(|piece| rejected(Some(piece)))
            .collect();
        if changed.is_empty() { vec![rejected(None)] } else { changed }
    }
}

/// The value at a path. Whatever is in its way is replaced.
fn place<'a>(tree: &'a mut Value, path: &[String]) -> &'a mut Value {
    let mut at = tree;
    for field in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = at.as_object_mut().expect("just made").entry(field).or_insert(Value::Null);
    }
    at
}

/// Lays a value over another one, field by field.
fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (field, value) in over {
                merge(under.entry(field).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// The piece of an entry, or why it is none. With a prefix, the parts of the key behind it are the fields.
pub(super) fn piece_of(entry: &Entry, prefix: Option<&str>, from: LiveSource) -> Result<LivePiece, Rejected> {
    let fields = prefix.map_or("", |prefix| &entry.key()[prefix.len()..]);
    let path: Vec<String> = match prefix {
        Some(_) => fields.split('/').map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let reject = |error: Cause| Rejected { from: Some(from.clone()), path: path.join("."), error };
    if path.iter().any(String::is_empty) {
        return Err(reject(Cause::new("a part of the key behind the prefix is empty")));
    }
    match serde_json::from_slice(entry.value()) {
        Ok(value) if is_deeper(&value, PIECE_DEPTH_MAX) => {
            Err(reject(Cause::new(format!("it is nested deeper than {PIECE_DEPTH_MAX}"))))
        }
        Ok(value) => Ok(LivePiece { from, path, value }),
        Err(error) => Err(reject(Cause::new(error))),
    }
}

/// Whether lists and objects are nested deeper than this.
fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| is_deeper(field, levels - 1)),
        _ => false,
    }
}

/// The pieces whose key is the beginning of another one's, such as `a` beside `a/b`: which one is meant is not known.
pub(super) fn ambiguous(pieces: &[LivePiece]) -> Vec<Rejected> {
    let paths: BTreeSet<&[String]> = pieces.iter().map(|piece| &piece.path[..]).collect();
    let within = |piece: &LivePiece| {
        let behind = (Bound::Excluded(&piece.path[..]), Bound::Unbounded);
        let next = paths.range::<[String], _>(behind).next();
        next.filter(|next| next.starts_with(&piece.path)).map(|next| next.join("/"))
    };
    let reject = |piece: &LivePiece| {
        let within = within(piece)?;
        let error = Cause::new(format!(
            "it is a value and at the same time the prefix of {within}; delete one of them"
        ));
        Some(Rejected { from: Some(piece.from.clone()), path: piece.path.join("."), error })
    };
    pieces.iter().filter_map(reject).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn piece(name: &str, path: &str, value: Value) -> LivePiece {
        let path = path.split('.').filter(|field| !field.is_empty()).map(str::to_owned).collect();
        LivePiece { from: LiveSource::Layer { name: name.to_owned() }, path, value }
    }

    fn tree_of(pieces: Vec<LivePiece>) -> PieceTree {
        PieceTree::new(json!({}), pieces)
    }

    fn names(sources: Vec<LiveSource>) -> Vec<String> {
        let name = |source| match source {
            LiveSource::Layer { name } => name,
            other => other.to_string(),
        };
        sources.into_iter().map(name).collect()
    }

    #[test]
    fn later_pieces_replace_earlier_ones_field_by_field() {
        let tree = tree_of(vec![
            piece("file", "", json!({"db": {"pool": 1, "url": "x"}, "list": [1, 2]})),
            piece("a", "db.pool", json!(2)),
            piece("b", "list", json!([3])),
            piece("c", "deep.er", json!({"x": null})),
            piece("env", "", json!({"db": {"pool": 3}})),
        ]);
        let merged = json!({"db": {"pool": 3, "url": "x"}, "list": [3], "deep": {"er": {"x": null}}});
        assert_eq!(tree.merged, merged);
        assert_eq!(names(tree.why("db.pool")), ["env", "a", "file"]);
        assert_eq!(names(tree.why("db.url")), ["file"]);
        assert_eq!(names(tree.why("deep")), ["c"]);
        assert_eq!(names(tree.why("")), ["env", "c", "b", "a", "file"]);
        assert!(tree.why("db.nothing").is_empty() && tree.why("list.x").is_empty());
    }

    #[test]
    fn replaced_object_gives_its_fields_no_more() {
        let tree = tree_of(vec![piece("file", "", json!({"db": {"pool": 1}})), piece("env", "db", json!(5))]);
        assert_eq!(tree.merged, json!({"db": 5}));
        assert!(tree.why("db.pool").is_empty());
        let tree = tree_of(vec![piece("file", "db", json!(5)), piece("a", "db.pool", json!(1))]);
        assert_eq!(tree.merged, json!({"db": {"pool": 1}}));
    }

    #[test]
    fn blame_falls_on_the_giver_or_on_what_changed() {
        let good = tree_of(vec![piece("file", "", json!({"a": 1})), piece("k", "b", json!(1))]);
        let tree = tree_of(vec![piece("file", "", json!({"a": 1})), piece("k", "b", json!("x"))]);
        let error = Cause::new("wrong");
        let blamed = |path: &str| {
            let path: Vec<String> =
                path.split('.').filter(|field| !field.is_empty()).map(str::to_owned).collect();
            names(tree.blame(&path, &error, &good).into_iter().filter_map(|rejected| rejected.from).collect())
        };
        assert_eq!(blamed("a"), ["file"]);
        assert_eq!(blamed("b"), ["k"]);
        assert_eq!(blamed("missing"), ["k"]);
        assert_eq!(blamed(""), ["k"]);
        assert_eq!(tree.blame(&[], &error, &tree)[0].from, None);
    }

    #[test]
    fn value_that_is_also_a_prefix_is_ambiguous() {
        let of = |paths: &[&str]| -> Vec<String> {
            let pieces: Vec<LivePiece> = paths.iter().map(|path| piece(path, path, json!(1))).collect();
            ambiguous(&pieces).into_iter().map(|rejected| rejected.path).collect()
        };
        assert_eq!(of(&["a", "a.b", "ab", "c.d"]), ["a"]);
        assert_eq!(of(&["a", "a-b", "a.b"]), ["a"]);
        assert_eq!(of(&["a.b.c", "a"]), ["a"]);
        assert!(of(&["a", "ab", "b.a"]).is_empty());
    }
}
