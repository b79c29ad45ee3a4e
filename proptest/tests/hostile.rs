//! Peers that hold valid certificates and break the protocol, and certificates that are reloaded from files. A raw QUIC
//! client sends malformed greetings, frames, streams and datagrams. Each must be refused or break its own link, and two
//! good nodes must go on exchanging writes. The bounds on claims of members are tested in `garbled.rs`, with a control.

#[path = "hostile/revocation.rs"]
mod revocation;
#[path = "hostile/versions.rs"]
mod versions;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::CertificateParams;
use tidings::{
    Builder, MemberLimit, Node, NodeEvent, PeerRefusal, Security, SecurityError, StartError, TlsRefusal,
    WatchOptions,
};
use tidings_proptest::authority::{Authority, VALID};
use tidings_proptest::nodes::{self, event, guarded, ready, refusal, until};
use tidings_proptest::tls;

fn builder(name: &str, security: Security, seeds: &[&Node]) -> Builder {
    nodes::builder(name, seeds).security(security)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_files_are_checked_and_reloaded() {
    let authority = Authority::new("files");
    let stranger = Authority::new("foreign");
    let security = authority.security("a", VALID);
    let a = builder("a", security.clone(), &[]).start().await.unwrap();
    let _b = ready(builder("b", authority.security("b", VALID), &[&a])).await;
    let foreign = builder("c", stranger.security("c", VALID), &[&a]).start().await.unwrap();
    assert_eq!(refusal(&foreign).await, PeerRefusal::Tls(TlsRefusal::ForeignAuthority));
    let expired = builder("d", authority.security("d", (2_010, 2_015)), &[&a]).start().await.unwrap();
    assert_eq!(refusal(&expired).await, PeerRefusal::Tls(TlsRefusal::Expired));
    let elsewhere =
        builder("g", authority.security("g", VALID), &[&a]).cluster("else").start().await.unwrap();
    assert_eq!(refusal(&elsewhere).await, PeerRefusal::Cluster { theirs: "tidings".to_owned() });
    let misnamed = builder("f", authority.security("e", VALID), &[&a]).start().await.unwrap_err();
    assert!(matches!(misnamed, StartError::Certificate { .. }), "{misnamed}");
    // A broken file changes nothing, and is named.
    let [_, certificate, _] = authority.paths("a");
    std::fs::write(&certificate, "no certificate").unwrap();
    let broken = security.reload().unwrap_err();
    assert!(matches!(&broken, SecurityError::File { path, .. } if path.ends_with("a.pem")), "{broken}");
    // So is what is no file, or far too large for one with certificates.
    std::fs::remove_file(&certificate).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&certificate).status().unwrap().success());
    assert!(security.reload().unwrap_err().to_string().contains("no regular file"));
    std::fs::remove_file(&certificate).unwrap();
    std::fs::File::create(&certificate).unwrap().set_len((16 << 20) + 1).unwrap();
    assert!(security.reload().unwrap_err().to_string().contains("more than 16777216 bytes"));
    // So is the pair of another node, which fits together.
    let pair = |name: &str| authority.paths(name)[1..].to_vec();
    pair("b").iter().zip(pair("a")).for_each(|(from, to)| _ = std::fs::copy(from, to).unwrap());
    let swapped = security.reload().unwrap_err();
    assert!(matches!(&swapped, SecurityError::File { path, .. } if path.ends_with("a.pem")), "{swapped}");
    assert!(swapped.to_string().contains("\"a\" is not among the DNS names"), "{swapped}");
    assert_eq!(a.status().peers.len(), 1);
    // The certificate of before is presented to new nodes.
    let _e = ready(builder("e", authority.security("e", VALID), &[&a])).await;
    // After the change of authority the old link is closed, and a node of the new authority is let in.
    authority.replace(&stranger, "a");
    security.reload().unwrap();
    guarded(foreign.ready()).await.unwrap();
    until(|| a.status().peers.iter().all(|peer| peer.name != "b")).await;
}

#[test]
fn weak_secrets_are_refused_and_no_secret_is_shown() {
    let secret = Security::generate_secret();
    let blank = format!(" {secret}");
    for (secret, reason) in
        [("tiny", "80 are needed"), ("correct horse battery staple", "80 are needed"), (&blank[..], "blank")]
    {
        let refused = Security::secret(secret).unwrap_err().to_string();
        assert!(refused.contains(reason) && !refused.contains(secret), "{refused}");
    }
    assert_ne!(secret, Security::generate_secret());
    let security = Security::secret(&secret).unwrap();
    let shown = format!("{security:?} {:?}", Node::builder("a").security(security.clone()));
    assert!(!shown.contains(&secret) && !shown.contains("key"), "{shown}");
    assert_eq!(security.remove(&secret), Err(SecurityError::InUse));
    assert_eq!(security.remove("never heard of that one"), Err(SecurityError::NotAccepted));
    assert_eq!(security.reload(), Err(SecurityError::NoFiles));
}

