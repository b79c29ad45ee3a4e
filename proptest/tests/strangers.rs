//! Strangers that begin handshakes and never answer, and peers with valid certificates that never greet, must not keep
//! members out nor disturb those that are linked. A flood of first QUIC packets from one, four or two hundred loopback
//! addresses runs, or from forged addresses in a network of its own, at 20 and at 1,000 packets per second, while new nodes
//! join a real one and linked nodes write. Others answer until their address is proven. A node that does not become ready
//! within `READY_TIME_MAX` fails the test. The limits themselves are tested in
//! `src/node/net/admission.rs`. Times under a flood are measured by `tidings-benches`, `node strangers`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use tidings::{Config, Control, MemberState, Node, NodeEvent};
use tidings_proptest::authority::{Authority, VALID};
use tidings_proptest::nodes::{builder, guarded, until};
use tidings_proptest::strangers::{Flood, SilentMembers, Stalled, addresses, forged, forging};

/// Time limit of the test, no target: a node that is not ready by then is taken to be kept out.
const READY_TIME_MAX: Duration = Duration::from_secs(60);

async fn start(name: &str, seeds: &[&Node]) -> Node {
    builder(name, seeds).config(Config::lan()).start().await.unwrap()
}

/// Asserts that new nodes become ready under a flood from these addresses, at 20 and then 1,000 packets per second.
async fn join_under_flood(sources: &[Ipv4Addr]) {
    let a = start("a", &[]).await;
    a.put("key", "value").unwrap();
    let flood = Flood::new(a.addr(), sources);
    let mut nodes = Vec::new();
    for (name, rate) in [("b", 20), ("c", 20), ("d", 1_000), ("e", 1_000)] {
        flood.set_per_second(rate);
        let since = Instant::now();
        let node = start(name, &[&a]).await;
        let ready = tokio::time::timeout(READY_TIME_MAX, node.ready()).await;
        ready
            .unwrap_or_else(|_| panic!("{name} is not ready in time under {rate} packets per second"))
            .unwrap();
        println!(
            "{rate} packets a second from {} addresses: ready after {:?}",
            sources.len(),
            since.elapsed()
        );
        assert!(node.get("key").is_some());
        nodes.push(node);
    }
    drop(flood);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_silent_stranger_keeps_no_node_out() {
    join_under_flood(&[Ipv4Addr::LOCALHOST]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_silent_strangers_keep_no_node_out() {
    join_under_flood(&addresses(1, 4)).await;
}

/// Set in the process that runs in a network of its own.
const INSIDE: &str = "TIDINGS_STRANGERS_INSIDE";

/// Runs one test of this file again, in a network that has loopback alone.
fn in_own_network(test: &str) {
    let inside = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", command]).arg(std::env::current_exe().unwrap());
        unshare
    };
    // Answers to the forged addresses end on loopback.
    let network = "ip link set lo up && ip route add 198.51.100.0/24 dev lo";
    if !inside(network).output().is_ok_and(|tried| tried.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI needs network namespaces and ip");
        eprintln!("\n*** SKIPPED: no network namespaces or no ip; forged addresses are NOT tested ***\n");
        return;
    }
    let again = format!("{network} && exec \"$0\" --exact {test} --nocapture");
    let status = inside(&again).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "see above");
}

#[test]
fn packets_from_forged_addresses_keep_no_node_out() {
    if std::env::var_os(INSIDE).is_none() {
        in_own_network("packets_from_forged_addresses_keep_no_node_out");
        return;
    }
    // Addresses that are not this machine's, and nobody's (RFC 5737).
    let sources: Vec<Ipv4Addr> = (1..=200).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    // The control: a packet that is sent so comes from there.
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(READY_TIME_MAX)).unwrap();
    let SocketAddr::V4(to) = receiver.local_addr().unwrap() else { unreachable!() };
    let from = SocketAddrV4::new(sources[0], 9);
    forging().unwrap().send_to(&forged(from, to, b"forged"), &SocketAddr::from(to).into()).unwrap();
    let mut buffer = [0; 16];
    let (len, sender) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((sender, &buffer[..len]), (from.into(), &b"forged"[..]));

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let a = start("a", &[]).await;
        a.put("key", "value").unwrap();
        let SocketAddr::V4(to) = a.addr() else { unreachable!() };
        let flood = Flood::forged(to, sources);
        flood.set_per_second(1_000);
        until(|| flood.packets_sent() >= 1_000).await;
        for name in ["b", "c"] {
            let node = start(name, &[&a]).await;
            let ready = tokio::time::timeout(READY_TIME_MAX, node.ready()).await;
            ready.expect("a new node is ready while the flood goes on").unwrap();
            assert!(node.get("key").is_some());
        }
    });
}

async fn certified(authority: &Authority, name: &str, seeds: &[SocketAddr]) -> Node {
    let seeds = seeds.iter().map(SocketAddr::to_string);
    let builder = builder(name, &[]).config(Config::lan()).seeds(seeds);
    builder.security(authority.security(name, VALID)).start().await.unwrap()
}

/// Sent over the link to this peer since it was made, if there is one: a link that is made anew counts from 0.
fn sent_bytes(node: &Node, peer: &str) -> Option<u64> {
    node.status().peers.iter().find(|status| status.name == peer).map(|status| status.sent_bytes)
}

