//! The Remote Evaluation Protocol of `OpenFeature` as any client sees it.

mod common;

use common::{Reply, Running, ask, folder, private_file, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::eventually;

const ONE: &str = "/ofrep/v1/evaluate/flags/";
const ALL: &str = "/ofrep/v1/evaluate/flags";

/// On for one user, and for nobody else.
const FOR_ANN: &str = r#"{"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
    "targeting": {"if": [{"==": [{"var": "targetingKey"}, "ann"]}, "on"]}, "metadata": {"owner": "shop"}}"#;

fn put(node: &Running, key: &str, value: &str) {
    // Some are malformed.
    node.line(&["put", key, value, "--force", "--wait", "all", "--timeout", "60s"]);
}

/// A node that has these flags in force.
fn with_flags(flags: &[(&str, &str)]) -> Running {
    let node = serve("a", &[], &[]);
    flags.iter().for_each(|(name, value)| put(&node, &format!("flags/{name}"), value));
    eventually("all are in force", || {
        flags.iter().all(|(name, _)| {
            let (set, flag) = name.split_once('/').unwrap();
            let selector = [("flagd-selector", set)];
            flag.starts_with('$') || one(&node, flag, &selector, &json!({})).status != 404
        })
    });
    node
}

fn one(node: &Running, flag: &str, headers: &[(&str, &str)], context: &Value) -> Reply {
    let body = json!({ "context": context }).to_string();
    ask("POST", &format!("{}{ONE}{flag}", node.http), headers, body.as_bytes())
}

fn all(node: &Running, headers: &[(&str, &str)], context: &Value) -> Reply {
    let body = json!({ "context": context }).to_string();
    ask("POST", &format!("{}{ALL}", node.http), headers, body.as_bytes())
}

fn etag(reply: &Reply) -> String {
    reply.header("etag").unwrap().to_owned()
}

