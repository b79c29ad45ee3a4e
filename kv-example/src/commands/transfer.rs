//! `dump` and `load`: all keys, sets and counters as JSON lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::keys::{for_each_page, for_each_row, value_of};
use super::whole;
use crate::client::{Answer, Client, Target, quoted};
use crate::exit::{Exit, Failure};

/// Expiries that differ by no more are the same: a node counts the time that is left from when it writes.
const EXPIRY_SLACK_MS: u64 = 1_000;

/// A bar on the standard error, where people see it.
fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(ProgressStyle::with_template(template).expect("a constant"))
}

/// Write all keys, sets and counters as JSON lines
///
/// One line for each {"key", "value"}, {"set", "element"} and {"counter", "value"}. Values that are not text stand in
/// `value_base64`, expiries in `expires_ms`, concurrent writes that lost in `conflicts`. What is `ephemeral` is bound to
/// the process of a node.
#[derive(Args, Debug)]
pub(crate) struct Dump {
    /// Only keys, sets and counters whose names begin like this
    #[arg(default_value = "")]
    prefix: String,
    /// Where to write; without it on the standard output. A file that is there is replaced once the dump is whole
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

impl Dump {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.ready_client()?;
        match &self.out {
            Some(path) => whole::replace(path, |out| self.dump(&client, out)),
            None => self.dump(&client, &mut BufWriter::new(io::stdout().lock())),
        }
    }

    fn dump(&self, client: &Client, out: &mut dyn Write) -> Result<(), Failure> {
        let bar = bar(None, "{spinner} {human_pos} keys, {per_sec}");
        for_each_page(client, &self.prefix, true, usize::MAX, |entries| {
            for entry in entries {
                let mut line = written(entry, json!({ "key": entry["key"] }));
                if entry["conflicts"].as_u64() > Some(0) {
                    let key = quoted(entry["key"].as_str().unwrap_or_default());
                    let whole = client.get(&format!("/v1/kv/{key}?meta=true"))?.json()?;
                    let losers = whole["conflicts"].as_array().into_iter().flatten();
                    line["conflicts"] = losers.map(|loser| written(loser, json!({}))).collect();
                }
                writeln!(out, "{line}")?;
            }
            bar.inc(entries.len() as u64);
            Ok(true)
        })?;
        let keys = bar.position();
        let elements = self.dump_sets(client, out)?;
        let mut counters = 0;
        let path = format!("/v1/counters?prefix={}", quoted(&self.prefix));
        for_each_row(client, &path, "counters", |counter| {
            counters += 1;
            Ok(writeln!(out, "{}", json!({ "counter": counter["name"], "value": counter["value"] }))?)
        })?;
        out.flush()?;
        bar.finish_and_clear();
        eprintln!("{keys} keys, {elements} elements of sets, {counters} counters");
        Ok(())
    }

    /// Writes the elements of all sets, and returns their number.
    fn dump_sets(&self, client: &Client, out: &mut dyn Write) -> Result<u64, Failure> {
        let mut elements = 0;
        for_each_row(client, &format!("/v1/sets?prefix={}", quoted(&self.prefix)), "sets", |set| {
            let path = format!("/v1/sets/{}?meta=true", quoted(set.as_str().unwrap_or_default()));
            for_each_row(client, &path, "elements", |element| {
                elements += 1;
                let line = written(element, json!({ "set": set, "element": element["key"] }));
                Ok(writeln!(out, "{line}")?)
            })
        })?;
        Ok(elements)
    }
}

/// What a write puts, added to its line.
fn written(entry: &Value, mut line: Value) -> Value {
    for field in ["value", "value_base64", "expires_ms"] {
        if !entry[field].is_null() {
            line[field] = entry[field].clone();
        }
    }
    if entry["ephemeral"] == true {
        line["ephemeral"] = true.into();
    }
    line
}

/// Put all keys, elements of sets and counters of JSON lines, as dump writes them
///
/// What is the same already, its expiry included, is not written again, so a load that was interrupted is simply begun
/// anew. A counter is stepped to the value of its line. Concurrent writes that lost are not written, nor what was bound to
/// the process of a node: both are counted.
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// What to read; without it the standard input
    file: Option<PathBuf>,
    /// Leave alone what has a value already, whatever it is
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    target: Target,
}

