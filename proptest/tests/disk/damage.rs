//! Directories with a fault: damaged, half made, or not readable at the moment. Bytes are flipped and files truncated
//! in copies of a good directory. The start must name the damaged file, or find everything that was written.
//!
//! What proves that the checks can fail: without the number in the lock file a truncated journal goes unseen, see
//! `lock_file_number_detects_a_truncated_journal`.

use tidings::OnCorruption;

use super::*;

/// A directory with a table and a journal, and the registers in it.
async fn filled(folder: &Folder) -> (PathBuf, Vec<(String, Vec<u8>)>) {
    let dir = folder.at("filled");
    let a = start("a", &[], &dir).await;
    for i in 0..180_u32 {
        // More than the engine keeps in memory, and incompressible, so that there is a table.
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
async fn damaged_file_is_named_or_does_no_harm() {
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
                Err(StartError::Damaged { path, reason }) => {
                    let said = reason.to_string();
                    assert!(!said.contains("Error: "), "{said} is in Rust's debug form");
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
async fn damaged_node_rejoins_blank_if_configured() {
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

/// The engine takes a truncated journal for a shorter one. Only the number of the last transaction in the lock file
/// shows that writes are missing. The control empties the lock file: then the node starts with fewer rows than it
/// acknowledged as durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_file_number_detects_a_truncated_journal() {
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

/// After a power failure any page of an unsynced transaction may be missing. The number in the lock file tells which
/// transactions were acknowledged: an acknowledged one with a hole is damage, a later one is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hole_in_a_journal_is_damage_only_if_acknowledged() {
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
            "a journal that is damaged before its last transaction must not be changed"
        );
    }
    assert_eq!(held.len(), 2);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_file_is_not_taken_for_damage() {
    let folder = Folder::new();
    let (dir, held) = filled(&folder).await;
    let table = files(&dir).into_iter().find(|file| is_table(file)).unwrap();
    let aside = folder.at("aside");
    fs::rename(&table, &aside).unwrap();
    // A symbolic link to itself cannot be opened. As with too many open files, nothing is known about the content.
    std::os::unix::fs::symlink(&table, &table).unwrap();
    let refused = builder("a", &[]).config(rejoining()).data_dir(&dir).start().await.unwrap_err();
    assert!(matches!(&refused, StartError::DataDir { .. }), "{refused}");
    fs::rename(&aside, &table).unwrap();
    assert!(registers(&start("a", &[], &dir).await) == held);
}

/// A first start and a rejoin are interrupted at every place where that is possible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_first_start_and_rejoin_are_continued() {
    let folder = Folder::new();
    let dir = folder.at("a");
    fs::create_dir_all(dir.join("store")).unwrap();
    fs::write(dir.join("store/0.jnl"), "half of it").unwrap();
    fs::write(dir.join("making"), "").unwrap();
    let a = start("a", &[], &dir).await;
    a.put("k", "v").unwrap().durable().await.unwrap();
    a.shutdown().await;
    assert!(!dir.join("making").exists());
    // A directory with data is never taken for half made, whatever the marker says.
    fs::write(dir.join("making"), "").unwrap();
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

/// Two nodes find the directory damaged at the same time. The first keeps its lock during the rejoin, the second fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejoin_never_releases_its_directory() {
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