#[test]
fn one_flag_is_answered_as_the_protocol_says() {
    let node = with_flags(&[
        ("default/for-ann", FOR_ANN),
        (
            "default/plain",
            r#"{"state": "ENABLED", "variants": {"x": {"b": 1, "a": [1.5]}}, "defaultVariant": "x"}"#,
        ),
        ("default/none", r#"{"state": "ENABLED", "variants": {"x": 1}, "defaultVariant": null}"#),
        ("default/disabled", r#"{"state": "DISABLED", "variants": {"x": 1}, "defaultVariant": "x"}"#),
        (
            "default/failing",
            r#"{"state": "ENABLED", "variants": {"x": 1}, "targeting": {"cat": ["no", "ne"]}}"#,
        ),
        ("default/bad", r#"{"state": "ENABLED"}"#),
        ("mobile/plain", r#"{"state": "ENABLED", "variants": {"y": 2}, "defaultVariant": "y"}"#),
    ]);
    let answer = |flag: &str, context: Value| {
        let reply = one(&node, flag, &[], &context);
        (reply.status, reply.json())
    };
    let on = json!({"key": "for-ann", "value": true, "reason": "TARGETING_MATCH", "variant": "on", "metadata": {"owner": "shop"}});
    assert_eq!(answer("for-ann", json!({"targetingKey": "ann"})), (200, on));
    let off = json!({"key": "for-ann", "value": false, "reason": "DEFAULT", "variant": "off", "metadata": {"owner": "shop"}});
    for nobody in [json!({}), json!(null), json!({"targetingKey": null})] {
        assert_eq!(answer("for-ann", nobody), (200, off.clone()));
    }
    let plain = json!({"key": "plain", "value": {"a": [1.5], "b": 1}, "reason": "STATIC", "variant": "x"});
    assert_eq!(answer("plain", json!({})), (200, plain));
    // The program's default counts: there is no value, and the field of the variant is there all the same.
    assert_eq!(answer("none", json!({})), (200, json!({"key": "none", "reason": "DEFAULT", "variant": ""})));
    assert_eq!(
        answer("disabled", json!({})),
        (200, json!({"key": "disabled", "reason": "DISABLED", "variant": ""}))
    );
    for (flag, status, code) in
        [("unheard-of", 404, "FLAG_NOT_FOUND"), ("bad", 400, "PARSE_ERROR"), ("failing", 500, "GENERAL")]
    {
        let (told, answer) = answer(flag, json!({}));
        assert_eq!((told, &answer["key"], &answer["errorCode"]), (status, &json!(flag), &json!(code)));
        assert!(answer["errorDetails"].as_str().is_some_and(|text| text.contains(flag)), "{answer}");
    }
    // The set: by a header, or else by the query.
    for (headers, query) in [
        (vec![("flagd-selector", "mobile")], ""),
        (vec![("flagd-selector", "flagSetId=mobile")], "?set=default"),
        (vec![], "?set=mobile"),
    ] {
        assert_eq!(one(&node, &format!("plain{query}"), &headers, &json!({})).json()["value"], 2);
    }
    let wrong = one(&node, "plain", &[("flagd-selector", "source=a.json")], &json!({}));
    assert_eq!((wrong.status, &wrong.json()["errorCode"]), (400, &json!("GENERAL")));
}

#[test]
fn contexts_that_cannot_be_used_are_refused() {
    let node = with_flags(&[("default/for-ann", FOR_ANN)]);
    let deep = format!(r#"{{"context": {{"a": {}{}}}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let large = format!(r#"{{"context": {{"a": "{}"}}}}"#, "x".repeat(1 << 20));
    for body in [
        "{",
        "[]",
        r#"{"context": 1}"#,
        r#"{"context": []}"#,
        r#"{"context": {"targetingKey": 5}}"#,
        &deep,
        &large,
    ] {
        for path in [ALL, "/ofrep/v1/evaluate/flags/for-ann"] {
            let reply = ask("POST", &format!("{}{path}", node.http), &[], body.as_bytes());
            let shown = &body[..body.len().min(40)];
            assert_eq!(
                (reply.status, &reply.json()["errorCode"]),
                (400, &json!("INVALID_CONTEXT")),
                "{path} {shown}"
            );
        }
    }
    // A question without a body is about nobody; fields of later versions do no harm.
    for body in ["", "{}", r#"{"context": {"targetingKey": "bob"}, "later": 1}"#] {
        let reply = ask("POST", &format!("{}{ONE}for-ann", node.http), &[], body.as_bytes());
        assert_eq!((reply.status, &reply.json()["value"]), (200, &json!(false)), "{body}");
    }
}

#[test]
fn all_flags_have_one_etag_on_all_nodes_for_each_user() {
    let a = serve("a", &[], &[]);
    let b = serve("b", &[&a.addr], &[]);
    put(&a, "flags/default/for-ann", FOR_ANN);
    put(&a, "flags/default/bad", r#"{"state": "ENABLED"}"#);
    put(&a, "flags/default/$metadata", r#"{"version": "v12"}"#);
    let whole = |node: &Running| all(node, &[], &json!({"targetingKey": "ann"}));
    eventually("both have it all", || {
        whole(&a).body == whole(&b).body && whole(&a).json()["metadata"]["version"] == "v12"
    });
    let (ann, bob) = (json!({"targetingKey": "ann"}), json!({"targetingKey": "bob"}));
    let answer = all(&a, &[], &ann);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let keys: Vec<_> = body["flags"].as_array().unwrap().iter().map(|flag| flag["key"].clone()).collect();
    assert_eq!(keys, ["bad", "for-ann"]);
    assert_eq!(
        (&body["flags"][0]["errorCode"], &body["flags"][1]["value"]),
        (&json!("PARSE_ERROR"), &json!(true))
    );
    let stream = json!([{"type": "sse", "endpoint": {"requestUri": "/ofrep/v1/events?set=default"}, "inactivityDelaySec": 120}]);
    assert_eq!(body["eventStreams"], stream);

    let (for_ann, for_bob) = (etag(&answer), etag(&all(&a, &[], &bob)));
    assert_ne!(for_ann, for_bob, "it covers the context");
    for node in [&a, &b] {
        // Twice: evaluated, and by what is known of the question.
        for _ in 0..2 {
            let same = all(node, &[("if-none-match", &for_ann)], &ann);
            assert_eq!((same.status, same.body.len(), etag(&same)), (304, 0, for_ann.clone()));
            // One user's digest is of no use to another.
            let other = all(node, &[("if-none-match", &for_ann)], &bob);
            assert_eq!((other.status, etag(&other)), (200, for_bob.clone()));
            assert_eq!(other.json()["flags"][1]["value"], false);
            let listed = format!("\"x\", W/{for_bob}");
            assert_eq!(all(node, &[("if-none-match", &listed)], &bob).status, 304);
            // Nor is that of one set to another.
            let headers = [("if-none-match", for_ann.as_str()), ("flagd-selector", "mobile")];
            assert_eq!(all(node, &headers, &ann).status, 200);
        }
    }
    put(&a, "flags/default/new", r#"{"state": "ENABLED", "variants": {"x": 1}, "defaultVariant": "x"}"#);
    for node in [&a, &b] {
        let changed = || all(node, &[("if-none-match", &for_ann)], &ann);
        eventually("it has changed", || changed().status == 200);
        assert_eq!(changed().json()["flags"][2]["key"], "new");
    }
}

#[test]
fn an_answer_that_depends_on_the_time_does_not_stay() {
    let node = with_flags(&[(
        "default/plain",
        r#"{"state": "ENABLED", "variants": {"x": 1}, "defaultVariant": "x"}"#,
    )]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let rule = json!({"if": [{">=": [{"var": "$flagd.timestamp"}, now + 4]}, "late"]});
    let flag = json!({"state": "ENABLED", "variants": {"early": 1, "late": 2}, "defaultVariant": "early", "targeting": rule});
    put(&node, "flags/default/timed", &flag.to_string());
    eventually("it is in force", || one(&node, "timed", &[], &json!({})).status == 200);
    let mut known = etag(&all(&node, &[], &json!({})));
    let mut values = Vec::new();
    eventually("the time has come", || {
        let reply = all(&node, &[("if-none-match", &known)], &json!({}));
        if reply.status == 200 {
            known = etag(&reply);
            values.push(reply.json()["flags"][1]["value"].clone());
        }
        values.last() == Some(&json!(2))
    });
    assert!(values.len() <= 2, "{values:?}");
}

#[test]
fn a_malformed_flag_that_goes_makes_another_answer() {
    let node = with_flags(&[("default/for-ann", FOR_ANN), ("default/bad", r#"{"state": "ENABLED"}"#)]);
    let first = all(&node, &[], &json!({}));
    let known = etag(&first);
    let again = || all(&node, &[("if-none-match", &known)], &json!({}));
    assert_eq!(again().status, 304);
    node.line(&["del", "flags/default/bad"]);
    eventually("the answer is another one", || again().status == 200);
    assert_eq!(again().json()["flags"].as_array().map(Vec::len), Some(1));
}

/// Flags of one set, in one step.
fn put_set(node: &Running, set: &str, flags: impl Iterator<Item = (String, Value)>) {
    let put = |(flag, value): (String, Value)| json!({"put": format!("flags/{set}/{flag}"), "value": value.to_string()});
    let body = json!({ "writes": flags.map(put).collect::<Vec<_>>() }).to_string();
    let headers = [("content-type", "application/json")];
    let reply = ask("POST", &format!("{}/v1/batch", node.http), &headers, body.as_bytes());
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

/// `BULK_TIME_MAX` (2 s), `TURN_TIME_MAX` (1 s), and as many turns as processors.
#[test]
fn sets_that_take_too_long_are_given_up_one_by_one() {
    const FLAGS: usize = 2_000;
    let node = with_flags(&[("default/for-ann", FOR_ANN)]);
    // Nearly the most steps that one evaluation may have; no processor takes that many of all flags in 2 s.
    let falses = json!({"or": vec![false; 1_000]});
    let shared = json!({"thousand": falses, "million": {"or": vec![json!({"$ref": "thousand"}); 1_000]}});
    let slow = json!({"state": "ENABLED", "variants": {"on": 1, "off": 0}, "defaultVariant": "off",
                      "targeting": {"if": [{"$ref": "million"}, "on"]}});
    let flags = (0..FLAGS).map(|n| (format!("slow-{n}"), slow.clone()));
    put_set(&node, "slow", [("$evaluators".to_owned(), shared)].into_iter().chain(flags));
    let headers = [("flagd-selector", "slow")];
    eventually("they are in force", || {
        one(&node, &format!("slow-{}", FLAGS - 1), &headers, &json!({})).json()["variant"] == "off"
    });
    let turns = std::thread::available_parallelism().unwrap().get();
    let replies = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..turns + 2).map(|_| scope.spawn(|| all(&node, &headers, &json!({})))).collect();
        // Who asks for one flag waits for none of them.
        assert_eq!(one(&node, "for-ann", &[], &json!({})).status, 200);
        asking.into_iter().map(|asking| asking.join().unwrap()).collect::<Vec<Reply>>()
    });
    let (late, busy): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.status == 500);
    assert!(!late.is_empty() && !busy.is_empty(), "{} and {}", late.len(), busy.len());
    for reply in late {
        let answer = reply.json();
        assert_eq!(answer["errorCode"], "GENERAL");
        assert_eq!(answer["errorDetails"], "the evaluation takes longer than 2 s");
    }
    for reply in busy {
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
        assert_eq!(reply.json()["errorCode"], "GENERAL");
    }
    assert_eq!(all(&node, &[], &json!({})).status, 200, "the turns are given back");
}

/// `BULK_BYTES_MAX` (16 MiB).
#[test]
fn answers_over_their_bound_are_given_up() {
    let node = with_flags(&[("default/for-ann", FOR_ANN)]);
    let large = json!({"state": "ENABLED", "variants": {"x": "x".repeat(1_000_000)}, "defaultVariant": "x"});
    let headers = [("flagd-selector", "wide")];
    for (flags, status) in [(0..16, 200), (16..19, 500)] {
        let last = format!("wide-{}", flags.end - 1);
        for flag in flags {
            let url = format!("{}/v1/kv/flags/wide/wide-{flag}", node.http);
            assert_eq!(ask("PUT", &url, &[], large.to_string().as_bytes()).status, 200);
        }
        eventually("they are in force", || one(&node, &last, &headers, &json!({})).status == 200);
        let reply = all(&node, &headers, &json!({}));
        assert_eq!(reply.status, status);
        if status == 500 {
            assert_eq!(reply.json()["errorDetails"], "the answer is over the limit of 16777216 bytes");
        }
    }
}

#[test]
fn a_stream_says_when_to_ask_again() {
    let node = with_flags(&[("default/for-ann", FOR_ANN)]);
    let stream = format!("{}/ofrep/v1/events?set=default", node.http);
    let told = |last: Option<&str>| {
        let mut lines = common::lines(&stream, last);
        let mut next = |name: &str| {
            lines.find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned())).unwrap()
        };
        (next("id:"), serde_json::from_str::<Value>(&next("data:")).unwrap())
    };
    let (first, data) = told(None);
    assert_eq!(data, json!({"type": "refetchEvaluation", "etag": first}));
    assert_eq!(told(Some("of another state")).0, first);
    // A client that knows the state hears of the next one alone.
    let later = std::thread::spawn({
        let (stream, first) = (stream.clone(), first.clone());
        move || {
            let mut lines = common::lines(&stream, Some(&first));
            lines.find_map(|line| line.strip_prefix("id: ").map(str::to_owned)).unwrap()
        }
    });
    eventually("it is being served", || {
        let metrics =
            String::from_utf8(ask("GET", &format!("{}/metrics", node.http), &[], b"").body).unwrap();
        metrics.lines().any(|line| line.starts_with("tidings_http_streams{") && !line.ends_with(" 0"))
    });
    put(&node, "flags/default/new", FOR_ANN);
    assert_ne!(later.join().unwrap(), first);
}

/// The next event of a stream: which state of the set it names.
fn next_event(lines: &mut impl Iterator<Item = String>) -> String {
    lines.find_map(|line| line.strip_prefix("id: ").map(str::to_owned)).expect("the stream goes on")
}

/// Asserts that a client that asked before a change and follows the stream is told to ask again, and gets another
/// answer.
fn is_told(node: &Running, lines: &mut impl Iterator<Item = String>, change: impl FnOnce()) {
    let known = etag(&all(node, &[], &json!({})));
    change();
    next_event(lines);
    let again = all(node, &[("if-none-match", &known)], &json!({}));
    assert_eq!(again.status, 200, "the answer is another one");
}

#[test]
fn stream_tells_of_metadata_of_a_set_without_usable_flags() {
    let node = serve("a", &[], &[]);
    let mut lines = common::lines(&format!("{}/ofrep/v1/events", node.http), None);
    next_event(&mut lines);
    is_told(&node, &mut lines, || put(&node, "flags/default/$metadata", r#"{"version": "v12"}"#));
    is_told(&node, &mut lines, || put(&node, "flags/default/bad", r#"{"state": "ENABLED"}"#));
    is_told(&node, &mut lines, || put(&node, "flags/default/$metadata", r#"{"version": "v13"}"#));
    assert_eq!(all(&node, &[], &json!({})).json()["metadata"]["version"], "v13");
}

#[test]
fn stream_tells_of_flags_that_no_file_holds() {
    let refers =
        r#"{"state": "ENABLED", "variants": {"on": true}, "targeting": {"if": [{"$ref": "all"}, "on"]}}"#;
    let node = with_flags(&[("default/$evaluators", r#"{"all": true}"#), ("default/refers", refers)]);
    let mut lines = common::lines(&format!("{}/ofrep/v1/events", node.http), None);
    next_event(&mut lines);
    is_told(&node, &mut lines, || put(&node, "flags/default/bad", r#"{"state": "ENABLED"}"#));
    is_told(&node, &mut lines, || _ = node.line(&["del", "flags/default/bad"]));
    // The last good definition stays in force without the rule that it refers to, and is in no file.
    put(&node, "flags/default/$evaluators", r#"{"none": false}"#);
    next_event(&mut lines);
    assert_eq!(one(&node, "refers", &[], &json!({})).json()["value"], true);
    let file = ask("GET", &format!("{}/v1/flag-sets/default/file", node.http), &[], b"").json();
    assert_eq!(file["flags"], json!({}));
    is_told(&node, &mut lines, || _ = node.line(&["del", "flags/default/refers"]));
    assert_eq!(one(&node, "refers", &[], &json!({})).status, 404);
    // A set whose only flag is malformed.
    is_told(&node, &mut lines, || put(&node, "flags/default/bad", r#"{"state": "ENABLED"}"#));
    is_told(&node, &mut lines, || _ = node.line(&["del", "flags/default/bad"]));
}

#[test]
fn node_without_its_cluster_is_not_ready() {
    // A seed that never answers.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = serve("b", &[&deaf.local_addr().unwrap().to_string()], &[]);
    for reply in [one(&node, "for-ann", &[], &json!({})), all(&node, &[], &json!({}))] {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
        assert_eq!(reply.json()["errorCode"], "PROVIDER_NOT_READY");
    }
    let file = || ask("GET", &format!("{}/v1/flag-sets/default/file", node.http), &[], b"");
    assert_eq!(file().status, 503);
    // A stream is served, and tells of the first state that is known.
    let mut lines = common::lines(&format!("{}/ofrep/v1/events", node.http), None);
    let a = with_flags(&[("default/for-ann", FOR_ANN)]);
    node.line(&["join", &a.addr]);
    next_event(&mut lines);
    eventually("it is in force", || {
        one(&node, "for-ann", &[], &json!({"targetingKey": "ann"})).json()["value"] == true
    });
    assert_eq!(file().json()["flags"]["for-ann"]["state"], "ENABLED");
}

#[test]
fn last_good_flags_are_served_without_the_cluster() {
    let dir = folder("ofrep-last-good");
    let words = ["--data-dir", dir.to_str().unwrap()];
    let mut node = serve("a", &[], &words);
    put(&node, "flags/default/for-ann", FOR_ANN);
    let kept = || std::fs::read_to_string(dir.join("flags.json")).is_ok_and(|text| text.contains("for-ann"));
    eventually("it is kept", kept);
    node.process.child.kill().unwrap();
    node.process.child.wait().unwrap();
    // So that the file alone knows them.
    std::fs::remove_dir_all(dir.join("node")).unwrap();
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = serve("a", &[&deaf.local_addr().unwrap().to_string()], &words);
    let state = || ask("GET", &format!("{}/v1/flags", node.http), &[], b"").json()["state"].clone();
    assert_eq!(state(), "stale");
    let ann = json!({"targetingKey": "ann"});
    assert_eq!(one(&node, "for-ann", &[], &ann).json()["value"], true);
    assert_eq!(all(&node, &[], &ann).json()["flags"][0]["value"], true);
    assert_eq!(all(&node, &[("flagd-selector", "mobile")], &ann).status, 503, "of this set it knows nothing");
    assert_eq!(state(), "stale");
}

#[test]
fn streams_take_places_that_are_limited() {
    let node = serve("a", &[], &["--watchers-max", "1"]);
    put(&node, "flags/default/for-ann", FOR_ANN);
    let stream = format!("{}/ofrep/v1/events", node.http);
    let mut held = common::lines(&stream, None);
    held.next().unwrap();
    let refused = ask("GET", &stream, &[], b"");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["errorCode"], "GENERAL");
    drop(held);
    // The other one's end is noticed with its next line.
    let opened = || ask("GET", &format!("{}/v1/watch?key=k&from=x", node.http), &[], b"").status;
    assert_eq!(opened(), 400);
}

#[test]
fn tokens_tickets_and_sites_decide_who_may_ask() {
    let folder = folder("ofrep-guard");
    let (full, read) = ("correct horse battery staple wagon pier", "violet onion harbor maple rocket sand");
    let [token, read_token] = [("token", full), ("read-token", read)].map(|(name, text)| {
        private_file(&folder.join(name), text.replace(' ', "-"));
        (folder.join(name).display().to_string(), text.replace(' ', "-"))
    });
    let origin = "https://shop.example";
    let words = ["--token-file", &token.0, "--read-token-file", &read_token.0, "--ofrep-origin", origin];
    let node = serve("a", &[], &words);
    let bearer = format!("Bearer {}", read_token.1);
    let refused = all(&node, &[], &json!({}));
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(refused.json()["errorCode"], "GENERAL");
    assert!(refused.json()["errorDetails"].as_str().is_some_and(|text| text.contains("token")));
    let reply = all(&node, &[("authorization", &bearer)], &json!({}));
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, None));
    assert_eq!(all(&node, &[("x-api-key", &read_token.1)], &json!({})).status, 200);
    assert_eq!(all(&node, &[("x-api-key", &token.1)], &json!({})).body, reply.body, "tickets are the same");

    // The stream's address has a ticket, and opens nothing else.
    let path = reply.json()["eventStreams"][0]["endpoint"]["requestUri"].as_str().unwrap().to_owned();
    assert!(!path.contains(&read_token.1) && !path.contains(&token.1));
    assert!(common::lines(&format!("{}{path}", node.http), None).next().is_some());
    let without = path.split("&ticket").next().unwrap();
    for refused in [without.to_owned(), path.replace("set=default", "set=mobile"), format!("{path}x")] {
        assert_eq!(ask("GET", &format!("{}{refused}", node.http), &[], b"").status, 401, "{refused}");
    }
    let watch = path.replace("/ofrep/v1/events", "/v1/watch");
    assert_eq!(ask("GET", &format!("{}{watch}", node.http), &[], b"").status, 401);

    // A page of a permitted site: the browser asks first, and the page sees the digest and refusals.
    let url = format!("{}{ALL}", node.http);
    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,content-type,flagd-selector,if-none-match,x-api-key",
            ),
        ];
        ask("OPTIONS", &url, &headers, b"")
    };
    let permitted = preflight(origin);
    assert_eq!((permitted.status, permitted.header("access-control-allow-origin")), (200, Some(origin)));
    let asked = permitted.header("access-control-allow-headers").unwrap();
    for header in ["authorization", "content-type", "flagd-selector", "if-none-match", "x-api-key"] {
        assert!(asked.contains(header), "{asked}");
    }
    let reply = all(&node, &[("origin", origin), ("authorization", &bearer)], &json!({}));
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some(origin)));
    assert!(reply.header("access-control-expose-headers").unwrap().contains("etag"));
    assert!(reply.headers.iter().any(|(name, value)| name == "vary" && value.contains("origin")));
    let refused = all(&node, &[("origin", origin)], &json!({}));
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some(origin)));
    // Another site, and another path.
    for (reply, status) in [
        (preflight("https://evil.example"), 403),
        (all(&node, &[("origin", "https://evil.example"), ("authorization", &bearer)], &json!({})), 403),
        (
            ask(
                "GET",
                &format!("{}/v1/kv", node.http),
                &[("origin", origin), ("authorization", &bearer)],
                b"",
            ),
            403,
        ),
    ] {
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, None));
    }
    std::fs::remove_dir_all(folder).unwrap();
}
