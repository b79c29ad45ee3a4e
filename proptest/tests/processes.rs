//! Real processes, each with one node: killed, stopped by a signal, and cut off from each other by the kernel (network
//! namespaces, where the machine permits them). Each test drives the processes over their input and output, see
//! `src/bin/tidings-node.rs`, and waits for the member events that must follow.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tidings::Stamp;
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{self, Process, eventually};

/// A node in a process of its own.
struct NodeProcess {
    process: Process,
    lines: Receiver<String>,
    addr: String,
}

impl NodeProcess {
    /// Starts a node. `before` is a command that runs it somewhere else, for example in a network namespace.
    fn start(before: &[&str], name: &str, listen: &str, seeds: &[&str]) -> Self {
        let node = env!("CARGO_BIN_EXE_tidings-node");
        let all =
            [before, &[node, name, listen, "walnut cobalt ferry oxygen plural tundra mosaic ivory"], seeds]
                .concat();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]);
        let (sender, lines) = channel();
        let process = Process::start(command, move |line| _ = sender.send(line));
        let mut node = Self { process, lines, addr: String::new() };
        node.addr = node.expect("addr ").split_off(5);
        node
    }

    fn local(name: &str, seeds: &[&str]) -> Self {
        Self::start(&[], name, "127.0.0.1:0", seeds)
    }

    /// A node with the voters n0, n1 and n2.
    fn voter(name: &str, seeds: &[&str]) -> Self {
        Self::start(&["env", "TIDINGS_VOTERS=n0,n1,n2"], name, "127.0.0.1:0", seeds)
    }

    fn say(&mut self, line: &str) {
        self.process.say(line);
    }

    /// Waits for the next line with this beginning; other lines are skipped.
    fn expect(&mut self, beginning: &str) -> String {
        let until = Instant::now() + GUARD;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no line {beginning:?} came in time"));
            assert!(!line.starts_with("panic"), "{line}");
            if line.starts_with(beginning) {
                return line;
            }
        }
    }

    /// Repeats a question until the answer is this.
    fn expect_answer(&mut self, question: &str, answer: &str) {
        let word = answer.split(' ').next().expect("an answer has a first word");
        eventually(answer, || {
            self.say(question);
            self.expect(word) == answer
        });
    }

    fn expect_token(&mut self, beginning: &str) -> Stamp {
        self.expect(beginning)[beginning.len()..].parse().expect("a token")
    }

    fn signal(&self, signal: &str) {
        processes::signal(self.process.child.id(), signal);
    }
}

fn cluster(count: usize) -> Vec<NodeProcess> {
    let mut nodes = vec![NodeProcess::local("n0", &[])];
    let seed = nodes[0].addr.clone();
    nodes.extend((1..count).map(|i| NodeProcess::local(&format!("n{i}"), &[&seed])));
    nodes.iter_mut().for_each(|node| node.expect_answer("living", &format!("living {count}")));
    nodes
}

#[test]
fn killed_process_is_detected_and_replaced_by_its_next_run() {
    let mut nodes = cluster(5);
    let mut killed = nodes.remove(2);
    let addr = std::mem::take(&mut killed.addr);
    drop(killed);
    nodes.iter_mut().for_each(|node| _ = node.expect("down n2"));
    let seed = nodes[0].addr.clone();
    let mut back = NodeProcess::start(&[], "n2", &addr, &[&seed]);
    back.expect_answer("living", "living 5");
    nodes.iter_mut().for_each(|node| _ = node.expect("joined n2"));
    // Once more, now back before any node has called it down.
    drop(back);
    let mut back = NodeProcess::start(&[], "n2", &addr, &[&seed]);
    back.expect_answer("living", "living 5");
    nodes.iter_mut().for_each(|node| _ = node.expect("joined n2"));
    back.say("leave");
    nodes.iter_mut().for_each(|node| _ = node.expect("left n2"));
}

#[test]
fn stopped_process_is_called_down_and_catches_up() {
    let mut nodes = cluster(4);
    nodes[1].signal("STOP");
    for i in [0, 2, 3] {
        nodes[i].expect("down n1");
    }
    nodes[0].say("put k v");
    nodes[1].signal("CONT");
    for i in [0, 2, 3] {
        nodes[i].expect("recovered n1");
    }
    nodes[1].expect_answer("get k", "value v");
    nodes[1].expect_answer("living", "living 4");
}

/// 20 MB are written: more than the stopped node's window, its socket and `lag_bytes_max` take together.
#[test]
fn stopped_process_delays_no_writer_and_gets_every_row() {
    let mut nodes = cluster(4);
    nodes[3].signal("STOP");
    nodes[0].say("fill 20000 1000");
    assert_eq!(nodes[0].expect("filled"), "filled 20000 refused 0", "the median peer is not behind");
    nodes[1].expect_answer("len", "len 20000");
    nodes[2].expect_answer("len", "len 20000");
    nodes[3].signal("CONT");
    nodes[3].expect_answer("len", "len 20000");
    nodes[3].expect_answer("living", "living 4");
}

