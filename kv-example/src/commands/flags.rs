//! `flags`: feature flags from the command line.
//!
//! A change reads the definition, edits it here, and writes it under the condition that nobody has changed it meanwhile.
//! The node checks what it is given once more; nothing here relies on that.

mod edits;
mod import;
mod look;
mod plans;
mod unleash;
mod when;

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Answer, Client, Target, quoted};
use crate::exit::{Exit, Failure};
use crate::flags::condition::Threshold;
use crate::flags::edit::Edit;
use crate::flags::plan::{OnStop, Step};
use crate::{span, table};

const EXAMPLES: &str = "\
Examples:
  tidings flags create checkout                        # a boolean flag, off
  tidings flags target checkout on --when 'email ends_with @example.com'
  tidings flags rollout checkout on 5                  # 5 % of the others; who has it keeps it when the share grows
  tidings flags eval checkout --key user-17 -c email=ann@example.com
  tidings flags plan start checkout --variant on --steps 25%,50%,100% --wait 10m --stop-if 'rate(errors_total) > 0.5'
  tidings flags history checkout --roll-back
  tidings flags import flags.json --from flagd --dry-run

Flags are those of one set (--set), in flagd's format, under the keys flags/SET/FLAG.";

/// Feature flags: look, change, roll out, plan, move in and out
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Flags {
    /// The flags of a set
    List(look::List),
    /// One flag, with its definition
    Show(look::Show),
    /// Make a flag
    Create(edits::Create),
    /// Delete a flag
    Delete(edits::Delete),
    /// Enable a flag
    Enable(edits::Enable),
    /// Disable a flag: programs use their own defaults
    Disable(edits::Disable),
    /// Say which variant counts where no rule gives one
    SetDefault(edits::SetDefault),
    /// Give a variant to a share of the users
    Rollout(edits::Rollout),
    /// Give a variant to users of whom a condition holds, before all other rules
    Target(edits::Target),
    /// Evaluate one flag, or all flags of a set, for a user
    Eval(look::Eval),
    /// Show who changed a flag and when, or return to an earlier version
    History(look::History),
    /// Flags that nobody has evaluated for some days
    Stale(look::Stale),
    /// What is wrong with definitions, in a file or in the cluster; ends with 1 if something is
    Lint(look::Lint),
    /// Write a set as a file in flagd's format
    Export(look::Export),
    /// Take over the flags of a file, in one step
    Import(import::Import),
    #[command(subcommand)]
    Plan(Box<plans::Plan>),
}

impl Flags {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(),
            Self::Show(show) => show.run(),
            Self::Create(create) => create.run(),
            Self::Delete(delete) => delete.run(),
            Self::Enable(enable) => enable.run(),
            Self::Disable(disable) => disable.run(),
            Self::SetDefault(set_default) => set_default.run(),
            Self::Rollout(rollout) => rollout.run(),
            Self::Target(target) => target.run(),
            Self::Eval(eval) => eval.run(),
            Self::History(history) => history.run(),
            Self::Stale(stale) => stale.run(),
            Self::Lint(lint) => lint.run(),
            Self::Export(export) => export.run(),
            Self::Import(import) => import.run(),
            Self::Plan(plan) => plan.run(),
        }
    }
}

/// Which set, on which node.
#[derive(Args, Clone, Debug)]
struct InSet {
    /// The set of the flag
    #[arg(long, default_value = "default", value_name = "SET")]
    set: String,
    #[command(flatten)]
    target: Target,
}

/// Who changes something, and why.
#[derive(Args, Clone, Debug)]
struct Why {
    /// Why, for the history
    #[arg(long, default_value = "", value_name = "TEXT")]
    note: String,
    /// Who, for the history; without it the user of this machine
    #[arg(long, env = "TIDINGS_BY", value_name = "NAME")]
    by: Option<String>,
}

