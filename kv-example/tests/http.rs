//! The HTTP API from end to end: real nodes as processes, plain requests.

mod common;

use std::collections::BTreeMap;

use common::{Reply, ask, events, serve};
use serde_json::{Value, json};
use tidings_proptest::processes::eventually;

fn get(http: &str, path: &str) -> Reply {
    ask("GET", &format!("{http}{path}"), &[], b"")
}

fn put(http: &str, path: &str, value: &[u8]) -> Reply {
    ask("PUT", &format!("{http}{path}"), &[], value)
}

#[test]
fn a_key_is_put_read_compared_and_deleted() {
    let node = serve("a", &[], &[]);
    let url = format!("{}/v1/kv/limits%2Fmax", node.http);
    assert_eq!(ask("GET", &url, &[], b"").status, 404);
    let written = ask("PUT", &url, &[("if-none-match", "*")], b"100");
    assert_eq!(written.status, 200);
    let etag = written.header("etag").unwrap().to_owned();
    let read = get(&node.http, "/v1/kv/limits/max");
    assert_eq!((read.status, &read.body[..]), (200, &b"100"[..]));
    assert_eq!(read.header("etag"), Some(&etag[..]));
    assert_eq!(read.header("x-tidings-stamp"), Some(etag.trim_matches('"')));
    assert_eq!(ask("GET", &url, &[("if-none-match", &etag)], b"").status, 304);

    let refused = ask("PUT", &url, &[("if-none-match", "*")], b"200");
    assert_eq!(refused.status, 412);
    let said = refused.json();
    assert_eq!((&said["code"], &said["detail"]), (&"condition".into(), &"nothing was written".into()));
    assert_eq!(said["stamp"], etag.trim_matches('"'));
    assert_eq!(get(&node.http, "/v1/kv/limits/max").body, b"100");
    assert_eq!(ask("PUT", &url, &[("if-match", &etag)], b"200").status, 200);
    assert_eq!(ask("PUT", &url, &[("if-match", &etag)], b"300").status, 412);
    assert_eq!(get(&node.http, "/v1/kv/limits/max").body, b"200");

    assert_eq!(ask("DELETE", &url, &[("if-match", &etag)], b"").status, 412);
    assert_eq!(get(&node.http, "/v1/kv/limits/max").body, b"200");
    assert_eq!(ask("DELETE", &url, &[("if-none-match", "*")], b"").status, 400);
    let etag = get(&node.http, "/v1/kv/limits/max").header("etag").unwrap().to_owned();
    assert_eq!(ask("DELETE", &url, &[("if-match", &etag)], b"").status, 200);
    assert_eq!(ask("DELETE", &url, &[], b"").status, 404);
    assert_eq!(ask("GET", &url, &[], b"").status, 404);
}

#[test]
fn revisions_condition_writes_and_expiries_are_kept() {
    let node = serve("a", &[], &[]);
    let url = format!("{}/v1/kv/k", node.http);
    let whole = || get(&node.http, "/v1/kv/k?meta=true").json();
    assert_eq!(put(&node.http, "/v1/kv/k?ttl=1h", b"1").status, 200);
    let first = whole();
    assert_eq!((&first["writer"], &first["writer_state"]), (&"a".into(), &"alive".into()));
    let (revision, expires) = (first["revision"].as_str().unwrap(), first["expires_ms"].as_u64().unwrap());

    // The same expiry, and only over what was read.
    let kept = format!("{url}?expires_ms={expires}");
    let condition = [("x-tidings-if-revision", revision)];
    assert_eq!(ask("PUT", &kept, &condition, b"2").status, 200);
    assert!(whole()["expires_ms"].as_u64().unwrap().abs_diff(expires) < 1_000);
    for method in ["PUT", "DELETE"] {
        let refused = ask(method, &url, &condition, b"");
        assert_eq!((refused.status, &refused.json()["code"]), (412, &"condition".into()), "{method}");
    }
    assert_eq!(whole()["value"], "2");

    for (query, headers, status, code) in [
        ("?expires_ms=1", &[][..], 409, "expired"),
        ("?expires_ms=soon", &[], 400, "bad_request"),
        ("?expires_ms=99999999999999&ttl=1s", &[], 400, "bad_request"),
        ("", &[("x-tidings-if-revision", "the latest")], 400, "bad_request"),
        ("", &[("x-tidings-if-revision", revision), ("if-none-match", "*")], 400, "bad_request"),
    ] {
        let refused = ask("PUT", &format!("{url}{query}"), headers, b"3").json();
        assert_eq!(refused["code"], code, "{query} {headers:?}");
        assert_eq!(ask("PUT", &format!("{url}{query}"), headers, b"3").status, status, "{query} {headers:?}");
    }
    assert_eq!(ask("DELETE", &format!("{url}?expires_ms=1"), &[], b"").status, 400);
    assert_eq!(whole()["value"], "2");
    let revision = whole()["revision"].as_str().unwrap().to_owned();
    assert_eq!(ask("DELETE", &url, &[("x-tidings-if-revision", &revision)], b"").status, 200);
}

