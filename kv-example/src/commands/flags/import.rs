//! `import`: the flags of a file, in one step.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{InSet, Why, print, unleash};
use crate::client::quoted;
use crate::commands::config::document::{self, Format};
use crate::exit::{Exit, Failure};
use crate::files;
use crate::flags::{SET_METADATA, SHARED_RULES, change};
use crate::table;

/// The largest file.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Changes of one step: with its history, its plan and the day of its last evaluation each is up to four writes, and a
/// batch of the library has at most 65,536.
const STEP_CHANGES_MAX: usize = 16_000;
/// Bytes of the definitions of one step, below what a node takes in one request.
const STEP_BYTES_MAX: usize = 16 << 20;
/// Characters of a definition on a line.
const VALUE_CHARS_MAX: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// A file in flagd's format, JSON or YAML
    Flagd,
    /// What Unleash exports, or what its clients get
    Unleash,
}

const UNLEASH: &str = "\
Of Unleash, a file is what its page or /api/admin/features-batch/export exports for one environment, what the older
/api/admin/state/export gives, or what clients get at /api/client/features. Only the last two have the conditions of
segments. What has no counterpart is told, each thing with its flag; strategies that are affected are left out, so that
nobody gets a feature who did not have it. Without --partial nothing is written then.";

/// Take over the flags of a file, in one step
#[derive(Args, Debug)]
#[command(after_help = UNLEASH)]
pub(crate) struct Import {
    /// The file; - for the standard input
    file: PathBuf,
    /// What the file is
    #[arg(long, value_enum)]
    from: From,
    /// Of Unleash, whose settings count if the file has those of several
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Show what would be written, what could not be translated, and whether it would be refused
    #[arg(long)]
    dry_run: bool,
    /// Import although something could not be translated
    #[arg(long)]
    partial: bool,
    /// Delete the flags that the file lacks
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    place: InSet,
    #[command(flatten)]
    why: Why,
}

/// The text of a file, or of the standard input.
pub(super) fn text_of(path: &Path) -> Result<String, Failure> {
    files::any_text_or_input(path, FILE_BYTES_MAX)
}

/// A definition that becomes another one.
struct Change {
    flag: String,
    before: Option<Value>,
    /// `None`: it is deleted.
    after: Option<Value>,
    stamp: Option<String>,
}

