//! Real nodes with real directories: restarts, failing disks, snapshots and the formats of all versions here,
//! damaged files in `damage`, killed processes in `kills`, changes of the voters in `voters`.
//!
//! The rules of durability are tested in the simulator, with negative controls, in `faulty_disks.rs` and `stories.rs`.

mod damage;
mod kills;
mod voters;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tidings::{
    Config, Durability, MemberState, Node, NodeEvent, PutOptions, Quorum, StartError, WaitError, WatchEvent,
    WatchOptions, WriteError,
};
use tidings_proptest::Folder;
use tidings_proptest::nodes::{self, GUARD, builder, guarded, ready, until};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { _ = fs::copy(entry.path(), to).unwrap() }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() { all.extend(files(&entry.path())) } else { all.push(entry.path()) }
    }
    all.sort();
    all
}

async fn start(name: &str, seeds: &[&Node], dir: &Path) -> Node {
    ready(builder(name, seeds).data_dir(dir)).await
}

/// All registers of a node: keys and values.
fn registers(node: &Node) -> Vec<(String, Vec<u8>)> {
    node.scan("").iter().map(|entry| (entry.key().to_owned(), entry.value().to_vec())).collect()
}

/// Waits until all nodes have equal roots and equal vectors.
async fn agree(nodes: &[&Node]) {
    let state = |node: &Node| node.status().store.map(|store| (store.root, store.vector_hash));
    until(|| nodes.iter().all(|node| state(node) == state(nodes[0]))).await;
}

/// Waits for an event of this kind.
async fn event(node: &Node, is_it: impl Fn(&NodeEvent) -> bool) -> NodeEvent {
    nodes::event(node, |event| is_it(&event).then_some(event)).await
}