impl Why {
    fn query(&self) -> String {
        let by = self.by.clone().or_else(|| std::env::var("USER").ok()).filter(|by| !by.is_empty());
        let by = by.map(|by| format!("&by={}", quoted(&by))).unwrap_or_default();
        format!("?note={}{by}", quoted(&self.note))
    }
}

/// One flag that is to be changed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flag {
    #[arg(value_name = "FLAG")]
    name: String,
    #[command(flatten)]
    place: InSet,
    #[command(flatten)]
    why: Why,
    /// Only if its definition is still the one written with this stamp, as `show` tells it. With --at and for plans that
    /// is looked at when it is planned
    #[arg(long, value_name = "STAMP")]
    if_stamp: Option<String>,
}

/// A definition as it was read.
struct Read {
    definition: Value,
    stamp: String,
    entry: Value,
}

impl InSet {
    fn client(&self) -> Result<Client, Failure> {
        self.target.client()
    }

    /// For what is written, and for files that take the place of others.
    fn ready_client(&self) -> Result<Client, Failure> {
        self.target.ready_client()
    }

    fn path(&self, flag: &str) -> String {
        format!("/v1/flags/{}/{}", quoted(&self.set), quoted(flag))
    }

    fn read(&self, flag: &str) -> Result<Option<Read>, Failure> {
        let answer = self.client()?.get(&self.path(flag))?;
        if !answer.is_found() {
            return Ok(None);
        }
        let entry = answer.json()?;
        let stamp = entry["stamp"].as_str().unwrap_or_default().to_owned();
        Ok(Some(Read { definition: entry["definition"].clone(), stamp, entry }))
    }

    fn no_flag(&self, flag: &str) -> Failure {
        Failure::new(Exit::No, format!("the set \"{}\" has no flag \"{flag}\"", self.set))
    }
}

impl Flag {
    /// Reads the definition, has it edited, and writes it if it became another one.
    fn change(&self, edit: impl Fn(&Value) -> Result<Value, String>) -> Result<(), Failure> {
        let read = self.place.read(&self.name)?.ok_or_else(|| self.place.no_flag(&self.name))?;
        if !read.definition.is_object() {
            let message =
                format!("the definition of \"{}\" is no object of JSON; nothing was written", self.name);
            return Err(Failure::new(Exit::Refused, message).hint("put it anew, or delete it"));
        }
        let edited = edit(&read.definition)
            .map_err(|error| Failure::usage(format!("{error}; nothing was written")))?;
        if edited == read.definition && self.if_stamp.is_none() {
            return self.print(&json!({ "stamp": read.stamp, "unchanged": true }));
        }
        self.put(&edited, self.if_stamp.as_ref().unwrap_or(&read.stamp))
    }

    fn put(&self, definition: &Value, only_if: &str) -> Result<(), Failure> {
        let path = format!("{}{}&if={only_if}", self.place.path(&self.name), self.why.query());
        let asked = self.place.ready_client()?.ask("PUT", &path, &[], definition.to_string().as_bytes());
        let answer = asked.map_err(|failure| self.explained(failure, only_if))?;
        self.print(&answer.json()?)
    }

    /// Who asks for something that writes no definition, why, and under which condition.
    fn query(&self) -> String {
        let only_if = self.if_stamp.as_ref().map(|stamp| format!("&if={stamp}")).unwrap_or_default();
        format!("{}{only_if}", self.why.query())
    }

    /// Says of what was refused under that condition whether somebody else was faster.
    fn of_this_stamp(&self, asked: Result<Answer, Failure>) -> Result<Answer, Failure> {
        asked.map_err(|failure| match &self.if_stamp {
            Some(stamp) => self.explained(failure, stamp),
            None => failure,
        })
    }

