//! `list`, `show`, `eval`, `history`, `stale`, `lint` and `export`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::when::literal;
use super::{Flag, InSet, now_ms, plans, print};
use crate::client::quoted;
use crate::commands::keys::{for_each_row, since};
use crate::commands::whole;
use crate::exit::{Exit, Failure};
use crate::flags::change::{Past, time_text};
use crate::flags::plan::Plan;
use crate::flags::{SET_METADATA, SHARED_RULES};
use crate::table;

const DAY_MS: u64 = 86_400_000;
/// Characters of a text in a table.
const CELL_CHARS_MAX: usize = 60;

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or("-").to_owned()
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    place: InSet,
}

impl List {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let flags = listed(&self.place)?;
        if self.place.target.json {
            return flags.iter().try_for_each(print);
        }
        let row = |flag: &Value| {
            let counts = flag["evaluations"].as_object().into_iter().flatten();
            let count: u64 = counts.filter_map(|(_, count)| count.as_u64()).sum();
            let plan = serde_json::from_value::<Plan>(flag["plan"].clone());
            let mut notes: Vec<String> =
                plan.ok().iter().map(|plan| format!("plan {}", plans::summary(plan))).collect();
            notes.extend(flag["rejected"].as_str().map(|error| format!("malformed: {error}")));
            notes.extend((flag["conflict"] == true).then(|| "has concurrent versions".to_owned()));
            vec![
                text(flag, "flag"),
                text(flag, "state"),
                text(flag, "type"),
                text(flag, "defaultVariant"),
                if flag["targeting"].is_object() { "yes" } else { "-" }.to_owned(),
                count.to_string(),
                text(flag, "lastEvaluated"),
                table::short(&notes.join("; "), CELL_CHARS_MAX),
            ]
        };
        let rows: Vec<Vec<String>> = flags.iter().map(row).collect();
        let headings = ["flag", "state", "type", "default", "rule", "evaluated", "last on", ""];
        Ok(table::print(&headings, &rows)?)
    }
}

/// The flags of a set, as the node tells them.
fn listed(place: &InSet) -> Result<Vec<Value>, Failure> {
    let mut flags = Vec::new();
    for_each_row(&place.client()?, &format!("/v1/flags?set={}", quoted(&place.set)), "flags", |flag| {
        flags.push(flag.clone());
        Ok(())
    })?;
    Ok(flags)
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    flag: String,
    #[command(flatten)]
    place: InSet,
}

impl Show {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let read = self.place.read(&self.flag)?.ok_or_else(|| self.place.no_flag(&self.flag))?;
        if self.place.target.json {
            return print(&read.entry);
        }
        let writer = read.entry["writer"].as_str().unwrap_or("a node that is gone");
        let ago = since(&read.entry["time_ms"]);
        print(table::clean(&format!(
            "{}  stamp {}, through {writer}, {ago} ago",
            text(&read.entry, "key"),
            read.stamp
        )))?;
        if read.entry["conflicts"].as_u64().is_some_and(|conflicts| conflicts > 0) {
            print("there are concurrent versions that lost: `tidings get --conflicts` shows them")?;
        }
        let plan = self.place.client()?.get(&format!("{}/plan", self.place.path(&self.flag)))?;
        if plan.is_found()
            && let Ok(plan) = serde_json::from_value::<Plan>(plan.json()?["plan"].clone())
        {
            print(table::clean(&format!("plan: {}", plans::summary(&plan))))?;
        }
        let shown = serde_json::to_string_pretty(&read.definition).unwrap_or_default();
        shown.lines().try_for_each(|line| print(table::line(line)))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Eval {
    /// Without it, all flags of the set
    flag: Option<String>,
    /// The user: the attribute targetingKey
    #[arg(long, value_name = "USER")]
    key: Option<String>,
    /// What is known of the user; values are JSON or else texts
    #[arg(long = "context", short = 'c', value_name = "NAME=VALUE")]
    context: Vec<String>,
    #[command(flatten)]
    place: InSet,
}

impl Eval {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut context = Map::new();
        for attribute in &self.context {
            let (name, value) = attribute
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("\"{attribute}\" is not of the form NAME=VALUE")))?;
            context.insert(name.to_owned(), literal(value));
        }
        if let Some(key) = &self.key {
            context.insert("targetingKey".to_owned(), json!(key));
        }
        let mut body = json!({ "set": self.place.set, "context": context });
        if let Some(flag) = &self.flag {
            body["flag"] = json!(flag);
        }
        let results = self.results(body)?;
        if self.place.target.json {
            results.iter().try_for_each(print)?;
        } else {
            let row = |result: &Value| {
                vec![
                    text(result, "flag"),
                    table::short(&result["value"].to_string(), CELL_CHARS_MAX),
                    text(result, "variant"),
                    text(result, "reason"),
                    text(&result["error"], "message"),
                ]
            };
            let rows: Vec<Vec<String>> = results.iter().map(row).collect();
            table::print(&["flag", "value", "variant", "reason", "error"], &rows)?;
        }
        match (&self.flag, results.as_slice()) {
            (Some(_), [result]) if !result["error"].is_null() => Err(Failure::new(Exit::No, "")),
            _ => Ok(()),
        }
    }
    /// All results, page by page.
    fn results(&self, mut body: Value) -> Result<Vec<Value>, Failure> {
        let headers = [("content-type", "application/json".to_owned())];
        let (client, mut results) = (self.place.client()?, Vec::new());
        loop {
            let asked = client.ask("POST", "/v1/flags/evaluate", &headers, body.to_string().as_bytes())?;
            let mut answer = asked.json()?;
            if let Value::Array(page) = answer["results"].take() {
                results.extend(page);
            }
            match &answer["next"] {
                Value::Null => return Ok(results),
                next => body["after"] = next.clone(),
            }
        }
    }
}

