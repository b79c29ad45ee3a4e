//! Real nodes on loopback: every operation, every refusal of a start or a peer, shutdown, leaving, flow control,
//! groups, and links over a bad network. Hostile peers are tested in `hostile.rs`.
//!
//! What is tested here is the surroundings of the replica: network, runtime, handles. The rules of replication are
//! tested in the simulator, with negative controls.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use tidings::{
    Builder, Config, ElectionError, LeaderEvent, MapEvent, MemberEvent, Node, NodeEvent, OnlyIf, PeerRefusal,
    PutOptions, Quorum, ReplicaEvent, Security, StartError, TlsRefusal, WaitError, Watch, WatchEvent,
    WatchOptions, WriteError,
};
use tidings_proptest::{GUARD, guarded, refusal};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const SECRET: &str = "a secret for tests alone";

fn security() -> Security {
    static SECURITY: std::sync::OnceLock<Security> = std::sync::OnceLock::new();
    SECURITY.get_or_init(|| Security::secret(SECRET).unwrap()).clone()
}

fn builder(name: &str, seeds: &[&Node]) -> Builder {
    let seeds: Vec<String> = seeds.iter().map(|node| node.addr().to_string()).collect();
    Node::builder(name).security(security()).config(Config::local()).seeds(seeds)
}

async fn start(name: &str, seeds: &[&Node]) -> Node {
    let node = builder(name, seeds).start().await.unwrap();
    guarded(node.ready()).await.unwrap();
    node
}

/// Waits until a key has this value on a node.
async fn sees(node: &Node, key: &str, value: &[u8]) {
    let mut watch = node.watch_with(key, WatchOptions::new().exact());
    guarded(async {
        loop {
            match watch.next().await.expect("the node is open") {
                WatchEvent::Put(entry) if entry.value() == value => return,
                _ => {}
            }
        }
    })
    .await;
}

