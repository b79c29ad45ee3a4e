//! Real nodes with real directories: restarts, damage, failing disks, snapshots, and kills at random moments.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use tidings::{
    Builder, Config, Durability, Node, NodeEvent, OnCorruption, PutOptions, Quorum, Security, StartError,
    WaitError, WatchEvent, WriteError,
};
use tidings_proptest::{GUARD, guarded};

/// A folder that vanishes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidings-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

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

fn builder(name: &str, seeds: &[&Node]) -> Builder {
    static SECURITY: std::sync::OnceLock<Security> = std::sync::OnceLock::new();
    let security = SECURITY.get_or_init(|| Security::secret("a secret for tests alone").unwrap());
    let seeds: Vec<String> = seeds.iter().map(|node| node.addr().to_string()).collect();
    Node::builder(name).security(security.clone()).config(Config::local()).seeds(seeds)
}

async fn start(name: &str, seeds: &[&Node], dir: &Path) -> Node {
    let node = builder(name, seeds).data_dir(dir).start().await.unwrap();
    guarded(node.ready()).await.unwrap();
    node
}

/// What the registers of a node are.
fn registers(node: &Node) -> Vec<(String, Vec<u8>)> {
    node.scan("").iter().map(|entry| (entry.key().to_owned(), entry.value().to_vec())).collect()
}

