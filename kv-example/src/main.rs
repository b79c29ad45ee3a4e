//! A tidings node to run, a command line to use it, and a dashboard to look at. It uses the library's public interface
//! alone: what it does, any application can do.

mod access;
mod api;
mod client;
mod commands;
mod demo;
mod exit;
mod files;
mod flags;
mod floor;
mod process;
mod relay;
mod replaced;
mod schema;
mod serve;
mod settings;
mod signals;
mod span;
mod story;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use exit::{EXIT_CODES, Failure};

/// A tidings node to run, a command line to use it, and a dashboard to look at
#[derive(Debug, Parser)]
#[command(name = "tidings", version, after_help = EXIT_CODES, disable_help_subcommand = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Serve(Box<serve::Serve>),
    #[command(flatten)]
    Client(Box<commands::Client>),
    /// Make a secret that nobody can guess: for a cluster, or as a token of the API
    Secret {
        /// A new file that only its owner can read; without it the secret is printed
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print what happens to five simulated nodes under faults; the same seed prints the same text
    Story {
        #[arg(default_value_t = 42)]
        seed: u64,
    },
    /// Print completions for a shell
    Completions {
        shell: Shell,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(demo) => demo.run(),
        Command::Serve(serve) => serve.run(),
        Command::Client(client) => client.run(),
        Command::Secret { out } => secret(out),
        Command::Story { seed } => {
            story::tell(seed).map_err(|error| Failure::new(exit::Exit::Failed, error.to_string()))
        }
        Command::Completions { shell } => {
            // Not to the stream itself: a pipe that is closed would panic.
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tidings", &mut text);
            Ok(std::io::stdout().write_all(&text)?)
        }
    }
}

fn secret(out: Option<PathBuf>) -> Result<(), Failure> {
    let secret = tidings::Security::generate_secret();
    let Some(path) = out else { return Ok(writeln!(std::io::stdout(), "{secret}")?) };
    let written = private(std::fs::OpenOptions::new().write(true).create_new(true))
        .open(&path)
        .and_then(|mut file| writeln!(file, "{secret}"));
    written.map_err(|error| Failure::file(&path, &error))
}

/// Has a file that is made be for its owner alone.
fn private(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Runs this to its end. What it has left to others, as a snapshot that is being written, keeps nobody waiting.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
