//! The port of `flagd.sync.v1` as a client of gRPC sees it: over TLS, and beside a client that does not read.

mod common;

use common::{Running, ask, folder, private_file, serve_sets};
use prost::Message;
use proto::{FetchAllFlagsRequest, FetchAllFlagsResponse, SyncFlagsRequest, SyncFlagsResponse};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::eventually;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

#[allow(clippy::all, clippy::pedantic, dead_code, missing_docs, unreachable_pub, unused_qualifications)]
mod proto {
    include!("../src/api/flagd/flagd.sync.v1.rs");
}

const FLAG: &str = r#"{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}"#;
/// The window of a client for each stream and for its connection: a set that is larger waits on the node's side.
const WINDOW_BYTES: u32 = 64 << 10;
/// The largest message that the client takes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

fn put(node: &Running, key: &str, value: &[u8]) {
    let reply = ask("PUT", &format!("{}/v1/kv/{key}", node.http), &[], value);
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

/// A connection of a client, over TLS if there is an authority that it trusts.
async fn connect(port: &str, authority: Option<&str>) -> Result<Channel, tonic::transport::Error> {
    let scheme = if authority.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{port}"))?;
    if let Some(authority) = authority {
        let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        endpoint = endpoint.tls_config(trust)?;
    }
    let endpoint =
        endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    endpoint.timeout(GUARD).connect_timeout(GUARD).connect().await
}

async fn client(channel: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}

async fn fetch(channel: Channel, set: &str) -> Result<Value, Status> {
    let path = PathAndQuery::from_static("/flagd.sync.v1.FlagSyncService/FetchAllFlags");
    let codec = ProstCodec::<FetchAllFlagsRequest, FetchAllFlagsResponse>::default();
    let asked = FetchAllFlagsRequest { provider_id: String::new(), selector: set.to_owned() };
    let reply = client(channel).await?.unary(Request::new(asked), path, codec).await?;
    Ok(serde_json::from_str(&reply.into_inner().flag_configuration).unwrap())
}

async fn follow(channel: Channel, set: &str) -> Result<Streaming<SyncFlagsResponse>, Status> {
    let path = PathAndQuery::from_static("/flagd.sync.v1.FlagSyncService/SyncFlags");
    let codec = ProstCodec::<SyncFlagsRequest, SyncFlagsResponse>::default();
    let asked = SyncFlagsRequest { provider_id: String::new(), selector: set.to_owned() };
    Ok(client(channel).await?.server_streaming(Request::new(asked), path, codec).await?.into_inner())
}

/// Which change a state of the set follows, and how large it is; none at the end of the stream.
async fn next(stream: &mut Streaming<SyncFlagsResponse>) -> Option<(u64, usize)> {
    let message = tokio::time::timeout(GUARD, stream.message()).await.expect("a state comes").unwrap()?;
    let set: Value = serde_json::from_str(&message.flag_configuration).unwrap();
    Some((set["flags"]["count"]["variants"]["n"].as_u64().unwrap_or_default(), message.encoded_len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_are_served_over_tls_and_not_in_plain_text() {
    let folder = folder("flagd-tls");
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (own, foreign) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let [authority, other] = [&own, &foreign].map(|key| parameters.self_signed(key).unwrap().pem());
    let issuer = Issuer::new(parameters, own);
    let key = KeyPair::generate().unwrap();
    let named = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let [certificate_path, key_path] = ["certificate", "key"].map(|file| folder.join(file));
    std::fs::write(&certificate_path, named.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    private_file(&key_path, key.serialize_pem());
    let [certificate_path, key_path] = [certificate_path, key_path].map(|path| path.display().to_string());
    let words = ["--http-certificate-file", &certificate_path, "--http-key-file", &key_path];
    let (_node, port) = serve_sets("a", &[], &words);

    let fetched = fetch(connect(&port, Some(&authority)).await.unwrap(), "default").await;
    assert_eq!(fetched.unwrap(), json!({"flags": {}}));
    let mut stream = follow(connect(&port, Some(&authority)).await.unwrap(), "default").await.unwrap();
    assert!(next(&mut stream).await.is_some(), "the set comes as a stream as well");

    // A client without TLS may find out with its first request alone.
    let plain = match connect(&port, None).await {
        Ok(channel) => fetch(channel, "default").await.map_err(|status| status.to_string()),
        Err(error) => Err(error.to_string()),
    };
    assert!(plain.is_err(), "{plain:?}");
    // One that trusts somebody else takes no answer of this node.
    assert!(connect(&port, Some(&other)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_shared_rules_alone_are_sent() {
    let (node, port) = serve_sets("a", &[], &[]);
    let mut stream = follow(connect(&port, None).await.unwrap(), "default").await.unwrap();
    let mut next = async || -> Value {
        let message = tokio::time::timeout(GUARD, stream.message()).await.expect("a state comes").unwrap();
        serde_json::from_str(&message.expect("the stream goes on").flag_configuration).unwrap()
    };
    assert_eq!(next().await, json!({"flags": {}}));
    put(&node, "flags/default/$metadata", br#"{"owner": "shop"}"#);
    assert_eq!(next().await, json!({"flags": {}, "metadata": {"owner": "shop"}}));
    put(&node, "flags/default/$evaluators", br#"{"all": true}"#);
    let both = json!({"flags": {}, "metadata": {"owner": "shop"}, "$evaluators": {"all": true}});
    assert_eq!(next().await, both);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_without_its_cluster_serves_what_it_kept() {
    // A seed that never answers.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed = deaf.local_addr().unwrap().to_string();
    let dir = folder("flagd-last-good");
    let words = ["--data-dir", dir.to_str().unwrap()];
    let (node, port) = serve_sets("a", &[&seed], &words);
    let unknown = fetch(connect(&port, None).await.unwrap(), "default").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unavailable, "{unknown}");
    drop(node);

    let (mut node, _) = serve_sets("a", &[], &words);
    put(&node, "flags/default/kept", FLAG.as_bytes());
    let kept = || std::fs::read_to_string(dir.join("flags.json")).is_ok_and(|text| text.contains("kept"));
    eventually("it is kept", kept);
    node.process.child.kill().unwrap();
    node.process.child.wait().unwrap();
    // So that the file alone knows them.
    std::fs::remove_dir_all(dir.join("node")).unwrap();
    let (_node, port) = serve_sets("a", &[&seed], &words);
    let set = fetch(connect(&port, None).await.unwrap(), "default").await.unwrap();
    assert_eq!(set["flags"]["kept"]["defaultVariant"], "on");
    let mut stream = follow(connect(&port, None).await.unwrap(), "default").await.unwrap();
    assert!(next(&mut stream).await.is_some(), "as a stream as well");
}

/// The memory of a process that is in use, in bytes.
#[cfg(target_os = "linux")]
fn memory_bytes(node: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// `STATE_INTERVAL_MIN` is what makes fewer states of many changes; that a stream has no queue is what bounds memory.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn deaf_client_holds_one_state_and_nobody_up() {
    const CHANGES: u64 = 2_000;
    /// States that the other client gets: some until the memory of the node is as it stays, and those that count.
    const FIRST_STATES: usize = 10;
    const STATES: usize = 40;
    const LAST: u64 = 1 << 40;
    let (node, port) = serve_sets("a", &[], &[]);
    let large = json!({"state": "ENABLED", "variants": {"on": "x".repeat(900_000)}, "defaultVariant": "on"});
    for part in 0..3 {
        put(&node, &format!("flags/default/large-{part}"), large.to_string().as_bytes());
    }
    put(&node, "flags/default/count", FLAG.as_bytes());
    eventually("all are in force", || {
        let url = format!("{}/ofrep/v1/evaluate/flags/count", node.http);
        ask("POST", &url, &[], b"{}").status == 200
    });
    let mut deaf = follow(connect(&port, None).await.unwrap(), "default").await.unwrap();
    let mut reader = follow(connect(&port, None).await.unwrap(), "default").await.unwrap();
    let (_, state_bytes) = next(&mut reader).await.unwrap();

    let (sender, mut told) = tokio::sync::watch::channel(0);
    let reading = tokio::spawn(async move {
        let mut states = 0;
        while let Some((count, _)) = next(&mut reader).await {
            states += 1;
            if sender.send(states).is_err() || count == LAST {
                break;
            }
        }
    });
    // As many changes as it takes until the other client has had its states, and thousands.
    let (node, before, changes) = tokio::task::spawn_blocking(move || {
        let change = |n: u64| {
            let flag = json!({"state": "ENABLED", "variants": {"n": n}, "defaultVariant": "n"});
            let reply = ask(
                "PUT",
                &format!("{}/v1/kv/flags/default/count", node.http),
                &[],
                flag.to_string().as_bytes(),
            );
            assert_eq!(reply.status, 200);
        };
        let mut before = None;
        let changes = (1..100 * CHANGES).find(|n| {
            change(*n);
            let states = *told.borrow_and_update();
            if states >= FIRST_STATES {
                before.get_or_insert_with(|| memory_bytes(&node));
            }
            *n >= CHANGES && states >= FIRST_STATES + STATES
        });
        change(LAST);
        (node, before, changes)
    })
    .await
    .unwrap();
    let (before, changes) = before.zip(changes).expect("the other client goes on");
    let grown = memory_bytes(&node).saturating_sub(before);
    let mut last = 0;
    let mut held = 0;
    while last != LAST {
        (last, _) = next(&mut deaf).await.expect("the stream goes on");
        held += 1;
    }
    reading.await.unwrap();
    println!("{changes} changes: the deaf client was kept {held} states; {} KiB more memory", grown >> 10);
    assert!(held <= 4, "{held} states were kept for the deaf client");
    assert!(grown < STATES / 2 * state_bytes, "{grown} bytes more, and a state has {state_bytes}");
}
