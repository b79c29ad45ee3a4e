//! Seeds in all their forms, with a DNS server of the test's own on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tidings::{Node, NodeEvent, StartError};
use tidings_proptest::nodes::{builder, event, guarded, ready, start, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const SERVICE: &str = "_gossip._udp.tidings.test.";
const HOST: &str = "node.tidings.test.";

/// The records of names, each with its dot at the end.
type Records = BTreeMap<(String, RecordType), Vec<RData>>;

/// The most bytes of an answer in one packet.
const PACKET_BYTES_MAX: usize = 1_232;

/// A DNS server that answers with the records that it is given.
struct DnsServer {
    addr: SocketAddr,
    records: Arc<Mutex<Records>>,
}

impl DnsServer {
    async fn start() -> Self {
        let (socket, listener) = bind_both().await;
        let addr = socket.local_addr().expect("it is bound");
        let records = Arc::<Mutex<Records>>::default();
        tokio::spawn(serve_packets(socket, records.clone()));
        tokio::spawn(serve_streams(listener, records.clone()));
        let dns = Self { addr, records };
        dns.set(HOST, [RData::A(A::new(127, 0, 0, 1))]);
        dns
    }

    /// Gives the records of one type of a name, of which there is one at least.
    fn set(&self, name: &str, records: impl IntoIterator<Item = RData>) {
        let records: Vec<RData> = records.into_iter().collect();
        let key = (name.to_owned(), records[0].record_type());
        self.records.lock().expect("nothing panics with it").insert(key, records);
    }

    /// Lists nodes at 127.0.0.1 under the service.
    fn list(&self, nodes: &[&Node]) {
        self.set(SERVICE, nodes.iter().map(|node| srv(1, node.addr().port(), HOST)));
    }
}

/// Binds the same port for packets and for streams.
async fn bind_both() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let addr = socket.local_addr().expect("it is bound");
        if let Ok(listener) = TcpListener::bind(addr).await {
            return (socket, listener);
        }
    }
    panic!("no port is free for both");
}

/// Answers that are too long for a packet are cut, so that the client asks again over a stream.
async fn serve_packets(socket: UdpSocket, records: Arc<Mutex<Records>>) {
    let mut packet = [0; 4_096];
    while let Ok((len, client)) = socket.recv_from(&mut packet).await {
        let Ok(question) = Message::from_vec(&packet[..len]) else { continue };
        let mut answer = answer(&question, &records.lock().expect("nothing panics with it"));
        let mut bytes = answer.to_vec().expect("it is valid");
        if bytes.len() > PACKET_BYTES_MAX {
            answer.metadata.truncation = true;
            answer.answers.clear();
            bytes = answer.to_vec().expect("it is valid");
        }
        _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_streams(listener: TcpListener, records: Arc<Mutex<Records>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_stream(stream, records.clone()));
    }
}

/// The length goes before each message. Answers until the client has no further question.
async fn serve_stream(mut stream: TcpStream, records: Arc<Mutex<Records>>) -> std::io::Result<()> {
    loop {
        let mut question = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut question).await?;
        let question = Message::from_vec(&question).map_err(std::io::Error::other)?;
        let answer = answer(&question, &records.lock().expect("nothing panics with it"));
        let bytes = answer.to_vec().expect("it is valid");
        let len = u16::try_from(bytes.len()).expect("it is short");
        stream.write_all(&[&len.to_be_bytes()[..], &bytes].concat()).await?;
    }
}

fn srv(priority: u16, port: u16, host: &str) -> RData {
    RData::SRV(SRV::new(priority, 1, port, Name::from_str(host).expect("a name")))
}

fn answer(question: &Message, records: &Records) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    for query in &question.queries {
        answer.add_query(query.clone());
        let name = query.name().to_lowercase().to_string();
        if !records.keys().any(|(known, _)| *known == name) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        let data = records.get(&(name, query.query_type())).cloned().unwrap_or_default();
        answer.add_answers(data.into_iter().map(|data| Record::from_rdata(query.name().clone(), 0, data)));
    }
    answer
}

/// The service as a seed.
fn service() -> String {
    format!("srv+{}", SERVICE.trim_end_matches('.'))
}

