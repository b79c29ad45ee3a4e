//! JSON Schemas beside values: which one is for a key, and what is wrong with a value.
//!
//! Members of the cluster write schemas and values, so both may be hostile. A schema refers to nothing outside of itself,
//! its patterns take linear time, and [`cost`] bounds the steps of a check before it begins. A schema that cannot be used
//! fits no value: nothing counts as checked that was not.

mod cost;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::{Draft, PatternOptions, Validator};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tidings::live::SCHEMA_OF_FIELDS;
use tidings::map::SCHEMA_SUFFIX;
use tidings::{Node, Stamp};

use cost::Costs;

/// The largest schema that is used, and the largest value that is checked.
const SCHEMA_BYTES_MAX: usize = 128 << 10;
const CHECKED_BYTES_MAX: usize = 256 << 10;
/// Compiled schemas that are kept.
const COMPILED_MAX: usize = 32;
/// What one compiled pattern may take, and its cache while it is matched.
const PATTERN_BYTES_MAX: usize = 64 << 10;
const PATTERN_CACHE_BYTES_MAX: usize = 128 << 10;
/// Errors that are told of one value, and characters of each text.
const FAULTS_MAX: usize = 32;
const FAULT_CHARS_MAX: usize = 300;
/// Checks nest calls as deeply as value and schema together.
const STACK_BYTES: usize = 32 << 20;

/// Something that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// Where in the value, as a JSON pointer; empty for the whole.
    pub(crate) path: String,
    pub(crate) message: String,
}

impl Fault {
    fn whole(message: impl Into<String>) -> Self {
        Self { path: String::new(), message: message.into() }
    }
}

/// What a check has found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The key of the schema that is for the value. None: there is none, or the value is a schema itself.
    pub(crate) schema: Option<String>,
    pub(crate) faults: Vec<Fault>,
}

/// A schema, ready for checks; or why it is not used.
type Compiled = Arc<Result<Schema, Fault>>;

/// The schemas of a node, compiled once per change.
#[derive(Debug, Default)]
pub(crate) struct Schemas(Mutex<BTreeMap<String, (Stamp, Compiled)>>);

impl Schemas {
    /// Checks a value for a key: a schema for its form, and anything else with the schema that is for it.
    pub(crate) fn check(&self, node: &Node, key: &str, value: &[u8]) -> Verdict {
        if key.ends_with(SCHEMA_SUFFIX) {
            let compiled = on_large_stack(|| Schema::new(value));
            return Verdict { schema: None, faults: compiled.err().into_iter().collect() };
        }
        let Some((schema_key, stamp, bytes)) = schema_for(node, key) else { return Verdict::default() };
        let compiled = self.compiled(&schema_key, stamp, &bytes);
        let prefix = schema_key.strip_suffix(SCHEMA_SUFFIX).unwrap_or_default();
        let faults = match &*compiled {
            Ok(schema) => match on_large_stack(|| Ok(schema.faults(&key[prefix.len()..], value))) {
                Ok(faults) => faults,
                Err(failed) => vec![failed],
            },
            Err(fault) => {
                let Fault { path, message } = fault;
                let at = if path.is_empty() { String::new() } else { format!(" at {path}") };
                vec![Fault::whole(format!("this schema cannot be used{at}: {message}"))]
            }
        };
        Verdict { schema: Some(schema_key), faults }
    }

    fn compiled(&self, key: &str, stamp: Stamp, bytes: &[u8]) -> Compiled {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, compiled)) = lock().get(key)
            && *of == stamp
        {
            return compiled.clone();
        }
        let compiled: Compiled = Arc::new(on_large_stack(|| Schema::new(bytes)));
        let mut kept = lock();
        if kept.len() >= COMPILED_MAX && !kept.contains_key(key) {
            kept.clear();
        }
        kept.insert(key.to_owned(), (stamp, compiled.clone()));
        compiled
    }
}

/// The schema for a key: of those that are for a beginning of it, the one for the longest.
fn schema_for(node: &Node, key: &str) -> Option<(String, Stamp, Vec<u8>)> {
    let ends = (0..=key.len()).rev().filter(|end| key.is_char_boundary(*end));
    ends.map(|end| format!("{}{SCHEMA_SUFFIX}", &key[..end])).find_map(|schema_key| {
        let entry = node.get(&schema_key)?;
        Some((schema_key, entry.stamp(), entry.value().to_vec()))
    })
}

/// Runs a check where deep recursion is no danger, and where a panic ends nothing else.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
    let done = std::thread::scope(|scope| match builder.spawn_scoped(scope, work) {
        Ok(running) => running.join().map_err(|_| "the check failed".to_owned()),
        Err(error) => Err(format!("the check cannot be run: {error}")),
    });
    done.unwrap_or_else(|error| Err(Fault::whole(error)))
}

