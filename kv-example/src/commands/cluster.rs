//! `members`, `status`, `digest`, `snapshot` and `leave`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::keys::since;
use crate::client::{Target, quoted};
use crate::exit::{Exit, Failure};
use crate::{span, table};

/// A snapshot of a large store, and good-byes, take their time.
pub(super) const LONG_TIME: Duration = Duration::from_secs(600);

pub(super) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => table::clean(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Who is in the cluster, as the node knows it
#[derive(Args, Debug)]
pub(crate) struct Members {
    #[command(flatten)]
    target: Target,
}

impl Members {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let answer = self.target.client()?.get("/v1/members")?.json()?;
        let members = answer["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        if self.target.json {
            return members.iter().try_for_each(print);
        }
        let rows: Vec<Vec<String>> = members.iter().map(row).collect();
        Ok(table::print(&["name", "state", "since", "address", "round trip", "version", "about it"], &rows)?)
    }
}

fn row(member: &Value) -> Vec<String> {
    let is_self = member["self"] == true;
    let name = format!("{}{}", text(&member["name"]), if is_self { " (asked)" } else { "" });
    let since = if is_self { "-".to_owned() } else { since(&member["since_ms"]) };
    let meta = member["meta"].as_object().into_iter().flatten();
    let meta: Vec<String> = meta.map(|(key, value)| format!("{key}={}", text(value))).collect();
    let rtt = member["rtt_us"].as_u64().map(|us| span::show(Duration::from_micros(us)));
    let rtt = rtt.unwrap_or_else(|| "-".to_owned());
    let version = member["app_version"].as_str().filter(|version| !version.is_empty()).unwrap_or("-");
    vec![name, text(&member["state"]), since, text(&member["addr"]), rtt, version.to_owned(), meta.join(" ")]
}

/// What the node holds, and how far its peers are behind
#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    target: Target,
}

impl Status {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let status = self.target.client()?.get("/v1/status")?.json()?;
        if self.target.json {
            return print(status);
        }
        let store = &status["store"];
        let uptime = Duration::from_millis(status["uptime_ms"].as_u64().unwrap_or_default());
        let state = match (&status["closed"], &status["ready"], &status["busy"]) {
            (Value::Bool(true), ..) => "closed",
            (_, Value::Bool(false), _) => "not synced yet",
            _ if store["clock_off_ms"].is_u64() => "clock in doubt: writes are refused until it is right",
            (.., Value::Bool(true)) => "busy: writes are refused until the cluster has caught up",
            _ if status["readiness"] == "alone" => {
                "ready, without having reached another node since its start"
            }
            _ => "ready",
        };
        let size = |field: &str| table::bytes(store[field].as_u64().unwrap_or_default());
        let (bytes, limit) = (size("size_bytes"), size("size_bytes_max"));
        print(format_args!(
            "{} of cluster {}, {state}\n  address  {}\n  run      {}, up {}\n  holds    {} entries, {bytes} of {limit}\n  \
             digest   {}\n  disk     {}\n",
            text(&status["name"]),
            text(&status["cluster"]),
            text(&status["addr"]),
            text(&status["run"]),
            span::show(uptime),
            store["entries"],
            text(&store["root"]),
            text(&store["disk"]),
        ))?;
        let row = |peer: &Value| {
            let rtt = Duration::from_micros(peer["rtt_us"].as_u64().unwrap_or_default());
            let size = |field: &str| table::bytes(peer[field].as_u64().unwrap_or_default());
            let lag = text(&peer["lag_changes"]);
            vec![
                text(&peer["name"]),
                text(&peer["addr"]),
                span::show(rtt),
                lag,
                size("lag_bytes"),
                size("sent_bytes"),
            ]
        };
        let rows: Vec<Vec<String>> = status["peers"].as_array().into_iter().flatten().map(row).collect();
        table::print(&["peer", "address", "round trip", "behind by", "bytes", "sent"], &rows)?;
        for rejected in status["rejected"].as_array().into_iter().flatten() {
            let (live, reason) = (text(&rejected["live"]), text(&rejected["reason"]));
            print(format_args!("not applied in {live}: {reason}"))?;
        }
        Ok(())
    }
}

/// The digest of what nodes hold: whether they hold the same
#[derive(Args, Debug)]
pub(crate) struct Digest {
    /// Further nodes to compare with
    #[arg(value_name = "URL")]
    others: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Digest {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut roots = Vec::new();
        let mut rows = Vec::new();
        for node in [&self.target.node].into_iter().chain(&self.others) {
            let target = Target { node: node.clone(), ..self.target.clone() };
            let status = target.client()?.get("/v1/status")?.json()?;
            let (name, store) = (text(&status["name"]), &status["store"]);
            if self.target.json {
                print(
                    json!({ "name": name, "root": store["root"], "vector_hash": store["vector_hash"], "entries": store["entries"] }),
                )?;
            }
            rows.push(vec![name, text(&store["entries"]), text(&store["vector_hash"]), text(&store["root"])]);
            roots.push(text(&store["root"]));
        }
        if !self.target.json {
            table::print(&["node", "entries", "vector hash", "root"], &rows)?;
        }
        if roots.iter().all(|root| *root == roots[0]) {
            return Ok(());
        }
        let message = "they differ, as of these instants; while nobody writes they agree within a second";
        Err(Failure::new(Exit::No, message))
    }
}

/// Have the node write everything it holds into a file of its data directory
#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    /// The file's name in the folder `snapshots` of the data directory
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Snapshot {
    pub(super) fn run(self) -> Result<(), Failure> {
        let target = Target { timeout: self.target.timeout.max(LONG_TIME), ..self.target };
        let path = format!("/v1/snapshot?name={}", quoted(&self.name));
        let answer = target.client()?.ask("POST", &path, &[], &[])?.json()?;
        if target.json {
            return print(answer);
        }
        let bytes = table::bytes(answer["bytes"].as_u64().unwrap_or_default());
        print(format_args!("{} ({bytes})", text(&answer["path"])))
    }
}

/// Have all nodes forget a member that is gone, so that it counts nowhere
#[derive(Args, Debug)]
pub(crate) struct Forget {
    /// The member's name
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Forget {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let path = format!("/v1/members/{}", quoted(&self.name));
        let answer = self.target.client()?.ask("DELETE", &path, &[], &[])?.json()?;
        if self.target.json {
            return print(answer);
        }
        print(format_args!("{} is forgotten", text(&answer["forgotten"])))
    }
}

/// Have the node look for others at an address, too
#[derive(Args, Debug)]
pub(crate) struct Join {
    /// An address or a host name, with a port
    #[arg(value_name = "HOST:PORT")]
    addr: String,
    #[command(flatten)]
    target: Target,
}

impl Join {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let path = format!("/v1/seeds?addr={}", quoted(&self.addr));
        let answer = self.target.client()?.ask("POST", &path, &[], &[])?.json()?;
        if self.target.json {
            return print(answer);
        }
        print(format_args!("the node dials {} from now on", text(&answer["seed"])))
    }
}

/// Have the node tell the others that it leaves for good, and end
#[derive(Args, Debug)]
pub(crate) struct Leave {
    #[command(flatten)]
    target: Target,
}

impl Leave {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let answer = self.target.client()?.ask("POST", "/v1/leave", &[], &[])?.json()?;
        if self.target.json {
            print(answer)
        } else {
            print(format_args!("{} leaves", text(&answer["leaving"])))
        }
    }
}