/// Writes a key of the writer's own, so that no write of another node competes with it, and waits until another node has
/// the value.
async fn write_arrives(from: &Node, to: &Node, value: &str) {
    let key = from.name();
    from.put(key, value).unwrap();
    until(|| to.get(key).is_some_and(|seen| seen.value() == value.as_bytes())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_stay_and_nodes_join_during_a_flood() {
    let authority = Authority::new("flood");
    let a = certified(&authority, "a", &[]).await;
    let b = certified(&authority, "b", &[a.addr()]).await;
    guarded(b.ready()).await.unwrap();
    until(|| sent_bytes(&a, "b").is_some() && sent_bytes(&b, "a").is_some()).await;
    // Two hundred addresses that nobody answers from, the nodes' own among them, and one with valid certificates.
    let mut sources = addresses(1, 199);
    sources.push(Ipv4Addr::LOCALHOST);
    let floods = [&a, &b].map(|node| Flood::new(node.addr(), &sources));
    floods.iter().for_each(|flood| flood.set_per_second(1_000));
    let silent = SilentMembers::new(&authority, &a, &addresses(2, 1), 48);
    until(|| silent.open() >= 32 && silent.shut_out() > 0).await;

    let c = certified(&authority, "c", &[a.addr()]).await;
    let mut sent = [sent_bytes(&a, "b").unwrap(), sent_bytes(&b, "a").unwrap()];
    let mut round = 0;
    while round < 50 || floods.iter().any(|flood| flood.packets_sent() < 3_000) {
        round += 1;
        write_arrives(&a, &b, &format!("{round} of a")).await;
        write_arrives(&b, &a, &format!("{round} of b")).await;
        let now = [sent_bytes(&a, "b"), sent_bytes(&b, "a")].map(|sent| sent.expect("they are linked"));
        assert!(now[0] >= sent[0] && now[1] >= sent[1], "a link was made anew: {sent:?}, {now:?}");
        sent = now;
        let members = a.members();
        let b = members.iter().find(|member| member.name == "b").unwrap();
        assert_eq!(b.state, MemberState::Alive);
    }
    let ready = tokio::time::timeout(READY_TIME_MAX, c.ready()).await;
    ready.expect("a new node is ready while the flood goes on").unwrap();
    write_arrives(&c, &b, "of c").await;
    assert_eq!(a.members().len(), 3, "no stranger became a member");
}

/// Places for handshakes of one address, and of all together.
const PLACES: [usize; 2] = [32, 64];

/// Whether a new node is let in by another one at its first attempt.
async fn is_let_in_at_once(authority: &Authority, by: &Node) -> bool {
    let b = certified(authority, "b", &[by.addr()]).await;
    let mut events = b.events();
    let failed = async {
        while let Some(event) = events.next().await {
            if matches!(event, NodeEvent::PeerRefused { .. } | NodeEvent::Unreachable { .. }) {
                break;
            }
        }
    };
    let first = async {
        tokio::select! {
            ready = b.ready() => ready.is_ok(),
            () = failed => false,
        }
    };
    guarded(first).await
}

async fn broken(authority: &Authority, control: Option<Control>) -> Node {
    let security = authority.security("a", VALID).broken(control);
    builder("a", &[]).config(Config::lan()).security(security).start().await.unwrap()
}

/// Silent members from this many addresses are in the way. They are half as many again as have `places`.
async fn silent_members_let_in(addresses_count: u8, places: usize, control: Option<Control>) -> bool {
    let authority = Authority::new("silent");
    let a = broken(&authority, control).await;
    let each = places * 3 / 2 / usize::from(addresses_count);
    let silent = SilentMembers::new(&authority, &a, &addresses(2, addresses_count), each);
    until(|| silent.open() >= places && silent.shut_out() >= places / 2).await;
    is_let_in_at_once(&authority, &a).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_members_of_one_address_leave_places_for_others() {
    assert!(silent_members_let_in(1, PLACES[0], None).await);
}

/// The control: with the limits for each address switched off, one stranger takes all places.
#[test]
fn stranger_without_a_limit_of_its_own_keeps_nodes_out() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    assert!(!runtime.block_on(silent_members_let_in(1, PLACES[1], Some(Control::SourcesUnlimited))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_members_of_two_addresses_give_way() {
    assert!(silent_members_let_in(2, PLACES[1], None).await);
}

/// The control: from two addresses the limit for each address alone does not help.
#[test]
fn without_giving_way_silent_members_keep_nodes_out() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    assert!(!runtime.block_on(silent_members_let_in(2, PLACES[1], Some(Control::NoneGivesWay))));
}

/// Strangers of four addresses take all places for handshakes, also those for addresses that are proven.
async fn stalled_handshakes_let_in(control: Option<Control>) -> bool {
    let authority = Authority::new("stalled");
    let a = broken(&authority, control).await;
    let stalled = Stalled::new(a.addr(), &addresses(3, 4)).await;
    until(|| stalled.proven() >= PLACES[1] * 2).await;
    is_let_in_at_once(&authority, &a).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_of_proven_addresses_give_way() {
    assert!(stalled_handshakes_let_in(None).await);
}

/// The control. Where a place happens to be free at that instant, it is tried again.
#[test]
fn without_giving_way_stalled_handshakes_keep_nodes_out() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_let_in = || runtime.block_on(stalled_handshakes_let_in(Some(Control::NoneGivesWay)));
    assert!((0..5).any(|_| !is_let_in()));
}
