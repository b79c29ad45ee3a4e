//! Keys as fields of one value, and back: the inverse of how the library's live values are made of keys.
//!
//! An object is spread over keys, one for each field that is no object. Where one key holds an object, its fields stay
//! there: a field never stands in two places. An object that has no fields, or one whose name cannot be a part of a key, is
//! the value of one key.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tidings::map::SCHEMA_SUFFIX;

use crate::exit::Failure;

/// What a key holds. None: no JSON.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) stamp: String,
    pub(super) value: Option<Value>,
}

/// What is to become of a key.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    pub(super) key: String,
    /// That of the value before; none where there is none.
    pub(super) stamp: Option<String>,
    pub(super) before: Option<Value>,
    /// None: it is deleted.
    pub(super) after: Option<Value>,
}

/// The value that keys give together.
pub(super) fn of_keys(prefix: &str, held: &BTreeMap<String, Held>) -> Result<Value, Failure> {
    check(prefix, held)?;
    let mut whole = Map::new();
    for (key, held) in held {
        let Some(value) = &held.value else {
            let error = format!("the value of \"{key}\" is not JSON, so it is no field");
            return Err(Failure::usage(error).hint("delete it, or put JSON; a text stands in quotes"));
        };
        let (parents, name) = key[prefix.len()..].rsplit_once('/').unwrap_or(("", &key[prefix.len()..]));
        let mut at = &mut whole;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            let field = at.entry(parent).or_insert_with(|| Value::Object(Map::new()));
            at = field.as_object_mut().expect("no key is a value and a prefix");
        }
        at.insert(name.to_owned(), value.clone());
    }
    Ok(Value::Object(whole))
}

/// Whether the keys are fields: no part is empty, and none is a value and the prefix of another one.
fn check(prefix: &str, held: &BTreeMap<String, Held>) -> Result<(), Failure> {
    let parents = held.keys().flat_map(|key| {
        let places = key.match_indices('/').map(|(at, _)| at);
        places.filter(|at| *at >= prefix.len()).map(move |at| (&key[..at], key))
    });
    let parents: BTreeMap<&str, &String> = parents.collect();
    for key in held.keys() {
        if key[prefix.len()..].split('/').any(str::is_empty) {
            let error =
                format!("a part of the key \"{key}\" behind \"{prefix}\" is empty, so it is no field");
            return Err(
                Failure::usage(error).hint("does the prefix lack its \"/\"? otherwise delete the key")
            );
        }
        if let Some(within) = parents.get(key.as_str()) {
            let error = format!("\"{key}\" is a value and at the same time the prefix of \"{within}\"");
            return Err(Failure::usage(error).hint("delete one of them"));
        }
    }
    Ok(())
}

/// The keys that give a field: that of the field, of one that it is in, or those of its own fields.
pub(super) fn giving<'a>(prefix: &str, held: &'a BTreeMap<String, Held>, path: &[&str]) -> Vec<&'a str> {
    let gives = |(key, held): &(&String, &Held)| {
        let fields: Vec<&str> = key[prefix.len()..].split('/').collect();
        let shared = fields.len().min(path.len());
        let within = &path[shared..];
        let has = || within.iter().try_fold(held.value.as_ref()?, |value, field| value.get(field));
        fields[..shared] == path[..shared] && (within.is_empty() || has().is_some())
    };
    held.iter().filter(gives).map(|(key, _)| key.as_str()).collect()
}

/// What has to change so that the keys give a value; with `prune` that value and no other fields.
pub(super) fn changes(
    prefix: &str,
    held: &BTreeMap<String, Held>,
    whole: &Value,
    prune: bool,
) -> Result<Vec<Change>, Failure> {
    check(prefix, held)?;
    let mut wanted = Wanted { held, prune, keys: BTreeMap::new() };
    for (field, value) in whole.as_object().into_iter().flatten() {
        if !is_part(field) {
            let error = format!("\"{field}\" cannot be a part of a key; nothing was written");
            return Err(Failure::usage(error));
        }
        wanted.add(format!("{prefix}{field}"), value);
    }
    let keys = wanted.keys;
    let mut changes = Vec::new();
    for (key, after) in &keys {
        let before = held.get(key);
        if before.and_then(|before| before.value.as_ref()) != Some(after) {
            changes.push(change(key, before, Some(after.clone())));
        }
    }
    let is_replaced = |key: &String| {
        key.match_indices('/').any(|(at, _)| at >= prefix.len() && keys.contains_key(&key[..at]))
    };
    let gone = held.iter().filter(|(key, _)| !keys.contains_key(*key) && (prune || is_replaced(key)));
    changes.extend(gone.map(|(key, before)| change(key, Some(before), None)));
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(changes)
}

fn change(key: &str, before: Option<&Held>, after: Option<Value>) -> Change {
    let stamp = before.map(|before| before.stamp.clone());
    Change { key: key.to_owned(), stamp, before: before.and_then(|before| before.value.clone()), after }
}

/// Whether the name of a field can be a part of a key.
fn is_part(field: &str) -> bool {
    !field.is_empty() && !field.contains('/') && !field.ends_with(SCHEMA_SUFFIX)
}

/// The keys that a value is spread over.
struct Wanted<'a> {
    held: &'a BTreeMap<String, Held>,
    prune: bool,
    keys: BTreeMap<String, Value>,
}

