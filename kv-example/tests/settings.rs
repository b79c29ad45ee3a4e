//! Settings that are changed while nodes run, by the command line.

mod common;

use std::process::Output;

use common::{Running, SERVE_A, ask, folder, program, serve};
use tidings_proptest::processes::eventually;

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn shared_settings_are_changed_on_all_nodes_and_rolled_back() {
    let folder = folder("settings");
    let start = |name: &str, seeds: &[&str], args: &[&str]| {
        let dir = folder.join(name);
        let dir = dir.to_str().unwrap();
        serve(name, seeds, &[&["--voter", "a", "--voter", "b", "--data-dir", dir], args].concat())
    };
    let a = start("a", &[], &[]);
    let b = start("b", &[&a.addr], &[]);
    eventually("a knows b", || a.line(&["members"]).lines().count() == 3);
    let shown = a.line(&["settings"]);
    assert!(shown.contains("lease_time_max") && shown.contains("1s") && shown.contains("30"), "{shown}");

    let changed = a.line(&["settings", "--set", "lease_time_max=4s", "--set", "mesh_members_max=50"]);
    assert!(changed.contains("4s") && changed.contains("50"), "{changed}");
    assert!(changed.contains("in force since") && changed.ends_with(" by a"), "{changed}");
    eventually("b has them", || b.line(&["settings"]) == changed);
    assert!(b.line(&["reconfigure"]).contains("50"), "they are in force");
    let back = b.line(&["settings", "--roll-back"]);
    eventually("a is back", || a.line(&["settings"]) == back);

    // A node that is configured as the cluster was before joins; with settings that were never in force it is refused.
    let earlier = start("c", &[&a.addr], &["--lease-time-max", "1s"]);
    eventually("c is a member", || earlier.line(&["members"]).lines().count() == 4);
    let other = start("d", &[&a.addr], &["--lease-time-max", "7s"]);
    wait_for_news(&other, "the node that wants to join has lease_time_max 7 s");
    assert_eq!(other.line(&["members"]).lines().count(), 2);
}

/// Waits until the dashboard of a node shows this.
fn wait_for_news(node: &Running, told: &str) {
    common::events(&format!("{}/v1/dash", node.http), None, |name, data| {
        let is_told =
            |line: &serde_json::Value| line["text"].as_str().is_some_and(|text| text.contains(told));
        name == "news" && data["log"].as_array().unwrap().iter().any(is_told)
    });
}

#[test]
fn clusters_that_began_with_other_settings_stay_apart() {
    let [a, b] = [("a", "1s"), ("b", "2s")].map(|(name, time)| {
        let node = serve(name, &[], &["--lease-time-max", time]);
        node.line(&["settings", "--set", "lease_time_max=3s"]);
        node
    });
    b.line(&["join", &a.addr]);
    let told =
        "two clusters, which began with other shared settings: that of the node that wants to join with";
    [&a, &b].into_iter().for_each(|node| wait_for_news(node, told));
    assert_eq!(b.line(&["members"]).lines().count(), 2);
}

