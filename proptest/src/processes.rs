//! Child processes that end with the test or measurement that started them, and waiting for what they do.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::nodes::GUARD;

/// A child process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    /// The process itself.
    pub child: Child,
    /// Its standard input. It is open as long as this lives.
    input: ChildStdin,
}

impl Process {
    /// Starts a program. A thread hands each line of its standard output to `each`.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start(mut command: Command, each: impl FnMut(String) + Send + 'static) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(each));
        let input = child.stdin.take().expect("it is piped");
        Self { child, input }
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// If the process reads no more.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the process reads its input");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Sends a signal, for example `"TERM"`, to a process that this one has started.
///
/// # Panics
/// If there is no such process or signal.
pub fn signal(process: u32, name: &str) {
    // The `kill` of the shell, because not every machine has another.
    let kill = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
}

/// Asks again and again until the answer is yes.
///
/// # Panics
/// If it is not so in time.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < GUARD, "{what}: not so after {GUARD:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
