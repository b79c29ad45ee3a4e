//! One node is shut out of a cluster with certificate files, and the others stay linked: by a revocation list, by the
//! names that may connect, and by the end of its certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::*;

/// The serial numbers of the nodes' certificates.
const SERIALS: [(&str, u64); 3] = [("a", 1), ("b", 2), ("c", 3)];

/// Three nodes, each linked with both others; all of them read one file of revocation lists.
struct Three {
    authority: Authority,
    securities: Vec<Security>,
    nodes: Vec<Node>,
}

impl Three {
    async fn start(test: &str) -> Self {
        let authority = Authority::new(test);
        write_list(&authority, &[]);
        let (mut securities, mut nodes): (Vec<Security>, Vec<Node>) = Default::default();
        for (name, serial) in SERIALS {
            let security = of_serial(&authority, name, serial);
            security.revoke_by(authority.folder.at("revoked.pem")).unwrap();
            let seeds: Vec<&Node> = nodes.iter().collect();
            let node = ready(builder(name, security.clone(), &seeds)).await;
            securities.push(security);
            nodes.push(node);
        }
        let all_linked = || nodes.iter().all(|node| node.status().peers.len() == 2);
        until(all_linked).await;
        Self { authority, securities, nodes }
    }

    /// B loses its links and gets none back, and the link between A and C is still the same one.
    async fn shuts_out_b(&self, change: impl Fn(&Security), expected: PeerRefusal) {
        let [a, b, c] = &self.nodes[..] else { unreachable!() };
        let sent = sent_bytes(a, "c").unwrap();
        [&self.securities[0], &self.securities[2]].into_iter().for_each(change);
        until(|| sent_bytes(a, "b").is_none() && sent_bytes(c, "b").is_none()).await;
        assert_eq!(refusal(b).await, expected);
        until(|| b.status().peers.is_empty()).await;
        a.put("k", "v").unwrap();
        until(|| c.get("k").is_some()).await;
        assert!(sent_bytes(a, "c") > Some(sent), "a new link would count anew");
        assert!(b.get("k").is_none());
    }
}

fn of_serial(authority: &Authority, name: &str, serial: u64) -> Security {
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.serial_number = Some(SerialNumber::from(serial));
    let [ca, certificate, key] = authority.write_issued(name, &authority.sign(&parameters));
    Security::ca(ca, certificate, key).unwrap()
}

/// How many events of a node so far are of a kind.
async fn count(node: &Node, is_meant: impl Fn(&NodeEvent) -> bool) -> usize {
    let (mut events, mut found) = (node.events(), 0);
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
        found += usize::from(is_meant(&event));
    }
    found
}

/// Sent to a peer since the link to it was made.
fn sent_bytes(node: &Node, peer: &str) -> Option<u64> {
    node.status().peers.iter().find(|linked| linked.name == peer).map(|linked| linked.sent_bytes)
}

fn write_list(authority: &Authority, serials: &[u64]) {
    let time = rcgen::date_time_ymd(2_024, 1, 1);
    let revoked = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: time,
        reason_code: None,
        invalidity_date: None,
    });
    let parameters = CertificateRevocationListParams {
        this_update: time,
        next_update: rcgen::date_time_ymd(2_025, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = parameters.signed_by(&authority.issuer).unwrap().pem().unwrap();
    std::fs::write(authority.folder.at("revoked.pem"), list).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_certificate_ends_its_links_and_no_others() {
    let three = Three::start("revoked").await;
    // The control: the same list read again shuts nobody out.
    let sent = sent_bytes(&three.nodes[0], "b").unwrap();
    three.securities[0].reload().unwrap();
    three.nodes[0].put("control", "v").unwrap();
    until(|| three.nodes[1].get("control").is_some()).await;
    assert!(sent_bytes(&three.nodes[0], "b") > Some(sent));

    write_list(&three.authority, &[2]);
    let revoked = PeerRefusal::Tls(TlsRefusal::Revoked);
    three.shuts_out_b(|security| security.reload().unwrap(), revoked).await;
    // Taken from the list it is let in again.
    write_list(&three.authority, &[]);
    [0, 2].into_iter().for_each(|at: usize| three.securities[at].reload().unwrap());
    until(|| three.nodes[1].get("k").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_that_is_not_allowed_ends_its_links_and_no_others() {
    let three = Three::start("names").await;
    let refused = PeerRefusal::NotTheCertificates;
    let is_link = |event: &NodeEvent| matches!(event, NodeEvent::LinkMade { .. });
    let made = count(&three.nodes[1], is_link).await;
    three.shuts_out_b(|security| security.allow_only(["a", "c"]).unwrap(), refused.clone()).await;
    // A refuses it where it is dialled and where it dials. It makes no link that ends at once, and so logs none.
    let by_a = |event: &NodeEvent| matches!(event, NodeEvent::PeerRefused { by_us: true, refusal, .. } if *refusal == refused);
    guarded(async {
        while count(&three.nodes[0], by_a).await < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(count(&three.nodes[1], is_link).await, made);
    // The names stay in force when the files are read again.
    three.securities[0].reload().unwrap();
    [0, 2].into_iter().for_each(|at: usize| three.securities[at].allow_only(["a", "b", "c"]).unwrap());
    until(|| three.nodes[1].get("k").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_of_a_certificate_ends_the_link_it_made() {
    let authority = Authority::new("expiry");
    let a = builder("a", authority.security("a", VALID), &[]).start().await.unwrap();
    let _c = ready(builder("c", authority.security("c", VALID), &[&a])).await;
    let sent = sent_bytes(&a, "c").unwrap();
    let mut parameters = CertificateParams::new(vec!["b".to_owned()]).unwrap();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(5);
    parameters.not_after = rcgen::date_time_ymd(1_970, 1, 1) + since;
    let [ca, certificate, key] = authority.write_issued("b", &authority.sign(&parameters));
    let b = ready(builder("b", Security::ca(ca, certificate, key).unwrap(), &[&a])).await;
    until(|| sent_bytes(&a, "b").is_none()).await;
    assert_eq!(refusal(&b).await, PeerRefusal::Tls(TlsRefusal::Expired));
    assert!(sent_bytes(&a, "c") >= Some(sent));
}

#[test]
fn unfit_revocation_lists_are_named_and_change_nothing() {
    let (authority, foreign) = (Authority::new("lists"), Authority::new("other lists"));
    let security = of_serial(&authority, "a", 1);
    let path = authority.folder.at("revoked.pem");
    let refused = |reason: &str| {
        let error = security.revoke_by(&path).unwrap_err();
        assert!(
            matches!(&error, SecurityError::File { path, .. } if path.ends_with("revoked.pem")),
            "{error}"
        );
        assert!(error.to_string().contains(reason), "{error}");
    };
    refused("No such file");
    std::fs::write(&path, "no list").unwrap();
    refused("no revocation list");
    write_list(&foreign, &[]);
    std::fs::copy(foreign.folder.at("revoked.pem"), &path).unwrap();
    refused("no list of the authority");
    write_list(&authority, &[1]);
    refused("own certificate");
    write_list(&authority, &[2]);
    security.revoke_by(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(security.reload().is_err());
    let typed = security.allow_only(["a", "Node-1"]).unwrap_err();
    assert_eq!(typed, SecurityError::Name { name: "Node-1".to_owned() });

    let secret = Security::secret(&Security::generate_secret()).unwrap();
    assert_eq!(secret.revoke_by(&path), Err(SecurityError::NoFiles));
    assert_eq!(secret.allow_only(["a"]), Err(SecurityError::NoFiles));
}
