//! A real browser, driven through its own debugging protocol over a pair of pipes: no driver, no port, no socket.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use tidings_proptest::nodes::GUARD;

/// The names under which distributions install it.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FLAGS: &str = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage \
                     --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars";

/// One page of a browser of its own.
pub struct Page {
    child: Child,
    pipes: RefCell<Pipes>,
    session: String,
}

struct Pipes {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    number: u64,
    /// What went wrong in the page.
    errors: Vec<String>,
}

/// The browser's program. On a machine that tests for others it has to be there.
pub fn program() -> Option<&'static str> {
    let is_there = |name: &&str| {
        let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    let found = PROGRAMS.into_iter().find(is_there);
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI needs a Chromium");
    if found.is_none() {
        eprintln!("\n*** SKIPPED: no Chromium is installed; the dashboard is NOT tested ***\n");
    }
    found
}

/// Where a picture for people goes.
pub fn picture(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}.png"))
}

impl Page {
    pub fn open(program: &str, folder: &Path, url: &str) -> Self {
        let profile = folder.join("profile");
        // The browser reads commands from file 3 and answers to file 4, each ended by a zero byte.
        let line = format!(
            "exec {program} {FLAGS} --remote-debugging-pipe --user-data-dir='{}' about:blank 3<&0 4>&1 \
             </dev/null >/dev/null 2>&1",
            profile.display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipes = Pipes {
            to: child.stdin.take().unwrap(),
            from: BufReader::new(child.stdout.take().unwrap()),
            number: 0,
            errors: Vec::new(),
        };
        let mut page = Self { child, pipes: RefCell::new(pipes), session: String::new() };
        let target = page.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = page.call("Target.attachToTarget", &attach);
        attached["sessionId"].as_str().unwrap().clone_into(&mut page.session);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            page.call(domain, &json!({}));
        }
        page.resize(1_440, 900);
        page.call("Page.navigate", &json!({ "url": url }));
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'");
        page
    }

    fn call(&self, method: &str, params: &Value) -> Value {
        let mut pipes = self.pipes.borrow_mut();
        pipes.number += 1;
        let number = pipes.number;
        let mut command = json!({ "id": number, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        pipes.to.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let mut bytes = Vec::new();
            pipes.from.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser has ended");
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    let details = &message["params"]["exceptionDetails"];
                    pipes.errors.push(format!("{} {}", details["text"], details["exception"]["description"]));
                }
                Some("Log.entryAdded") if message["params"]["entry"]["source"] == "security" => {
                    pipes.errors.push(message["params"]["entry"]["text"].to_string());
                }
                _ => {}
            }
            if message["id"] == number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// What an expression gives in the page.
    pub fn eval(&self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let reply = self.call("Runtime.evaluate", &params);
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {reply}");
        reply["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    pub fn wait(&self, expression: &str) {
        let started = Instant::now();
        while self.eval(expression) != true {
            if started.elapsed() > GUARD {
                let text = self.eval("document.body.innerText");
                panic!("not so: {expression}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key, as a person does.
    pub fn press(&self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "ArrowDown" => 40,
            "ArrowUp" => 38,
            "End" => 35,
            "Tab" => 9,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { text };
        let down = json!({ "type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code });
        self.call("Input.dispatchKeyEvent", &down);
        self.call(
            "Input.dispatchKeyEvent",
            &json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code }),
        );
    }

    pub fn click(&self, id: &str) {
        self.eval(&format!("document.getElementById('{id}').click()"));
    }

    /// Replaces what stands in a field, as a person types it.
    pub fn type_in(&self, id: &str, text: &str) {
        self.eval(&format!(
            "document.getElementById('{id}').focus(); document.getElementById('{id}').select()"
        ));
        self.write(text);
    }

    /// Chooses one of a list.
    pub fn select(&self, id: &str, value: &str) {
        self.eval(&format!(
            "(() => {{ const list = document.getElementById('{id}'); list.value = '{value}'; list.dispatchEvent(new Event('change')); }})()"
        ));
    }

    /// Opens a key, and waits until it was read.
    pub fn choose(&self, key: &str) {
        let key = json!(key);
        self.wait(&format!("keys.has({key})"));
        self.eval(&format!("choose({key})"));
        self.wait(&format!("sheet?.key === {key} && sheet.isRead"));
    }

    /// Waits until an element shows this text.
    pub fn shows(&self, id: &str, text: &str) {
        self.wait(&format!(
            "document.getElementById('{id}').checkVisibility() && (document.getElementById('{id}').value || \
             document.getElementById('{id}').innerText).includes({})",
            json!(text)
        ));
    }

    pub fn write(&self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// As the system's own setting would.
    pub fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// Keeps a picture for people to look at.
    pub fn picture(&self, path: &Path) {
        let data = self.call("Page.captureScreenshot", &json!({ "format": "png" }));
        let bytes = base64::prelude::BASE64_STANDARD.decode(data["data"].as_str().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// What went wrong in the page so far.
    pub fn errors(&self) -> Vec<String> {
        self.eval("1");
        self.pipes.borrow().errors.clone()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