    /// Says of a refused write whether somebody else was faster.
    fn explained(&self, failure: Failure, only_if: &str) -> Failure {
        let stamp = |read: Option<Read>| read.map_or("absent".to_owned(), |read| read.stamp);
        if !failure.is(Exit::Refused)
            || self.place.read(&self.name).map(stamp).is_ok_and(|now| now == only_if)
        {
            return failure;
        }
        let message =
            format!("\"{}\" was changed by somebody else since it was read; nothing was written", self.name);
        let hint = format!("look at it with `tidings flags show {}`, and try again", self.name);
        Failure::new(Exit::Refused, message).hint(hint)
    }

    fn print(&self, answer: &Value) -> Result<(), Failure> {
        if self.place.target.json {
            return print(answer);
        }
        match answer["unchanged"].as_bool() {
            Some(true) => print("unchanged"),
            _ => print(answer["stamp"].as_str().unwrap_or("done")),
        }
    }

    /// Makes an edit now, or leaves it to a plan of one step.
    fn edit(&self, at: Option<u64>, edit: Edit) -> Result<(), Failure> {
        match at {
            None => self.change(|definition| edit.apply(definition)),
            Some(at) => {
                let steps = vec![Step { wait_ms: 0, edit }];
                self.plan(&Planned { steps, begin_ms: Some(at), ..Planned::default() })
            }
        }
    }

    fn plan(&self, plan: &Planned) -> Result<(), Failure> {
        let path = format!("{}/plan{}", self.place.path(&self.name), self.query());
        let body = json!({ "steps": plan.steps, "begin_ms": plan.begin_ms, "stop_if": plan.stop_if,
                           "stop_if_missing": plan.stop_if_missing, "watch_ms": plan.watch_ms,
                           "on_stop": plan.on_stop });
        let headers = [("content-type", "application/json".to_owned())];
        let asked = self.place.ready_client()?.ask("PUT", &path, &headers, body.to_string().as_bytes());
        let answer = self.of_this_stamp(asked)?;
        if !answer.is_found() {
            return Err(self.place.no_flag(&self.name));
        }
        let answer = answer.json()?;
        if let Some(warning) = answer["warning"].as_str() {
            eprintln!("tidings: {}", table::clean(warning));
        }
        plans::print(&self.place.target, &answer["plan"])
    }
}

/// What a plan is asked for with.
#[derive(Default)]
struct Planned {
    steps: Vec<Step>,
    begin_ms: Option<u64>,
    stop_if: Option<Threshold>,
    stop_if_missing: bool,
    watch_ms: Option<u64>,
    on_stop: OnStop,
}

fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

fn now_ms() -> u64 {
    crate::api::ms(std::time::SystemTime::now())
}

/// A time as people write it, in milliseconds since 1970: `2026-12-01T08:00:00Z`, or a span from now on, `+30m`.
fn time_of(text: &str) -> Result<u64, String> {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    if let Some(later) = text.strip_prefix('+') {
        let later = u64::try_from(span::parse(later)?.as_millis()).unwrap_or(u64::MAX);
        return Ok(now_ms().saturating_add(later));
    }
    let form = |_| format!("\"{text}\" is not a time: write 2026-12-01T08:00:00Z, or +30m");
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(form)?;
    Ok(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or_default())
}

/// A share as people write it: `5`, `5%`, `0.5%`.
fn percent_of(text: &str) -> Result<f64, String> {
    let form = || format!("\"{text}\" is no share, such as 5% or 0.5%");
    let percent: f64 = text.trim().trim_end_matches('%').trim().parse().map_err(|_| form())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err(form()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read() {
        assert_eq!(time_of("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(time_of("2026-12-01T08:00:00Z"), Ok(1_796_112_000_000));
        assert!(time_of("+1h").is_ok_and(|at| at >= now_ms() + 3_599_000));
        assert!(["", "tomorrow", "+", "2026-12-01"].iter().all(|slip| time_of(slip).is_err()));
        assert_eq!((percent_of("5%"), percent_of("0.5"), percent_of("100 %")), (Ok(5.0), Ok(0.5), Ok(100.0)));
        assert!(["", "%", "-1", "101", "NaN"].iter().all(|slip| percent_of(slip).is_err()));
    }
}
