//! Greetings: the first messages over a new connection, before any frame.
//!
//! A greeting states the cluster, the node's name and its run, so that each side can refuse the other before that costs
//! anything. Greetings are outside the core: the replica sees only links whose greeting was accepted.
//!
//! They are encoded with bincode behind a version byte. Later versions may only add fields to the end: a decoder
//! ignores what follows the fields that it knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

use crate::config::ClusterSettings;
use crate::id::RunId;
use crate::membership::MemberLimit;
use crate::settings_record::SettingsClaim;
use crate::wire::{Abilities, WIRE_VERSION, WireError};

/// What a node states about itself at the beginning of a connection. Later versions may only add fields to the end.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub(in crate::node) struct Greeting {
    pub(in crate::node) cluster: String,
    pub(in crate::node) name: String,
    /// The sender's run: a random number for this start of its process.
    pub(in crate::node) run: RunId,
    pub(in crate::node) app_version: String,
    /// The sender's wall clock, in milliseconds since the Unix epoch.
    pub(in crate::node) wall_ms: u64,
    /// The address at which others can reach the sender. `None`: the IP address of the connection with `port`.
    pub(in crate::node) advertised: Option<SocketAddr>,
    pub(in crate::node) port: u16,
    pub(in crate::node) meta: BTreeMap<String, String>,
    pub(in crate::node) meta_version: u64,
    pub(in crate::node) settings: Later<GreetingSettings>,
    /// The bits of [`Abilities`].
    pub(in crate::node) abilities: Later<u64>,
    /// The settings with which the sender's cluster began. Number 0: they were never changed, so nobody needs to know.
    pub(in crate::node) beginning: Later<GreetingSettings>,
}

impl Greeting {
    /// What the sender's program understands beyond the wire version.
    pub(in crate::node) fn abilities(&self) -> Abilities {
        self.abilities.0.map_or(Abilities::NONE, Abilities::from_bits)
    }

    /// What the sender says of the shared settings, if its program does.
    pub(in crate::node) fn claim(&self) -> Option<SettingsClaim> {
        let settings = self.settings.0?;
        let beginning = self.beginning.0.filter(|beginning| beginning.number > 0);
        let beginning = beginning.as_ref().map(GreetingSettings::settings);
        Some(SettingsClaim { configured: settings.settings(), number: settings.number, beginning })
    }
}

/// A field at the end of a greeting that was added within a wire version: programs from before do not send it, nor any
/// field behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::node) struct Later<T>(pub(in crate::node) Option<T>);

impl<T: Encode> Encode for Later<T> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_ref().map_or(Ok(()), |field| field.encode(encoder))
    }
}

impl<C, T: Decode<C>> Decode<C> for Later<T> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match T::decode(decoder) {
            Ok(field) => Ok(Self(Some(field))),
            Err(DecodeError::UnexpectedEnd { .. }) => Ok(Self(None)),
            Err(error) => Err(error),
        }
    }
}

impl<'de, C, T: Decode<C>> BorrowDecode<'de, C> for Later<T> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// What a node says of the shared settings.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub(in crate::node) struct GreetingSettings {
    lease_time_max_ms: u64,
    clock_skew_max_ms: u64,
    mesh_members_max: u64,
    /// The number of the record that the sender holds, 0 if none.
    number: u64,
}

impl GreetingSettings {
    pub(in crate::node) fn new(settings: ClusterSettings, number: u64) -> Self {
        Self {
            lease_time_max_ms: settings.lease_time_max.as_millis() as u64,
            clock_skew_max_ms: settings.clock_skew_max.as_millis() as u64,
            mesh_members_max: settings.mesh_members_max as u64,
            number,
        }
    }

    pub(in crate::node) fn settings(&self) -> ClusterSettings {
        ClusterSettings {
            lease_time_max: Duration::from_millis(self.lease_time_max_ms),
            clock_skew_max: Duration::from_millis(self.clock_skew_max_ms),
            mesh_members_max: self.mesh_members_max as usize,
        }
    }
}

/// The answer to a greeting: a welcome with the other side's greeting, or the reason of a refusal.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub(in crate::node) enum GreetingAnswer {
    Welcome(Greeting),
    Cluster(String),
    AppVersion(String),
    /// The difference of the wall clocks in milliseconds.
    Clock(u64),
    NameTaken,
    NotTheCertificates,
    Itself,
    OverLimit(MemberLimit),
    RunTaken,
    Full,
    /// The settings with which the sender of the greeting is configured, and those in force here.
    Settings {
        theirs: GreetingSettings,
        ours: GreetingSettings,
    },
    /// The settings with which the cluster of the greeting's sender began, and those with which the one here did.
    Beginning {
        theirs: GreetingSettings,
        ours: GreetingSettings,
    },
}

/// The longest greeting or answer, in bytes.
pub(in crate::node) const GREETING_BYTES_MAX: usize = 64 << 10;

pub(in crate::node) fn encode_greeting<T: bincode::Encode>(message: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bincode::encode_into_std_write(message, &mut bytes, bincode::config::standard())
        .expect("a vector takes everything");
    bytes
}

pub(in crate::node) fn decode_greeting<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, WireError> {
    let (version, rest) = bytes.split_first().ok_or(WireError::Form)?;
    if *version != WIRE_VERSION {
        return Err(WireError::Version(*version));
    }
    let config = bincode::config::standard().with_limit::<GREETING_BYTES_MAX>();
    bincode::decode_from_slice(rest, config).map(|(message, _)| message).map_err(|_| WireError::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_of_earlier_programs_are_read() {
        let settings = GreetingSettings::new(ClusterSettings::of(&crate::Config::lan()), 3);
        let some = Some(settings);
        for (settings, abilities, beginning) in [
            (None, None, None),
            (some, None, None),
            (some, Some(u64::MAX), None),
            (some, Some(u64::MAX), some),
        ] {
            let greeting = Greeting {
                cluster: "c".into(),
                name: "n".into(),
                run: RunId::new(1),
                app_version: String::new(),
                wall_ms: 2,
                advertised: None,
                port: 3,
                meta: BTreeMap::new(),
                meta_version: 0,
                settings: Later(settings),
                abilities: Later(abilities),
                beginning: Later(beginning),
            };
            let mut bytes = encode_greeting(&greeting);
            assert_eq!(decode_greeting::<Greeting>(&bytes).unwrap(), greeting);
            // A later program may send more.
            if beginning.is_some() {
                bytes.extend_from_slice(&[1, 2, 3]);
                assert_eq!(decode_greeting::<Greeting>(&bytes).unwrap(), greeting);
            }
        }
    }
}
