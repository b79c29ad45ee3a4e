//! Nodes in processes of their own, which a measurement starts and kills. Each is this program again.

use std::process::Command;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use tidings_proptest::processes::Process;

/// How long to wait for something that a process has to say.
const PATIENCE: Duration = Duration::from_secs(90);

/// A line that a process wrote, and when it was read.
pub type Heard = (String, Instant);

/// Starts this program as one node: `kind NAME SEED`. What it writes goes to `heard`.
///
/// # Panics
/// If this program cannot be started.
pub fn spawn(kind: &str, name: &str, seed: &str, heard: &Sender<Heard>) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([kind, name, seed]);
    let heard = heard.clone();
    Process::start(command, move |line| _ = heard.send((line, Instant::now())))
}

/// Waits for a line that begins like this. What follows in the line, and when it was read.
///
/// # Panics
/// If no such line comes in time.
pub fn hear(heard: &Receiver<Heard>, beginning: &str) -> Heard {
    loop {
        let (line, at) = heard.recv_timeout(PATIENCE).expect("it comes in time");
        if let Some(rest) = line.strip_prefix(beginning) {
            return (rest.to_owned(), at);
        }
    }
}
