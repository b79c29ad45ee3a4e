//! `get`, `put`, `del`, `list`, `set` and `counter`.

use std::io::{Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{Client, Target, quoted};
use crate::exit::{Exit, Failure};
use crate::{span, table};

/// Characters of a value in a table.
const VALUE_CHARS_MAX: usize = 60;

/// How far a write has to get before the command ends.
#[derive(Args, Debug)]
struct Wait {
    /// Wait until so many nodes have it: majority, all, or a number
    #[arg(long, value_name = "NODES")]
    wait: Option<String>,
    /// Wait until it is safe on the node's disk
    #[arg(long)]
    durable: bool,
}

impl Wait {
    /// As a query, with what else belongs there.
    fn query(&self, target: &Target, mut parts: Vec<String>) -> String {
        if let Some(wait) = &self.wait {
            parts.push(format!("wait={}", quoted(wait)));
        }
        if self.durable {
            parts.push("durable=true".to_owned());
        }
        if self.wait.is_some() || self.durable {
            // The node gives up a little before this side does, so that it can say how far the write has got.
            parts.push(format!("timeout={}ms", target.timeout.as_millis() * 9 / 10));
        }
        if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
    }
}

fn print_json(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{value}")?)
}

/// Says what a script or a person wants to know of a write: the stamp, or nothing.
fn print_write(target: &Target, answer: &Value) -> Result<(), Failure> {
    if target.json {
        return print_json(answer);
    }
    Ok(writeln!(std::io::stdout().lock(), "{}", answer["stamp"].as_str().unwrap_or("done"))?)
}

/// Print the value of a key
#[derive(Args, Debug)]
pub(crate) struct Get {
    key: String,
    /// Everything about it, with the concurrent writes that lost
    #[arg(long)]
    conflicts: bool,
    #[command(flatten)]
    target: Target,
}

impl Get {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let is_whole = self.conflicts || self.target.json;
        let query = if is_whole { "?meta=true" } else { "" };
        let answer = self.target.client()?.get(&format!("/v1/kv/{}{query}", quoted(&self.key)))?;
        if !answer.is_found() {
            return Err(Failure::new(Exit::No, format!("there is no key \"{}\"", self.key)));
        }
        if !is_whole {
            return print_value(&answer.body);
        }
        let entry = answer.json()?;
        if self.target.json {
            return print_json(&entry);
        }
        let losers = entry["conflicts"].as_array().into_iter().flatten();
        let rows: Vec<Vec<String>> = [&entry].into_iter().chain(losers).map(row).collect();
        Ok(table::print(&["key", "value", "written by", "ago", "expires", "stamp"], &rows)?)
    }
}

/// As it is for a program; where people read it, without anything that their terminal obeys, and with a line break at
/// its end.
fn print_value(value: &[u8]) -> Result<(), Failure> {
    use std::io::IsTerminal;
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        String::from_utf8_lossy(value)
            .lines()
            .try_for_each(|line| writeln!(out, "{}", table::clean(line)))?;
    } else {
        out.write_all(value)?;
    }
    Ok(out.flush()?)
}

pub(super) fn row(entry: &Value) -> Vec<String> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let value = match entry["value"].as_str() {
        Some(value) => table::short(value, VALUE_CHARS_MAX),
        None => format!("({})", table::bytes(entry["bytes"].as_u64().unwrap_or_default())),
    };
    let writer = entry["writer"].as_str().map_or_else(|| format!("run {}", text("origin")), str::to_owned);
    let expires = match (entry["expires_ms"].as_u64(), entry["ephemeral"].as_bool() == Some(true)) {
        (None, false) => "-".to_owned(),
        (None, true) => "with its node".to_owned(),
        (Some(ms), false) => until(ms),
        (Some(ms), true) => format!("{} or with its node", until(ms)),
    };
    vec![text("key"), value, writer, since(&entry["time_ms"]), expires, text("stamp")]
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// How long ago something was.
pub(super) fn since(ms: &Value) -> String {
    let age = now_ms().saturating_sub(ms.as_u64().unwrap_or_default());
    span::show(std::time::Duration::from_millis(age))
}

fn until(ms: u64) -> String {
    format!("in {}", span::show(std::time::Duration::from_millis(ms.saturating_sub(now_ms()))))
}

#[derive(Args, Debug)]
struct Lifetime {
    /// It vanishes after this time, everywhere
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// It vanishes with the process of the node that takes it: hidden while that is not believed alive, gone once it has
    /// left, was replaced or forgotten
    #[arg(long)]
    ephemeral: bool,
}

impl Lifetime {
    fn wants(&self) -> Vec<String> {
        let ttl = self.ttl.iter().map(|ttl| format!("ttl={}", quoted(ttl)));
        ttl.chain(self.ephemeral.then(|| "ephemeral=true".to_owned())).collect()
    }
}

