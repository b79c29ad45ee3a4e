//! Who may connect: mutual TLS 1.3, from one shared secret or from certificates in files. There is no plaintext mode.
//!
//! A shared secret becomes a certificate authority. 32 bytes are derived from it and used as the authority's Ed25519
//! key; the derivation is slow on purpose, because whoever sees a certificate can test guesses of the secret offline.
//! The authority's certificate contains nothing that differs from node to node, so that all nodes compute the same one.
//! Every start of a process issues a certificate under it, in its node's name. The authority's subject contains its
//! public key, so that a certificate of another secret is told apart from a broken one.
//!
//! Both sides use the usual verifiers of TLS, with one difference: a node that dials an address does not know yet which
//! node answers there. So the name that is verified is the one in the certificate, and the greeting compares it with
//! the name that the peer states.
//!
//! Sessions are never resumed: every connection is verified again, so that a removed secret opens nothing. The secret
//! and the keys must never be shown; the `Debug` output contains neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::sync::watch;

use crate::error::{BoxedError, Cause, SecurityError, StartError};
use crate::membership::NAME_BYTES_MAX;

/// The server name in every handshake. It is not verified: which node answers is known from its certificate.
pub(in crate::node) const SERVER_NAME: &str = "tidings";
const PROTOCOL: &[u8] = b"tidings/1";

const SECRET_BYTES_MIN: usize = 16;
const SECRET_KINDS_MIN: usize = 8;
/// Argon2id with 19 MiB, two passes, one lane. It makes every guess cost about ten milliseconds and that memory.
const DERIVATION: (u32, u32, u32) = (19 << 10, 2, 1);
const DERIVATION_SALT: &[u8] = b"tidings/1 shared secret";
/// The bytes of PKCS #8 in front of the 32 bytes of an Ed25519 key.
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Checks that a node may have this name, which has to be a DNS name for its certificate.
pub(in crate::node) fn check_node_name(name: &str) -> Result<(), StartError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let ends = [name.bytes().next(), name.bytes().last()];
    let ends_plainly = ends.iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    let is_dns = matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)));
    if name.len() <= NAME_BYTES_MAX && name.bytes().all(is_plain) && ends_plainly && is_dns {
        return Ok(());
    }
    Err(StartError::Name { name: name.to_owned() })
}

/// Why the TLS handshake between two nodes failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsRefusal {
    /// The nodes have different secrets.
    #[error("the nodes have different secrets")]
    WrongSecret,
    /// The certificate was issued by an authority that is not trusted.
    #[error("the certificate was issued by an authority that is not trusted")]
    ForeignAuthority,
    /// The certificate has expired, or is not valid yet.
    #[error("the certificate has expired or is not valid yet")]
    Expired,
    /// No certificate was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The certificate is malformed, or unsuitable for a node.
    #[error("the certificate is malformed or unsuitable for a node")]
    BadCertificate,
    /// The other side does not speak this protocol, or not this version of it.
    #[error("the two sides have no protocol version in common")]
    Protocol,
}

/// The certificate that a node presents.
enum OwnCertificate {
    /// From a shared secret: a certificate is issued for each node name.
    Issued(Arc<Authority>),
    Files {
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    },
}

/// The certificate authority that is derived from a secret.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

struct Credentials {
    own: OwnCertificate,
    /// The authorities whose certificates are accepted.
    roots: Vec<CertificateDer<'static>>,
    /// The files of [`Security::ca`], to be read again by [`Security::reload`].
    files: Option<[PathBuf; 3]>,
    /// The TLS configurations by node name; cleared by every change.
    configs: BTreeMap<String, (quinn::ClientConfig, quinn::ServerConfig)>,
}

/// Who may connect to a node. Clones are handles to the same settings: a change through one applies to all at once.
///
/// A secret is rotated in three steps, and each step must be done on every node before the next: accept the new secret,
/// present it, remove the old one.
///
/// ```
/// use tidings::Security;
///
/// let (old, new) = (Security::generate_secret(), Security::generate_secret());
/// let security = Security::secret(&old)?;
/// security.accept(&new)?;
/// security.present(&new)?;
/// security.remove(&old)?;
/// assert!(Security::secret("12345").unwrap_err().to_string().contains("16 bytes"));
/// # Ok::<(), tidings::SecurityError>(())
/// ```
#[derive(Clone)]
pub struct Security {
    state: Arc<Mutex<Credentials>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").finish_non_exhaustive()
    }
}