impl Load {
    pub(super) fn run(&self) -> Result<(), Failure> {
        // At a node that has not caught up a counter would be stepped twice.
        let client = self.target.ready_client()?;
        let failed = |error: &io::Error| match &self.file {
            Some(path) => Failure::file(path, error),
            None => Failure::new(Exit::Failed, format!("standard input: {error}")),
        };
        let (input, bytes): (Box<dyn BufRead>, _) = match &self.file {
            Some(path) => {
                let file = File::open(path).map_err(|error| Failure::file(path, &error))?;
                let bytes = file.metadata().map_err(|error| Failure::file(path, &error))?.len();
                (Box::new(BufReader::new(file)), Some(bytes))
            }
            None => (Box::new(io::stdin().lock()), None),
        };
        let template = match bytes {
            Some(_) => "{bar:30} {bytes}/{total_bytes}, {eta} left {msg}",
            None => "{spinner} {bytes} {msg}",
        };
        let bar = bar(bytes, template);
        let mut count = Count::default();
        for (at, line) in input.lines().enumerate() {
            let line = line.map_err(|error| failed(&error))?;
            bar.inc(line.len() as u64 + 1);
            if line.trim().is_empty() {
                continue;
            }
            let loaded = self.load(&client, &line, &mut count);
            loaded.map_err(|failure| failure.at(&format!("line {}", at + 1)))?;
        }
        bar.finish_and_clear();
        let Count { written, same, ephemeral, losers } = count;
        eprintln!("{written} entries written, {same} were there");
        if ephemeral + losers > 0 {
            eprintln!(
                "left out: {ephemeral} bound to a process, {losers} that had lost against another write"
            );
        }
        Ok(())
    }

    /// Loads one line.
    fn load(&self, client: &Client, line: &str, count: &mut Count) -> Result<(), Failure> {
        let form = || {
            Failure::usage("not of the form {\"key\": \"…\", \"value\": \"…\"}; nothing of it was written")
        };
        let line: Value = serde_json::from_str(line).map_err(|_| form())?;
        count.losers += line["conflicts"].as_array().map_or(0, Vec::len);
        if line["ephemeral"] == true {
            count.ephemeral += 1;
            return Ok(());
        }
        let text = |field: &str| line[field].as_str();
        let is_written = match (text("key"), text("set"), text("counter")) {
            (Some(key), None, None) => self.put(client, key, &line, &value_of(&line).ok_or_else(form)?)?,
            (None, Some(set), None) => self.add(client, set, text("element").ok_or_else(form)?, &line)?,
            (None, None, Some(counter)) => {
                self.step(client, counter, line["value"].as_i64().ok_or_else(form)?)?
            }
            _ => return Err(form()),
        };
        if is_written {
            count.written += 1;
        } else {
            count.same += 1;
        }
        Ok(())
    }

    /// Whether there was anything to be written.
    fn put(&self, client: &Client, key: &str, line: &Value, value: &[u8]) -> Result<bool, Failure> {
        let path = format!("/v1/kv/{}", quoted(key));
        let there = client.get(&format!("{path}?meta=true"))?;
        if there.is_found() {
            let there = there.json()?;
            if self.keep || (value_of(&there).as_deref() == Some(value) && ends_alike(&there, line)) {
                return Ok(false);
            }
        }
        let only_if: &[_] = if self.keep { &[("if-none-match", "*".to_owned())] } else { &[] };
        // A dump may hold what was written by force, or by a program that does not look.
        is_written(client.ask("PUT", &format!("{path}?force=true{}", expiry(line)), only_if, value))
    }

    /// Adds an element to a set. Returns whether there was anything to be written.
    fn add(&self, client: &Client, set: &str, element: &str, line: &Value) -> Result<bool, Failure> {
        let path = format!("/v1/sets/{}/{}", quoted(set), quoted(element));
        let there = client.get(&path)?;
        if there.is_found() && (self.keep || ends_alike(&there.json()?, line)) {
            return Ok(false);
        }
        is_written(client.ask("PUT", &format!("{path}?{}", expiry(line)), &[], &[]))
    }

    /// Steps a counter to a value. Returns whether it stood elsewhere.
    fn step(&self, client: &Client, counter: &str, value: i64) -> Result<bool, Failure> {
        let path = format!("/v1/counters/{}", quoted(counter));
        let there = client.get(&path)?.json()?["value"].as_i64().unwrap_or_default();
        if there == value || (self.keep && there != 0) {
            return Ok(false);
        }
        let by = value.checked_sub(there);
        let by = by.ok_or_else(|| Failure::usage("the counter stands too far from this value"))?;
        client.ask("POST", &format!("{path}?by={by}"), &[], &[])?;
        Ok(true)
    }
}

/// What became of the lines.
#[derive(Default)]
struct Count {
    written: usize,
    same: usize,
    ephemeral: usize,
    losers: usize,
}

/// Whether what is there ends when that of a line does. What was bound to a process was left out.
fn ends_alike(there: &Value, line: &Value) -> bool {
    let end = |entry: &Value| entry["expires_ms"].as_u64();
    let is_same = match (end(there), end(line)) {
        (Some(there), Some(line)) => there.abs_diff(line) <= EXPIRY_SLACK_MS,
        (there, line) => there == line,
    };
    is_same && there["ephemeral"] != true
}

/// When a line expires, as a parameter of a write. The node decides by its own clock whether that is over.
fn expiry(line: &Value) -> String {
    line["expires_ms"].as_u64().map(|at| format!("&expires_ms={at}")).unwrap_or_default()
}

/// Whether a write was done: not what has expired, nor under a condition what somebody else wrote meanwhile.
fn is_written(answer: Result<Answer, Failure>) -> Result<bool, Failure> {
    match answer {
        Ok(_) => Ok(true),
        Err(failure) if failure.is_refusal("expired") || failure.is_refusal("condition") => Ok(false),
        Err(failure) => Err(failure),
    }
}