/// Put a value under a key, and print the write's stamp
#[derive(Args, Debug)]
pub(crate) struct Put {
    key: String,
    /// The value; without it, or for '-', what comes on the standard input
    value: Option<String>,
    #[command(flatten)]
    lifetime: Lifetime,
    /// Only if the key has no value (as this node sees it)
    #[arg(long, conflicts_with = "if_stamp")]
    if_absent: bool,
    /// Only if its value is the one written with this stamp (as this node sees it)
    #[arg(long, value_name = "STAMP")]
    if_stamp: Option<String>,
    /// Also if it does not satisfy its schema, or is a malformed definition of a flag
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    target: Target,
}

impl Put {
    pub(super) fn run(self) -> Result<(), Failure> {
        let value = match self.value {
            Some(value) if value != "-" => value.into_bytes(),
            _ => {
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value)?;
                value
            }
        };
        let mut headers = Vec::new();
        if self.if_absent {
            headers.push(("if-none-match", "*".to_owned()));
        }
        if let Some(stamp) = &self.if_stamp {
            headers.push(("if-match", format!("\"{stamp}\"")));
        }
        let mut wants = self.lifetime.wants();
        wants.extend(self.force.then(|| "force=true".to_owned()));
        let path = format!("/v1/kv/{}{}", quoted(&self.key), self.wait.query(&self.target, wants));
        let answer = self.target.client()?.ask("PUT", &path, &headers, &value)?;
        print_write(&self.target, &answer.json()?)
    }
}

/// Delete keys
#[derive(Args, Debug)]
pub(crate) struct Del {
    #[arg(required = true)]
    keys: Vec<String>,
    /// Only if its value is the one written with this stamp (as this node sees it); for one key
    #[arg(long, value_name = "STAMP")]
    if_stamp: Option<String>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    target: Target,
}

impl Del {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        if self.if_stamp.is_some() && self.keys.len() > 1 {
            return Err(Failure::new(
                Exit::Usage,
                "--if-stamp is for one key: each value has a stamp of its own",
            ));
        }
        let headers: Vec<(&str, String)> =
            self.if_stamp.iter().map(|stamp| ("if-match", format!("\"{stamp}\""))).collect();
        let mut missing = Vec::new();
        for key in &self.keys {
            let path = format!("/v1/kv/{}{}", quoted(key), self.wait.query(&self.target, Vec::new()));
            let answer = client.ask("DELETE", &path, &headers, &[])?;
            if answer.is_found() {
                print_write(&self.target, &answer.json()?)?;
            } else {
                missing.push(format!("\"{key}\""));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::No, format!("there was no {}", missing.join(", "))))
    }
}

/// List keys in order
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Only keys that begin like this
    #[arg(default_value = "")]
    prefix: String,
    /// Names alone, one a line
    #[arg(long, conflicts_with = "json")]
    keys_only: bool,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    #[command(flatten)]
    target: Target,
}

impl List {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let mut rows = Vec::new();
        let mut left = self.limit.unwrap_or(usize::MAX);
        for_each_page(&client, &self.prefix, !self.keys_only, left, |entries| {
            for entry in entries.iter().take(left) {
                if self.keys_only {
                    let key = entry["key"].as_str().unwrap_or_default();
                    writeln!(std::io::stdout().lock(), "{}", table::line(key))?;
                } else if self.target.json {
                    print_json(entry)?;
                } else {
                    rows.push(row(entry));
                }
            }
            left = left.saturating_sub(entries.len());
            Ok(left > 0)
        })?;
        if self.keys_only || self.target.json {
            return Ok(());
        }
        Ok(table::print(&["key", "value", "written by", "ago", "expires", "stamp"], &rows)?)
    }
}

/// All entries under a prefix, in pages of so many at most, until there are no more or nobody wants more.
pub(super) fn for_each_page(
    client: &Client,
    prefix: &str,
    has_values: bool,
    rows: usize,
    mut take: impl FnMut(&[Value]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut after: Option<String> = None;
    loop {
        let from = after.as_deref().map(|after| format!("&after={}", quoted(after))).unwrap_or_default();
        let limit = rows.clamp(1, crate::api::PAGE_ROWS_MAX);
        let path = format!("/v1/kv?prefix={}&values={has_values}&limit={limit}{from}", quoted(prefix));
        let page = client.get(&path)?.json()?;
        let wants_more = take(page["entries"].as_array().map(Vec::as_slice).unwrap_or_default())?;
        match page["next"].as_str() {
            Some(next) if wants_more => after = Some(next.to_owned()),
            _ => return Ok(()),
        }
    }
}

/// The bytes of an entry's value.
pub(super) fn value_of(entry: &Value) -> Option<Vec<u8>> {
    match (entry["value"].as_str(), entry["value_base64"].as_str()) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(text)) => BASE64_STANDARD.decode(text).ok(),
        (None, None) => None,
    }
}

