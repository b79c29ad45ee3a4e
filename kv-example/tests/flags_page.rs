//! The dashboard's page for feature flags, in a real browser.

mod common;

use common::browser::{self, Page, picture};
use common::{Running, ask, conflict, entry, folder, program, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::eventually;

const CHECKOUT: &str = r#"{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"off",
    "targeting":{"if":[{"ends_with":[{"var":"email"},"@example.com"]},"on"]},
    "metadata":{"big":9007199254740993,"one":1.0}}"#;

fn put(node: &Running, key: &str, value: &str) {
    // Some are malformed.
    let reply = ask("PUT", &format!("{}/v1/kv/{key}?force=true", node.http), &[], value.as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.json());
}

fn definition(node: &Running, flag: &str) -> Value {
    ask("GET", &format!("{}/v1/kv/flags/default/{flag}", node.http), &[], b"").json()
}

/// The page of the flags, with the one of this name open.
fn open(chromium: &str, name: &str, node: &Running, flag: &str) -> Page {
    let page = Page::open(chromium, &folder(name), &format!("{}/#flags/default/{flag}", node.http));
    if !flag.is_empty() {
        page.wait(&format!("flagNow?.flag === {} && flagPast !== null", json!(flag)));
    }
    page
}

fn row(flag: &str, part: &str) -> String {
    format!("document.querySelector('#flags tr[data-flag=\"{flag}\"] {part}')")
}