impl Wanted<'_> {
    fn add(&mut self, key: String, value: &Value) {
        if let Some(held) = self.held.get(&key) {
            let mut after = value.clone();
            if let Some(before) = held.value.as_ref().filter(|_| !self.prune) {
                after = before.clone();
                merge(&mut after, value);
            }
            self.keys.insert(key, after);
            return;
        }
        let below = format!("{key}/");
        let has_keys =
            self.held.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below));
        match value {
            Value::Object(fields) if fields.is_empty() && has_keys && !self.prune => {}
            Value::Object(fields) if !fields.is_empty() && fields.keys().all(|field| is_part(field)) => {
                fields.iter().for_each(|(field, value)| self.add(format!("{below}{field}"), value));
            }
            _ => _ = self.keys.insert(key, value.clone()),
        }
    }
}

/// Lays a value over another one, field by field, as live values do.
fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            over.iter().for_each(|(field, value)| merge(under.entry(field).or_insert(Value::Null), value));
        }
        (under, over) => *under = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn held(keys: &[(&str, Value)]) -> BTreeMap<String, Held> {
        let held = |value: &Value| Held { stamp: "s".to_owned(), value: Some(value.clone()) };
        keys.iter().map(|(key, value)| (format!("app/{key}"), held(value))).collect()
    }

    /// The keys after an import.
    fn after(before: &[(&str, Value)], whole: &Value, prune: bool) -> BTreeMap<String, Held> {
        let mut keys = held(before);
        for change in changes("app/", &keys.clone(), whole, prune).unwrap() {
            match change.after {
                Some(value) => {
                    _ = keys.insert(change.key, Held { stamp: "t".to_owned(), value: Some(value) });
                }
                None => _ = keys.remove(&change.key),
            }
        }
        keys
    }

    fn names(keys: &BTreeMap<String, Held>) -> Vec<&str> {
        keys.keys().map(String::as_str).collect()
    }

    #[test]
    fn document_is_spread_over_keys_and_put_together_again() {
        let whole = json!({ "db": { "pool": 5, "hosts": ["a"], "odd": { "a/b": 1 }, "none": {} }, "name": "x", "nil": null });
        let keys = after(&[], &whole, true);
        assert_eq!(
            names(&keys),
            ["app/db/hosts", "app/db/none", "app/db/odd", "app/db/pool", "app/name", "app/nil"]
        );
        assert_eq!(of_keys("app/", &keys).unwrap(), whole);
        assert!(changes("app/", &keys, &whole, true).unwrap().is_empty(), "the same again changes nothing");
        for wrong in [json!({ "a/b": 1 }), json!({ "": 1 }), json!({ "$schema": {} })] {
            assert!(changes("app/", &keys, &wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_stay_where_they_are() {
        let before = [("db", json!({ "pool": 5, "url": "x" })), ("log/level", json!("info"))];
        let whole = json!({ "db": { "pool": 6 }, "log": { "file": "f" } });
        let keys = after(&before, &whole, false);
        assert_eq!(names(&keys), ["app/db", "app/log/file", "app/log/level"]);
        assert_eq!(keys["app/db"].value, Some(json!({ "pool": 6, "url": "x" })));
        let pruned = after(&before, &whole, true);
        assert_eq!(names(&pruned), ["app/db", "app/log/file"]);
        assert_eq!(of_keys("app/", &pruned).unwrap(), whole);
    }

    #[test]
    fn value_in_place_of_fields_replaces_their_keys() {
        let before = [("db/pool", json!(5)), ("db/url", json!("x")), ("dbx", json!(1))];
        assert_eq!(names(&after(&before, &json!({ "db": 1 }), false)), ["app/db", "app/dbx"]);
        assert_eq!(
            names(&after(&before, &json!({ "db": {} }), false)),
            ["app/db/pool", "app/db/url", "app/dbx"]
        );
        assert_eq!(names(&after(&before, &json!({ "db": {} }), true)), ["app/db"]);
        assert_eq!(names(&after(&[("db", json!(1))], &json!({ "db": { "pool": 2 } }), false)), ["app/db"]);
    }

    #[test]
    fn keys_that_are_no_fields_are_named() {
        for keys in
            [held(&[("a", json!(1)), ("a.b", json!(1)), ("a/b", json!(2))]), held(&[("a//b", json!(1))])]
        {
            assert!(of_keys("app/", &keys).is_err() && changes("app/", &keys, &json!({}), false).is_err());
        }
        let mut keys = held(&[("a", json!(1))]);
        keys.get_mut("app/a").unwrap().value = None;
        assert!(of_keys("app/", &keys).unwrap_err().to_string().contains("app/a"));
        assert_eq!(changes("app/", &keys, &json!({ "a": 1 }), false).unwrap().len(), 1, "it can be replaced");
    }

    #[test]
    fn giving_keys_are_those_above_at_and_below() {
        let keys = held(&[("db", json!({ "pool": 5 })), ("log/level", json!(1)), ("log/file", json!(2))]);
        let of = |path: &[&str]| giving("app/", &keys, path);
        assert_eq!(of(&["db", "pool"]), ["app/db"]);
        assert_eq!(of(&["log"]), ["app/log/file", "app/log/level"]);
        assert_eq!(of(&["log", "level"]), ["app/log/level"]);
        assert_eq!(of(&[]).len(), 3);
        assert!(of(&["db", "x"]).is_empty() && of(&["lo"]).is_empty());
    }
}
