//! Strangers that begin handshakes and never answer must not keep members out. A flood of first QUIC packets from one
//! or four loopback addresses runs, at 20 and at 1,000 packets per second, while new nodes join a real one. A node that
//! does not become ready within `READY_TIME_MAX` fails the test. The limits themselves are tested in
//! `src/node/admission.rs`.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidings::{Config, Node};
use tidings_proptest::nodes::builder;
use tidings_proptest::tls;

/// Time limit of the test, no target: a node that is not ready by then is taken to be kept out.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// First packets in rotation: enough that at 20 per second none is sent again while its first handshake may be in
/// progress.
const INITIALS: usize = 400;

/// The first packets of this many handshakes, as a real client sends them to this address.
fn initials(to: SocketAddr) -> Vec<Vec<u8>> {
    let mut config = tls::client(rustls::RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"tidings/1".to_vec()];
    let config = tls::quic(config);
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let mut initial = || {
        let now = Instant::now();
        let (_, mut connection) = endpoint.connect(now, config.clone(), to, "tidings").unwrap();
        let mut packet = Vec::new();
        let sent = connection.poll_transmit(now, 1, &mut packet);
        assert!(
            sent.is_some() && packet.len() >= 1_200,
            "the client sends one packet of at least 1,200 bytes, as QUIC demands"
        );
        packet
    };
    (0..INITIALS).map(|_| initial()).collect()
}

const MICROS: u128 = 1_000_000;

/// Sends first packets from some loopback addresses until it is dropped, and reads no answer.
struct Flood {
    per_second: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts with 200 packets at once.
    fn new(to: SocketAddr, sources: &[[u8; 4]]) -> Self {
        // Each source sends from several ports, as several strangers would.
        let bind = |ip: &[u8; 4]| UdpSocket::bind(SocketAddr::from((*ip, 0))).unwrap();
        let sockets: Vec<UdpSocket> = sources.iter().cycle().take(8).map(bind).collect();
        let mut packets = initials(to).into_iter().cycle().zip((0..sockets.len()).cycle());
        let mut send = move |count| {
            for (packet, socket) in packets.by_ref().take(count) {
                // A full socket buffer loses packets, as a network does.
                _ = sockets[socket].send_to(&packet, to);
            }
        };
        send(200);
        let (per_second, is_over) = (Arc::new(AtomicU32::new(20)), Arc::new(AtomicBool::new(false)));
        let (rate, ends) = (per_second.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let (mut last, mut due) = (Instant::now(), 0);
            while !ends.load(Ordering::Relaxed) {
                // Sets the rate of sending. No synchronisation.
                std::thread::sleep(Duration::from_millis(5));
                let now = Instant::now();
                due += (now - last).as_micros() * u128::from(rate.load(Ordering::Relaxed));
                last = now;
                send((due / MICROS) as usize);
                due %= MICROS;
            }
        });
        Self { per_second, is_over, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

async fn start(name: &str, seeds: &[&Node]) -> Node {
    builder(name, seeds).config(Config::lan()).start().await.unwrap()
}

/// Asserts that new nodes become ready under a flood from these addresses, at 20 and then 1,000 packets per second.
async fn join_under_flood(sources: &[[u8; 4]]) {
    let a = start("a", &[]).await;
    a.put("key", "value").unwrap();
    let flood = Flood::new(a.addr(), sources);
    let mut nodes = Vec::new();
    for (name, rate) in [("b", 20), ("c", 20), ("d", 1_000), ("e", 1_000)] {
        flood.per_second.store(rate, Ordering::Relaxed);
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
    join_under_flood(&[[127, 0, 0, 1]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_silent_strangers_keep_no_node_out() {
    join_under_flood(&[[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 5]]).await;
}
