//! What the HTTP interface keeps from strangers, slow clients, pages of other sites, and holders of a read-only token.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Reply, Running, ask, folder, private_file, program, run_with_input, serve};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};
use socket2::{Domain, Socket, Type};
use tidings_proptest::nodes::GUARD;
use tidings_proptest::processes::{eventually, signal};

/// A bare connection, from an address of loopback.
struct Raw(BufReader<TcpStream>);

impl Raw {
    fn connect(node: &Running, from: &str) -> Self {
        let to: SocketAddr = node.http.split("://").nth(1).unwrap().parse().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        // A server that has refused already may not read it.
        _ = self.0.get_mut().write_all(text.as_bytes());
    }

    /// The status of the answer to a request, its headers, and its body.
    fn ask(&mut self, path: &str) -> (u16, String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && self.0.read_line(&mut head).unwrap() > 0 {}
        let length = head.to_lowercase();
        let length = length.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).unwrap();
        let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        (status, head, String::from_utf8(body).unwrap())
    }

    /// Whether the server has ended it, with or without an answer.
    fn ends(mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn probes_are_answered_while_all_places_are_taken() {
    let node = serve("a", &[], &["--connections-max", "5", "--connections-per-address-max", "3"]);
    let take = |from: &str| {
        let mut raw = Raw::connect(&node, from);
        (raw.ask("/v1/kv").0, raw)
    };
    let mut taken = Vec::new();
    let mut answers = Vec::new();
    for from in ["127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4"] {
        let (status, raw) = take(from);
        answers.push(status);
        if status == 200 {
            taken.push(raw);
        } else {
            assert!(raw.ends());
        }
    }
    // Three from the first address, five in all.
    assert_eq!(answers, [200, 200, 200, 503, 200, 200, 503]);
    let (_, head, body) = Raw::connect(&node, "127.0.0.2").ask("/v1/kv");
    assert!(head.contains("connection: close") && head.contains("retry-after"), "{head}");
    assert!(body.contains("too_many_connections") && body.contains("nothing was read or written"), "{body}");
    // The reserve is filled with connections that say nothing.
    let _silent: Vec<Raw> = (0..200).map(|_| Raw::connect(&node, "127.0.0.5")).collect();
    for from in ["127.0.0.2", "127.0.0.6"] {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(Raw::connect(&node, from).ask(path).0, 200, "{from} {path}");
        }
    }
    // Each place is free again once its connection has ended.
    taken.drain(..).for_each(|raw| raw.0.get_ref().shutdown(Shutdown::Both).unwrap());
    eventually("there is room again", || take("127.0.0.2").0 == 200);
}

#[test]
fn request_whose_head_does_not_end_is_cut_off() {
    let node = serve("a", &[], &[]);
    let mut slow = Raw::connect(&node, "127.0.0.1");
    slow.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n");
    let mut whole = Raw::connect(&node, "127.0.0.1");
    assert_eq!(whole.ask("/healthz").0, 200);
    assert!(slow.ends());
    // One that was quiet for as long after its answer is closed as well.
    assert!(whole.ends());
}

#[test]
fn client_that_does_not_finish_a_tls_handshake_is_cut_off() {
    let authority = Authority::new(&folder("tls-silent"), "authority");
    let (certificate, key) = (authority.path("certificate"), authority.path("key"));
    authority.issue("127.0.0.1", &certificate, &key);
    let node = serve("a", &[], &["--http-certificate-file", &certificate, "--http-key-file", &key]);
    let silent = Raw::connect(&node, "127.0.0.1");
    // The first bytes of a record that begins a handshake.
    let mut begun = Raw::connect(&node, "127.0.0.1");
    begun.send("\u{16}\u{3}\u{1}\u{2}\0");
    let words = ["members", "--ca-file", &authority.path("ca")];
    assert!(run_with_input(&node.http, &words, b"").status.success(), "others are served meanwhile");
    assert!(silent.ends());
    assert!(begun.ends());
}

fn token(folder: &Path, name: &str) -> (String, String) {
    let path = folder.join(name);
    assert!(program().args(["secret", "--out"]).arg(&path).status().unwrap().success());
    (path.to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap().trim().to_owned())
}

