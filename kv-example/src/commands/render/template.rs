//! One file, made by a template.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

use super::file::OneFile;
use crate::exit::{Exit, Failure};
use crate::files;

/// The largest template.
const TEMPLATE_BYTES_MAX: u64 = 4 << 20;
/// The largest file that a template makes. Its steps do not bound that: one step may repeat a text many times.
const FILE_BYTES_MAX: usize = 64 << 20;
/// Steps of a template, so that a loop in it ends.
const STEPS_MAX: u64 = 10_000_000;

pub(super) struct Template {
    source: PathBuf,
    pub(super) out: OneFile,
}

impl Template {
    pub(super) fn new(template: &Path, out: OneFile) -> Result<Self, Failure> {
        let template = Self { source: template.to_owned(), out };
        template.read()?;
        Ok(template)
    }

    /// It may be edited while this program runs.
    fn read(&self) -> Result<String, Failure> {
        files::regular_text(&self.source, TEMPLATE_BYTES_MAX)
    }

    /// Makes the file what the template gives. Returns whether a byte of it has changed.
    pub(super) fn write(&self, keys: &BTreeMap<&str, &[u8]>) -> Result<bool, Failure> {
        let text = render(&self.read()?, keys, FILE_BYTES_MAX);
        self.out.write(&text.map_err(|error| error.at(&self.source.display().to_string()))?)
    }
}

/// A file that is being made.
struct Made {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Made {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if part.len() > self.bytes_max - self.bytes.len() {
            return Err(io::Error::other(format!("the file would have more than {} bytes", self.bytes_max)));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn render(template: &str, keys: &BTreeMap<&str, &[u8]>, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    let syntax = syntax.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(syntax);
    environment.set_fuel(Some(STEPS_MAX));
    let said = |error: minijinja::Error| {
        let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::new(Exit::Failed, format!("{line}{error}{cause}"))
    };
    let mut made = Made { bytes: Vec::new(), bytes_max };
    let template = environment.template_from_str(template).map_err(said)?;
    template.render_captured_to(nested(keys), &mut made).map_err(said)?;
    Ok(made.bytes)
}

/// The keys as nested maps. Values that are JSON are what they are, others text or bytes.
fn nested(keys: &BTreeMap<&str, &[u8]>) -> Value {
    fields_of(keys.iter().map(|(path, value)| (*path, *value)).collect())
}

fn fields_of(keys: Vec<(&str, &[u8])>) -> Value {
    let mut values = BTreeMap::new();
    let mut within: BTreeMap<&str, Vec<(&str, &[u8])>> = BTreeMap::new();
    for (path, value) in keys {
        match path.split_once('/') {
            None => _ = values.insert(path, value_of(value)),
            Some((field, rest)) => within.entry(field).or_default().push((rest, value)),
        }
    }
    values.extend(within.into_iter().map(|(field, keys)| (field, fields_of(keys))));
    Value::from_pairs(values)
}

fn value_of(bytes: &[u8]) -> Value {
    match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
        (Ok(value), _) => value,
        (Err(_), Ok(text)) => Value::from(text),
        (Err(_), Err(_)) => Value::from_bytes(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a file of at most 1,000 bytes.
    fn rendered(template: &str) -> Result<String, String> {
        let keys: [(&str, &[u8]); 5] = [
            ("db/pool", b"20"),
            ("db/hosts", b"[\"a\", \"b\"]"),
            ("name", b"shop & co"),
            ("my-key", b"{\"x\": null, \"y\": 1.5}"),
            ("binary", &[0xff, 0]),
        ];
        let made = render(template, &keys.into(), 1_000).map_err(|failure| failure.to_string())?;
        Ok(String::from_utf8(made).expect("templates make text"))
    }

    #[test]
    fn templates_see_keys_as_nested_maps() {
        let text = "pool = {{ db.pool + 1 }}\n{% for host in db.hosts %}{{ host }};{% endfor %}{{ name }}\n";
        assert_eq!(rendered(text).unwrap(), "pool = 21\na;b;shop & co\n");
        assert_eq!(rendered("{{ db.hosts|tojson }} {{ db|length }}").unwrap(), "[\"a\", \"b\"] 2");
    }

    #[test]
    fn wrong_templates_say_where() {
        for wrong in ["a\n{{ db.pol }}", "a\n{% for %}", "a\n{{ nothing.at.all }}", "a\n{% include 'x' %}"] {
            let error = rendered(wrong).unwrap_err();
            assert!(error.contains("line 2"), "{wrong}: {error}");
        }
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(endless, &BTreeMap::new(), FILE_BYTES_MAX).is_err(), "its steps are bounded");
    }

    #[test]
    fn files_of_templates_are_bounded() {
        assert_eq!(rendered("{{ 'x' * 1000 }}").unwrap().len(), 1_000);
        for large in ["{{ 'x' * 1001 }}", "{% for i in range(999) %}{{ name }}{% endfor %}"] {
            let error = rendered(large).unwrap_err();
            assert!(error.contains("the file would have more than 1000 bytes"), "{error}");
        }
        // A single step of 100 MB.
        assert!(render("{{ 'x' * 100000000 }}", &BTreeMap::new(), FILE_BYTES_MAX).is_err());
    }
}
