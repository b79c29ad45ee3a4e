//! The dashboard in a real browser. Pictures for people are left in the build's folder, under `pictures`.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::browser::{self, Page, picture};
use common::{program, serve, start};
use tidings_proptest::processes::{eventually, signal};

fn text_has(text: &str) -> String {
    format!("document.body.innerText.includes({})", serde_json::json!(text))
}

#[test]
fn the_page_shows_keys_and_nodes_and_is_used_by_keyboard() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let mut b = serve("b", &[&a.addr], &[]);
    let page = Page::open(chromium, &common::folder("page"), &a.http);
    page.wait("document.getElementById('line').textContent === 'live'");

    // A key put through the command line, on the other node.
    b.line(&["put", "greeting", "hello from b", "--wait", "all", "--timeout", "60s"]);
    page.wait("[...document.querySelectorAll('.row')].some(row => row.innerText.includes('hello from b') && row.innerText.includes('b'))");
    a.line(&["put", "limits/max", "100"]);
    page.wait("keys.size >= 2");

    // Search, choose, change, by keyboard alone.
    page.press("/");
    page.wait("document.activeElement.id === 'search'");
    page.write("greet");
    page.wait("order.length === 1 && document.querySelector('.row mark')?.textContent === 'greet'");
    page.eval("document.activeElement.blur(); document.getElementById('list').focus()");
    page.press("ArrowDown");
    page.wait("document.getElementById('d-value').value === 'hello from b'");
    page.press("Enter");
    page.wait("document.activeElement.id === 'd-value'");
    page.eval("document.activeElement.select()");
    page.write("changed in the page");
    page.press("Tab");
    page.wait("document.activeElement.id === 'd-put'");
    page.press("Enter");
    eventually("the other node has it", || b.run(&["get", "greeting"]).stdout == b"changed in the page");
    page.press("Escape");
    page.wait("document.getElementById('detail').hidden");

    // A node goes down.
    page.wait("document.querySelector('#map .node[data-name=b]').classList.contains('alive')");
    b.process.child.kill().unwrap();
    page.wait("document.querySelector('#map .node[data-name=b]').classList.contains('down')");
    page.wait(&format!("{} && {}", text_has("b is down"), text_has("no link")));
    page.picture(&picture("down"));

    let foreign = "performance.getEntriesByType('resource').filter(one => !one.name.startsWith(location.origin)).length";
    assert_eq!(page.eval(foreign), 0, "the page asks nobody else");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn survivor_of_an_outage_says_that_it_is_alone() {
    let folder = common::folder("survivor");
    let dir = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let a = serve("a", &[], &["--data-dir", &dir("a")]);
    let mut b = serve("b", &[&a.addr], &["--data-dir", &dir("b")]);
    a.line(&["put", "k", "v", "--wait", "all", "--timeout", "60s"]);
    eventually("b has caught up", || b.run(&["get", "k"]).stdout == b"v");
    // What it holds is on its own disk as well.
    b.line(&["put", "l", "w", "--durable"]);
    // Both are lost, and one comes back. It ends in order, so that the other one is among the members on its disk.
    let seed = a.addr.clone();
    drop(a);
    signal(b.pid(), "TERM");
    assert!(b.process.child.wait().unwrap().success());
    let log = folder.join("log");
    let mut command = program();
    command.args([
        "serve",
        "--name",
        "b",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--seed",
        &seed,
    ]);
    command.args(["--profile", "local", "--alone-after", "1s", "--data-dir", &dir("b")]);
    command.env("TIDINGS_SECRET", common::SECRET).stderr(std::fs::File::create(&log).unwrap());
    let b = start(command);
    eventually("it is ready", || common::ask("GET", &format!("{}/readyz", b.http), &[], b"").status == 200);
    let said = b.line(&["status"]);
    assert!(said.contains("ready, without having reached another node since its start"), "{said}");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("no other node could be reached; this one is ready with what its disk holds"),
        "{said}"
    );
    assert_eq!(b.line(&["get", "k"]), "v");
    let Some(chromium) = browser::program() else { return };
    let page = Page::open(chromium, &folder, &b.http);
    page.wait(&text_has("alone: ready with what it holds, no other node reached since its start"));
    // The control: once it has reached another one, it says so no more.
    let _c = serve("c", &[&b.addr], &[]);
    page.wait(&format!("!{}", text_has("alone: ready with")));
    assert!(!b.line(&["status"]).contains("without having reached"));
}

