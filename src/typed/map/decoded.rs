//! Decoded values, so that a value that is read often is decoded once.
//!
//! A place is found by the key without the map's prefix, and is read without a lock. Each key has a few places, which are
//! tried from one on that the key names. A decoded value belongs to the very memory of the write that it was decoded from:
//! as that is kept here, no other write can be there, whatever stamp it has. So a value counts if the store says that the
//! key holds that memory now. Where more values want a place than there are, one of them is decoded again when it is read.
//!
//! While the key does not change, the store is not asked again.
//!
//! The store is asked with the key of the entry that is kept: to put prefix and key together and read the result takes
//! half as long as reading the value from the node. A general cache costs more than that: one look into moka takes two to
//! three times as long as that read, and it knows a clock.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use foldhash::fast::FixedState;

use crate::store::entry::Entry;
use crate::typed::Store;

/// The places are grouped in sets, and each key belongs to one set.
const SET_BITS: u32 = 10;
/// The places of a set.
const WAYS: usize = 4;

/// The most values of one map that are kept decoded.
pub(super) const DECODED_MAX: usize = WAYS << SET_BITS;

/// A value and what it was decoded from.
#[derive(Debug)]
struct DecodedValue<T> {
    entry: Entry,
    value: Arc<T>,
    /// The count of changes ([`Store::changes`]) at which the key held the entry; [`u64::MAX`] if that is not known.
    current_at: AtomicU64,
}

impl<T> DecodedValue<T> {
    /// Whether the key holds the entry now and nothing else. As long as the key does not change, it is not looked up again,
    /// unless it may expire.
    fn is_current(&self, store: &impl Store) -> bool {
        let changes = store.changes(&self.entry);
        if changes == Some(self.current_at.load(Ordering::Relaxed)) {
            return true;
        }
        let is_current = store.is_current(&self.entry);
        if let Some(changes) = changes.filter(|_| is_current && self.entry.expires_at().is_none()) {
            self.current_at.store(changes, Ordering::Relaxed);
        }
        is_current
    }
}

/// The values of a map that were decoded last, at most [`DECODED_MAX`].
#[derive(Debug)]
pub(super) struct DecodedValues<T> {
    /// What all keys of the map begin with.
    prefix_bytes: usize,
    /// Made for the first value, so that a map that is made for a single write costs nothing.
    places: OnceLock<Box<[ArcSwapOption<DecodedValue<T>>]>>,
}

impl<T> DecodedValues<T> {
    pub(super) fn new(prefix_bytes: usize) -> Self {
        Self { prefix_bytes, places: OnceLock::new() }
    }

    /// The value of a key, if it is here and the only one that the key holds now.
    pub(super) fn current(&self, key: &str, store: &impl Store) -> Option<Arc<T>> {
        let value = |place: &ArcSwapOption<DecodedValue<T>>| {
            let held = place.load();
            let found = held.as_ref()?;
            let is_found =
                found.entry.name()[self.prefix_bytes..] == *key.as_bytes() && found.is_current(store);
            is_found.then(|| found.value.clone())
        };
        places_of(self.places.get()?, key.as_bytes()).find_map(value)
    }

    /// The value of an entry, which is decoded if it is not there, in the place of an earlier value of its key.
    pub(super) fn of<E>(
        &self,
        entry: &Entry,
        decode: impl FnOnce(&Entry) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let (mut earlier, mut free, mut first) = (None, None, None);
        let places = self.places.get_or_init(|| (0..DECODED_MAX).map(|_| ArcSwapOption::empty()).collect());
        for place in places_of(places, &entry.name()[self.prefix_bytes..]) {
            first = first.or(Some(place));
            match &*place.load() {
                Some(found) if found.entry.is_same_write(entry) => return Ok(found.value.clone()),
                Some(found) if found.entry.name() == entry.name() => earlier = Some(place),
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        let value = Arc::new(decode(entry)?);
        let place = earlier.or(free).or(first).expect("a set has places");
        let current_at = AtomicU64::new(u64::MAX);
        let decoded = DecodedValue { entry: entry.clone(), value: value.clone(), current_at };
        place.store(Some(Arc::new(decoded)));
        Ok(value)
    }
}

/// The places of a key, in the order in which they are tried.
fn places_of<'p, T>(
    places: &'p [ArcSwapOption<DecodedValue<T>>],
    key: &[u8],
) -> impl Iterator<Item = &'p ArcSwapOption<DecodedValue<T>>> + use<'p, T> {
    let hash = FixedState::default().hash_one(key);
    let first = (hash >> (u64::BITS - SET_BITS)) as usize * WAYS;
    let (before, behind) = places[first..first + WAYS].split_at(hash as usize % WAYS);
    behind.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use crate::sim::Sim;

    /// Reads all keys twice, and counts how often a value had to be decoded.
    fn decoded(keys: usize) -> usize {
        let sim = Sim::new(1).without_checks().nodes(1);
        let node = sim.node(0);
        (0..keys).for_each(|i| _ = node.put(format!("{i}"), format!("{i}")).unwrap());
        let (values, count) = (DecodedValues::new(0), Cell::new(0));
        for i in (0..keys).chain(0..keys) {
            let entry = node.get(format!("{i}")).unwrap();
            let decode = |entry: &Entry| {
                count.set(count.get() + 1);
                Ok::<_, Infallible>(String::from_utf8_lossy(entry.value()).into_owned())
            };
            assert_eq!(*values.of(&entry, decode).unwrap(), format!("{i}"));
        }
        count.get()
    }

    #[test]
    fn few_values_are_decoded_once() {
        assert_eq!(decoded(100), 100);
    }

    #[test]
    fn many_values_are_right_and_decoded_again() {
        assert!(decoded(10 * DECODED_MAX) > 11 * DECODED_MAX);
    }

    #[test]
    fn value_of_another_write_is_never_taken() {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let values = DecodedValues::new(0);
        for i in 0..10_u8 {
            node.put("k", [i]).unwrap();
            let entry = node.get("k").unwrap();
            for _ in 0..2 {
                let value = values.of(&entry, |entry| Ok::<_, Infallible>(entry.value()[0])).unwrap();
                assert_eq!(*value, i);
            }
        }
    }
}