/// The steps of docs/operating.md, section "Two clusters that meet".
#[test]
fn clusters_joined_by_mistake_are_parted_again() {
    let folder = folder("parted");
    let cluster = |names: [&str; 2], args: &[&str]| {
        let voters = names.join(",");
        let mut nodes: Vec<Running> = Vec::new();
        for name in names {
            let seeds: Vec<&str> = nodes.iter().map(|node| node.addr.as_str()).collect();
            let dir = folder.join(name);
            let own = ["--voter", &voters, "--data-dir", dir.to_str().unwrap(), "--expect-return"];
            nodes.push(serve(name, &seeds, &[&own, args].concat()));
        }
        let knows_both =
            |node: &Running| names.iter().all(|name| node.line(&["members"]).contains(&format!("{name} ")));
        eventually("they have found each other", || nodes.iter().all(knows_both));
        nodes
    };
    // A node knows those of an earlier start only if another one told it.
    let forget = |node: &Running, names: [&str; 2]| {
        for name in names {
            let is_known = || node.line(&["members"]).contains(&format!("{name} "));
            let is_forgotten = || node.run(&["forget", name]).status.success() || !is_known();
            eventually("it is forgotten", is_forgotten);
        }
    };
    let locks = |node: &Running| node.run(&["lock", "job", "--", "true"]).status.success();
    let (a, b) = (cluster(["a1", "a2"], &[]), cluster(["b1", "b2"], &[]));
    a[0].line(&["put", "of/a", "v"]);
    b[0].line(&["put", "of/b", "v"]);
    for voters in ["b1", "b1,b2"] {
        eventually("its voters change", || b[0].run(&["voters", "--set", voters]).status.success());
    }

    a[0].line(&["join", &b[0].addr]);
    eventually("the other list replaces the own one", || a[1].line(&["voters"]) == "b1, b2");
    let has_both = |node: &Running| node.line(&["list", "--keys-only"]) == "of/a\nof/b";
    eventually("the data are merged", || a.iter().chain(&b).all(has_both));
    assert_eq!(a[0].line(&["members"]).lines().count(), 5);

    drop(b);
    let ours = ["voters", "--set", "a1,a2"];
    assert!(!a[0].run(&ours).status.success(), "no voter of the list in force is left");
    a[0].line(&[&ours[..], &["--force"]].concat());
    eventually("leases are granted again", || locks(&a[0]));
    forget(&a[0], ["b1", "b2"]);
    let b = cluster(["b1", "b2"], &["--cluster", "b"]);
    forget(&b[0], ["a1", "a2"]);
    assert_eq!(b[0].line(&["voters"]), "b1, b2");
    eventually("leases are granted there as well", || locks(&b[0]));
    for node in a.iter().chain(&b) {
        eventually("each knows its own alone", || node.line(&["members"]).lines().count() == 3);
    }
    b[0].line(&["del", "of/a"]);
    assert_eq!(a[0].line(&["get", "of/a"]), "v");
}

#[test]
fn wrong_settings_are_refused_by_name() {
    let node = serve("a", &[], &[]);
    for (arguments, expected) in [
        (
            &["settings", "--set", "lease_time_max=11s"][..],
            "lease_time_max is 11 s, permitted: 100 ms to 10 s",
        ),
        (&["settings", "--set", "lease_time_max=soon"], "lease_time_max"),
        (&["settings", "--set", "colour=red"], "there is no setting \"colour\""),
        (&["settings", "--set", "lease_time_max"], "expected FIELD=VALUE"),
        (&["reconfigure", "sync_interval=0s"], "sync_interval is 0 ms, permitted: 10 ms to 1 h"),
        (&["reconfigure", "mesh_members_max=9"], "use `tidings settings --set`"),
        (&["reconfigure", "voters=[\"a\"]"], "use `tidings voters`"),
    ] {
        let refused = node.run(arguments);
        assert!(
            code(&refused) == 2 && said(&refused).contains(expected),
            "{arguments:?}: {}",
            said(&refused)
        );
    }
    let unchanged = node.run(&["settings", "--roll-back"]);
    assert!(code(&unchanged) != 0 && said(&unchanged).contains("never changed"), "{}", said(&unchanged));
}

#[test]
fn one_node_is_reconfigured_while_it_runs() {
    let node = serve("a", &[], &[]);
    let shown = node.line(&["reconfigure", "sync_interval=2s", "value_bytes_max=10"]);
    assert!(shown.contains("2s"), "{shown}");
    let refused = node.run(&["put", "k", "12345678901"]);
    assert!(said(&refused).contains("limit of 10 bytes"), "{}", said(&refused));
    assert!(node.run(&["put", "k", "1"]).status.success());
}

fn config(node: &common::Running) -> serde_json::Value {
    ask("GET", &format!("{}/v1/config", node.http), &[], b"").json()
}

#[test]
fn settings_file_holds_all_that_was_changed_at_run_time() {
    let file = folder("config-table").join("node.toml");
    let a = serve("a", &[], &["--voter", "a"]);
    let before = config(&a);
    a.line(&[
        "reconfigure",
        "sync_interval=2s",
        "probe_interval=1s",
        "durability=\"immediate\"",
        "removals_max=9",
    ]);
    a.line(&["settings", "--set", "mesh_members_max=50"]);
    let changed = config(&a);
    drop(a);
    std::fs::write(&file, toml::to_string(&serde_json::json!({ "config": changed })).unwrap()).unwrap();
    let again = serve("a", &[], &["--config", file.to_str().unwrap()]);
    assert_eq!(config(&again), changed);
    assert_ne!(changed, before);
}

