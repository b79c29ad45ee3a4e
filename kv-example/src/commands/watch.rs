//! `watch`: changes as they happen, printed, or each handed to a command.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::keys::value_of;
use super::{not_started, process};
use crate::client::{Client, Stream, Target, Told, quoted};
use crate::exit::{Exit, Failure};
use crate::table;

/// After the node ended the stream, or the connection broke.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Characters of a value on a line.
const VALUE_CHARS_MAX: usize = 100;

/// Events that are read between two commands, and that wait for a command at most. The others stay with the node, which
/// tells of a key that has changed several times only the last change.
const EVENTS_WAITING_MAX: usize = 4_096;

const ENVIRONMENT: &str = "\
A command after -- is run for each change, one after another, with TIDINGS_EVENT (put, delete, expired), TIDINGS_KEY,
TIDINGS_REVISION and, of a put, TIDINGS_STAMP in its environment and the value on its standard input. While it runs,
changes of the same key fold into the last one of up to 4,096 that wait. If it fails, watch ends with its exit code.
With TIDINGS_EVENT=resync, without a key, it is told that deletes may have been missed: what it was told before may be
gone, and all current values follow.

Example: tidings watch config/ --no-current -- systemctl reload web

A broken connection is made again, also if the node refuses it for a while, and the watch goes on where it was. If that is
not possible it says `resync`, and all current values follow.";

/// Print changes as they happen, or run a command for each
#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(crate) struct Watch {
    /// Keys that begin like this
    #[arg(default_value = "")]
    prefix: String,
    /// The prefix is one whole key
    #[arg(long)]
    exact: bool,
    /// The prefix is the name of a set
    #[arg(long, conflicts_with = "exact")]
    set: bool,
    /// Go on behind an event of an earlier watch
    #[arg(long, value_name = "REVISION")]
    from: Option<String>,
    /// Leave out the values that are there
    #[arg(long)]
    no_current: bool,
    /// End after so many changes
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
    /// What to run for each change
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Watch {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let what = if self.set {
            "set"
        } else if self.exact {
            "key"
        } else {
            "prefix"
        };
        let path = format!("/v1/watch?{what}={}&current={}", quoted(&self.prefix), !self.no_current);
        let mut last = self.from.clone();
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut stream = client.stream("GET", &path, last.as_deref())?;
        let mut waiting = Waiting::default();
        while left > 0 {
            let next = waiting.pop().or_else(|| stream.next());
            let Some(told) = next else {
                eprintln!("tidings: the connection is gone; trying again");
                stream = self.connect_again(&client, &path, last.as_deref())?;
                continue;
            };
            let is_change = matches!(told.name.as_str(), "put" | "delete" | "expired");
            let is_news = is_change || told.name == "resync";
            if is_news && !self.command.is_empty() {
                self.hand_over(&told)?;
                waiting.take_in(|| stream.ready());
            } else if self.command.is_empty() && (is_news || self.target.json) {
                self.print(&told)?;
            }
            left -= u64::from(is_change);
            last = told.id.or(last);
        }
        Ok(())
    }

    fn connect_again(&self, client: &Client, path: &str, last: Option<&str>) -> Result<Stream, Failure> {
        loop {
            std::thread::sleep(RECONNECT_PAUSE);
            let failure = match client.stream("GET", path, last) {
                Ok(stream) => return Ok(stream),
                Err(failure) => failure,
            };
            let passes = if failure.is_refusal("unauthorized") {
                // The node may have its next token before this side has.
                self.target.token_file.is_some()
            } else {
                // Refused: the node served this stream before, and has no place for it, or is closing.
                [Exit::Unreachable, Exit::TimedOut, Exit::Refused].into_iter().any(|exit| failure.is(exit))
            };
            if !passes {
                return Err(failure);
            }
        }
    }

    fn print(&self, told: &Told) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.target.json {
            let mut event = told.data.clone();
            event["event"] = json!(told.name);
            return Ok(writeln!(out, "{event}")?);
        }
        let key = table::clean(told.data["key"].as_str().unwrap_or_default());
        let line = match (told.name.as_str(), value_of(&told.data)) {
            ("resync", _) => {
                "resync   what was told before may be gone; the current values follow".to_owned()
            }
            ("put", Some(value)) => {
                let value = table::short(&String::from_utf8_lossy(&value), VALUE_CHARS_MAX);
                format!("put      {key} = {value}")
            }
            ("delete", _) if told.data["writer"].is_string() => {
                let writer = table::clean(told.data["writer"].as_str().unwrap_or_default());
                format!("delete   {key}   by {writer}")
            }
            (name, _) => format!("{name:8} {key}"),
        };
        Ok(writeln!(out, "{line}")?)
    }

    fn hand_over(&self, told: &Told) -> Result<(), Failure> {
        let text = |field: &str| told.data[field].as_str().unwrap_or_default();
        let environment = [
            ("TIDINGS_EVENT", told.name.as_str()),
            ("TIDINGS_KEY", text("key")),
            ("TIDINGS_STAMP", text("stamp")),
            ("TIDINGS_REVISION", told.id.as_deref().unwrap_or_default()),
        ];
        let mut process = process(&self.command, &environment);
        let mut child =
            process.stdin(Stdio::piped()).spawn().map_err(|error| not_started(&self.command, &error))?;
        if let (Some(mut stdin), Some(value)) = (child.stdin.take(), value_of(&told.data)) {
            // A command that does not read its input is free to do so.
            _ = stdin.write_all(&value);
        }
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(Failure::status(status)) }
    }
}

