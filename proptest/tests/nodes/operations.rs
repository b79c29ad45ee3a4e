//! What users do with nodes: reads, writes, watches, receipts and typed views, under flow control, between groups, and
//! over a lossy link.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings::{
    Config, MapEvent, MemberEvent, Node, OnlyIf, PutOptions, Quorum, WaitError, Watch, WatchEvent,
    WatchOptions, WriteError,
};
use tidings_proptest::nodes::{GUARD, builder, guarded, ready, start};
use tidings_proptest::relay::{Faults, Relay};

use super::{next, sees};

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
    let put = guarded(watch.next()).await;
    assert!(matches!(put, Some(MapEvent::Put { key, value, .. }) if key == "one" && *value == [1, 2]));
    let invalid = guarded(watch.next()).await;
    let Some(MapEvent::Invalid { key, error, .. }) = invalid else { panic!("the value is no list") };
    assert_eq!((&*key, &*error.key), ("bad", "lists/bad"));
    assert!(map.get("bad").unwrap_err().to_string().contains("lists/bad"));
    map.delete("one").unwrap();
    let deleted = guarded(watch.next()).await;
    let Some(MapEvent::Delete { key, writer, .. }) = deleted else { panic!("the key was deleted") };
    assert_eq!((&*key, writer.as_deref()), ("one", Some("a")));
    assert_eq!(map.get("one"), Ok(None));
}

/// The node keeps 1,024 events for a watch that does not read, and with `removals_max = 0` no removal longer than
/// needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_watch_that_missed_a_delete_starts_over() {
    let mut config = Config::local();
    config.removals_max = 0;
    let a = builder("a", &[]).config(config).start().await.unwrap();
    let map = a.map::<u32>("m/");
    map.put("gone", &1).unwrap();
    let mut watch = map.watch();
    assert_eq!(guarded(watch.next()).await.unwrap().key(), Some("gone"));
    assert_eq!(guarded(watch.next()).await, Some(MapEvent::Current));
    for i in 0..3_000 {
        map.put(format!("k{i}"), &i).unwrap();
    }
    map.delete("gone").unwrap();
    a.put("elsewhere", "v").unwrap();
    a.delete("elsewhere").unwrap();
    let (mut seen, mut has_resynced) = (BTreeMap::from([("gone".to_owned(), 1.into())]), false);
    for _ in 0..10_000 {
        match guarded(watch.next()).await.expect("the node is open") {
            MapEvent::Put { key, value, .. } => _ = seen.insert(key, value),
            MapEvent::Delete { key, .. } => _ = seen.remove(&key),
            MapEvent::Resync => (seen, has_resynced) = (BTreeMap::new(), true),
            MapEvent::Current if has_resynced => break,
            _ => {}
        }
    }
    assert!(has_resynced, "the watch missed a delete without a resync");
    assert_eq!((seen.len(), seen.contains_key("gone")), (3_000, false));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lossy_and_slow_link_carries_everything() {
    let faults = Faults { loss: 0.125, delay: Duration::from_millis(15), ..Faults::default() };
    let relay = Relay::start(faults).await;
    // The node advertises the address of the relay only, so that every link goes through the relay.
    let b = builder("b", &[]).advertise(relay.addr().to_string()).start().await.unwrap();
    relay.lead_to(b.addr());
    let a = ready(builder("a", &[]).seeds([relay.addr().to_string()])).await;
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
    drop((a, b, relay));
    while let Some(event) = guarded(told.next()).await {
        assert!(!matches!(event, MemberEvent::Down(_)), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_keeps_the_value_of_a_counter() {
    let a = start("a", &[]).await;
    for _ in 0..3 {
        let b = start("b", &[&a]).await;
        b.counter("hits").add(2).unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
        b.shutdown().await;
    }
    let b = start("b", &[&a]).await;
    b.counter("hits").add(1).unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    assert_eq!(a.counter("hits").compact(GUARD).await, Ok(3));
    assert_eq!(a.counter("hits").compact(GUARD).await, Ok(0));
    b.counter("hits").add(1).unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    a.put("last", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
    assert_eq!((a.counter("hits").value(), b.counter("hits").value()), (8, 8));
}
