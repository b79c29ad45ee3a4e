//! Changing the secret of three nodes by the very commands of `docs/operating.md`. As root the nodes run as another user,
//! to whom only their own files belong, as under the shipped unit.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Running, ask, program, start};
use tidings_proptest::processes::eventually;

/// A user and a group that nobody has.
const SERVICE_USER: u32 = 61_234;

/// What the commands need in place of a machine for each node: its folder, its user, its service manager, and a shell
/// on the others.
const MACHINE: &str = r#"
set -eu
tidings() { "$PROGRAM" "$@"; }
chown() { test "$1" = tidings:tidings; shift; if [ "$SERVICE_USER" != none ]; then command chown "$SERVICE_USER:$SERVICE_USER" "$@"; fi; }
systemctl() { test "$*" = "reload tidings"; kill -HUP "$(cat "$ROOT/$NODE/pid")"; }
ssh() { NODE="${1#root@}" sh -c "$2"; }
"#;

/// The section's blocks of commands; those of the second are one step for each numbered comment.
fn steps() -> (String, Vec<String>) {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md")).unwrap();
    let section = page.split("## Rotating the secret\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<&str> =
        section.split("\n```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    let mut parts = blocks[1].split("\n# ");
    let begin = parts.next().unwrap();
    (blocks[0].to_owned(), parts.map(|step| format!("{begin}\n# {step}")).collect())
}

struct Cluster {
    root: PathBuf,
    program: PathBuf,
    is_root: bool,
    nodes: Vec<Running>,
}

const NAMES: [&str; 3] = ["node-1", "node-2", "node-3"];

impl Cluster {
    fn start() -> Self {
        // Not below the build's own folder, where the other user may not look.
        let root = std::env::temp_dir().join(format!("tidings-rotation-{}", std::process::id()));
        _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let program = root.join("tidings");
        fs::copy(common::PROGRAM, &program).unwrap();
        let is_root = fs::metadata(&root).unwrap().uid() == 0;
        let mut cluster = Self { root, program, is_root, nodes: Vec::new() };
        for name in NAMES {
            let settings = cluster.root.join(name).join("etc/tidings");
            fs::create_dir_all(&settings).unwrap();
            common::private_file(&settings.join("secret"), format!("{}\n", common::SECRET));
            fs::create_dir_all(cluster.root.join(name).join("data")).unwrap();
            if cluster.is_root {
                for (path, user) in
                    [("etc/tidings", 0), ("etc/tidings/secret", SERVICE_USER), ("data", SERVICE_USER)]
                {
                    let path = cluster.root.join(name).join(path);
                    std::os::unix::fs::chown(path, Some(user), Some(SERVICE_USER)).unwrap();
                }
            }
            fs::set_permissions(&settings, fs::Permissions::from_mode(0o750)).unwrap();
            let node = cluster.node(name);
            fs::write(cluster.root.join(name).join("pid"), node.pid().to_string()).unwrap();
            cluster.nodes.push(node);
        }
        cluster
    }

    /// Starts a node of this name as the service user, with the secret in its folder.
    fn node(&self, name: &str) -> Running {
        let folder = self.root.join(name);
        let mut command = Command::new(&self.program);
        for (variable, _) in program().get_envs() {
            command.env_remove(variable);
        }
        command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command
            .args(["--profile", "local", "--log", "warn", "--secret-file"])
            .arg(folder.join("etc/tidings/secret"));
        command.arg("--data-dir").arg(folder.join("data"));
        if let Some(first) = self.nodes.first() {
            command.args(["--seed", &first.addr]);
        }
        if self.is_root {
            command.uid(SERVICE_USER).gid(SERVICE_USER);
        }
        command.stderr(fs::File::create(self.root.join(name).join("log")).unwrap());
        start(command)
    }

    /// Runs commands of the page on a node, as its administrator.
    fn run(&self, name: &str, commands: &str) {
        let script =
            format!("{MACHINE}\n{}", commands.replace("/etc/tidings", "\"$ROOT/$NODE\"/etc/tidings"));
        // Within quotes the shell of the other machine replaces the names.
        let script = script.replace("> \"$ROOT/$NODE\"", "> $ROOT/$NODE");
        let user = if self.is_root { SERVICE_USER.to_string() } else { "none".to_owned() };
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).env("PROGRAM", &self.program).env("ROOT", &self.root).env("NODE", name);
        assert!(shell.env("SERVICE_USER", user).status().unwrap().success(), "{name}: {commands}");
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name).join("log")).unwrap()
    }

    /// Waits until a node has read its secrets once more, to this number, and checks that nothing went wrong.
    fn wait_accepted(&self, name: &str, reads: usize, accepted: usize) {
        let said = format!("read the secrets again: {accepted} accepted");
        eventually("the node says how many it accepts", || {
            let log = self.log(name);
            let mut read = log.lines().filter(|line| line.contains("read the secrets again"));
            read.clone().count() >= reads && read.next_back().unwrap().contains(&said)
        });
        assert!(!self.log(name).contains("stay as they are"), "{}", self.log(name));
    }

    /// Starts one more node that has only this secret, and says whether it becomes ready; it ends before this returns.
    fn admits(&self, name: &str, secret: &str) -> bool {
        let settings = self.root.join(name).join("etc/tidings");
        fs::create_dir_all(&settings).unwrap();
        fs::create_dir_all(self.root.join(name).join("data")).unwrap();
        common::private_file(&settings.join("secret"), secret);
        if self.is_root {
            for path in ["etc/tidings/secret", "data"] {
                let path = self.root.join(name).join(path);
                std::os::unix::fs::chown(path, Some(SERVICE_USER), Some(SERVICE_USER)).unwrap();
            }
        }
        let node = self.node(name);
        let mut is_ready = false;
        eventually("the node is ready or refused", || {
            is_ready = ask("GET", &format!("{}/readyz", node.http), &[], b"").status == 200;
            is_ready || self.log(name).contains("different secrets")
        });
        is_ready
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn documented_steps_change_the_secret_while_nodes_run() {
    let cluster = Cluster::start();
    let (first, steps) = steps();
    assert_eq!(steps.len(), 3);
    let all_have = |value: &str| {
        cluster.nodes[0].line(&["put", "key", value, "--wait", "all", "--timeout", "60s"]);
        for node in &cluster.nodes {
            assert_eq!(node.line(&["get", "key"]), value);
        }
    };
    eventually("all know each other", || {
        cluster.nodes.iter().all(|node| node.line(&["members", "--json"]).lines().count() == 3)
    });
    all_have("before");
    cluster.run("node-1", &first);
    for (at, (step, accepted)) in steps.iter().zip([2, 2, 1]).enumerate() {
        for name in NAMES {
            cluster.run(name, step);
        }
        NAMES.iter().for_each(|name| cluster.wait_accepted(name, at + 1, accepted));
        all_have(&format!("after step {}", at + 1));
    }
    let settings = cluster.root.join("node-2/etc/tidings");
    let left: Vec<_> = fs::read_dir(&settings).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    let secret = fs::read_to_string(settings.join("secret")).unwrap();
    assert!(secret.lines().count() == 1 && !secret.contains(common::SECRET));
    let file = fs::metadata(settings.join("secret")).unwrap();
    assert_eq!(file.mode() & 0o777, 0o600);
    assert!(!cluster.is_root || file.uid() == SERVICE_USER);
    assert!(cluster.admits("node-4", &secret), "a node with the new secret joins");
    assert!(!cluster.admits("node-5", common::SECRET), "one with the old secret is refused");
}
