//! How nodes start and end: shutdowns, drops, runtimes that end, panics, and what is left behind.

use std::error::Error;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::task::Poll;

use tidings::{
    Config, ElectionError, Node, NodeEvent, Quorum, Security, StartError, WaitError, WatchOptions, WriteError,
};
use tidings_proptest::nodes::{GUARD, builder, guarded, start, until};

use super::sees;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_start_names_its_cause() {
    let a = start("a", &[]).await;
    let taken = builder("b", &[]).listen(a.addr()).start().await.unwrap_err();
    assert!(matches!(taken, StartError::Bind { addr, .. } if addr == a.addr()), "{taken}");
    let nameless = builder("Not A Name", &[]).start().await.unwrap_err();
    assert!(
        nameless.to_string().contains("Not A Name") && nameless.to_string().contains("1 to 63"),
        "{nameless}"
    );
    let seedless = builder("b", &[]).seeds(["somewhere:x"]).start().await.unwrap_err();
    assert!(seedless.to_string().contains("somewhere"), "{seedless}");
    let open = Node::builder("b").start().await.unwrap_err();
    assert_eq!(open, StartError::NoSecurity);
    let mut config = Config::local();
    config.lag_bytes_max = 1;
    let unfit = builder("b", &[]).config(config).start().await.unwrap_err();
    assert!(unfit.to_string().contains("lag_bytes_max"), "{unfit}");
    // An unreachable seed does not prevent a start. It is tried for ever and reported.
    let b = builder("b", &[]).seeds(["no-such-host.invalid:7400"]).start().await.unwrap();
    let mut events = b.events();
    let event = guarded(events.next()).await.unwrap();
    assert!(matches!(event, NodeEvent::Unreachable { target, .. } if target.starts_with("no-such-host")));
}