const BACK: &str = "\
With --roll-back the flag becomes what it was before its last change, or with --to what the item of that number put: 1 is
the newest. Kept are the last 20 versions that were put by this command, by the dashboard or by a plan; what programs put
through the library is not.";

#[derive(Args, Debug)]
#[command(after_help = BACK)]
pub(crate) struct History {
    #[command(flatten)]
    flag: Flag,
    /// Make it what it was before
    #[arg(long)]
    roll_back: bool,
    /// Which version, by its number
    #[arg(long, value_name = "NUMBER", requires = "roll_back")]
    to: Option<usize>,
}

impl History {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let place = &self.flag.place;
        if !self.roll_back && (self.flag.if_stamp.is_some() || !self.flag.why.note.is_empty()) {
            return Err(Failure::usage(
                "--note and --if-stamp belong to a change: give --roll-back with them",
            ));
        }
        let answer = place.client()?.get(&format!("{}/history", place.path(&self.flag.name)))?;
        if !answer.is_found() {
            return Err(place.no_flag(&self.flag.name));
        }
        let answer = answer.json()?;
        let past: Vec<Past> = serde_json::from_value(answer["history"].clone())
            .map_err(|error| Failure::new(Exit::Failed, format!("the history is not understood: {error}")))?;
        if self.roll_back {
            return self.back(&past);
        }
        if place.target.json {
            return answer["history"].as_array().into_iter().flatten().try_for_each(print);
        }
        let row = |(at, item): (usize, &Past)| {
            let definition = match &item.definition {
                Value::Null => "(deleted)".to_owned(),
                definition => table::short(&definition.to_string(), CELL_CHARS_MAX),
            };
            vec![(at + 1).to_string(), item.time.clone(), item.by.clone(), item.note.clone(), definition]
        };
        let rows: Vec<Vec<String>> = past.iter().enumerate().map(row).collect();
        Ok(table::print(&["", "time", "by", "note", "definition"], &rows)?)
    }

    fn back(&self, past: &[Past]) -> Result<(), Failure> {
        let place = &self.flag.place;
        let read = place.read(&self.flag.name)?;
        let number = match self.to {
            Some(number) => number,
            // If the newest item is not what counts now, somebody has put another one past the history.
            None if past.first().map(|item| &item.definition)
                == Some(&read.as_ref().map(|read| read.definition.clone()).unwrap_or_default()) =>
            {
                2
            }
            None => 1,
        };
        let item = number.checked_sub(1).and_then(|at| past.get(at));
        let item = item.ok_or_else(|| {
            Failure::new(Exit::No, format!("the history has no version {number}; nothing was written"))
        })?;
        if item.definition.is_null() {
            let message = format!("the flag did not exist in version {number}; nothing was written");
            return Err(Failure::new(Exit::Refused, message).hint("delete it with `tidings flags delete`"));
        }
        let stamp = read.map_or("absent".to_owned(), |read| read.stamp);
        let mut flag = self.flag.clone();
        if flag.why.note.is_empty() {
            flag.why.note = format!("back to the version of {}", item.time);
        }
        flag.put(&item.definition, self.flag.if_stamp.as_deref().unwrap_or(&stamp))
    }
}

const UNSEEN: &str = "\
What counts is who asks a node, or a Rust program that reports its use, for one flag: OFREP for single flags, Flags::bool
and the like. Programs that get whole sets and evaluate them themselves are never seen: the web SDK and everybody else who
asks OFREP for all flags, flagd's providers in their own process (--flagd-sync), files of `render` and `export`. Nor are
Rust programs that end within 10 s of the evaluation, after which it is reported. Flags that were put within the days are
left out. Look for the flags in the code of programs before you delete one.";

