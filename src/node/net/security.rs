//! Who may connect: mutual TLS 1.3, from one shared secret or from certificates in files. There is no plaintext mode.
//!
//! A shared secret becomes a certificate authority (`secret.rs`), another one in each cluster. Every start of a process
//! issues a certificate under it, in its node's name. The authority's subject contains its public key, so that a
//! certificate of another secret is told apart from a broken one.
//!
//! Both sides use the usual verifiers of TLS, with one difference: a node that dials an address does not know yet which
//! node answers there. So the name that is verified is the one in the certificate, and the greeting compares it with
//! the name that the peer states, and with the names that are allowed.
//!
//! Sessions are never resumed: every connection is verified again, so that a removed secret opens nothing. What was
//! verified once is verified again after every change, and from time to time where certificates can expire
//! (`Network::follow_security`). The secrets and the keys must never be shown; no `Debug` output contains them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

#[cfg(feature = "__controls")]
use crate::controls::Control;
use crate::controls::Controls;
use crate::error::{BoxedError, Cause, SecurityError, StartError};
use crate::membership::NAME_BYTES_MAX;
use crate::node::net::certificates::{ByItsOwnName, Files, Identity, TrustAnchors, provider, store};
use crate::node::net::secret::{self, Secret};

/// The server name in every handshake. It is not verified: which node answers is known from its certificate.
pub(in crate::node) const SERVER_NAME: &str = "tidings";
const PROTOCOL: &[u8] = b"tidings/1";

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum TlsRefusal {
    /// The nodes have different secrets, or belong to different clusters: a secret is salted with the cluster's name.
    #[error("the nodes have different secrets or cluster names")]
    WrongSecret,
    /// The certificate was issued by an authority that is not trusted.
    #[error("the certificate was issued by an authority that is not trusted")]
    ForeignAuthority,
    /// The certificate has expired, or is not valid yet.
    #[error("the certificate has expired or is not valid yet")]
    Expired,
    /// The certificate has been revoked.
    #[error("the certificate has been revoked")]
    Revoked,
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

/// What a node presents and accepts.
enum Credentials {
    Secrets(Secrets),
    Files(Files),
}

/// Shared secrets. The one that is presented is accepted as well.
struct Secrets {
    presented: Arc<Secret>,
    accepted: Vec<Arc<Secret>>,
    /// The clusters of the nodes that use them: a new secret is derived for these before it is in force.
    clusters: BTreeSet<String>,
}

/// The TLS configurations of one node, by cluster and name.
type Configs = BTreeMap<(String, String), (quinn::ClientConfig, quinn::ServerConfig)>;

struct State {
    credentials: Credentials,
    /// What is offered in handshakes, the preferred one first.
    protocols: Vec<Vec<u8>>,
    controls: Controls,
    /// Cleared by every change.
    configs: Configs,
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
/// assert!(Security::secret("correct horse battery staple").unwrap_err().to_string().contains("80 are needed"));
/// # Ok::<(), tidings::SecurityError>(())
/// ```
#[derive(Clone)]
pub struct Security {
    /// Held only for moments: every handshake takes it.
    state: Arc<Mutex<State>>,
    /// Held while files are read, so that no call puts files in force that it has read before a later one.
    reading: Arc<Mutex<()>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").finish_non_exhaustive()
    }
}

impl Security {
    /// One shared secret for the whole cluster. It has to be worth 80 bits.
    ///
    /// The estimate adds up: letters of one case in a row, of which the first may be a capital, have 4.7 bits each, but
    /// no more than 7 bits and 1 bit for each letter, as a word; a digit has 3.3 bits; another character has 4 bits, or
    /// 1 bit if the previous such character was the same; four or more characters that stand earlier in the text have 6
    /// bits together. 32 random hexadecimal digits pass, and so do 32 random bytes in base 64. Texts that people make
    /// up are easier to guess than the estimate says: use [`generate_secret`](Self::generate_secret).
    ///
    /// The key of a cluster is derived from the secret and the cluster's name by Argon2id with 64 MiB and three passes.
    /// This takes some tenths of a second when a node starts, and when a further secret is accepted.
    ///
    /// # Errors
    /// [`SecurityError::Weak`] if the secret is easy to guess; [`SecurityError::Blank`] if it has blanks at one end,
    /// which is probably a mistake.
    pub fn secret(text: &str) -> Result<Self, SecurityError> {
        let secret = Arc::new(Secret::new(text)?);
        let secrets =
            Secrets { presented: secret.clone(), accepted: vec![secret], clusters: BTreeSet::new() };
        Ok(Self::new(Credentials::Secrets(secrets)))
    }

    /// A new secret of 160 random bits.
    ///
    /// # Panics
    /// If the operating system provides no random numbers.
    pub fn generate_secret() -> String {
        secret::generate()
    }

    /// Certificates of your own authority, in PEM files: `ca` holds the trusted authorities, `certificate` the node's
    /// certificate followed by those that lead to its authority, `key` its private key. The node's name must be among
    /// the DNS names of its certificate, which must be valid for servers and for clients.
    ///
    /// A link ends within ten seconds after the certificate of its peer has expired.
    ///
    /// # Errors
    /// [`SecurityError::File`], which names the file, if one cannot be read or has the wrong content.
    pub fn ca(
        ca: impl AsRef<Path>,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, SecurityError> {
        let paths = [ca.as_ref(), certificate.as_ref(), key.as_ref()].map(Path::to_path_buf);
        Files::read(paths, None).map(|files| Self::new(Credentials::Files(files)))
    }

    /// Also reads revocation lists from a PEM file: a node whose certificate is on them is refused, and its links are
    /// closed. [`reload`](Self::reload) reads the file again. Every authority that issues certificates of nodes needs a
    /// list, which may be empty: a node whose authority has none is refused. A list counts until it is replaced, also
    /// after the time of its next update.
    ///
    /// # Errors
    /// [`SecurityError::File`] if the file cannot be read, holds no list, or none of the authority that issued this
    /// node's own certificate, or has that certificate on a list; [`SecurityError::NoFiles`] if this is a shared
    /// secret.
    pub fn revoke_by(&self, lists: impl AsRef<Path>) -> Result<(), SecurityError> {
        let path = lists.as_ref().to_path_buf();
        self.read_again(|paths, _| Files::read(paths, Some(path)))
    }

    /// From now on only these nodes may connect, and links to others are closed. A later call replaces the names. This
    /// node needs no place among them.
    ///
    /// # Errors
    /// [`SecurityError::Name`] if no node can have one of the names; [`SecurityError::NoFiles`] if this is a shared
    /// secret, with which every node can take every name.
    pub fn allow_only<S: Into<String>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<(), SecurityError> {
        let allowed: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        self.change(|credentials| match credentials {
            Credentials::Files(files) => {
                if let Some(name) = allowed.iter().find(|name| check_node_name(name).is_err()) {
                    return Err(SecurityError::Name { name: name.clone() });
                }
                files.allowed = Some(allowed);
                Ok(())
            }
            Credentials::Secrets(_) => Err(SecurityError::NoFiles),
        })
    }

    /// Reads the files again, and closes the links of peers that are no longer accepted. If it fails, the old
    /// certificates and revocation lists stay in force. The certificate has to be in the name of each node that was
    /// started with these settings.
    ///
    /// # Errors
    /// As for [`Security::ca`] and [`Security::revoke_by`].
    pub fn reload(&self) -> Result<(), SecurityError> {
        self.read_again(Files::read)
    }

    /// Accepts peers with this further secret as well. This is the first step of a rotation.
    ///
    /// # Errors
    /// As for [`Security::secret`]; also [`SecurityError::NoSecret`] if certificates come from files.
    pub fn accept(&self, text: &str) -> Result<(), SecurityError> {
        let secret = self.further(text)?;
        self.change_secrets(|secrets| {
            secrets.accept(secret);
            Ok(())
        })
    }

    /// Presents this secret on new links from now on, and accepts it. This is the second step of a rotation, once every
    /// node accepts the secret.
    ///
    /// # Errors
    /// As for [`Security::accept`].
    pub fn present(&self, text: &str) -> Result<(), SecurityError> {
        let secret = self.further(text)?;
        self.change_secrets(|secrets| {
            secrets.presented = secrets.accept(secret);
            Ok(())
        })
    }

    /// Stops accepting a secret, and closes the links whose peer presented it. This is the last step of a rotation,
    /// once every node presents another secret.
    ///
    /// # Errors
    /// [`SecurityError::InUse`] if this node presents it; [`SecurityError::NotAccepted`] if it was not accepted.
    pub fn remove(&self, text: &str) -> Result<(), SecurityError> {
        self.change_secrets(|secrets| {
            if secrets.presented.is(text) {
                return Err(SecurityError::InUse);
            }
            if !secrets.accepted.iter().any(|secret| secret.is(text)) {
                return Err(SecurityError::NotAccepted);
            }
            secrets.accepted.retain(|secret| !secret.is(text));
            Ok(())
        })
    }

    fn new(credentials: Credentials) -> Self {
        let state = State {
            credentials,
            protocols: vec![PROTOCOL.to_vec()],
            controls: Controls::default(),
            configs: Configs::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), reading: Arc::default(), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it changes")
    }

    /// Changes everything or, where that fails, nothing.
    fn change(
        &self,
        change: impl FnOnce(&mut Credentials) -> Result<(), SecurityError>,
    ) -> Result<(), SecurityError> {
        let mut state = self.lock();
        change(&mut state.credentials)?;
        state.configs.clear();
        drop(state);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn change_secrets(
        &self,
        change: impl FnOnce(&mut Secrets) -> Result<(), SecurityError>,
    ) -> Result<(), SecurityError> {
        self.change(|credentials| match credentials {
            Credentials::Secrets(secrets) => change(secrets),
            Credentials::Files(_) => Err(SecurityError::NoSecret),
        })
    }

    /// Replaces what the files held. `read` is given the paths of the certificate files and of the revocation lists.
    fn read_again(
        &self,
        read: impl FnOnce([PathBuf; 3], Option<PathBuf>) -> Result<Files, SecurityError>,
    ) -> Result<(), SecurityError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let (paths, lists) = match &self.lock().credentials {
            Credentials::Files(files) => {
                (files.paths.clone(), files.revocations.as_ref().map(|(path, _)| path.clone()))
            }
            Credentials::Secrets(_) => return Err(SecurityError::NoFiles),
        };
        let new = read(paths, lists)?;
        self.change(|credentials| match credentials {
            Credentials::Files(files) => {
                let new = Files { nodes: files.nodes.clone(), ..new };
                new.check_nodes()?;
                // The names may have been changed meanwhile.
                *files = Files { allowed: files.allowed.take(), ..new };
                Ok(())
            }
            Credentials::Secrets(_) => Err(SecurityError::NoFiles),
        })
    }

    /// A further secret, derived for the clusters where it is needed at once.
    fn further(&self, text: &str) -> Result<Arc<Secret>, SecurityError> {
        let clusters = match &self.lock().credentials {
            Credentials::Secrets(secrets) => secrets.clusters.clone(),
            Credentials::Files(_) => return Err(SecurityError::NoSecret),
        };
        let secret = Secret::new(text)?;
        for cluster in clusters {
            secret.authority(&cluster)?;
        }
        Ok(Arc::new(secret))
    }

    // For the node.

    pub(in crate::node) fn client(
        &self,
        cluster: &str,
        node: &str,
    ) -> Result<quinn::ClientConfig, StartError> {
        self.configs(cluster, node).map(|(client, _)| client)
    }

    pub(in crate::node) fn server(
        &self,
        cluster: &str,
        node: &str,
    ) -> Result<quinn::ServerConfig, StartError> {
        self.configs(cluster, node).map(|(_, server)| server)
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

    /// Whether a node of this name may connect, if its certificate is accepted.
    pub(in crate::node) fn allows(&self, name: &str) -> bool {
        match &self.lock().credentials {
            Credentials::Files(files) => files.allowed.as_ref().is_none_or(|allowed| allowed.contains(name)),
            Credentials::Secrets(_) => true,
        }
    }

    /// Whether a certificate that is accepted now can expire: those that are issued under a secret never do.
    pub(in crate::node) fn can_expire(&self) -> bool {
        matches!(self.lock().credentials, Credentials::Files(_))
    }

    /// Of the links of a node, those whose certificate or name would not be accepted any more.
    pub(in crate::node) fn no_longer_accepted<T>(
        &self,
        cluster: &str,
        links: Vec<(T, String, Connection)>,
    ) -> Vec<T> {
        let trust = self.lock().credentials.trust(cluster);
        let verifier = trust.ok().and_then(|trust| trust.client_verifier().ok());
        let is_accepted = |name: &str, connection: &Connection| {
            let chain = chain_of(connection);
            let Some((first, rest)) = chain.split_first() else { return false };
            let verify = |verifier: &Arc<dyn ClientCertVerifier>| {
                verifier.verify_client_cert(first, rest, UnixTime::now()).is_ok()
            };
            self.allows(name) && verifier.as_ref().is_some_and(verify)
        };
        let refused = links.into_iter().filter(|(_, name, connection)| !is_accepted(name, connection));
        refused.map(|(link, ..)| link).collect()
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
            48 => match &self.lock().credentials {
                Credentials::Files(_) => TlsRefusal::ForeignAuthority,
                Credentials::Secrets(_) => TlsRefusal::WrongSecret,
            },
            44 => TlsRefusal::Revoked,
            45 => TlsRefusal::Expired,
            116 => TlsRefusal::NoCertificate,
            42..=51 => TlsRefusal::BadCertificate,
            70 | 120 => TlsRefusal::Protocol,
            _ => return None,
        })
    }

    /// Offers these protocols, as a program of a later wire version would.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    #[must_use]
    pub fn offering(self, protocols: &[&str]) -> Self {
        self.lock().protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Breaks a rule of admission, to show that its test can fail.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    #[must_use]
    pub fn broken(self, control: Option<Control>) -> Self {
        self.lock().controls.broken = control;
        self
    }

    pub(in crate::node) fn controls(&self) -> Controls {
        self.lock().controls
    }

    fn configs(
        &self,
        cluster: &str,
        node: &str,
    ) -> Result<(quinn::ClientConfig, quinn::ServerConfig), StartError> {
        let mut state = self.lock();
        let of = (cluster.to_owned(), node.to_owned());
        if let Some(configs) = state.configs.get(&of) {
            return Ok(configs.clone());
        }
        if let Credentials::Secrets(secrets) = &mut state.credentials {
            secrets.clusters.insert(cluster.to_owned());
        }
        let configs = state.credentials.make_configs(cluster, node, &state.protocols);
        let configs = configs.map_err(|error| StartError::Certificate { reason: Cause::new(error) })?;
        if let Credentials::Files(files) = &mut state.credentials {
            files.nodes.insert(node.to_owned());
        }
        state.configs.insert(of, configs.clone());
        Ok(configs)
    }
}

fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let chain = connection.peer_identity().and_then(|chain| chain.downcast().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}

impl Secrets {
    /// Accepts a secret; answers the one that is accepted now, which may be an equal one from before.
    fn accept(&mut self, secret: Arc<Secret>) -> Arc<Secret> {
        if let Some(known) = self.accepted.iter().find(|known| known.is_same(&secret)) {
            return known.clone();
        }
        self.accepted.push(secret.clone());
        secret
    }
}

impl Credentials {
    fn trust(&self, cluster: &str) -> Result<TrustAnchors, SecurityError> {
        match self {
            Self::Secrets(secrets) => {
                let authorities = secrets.accepted.iter().map(|secret| secret.authority(cluster));
                let authorities: Vec<_> = authorities.collect::<Result<_, _>>()?;
                let roots = authorities.iter().map(|authority| authority.certificate.clone());
                Ok(TrustAnchors { roots: store(roots), revocations: Vec::new() })
            }
            Self::Files(files) => {
                let lists = files.revocations.as_ref().map(|(_, lists)| lists.clone());
                let roots = store(files.roots.iter().cloned());
                Ok(TrustAnchors { roots, revocations: lists.unwrap_or_default() })
            }
        }
    }

    /// The certificate to present in a node's name, with its key.
    fn own(&self, cluster: &str, node: &str) -> Result<Identity, BoxedError> {
        match self {
            Self::Secrets(secrets) => {
                let (certificate, key) = secrets.presented.authority(cluster)?.issue(node)?;
                Ok((vec![certificate], key))
            }
            Self::Files(files) => files.own(node),
        }
    }

    fn make_configs(
        &self,
        cluster: &str,
        node: &str,
        protocols: &[Vec<u8>],
    ) -> Result<(quinn::ClientConfig, quinn::ServerConfig), BoxedError> {
        let (chain, key) = self.own(cluster, node)?;
        let trust = self.trust(cluster)?;
        let versions = &[&rustls::version::TLS13];
        let mut client = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByItsOwnName(trust.server_verifier()?)))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.alpn_protocols = protocols.to_vec();
        // No resumption: each connection is verified again, so that a removed secret opens nothing.
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(trust.client_verifier()?)
            .with_single_cert(chain, key)?;
        server.alpn_protocols = protocols.to_vec();
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let client = QuicClientConfig::try_from(client)?;
        let server = QuicServerConfig::try_from(server)?;
        let server = quinn::ServerConfig::with_crypto(Arc::new(server));
        Ok((quinn::ClientConfig::new(Arc::new(client)), server))
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    #[test]
    fn handshakes_go_on_while_files_are_read() {
        let files = || Files {
            paths: Default::default(),
            chain: Vec::new(),
            key: PrivateKeyDer::Pkcs8(Vec::new().into()),
            roots: Vec::new(),
            revocations: None,
            allowed: None,
            nodes: BTreeSet::new(),
        };
        let security = Security::new(Credentials::Files(files()));
        let read = |_, _| {
            assert!(security.state.try_lock().is_ok(), "a handshake would wait");
            security.allow_only(["b"])?;
            Ok(files())
        };
        assert_eq!(security.read_again(read), Ok(()));
        assert!(security.allows("b") && !security.allows("a"), "the names of before are in force");
    }
}