/// The operating system's error below an error.
fn io_kind(error: &dyn Error) -> Option<io::ErrorKind> {
    error.source()?.downcast_ref::<io::Error>().map(io::Error::kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_keep_the_error_they_were_made_from() {
    let a = start("a", &[]).await;
    let taken = builder("b", &[]).listen(a.addr()).start().await.unwrap_err();
    assert_eq!(io_kind(&taken), Some(io::ErrorKind::AddrInUse));
    // Nothing can be read or created below a file.
    let below = std::env::current_exe().unwrap().join("below");
    let without_dir = builder("b", &[]).data_dir(&below).start().await.unwrap_err();
    assert!(matches!(without_dir, StartError::DataDir { .. }), "{without_dir}");
    assert_eq!(io_kind(&without_dir), Some(io::ErrorKind::NotADirectory));
    let unread = Security::ca(&below, &below, &below).unwrap_err();
    assert_eq!(io_kind(&unread), Some(io::ErrorKind::NotADirectory));
    let unwritten = a.snapshot(&below).await.unwrap_err();
    assert_eq!(io_kind(&unwritten), Some(io::ErrorKind::NotADirectory));
    a.put("limits/max", "not JSON").unwrap();
    let undecoded = a.map::<u32>("limits/").get("max").unwrap_err();
    let errors: [&dyn Error; 5] = [&taken, &without_dir, &unread, &unwritten, &undecoded];
    for error in errors {
        let source = error.source().expect("the cause is kept");
        assert!(error.to_string().contains(&source.to_string()), "{error}: {source}");
    }
    assert_eq!(builder("b", &[]).listen(a.addr()).start().await.unwrap_err(), taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_node_recovers_everything_on_the_same_port() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    b.put("k", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    let addr = b.addr();
    // Dropping the last handle ends the node.
    drop(b);
    let b = guarded(async {
        loop {
            match builder("b", &[&a]).listen(addr).start().await {
                Ok(node) => return node,
                Err(StartError::Bind { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    guarded(b.ready()).await.unwrap();
    assert_eq!(b.get("k").unwrap().value(), b"v");
    a.put("k", "w").unwrap();
    sees(&b, "k", b"w").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_node_refuses_writes_and_still_answers_reads() {
    let a = start("a", &[]).await;
    a.put("k", "v").unwrap();
    let mut watch = a.watch_with("other", WatchOptions::new().without_current());
    let (set, receipt) = (a.set("s"), a.put("k", "w").unwrap());
    let waiting = tokio::spawn(async move { watch.next().await });
    let clone = a.clone();
    a.shutdown().await;
    assert_eq!(guarded(waiting).await.unwrap(), None);
    assert_eq!(clone.put("k", "x").unwrap_err(), WriteError::Closed);
    assert_eq!(set.add("x").unwrap_err(), WriteError::Closed);
    assert_eq!(receipt.seen_by(Quorum::All, GUARD).await, Err(WaitError::Closed));
    assert_eq!(clone.get("k").unwrap().value(), b"w");
    assert_eq!(clone.scan("").len(), 1);
    clone.shutdown().await;
}

/// A node whose process is stopped as soon as it is linked with this seed, until the sender is dropped.
async fn stopped_peer(seed: &Node) -> std::sync::mpsc::Sender<()> {
    let (held, resumed) = std::sync::mpsc::channel();
    let (is_ready, linked) = tokio::sync::oneshot::channel();
    let seed = seed.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let peer = runtime.block_on(start("stopped", &[&seed]));
        drop(seed);
        _ = is_ready.send(());
        // Nothing of the node runs while its only thread waits here.
        _ = resumed.recv();
        drop(peer);
    });
    guarded(linked).await.unwrap();
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_shutdown_closes_the_node() {
    for is_expected_back in [false, true] {
        let node = start("a", &[]).await;
        let _peer = stopped_peer(&node).await;
        until(|| node.status().peers.len() == 1).await;
        node.put("k", "v").unwrap();
        let ending = node.clone();
        let mut shutdown: Pin<Box<dyn Future<Output = ()>>> = if is_expected_back {
            Box::pin(async move { ending.shutdown_expecting_return().await })
        } else {
            Box::pin(async move { ending.shutdown().await })
        };
        let begun = std::future::poll_fn(|context| Poll::Ready(shutdown.as_mut().poll(context).is_pending()));
        assert!(begun.await, "the peer acknowledges nothing");
        assert!(node.put("k", "w").is_ok(), "it waits for its peer");
        drop(shutdown);
        assert_eq!(node.put("k", "x").unwrap_err(), WriteError::Closed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_is_free_at_once_after_shutdown() {
    let b = start("b", &[]).await;
    let mut addr = ([127, 0, 0, 1], 0).into();
    for _ in 0..30 {
        let a = builder("a", &[&b]).listen(addr).start().await.unwrap();
        guarded(a.ready()).await.unwrap();
        addr = a.addr();
        guarded(a.shutdown()).await;
    }
}

/// A program with several runtimes must not wait in one of them for a node that ended with another.
#[test]
fn every_wait_ends_with_the_runtime_that_a_node_lives_in() {
    use tokio::runtime::Builder as Runtime;
    let elsewhere = Runtime::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut config = Config::local();
    config.voters = vec!["nobody".to_owned()];
    // In a runtime of one thread, tasks that the start spawned have not run yet when it returns.
    for mut home in [Runtime::new_multi_thread(), Runtime::new_current_thread()] {
        let home = home.worker_threads(1).enable_all().build().unwrap();
        let node = home.block_on(builder("a", &[]).config(config.clone()).start()).unwrap();
        let (mut watch, mut events) =
            (node.watch_with("k", WatchOptions::new().without_current()), node.events());
        let (receipt, election) = (node.put("l", "v").unwrap(), node.election("e"));
        let waits = elsewhere.spawn(async move {
            let watching = tokio::spawn(async move { watch.next().await });
            let reading = tokio::spawn(async move { events.next().await });
            tokio::join!(election.campaign("b"), receipt.seen_by(Quorum::Count(2), GUARD), watching, reading)
        });
        // The waits have begun, or begin when the node is closed already. Both must end.
        drop(home);
        let (campaign, seen, watched, event) = elsewhere.block_on(guarded(waits)).unwrap();
        assert_eq!(campaign.unwrap_err(), ElectionError::Closed);
        assert_eq!((seen, watched.unwrap(), event.unwrap()), (Err(WaitError::Closed), None, None));
        elsewhere.block_on(guarded(node.shutdown()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_and_watches_do_not_keep_a_node_alive() {
    let a = start("a", &[]).await;
    let (mut watch, set, addr) = (a.watch(""), a.set("s"), a.addr());
    drop(a);
    guarded(async { while watch.next().await.is_some() {} }).await;
    assert_eq!(set.add("x").unwrap_err(), WriteError::Closed);
    until(|| UdpSocket::bind(addr).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_shut_down_in_the_middle_of_heavy_writing() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (a, value) = (a.clone(), vec![b'x'; 1_000]);
            std::thread::spawn(move || {
                let mut written = 0_u32;
                // Writes as fast as the cluster permits, until the node is closed.
                loop {
                    match a.put(format!("{writer}/{}", written % 5_000), &value) {
                        Ok(_) => written += 1,
                        Err(WriteError::Busy) => std::thread::yield_now(),
                        Err(error) => {
                            assert_eq!(error, WriteError::Closed);
                            break;
                        }
                    }
                }
                written
            })
        })
        .collect();
    sees(&b, "0/1", &[b'x'; 1_000]).await;
    guarded(a.shutdown()).await;
    for writer in writers {
        assert!(writer.join().unwrap() > 0);
    }
    drop(a);
    assert!(b.get("0/1").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_closed_nodes_leak_no_file_and_no_task() {
    let files = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let seed = start("seed", &[]).await;
    let before = files();
    let tasks = tokio::runtime::Handle::current().metrics();
    let tasks_before = tasks.num_alive_tasks();
    for i in 0..2_000 {
        let seeds = if i % 20 == 0 { vec![&seed] } else { vec![] };
        let node = builder(&format!("n{}", i % 7), &seeds).start().await.unwrap();
        node.put("k", "v").unwrap();
        if i % 20 == 0 {
            guarded(node.ready()).await.unwrap();
            node.shutdown().await;
        } else if i % 2 == 0 {
            guarded(node.shutdown()).await;
        }
    }
    until(|| files() <= before + 2 && tasks.num_alive_tasks() <= tasks_before + 2).await;
    assert!(seed.get("k").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_panics_closes_its_node_and_reads_go_on() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    a.put("k", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    let mut watch = a.watch_with("k", WatchOptions::new().without_current());
    let waiting = tokio::spawn(async move { watch.next().await });
    let clone = a.clone();
    assert!(std::thread::spawn(move || clone.panic_inside()).join().is_err());
    assert_eq!(a.put("k", "w").unwrap_err(), WriteError::Closed);
    assert_eq!(guarded(waiting).await.unwrap(), None);
    assert_eq!(a.get("k").unwrap().value(), b"v");
    guarded(a.shutdown()).await;
    b.put("k", "w").unwrap();
    assert_eq!(b.get("k").unwrap().value(), b"w");
}
