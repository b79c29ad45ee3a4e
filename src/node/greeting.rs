//! Greetings: what two processes tell each other over a new connection, before the first frame.
//!
//! They name the cluster, the node and its run, so that each side can refuse the other before it costs anything. Greetings
//! are outside the core: a replica only ever sees links that were accepted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::membership::MemberLimit;
use crate::wire::{WIRE_VERSION, WireError};

/// What two nodes tell each other before anything else. Later versions may only add to its end.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Greeting {
    pub(super) cluster: String,
    pub(super) name: String,
    /// One start of the process.
    pub(super) run: u64,
    pub(super) app_version: String,
    /// The wall clock in milliseconds.
    pub(super) wall_ms: u64,
    /// Where the sender can be reached; without an address, at the one that the connection shows.
    pub(super) advertised: Option<SocketAddr>,
    pub(super) port: u16,
    pub(super) meta: BTreeMap<String, String>,
    pub(super) meta_version: u64,
}

/// Whether the other side accepts a greeting.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) enum GreetingAnswer {
    Welcome(Greeting),
    Cluster(String),
    AppVersion(String),
    /// Milliseconds between the clocks.
    Clock(u64),
    NameTaken,
    NotTheCertificates,
    Itself,
    OverLimit(MemberLimit),
}

/// The longest greeting or answer.
pub(super) const GREETING_BYTES_MAX: usize = 64 << 10;

pub(super) fn encode_greeting<T: bincode::Encode>(message: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bincode::encode_into_std_write(message, &mut bytes, bincode::config::standard())
        .expect("a vector takes everything");
    bytes
}

pub(super) fn decode_greeting<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, WireError> {
    let (version, rest) = bytes.split_first().ok_or(WireError::Form)?;
    if *version != WIRE_VERSION {
        return Err(WireError::Version(*version));
    }
    let config = bincode::config::standard().with_limit::<GREETING_BYTES_MAX>();
    bincode::decode_from_slice(rest, config).map(|(message, _)| message).map_err(|_| WireError::Form)
}
