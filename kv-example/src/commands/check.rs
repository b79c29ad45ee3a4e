//! `check`: values that do not satisfy their schemas.

use std::io::Write;

use clap::Args;

use super::keys::{for_each_row, since};
use crate::client::{Target, quoted};
use crate::exit::{Exit, Failure};
use crate::table;

const SCHEMAS: &str = "\
The key PREFIX$schema holds a JSON Schema (draft 2020-12) for the values of all keys that begin with PREFIX; of several the
one with the longest prefix counts. Nodes refuse values that do not satisfy it when they are put through the API or this
program. Values that were there before, or that a program has put through the library, are listed here.";

/// List values that do not satisfy their schemas, with who wrote them; ends with 1 if there are any
#[derive(Args, Debug)]
#[command(after_help = SCHEMAS)]
pub(crate) struct Check {
    /// Only keys that begin like this
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    target: Target,
}

impl Check {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let (mut rows, mut count) = (Vec::new(), 0_u64);
        for_each_row(&client, &format!("/v1/check?prefix={}", quoted(&self.prefix)), "invalid", |row| {
            count += 1;
            if self.target.json {
                return Ok(writeln!(std::io::stdout().lock(), "{row}")?);
            }
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let writer =
                row["writer"].as_str().map_or_else(|| format!("run {}", text("origin")), str::to_owned);
            for fault in row["errors"].as_array().into_iter().flatten() {
                let of = |field: &str| fault[field].as_str().unwrap_or_default().to_owned();
                let schema = row["schema"].as_str().unwrap_or("-").to_owned();
                let ago = since(&row["time_ms"]);
                rows.push(vec![text("key"), writer.clone(), ago, schema, of("path"), of("message")]);
            }
            Ok(())
        })?;
        if count == 0 {
            return Ok(());
        }
        if !self.target.json {
            table::print(&["key", "written by", "ago", "schema", "at", "error"], &rows)?;
        }
        Err(Failure::new(
            Exit::No,
            match count {
                1 => "1 value does not satisfy its schema".to_owned(),
                _ => format!("{count} values do not satisfy their schemas"),
            },
        ))
    }
}