#[test]
fn read_only_token_reads_and_writes_nothing() {
    let folder = folder("read-only");
    let (full_file, full) = token(&folder, "full");
    let (read_file, read) = token(&folder, "read");
    let dir = folder.join("data");
    let files = ["--token-file", &full_file, "--read-token-file", &read_file];
    let node =
        serve("a", &[], &[&files[..], &["--voter", "a", "--data-dir", dir.to_str().unwrap()]].concat());
    let with = |token: &str, method: &str, path: &str| -> Reply {
        let bearer = format!("Bearer {token}");
        ask(method, &format!("{}{path}", node.http), &[("authorization", &bearer)], b"")
    };
    assert_eq!(with(&full, "PUT", "/v1/kv/k").status, 200);
    for path in ["/v1/kv/k", "/v1/kv", "/v1/members", "/v1/status", "/metrics", "/v1/elections"] {
        assert_eq!(with(&read, "GET", path).status, 200, "{path}");
    }
    for (method, path) in [
        ("PUT", "/v1/kv/k"),
        ("DELETE", "/v1/kv/k"),
        ("PUT", "/v1/sets/s/e"),
        ("POST", "/v1/counters/c"),
        ("POST", "/v1/snapshot?name=s"),
        ("POST", "/v1/leave"),
        ("POST", "/v1/elections/e/campaign"),
    ] {
        let refused = with(&read, method, path);
        let said = refused.json();
        assert_eq!((refused.status, said["code"].as_str()), (403, Some("read_only")), "{path}: {said}");
    }
    assert_eq!(with(&full, "GET", "/v1/kv").json()["entries"].as_array().unwrap().len(), 1);
    assert!(!dir.join("snapshots").exists());
    // A new token counts after SIGHUP, and the old ones do no more; one that is weak changes nothing.
    private_file(Path::new(&full_file), "weak");
    private_file(Path::new(&read_file), tidings::Security::generate_secret());
    signal(node.pid(), "HUP");
    let (_, next) = token(&folder, "next");
    assert_eq!(with(&read, "GET", "/v1/kv").status, 200, "both stay as they are");
    private_file(Path::new(&full_file), &next);
    signal(node.pid(), "HUP");
    eventually("the new token counts", || with(&next, "GET", "/v1/kv").status == 200);
    assert_eq!([with(&full, "GET", "/v1/kv").status, with(&read, "GET", "/v1/kv").status], [401, 401]);
}

/// Replaces all files of a mounted secret at once, as Kubernetes does: `..data` then leads to another folder.
fn mount(secret: &Path, version: &str, files: &[(&str, &str)]) {
    std::fs::create_dir_all(secret.join(version)).unwrap();
    for (name, text) in files {
        private_file(&secret.join(version).join(name), text);
        _ = std::os::unix::fs::symlink(Path::new("..data").join(name), secret.join(name));
    }
    std::os::unix::fs::symlink(version, secret.join("..next")).unwrap();
    std::fs::rename(secret.join("..next"), secret.join("..data")).unwrap();
}

#[test]
fn mounted_secrets_are_followed_without_a_signal() {
    let folder = folder("mounted");
    let [old, new] = [(); 2].map(|()| tidings::Security::generate_secret());
    let both = format!("{new}\n{old}");
    let nodes = ["a", "b"].map(|name| {
        let secret = folder.join(name);
        mount(&secret, "..1", &[("secret", &old), ("token", &old)]);
        secret
    });
    let start = |name: &str, seeds: &[&str]| {
        let secret = folder.join(name).join("secret").to_str().unwrap().to_owned();
        let token = folder.join(name).join("token").to_str().unwrap().to_owned();
        serve(name, seeds, &["--secret-file", &secret, "--token-file", &token])
    };
    let a = start("a", &[]);
    let with = |node: &Running, token: &str, path: &str| {
        ask("GET", &format!("{}{path}", node.http), &[("authorization", &format!("Bearer {token}"))], b"")
    };
    assert_eq!(with(&a, &old, "/v1/kv").status, 200);
    // The secret alone is accepted beside the new one, which is presented; the token is replaced.
    for secret in &nodes {
        mount(secret, "..2", &[("secret", &both), ("token", &new)]);
    }
    eventually("the new token counts", || with(&a, &new, "/v1/kv").status == 200);
    assert_eq!(with(&a, &old, "/v1/kv").status, 401);
    mount(&nodes[0], "..3", &[("secret", &new), ("token", &old)]);
    eventually("the third version is read", || with(&a, &old, "/v1/kv").status == 200);
    // A node that has the old secret alone is refused now, one with the new secret is not.
    let stranger = folder.join("stranger");
    mount(&stranger, "..1", &[("secret", &old), ("token", &old)]);
    let stranger = start("stranger", &[&a.addr]);
    let b = start("b", &[&a.addr]);
    eventually("b is ready", || ask("GET", &format!("{}/readyz", b.http), &[], b"").status == 200);
    assert_eq!(ask("GET", &format!("{}/readyz", stranger.http), &[], b"").status, 503);
    let members = with(&a, &old, "/v1/members").json().to_string();
    assert!(members.contains("\"b\"") && !members.contains("stranger"), "{members}");
}