#[derive(Debug)]
struct Schema {
    validator: Validator,
    costs: Costs,
    /// It is for one value whose fields stand under keys of their own.
    is_of_fields: bool,
}

impl Schema {
    fn new(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > SCHEMA_BYTES_MAX {
            let error =
                format!("a schema has at most {SCHEMA_BYTES_MAX} bytes, this one has {}", bytes.len());
            return Err(Fault::whole(error));
        }
        let not_json = |error| Fault::whole(format!("a schema is JSON: {error}"));
        let schema: Value = serde_json::from_slice(bytes).map_err(not_json)?;
        // The form is checked first: the costs are those of a well-formed schema.
        let patterns =
            PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_CACHE_BYTES_MAX);
        let options = jsonschema::options().with_draft(Draft::Draft202012).offline();
        let costs = Costs::of(&schema)?;
        let built = options.with_pattern_options(patterns).build(&schema);
        let validator = built.map_err(|error| fault(&error))?;
        let is_of_fields = schema.get(SCHEMA_OF_FIELDS) == Some(&Value::Bool(true));
        Ok(Self { validator, costs, is_of_fields })
    }

    /// What is wrong with the value of a key, whose rest behind the schema's prefix is given.
    fn faults(&self, rest: &str, value: &[u8]) -> Vec<Fault> {
        if value.len() > CHECKED_BYTES_MAX {
            let error = format!("a value that a schema is for has at most {CHECKED_BYTES_MAX} bytes");
            return vec![Fault::whole(format!("{error}, this one has {}", value.len()))];
        }
        let value: Value = match serde_json::from_slice(value) {
            Ok(value) => value,
            Err(error) => return vec![Fault::whole(format!("the value is not JSON: {error}"))],
        };
        let fields: Vec<&str> =
            if self.is_of_fields && !rest.is_empty() { rest.split('/').collect() } else { Vec::new() };
        let whole = fields
            .iter()
            .rev()
            .fold(value, |value, field| Value::Object(Map::from_iter([((*field).to_owned(), value)])));
        let Some(has_details) = self.costs.permit(&whole) else {
            let error = "comparing this value with its schema would take too many steps";
            return vec![Fault::whole(error)];
        };
        if self.validator.is_valid(&whole) {
            return Vec::new();
        }
        if !has_details {
            return vec![Fault::whole(
                "the value does not satisfy the schema; it is too large for the details",
            )];
        }
        let faults = self.validator.iter_errors(&whole).take(FAULTS_MAX).map(|error| fault(&error));
        faults.map(|fault| Fault { path: without_fields(&fault.path, fields.len()), ..fault }).collect()
    }
}

/// A path within a value that stood in so many fields. An error of one of the fields is one of the whole value.
fn without_fields(path: &str, fields: usize) -> String {
    let parts: Vec<&str> = path.split('/').skip(1 + fields).collect();
    parts.iter().fold(String::new(), |path, part| path + "/" + part)
}

