//! Measures real nodes on loopback, beside what they are built on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tidings::{Builder, Config, Node, Quorum, Security, WriteError};
use tidings_benches::{key, resident, value};
use tokio::runtime::Runtime;

pub(crate) const PARTS: &[(&str, fn())] = &[
    ("gets", gets),
    ("latency", latency),
    ("throughput", throughput),
    ("starts", starts),
    ("memory", memory),
];

const KEYS: u64 = 10_000;
const ROUNDS: usize = 3_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn builder(name: &str, seeds: &[&Node]) -> Builder {
    static SECURITY: std::sync::OnceLock<Security> = std::sync::OnceLock::new();
    let security = SECURITY.get_or_init(|| Security::secret("a secret for benchmarks").expect("good enough"));
    let seeds: Vec<String> = seeds.iter().map(|node| node.addr().to_string()).collect();
    Node::builder(name).security(security.clone()).config(Config::lan()).seeds(seeds)
}

async fn start(name: &str, seeds: &[&Node]) -> Node {
    let node = builder(name, seeds).start().await.expect("it starts");
    node.ready().await.expect("it is not closed");
    node
}

fn quantile(sorted: &[u64], share: f64) -> f64 {
    #[expect(clippy::cast_sign_loss, reason = "shares are positive")]
    let at = ((sorted.len() - 1) as f64 * share) as usize;
    sorted[at] as f64 / 1e3
}

fn quantiles(name: &str, mut nanos: Vec<u64>) -> (f64, f64) {
    nanos.sort_unstable();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&nanos, share));
    println!("{name:<44} p50 {p50:>9.2}  p99 {p99:>9.2}  p99.9 {p999:>9.2} us");
    (p50, p99)
}

/// Reads beside a bare concurrent map, then under a saturating writer and a joining peer.
fn gets() {
    let runtime = runtime();
    let node = runtime.block_on(start("a", &[]));
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let bare: papaya::HashMap<String, Arc<[u8]>> = papaya::HashMap::new();
    for (i, key) in keys.iter().enumerate() {
        node.put(key, value(i as u64)).expect("acceptable");
        bare.pin().insert(key.clone(), value(i as u64).into());
    }
    let each = |get: &dyn Fn(&str)| {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            (0..1_000_000_usize).for_each(|i| get(&keys[i * 7_919 % keys.len()]));
            best = best.min(start.elapsed().as_nanos() as f64 / 1e6);
        }
        best
    };
    let theirs = each(&|key| _ = std::hint::black_box(bare.pin().get(key).cloned()));
    let ours = each(&|key| _ = std::hint::black_box(node.get(key)));
    println!(
        "get: {ours:.0} ns, papaya get and clone: {theirs:.0} ns, ratio {:.2} (target: 1.5)",
        ours / theirs
    );
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, halt, texts) = (node.clone(), stop.clone(), keys.clone());
    let writing = std::thread::spawn(move || {
        let mut i = 0_usize;
        while !halt.load(Ordering::Relaxed) {
            i += 1;
            if let Err(WriteError::Busy) = writer.put(&texts[i % texts.len()], value(i as u64)) {
                std::thread::yield_now();
            }
        }
    });
    let joiner = runtime.block_on(start("b", &[&node]));
    let mut nanos = Vec::with_capacity(1_000_000);
    for i in 0..1_000_000_usize {
        let start = Instant::now();
        std::hint::black_box(node.get(&keys[i * 7_919 % keys.len()]));
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    stop.store(true, Ordering::Relaxed);
    writing.join().expect("the writer ends");
    quantiles("get under a writer and a joiner (target p99 5, p99.9 50)", nanos);
    runtime.block_on(async { tokio::join!(joiner.shutdown(), node.shutdown()) });
}

/// A bi-directional stream of quinn that echoes 100 bytes, on the same runtime, with the same kind of keys.
async fn echoes() -> Vec<u64> {
    let (client, server, addr) = plain_quinn();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.expect("it is open").await.expect("it connects");
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let mut bytes = [0; 100];
        while recv.read_exact(&mut bytes).await.is_ok() {
            if send.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let connection = client.connect(addr, "localhost").expect("valid").await.expect("it connects");
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let mut nanos = Vec::new();
    let mut bytes = [7; 100];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        send.write_all(&bytes).await.expect("it is open");
        recv.read_exact(&mut bytes).await.expect("it is open");
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    connection.close(0_u32.into(), b"");
    _ = serving.await;
    nanos
}

fn plain_quinn() -> (quinn::Endpoint, quinn::Endpoint, SocketAddr) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = certified.cert.into();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let server = rustls::ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_protocol_versions(versions).expect("known").with_no_client_auth();
    let server = server.with_single_cert(vec![certificate.clone()], key.into()).expect("a good one");
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).expect("fit for QUIC");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let server = quinn::ServerConfig::with_crypto(Arc::new(server));
    let server = quinn::Endpoint::server(server, any).expect("it binds");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_protocol_versions(versions).expect("known").with_root_certificates(roots);
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client.with_no_client_auth());
    let mut endpoint = quinn::Endpoint::client(any).expect("it binds");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(client.expect("fit for QUIC"))));
    let addr = server.local_addr().expect("it is bound");
    (endpoint, server, addr)
}