impl Import {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let wanted = self.wanted()?;
        let whole =
            self.place.ready_client()?.get(&format!("/v1/flag-sets/{}", quoted(&self.place.set)))?.json()?;
        let changes = self.changes(&wanted, &whole["entries"]);
        if self.dry_run {
            self.show(&changes)?;
        }
        check(&wanted, self.rules(&wanted, &whole["entries"]))?;
        self.send(&changes)?;
        if self.dry_run { Ok(()) } else { self.show(&changes) }
    }

    /// The rules that the flags share once the file is imported.
    fn rules<'a>(&self, wanted: &'a Map<String, Value>, entries: &'a Value) -> Option<&'a Value> {
        let kept = || entries.get(SHARED_RULES).map(|entry| &entry["definition"]).filter(|_| !self.prune);
        wanted.get(SHARED_RULES).or_else(kept)
    }

    /// The definitions of the file, those of shared rules and metadata included.
    fn wanted(&self) -> Result<Map<String, Value>, Failure> {
        let text = text_of(&self.file)?;
        let at = |failure: Failure| failure.at(&self.file.display().to_string());
        let format = Format::of_file(&self.file).unwrap_or(Format::Json);
        let file = document::read(&text, format).map_err(at)?;
        if self.from == From::Flagd {
            return of_flagd(&file).map_err(|error| at(Failure::usage(error)));
        }
        let translated = unleash::translate(&file, self.environment.as_deref());
        let translated = translated.map_err(|error| at(Failure::usage(error)))?;
        for note in &translated.notes {
            if self.place.target.json {
                print(json!({ "flag": note.flag, "lost": note.is_lost, "note": note.text }))?;
            } else {
                eprintln!("{}", table::clean(&note.to_string()));
            }
        }
        let lost = translated.notes.iter().filter(|note| note.is_lost).count();
        if lost > 0 && !self.partial {
            let message = format!("what could not be translated: {lost} (see above); nothing was written");
            return Err(Failure::new(Exit::Refused, message).hint("--partial imports the rest"));
        }
        Ok(translated.flags)
    }

    fn changes(&self, wanted: &Map<String, Value>, entries: &Value) -> Vec<Change> {
        let held = |flag: &str| entries.get(flag).map(|entry| entry["definition"].clone());
        let stamp = |flag: &str| entries[flag]["stamp"].as_str().map(str::to_owned);
        let put = |(flag, after): (&String, &Value)| Change {
            flag: flag.clone(),
            before: held(flag),
            after: Some(after.clone()),
            stamp: stamp(flag),
        };
        let mut changes: Vec<Change> = wanted.iter().map(put).collect();
        changes.retain(|change| change.before != change.after);
        if self.prune {
            let gone =
                entries.as_object().into_iter().flatten().filter(|(flag, _)| !wanted.contains_key(*flag));
            changes.extend(gone.map(|(flag, _)| Change {
                flag: flag.clone(),
                before: held(flag),
                after: None,
                stamp: stamp(flag),
            }));
        }
        changes
    }

    /// Writes the changes, in one step unless they are more than one can have. A dry run asks whether the first step
    /// would be refused: what is right in the next one depends on it.
    fn send(&self, changes: &[Change]) -> Result<(), Failure> {
        let note = match self.why.note.as_str() {
            "" => format!("imported from {}", self.file.display()),
            note => note.to_owned(),
        };
        let why = Why { note, ..self.why.clone() };
        let place = quoted(&self.place.set);
        let path = if self.dry_run {
            format!("/v1/flag-checks/{place}")
        } else {
            format!("/v1/flag-sets/{place}{}", why.query())
        };
        let client = self.place.ready_client()?;
        let (mut step, mut bytes, mut steps) = (Vec::new(), 0, 0);
        let mut send = |step: &mut Vec<Value>| {
            if step.is_empty() || self.dry_run && steps == 1 {
                return Ok(());
            }
            let body = json!({ "changes": std::mem::take(step) }).to_string();
            steps += 1;
            let sent = client.ask("POST", &path, &[], body.as_bytes());
            sent.map(|_| ()).map_err(|failure| match steps {
                1 => failure,
                _ => failure.at(&format!("step {steps}; the steps before it were written")),
            })
        };
        for change in changes {
            let only_if = change.stamp.as_deref().unwrap_or("absent");
            let asked = json!({ "flag": change.flag, "definition": change.after, "if": only_if });
            let more = asked.to_string().len();
            if step.len() == STEP_CHANGES_MAX || bytes + more > STEP_BYTES_MAX {
                send(&mut step)?;
                bytes = 0;
            }
            bytes += more;
            step.push(asked);
        }
        send(&mut step)
    }

    /// One line for each change.
    fn show(&self, changes: &[Change]) -> Result<(), Failure> {
        for Change { flag, before, after, .. } in changes {
            if self.place.target.json {
                print(json!({ "flag": flag, "before": before, "after": after }))?;
                continue;
            }
            let short = |value: &Value| table::short(&value.to_string(), VALUE_CHARS_MAX);
            let line = match (before, after) {
                (None, Some(after)) => format!("+ {flag} {}", short(after)),
                (Some(_), Some(after)) => format!("~ {flag} {}", short(after)),
                (_, None) => format!("- {flag}"),
            };
            print(table::clean(&line))?;
        }
        Ok(())
    }
}

/// The flags, the shared rules and the metadata of a file in flagd's format. Everything else in it is named.
fn of_flagd(file: &Value) -> Result<Map<String, Value>, String> {
    let Some(flags) = file["flags"].as_object() else {
        return Err("it has no object called \"flags\"".to_owned());
    };
    let mut wanted = flags.clone();
    if let Some(special) = flags.keys().find(|flag| flag.starts_with('$')) {
        return Err(format!("the flag \"{special}\" has a name that is for rules and metadata of the set"));
    }
    for (field, value) in file.as_object().into_iter().flatten() {
        match field.as_str() {
            "flags" | "$schema" => {}
            "$evaluators" => _ = wanted.insert(SHARED_RULES.to_owned(), value.clone()),
            "metadata" => _ = wanted.insert(SET_METADATA.to_owned(), value.clone()),
            _ => return Err(format!("its field \"{field}\" is none of flagd's format")),
        }
    }
    Ok(wanted)
}

/// Refuses definitions that the node would refuse, all of them at once.
fn check(wanted: &Map<String, Value>, shared: Option<&Value>) -> Result<(), Failure> {
    let mut faults = String::new();
    for (flag, definition) in wanted {
        for fault in change::faults(flag, definition, shared) {
            faults = format!("{faults}\n  {}", table::clean(&format!("{flag}: {}", fault.message)));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, format!("this would be refused; nothing was written{faults}")))
}