/// Events that came while a command ran: of each key the last one.
#[derive(Default)]
struct Waiting {
    /// In the order in which they came.
    events: BTreeMap<u64, Told>,
    /// Where that of a key is.
    keys: HashMap<String, u64>,
    /// How many came since the start.
    count: u64,
}

impl Waiting {
    /// Takes events that are here already, until there is none or enough were read or wait.
    fn take_in(&mut self, mut ready: impl FnMut() -> Option<Told>) {
        for _ in 0..EVENTS_WAITING_MAX {
            if self.events.len() >= EVENTS_WAITING_MAX {
                return;
            }
            let Some(told) = ready() else { return };
            self.push(told);
        }
    }

    fn push(&mut self, told: Told) {
        self.count += 1;
        if let Some(key) = told.data["key"].as_str()
            && let Some(earlier) = self.keys.insert(key.to_owned(), self.count)
        {
            self.events.remove(&earlier);
        }
        self.events.insert(self.count, told);
    }

    fn pop(&mut self) -> Option<Told> {
        let (_, told) = self.events.pop_first()?;
        if let Some(key) = told.data["key"].as_str() {
            self.keys.remove(key);
        }
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, number: usize) -> Told {
        let (name, id) = ("put".to_owned(), Some(number.to_string()));
        Told { name, id, data: json!({ "key": key }) }
    }

    fn ids(mut waiting: Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.pop()).map(|told| told.id.unwrap_or_default()).collect()
    }

    #[test]
    fn stream_that_never_pauses_lets_commands_run() {
        let mut numbers = 0..;
        let (mut few, mut many) = (Waiting::default(), Waiting::default());
        few.take_in(|| numbers.next().map(|number| put(["a", "b"][number % 2], number)));
        assert_eq!(numbers.start, EVENTS_WAITING_MAX);
        assert_eq!(
            ids(few),
            [EVENTS_WAITING_MAX - 2, EVENTS_WAITING_MAX - 1].map(|number| number.to_string())
        );
        for _ in 0..3 {
            many.take_in(|| numbers.next().map(|number| put(&number.to_string(), number)));
        }
        assert_eq!((many.events.len(), numbers.start), (EVENTS_WAITING_MAX, 2 * EVENTS_WAITING_MAX));
    }

    #[test]
    fn waiting_changes_of_a_key_fold_into_the_last_one() {
        let mut waiting = Waiting::default();
        let resync = Told { name: "resync".to_owned(), id: Some("2".to_owned()), ..Told::default() };
        let events = [put("a", 0), put("b", 1), resync, put("a", 3), put("c", 4)];
        events.into_iter().for_each(|told| waiting.push(told));
        let first = waiting.pop().and_then(|told| told.id);
        waiting.push(put("b", 5));
        assert_eq!(
            (first.as_deref(), ids(waiting)),
            (Some("1"), ["2", "3", "4", "5"].map(str::to_owned).to_vec())
        );
    }
}
