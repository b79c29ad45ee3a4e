//! `config`: the keys below a prefix as one document.
//!
//! What follows the prefix in a key, cut at each `/`, are fields, and the value is JSON: the mapping of the library's
//! live values ([`tree`]). A document is read and written in several formats ([`document`]).

pub(super) mod document;
mod tree;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::document::Format;
use self::tree::{Change, Held};
use super::keys::{for_each_page, row, since, value_of};
use super::whole;
use crate::client::{Client, Target, quoted};
use crate::exit::{Exit, Failure};
use crate::{files, table};

/// The largest document.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// Characters of a value on a line.
const VALUE_CHARS_MAX: usize = 60;

const MAPPING: &str = "\
With the prefix app/ the key app/db/pool with the value 20 is the field db.pool. Values of keys are JSON. An object is
spread over keys, one for each field, unless one key holds it already; a list is the value of one key. A path is db.pool or
db/pool. Keys that end in $schema are no fields.";

/// The keys below a prefix as one document, in TOML, YAML or JSON
#[derive(Debug, Subcommand)]
#[command(after_help = MAPPING)]
pub(crate) enum Config {
    /// Print the document, or a part of it
    Get(Get),
    /// Set one field
    Set(Set),
    /// Who set a field when: the keys that give it, and the concurrent writes that lost
    Why(Why),
    /// What the node knows of the past: present and concurrent values, and deletes
    History(History),
    /// Compare a document with the store; ends with 1 if they differ
    Diff(Diff),
    /// Write what a document has, in one step; refused if a key below the prefix was changed meanwhile
    Import(Import),
    /// Write the document to a file
    Export(Export),
}

impl Config {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Get(get) => get.run(),
            Self::Set(set) => set.run(),
            Self::Why(why) => why.run(),
            Self::History(history) => history.run(),
            Self::Diff(diff) => diff.run(),
            Self::Import(import) => import.run(),
            Self::Export(export) => export.run(),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    prefix: String,
    path: Option<String>,
    #[arg(long, default_value = "toml")]
    format: Format,
    #[command(flatten)]
    target: Target,
}

