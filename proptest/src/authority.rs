//! A certificate authority of a test, whose certificates are in files for nodes, or in memory for peers that are none.

use std::path::PathBuf;

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tidings::Security;

use crate::{Folder, tls};

/// The first and the last year of certificates that are valid now.
pub const VALID: (i32, i32) = (2_020, 2_100);

/// A certificate authority, and a folder for the files of one test.
#[derive(Debug)]
pub struct Authority {
    /// Signs.
    pub issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub certificate: Certificate,
    /// Where the files are.
    pub folder: Folder,
}

#[expect(clippy::missing_panics_doc, reason = "what it needs of rcgen and of the disk is there")]
impl Authority {
    /// A new one, under a name of its own.
    pub fn new(test: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, test);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(parameters, key), certificate, folder: Folder::new() }
    }

    /// A certificate for a node of this name, from the begin of one year to that of another.
    pub fn issue(&self, name: &str, years: (i32, i32)) -> (Certificate, KeyPair) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        self.sign(&parameters)
    }

    /// A certificate with these contents, and its key.
    pub fn sign(&self, parameters: &CertificateParams) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// The files of a node: the authority's certificate, its own, and its key.
    pub fn paths(&self, name: &str) -> [PathBuf; 3] {
        ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")].map(|file| self.folder.at(&file))
    }

    /// Issues a certificate and writes the files of its node.
    pub fn write(&self, name: &str, years: (i32, i32)) -> [PathBuf; 3] {
        self.write_issued(name, &self.issue(name, years))
    }

    /// Writes the files of a node.
    pub fn write_issued(&self, name: &str, (certificate, key): &(Certificate, KeyPair)) -> [PathBuf; 3] {
        let paths = self.paths(name);
        std::fs::write(&paths[0], self.certificate.pem()).unwrap();
        std::fs::write(&paths[1], certificate.pem()).unwrap();
        std::fs::write(&paths[2], key.serialize_pem()).unwrap();
        paths
    }

    /// Replaces the files of a node by those of another authority.
    pub fn replace(&self, by: &Self, name: &str) {
        for (from, to) in by.write(name, VALID).iter().zip(&self.paths(name)) {
            std::fs::copy(from, to).unwrap();
        }
    }

    /// The security of a node whose files are written for it.
    pub fn security(&self, name: &str, years: (i32, i32)) -> Security {
        let [ca, certificate, key] = self.write(name, years);
        Security::ca(ca, certificate, key).unwrap()
    }

    /// Trust in this authority alone.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }

    /// TLS of a client with a valid certificate in this name.
    pub fn client(&self, name: &str) -> ClientConfig {
        let (certificate, key) = self.issue(name, VALID);
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let chain: Vec<CertificateDer<'static>> = vec![certificate.into()];
        tls::client(self.roots()).with_client_auth_cert(chain, key).unwrap()
    }
}