/// Network namespaces of this test, joined by a bridge in one more namespace. Removed on drop.
struct Namespaces {
    prefix: String,
    count: usize,
}

fn ip(arguments: &str) -> bool {
    let command = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

impl Namespaces {
    /// `None` where the machine does not permit network namespaces.
    fn new(count: usize) -> Option<Self> {
        let prefix = format!("tidings{}", std::process::id());
        let made = Self { prefix, count };
        let hub = format!("{}h", made.prefix);
        let mut works = ip(&format!("netns add {hub}"))
            && ip(&format!("-n {hub} link add bridge type bridge"))
            && ip(&format!("-n {hub} link set bridge up"));
        for i in 0..count {
            let name = made.name(i);
            works = works
                && ip(&format!("netns add {name}"))
                && ip(&format!("-n {name} link add eth type veth peer name port{i} netns {hub}"))
                && ip(&format!("-n {name} addr add 10.77.0.{}/24 dev eth", i + 1))
                && ip(&format!("-n {name} link set lo up"))
                && ip(&format!("-n {name} link set eth up"))
                && ip(&format!("-n {hub} link set port{i} master bridge"))
                && ip(&format!("-n {hub} link set port{i} up"));
        }
        works.then_some(made)
    }

    fn name(&self, i: usize) -> String {
        format!("{}n{i}", self.prefix)
    }

    fn link(&self, i: usize, state: &str) {
        assert!(ip(&format!("-n {}h link set port{i} {state}", self.prefix)));
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for i in 0..self.count {
            ip(&format!("netns del {}", self.name(i)));
        }
        ip(&format!("netns del {}h", self.prefix));
    }
}

#[test]
fn a_severed_link_between_machines_is_noticed_and_heals() {
    let Some(network) = Namespaces::new(3) else {
        println!("SKIPPED: this machine does not let the test make network namespaces");
        return;
    };
    let start = |i: usize, seeds: &[&str]| {
        let name = network.name(i);
        let before = ["ip", "netns", "exec", &name];
        NodeProcess::start(&before, &format!("n{i}"), &format!("10.77.0.{}:7400", i + 1), seeds)
    };
    let seed = ["10.77.0.1:7400"];
    let mut nodes = [start(0, &[]), start(1, &seed), start(2, &seed)];
    nodes.iter_mut().for_each(|node| node.expect_answer("living", "living 3"));
    network.link(2, "down");
    nodes[0].expect("down n2");
    nodes[1].expect("down n2");
    nodes[2].expect("down n");
    nodes[2].expect("down n");
    nodes[0].say("put k majority");
    nodes[2].say("put l alone");
    network.link(2, "up");
    nodes[0].expect("recovered n2");
    nodes[1].expect("recovered n2");
    nodes[2].expect_answer("get k", "value majority");
    nodes[1].expect_answer("get l", "value alone");
    nodes.iter_mut().for_each(|node| node.expect_answer("living", "living 3"));
}

/// Voters are in quarantine for 17 seconds after their start.
#[test]
fn killed_or_stopped_leader_is_succeeded() {
    let mut a = NodeProcess::voter("n0", &[]);
    let seed = a.addr.clone();
    let mut b = NodeProcess::voter("n1", &[&seed]);
    let mut c = NodeProcess::voter("n2", &[&seed]);
    a.say("campaign cron");
    let first = a.expect_token("elected ");
    b.say("campaign cron");
    // The second candidate may wait for the lease already when the leader is killed, or ask a moment later.
    a.signal("KILL");
    let killed = Instant::now();
    let second = b.expect_token("elected ");
    println!("followed {:?} after a kill", killed.elapsed());
    assert!(second > first);
    // Two voters of three are left, and both are needed for a majority.
    let mut a = NodeProcess::voter("n0", &[&b.addr]);
    c.say("campaign cron");
    a.say("campaign cron");
    // The candidates must be linked with each other before the leader is stopped.
    a.expect_answer("living", "living 3");
    c.expect_answer("living", "living 3");
    b.signal("STOP");
    // The restarted voter must be past its quarantine before there is a majority without the stopped one.
    let third = loop {
        let heard = c.lines.recv_timeout(Duration::from_millis(20)).or_else(|_| a.lines.try_recv());
        if let Ok(line) = heard
            && let Some(token) = line.strip_prefix("elected ")
        {
            break token.parse::<Stamp>().expect("a token");
        }
        assert!(killed.elapsed() < GUARD, "no candidate succeeded the stopped leader");
    };
    assert!(third > second);
    b.signal("CONT");
    assert_eq!(b.expect_token("lost "), second);
}