#[test]
fn foreign_pages_and_proxies_cannot_use_an_open_node() {
    let node = serve("a", &[], &[]);
    let url = format!("{}/v1/kv/k", node.http);
    for (headers, status, code) in [
        (&[][..], 200, None),
        (&[("sec-fetch-site", "same-origin")][..], 200, None),
        (&[("sec-fetch-site", "cross-site")][..], 403, Some("foreign_page")),
        (&[("sec-fetch-site", "same-site")][..], 403, Some("foreign_page")),
        (&[("x-forwarded-for", "192.0.2.1")][..], 403, Some("forwarded")),
        (&[("forwarded", "for=192.0.2.1")][..], 403, Some("forwarded")),
    ] {
        let reply = ask("PUT", &url, headers, b"v");
        let said = reply.json();
        assert_eq!((reply.status, said["code"].as_str()), (status, code), "{headers:?}: {said}");
    }
}

#[test]
fn answers_are_not_sniffed_and_the_page_runs_its_own_script_alone() {
    let node = serve("a", &[], &[]);
    for (path, status) in
        [("/", 200), ("/healthz", 200), ("/v1/kv", 200), ("/v1/kv/none", 404), ("/none", 404)]
    {
        let reply = ask("GET", &format!("{}{path}", node.http), &[], b"");
        assert_eq!(
            (reply.status, reply.header("x-content-type-options")),
            (status, Some("nosniff")),
            "{path}"
        );
    }
    let refused = ask("GET", &format!("{}/v1/kv", node.http), &[("host", "evil.example")], b"");
    assert_eq!((refused.status, refused.header("x-content-type-options")), (403, Some("nosniff")));
    let page = ask("GET", &node.http, &[], b"");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'sha256-") && policy.contains("style-src 'sha256-"), "{policy}");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[test]
fn settings_out_of_range_name_field_range_and_cause() {
    let folder = folder("ranges");
    let (token_file, _) = token(&folder, "token");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        private_file(&path, text);
        path.to_str().unwrap().to_owned()
    };
    let (rubbish, empty) = (file("rubbish", "no PEM at all"), file("empty", "\n"));
    let blank = file("blank", "walnut cobalt ferry oxygen plural tundra mosaic ivory");
    let open = folder.join("open");
    std::fs::write(&open, "a key that all can read").unwrap();
    let open = open.to_str().unwrap().to_owned();
    let missing = folder.join("missing").to_str().unwrap().to_owned();
    for (arguments, told) in [
        (&["--connections-max", "0"][..], "connections_max is 0, permitted: 1 to 65536"),
        (
            &["--connections-max", "9", "--connections-per-address-max", "10"],
            "connections_per_address_max is 10, permitted: 1 to 9",
        ),
        (&["--watchers-max", "0"], "watchers_max is 0, permitted: 1 to 65536"),
        (&["--store-bytes-max", "5"], "store_bytes_max is 5, permitted: 65536 to 1099511627776"),
        (&["--alone-after", "0s"], "alone_after is 0 ms, permitted: 1 s to 365 days"),
        (
            &["--lease-time", "soon"],
            "lease_time: invalid value: string \"soon\", expected a duration such as",
        ),
        (&["--disk-interval", "9"], "durability.interval: invalid value"),
        (&["--read-token-file", &token_file], "there is a read_token and no token"),
        (&["--read-token-file", &token_file, "--token-file", &token_file], "are the same"),
        (&["--token-file", &rubbish], "the token is too easy to guess"),
        (&["--token-file", &blank], "characters that a header"),
        (&["--http-key-file", &rubbish], "http_certificate_file is not"),
        (&["--http-certificate-file", &missing, "--http-key-file", &rubbish], "missing: No such file"),
        (&["--http-certificate-file", &rubbish, "--http-key-file", &rubbish], "rubbish cannot be used"),
        (&["--http-certificate-file", &rubbish, "--http-key-file", &open], "chmod 600"),
        (&["--cluster-revocation-file", &rubbish], "shared secret"),
        (&["--cluster-ca-file", &rubbish], "cluster_certificate_file is not"),
        (&["--cluster-names-file", &empty], "holds no name"),
        (&["--cluster-names-file", &rubbish], "shared secret"),
    ] {
        let mut command = program();
        command.args(["serve", "--name", "a", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let output = command.args(arguments).env("TIDINGS_SECRET", common::SECRET).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(told), "{arguments:?}: {said}");
        assert!(matches!(output.status.code(), Some(2 | 6)), "{arguments:?}: {said}");
    }
}

/// A certificate authority in files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("ca"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(parameters, key), folder }
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).to_str().unwrap().to_owned()
    }

    /// Writes a certificate for this name into `certificate`, and its key into `key`. Its serial number is the length of
    /// the name.
    fn issue(&self, name: &str, certificate: &str, key_file: &str) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.serial_number = Some(SerialNumber::from(name.len() as u64));
        std::fs::write(certificate, parameters.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        private_file(Path::new(key_file), key.serialize_pem());
    }
}