#[test]
fn keys_and_values_of_every_form_survive() {
    let node = serve("a", &[], &[]);
    let bytes: Vec<u8> = (0..=255).collect();
    for key in ["%2Fleading", "trailing%2F", "a%2F%2Fb", "%E2%82%AC%20%3F%23%26%25", "a+b", "%22quoted%22"] {
        assert_eq!(put(&node.http, &format!("/v1/kv/{key}"), &bytes).status, 200, "{key}");
        assert_eq!(get(&node.http, &format!("/v1/kv/{key}")).body, bytes, "{key}");
    }
    let listed = get(&node.http, "/v1/kv?values=true").json();
    let keys: Vec<&str> =
        listed["entries"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["\"quoted\"", "/leading", "a+b", "a//b", "trailing/", "€ ?#&%"]);
    assert!(listed["entries"][0]["value"].is_null() && listed["entries"][0]["value_base64"].is_string());
}

#[test]
fn bad_requests_get_an_error_code_and_write_nothing() {
    let node = serve("a", &[], &["--value-bytes-max", "1000"]);
    let http = &node.http;
    let cases = [
        (put(http, "/v1/kv/k", &[0; 1_001]), 413, "too_large"),
        (put(http, &format!("/v1/kv/{}", "k".repeat(1_025)), b""), 400, "key"),
        (put(http, "/v1/kv/k?ttl=soon", b""), 400, "bad_request"),
        (put(http, "/v1/kv/k?wait=some", b""), 400, "bad_request"),
        (put(http, "/v1/kv/k?wiat=all", b""), 400, "bad_request"),
        (put(http, "/v1/kv/k?timeout=2h", b""), 400, "bad_request"),
        (put(http, "/v1/kv/%FF", b""), 400, "bad_request"),
        (get(http, "/v1/kv?limit=0"), 400, "bad_request"),
        (get(http, "/v1/watch?prefix=a&key=b"), 400, "bad_request"),
        (get(http, "/v1/watch?from=nonsense"), 400, "bad_request"),
        (get(http, "/v1/watch?whole=true"), 400, "bad_request"),
        (get(http, "/v1/watch?prefix=a&whole=true&current=false"), 400, "bad_request"),
        (get(http, "/v1/nothing"), 404, "no_such_path"),
        (ask("POST", &format!("{http}/v1/kv/k"), &[], b"v"), 405, "method"),
        (ask("POST", &format!("{http}/v1/snapshot?name=..%2Fx"), &[], b""), 400, "bad_request"),
        (
            ask("GET", &format!("{http}/v1/kv/k"), &[("origin", "http://evil.example")], b""),
            403,
            "foreign_page",
        ),
        (ask("GET", &format!("{http}/v1/kv/k"), &[("host", "evil.example")], b""), 403, "foreign_page"),
    ];
    for (at, (reply, status, code)) in cases.iter().enumerate() {
        let said = reply.json();
        assert_eq!((reply.status, said["code"].as_str()), (*status, Some(*code)), "case {at}: {said}");
        assert!(said["error"].is_string() && said["detail"].is_string(), "case {at}: {said}");
    }
    assert_eq!(get(http, "/v1/kv").json()["entries"].as_array().unwrap().len(), 0, "nothing was written");
}

