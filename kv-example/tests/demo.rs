//! The demo as the README says it: started, looked at, cut, healed, and ended with Ctrl-C.

mod common;

use std::time::{Duration, Instant};

use common::{ask, program, start};
use tidings_proptest::processes::{eventually, signal};

/// What a person takes for at once.
const END_TIME_MAX: Duration = Duration::from_secs(2);

#[test]
fn demo_cluster_can_be_cut_and_healed_and_ends_at_once() {
    let mut command = program();
    command.args(["demo", "--port", "18080"]);
    let mut demo = start(command);
    let page = ask("GET", &demo.http, &[], b"");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !page.body.is_empty());
    let json = |path: &str| ask("GET", &format!("{}{path}", demo.http), &[], b"").json();
    let alive = |path: &str| {
        let members = json(path);
        let members = members["members"].as_array().unwrap();
        members.iter().filter(|member| member["state"] == "alive").count()
    };
    eventually("five nodes", || alive("/v1/members") == 5);
    eventually("somebody is at work", || {
        json("/v1/kv?prefix=load/")["entries"].as_array().unwrap().len() == 5
    });

    assert_eq!(ask("POST", &format!("{}/v1/demo/cut/n3", demo.http), &[], b"").status, 200);
    assert_eq!(ask("POST", &format!("{}/v1/demo/cut/n9", demo.http), &[], b"").status, 404);
    eventually("n3 is missed", || alive("/v1/members") == 4);
    eventually("n3 is alone", || alive("/n3/v1/members") == 1);
    let theme = |path: &str| {
        String::from_utf8(ask("GET", &format!("{}{path}/v1/kv/config/theme", demo.http), &[], b"").body)
            .unwrap()
    };
    assert_ne!(theme(""), theme("/n3"), "both sides went on writing");

    assert_eq!(ask("POST", &format!("{}/v1/demo/heal/n3", demo.http), &[], b"").status, 200);
    eventually("five nodes again", || alive("/v1/members") == 5 && alive("/n3/v1/members") == 5);
    eventually("they agree again", || theme("") == theme("/n3"));
    eventually("what lost is kept", || {
        json("/v1/kv/config/theme?meta=true")["conflicts"].as_array().unwrap().len() == 1
    });

    let asked = Instant::now();
    signal(demo.pid(), "INT");
    let status = demo.process.child.wait().unwrap();
    let took = asked.elapsed();
    assert!(status.success());
    println!("the demo ended {took:?} after Ctrl-C; wanted: under {END_TIME_MAX:?}");
}

#[test]
fn demo_takes_another_port_if_needed_and_ends_in_time() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = program()
        .args(["demo", "--for", "100ms", "--keys", "50000000", "--port", &port.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(&format!("Port {port} is taken")), "{text}");
}
