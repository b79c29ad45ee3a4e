//! Starts without peers, and with a store that is not acceptable: the last good values of an earlier run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::Config;
use tidings::Live;
use tidings::live::{LiveError, LiveState, Values};
use tidings::sim::{DiskFault, Sim};
use tidings_proptest::{Folder, ms, nodes};

use crate::{App, Plain, short, shorts, started};

#[test]
fn last_good_values_serve_a_start_without_peers() {
    let folder = Folder::new();
    let path = folder.at("app.lastgood");
    {
        let mut sim = Sim::new(1).nodes(1);
        sim.node(0).batch().put("p/a", "1").put("p/b", "2").commit().unwrap();
        let live = started(Live::<Plain>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
        sim.node(0).put("p/b", "3").unwrap();
        sim.run_for(ms(1));
        sim.node(0).put("p/b", "not a number").unwrap();
        sim.run_for(ms(1));
        assert_eq!(live.state(), LiveState::Rejected);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "a temporary file was left");
    }
    let mut sim = Sim::new(2).nodes(2);
    sim.partition(&[0], &[1]);
    let builder = Live::<Plain>::builder(&sim.node(0), "p/");
    let builder = builder.last_good(&path).over(Values::new("env", json!({"b": 30})));
    let live = started(builder, &mut sim).unwrap();
    assert!(sim.now() >= Duration::from_secs(5));
    let kept = Plain::from([("a".to_owned(), 1), ("b".to_owned(), 30)]);
    assert_eq!((&*live.load(), live.state()), (&kept, LiveState::Stale));
    assert_eq!(short(&live.why("a")[0]), "p/a by n0");
    // What this node writes itself counts at once.
    sim.node(0).put("p/a", "10").unwrap();
    sim.run_for(ms(1));
    assert_eq!((live.load()["a"], live.state()), (10, LiveState::Stale));
    sim.node(0).put("p/a", "{").unwrap();
    sim.run_for(ms(1));
    assert_eq!((live.load()["a"], live.state(), live.rejected().len()), (10, LiveState::Stale, 1));
    sim.node(0).put("p/a", "11").unwrap();
    sim.node(1).put("p/c", "5").unwrap();
    sim.heal();
    sim.run_for(ms(10_000));
    let joined = Plain::from([("a".to_owned(), 11), ("b".to_owned(), 30), ("c".to_owned(), 5)]);
    assert_eq!((&*live.load(), live.state()), (&joined, LiveState::Current));
    assert!(fs::read_to_string(&path).unwrap().contains("p/c"));
}

#[test]
fn start_without_peers_and_without_last_good_says_so() {
    let mut sim = Sim::new(1).nodes(2);
    sim.partition(&[0], &[1]);
    sim.node(1).put("p/db/pool", "1").unwrap();
    let alone = started(Live::<App>::builder(&sim.node(0), "p/").joined_timeout(ms(100)), &mut sim);
    let Err(LiveError::Alone(_)) = &alone else { panic!("{alone:?}") };
    // What the node holds itself counts, and is called stale.
    let live = started(Live::<Plain>::builder(&sim.node(0), "q/").joined_timeout(ms(100)), &mut sim).unwrap();
    sim.node(0).put("q/a", "1").unwrap();
    sim.run_for(ms(1));
    assert_eq!((live.load()["a"], live.state()), (1, LiveState::Stale));
    sim.heal();
    sim.run_for(ms(10_000));
    assert_eq!(live.state(), LiveState::Current);
}