#[test]
fn a_listing_comes_page_by_page_and_in_order() {
    let node = serve("a", &[], &[]);
    for number in 0..25 {
        put(&node.http, &format!("/v1/kv/p/{number:02}"), b"v");
        put(&node.http, &format!("/v1/kv/q/{number:02}"), b"v");
    }
    let (mut keys, mut after) = (Vec::new(), String::new());
    for _ in 0..10 {
        let page = get(&node.http, &format!("/v1/kv?prefix=p/&limit=10{after}")).json();
        keys.extend(
            page["entries"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(keys, (0..25).map(|number| format!("p/{number:02}")).collect::<Vec<_>>());
}

#[test]
fn listing_page_with_large_values_is_shorter_and_continues() {
    let node = serve("a", &[], &[]);
    let value = vec![b'x'; 900_000];
    for number in 0..12 {
        assert_eq!(put(&node.http, &format!("/v1/kv/large/{number:02}"), &value).status, 200);
    }
    let first = get(&node.http, "/v1/kv?values=true").json();
    let next = first["next"].as_str().unwrap();
    let rest = get(&node.http, &format!("/v1/kv?values=false&after={next}")).json();
    let count = |page: &Value| page["entries"].as_array().unwrap().len();
    assert!((1..12).contains(&count(&first)) && count(&first) + count(&rest) == 12, "{}", count(&first));
    let dumped = node.run(&["dump"]);
    assert_eq!(String::from_utf8(dumped.stdout).unwrap().lines().count(), 12);
}

#[test]
fn history_with_large_values_is_cut_by_size() {
    let node = serve("a", &[], &[]);
    let value = "v".repeat(1_000_000);
    for number in 0..12 {
        assert_eq!(put(&node.http, &format!("/v1/kv/k/{number:02}"), value.as_bytes()).status, 200);
    }
    let reply = get(&node.http, "/v1/history");
    let told = reply.json();
    let keys: Vec<&str> =
        told["events"].as_array().unwrap().iter().map(|event| event["key"].as_str().unwrap()).collect();
    // The latest, up to the one that makes the answer as large as a page.
    assert_eq!(keys, ["k/11", "k/10", "k/09", "k/08", "k/07"]);
    assert!(told["is_cut"] == true && reply.body.len() < 6_000_000, "{} bytes", reply.body.len());
    let one = get(&node.http, "/v1/history?prefix=k/03").json();
    assert!(one["is_cut"] == false && one["events"][0]["value"] == value);
    assert_eq!(get(&node.http, "/v1/history?limit=12&prefix=k/0").json()["is_cut"], true);
}

#[test]
fn history_has_the_latest_expiry_among_many_keys() {
    let node = serve("a", &[], &[]);
    for number in 0..101 {
        assert_eq!(put(&node.http, &format!("/v1/kv/k/{number:03}"), b"v").status, 200);
    }
    assert_eq!(put(&node.http, "/v1/kv/k/short?ttl=1ms", b"v").status, 200);
    let first = || {
        let told = get(&node.http, "/v1/history?limit=100&prefix=k/").json();
        (
            told["events"][0]["event"].clone(),
            told["events"][0]["key"].clone(),
            told["events"][1]["key"].clone(),
        )
    };
    eventually("the expiry is told", || first() == ("expired".into(), "k/short".into(), "k/100".into()));
}

#[test]
fn history_that_is_not_cut_tells_deletes_while_others_are_forgotten() {
    let node = serve("a", &[], &[]);
    let batch = |writes: Vec<Value>| {
        let body = json!({ "writes": writes }).to_string();
        let headers = [("content-type", "application/json")];
        let url = format!("{}/v1/batch", node.http);
        assert_eq!(ask("POST", &url, &headers, body.as_bytes()).status, 200);
    };
    let fill = |round: usize| {
        let keys: Vec<String> = (0..1_500).map(|i| format!("k/{round}-{i}")).collect();
        batch(keys.iter().map(|key| json!({ "put": key, "value": "v" })).collect());
        batch(keys.iter().map(|key| json!({ "delete": key })).collect());
    };
    (0..6).for_each(fill);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (6..30).for_each(fill));
        while !writer.is_finished() {
            let told = get(&node.http, "/v1/history?prefix=k/&limit=1000").json();
            let has_deletes =
                told["events"].as_array().unwrap().iter().any(|event| event["event"] == "delete");
            assert!(has_deletes || told["is_cut"] == true, "the log is full of deletes");
        }
    });
}

