//! Seeds in all their forms, with a DNS server of the test's own on loopback.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tidings::{Node, NodeEvent, StartError};
use tidings_proptest::nodes::{builder, event, ready, start, until};
use tokio::net::UdpSocket;

const SERVICE: &str = "_gossip._udp.tidings.test.";
const HOST: &str = "node.tidings.test.";

/// A DNS server that knows one service. It lists the ports of the service, all on a host at 127.0.0.1.
struct DnsServer {
    addr: SocketAddr,
    ports: Arc<Mutex<Vec<u16>>>,
}

impl DnsServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let addr = socket.local_addr().expect("it is bound");
        let ports = Arc::<Mutex<Vec<u16>>>::default();
        let listed = ports.clone();
        tokio::spawn(async move {
            let mut packet = [0; 4_096];
            while let Ok((len, client)) = socket.recv_from(&mut packet).await {
                let Ok(question) = Message::from_vec(&packet[..len]) else { continue };
                let answer = answer(&question, &listed.lock().expect("nothing panics with it"));
                let bytes = answer.to_vec().expect("it is small");
                _ = socket.send_to(&bytes, client).await;
            }
        });
        Self { addr, ports }
    }

    fn list(&self, nodes: &[&Node]) {
        *self.ports.lock().expect("nothing panics with it") =
            nodes.iter().map(|node| node.addr().port()).collect();
    }
}

fn answer(question: &Message, ports: &[u16]) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    let host = || Name::from_str(HOST).expect("a name");
    for query in &question.queries {
        answer.add_query(query.clone());
        let name = query.name().to_lowercase().to_string();
        let data: Vec<RData> = match (query.query_type(), name.as_str()) {
            (RecordType::SRV, SERVICE) => {
                ports.iter().map(|port| RData::SRV(SRV::new(1, 1, *port, host()))).collect()
            }
            (RecordType::A, HOST) => vec![RData::A(A::new(127, 0, 0, 1))],
            _ => Vec::new(),
        };
        if data.is_empty() && name != HOST {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_answers(data.into_iter().map(|data| Record::from_rdata(query.name().clone(), 0, data)));
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn srv_records_name_seeds_and_are_asked_for_again() {
    let dns = DnsServer::start().await;
    let (a, b) = (start("a", &[]).await, start("b", &[]).await);
    // The service has no hosts yet.
    let service = format!("srv+{}", SERVICE.trim_end_matches('.'));
    let c = builder("c", &[]).seeds([service]).name_servers([dns.addr]).start().await.unwrap();
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
