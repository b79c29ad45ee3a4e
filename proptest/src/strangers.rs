//! Load from peers that want to be in the way: first packets of handshakes that nobody goes on with, handshakes that end
//! once the address is proven, and connections with valid certificates on which nothing useful is said.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::{Connection, Endpoint};
use quinn_proto::DatagramEvent;
use socket2::{Domain, Socket};
use tidings::Node;
use tokio::task::JoinSet;

use crate::authority::Authority;
use crate::tls;

/// First packets in rotation: enough that at 20 per second none is sent again while its first handshake may be in
/// progress.
const INITIALS: usize = 400;
/// Sent at once at the begin of a flood.
const BURST: usize = 200;
const MICROS: u128 = 1_000_000;

/// A client of the protocol that has no certificate.
fn stranger() -> quinn::ClientConfig {
    let mut config = tls::client(rustls::RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"tidings/1".to_vec()];
    tls::quic(config)
}

/// The first packets of this many handshakes, as a real client sends them to this address.
fn initials(to: SocketAddr) -> Vec<Vec<u8>> {
    let config = stranger();
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let mut initial = || {
        let now = Instant::now();
        let (_, mut connection) = endpoint.connect(now, config.clone(), to, "tidings").expect("it is valid");
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

/// The first `count` addresses of a network of loopback, 127.0.`network`.1 and on.
pub fn addresses(network: u8, count: u8) -> Vec<Ipv4Addr> {
    (1..=count).map(|host| Ipv4Addr::new(127, 0, network, host)).collect()
}

/// The port that forged packets name as theirs.
const PORT_FORGED: u16 = 40_000;

/// A socket that sends whole packets of IPv4, headers included.
///
/// # Errors
/// If the process may not have one.
pub fn forging() -> std::io::Result<Socket> {
    // `SOCK_RAW` and `IPPROTO_RAW`, which the library names only with all of its features.
    Socket::new(Domain::IPV4, 3.into(), Some(255.into()))
}

/// A packet of UDP in one of IPv4. The system fills in the length and the checksum of the latter; without a checksum of its
/// own the former is taken as well.
pub fn forged(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("it is one packet");
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for field in [from.port(), to.port(), len, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// Sends first packets from some loopback addresses until it is dropped, and reads no answer.
#[derive(Debug)]
pub struct Flood {
    per_second: Arc<AtomicU32>,
    packets_sent: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts with 200 packets at once, and then 20 a second.
    ///
    /// # Panics
    /// If no sockets can be had.
    pub fn new(to: SocketAddr, sources: &[Ipv4Addr]) -> Self {
        // Each source sends from several ports, as several strangers would.
        let bind = |ip: &Ipv4Addr| UdpSocket::bind(SocketAddr::from((*ip, 0))).expect("it is of loopback");
        let sockets: Vec<UdpSocket> = sources.iter().cycle().take(sources.len().max(8)).map(bind).collect();
        // A full socket buffer loses packets, as a network does.
        Self::sending(to, move |packet, at| _ = sockets[at % sockets.len()].send_to(packet, to))
    }

    /// The same from addresses that need not be this machine's. What the node answers goes where the routes lead, so this
    /// belongs into a network of its own.
    ///
    /// # Panics
    /// If this is not permitted.
    pub fn forged(to: SocketAddrV4, sources: Vec<Ipv4Addr>) -> Self {
        let socket = forging().expect("root may");
        Self::sending(to.into(), move |packet, at| {
            let from = SocketAddrV4::new(sources[at % sources.len()], PORT_FORGED);
            _ = socket.send_to(&forged(from, to, packet), &SocketAddr::from(to).into());
        })
    }

    /// The second argument counts the packets.
    fn sending(to: SocketAddr, mut send_one: impl FnMut(&[u8], usize) + Send + 'static) -> Self {
        let mut packets = initials(to).into_iter().cycle().zip(0..);
        let packets_sent = Arc::new(AtomicUsize::new(0));
        let counted = packets_sent.clone();
        let mut send = move |count| {
            for (packet, at) in packets.by_ref().take(count) {
                send_one(&packet, at);
            }
            counted.fetch_add(count, Ordering::Relaxed);
        };
        send(BURST);
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
                send(usize::try_from(due / MICROS).expect("the rate is moderate"));
                due %= MICROS;
            }
        });
        Self { per_second, packets_sent, is_over, thread: Some(thread) }
    }

    /// Changes the rate.
    pub fn set_per_second(&self, packets: u32) {
        self.per_second.store(packets, Ordering::Relaxed);
    }

    /// Packets sent so far.
    pub fn packets_sent(&self) -> usize {
        self.packets_sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// How often each source of [`Stalled`] begins a handshake.
const BEGIN_INTERVAL: Duration = Duration::from_millis(10);
/// Handshakes of one source that may still be asked to prove their address.
const BEGUN_MAX: usize = 256;

/// Strangers that begin handshakes, prove that they receive packets at their addresses when they are asked to (QUIC's
/// Retry), and read nothing else. They need no certificate for that. They end when this is dropped.
#[derive(Debug)]
pub struct Stalled {
    proven: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Stalled {
    /// Starts one for each source.
    ///
    /// # Panics
    /// If no sockets can be had.
    pub async fn new(to: SocketAddr, sources: &[Ipv4Addr]) -> Self {
        let proven = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for source in sources {
            let socket = tokio::net::UdpSocket::bind((*source, 0)).await.expect("it is of loopback");
            tasks.spawn(stall(socket, to, proven.clone()));
        }
        Self { proven, _tasks: tasks }
    }

    /// Handshakes whose address was proven so far.
    pub fn proven(&self) -> usize {
        self.proven.load(Ordering::Relaxed)
    }
}

async fn stall(socket: tokio::net::UdpSocket, to: SocketAddr, proven: Arc<AtomicUsize>) {
    let config = stranger();
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let mut begun = VecDeque::new();
    let mut ticks = tokio::time::interval(BEGIN_INTERVAL);
    let mut buffer = [0; 2_048];
    loop {
        let mut packet = Vec::new();
        tokio::select! {
            _ = ticks.tick() => {
                let now = Instant::now();
                let connect = endpoint.connect(now, config.clone(), to, "tidings");
                let (handle, mut connection) = connect.expect("it is valid");
                _ = connection.poll_transmit(now, 1, &mut packet);
                begun.push_back((handle, connection));
                if begun.len() > BEGUN_MAX {
                    begun.pop_front();
                }
            }
            Ok((len, from)) = socket.recv_from(&mut buffer) => {
                // A packet with a long header of type 3: Retry. The version is the first one.
                if buffer[0] & 0xf0 != 0xf0 {
                    continue;
                }
                let now = Instant::now();
                let data = BytesMut::from(&buffer[..len]);
                let event = endpoint.handle(now, from, None, None, data, &mut Vec::new());
                let Some(DatagramEvent::ConnectionEvent(to, event)) = event else { continue };
                let asked = begun.iter_mut().find(|(handle, _)| *handle == to);
                let Some((_, connection)) = asked else { continue };
                connection.handle_event(event);
                _ = connection.poll_transmit(now, 1, &mut packet);
                proven.fetch_add(1, Ordering::Relaxed);
            }
        }
        // A full socket buffer loses packets, as a network does.
        _ = socket.try_send_to(&packet, to);
    }
}

/// Peers with valid certificates that connect to a node, greet nobody, and connect again when they are shut out. One in
/// three says nothing, one begins a greeting, and one begins a frame. They end when this is dropped.
#[derive(Debug)]
pub struct SilentMembers {
    open: Arc<AtomicUsize>,
    shut_out: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl SilentMembers {
    /// Starts this many for each source.
    ///
    /// # Panics
    /// If no sockets can be had.
    pub fn new(authority: &Authority, to: &Node, sources: &[Ipv4Addr], each: usize) -> Self {
        let (open, shut_out) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for source in sources {
            let mut endpoint = Endpoint::client((*source, 0).into()).expect("it is of loopback");
            let mut config = authority.client("silent");
            config.alpn_protocols = vec![b"tidings/1".to_vec()];
            endpoint.set_default_client_config(tls::quic(config));
            for at in 0..each {
                let to = (to.addr(), to.name().to_owned());
                tasks.spawn(linger(endpoint.clone(), to, at, open.clone(), shut_out.clone()));
            }
        }
        Self { open, shut_out, _tasks: tasks }
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Attempts that were refused, and connections that the node has closed.
    pub fn shut_out(&self) -> usize {
        self.shut_out.load(Ordering::Relaxed)
    }
}

async fn linger(
    endpoint: Endpoint,
    (addr, name): (SocketAddr, String),
    at: usize,
    open: Arc<AtomicUsize>,
    shut_out: Arc<AtomicUsize>,
) {
    loop {
        let connecting = endpoint.connect(addr, &name).expect("it is valid");
        if let Ok(connection) = connecting.await {
            open.fetch_add(1, Ordering::Relaxed);
            begin_something(&connection, at).await;
            connection.closed().await;
            open.fetch_sub(1, Ordering::Relaxed);
        }
        shut_out.fetch_add(1, Ordering::Relaxed);
        // Sets the rate of attempts. No synchronisation.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Opens half of what a peer opens, or nothing, and leaves it open.
async fn begin_something(connection: &Connection, at: usize) {
    match at % 3 {
        0 => {}
        1 => {
            if let Ok((mut send, receive)) = connection.open_bi().await {
                _ = send.write_all(&[1]).await;
                connection.closed().await;
                drop(receive);
            }
        }
        _ => {
            if let Ok(mut send) = connection.open_uni().await {
                _ = send.write_all(&[0, 200, 0, 0, 0, 1]).await;
                connection.closed().await;
            }
        }
    }
}
