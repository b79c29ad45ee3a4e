//! Clusters of other libraries, each over the transport it brings, or a plain UDP socket.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use chitchat::transport::UdpTransport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig};
use foca::{BroadcastHandler, Config, Invalidates, Notification, PostcardCodec, Timer};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use tidings_benches::{key, value};
use tidings_proptest::relay::Faults;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::cluster::{Ear, message};
use crate::reconcile_rs::{Node, Settings, addrs};

/// How long a rival's members may take to find each other.
const FORMING_TIME_MAX: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
async fn free_addr() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
    socket.local_addr().expect("it is bound")
}

/// One `chitchat` node, over its own UDP transport.
pub(super) struct Chitchat(ChitchatHandle);

impl Chitchat {
    pub(super) async fn start(at: usize, every: Duration, seeds: &[SocketAddr]) -> Self {
        let addr = free_addr().await;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(format!("n{at}"), 1, addr),
            cluster_id: "bench".to_owned(),
            gossip_interval: every,
            listen_addr: addr,
            seed_nodes: seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(3_600),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: chitchat::ProtocolVersion::V0,
        };
        Self(chitchat::spawn_chitchat(config, Vec::new(), &UdpTransport).await.expect("it starts"))
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.0.chitchat_id().gossip_advertise_addr
    }

    pub(super) async fn cluster(ears: &[Ear], every: Duration) -> Vec<Self> {
        let mut nodes: Vec<Self> = Vec::new();
        for ear in ears {
            let seeds: Vec<SocketAddr> = nodes.first().map(Self::addr).into_iter().collect();
            let node = Self::start(ear.at, every, &seeds).await;
            let ear = ear.clone();
            let listen = |it: &mut chitchat::Chitchat| {
                it.subscribe_event("", move |event| ear.hear(event.value.as_bytes()))
            };
            let mut listen = Some(listen);
            node.0.with_chitchat(|it| listen.take().expect("it runs once")(it).forever()).await;
            nodes.push(node);
        }
        let begin = Instant::now();
        for node in &nodes {
            while node.0.with_chitchat(|it| it.live_nodes().count()).await < nodes.len()
                && begin.elapsed() < FORMING_TIME_MAX
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        nodes
    }

    pub(super) async fn put(&self, from: usize, number: u64) {
        let (key, value) = (key(from as u64), String::from_utf8(value(number)).expect("digits"));
        self.0.with_chitchat(|it| it.self_node_state().set(&key, &value)).await;
    }

    pub(super) async fn fill(&self, keys: u64) {
        let fill = |it: &mut chitchat::Chitchat| {
            for i in 0..keys {
                it.self_node_state().set(key(i), String::from_utf8(value(i)).expect("digits"));
            }
        };
        self.0.with_chitchat(fill).await;
    }

    /// Keys of all nodes.
    pub(super) async fn len(&self) -> usize {
        self.0
            .with_chitchat(|it| it.node_states().values().map(chitchat::NodeState::num_key_values).sum())
            .await
    }

    pub(super) async fn stop(nodes: Vec<Self>) {
        for node in nodes {
            _ = node.0.shutdown().await;
        }
    }
}

/// Nodes of `reconcile` of which each knows all others and has heard from them.
pub(super) async fn reconcile_cluster(ears: &[Ear], settings: Settings, faults: Option<Faults>) -> Vec<Node> {
    let (addrs, mut nodes) = (addrs(ears.len()).await, Vec::new());
    for ear in ears {
        let faults = faults.map(|faults| faults.at(1_000 * ear.at as u64));
        let at = ear.at;
        let ear = ear.clone();
        nodes.push(Node::start(settings, addrs[at], &addrs, faults, move |value| ear.hear(value)).await);
    }
    let begin = Instant::now();
    for node in &nodes {
        while node.map.members().len() + 1 < nodes.len() && begin.elapsed() < FORMING_TIME_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    nodes
}

/// What is to be done by the task of a `foca` node.
enum Happening {
    Packet(Vec<u8>),
    Timer(Timer<SocketAddr>),
    Put(Vec<u8>),
}

/// One `foca` node over a UDP socket. New broadcasts are passed on at once, besides its own periodic gossip.
pub(super) struct Foca {
    happenings: UnboundedSender<Happening>,
}

/// Messages that a node has heard of already.
struct Heard {
    ear: Ear,
    messages: BTreeSet<Vec<u8>>,
}

/// Nothing replaces anything.
struct Unique;

impl Invalidates for Unique {
    fn invalidates(&self, _: &Self) -> bool {
        false
    }
}

impl BroadcastHandler<SocketAddr> for Heard {
    type Key = Unique;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], _: Option<&SocketAddr>) -> Result<Option<Unique>, Infallible> {
        let is_new = self.messages.insert(data.to_vec());
        if is_new {
            self.ear.hear(data);
        }
        Ok(is_new.then_some(Unique))
    }
}