/// The wire form of a greeting, written independently of the library.
#[derive(bincode::Encode)]
struct Greeting {
    cluster: String,
    name: String,
    run: u64,
    app_version: String,
    wall_ms: u64,
    advertised: Option<SocketAddr>,
    port: u16,
    meta: BTreeMap<String, String>,
    meta_version: u64,
}

fn greeting(name: &str, wall_ms: u64) -> Vec<u8> {
    greeting_with(name, wall_ms, "", BTreeMap::new())
}

fn greeting_with(name: &str, wall_ms: u64, app_version: &str, meta: BTreeMap<String, String>) -> Vec<u8> {
    let greeting = Greeting {
        cluster: "tidings".to_owned(),
        name: name.to_owned(),
        run: 7,
        app_version: app_version.to_owned(),
        wall_ms,
        advertised: None,
        port: 9,
        meta_version: u64::from(!meta.is_empty()),
        meta,
    };
    let mut bytes = vec![2];
    bytes.extend(bincode::encode_to_vec(&greeting, bincode::config::standard()).unwrap());
    bytes
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A QUIC client that can send anything.
struct Raw {
    endpoint: quinn::Endpoint,
}

impl Raw {
    fn new(authority: &Authority, name: Option<&str>, protocol: &str) -> Self {
        Self::offering(authority, name, &[protocol])
    }

    fn offering(authority: &Authority, name: Option<&str>, protocols: &[&str]) -> Self {
        let mut config = match name {
            Some(name) => authority.client(name),
            None => tls::client(authority.roots()).with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let mut endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        endpoint.set_default_client_config(tls::quic(config));
        Self { endpoint }
    }

    async fn connect(&self, node: &Node) -> quinn::Connection {
        guarded(self.endpoint.connect(node.addr(), node.name()).unwrap()).await.unwrap()
    }

    /// Connects and sends these bytes as its greeting.
    async fn greet(&self, node: &Node, bytes: &[u8]) -> quinn::Connection {
        let connection = self.connect(node).await;
        Self::greet_over(&connection, bytes).await;
        connection
    }

    async fn greet_over(connection: &quinn::Connection, bytes: &[u8]) {
        let (mut send, mut recv) = guarded(connection.open_bi()).await.unwrap();
        _ = send.write_all(bytes).await;
        _ = send.finish();
        _ = guarded(recv.read_to_end(1 << 20)).await;
    }
}

/// Asserts that a write still travels from one good node to the other.
async fn all_is_well(a: &Node, b: &Node) {
    let mut watch = b.watch_with("well", WatchOptions::new().exact().without_current());
    a.put("well", format!("{:?}", std::time::Instant::now())).unwrap();
    assert!(guarded(watch.next()).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_greetings_are_refused_and_harm_nobody() {
    let authority = Authority::new("greetings");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let b = ready(builder("b", authority.security("b", VALID), &[&a])).await;
    let raw = Raw::new(&authority, Some("raw"), "tidings/1");
    for garbage in [&b""[..], &[1], &[9; 100], &vec![1; 70_000], &greeting("raw", now_ms())[..20]] {
        let connection = raw.greet(&a, garbage).await;
        guarded(connection.closed()).await;
    }
    assert_eq!(refusal(&a).await, PeerRefusal::Greeting);
    let refused = |expected: fn(&PeerRefusal) -> bool| {
        event(&a, move |event| match event {
            NodeEvent::PeerRefused { refusal, by_us: true, .. } if expected(&refusal) => Some(()),
            _ => None,
        })
    };
    raw.greet(&a, &greeting("raw", now_ms() + 3_600_000)).await.close(0_u32.into(), b"");
    refused(|refusal| matches!(refusal, PeerRefusal::Clock { apart } if apart.as_secs() > 3_000)).await;
    raw.greet(&a, &greeting("somebody-else", now_ms())).await.close(0_u32.into(), b"");
    refused(|refusal| *refusal == PeerRefusal::NotTheCertificates).await;
    let nobody = Raw::new(&authority, None, "tidings/1").connect(&a).await;
    guarded(nobody.closed()).await;
    refused(|refusal| *refusal == PeerRefusal::Tls(TlsRefusal::NoCertificate)).await;
    let other = Raw::new(&authority, Some("raw"), "tidings/2");
    let connected = guarded(other.endpoint.connect(a.addr(), "a").unwrap()).await;
    assert!(connected.is_err(), "a connection with an unknown protocol version was accepted");
    refused(|refusal| *refusal == PeerRefusal::Tls(TlsRefusal::Protocol)).await;
    // A peer that begins a greeting and sends no more must not disturb the others.
    let silent = raw.connect(&a).await;
    let (mut send, _recv) = guarded(silent.open_bi()).await.unwrap();
    send.write_all(&[2]).await.unwrap();
    all_is_well(&a, &b).await;
    guarded(silent.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greetings_over_a_limit_are_refused_and_break_no_other_link() {
    let authority = Authority::new("oversized");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let b = builder("b", authority.security("b", VALID), &[&a]).start().await.unwrap();
    let c = builder("c", authority.security("c", VALID), &[&a, &b]).start().await.unwrap();
    guarded(b.ready()).await.unwrap();
    guarded(c.ready()).await.unwrap();
    let long = format!("{}.{}", "n".repeat(40), "n".repeat(40));
    let meta = |bytes| BTreeMap::from([("k".to_owned(), "v".repeat(bytes))]);
    let entries = (0..1_000).map(|i: u32| (i.to_string(), String::new())).collect();
    let greetings = [
        ("raw", String::new(), meta(40 << 10), MemberLimit::MetaBytes),
        ("raw", "v".repeat(40 << 10), BTreeMap::new(), MemberLimit::MetaBytes),
        ("raw", String::new(), entries, MemberLimit::MetaEntries),
        (long.as_str(), String::new(), BTreeMap::new(), MemberLimit::NameBytes),
    ];
    let mut events = a.events();
    for (name, app_version, meta, limit) in greetings {
        let raw = Raw::new(&authority, Some(name), "tidings/1");
        let bytes = greeting_with(name, now_ms(), &app_version, meta);
        raw.greet(&a, &bytes).await.close(0_u32.into(), b"");
        let told = async {
            loop {
                let event = events.next().await.expect("the node is open");
                if let NodeEvent::PeerRefused { refusal: PeerRefusal::OverLimit(told), by_us: true, .. } =
                    event
                {
                    return told;
                }
            }
        };
        // Equal refusals are reported only once in a while.
        if app_version.is_empty() {
            assert_eq!(guarded(told).await, limit);
        }
    }
    all_is_well(&a, &b).await;
    all_is_well(&b, &c).await;
    for node in [&a, &b, &c] {
        assert_eq!(node.members().len(), 3, "a member over a limit became known");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_stays_with_the_name_that_greeted_first() {
    let authority = Authority::new("runs");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let raw = Raw::new(&authority, Some("raw"), "tidings/1");
    let linked = raw.greet(&a, &greeting("raw", now_ms())).await;
    until(|| a.status().peers.len() == 1).await;
    let thief = Raw::new(&authority, Some("thief"), "tidings/1");
    thief.greet(&a, &greeting("thief", now_ms())).await.close(0_u32.into(), b"");
    assert_eq!(refusal(&a).await, PeerRefusal::RunTaken);
    assert!(linked.close_reason().is_none(), "the first link was replaced");
    assert!(a.status().peers.iter().all(|peer| peer.name == "raw"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_authority_refuses_a_late_greeting() {
    let (authority, next) = (Authority::new("before"), Authority::new("after"));
    let security = authority.security("a", VALID);
    let a = builder("a", security.clone(), &[]).start().await.unwrap();
    let raw = Raw::new(&authority, Some("raw"), "tidings/1");
    let linked = raw.greet(&a, &greeting("raw", now_ms())).await;
    let waiting = raw.connect(&a).await;
    authority.replace(&next, "a");
    security.reload().unwrap();
    let expected = guarded(linked.closed()).await;
    Raw::greet_over(&waiting, &greeting("raw", now_ms())).await;
    assert_eq!(guarded(waiting.closed()).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_after_a_greeting_breaks_only_its_own_link() {
    let authority = Authority::new("rubbish");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let b = ready(builder("b", authority.security("b", VALID), &[&a])).await;
    let raw = Raw::new(&authority, Some("raw"), "tidings/1");
    let rubbish: [&[u8]; 6] = [
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        // A frame over the length limit.
        &[0, 255, 255, 255, 255, 1, 1],
        // A foreign version.
        &[1, 10, 0, 0, 0, 77, 1, 1, 1],
        // An unknown lane.
        &[9, 1, 1],
        // Frames that are not permitted in this state.
        &[0, 2, 0, 0, 0, 2, 3],
        &[1, 3, 0, 0, 0, 2, 5, 0],
    ];
    for bytes in rubbish {
        let connection = raw.greet(&a, &greeting("raw", now_ms())).await;
        let mut stream = guarded(connection.open_uni()).await.unwrap();
        _ = stream.write_all(bytes).await;
        guarded(connection.closed()).await;
        all_is_well(&a, &b).await;
    }
    // A stream that ends in the middle of a frame.
    let connection = raw.greet(&a, &greeting("raw", now_ms())).await;
    let mut stream = guarded(connection.open_uni()).await.unwrap();
    stream.write_all(&[0, 200, 0, 0, 0, 1]).await.unwrap();
    stream.finish().unwrap();
    guarded(connection.closed()).await;
    // Datagrams with arbitrary content.
    let connection = raw.greet(&a, &greeting("raw", now_ms())).await;
    for length in 0..100_usize {
        _ = connection.send_datagram(vec![u8::try_from(length).unwrap() ^ 0xfe; length].into());
    }
    guarded(connection.closed()).await;
    // More streams than permitted: at most two may be open at a time.
    let connection = raw.greet(&a, &greeting("raw", now_ms())).await;
    let _first = guarded(connection.open_uni()).await.unwrap();
    let _second = guarded(connection.open_uni()).await.unwrap();
    tokio::select! {
        biased;
        third = connection.open_uni() => assert!(third.is_err(), "a third stream was opened"),
        () = std::future::ready(()) => {}
    }
    all_is_well(&a, &b).await;
}
