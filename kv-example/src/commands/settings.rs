//! `tidings settings` and `tidings reconfigure`: settings that change while nodes run.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value};

use super::cluster::{LONG_TIME, print, text};
use crate::client::Target;
use crate::exit::{Exit, Failure};
use crate::flags::change::time_text;
use crate::settings::field;
use crate::table;

/// Show the settings that all nodes share, or change them on all nodes while they run
///
/// No node is restarted and no lease is lost. lease_time_max and clock_skew_max are changed by the voters, which need
/// data directories and take some ten seconds for it. Afterwards configure the nodes so as well, at their next start: a
/// node that joins is refused unless its own settings are the present ones or earlier ones.
#[derive(Args, Debug)]
#[expect(clippy::doc_markdown, reason = "shown as help")]
pub(crate) struct Settings {
    /// A new value, for example mesh_members_max=50. May be repeated
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field)]
    set: Vec<(String, Value)>,
    /// Go back to the settings before the last change
    #[arg(long, conflicts_with = "set")]
    roll_back: bool,
    #[command(flatten)]
    target: Target,
}

/// Show the intervals and limits of one running node, or change them
///
/// They take effect at once. The node does not remember them: it starts next time with those of its settings file. What
/// all nodes share is changed by `tidings settings`, the voters by `tidings voters`.
#[derive(Args, Debug)]
#[expect(clippy::doc_markdown, reason = "shown as help")]
pub(crate) struct Reconfigure {
    /// A new value, for example sync_interval=2s
    #[arg(value_name = "FIELD=VALUE", value_parser = field)]
    set: Vec<(String, Value)>,
    #[command(flatten)]
    target: Target,
}

fn body(fields: Vec<(String, Value)>) -> Vec<u8> {
    Value::Object(Map::from_iter(fields)).to_string().into_bytes()
}

impl Settings {
    pub(super) fn run(self) -> Result<(), Failure> {
        let is_change = self.roll_back || !self.set.is_empty();
        let timeout = if is_change { LONG_TIME.max(self.target.timeout) } else { self.target.timeout };
        let target = Target { timeout, ..self.target };
        let answer = if self.roll_back {
            target.client()?.ask("POST", "/v1/settings/rollback", &[], &[])?.json()?
        } else if is_change {
            target.client()?.ask("PATCH", "/v1/settings", &[], &body(self.set))?.json()?
        } else {
            target.client()?.get("/v1/settings")?.json()?
        };
        if target.json {
            return print(answer);
        }
        let earlier = answer["earlier"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(present) = answer["present"].as_object() else {
            return Err(Failure::new(Exit::Unreachable, "the node's answer holds no settings"));
        };
        let row = |(name, value): (&String, &Value)| {
            let before: Vec<String> = earlier.iter().map(|settings| text(&settings[name])).collect();
            vec![name.clone(), text(value), before.join(", ")]
        };
        let rows: Vec<Vec<String>> = present.iter().map(row).collect();
        table::print(&["setting", "present", "before, latest first"], &rows)?;
        if let Some(since) = answer["written"]["time_ms"].as_u64() {
            let writer = answer["written"]["writer"].as_str().unwrap_or("a process that is gone");
            writeln!(std::io::stdout(), "in force since {} by {}", time_text(since), table::clean(writer))?;
        }
        Ok(())
    }
}

impl Reconfigure {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = if self.set.is_empty() {
            self.target.client()?.get("/v1/config")?.json()?
        } else {
            self.target.client()?.ask("PATCH", "/v1/config", &[], &body(self.set))?.json()?
        };
        if self.target.json {
            return print(answer);
        }
        let fields = answer.as_object().into_iter().flatten();
        let rows: Vec<Vec<String>> = fields.map(|(name, value)| vec![name.clone(), text(value)]).collect();
        Ok(table::print(&["setting", "value"], &rows)?)
    }
}
