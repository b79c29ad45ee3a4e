//! Starts without the cluster: the last known definitions, and those that the program brings with it.

use std::fs;
use std::sync::{Arc, Mutex};

use tidings::Config;
use tidings::flags::{Flags, FlagsBuilder};
use tidings::live::{LiveError, LiveSource, LiveState};
use tidings::sim::{DiskFault, Sim, SimNode};
use tidings_proptest::{Folder, ms};

use crate::{anonymous, number, shorts};

pub(crate) fn started(builder: FlagsBuilder<SimNode>, sim: &mut Sim) -> Result<Flags<SimNode>, LiveError> {
    let slot = Arc::new(Mutex::new(None));
    let given = slot.clone();
    sim.spawn(async move { *given.lock().unwrap() = Some(builder.start().await) });
    sim.run_for(ms(1));
    slot.lock().unwrap().take().expect("it does not wait")
}

fn bundle(flags: &[(&str, i64)]) -> String {
    let flags: Vec<_> = flags.iter().map(|(name, value)| format!("\"{name}\": {}", number(value))).collect();
    format!("{{\"flags\": {{{}}}}}", flags.join(","))
}

#[test]
fn last_known_flags_serve_a_start_without_peers() {
    let folder = Folder::new();
    let path = folder.at("flags.lastgood");
    {
        let mut sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = started(Flags::builder(&node, "flags/").last_good(&path), &mut sim).unwrap();
        node.put("flags/default/a", number(1)).unwrap();
        node.put("flags/web/b", number(2)).unwrap();
        node.put("flags/default/bad", number(3)).unwrap();
        sim.run_for(ms(1));
        node.put("flags/default/bad", "{").unwrap();
        sim.run_for(ms(1));
        assert_eq!(flags.int("bad", 0, &anonymous()), 3);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "a temporary file was left");
    }
    let mut sim = Sim::new(2).nodes(2);
    sim.partition(&[0], &[1]);
    let node = sim.node(0);
    let builder = Flags::builder(&node, "flags/").last_good(&path).bundled(bundle(&[("a", 10), ("c", 20)]));
    let flags = started(builder, &mut sim).unwrap();
    let values = |flags: &Flags<SimNode>| {
        let own = ["a", "c", "bad"].map(|flag| flags.int(flag, 0, &anonymous()));
        (own, flags.of_set("web").int("b", 0, &anonymous()))
    };
    assert_eq!((values(&flags), flags.state()), (([1, 20, 3], 2), LiveState::Stale));
    // What this node writes itself counts at once, as it is newer.
    node.put("flags/default/a", number(11)).unwrap();
    node.put("flags/default/c", "{").unwrap();
    sim.run_for(ms(1));
    assert_eq!((values(&flags), flags.state()), (([11, 20, 3], 2), LiveState::Stale));
    assert_eq!(shorts(&flags.rejected()), ["flags/default/c by n0"]);
    sim.node(1).put("flags/default/bad", number(4)).unwrap();
    sim.heal();
    sim.run_for(ms(10_000));
    // The cluster has neither `b` nor what the program brings with it; a malformed definition keeps the last good one.
    assert_eq!((values(&flags), flags.state()), (([11, 20, 4], 0), LiveState::Rejected));
    assert!(fs::read_to_string(&path).unwrap().contains("flags/default/bad"));
}

#[test]
fn node_that_is_alone_keeps_flags_that_are_newer() {
    let folder = Folder::new();
    let path = folder.at("flags.lastgood");
    let mut sim = Sim::new(1).config(Config::local()).seeds(&[0, 1]).nodes_with_disk(2);
    let start =
        |sim: &mut Sim| started(Flags::builder(&sim.node(0), "flags/").last_good(&path), sim).unwrap();
    let values = |flags: &Flags<SimNode>| {
        (["a", "gone", "x"].map(|flag| flags.int(flag, 0, &anonymous())), flags.state())
    };
    sim.run_for(ms(10_000));
    sim.node(1).put("flags/default/a", number(1)).unwrap();
    sim.node(1).put("flags/default/gone", number(1)).unwrap();
    sim.run_for(ms(10_000));
    let flags = start(&mut sim);
    sim.disk_fault(0, Some(DiskFault::Full));
    sim.node(1).put("flags/default/x", number(1)).unwrap();
    sim.run_for(ms(1_000));
    assert_eq!(values(&flags), ([1, 1, 1], LiveState::Current));
    let file = fs::read(&path).unwrap();
    (0..2).for_each(|i| sim.crash(i));
    sim.disk_fault(0, None);

    sim.restart(0);
    let flags = start(&mut sim);
    sim.run_for(ms(60_000));
    let node = sim.node(0);
    assert!(node.joining().is_ready && node.get("flags/default/x").is_none(), "it is alone, its disk older");
    assert_eq!(values(&flags), ([1, 1, 1], LiveState::Stale));
    node.put("flags/default/a", number(2)).unwrap();
    node.delete("flags/default/gone").unwrap();
    sim.run_for(ms(1_000));
    assert_eq!(values(&flags), ([2, 0, 1], LiveState::Stale));
    assert_eq!(fs::read(&path).unwrap(), file, "nothing is kept of a store that may be older");
    sim.restart(1);
    sim.run_for(ms(60_000));
    assert_eq!(values(&flags), ([2, 0, 1], LiveState::Current));
}

