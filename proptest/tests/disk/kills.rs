//! A process that writes under load and is killed at random moments. After each kill its directory must hold every
//! operation that was acknowledged as durable. The negative control of this rule is `EarlyPromise` in
//! `faulty_disks.rs`.

use super::*;

/// Tasks of the writing process, and keys per task.
const TASKS: u64 = 4;
const KEYS: u64 = 10;

fn key(task: u64, op: u64) -> String {
    format!("t{task}/{}", op % KEYS)
}

/// The value that an operation leaves under its key. Each key is put twice, then deleted.
fn outcome(op: u64) -> Option<Vec<u8>> {
    (op / KEYS % 3 != 2).then(|| op.to_string().into_bytes())
}

/// Not a test: the process that the test below starts and kills. Each of its tasks writes one operation after another
/// and prints those that are durable.
#[test]
#[ignore = "started and killed by the test below"]
fn writer_process() {
    let Ok(text) = std::env::var("TIDINGS_WRITER") else { return };
    let mut words = text.split_whitespace();
    let (dir, seeds) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let firsts: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let seeds = seeds.split(',').map(str::to_owned);
        let node = builder("writer", &[]).seeds(seeds).data_dir(dir).start().await.unwrap();
        // An operation in progress at the last kill may have reached the other nodes only. A delete must see it first.
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

/// Starts the writer, kills it after `acks` acknowledgements, and reads the rest of its output. Updates in `acked` the
/// last operation of each task that was acknowledged as durable.
fn write_and_kill(dir: &Path, seeds: &str, acked: &mut [Option<u64>], acks: usize) {
    use std::io::{BufRead, BufReader};
    let firsts: Vec<String> = acked.iter().map(|op| op.map_or(0, |op| op + 1).to_string()).collect();
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::writer_process", "--ignored", "--nocapture"])
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
        let line = lines.next().expect("the writer prints until it is killed").unwrap();
        left -= usize::from(ack(&line).is_some());
    }
    process.kill().unwrap();
    lines.map_while(Result::ok).for_each(|line| _ = ack(&line));
    process.wait().unwrap();
}

/// Asserts that a node holds every acknowledged operation. The operation in progress at the kill may have happened too.
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

/// `TIDINGS_KILLS` sets the number of kills, 10 by default; the long run has 200.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_process_loses_no_acknowledged_write() {
    let kills = tidings_proptest::number("TIDINGS_KILLS").unwrap_or(10);
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
        // Without peers, so that no other node restores what the disk lost.
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