struct Effects {
    packets: Vec<(SocketAddr, Vec<u8>)>,
    happenings: UnboundedSender<Happening>,
}

impl foca::Runtime<SocketAddr> for Effects {
    fn notify(&mut self, _: Notification<'_, SocketAddr>) {}

    fn send_to(&mut self, to: SocketAddr, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<SocketAddr>, after: Duration) {
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            _ = happenings.send(Happening::Timer(event));
        });
    }
}

impl Foca {
    pub(super) async fn cluster(ears: &[Ear], tasks: &mut JoinSet<()>) -> Vec<Self> {
        let (mut nodes, mut seed) = (Vec::new(), None);
        let size = NonZeroU32::new(ears.len() as u32).expect("there are nodes");
        for ear in ears {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
            let addr = socket.local_addr().expect("it is bound");
            let (happenings, happened) = unbounded_channel();
            tasks.spawn(run_foca(socket, ear.clone(), size, seed, happenings.clone(), happened));
            seed = seed.or(Some(addr));
            nodes.push(Self { happenings });
        }
        // It has no way to ask from outside whether it has formed; its gossip needs less than this for a hundred.
        tokio::time::sleep(Duration::from_secs(3)).await;
        nodes
    }

    pub(super) fn put(&self, from: usize, number: u64) {
        _ = self.happenings.send(Happening::Put(message(from, number)));
    }
}

async fn run_foca(
    socket: UdpSocket,
    ear: Ear,
    size: NonZeroU32,
    seed: Option<SocketAddr>,
    happenings: UnboundedSender<Happening>,
    mut happened: UnboundedReceiver<Happening>,
) {
    let addr = socket.local_addr().expect("it is bound");
    let random = ChaCha8Rng::seed_from_u64(ear.at as u64);
    let heard = Heard { ear, messages: BTreeSet::new() };
    let mut foca =
        foca::Foca::with_custom_broadcast(addr, Config::new_lan(size), random, PostcardCodec, heard);
    let mut effects = Effects { packets: Vec::new(), happenings };
    if let Some(seed) = seed {
        foca.announce(seed, &mut effects).expect("it fits");
    }
    let mut packet = vec![0; 2_048];
    loop {
        for (to, packet) in effects.packets.drain(..) {
            _ = socket.send_to(&packet, to).await;
        }
        let happening = tokio::select! {
            received = socket.recv_from(&mut packet) => {
                let Ok((length, _)) = received else { continue };
                Happening::Packet(packet[..length].to_vec())
            }
            Some(happening) = happened.recv() => happening,
        };
        let before = foca.custom_broadcast_backlog();
        // What it refuses is not ours to mend: what has not arrived counts as lost.
        _ = match happening {
            Happening::Packet(bytes) => foca.handle_data(&bytes, &mut effects),
            Happening::Timer(timer) => foca.handle_timer(timer, &mut effects),
            Happening::Put(bytes) => foca.add_broadcast(&bytes).map(|_| ()),
        };
        if foca.custom_broadcast_backlog() > before {
            _ = foca.broadcast(&mut effects);
        }
    }
}

#[cfg(feature = "memberlist")]
pub(super) use lists::Memberlist;