/// From a put to the watch on another node, and to the knowledge that a majority has it.
fn latency() {
    let runtime = runtime();
    runtime.block_on(async {
        let (echo, _) = quantiles("quinn, 100 bytes there and back", echoes().await);
        let a = start("a", &[]).await;
        let b = start("b", &[&a]).await;
        let mut watch = b.watch("k").without_current();
        let mut nanos = Vec::new();
        for i in 0..ROUNDS {
            let begin = Instant::now();
            a.put("k", value(i as u64)).expect("acceptable");
            watch.next().await.expect("it is open");
            nanos.push(begin.elapsed().as_nanos() as u64);
        }
        let (p50, p99) = quantiles("put on A to the event on B", nanos);
        println!("  in echoes: p50 {:.2} (target: 2), p99 {:.2} (target: 5)", p50 / echo, p99 / echo);
        let c = start("c", &[&a, &b]).await;
        let mut nanos = Vec::new();
        for i in 0..ROUNDS {
            let begin = Instant::now();
            let receipt = a.put("k", value(i as u64)).expect("acceptable");
            receipt.seen_by(Quorum::Majority, PATIENCE).await.expect("it is seen");
            nanos.push(begin.elapsed().as_nanos() as u64);
        }
        let (p50, _) = quantiles("put to seen_by(Majority) of three", nanos);
        println!("  in echoes: p50 {:.2} (target: 3)", p50 / echo);
        quantiles("quinn, 100 bytes there and back, again", echoes().await);
        tokio::join!(a.shutdown(), b.shutdown(), c.shutdown());
    });
}

/// One writing thread while two peers follow.
fn throughput() {
    let runtime = runtime();
    for (name, keys, writes, target) in
        [("over 10,000 keys", KEYS, 600_000_u64, 200_000), ("on distinct keys", u64::MAX, 400_000, 80_000)]
    {
        let (a, b, c) = runtime.block_on(async {
            let a = start("a", &[]).await;
            let b = start("b", &[&a]).await;
            let c = start("c", &[&a, &b]).await;
            (a, b, c)
        });
        let texts: Vec<String> = (0..keys.min(writes)).map(key).collect();
        let text = value(7);
        let (begin, mut busy, mut lag) = (Instant::now(), 0_u64, 0);
        let mut last = None;
        for i in 0..writes {
            loop {
                if let Ok(receipt) = a.put(&texts[(i % keys) as usize], &text) {
                    last = Some(receipt);
                    break;
                }
                busy += 1;
                std::thread::yield_now();
            }
            if i % 10_000 == 0 {
                lag = a.status().peers.iter().map(|peer| peer.lag_bytes).max().unwrap_or(0).max(lag);
            }
        }
        let rate = writes as f64 / begin.elapsed().as_secs_f64();
        let seen = runtime.block_on(last.expect("there were writes").seen_by(Quorum::All, PATIENCE));
        let all = writes as f64 / begin.elapsed().as_secs_f64();
        println!(
            "puts {name}: {rate:.0} a second (target: {target}), {all:.0} until all have them ({seen:?}); \
             greatest lag seen {} KiB, busy {busy} times",
            lag >> 10
        );
        runtime.block_on(async { tokio::join!(a.shutdown(), b.shutdown(), c.shutdown()) });
    }
}

/// From the start of a node to its first exchange with a live seed.
fn starts() {
    let runtime = runtime();
    runtime.block_on(async {
        let a = start("a", &[]).await;
        a.put("k", "v").expect("acceptable");
        let mut nanos = Vec::new();
        for i in 0..50 {
            let begin = Instant::now();
            let node = start(&format!("n{i}"), &[&a]).await;
            assert!(node.get("k").is_some(), "it is ready");
            nanos.push(begin.elapsed().as_nanos() as u64);
            node.leave().await;
        }
        quantiles("start to the first exchange (target: 50,000)", nanos);
        a.shutdown().await;
    });
}

/// Connections first: what is freed is used again, and would hide what comes after it.
fn memory() {
    const PEERS: usize = 20;
    const MANY: u64 = 1_000_000;
    let runtime = runtime();
    runtime.block_on(async {
        let mut nodes = Vec::new();
        for i in 0..PEERS {
            nodes.push(builder(&format!("n{i}"), &[]).start().await.expect("it starts"));
        }
        let before = resident();
        let seeds: Vec<&Node> = nodes.iter().collect();
        nodes.push(builder("center", &seeds).start().await.expect("it starts"));
        // The others learn of each other through the center, until everybody is linked with everybody.
        let ends = || nodes.iter().map(|node| node.status().peers.len()).sum::<usize>();
        while ends() < PEERS * (PEERS + 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let bytes = resident().saturating_sub(before) / ends() as u64;
        println!(
            "memory of a connection and end, of {} in this process: {} KiB (target: 100)",
            ends(),
            bytes >> 10
        );
    });
    let node = runtime.block_on(start("a", &[]));
    let before = resident();
    for i in 0..MANY {
        node.put(key(i), value(i)).expect("acceptable");
    }
    let bytes = resident().saturating_sub(before) / MANY;
    println!("memory at 1 M keys, index included: {bytes} bytes a key resident (target: 310)");
    runtime.block_on(node.shutdown());
}