#[test]
fn api_speaks_tls_and_reloads_its_certificate() {
    let folder = folder("tls");
    let (first, second) = (Authority::new(&folder, "first"), Authority::new(&folder, "second"));
    let (certificate, key) = (first.path("certificate"), first.path("key"));
    first.issue("127.0.0.1", &certificate, &key);
    let node = serve("a", &[], &["--http-certificate-file", &certificate, "--http-key-file", &key]);
    assert!(node.http.starts_with("https://"), "{}", node.http);
    let with = |authority: &Authority, words: &[&str]| {
        run_with_input(&node.http, &[words, &["--ca-file", &authority.path("ca")]].concat(), b"")
    };
    assert!(with(&first, &["put", "k", "v"]).status.success());
    let read = with(&first, &["get", "k"]);
    assert_eq!(read.stdout, b"v", "{}", String::from_utf8_lossy(&read.stderr));
    let said =
        |output: std::process::Output| (output.status.code(), String::from_utf8(output.stderr).unwrap());
    let (code, foreign) = said(with(&second, &["get", "k"]));
    assert!(code == Some(3) && foreign.contains("--ca-file"), "{foreign}");
    let (code, without) = said(run_with_input(&node.http, &["get", "k"], b""));
    assert!(code == Some(2) && without.contains("--ca-file"), "{without}");
    let plain = node.http.replace("https", "http");
    let (code, not_https) = said(run_with_input(&plain, &["get", "k"], b""));
    assert!(code == Some(3) && not_https.contains("--node https://"), "{not_https}");

    // A certificate that does not fit its key changes nothing; one that does is used from then on.
    second.issue("127.0.0.1", &certificate, &second.path("key"));
    signal(node.pid(), "HUP");
    assert!(with(&first, &["get", "k"]).status.success());
    private_file(Path::new(&key), std::fs::read(second.path("key")).unwrap());
    signal(node.pid(), "HUP");
    eventually("the new certificate is used", || with(&second, &["get", "k"]).status.success());
    assert!(!with(&first, &["get", "k"]).status.success());
}

/// The certificates of nodes, and the files that shut out some of them.
struct Certified {
    authority: Authority,
    names: String,
    revoked: String,
}

impl Certified {
    fn new(test: &str) -> Self {
        let authority = Authority::new(&folder(test), "cluster");
        let (names, revoked) = (authority.path("names"), authority.path("revoked"));
        let certified = Self { authority, names, revoked };
        std::fs::write(&certified.names, "a\nbb\nccc\n").unwrap();
        certified.revoke(&[]);
        certified
    }

