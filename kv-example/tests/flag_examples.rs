//! The examples for other languages in `examples/flags`, with the SDKs that `.ci/run` installs: each shows a change of a
//! flag without being started anew.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::browser::{self, Page};
use common::{Running, ask, folder, program, serve};
use tidings_proptest::processes::eventually;

fn sdks() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("flag-sdks")
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/flags").join(name)
}

/// Whether a part of the SDKs is there. On a machine that tests for others it has to be.
fn is_installed(part: &str) -> bool {
    let is_there = sdks().join(part).exists();
    assert!(is_there || std::env::var_os("CI").is_none(), "CI needs the SDKs that .ci/run installs");
    if !is_there {
        eprintln!("\n*** SKIPPED: {part} is not installed; the example is NOT tested (see .ci/run) ***\n");
    }
    is_there
}

fn import(node: &Running) {
    let output = node.run(&["flags", "import", example("flags.json").to_str().unwrap(), "--from", "flagd"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Another greeting, and the new checkout for nobody.
fn change(node: &Running) {
    node.run(&["flags", "disable", "checkout"]);
    let greeting = r#"{"state": "ENABLED", "variants": {"plain": "good day"}, "defaultVariant": "plain"}"#;
    node.line(&["put", "flags/default/greeting", greeting]);
}

/// Waits until a service says this of Ann. It may not have reached its node at first.
fn says(service: &Running, expected: &str) {
    let url = format!("{}/checkout/ann@example.com", service.http);
    let expected = format!("{expected}\n");
    eventually("the service says it", || ask("GET", &url, &[], b"").body == expected.as_bytes());
}

fn follows(service: &Running, node: &Running) {
    says(service, "hello, ann@example.com: the new checkout");
    change(node);
    says(service, "good day, ann@example.com: the old checkout");
}

#[test]
fn example_in_python_asks_a_node() {
    if !is_installed("venv/bin/python3") {
        return;
    }
    let node = serve("a", &[], &[]);
    import(&node);
    let mut command = Command::new(sdks().join("venv/bin/python3"));
    command.arg(example("service.py")).args([&node.http, "0"]);
    follows(&common::start(command), &node);
}

#[test]
fn example_in_node_js_follows_a_set() {
    if !is_installed("node_modules") {
        return;
    }
    let mut command = program();
    command.args(common::SERVE_A).args(["--profile", "local", "--flagd-sync", "127.0.0.1:0"]);
    command.env("TIDINGS_SECRET", common::SECRET).current_dir(folder("example-node-js"));
    let (node, line) = common::start_and_say(command);
    import(&node);
    let mut command = Command::new("node");
    command.arg(example("service.cjs")).args([line.rsplit(':').next().unwrap().trim(), "0"]);
    command.env("NODE_PATH", sdks().join("node_modules"));
    follows(&common::start(command), &node);
}

#[test]
fn example_page_changes_by_itself() {
    if !is_installed("node_modules") {
        return;
    }
    let Some(chromium) = browser::program() else { return };
    // The page is served by the bundler, as its README says.
    let site = folder("example-page");
    for file in ["page.js", "page.html"] {
        std::fs::copy(example(file), site.join(file)).unwrap();
    }
    std::os::unix::fs::symlink(sdks().join("node_modules"), site.join("node_modules")).unwrap();
    // It says on its standard error where it serves.
    let line = "exec \"$0\" page.js --bundle --outdir=. --servedir=. --serve=127.0.0.1:0 2>&1";
    let mut command = Command::new("sh");
    command.args(["-c", line, "node_modules/.bin/esbuild"]).current_dir(&site);
    let server = common::start(command);
    let origin = server.http.trim_end_matches('/');
    let node = serve("a", &[], &["--ofrep-origin", origin]);
    import(&node);
    let page = Page::open(chromium, &site, &format!("{origin}/page.html?node={}", node.http));
    page.shows("said", "hello, ann@example.com: the new checkout");
    page.type_in("user", "bob@example.org");
    page.eval("document.getElementById('user').dispatchEvent(new Event('change'))");
    page.shows("said", "hello, bob@example.org: the old checkout");
    change(&node);
    page.shows("said", "good day, bob@example.org: the old checkout");
    assert_eq!(page.errors(), Vec::<String>::new());
}