#[test]
fn an_open_page_writes_nothing() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let b = serve("b", &[&a.addr], &[]);
    b.line(&["put", "k", "v", "--wait", "all", "--timeout", "60s"]);
    let store = || {
        let status: serde_json::Value = serde_json::from_str(&a.line(&["status", "--json"])).unwrap();
        let store = &status["store"];
        (store["head"].clone(), store["root"].clone(), store["entries"].clone())
    };
    eventually("they hold the same", || a.run(&["digest", &b.http]).status.success());
    let before = store();
    let page = Page::open(chromium, &common::folder("reader"), &a.http);
    page.wait("keys.has('k')");
    page.eval("choose('k')");
    page.wait("sheet.isRead");
    // Ten readings are five seconds of an open page.
    page.wait("samples.length >= 10 && samples.some(one => one.rtt_us > 0)");
    page.wait(&text_has("round trip: median peer"));
    assert_eq!(store(), before);
    assert_eq!(a.line(&["list", "--keys-only"]), "k");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn a_changed_key_is_not_overwritten_unseen() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let page = Page::open(chromium, &common::folder("conflict"), &a.http);
    a.line(&["put", "short", "soon", "--ttl", "1h"]);
    a.line(&["put", "k", "first"]);
    page.wait("keys.has('k') && keys.has('short')");
    let type_in = |text: &str| {
        page.eval("document.getElementById('d-value').focus(); document.getElementById('d-value').select()");
        page.write(text);
    };
    let click = |id: &str| page.eval(&format!("document.getElementById('{id}').click()"));
    let answer = |text: &str| {
        page.eval(&format!(
            "[...document.querySelectorAll('#clash button')].find(one => one.textContent.includes('{text}')).click()"
        ))
    };
    let opened = |key: &str| {
        page.eval(&format!("choose('{key}')"));
        page.wait(&format!("chosen === '{key}' && sheet.isRead"));
    };
    let clash = "!document.getElementById('clash').hidden";

    // What was typed as a time to live for one key is not for another.
    opened("short");
    page.eval("typed(one => { one.life = 'ttl'; one.ttl = '1s'; })");
    opened("k");
    assert_eq!(page.eval("document.getElementById('d-ttl').value"), "");

    // Changed elsewhere while it is edited here: both values are shown.
    type_in("mine");
    a.line(&["put", "k", "theirs"]);
    click("d-put");
    page.wait(clash);
    page.wait("['mine', 'theirs'].every(text => document.getElementById('clash').innerText.includes(text))");
    page.picture(&picture("edit-conflict"));
    page.resize(390, 1_900);
    page.picture(&picture("edit-conflict-phone"));
    page.resize(1_280, 900);
    assert_eq!(a.line(&["get", "k"]), "theirs");
    answer("Put yours");
    eventually("it is put after all", || a.line(&["get", "k"]) == "mine");
    page.wait("document.getElementById('d-said').textContent.startsWith('written')");

    // A key that is new here and not in the cluster.
    click("fresh");
    a.line(&["put", "other", "there"]);
    page.eval("document.getElementById('d-key').focus()");
    page.write("other");
    type_in("mine");
    click("d-put");
    page.wait(clash);
    assert_eq!(a.line(&["get", "other"]), "there");
    answer("Take what is there");
    page.wait(
        "document.getElementById('d-value').value === 'there' && document.getElementById('clash').hidden",
    );

    // A delete names its key, asks, and has the same condition.
    opened("k");
    click("d-delete");
    page.wait(
        "document.getElementById('sure').open && document.getElementById('sure').innerText.includes('k')",
    );
    page.picture(&picture("delete"));
    a.line(&["put", "k", "newer"]);
    click("sure-no");
    assert_eq!(a.line(&["get", "k"]), "newer");
    page.wait("document.getElementById('d-value').value === 'newer'");
    click("d-delete");
    // Written after the page has read it: the form is told nothing of it, as on a slow line.
    page.eval("told.keys = () => {}");
    a.line(&["put", "k", "newest"]);
    click("sure-yes");
    page.wait(clash);
    assert_eq!(a.line(&["get", "k"]), "newest");
    answer("Delete it");
    eventually("it is deleted", || a.run(&["get", "k"]).status.code() == Some(1));
    assert_eq!(page.errors(), Vec::<String>::new());
}

