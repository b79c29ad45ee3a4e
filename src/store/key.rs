//! Stored keys: keyspaces for registers, sets, counters and the library itself, so that their names never collide.

use crate::config::KEY_BYTES_MAX;
use crate::error::WriteError;
use crate::id::RunId;

/// Separate keyspaces, so that the names of registers, sets and counters never collide. The first byte of every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Space {
    Register = 0,
    Set = 1,
    Counter = 2,
    /// For the library itself.
    Reserved = 3,
}

/// The longest stored key: keyspace byte, length and name of a set, element.
pub(crate) const STORED_KEY_BYTES_MAX: usize = 1 + 2 + 2 * KEY_BYTES_MAX;

pub(crate) fn check_key(name: &[u8]) -> Result<(), WriteError> {
    match name.len() {
        0 => Err(WriteError::KeyEmpty),
        bytes if bytes > KEY_BYTES_MAX => Err(WriteError::KeyTooLong { bytes }),
        _ => Ok(()),
    }
}

pub(crate) fn register_key(name: &str, out: &mut Vec<u8>) {
    out.push(Space::Register as u8);
    out.extend_from_slice(name.as_bytes());
}

/// The stored key of a register.
pub(crate) fn register(key: &str) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    register_key(key, &mut stored);
    stored
}

/// The stored key of an entry of the library itself.
pub(crate) fn reserved(key: &str) -> Vec<u8> {
    [&[Space::Reserved as u8], key.as_bytes()].concat()
}

/// Whether a stored key is one of the library itself.
pub(crate) fn is_reserved(stored: &[u8]) -> bool {
    stored.first() == Some(&(Space::Reserved as u8))
}

/// A stored key of a set or a counter. The length of the name separates those of which one name is a prefix of the other.
fn named_key(space: Space, name: &str, end: &[u8]) -> Vec<u8> {
    [&[space as u8], &(name.len() as u16).to_be_bytes()[..], name.as_bytes(), end].concat()
}

/// The stored key of an element of a set; with an empty element, the prefix of all of them.
pub(crate) fn element_key(set: &str, element: &str) -> Vec<u8> {
    named_key(Space::Set, set, element.as_bytes())
}

/// What a stored key of a counter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CounterPart {
    /// The share of one run.
    Share(RunId),
    /// One of its tables of past shares.
    Table(u16),
}

impl CounterPart {
    /// The part that the end of a stored key names.
    fn from_end(end: &[u8]) -> Option<Self> {
        if let Ok(table) = end.try_into() {
            return Some(Self::Table(u16::from_be_bytes(table)));
        }
        Some(Self::Share(RunId::new(u64::from_be_bytes(end.try_into().ok()?))))
    }

    /// The part that a well-formed key of a counter names.
    pub(crate) fn of_key(key: &[u8]) -> Self {
        Self::from_end(&key[3 + name_bytes(key)..]).expect("keys are checked on their way in")
    }

    /// The stored key of this part of a counter.
    pub(crate) fn key(self, counter: &str) -> Vec<u8> {
        match self {
            Self::Share(run) => named_key(Space::Counter, counter, &run.number().to_be_bytes()),
            Self::Table(number) => named_key(Space::Counter, counter, &number.to_be_bytes()),
        }
    }
}

/// The common beginning of all keys of a counter. [`CounterPart`] says what follows.
pub(crate) fn counter_prefix(counter: &str) -> Vec<u8> {
    named_key(Space::Counter, counter, &[])
}

/// The common beginning of all keys of a set or a counter.
pub(crate) fn collection_key(space: Space, name: &str) -> Vec<u8> {
    named_key(space, name, &[])
}

/// The least key behind all keys of a set or a counter. No byte of a name is the greatest one.
pub(crate) fn behind_collection(space: Space, name: &str) -> Vec<u8> {
    let mut key = collection_key(space, name);
    *key.last_mut().expect("names are not empty") += 1;
    key
}

/// The name of the set or counter of a well-formed key.
pub(crate) fn collection_of(key: &[u8]) -> &str {
    std::str::from_utf8(&key[3..3 + name_bytes(key)]).expect("keys are checked on their way in")
}

/// The length of the set's or counter's name in a well-formed key.
fn name_bytes(key: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([key[1], key[2]]))
}

/// The keyspace of a stored key.
pub(crate) fn space_of(key: &[u8]) -> Option<Space> {
    match key.first()? {
        0 => Some(Space::Register),
        1 => Some(Space::Set),
        2 => Some(Space::Counter),
        3 => Some(Space::Reserved),
        _ => None,
    }
}

/// The readable part of a stored key: a register's name, a set's element, a counter's name.
pub(crate) fn readable_key(key: &[u8]) -> &str {
    let name = match space_of(key) {
        Some(Space::Counter) => &key[3..3 + name_bytes(key)],
        Some(Space::Set) => &key[3 + name_bytes(key)..],
        _ => &key[1..],
    };
    std::str::from_utf8(name).expect("keys are checked on their way in")
}

/// Whether a key that came from a peer or a disk has a form that this library writes.
pub(crate) fn key_is_well_formed(key: &[u8]) -> bool {
    let name =
        |bytes: &[u8]| (1..=KEY_BYTES_MAX).contains(&bytes.len()) && std::str::from_utf8(bytes).is_ok();
    let framed = |bytes: &[u8], rest: &dyn Fn(&[u8]) -> bool| {
        let Some((length, bytes)) = bytes.split_first_chunk::<2>() else { return false };
        let length = usize::from(u16::from_be_bytes(*length));
        length <= bytes.len() && name(&bytes[..length]) && rest(&bytes[length..])
    };
    match space_of(key) {
        Some(Space::Register | Space::Reserved) => name(&key[1..]),
        Some(Space::Set) => framed(&key[1..], &name),
        Some(Space::Counter) => framed(&key[1..], &|end| CounterPart::from_end(end).is_some()),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_spaces_never_meet() {
        let mut keys = vec![Vec::new(); 4];
        register_key("ab", &mut keys[0]);
        keys[1] = element_key("a", "b");
        keys[2] = element_key("ab", "");
        keys[3] = counter_prefix("ab");
        keys[3].extend_from_slice(&7_u64.to_be_bytes());
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(key_is_well_formed(key), i != 2, "{key:?}");
            assert!(keys.iter().skip(i + 1).all(|other| other != key));
        }
    }

    #[test]
    fn keys_of_bad_form_are_recognised() {
        let long = [&[0][..], &[b'x'; 1_025]].concat();
        let cases: [&[u8]; 8] =
            [b"", b"\0", b"\x04x", b"\0\xff", b"\x01\0", b"\x01\0\x05ab", b"\x02\0\x01a1234567", &long];
        for key in cases {
            assert!(!key_is_well_formed(key), "{key:?}");
        }
        assert!(key_is_well_formed(&long[..1_025]));
    }
}
