//! Certificates: reads those in files, and makes the verifiers with which each side checks those of its peers.
//!
//! Everything is read and checked before it is in force: a file that cannot be used changes nothing. The key must never
//! be shown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::{BoxedError, Cause, SecurityError};
use crate::node::disk::read_file;

/// The size of a file of certificates, of a key or of revocation lists.
const PEM_BYTES_MAX: usize = 16 << 20;

/// A certificate to present, with those that lead to its authority, and its key.
pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What certificate files hold.
pub(super) struct Files {
    pub(super) paths: [PathBuf; 3],
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// The authorities whose certificates are accepted.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The file of revocation lists and what it holds.
    pub(super) revocations: Option<(PathBuf, Vec<CertificateRevocationListDer<'static>>)>,
    /// The nodes that may connect. `None`: every node with a certificate.
    pub(super) allowed: Option<BTreeSet<String>>,
    /// The nodes that were started with the certificate: new files have to be in their names, too.
    pub(super) nodes: BTreeSet<String>,
}

/// Whose certificates are accepted, and those of them that are revoked.
pub(super) struct TrustAnchors {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revocations: Vec<CertificateRevocationListDer<'static>>,
}

impl Files {
    /// Reads up to four files, which may take long where they are on a network.
    pub(super) fn read(paths: [PathBuf; 3], lists: Option<PathBuf>) -> Result<Self, SecurityError> {
        let [ca, certificate, key] = &paths;
        let files = Self {
            roots: read_all(ca, "it holds no certificate")?,
            chain: read_all(certificate, "it holds no certificate")?,
            key: PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| failed(key, error.into()))?,
            revocations: match lists {
                Some(path) => {
                    let lists = read_all(&path, "it holds no revocation list")?;
                    Some((path, lists))
                }
                None => None,
            },
            allowed: None,
            nodes: BTreeSet::new(),
            paths,
        };
        files.check()?;
        Ok(files)
    }

    /// Checks that the files fit together, by building the verifier and a server configuration.
    fn check(&self) -> Result<(), SecurityError> {
        let [ca, certificate, key] = &self.paths;
        let trust = TrustAnchors { roots: store(self.roots.iter().cloned()), revocations: Vec::new() };
        trust.client_verifier().map_err(|error| failed(ca, error.into()))?;
        let (chain, own_key) = self.own("").map_err(|error| failed(certificate, error))?;
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(key, error.into()))?;
        builder
            .with_no_client_auth()
            .with_single_cert(chain, own_key)
            .map_err(|error| failed(key, error.into()))?;
        let Some((path, lists)) = &self.revocations else { return Ok(()) };
        let trust = TrustAnchors { revocations: lists.clone(), ..trust };
        let verifier = trust.client_verifier().map_err(|error| failed(path, error.into()))?;
        let (first, rest) = self.chain.split_first().expect("it was read");
        match verifier.verify_client_cert(first, rest, UnixTime::now()) {
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownRevocationStatus)) => {
                let reason = "it holds no list of the authority that issued this node's certificate";
                Err(failed(path, reason.into()))
            }
            Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {
                Err(failed(path, "it revokes this node's own certificate".into()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the certificate is in the names of all nodes that present it.
    pub(super) fn check_nodes(&self) -> Result<(), SecurityError> {
        let [_, certificate, _] = &self.paths;
        let mut own = self.nodes.iter().map(|node| self.own(node));
        own.try_for_each(|own| own.map(drop)).map_err(|error| failed(certificate, error))
    }

    /// The certificate to present in a node's name, with its key.
    pub(super) fn own(&self, node: &str) -> Result<Identity, BoxedError> {
        let first = self.chain.first().ok_or("it holds no certificate")?;
        let certificate = webpki::EndEntityCert::try_from(first)?;
        if !node.is_empty() && !certificate.valid_dns_names().any(|name| name == node) {
            let reason = format!("\"{node}\" is not among the DNS names of the node's certificate");
            return Err(reason.into());
        }
        Ok((self.chain.clone(), self.key.clone_key()))
    }
}

fn failed(path: &Path, error: BoxedError) -> SecurityError {
    SecurityError::File { path: path.display().to_string(), reason: Cause::new(error) }
}

fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    read_file(path, PEM_BYTES_MAX).map_err(|error| failed(path, error.into()))
}

/// Everything of one kind in a PEM file; an error if there is nothing.
fn read_all<T: PemObject>(path: &Path, nothing: &'static str) -> Result<Vec<T>, SecurityError> {
    let found: Result<Vec<T>, _> = T::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| failed(path, error.into()))?;
    if found.is_empty() { Err(failed(path, nothing.into())) } else { Ok(found) }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn store(roots: impl Iterator<Item = CertificateDer<'static>>) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    Arc::new(store)
}

impl TrustAnchors {
    pub(super) fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .with_crls(self.revocations.iter().cloned())
            .only_check_end_entity_revocation()
            .build()
    }

    pub(super) fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
        WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider())
            .with_crls(self.revocations.iter().cloned())
            .only_check_end_entity_revocation()
            .build()
    }
}

/// Verifies a server's certificate as usual, but for the first DNS name in it instead of the dialled name.
#[derive(Debug)]
pub(super) struct ByItsOwnName(pub(super) Arc<WebPkiServerVerifier>);

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
