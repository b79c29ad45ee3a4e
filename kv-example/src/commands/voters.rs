//! `tidings voters`: who grants leases, and changing that.

use clap::Args;
use serde_json::Value;

use super::cluster::{LONG_TIME, print, text};
use crate::client::{Target, quoted};
use crate::exit::Failure;

/// Show the nodes that grant leases, or change them while the cluster runs
///
/// A change takes some ten seconds, and no lease is lost. Every node of the new list has to be alive and to have a data
/// directory. Afterwards give every node the new list with --voter as well, at its next start.
#[derive(Args, Debug)]
pub(crate) struct Voters {
    /// The new list
    #[arg(long, value_name = "NAME,...")]
    set: Option<String>,
    /// Do not ask the present voters. Only when a majority of them is lost for ever, or when there never were any: two
    /// leaders are possible otherwise. The voters of the new list grant no lease for 10/9 of the setting lease-time-max
    /// after they have learned of it (11 s, unless it was changed), and a lease that is held may end
    #[arg(long, requires = "set")]
    force: bool,
    #[command(flatten)]
    target: Target,
}

impl Voters {
    pub(super) fn run(self) -> Result<(), Failure> {
        let changing = if self.set.is_some() { LONG_TIME } else { self.target.timeout };
        let target = Target { timeout: self.target.timeout.max(changing), ..self.target };
        let answer = match &self.set {
            None => target.client()?.get("/v1/voters")?.json()?,
            Some(names) => {
                let path = format!("/v1/voters?names={}&force={}", quoted(names), self.force);
                target.client()?.ask("PUT", &path, &[], &[])?.json()?
            }
        };
        if target.json {
            return print(answer);
        }
        let names = |list: &Value| {
            let names = list.as_array().into_iter().flatten().map(text);
            names.collect::<Vec<_>>().join(", ")
        };
        match (names(&answer["voters"]), names(&answer["next"])) {
            (none, _) if none.is_empty() => print("there are no voters, so there are no elections"),
            (voters, next) if next.is_empty() => print(voters),
            (voters, next) => print(format_args!("{voters}; they are being replaced by {next}")),
        }
    }
}
