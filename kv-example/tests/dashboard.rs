//! Looking at keys, editing them and changing the voters in the dashboard, in a real browser.

mod common;

use common::browser::{self, Page, picture};
use common::{ask, conflict, entry, folder, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::eventually;

fn labels(page: &Page) -> Vec<String> {
    let labels = page.eval("order.map(item => (item.folder ? (item.isOpen ? '-' : '+') : '') + item.label)");
    labels.as_array().unwrap().iter().map(|label| label.as_str().unwrap().to_owned()).collect()
}

#[test]
fn keys_stand_in_a_tree_that_folds_and_counts() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    for key in ["app/web/port", "app/web/host", "app/pool", "lone/deep/only/one", "top", "x//y", "z/"] {
        a.line(&["put", key, "1"]);
    }
    let page = Page::open(chromium, &folder("tree"), &a.http);
    page.wait("order.length === 5");
    assert_eq!(labels(&page), ["+app/", "+lone/deep/only/", "+x//", "top", "z/"]);
    page.wait("[...document.querySelectorAll('.row.folder')].some(row => row.innerText.includes('app/') && row.innerText.includes('3 keys'))");

    // By keyboard: down to a folder, into it, out again.
    page.eval("document.getElementById('list').focus()");
    page.press("ArrowDown");
    page.press("ArrowRight");
    page.wait("order.length === 7");
    assert_eq!(labels(&page), ["-app/", "+web/", "pool", "+lone/deep/only/", "+x//", "top", "z/"]);
    page.press("ArrowRight");
    page.press("Enter");
    page.wait("order.length === 9");
    page.press("ArrowDown");
    page.shows("d-key", "app/web/host");
    page.wait("document.querySelector('.row.chosen')?.getAttribute('aria-level') === '3'");
    page.picture(&picture("tree"));
    page.press("ArrowLeft");
    page.press("ArrowLeft");
    page.wait("order.length === 7");

    // What comes and goes in a closed folder changes its count; an empty one is gone.
    a.line(&["put", "lone/deep/only/two", "2"]);
    a.line(&["del", "app/web/port"]);
    a.line(&["del", "app/web/host"]);
    page.wait("[...document.querySelectorAll('.row.folder')].some(row => row.innerText.includes('lone/') && row.innerText.includes('2 keys'))");
    page.wait("order.length === 6");
    assert_eq!(labels(&page), ["-app/", "pool", "+lone/deep/only/", "+x//", "top", "z/"]);

    // A key of a thousand parts is a row like any other.
    a.line(&["put", &"a/".repeat(500), "deep"]);
    page.wait("keys.size === 7");
    page.wait("order.length === 7");
    page.select("order", "key");
    page.wait("order.length === 7 && order[0].k?.length === 1000");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn values_are_edited_as_what_they_are() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let json = r#"{"b":1.0,"big":12345678901234567890,"b":"\u00e9{}","list":[],"deep":[{"x":null}]}"#;
    let values: [(&str, &[u8]); 5] = [
        ("json", json.as_bytes()),
        ("laid-out", b"{\n \"a\": 1\n}"),
        ("binary", &[0, 159, 146, 150]),
        ("line-ends", b"a\r\nb"),
        ("mixed-ends", b"a\r\nb\nc"),
    ];
    for (key, value) in values {
        assert!(a.run_with_input(&["put", key, "-"], value).status.success());
    }
    let page = Page::open(chromium, &folder("kinds"), &a.http);
    let save = || {
        page.click("d-put");
        page.wait("sheet.said.startsWith('written') && !sheet.isSending && !drafts.size");
    };
    let kind = || page.eval("document.getElementById('d-kind').value").as_str().unwrap().to_owned();

    // JSON is laid out for reading; only what a person changes is changed.
    page.choose("json");
    page.shows(
        "d-value",
        "{\n  \"b\": 1.0,\n  \"big\": 12345678901234567890,\n  \"b\": \"\\u00e9{}\",\n  \"list\": [],",
    );
    page.picture(&picture("json"));
    assert_eq!(page.eval("document.getElementById('d-put').disabled"), true, "nothing was changed");
    let changed = "{ \"b\": 2.0,\n\"big\": 12345678901234567890 ";
    page.type_in("d-value", changed);
    page.shows("faults", "Not JSON");
    page.picture(&picture("json-wrong"));
    page.eval("document.getElementById('detail').requestSubmit(); save()");
    assert_eq!(a.run(&["get", "json"]).stdout, json.as_bytes());
    page.type_in("d-value", &format!("{changed}}}"));
    page.wait("document.getElementById('faults').hidden");
    save();
    assert_eq!(a.line(&["get", "json"]), r#"{"b":2.0,"big":12345678901234567890}"#);

    page.choose("laid-out");
    page.type_in("d-value", "{\n \"a\": 2\n}");
    save();
    assert_eq!(a.run(&["get", "laid-out"]).stdout, b"{\n \"a\": 2\n}");

    // Bytes.
    page.choose("binary");
    assert_eq!(
        (kind(), page.eval("document.getElementById('d-value').value")),
        ("hex".into(), json!("00 9f 92 96"))
    );
    page.picture(&picture("binary"));
    page.select("d-kind", "text");
    page.shows("d-said", "no text");
    page.type_in("d-value", "00 9f 9");
    page.shows("faults", "Not hexadecimal");
    page.type_in("d-value", "00FF\n9f 0a");
    save();
    assert_eq!(a.run(&["get", "binary"]).stdout, [0, 255, 159, 10]);

    // Text keeps its line ends; where a field would change them it is edited as bytes.
    page.choose("line-ends");
    assert_eq!(kind(), "text");
    page.type_in("d-value", "a\nb\nc");
    save();
    assert_eq!(a.run(&["get", "line-ends"]).stdout, b"a\r\nb\r\nc");
    page.choose("mixed-ends");
    assert_eq!(kind(), "hex");
    page.select("d-kind", "text");
    page.shows("d-said", "no text");
    assert_eq!(kind(), "hex");

    // A new key: JSON as soon as it looks like it, unless a person says otherwise.
    page.click("fresh");
    page.type_in("d-key", "fresh/one");
    page.type_in("d-value", "{{name}}");
    page.shows("faults", "Not JSON");
    page.select("d-kind", "text");
    page.wait("document.getElementById('faults').hidden");
    save();
    assert_eq!(a.line(&["get", "fresh/one"]), "{{name}}");
    page.wait("labels = order.map(item => item.label), labels.includes('one')");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn edits_that_are_too_large_as_bytes_stay_text() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let text = "t".repeat(70_000);
    assert!(a.run_with_input(&["put", "large", "-"], text.as_bytes()).status.success());
    let page = Page::open(chromium, &folder("large"), &a.http);
    let field = || {
        let field =
            page.eval("[sheet.field.kind, document.getElementById('d-value').value.length, drafts.size]");
        field.as_array().unwrap().clone()
    };
    // What was not edited is shown as bytes, the first of them, and as text again.
    page.choose("large");
    page.select("d-kind", "hex");
    page.shows("faults", "Only the first");
    assert_eq!(field(), [json!("hex"), json!(65_536 * 3 - 1), json!(0)]);
    page.select("d-kind", "text");
    page.wait("document.getElementById('faults').hidden");
    assert_eq!(field(), [json!("text"), json!(70_000), json!(0)]);
    // What was edited stays.
    let edited = format!("{text}, and more");
    page.type_in("d-value", &edited);
    page.select("d-kind", "hex");
    page.shows("d-said", "can be edited as bytes");
    assert_eq!(field(), [json!("text"), json!(edited.len()), json!(1)]);
    page.click("d-put");
    page.wait("sheet.said.startsWith('written') && !sheet.isSending && !drafts.size");
    assert_eq!(a.line(&["get", "large"]), edited);
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn a_time_to_live_is_kept_unless_it_is_changed() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    a.line(&["put", "short", "soon", "--ttl", "1h"]);
    a.line(&["put", "bound", "here", "--ephemeral"]);
    let before = entry(&a, "short")["expires_ms"].as_u64().unwrap();
    let page = Page::open(chromium, &folder("ttl"), &a.http);
    let save = || {
        page.click("d-put");
        page.wait("sheet.said.startsWith('written') && !sheet.isSending && !drafts.size");
    };
    page.choose("short");
    page.shows("facts", "vanishes in 59 min");
    page.type_in("d-value", "sooner");
    save();
    let after = entry(&a, "short");
    assert_eq!(after["value"], "sooner");
    let kept = after["expires_ms"].as_u64().unwrap();
    assert!(kept.abs_diff(before) < 1_000, "{before} {kept}");

    // Written over what came in between, it still has the time to live that the form shows.
    page.type_in("d-value", "mine");
    a.line(&["put", "short", "theirs"]);
    page.shows("clash", "theirs");
    page.eval("[...document.querySelectorAll('#clash button')].find(one => one.textContent.startsWith('Put yours')).click()");
    page.wait("sheet.said.startsWith('written') && !sheet.isSending && !drafts.size");
    let after = entry(&a, "short");
    assert_eq!(after["value"], "mine");
    assert!(after["expires_ms"].as_u64().unwrap().abs_diff(before) < 1_000);

    page.select("d-life", "ttl");
    page.shows("faults", "a number and a unit");
    page.type_in("d-ttl", "2d");
    save();
    assert!(entry(&a, "short")["expires_ms"].as_u64().unwrap() > before + 3_600_000);
    page.select("d-life", "forever");
    save();
    assert_eq!(entry(&a, "short")["expires_ms"], Value::Null);
    assert_eq!(entry(&a, "short")["value"], "mine");

    page.choose("bound");
    page.wait("[...document.querySelectorAll('.row .flag')].some(flag => flag.innerText === 'with its node' && flag.scrollWidth <= flag.clientWidth)");
    page.type_in("d-value", "still here");
    page.picture(&picture("bound"));
    save();
    assert_eq!(entry(&a, "bound")["ephemeral"], true);
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn unsaved_edits_survive_other_keys_and_events() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    for key in ["one", "two"] {
        a.line(&["put", key, "first"]);
    }
    let page = Page::open(chromium, &folder("drafts"), &a.http);
    page.choose("one");
    page.type_in("d-value", "typed");
    page.choose("two");
    page.shows("d-value", "first");
    page.shows("drafts", "1 unsaved edit");
    a.line(&["put", "three", "a change of the list"]);
    page.wait("keys.has('three')");
    page.press("Escape");
    page.click("drafts");
    page.shows("d-value", "typed");
    page.wait("document.querySelector('.row.chosen.draft')?.dataset.key === 'one'");
    assert_eq!(page.eval("document.getElementById('clash').hidden"), true);

    // All is told anew, and another key is chosen: a draft of a key that is deleted meanwhile is still there.
    page.choose("two");
    page.eval("reload('t'), 0");
    page.wait("!keys.has('one') && keys.has('two')");
    page.eval("reload(''), 0");
    page.wait("keys.has('one')");
    a.line(&["put", "one", "second"]);
    page.choose("one");
    page.shows("clash", "The key was changed while it is edited here.");
    page.shows("clash", "second");
    page.shows("d-value", "typed");
    a.line(&["del", "one"]);
    page.shows("clash", "nothing. It was deleted by a");
    page.picture(&picture("draft"));
    assert_eq!(a.run(&["get", "one"]).status.code(), Some(1));
    page.eval("[...document.querySelectorAll('#clash button')].find(one => one.textContent.startsWith('Put yours')).click()");
    eventually("it is put", || a.run(&["get", "one"]).stdout == b"typed");
    page.wait("document.getElementById('drafts').hidden && document.getElementById('clash').hidden");

    // Edits are given up only by a word.
    page.type_in("d-value", "more");
    page.click("d-discard");
    page.wait("!drafts.size && document.getElementById('d-value').value === 'typed'");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn the_last_write_is_undone_while_it_stands() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    a.line(&["put", "short", "soon", "--ttl", "1h"]);
    let before = entry(&a, "short")["expires_ms"].as_u64().unwrap();
    let page = Page::open(chromium, &folder("undo"), &a.http);
    let change = |text: &str| {
        page.type_in("d-value", text);
        page.click("d-put");
        page.wait("sheet.said.startsWith('written') && !sheet.isSending && !drafts.size");
    };
    page.choose("short");
    change("changed");
    page.shows("undo-bar", "short was written");
    page.picture(&picture("undo"));
    page.click("undo");
    page.shows("undo-bar", "short is as before");
    assert_eq!(entry(&a, "short")["value"], "soon");
    page.shows("d-value", "soon");

    // A deleted key comes back with its time to live.
    page.click("d-delete");
    page.wait("document.getElementById('sure').open");
    page.click("sure-yes");
    page.shows("undo-bar", "short was deleted");
    page.shows("facts", "It was deleted by a");
    assert_eq!(a.run(&["get", "short"]).status.code(), Some(1));
    page.click("undo");
    page.shows("undo-bar", "short is as before");
    let back = entry(&a, "short");
    assert_eq!(back["value"], "soon");
    assert!(back["expires_ms"].as_u64().unwrap().abs_diff(before) < 1_000);

    // A new key is gone again.
    page.click("fresh");
    page.type_in("d-key", "new");
    change("value");
    page.click("undo");
    page.shows("undo-bar", "new is as before");
    assert_eq!(a.run(&["get", "new"]).status.code(), Some(1));

    // Not over a later write.
    page.choose("short");
    change("mine");
    a.line(&["put", "short", "theirs"]);
    page.click("undo");
    page.shows("undo-bar", "was changed after that; nothing was undone");
    assert_eq!(a.line(&["get", "short"]), "theirs");

    // What lived with the process of another node is not bound to this one.
    let b = serve("b", &[&a.addr], &[]);
    eventually("b is ready", || ask("GET", &format!("{}/readyz", b.http), &[], b"").status == 200);
    b.line(&["put", "bound", "there", "--ephemeral"]);
    eventually("it has arrived", || a.run(&["get", "bound"]).status.success());
    page.choose("bound");
    page.click("d-delete");
    page.wait("document.getElementById('sure').open");
    page.click("sure-yes");
    page.shows("undo-bar", "bound was deleted");
    page.click("undo");
    page.shows("undo-bar", "bound to the process of b");
    assert_eq!(a.run(&["get", "bound"]).status.code(), Some(1));
    assert_eq!(page.errors(), Vec::<String>::new());
}

/// Counts how often the page asks for a check.
const COUNT_CHECKS: &str = "(() => { const real = call; window.checks = 0;
    call = (method, path, ...more) => { checks += path.startsWith('/v1/check/'); return real(method, path, ...more); };
  })()";