#[test]
fn node_that_is_alone_keeps_a_file_that_is_newer() {
    let folder = Folder::new();
    let path = folder.at("good");
    let mut sim = Sim::new(1).config(Config::local()).seeds(&[0, 1]).nodes_with_disk(2);
    let start =
        |sim: &mut Sim| started(Live::<Plain>::builder(&sim.node(0), "p/").last_good(&path), sim).unwrap();
    let plain = |fields: &[(&str, u32)]| -> Plain {
        fields.iter().map(|(field, value)| ((*field).to_owned(), *value)).collect()
    };
    sim.run_for(ms(10_000));
    sim.node(1).batch().put("p/a", "1").put("p/gone", "1").commit().unwrap();
    sim.run_for(ms(10_000));
    let live = start(&mut sim);
    sim.disk_fault(0, Some(DiskFault::Full));
    sim.node(1).put("p/x", "1").unwrap();
    sim.run_for(ms(1_000));
    let kept = plain(&[("a", 1), ("gone", 1), ("x", 1)]);
    assert_eq!((&*live.load(), live.state()), (&kept, LiveState::Current));
    let file = fs::read(&path).unwrap();
    (0..2).for_each(|i| sim.crash(i));
    sim.disk_fault(0, None);

    sim.restart(0);
    let live = start(&mut sim);
    assert_eq!((&*live.load(), live.state()), (&kept, LiveState::Stale));
    sim.run_for(ms(60_000));
    let node = sim.node(0);
    assert!(node.joining().is_ready && node.get("p/x").is_none(), "it is alone, and its disk is older");
    assert_eq!((&*live.load(), live.state()), (&kept, LiveState::Stale));
    // What it writes and deletes itself counts, also after another start.
    node.put("p/a", "2").unwrap();
    node.delete("p/gone").unwrap();
    sim.run_for(ms(1_000));
    let newer = plain(&[("a", 2), ("x", 1)]);
    assert_eq!((&*live.load(), live.state()), (&newer, LiveState::Stale));
    sim.crash(0);
    sim.restart(0);
    sim.run_for(ms(60_000));
    let live = start(&mut sim);
    assert_eq!((&*live.load(), live.state()), (&newer, LiveState::Stale));
    assert_eq!(fs::read(&path).unwrap(), file, "nothing is kept of a store that may be older");

    sim.restart(1);
    sim.run_for(ms(60_000));
    assert_eq!((&*live.load(), live.state()), (&newer, LiveState::Current));
    assert_ne!(fs::read(&path).unwrap(), file);
}

#[test]
fn unusable_file_of_last_good_values_is_named() {
    let (folder, mut sim) = (Folder::new(), Sim::new(1).nodes(2));
    sim.partition(&[0], &[1]);
    let path = folder.at("bad");
    for content in
        ["{", "{}", "{\"format\":9,\"of\":\"p/\",\"keys\":{}}", "{\"format\":1,\"of\":\"q/\",\"keys\":{}}"]
    {
        fs::write(&path, content).unwrap();
        let builder = Live::<Plain>::builder(&sim.node(0), "p/").joined_timeout(ms(10)).last_good(&path);
        let live = started(builder, &mut sim).unwrap();
        assert_eq!((live.load().len(), live.state()), (0, LiveState::Stale));
        assert!(live.rejected()[0].to_string().contains("of the last good values"), "{}", live.rejected()[0]);
    }
    // What is no file, or leads to none.
    let (round, other, directory) = (folder.at("round"), folder.at("other"), folder.at("directory"));
    fs::create_dir(&directory).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&other, &round).unwrap();
        std::os::unix::fs::symlink(&round, &other).unwrap();
    }
    // What is not read, because that would take for ever or too much: the reason is named as well.
    let pipe = folder.at("pipe");
    #[cfg(unix)]
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    #[cfg(unix)]
    let device = {
        let device = folder.at("device");
        std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
        device
    };
    let large = folder.at("large");
    // As large as may be: it is read, and is not JSON.
    fs::File::create(&large).unwrap().set_len(64 << 20).unwrap();
    let reasons = [
        (&directory, "no regular file"),
        #[cfg(unix)]
        (&pipe, "no regular file"),
        #[cfg(unix)]
        (&device, "no regular file"),
        (&large, "expected value"),
    ];
    let rejected = |sim: &mut Sim, path: &Path| {
        let builder = Live::<Plain>::builder(&sim.node(0), "p/").joined_timeout(ms(10)).last_good(path);
        let live = started(builder, sim).unwrap();
        assert_eq!((live.load().len(), live.state()), (0, LiveState::Stale));
        live.rejected()[0].to_string()
    };
    for (path, reason) in reasons {
        let error = rejected(&mut sim, path);
        assert!(error.contains(path.to_str().unwrap()) && error.contains(reason), "{error}");
    }
    fs::File::options().write(true).open(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(rejected(&mut sim, &large).contains("more than 67108864 bytes"));
    for path in [directory, round] {
        let builder = Live::<Plain>::builder(&sim.node(0), "p/").joined_timeout(ms(10)).last_good(&path);
        let live = started(builder, &mut sim).unwrap();
        let named = format!("the file {} of the last good values", path.display());
        assert!(live.rejected()[0].to_string().starts_with(&named), "{}", live.rejected()[0]);
    }
    // A path at which no file can be: it goes on without.
    let mut sim = Sim::new(1).nodes(1);
    let builder = Live::<Plain>::builder(&sim.node(0), "p/").last_good(folder.at("no/such/folder"));
    let live = started(builder, &mut sim).unwrap();
    assert_eq!((live.state(), live.rejected().len()), (LiveState::Current, 1));
    sim.node(0).put("p/a", "1").unwrap();
    sim.run_for(ms(1));
    assert_eq!((live.load()["a"], live.state(), live.rejected().len()), (1, LiveState::Current, 1));
}