#[test]
fn write_can_wait_for_others_and_values_expire() {
    let a = serve("a", &[], &[]);
    let b = serve("b", &[&a.addr], &[]);
    eventually("b is ready", || get(&b.http, "/readyz").status == 200);
    assert_eq!(put(&a.http, "/v1/kv/k?wait=all&timeout=60s", b"v").status, 200);
    assert_eq!(get(&b.http, "/v1/kv/k").body, b"v", "who confirmed it has it");
    let unconfirmed = put(&a.http, "/v1/kv/k?wait=3&timeout=50ms", b"w");
    assert_eq!((unconfirmed.status, unconfirmed.json()["code"].as_str()), (504, Some("unconfirmed")));
    assert!(unconfirmed.json()["stamp"].is_string());
    assert_eq!(get(&a.http, "/v1/kv/k").body, b"w", "the write stands");
    let no_disk = put(&a.http, "/v1/kv/k?durable=true", b"x");
    assert_eq!((no_disk.status, no_disk.json()["code"].as_str()), (500, Some("unconfirmed")));
    assert_eq!(put(&a.http, "/v1/kv/short?ttl=200ms", b"v").status, 200);
    eventually("it vanishes at the other node", || get(&b.http, "/v1/kv/short").status == 404);
}

#[test]
fn sets_and_counters_agree_on_all_nodes() {
    let a = serve("a", &[], &[]);
    let b = serve("b", &[&a.addr], &[]);
    eventually("b is ready", || get(&b.http, "/readyz").status == 200);
    for element in ["x", "y%2Fz", "w"] {
        assert_eq!(put(&a.http, &format!("/v1/sets/banned/{element}?wait=all&timeout=60s"), b"").status, 200);
    }
    assert_eq!(
        ask("DELETE", &format!("{}/v1/sets/banned/x?wait=all&timeout=60s", b.http), &[], b"").status,
        200
    );
    for http in [&a.http, &b.http] {
        assert_eq!(get(http, "/v1/sets/banned").json()["elements"], serde_json::json!(["w", "y/z"]));
        assert_eq!(
            (get(http, "/v1/sets/banned/w").status, get(http, "/v1/sets/banned/x").status),
            (200, 404)
        );
    }
    let page = get(&a.http, "/v1/sets/banned?limit=1").json();
    assert_eq!((&page["elements"][0], &page["next"]), (&"w".into(), &"w".into()));
    let stepped = ask("POST", &format!("{}/v1/counters/hits?by=5&wait=all&timeout=60s", a.http), &[], b"");
    assert_eq!(stepped.status, 200);
    let stepped = ask("POST", &format!("{}/v1/counters/hits?by=-2&wait=all&timeout=60s", b.http), &[], b"");
    assert_eq!(stepped.json()["value"], 3);
    assert_eq!(get(&a.http, "/v1/counters/hits").json()["value"], 3);
}

