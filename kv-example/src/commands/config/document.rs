//! Documents in several formats. Each gives the values of JSON, or an error: nothing is lost on the way.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::exit::{Exit, Failure};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Toml,
    Yaml,
    Json,
}

impl Format {
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Reads a document, which has to be an object.
pub(crate) fn read(text: &str, format: Format) -> Result<Value, Failure> {
    let read = match format {
        Format::Toml => text.parse().map_err(said).and_then(|table| of_toml("", toml::Value::Table(table))),
        Format::Yaml => serde_saphyr::from_str(text).map_err(said).map(|Plain(value)| value),
        Format::Json => serde_json::from_str(text).map_err(said).map(|Plain(value)| value),
    };
    match read {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err(Failure::usage("the document has no fields: it is no object")),
        Err(error) => Err(Failure::usage(error)),
    }
}

fn said(error: impl fmt::Display) -> String {
    error.to_string().trim_end().to_owned()
}

/// Writes a value as a document, or by itself if it is none: a text as it is, anything else as JSON.
pub(super) fn write(value: &Value, format: Format) -> Result<String, Failure> {
    let failed = |error: String| Failure::new(Exit::Failed, error);
    let text = match (format, value) {
        (Format::Json, _) => format!("{value:#}"),
        (_, Value::String(text)) => text.clone(),
        (Format::Toml, Value::Object(_)) => {
            if let Some(path) = null_in(value) {
                let error = format!("TOML has no null, which is the value of \"{path}\"");
                return Err(failed(error).hint("give --format yaml or json"));
            }
            toml::to_string(value).map_err(|error| failed(said(error)))?
        }
        (Format::Yaml, Value::Object(_)) => {
            serde_saphyr::to_string(value).map_err(|error| failed(said(error)))?
        }
        _ => value.to_string(),
    };
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

/// Where a null stands.
fn null_in(value: &Value) -> Option<String> {
    let within = |name: &str, part: &Value| {
        null_in(part).map(|path| if path.is_empty() { name.to_owned() } else { format!("{name}.{path}") })
    };
    match value {
        Value::Null => Some(String::new()),
        Value::Object(fields) => fields.iter().find_map(|(name, field)| within(name, field)),
        Value::Array(items) => items.iter().enumerate().find_map(|(at, item)| within(&at.to_string(), item)),
        _ => None,
    }
}

/// Dates become texts, as JSON has none.
fn of_toml(at: &str, value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number_of(number).map_err(|error| format!("{at}: {error}"))?,
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => {
            items.into_iter().map(|item| of_toml(at, item)).collect::<Result<_, _>>()?
        }
        toml::Value::Table(fields) => {
            let field = |(name, field): (String, toml::Value)| {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                Ok((name, of_toml(&at, field)?))
            };
            Value::Object(fields.into_iter().map(field).collect::<Result<_, String>>()?)
        }
    })
}

fn number_of(number: f64) -> Result<Value, String> {
    Number::from_f64(number).map(Value::Number).ok_or_else(|| format!("JSON has no number {number}"))
}

/// A value of JSON that was written in JSON or YAML, without what readers of these formats pass over in silence: fields
/// that are there twice, and numbers that JSON does not have.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Self)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        number_of(number).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Plain(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let Plain(field) = fields.next_value()?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("the field \"{name}\" is there twice")));
            }
            map.insert(name, field);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use serde_json::json;

    use super::*;

    const FORMATS: [Format; 3] = [Format::Toml, Format::Yaml, Format::Json];

    #[test]
    fn what_is_written_is_read_again() {
        let whole = json!({
            "name": "shop & co: \"x\"\n# no comment",
            "yes": "yes", "no": false, "octal": "0o17", "null": "null", "tilde": "~", "empty": "",
            "time": "2020-01-01T00:00:00Z", "number": "1.0", "float": 1.5, "whole": 2.0, "large": i64::MAX, "least": i64::MIN,
            "db": { "pool": 5, "hosts": ["a", "b"], "deep": { "er": [{ "x": 1 }, { "x": 2 }] }, "none": {} },
            "a.b": { "with space": 1, "ü": "€" },
            "list": [[1, 2], []],
        });
        for format in FORMATS {
            let text = write(&whole, format).unwrap();
            assert_eq!(read(&text, format).unwrap(), whole, "{text}");
        }
        let with_null = json!({ "a": { "b": [1, null] }, "u": u64::MAX });
        for format in [Format::Yaml, Format::Json] {
            assert_eq!(read(&write(&with_null, format).unwrap(), format).unwrap(), with_null);
        }
        let error = write(&with_null, Format::Toml).unwrap_err().to_string();
        assert!(error.contains("\"a.b.1\""), "{error}");
    }

    #[test]
    fn what_json_does_not_have_is_an_error() {
        for (text, format) in [
            ("a: .nan", Format::Yaml),
            ("a: -.inf", Format::Yaml),
            ("a = nan", Format::Toml),
            ("a = [inf]", Format::Toml),
            ("a: 1\na: 2", Format::Yaml),
            ("{\"a\": 1, \"a\": 2}", Format::Json),
            ("a = 1\na = 2", Format::Toml),
            ("[1]", Format::Json),
            ("- 1", Format::Yaml),
            ("a: [", Format::Yaml),
            ("a =", Format::Toml),
            ("{\"a\": 1} x", Format::Json),
            ("a: 1\n---\na: 2", Format::Yaml),
        ] {
            assert!(read(text, format).is_err(), "{text}: {}", read(text, format).unwrap());
        }
        assert_eq!(read("t = 2020-01-01", Format::Toml).unwrap(), json!({ "t": "2020-01-01" }));
    }

    #[test]
    fn hostile_documents_are_refused() {
        let nested = "[".repeat(100_000);
        assert!(read(&format!("{{\"a\": {nested}"), Format::Json).is_err());
        assert!(read(&format!("a: {nested}"), Format::Yaml).is_err());
        assert!(read(&format!("a = {nested}"), Format::Toml).is_err());
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let before = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(bomb, "a{level}: &a{level} [{before}]").unwrap();
        }
        assert!(read(&bomb, Format::Yaml).is_err(), "aliases that grow without end");
    }
}
