//! The command line, on the API of a node.

mod bench;
mod check;
mod cluster;
mod config;
mod elect;
mod flags;
mod keys;
#[cfg(unix)]
mod render;
mod settings;
mod transfer;
mod voters;
mod watch;
pub(crate) mod whole;

use std::process::Command as Process;

use clap::Subcommand;

use crate::exit::{Exit, Failure};

/// What a client can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Client {
    Get(keys::Get),
    Put(keys::Put),
    Del(keys::Del),
    List(keys::List),
    Watch(watch::Watch),
    #[cfg(unix)]
    Render(render::Render),
    #[command(subcommand)]
    Set(keys::Set),
    #[command(subcommand)]
    Counter(keys::Counter),
    Members(cluster::Members),
    Forget(cluster::Forget),
    Join(cluster::Join),
    Voters(voters::Voters),
    Settings(settings::Settings),
    Reconfigure(settings::Reconfigure),
    Leader(elect::Leader),
    Elect(elect::Elect),
    Lock(elect::Lock),
    Status(cluster::Status),
    Digest(cluster::Digest),
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Flags(Box<flags::Flags>),
    Dump(transfer::Dump),
    Load(transfer::Load),
    Check(check::Check),
    Bench(bench::Bench),
    Snapshot(cluster::Snapshot),
    Leave(cluster::Leave),
}

impl Client {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Get(get) => get.run(),
            Self::Put(put) => put.run(),
            Self::Del(del) => del.run(),
            Self::List(list) => list.run(),
            Self::Watch(watch) => watch.run(),
            #[cfg(unix)]
            Self::Render(render) => render.run(),
            Self::Set(set) => set.run(),
            Self::Counter(counter) => counter.run(),
            Self::Members(members) => members.run(),
            Self::Forget(forget) => forget.run(),
            Self::Join(join) => join.run(),
            Self::Voters(voters) => voters.run(),
            Self::Settings(settings) => settings.run(),
            Self::Reconfigure(reconfigure) => reconfigure.run(),
            Self::Leader(leader) => leader.run(),
            Self::Elect(elect) => elect.run(),
            Self::Lock(lock) => lock.run(),
            Self::Status(status) => status.run(),
            Self::Digest(digest) => digest.run(),
            Self::Config(config) => config.run(),
            Self::Flags(flags) => flags.run(),
            Self::Dump(dump) => dump.run(),
            Self::Load(load) => load.run(),
            Self::Check(check) => check.run(),
            Self::Bench(bench) => bench.run(),
            Self::Snapshot(snapshot) => snapshot.run(),
            Self::Leave(leave) => leave.run(),
        }
    }
}

/// A command that the user wants run, with something in its environment.
fn process(words: &[String], environment: &[(&str, &str)]) -> Process {
    let mut process = Process::new(&words[0]);
    process.args(&words[1..]).envs(environment.iter().copied());
    process
}

fn not_started(words: &[String], error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("\"{}\" cannot be run: {error}", words[0]))
}