#[derive(Args, Debug)]
#[command(after_help = UNSEEN)]
pub(crate) struct Stale {
    /// For so many days, in which they were not put either
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
    #[command(flatten)]
    place: InSet,
}

impl Stale {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let flags = listed(&self.place)?;
        let now_ms = now_ms();
        let stale: Vec<&Value> = flags.iter().filter(|flag| is_stale(flag, self.days, now_ms)).collect();
        if self.place.target.json {
            return stale.iter().try_for_each(print);
        }
        let row = |flag: &&Value| vec![text(flag, "flag"), text(flag, "state"), text(flag, "lastEvaluated")];
        let rows: Vec<Vec<String>> = stale.iter().map(row).collect();
        Ok(table::print(&["flag", "state", "last on"], &rows)?)
    }
}

/// Whether a listed flag was neither put nor evaluated for so many days. A day may be that of an earlier flag of the name.
fn is_stale(flag: &Value, days: u64, now_ms: u64) -> bool {
    let since_ms = now_ms.saturating_sub(days * DAY_MS);
    let is_put_before = flag["time_ms"].as_u64().is_some_and(|time_ms| time_ms < since_ms);
    is_put_before && flag["lastEvaluated"].as_str().is_none_or(|day| day < &time_text(since_ms)[..10])
}

/// A set as a file in flagd's format.
pub(super) fn file_of(place: &InSet) -> Result<Value, Failure> {
    let whole = place.ready_client()?.get(&format!("/v1/flag-sets/{}", quoted(&place.set)))?.json()?;
    let mut flags = Map::new();
    let mut file = Map::new();
    file.insert("$schema".to_owned(), json!("https://flagd.dev/schema/v0/flags.json"));
    for (name, entry) in whole["entries"].as_object().into_iter().flatten() {
        let definition = entry["definition"].clone();
        match name.as_str() {
            SHARED_RULES => _ = file.insert("$evaluators".to_owned(), definition),
            SET_METADATA => _ = file.insert("metadata".to_owned(), definition),
            _ => _ = flags.insert(name.clone(), definition),
        }
    }
    file.insert("flags".to_owned(), flags.into());
    Ok(file.into())
}

#[derive(Args, Debug)]
pub(crate) struct Lint {
    /// A file in flagd's format, - for the standard input; without it the set of the cluster
    file: Option<PathBuf>,
    #[command(flatten)]
    place: InSet,
}

impl Lint {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let text = match &self.file {
            Some(path) => super::import::text_of(path)?,
            None => file_of(&self.place)?.to_string(),
        };
        let faults = tidings::flags::check_file(&text);
        for fault in &faults {
            let what = if fault.is_malformed { "malformed" } else { "schema" };
            if self.place.target.json {
                print(json!({ "flag": fault.flag, "kind": what, "message": fault.error.to_string() }))?;
            } else {
                print(table::clean(&format!("{what}: {fault}")))?;
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(Failure::new(Exit::No, "")) }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// Where to write; without it on the standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    place: InSet,
}

impl Export {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let file = file_of(&self.place)?;
        let malformed = file["flags"].as_object().into_iter().flatten().filter(|(_, flag)| flag.is_null());
        let malformed: Vec<&str> = malformed.map(|(name, _)| name.as_str()).collect();
        if !malformed.is_empty() {
            let message = format!(
                "these definitions are not JSON, or nested too deep; nothing was exported: {}",
                malformed.join(", ")
            );
            return Err(Failure::new(Exit::Refused, table::clean(&message)));
        }
        let text = format!("{}\n", serde_json::to_string_pretty(&file).unwrap_or_default());
        let Some(path) = &self.out else {
            return Ok(std::io::stdout().lock().write_all(text.as_bytes())?);
        };
        whole::replace(path, |out| {
            out.write_all(text.as_bytes()).map_err(|error| Failure::file(path, &error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_flags_that_nobody_evaluates_are_stale() {
        let now_ms = 1_796_112_000_000; // 2026-12-01T08:00:00Z
        let put = |days_ago: u64| json!({ "lastEvaluated": null, "time_ms": now_ms - days_ago * DAY_MS });
        assert!(is_stale(&put(31), 30, now_ms), "old, and never evaluated");
        assert!(!is_stale(&put(29), 30, now_ms), "it is new");
        let made_again = json!({ "lastEvaluated": "2020-01-01", "time_ms": now_ms });
        assert!(!is_stale(&made_again, 30, now_ms), "the day is of the flag that was deleted");
        let used = |day: &str| json!({ "lastEvaluated": day, "time_ms": 0 });
        assert!(is_stale(&used("2026-10-31"), 30, now_ms));
        assert!(!is_stale(&used("2026-11-01"), 30, now_ms), "30 days ago");
    }
}
