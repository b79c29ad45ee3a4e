//! `dump` and `load`: all keys as JSON lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::keys::{for_each_page, value_of};
use crate::client::{Target, quoted};
use crate::exit::{Exit, Failure};

/// A bar on the standard error, where people see it.
fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(ProgressStyle::with_template(template).expect("a constant"))
}

/// Write all keys as JSON lines, one {"key", "value"} each
///
/// Values that are not text stand in `value_base64`, expiries in `expires_ms`. Sets and counters have no list of their
/// names and are not in it; a snapshot of a node has everything.
#[derive(Args, Debug)]
pub(crate) struct Dump {
    /// Only keys that begin like this
    #[arg(default_value = "")]
    prefix: String,
    /// Where to write; without it on the standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

impl Dump {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let mut out: Box<dyn Write> = match &self.out {
            Some(path) => {
                let file = crate::private(File::options().write(true).create(true).truncate(true)).open(path);
                Box::new(BufWriter::new(file.map_err(|error| Failure::file(path, &error))?))
            }
            None => Box::new(BufWriter::new(io::stdout().lock())),
        };
        let bar = bar(None, "{spinner} {human_pos} keys, {per_sec}");
        for_each_page(&client, &self.prefix, true, usize::MAX, |entries| {
            for entry in entries {
                let mut line = json!({ "key": entry["key"] });
                for field in ["value", "value_base64", "expires_ms"] {
                    if !entry[field].is_null() {
                        line[field] = entry[field].clone();
                    }
                }
                writeln!(out, "{line}")?;
            }
            bar.inc(entries.len() as u64);
            Ok(true)
        })?;
        out.flush()?;
        bar.finish_and_clear();
        eprintln!("{} keys", bar.position());
        Ok(())
    }
}

/// Put all keys of JSON lines, as dump writes them
///
/// A key that has the same value already is not written again, so a load that was interrupted is simply begun anew.
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
        let client = self.target.client()?;
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
        let (mut written, mut same) = (0_u64, 0_u64);
        for (at, line) in input.lines().enumerate() {
            let line = line.map_err(|error| failed(&error))?;
            bar.inc(line.len() as u64 + 1);
            if line.trim().is_empty() {
                continue;
            }
            let is_written =
                self.put(&client, &line).map_err(|failure| failure.at(&format!("line {}", at + 1)))?;
            if is_written { written += 1 } else { same += 1 }
        }
        bar.finish_and_clear();
        eprintln!("{written} keys written, {same} were there");
        Ok(())
    }

    /// Whether there was anything to be written.
    fn put(&self, client: &crate::client::Client, line: &str) -> Result<bool, Failure> {
        let form = || {
            Failure::usage("not of the form {\"key\": \"…\", \"value\": \"…\"}; nothing of it was written")
        };
        let entry: Value = serde_json::from_str(line).map_err(|_| form())?;
        let (Some(key), Some(value)) = (entry["key"].as_str(), value_of(&entry)) else { return Err(form()) };
        let mut query = String::new();
        if let Some(expires_ms) = entry["expires_ms"].as_u64() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            match expires_ms.checked_sub(now.as_millis() as u64) {
                None | Some(0) => return Ok(false),
                Some(left) => query = format!("?ttl={left}ms"),
            }
        }
        let path = format!("/v1/kv/{}", quoted(key));
        let there = client.get(&path)?;
        if there.is_found() && (self.keep || there.body == value) {
            return Ok(false);
        }
        client.ask("PUT", &format!("{path}{query}"), &[], &value)?;
        Ok(true)
    }
}
