//! A wire that can be cut: in the demo, packets to each node go through a relay, which drops those of a node that is
//! cut off. The nodes know nothing of it. What they say to each other stays encrypted from end to end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::net::UdpSocket;

/// Senders for which a relay opens a socket of its own; others are not relayed.
const SENDERS_MAX: usize = 64;
/// The largest UDP datagram.
const PACKET_BYTES_MAX: usize = 65_536;

/// Which packets may pass.
pub(crate) trait Rule: Send + Sync + 'static {
    /// Whether a packet from this address may go to this node, or back.
    fn passes(&self, from: SocketAddr, to: usize) -> bool;
}

/// The relay in front of one node.
#[derive(Debug)]
pub(crate) struct Relay {
    socket: Arc<UdpSocket>,
    /// Where the node itself listens, once it does.
    pub(crate) target: OnceLock<SocketAddr>,
    senders: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>>,
    to: usize,
}

impl Relay {
    pub(crate) async fn bind(to: usize) -> std::io::Result<Arc<Self>> {
        let socket = Arc::new(UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?);
        Ok(Arc::new(Self { socket, target: OnceLock::new(), senders: Mutex::default(), to }))
    }

    /// Where others find the node.
    pub(crate) fn addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Passes packets on, for as long as the program runs.
    pub(crate) async fn run(self: Arc<Self>, rule: Arc<impl Rule>) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            // An error is that of an earlier packet, which nobody took.
            let Ok((bytes, from)) = self.socket.recv_from(&mut packet).await else { continue };
            if rule.passes(from, self.to)
                && let Some(sender) = self.sender(from, &rule).await
            {
                _ = sender.send(&packet[..bytes]).await;
            }
        }
    }

    /// The socket through which a sender's packets go on, and through which the answers come.
    async fn sender(self: &Arc<Self>, from: SocketAddr, rule: &Arc<impl Rule>) -> Option<Arc<UdpSocket>> {
        let known = self.senders.lock().expect("nothing panics with it").get(&from).cloned();
        if known.is_some() {
            return known;
        }
        let target = *self.target.get()?;
        let socket = Arc::new(UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.ok()?);
        socket.connect(target).await.ok()?;
        let mut senders = self.senders.lock().expect("nothing panics with it");
        if senders.len() == SENDERS_MAX {
            return None;
        }
        senders.insert(from, socket.clone());
        let (relay, back, rule) = (self.clone(), socket.clone(), rule.clone());
        tokio::spawn(async move {
            let mut packet = vec![0; PACKET_BYTES_MAX];
            loop {
                let Ok(bytes) = back.recv(&mut packet).await else { continue };
                if rule.passes(from, relay.to) {
                    _ = relay.socket.send_to(&packet[..bytes], from).await;
                }
            }
        });
        Some(socket)
    }
}