#[test]
fn a_schema_is_checked_while_typing_and_on_saving() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    a.line(&["put", "app/web", r#"{"port":"none"}"#]);
    a.line(&["put", "app/$schema", r#"{"properties":{"port":{"type":"integer"}}}"#]);
    let page = Page::open(chromium, &folder("schema"), &a.http);
    page.eval(COUNT_CHECKS);
    page.choose("app/web");
    page.type_in("d-value", r#"{"port":"no"}"#);
    page.shows("faults", "/port");
    page.shows("faults", "app/$schema");
    page.picture(&picture("schema"));
    page.click("d-put");
    page.shows("d-said", "does not satisfy the schema \"app/$schema\"; nothing was written");
    assert_eq!(a.line(&["get", "app/web"]), r#"{"port":"none"}"#);
    page.eval("checks = 0");
    page.type_in("d-value", r#"{"port":80}"#);
    page.wait("checks === 1 && document.getElementById('faults').hidden");
    page.click("d-put");
    eventually("it is written", || a.line(&["get", "app/web"]) == r#"{"port":80}"#);
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn one_of_two_versions_is_kept_and_none_unseen_is_replaced() {
    let Some(chromium) = browser::program() else { return };
    let [a, b] = conflict("app/theme", ["{\"dark\":true}", "{\"dark\":false}"]);
    let page = Page::open(chromium, &folder("keep"), &a.http);
    page.wait("keys.get('app/theme')?.c?.length === 1");
    page.wait("[...document.querySelectorAll('.row.folder')].some(row => row.innerText.includes('app/') && row.innerText.includes('⚠ 1'))");
    page.choose("app/theme");
    page.wait("document.querySelectorAll('.version').length === 2");
    let loser = entry(&a, "app/theme")["conflicts"][0].clone();
    let (value, writer) = (loser["value"].as_str().unwrap(), loser["writer"].as_str().unwrap());
    page.shows("versions", writer);
    page.picture(&picture("versions"));
    page.resize(390, 1_700);
    page.picture(&picture("versions-phone"));
    page.resize(1_280, 900);
    let keep = "document.querySelectorAll('.version button')[1].click()";

    // The key changes, and the page is not told: the button refers to what is shown, and does nothing to what is not.
    page.eval("window.real = told.keys; told.keys = () => {}");
    b.line(&["put", "app/theme", "unseen", "--wait", "all", "--timeout", "60s"]);
    page.eval(keep);
    page.shows("d-said", "Nothing was written");
    page.wait("document.getElementById('versions').hidden");
    assert_eq!(a.line(&["get", "app/theme"]), "unseen");

    // Another conflict, and this time it is as shown.
    page.eval("told.keys = real");
    drop((page, a, b));
    let [a, b] = conflict("app/theme", ["{\"dark\":true}", "{\"dark\":false}"]);
    let page = Page::open(chromium, &folder("keep-2"), &a.http);
    page.choose("app/theme");
    page.wait("document.querySelectorAll('.version').length === 2");
    let loser = entry(&a, "app/theme")["conflicts"][0]["value"].clone();
    page.eval(keep);
    page.shows("d-said", "kept what");
    page.wait("document.getElementById('versions').hidden");
    for node in [&a, &b] {
        eventually("the kept value is there alone", || {
            let now = entry(node, "app/theme");
            now["value"] == loser && now["conflicts"].as_array().is_some_and(Vec::is_empty)
        });
    }
    assert!(!value.is_empty());
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn voters_are_shown_and_changed_with_a_confirmation() {
    let Some(chromium) = browser::program() else { return };
    let folder = folder("voters");
    let start = |name: &str, seeds: &[&str]| {
        let data = folder.join(name);
        serve(name, seeds, &["--voter", "a,b,c", "--data-dir", data.to_str().unwrap()])
    };
    let a = start("a", &[]);
    let [b, mut c, d] = ["b", "c", "d"].map(|name| start(name, &[&a.addr]));
    let page = Page::open(chromium, &folder, &a.http);
    page.shows("voters", "3 of 3 answer: a majority");
    page.wait("status.members.filter(one => one.state === 'alive').length === 4");

    // Choose d in place of c; the list says so before anything is done.
    page.click("vote-open");
    page.wait("document.getElementById('vote').open");
    assert_eq!(page.eval("document.getElementById('vote-yes').disabled"), true, "nothing is changed yet");
    for name in ["c", "d"] {
        page.eval(&format!("document.querySelector('#vote-names input[value={name}]').click()"));
    }
    page.shows("vote-diff", "Adds d. Removes c.");
    page.picture(&picture("vote"));
    page.click("vote-yes");
    page.shows("vote-said", "Done: the voters are a, b, d.");
    assert_eq!(b.line(&["voters"]), "a, b, d");
    page.wait("document.getElementById('voters-note').textContent === 'changed'");

    // Half way through a change, and alone, as a node would tell of itself.
    let told = page.eval(
        "(() => { const real = status;
           status = { ...real, readiness: 'alone', voters: { epoch: 3, voters: ['a', 'b', 'd'], next: ['a', 'c', 'x'] } };
           showVoters(); const text = document.getElementById('voters').innerText; status = real; showVoters(); return text; })()",
    );
    let told = told.as_str().unwrap();
    for words in [
        "being changed",
        "A change is in progress: 3 of 3 answer, of the next ones 2 of 3.",
        "This node is alone",
        "until the change is done",
        "joins",
        "no member of this name",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }

    // Names that are no members are refused by the node, in its own words.
    page.type_in("vote-more", "nobody at all");
    page.click("vote-yes");
    page.wait("document.getElementById('vote-said').textContent.includes(';') && !voting");
    assert_eq!(b.line(&["voters"]), "a, b, d");
    page.click("vote-no");

    // Two of three are lost. By force, and only with the cluster's name.
    drop((b, d));
    page.shows("voters-text", "1 of 3 answer: no majority");
    page.picture(&picture("voters-lost"));
    page.click("vote-open");
    for name in ["b", "c", "d"] {
        page.eval(&format!("document.querySelector('#vote-names input[value={name}]')?.click()"));
    }
    page.click("vote-force");
    page.shows("vote-forcing", "two leaders are possible");
    page.shows("vote-forcing", "no lease for ten ninths of lease_time_max, which is 1s now");
    page.picture(&picture("vote-force"));
    page.resize(390, 900);
    page.picture(&picture("vote-force-phone"));
    page.resize(1_280, 900);
    assert_eq!(page.eval("document.getElementById('vote-yes').disabled"), true);
    let cluster = page.eval("status.cluster").as_str().unwrap().to_owned();
    page.type_in("vote-confirm", &cluster);
    page.click("vote-yes");
    page.shows("vote-said", "Done: the voters are a, c. They grant no lease for ten ninths of 1s.");
    page.click("vote-no");
    page.shows("voters-text", "2 of 2 answer");

    // A member that is forgotten is still told of, for a while.
    c.process.child.kill().unwrap();
    page.wait("status.members.find(one => one.name === 'c')?.state === 'down'");
    page.eval("[...document.querySelectorAll('#people button')].find(one => one.getAttribute('aria-label') === 'Forget c').click()");
    page.shows("sure", "Forget c on all nodes?");
    page.click("sure-yes");
    page.wait("[...document.querySelectorAll('#people tr')].some(row => row.innerText.includes('c') && row.innerText.includes('forgotten'))");
    page.shows("voters", "forgotten");
    page.picture(&picture("forgotten"));
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn shared_settings_are_shown_changed_and_rolled_back() {
    let Some(chromium) = browser::program() else { return };
    let folder = folder("dashboard-settings");
    let [token, read_token] = ["token", "read-token"].map(|name| folder.join(name));
    let texts = ["kJ8vQ2xW5zR7tB4nM6pL9sD3fG", "hY7uT5rE3wQ9aZ2xC4vB6nM8kL"];
    common::private_file(&token, texts[0]);
    common::private_file(&read_token, texts[1]);
    let start = |name: &str, seeds: &[&str]| {
        let data = folder.join(name);
        let files =
            ["--token-file", token.to_str().unwrap(), "--read-token-file", read_token.to_str().unwrap()];
        serve(name, seeds, &[&["--voter", "a,b", "--data-dir", data.to_str().unwrap()], &files[..]].concat())
    };
    let a = start("a", &[]);
    let b = start("b", &[&a.addr]);
    let of_b = || b.run(&["settings", "--json", "--token-file", token.to_str().unwrap()]);
    let present = |field: &str| {
        let shown: serde_json::Value = serde_json::from_slice(&of_b().stdout).unwrap();
        shown["present"][field].clone()
    };
    let page = Page::open(chromium, &folder, &a.http);
    let give = |text: &str| {
        page.wait("document.getElementById('ask').open");
        page.type_in("token", text);
        page.eval("document.querySelector('#ask .primary').click()");
    };
    give(texts[0]);
    page.wait("status && status.members.filter(one => one.state === 'alive').length === 2");
    let type_in = |field: &str, value: &str| {
        page.eval(&format!(
            "(() => {{ const input = document.querySelector('#set-now tr[data-name={field}] input');
               input.value = '{value}'; input.dispatchEvent(new Event('input')); }})()"
        ))
    };
    let confirm = |words: &str| {
        page.wait("document.getElementById('sure').open");
        page.shows("sure-what", words);
        page.click("sure-yes");
    };

    page.click("set-open");
    page.shows("set-who", "nobody has changed them");
    assert_eq!(page.eval("document.getElementById('set-yes').disabled"), true, "nothing is changed yet");
    type_in("mesh_members_max", "50");
    type_in("lease_time_max", "2s");
    page.shows("set-diff", "Changes lease_time_max from 1s to 2s, mesh_members_max from 30 to 50.");
    page.click("set-yes");
    // A dialog that is cancelled changes nothing.
    page.wait("document.getElementById('sure').open");
    page.click("sure-no");
    page.click("set-yes");
    confirm("Change the settings of all nodes?");
    page.shows("set-said", "Done.");
    eventually("b has them", || present("mesh_members_max") == 50 && present("lease_time_max") == "2s");
    page.shows("set-who", "by a.");
    page.shows("set-diff", "Nothing changes.");

    // What the node refuses is told in its own words.
    type_in("clock_skew_max", "soon");
    page.click("set-yes");
    confirm("Change the settings of all nodes?");
    page.shows("set-said", "clock_skew_max");
    type_in("clock_skew_max", "");
    page.shows("set-earlier-words", "1 earlier state");
    page.eval("document.getElementById('set-earlier').open = true");
    page.resize(1280, 800);
    page.picture(&picture("settings"));
    page.resize(390, 844);
    page.picture(&picture("settings-phone"));
    page.resize(1280, 800);

    page.click("set-back");
    confirm("Put the settings before back in force?");
    page.shows("set-said", "Done.");
    eventually("b is back", || present("mesh_members_max") == 30 && present("lease_time_max") == "1s");
    page.shows("set-past", "by a");

    // The token that only reads shows all of it and changes nothing.
    page.eval(&format!("sessionStorage.setItem('tidings-token', '{}'); token = '{0}'", texts[1]));
    type_in("mesh_members_max", "40");
    page.click("set-yes");
    confirm("Change the settings of all nodes?");
    page.shows("set-said", "for reading alone");
    assert_eq!(present("mesh_members_max"), 30);
    assert_eq!(page.errors(), Vec::<String>::new());
}
