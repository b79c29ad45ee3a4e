//! TLS of bare QUIC endpoints: those of hostile peers, and those that nodes are compared with.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// TLS 1.3 of a client that trusts these authorities. Its own certificate is the next step.
///
/// # Panics
/// Never: the provider has TLS 1.3.
pub fn client(roots: impl Into<Arc<RootCertStore>>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    config
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has it")
        .with_root_certificates(roots)
}

/// The same for QUIC.
///
/// # Panics
/// Never: the suites of [`client`] are fit for QUIC.
pub fn quic(config: ClientConfig) -> quinn::ClientConfig {
    let config = QuicClientConfig::try_from(config).expect("the suites are fit for QUIC");
    quinn::ClientConfig::new(Arc::new(config))
}