#[test]
fn watch_resumes_or_says_that_it_starts_over() {
    let node = serve("a", &[], &[]);
    put(&node.http, "/v1/kv/w/1", b"one");
    let url = format!("{}/v1/watch?prefix=w/", node.http);
    let first = events(&url, None, |name, _| name == "current");
    assert_eq!(first.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["put", "current"]);
    assert_eq!((&first[0].2["key"], &first[0].2["value"]), (&"w/1".into(), &"one".into()));
    put(&node.http, "/v1/kv/w/2", b"two");
    ask("DELETE", &format!("{}/v1/kv/w/1", node.http), &[], b"");
    let resumed = events(&url, Some(&first[0].1), |name, _| name == "delete");
    assert_eq!(resumed.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["put", "delete"]);
    assert_eq!(resumed[0].2["key"], "w/2");
    // One without the current values says where it begins, so that nothing is lost before its first change either.
    let begun = events(&format!("{url}&current=false"), None, |name, _| name == "begun");
    put(&node.http, "/v1/kv/w/3", b"three");
    let resumed = events(&format!("{url}&current=false"), Some(&begun[0].1), |name, _| name == "put");
    assert_eq!((resumed.len(), &resumed[0].2["key"]), (1, &"w/3".into()));
    let foreign = "0123456789abcdef-0000000000000001";
    let anew = events(&url, Some(foreign), |name, _| name == "current");
    assert_eq!(
        anew.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(),
        ["resync", "put", "put", "current"]
    );
}

/// Applies the events of a watch, and returns the values below `f/` after each item.
fn states(told: &[(String, String, Value)]) -> Vec<Vec<String>> {
    let (mut now, mut states) = (BTreeMap::new(), Vec::new());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for (name, _, data) in told {
        match name.as_str() {
            "put" => _ = now.insert(text(&data["key"]), text(&data["value"])),
            "delete" => _ = now.remove(&text(&data["key"])),
            "state" | "change" => {
                let entries = data["entries"].as_array().unwrap().iter();
                now.extend(entries.map(|entry| (text(&entry["key"]), text(&entry["value"]))));
                data["gone"].as_array().unwrap().iter().for_each(|key| _ = now.remove(&text(key)));
            }
            _ => continue,
        }
        states.push(now.values().cloned().collect());
    }
    states
}

#[test]
fn whole_watch_gives_each_batch_of_another_node_at_once() {
    const BATCHES: usize = 200;
    let a = serve("a", &[], &[]);
    let b = serve("b", &[&a.addr], &[]);
    eventually("b is ready", || get(&b.http, "/readyz").status == 200);
    let is_last = |data: &Value| data.to_string().contains(&format!("\"value\":\"{BATCHES}\""));
    let read = |more: &str| {
        let url = format!("{}/v1/watch?prefix=f/{more}", b.http);
        std::thread::spawn(move || events(&url, None, |_, data| is_last(data)))
    };
    let (whole, by_key) = (read("&whole=true"), read(""));
    for number in 1..=BATCHES {
        let mut writes: Vec<Value> = (0..20)
            .map(|field| json!({ "put": format!("f/{field:02}"), "value": number.to_string() }))
            .collect();
        // One that comes and goes.
        let odd = json!({ "put": "f/odd", "value": number.to_string() });
        writes.push(if number % 2 == 1 { odd } else { json!({ "delete": "f/odd" }) });
        let body = json!({ "writes": writes }).to_string();
        let headers = [("content-type", "application/json")];
        assert_eq!(ask("POST", &format!("{}/v1/batch", a.http), &headers, body.as_bytes()).status, 200);
    }
    let told = whole.join().unwrap();
    let names: Vec<&str> = told.iter().map(|(name, ..)| name.as_str()).collect();
    assert!(names[0] == "state" && names[1..].iter().all(|name| *name == "change"), "{names:?}");
    assert!(told.iter().all(|(_, id, data)| id.is_empty() && data["whole"] == true && data["more"] == false));
    let is_mixed = |state: &&Vec<String>| {
        let of_batch = state.first().map_or(0, |value| value.parse::<usize>().unwrap());
        let count = if of_batch == 0 { 0 } else { 20 + of_batch % 2 };
        state.len() != count || state.iter().any(|value| *value != state[0])
    };
    let states_of_whole = states(&told);
    assert_eq!(states_of_whole.iter().filter(is_mixed).count(), 0, "{states_of_whole:?}");
    assert_eq!(states_of_whole.last().unwrap(), &vec![BATCHES.to_string(); 20]);
    // The control: key by key there are states in between.
    assert!(states(&by_key.join().unwrap()).iter().filter(is_mixed).count() > 0);
}