#[test]
fn flags_go_before_the_fields_of_a_settings_file() {
    let file = folder("config-order").join("node.toml");
    let text =
        "lease_time = '400ms'\nforget_after = '2d'\n[config]\nalone_after = '20s'\nsync_interval = '3s'\n";
    std::fs::write(&file, text).unwrap();
    let mut command = program();
    command.args(SERVE_A).args(["--profile", "local", "--alone-after", "30s", "--config"]).arg(&file);
    command.args(["--set", "lease_time=700ms"]).env("TIDINGS_SECRET", common::SECRET);
    let node = config(&common::start(command));
    let fields = ["lease_time", "forget_after", "alone_after", "sync_interval", "lease_time_max"];
    assert_eq!(fields.map(|field| node[field].as_str().unwrap()), ["700ms", "2days", "30s", "3s", "1s"]);
    // The same by the environment.
    let mut command = program();
    command.args(SERVE_A).args(["--profile", "local"]).env("TIDINGS_SECRET", common::SECRET);
    command.env("TIDINGS_SET", "sync_interval=4s,mesh_members_max=7");
    let node = config(&common::start(command));
    assert_eq!((node["sync_interval"].as_str(), node["mesh_members_max"].as_u64()), (Some("4s"), Some(7)));
}

#[test]
fn wrong_fields_of_a_settings_file_are_named() {
    let file = folder("config-wrong").join("node.toml");
    for (text, more, expected) in [
        ("[config]\nsync_intervall = '1s'", &[][..], "\"sync_intervall\" is no field"),
        ("[config]\nlisten = '127.0.0.1:0'", &[], "\"listen\" is no field"),
        (
            "lease_time = '1s'\n[config]\nlease_time = '1s'",
            &[],
            "\"lease_time\" is given twice: as lease_time",
        ),
        ("disk_interval = '1s'\n[config]\ndurability = 'immediate'", &[], "given twice: as disk_interval"),
        ("[config]\nsync_interval = '1s'\nsync_interval = '2s'", &[], "\"sync_interval\" is given twice"),
        ("", &["--set", "sync_interval=1s", "--set", "sync_interval=1s"], "\"sync_interval\" is given twice"),
        ("", &["--set", "sync_interval"], "expected FIELD=VALUE"),
        ("[config]\nsync_interval = 'soon'", &[], "sync_interval: "),
        ("[config]\nsync_interval = '2h'", &[], "sync_interval is 7200 s, permitted: 10 ms to 1 h"),
        ("config = 1", &[], "the value of \"config\""),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut command = program();
        command.args(SERVE_A).args(more).arg("--config").arg(&file).env("TIDINGS_SECRET", common::SECRET);
        let refused = command.output().unwrap();
        assert!(
            code(&refused) != 0 && said(&refused).contains(expected),
            "{text} {more:?}: {}",
            said(&refused)
        );
    }
}

#[test]
fn http_bodies_follow_the_limit_of_values() {
    let node = serve("a", &[], &["--value-bytes-max", "1000"]);
    let bodies = [("PUT", "/v1/kv/k"), ("POST", "/v1/check/k")];
    let statuses = |bytes: usize| {
        bodies.map(|(verb, path)| ask(verb, &format!("{}{path}", node.http), &[], &vec![b'1'; bytes]).status)
    };
    assert_eq!((statuses(1_000), statuses(1_001)), ([200; 2], [413; 2]));
    // Above the limit at the start, and above the 2 MiB that the HTTP library takes by itself.
    node.line(&["reconfigure", "value_bytes_max=3000000"]);
    assert_eq!((statuses(3_000_000), statuses(3_000_001)), ([200; 2], [413; 2]));
    node.line(&["reconfigure", "value_bytes_max=10"]);
    let refused = ask("PUT", &format!("{}/v1/kv/k", node.http), &[], &[b'1'; 11]);
    assert!(refused.status == 413 && refused.json()["error"].as_str().unwrap().contains("10 bytes"));
}