#[test]
fn faulty_bundle_is_refused_and_faulty_file_reported() {
    let folder = Folder::new();
    let path = folder.at("flags.lastgood");
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    for wrong in ["", "{}", "[]", r#"{"flags": {"a": {}}}"#, r#"{"flags": {}, "$evaluators": 1}"#] {
        let refused = started(Flags::builder(&node, "flags/").bundled(wrong), &mut sim);
        assert!(matches!(refused, Err(LiveError::Rejected(_))), "{wrong}");
    }
    for wrong in
        ["", "{", r#"{"format": 2, "of": "flags/", "keys": {}}"#, r#"{"format": 1, "of": "x/", "keys": {}}"#]
    {
        fs::write(&path, wrong).unwrap();
        let flags = started(Flags::builder(&node, "flags/").last_good(&path), &mut sim).unwrap();
        assert_eq!(flags.state(), LiveState::Current);
        drop(flags);
        sim.run_for(ms(1));
    }
    // A pipe, at which a read would wait: it is replaced by a file once there is something to keep.
    #[cfg(unix)]
    {
        let pipe = folder.at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut sim = Sim::new(1).nodes(2);
        sim.partition(&[0], &[1]);
        let flags = started(Flags::builder(&sim.node(0), "flags/").last_good(&pipe), &mut sim).unwrap();
        assert_eq!(flags.state(), LiveState::Stale);
        let said = flags.rejected()[0].to_string();
        assert!(said.contains("pipe of the last good values") && said.contains("no regular file"), "{said}");
        sim.heal();
        sim.run_for(ms(10_000));
        assert_eq!((flags.state(), flags.rejected().len()), (LiveState::Current, 0));
        assert!(fs::metadata(&pipe).unwrap().is_file());
    }
    // A file that cannot be written is reported as long as that is so.
    let nowhere = folder.at("none").join("flags.lastgood");
    let flags = started(Flags::builder(&node, "flags/").last_good(&nowhere), &mut sim).unwrap();
    sim.run_for(ms(1));
    assert!(matches!(&flags.rejected()[0].from, Some(LiveSource::LastGood { .. })));
    fs::create_dir(folder.at("none")).unwrap();
    node.put("flags/default/a", number(1)).unwrap();
    sim.run_for(ms(1));
    assert_eq!((flags.rejected().len(), flags.int("a", 0, &anonymous())), (0, 1));
    assert!(nowhere.exists());
}

#[test]
fn malformed_shared_rules_keep_the_last_good_ones_over_a_start() {
    let folder = Folder::new();
    let path = folder.at("flags.lastgood");
    let refers = r#"{"state": "ENABLED", "variants": {"on": 1, "off": 0}, "targeting": {"if": [{"$ref": "all"}, "on"]}}"#;
    {
        let mut sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = started(Flags::builder(&node, "flags/").last_good(&path), &mut sim).unwrap();
        node.put("flags/default/$evaluators", r#"{"all": {"==": [1, 1]}}"#).unwrap();
        node.put("flags/default/a", refers).unwrap();
        sim.run_for(ms(1));
        for wrong in [r#"{"all": {"unheard_of": 1}}"#, r#"{"all": true, "other": {"$ref": "none"}}"#, "[]"] {
            node.put("flags/default/$evaluators", wrong).unwrap();
            sim.run_for(ms(1));
            assert_eq!(shorts(&flags.rejected()), ["flags/default/$evaluators by n0"], "{wrong}");
            assert_eq!(flags.int("a", 5, &anonymous()), 1, "{wrong}");
        }
    }
    let mut sim = Sim::new(2).nodes(2);
    sim.partition(&[0], &[1]);
    let flags = started(Flags::builder(&sim.node(0), "flags/").last_good(&path), &mut sim).unwrap();
    assert_eq!((flags.int("a", 5, &anonymous()), flags.state()), (1, LiveState::Stale));
}
