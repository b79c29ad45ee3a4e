//! Strangers that begin handshakes and never answer, and peers with valid certificates that never greet, must not keep
//! members out nor disturb those that are linked. A flood of first QUIC packets from one, four or two hundred loopback
//! addresses runs, at 20 and at 1,000 packets per second, while new nodes join a real one and linked nodes write. A node
//! that does not become ready within `READY_TIME_MAX` fails the test. The limits themselves are tested in
//! `src/node/net/admission.rs`. Times under a flood are measured by `tidings-benches`, `node strangers`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tidings::{Config, Control, MemberState, Node, NodeEvent};
use tidings_proptest::authority::{Authority, VALID};
use tidings_proptest::nodes::{builder, guarded, until};
use tidings_proptest::strangers::{Flood, SilentMembers, addresses};

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

/// Whether a new node is let in at its first attempt, while silent members from this many addresses are in the way. They
/// are half as many again as have `places`.
async fn is_let_in_at_once(addresses_count: u8, places: usize, control: Option<Control>) -> bool {
    let authority = Authority::new("silent");
    let security = authority.security("a", VALID).broken(control);
    let a = builder("a", &[]).config(Config::lan()).security(security).start().await.unwrap();
    let each = places * 3 / 2 / usize::from(addresses_count);
    let silent = SilentMembers::new(&authority, &a, &addresses(2, addresses_count), each);
    until(|| silent.open() >= places && silent.shut_out() >= places / 2).await;
    let b = certified(&authority, "b", &[a.addr()]).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_members_of_one_address_leave_places_for_others() {
    assert!(is_let_in_at_once(1, PLACES[0], None).await);
}

/// The control: with the limits for each address switched off, one stranger takes all places.
#[test]
fn stranger_without_a_limit_of_its_own_keeps_nodes_out() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    assert!(!runtime.block_on(is_let_in_at_once(1, PLACES[1], Some(Control::SourcesUnlimited))));
}

/// From two addresses the limit per address does not help either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_members_of_two_addresses_take_all_places() {
    assert!(!is_let_in_at_once(2, PLACES[1], None).await);
}