/// Starts a node that has the service as its only seed.
async fn start_by_service(name: &str, name_servers: impl IntoIterator<Item = SocketAddr>) -> Node {
    builder(name, &[]).seeds([service()]).name_servers(name_servers).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn srv_records_name_seeds_and_are_asked_for_again() {
    let dns = DnsServer::start().await;
    let (a, b) = (start("a", &[]).await, start("b", &[]).await);
    // The service has no hosts yet.
    let c = start_by_service("c", [dns.addr]).await;
    event(&c, |event| {
        matches!(event, NodeEvent::Unreachable { target, .. } if target.starts_with("srv+")).then_some(())
    })
    .await;
    dns.list(&[&a]);
    until(|| c.members().len() == 2).await;
    // A host that is added later is dialled as well: two clusters become one.
    dns.list(&[&a, &b]);
    until(|| [&a, &b, &c].iter().all(|node| node.members().len() == 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_addresses_of_a_host_are_dialled() {
    let dns = DnsServer::start().await;
    let a = start("a", &[]).await;
    // Nobody listens at the first and the last of them.
    let hosts = [[127, 0, 9, 1], [127, 0, 0, 1], [127, 0, 9, 2]].map(Ipv4Addr::from);
    dns.set(HOST, hosts.map(|addr| RData::A(A(addr))));
    dns.list(&[&a]);
    let b = start_by_service("b", [dns.addr]).await;
    until(|| b.members().len() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_with_ipv6_addresses_are_found() {
    let any = || SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    if std::net::UdpSocket::bind(any()).is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs IPv6 on loopback");
        eprintln!("\n*** SKIPPED: this machine has no IPv6; seeds with such addresses are NOT tested ***\n");
        return;
    }
    let dns = DnsServer::start().await;
    dns.set("six.tidings.test.", [RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))]);
    let a = ready(builder("a", &[]).listen(any())).await;
    dns.set(SERVICE, [srv(1, a.addr().port(), "six.tidings.test.")]);
    let six = builder("b", &[]).listen(any()).seeds([service()]).name_servers([dns.addr]);
    let six = six.start().await.unwrap();
    until(|| six.members().len() == 2).await;
    // A node that has IPv4 alone says that it cannot reach them.
    let four = start_by_service("c", [dns.addr]).await;
    let reason = event(&four, |event| match event {
        NodeEvent::Unreachable { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await;
    assert_eq!(reason, "no address that this node can reach");
}

/// Hosts of a service that are used, as the library limits them.
const HOSTS_USED: u16 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_lowest_priority_number_come_first() {
    let dns = DnsServer::start().await;
    let (a, b) = (start("a", &[]).await, start("b", &[]).await);
    // More than are used, at ports where nobody listens, stand before the one that lives. So many come over a stream.
    let nobody = |port: u16| srv(2, 1 + port, "nobody.tidings.test.");
    dns.set("nobody.tidings.test.", [RData::A(A::new(127, 0, 9, 9))]);
    let live = |priority| srv(priority, a.addr().port(), HOST);
    dns.set(SERVICE, (0..HOSTS_USED).map(nobody).chain([live(1)]));
    let c = start_by_service("c", [dns.addr]).await;
    until(|| c.members().len() == 2).await;
    // The control: behind all of them it is not looked at, and one among them is.
    dns.set(SERVICE, (1..HOSTS_USED).map(nobody).chain([live(3), srv(2, b.addr().port(), HOST)]));
    let d = start_by_service("d", [dns.addr]).await;
    until(|| d.members().len() == 2).await;
    assert_eq!((b.members().len(), a.members().len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_that_cannot_be_resolved_hides_no_other() {
    let dns = DnsServer::start().await;
    let a = start("a", &[]).await;
    let port = a.addr().port();
    dns.set(SERVICE, [srv(1, port, "gone.tidings.test."), srv(1, port, HOST), srv(2, port, "gone.test.")]);
    let b = start_by_service("b", [dns.addr]).await;
    until(|| b.members().len() == 2).await;
    // The control: without the one that can be resolved there is an error.
    dns.set(SERVICE, [srv(1, port, "gone.tidings.test.")]);
    let c = start_by_service("c", [dns.addr]).await;
    event(&c, |event| matches!(event, NodeEvent::Unreachable { .. }).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_name_server_keeps_no_other_seed_waiting() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let silent_addr = silent.local_addr().expect("it is bound");
    let a = start("a", &[]).await;
    let b = builder("b", &[&a]).seeds([service()]).name_servers([silent_addr]).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
    // It was asked.
    guarded(silent.recv_from(&mut [0; 512])).await.unwrap();
    // Where another server answers, the service is found.
    let dns = DnsServer::start().await;
    dns.list(&[&a]);
    let c = start_by_service("c", [silent_addr, dns.addr]).await;
    until(|| c.members().len() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_names_are_advertised_as_addresses() {
    let a = ready(builder("a", &[]).advertise("localhost")).await;
    assert_eq!(a.members()[0].addr, a.addr());
    let unknown = builder("b", &[]).advertise("no-such-host.invalid:1").start().await.unwrap_err();
    assert!(
        matches!(&unknown, StartError::Advertise { name, .. } if name.starts_with("no-such")),
        "{unknown}"
    );
    let wrong = builder("b", &[]).advertise("a:b:c").start().await.unwrap_err();
    assert!(wrong.to_string().contains("none of host, host:port"), "{wrong}");
}