impl Get {
    fn run(&self) -> Result<(), Failure> {
        let whole = tree::of_keys(&self.prefix, &held(&self.target.ready_client()?, &self.prefix)?)?;
        let path = self.path.as_deref().map(fields).transpose()?.unwrap_or_default();
        let found = path.iter().try_fold(&whole, |value, field| value.get(field));
        let Some(found) = found.filter(|found| !path.is_empty() || *found != &json!({})) else {
            let of = self.path.as_deref().unwrap_or_default();
            return Err(Failure::new(Exit::No, format!("there is nothing at \"{}{of}\"", self.prefix)));
        };
        let format = if self.target.json { Format::Json } else { self.format };
        print(&document::write(found, format)?)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Set {
    prefix: String,
    path: String,
    /// JSON, or else a text
    #[arg(allow_hyphen_values = true)]
    value: String,
    /// Store the value as a JSON string, even if it is valid JSON
    #[arg(long)]
    text: bool,
    #[command(flatten)]
    target: Target,
}

impl Set {
    fn run(&self) -> Result<(), Failure> {
        let client = self.target.ready_client()?;
        let text = || Value::String(self.value.clone());
        let value =
            if self.text { text() } else { serde_json::from_str(&self.value).unwrap_or_else(|_| text()) };
        let path = fields(&self.path)?;
        let whole = path.iter().rev().fold(value, |value, field| json!({ *field: value }));
        let changes = tree::changes(&self.prefix, &held(&client, &self.prefix)?, &whole, false)?;
        if let Some(removed) = changes.iter().find(|change| change.after.is_none()) {
            let error = format!("\"{}\" has fields of its own, as \"{}\"", self.path, removed.key);
            return Err(Failure::usage(format!("{error}; nothing was written")).hint("delete them first"));
        }
        apply(&client, &changes, &Value::Null)?;
        show(&self.target, &changes)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Why {
    prefix: String,
    path: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Why {
    fn run(&self) -> Result<(), Failure> {
        let client = self.target.ready_client()?;
        let path = self.path.as_deref().map(fields).transpose()?.unwrap_or_default();
        let held = held(&client, &self.prefix)?;
        let giving: Vec<&str> = tree::giving(&self.prefix, &held, &path);
        if giving.is_empty() {
            let of = self.path.as_deref().unwrap_or_default();
            return Err(Failure::new(Exit::No, format!("no key gives \"{}{of}\"", self.prefix)));
        }
        let mut rows = Vec::new();
        for key in giving {
            let answer = client.get(&format!("/v1/kv/{}?meta=true", quoted(key)))?;
            // Deleted since the keys were listed.
            if !answer.is_found() {
                continue;
            }
            let entry = answer.json()?;
            if self.target.json {
                print(&format!("{entry}\n"))?;
                continue;
            }
            let whole = row(&entry);
            rows.push([vec!["in force".to_owned()], whole].concat());
            for loser in entry["conflicts"].as_array().into_iter().flatten() {
                rows.push([vec!["lost, concurrent".to_owned()], row(loser)].concat());
            }
        }
        if self.target.json {
            return Ok(());
        }
        Ok(table::print(&["", "key", "value", "written by", "ago", "expires", "stamp"], &rows)?)
    }
}

const KEPT: &str = "\
A store keeps no earlier values: a write replaces what it has seen. Shown are the present value of each key, the concurrent
writes that lost and are not replaced yet, and the deletes that this node's change log remembers: the last 4,096 or so since
the node was started. `tidings watch --json` into a file keeps more, and so do snapshots and dumps.";

#[derive(Args, Debug)]
#[command(after_help = KEPT)]
pub(crate) struct History {
    prefix: String,
    path: Option<String>,
    /// At most so many events, the latest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
    #[command(flatten)]
    target: Target,
}

impl History {
    fn run(&self) -> Result<(), Failure> {
        let path = self.path.as_deref().map(fields).transpose()?.unwrap_or_default();
        let prefix = format!("{}{}", self.prefix, path.join("/"));
        let field = !path.is_empty();
        let ask = format!("/v1/history?prefix={}&field={field}&limit={}", quoted(&prefix), self.limit);
        let answer = self.target.ready_client()?.get(&ask)?.json()?;
        let events: Vec<&Value> = answer["events"].as_array().into_iter().flatten().collect();
        if self.target.json {
            return events.iter().try_for_each(|event| print(&format!("{event}\n")));
        }
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or("-").to_owned();
        let cells = |event: &&Value| {
            let ago = if event["time_ms"].is_null() { "-".to_owned() } else { since(&event["time_ms"]) };
            let event_name = match event["event"].as_str() {
                Some("lost") => "put, lost".to_owned(),
                _ => text(event, "event"),
            };
            let value = value_of(event).map(|value| String::from_utf8_lossy(&value).into_owned());
            let value = table::short(&value.unwrap_or_default(), VALUE_CHARS_MAX);
            vec![ago, event_name, text(event, "key"), value, text(event, "writer"), text(event, "stamp")]
        };
        let rows: Vec<Vec<String>> = events.iter().map(cells).collect();
        table::print(&["ago", "event", "key", "value", "by", "stamp"], &rows)?;
        let is_whole = answer["floor"].as_str().is_some_and(|floor| floor.ends_with("-0000000000000000"));
        let deletes = if is_whole { "" } else { ", nor older deletes" };
        let cut = if answer["is_cut"] == true { "; there are more events" } else { "" };
        eprintln!("earlier values are not kept{deletes}{cut}");
        Ok(())
    }
}

/// Which document, and in which format.
#[derive(Args, Debug)]
struct Source {
    /// The document; - for the standard input
    file: PathBuf,
    /// Its format; without it that of the file's ending
    #[arg(long)]
    format: Option<Format>,
}

impl Source {
    fn read(&self) -> Result<Value, Failure> {
        let is_input = self.file == Path::new("-");
        let text = files::any_text_or_input(&self.file, DOCUMENT_BYTES_MAX)?;
        let format = format_of(self.format, Some(&self.file).filter(|_| !is_input))?;
        document::read(&text, format).map_err(|failure| failure.at(&self.file.display().to_string()))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Diff {
    prefix: String,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
}

impl Diff {
    fn run(&self) -> Result<(), Failure> {
        let whole = self.source.read()?;
        let held = held(&self.target.ready_client()?, &self.prefix)?;
        let changes = tree::changes(&self.prefix, &held, &whole, true)?;
        show(&self.target, &changes)?;
        if changes.is_empty() { Ok(()) } else { Err(Failure::new(Exit::No, "")) }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    prefix: String,
    #[command(flatten)]
    source: Source,
    /// Show what would be written, and whether it satisfies the schemas
    #[arg(long)]
    dry_run: bool,
    /// Delete the fields that the document lacks
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    target: Target,
}

impl Import {
    fn run(&self) -> Result<(), Failure> {
        let whole = self.source.read()?;
        let client = self.target.ready_client()?;
        // Before the keys are read: what changes while they are is among what changes later.
        let since = client.get("/v1/status")?.json()?["store"]["head"].clone();
        let changes = tree::changes(&self.prefix, &held(&client, &self.prefix)?, &whole, self.prune)?;
        if self.dry_run {
            show(&self.target, &changes)?;
            return check(&client, &changes);
        }
        apply(&client, &changes, &json!({ "prefix": self.prefix, "since": since }))?;
        show(&self.target, &changes)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    prefix: String,
    /// Where to write; without it on the standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Its format; without it that of the file's ending
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    target: Target,
}

impl Export {
    fn run(&self) -> Result<(), Failure> {
        let format = format_of(self.format, self.out.as_ref())?;
        let whole = tree::of_keys(&self.prefix, &held(&self.target.ready_client()?, &self.prefix)?)?;
        let text = document::write(&whole, format)?;
        let Some(path) = &self.out else { return print(&text) };
        let failed = |error| Failure::file(path, &error);
        whole::replace(path, |out| out.write_all(text.as_bytes()).map_err(failed))
    }
}

fn format_of(format: Option<Format>, file: Option<&PathBuf>) -> Result<Format, Failure> {
    let of_file = || file.and_then(|file| Format::of_file(file));
    format
        .or_else(of_file)
        .ok_or_else(|| Failure::usage("the format is not known").hint("give --format toml, yaml or json"))
}

fn print(text: &str) -> Result<(), Failure> {
    use std::io::IsTerminal;
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        text.lines().try_for_each(|line| writeln!(out, "{}", table::clean(line)))?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(out.flush()?)
}

/// The fields of a path.
fn fields(path: &str) -> Result<Vec<&str>, Failure> {
    let fields: Vec<&str> = path.split(if path.contains('/') { '/' } else { '.' }).collect();
    if fields.iter().any(|field| field.is_empty()) {
        return Err(Failure::usage(format!("\"{path}\" is no path, such as db.pool")));
    }
    Ok(fields)
}

/// The keys below a prefix.
fn held(client: &Client, prefix: &str) -> Result<BTreeMap<String, Held>, Failure> {
    let mut held = BTreeMap::new();
    for_each_page(client, prefix, true, usize::MAX, |entries| {
        for entry in entries {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let value = value_of(entry).and_then(|value| serde_json::from_slice(&value).ok());
            held.insert(text("key"), Held { stamp: text("stamp"), value });
        }
        Ok(true)
    })?;
    held.retain(|key, _| !key.ends_with(tidings::map::SCHEMA_SUFFIX));
    Ok(held)
}

/// Writes changes in one step, if on the node nothing that they are for has changed meanwhile, nor anything that has to
/// be unchanged.
fn apply(client: &Client, changes: &[Change], unchanged: &Value) -> Result<(), Failure> {
    if changes.is_empty() {
        return Ok(());
    }
    let write = |change: &Change| {
        let only_if = change.stamp.as_deref().unwrap_or("absent");
        match &change.after {
            Some(after) => json!({ "put": change.key, "value": after.to_string(), "only_if": only_if }),
            None => json!({ "delete": change.key, "only_if": only_if }),
        }
    };
    let writes: Vec<Value> = changes.iter().map(write).collect();
    let mut batch = json!({ "writes": writes });
    if !unchanged.is_null() {
        batch["unchanged"] = unchanged.clone();
    }
    client.ask("POST", "/v1/batch", &[], batch.to_string().as_bytes())?;
    Ok(())
}

/// Compares what would be written with its schemas.
fn check(client: &Client, changes: &[Change]) -> Result<(), Failure> {
    let mut faults = Vec::new();
    for change in changes {
        let Some(after) = &change.after else { continue };
        let path = format!("/v1/check/{}", quoted(&change.key));
        let verdict = client.ask("POST", &path, &[], after.to_string().as_bytes())?.json()?;
        for fault in verdict["errors"].as_array().into_iter().flatten() {
            let text = |field: &str| fault[field].as_str().unwrap_or_default();
            faults.push(table::clean(&format!("{}{}: {}", change.key, text("path"), text("message"))));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let faults = faults.join("\n  ");
    Err(Failure::new(Exit::Refused, format!("this would be refused; nothing was written\n  {faults}")))
}

/// One line for each change.
fn show(target: &Target, changes: &[Change]) -> Result<(), Failure> {
    for change in changes {
        if target.json {
            let (key, before, after) = (&change.key, &change.before, &change.after);
            print(&format!("{}\n", json!({ "key": key, "before": before, "after": after })))?;
            continue;
        }
        let short = |value: &Value| table::short(&value.to_string(), VALUE_CHARS_MAX);
        let before = change.before.as_ref().map_or_else(|| "(not JSON)".to_owned(), short);
        let key = table::clean(&change.key);
        let line = match (&change.stamp, &change.after) {
            (None, Some(after)) => format!("+ {key} = {}", short(after)),
            (_, Some(after)) => format!("~ {key} = {} (was {before})", short(after)),
            (_, None) => format!("- {key} (was {before})"),
        };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}
