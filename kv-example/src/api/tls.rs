//! TLS 1.3 for the API, with a certificate and a key from files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::listen::Protocol;
use crate::exit::{Exit, Failure};
use crate::files;

/// The certificate that the API presents. It is replaced as a whole, for connections from then on.
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// All certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = files::regular(path, files::SETTINGS_BYTES_MAX)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| unread(path, &error))?;
    if found.is_empty() { Err(unfit(path, "it holds no certificate")) } else { Ok(found) }
}

fn unread(path: &Path, error: &pem::Error) -> Failure {
    match error {
        // The text of other errors may hold what stands in the file.
        pem::Error::NoItemsFound => unfit(path, "it holds no private key"),
        _ => unfit(path, "it is not of the form PEM"),
    }
}

fn unfit(path: &Path, reason: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, format!("{} cannot be used: {reason}", path.display()))
}

impl Tls {
    pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Self, Failure> {
        let config = RwLock::new(config(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Reads the files again. If they cannot be used, what was in force stays so.
    pub(crate) fn reload(&self) -> Result<(), Failure> {
        let config = config(&self.certificate, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        match protocol {
            Protocol::Http1 => config,
            Protocol::Http2 => {
                let mut config = (*config).clone();
                config.alpn_protocols = vec![b"h2".to_vec()];
                Arc::new(config)
            }
        }
    }
}

fn config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, Failure> {
    crate::settings::check_private(key)?;
    let chain = certificates(certificate)?;
    let pem = files::regular(key, files::SETTINGS_BYTES_MAX)?;
    let own_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unread(key, &error))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3");
    let fits = builder.with_no_client_auth().with_single_cert(chain, own_key);
    let mut config = fits.map_err(|error| unfit(certificate, format!("with this key: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
