//! `leader`, `elect` and `lock`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{not_started, process};
use crate::client::{Client, Target, Told, quoted};
use crate::exit::{Exit, Failure};
use crate::signals::End;

/// Events of the node that were not looked at yet.
const EVENTS_MAX: usize = 16;

fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Who leads an election
#[derive(Args, Debug)]
pub(crate) struct Leader {
    election: String,
    /// Print every change
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: Target,
}

impl Leader {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let path = format!("/v1/elections/{}", quoted(&self.election));
        if !self.watch {
            let answer = client.get(&path)?;
            if !answer.is_found() {
                return Err(Failure::new(Exit::No, format!("nobody leads \"{}\"", self.election)));
            }
            return self.print(&answer.json()?);
        }
        let mut stream = client.stream("GET", &format!("{path}/watch"), None)?;
        while let Some(told) = stream.next() {
            self.print(&told.data)?;
        }
        Err(Failure::new(Exit::Unreachable, "the connection is gone"))
    }

    fn print(&self, leader: &Value) -> Result<(), Failure> {
        match (self.target.json, &leader["leader"]) {
            (true, _) => print(leader),
            (false, Value::Null) => print("nobody"),
            (false, _) => {
                let value = crate::table::clean(text(&leader["leader"]));
                print(format_args!("{value} (token {})", text(&leader["token"])))
            }
        }
    }
}

const ENVIRONMENT: &str = "\
The node holds the lease for as long as this command runs; when it ends, or its connection to the node does, the lease
is given up. Of a machine that is gone without a word the node knows after half a minute; of a command that is stopped,
and not ended, it does not. The command after -- has the fencing token in TIDINGS_FENCING_TOKEN: whatever it works on should
refuse every token below the greatest that it has seen. It is killed when the lease is lost.";

/// Become the leader of an election, and stay so: run a command meanwhile
#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(crate) struct Elect {
    election: String,
    /// What others see of the leader
    value: Option<String>,
    #[command(flatten)]
    target: Target,
    /// What to run as the leader
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Hold a lock while a command runs
#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(crate) struct Lock {
    name: String,
    /// Do not wait for its holder
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    target: Target,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Elect {
    pub(super) fn run(&self) -> Result<(), Failure> {
        hold(&self.target, &self.election, self.value.as_deref(), false, &self.command)
    }
}

impl Lock {
    pub(super) fn run(&self) -> Result<(), Failure> {
        hold(&self.target, &self.name, None, self.once, &self.command)
    }
}

fn hold(
    target: &Target,
    name: &str,
    value: Option<&str>,
    is_once: bool,
    command: &[String],
) -> Result<(), Failure> {
    let own = format!("process {}", std::process::id());
    let path = format!(
        "/v1/elections/{}/campaign?once={is_once}&value={}",
        quoted(name),
        quoted(value.unwrap_or(&own))
    );
    let told = follow(&target.client()?, &path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(lead(told, command, target.json))
}

/// Reads the stream on a thread of its own, which ends with the process.
fn follow(client: &Client, path: &str) -> Result<mpsc::Receiver<Told>, Failure> {
    let mut stream = client.stream("POST", path, None)?;
    let (sender, told) = mpsc::channel(EVENTS_MAX);
    std::thread::spawn(move || {
        while let Some(event) = stream.next() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

/// From the campaign to the end of the lease, or of the command.
async fn lead(mut told: mpsc::Receiver<Told>, command: &[String], is_json: bool) -> Result<(), Failure> {
    let mut end = End::new()?;
    let mut child: Option<Child> = None;
    let mut until: Option<Instant> = None;
    let lost = loop {
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &mut child {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A command that has ended is not stopped for a lease that was lost meanwhile.
            biased;
            status = ended => {
                let status = status?;
                return if status.success() { Ok(()) } else { Err(Failure::status(status)) };
            }
            () = end.recv() => break "stopped",
            () = over => break "the lease has ended: the node was not heard of in time",
            event = told.recv() => {
                let Some(event) = event else { break "the connection to the node is gone, and the lease with it" };
                if event.name == "lost" {
                    break "the lease was lost";
                }
                let valid = event.data["valid_ms"].as_u64().unwrap_or_default();
                until = Some(Instant::now() + Duration::from_millis(valid));
                if event.name == "elected" {
                    child = begin(&event.data, command, is_json)?;
                }
            }
        }
    };
    if let Some(mut child) = child {
        child.kill().await?;
        return Err(Failure::new(Exit::No, format!("{lost}; the command was killed")));
    }
    Err(Failure::new(Exit::No, lost))
}

fn begin(elected: &Value, command: &[String], is_json: bool) -> Result<Option<Child>, Failure> {
    let token = text(&elected["token"]);
    if command.is_empty() {
        let said = if is_json { elected.to_string() } else { format!("elected (token {token})") };
        return print(said).map(|()| None);
    }
    let process = process(command, &[("TIDINGS_FENCING_TOKEN", token)]);
    let mut process = tokio::process::Command::from(process);
    let child = process.kill_on_drop(true).spawn().map_err(|error| not_started(command, &error))?;
    Ok(Some(child))
}
