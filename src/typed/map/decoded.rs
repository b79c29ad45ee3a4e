//! Decoded values, so that a value that is read often is decoded once.
//!
//! A place is found by the stamp of the write, which needs no look at the key, and is read without a lock. Each stamp
//! has a few places, which are tried from one on that the stamp names. A decoded value belongs to the very memory of the
//! bytes that it was decoded from: as that is kept here, no other value can be there, whatever stamp it has. Where more
//! values want a place than there are, one of them is decoded again when it is read.
//!
//! A general cache costs more than that: one look into moka takes two to three times as long as reading the value from
//! the node, and it knows a clock.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use crate::store::entry::Entry;
use crate::time::Stamp;

/// The places are grouped in sets, and each stamp belongs to one set.
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
}

impl<T> DecodedValue<T> {
    fn is_of(&self, entry: &Entry) -> bool {
        std::ptr::eq(self.entry.value(), entry.value())
    }
}

/// The values of a map that were decoded last, at most [`DECODED_MAX`].
#[derive(Debug)]
pub(super) struct DecodedValues<T> {
    /// Made for the first value, so that a map that is made for a single write costs nothing.
    places: OnceLock<Box<[ArcSwapOption<DecodedValue<T>>]>>,
}

impl<T> Default for DecodedValues<T> {
    fn default() -> Self {
        Self { places: OnceLock::new() }
    }
}

fn spread(stamp: Stamp) -> u64 {
    (stamp.clock ^ stamp.origin.number()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl<T> DecodedValues<T> {
    /// The value of an entry, which is decoded if it is not there.
    pub(super) fn of<E>(
        &self,
        entry: &Entry,
        decode: impl FnOnce(&Entry) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let places = self.places.get_or_init(|| (0..DECODED_MAX).map(|_| ArcSwapOption::empty()).collect());
        let hash = spread(entry.stamp());
        let first = (hash >> (u64::BITS - SET_BITS)) as usize * WAYS;
        let set = &places[first..first + WAYS];
        let preferred = hash as usize % WAYS;
        let mut free = None;
        for place in set[preferred..].iter().chain(&set[..preferred]) {
            match &*place.load() {
                Some(found) if found.is_of(entry) => return Ok(found.value.clone()),
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        let value = Arc::new(decode(entry)?);
        let place = free.unwrap_or(&set[preferred]);
        place.store(Some(Arc::new(DecodedValue { entry: entry.clone(), value: value.clone() })));
        Ok(value)
    }
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
        let (values, count) = (DecodedValues::default(), Cell::new(0));
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
        let values = DecodedValues::default();
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
