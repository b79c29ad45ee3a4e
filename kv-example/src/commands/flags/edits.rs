//! `create`, `delete`, `enable`, `disable`, `set-default`, `rollout` and `target`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::when::{self, literal};
use super::{Flag, percent_of, time_of};
use crate::exit::Failure;
use crate::flags::edit::{self, Edit};

#[derive(Args, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    flag: Flag,
    /// Its variants with their values, which are JSON or else texts
    #[arg(long = "variant", value_name = "NAME=VALUE", default_values = ["on=true", "off=false"])]
    variants: Vec<String>,
    /// The variant that counts where no rule gives one; without it `off` if there is one, else the program's default
    #[arg(long, value_name = "VARIANT")]
    default: Option<String>,
    /// The rule, as JSON
    #[arg(long, value_name = "JSON")]
    targeting: Option<String>,
    /// The whole definition, from a file; - for the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["variants", "default", "targeting", "disabled"])]
    from: Option<PathBuf>,
    /// Have programs use their own defaults until it is enabled
    #[arg(long)]
    disabled: bool,
}

impl Create {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let definition = match &self.from {
            Some(path) => serde_json::from_str(&super::import::text_of(path)?)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?,
            None => self.definition()?,
        };
        self.flag.put(&definition, self.flag.if_stamp.as_deref().unwrap_or("absent"))
    }

    fn definition(&self) -> Result<Value, Failure> {
        let mut variants = Map::new();
        for variant in &self.variants {
            let (name, value) = variant
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("\"{variant}\" is not of the form NAME=VALUE")))?;
            variants.insert(name.to_owned(), literal(value));
        }
        let off = || Some("off".to_owned()).filter(|off| variants.contains_key(off));
        let default = self.default.clone().or_else(off);
        let state = if self.disabled { "DISABLED" } else { "ENABLED" };
        let mut definition = json!({ "state": state, "variants": variants, "defaultVariant": default });
        if let Some(rule) = &self.targeting {
            let rule = serde_json::from_str(rule);
            definition["targeting"] =
                rule.map_err(|error| Failure::usage(format!("the rule is not JSON: {error}")))?;
        }
        Ok(definition)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    #[command(flatten)]
    flag: Flag,
}

impl Delete {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let flag = &self.flag;
        let none = || flag.place.no_flag(&flag.name);
        let stamp = match &flag.if_stamp {
            Some(stamp) => stamp.clone(),
            None => flag.place.read(&flag.name)?.ok_or_else(none)?.stamp,
        };
        let path = format!("{}{}&if={stamp}", flag.place.path(&flag.name), flag.why.query());
        let asked = flag.place.ready_client()?.ask("DELETE", &path, &[], &[]);
        let answer = asked.map_err(|failure| flag.explained(failure, &stamp))?;
        if answer.is_found() { flag.print(&answer.json()?) } else { Err(none()) }
    }
}

/// When a change is made.
#[derive(Args, Debug)]
struct When {
    /// Make the change at this time: 2026-12-01T08:00:00Z, or +30m. Needs voters, which choose the node that makes it
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    at: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Enable {
    #[command(flatten)]
    flag: Flag,
    #[command(flatten)]
    when: When,
}

impl Enable {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.flag.edit(self.when.at, Edit::Enable)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Disable {
    #[command(flatten)]
    flag: Flag,
    #[command(flatten)]
    when: When,
}

impl Disable {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.flag.edit(self.when.at, Edit::Disable)
    }
}

#[derive(Args, Debug)]
pub(crate) struct SetDefault {
    #[command(flatten)]
    flag: Flag,
    #[arg(required_unless_present = "none")]
    variant: Option<String>,
    /// No variant: the program's own default
    #[arg(long, conflicts_with = "variant")]
    none: bool,
    #[command(flatten)]
    when: When,
}

impl SetDefault {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.flag.edit(self.when.at, Edit::Default(self.variant.clone()))
    }
}

const SHARES: &str = "\
The share is taken where the flag's rule ends: conditions before it stay. A user is in the share by a hash of the flag's
name and the targeting key, so that a user who has the variant keeps it when the share grows. Users without a targeting
key get the default variant at any share. A rule that ends in something else than a variant or a share of two is
refused.";

#[derive(Args, Debug)]
#[command(after_help = SHARES)]
pub(crate) struct Rollout {
    #[command(flatten)]
    flag: Flag,
    variant: String,
    /// 0 to 100, with at most three decimals
    #[arg(value_parser = percent_of)]
    percent: f64,
    /// What the others get; without it what they get now, or else the default variant
    #[arg(long = "else", value_name = "VARIANT")]
    rest: Option<String>,
    #[command(flatten)]
    when: When,
}

impl Rollout {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (variant, percent, rest) = (self.variant.clone(), self.percent, self.rest.clone());
        self.flag.edit(self.when.at, Edit::Rollout(edit::Rollout { variant, percent, rest }))
    }
}

#[derive(Args, Debug)]
#[command(after_help = when::OPERATORS)]
#[group(skip)]
pub(crate) struct Target {
    #[command(flatten)]
    flag: Flag,
    variant: String,
    /// The condition
    #[arg(long, value_name = "CONDITION", value_parser = when::parse, required_unless_present = "remove")]
    when: Vec<Value>,
    /// Remove the condition; without --when all that give the variant
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    at: When,
}

impl Target {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let when = (!self.when.is_empty()).then(|| when::all(&self.when));
        let (variant, remove) = (self.variant.clone(), self.remove);
        self.flag.edit(self.at.at, Edit::Target(edit::Target { variant, when, remove }))
    }
}