/// The start is dropped at each of the places where it waits, as a time limit around it would do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_start_releases_its_directory() {
    let folder = Folder::new();
    let dir = folder.at("a");
    start("a", &[], &dir).await.shutdown().await;
    for polls in 1..4 {
        let mut starting = Box::pin(builder("a", &[]).data_dir(&dir).start());
        let mut so_far = 0;
        let begun = std::future::poll_fn(|cx| {
            so_far += 1;
            let polled = starting.as_mut().poll(cx);
            if so_far == polls { Poll::Ready(polled) } else { polled.map(Poll::Ready) }
        });
        drop(guarded(begun).await);
        drop(starting);
        let again = async {
            loop {
                match builder("a", &[]).data_dir(&dir).start().await {
                    Ok(node) => return node,
                    Err(StartError::DataDirInUse { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        guarded(again).await.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_everything_and_is_a_new_run() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    a.put("k", "v").unwrap();
    a.put("gone", "v").unwrap();
    a.delete("gone").unwrap();
    a.put_with("soon", "v", PutOptions::new().ttl(Duration::from_secs(3_600))).unwrap();
    a.set("s").add("x").unwrap();
    a.counter("c").add(7).unwrap();
    // A shutdown writes also what nobody waited for.
    a.shutdown().await;
    let before = (a.status().run, a.status().store.unwrap().root);
    let a = start("a", &[], &folder.0).await;
    assert_ne!(a.status().run, before.0);
    assert_eq!(a.status().store.unwrap().root, before.1);
    assert_eq!(a.get("k").unwrap().value(), b"v");
    assert!(a.get("gone").is_none() && a.get("soon").unwrap().expires_at().is_some());
    assert!(a.set("s").contains("x"));
    a.counter("c").add(1).unwrap().durable().await.unwrap();
    a.shutdown().await;
    let a = start("a", &[], &folder.0).await;
    assert_eq!(a.counter("c").value(), 8);
    assert_eq!(a.status().store.unwrap().origins, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_changed_during_a_transaction_keep_the_last_value() {
    let folder = Folder::new();
    let config = || {
        let mut config = Config::local();
        (config.durability, config.clock_skew_max) = (Durability::Immediate, Duration::from_millis(1));
        config
    };
    for round in 0..4 {
        let a = builder("a", &[]).config(config()).data_dir(&folder.0).start().await.unwrap();
        // Many times the rows of one part. Keys are written, removed, expired and written again while parts are taken.
        for write in 0..60_000_u32 {
            let key = format!("k{}", write.wrapping_mul(2_654_435_761) % 12_000);
            match write % 7 {
                0 => _ = a.delete(&key).unwrap(),
                1 => {
                    let short = PutOptions::new().ttl(Duration::from_millis(1));
                    _ = a.put_with(&key, "short", short).unwrap();
                }
                _ => _ = a.put(&key, format!("{round} {write}")).unwrap(),
            }
        }
        a.put("last", "v").unwrap().durable().await.unwrap();
        a.shutdown().await;
        let lasting = |node: &Node| {
            let entries = node.scan("").into_iter().filter(|entry| entry.expires_at().is_none());
            entries.map(|entry| (entry.key().to_owned(), entry.value().to_vec())).collect::<Vec<_>>()
        };
        // A wrong row would not add up to the root in the same transaction, and the start would fail.
        let b = builder("a", &[]).config(config()).data_dir(&folder.0).start().await.unwrap();
        assert_eq!(lasting(&b), lasting(&a));
        b.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_writers_share_disk_syncs() {
    let folder = Folder::new();
    let mut config = Config::local();
    // The interval is an hour; a wait for `durable` must cause a sync at once.
    config.durability = Durability::Interval(Duration::from_secs(3_600));
    let a = builder("a", &[]).config(config).data_dir(&folder.0).start().await.unwrap();
    let writers = (0..200).map(|i| {
        let a = a.clone();
        tokio::spawn(async move { a.put(format!("k/{i}"), "v").unwrap().durable().await })
    });
    for writer in writers.collect::<Vec<_>>() {
        guarded(writer).await.unwrap().unwrap();
    }
    let last = a.put("last", "v").unwrap();
    last.durable().await.unwrap();
    assert_eq!(a.status().store.unwrap().durable, Some(last.revision()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shorter_interval_counts_for_the_next_write() {
    let folder = Folder::new();
    let with = |interval| {
        let mut config = Config::local();
        config.durability = Durability::Interval(interval);
        config
    };
    let a = builder("a", &[]).config(with(Duration::from_secs(3_600))).data_dir(folder.at("a"));
    let a = a.start().await.unwrap();
    for round in 0..4 {
        a.reconfigure(with(Duration::from_secs(3_600))).unwrap();
        a.put("k", format!("first {round}")).unwrap().durable().await.unwrap();
        a.reconfigure(with(Duration::from_millis(50))).unwrap();
        // This takes longer than the thread of the disk needs to find that there is nothing to write.
        a.snapshot(folder.at("snapshot")).await.unwrap();
        let last = a.put("k", format!("second {round}")).unwrap();
        until(|| a.status().store.unwrap().durable == Some(last.revision())).await;
    }
    let second = folder.at("second");
    copy(&folder.at("a"), &second);
    let copied = start("a", &[], &second).await;
    assert_eq!(copied.get("k").unwrap().value(), b"second 3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_belongs_to_one_node_at_a_time() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    let second = builder("b", &[]).data_dir(&folder.0).start().await.unwrap_err();
    assert_eq!(second, StartError::DataDirInUse { path: folder.0.display().to_string() });
    a.shutdown().await;
    start("b", &[], &folder.0).await.shutdown().await;
    let file = folder.at("file");
    fs::write(&file, "").unwrap();
    let error = builder("a", &[]).data_dir(&file).start().await.unwrap_err();
    assert!(matches!(error, StartError::DataDir { .. }), "{error}");
}

/// A child process inherits, for a moment at its start, every open file of its parent, the locked one included.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_is_free_after_shutdown_despite_child_processes() {
    let folder = Folder::new();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let halt = stop.clone();
    let starting = std::thread::spawn(move || {
        while !halt.load(Ordering::Relaxed) {
            _ = std::process::Command::new("true").status().unwrap();
        }
    });
    let mut starts = Vec::new();
    for _ in 0..500 {
        let started = builder("a", &[]).data_dir(&folder.0).start().await;
        starts.push(started.as_ref().err().map(StartError::to_string));
        if let Ok(node) = started {
            node.shutdown().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    starting.join().unwrap();
    assert!(starts.iter().all(Option::is_none), "{starts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_and_a_cloned_image_are_harmless() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.at("a")).await;
    let b = start("b", &[&a], &folder.at("b")).await;
    b.put("gone", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    b.shutdown().await;
    copy(&folder.at("b"), &folder.at("backup"));
    copy(&folder.at("b"), &folder.at("clone"));
    let b = start("b", &[&a], &folder.at("b")).await;
    b.put("later", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    a.delete("gone").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    b.shutdown().await;
    // The backup lacks later writes of its own node, and still holds a value that was deleted since.
    let b = start("b", &[&a], &folder.at("backup")).await;
    let clone = start("c", &[&a, &b], &folder.at("clone")).await;
    b.put("from", "b").unwrap();
    clone.put("from", "c").unwrap();
    agree(&[&a, &b, &clone]).await;
    for node in [&a, &b, &clone] {
        assert!(node.get("gone").is_none());
        assert_eq!(node.get("later").unwrap().value(), b"v");
        assert_eq!(node.get("from").unwrap().value(), a.get("from").unwrap().value());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_writes_until_there_is_room() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    let b = ready(builder("b", &[&a])).await;
    a.put("before", "v").unwrap().durable().await.unwrap();
    agree(&[&a, &b]).await;
    a.fail_disk(Some(ErrorKind::StorageFull));
    let receipt = a.put("during", "v").unwrap();
    assert!(matches!(guarded(receipt.durable()).await, Err(WaitError::DiskFailed { .. })));
    let told = event(&a, |event| matches!(event, NodeEvent::DiskFailed { .. })).await;
    assert!(matches!(told, NodeEvent::DiskFailed { may_pass: true, .. }), "{told:?}");
    assert_eq!(a.put("k", "v").unwrap_err(), WriteError::Disk);
    assert_eq!(a.set("s").add("x").unwrap_err(), WriteError::Disk);
    assert_eq!(a.batch().delete("before").commit().unwrap_err(), WriteError::Disk);
    let mut watch = a.watch_with("other", WatchOptions::new().exact());
    b.put("other", "v").unwrap();
    b.delete("before").unwrap();
    while !matches!(guarded(watch.next()).await, Some(WatchEvent::Put(_))) {}
    assert!(a.status().store.unwrap().has_disk_failed);
    a.fail_disk(None);
    event(&a, |event| *event == NodeEvent::DiskBack).await;
    a.put("after", "v").unwrap().durable().await.unwrap();
    agree(&[&a, &b]).await;
    a.shutdown().await;
    b.shutdown().await;
    let a = start("a", &[], &folder.0).await;
    let keys: Vec<String> = registers(&a).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["after", "during", "other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_that_cannot_sync_acknowledges_nothing() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    a.put("safe", "v").unwrap().durable().await.unwrap();
    a.fail_disk(Some(ErrorKind::Other));
    let receipt = a.put("unsafe", "v").unwrap();
    assert!(matches!(guarded(receipt.durable()).await, Err(WaitError::DiskFailed { .. })));
    let told = event(&a, |event| matches!(event, NodeEvent::DiskFailed { .. })).await;
    assert!(matches!(told, NodeEvent::DiskFailed { may_pass: false, .. }), "{told:?}");
    assert!(a.get("unsafe").is_some());
    guarded(a.shutdown()).await;
    let a = start("a", &[], &folder.0).await;
    assert!(a.get("safe").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_whose_disk_thread_panics_is_expected_back() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    let b = ready(builder("b", &[&a])).await;
    let state = || b.members().into_iter().find(|member| member.name == "a").map(|member| member.state);
    until(|| state() == Some(MemberState::Alive)).await;
    a.panic_on_disk();
    // The thread may have panicked already, and closed the node.
    _ = a.put("k", "v");
    until(|| a.is_closed()).await;
    until(|| state() != Some(MemberState::Alive)).await;
    assert_eq!(state(), Some(MemberState::Down), "it did not leave");
    guarded(a.shutdown()).await;
    assert_eq!(state(), Some(MemberState::Down));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_starts_a_node_where_no_peer_can_be_reached() {
    let folder = Folder::new();
    let (file, dir) = (folder.at("last.snapshot"), folder.at("b"));
    let a = builder("a", &[]).start().await.unwrap();
    for i in 0..10_000 {
        a.put(format!("k/{i}"), format!("{i}")).unwrap();
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (writer, halt) = (a.clone(), stop.clone());
    let writing = std::thread::spawn(move || {
        let mut i = 0_u32;
        while !halt.load(Ordering::Relaxed) {
            i += 1;
            writer.put(format!("k/{}", i % 10_000), "w").unwrap();
            writer.delete(format!("k/{}", (i + 5_000) % 10_000)).unwrap();
        }
    });
    a.snapshot(&file).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    a.delete("k/1").unwrap();
    let b = builder("b", &[]).data_dir(&dir).restore(&file).start().await.unwrap();
    assert!(b.len() > 1_000);
    b.put("own", "v").unwrap().durable().await.unwrap();
    let restored = registers(&b);
    b.shutdown().await;
    // The directory holds data now, so that the snapshot is ignored.
    let b = builder("b", &[&a]).data_dir(&dir).restore(&file).start().await.unwrap();
    assert_eq!(registers(&b), restored);
    agree(&[&a, &b]).await;
    assert!(a.get("k/1").is_none() && a.get("own").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_snapshots_do_not_interfere() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.at("a")).await;
    let value = vec![b'x'; 10_000];
    for number in 0..500 {
        a.put(format!("k/{number}"), &value).unwrap();
    }
    let beside = folder.at("s.tmp");
    fs::write(&beside, "somebody else's").unwrap();
    let files = ["s.1", "s.2", "s.3", "s.3"].map(|name| folder.at(name));
    let mut snapshots = tokio::task::JoinSet::new();
    for file in files.clone() {
        let a = a.clone();
        snapshots.spawn(async move { a.snapshot(file).await });
    }
    assert!(guarded(snapshots.join_all()).await.iter().all(Result::is_ok));
    for file in &files {
        let restored = builder("b", &[]).restore(file).start().await.unwrap();
        assert_eq!(restored.len(), 500);
    }
    assert_eq!(fs::read(beside).unwrap(), b"somebody else's");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 5, "the folder holds a file that is no snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_wait_ends_when_the_node_panics() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.at("a")).await;
    let receipt = a.put("k", "v").unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| a.panic_inside()));
    assert!(panicked.is_err());
    assert_eq!(guarded(receipt.durable()).await, Err(WaitError::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
    let folder = Folder::new();
    let file = folder.at("snapshot");
    let a = builder("a", &[]).start().await.unwrap();
    for i in 0..20 {
        a.put(format!("k/{i}"), "a value").unwrap();
    }
    a.snapshot(&file).await.unwrap();
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        for damaged in [&bytes[..], &whole[..at]] {
            fs::write(&file, damaged).unwrap();
            let error = builder("b", &[]).restore(&file).start().await.unwrap_err();
            assert!(matches!(error, StartError::Snapshot { .. }), "byte {at}: {error}");
            assert!(error.to_string().contains("snapshot"), "{error}");
        }
    }
    fs::write(&file, &whole).unwrap();
    builder("b", &[]).restore(&file).start().await.unwrap();
}

// What every version wrote must stay readable for ever.

const DISK_VERSION: u8 = 4;
/// Snapshots have nothing that needs a later version.
const SNAPSHOT_VERSION: u8 = 3;

const FIXTURE_LEASE_TIME: Duration = Duration::from_secs(4);

fn fixture(version: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/disk-v{version}"))
}

/// Not a test: writes the fixture. To be run for a new disk version only, which gets a directory beside the old ones.
#[tokio::test]
#[ignore = "it writes the fixture"]
async fn write_fixture() {
    let mut config = Config::local();
    config.voters = vec!["a".to_owned()];
    let a = ready(builder("a", &[]).config(config).data_dir(fixture(DISK_VERSION))).await;
    // What version 4 is for: lease times that were changed, in what a voter has promised.
    let mut settings = a.cluster_settings().present;
    settings.lease_time_max = FIXTURE_LEASE_TIME;
    a.set_cluster_settings(settings).await.unwrap();
    a.put("k", "v").unwrap();
    a.batch().put("large", vec![7; 5_000]).put("gone", "v").commit().unwrap();
    a.delete("gone").unwrap();
    a.put_with("late", "v", PutOptions::new().ttl(Duration::from_secs(3_600 * 24 * 365 * 100))).unwrap();
    // Nobody lives any more to whom it is bound.
    a.put_with("bound", "v", PutOptions::new().ephemeral()).unwrap();
    a.set("s").add("x").unwrap();
    // After a failure the engine writes its tables anew, so that the fixture has tables and a journal.
    a.fail_disk(Some(ErrorKind::StorageFull));
    a.put("k", "v").unwrap();
    event(&a, |event| matches!(event, NodeEvent::DiskFailed { .. })).await;
    a.fail_disk(None);
    event(&a, |event| *event == NodeEvent::DiskBack).await;
    a.counter("c").add(-7).unwrap();
    a.shutdown().await;
    drop(a);
    // The engine truncates its journal to its content when it opens it.
    start("a", &[], &fixture(DISK_VERSION)).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_disk_version_is_still_read() {
    for version in 1..=DISK_VERSION {
        let folder = Folder::new();
        copy(&fixture(version), &folder.at("a"));
        let a = start("a", &[], &folder.at("a")).await;
        if version > SNAPSHOT_VERSION {
            assert_eq!(a.cluster_settings().present.lease_time_max, FIXTURE_LEASE_TIME);
            assert_eq!((a.voters().epoch, a.voters().voters), (2, vec!["a".to_owned()]));
        }
        let snapshot = fixture(version.min(SNAPSHOT_VERSION)).with_extension("snapshot");
        let b = builder("b", &[]).restore(snapshot).start().await.unwrap();
        for node in [&a, &b] {
            let keys: Vec<String> = registers(node).into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, ["k", "large", "late"], "version {version}");
            assert_eq!(node.get("large").unwrap().value(), [7; 5_000]);
            assert!(node.get("late").unwrap().expires_at().is_some());
            assert!(node.set("s").contains("x"));
            assert_eq!(node.counter("c").value(), -7);
        }
        if version <= SNAPSHOT_VERSION {
            assert_eq!(b.status().store.unwrap().root, a.status().store.unwrap().root);
        }
        a.put("new", "v").unwrap().durable().await.unwrap();
    }
}