/// Waits until all have the same state and have seen the same.
async fn agree(nodes: &[&Node]) {
    guarded(async {
        let state = |node: &Node| node.status().store.map(|store| (store.root, store.seen));
        while nodes.iter().any(|node| state(node) != state(nodes[0])) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn event(node: &Node, is_it: impl Fn(&NodeEvent) -> bool) -> NodeEvent {
    let mut events = node.events();
    guarded(async {
        loop {
            let event = events.next().await.expect("the node is open");
            if is_it(&event) {
                return event;
            }
        }
    })
    .await
}

/// As with a time limit around it, at any of the places where it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_nobody_waits_for_any_more_gives_its_directory_back() {
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
    // A shutdown writes what nobody waited for.
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
async fn what_changes_while_the_disk_is_taking_it_is_found_as_it_was_last() {
    let folder = Folder::new();
    let config = || {
        let mut config = Config::local();
        (config.durability, config.clock_skew_max) = (Durability::Immediate, Duration::from_millis(1));
        config
    };
    for round in 0..4 {
        let a = builder("a", &[]).config(config()).data_dir(&folder.0).start().await.unwrap();
        // Many times the rows of one part, written, removed, and expired and written again while parts are taken.
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
        // A row that is not what it was would not add up to the root that was written with it, and be refused.
        let b = builder("a", &[]).config(config()).data_dir(&folder.0).start().await.unwrap();
        assert_eq!(lasting(&b), lasting(&a));
        b.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_wait_share_their_syncs_and_each_learns_of_its_own_write() {
    let folder = Folder::new();
    let mut config = Config::local();
    // Nobody waits for an interval that he did not ask for.
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

/// A process that is just being started has, for a moment, every file that its parent has.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_free_after_a_shutdown_although_the_program_starts_others_all_the_time() {
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
    // The backup lacks writes of its own node, and still has what was deleted since.
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
async fn a_full_disk_refuses_writes_while_reads_and_replication_go_on_until_there_is_room() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.0).await;
    let b = builder("b", &[&a]).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
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
    let mut watch = a.watch("other").exact();
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
async fn a_disk_that_cannot_sync_acknowledges_nothing_and_says_so() {
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
    // From now on the directory is what counts.
    let b = builder("b", &[&a]).data_dir(&dir).restore(&file).start().await.unwrap();
    assert_eq!(registers(&b), restored);
    agree(&[&a, &b]).await;
    assert!(a.get("k/1").is_none() && a.get("own").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_are_taken_at_the_same_time_do_not_touch_each_other() {
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
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 5, "and nothing else is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_the_disk_of_a_node_that_panics_is_told_of_its_end() {
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

/// A directory with a table and a journal, and what it holds.
async fn filled(folder: &Folder) -> (PathBuf, Vec<(String, Vec<u8>)>) {
    let dir = folder.at("filled");
    let a = start("a", &[], &dir).await;
    for i in 0..180_u32 {
        // More than the engine keeps in memory, so that there is a table; it does not compress.
        let value: Vec<u8> =
            (0..100_000_u32).map(|at| (at.wrapping_mul(0x9e37_79b1 ^ i) >> 13) as u8).collect();
        a.put(format!("large/{i}"), value).unwrap();
        if i % 50 == 0 {
            a.put("turn", i.to_string()).unwrap().durable().await.unwrap();
        }
    }
    for i in 0..50 {
        a.put(format!("small/{i}"), "v").unwrap().durable().await.unwrap();
    }
    a.shutdown().await;
    (dir, registers(&a))
}

fn is_table(file: &Path) -> bool {
    file.parent().is_some_and(|folder| folder.ends_with("1/tables"))
}

fn journal_of(dir: &Path) -> PathBuf {
    files(dir).into_iter().find(|file| file.extension().is_some_and(|end| end == "jnl")).unwrap()
}

fn rejoining() -> Config {
    let mut config = Config::local();
    config.on_corruption = OnCorruption::Rejoin;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_damaged_is_named_or_does_no_harm() {
    let folder = Folder::new();
    let (dir, held) = filled(&folder).await;
    assert!(files(&dir).iter().any(|file| is_table(file)));
    let mut refused = 0;
    let trial = folder.at("trial");
    for file in files(&dir) {
        let len = fs::metadata(&file).unwrap().len();
        let places = [0, len / 5, len.saturating_sub(1)].into_iter();
        for (at, cuts) in places.flat_map(|at| [(at, false), (at, true)]).filter(|_| len > 0) {
            _ = fs::remove_dir_all(&trial);
            copy(&dir, &trial);
            let hurt = trial.join(file.strip_prefix(&dir).unwrap());
            let mut bytes = fs::read(&hurt).unwrap();
            bytes[at as usize] ^= 0x10;
            bytes.truncate(if cuts { at as usize } else { bytes.len() });
            fs::write(&hurt, bytes).unwrap();
            match builder("a", &[]).data_dir(&trial).start().await {
                Ok(node) => {
                    assert!(registers(&node) == held, "{}, byte {at} of {len}, cut: {cuts}", hurt.display());
                    node.shutdown().await;
                }
                Err(StartError::Damaged { path, .. }) => {
                    let is_named = hurt == Path::new(&path);
                    let is_always = [&["version", "lock"][..], &[]][usize::from(cuts)];
                    let name = hurt.file_name().unwrap().to_str().unwrap();
                    let is_changed_table = is_table(&hurt) && !cuts;
                    assert!(is_named || hurt.starts_with(&path), "{path} instead of {}", hurt.display());
                    assert!(
                        is_named || !(is_changed_table || is_always.contains(&name)),
                        "{}",
                        hurt.display()
                    );
                    refused += 1;
                }
                Err(StartError::DataDir { path, .. }) => assert!(hurt.starts_with(path)),
                Err(error) => panic!("{}: {error}", hurt.display()),
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_rejoins_blank_if_it_is_told_to() {
    let folder = Folder::new();
    let a = start("a", &[], &folder.at("a")).await;
    let (dir, held) = filled(&folder).await;
    let b = start("b", &[&a], &dir).await;
    agree(&[&a, &b]).await;
    b.shutdown().await;
    let table = files(&dir).into_iter().find(|file| is_table(file)).unwrap();
    let mut bytes = fs::read(&table).unwrap();
    bytes[1_000] ^= 1;
    fs::write(&table, bytes).unwrap();
    let refused = builder("b", &[&a]).data_dir(&dir).start().await.unwrap_err();
    assert!(matches!(&refused, StartError::Damaged { path, .. } if Path::new(path) == table), "{refused}");
    let b = builder("b", &[&a]).config(rejoining()).data_dir(&dir).start().await.unwrap();
    let told = event(&b, |event| matches!(event, NodeEvent::DiskDamaged { .. })).await;
    assert!(matches!(told, NodeEvent::DiskDamaged { path, .. } if Path::new(&path) == table));
    agree(&[&a, &b]).await;
    assert!(registers(&a) == held);
    b.put("new", "v").unwrap().durable().await.unwrap();
    b.shutdown().await;
    assert_eq!(start("b", &[&a], &dir).await.len(), held.len() + 1);
}

/// The engine takes a journal without its end for a shorter one. That this is noticed is due to the number beside it:
/// without that, the node starts with less than it said was safe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_lost_its_end_is_noticed_by_the_number_beside_it() {
    let folder = Folder::new();
    let dir = folder.at("a");
    let a = start("a", &[], &dir).await;
    for i in 0..50 {
        a.put(format!("k/{i}"), "v").unwrap().durable().await.unwrap();
    }
    a.shutdown().await;
    drop(a);
    let journal = journal_of(&dir);
    let bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    fs::write(&journal, &bytes[..end - 500]).unwrap();
    let refused = builder("a", &[]).data_dir(&dir).start().await.unwrap_err();
    assert!(matches!(&refused, StartError::Damaged { path, .. } if Path::new(path) == journal), "{refused}");
    fs::write(dir.join("lock"), "").unwrap();
    let less = start("a", &[], &dir).await.len();
    assert!((1..50).contains(&less), "{less}");
}

/// A power failure keeps any pages of what was not synced. What was acknowledged is told by the number beside the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_a_hole_is_left_out_if_it_was_not_safe_and_is_damage_if_it_was() {
    let folder = Folder::new();
    let (dir, trial) = (folder.at("a"), folder.at("trial"));
    let a = start("a", &[], &dir).await;
    a.put("first", vec![1; 20_000]).unwrap().durable().await.unwrap();
    let lock = loop {
        let lock = fs::read(dir.join("lock")).unwrap();
        if !lock.is_empty() {
            break lock;
        }
        tokio::task::yield_now().await;
    };
    a.put("second", vec![2; 20_000]).unwrap().durable().await.unwrap();
    a.shutdown().await;
    let held = registers(&a);
    let hurt = |value: u8, was_safe: bool| {
        _ = fs::remove_dir_all(&trial);
        copy(&dir, &trial);
        let journal = journal_of(&trial);
        let mut bytes = fs::read(&journal).unwrap();
        let at = bytes.windows(8_192).position(|bytes| bytes.iter().all(|byte| *byte == value)).unwrap();
        bytes[at..at + 4_096].fill(0);
        fs::write(&journal, &bytes).unwrap();
        if !was_safe {
            fs::write(trial.join("lock"), &lock).unwrap();
        }
        (journal, bytes)
    };
    hurt(2, false);
    let b = start("a", &[], &trial).await;
    assert!(b.get("second").is_none() && b.get("first").is_some());
    b.put("third", "v").unwrap().durable().await.unwrap();
    b.shutdown().await;
    let b = start("a", &[], &trial).await;
    assert_eq!(b.len(), 2);
    b.shutdown().await;
    for (value, was_safe) in [(1, false), (1, true), (2, true)] {
        let (journal, bytes) = hurt(value, was_safe);
        let refused = builder("a", &[]).data_dir(&trial).start().await.unwrap_err();
        assert!(
            matches!(&refused, StartError::Damaged { path, .. } if Path::new(path) == journal),
            "{refused}"
        );
        assert!(
            value == 2 || fs::read(&journal).unwrap() == bytes,
            "what is damaged elsewhere is left as it is"
        );
    }
    assert_eq!(held.len(), 2);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_at_the_time_is_not_taken_for_damage() {
    let folder = Folder::new();
    let (dir, held) = filled(&folder).await;
    let table = files(&dir).into_iter().find(|file| is_table(file)).unwrap();
    let aside = folder.at("aside");
    fs::rename(&table, &aside).unwrap();
    // It leads to itself: as with too many open files, nothing is known about what is in it.
    std::os::unix::fs::symlink(&table, &table).unwrap();
    let refused = builder("a", &[]).config(rejoining()).data_dir(&dir).start().await.unwrap_err();
    assert!(matches!(&refused, StartError::DataDir { .. }), "{refused}");
    fs::rename(&aside, &table).unwrap();
    assert!(registers(&start("a", &[], &dir).await) == held);
}

/// Both, at all places where a start or a rejoin can be interrupted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_and_a_rejoin_that_were_interrupted_are_gone_on_with() {
    let folder = Folder::new();
    let dir = folder.at("a");
    fs::create_dir_all(dir.join("new")).unwrap();
    fs::write(dir.join("new/0.jnl"), "half of it").unwrap();
    let a = start("a", &[], &dir).await;
    a.put("k", "v").unwrap().durable().await.unwrap();
    a.shutdown().await;
    assert!(!dir.join("new").exists());
    let a = start("a", &[], &dir).await;
    assert_eq!(a.len(), 1);
    a.shutdown().await;

    for has_older in [false, true] {
        for is_forgotten in [false, true] {
            let trial = folder.at(&format!("{has_older} {is_forgotten}"));
            copy(&dir, &trial);
            fs::rename(trial.join("store"), trial.join("moved")).unwrap();
            let moved = files(&trial.join("moved")).len();
            if has_older {
                fs::create_dir_all(trial.join("damaged/older")).unwrap();
            }
            if is_forgotten {
                fs::write(trial.join("lock"), "").unwrap();
            }
            let b = builder("b", &[]).config(rejoining()).data_dir(&trial).start().await.unwrap();
            assert!(b.is_empty());
            b.shutdown().await;
            let kept = files(&trial.join("damaged")).len();
            assert!(kept == moved && !trial.join("moved").exists(), "{kept} of {moved} files are kept");
        }
    }
}

/// Two that find it damaged at the same time: whoever is first keeps the directory for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejoin_never_lets_go_of_its_directory() {
    let folder = Folder::new();
    let dir = folder.at("a");
    start("a", &[], &dir).await.shutdown().await;
    for _ in 0..10 {
        fs::write(dir.join("lock"), "not what was written").unwrap();
        let rejoin = || builder("a", &[]).config(rejoining()).data_dir(&dir).start();
        let (one, other) = tokio::join!(tokio::spawn(rejoin()), tokio::spawn(rejoin()));
        let started: Vec<Node> = [one.unwrap(), other.unwrap()].into_iter().flatten().collect();
        assert_eq!(started.len(), 1, "a directory belongs to one node at a time");
        for node in started {
            node.put("k", "v").unwrap().durable().await.unwrap();
            node.shutdown().await;
        }
        let a = start("a", &[], &dir).await;
        assert_eq!(a.len(), 1);
        a.shutdown().await;
    }
}

// A process that is killed.

/// The tasks of the writing process, and the keys of each.
const TASKS: u64 = 4;
const KEYS: u64 = 10;

fn key(task: u64, op: u64) -> String {
    format!("t{task}/{}", op % KEYS)
}

/// What an operation leaves under its key: each key is put twice, then deleted.
fn outcome(op: u64) -> Option<Vec<u8>> {
    (op / KEYS % 3 != 2).then(|| op.to_string().into_bytes())
}

/// Not a test: the process that the next test kills. Each of its tasks writes one operation after another, and says
/// which are durable.
#[test]
#[ignore = "it is started, and killed, by the test below"]
fn writer_process() {
    let Ok(text) = std::env::var("TIDINGS_WRITER") else { return };
    let mut words = text.split_whitespace();
    let (dir, seeds) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let firsts: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let seeds = seeds.split(',').map(str::to_owned);
        let node = builder("writer", &[]).seeds(seeds).data_dir(dir).start().await.unwrap();
        // What was under way at the last kill may have reached the others alone; a delete has to see it.
        node.ready().await.unwrap();
        let write = |(task, first): (usize, u64)| {
            let node = node.clone();
            tokio::spawn(async move {
                for op in first.. {
                    let key = key(task as u64, op);
                    let receipt =
                        outcome(op).map_or_else(|| node.delete(&key), |value| node.put(&key, value));
                    receipt.unwrap().durable().await.unwrap();
                    println!("\nack {task} {op}");
                }
            })
        };
        let tasks: Vec<_> = firsts.into_iter().enumerate().map(write).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Kills the writer after so many acknowledgements, and reads what else it had said. Answers the last operation that
/// each task was told is durable.
fn write_and_kill(dir: &Path, seeds: &str, acked: &mut [Option<u64>], acks: usize) {
    use std::io::{BufRead, BufReader};
    let firsts: Vec<String> = acked.iter().map(|op| op.map_or(0, |op| op + 1).to_string()).collect();
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--ignored", "--nocapture"])
        .env("TIDINGS_WRITER", format!("{} {seeds} {}", dir.display(), firsts.join(" ")))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut ack = |line: &str| {
        let mut words = line.strip_prefix("ack ")?.split(' ').map(|word| word.parse::<u64>().ok());
        let (task, op) = (words.next()??, words.next()??);
        acked[task as usize] = Some(op);
        Some(())
    };
    let mut left = acks;
    while left > 0 {
        let line = lines.next().expect("it writes until it is killed").unwrap();
        left -= usize::from(ack(&line).is_some());
    }
    process.kill().unwrap();
    lines.map_while(Result::ok).for_each(|line| _ = ack(&line));
    process.wait().unwrap();
}

/// Whether a node has what each task was told is durable. The operation that was under way may have happened.
fn check_acked(node: &Node, acked: &[Option<u64>]) {
    for (task, last) in acked.iter().enumerate() {
        let under_way = last.map_or(0, |op| op + 1);
        for op in under_way.saturating_sub(KEYS)..under_way {
            let key = key(task as u64, op);
            let found = node.get(&key).map(|entry| entry.value().to_vec());
            let may_be_next = op % KEYS == under_way % KEYS && found == outcome(under_way);
            assert!(found == outcome(op) || may_be_next, "{key} after {last:?}: {found:?}");
        }
    }
}

/// `TIDINGS_KILLS` sets how often: 200 for the long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_under_load_loses_nothing_that_it_said_was_safe() {
    let kills = std::env::var("TIDINGS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let mut dice = tidings_proptest::Dice::new(7);
    let folder = Folder::new();
    let dir = folder.at("writer");
    let b = start("b", &[], &folder.at("b")).await;
    let c = builder("c", &[&b]).start().await.unwrap();
    guarded(c.ready()).await.unwrap();
    let seeds = format!("{},{}", b.addr(), c.addr());
    let mut acked = [None; TASKS as usize];
    for kill in 0..kills {
        b.put("others/b", kill.to_string()).unwrap();
        c.put(format!("others/{kill}"), "v").unwrap();
        _ = b.delete(format!("others/{}", kill / 2)).unwrap();
        let acks = [0, 1, 7, 40, 300][dice.below(5)] + dice.below(10);
        let (at, told) = (dir.clone(), seeds.clone());
        let killing = tokio::task::spawn_blocking(move || {
            write_and_kill(&at, &told, &mut acked, acks);
            acked
        });
        acked = killing.await.unwrap();
        // Alone, so that nobody else brings back what it lost.
        let alone = builder("alone", &[]).data_dir(&dir).start().await.unwrap();
        check_acked(&alone, &acked);
        alone.shutdown().await;
    }
    let a = builder("writer", &[&b, &c]).data_dir(&dir).start().await.unwrap();
    agree(&[&a, &b, &c]).await;
    for node in [&a, &b, &c] {
        check_acked(node, &acked);
        assert_eq!(registers(node), registers(&a));
        assert!((0..kills / 2).all(|kill| node.get(format!("others/{kill}")).is_none()));
    }
}

// What this version writes must be readable for ever.

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/disk-v1")
}

/// Not a test: writes the fixture anew. Only ever for a new version, and then beside the old one.
#[tokio::test]
#[ignore = "it writes the fixture"]
async fn write_fixture() {
    let a = start("a", &[], &fixture()).await;
    a.put("k", "v").unwrap();
    a.batch().put("large", vec![7; 5_000]).put("gone", "v").commit().unwrap();
    a.delete("gone").unwrap();
    a.put_with("late", "v", PutOptions::new().ttl(Duration::from_secs(3_600 * 24 * 365 * 100))).unwrap();
    a.set("s").add("x").unwrap();
    // After a failure the engine writes its tables anew: then there are tables and a journal.
    a.fail_disk(Some(ErrorKind::StorageFull));
    a.put("k", "v").unwrap();
    event(&a, |event| matches!(event, NodeEvent::DiskFailed { .. })).await;
    a.fail_disk(None);
    event(&a, |event| *event == NodeEvent::DiskBack).await;
    a.counter("c").add(-7).unwrap();
    a.snapshot(fixture().with_extension("snapshot")).await.unwrap();
    a.shutdown().await;
    drop(a);
    // The engine cuts its journal to what is in it when it opens it.
    start("a", &[], &fixture()).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_version_wrote_is_read() {
    let folder = Folder::new();
    copy(&fixture(), &folder.at("a"));
    let a = start("a", &[], &folder.at("a")).await;
    let b = builder("b", &[]).restore(fixture().with_extension("snapshot")).start().await.unwrap();
    for node in [&a, &b] {
        let keys: Vec<String> = registers(node).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["k", "large", "late"]);
        assert_eq!(node.get("large").unwrap().value(), [7; 5_000]);
        assert!(node.get("late").unwrap().expires_at().is_some());
        assert!(node.set("s").contains("x"));
        assert_eq!(node.counter("c").value(), -7);
        assert_eq!(node.status().store.unwrap().root, a.status().store.unwrap().root);
    }
    a.put("new", "v").unwrap().durable().await.unwrap();
}