/// The `memberlist` crate. Its broadcasts are the user's own matter: a queue from which each message goes out with so
/// many gossips, and which a node that hears a new message puts it in as well.
#[cfg(feature = "memberlist")]
mod lists {
    use std::borrow::Cow;
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use memberlist::Options;
    use memberlist::delegate::{CompositeDelegate, NodeDelegate, VoidDelegate};
    use memberlist::net::NetTransportOptions;
    use memberlist::proto::MaybeResolvedAddress;
    use memberlist::tokio::{TokioSocketAddrResolver, TokioTcp, TokioTcpMemberlist};

    use super::super::cluster::{Ear, message};
    use super::FORMING_TIME_MAX;

    /// As its defaults have it for its own messages: 4 times the logarithm of the cluster's size.
    const RETRANSMIT_MULT: usize = 4;

    #[derive(Default)]
    struct State {
        heard: BTreeSet<Vec<u8>>,
        queue: Vec<(Bytes, usize)>,
    }

    #[derive(Clone)]
    struct Queue {
        ear: Ear,
        sendings: usize,
        state: Arc<Mutex<State>>,
    }

    impl Queue {
        fn add(&self, bytes: &[u8]) -> bool {
            let mut state = self.state.lock().expect("nobody panics with it");
            let is_new = state.heard.insert(bytes.to_vec());
            if is_new {
                state.queue.push((Bytes::copy_from_slice(bytes), self.sendings));
            }
            is_new
        }
    }

    impl NodeDelegate for Queue {
        async fn notify_message(&self, message: Cow<'_, [u8]>) {
            if self.add(&message) {
                self.ear.hear(&message);
            }
        }

        async fn broadcast_messages<F>(
            &self,
            limit: usize,
            encoded_len: F,
        ) -> impl Iterator<Item = Bytes> + Send
        where
            F: Fn(Bytes) -> (usize, Bytes) + Send + Sync + 'static,
        {
            let (mut chosen, mut used) = (Vec::new(), 0);
            let mut state = self.state.lock().expect("nobody panics with it");
            for (bytes, left) in state.queue.iter_mut().rev() {
                let (length, bytes) = encoded_len(bytes.clone());
                if used + length > limit {
                    break;
                }
                used += length;
                *left -= 1;
                chosen.push(bytes);
            }
            state.queue.retain(|(_, left)| *left > 0);
            chosen.into_iter()
        }
    }

    type Void = VoidDelegate<u64, SocketAddr>;
    type Delegates = CompositeDelegate<u64, SocketAddr, Void, Void, Void, Void, Queue, Void>;
    type List = TokioTcpMemberlist<u64, TokioSocketAddrResolver, Delegates>;

    /// One `memberlist` node, over UDP and TCP.
    pub(in super::super) struct Memberlist {
        list: List,
        queue: Queue,
    }

    impl Memberlist {
        pub(in super::super) async fn cluster(ears: &[Ear], every: Duration) -> Vec<Self> {
            let mut nodes: Vec<Self> = Vec::new();
            let rounds = (ears.len() + 1).ilog10() as usize + 1;
            for ear in ears {
                let queue =
                    Queue { ear: ear.clone(), sendings: RETRANSMIT_MULT * rounds, state: Arc::default() };
                let mut transport =
                    NetTransportOptions::<u64, TokioSocketAddrResolver, TokioTcp>::new(ear.at as u64);
                transport.add_bind_address(([127, 0, 0, 1], 0).into());
                let delegate = CompositeDelegate::new().with_node_delegate(queue.clone());
                let options = Options::lan().with_gossip_interval(every);
                let list = List::with_delegate(delegate, transport, options).await.expect("it starts");
                if let Some(first) = nodes.first() {
                    let seed = MaybeResolvedAddress::Resolved(*first.list.advertise_address());
                    list.join(seed).await.expect("it joins");
                }
                nodes.push(Self { list, queue });
            }
            let begin = Instant::now();
            for node in &nodes {
                while node.list.num_online_members().await < nodes.len() && begin.elapsed() < FORMING_TIME_MAX
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            nodes
        }

        pub(in super::super) fn put(&self, from: usize, number: u64) {
            self.queue.add(&message(from, number));
        }

        pub(in super::super) async fn stop(nodes: Vec<Self>) {
            for node in nodes {
                _ = node.list.shutdown().await;
            }
        }
    }
}