    /// Replaces the revocation list.
    fn revoke(&self, names: &[&str]) {
        let time = rcgen::date_time_ymd(2_024, 1, 1);
        let revoked = names.iter().map(|name| RevokedCertParams {
            serial_number: SerialNumber::from(name.len() as u64),
            revocation_time: time,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: time,
            next_update: rcgen::date_time_ymd(2_124, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(&self.revoked, list.signed_by(&self.authority.issuer).unwrap().pem().unwrap())
            .unwrap();
    }

    fn start(&self, name: &str, seeds: &[&str]) -> Running {
        let [certificate, key] = ["pem", "key"].map(|kind| self.authority.path(&format!("{name}.{kind}")));
        self.authority.issue(name, &certificate, &key);
        let mut command = program();
        command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--profile", "local", "--log", "off", "--cluster-ca-file", &self.authority.path("ca")]);
        command.args(["--cluster-certificate-file", &certificate, "--cluster-key-file", &key]);
        command.args(["--cluster-names-file", &self.names, "--cluster-revocation-file", &self.revoked]);
        seeds.iter().for_each(|seed| _ = command.args(["--seed", seed]));
        common::start(command)
    }

    /// Three nodes that are linked with each other.
    fn start_three(&self) -> [Running; 3] {
        let a = self.start("a", &[]);
        let (b, c) = (self.start("bb", &[&a.addr]), self.start("ccc", &[&a.addr]));
        let nodes = [a, b, c];
        eventually("all are linked", || nodes.iter().all(|node| peers(node).len() == 2));
        nodes
    }
}

/// The names of the nodes that this one is linked with.
fn peers(node: &Running) -> Vec<String> {
    let status = ask("GET", &format!("{}/v1/status", node.http), &[], b"").json();
    let name = |peer: &serde_json::Value| peer["name"].as_str().unwrap().to_owned();
    status["peers"].as_array().unwrap().iter().map(name).collect()
}

fn b_is_shut_out([a, b, c]: &[Running; 3]) {
    eventually("b is shut out", || peers(a) == ["ccc"] && peers(c) == ["a"]);
    a.line(&["put", "k", "v"]);
    eventually("the others go on", || c.run(&["get", "k"]).stdout == b"v");
    assert!(b.run(&["get", "k"]).stdout.is_empty());
}

#[test]
fn nodes_with_certificates_shut_out_a_name() {
    let certified = Certified::new("cluster-names");
    let nodes = certified.start_three();
    let [a, _, c] = &nodes;
    std::fs::write(&certified.names, "a\nNode C\n").unwrap();
    signal(a.pid(), "HUP");
    std::fs::write(&certified.names, "a\nccc\n").unwrap();
    [a, c].iter().for_each(|node| signal(node.pid(), "HUP"));
    b_is_shut_out(&nodes);
}

#[test]
fn revocation_list_that_is_replaced_counts_without_a_signal() {
    let certified = Certified::new("cluster-revoked");
    let nodes = certified.start_three();
    // What is no list changes nothing, and neither does one that names somebody else.
    std::fs::write(&certified.revoked, "no list").unwrap();
    nodes.iter().for_each(|node| signal(node.pid(), "HUP"));
    certified.revoke(&["dddd"]);
    nodes.iter().for_each(|node| signal(node.pid(), "HUP"));
    nodes[0].line(&["put", "before", "v", "--wait", "all", "--timeout", "60s"]);
    certified.revoke(&["bb"]);
    b_is_shut_out(&nodes);
    // Taken from the list it is let in again.
    certified.revoke(&[]);
    eventually("b is a peer again", || nodes[1].run(&["get", "k"]).stdout == b"v");
}

/// As whom the system shows a process: root if its memory cannot be read by its own user.
#[cfg(target_os = "linux")]
fn shown_owner(pid: u32) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid()
}

#[test]
#[cfg(target_os = "linux")]
fn memory_of_a_node_cannot_be_dumped() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    // Of a process of root it cannot be seen, so root runs it as somebody else.
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let folder = std::env::temp_dir().join(format!("tidings-dump-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("tidings");
    std::fs::copy(common::PROGRAM, &copy).unwrap();
    let as_nobody = |program: &Path| {
        let mut command = Command::new(program);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir("/").env_clear();
        command
    };
    let mut command = as_nobody(&copy);
    command.args(common::SERVE_A);
    command.env("TIDINGS_SECRET", common::SECRET);
    let node = common::start(command);
    assert_eq!(shown_owner(node.pid()), 0);
    // The control: a process that does not ask for it.
    let mut sleeper = as_nobody(Path::new("/bin/sleep")).arg("60").spawn().unwrap();
    let owner = shown_owner(sleeper.id());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_ne!(owner, 0);
    drop(node);
    std::fs::remove_dir_all(folder).unwrap();
}
