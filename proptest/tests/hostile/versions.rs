//! Nodes of other versions of the wire format are refused by name, by whichever side reads a version that is not its own.
//! The other version is a bare peer, so that these tests hold for every version to come.
//!
//! A program that speaks a later version as well offers both protocols, and links with nodes of today.

use super::*;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// A QUIC server with a valid certificate that answers whatever it is told with these bytes. It hands over what it was
/// told.
fn answer_with(authority: &Authority, answer: Vec<u8>) -> (quinn::Endpoint, impl Future<Output = Vec<u8>>) {
    let (certificate, key) = authority.issue("other", VALID);
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.into()], key).unwrap();
    config.alpn_protocols = vec![b"tidings/1".to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(std::sync::Arc::new(config));
    let endpoint = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
    let accepting = endpoint.clone();
    let told = async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        let (mut send, mut recv) = connection.accept_bi().await.unwrap();
        let told = recv.read_to_end(1 << 20).await.unwrap();
        send.write_all(&answer).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
        told
    };
    (endpoint, told)
}

/// The version that nodes of this source tree speak: the first byte of their greeting.
async fn own_version(authority: &Authority) -> u8 {
    let (endpoint, told) = answer_with(authority, Vec::new());
    let seed = endpoint.local_addr().unwrap().to_string();
    let _node =
        builder("asked", authority.security("asked", VALID), &[]).seeds([seed]).start().await.unwrap();
    guarded(told).await[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialling_node_of_another_wire_version_is_refused_by_name() {
    let authority = Authority::new("version dialled");
    let ours = own_version(&authority).await;
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let b = ready(builder("b", authority.security("b", VALID), &[&a])).await;
    let raw = Raw::new(&authority, Some("raw"), "tidings/1");
    let mut events = a.events();
    // What follows the version is not looked at: it may mean anything in another version.
    for (theirs, rest) in [(ours + 1, greeting("raw", now_ms())), (ours - 1, vec![0xff; 50])] {
        let bytes = [&[theirs], &rest[1..]].concat();
        let connection = raw.connect(&a).await;
        let (mut send, mut recv) = guarded(connection.open_bi()).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        // So the other side learns this version as well.
        assert_eq!(guarded(recv.read_to_end(1 << 20)).await.unwrap(), [ours]);
        connection.close(0_u32.into(), b"");
        let told = async {
            loop {
                let event = events.next().await.expect("the node is open");
                if let NodeEvent::PeerRefused { refusal, by_us, .. } = event {
                    return (refusal, by_us);
                }
            }
        };
        assert_eq!(guarded(told).await, (PeerRefusal::WireVersion { theirs, ours }, true));
    }
    all_is_well(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answering_node_of_another_wire_version_is_refused_by_name() {
    let authority = Authority::new("version answered");
    let ours = own_version(&authority).await;
    for theirs in [ours + 1, ours - 1] {
        // As nodes answer a greeting of another version, and as an unknown later version might.
        for answer in [vec![theirs], [&[theirs], &[0xff; 50][..]].concat()] {
            let (endpoint, told) = answer_with(&authority, answer);
            let seed = endpoint.local_addr().unwrap().to_string();
            let a = builder("a", authority.security("a", VALID), &[]).seeds([seed]).start().await.unwrap();
            let (told, refused) = tokio::join!(guarded(told), refusal(&a));
            assert_eq!((told[0], refused), (ours, PeerRefusal::WireVersion { theirs, ours }));
        }
    }
}

/// What a program that speaks wire versions 2 and 3 offers, as `docs/wire.md` says.
const BOTH: &[&str] = &["tidings/3", "tidings/1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn program_that_offers_a_later_protocol_as_well_is_a_member() {
    let authority = Authority::new("two protocols");
    let offering = |name: &str, protocols| authority.security(name, VALID).offering(protocols);
    let of_today = |name: &str, seeds: &[&Node]| builder(name, authority.security(name, VALID), seeds);
    let a = of_today("a", &[]).start().await.unwrap();
    // It dials a node of today, and a node of today dials it.
    let both = ready(builder("both", offering("both", BOTH), &[&a])).await;
    let later = ready(builder("later", offering("later", BOTH), &[])).await;
    let b = ready(of_today("b", &[&later])).await;
    all_is_well(&a, &both).await;
    all_is_well(&both, &a).await;
    all_is_well(&later, &b).await;
    all_is_well(&b, &later).await;
    // Negative control: without the protocol of today there is no link, whoever dials.
    let alone = builder("alone", offering("alone", &BOTH[..1]), &[&a]).start().await.unwrap();
    assert_eq!(refusal(&alone).await, PeerRefusal::Tls(TlsRefusal::Protocol));
    let asking = of_today("asking", &[&alone]).start().await.unwrap();
    assert_eq!(refusal(&asking).await, PeerRefusal::Tls(TlsRefusal::Protocol));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_of_today_chooses_its_protocol_of_both() {
    let authority = Authority::new("chosen protocol");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let chosen = |connection: &quinn::Connection| {
        let data = connection.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>();
        data.unwrap().protocol.unwrap()
    };
    let raw = Raw::offering(&authority, Some("raw"), BOTH);
    assert_eq!(chosen(&raw.connect(&a).await), b"tidings/1");
    // A later program prefers the later protocol where the other one speaks it too.
    let later =
        builder("later", authority.security("later", VALID).offering(BOTH), &[]).start().await.unwrap();
    assert_eq!(chosen(&raw.connect(&later).await), b"tidings/3");
}