async fn next(watch: &mut Watch) -> WatchEvent {
    guarded(watch.next()).await.expect("the node is open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_on_one_node_is_seen_on_all_others() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    let c = start("c", &[&a]).await;
    a.put("k", "1").unwrap();
    sees(&c, "k", b"1").await;
    let stamp = c.get("k").unwrap().stamp();
    c.put_with("k", "2", PutOptions::new().only_if(OnlyIf::Stamp(stamp))).unwrap();
    sees(&b, "k", b"2").await;
    let mut watch = a.watch_with("", WatchOptions::new().without_current());
    b.batch().put("x", "1").put("y", "2").delete("k").commit().unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(next(&mut watch).await.key().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(told, ["k", "x", "y"]);
    assert!(a.get("k").is_none());
    let keys: Vec<String> = a.scan("").iter().map(|entry| entry.key().to_owned()).collect();
    assert_eq!(keys, ["x", "y"]);
    let mut set = c.set("banned").watch();
    a.set("banned").add("x").unwrap();
    while next(&mut set).await.key() != Some("x") {}
    assert!(c.set("banned").contains("x") && c.set("banned").iter().eq(["x".to_owned()]));
    for node in [&a, &b, &c] {
        node.counter("hits").add(2).unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    }
    for node in [&a, &b, &c] {
        assert_eq!(node.counter("hits").value(), 6);
    }
    let mut expiring = b.watch_with("soon", WatchOptions::new().exact().without_current());
    a.put_with("soon", "v", PutOptions::new().ttl(Duration::from_secs(2))).unwrap();
    assert!(matches!(next(&mut expiring).await, WatchEvent::Put(_)));
    assert!(matches!(next(&mut expiring).await, WatchEvent::Expired { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_find_each_other_through_one_seed_and_agree() {
    let first = start("n0", &[]).await;
    let mut nodes = vec![first];
    for i in 1..10 {
        nodes.push(start(&format!("n{i}"), &[&nodes[0]]).await);
    }
    for (i, node) in nodes.iter().enumerate() {
        node.put(format!("from/{i}"), "v").unwrap();
    }
    for node in &nodes {
        for i in 0..10 {
            sees(node, &format!("from/{i}"), b"v").await;
        }
        guarded(async {
            while node.status().peers.len() < 9 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let receipt = nodes[7].put("last", "v").unwrap();
    receipt.seen_by(Quorum::All, GUARD).await.unwrap();
    assert!(nodes.iter().all(|node| node.get("last").is_some()));
    assert_eq!(nodes[3].members().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_stands_although_too_few_acknowledged_in_time() {
    let a = start("a", &[]).await;
    let receipt = a.put("k", "v").unwrap();
    let late = receipt.seen_by(Quorum::Count(2), Duration::from_millis(1)).await;
    assert_eq!(late, Err(WaitError::TimedOut { seen: 1, needed: 2 }));
    assert_eq!(receipt.durable().await, Err(WaitError::NoDisk));
    assert!(a.get("k").is_some());
    receipt.seen_by(Quorum::Majority, GUARD).await.unwrap();
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
async fn each_stranger_is_refused_for_its_own_reason() {
    let a =
        builder("a", &[]).app_version("2").accepts_version(|version| version != "1").start().await.unwrap();
    let other = Security::secret("another secret, just as good").unwrap();
    let strangers: Vec<(Builder, PeerRefusal)> = vec![
        (builder("b", &[&a]).security(other), PeerRefusal::Tls(TlsRefusal::WrongSecret)),
        (builder("c", &[&a]).cluster("else"), PeerRefusal::Cluster { theirs: "tidings".to_owned() }),
        (builder("d", &[&a]).app_version("1"), PeerRefusal::AppVersion { theirs: "2".to_owned() }),
        (builder("a", &[&a]), PeerRefusal::NameTaken),
    ];
    for (builder, expected) in strangers {
        let node = builder.start().await.unwrap();
        assert_eq!(refusal(&node).await, expected);
        assert!(node.status().peers.is_empty());
    }
    assert!(a.status().peers.is_empty());
    // The refusing node reports what the strangers have.
    let told = [
        PeerRefusal::Cluster { theirs: "else".to_owned() },
        PeerRefusal::AppVersion { theirs: "1".to_owned() },
    ];
    let mut events = a.events();
    for expected in told {
        let is_expected = |event: &NodeEvent| matches!(event, NodeEvent::PeerRefused { by_us: true, refusal, .. } if *refusal == expected);
        while !is_expected(&guarded(events.next()).await.expect("the node is open")) {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn living_name_is_refused_and_dead_name_is_replaced() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    let rival = builder("b", &[&a]).start().await.unwrap();
    assert_eq!(refusal(&rival).await, PeerRefusal::NameTaken);
    b.shutdown().await;
    guarded(rival.ready()).await.unwrap();
    a.put("k", "v").unwrap();
    sees(&rival, "k", b"v").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secret_rotation_shuts_out_the_old_secret() {
    let new = "the secret of the next year";
    let security_a = Security::secret(SECRET).unwrap();
    let security_b = Security::secret(SECRET).unwrap();
    let a = builder("a", &[]).security(security_a.clone()).start().await.unwrap();
    let b = builder("b", &[&a]).security(security_b.clone()).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
    for security in [&security_a, &security_b] {
        security.accept(new).unwrap();
    }
    for security in [&security_a, &security_b] {
        security.present(new).unwrap();
    }
    for security in [&security_a, &security_b] {
        security.remove(SECRET).unwrap();
    }
    // The link under the old secret is closed and made again under the new one.
    a.put("k", "v").unwrap();
    sees(&b, "k", b"v").await;
    let late = builder("c", &[&a]).start().await.unwrap();
    assert_eq!(refusal(&late).await, PeerRefusal::Tls(TlsRefusal::WrongSecret));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_in_a_version_check_refuses_the_peer_once() {
    let a = builder("a", &[]).app_version("new").start().await.unwrap();
    let has_panicked = std::sync::atomic::AtomicBool::new(false);
    let accepts = move |version: &str| {
        assert!(has_panicked.swap(true, std::sync::atomic::Ordering::Relaxed), "what is {version}?");
        true
    };
    let b = builder("b", &[&a]).accepts_version(accepts).start().await.unwrap();
    assert_eq!(refusal(&b).await, PeerRefusal::AppVersion { theirs: "new".to_owned() });
    guarded(b.ready()).await.unwrap();
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

/// Polls a stream once, as a `next` that is dropped while it waits.
fn look<S: Stream + Unpin>(stream: &mut S) -> Poll<Option<S::Item>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

async fn item<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    guarded(poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx))).await
}

/// Waits for the end of a stream. It has begun to wait when this returns.
fn end_of<S: Stream + Unpin + Send + 'static>(mut stream: S) -> tokio::task::JoinHandle<()> {
    while look(&mut stream).is_ready() {}
    tokio::spawn(async move { while item(&mut stream).await.is_some() {} })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_miss_nothing_and_end_with_their_node() {
    let mut config = Config::local();
    config.voters = vec!["a".to_owned()];
    let a = builder("a", &[]).config(config.clone()).start().await.unwrap();
    let (mut watch, mut map) = (a.watch("k/"), a.map::<u32>("k/").watch());
    let (mut events, mut members) = (a.events(), a.member_events());
    let mut observer = a.election("e").observe().unwrap();
    assert_eq!(look(&mut watch), Poll::Ready(Some(WatchEvent::Current)));
    assert_eq!(look(&mut map), Poll::Ready(Some(MapEvent::Current)));
    assert!(item(&mut observer).await.is_some(), "the voter says that nobody leads");
    // Every stream waits now, with a waker that wakes nobody.
    assert!(look(&mut watch).is_pending() && look(&mut map).is_pending());
    assert!(look(&mut events).is_pending() && look(&mut members).is_pending());
    assert!(look(&mut observer).is_pending());

    a.put("k/x", "1").unwrap();
    assert!(matches!(item(&mut watch).await, Some(WatchEvent::Put(entry)) if entry.key() == "k/x"));
    assert_eq!(item(&mut map).await, Some(MapEvent::Put("x".to_owned(), 1)));
    let b = builder("b", &[&a]).config(config.clone()).start().await.unwrap();
    assert!(matches!(item(&mut members).await, Some(MemberEvent::Joined(member)) if member.name == "b"));
    let mut joining = b.joining();
    let mut last = None;
    while let Some(step) = item(&mut joining).await {
        last = Some(step);
    }
    assert!(last.is_some_and(|step| step.is_ready));
    let stranger = builder("c", &[&a]).config(config).cluster("other").start().await.unwrap();
    assert!(matches!(item(&mut events).await, Some(NodeEvent::PeerRefused { .. })));
    let lead = guarded(a.election("e").campaign("v")).await.unwrap();
    let event = match item(&mut observer).await {
        Some(LeaderEvent::Vacant) => item(&mut observer).await,
        event => event,
    };
    assert!(matches!(event, Some(LeaderEvent::Leads(leader)) if leader.token == lead.token()));

    let late = builder("d", &[]).seeds(["127.0.0.1:1"]).start().await.unwrap();
    let ends = [
        end_of(watch),
        end_of(map),
        end_of(events),
        end_of(members),
        end_of(observer),
        end_of(late.joining()),
    ];
    drop(lead);
    guarded(a.shutdown()).await;
    guarded(late.shutdown()).await;
    for end in ends {
        guarded(end).await.unwrap();
    }
    drop((b, stranger));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_both_kinds_begin_with_past_ones() {
    let a = start("a", &[]).await;
    let _b = start("b", &[&a]).await;
    let _stranger = builder("c", &[&a]).cluster("other").start().await.unwrap();
    let (refused, joined) = (item(&mut a.events()).await, item(&mut a.member_events()).await);
    assert!(matches!(&refused, Some(NodeEvent::PeerRefused { .. })));
    assert!(matches!(&joined, Some(MemberEvent::Joined(member)) if member.name == "b"));
    // Whoever begins later gets the same events.
    assert_eq!(look(&mut a.events()), Poll::Ready(refused));
    assert_eq!(look(&mut a.member_events()), Poll::Ready(joined));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_and_watches_do_not_keep_a_node_alive() {
    let a = start("a", &[]).await;
    let (mut watch, set, addr) = (a.watch(""), a.set("s"), a.addr());
    drop(a);
    guarded(async { while watch.next().await.is_some() {} }).await;
    assert_eq!(set.add("x").unwrap_err(), WriteError::Closed);
    guarded(async {
        while std::net::UdpSocket::bind(addr).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
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
async fn nodes_meet_over_ipv6() {
    let listen: SocketAddr = "[::1]:0".parse().unwrap();
    let a = builder("a", &[]).listen(listen).start().await.unwrap();
    assert!(a.addr().is_ipv6() && a.addr().port() != 0);
    let b = builder("b", &[&a]).listen(listen).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
    a.put("k", "v").unwrap();
    sees(&b, "k", b"v").await;
}

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
    let seedless = builder("b", &[]).seeds(["somewhere"]).start().await.unwrap_err();
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
async fn ten_thousand_watches_each_see_only_their_key() {
    let a = start("a", &[]).await;
    let mut watches: Vec<Watch> = (0..10_000)
        .map(|i| a.watch_with(format!("k/{i:05}"), WatchOptions::new().without_current()))
        .collect();
    for i in 0..10_000 {
        a.put(format!("other/{i}"), "v").unwrap();
    }
    a.put("k/07777", "v").unwrap();
    assert!(matches!(next(&mut watches[7_777]).await, WatchEvent::Put(entry) if entry.key() == "k/07777"));
    for watch in &mut watches {
        // No further event is ready for any watch.
        tokio::select! {
            biased;
            event = watch.next() => panic!("{event:?}"),
            () = std::future::ready(()) => {}
        }
    }
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
    guarded(async {
        while files() > before + 2 || tasks.num_alive_tasks() > tasks_before + 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(seed.get("k").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_shows_one_instant_while_others_write() {
    let a = start("a", &[]).await;
    for i in 0..5_000 {
        a.put(format!("k{i:05}"), "0").unwrap();
    }
    let writer = {
        let a = a.clone();
        std::thread::spawn(move || {
            for round in 1..20 {
                for i in 0..5_000 {
                    // Written in key order, so that in one instant the values never rise from key to key.
                    a.put(format!("k{i:05}"), format!("{round}")).unwrap();
                }
            }
        })
    };
    while !writer.is_finished() {
        let scan = a.scan("k");
        assert_eq!(scan.len(), 5_000);
        let value = |at: usize| String::from_utf8_lossy(scan[at].value()).parse::<u32>().unwrap();
        for i in 1..5_000 {
            assert!(value(i) <= value(i - 1) && value(i) + 1 >= value(0), "at {i}");
        }
    }
    writer.join().unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_reached_at_two_addresses_is_linked_once() {
    let a = builder("a", &[]).listen("0.0.0.0:0".parse().unwrap()).start().await.unwrap();
    let port = a.addr().port();
    let seeds = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"), format!("localhost:{port}")];
    let b = builder("b", &[]).seeds(seeds).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
    for i in 0..200 {
        a.put("k", format!("{i}")).unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    }
    assert_eq!((a.status().peers.len(), b.status().peers.len()), (1, 1));
    let mut events = b.member_events();
    assert!(
        matches!(look(&mut events), Poll::Ready(Some(MemberEvent::Joined(member))) if member.name == "a")
    );
    assert_eq!(look(&mut events), Poll::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn left_members_are_distinguished_from_lost_ones() {
    let a = start("a", &[]).await;
    let mut events = a.member_events();
    let b = start("b", &[&a]).await;
    let c = start("c", &[&a]).await;
    b.shutdown().await;
    c.shutdown_expecting_return().await;
    let mut told = Vec::new();
    while told.len() < 4 {
        told.push(match guarded(events.next()).await.unwrap() {
            MemberEvent::Joined(member) => format!("up {}", member.name),
            MemberEvent::Left(member) => format!("left {}", member.name),
            MemberEvent::Down(member) => format!("down {}", member.name),
            _ => continue,
        });
    }
    assert_eq!(told[..2], ["up b", "up c"]);
    told.sort();
    assert_eq!(told[..2], ["down c", "left b"]);
    let states: Vec<bool> = a.members().iter().map(|member| member.state.is_alive()).collect();
    assert_eq!(states, [true, false, false]);
    // A member that left does not count for a quorum; a lost one does.
    let seen = a.put("k", "v").unwrap().seen_by(Quorum::All, Duration::from_millis(1)).await;
    assert_eq!(seen, Err(WaitError::TimedOut { seen: 1, needed: 2 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shut_down_or_was_dropped_joins_as_new() {
    let a = start("a", &[]).await;
    let mut events = a.member_events();
    let b = start("b", &[&a]).await;
    let c = start("c", &[&a]).await;
    let runs = [b.status().run, c.status().run];
    b.shutdown().await;
    drop(c);
    let mut left = 0;
    while left < 2 {
        match guarded(events.next()).await.unwrap() {
            MemberEvent::Left(_) => left += 1,
            MemberEvent::Down(member) => panic!("{} is down instead of left", member.name),
            _ => {}
        }
    }
    a.put("k", "v").unwrap().seen_by(Quorum::All, GUARD).await.expect("the members that left still count");
    for (name, old) in ["b", "c"].into_iter().zip(runs) {
        let again = start(name, &[&a]).await;
        assert_eq!(again.get("k").unwrap().value(), b"v");
        guarded(async {
            loop {
                if let MemberEvent::Joined(member) = events.next().await.unwrap() {
                    assert!(member.name == name && member.run != old);
                    return;
                }
            }
        })
        .await;
        assert!(!a.members().iter().any(|member| member.run == old), "the earlier run is still a member");
        again.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_leaving_under_load_counts_as_left() {
    let a = start("a", &[]).await;
    let value = vec![b'x'; 2 << 10];
    for round in 0..30 {
        let name = format!("b{round}");
        let b = start(&name, &[&a]).await;
        let writing = async {
            loop {
                for i in 0..20 {
                    _ = a.put(format!("k{i}"), &value);
                }
                tokio::task::yield_now().await;
            }
        };
        let leaving = async {
            sees(&b, "k19", &value).await;
            let mut events = a.member_events();
            b.shutdown().await;
            loop {
                match guarded(events.next()).await.unwrap() {
                    MemberEvent::Left(member) if member.name == name => return,
                    MemberEvent::Down(member) => panic!("{} is down instead of left", member.name),
                    _ => {}
                }
            }
        };
        tokio::select! {
            never = writing => never,
            () = leaving => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_ahead_of_its_peers_gets_busy_and_can_wait() {
    let mut config = Config::local();
    config.lag_bytes_max = 64 << 10;
    let a = builder("a", &[]).config(config).start().await.unwrap();
    let b = start("b", &[&a]).await;
    a.put("first", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    let (value, mut busy, mut written) = (vec![b'x'; 32 << 10], 0, 0);
    guarded(async {
        while busy < 3 {
            match a.put(format!("k{written}"), &value) {
                Ok(_) => written += 1,
                Err(error) => {
                    assert_eq!(error, WriteError::Busy);
                    busy += 1;
                    a.writable().await.unwrap();
                }
            }
        }
    })
    .await;
    let last = loop {
        a.writable().await.unwrap();
        if let Ok(receipt) = a.put("last", "v") {
            break receipt;
        }
    };
    last.seen_by(Quorum::All, GUARD).await.unwrap();
    assert_eq!(b.len(), written + 2);
}

/// The runtime has one thread. A wait that ended too early would keep the node from working at all.
#[tokio::test]
async fn writable_waits_until_there_is_room() {
    let mut config = Config::local();
    config.lag_bytes_max = 64 << 10;
    let a = builder("a", &[]).config(config).start().await.unwrap();
    let b = start("b", &[&a]).await;
    let value = vec![b'x'; 32 << 10];
    for busy in 0..20 {
        let mut written = 0;
        while a.put("k", &value).is_ok() {
            written += 1;
            if written % 4 == 0 {
                tokio::task::yield_now().await;
            }
        }
        tokio::select! {
            biased;
            // If the wait ends at once, there must be room: nobody else writes, and the node has not run meanwhile.
            room = a.writable() => {
                room.unwrap();
                a.put("k", &value).unwrap();
            }
            () = std::future::ready(()) => guarded(a.writable()).await.unwrap(),
        }
        assert_eq!(b.len(), 1, "after {busy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_map_names_the_key_whose_value_is_of_another_type() {
    let a = start("a", &[]).await;
    let map = a.map::<Vec<u32>>("lists/");
    let mut watch = map.watch();
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Current));
    map.put("one", &vec![1, 2]).unwrap();
    a.put("lists/bad", "{}").unwrap();
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Put("one".to_owned(), vec![1, 2])));
    let Some(MapEvent::Invalid(bad)) = guarded(watch.next()).await else { panic!("the value is no list") };
    assert_eq!(bad.key, "lists/bad");
    assert!(map.get("bad").unwrap_err().to_string().contains("lists/bad"));
    map.delete("one").unwrap();
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Delete("one".to_owned())));
    assert_eq!(map.get("one"), Ok(None));
}

/// The node keeps 1,024 events for a watch that does not read, and with `removals_max = 0` no removal longer than
/// needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_watch_that_missed_a_delete_starts_over() {
    let mut config = Config::local();
    config.removals_max = 0;
    let a = Node::builder("a").security(security()).config(config).start().await.unwrap();
    let map = a.map::<u32>("m/");
    map.put("gone", &1).unwrap();
    let mut watch = map.watch();
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Put("gone".to_owned(), 1)));
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Current));
    for i in 0..3_000 {
        map.put(format!("k{i}"), &i).unwrap();
    }
    map.delete("gone").unwrap();
    a.put("elsewhere", "v").unwrap();
    a.delete("elsewhere").unwrap();
    let (mut seen, mut has_resynced) = (BTreeMap::from([("gone".to_owned(), 1)]), false);
    for _ in 0..10_000 {
        match guarded(watch.next()).await.expect("the node is open") {
            MapEvent::Put(key, value) => _ = seen.insert(key, value),
            MapEvent::Delete(key) => _ = seen.remove(&key),
            MapEvent::Resync => (seen, has_resynced) = (BTreeMap::new(), true),
            MapEvent::Current if has_resynced => break,
            _ => {}
        }
    }
    assert!(has_resynced, "the watch missed a delete without a resync");
    assert_eq!((seen.len(), seen.contains_key("gone")), (3_000, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_is_seen_by_others_and_bounded() {
    let a = start("a", &[]).await;
    let mut events = a.member_events();
    let b = builder("b", &[&a]).meta("zone", "eu-1").app_version("2.1").start().await.unwrap();
    let Some(MemberEvent::Joined(joined)) = guarded(events.next()).await else { panic!("b joins first") };
    assert_eq!((joined.meta["zone"].as_str(), joined.app_version.as_str()), ("eu-1", "2.1"));
    b.set_meta([("zone".to_owned(), "eu-2".to_owned())].into()).unwrap();
    let updated = loop {
        if let Some(MemberEvent::Updated(member)) = guarded(events.next()).await {
            break member;
        }
    };
    assert_eq!((updated.meta["zone"].as_str(), updated.name.as_str()), ("eu-2", "b"));
    let much = "x".repeat(tidings::META_BYTES_MAX);
    let refused = b.set_meta([("much".to_owned(), much)].into()).unwrap_err();
    assert!(matches!(refused, WriteError::ValueTooLarge { .. }));
    assert_eq!(b.members()[0].meta["zone"], "eu-2", "the refused metadata was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_node_names_of_two_islands_are_reported() {
    let x = start("x", &[]).await;
    let a = start("twin", &[&x]).await;
    let y = start("y", &[]).await;
    let b = start("twin", &[&y]).await;
    // Two islands meet. Neither twin is a newcomer, so that both stay.
    let bridge = builder("bridge", &[&x, &y]).start().await.unwrap();
    let mut events = bridge.events();
    let said = loop {
        if let Some(NodeEvent::Store(ReplicaEvent::NameTwice(member))) = guarded(events.next()).await {
            break member;
        }
    };
    assert_eq!(said.name, "twin");
    a.put("from-a", "1").unwrap();
    b.put("from-b", "2").unwrap();
    sees(&b, "from-a", b"1").await;
    sees(&a, "from-b", b"2").await;
    let twins =
        |node: &Node| node.members().iter().filter(|m| m.name == "twin" && m.state.is_alive()).count();
    assert_eq!([twins(&x), twins(&y), twins(&a)], [2, 2, 2]);
    // A third node of this name is a newcomer and is refused.
    let late = builder("twin", &[&x]).start().await.unwrap();
    assert_eq!(refusal(&late).await, PeerRefusal::NameTaken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn living_name_is_refused_by_nodes_not_linked_with_it() {
    let a = start("a", &[]).await;
    let holder = start("n", &[&a]).await;
    let b = start("b", &[&a, &holder]).await;
    let late = builder("n", &[&b]).start().await.unwrap();
    assert_eq!(refusal(&late).await, PeerRefusal::NameTaken);
    holder.shutdown().await;
    guarded(late.ready()).await.unwrap();
}

/// Eighteen nodes in four groups, each of which knows all others.
async fn groups() -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..18 {
        let mut config = Config::local();
        config.mesh_members_max = 6;
        let seeds: Vec<&Node> = nodes.iter().take(2).collect();
        nodes.push(builder(&format!("n{i}"), &seeds).config(config).start().await.unwrap());
    }
    for node in &nodes {
        let mut events = node.member_events();
        guarded(async {
            while node.members().iter().filter(|member| member.state.is_alive()).count() < 18 {
                events.next().await.expect("the node is open");
            }
        })
        .await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_count_members_reached_through_delegates() {
    let nodes = groups().await;
    for (i, node) in nodes.iter().enumerate() {
        let receipt = node.put(format!("{i}"), "v").unwrap();
        guarded(receipt.seen_by(Quorum::Majority, GUARD)).await.unwrap();
    }
    let receipt = nodes[3].put("all", "v").unwrap();
    guarded(receipt.seen_by(Quorum::All, GUARD)).await.unwrap();
    assert!(nodes.iter().all(|node| node.get("all").is_some()), "a node lacks a write that all acknowledged");
    assert!(
        nodes.iter().any(|node| node.status().peers.len() < 17),
        "all nodes are linked with each other, so that nothing was forwarded"
    );
    let deleted = nodes[3].delete("all").unwrap();
    guarded(deleted.seen_by(Quorum::Count(18), GUARD)).await.unwrap();
    assert!(nodes.iter().all(|node| node.get("all").is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_any_size_cross_groups_around_a_lost_node() {
    let mut nodes = groups().await;
    let large = vec![b'x'; 1 << 20];
    nodes[0].put("large", &large).unwrap();
    nodes[0].put("small", "v").unwrap();
    for node in &nodes {
        sees(node, "small", b"v").await;
        sees(node, "large", &large).await;
    }
    nodes.remove(5).shutdown().await;
    nodes[1].put("after", "v").unwrap();
    for node in &nodes {
        sees(node, "after", b"v").await;
    }
}

/// Relays packets to and from a node. Every fourth packet to the node is lost; packets from it are delayed by 30 ms.
async fn lame(target: &Node, front: UdpSocket) {
    let (front, mut backs) = (Arc::new(front), JoinSet::new());
    let mut ways: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut packet = vec![0; 65_536];
    for number in 0_u64.. {
        let (length, from) = front.recv_from(&mut packet).await.unwrap();
        let way = if let Some(way) = ways.get(&from) {
            way.clone()
        } else {
            let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            way.connect(target.addr()).await.unwrap();
            backs.spawn(late(way.clone(), front.clone(), from));
            ways.insert(from, way.clone());
            way
        };
        if number % 4 != 3 {
            _ = way.send(&packet[..length]).await;
        }
    }
}

async fn late(way: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr) {
    let mut packet = vec![0; 65_536];
    while let Ok(length) = way.recv(&mut packet).await {
        let (front, packet) = (front.clone(), packet[..length].to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            _ = front.send_to(&packet, to).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lossy_and_slow_link_carries_everything() {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = front.local_addr().unwrap();
    // The node advertises the address of the relay only, so that every link goes through the relay.
    let b = builder("b", &[]).advertise(addr).start().await.unwrap();
    let mut relay = JoinSet::new();
    let target = b.clone();
    relay.spawn(async move { lame(&target, front).await });
    let a = builder("a", &[]).seeds([addr.to_string()]).start().await.unwrap();
    guarded(a.ready()).await.unwrap();
    let mut told = a.member_events();
    for i in 0..300 {
        a.put(format!("a/{i}"), vec![b'x'; i * 10]).unwrap();
        b.put(format!("b/{i}"), vec![b'x'; i * 10]).unwrap();
        tokio::task::yield_now().await;
    }
    let of_a = a.put("last of a", "v").unwrap();
    of_a.seen_by(Quorum::All, GUARD).await.unwrap();
    b.put("last of b", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    assert_eq!((a.len(), b.len()), (602, 602));
    assert_eq!(a.scan("").len(), b.scan("").len());
    let status = a.status();
    assert!(status.peers.iter().all(|peer| peer.name == "b" && peer.lag_changes == 0), "{:?}", status.peers);
    drop((a, b));
    relay.abort_all();
    while let Some(event) = guarded(told.next()).await {
        assert!(!matches!(event, MemberEvent::Down(_)), "{event:?}");
    }
}