#[derive(Args, Debug)]
pub(crate) struct Element {
    set: String,
    #[arg(value_name = "ELEMENT")]
    name: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
pub(crate) struct NewElement {
    #[command(flatten)]
    element: Element,
    #[command(flatten)]
    lifetime: Lifetime,
}

#[derive(Args, Debug)]
pub(crate) struct Names {
    /// Only names that begin like this
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
pub(crate) struct Named {
    name: String,
    #[command(flatten)]
    target: Target,
}

/// Add to a set, remove from it, look into it
#[derive(Debug, Subcommand)]
pub(crate) enum Set {
    /// Add an element; adding wins over a concurrent removal
    Add(NewElement),
    /// Remove an element, as far as the node has seen it added
    Remove(Element),
    /// Whether an element is in the set: exit code 0 or 1
    Has(Element),
    /// The elements in order, one a line
    List(Named),
    /// The names of all sets in order, one a line
    Names(Names),
}

impl Set {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Add(what) => what.element.ask("PUT", what.lifetime.wants()),
            Self::Remove(what) => what.ask("DELETE", Vec::new()),
            Self::Has(what) => what.ask("GET", Vec::new()),
            Self::List(what) => list_set(what),
            Self::Names(what) => what.list("sets"),
        }
    }
}

impl Element {
    fn ask(&self, method: &str, wants: Vec<String>) -> Result<(), Failure> {
        let query = if method == "GET" { String::new() } else { self.wait.query(&self.target, wants) };
        let path = format!("/v1/sets/{}/{}{query}", quoted(&self.set), quoted(&self.name));
        let answer = self.target.client()?.ask(method, &path, &[], &[])?;
        if !answer.is_found() {
            return Err(Failure::new(Exit::No, format!("\"{}\" is not in \"{}\"", self.name, self.set)));
        }
        let body = answer.json()?;
        if method == "GET" && !self.target.json { Ok(()) } else { print_write(&self.target, &body) }
    }
}

fn list_set(what: &Named) -> Result<(), Failure> {
    let path = format!("/v1/sets/{}?", quoted(&what.name));
    for_each_row(&what.target.client()?, &path, "elements", |row| print_row(&what.target, row))
}

impl Names {
    /// Prints the names of sets or counters; with `--json`, counters with their values.
    fn list(&self, kind: &str) -> Result<(), Failure> {
        let path = format!("/v1/{kind}?prefix={}", quoted(&self.prefix));
        for_each_row(&self.target.client()?, &path, kind, |row| print_row(&self.target, row))
    }
}

fn print_row(target: &Target, row: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if target.json {
        return Ok(writeln!(out, "{row}")?);
    }
    let name = table::line(row.as_str().or(row["name"].as_str()).unwrap_or_default()).into_owned();
    match row["value"].as_i64() {
        Some(value) => Ok(writeln!(out, "{name} {value}")?),
        None => Ok(writeln!(out, "{name}")?),
    }
}

/// All rows of a listing, page by page. `path` ends where further parameters follow.
pub(super) fn for_each_row(
    client: &Client,
    path: &str,
    field: &str,
    mut take: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after: Option<String> = None;
    loop {
        let from = after.as_deref().map(|after| format!("&after={}", quoted(after))).unwrap_or_default();
        let page = client.get(&format!("{path}{from}"))?.json()?;
        page[field].as_array().into_iter().flatten().try_for_each(&mut take)?;
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(()),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Step {
    name: String,
    /// How much; a negative number subtracts
    #[arg(default_value_t = 1, allow_hyphen_values = true)]
    by: i64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    target: Target,
}

/// Step a counter, or read it
#[derive(Debug, Subcommand)]
pub(crate) enum Counter {
    /// Its value
    Get(Named),
    /// Add to it, and print its value here
    Add(Step),
    /// The names and values of all counters in order, one a line
    List(Names),
}

impl Counter {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (target, answer) = match self {
            Self::List(what) => return what.list("counters"),
            Self::Get(what) => {
                (&what.target, what.target.client()?.get(&format!("/v1/counters/{}", quoted(&what.name)))?)
            }
            Self::Add(what) => {
                let query = what.wait.query(&what.target, vec![format!("by={}", what.by)]);
                let path = format!("/v1/counters/{}{query}", quoted(&what.name));
                (&what.target, what.target.client()?.ask("POST", &path, &[], &[])?)
            }
        };
        let body = answer.json()?;
        if target.json { print_json(&body) } else { print_json(&body["value"]) }
    }
}