#[test]
fn whole_watch_cuts_large_items_and_is_limited() {
    let node = serve("a", &[], &[]);
    let url = format!("{}/v1/watch?prefix=l/&whole=true", node.http);
    (1..=6).for_each(|number| _ = put(&node.http, &format!("/v1/kv/l/{number}"), &vec![b'x'; 1_000_000]));
    let told = events(&url, None, |_, data| data["more"] == false);
    let parts: Vec<_> =
        told.iter().map(|(name, _, data)| (&**name, data["entries"].as_array().unwrap().len())).collect();
    assert_eq!(parts, [("state", 5), ("state", 1)]);
    let held: Vec<_> = (0..16)
        .map(|_| ureq::get(&format!("{}/v1/watch?prefix=n/&whole=true", node.http)).call().unwrap())
        .collect();
    let refused = ask("GET", &url, &[], b"");
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("too_many_watchers")));
    drop(held);
}

#[test]
fn streams_are_limited_and_freed_when_closed() {
    let node = serve("a", &[], &["--watchers-max", "1"]);
    let url = format!("{}/v1/watch", node.http);
    {
        let mut held = ureq::get(&url).call().unwrap();
        let refused = ask("GET", &url, &[], b"");
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
        assert_eq!(held.body_mut().content_length(), None);
    }
    eventually("the place is free again", || {
        let metrics = String::from_utf8(get(&node.http, "/metrics").body).unwrap();
        // A write makes the node notice that nobody reads any more.
        put(&node.http, "/v1/kv/k", b"v");
        metrics.contains("tidings_http_streams{node=\"a\"} 0")
    });
}