#[test]
fn flag_is_switched_rolled_out_and_brought_back() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    put(&a, "flags/default/checkout", CHECKOUT);
    put(&a, "flags/default/other", CHECKOUT);
    let page = open(chromium, "flags-change", &a, "checkout");
    page.type_in("f-by", "ann");
    page.type_in("f-note", "it is late");
    page.eval("document.getElementById('f-by').dispatchEvent(new Event('change'))");
    page.eval(&format!("{}.click()", row("checkout", ".switch")));
    page.shows("f-said", "checkout was disabled");
    eventually("it is disabled", || definition(&a, "checkout")["state"] == "DISABLED");
    assert_eq!(
        definition(&a, "checkout")["metadata"]["big"],
        9_007_199_254_740_993_u64,
        "all else is as it was"
    );
    page.wait(&format!("{}.getAttribute('aria-checked') === 'false'", row("checkout", ".switch")));
    page.eval("document.getElementById('flag-earlier').open = true");
    page.shows("flag-past", "ann");
    page.shows("flag-past", "it is late");
    page.click("f-undo");
    page.shows("f-said", "checkout is as before");
    page.wait("flagNow.state === 'ENABLED'");

    // The share grows where the rule ends; the condition before it stays.
    page.type_in("roll-percent", "25");
    page.shows("roll-words", "25 % more get it");
    page.click("roll-set");
    page.wait("flagNow.shares[0]?.percent === 25");
    let share = json!({ "fractional": [["on", 25], ["off", 75]] });
    let rule = json!({ "if": [{ "ends_with": [{ "var": "email" }, "@example.com"] }, "on", share] });
    assert_eq!(definition(&a, "checkout")["targeting"], rule);
    page.eval("(range => { range.value = 40; range.dispatchEvent(new Event('input')); })(document.getElementById('roll-range'))");
    page.shows("roll-words", "15 % more get it");
    page.click("roll-set");
    page.wait("flagNow.shares[0]?.percent === 40");
    page.select("flag-default", "on");
    page.wait("flagNow.defaultVariant === 'on'");
    page.shows("flag-past", "default off → on");
    page.picture(&picture("flags"));

    // An earlier version comes back as it was.
    page.eval("[...document.querySelectorAll('#flag-past button')].find(one => one.closest('li').innerText.includes('it is late')).click()");
    page.wait("flagNow.state === 'DISABLED' && !flagNow.shares.length && flagNow.defaultVariant === 'off'");
    let as_put = json!({ "big": 9_007_199_254_740_993_u64, "one": 1.0 });
    assert_eq!(definition(&a, "checkout")["metadata"], as_put, "numbers are not rounded");

    // What somebody else has changed meanwhile is not replaced.
    page.eval("window.real = loadFlags; loadFlags = async () => {}; flagsBusy = true; 0");
    put(&a, "flags/default/checkout", r#"{"state":"ENABLED","variants":{"on":true},"defaultVariant":"on"}"#);
    page.eval("toggleFlag('checkout')");
    page.shows("f-said", "Nothing was written");
    assert_eq!(definition(&a, "checkout")["defaultVariant"], "on");
    page.eval("loadFlags = real; flagsBusy = false; flagsSoon(0)");
    page.wait("flagNow.defaultVariant === 'on'");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn evaluations_arrive_while_the_page_is_open() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    put(&a, "flags/default/checkout", CHECKOUT);
    put(&a, "flags/other/limit", r#"{"state":"ENABLED","variants":{"low":10},"defaultVariant":"low"}"#);
    let page = open(chromium, "flags-counts", &a, "checkout");
    page.shows("flag-counted", "last evaluated: never");
    put(&a, "flags-usage/node/x", r#"{"default/checkout":{"on":1243,"off":3720,"":3}}"#);
    page.shows("flag-variants", "1,243");
    page.shows("flag-variants", "the program’s default");
    page.wait(&format!("{}.innerText.includes('4,966')", row("checkout", ".asked")));
    put(&a, "flags-usage/node/y", r#"{"default/checkout":{"on":1}}"#);
    page.shows("flag-variants", "1,244");

    // The search asks the node; another set is another list.
    page.type_in("f-search", "nothing");
    page.shows("f-empty", "No flag of this set has such a name");
    page.type_in("f-search", "CHECK");
    page.wait("document.querySelectorAll('#flags tbody tr').length === 1");
    page.select("f-set", "other");
    page.type_in("f-search", "lim");
    page.wait(&format!("!!{}", row("limit", ".open")));
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn flags_are_evaluated_as_a_user_would_be_served() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    put(&a, "flags/default/checkout", CHECKOUT);
    put(&a, "flags/default/theme", r#"{"state":"DISABLED","variants":{"dark":{"bg":"black"}}}"#);
    let page = open(chromium, "flags-trial", &a, "checkout");
    page.shows("try-one", "false");
    page.shows("try-asks", "email");
    page.type_in("try-key", "user-17");
    page.type_in("try-more", r#"{"email": "ann@example.com""#);
    page.shows("try-fault", "Not JSON");
    page.type_in("try-more", r#"{"email": "ann@example.com"}"#);
    page.shows("try-one", "checkout gives true variant on; the rule chose it.");
    page.eval("document.getElementById('try-all').open = true");
    page.shows("try-all", "it is disabled");
    page.picture(&picture("flags-trial"));
    page.type_in("try-more", "[1]");
    page.shows("try-fault", "a JSON object");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn hostile_names_and_values_of_flags_stay_text() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    let evil = "<img src=x onerror=\\\"window.hit=1\\\"><script>window.hit=1</script>";
    let name = "%3Cimg%20src=x%20onerror=%22window.hit=1%22%3E%22'%5D";
    put(
        &a,
        &format!("flags/default/{name}"),
        &format!(
            r#"{{"state":"ENABLED","variants":{{"{evil}":"{evil}","b":"{evil}"}},"defaultVariant":"{evil}","targeting":{{"if":[{{"==":[{{"var":"{evil}"}},"{evil}"]}},"{evil}"]}},"metadata":{{"{evil}":"{evil}"}}}}"#
        ),
    );
    put(&a, "flags/%3Cb%3Eset/x", "{}");
    put(
        &a,
        "flags/default/bad",
        &format!(r#"{{"state":"ENABLED","variants":{{"on":1}},"targeting":{{"{evil}":1}}}}"#),
    );
    put(
        &a,
        &format!("flags-history/default/{name}"),
        &format!(
            r#"[{{"time":"{evil}","by":"{evil}","note":"{evil}","definition":{{"state":"{evil}","variants":{{}},"defaultVariant":"{evil}"}}}},{{"time":"","by":"","note":"","definition":{{}}}}]"#
        ),
    );
    put(&a, &format!("flags-usage/day/default/{name}"), &format!("\"{evil}\""));
    put(
        &a,
        "flags-usage/node/a",
        &format!(r#"{{"default/<img src=x onerror=\"window.hit=1\">\"']":{{"{evil}":7}}}}"#),
    );
    put(
        &a,
        &format!("flags-plans/default/{name}"),
        &format!(
            r#"{{"id":"","by":"{evil}","note":"{evil}","steps":[{{"wait_ms":0,"edit":{{"rollout":{{"variant":"{evil}","percent":5.0}}}}}}],"state":"paused","done":0,"next_ms":0,"base":{{}},"stop_if":"{evil}","on_stop":"hold","reason":"{evil}","token":""}}"#
        ),
    );
    put(&a, "flags-plans/default/bad", r#"{"state":"constructor","steps":[null],"by":[]}"#);
    let page = open(chromium, "flags-evil", &a, "");
    page.wait("document.querySelectorAll('#flags tbody tr').length === 2");
    page.eval("document.querySelector('#flags tbody tr .open').click()");
    page.wait("flagNow && flagPast && document.querySelectorAll('#flag-past li').length > 1");
    page.shows("flag-plan-words", "paused");
    page.eval("for (const one of document.querySelectorAll('#flags-page details')) one.open = true");
    page.shows("try-all", "window.hit");
    page.picture(&picture("flags-evil"));
    assert_eq!(page.eval("document.querySelectorAll('#flags-page :is(img, script, b)').length"), 0);
    page.eval("location.hash = '#flags/default/bad'");
    page.shows("flag-bad", "malformed");
    page.shows("flag-bad", "Programs give their own default");
    page.shows("flag-plan-words", "another version");
    assert_eq!(page.eval("window.hit === undefined"), true);
    assert_eq!(page.errors(), Vec::<String>::new());
    // What the test looks for is found where it is.
    let planted = "document.getElementById('flag-facts').innerHTML = '<b>x</b>', \
                   document.querySelectorAll('#flags-page :is(img, script, b)').length";
    // In one step: the page draws itself anew.
    assert_eq!(page.eval(planted), 1);
}

#[test]
fn malformed_flag_shows_why_and_is_mended_in_the_editor() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    put(&a, "flags/default/checkout", CHECKOUT);
    let page = open(chromium, "flags-mend", &a, "checkout");
    page.shows("try-one", "false");
    put(&a, "flags/default/checkout", r#"{"state":"NEITHER","variants":{"on":true}}"#);
    page.shows("flag-bad", "its state is neither ENABLED nor DISABLED");
    page.shows("flag-bad", "The last good one is in force here");
    page.eval("document.getElementById('flag-editing').open = true");
    page.wait("flagEdit !== null && document.getElementById('flag-text').value.includes('NEITHER')");
    page.type_in("flag-text", r#"{"state":"ENABLED","variants":{"#);
    page.shows("flag-faults", "Not JSON");
    page.type_in("flag-text", r#"{"state":"ENABLED","variants":{},"defaultVariant":"x"}"#);
    page.click("flag-save");
    page.shows("flag-faults", "variants");
    assert_eq!(definition(&a, "checkout")["state"], "NEITHER");

    // What is typed stays while another flag is looked at.
    page.eval("location.hash = '#flags/default/none'");
    page.shows("flag-gone", "no such flag");
    page.eval("history.back()");
    page.shows("flag-text", "\"defaultVariant\":\"x\"");
    page.type_in("flag-text", r#"{"state":"ENABLED","variants":{"on":true},"defaultVariant":"on"}"#);
    page.click("flag-save");
    page.wait("document.getElementById('flag-bad').hidden && flagNow.state === 'ENABLED'");

    // A new flag, and its end.
    page.click("f-new");
    page.type_in("flag-new-name", "fresh/one");
    page.click("flag-save");
    page.wait("flagNow?.flag === 'fresh/one'");
    assert_eq!(entry(&a, "flags/default/fresh%2Fone")["bytes"].as_u64().map(|bytes| bytes > 10), Some(true));
    page.eval("document.getElementById('flag-editing').open = true");
    page.click("flag-delete");
    page.wait("document.getElementById('sure').open");
    page.click("sure-yes");
    page.shows("flag-gone", "no such flag");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn text_that_is_typed_while_a_flag_is_saved_stays() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    for flag in ["one", "two"] {
        put(&a, &format!("flags/default/{flag}"), CHECKOUT);
    }
    let page = open(chromium, "flags-slow", &a, "one");
    let with = |default: &str| {
        format!(r#"{{"state":"ENABLED","variants":{{"on":true,"off":false}},"defaultVariant":"{default}"}}"#)
    };
    let edit = |text: &str| {
        page.eval("document.getElementById('flag-editing').open = true");
        page.wait("flagEdit !== null && !document.getElementById('flag-text').readOnly");
        page.type_in("flag-text", text);
    };
    // Replies to saved definitions wait until the page is told.
    page.eval(
        "window.real = call; call = async (method, path, ...more) => { \
        const reply = await real(method, path, ...more); \
        if (method === 'PUT') await new Promise(go => window.go = go); return reply; }; 0",
    );
    let answer = || {
        page.wait("!!window.go");
        page.eval("flagSays(''); window.go(); window.go = null; 0");
        page.shows("f-said", "was ");
    };
    edit(&with("on"));
    page.click("flag-save");
    page.wait("!!window.go");
    page.eval("location.hash = '#flags/default/two'");
    page.wait("flagNow?.flag === 'two'");
    edit("two, half");
    answer();
    page.shows("flag-text", "two, half");
    assert_eq!(definition(&a, "one")["defaultVariant"], "on");
    // What was saved is no draft any more.
    page.eval("location.hash = '#flags/default/one'");
    page.wait("flagNow?.flag === 'one' && !flagEdit && [...flagDrafts.keys()].join() === 'default/two'");

    // In the flag itself: it is an edit of what was written.
    edit(&with("off"));
    page.click("flag-save");
    page.wait("!!window.go");
    page.type_in("flag-text", &with("on"));
    answer();
    page.shows("flag-text", r#""defaultVariant":"on""#);
    page.click("flag-save");
    answer();
    page.wait("flagEdit === null");
    assert_eq!(definition(&a, "one")["defaultVariant"], "on");

    // A new flag that is typed on while it is made.
    page.click("f-new");
    page.type_in("flag-new-name", "three");
    page.type_in("flag-text", &with("off"));
    page.click("flag-save");
    page.wait("!!window.go");
    page.type_in("flag-text", &with("on"));
    page.eval("window.go(); window.go = null; 0");
    page.wait("flagNow?.flag === 'three' && flagEdit?.stamp === flagNow.stamp");
    page.shows("flag-text", r#""defaultVariant":"on""#);
    assert_eq!(definition(&a, "three")["defaultVariant"], "off");
    assert_eq!(page.eval("[...flagDrafts.keys()].join()"), "default/two");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn flag_whose_variants_are_a_text_does_not_stop_the_page() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    put(&a, "flags/default/bad", r#"{"state":"ENABLED","variants":"on,off"}"#);
    put(&a, "flags-usage/node/x", r#"{"default/bad":{"on":7}}"#);
    let page = open(chromium, "flags-text", &a, "bad");
    page.shows("flag-bad", "malformed");
    page.shows("flag-variants", "not in this definition");
    page.shows("flag-counted", "Counted on all nodes");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn one_of_two_versions_of_a_flag_is_kept() {
    let Some(chromium) = browser::program() else { return };
    let off = r#"{"state":"DISABLED","variants":{"on":true},"defaultVariant":"on"}"#;
    let [a, b] = conflict("flags/default/checkout", [&off.replace("DISABLED", "ENABLED"), off]);
    let page = open(chromium, "flags-conflict", &a, "checkout");
    page.wait("document.querySelectorAll('#flag-versions .version').length === 2");
    page.wait(&format!("{}.innerText.includes('conflict')", row("checkout", ".marks")));
    page.picture(&picture("flags-conflict"));
    let loser = entry(&a, "flags/default/checkout")["conflicts"][0]["value"].as_str().unwrap().to_owned();
    let loser: Value = serde_json::from_str(&loser).unwrap();
    page.eval("document.querySelectorAll('#flag-versions .version button')[1].click()");
    page.shows("f-said", "wrote it");
    page.wait("document.getElementById('flag-versions').hidden && !flagNow.conflict");
    for node in [&a, &b] {
        eventually("the kept version is there alone", || {
            definition(node, "checkout") == loser
                && entry(node, "flags/default/checkout")["conflicts"] == json!([])
        });
    }
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn read_token_sees_flags_and_changes_nothing() {
    let Some(chromium) = browser::program() else { return };
    let folder = folder("flags-read");
    let token = |name: &str| {
        let path = folder.join(name).to_str().unwrap().to_owned();
        assert!(program().args(["secret", "--out", &path]).status().unwrap().success());
        let token = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        (path, token)
    };
    let ((full_file, full), (read_file, read)) = (token("full"), token("read"));
    let a = serve("a", &[], &["--token-file", &full_file, "--read-token-file", &read_file]);
    let bearer = format!("Bearer {full}");
    let url = format!("{}/v1/kv/flags/default/checkout", a.http);
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(ask("PUT", &url, &headers, CHECKOUT.as_bytes()).status, 200);
    let page = Page::open(chromium, &folder, &format!("{}/#flags/default/checkout", a.http));
    page.wait("document.getElementById('ask').open");
    page.type_in("token", &read);
    page.eval("document.getElementById('ask').close()");
    page.shows("flags-note", "read only");
    page.wait("flagNow?.flag === 'checkout'");
    page.shows("try-one", "false");
    let open = "[...document.querySelectorAll('#flags .switch, #f-new, #flag-state, #flag-default, #roll-set, #plan-form, #plan-start, #flag-save, #flag-delete')].filter(one => !one.matches(':disabled')).map(one => one.id)";
    assert_eq!(page.eval(open), json!([]));
    // Also where the page would ask for it.
    page.eval("toggleFlag('checkout')");
    page.shows("f-said", "this token is for reading alone");
    let stored = ask("GET", &url, &headers, b"").json();
    assert_eq!(stored["state"], "ENABLED");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn plan_of_a_flag_is_shown_paused_and_cancelled() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &["--voter", "a", "--data-dir", folder("flags-plan-data").to_str().unwrap()]);
    put(&a, "flags/default/checkout", CHECKOUT);
    let plan = json!({ "steps": [
        { "wait_ms": 3_600_000, "edit": { "rollout": { "variant": "on", "percent": 5 } } },
        { "wait_ms": 3_600_000, "edit": { "rollout": { "variant": "on", "percent": 100 } } },
    ], "stop_if": "rate(errors)>5" });
    let headers = [("content-type", "application/json")];
    let url = format!("{}/v1/flags/default/checkout/plan?by=ann", a.http);
    let made = ask("PUT", &url, &headers, plan.to_string().as_bytes());
    assert_eq!(made.status, 200, "{}", made.json());
    let page = open(chromium, "flags-plan", &a, "checkout");
    page.shows("flag-plan-words", "Plan running: 0 of 2 steps done. Next: on for 5 % in 59 min");
    page.shows("flag-plan-words", "Stops if rate(errors) > 5 on any node");
    let act = |name: &str| {
        page.eval(&format!(
            "document.querySelector('#flag-plan-acts [aria-label=\"{name} the plan\"]').click()"
        ))
    };
    act("Pause");
    page.shows("flag-plan-words", "Plan paused");
    page.wait(&format!("{}.innerText.includes('plan paused')", row("checkout", ".marks")));
    act("Resume");
    page.shows("flag-plan-words", "Plan running");
    act("Cancel");
    page.shows("flag-plan-words", "Plan cancelled");
    page.wait("document.getElementById('flag-plan-acts').children.length === 0");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn plan_is_made_on_the_page_and_rolled_back() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &["--voter", "a"]);
    put(&a, "flags/default/checkout", CHECKOUT);
    put(&a, "flags-metrics/errors/app-1", "1000000");
    let page = open(chromium, "flags-plan-new", &a, "checkout");
    page.type_in("f-by", "ann");
    page.eval("document.getElementById('plan-new').open = true");
    let step = |at: usize, part: usize, value: &str| {
        page.eval(&format!(
            "(() => {{ const field = document.querySelectorAll('#plan-steps li')[{at}].querySelectorAll('input, select')[{part}]; \
             field.value = '{value}'; field.dispatchEvent(new Event('input')); }})()"
        ));
    };
    let is_startable = || page.eval("!document.getElementById('plan-start').disabled");
    assert_eq!(is_startable(), true);
    step(0, 0, "101");
    page.shows("plan-hint", "0 to 100 %");
    assert_eq!(is_startable(), false);
    step(0, 0, "12.5");
    step(1, 1, "2");
    step(1, 2, "h");
    page.eval("document.querySelectorAll('#plan-steps button')[2].click()");
    page.click("plan-add");
    page.wait("document.querySelectorAll('#plan-steps li').length === 3");
    assert_eq!(page.eval("planSteps().map(step => step.edit.rollout.percent)"), json!([12.5, 25, 50]));
    page.select("plan-then", "roll-back");
    assert_eq!(page.eval("document.getElementById('plan-missing').disabled"), true, "there is no metric");
    page.type_in("plan-stop", "rate(errors > 5");
    page.click("plan-missing");
    page.click("plan-start");
    page.shows("plan-fault", "wrong at character 12: \")\" is missing");
    page.type_in("plan-stop", "rate(errors) > 5");
    for (width, height, name) in [(1_280, 800, "plan-desktop"), (390, 844, "plan-phone")] {
        page.resize(width, height);
        page.eval("document.getElementById('plan-new').scrollIntoView()");
        page.wait("new Promise(done => requestAnimationFrame(() => done(document.documentElement.scrollWidth <= innerWidth)))");
        page.picture(&picture(name));
    }
    page.resize(1_280, 800);
    page.click("plan-start");
    page.shows("f-said", "The plan of checkout was started");
    page.shows(
        "flag-plan-words",
        "Stops if rate(errors) > 5 on any node or it is missing; everything is taken back then. By ann",
    );
    page.wait("document.getElementById('plan-new').hidden");
    let plan =
        || ask("GET", &format!("{}/v1/flags/default/checkout/plan", a.http), &[], b"").json()["plan"].clone();
    let waits: Vec<_> =
        plan()["steps"].as_array().unwrap().iter().map(|step| step["wait_ms"].clone()).collect();
    assert_eq!((json!(waits), &plan()["on_stop"]), (json!([0, 7_200_000, 600_000]), &json!("roll-back")));
    assert_eq!(plan()["stop_if_missing"], true);
    page.shows("flag-plan-words", "1 of 3 steps done");
    eventually("the first step is taken", || {
        definition(&a, "checkout")["targeting"].to_string().contains("12500")
    });
    page.picture(&picture("plan-running"));
    page.eval("document.querySelector('#flag-plan-acts [aria-label=\"Roll back the plan\"]').click()");
    page.wait("document.getElementById('sure').open");
    page.click("sure-yes");
    page.shows("flag-plan-words", "Plan rolled back");
    let before: Value = serde_json::from_str(CHECKOUT).unwrap();
    eventually("the flag is as before", || definition(&a, "checkout") == before);

    // At a time, and without steps.
    page.eval("document.getElementById('plan-new').open = true");
    page.select("plan-what", "disable");
    page.wait("document.getElementById('plan-rollout').hidden");
    page.eval(
        "document.getElementById('plan-at').value = new Date(Date.now() + 864e5).toISOString().slice(0, 16)",
    );
    page.click("plan-start");
    page.shows("flag-plan-words", "0 of 1 step done. Next: disable in ");
    assert!(plan()["next_ms"].as_u64() > Some(0));
    page.eval("document.querySelector('#flag-plan-acts [aria-label=\"Cancel the plan\"]').click()");
    page.shows("flag-plan-words", "Plan cancelled");
    assert_eq!(definition(&a, "checkout")["state"], "ENABLED");
    assert_eq!(page.errors(), Vec::<String>::new());
}

#[test]
fn page_of_flags_works_by_keyboard_and_on_a_phone() {
    let Some(chromium) = browser::program() else { return };
    let a = serve("a", &[], &[]);
    for flag in ["checkout", "search", "a-very-long-name-of-a-flag.that-nobody-should-have-chosen"] {
        put(&a, &format!("flags/default/{flag}"), CHECKOUT);
    }
    let page = open(chromium, "flags-keys", &a, "");
    page.wait("document.querySelectorAll('#flags tbody tr').length === 3");
    page.eval("document.activeElement.blur()");
    page.press("/");
    page.wait("document.activeElement.id === 'f-search'");
    page.eval(&format!("{}.focus()", row("checkout", ".open")));
    page.press("ArrowDown");
    page.wait(&format!("document.activeElement === {}", row("search", ".open")));
    page.press("Enter");
    page.wait("flagNow?.flag === 'search' && document.activeElement.id === 'flag-name'");
    page.press("Escape");
    page.wait(&format!("flagName === '' && document.activeElement === {}", row("search", ".open")));
    // Every control has a name that a screen reader can say.
    let nameless = "[...document.querySelectorAll('#flags-page :is(button, input, select, textarea)')].filter(one => \
        !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length)).map(one => one.outerHTML)";
    page.eval("location.hash = '#flags/default/checkout'");
    page.wait("flagNow?.flag === 'checkout'");
    assert_eq!(page.eval(nameless), json!([]));
    for (width, height, name) in [(375, 812, "flags-phone"), (1_280, 800, "flags-desktop")] {
        page.resize(width, height);
        page.wait("new Promise(done => requestAnimationFrame(() => done(document.documentElement.scrollWidth <= innerWidth)))");
        for scheme in ["light", "dark"] {
            page.prefer(scheme);
            page.picture(&picture(&format!("{name}-{scheme}")));
        }
    }
    page.eval("location.hash = '#store'");
    page.wait(
        "!document.getElementById('store-page').hidden && document.getElementById('flags-page').hidden",
    );
    assert_eq!(page.errors(), Vec::<String>::new());
}