#[test]
fn last_good_values_are_written_once_the_disk_permits() {
    let (folder, mut sim) = (Folder::new(), Sim::new(1).nodes(1));
    sim.node(0).put("p/a", "1").unwrap();
    let path = folder.at("late/good");
    let live = started(Live::<Plain>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
    sim.run_for(ms(10_000));
    assert_eq!((live.state(), live.rejected().len()), (LiveState::Current, 1));
    fs::create_dir(folder.at("late")).unwrap();
    sim.run_for(ms(60_000));
    assert_eq!((live.state(), live.rejected().len()), (LiveState::Current, 0));
    assert!(fs::read_to_string(&path).unwrap().contains("p/a"));
}

#[test]
fn value_nested_too_deep_leaves_the_last_good_file_readable() {
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let folder = Folder::new();
    for depth in [100, 101, 123, 124, 125, 127] {
        let path = folder.at(&depth.to_string());
        let mut sim = Sim::new(1).nodes(1);
        sim.node(0).put("p/a", "1").unwrap();
        let live = started(Live::<Value>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
        sim.node(0).put("p/b/c", nested(depth)).unwrap();
        sim.run_for(ms(10));
        let is_taken = depth <= 100;
        let state = if is_taken { LiveState::Current } else { LiveState::Rejected };
        assert_eq!((live.state(), live.rejected().len()), (state, usize::from(!is_taken)), "{depth}");
        drop(live);
        let mut sim = Sim::new(2).nodes(2);
        sim.partition(&[0], &[1]);
        let live = started(Live::<Value>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
        assert_eq!((live.state(), live.rejected().len()), (LiveState::Stale, 0), "{depth}");
        assert_eq!((&live.load()["a"], live.load()["b"].is_null()), (&json!(1), !is_taken), "{depth}");
    }
}

#[test]
fn last_good_values_serve_where_the_store_is_not_acceptable() {
    let (folder, mut sim) = (Folder::new(), Sim::new(1).nodes(1));
    let path = folder.at("good");
    sim.node(0).put("p/a", "1").unwrap();
    let live = started(Live::<Plain>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
    drop(live);
    sim.node(0).put("p/a", "{").unwrap();
    let live = started(Live::<Plain>::builder(&sim.node(0), "p/").last_good(&path), &mut sim).unwrap();
    assert_eq!((live.load()["a"], live.state()), (1, LiveState::Rejected));
    assert_eq!(shorts(&live.rejected()), ["p/a by n0 [a]"]);
}

/// A node whose only seed does not answer, with the file of an earlier run; then the seed is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_with_a_dead_seed_serves_its_last_good_values() {
    let folder = Folder::new();
    let path = folder.at("app.lastgood");
    let seed = nodes::start("seed", &[]).await;
    let builder = nodes::builder("a", &[&seed]);
    let a = nodes::ready(nodes::builder("a", &[&seed])).await;
    seed.put("p/a", "1").unwrap();
    nodes::until(|| a.get("p/a").is_some()).await;
    let live = Live::<Plain>::builder(&a, "p/").last_good(&path).start().await.unwrap();
    assert_eq!((live.load()["a"], live.state()), (1, LiveState::Current));
    a.shutdown().await;
    let addr = seed.addr();
    seed.shutdown().await;

    let a = builder.start().await.unwrap();
    let dead = Live::<Plain>::builder(&a, "p/").joined_timeout(ms(200));
    let live = dead.last_good(&path).start().await.unwrap();
    assert_eq!((live.load()["a"], live.state()), (1, LiveState::Stale));
    assert_eq!(short(&live.why("a")[0]), "p/a by seed");
    // The control: without the file there is nothing.
    let bare = Live::<Plain>::builder(&a, "p/").joined_timeout(ms(200)).start().await.unwrap();
    assert_eq!((bare.load().len(), bare.state()), (0, LiveState::Stale));
    a.put("p/b", "2").unwrap();
    nodes::until(|| live.load().len() == 2).await;
    assert_eq!(live.state(), LiveState::Stale);
    let seed = nodes::builder("seed", &[]).listen(addr).start().await.unwrap();
    seed.put("p/a", "7").unwrap();
    nodes::until(|| live.state() == LiveState::Current && live.load()["a"] == 7).await;
    assert_eq!(live.load()["b"], 2);
    tokio::join!(a.shutdown(), seed.shutdown());
}