/// Passes bytes on between a browser and a node, until it is told to break everything.
struct Wire {
    http: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn new(http: &str) -> Self {
        let node = http.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let open = Arc::new(Mutex::new(Vec::new()));
        let kept = open.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&node) else { continue };
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    kept.lock().unwrap().push(from.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let mut bytes = [0; 4_096];
                        while let Ok(read @ 1..) = from.read(&mut bytes) {
                            if to.write_all(&bytes[..read]).is_err() {
                                break;
                            }
                        }
                        _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { http: own, open }
    }

    fn break_all(&self) {
        self.open.lock().unwrap().drain(..).for_each(|stream| _ = stream.shutdown(Shutdown::Both));
    }
}

#[test]
fn page_resumes_after_a_break_and_resets_after_a_restart() {
    let Some(chromium) = browser::program() else { return };
    let folder = common::folder("resume");
    let a = serve("a", &[], &[]);
    a.line(&["put", "first", "1"]);
    let wire = Wire::new(&a.http);
    let page = Page::open(chromium, &folder, &wire.http);
    page.wait("keys.has('first')");
    // The page keeps what it has: a reset would lose this mark.
    page.eval("keys.get('first').mark = 'kept'");
    wire.break_all();
    a.line(&["put", "second", "2"]);
    a.line(&["put", "third", "3"]);
    a.line(&["del", "third"]);
    page.wait(
        "keys.has('second') && !keys.has('third') && document.getElementById('line').textContent === 'live'",
    );
    assert_eq!(page.eval("keys.get('first').mark"), "kept");
    drop(page);

    // The same address, another run: nothing of the old one is left.
    let http = a.http.trim_start_matches("http://").to_owned();
    let page = Page::open(chromium, &folder, &a.http);
    page.wait("keys.has('second')");
    drop(a);
    page.wait(&text_has("out of reach"));
    let mut command = program();
    command.args(["serve", "--name", "a", "--listen", "127.0.0.1:0", "--http", &http, "--log", "off"]);
    let a = start({
        command.env("TIDINGS_SECRET", common::SECRET);
        command
    });
    a.line(&["put", "new", "4"]);
    page.wait(
        "keys.has('new') && !keys.has('second') && document.getElementById('line').textContent === 'live'",
    );
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn demo_page_cuts_and_heals_and_scrolls_ten_thousand_keys() {
    let Some(chromium) = browser::program() else { return };
    let mut command = program();
    command.args(["demo", "--port", "18180", "--keys", "10000"]);
    let demo = start(command);
    let page = Page::open(chromium, &common::folder("demo"), &demo.http);
    page.wait("keys.size > 10000 && document.querySelectorAll('#map .node.alive').length === 5");
    page.wait("samples.length > 0");
    page.prefer("light");
    page.picture(&picture("light"));
    page.prefer("dark");
    page.picture(&picture("dark"));
    page.resize(390, 1_800);
    page.picture(&picture("narrow"));
    page.resize(1_280, 800);
    page.picture(&picture("desktop"));
    page.resize(1_440, 900);
    page.prefer("light");

    // Folders with ten thousand keys are opened, and told of a key.
    let unfolded = page.eval(
        "(() => { const at = performance.now(); keys.forEach((row, key) => reveal(key)); showKeys(); return performance.now() - at; })()",
    );
    println!("folders with 10,000 keys are opened in {unfolded} ms");
    assert!(page.eval("order.length").as_u64().unwrap() > 10_000);
    let told = page.eval(
        "(() => { const at = performance.now(); takeRow({ k: 'catalogue/00/new', v: '', w: 'n1', t: 0 }, 1e6); showKeys(); return performance.now() - at; })()",
    );
    println!("a new key in one of them is shown in {told} ms");
    page.eval("dropRow('catalogue/00/new', {})");

    // Scrolled through and searched, it holds no more rows than fit.
    let frames = page.eval(
        "new Promise(done => { const times = []; let last = performance.now(); const list = document.getElementById('list');
           const step = at => { times.push(at - last); last = at; list.scrollTop += 700; times.length < 90 ? requestAnimationFrame(step) : done(times.slice(1).sort((a, b) => a - b)); };
           requestAnimationFrame(step); })",
    );
    let frames: Vec<f64> = frames.as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect();
    println!(
        "frames while scrolling through 10,000 keys: median {:.1} ms, 95 % {:.1} ms, worst {:.1} ms",
        frames[frames.len() / 2],
        frames[frames.len() * 95 / 100],
        frames[frames.len() - 1]
    );
    assert!(page.eval("document.querySelectorAll('.row').length").as_u64().unwrap() < 100);
    let searched = page.eval("(() => { const at = performance.now(); document.getElementById('search').value = 'item-0099'; document.getElementById('search').dispatchEvent(new Event('input')); showKeys(); return performance.now() - at; })()");
    println!("a search in 10,000 keys: {searched} ms");
    page.wait("order.length === 100");
    page.picture(&picture("search"));
    page.eval("document.getElementById('search').value = ''; document.getElementById('search').dispatchEvent(new Event('input'))");

    let click =
        "[...document.querySelectorAll('#people button')].find(one => one.getAttribute('aria-label') === ";
    page.eval(&format!("{click}'Cut off n3').click()"));
    page.wait("document.querySelector('#map .node[data-name=n3]').classList.contains('down')");
    page.wait("status.links.every(link => link.from !== 'n3' && link.to !== 'n3')");
    page.picture(&picture("cut"));
    page.eval(&format!("{click}'Heal n3').click()"));
    page.wait("document.querySelector('#map .node[data-name=n3]').classList.contains('alive')");
    page.wait("keys.get('config/theme')?.c?.length === 1");
    page.eval("document.getElementById('only').click(); choose('config/theme')");
    page.wait("!document.getElementById('versions').hidden");
    page.picture(&picture("conflict"));

    // Fifty members, as a larger cluster would tell of itself.
    let drawn = page.eval(
        "(() => { const own = status.members.find(one => one.self), real = told.status; told.status = () => {};
           const member = i => ({ ...own, name: 'node-' + i, run: 'run' + i, self: false, state: i % 17 ? 'alive' : 'down' });
           const members = [own, ...Array.from({ length: 49 }, (_, i) => member(i + 2))];
           const link = to => ({ from: own.name, to, rtt_us: 800, lag_changes: to.endsWith('5') ? 12 : 0, lag_bytes: 900 });
           const links = members.slice(1).filter(one => one.state === 'alive').map(one => link(one.name));
           const peers = links.map(one => ({ ...one, name: one.to }));
           const news = { ...status, members, links, peers, locals: [], demo: undefined, now_ms: now() };
           const at = performance.now(); real(news); showStatus(); return performance.now() - at; })()",
    );
    println!("fifty members are drawn in {drawn} ms");
    assert_eq!(page.eval("document.querySelectorAll('#map .node').length"), 50);
    page.eval("new Promise(done => requestAnimationFrame(done))");
    page.picture(&picture("fifty"));
    assert_eq!(page.errors(), Vec::<String>::new());
}
