//! Who becomes a peer or a member, who is refused, and how members leave.

use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use tidings::members::{ForgetError, SeedError};
use tidings::{
    Builder, MemberEvent, Node, NodeEvent, PeerRefusal, Quorum, ReplicaEvent, Security, TlsRefusal,
    WaitError, WriteError,
};
use tidings_proptest::nodes::{GUARD, builder, event, guarded, ready, refusal, start, until};

use super::sees;
use super::streams::look;

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
        until(|| node.status().peers.len() == 9).await;
    }
    let receipt = nodes[7].put("last", "v").unwrap();
    receipt.seen_by(Quorum::All, GUARD).await.unwrap();
    assert!(nodes.iter().all(|node| node.get("last").is_some()));
    assert_eq!(nodes[3].members().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stranger_is_refused_for_its_own_reason() {
    let a =
        builder("a", &[]).app_version("2").accepts_version(|version| version != "1").start().await.unwrap();
    let other = Security::secret(&Security::generate_secret()).unwrap();
    // The key of a secret is another one in each cluster, so that a cluster's name alone shuts out.
    let strangers: Vec<(Builder, PeerRefusal)> = vec![
        (builder("b", &[&a]).security(other), PeerRefusal::Tls(TlsRefusal::WrongSecret)),
        (builder("c", &[&a]).cluster("else"), PeerRefusal::Tls(TlsRefusal::WrongSecret)),
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
    let expected = PeerRefusal::AppVersion { theirs: "1".to_owned() };
    let is_expected =
        |event| matches!(event, NodeEvent::PeerRefused { by_us: true, refusal, .. } if refusal == expected);
    event(&a, |event| is_expected(event).then_some(())).await;
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
    let (old, new) = (&Security::generate_secret(), &Security::generate_secret());
    let security_a = Security::secret(old).unwrap();
    let security_b = Security::secret(old).unwrap();
    let a = builder("a", &[]).security(security_a.clone()).start().await.unwrap();
    let b = ready(builder("b", &[&a]).security(security_b.clone())).await;
    for security in [&security_a, &security_b] {
        security.accept(new).unwrap();
    }
    for security in [&security_a, &security_b] {
        security.present(new).unwrap();
    }
    for security in [&security_a, &security_b] {
        security.remove(old).unwrap();
    }
    // The link under the old secret is closed and made again under the new one.
    a.put("k", "v").unwrap();
    sees(&b, "k", b"v").await;
    let late = builder("c", &[&a]).security(Security::secret(old).unwrap()).start().await.unwrap();
    assert_eq!(refusal(&late).await, PeerRefusal::Tls(TlsRefusal::WrongSecret));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_meet_over_ipv6() {
    let listen: SocketAddr = "[::1]:0".parse().unwrap();
    let a = builder("a", &[]).listen(listen).start().await.unwrap();
    assert!(a.addr().is_ipv6() && a.addr().port() != 0);
    let b = ready(builder("b", &[&a]).listen(listen)).await;
    a.put("k", "v").unwrap();
    sees(&b, "k", b"v").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_reached_at_two_addresses_is_linked_once() {
    let a = builder("a", &[]).listen("0.0.0.0:0".parse().unwrap()).start().await.unwrap();
    let port = a.addr().port();
    let seeds = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"), format!("localhost:{port}")];
    let b = ready(builder("b", &[]).seeds(seeds)).await;
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
    let much = "x".repeat(tidings::limits::META_BYTES_MAX);
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
    let pick = |event| match event {
        NodeEvent::Store(ReplicaEvent::NameTwice(member)) => Some(member.name),
        _ => None,
    };
    assert_eq!(event(&bridge, pick).await, "twin");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_member_counts_in_no_quorum_and_joins_as_new() {
    let a = start("a", &[]).await;
    let b = start("b", &[&a]).await;
    let c = start("c", &[&a]).await;
    assert_eq!(a.forget("c").unwrap_err(), ForgetError::NotGone { name: "c".to_owned() });
    c.shutdown_expecting_return().await;
    until(|| a.members().iter().any(|member| member.name == "c" && !member.state.is_alive())).await;
    let receipt = a.put("k", "v").unwrap();
    receipt.seen_by(Quorum::Count(2), GUARD).await.unwrap();
    assert!(receipt.seen_by(Quorum::All, Duration::from_millis(1)).await.is_err(), "a member is down");
    until(|| a.forget("c").is_ok()).await;
    receipt.seen_by(Quorum::All, GUARD).await.unwrap();
    until(|| b.members().len() == 2).await;
    assert_eq!(a.forget("c").unwrap_err(), ForgetError::Unknown { name: "c".to_owned() });
    let c = start("c", &[&b]).await;
    until(|| [&a, &b].iter().all(|node| node.members().len() == 3)).await;
    c.put("from c", "v").unwrap().seen_by(Quorum::All, GUARD).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_added_at_run_time_joins_two_clusters() {
    let a = start("a", &[]).await;
    let b = start("b", &[]).await;
    a.put("from a", "v").unwrap();
    b.put("from b", "v").unwrap();
    assert_eq!(b.join("nowhere:x").unwrap_err(), SeedError::Form { seed: "nowhere:x".to_owned() });
    b.join(a.addr().to_string()).unwrap();
    sees(&a, "from b", b"v").await;
    sees(&b, "from a", b"v").await;
    assert_eq!(b.members().len(), 2);
    b.shutdown().await;
    assert_eq!(b.join(a.addr().to_string()).unwrap_err(), SeedError::Closed);
}