fn fault(error: &jsonschema::ValidationError<'_>) -> Fault {
    let text = error.to_string();
    let message = match text.char_indices().nth(FAULT_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    };
    Fault { path: error.instance_path().to_string(), message }
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// As the API tells it.
    pub(crate) fn view(&self) -> Value {
        json!({ "schema": self.schema, "errors": self.faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(schema: &Value) -> Result<Schema, Fault> {
        Schema::new(schema.to_string().as_bytes())
    }

    fn faults(of: &Value, rest: &str, value: &Value) -> Vec<(String, String)> {
        let schema = schema(of).unwrap();
        let faults = schema.faults(rest, value.to_string().as_bytes());
        faults.into_iter().map(|fault| (fault.path, fault.message)).collect()
    }

    #[test]
    fn every_error_is_named_with_its_place() {
        let of = json!({
            "type": "object",
            "properties": { "max": { "type": "integer", "minimum": 1 }, "name": { "pattern": "^[a-z]+$" } },
            "required": ["max"],
            "additionalProperties": false,
        });
        assert_eq!(faults(&of, "x", &json!({ "max": 1, "name": "a" })), []);
        let found = faults(&of, "x", &json!({ "max": 0, "name": "A", "mxa": 2 }));
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(["/max", "/name", ""].iter().all(|path| paths.contains(path)), "{found:?}");
        let not_json = schema(&of).unwrap().faults("x", b"hello");
        assert!(not_json[0].message.contains("not JSON"), "{not_json:?}");
    }

    #[test]
    fn schema_of_fields_judges_the_part_that_a_key_gives() {
        let of = json!({
            SCHEMA_OF_FIELDS: true,
            "properties": {
                "db": {
                    "properties": { "pool": { "type": "integer" }, "hosts": { "items": { "type": "string" } } },
                    "additionalProperties": false,
                },
            },
            "additionalProperties": false,
        });
        assert_eq!(faults(&of, "db/pool", &json!(5)), []);
        assert_eq!(faults(&of, "db", &json!({ "pool": 5 })), []);
        assert_eq!(faults(&of, "db/pool", &json!("x"))[0].0, "");
        assert_eq!(faults(&of, "db", &json!({ "pool": "x" }))[0].0, "/pool");
        assert_eq!(faults(&of, "db/hosts", &json!(["a", 1]))[0].0, "/1");
        assert!(faults(&of, "db/poool", &json!(5))[0].1.contains("poool"), "a field that there is not");
        assert_eq!(faults(&of, "d", &json!(5)).len(), 1);
    }

    #[test]
    fn schemas_that_cannot_be_used_are_refused() {
        for (wrong, of) in [
            (json!({ "type": "nonsense" }), "form"),
            (json!([]), "form"),
            (json!({ "$ref": "http://127.0.0.1:1/x.json" }), "remote"),
            (json!({ "$ref": "file:///etc/passwd" }), "remote"),
            (json!({ "properties": { "a": { "$ref": "other.json" } } }), "remote"),
            (json!({ "$ref": "#/$defs/none" }), "nothing there"),
            (json!({ "$ref": "#" }), "itself"),
            (json!({ "$dynamicRef": "#x" }), "dynamic"),
            (json!({ "pattern": "(?=a)b" }), "not linear"),
            (json!({ "pattern": "(a{1000}){1000}" }), "large pattern"),
            (json!({ "$schema": "http://json-schema.org/draft-07/schema#" }), "another draft"),
            (json!({ "$defs": { "a": { "$id": "http://127.0.0.1/" } } }), "another base"),
        ] {
            assert!(schema(&wrong).is_err(), "{of}: {wrong}");
        }
        assert!(Schema::new(b"{").is_err() && Schema::new(&vec![b' '; SCHEMA_BYTES_MAX + 1]).is_err());
        assert!(Schema::new("[".repeat(100_000).as_bytes()).is_err());
        for right in [json!(true), json!({}), json!({ "$id": "http://127.0.0.1/x", "type": "string" })] {
            assert!(schema(&right).is_ok(), "{right}: {:?}", schema(&right).err());
        }
    }

    /// Definitions that each use the one before twice.
    fn doubling(keyword: &str, steps: usize) -> Value {
        let mut of = Map::from_iter([("d0".to_owned(), json!({ "type": "integer" }))]);
        for step in 1..=steps {
            let before = json!({ "$ref": format!("#/$defs/d{}", step - 1) });
            of.insert(format!("d{step}"), json!({ keyword: [before, before] }));
        }
        json!({ "$defs": of, "$ref": format!("#/$defs/d{steps}") })
    }

    #[test]
    fn checks_that_would_take_too_long_are_refused() {
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let refused = faults(&doubling(keyword, 28), "x", &json!("x"));
            assert!(refused[0].1.contains("too many steps"), "{keyword}: {refused:?}");
            assert!(!faults(&doubling(keyword, 8), "x", &json!("x")).is_empty());
        }
        let twice = json!({ "items": { "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] } });
        let nested = |depth: usize| (0..depth).fold(json!(1), |value, _| json!([value]));
        assert_eq!(faults(&twice, "x", &nested(5)), []);
        assert!(faults(&twice, "x", &nested(60))[0].1.contains("too many steps"));
        assert!(
            faults(&json!({}), "x", &nested(100))[0].1.contains("too many steps"),
            "the depth is bounded"
        );
        assert!(schema(&doubling("allOf", 100)).is_err(), "a chain of references is bounded");
    }

    #[test]
    fn recursive_types_and_large_values_are_checked() {
        let tree = json!({
            "$ref": "#/$defs/node",
            "$defs": { "node": {
                "type": "object",
                "properties": { "name": { "type": "string" }, "next": { "anyOf": [{ "$ref": "#/$defs/node" }, { "type": "null" }] } },
                "required": ["name"],
            } },
        });
        let deep = (0..50).fold(json!({ "name": "leaf" }), |next, _| json!({ "name": "n", "next": next }));
        assert_eq!(faults(&tree, "x", &deep), []);
        let rows: Vec<Value> = (0..10_000).map(|i| json!({ "name": i.to_string() })).collect();
        let of = json!({ "items": tree["$defs"]["node"], "$defs": tree["$defs"] });
        assert_eq!(faults(&of, "x", &Value::Array(rows.clone())), []);
        let mut wrong = rows;
        wrong.iter_mut().for_each(|row| row["name"] = json!(1));
        assert!(faults(&of, "x", &Value::Array(wrong)).len() <= FAULTS_MAX);
    }
}