#[test]
fn members_status_and_metrics_are_served() {
    let a = serve("a", &[], &["--meta", "zone=eu-1", "--cluster", "c1"]);
    let b = serve("b", &[&a.addr], &["--cluster", "c1"]);
    eventually("b is ready", || get(&b.http, "/readyz").status == 200);
    eventually("they know each other, the node itself first", || {
        let members = get(&b.http, "/v1/members").json();
        let told =
            |at: usize| (members["members"][at]["name"].as_str(), members["members"][at]["state"].as_str());
        told(0) == (Some("b"), Some("alive"))
            && told(1) == (Some("a"), Some("alive"))
            && members["members"][1]["meta"]["zone"] == "eu-1"
    });
    let written = put(&a.http, "/v1/kv/k?wait=all&timeout=60s", b"value");
    assert_eq!(written.status, 200);
    let (of_a, of_b) = (get(&a.http, "/v1/status").json(), get(&b.http, "/v1/status").json());
    assert_eq!((&of_a["cluster"], &of_a["store"]["entries"]), (&"c1".into(), &1.into()));
    assert_eq!(of_a["store"]["root"], of_b["store"]["root"]);
    assert_eq!(get(&a.http, "/v1/kv/k?meta=true").json()["writer"], "a");
    assert_eq!(get(&a.http, "/healthz").status, 200);
    let metrics = || String::from_utf8(get(&a.http, "/metrics").body).unwrap();
    for line in [
        "tidings_ready{node=\"a\"} 1",
        "tidings_entries{node=\"a\"} 1",
        "tidings_members{node=\"a\",state=\"alive\"} 1",
        "tidings_peer_lag_changes{node=\"a\",peer=\"b\"} 0",
        "# TYPE tidings_repair_bytes_total counter",
        "tidings_write_seconds_count{node=\"a\"} 1",
        "tidings_info{node=\"a\",cluster=\"c1\"",
        "tidings_http_requests_total{node=\"a\",method=\"GET\",route=\"/v1/kv/{*key}\",status=\"200\"} 1",
    ] {
        eventually(line, || metrics().contains(line));
    }
    let metrics = metrics();
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("tidings_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn token_is_required_if_one_is_set() {
    let folder = common::folder("token");
    let path = folder.join("token.txt");
    assert!(common::program().args(["secret", "--out"]).arg(&path).status().unwrap().success());
    let token = std::fs::read_to_string(&path).unwrap();
    let node = serve("a", &[], &["--token-file", path.to_str().unwrap()]);
    assert_eq!(get(&node.http, "/v1/kv").status, 401);
    assert_eq!(get(&node.http, "/v1/kv").header("www-authenticate"), Some("Bearer"));
    assert_eq!(get(&node.http, "/metrics").status, 401);
    assert_eq!((get(&node.http, "/healthz").status, get(&node.http, "/").status), (200, 200));
    let bearer = format!("Bearer {}", token.trim());
    let url = format!("{}/v1/kv", node.http);
    assert_eq!(ask("GET", &url, &[("authorization", &bearer)], b"").status, 200);
    assert_eq!(ask("GET", &url, &[("authorization", "Bearer wrong")], b"").status, 401);
}

#[test]
fn durable_writes_survive_a_kill_and_a_restore() {
    let folder = common::folder("durable");
    let dir = folder.join("a");
    let dir_text = dir.to_str().unwrap();
    let mut node = serve("a", &[], &["--data-dir", dir_text]);
    assert_eq!(put(&node.http, "/v1/kv/k?durable=true", b"kept").json()["durable"], true);
    let take = |name: &str| ask("POST", &format!("{}/v1/snapshot?name={name}", node.http), &[], b"");
    let snapshot = take("monday").json();
    assert_eq!(snapshot["path"], dir.join("snapshots/monday").to_str().unwrap());
    // What a process that was killed has left of another one goes, and no snapshot is called like that.
    let part = dir.join("snapshots/sunday.1f-0.tmp");
    std::fs::write(&part, "a part").unwrap();
    assert_eq!((take("sunday.1f-0.tmp").status, take("tuesday").status, part.exists()), (400, 200, false));
    node.process.child.kill().unwrap();
    node.process.child.wait().unwrap();
    let node = serve("a", &[], &["--data-dir", dir_text]);
    assert_eq!(get(&node.http, "/v1/kv/k").body, b"kept", "after kill -9");
    drop(node);
    let other = folder.join("b");
    let restore = ["--data-dir", other.to_str().unwrap(), "--restore", snapshot["path"].as_str().unwrap()];
    let node = serve("a", &[], &restore);
    assert_eq!(get(&node.http, "/v1/kv/k").body, b"kept", "from the snapshot");
}

#[test]
fn full_node_answers_507_and_still_deletes() {
    let node = serve("a", &[], &["--store-bytes-max", "65536"]);
    let value = vec![b'v'; 60_000];
    assert_eq!(put(&node.http, "/v1/kv/a", &value).status, 200);
    let refused = put(&node.http, "/v1/kv/b", &value);
    let said = refused.json();
    assert_eq!(
        (refused.status, &said["code"], &said["detail"]),
        (507, &"full".into(), &"nothing was written".into())
    );
    let store = &get(&node.http, "/v1/status").json()["store"];
    assert_eq!(
        (store["size_bytes"].as_u64(), store["size_bytes_max"].as_u64()),
        (Some(60_202), Some(65_536))
    );
    assert_eq!(ask("DELETE", &format!("{}/v1/kv/a", node.http), &[], b"").status, 200);
    assert_eq!(put(&node.http, "/v1/kv/b", &value).status, 200);
}
