//! Leaders in processes of their own: killed, and stopped for longer than their lease.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tidings::Stamp;

/// After this the test has failed. Voters are silent for 17 seconds after their start.
const PATIENCE: Duration = Duration::from_secs(300);

/// A node in a process of its own; it ends with this.
struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    addr: String,
}

impl Process {
    fn start(name: &str, seeds: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings-node"));
        command.args([name, "127.0.0.1:0", "a secret for succession"]).args(seeds);
        command.env("TIDINGS_VOTERS", "n0,n1,n2").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the node starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let input = child.stdin.take().expect("it is piped");
        let mut process = Self { child, input, lines, addr: String::new() };
        process.addr = process.expect("addr ");
        process
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the node listens");
    }

    /// What follows the next such beginning of a line.
    fn expect(&mut self, beginning: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no {beginning:?} came"));
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    /// Waits until it knows that so many live.
    fn expect_living(&mut self, count: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.say("living");
            if self.expect("living ") == count {
                return;
            }
            assert!(Instant::now() < until, "it never knew {count}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn expect_token(&mut self, beginning: &str) -> Stamp {
        self.expect(beginning).parse().expect("a token")
    }

    fn signal(&self, signal: &str) {
        // The shell's own: there is not always another.
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn a_killed_leader_is_followed_and_a_stopped_one_learns_that_it_was() {
    let mut a = Process::start("n0", &[]);
    let seed = a.addr.clone();
    let mut b = Process::start("n1", &[&seed]);
    let mut c = Process::start("n2", &[&seed]);
    a.say("campaign cron");
    let first = a.expect_token("elected ");
    b.say("campaign cron");
    // It has to be among those that wait before the leader goes; or it asks a moment later.
    a.signal("KILL");
    let killed = Instant::now();
    let second = b.expect_token("elected ");
    println!("followed {:?} after a kill", killed.elapsed());
    assert!(second > first);
    // Two voters of three are left, and both are needed.
    let mut a = Process::start("n0", &[&b.addr]);
    c.say("campaign cron");
    a.say("campaign cron");
    // Whoever is to follow has to know each other without the one that is stopped.
    a.expect_living("3");
    c.expect_living("3");
    b.signal("STOP");
    // The voter that was killed has to be heard of again before there is a majority without the one that is stopped.
    let third = loop {
        let heard = c.lines.recv_timeout(Duration::from_millis(20)).or_else(|_| a.lines.try_recv());
        if let Ok(line) = heard
            && let Some(token) = line.strip_prefix("elected ")
        {
            break token.parse::<Stamp>().expect("a token");
        }
        assert!(killed.elapsed() < PATIENCE, "nobody followed the stopped leader");
    };
    assert!(third > second);
    b.signal("CONT");
    assert_eq!(b.expect_token("lost "), second);
}