impl Security {
    /// One shared secret for the whole cluster. Deriving the key takes about ten milliseconds on purpose.
    ///
    /// # Errors
    /// [`SecurityError::Weak`] if the secret is shorter than 16 bytes, has fewer than eight different characters, or
    /// has blanks at one end, which is probably a mistake.
    pub fn secret(text: &str) -> Result<Self, SecurityError> {
        let authority = Arc::new(Authority::of(text)?);
        let roots = vec![authority.certificate.clone()];
        Ok(Self::new(Credentials {
            own: OwnCertificate::Issued(authority),
            roots,
            files: None,
            configs: BTreeMap::new(),
        }))
    }

    /// A new secret of 160 random bits.
    ///
    /// # Panics
    /// If the operating system provides no random numbers.
    pub fn generate_secret() -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        loop {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("the system gives randomness");
            let letters: Vec<char> =
                bytes.iter().map(|byte| LETTERS[usize::from(*byte % 32)].into()).collect();
            let groups: Vec<String> = letters.chunks(4).map(|group| group.iter().collect()).collect();
            let secret = groups.join("-");
            if check_secret(&secret).is_ok() {
                return secret;
            }
        }
    }

    /// Certificates of your own authority, in PEM files: `ca` holds the trusted authorities, `certificate` the node's
    /// certificate followed by those that lead to its authority, `key` its private key. The node's name must be among
    /// the DNS names of its certificate, which must be valid for servers and for clients.
    ///
    /// # Errors
    /// [`SecurityError::File`], which names the file, if one cannot be read or has the wrong content.
    pub fn ca(
        ca: impl AsRef<Path>,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, SecurityError> {
        let files = [ca.as_ref(), certificate.as_ref(), key.as_ref()].map(Path::to_path_buf);
        read_files(files).map(Self::new)
    }

    /// Reads the files again, and closes the links of peers that are no longer accepted. If it fails, the old
    /// certificates stay in force.
    ///
    /// # Errors
    /// As for [`Security::ca`]; also [`SecurityError::NoFiles`] if this is a shared secret.
    pub fn reload(&self) -> Result<(), SecurityError> {
        let files = self.lock().files.clone().ok_or(SecurityError::NoFiles)?;
        let state = read_files(files)?;
        self.change(|old| *old = state);
        Ok(())
    }

    /// Accepts peers with this further secret as well. This is the first step of a rotation.
    ///
    /// # Errors
    /// As for [`Security::secret`]; also [`SecurityError::NoSecret`] if certificates come from files.
    pub fn accept(&self, text: &str) -> Result<(), SecurityError> {
        let authority = self.further(text)?;
        self.change(|state| state.trust(&authority.certificate));
        Ok(())
    }

    /// Presents this secret on new links from now on, and accepts it. This is the second step of a rotation, once every
    /// node accepts the secret.
    ///
    /// # Errors
    /// As for [`Security::accept`].
    pub fn present(&self, text: &str) -> Result<(), SecurityError> {
        let authority = Arc::new(self.further(text)?);
        self.change(|state| {
            state.trust(&authority.certificate);
            state.own = OwnCertificate::Issued(authority);
        });
        Ok(())
    }

    /// Stops accepting a secret, and closes the links whose peer presented it. This is the last step of a rotation,
    /// once every node presents another secret.
    ///
    /// # Errors
    /// [`SecurityError::InUse`] if this node presents it; [`SecurityError::NotAccepted`] if it was not accepted.
    pub fn remove(&self, text: &str) -> Result<(), SecurityError> {
        let certificate = self.further(text)?.certificate;
        let state = self.lock();
        if matches!(&state.own, OwnCertificate::Issued(own) if own.certificate == certificate) {
            return Err(SecurityError::InUse);
        }
        if !state.roots.contains(&certificate) {
            return Err(SecurityError::NotAccepted);
        }
        drop(state);
        self.change(|state| state.roots.retain(|root| *root != certificate));
        Ok(())
    }

    fn new(state: Credentials) -> Self {
        Self { state: Arc::new(Mutex::new(state)), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Credentials> {
        self.state.lock().expect("nothing panics while it changes")
    }

    fn change(&self, change: impl FnOnce(&mut Credentials)) {
        let mut state = self.lock();
        change(&mut state);
        state.configs.clear();
        drop(state);
        self.changes.send_modify(|count| *count += 1);
    }

    fn further(&self, text: &str) -> Result<Authority, SecurityError> {
        if self.lock().files.is_some() {
            return Err(SecurityError::NoSecret);
        }
        Authority::of(text)
    }

    // For the node.

    pub(in crate::node) fn client(&self, node: &str) -> Result<quinn::ClientConfig, StartError> {
        self.configs(node).map(|(client, _)| client)
    }

    pub(in crate::node) fn server(&self, node: &str) -> Result<quinn::ServerConfig, StartError> {
        self.configs(node).map(|(_, server)| server)
    }

    /// A counter that changes with every change of the settings.
    pub(in crate::node) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The DNS names in a peer's certificate.
    pub(in crate::node) fn names(connection: &Connection) -> Vec<String> {
        let chain = chain_of(connection);
        chain.first().map_or_else(Vec::new, |certificate| {
            let names = |certificate: webpki::EndEntityCert<'_>| {
                certificate.valid_dns_names().map(str::to_owned).collect()
            };
            webpki::EndEntityCert::try_from(certificate).map_or_else(|_| Vec::new(), names)
        })
    }

    /// Whether the certificate of a connected peer would still be accepted.
    pub(in crate::node) fn accepts(&self, connection: &Connection) -> bool {
        let chain = chain_of(connection);
        let Some((first, rest)) = chain.split_first() else { return false };
        let verifier = client_verifier(self.lock().roots());
        verifier.is_ok_and(|verifier| verifier.verify_client_cert(first, rest, UnixTime::now()).is_ok())
    }

    /// The reason why a handshake failed, if a connection's error carries one. It may concern either side's
    /// certificate.
    pub(in crate::node) fn refusal(&self, error: &ConnectionError) -> Option<TlsRefusal> {
        let code: u64 = match error {
            ConnectionError::TransportError(error) => error.code.into(),
            ConnectionError::ConnectionClosed(close) => close.error_code.into(),
            _ => return None,
        };
        // QUIC carries a TLS alert as the error code 0x100 + alert.
        Some(match code.checked_sub(0x100)? {
            48 if self.lock().files.is_some() => TlsRefusal::ForeignAuthority,
            48 => TlsRefusal::WrongSecret,
            45 => TlsRefusal::Expired,
            116 => TlsRefusal::NoCertificate,
            42..=51 => TlsRefusal::BadCertificate,
            70 | 120 => TlsRefusal::Protocol,
            _ => return None,
        })
    }

    fn configs(&self, node: &str) -> Result<(quinn::ClientConfig, quinn::ServerConfig), StartError> {
        let mut state = self.lock();
        if let Some(configs) = state.configs.get(node) {
            return Ok(configs.clone());
        }
        let configs = state.make_configs(node);
        let configs = configs.map_err(|error| StartError::Certificate { reason: Cause::new(error) })?;
        state.configs.insert(node.to_owned(), configs.clone());
        Ok(configs)
    }
}

fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let chain = connection.peer_identity().and_then(|chain| chain.downcast().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}

fn check_secret(text: &str) -> Result<(), SecurityError> {
    let kinds: BTreeSet<char> = text.chars().collect();
    let reason = if text.trim() != text {
        "begins or ends with a blank"
    } else if text.len() < SECRET_BYTES_MIN {
        "is shorter than 16 bytes"
    } else if kinds.len() < SECRET_KINDS_MIN {
        "has fewer than eight different characters"
    } else {
        return Ok(());
    };
    Err(SecurityError::Weak { reason })
}

impl Authority {
    fn of(text: &str) -> Result<Self, SecurityError> {
        check_secret(text)?;
        let (memory, passes, lanes) = DERIVATION;
        let parameters = argon2::Params::new(memory, passes, lanes, Some(32)).expect("they are permitted");
        let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
        let mut key = [0; 48];
        key[..16].copy_from_slice(&PKCS8_ED25519);
        argon
            .hash_password_into(text.as_bytes(), DERIVATION_SALT, &mut key[16..])
            .map_err(|error| SecurityError::Crypto { reason: Cause::new(error) })?;
        let crypto = |error: rcgen::Error| SecurityError::Crypto { reason: Cause::new(error) };
        let der = PrivatePkcs8KeyDer::from(&key[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).map_err(crypto)?;
        let print: Vec<String> = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut parameters = CertificateParams::default();
        // All nodes must compute the same certificate, so nothing in it may depend on the node or the time.
        parameters.serial_number = Some(rcgen::SerialNumber::from(1_u64));
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(4000, 1, 1);
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, format!("tidings secret {}", print.concat()));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = parameters.self_signed(&key).map_err(crypto)?.into();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    /// Issues a certificate in a node's name, with a new key.
    fn issue(&self, node: &str) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut parameters = CertificateParams::new(vec![node.to_owned()])?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, node);
        parameters.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

fn read_files(files: [PathBuf; 3]) -> Result<Credentials, SecurityError> {
    let failed = |path: &Path, error: BoxedError| SecurityError::File {
        path: path.display().to_string(),
        reason: Cause::new(error),
    };
    let unread = |path: &Path, error: pem::Error| match error {
        pem::Error::Io(error) => failed(path, error.into()),
        other => failed(path, other.into()),
    };
    let certificates = |path: &Path| {
        let found: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(path).map_err(|error| unread(path, error))?.collect();
        let found: Vec<CertificateDer<'static>> = found.map_err(|error| unread(path, error))?;
        if found.is_empty() { Err(failed(path, "it holds no certificate".into())) } else { Ok(found) }
    };
    let [ca, certificate, key] = &files;
    let (roots, chain) = (certificates(ca)?, certificates(certificate)?);
    let own_key = PrivateKeyDer::from_pem_file(key).map_err(|error| unread(key, error))?;
    let state = Credentials {
        own: OwnCertificate::Files { chain, key: own_key },
        roots,
        files: None,
        configs: BTreeMap::new(),
    };
    // Building the verifier and a server configuration checks that the files fit together.
    client_verifier(state.roots()).map_err(|error| failed(ca, error.into()))?;
    let (chain, own_key) = state.own("").map_err(|error| failed(certificate, error))?;
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(key, error.into()))?;
    builder
        .with_no_client_auth()
        .with_single_cert(chain, own_key)
        .map_err(|error| failed(key, error.into()))?;
    Ok(Credentials { files: Some(files), ..state })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_verifier(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    WebPkiClientVerifier::builder_with_provider(roots, provider()).build()
}

impl Credentials {
    fn trust(&mut self, certificate: &CertificateDer<'static>) {
        if !self.roots.contains(certificate) {
            self.roots.push(certificate.clone());
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.roots.iter().cloned());
        Arc::new(store)
    }

    /// The certificate to present in a node's name, with its key.
    fn own(&self, node: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), BoxedError> {
        match &self.own {
            OwnCertificate::Issued(authority) => {
                let (certificate, key) = authority.issue(node)?;
                Ok((vec![certificate], key))
            }
            OwnCertificate::Files { chain, key } => {
                let first = chain.first().ok_or("it holds no certificate")?;
                let certificate = webpki::EndEntityCert::try_from(first)?;
                if !node.is_empty() && !certificate.valid_dns_names().any(|name| name == node) {
                    let reason = format!("\"{node}\" is not among the DNS names of the node's certificate");
                    return Err(reason.into());
                }
                Ok((chain.clone(), key.clone_key()))
            }
        }
    }

    fn make_configs(&self, node: &str) -> Result<(quinn::ClientConfig, quinn::ServerConfig), BoxedError> {
        let (chain, key) = self.own(node)?;
        let versions = &[&rustls::version::TLS13];
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots(), provider());
        let verifier = verifier.build()?;
        let mut client = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByItsOwnName(verifier)))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // No resumption: each connection is verified again, so that a removed secret opens nothing.
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(client_verifier(self.roots())?)
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let client = QuicClientConfig::try_from(client)?;
        let server = QuicServerConfig::try_from(server)?;
        let server = quinn::ServerConfig::with_crypto(Arc::new(server));
        Ok((quinn::ClientConfig::new(Arc::new(client)), server))
    }
}

/// Verifies a server's certificate as usual, but for the first DNS name in it instead of the dialled name.
#[derive(Debug)]
struct ByItsOwnName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ByItsOwnName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = || rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| bad())?;
        let name = parsed.valid_dns_names().next().ok_or_else(bad)?;
        let name = ServerName::try_from(name).map_err(|_| bad())?;
        self.0.verify_server_cert(certificate, intermediates, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
